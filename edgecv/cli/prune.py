"""``edgecv prune``: a checkpoint with fewer channels, trained again where there is data."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgecv
from edgecv.cli.common import add_json, key_values, print_json, progress, scores_line, table
from edgecv.data import Samples, hold_out, open_samples, spread
from edgecv.errors import InputError
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress
from edgecv.runtimes.registry import BACKENDS

if TYPE_CHECKING:
    from torch import nn

    from edgecv.compression.report import PruneReport
    from edgecv.models.checkpoint import Card

EXAMPLE = "edgecv prune runs/digits/best.safetensors --macs-ratio 0.5 --data digits --out pruned.safetensors"

LATENCY_S = 2.0  # of measuring each network on each backend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a .safetensors checkpoint of edgecv")
    parser.add_argument("--out", required=True, type=Path, help="the checkpoint to write, a .safetensors file")
    parser.add_argument("--macs-ratio", type=float, help="share of multiply-accumulates to keep (default: 0.5)")
    parser.add_argument("--params-ratio", type=float, help="share of parameters to keep")
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME=RATIO", help="share of a layer's channels to keep"
    )
    parser.add_argument(
        "--importance", help="l1, l2, bn_scale, taylor, hessian or random (default: taylor with --data, or l2)"
    )
    parser.add_argument("--scope", help="global or uniform (default: global with --data, or uniform)")
    parser.add_argument(
        "--round-to", type=int, default=8, help="leave multiples of so many channels (default: 8; for int8, 16)"
    )
    parser.add_argument("--protect", action="append", default=[], metavar="NAME", help="a layer that stays whole")
    parser.add_argument("--steps", type=int, default=1, help="prune in so many steps (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of random importance and of training (default: 0)")
    parser.add_argument(
        "--latency",
        default="",
        metavar="BACKENDS",
        help="measure before and after on these, such as onnxruntime,openvino",
    )
    data = parser.add_argument_group("with data")
    data.add_argument("--data", help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class")
    data.add_argument("--calibration", type=int, default=256, help="images of it to calibrate on (default: 256)")
    data.add_argument("--epochs", type=int, default=0, help="train so many epochs after every step (default: 0)")
    data.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of edgecv.TrainConfig")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not args.data and (args.epochs or args.set):
        raise InputError("--epochs and --set train on images: give --data")
    backends = [name.strip() for name in args.latency.split(",") if name.strip()]
    for name in backends:
        if name not in BACKENDS.names():
            raise InputError(unknown("backend", name, BACKENDS.names()))
    if args.out.suffix != ".safetensors":
        raise InputError(f"--out is a .safetensors file, got {args.out}")
    from edgecv.compression.pruning import inputs_of
    from edgecv.compression.report import prune_report
    from edgecv.models.checkpoint import read_checkpoint

    config = _config(args)
    network, card = read_checkpoint(args.checkpoint)
    if args.data and card.preprocess is None:
        raise InputError(f"{args.checkpoint} does not say how images are preprocessed: save it with preprocess=")
    with progress() as report_progress:
        pruned, accuracy = _prune(network, card, config, args, report_progress)
        report = prune_report(network, pruned, inputs_of(network, preprocess=card.preprocess))
        latency = _latencies((network, pruned), card, backends, report_progress) if backends else {}
    edgecv.save_checkpoint(
        pruned, args.out, preprocess=card.preprocess, labels=card.labels, dataset=card.dataset, accuracy=accuracy
    )
    if args.json:
        print_json({"checkpoint": args.out, **asdict(report), "latency_ms": latency, "accuracy": accuracy})
        return 0
    _print(report, latency)
    if accuracy is not None:
        print(scores_line(accuracy))
    print(f"checkpoint: {args.out}")
    return 0


def _config(args: argparse.Namespace) -> edgecv.PruneConfig:
    layers = key_values(args.layer, "--layer")
    for name, ratio in layers.items():
        if not isinstance(ratio, (int, float)):
            raise InputError(f"--layer {name}= takes a number, got {ratio!r}")
    asked = args.macs_ratio is not None or args.params_ratio is not None or layers
    return edgecv.PruneConfig(
        macs_ratio=args.macs_ratio if asked else 0.5,
        params_ratio=args.params_ratio,
        layers=layers,
        scope=args.scope or ("global" if args.data else "uniform"),
        importance=args.importance or ("taylor" if args.data else "l2"),
        round_to=args.round_to,
        protect=tuple(args.protect),
        steps=args.steps,
        seed=args.seed,
    )


def _prune(
    network: nn.Module, card: Card, config: edgecv.PruneConfig, args: argparse.Namespace, report: Progress
) -> tuple[nn.Module, Any]:
    """The pruned network, and its accuracy where there is data to tell it from."""
    if not args.data or card.preprocess is None:
        return edgecv.prune(network, config=config, preprocess=card.preprocess, progress=report), None
    train_data, val_data = _data(args.data, card.labels)
    finetune = _Finetune(card.preprocess, (train_data, val_data), args, report) if args.epochs else None
    pruned = edgecv.prune(
        network,
        [train_data[index] for index in spread(len(train_data), args.calibration)],
        config,
        preprocess=card.preprocess,
        finetune=finetune,
        progress=report,
    )
    if card.recipe.architecture == "embedding":
        return pruned, None
    return pruned, _accuracy(pruned, card.preprocess, val_data, report)


def _data(source: str, labels: Sequence[str]) -> tuple[Samples, Samples]:
    train_data = open_samples(source, "train", labels)
    if labels and tuple(train_data.labels) != tuple(labels):
        raise InputError(f"{source} has {len(train_data.labels)} labels that are not the checkpoint's {len(labels)}")
    return hold_out(train_data, every=10)


class _Finetune:
    """Trains a network as the data's recipe says, at a tenth of its learning rate."""

    def __init__(
        self, preprocess: Preprocess, data: tuple[Samples, Samples], args: argparse.Namespace, report: Progress
    ) -> None:
        from edgecv.cli.train import recipe_name
        from edgecv.training.recipes import recipe_for

        recipe = recipe_for(recipe_name(args.data))
        settings = {
            "epochs": args.epochs,
            "warmup_epochs": min(1.0, args.epochs / 4),
            "learning_rate": recipe.config.learning_rate / 10,
            "seed": args.seed,
            **key_values(args.set, "--set"),
        }
        self._config = recipe.changed(settings).config
        self._preprocess, self._data, self._report = preprocess, data, report

    def __call__(self, network: nn.Module) -> nn.Module:
        train_data, val_data = self._data
        result = edgecv.train(
            network, train_data, val_data, self._config, preprocess=self._preprocess, progress=self._report
        )
        return result.network


def _accuracy(network: nn.Module, preprocess: Preprocess, data: Samples, report: Progress) -> Any:
    from edgecv.runtimes.pt import TorchSession

    with TorchSession.from_network(network, preprocess) as session:
        return edgecv.evaluate(edgecv.Classifier(session, preprocess, data.labels), data, progress=report)


def _latencies(
    networks: Sequence[nn.Module], card: Card, backends: Sequence[str], report: Progress
) -> dict[str, tuple[float, float]]:
    """Median milliseconds of one image before and after, on one thread of each backend."""
    from edgecv.converters.onnx_from_torch import onnx_from_torch

    if card.preprocess is None:
        raise InputError("--latency needs to know how images are preprocessed, which the checkpoint does not say")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [onnx_from_torch(net, Path(folder, f"{i}.onnx"), card.preprocess) for i, net in enumerate(networks)]
        for backend in backends:
            medians = []
            for file in files:
                with edgecv.open_session(file, backend=backend, threads=1) as session:
                    medians.append(edgecv.profile(session, duration_s=LATENCY_S, progress=report).p50_ms)
            found[backend] = (medians[0], medians[1])
    return found


def _print(report: PruneReport, latency: dict[str, tuple[float, float]]) -> None:
    before, after = report.before, report.after
    rows: list[tuple[str, str, str, str]] = [
        ("MMACs", f"{before.macs / 1e6:,.1f}", f"{after.macs / 1e6:,.1f}", f"{after.macs / before.macs:.3f}"),
        (
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            f"{after.parameters / before.parameters:.3f}",
        ),
    ]
    rows += [(f"{name}, ms", f"{old:.3f}", f"{new:.3f}", f"{new / old:.3f}") for name, (old, new) in latency.items()]
    print(table(rows, ("", "before", "after", "ratio")))
    print()
    channels = [(layer.name, layer.before, layer.after) for layer in report.layers]
    print(table(channels, ("layer", "channels", "kept")))

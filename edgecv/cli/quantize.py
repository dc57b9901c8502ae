"""``edgecv quantize``: from a checkpoint to a quantized one, and what each layer gives and takes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edgecv
from edgecv.cli.common import add_json, key_values, print_json, progress, scores_line, table
from edgecv.data import Samples, hold_out, open_frames, open_samples
from edgecv.errors import InputError
from edgecv.manifest import Accuracy
from edgecv.progress import Progress

EXAMPLE = "edgecv quantize runs/digits/best.safetensors --samples digits --data digits --out digits-int8.safetensors"
EXPLAINED = 32  # images that the harm of every layer is measured on
PAYS = 1.03  # less is noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a .safetensors checkpoint of edgecv, in float")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="with --qat: fields of edgecv.TrainConfig, such as epochs=2"
    )
    parser.add_argument(
        "--samples", metavar="IMAGES", required=True, help="real images to calibrate on, without labels"
    )
    parser.add_argument("--limit", type=int, default=100, help="how many of them, spread evenly (default: 100)")
    parser.add_argument("--out", type=Path, required=True, help="the quantized .safetensors checkpoint")
    parser.add_argument("--data", help="labelled images to score both networks on, as for edgecv evaluate")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--weight-bits",
        choices=("7", "8", "auto"),
        default="7",
        help="7 is right on every CPU, 8 where it has VNNI; auto: 7 in layers that saturate without it on --samples",
    )
    how.add_argument(
        "--range", choices=("minmax", "percentile", "mse", "entropy"), default="mse", help="of activations"
    )
    how.add_argument("--equalize", action="store_true", help="equalize the channels of neighbouring layers first")
    how.add_argument(
        "--rounding",
        choices=("gptq", "adaround", "nearest"),
        default="gptq",
        help="of weights: by what it does to a layer's output, solved or trained, or to the nearest",
    )
    how.add_argument("--keep-float", action="append", default=[], metavar="LAYER", help="a layer that stays float")
    how.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="top-1 points of --data that may be lost, in percent"
    )
    how.add_argument(
        "--fast-on",
        metavar="BACKEND",
        help="with --max-drop: keep those layers in int8 that gain most time on this backend for the harm they do",
    )
    how.add_argument(
        "--qat", metavar="DATA", help="train on from there on these labelled images, the float one teaching"
    )
    how.add_argument("--run", type=Path, help="with --qat: the training run's folder; an interrupted run goes on")
    how.add_argument("--explain", action="store_true", help="what each layer does to the answers and to the speed")
    how.add_argument("--backends", default="onnxruntime,openvino", help="that --explain measures speed on")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.out.suffix != ".safetensors":
        raise InputError(f"--out is a .safetensors file, got {args.out}")
    if (args.settings or args.run) and not args.qat:
        raise InputError("training settings and --run are for --qat DATA")
    if args.max_drop is not None and not args.data:
        raise InputError("--max-drop is measured on --data: give labelled images")
    if args.fast_on and args.max_drop is None:
        raise InputError("--fast-on goes with --max-drop")
    from edgecv.models.checkpoint import read_checkpoint

    network, card = read_checkpoint(args.model)
    if card.preprocess is None:
        raise InputError(f"{args.model} does not say how images are preprocessed: save it with preprocess=")
    frames = open_frames(args.samples, args.limit)
    data = open_samples(args.data, "test", card.labels) if args.data else None
    judge = _Judge(data, card)
    with progress() as report:
        train_data, val_data = hold_out(open_samples(args.qat, "train"), every=10) if args.qat else (None, None)
        config = _config(args)
        if args.weight_bits == "auto":
            config = _with_bits(network, frames, config, card.preprocess, report)
        quantized = edgecv.quantize(
            network, frames, config, preprocess=card.preprocess, score=judge.top1 if data else None,
            gains=_gains(network, card.preprocess, args.fast_on, report) if args.fast_on else None,
            train_data=train_data, val_data=val_data, out=args.run, progress=report,
        )  # fmt: skip
        scores = [judge.scores(item) for item in (network, quantized)] if data else []
        layers = (
            _explained(network, quantized, frames, card.preprocess, args.backends, report) if args.explain else None
        )
    edgecv.save_checkpoint(
        quantized, args.out, preprocess=card.preprocess, labels=card.labels, dataset=card.dataset,
        accuracy=scores[1] if scores and card.recipe.architecture != "embedding" else None,
    )  # fmt: skip
    _print(args, scores, layers)
    return 0


class _Judge:
    """Scores networks on labelled images."""

    def __init__(self, data: Samples | None, card: Any) -> None:
        self._data, self._card = data, card

    def scores(self, network: Any) -> Any:
        from edgecv.pipelines import Classifier, Embedder
        from edgecv.runtimes.pt import TorchSession

        if self._data is None:
            raise InputError("there is no --data to score on")
        with TorchSession.from_network(network, self._card.preprocess) as session:
            if self._card.recipe.architecture == "embedding":
                return edgecv.evaluate(Embedder(session, self._card.preprocess), self._data)
            return edgecv.evaluate(Classifier(session, self._card.preprocess, self._card.labels), self._data)

    def top1(self, network: Any) -> float:
        """In percent; of an embedding its ROC-AUC."""
        scores = self.scores(network)
        return 100 * (scores.top1 if isinstance(scores, Accuracy) else scores.roc_auc)


def _config(args: argparse.Namespace) -> edgecv.QuantizeConfig:
    from edgecv.compression.quantization import QAT
    from edgecv.schema import decode, encode

    settings = key_values(args.settings, "settings")
    training = decode(edgecv.TrainConfig, {**encode(QAT), **settings}, "settings") if settings else QAT
    if training.warmup_epochs > training.epochs:
        training = dataclasses.replace(training, warmup_epochs=0.0)
    return edgecv.QuantizeConfig(
        weight_bits=8 if args.weight_bits == "auto" else int(args.weight_bits),
        layer_bits=dict.fromkeys(args.keep_float, 0),
        activation_range=args.range,
        equalize=args.equalize,
        rounding=args.rounding,
        max_drop=args.max_drop,
        method="qat" if args.qat else "ptq",
        training=training,
    )


def _with_bits(
    network: Any, frames: Sequence[Any], config: edgecv.QuantizeConfig, preprocess: Any, report: Progress
) -> edgecv.QuantizeConfig:
    """The configuration with 7 bits in the layers that 8 would saturate."""
    from edgecv.converters.saturation_bits import bits_without_saturation

    quick = dataclasses.replace(config, rounding="nearest", max_drop=None, method="ptq")
    trial = edgecv.quantize(network, frames, quick, preprocess=preprocess, progress=report)
    bits = bits_without_saturation(trial, frames, preprocess)
    return dataclasses.replace(config, layer_bits={**bits, **config.layer_bits})


def _gains(network: Any, preprocess: Any, backend: str, report: Progress) -> Callable[[Any], dict[str, float]]:
    """What measures the milliseconds that int8 gains in each layer."""
    from edgecv.converters.speed_map import speeds

    return lambda quantized: speeds(network, quantized, preprocess, backend, progress=report).gains_ms


def _explained(
    network: Any, quantized: Any, frames: Sequence[Any], preprocess: Any, backends: str, report: Progress
) -> dict[str, Any]:
    from edgecv.compression.calibration import batches_of
    from edgecv.compression.placement import quantized_layers
    from edgecv.compression.sensitivity import harms
    from edgecv.converters.speed_map import speeds

    found = harms(quantized, batches_of([frames[i] for i in range(min(EXPLAINED, len(frames)))], preprocess), report)
    measured = {
        name.strip(): speeds(network, quantized, preprocess, name.strip(), progress=report)
        for name in backends.split(",")
    }
    bits = quantized_layers(quantized)
    rows = [
        {
            "layer": item.layer, "bits": bits[item.layer], "snr_db": item.snr_db, "agreement": item.agreement,
            "gain_ms": {name: round(speed.gains_ms[item.layer], 4) for name, speed in measured.items()},
        }
        for item in found
    ]  # fmt: skip
    ratios = {name: round(speed.ratio, 3) for name, speed in measured.items()}
    return {"layers": rows, "speed_ratio": ratios, "pays": {name: ratio > PAYS for name, ratio in ratios.items()}}


def _print(args: argparse.Namespace, scores: Sequence[Any], layers: dict[str, Any] | None) -> None:
    if args.json:
        names = ("float", "quantized")
        print_json({"checkpoint": args.out, "scores": dict(zip(names, scores, strict=False)), "explained": layers})
        return
    if layers:
        backends = list(layers["speed_ratio"])
        rows = [
            (
                row["layer"], row["bits"], f"{row['snr_db']:.1f}",
                "-" if row["agreement"] is None else f"{row['agreement']:.1%}",
                *(f"{row['gain_ms'][name]:.3f}" for name in backends),
            )
            for row in layers["layers"]
        ]  # fmt: skip
        print("Each layer quantized alone, the worst first; and the milliseconds that int8 gains there, on one thread:")
        print(table(rows, ("layer", "bits", "SNR dB", "same class", *(f"{name} ms" for name in backends))))
        for name, ratio in layers["speed_ratio"].items():
            verdict = "int8 pays" if layers["pays"][name] else "int8 does not pay here"
            print(f"{name}: {ratio:.2f} times as fast as float on this machine: {verdict}")
    for name, score in zip(("float", "quantized"), scores, strict=False):
        print(f"{name}: {scores_line(score)}")
    print(f"checkpoint: {args.out}")

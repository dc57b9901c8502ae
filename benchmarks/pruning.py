"""What pruning brings and what it costs: latency of half the multiply-accumulates, accuracy of a CIFAR ResNet.

    python benchmarks/pruning.py --what speed [--rounds 40] [--scope uniform]
    EDGECV_DATA=… python benchmarks/pruning.py --what criteria [--model resnet56] [--images 1000]
    EDGECV_DATA=… python benchmarks/pruning.py --what cifar [--model resnet56] [--epochs 20]

Writes benchmarks/results/pruning_WHAT.json (with the model's name for the last two). `speed` times every network and
its pruned copy in turns, batch 1, one thread, fp32, on ONNX Runtime and OpenVINO; the weights are random, which latency
does not depend on. `criteria` scores a network right after pruning, before any training, by each criterion. `cifar`
prunes to 1/2.1 of the multiply-accumulates and trains on 25,000 JPEG copies of CIFAR-10 images, a tenth of which
validates; the 5,000 test images are used once for each network. The published weights have never seen JPEG copies, so
training alone may gain accuracy: `--control` trains the unpruned network likewise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgecv
from edgecv.compression.pruning import inputs_of
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.data import Samples, hold_out, open_samples
from edgecv.models import count, create, native_size
from edgecv.models.checkpoint import save_checkpoint
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.pt import TorchSession
from edgecv.schema import dumps, encode
from edgecv.training.recipes import recipe_for

RESULTS = Path(__file__).parent / "results"
SPEED = ("mobilenet_v2", "resnet18", "squeezenet1_1")
BACKENDS = ("onnxruntime", "openvino")
WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
RATIO = 1 / 2.1


def speed(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network and its pruned copy on every backend, run in turns."""
    torch.manual_seed(0)
    network = create(name).eval()
    config = edgecv.PruneConfig(macs_ratio=0.5, scope=args.scope or "uniform", round_to=args.round_to)
    pruned = edgecv.prune(network, config=config)
    inputs = inputs_of(network)
    macs = [count(model, inputs=inputs).macs for model in (network, pruned)]
    preprocess = edgecv.Preprocess(size=native_size(name))
    found: dict[str, Any] = {"settings": encode(config), "macs": macs}
    with tempfile.TemporaryDirectory() as folder:
        files = [
            onnx_from_torch(model, Path(folder, f"{i}.onnx"), preprocess) for i, model in enumerate((network, pruned))
        ]
        for backend in BACKENDS:
            found[backend] = in_turns(files, backend, args.rounds, macs[0] / macs[1])
            print(
                name,
                backend,
                found[backend]["speed_up"],
                "share of the MACs ratio",
                found[backend]["share"],
                flush=True,
            )
    return found


def in_turns(files: list[Path], backend: str, rounds: int, ratio: float) -> dict[str, Any]:
    """Medians of single runs, one of each file after the other, so that a busy machine slows both."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    sessions = [edgecv.open_session(file, backend=backend, threads=1) for file in files]
    samples: list[list[float]] = [[] for _ in sessions]
    for turn in range(rounds + 3):
        for session, taken in zip(sessions, samples, strict=True):
            start = time.perf_counter()
            session.run({"image": image})
            if turn >= 3:  # the first runs warm up
                taken.append(1e3 * (time.perf_counter() - start))
    speed_up = statistics.median(before / after for before, after in zip(*samples, strict=True))
    return {
        "speed_up": round(speed_up, 3),
        "share": round(speed_up / ratio, 3),
        "latency_ms": [round(statistics.median(taken), 3) for taken in samples],
        "samples_ms": [[round(sample, 3) for sample in taken] for taken in samples],
    }


def accuracy(network: nn.Module, test: Samples) -> Any:
    """Top-1 of a network in PyTorch."""
    preprocess = recipe_for("cifar10").preprocess
    with TorchSession.from_network(network, preprocess) as session:
        return edgecv.evaluate(edgecv.Classifier(session, preprocess, test.labels), test, batch=128)


def published(name: str) -> tuple[nn.Module, Path]:
    """A network with its published weights, and the folder of images."""
    root = Path(os.environ["EDGECV_DATA"])
    network = create(name, weights=root / "weights" / "cifar_resnet" / WEIGHTS[name])
    return network.eval(), root / "cifar10"


class Some:
    """The first samples of others."""

    def __init__(self, samples: Samples, count: int) -> None:
        self.labels, self._samples, self._count = samples.labels, samples, min(count, len(samples))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= self._count:
            raise IndexError(index)
        return self._samples[index]


def criteria(args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy right after pruning, by each criterion and scope, with and without batch norms matched."""
    network, data = published(args.model)
    calibration = Some(open_samples(f"cifar10:{data / 'train25k.npz'}", "train"), args.calibration)
    test = Some(open_samples(f"cifar10:{data / 'test5k_a.npz'}"), args.images)
    found: dict[str, Any] = {"unpruned": accuracy(network, test).top1}
    preprocess = recipe_for("cifar10").preprocess
    for scope in ("global", "uniform"):
        for criterion in ("l1", "l2", "bn_scale", "taylor", "hessian", "random"):
            config = edgecv.PruneConfig(macs_ratio=RATIO, scope=scope, importance=criterion, round_to=args.round_to)
            start = time.perf_counter()
            matched = edgecv.prune(network, calibration, config, preprocess=preprocess)
            seconds = time.perf_counter() - start
            row = {"top1": accuracy(matched, test).top1, "seconds": round(seconds, 1)}
            if criterion not in ("taylor", "hessian"):
                row["as_it_was"] = accuracy(edgecv.prune(network, config=config), test).top1
            found[f"{scope} {criterion}"] = row
            print(scope, criterion, row, flush=True)
    return {"images": len(test), "calibration": len(calibration), "top1": found}


def cifar(args: argparse.Namespace) -> dict[str, Any]:
    """Pruned, then trained; the unpruned network trained likewise is the control."""
    network, data = published(args.model)
    train_data, val_data = hold_out(open_samples(f"cifar10:{data / 'train25k.npz'}", "train"), every=10)
    test = open_samples(f"cifar10:{data / 'test5k_a.npz'}")
    recipe = recipe_for("cifar10").changed(
        {"epochs": args.epochs, "learning_rate": args.learning_rate, "warmup_epochs": min(1.0, args.epochs / 10)}
    )
    config = edgecv.PruneConfig(
        macs_ratio=RATIO,
        scope=args.scope or "global",
        importance=args.importance,
        round_to=args.round_to,
        steps=args.steps,
    )
    pruned = edgecv.prune(network, Some(train_data, args.calibration), config, preprocess=recipe.preprocess)
    found: dict[str, Any] = {"settings": encode(config), "training": encode(recipe.config), "distilled": args.distill}
    found["macs"] = [count(model, (32, 32)).macs for model in (network, pruned)]
    found["top1"] = {"unpruned": accuracy(network, test), "pruned": accuracy(pruned, test)}
    for name, start in (("pruned", pruned), ("unpruned", network)):
        if name == "unpruned" and not args.control:
            continue
        result = edgecv.train(
            start,
            train_data,
            val_data,
            recipe.config,
            preprocess=recipe.preprocess,
            teacher=network if args.distill else None,
            progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}", end="", flush=True),
        )
        found["top1"][f"{name}, trained"] = accuracy(result.network, test)
        found[f"epochs_{name}"] = result.history
        if args.out and name == "pruned":
            save_checkpoint(result.network, args.out, preprocess=recipe.preprocess, labels=test.labels)
    top1 = {name: scores.top1 for name, scores in found["top1"].items()}
    found["drop_points"] = round(100 * (top1["unpruned"] - top1["pruned, trained"]), 2)
    print(f"\n{args.model}, MACs / {found['macs'][0] / found['macs'][1]:.2f}: {top1}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("speed", "criteria", "cifar"), required=True)
    parser.add_argument("--model", choices=tuple(WEIGHTS), default="resnet56")
    parser.add_argument("--rounds", type=int, default=40, help="of speed: runs of each network")
    parser.add_argument("--scope", choices=("global", "uniform"), help="default: uniform for speed, else global")
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--control", action="store_true", help="train the unpruned network likewise")
    parser.add_argument("--distill", action="store_true", help="the unpruned network is the teacher")
    parser.add_argument("--calibration", type=int, default=256, help="training images that are calibrated on")
    parser.add_argument("--images", type=int, default=1000, help="of criteria: test images")
    parser.add_argument("--out", type=Path, help="of cifar: a checkpoint to write")
    args = parser.parse_args()
    if args.what == "speed":
        found: Any = {name: speed(name, args) for name in SPEED}
    else:
        found = criteria(args) if args.what == "criteria" else cifar(args)
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    versions = library_versions("torch", "torch-pruning", *BACKENDS)
    name = args.what if args.what == "speed" else f"{args.what}_{args.model}"
    RESULTS.joinpath(f"pruning_{name}.json").write_text(dumps({**conditions, "versions": versions, "found": found}))


if __name__ == "__main__":
    main()

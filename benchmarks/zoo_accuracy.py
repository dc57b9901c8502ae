"""Top-1 of networks with weights that others trained, on real images, on every backend, through the command line.

    EDGECV_DATA=… python benchmarks/zoo_accuracy.py

Converts each network with the parity gate on, then runs `edgecv evaluate` on the checkpoint and on both variants.
Writes benchmarks/results/zoo_accuracy.json. The photos look like training images of ImageNet (one a class), so
absolute accuracy is inflated: the figures show that weights, padding and preprocessing are right, and that backends
agree, not how good a network is.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import edgecv
from edgecv.cli.main import main
from edgecv.models.weights import read_weights
from edgecv.profiling.system import library_versions, machine
from edgecv.schema import dumps

RESULTS = Path(__file__).parent / "results" / "zoo_accuracy.json"
NORMALIZATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Case:
    """One network, its weights, its data, and what the data's own notes say of it (percent)."""

    model: str
    weights: str
    preprocess: edgecv.Preprocess
    data: str
    expected: float
    options: dict[str, Any] = field(default_factory=dict)


def _photos(size: int, resize: int) -> edgecv.Preprocess:
    return edgecv.Preprocess(size=(size, size), resize=resize, **NORMALIZATION)


CIFAR = edgecv.Preprocess(size=(32, 32), **NORMALIZATION)
SAME = {"padding": "same_tf"}
CASES = (
    Case("squeezenet1_1", "squeezenet/squeezenet1_1.pth", _photos(224, 256), "photos", 61.2),
    Case("squeezenet1_0", "squeezenet/squeezenet1_0.pth", _photos(224, 256), "photos", 61.4),
    Case("mobilenet_v2", "mobilenet/mobilenet_v2_1.0_224.pth", _photos(224, 256), "photos", 88.4, SAME),
    Case(
        "mobilenet_v1",
        "mobilenet/mobilenet_v1_0.5_160.pth",
        _photos(160, 183),
        "photos",
        65.8,
        {"width": 0.5, **SAME},
    ),
    Case("resnet20", "cifar_resnet/resnet20-12fca82f.th", CIFAR, "cifar10", 81.0),
    Case("resnet56", "cifar_resnet/resnet56-4bfd9763.th", CIFAR, "cifar10", 83.2),
)


def photo_folder(data: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The photos as an image folder of links, and all 1000 synsets in torchvision's order."""
    with (data / "imagenet" / "synsets.csv").open(newline="") as file:
        synsets = tuple(row["synset"] for row in csv.DictReader(file))
    with (data / "imagenet" / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            (folder / row["synset"]).mkdir(parents=True, exist_ok=True)
            (folder / row["synset"] / row["file"]).symlink_to(data / "imagenet" / "images" / row["file"])
    return folder, synsets


def call(*argv: object) -> Any:
    """Run the command line and parse what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(arg) for arg in argv])
    if status:
        sys.exit(f"edgecv {' '.join(map(str, argv))}: {err.getvalue()}")
    return json.loads(out.getvalue())


def weights_in_our_order(case: Case, path: Path, folder: Path) -> Path:
    """MobileNetV1's file has other keys than ours (timm's) for the same tensors in the same order."""
    if case.model != "mobilenet_v1":
        return path
    ours = edgecv.models.create(case.model, **case.options).state_dict()
    renamed = dict(zip(ours, read_weights(path).values(), strict=True))
    torch.save(renamed, folder / "renamed.pth")
    return folder / "renamed.pth"


def measure(case: Case, data: Path, folder: Path) -> dict[str, Any]:
    """Accuracy on torch and on both variants of the converted bundle."""
    if case.data == "photos":
        source, labels = photo_folder(data, folder / "photos")
        samples: str = str(source)
    else:
        samples = f"cifar10:{data / 'cifar10' / 'test5k_a.npz'}"
        labels = edgecv.data.open_samples(samples).labels
    file = weights_in_our_order(case, data / "weights" / case.weights, folder)
    network = edgecv.models.create(case.model, weights=file, **case.options)
    checkpoint = folder / "network.safetensors"
    edgecv.save_checkpoint(network, checkpoint, preprocess=case.preprocess, labels=labels)
    made = call("convert", checkpoint, "--samples", samples, "--limit", 32, "--out", folder / "bundle", "--json")
    runs = [(checkpoint, "torch"), (folder / "bundle", "onnxruntime"), (folder / "bundle", "openvino")]
    return {
        "model": case.model,
        "options": case.options,
        "weights": case.weights,
        "expected_top1": case.expected,
        "accuracy": {
            backend: call("evaluate", model, "--data", samples, "--backend", backend, "--json")["accuracy"]
            for model, backend in runs
        },
        "parity": {name: variant["parity"] for name, variant in made["variants"].items()},
    }


def readme_table(results: dict[str, Any]) -> str:
    """The results as the README has them."""
    lines = [
        "| network | images | noted with the weights | torch | ONNX Runtime | OpenVINO |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["networks"]:
        found = row["accuracy"]
        low, high = found["torch"]["interval"]
        top1 = [f"{100 * found[backend]['top1']:.2f}" for backend in ("torch", "onnxruntime", "openvino")]
        top1[0] += f" ({100 * low:.1f} to {100 * high:.1f})"
        options = "".join(f", {key}={value}" for key, value in row["options"].items())
        cells = [row["model"] + options, found["torch"]["samples"], row["expected_top1"], *top1]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def run() -> None:
    data = Path(os.environ["EDGECV_DATA"])
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, data, Path(folder))
        rows.append(row)
        top1 = {backend: f"{100 * found['top1']:.2f}" for backend, found in row["accuracy"].items()}
        print(f"{case.model:<15}{top1}  the data's notes: {case.expected}", flush=True)
    RESULTS.write_text(
        dumps(
            {"machine": machine(), "versions": library_versions("torch", "onnxruntime", "openvino"), "networks": rows}
        )
    )


if __name__ == "__main__":
    run()

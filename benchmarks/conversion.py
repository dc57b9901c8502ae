"""Every network on every backend in every precision: how far its answers are, and how long conversion takes.

    EDGECV_DATA=… python benchmarks/conversion.py matrix [--check] [--only NAME]
    EDGECV_DATA=… python benchmarks/conversion.py time [--rounds 3]

Writes its part of benchmarks/results/conversion.json.

matrix: each network of the zoo, with real weights where there are some, becomes variants in fp32, fp16 and int8 for
ONNX Runtime and OpenVINO, compared with the network on 50 real photos (CIFAR networks on 50 CIFAR images). --check
writes nothing: it converts again and fails (exit status 1) where a cell is missing or worse than the one that is kept:
by more than 3 dB of PSNR (6 in int8), or more than one image's best class (three in int8). Seconds are not checked.

time: MobileNetV2 to ONNX and OpenVINO with parity on 50 photos, against what torch's exporter and OpenVINO's converter
take by themselves for the same files; in turns, each in a process of its own, medians of their wall-clock seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import edgecv
from edgecv import models
from edgecv.data import open_samples
from edgecv.images import find_images, read_image
from edgecv.models.weights import read_weights
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.schema import dumps

RESULTS = Path(__file__).parent / "results" / "conversion.json"
NORMALIZATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PHOTOS = edgecv.Preprocess(size=(224, 224), resize=256, **NORMALIZATION)
SMALL = edgecv.Preprocess(size=(160, 160), resize=183, **NORMALIZATION)
CIFAR = edgecv.Preprocess(size=(32, 32), **NORMALIZATION)
TF: dict[str, Any] = {"padding": "same_tf"}
NETWORKS: dict[str, tuple[str | None, dict[str, Any], edgecv.Preprocess]] = {
    "squeezenet1_0": ("squeezenet/squeezenet1_0.pth", {}, PHOTOS),
    "squeezenet1_1": ("squeezenet/squeezenet1_1.pth", {}, PHOTOS),
    "mobilenet_v1": ("mobilenet/mobilenet_v1_0.5_160.pth", {"width": 0.5, **TF}, SMALL),
    "mobilenet_v2": ("mobilenet/mobilenet_v2_1.0_224.pth", TF, PHOTOS),
    "mobilenet_v3_small": (None, {}, PHOTOS),
    "resnet18": (None, {}, PHOTOS),
    "resnet20": ("cifar_resnet/resnet20-12fca82f.th", {}, CIFAR),
    "resnet56": ("cifar_resnet/resnet56-4bfd9763.th", {}, CIFAR),
}
PRECISIONS = ("fp32", "fp16", "int8")
IMAGES = 50
LOST_DB = {"fp32": 3.0, "fp16": 3.0, "int8": 6.0}
LOST_IMAGES = {"fp32": 1, "fp16": 1, "int8": 3}


def network_of(name: str, data: Path) -> torch.nn.Module:
    """A network; without published weights, batch norms at least have the statistics of what they see."""
    file, options, preprocess = NETWORKS[name]
    torch.manual_seed(0)
    weights = data / "weights" / file if file else None
    network = models.create(name, weights=weights if name != "mobilenet_v1" else None, **options)
    if weights and name == "mobilenet_v1":  # other keys than ours, for the same tensors in the same order
        network.load_state_dict(dict(zip(network.state_dict(), read_weights(weights).values(), strict=True)))
    if file is None:
        normalize = models.Framed(torch.nn.Identity(), preprocess).normalize
        images = normalize(torch.from_numpy(preprocess.batch(images_for(preprocess, data))))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
            elif isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            network.train()(images)
    return network.eval()


def images_for(preprocess: edgecv.Preprocess, data: Path, start: int = 0) -> list[Any]:
    """Real images spread over their folder."""
    if preprocess is CIFAR:
        samples = open_samples(f"cifar10:{data / 'cifar10' / 'test5k_a.npz'}")
        return [samples[index][0] for index in range(start, len(samples), len(samples) // IMAGES)][:IMAGES]
    files = find_images(data / "imagenet" / "images")
    return [read_image(path) for path in files[start :: len(files) // IMAGES][:IMAGES]]


def convert(
    network: torch.nn.Module,
    quantized: torch.nn.Module | None,
    preprocess: edgecv.Preprocess,
    frames: list[Any],
    precisions: tuple[str, ...],
    out: Path,
) -> edgecv.Bundle:
    options = edgecv.ConvertOptions(precisions=precisions, compare_speed=False)
    return edgecv.convert(network, out, preprocess=preprocess, quantized=quantized, samples=frames, options=options)


def measure(name: str, data: Path) -> dict[str, Any]:
    """All cells of one network."""
    preprocess = NETWORKS[name][2]
    network, frames = network_of(name, data), images_for(preprocess, data)
    start = time.perf_counter()
    quantized = edgecv.quantize(network, images_for(preprocess, data, start=3), preprocess=preprocess)
    marks = [time.perf_counter()]
    cells: dict[str, Any] = {}
    precisions = PRECISIONS
    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = convert(network, quantized, preprocess, frames, precisions, Path(folder, "all"))
        except edgecv.ParityError as error:  # the gate refuses int8 where answers are too far off
            refused = {"refused": str(error).partition("nothing was written: ")[2]}
            cells = {f"{backend}-int8": refused for backend in ("onnx", "openvino")}
            bundle = convert(network, None, preprocess, frames, precisions[:2], Path(folder, "float"))
    marks.append(time.perf_counter())
    for key, variant in bundle.manifest.variants.items():
        parity = variant.parity
        assert parity is not None
        cells[key] = {
            "max_abs": float(f"{parity.max_abs:.3g}"),
            "cosine": round(parity.cosine, 7),
            "psnr_db": None if parity.psnr_db is None else round(parity.psnr_db, 1),
            "top1_agreement": parity.top1_agreement,
        }
        print(f"{name:<20}{key:<15}{cells[key]}", flush=True)
    seconds = {"quantize": round(marks[0] - start, 1), "convert": round(marks[1] - marks[0], 1)}
    return {"seconds": seconds, "cells": cells}


def worse(known: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is missing or worse than it was, a line for each cell."""
    lines = []
    for key, before in known.items():
        precision, after = key.rpartition("-")[2], found.get(key)
        if "refused" in before:
            continue
        if after is None or "refused" in after:
            lines.append(f"{key} is missing" if after is None else f"{key} is refused: {after['refused']}")
            continue
        lost = LOST_IMAGES[precision] / IMAGES + 1e-9
        if before["top1_agreement"] is not None and after["top1_agreement"] < before["top1_agreement"] - lost:
            lines.append(f"{key}: the best class agrees on {after['top1_agreement']}, was {before['top1_agreement']}")
        if after["psnr_db"] is None:  # nothing differs
            continue
        if before["psnr_db"] is None or after["psnr_db"] < before["psnr_db"] - LOST_DB[precision]:
            lines.append(f"{key}: PSNR is {after['psnr_db']} dB, was {before['psnr_db']}")
    return lines


def matrix(args: argparse.Namespace, data: Path) -> int:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    before = known.get("matrix", {}).get("networks", {})
    found = {name: measure(name, data) for name in args.only or NETWORKS}
    if args.check:
        lines = [f"{name} {line}" for name, row in found.items() for line in worse(before[name]["cells"], row["cells"])]
        print("\n".join(lines) or f"{sum(len(row['cells']) for row in found.values())} cells are as good as they were")
        return 1 if lines else 0
    keep("matrix", {"images": IMAGES, "networks": {**before, **found}})
    return 0


EDGECV, EXPORT, OPENVINO = "edgecv", "torch", "openvino"


def timed_part(part: str, data: Path, folder: Path) -> float:
    """Seconds of one part, with everything imported and loaded before."""
    import openvino

    from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: F401  (its imports belong to no side)

    network, frames = network_of("mobilenet_v2", data), images_for(PHOTOS, data)
    framed = models.Framed(network, PHOTOS).eval()
    start = time.perf_counter()
    if part == EDGECV:
        edgecv.convert(network, folder / "bundle", preprocess=PHOTOS, samples=frames)
    elif part == EXPORT:
        example = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
        torch.onnx.export(
            framed, (example,), folder / "raw.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
            external_data=False, opset_version=18, input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    else:
        openvino.save_model(openvino.convert_model(str(folder / "raw.onnx")), str(folder / "raw.xml"))
    return time.perf_counter() - start


def clock(args: argparse.Namespace) -> int:
    """The parts in turns, each in a process of its own."""
    samples: dict[str, list[float]] = {EDGECV: [], EXPORT: [], OPENVINO: []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for part in (EXPORT, OPENVINO, EDGECV):
                command = [sys.executable, __file__, "time", "--part", part, "--folder", folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                samples[part].append(float(done.stdout.splitlines()[-1]))
    seconds = {part: round(statistics.median(taken), 2) for part, taken in samples.items()}
    raw = seconds[EXPORT] + seconds[OPENVINO]
    found = {"images": IMAGES, "seconds": seconds, "ratio": round(seconds[EDGECV] / raw, 3), "samples_s": samples}
    print(f"{seconds}, with parity {found['ratio']} times the raw exporters' {raw:.1f} s")
    keep("time", found)
    return 0


def keep(part: str, found: dict[str, Any]) -> None:
    """Put one part's results beside the other's."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    versions = library_versions("torch", "onnx", "onnxruntime", "openvino")
    results[part] = {**conditions, "versions": versions, **found}
    RESULTS.write_text(dumps(results))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("matrix", "time"))
    parser.add_argument("--only", action="append", choices=tuple(NETWORKS), metavar="NAME")
    parser.add_argument("--check", action="store_true", help="compare with the results that are kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if "EDGECV_DATA" not in os.environ:
        parser.error("EDGECV_DATA names no folder of weights and images")
    data = Path(os.environ["EDGECV_DATA"])
    if args.part:
        print(timed_part(args.part, data, args.folder))
        return 0
    return matrix(args, data) if args.what == "matrix" else clock(args)


if __name__ == "__main__":
    sys.exit(main())

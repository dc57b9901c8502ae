"""How few bytes a network takes in a bundle, and what its answers lose by it, with real weights on real photos.

    EDGECV_DATA=… python benchmarks/small_on_disk.py [--networks NAME …]

Writes benchmarks/results/small_on_disk.json. 100 of 500 photos, every fifth, calibrate; the other 400 are scored, on
ONNX Runtime, from the packed bundle. A bundle holds the onnx-fp32 variant alone, the 1000 class names, and the
manifest. The photos look like training images of ImageNet: compare figures with each other only. Each has Wilson's 95 %
interval, and against the float network the images that only one of the two gets right, with McNemar's exact
probability (compression.py's field names: "int8" there is the clustered network here). SqueezeNet 1.0's float weights
are those that Deep Compression's authors published: 66 % zeros, 256 values a layer (arXiv:1510.00149; they state
0.47 MB at 6 bits, retrained).

load: milliseconds from a verified bundle to a session, the median of openings in turns, packed and not; and of
decoding alone.

coders: the codes, masks and palettes of one packed file by LZMA, as it is, beside bzip2, Huffman (zlib without
matches) and the entropy of order 0.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compression import mcnemar, photos

import edgecv
from edgecv.bundle import MANIFEST, Bundle
from edgecv.compression.clustering import palettes_of
from edgecv.converters.packing import pack_bytes, ranges_of, unpack_bundle
from edgecv.evaluation import wilson_interval
from edgecv.packing import CODES, MASKS, PALETTES, packed_streams
from edgecv.pipelines.frames import run_frames
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.schema import dumps, encode

RESULTS = Path(__file__).parent / "results" / "small_on_disk.json"
FRAMES = edgecv.Preprocess(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OPENINGS = 9
PLAIN = "7 bits, no calibration"
LARGE = ("classifier.1", *(f"features.{fire}.expand3x3" for fire in (8, 9, 10, 12)))  # of SqueezeNet 1.0


@dataclass(frozen=True)
class Case:
    """A network's weights, and the ways to cluster them; the first is float. ``plain``: without calibration."""

    file: str
    configs: dict[str, edgecv.ClusterConfig]
    options: dict[str, Any] = field(default_factory=dict)
    plain: tuple[str, ...] = ()


def bits(*numbers: int) -> dict[str, edgecv.ClusterConfig]:
    return {f"{number} bits": edgecv.ClusterConfig(number) for number in numbers}


CASES = {
    "squeezenet1_0": Case(
        "squeezenet/squeezenet1_0.pth",
        {
            "8 bits, large layers 7": edgecv.ClusterConfig(8, dict.fromkeys(LARGE, 7)),
            **bits(7, 6),
            PLAIN: edgecv.ClusterConfig(7),
        },
        plain=(PLAIN,),
    ),
    "squeezenet1_1": Case(
        "squeezenet/squeezenet1_1.pth",
        {**bits(7, 6, 5, 4), "5 bits, half zeros": edgecv.ClusterConfig(5, sparsity=0.5)},
    ),
    "mobilenet_v2": Case("mobilenet/mobilenet_v2_1.0_224.pth", bits(8, 7), {"padding": "same_tf"}),
}  # fmt: skip


def synsets(data: Path) -> list[str]:
    with (data / "imagenet" / "synsets.csv").open(newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def bundle_of(network: torch.nn.Module, out: Path, names: Sequence[str], samples: Sequence[Any], pack: bool) -> Bundle:
    return edgecv.convert(
        network, out, preprocess=FRAMES, labels=names, backends=["onnxruntime"], samples=samples,
        options=edgecv.ConvertOptions(name="small", pack=pack),
    )  # fmt: skip


def logits(bundle: Bundle, frames: Sequence[Any]) -> np.ndarray:
    with edgecv.open_session(bundle, threads=1) as session:
        found: np.ndarray = run_frames(session, FRAMES, frames, batch=10)["logits"]
    return found


def answers(found: np.ndarray, wanted: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """One network's classes against the truth, and against those of the float network."""
    best, float_best = found.argmax(1), wanted.argmax(1)
    right = best == targets
    return {
        "top1": round(100 * float(right.mean()), 2),
        "interval": [round(100 * bound, 1) for bound in wilson_interval(int(right.sum()), len(right))],
        "same_class_as_float": round(100 * float((best == float_best).mean()), 2),
        "noise_to_signal": round(float(((found - wanted) ** 2).mean() / wanted.var()), 5),
        "against_float": mcnemar(float_best == targets, right),
    }


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of each file, and of all."""
    files = {name: record.size_bytes for name, record in bundle.manifest.files.items()}
    files[MANIFEST] = (bundle.path / MANIFEST).stat().st_size
    return {**files, "all": sum(files.values())}


def medians(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(OPENINGS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(statistics.median(taken), 2) for name, taken in times.items()}


def load_ms(packed: Bundle, plain: Bundle) -> dict[str, float]:
    def opened(bundle: Bundle) -> Callable[[], None]:
        return lambda: edgecv.open_session(bundle, threads=1).close()

    name = next(iter(packed.manifest.variants.values())).graphs["model"]
    return medians({"plain": opened(plain), "packed": opened(packed), "decoding alone": lambda: packed.read(name)})


def coders(plain: Bundle) -> dict[str, dict[str, int]]:
    """Bytes of each stream of weights by several coders."""
    path = plain.file("onnx-fp32")
    raw = path.read_bytes()
    found = {}
    for name, (stored, data) in packed_streams(pack_bytes(raw, ranges_of(path, raw))).items():
        if name in (CODES, MASKS, PALETTES):
            _, counts = np.unique(np.frombuffer(data, np.uint8), return_counts=True)
            entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
            huffman = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
            found[name] = {
                "bytes": len(data), "lzma": stored, "bzip2": len(bz2.compress(data)),
                "huffman": len(huffman.compress(data) + huffman.flush()), "entropy": round(entropy),
            }  # fmt: skip
    return found


def measure(name: str, data: Path, frames: list[Any], targets: np.ndarray, folder: Path) -> dict[str, Any]:
    case, names = CASES[name], synsets(data)
    torch.manual_seed(0)
    network = edgecv.models.create(name, weights=data / "weights" / case.file, **case.options).eval()
    held = np.arange(len(frames)) % 5 == 0
    calibration = [frames[i] for i in np.flatnonzero(held)]
    scored = [frames[i] for i in np.flatnonzero(~held)]
    plain = bundle_of(network, folder / f"{name}-float", names, calibration[:8], pack=False)
    wanted, truth = logits(plain, scored), targets[~held]
    rows = {"float": {"bytes": sizes(plain), **answers(wanted, wanted, truth)}}
    packed = edgecv.pack(plain, folder / f"{name}-float-packed")
    rows["float, packed"] = {"bytes": sizes(packed), **answers(logits(packed, scored), wanted, truth)}
    for key, config in case.configs.items():
        start = time.perf_counter()
        small = edgecv.cluster(network, None if key in case.plain else calibration, config, preprocess=FRAMES)
        seconds = time.perf_counter() - start
        bundle = bundle_of(small, folder / f"{name} {key}", names, calibration[:8], pack=True)
        plain = unpack_bundle(bundle, folder / f"{name} {key} unpacked")
        layers = palettes_of(small)
        rows[key] = {
            "config": encode(config), "seconds": round(seconds, 1), "bytes": sizes(bundle),
            "zeros": round(sum(item.zeros for item in layers) / sum(item.weights for item in layers), 4),
            "entropy_of_weights": sum(item.coded_bytes for item in layers),
            **answers(logits(bundle, scored), wanted, truth),
            "load_ms": load_ms(bundle, plain), "coders": coders(plain),
        }  # fmt: skip
        print(name, key, rows[key]["bytes"]["all"], rows[key]["top1"], rows[key]["same_class_as_float"], flush=True)
    return {"scored": len(scored), "calibrated_on": len(calibration), "bundles": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    data = Path(os.environ["EDGECV_DATA"])
    frames, targets = photos(data)
    for name in args.networks:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(name, data, frames, targets, Path(scratch))
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
        results["networks"][name] = {
            "machine": machine(), "load_average": load_average(), "threads": 1,
            "versions": library_versions("torch", "onnxruntime", "onnx"), **found,
        }  # fmt: skip
        RESULTS.write_text(dumps(results))


if __name__ == "__main__":
    main()

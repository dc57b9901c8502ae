"""Which graphs TensorRT-RTX builds, in which precision and time, on a machine that needs no GPU.

    make test-tensorrt        # once: installs TensorRT-RTX
    PYTHONPATH=.:.venv/.tensorrt_rtx .venv/bin/python benchmarks/tensorrt_rtx_builds.py [--only NAME] [--out FILE]

Every network of the zoo, with fresh weights and frames of 224 x 224, in fp32, fp16, int8 and both. Scales are made up:
the graphs are built, not judged. Nothing is run, so the figures say nothing of speed on a device, and nothing of
TensorRT itself; the seconds are those of one build and its process, with the load of the machine beside them.
``built_in`` counts the layers of the engine by the precision they compute in. Writes
benchmarks/results/tensorrt_rtx_builds.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch

from edgecv import models
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.converters.tensorrt_from_onnx import tensorrt_rtx_from_onnx
from edgecv.errors import EdgeCVError
from edgecv.preprocess import Preprocess
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.engine import read_record
from edgecv.schema import dumps
from tests.tensorrt.graphs import quantized

RESULTS = Path(__file__).parent / "results" / "tensorrt_rtx_builds.json"
PREPROCESS = Preprocess(size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")


def exported(name: str, folder: Path) -> onnx.ModelProto:
    """The network's graph, as ``convert`` exports it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone": "mobilenet_v2", "dims": 64} if name == "embedding" else {"num_classes": 10}
    return onnx.load(onnx_from_torch(models.create(name, **options), folder / f"{name}.onnx", PREPROCESS))


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    result = quantized(model) if precision.startswith("int8") else model
    return fp16_from_onnx(result) if precision.endswith("fp16") else result


def build(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Build once, in a process of its own, as users do; what is refused is a row too."""
    path.write_bytes(model.SerializeToString())
    start = time.perf_counter()
    try:
        engine = tensorrt_rtx_from_onnx(path, path.parent)
    except EdgeCVError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - start
    record = read_record(engine)
    assert record is not None
    return {
        "onnx_mb": round(path.stat().st_size / 1e6, 1),
        "engine_mb": round(record.size_bytes / 1e6, 1),
        "seconds": round(seconds, 2),
        "load_average": load_average(),
        "graph": record.precision,
        "built_in": record.layers,
    }


def line(row: dict[str, Any]) -> str:
    title = f"{row['network']:<20} {row['precision']:<10}"
    if "error" in row:
        return f"{title} {row['error']}"
    return f"{title} {row['seconds']:6.2f} s  {row['onnx_mb']:6.1f} -> {row['engine_mb']:6.1f} MB  {row['built_in']}"


def run() -> None:
    parser = argparse.ArgumentParser(description="Build the zoo's graphs with TensorRT-RTX.")
    parser.add_argument("--only", action="append", metavar="NAME", help="this network alone; may be given again")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="where the JSON goes")
    arguments = parser.parse_args()
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        sys.exit("this program needs TensorRT-RTX: make test-tensorrt installs it into .venv/.tensorrt_rtx")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or models.names():
            model = exported(name, Path(scratch))
            for precision in PRECISIONS:
                row = build(in_precision(model, precision), Path(scratch, f"{name}-{precision}.onnx"))
                rows.append({"network": name, "precision": precision, **row})
                print(line(rows[-1]), flush=True)
    libraries = {
        name: version(name) for name in ("tensorrt_rtx_cu13_libs", "tensorrt_rtx_cu13_bindings", "onnx", "torch")
    }
    arguments.out.write_text(
        dumps({"machine": machine(), "versions": {**library_versions(), **libraries}, "builds": rows})
    )


if __name__ == "__main__":
    run()

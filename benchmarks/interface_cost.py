"""What the inference interface costs: our calls and the raw runtime's own, interleaved in one process, and import time.

    python benchmarks/interface_cost.py [--rounds 30]

Writes benchmarks/results/interface_cost.json and prints the README's table. A ratio is the median over rounds of
(ours / raw) within one round, so that a disturbed round counts once. Close everything else first.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

import edgecv
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.schema import dumps

RESULTS = Path(__file__).parent / "results" / "interface_cost.json"
WAYS = ("run", "run_into", "raw again")
Call = Callable[[], Any]


def median_us(call: Call, runs: int) -> float:
    """Median time of one call in microseconds."""
    samples = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        samples.append(time.perf_counter_ns() - start)
    return statistics.median(samples) / 1e3


def compare(calls: dict[str, Call], rounds: int, runs: int) -> dict[str, dict[str, float]]:
    """Time each call in turn, round after round; the first is the one the others are compared with."""
    for call in calls.values():
        median_us(call, runs)
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            measured[name].append(median_us(call, runs))
    raw = next(iter(measured.values()))
    return {
        name: {
            "median_us": round(statistics.median(values), 2),
            "more_than_raw_us": round(statistics.median(v - r for v, r in zip(values, raw, strict=True)), 2),
            "ratio": round(statistics.median(v / r for v, r in zip(values, raw, strict=True)), 4),
        }
        for name, values in measured.items()
    }


def graphs(folder: Path) -> dict[str, Path]:
    """A network of one mean over a 32x32 image (all overhead), and MobileNetV2 x0.5 at 96x96 with random weights."""
    import torch

    class Mean(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3))

    small, large = edgecv.Preprocess(size=(32, 32)), edgecv.Preprocess(size=(96, 96))
    mobilenet = edgecv.models.create("mobilenet_v2", width=0.5)
    from edgecv.converters.onnx_from_torch import onnx_from_torch

    return {
        "mean of a 32x32 image": onnx_from_torch(Mean(), folder / "mean.onnx", small),
        "MobileNetV2 x0.5, 96x96": onnx_from_torch(mobilenet, folder / "mobilenet.onnx", large),
    }


def calls_for(path: Path, backend: str) -> dict[str, Call]:
    """The raw runtime as its documentation calls it, the same again (how far off chance is), then ours; one thread."""
    session = edgecv.open_session(path, backend=backend, threads=1)
    size = session.inputs[0].shape[1] if session.inputs[0].shape else 0
    feed = {"image": np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)}
    into = session.run(feed)
    make = raw_onnxruntime if backend == "onnxruntime" else raw_openvino
    ours: dict[str, Call] = {"run": lambda: session.run(feed), "run_into": lambda: session.run_into(feed, into)}
    return {"raw": make(path, feed), "raw again": make(path, feed), **ours}


def raw_onnxruntime(path: Path, feed: dict[str, Any]) -> Call:
    """``InferenceSession.run``."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def raw_openvino(path: Path, feed: dict[str, Any]) -> Call:
    """``compiled_model(inputs)``, the call of OpenVINO's own examples."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    return lambda: compiled(feed["image"])


def import_seconds(statement: str, repeats: int = 7) -> float:
    """Median wall time of a fresh interpreter that runs ``statement``, less that of an empty one."""

    def once(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(once(statement) - once("pass") for _ in range(repeats))


def readme_table(results: dict[str, Any]) -> str:
    """The README's figures, from what was written."""
    lines = ["| graph | backend | raw call | `run` | `run_into` | raw call again |", "|---|---|---|---|---|---|"]
    for graph, backends in results["calls"].items():
        for backend, ways in backends.items():
            cells = [f"{ways['raw']['median_us']:.0f} µs"]
            cells += [f"{ways[way]['ratio']:.2f} ({ways[way]['more_than_raw_us']:+.1f} µs)" for way in WAYS]
            lines.append(f"| {graph} | {backend} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    conditions = {
        "machine": machine(),
        "load_average": load_average(),
        "versions": {**library_versions(), "onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__},
        "threads": 1,
        "rounds": rounds,
    }
    calls: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in graphs(Path(folder)).items():
            for backend in ("onnxruntime", "openvino"):
                runs = 300 if "mean" in name else 40
                found = compare(calls_for(path, backend), rounds, runs)
                calls.setdefault(name, {})[backend] = found
                for way, figures in found.items():
                    print(f"{name:<26}{backend:<13}{way:<10}{figures}")
    imports = {
        statement: round(import_seconds(statement), 3)
        for statement in ("import numpy", "import edgecv", "import edgecv; edgecv.load", "import onnxruntime")
    }
    print(imports)
    results = {"conditions": conditions, "calls": calls, "import_seconds": imports}
    RESULTS.write_text(dumps(results))
    print(readme_table(results))


if __name__ == "__main__":
    main()

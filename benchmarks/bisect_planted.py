"""A wrong weight or scale at random nodes of MobileNetV2 and ResNet-18: does the bisection name each node?

    EDGECV_DATA=… python benchmarks/bisect_planted.py [--faults 20] [--out FILE]

One fault at a time is planted in a copy of the graph, and the copy is compared with the graph itself, on real photos:
fp32 and int8 (QDQ, by ONNX Runtime's static quantizer), both on ONNX Runtime; and with the copy on OpenVINO, or in
float16. Writes benchmarks/results/bisect_planted.json. A fault that changes no output is drawn anew and counted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from onnxruntime import quantization

from edgecv import Preprocess, models
from edgecv.converters.bisecting import Side, bisect
from edgecv.converters.onnx_check import initializers, plain
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.onnx_to_fp16 import fp16_from_onnx
from edgecv.images import find_images, read_image
from edgecv.profiling.system import library_versions, machine
from edgecv.runtimes.ort import OrtSession
from edgecv.runtimes.ov import OvSession
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.schema import dumps
from edgecv.tensors import Array

RESULTS = Path(__file__).parent / "results" / "bisect_planted.json"
PREPROCESS = Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS = {
    "mobilenet_v2": ("weights/mobilenet/mobilenet_v2_1.0_224.pth", {"padding": "same_tf"}),
    "resnet18": (None, {}),  # fresh weights: none of this size are at hand
}
WEIGHTED = ("Conv", "Gemm", "Mul")
QUANTIZED = ("Conv", "Gemm", "DequantizeLinear", "QuantizeLinear")
LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino")
CALIBRATION, SAMPLES = 8, 1
Open = Callable[[Path], Session]


@dataclass(frozen=True)
class Case:
    """A graph, the copy's precision, and the backends of the graph and its copy."""

    network: str
    precision: str
    backends: tuple[str, str]
    tolerance: float


# On one backend equal graphs give equal bits; OpenVINO sums in another order, and float16 rounds.
CASES = [
    Case(network, precision, backends, tolerance)
    for network in NETWORKS
    for precision, backends, tolerance in (
        ("fp32", ("onnxruntime", "onnxruntime"), 1e-6),
        ("int8", ("onnxruntime", "onnxruntime"), 1e-6),
        ("fp32", ("onnxruntime", "openvino"), 1e-3),
        ("fp32 and fp16", ("onnxruntime", "onnxruntime"), 0.15),
    )
]


class Photos(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Frames for the quantizer, one at a time."""

    def __init__(self, frames: Array) -> None:
        self._frames: Iterator[Array] = iter(np.split(frames, len(frames)))

    def get_next(self) -> dict[str, Array] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"image": frame}


def export(network: str, data: Path, folder: Path) -> Path:
    """The fp32 graph, with real weights where there are some."""
    torch.manual_seed(0)
    weights, options = NETWORKS[network]
    made = models.create(network, weights=data / weights if weights else None, **options).eval()
    return onnx_from_torch(made, folder / f"{network}.onnx", PREPROCESS)


def quantized(path: Path, frames: Array) -> Path:
    """The graph in QDQ int8; the normalization stays float."""
    target = path.with_suffix(".int8.onnx")
    quantization.quantize_static(
        str(path), str(target), Photos(frames), per_channel=True, op_types_to_quantize=["Conv", "Gemm"]
    )
    return target


def plant(model: onnx.ModelProto, node: onnx.NodeProto, chance: np.random.Generator) -> str:
    """Give ``node`` a wrong constant of its own; say what was done."""
    constants = initializers(model)
    index = 1 if node.op_type != "DequantizeLinear" or node.input[0] not in constants else int(chance.integers(2))
    tensor = constants[node.input[index]]
    values = onnx.numpy_helper.to_array(tensor).copy()
    if values.ndim == 0:
        what, values = "scale x 1.25", (values * 1.25).astype(values.dtype)
    else:
        channel = int(chance.integers(len(values)))
        if values.dtype == np.float32:
            what = f"channel {channel} x 1.5"
            values[channel] *= np.float32(1.5)
        else:
            what = f"channel {channel} negated"
            values[channel] = -np.clip(values[channel], -127, 127)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{node.input[index]}_planted_{node.name}"))
    node.input[index] = model.graph.initializer[-1].name
    return f"{'weight' if values.ndim > 1 else 'scale'}: {what}"


def opener(backend: str, count: list[int]) -> Open:
    """What opens a graph on a backend and counts."""
    found: Any = {"onnxruntime": OrtSession, "openvino": OvSession}[backend]

    def open_counted(path: Path) -> Session:
        count[0] += 1
        session: Session = found.open(path, SessionOptions(threads=1))
        return session

    return open_counted


def search(case: Case, model: onnx.ModelProto, index: int, frames: Array, chance: np.random.Generator) -> Any:
    """Plant one fault and look for it: a row of the results, or ``None`` where it changes no output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = copy.graph.node[index]
    planted, operator, what = node.name, node.op_type, plant(copy, node, chance)
    if case.precision.endswith("fp16"):
        copy = fp16_from_onnx(copy)
    counts = ([0], [0])
    a, b = (Side(g, opener(n, c)) for g, n, c in zip((model, copy), case.backends, counts, strict=True))
    started = time.perf_counter()
    found = bisect(a, b, {"image": frames}, case.tolerance)
    if found is None:
        return None
    assert counts[0] == counts[1] == [found.builds]
    return {
        "node": planted,
        "operator": operator,
        "fault": what,
        "named": found.node,
        "confirmed": found.confirmed,
        "share": float(f"{found.output.share:.3g}"),
        "inputs_share": None if found.inputs is None else float(f"{found.inputs.share:.3g}"),
        "builds": found.builds,
        "seconds": round(time.perf_counter() - started, 2),
    }


def measure(case: Case, path: Path, frames: Array, faults: int) -> dict[str, Any]:
    """Plant faults until ``faults`` of them reached the output, and look for each."""
    model = plain(onnx.load(str(path)))
    chance = np.random.default_rng(CASES.index(case))
    nodes, constants = model.graph.node, initializers(model)
    kinds = QUANTIZED if case.precision == "int8" else WEIGHTED
    eligible = [i for i, node in enumerate(nodes) if node.op_type in kinds and node.input[1] in constants]
    rows: list[dict[str, Any]] = []
    unseen = 0
    for index in chance.permutation(eligible):
        row = search(case, model, int(index), frames, chance)
        unseen += row is None
        rows += [row] if row else []
        if len(rows) == faults:
            break
    return {
        "network": case.network,
        "precision": case.precision,
        "backends": list(case.backends),
        "tolerance": case.tolerance,
        "nodes": len(nodes),
        "faults": len(rows),
        "without_effect": unseen,
        "right": sum(row["named"] == row["node"] for row in rows),
        "most_builds": max(row["builds"] for row in rows),
        "allowed_builds": math.ceil(math.log2(len(nodes))) + 2,
        "rows": rows,
    }


def line(result: dict[str, Any]) -> str:
    """A case's result for a person."""
    backends = " / ".join(result["backends"])
    return (
        f"{result['network']:12} {result['precision']:13} {backends:25} {result['nodes']:4} nodes  "
        f"{result['right']} of {result['faults']} named, at most {result['most_builds']} builds "
        f"({result['allowed_builds']} allowed), {result['without_effect']} without effect"
    )


def run() -> int:
    """Measure every case, print a line for each and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    data = Path(os.environ["EDGECV_DATA"])
    photos = find_images(data / "imagenet" / "images")[:: 500 // (CALIBRATION + SAMPLES)]
    frames = PREPROCESS.batch([read_image(path) for path in photos])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            single = export(network, data, Path(folder))
            graphs = {"int8": quantized(single, frames[SAMPLES : SAMPLES + CALIBRATION])}
            for case in CASES:
                if case.network == network:
                    path = graphs.get(case.precision, single)
                    results.append(measure(case, path, frames[:SAMPLES], arguments.faults))
                    print(line(results[-1]), flush=True)
    versions = {**library_versions(), **{name: version(name) for name in LIBRARIES}}
    arguments.out.write_text(dumps({"machine": machine(), "versions": versions, "cases": results}))
    return 0 if all(result["right"] == result["faults"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(run())

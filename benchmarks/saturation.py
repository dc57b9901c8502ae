"""Accuracy without VNNI: what `edgecv.converters.saturation` predicts, and what this CPU then measures.

    EDGECV_DATA=… python benchmarks/saturation.py

SqueezeNet 1.1 and MobileNetV2 with published weights are quantized by onnxruntime.quantization (uint8 activations, int8
weights per channel, full range, 100 photos) and by 7-bit weights for comparison; the other 400 photos are scored. On a
CPU with VNNI nothing saturates, and the measured columns then equal the exact ones, not the predicted ones. Writes
benchmarks/results/saturation.json.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from zoo_accuracy import CASES, Case, photo_folder

import edgecv
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.saturation import RUNTIMES, saturating_layers, simulate
from edgecv.cpu import read_cpu
from edgecv.profiling.system import library_versions, machine
from edgecv.schema import dumps
from edgecv.tensors import Array

RESULTS = Path(__file__).parent / "results" / "saturation.json"
CALIBRATION = 100
NETWORKS = ("squeezenet1_1", "mobilenet_v2")


class Frames(CalibrationDataReader):  # type: ignore[misc]
    """Calibration frames one by one, as ONNX Runtime's quantizer asks for them."""

    def __init__(self, frames: Array) -> None:
        self._frames: Iterator[Array] = iter(frames)

    def get_next(self) -> dict[str, Array] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"image": frame[np.newaxis]}


def photos(case: Case, data: Path) -> tuple[Array, Array]:
    """All photos as the network takes them, and their classes."""
    with tempfile.TemporaryDirectory() as folder:
        path, synsets = photo_folder(data, Path(folder))
        samples = edgecv.data.open_samples(str(path))
        pairs = [samples[index] for index in range(len(samples))]
        frames = np.stack([case.preprocess(frame) for frame, _ in pairs])
        return frames, np.array([synsets.index(samples.labels[target]) for _, target in pairs])


def quantized(source: Path, frames: Array, bits: int) -> onnx.ModelProto:
    """The graph as ONNX Runtime's own quantizer writes it."""
    target = source.with_suffix(f".{bits}.onnx")
    quantize_static(
        source,
        target,
        Frames(frames),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=bits == 7,
    )
    return onnx.load(target)


def exact(model: onnx.ModelProto, frames: Array) -> Array:
    """The logits without any optimization: float arithmetic on quantized values."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": frame[np.newaxis]})[0] for frame in frames])


def measured(model: onnx.ModelProto, frames: Array, backend: str, folder: Path) -> Array:
    """The logits of a runtime as it is."""
    path = folder / "measured.onnx"
    onnx.save(model, path)
    with edgecv.open_session(path, backend=backend, threads=1) as session:
        name = session.outputs[0].name
        return np.concatenate([session.run({"image": frame[np.newaxis]})[name] for frame in frames])


def compare(model: onnx.ModelProto, frames: Array, targets: Array, folder: Path) -> dict[str, Any]:
    """Top-1 exact, predicted and measured, and how many photos predicted and measured answers agree on."""
    found: dict[str, Any] = {"exact": top1(exact(model, frames), targets)}
    for runtime in RUNTIMES:
        simulated = simulate(model, {"image": frames}, runtime=runtime)
        predicted = next(iter(simulated.outputs.values()))
        real = measured(model, frames, runtime, folder)
        found[runtime] = {
            "predicted": top1(predicted, targets),
            "measured": top1(real, targets),
            "same_class": float((predicted.argmax(1) == real.argmax(1)).mean()),
            "layers": [asdict(layer) for layer in simulated.layers],
        }
    return found


def top1(logits: Array, targets: Array) -> float:
    return float((logits.argmax(1) == targets).mean())


def measure(case: Case, data: Path) -> list[dict[str, Any]]:
    frames, targets = photos(case, data)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        network = edgecv.models.create(case.model, weights=data / "weights" / case.weights, **case.options)
        source = onnx_from_torch(network, folder / "network.onnx", case.preprocess)
        for bits in (8, 7):
            model = quantized(source, frames[:CALIBRATION], bits)
            scores = compare(model, frames[CALIBRATION:], targets[CALIBRATION:], folder)
            layers = saturating_layers(model)
            rows.append({"model": case.model, "weight_bits": bits, "saturating_layers": len(layers), "top1": scores})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    parts = [f"{row['model']:<15}{row['weight_bits']} bits, {row['saturating_layers']} layers"]
    parts.append(f"exact {100 * row['top1']['exact']:.2f}")
    for runtime in RUNTIMES:
        found = row["top1"][runtime]
        parts.append(
            f"{runtime} predicted {100 * found['predicted']:.2f}, measured {100 * found['measured']:.2f}, "
            f"same class on {100 * found['same_class']:.1f} %"
        )
    return "; ".join(parts)


def run() -> None:
    data = Path(os.environ["EDGECV_DATA"])
    rows = [row for case in CASES if case.model in NETWORKS for row in measure(case, data)]
    versions = library_versions("onnx", "onnxruntime", "openvino")
    RESULTS.write_text(dumps({"machine": machine(), "cpu": read_cpu(), "versions": versions, "networks": rows}))


if __name__ == "__main__":
    run()

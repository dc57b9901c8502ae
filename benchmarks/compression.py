"""What quantization does to accuracy and to speed, with real weights on real images.

    EDGECV_DATA=… python benchmarks/compression.py PART [--networks NAME …] [--epochs N] [--folder runs]

PART is accuracy, speed, together or qat; each writes its part of benchmarks/results/compression.json.

accuracy: 100 of 500 photos calibrate, every fifth, and the other 400 are scored, five times, from another photo on:
in float, fake-quantized in PyTorch, as the cpu layout under exact arithmetic (ONNX Runtime without optimizations), on
ONNX Runtime and on OpenVINO as they run on this CPU, and as the tensorrt layout under exact arithmetic. Means over the
five, as one split alone moves by a point; float has Wilson's 95 % interval. For each split there are the photos that
only one of float and int8 gets right, with McNemar's exact probability that chance alone does as much. The photos look
like training images of ImageNet: compare figures with each other only.

speed: int8 against float, one image of 224 pixels, one thread, files as a bundle has them, in turns of ten runs in one
process: a device runs one network, and one that another just drove out of the caches is slower. Ratios are taken in
each turn, as the clock moves, and the median of them is given. Where NNCF is installed (`pip install nncf`), its file
is a third: MIXED preset, one scale for a tensor of activations, overflow fix, cleaned by `cpu_layout` (else it is
much slower on ONNX Runtime), of an ONNX file of float images. ResNets have random weights: speed does not depend on
them.

together: a network, pruned to half its multiply-accumulates in multiples of 16 channels, quantized, and both, timed in
turns as above; the share is the speed-up of both over the product of the two.

qat: CIFAR-10 networks with published weights, quantized, then trained on 25,000 JPEG copies of the training images;
top-1 on 5,000 test images before and after.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import edgecv
from edgecv.compression.quantization import QAT
from edgecv.converters.onnx_from_torch import onnx_from_torch
from edgecv.converters.openvino_from_onnx import openvino_from_onnx
from edgecv.converters.qdq_cpu import cpu_layout
from edgecv.converters.qdq_layouts import to_tensorrt_layout
from edgecv.converters.sources import normalized
from edgecv.data import hold_out, open_samples
from edgecv.evaluation import wilson_interval
from edgecv.images import read_image
from edgecv.pipelines.frames import run_frames
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.schema import dumps, encode

RESULTS = Path(__file__).parent / "results" / "compression.json"
NORMALIZATION: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PHOTOS = edgecv.Preprocess(size=(224, 224), resize=256, **NORMALIZATION)
FRAMES = edgecv.Preprocess(size=(224, 224), **NORMALIZATION)  # of photos that are brought to the size already
CIFAR = edgecv.Preprocess(size=(32, 32), **NORMALIZATION)
WEIGHTS: dict[str, tuple[str, dict[str, Any]]] = {
    "squeezenet1_1": ("squeezenet/squeezenet1_1.pth", {}),
    "mobilenet_v2": ("mobilenet/mobilenet_v2_1.0_224.pth", {"padding": "same_tf"}),
}
CIFAR_WEIGHTS = {"resnet20": "cifar_resnet/resnet20-12fca82f.th", "resnet56": "cifar_resnet/resnet56-4bfd9763.th"}
FAST = ("mobilenet_v2", "resnet18", "squeezenet1_1", "resnet50")
CASES: dict[str, tuple[str, ...]] = {"accuracy": tuple(WEIGHTS), "speed": FAST, "together": FAST[:3]}
BACKENDS = ("onnxruntime", "openvino")
SPLITS = 5
TURNS = 60  # of ten runs


def photos(data: Path) -> tuple[list[Any], np.ndarray]:
    """The photos as frames of the network's size, and the index of each one's class."""
    with (data / "imagenet" / "synsets.csv").open(newline="") as file:
        synsets = [row["synset"] for row in csv.DictReader(file)]
    with (data / "imagenet" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    frames = [PHOTOS(read_image(data / "imagenet" / "images" / row["file"])) for row in rows]
    return frames, np.array([synsets.index(row["synset"]) for row in rows])


def create(name: str, data: Path) -> torch.nn.Module:
    file, options = WEIGHTS.get(name, (None, {}))
    torch.manual_seed(0)
    return edgecv.models.create(name, weights=data / "weights" / file if file else None, **options).eval()


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Images that only one of two gets right, and the two-sided exact probability of a split as uneven by chance."""
    lost, won = int((one & ~other).sum()), int((other & ~one).sum())
    total = lost + won
    tail = sum(math.comb(total, k) for k in range(min(lost, won) + 1)) / 2**total if total else 0.5
    return {"only_float_right": lost, "only_int8_right": won, "probability": round(min(1.0, 2 * tail), 4)}


def exact(path: Path, frames: list[Any]) -> np.ndarray:
    """The best class of each frame, without any of ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [np.stack(frames[start : start + 10]) for start in range(0, len(frames), 10)]
    return np.concatenate([session.run(None, {"image": part})[0].argmax(1) for part in parts])


def best(session: Session, frames: list[Any]) -> np.ndarray:
    """The best class of each frame."""
    with session:
        found: np.ndarray = run_frames(session, FRAMES, frames, batch=10)["logits"].argmax(1)
    return found


def measure_accuracy(name: str, data: Path, frames: list[Any], targets: np.ndarray, folder: Path) -> dict[str, Any]:
    network = create(name, data)
    splits = []
    for first in range(SPLITS):
        splits.append(measure_split(network, np.arange(len(frames)) % SPLITS == first, frames, targets, folder))
        print(f"{name}: {splits[-1]['ptq_seconds']} s", dict(splits[-1]["top1"]), flush=True)
    keys = list(splits[0]["top1"])
    mean = {key: round(statistics.mean(split["top1"][key] for split in splits), 2) for key in keys}
    low, high = wilson_interval(round(mean["float"] * len(frames) / 100), len(frames))
    sizes = {"float_mb": 4e-6 * sum(p.numel() for p in network.parameters()), "int8_mb": splits[0].pop("int8_mb")}
    return {
        **sizes,
        "top1": mean,
        "interval_of_float": [round(100 * low, 1), round(100 * high, 1)],
        "drop": {key: round(mean["float"] - top1, 2) for key, top1 in mean.items() if key != "float"},
        "ptq_seconds": statistics.median(split["ptq_seconds"] for split in splits),
        "splits": splits,
    }


def measure_split(
    network: torch.nn.Module, held: np.ndarray, frames: list[Any], targets: np.ndarray, folder: Path
) -> dict[str, Any]:
    """The network quantized on the photos that are ``held``, in every form, on the others."""
    calibration, scored = ([frames[i] for i in np.flatnonzero(part)] for part in (held, ~held))
    start = time.perf_counter()
    quantized = edgecv.quantize(network, calibration, preprocess=FRAMES)
    seconds = time.perf_counter() - start
    model = onnx.load(str(onnx_from_torch(quantized, folder / "int8.onnx", FRAMES)))
    cpu, tensorrt = folder / "cpu.onnx", folder / "tensorrt.onnx"
    onnx.save(cpu_layout(model), str(cpu))
    onnx.save(to_tensorrt_layout(model), str(tensorrt))
    openvino = openvino_from_onnx(cpu, folder)
    found = {
        "float": best(TorchSession.from_network(network, FRAMES), scored),
        "fake-quantized": best(TorchSession.from_network(quantized, FRAMES), scored),
        "cpu layout, exact": exact(cpu, scored),
        "cpu layout, ONNX Runtime": best(session_class("onnxruntime").open(cpu, SessionOptions()), scored),
        "cpu layout, OpenVINO": best(session_class("openvino").open(openvino, SessionOptions()), scored),
        "tensorrt layout, exact": exact(tensorrt, scored),
    }
    right = {key: classes == targets[~held] for key, classes in found.items()}
    others = [key for key in found if key != "float"]
    return {
        "ptq_seconds": round(seconds, 1),
        "int8_mb": cpu.stat().st_size / 1e6,
        "top1": {key: round(100 * float(item.mean()), 2) for key, item in right.items()},
        "same_class_as_float": {key: round(100 * float((found[key] == found["float"]).mean()), 2) for key in others},
        "against_float": {key: mcnemar(right["float"], right[key]) for key in others},
    }


def timed(runs: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, list[float]]:
    """Each turn's median milliseconds of each, of ten runs of which the first two do not count."""
    medians: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, call in runs.items():
            times = []
            for _ in range(10):
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1e3)
            medians[name].append(statistics.median(times[2:]))
    return medians


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast one is as the other: the median over the turns, in each of which the clock is one."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 3)


def write_int8(network: torch.nn.Module, calibration: list[Any], path: Path) -> Path:
    """A network quantized, in the layout that CPUs run."""
    quantized = edgecv.quantize(network, calibration, edgecv.QuantizeConfig(rounding="nearest"), preprocess=FRAMES)
    onnx_from_torch(quantized, path, FRAMES)
    onnx.save(cpu_layout(onnx.load(str(path))), str(path))
    return path


def write_nncf(network: torch.nn.Module, calibration: list[Any], path: Path) -> Path | None:
    """The network as NNCF quantizes it, in the layout that CPUs run, of normalized floats; ``None`` without NNCF."""
    try:
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters
    except ImportError:
        return None
    images = [normalized(frame[None], FRAMES) for frame in calibration]
    program = torch.onnx.export(
        network, (torch.from_numpy(images[0]),), dynamo=True, input_names=["image"], verbose=False
    )  # fmt: skip
    program.save(str(path))
    found = nncf.quantize(
        onnx.load(str(path)),
        nncf.Dataset([{"image": image} for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE, activations_quantization_params=QuantizationParameters(per_channel=False)
        ),
    )
    onnx.save(cpu_layout(found), str(path))
    return path


def in_turns(paths: dict[str, Path], backend: str, frame: Any) -> dict[str, list[float]]:
    """The milliseconds of each file for one image, on one thread, all in turns."""
    runs, sessions = {}, []
    for key, path in paths.items():
        file = openvino_from_onnx(path, path.parent) if backend == "openvino" else path
        session = session_class(backend).open(file, SessionOptions(threads=1))
        sessions.append(session)
        image = frame[None] if session.inputs[0].dtype == "uint8" else normalized(frame[None], FRAMES)
        runs[key] = functools.partial(session.run, {"image": image})
    taken = timed(runs)
    for session in sessions:
        session.close()
    return taken


def measure_speed(name: str, data: Path, calibration: list[Any], folder: Path) -> dict[str, Any]:
    network = create(name, data)
    paths = {
        "float": onnx_from_torch(network, folder / f"{name}.onnx", FRAMES),
        "int8": write_int8(network, calibration, folder / f"{name}-int8.onnx"),
    }
    nncf = write_nncf(network, calibration, folder / f"{name}-nncf.onnx")
    paths |= {"nncf": nncf} if nncf else {}
    result: dict[str, Any] = {}
    for backend in BACKENDS:
        taken = in_turns(paths, backend, calibration[0])
        result[backend] = {f"{key}_ms": round(statistics.median(times), 3) for key, times in taken.items()}
        result[backend]["ratio"] = ratio(taken["float"], taken["int8"])
        if nncf:
            result[backend]["ratio_nncf"] = ratio(taken["float"], taken["nncf"])
    result["mb"] = {key: round(path.stat().st_size / 1e6, 3) for key, path in paths.items()}
    print(name, {key: item for key, item in result.items() if key in BACKENDS}, flush=True)
    return result


def measure_together(name: str, data: Path, calibration: list[Any], folder: Path) -> dict[str, Any]:
    network = create(name, data)
    pruned = edgecv.prune(network, config=edgecv.PruneConfig(macs_ratio=0.5, scope="uniform", round_to=16)).eval()
    paths = {
        "float": onnx_from_torch(network, folder / f"{name}.onnx", FRAMES),
        "pruned": onnx_from_torch(pruned, folder / f"{name}-pruned.onnx", FRAMES),
        "int8": write_int8(network, calibration, folder / f"{name}-int8.onnx"),
        "both": write_int8(pruned, calibration, folder / f"{name}-both.onnx"),
    }
    result: dict[str, Any] = {}
    for backend in BACKENDS:
        taken = in_turns(paths, backend, calibration[0])
        speed_up = {key: ratio(taken["float"], taken[key]) for key in ("pruned", "int8", "both")}
        result[backend] = {
            "ms": {key: round(statistics.median(times), 3) for key, times in taken.items()},
            "speed_up": speed_up,
            "share": round(speed_up["both"] / (speed_up["pruned"] * speed_up["int8"]), 3),
        }
        print(name, backend, result[backend]["speed_up"], "share", result[backend]["share"], flush=True)
    result["mb"] = {key: round(path.stat().st_size / 1e6, 3) for key, path in paths.items()}
    return result


def measure_qat(name: str, data: Path, epochs: int, folder: Path | None) -> dict[str, Any]:
    import dataclasses

    network = edgecv.models.create(name, weights=data / "weights" / CIFAR_WEIGHTS[name]).eval()
    train, test = (open_samples(f"cifar10:{data / 'cifar10' / file}.npz") for file in ("train25k", "test5k_a"))
    frames = [train[i][0] for i in range(0, len(train), len(train) // 100)]
    training = dataclasses.replace(QAT, epochs=epochs, batch_size=128, augment="small_photos", learning_rate=2e-4)
    config = edgecv.QuantizeConfig(method="qat", training=training)
    ptq = edgecv.quantize(network, frames, preprocess=CIFAR)
    start = time.perf_counter()
    qat = edgecv.quantize(
        network, frames, config, preprocess=CIFAR, train_data=hold_out(train, every=10)[0],
        val_data=hold_out(train, every=10)[1], out=folder / name if folder else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    right = {}
    targets = np.array([test[i][1] for i in range(len(test))])
    images = [test[i][0] for i in range(len(test))]
    for key, item in (("float", network), ("ptq", ptq), ("qat", qat)):
        with TorchSession.from_network(item, CIFAR) as session:
            right[key] = run_frames(session, CIFAR, images, batch=100)["logits"].argmax(1) == targets
    rows = {
        key: {
            "top1": round(100 * float(item.mean()), 2),
            "interval": [round(100 * bound, 2) for bound in wilson_interval(int(item.sum()), len(item))],
            "against_float": mcnemar(right["float"], item),
        }
        for key, item in right.items()
    }
    print(name, {key: row["top1"] for key, row in rows.items()}, f"{seconds:.0f} s", flush=True)
    return {"seconds": round(seconds, 1), "training": encode(training), "answers": rows}


def readme_table(results: dict[str, Any]) -> str:
    """The results as the README has them."""
    lines = [
        "| network | float | ONNX Runtime | OpenVINO | exact | `tensorrt` layout, exact | MB "
        "| speed (ONNX Runtime, OpenVINO) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = ("float", "cpu layout, ONNX Runtime", "cpu layout, OpenVINO", "cpu layout, exact", "tensorrt layout, exact")
    for name, speed in results["speed"]["networks"].items():
        found = results["accuracy"]["networks"].get(name)
        top1 = [f"{found['top1'][key]:.2f}" for key in keys] if found else ["-"] * len(keys)
        if found:
            low, high = found["interval_of_float"]
            top1[0] += f" ({low:.1f} to {high:.1f})"
        size = f"{speed['mb']['float']:.1f} to {speed['mb']['int8']:.1f}"
        ratios = ", ".join(f"{speed[backend]['ratio']:.2f}" for backend in ("onnxruntime", "openvino"))
        lines.append(f"| {' | '.join([name, *top1, size, ratios])} |")
    return "\n".join(lines)


def keep(part: str, found: dict[str, Any]) -> None:
    """Put one part's results beside the others'."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    versions = library_versions("torch", "onnxruntime", "openvino", "onnx")
    known = results.get(part, {}).get("networks", {})
    results[part] = {**conditions, "versions": versions, "networks": {**known, **found}}
    RESULTS.write_text(dumps(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("accuracy", "speed", "together", "qat"))
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--epochs", type=int, default=3, help="of qat")
    parser.add_argument("--folder", type=Path, help="of qat: where runs are kept, to go on with")
    args = parser.parse_args()
    data = Path(os.environ["EDGECV_DATA"])
    if args.part == "qat":
        for name in args.networks or ["resnet20"]:
            keep("qat", {name: measure_qat(name, data, args.epochs, args.folder)})
        return
    frames, targets = photos(data)
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.networks or CASES[args.part]:
            if args.part == "accuracy":
                keep("accuracy", {name: measure_accuracy(name, data, frames, targets, Path(scratch))})
            elif args.part == "together":
                keep("together", {name: measure_together(name, data, frames[:400:8], Path(scratch))})
            else:
                keep("speed", {name: measure_speed(name, data, frames[:400:8], Path(scratch))})


if __name__ == "__main__":
    main()

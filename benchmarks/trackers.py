"""NanoTrack v1 and v2 on real sequences: accuracy, an honest status, and speed beside OpenCV's TrackerNano.

    EDGECV_DATA=… python benchmarks/trackers.py [--accuracy] [--status] [--fast] [--speed] [--int8] [--frames N]

Everything but --int8 by default. Runs on the published ONNX pairs, one thread, all frames of the four sequences.
Results go to benchmarks/results/trackers.json; a part that was not asked for stays as it was. Close everything else
before --speed.

Ways of tracking are compared: `edgecv` is what `edgecv convert --from nanotrack` makes of the files, on ONNX Runtime;
`edgecv as opencv` is the same with the settings of cv2.TrackerNano (RGB, its window, penalty and rate) and without a
status, which it has not; `edgecv at 191` has those settings, a status, and a search crop of 191 pixels instead of 255
(`--search 191`): 12 x 12 cells of 16 x 16, and a target that moves by more than its own size from frame to frame is out
of it, where 255 allow one and a half. `edgecv on openvino` is the first on OpenVINO; `loop` is a plain ONNX Runtime
loop over the same files with the arithmetic of the published tracker (crops of whole pixels, half a pixel off), which
the data's own figures were measured with; `opencv` is cv2.TrackerNano, where the build has it.

--int8 quantizes the networks, calibrated on ImageNet photos, none of them of the sequences, and tracks with each
variant of one bundle; results go to benchmarks/results/trackers_int8.json. --frames N takes the first N frames of each
sequence, for a quick look; nothing is written then.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import onnx
import onnxruntime

import edgecv
from edgecv.compression.placement import quantized_layers
from edgecv.compression.quantization import QuantizeConfig
from edgecv.compression.trackers import quantize_tracker
from edgecv.converters.torch_from_nanotrack import torch_from_nanotrack
from edgecv.converters.trackers import convert_tracker
from edgecv.data import open_frames
from edgecv.models.siamese import create_tracker
from edgecv.models.weights import read_weights
from edgecv.pipelines.tracking import (
    Confidence,
    Run,
    Tracker,
    TrackSequence,
    TrackState,
    open_sequences,
    run_sequence,
    score_all,
    score_sequence,
)
from edgecv.pipelines.tracking.boxes import Box
from edgecv.pipelines.tracking.calibration import Observation, observe, roc_auc
from edgecv.pipelines.tracking.confidence import calibrate, measure
from edgecv.pipelines.tracking.crops import cut_near
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.schema import dumps, loads

RESULTS = Path(__file__).parent / "results" / "trackers.json"
VERSIONS = ("v1", "v2")
# Success AUC that the notes of the data give, measured with the published tracker's arithmetic.
EXPECTED = {
    "v1": {"vot13_bicycle": 0.485, "vot13_car": 0.477, "vot15_bag": 0.765, "vot15_car1": 0.655},
    "v2": {"vot13_bicycle": 0.585, "vot13_car": 0.545, "vot15_bag": 0.780, "vot15_car1": 0.692},
}
INT8_RESULTS = RESULTS.with_name("trackers_int8.json")
# The last layers of the head stay float: with them in int8, boxes on crops that calibrated nothing have a mean IoU of
# 0.854 with the float network's (v1), without them 0.929.
INT8 = QuantizeConfig(layer_bits={"sides": 0, "logits": 0})
PHOTOS = 64
CALIBRATED_ON = ("vot13_car", "vot15_car1")
ROUNDS = 5
STEPS = (3, 6, 12)
# What OpenCV 5.0 tracks with (modules/video/src/tracking/tracker_nano.cpp).
AS_OPENCV = {"color": "rgb", "penalty": 0.055, "window": 0.455, "rate": 0.37}
SMALL = {**AS_OPENCV, "search": 191}
OURS = ("edgecv", "edgecv as opencv", "edgecv at 191", "edgecv on openvino")


class Loop:
    """The published tracker, plainly: one backbone, one head, whole-pixel crops with a border copied around them."""

    def __init__(self, backbone: Path, head: Path, version: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.backbone, self.head = (
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in (backbone, head)
        )
        self.settings = create_tracker(f"nanotrack_{version}").settings
        line = (np.arange(16) - 8) * 16.0
        self.x, self.y = np.tile(line, (16, 1)), np.tile(line[:, None], (1, 16))
        self.window = np.outer(np.hanning(16), np.hanning(16))

    def init(self, frame: np.ndarray[Any, Any], box: Box) -> None:
        x, y, w, h = box
        self.centre, self.size = np.array([x + (w - 1) / 2, y + (h - 1) / 2]), np.array([w, h])
        self.mean = frame.mean((0, 1))
        self.exemplar = self._features(frame, self._side(), 127)

    def update(self, frame: np.ndarray[Any, Any]) -> TrackState:
        side = self._side()
        scale = 127 / side
        features = self._features(frame, side * 255 / 127, 255)
        score, sides = (value[0] for value in self.head.run(None, {"input1": self.exemplar, "input2": features}))
        chance = 1 / (1 + np.exp(score[0] - score[1]))
        left, top, right, bottom = sides
        wide, high = left + right, top + bottom
        change = self._changes(wide, high, *(self.size * scale))
        penalty = np.exp((1 - change) * self.settings.penalty)
        best = np.argmax(penalty * chance * (1 - self.settings.window) + self.window * self.settings.window)
        shift = [(self.x + (right - left) / 2).flat[best], (self.y + (bottom - top) / 2).flat[best]]
        rate = (penalty * chance).flat[best] * self.settings.rate
        found = np.array([wide.flat[best], high.flat[best]]) / scale
        limits = np.array(frame.shape[1::-1])
        self.centre = np.clip(self.centre + np.array(shift) / scale, 0, limits)
        self.size = np.clip(self.size * (1 - rate) + found * rate, 10, limits)
        (x, y), (w, h) = self.centre - self.size / 2, self.size
        return TrackState((x, y, w, h), float(chance.flat[best]), 1.0, "tracking")

    def _side(self) -> float:
        return float(np.sqrt(np.prod(self.size + self.size.sum() / 2)))

    @staticmethod
    def _changes(wide: Any, high: Any, w: float, h: float) -> Any:
        def side(a: Any, b: Any) -> Any:
            return np.sqrt((a + (a + b) / 2) * (b + (a + b) / 2))

        ratios = side(wide, high) / side(w, h), (w / h) / (wide / high)
        return np.prod([np.maximum(ratio, 1 / ratio) for ratio in ratios], axis=0)

    def _features(self, frame: np.ndarray[Any, Any], side: float, size: int) -> Any:
        whole = round(side)
        left, top = np.floor(self.centre - (whole + 1) / 2 + 0.5).astype(int)
        right, bottom = left + whole - frame.shape[1], top + whole - frame.shape[0]
        margins = [max(0, int(margin)) for margin in (-top, bottom, -left, right)]
        padded = cv2.copyMakeBorder(frame, *margins, cv2.BORDER_CONSTANT, value=self.mean)
        top, left = top + margins[0], left + margins[2]
        crop = cv2.resize(padded[top : top + whole, left : left + whole], (size, size))
        bgr = np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1)[None], np.float32)
        return self.backbone.run(None, {"input": bgr})[0]


class OpenCV:
    """cv2.TrackerNano on the same files."""

    def __init__(self, backbone: Path, head: Path) -> None:
        parameters = cv2.TrackerNano_Params()
        parameters.backbone, parameters.neckhead = str(backbone), str(head)
        self.tracker = cv2.TrackerNano_create(parameters)

    def init(self, frame: np.ndarray[Any, Any], box: Box) -> None:
        x, y, w, h = (round(value) for value in box)
        self.tracker.init(np.ascontiguousarray(frame[..., ::-1]), (x, y, w, h))

    def update(self, frame: np.ndarray[Any, Any]) -> TrackState:
        _, (x, y, w, h) = self.tracker.update(np.ascontiguousarray(frame[..., ::-1]))
        return TrackState((x, y, w, h), float(self.tracker.getTrackingScore()), 1.0, "tracking")


class InMemory(TrackSequence):
    """A sequence whose frames are decoded once, before anything is timed."""

    def __init__(self, sequence: TrackSequence) -> None:
        super().__init__(sequence.name, sequence.files, sequence.boxes, sequence.visible)
        object.__setattr__(self, "frames", list(sequence))

    def __getitem__(self, index: int) -> Any:
        return self.frames[index]  # type: ignore[attr-defined]

    def __iter__(self) -> Any:
        return iter(self.frames)  # type: ignore[attr-defined]


def thinned(sequence: InMemory, step: int) -> InMemory:
    """Every ``step``-th frame: the target moves so much faster."""
    found = InMemory.__new__(InMemory)
    part = slice(None, None, step)
    TrackSequence.__init__(found, sequence.name, sequence.files[part], sequence.boxes[part], sequence.visible[part])
    object.__setattr__(found, "frames", sequence.frames[::step])  # type: ignore[attr-defined]
    return found


def any_size(source: Path, target: Path) -> Path:
    """The published backbone without its fixed size: the exemplar is smaller than the search crop."""
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim[2:]):
            dimension.dim_param = f"{value.name}{axis}"
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def trackers(data: Path, version: str, folder: Path) -> dict[str, Any]:
    """One tracker of each way, on one version's files."""
    published = data / "weights" / "nanotrack" / f"nanotrack{version}_backbone.onnx"
    head = published.with_name(f"nanotrack{version}_head.onnx")
    photos = [(photo, _middle(photo)) for photo in open_frames(str(data / "imagenet"), 16)]
    networks = {
        "edgecv": torch_from_nanotrack(published, head),
        "edgecv as opencv": torch_from_nanotrack(published, head, **AS_OPENCV),
        "edgecv at 191": torch_from_nanotrack(published, head, **SMALL),
    }
    ways: dict[str, Any] = {}
    for name, network in networks.items():
        convert_tracker(network, folder / version / name, samples=photos)
        ways[name] = edgecv.load(folder / version / name, backend="onnxruntime", threads=1)
    ways["edgecv as opencv"] = _without_status(ways["edgecv as opencv"])
    ways |= {
        "edgecv on openvino": edgecv.load(folder / version / "edgecv", backend="openvino", threads=1),
        "loop": Loop(any_size(published, folder / f"{version}.onnx"), head, version),
    }
    if hasattr(cv2, "TrackerNano_create"):
        ways["opencv"] = OpenCV(published, head)
    return ways


def accuracy(ways: dict[str, Any], sequences: list[InMemory], version: str) -> dict[str, Any]:
    """Scores of every way on every sequence and overall; edgecv's also without its status."""
    ours = ways["edgecv"]
    bare = _without_status(ours)
    found: dict[str, Any] = {"expected": EXPECTED[version]}
    for name, tracker in {**ways, "edgecv without status": bare}.items():
        runs: list[Run] = [run_sequence(tracker, sequence) for sequence in sequences]
        scores = {run.sequence.name: _scores(score_sequence(run)) for run in runs}
        found[name] = {**scores, "overall": _scores(score_all(runs))}
        print(version, f"{name:<22}", {key: value["success"] for key, value in found[name].items()}, flush=True)
    return found


def _without_status(tracker: Tracker) -> Tracker:
    template, search = tracker.sessions
    return Tracker(template, search, replace(tracker.settings, confidence=None))


def _scores(scores: Any) -> dict[str, float]:
    return {name: round(getattr(scores, name), 4) for name in ("success", "precision", "ao", "sr50", "sr75")}


def status(tracker: Tracker, sequences: list[InMemory], version: str) -> dict[str, Any]:
    """ROC-AUC of the confidence on frames with the target absent, on the sequences that calibrated nothing.

    Every split of the sequences into two and two; constants are fitted on the first two of each. The shipped constants
    are those of ``CALIBRATED_ON``.
    """
    by_name = {sequence.name: sequence for sequence in sequences}
    found: dict[str, Any] = {}
    for chosen in itertools.combinations(sorted(by_name), 2):
        seen = observe(tracker, [by_name[name] for name in chosen])
        held = observe(tracker, [by_name[name] for name in sorted(by_name) if name not in chosen])
        constants = calibrate([(one.measures, one.agreement) for one in seen], [one.present for one in seen])
        found[" + ".join(chosen)] = split = _aucs(constants, held)
        if set(chosen) == set(CALIBRATED_ON):
            split["constants"] = {"response": constants.response, "full": constants.full}
            shipped = tracker.settings.confidence
            assert shipped is not None
            split["shipped"] = _aucs(shipped, held)
        print(version, "calibrated on", chosen, {key: split[key] for key in ("map", "all")}, flush=True)
    return found


def status_at_191(tracker: Tracker, sequences: list[InMemory], version: str) -> dict[str, float]:
    """The shipped constants, which were fitted on search crops of 255 pixels, on the sequences that fitted nothing."""
    constants = tracker.settings.confidence
    assert constants is not None
    found = _aucs(constants, observe(tracker, [one for one in sequences if one.name not in CALIBRATED_ON]))
    print(version, "status at 191", found, flush=True)
    return found


def _aucs(constants: Confidence, held: list[Observation]) -> dict[str, Any]:
    def auc(kinds: tuple[str, ...], full: bool) -> float:
        chosen = [one for one in held if one.kind in ("present", *kinds)]
        chances = [constants.probability(one.measures, one.agreement if full else None) for one in chosen]
        return round(roc_auc(chances, [one.present for one in chosen]), 4)

    absent = tuple(sorted({one.kind for one in held if not one.present}))
    return {
        "map": auc(absent, False),
        "all": auc(absent, True),
        **{kind: auc((kind,), True) for kind in absent},
        "frames": len(held),
    }


def fast(ways: dict[str, Any], sequences: list[InMemory], version: str) -> dict[str, dict[str, float]]:
    """Mean success AUC of fast targets: with frames left out, how far a search crop reaches begins to count."""
    found: dict[str, dict[str, float]] = {}
    for step in STEPS:
        few = [thinned(sequence, step) for sequence in sequences]
        found[f"every {step}"] = {
            name: round(statistics.mean(score_sequence(run_sequence(tracker, one)).success for one in few), 4)
            for name, tracker in ways.items()
        }
        print(version, "every", step, found[f"every {step}"], flush=True)
    return found


def speed(ways: dict[str, Any], sequences: list[InMemory], version: str) -> dict[str, Any]:
    """Milliseconds a frame, decoding not counted: the ways take turns, sequence by sequence."""
    cv2.setNumThreads(1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _, sequence in itertools.product(range(ROUNDS), sequences):
        for name, tracker in ways.items():
            run = run_sequence(tracker, sequence)
            times[name].append(1e3 * float(np.mean(run.seconds[1:])))
    found: dict[str, Any] = {
        name: {"ms_a_frame": round(statistics.median(values), 3)} for name, values in times.items()
    }
    for ours, name in itertools.product(OURS, times):
        pairs = zip(times[name], times[ours], strict=True)
        found[name][f"{ours} is faster"] = round(statistics.median(one / other for one, other in pairs), 3)
    found["parts"] = _parts(ways["edgecv"], sequences)
    print(version, found, "load", load_average(), flush=True)
    return found


def _parts(tracker: Tracker, sequences: list[InMemory]) -> dict[str, float]:
    """Milliseconds of a frame in each part of the pipeline; what a part that did not run would take is not counted."""
    taken: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            answer = function(*arguments, **options)
            taken[name] = taken.get(name, 0.0) + time.perf_counter() - start
            return answer

        return call

    template, search = tracker.sessions
    with (
        mock.patch.object(search, "run", timed("search graph", search.run)),
        mock.patch.object(template, "run", timed("template graph, where the map leaves a doubt", template.run)),
        mock.patch(f"{Tracker.__module__}.cut_near", timed("crop", cut_near)),
        mock.patch.object(tracker._head, "locate", timed("head", tracker._head.locate)),
        mock.patch(f"{Tracker.__module__}.measure", timed("status", measure)),
    ):
        runs = [run_sequence(tracker, sequence) for sequence in sequences]
    seconds = [float(second) for run in runs for second in run.seconds[1:]]
    taken["everything else"] = sum(seconds) - sum(taken.values())
    return {name: round(1e3 * value / len(seconds), 3) for name, value in taken.items()}


def int8(data: Path, sequences: list[InMemory], version: str, folder: Path) -> dict[str, Any]:
    """Success AUC, size and milliseconds a frame of every variant of a bundle of both precisions; variants take turns.

    Every photo gives an exemplar and a search crop around its middle.
    """
    network = create_tracker(f"nanotrack_{version}").eval()
    network.load_state_dict(read_weights(data / "weights" / "nanotrack" / f"nanotrack{version}.safetensors"))
    photos = open_frames(str(data / "imagenet"), PHOTOS)
    samples = [(photo, _middle(photo)) for photo in photos]
    quantized = quantize_tracker(network, samples, INT8)
    bundle = convert_tracker(network, folder / f"int8_{version}", quantized=quantized, samples=samples)
    sizes = {"plain": bundle, "packed": edgecv.pack(bundle, folder / f"packed_{version}")}
    found: dict[str, Any] = {"layers": len(quantized_layers(quantized.search_graph)), "float": ["logits", "sides"]}
    runs = _runs(bundle, sequences)
    for name, item in bundle.manifest.variants.items():
        found[name] = {
            "success": {run.sequence.name: round(score_sequence(run).success, 4) for run in runs[name]},
            "mean": round(statistics.mean(score_sequence(run).success for run in runs[name]), 4),
            "bytes": {how: _size(held, name) for how, held in sizes.items()},
            "median_ms": round(
                1e3 * float(statistics.median(statistics.median(run.seconds[1:]) for run in runs[name])), 3
            ),
            "box_iou_on_photos": item.parity.mean_iou if item.parity else None,
            "slower_than": item.slower_than,
        }
        print(version, name, found[name], flush=True)
    for form in ("onnx", "openvino"):
        one, other = found[f"{form}-fp32"], found[f"{form}-int8"]
        found[f"{form}: int8 against fp32"] = {
            "drop": round(one["mean"] - other["mean"], 4),
            "size": {how: round(other["bytes"][how] / one["bytes"][how], 3) for how in sizes},
            "speed": round(one["median_ms"] / other["median_ms"], 3),
        }
    print(version, {key: value for key, value in found.items() if "against" in key}, flush=True)
    return found


def _runs(bundle: edgecv.Bundle, sequences: list[InMemory]) -> dict[str, list[Run]]:
    cv2.setNumThreads(1)
    runs: dict[str, list[Run]] = {name: [] for name in bundle.manifest.variants}
    for sequence, (name, item) in itertools.product(sequences, bundle.manifest.variants.items()):
        with edgecv.load(bundle.path, backend=item.backend, variant=name, threads=1) as tracker:
            runs[name].append(run_sequence(tracker, sequence))
    return runs


def _middle(photo: Any) -> Box:
    height, width = photo.shape[:2]
    return 0.35 * width, 0.35 * height, 0.3 * width, 0.3 * height


def _size(bundle: edgecv.Bundle, variant: str) -> int:
    return sum(file.size_bytes for name, file in bundle.manifest.files.items() if name.startswith(f"{variant}/"))


PARTS: dict[str, Callable[[dict[str, Any], list[InMemory], str], dict[str, Any]]] = {
    "accuracy": accuracy,
    "status": lambda ways, sequences, version: {
        **status(ways["edgecv"], sequences, version),
        "edgecv at 191": status_at_191(ways["edgecv at 191"], sequences, version),
    },
    "fast": fast,
    "speed": speed,
}


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--frames", type=int)
    arguments = vars(parser.parse_args())
    if arguments["int8"]:
        run_int8(arguments["frames"])
        return
    asked = [part for part in PARTS if arguments[part]] or list(PARTS)
    data = Path(os.environ["EDGECV_DATA"])
    sequences = [InMemory(sequence) for sequence in open_sequences(data / "tracking")]
    results: dict[str, Any] = loads(RESULTS.read_bytes(), str(RESULTS)) if RESULTS.exists() else {}
    versions = {"onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__, **library_versions()}
    with tempfile.TemporaryDirectory() as folder:
        ways = {version: trackers(data, version, Path(folder)) for version in VERSIONS}
        for part in asked:
            results[part] = {"machine": machine(), "versions": versions, "load": load_average()}
            for version in VERSIONS:
                results[part][version] = PARTS[part](ways[version], sequences, version)
            RESULTS.write_text(dumps(results))


def run_int8(frames: int | None) -> None:
    data = Path(os.environ["EDGECV_DATA"])
    sequences = [InMemory(_first(sequence, frames)) for sequence in open_sequences(data / "tracking")]
    results: dict[str, Any] = {"machine": machine(), "versions": library_versions(), "load": load_average()}
    results["calibration"] = f"{PHOTOS} ImageNet photos, a box of 0.3 of each side in the middle"
    with tempfile.TemporaryDirectory() as folder:
        for version in VERSIONS:
            results[version] = int8(data, sequences, version, Path(folder))
            if frames is None:
                INT8_RESULTS.write_text(dumps(results))


def _first(sequence: TrackSequence, frames: int | None) -> TrackSequence:
    kept = slice(frames)
    return replace(sequence, files=sequence.files[kept], boxes=sequence.boxes[kept], visible=sequence.visible[kept])


if __name__ == "__main__":
    run()

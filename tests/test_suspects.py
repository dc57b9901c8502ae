"""Likely causes: faults planted in exported graphs are called by their names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from edgecv.parity import Gate, worst_gate
from edgecv.pipelines.frames import run_frames
from edgecv.preprocess import Preprocess
from edgecv.suspects import Sides
from tests.conftest import require
from tests.doubles import NumpySession, brightness

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import models  # noqa: E402
from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: E402
from edgecv.data import open_frames  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402
from edgecv.runtimes.session import SessionOptions  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ONE_THREAD = SessionOptions(threads=1)
Plant = Callable[[Any], None]


@dataclasses.dataclass
class Known:
    """A network and its graph, which agree."""

    graph: onnx.ModelProto
    reference: TorchSession
    preprocess: Preprocess
    samples: list[Any]


def _tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12)),
    )


def _known(network: nn.Module, preprocess: Preprocess, samples: list[Any], folder: Path) -> Known:
    with mock.patch(
        "edgecv.converters.onnx_from_torch.fold_frames"
    ):  # faults are planted in a normalization of its own
        graph = onnx.load(str(onnx_from_torch(network, folder / "network.onnx", preprocess)))
    reference = TorchSession.from_network(network, preprocess, options=ONE_THREAD)
    return Known(graph, reference, preprocess, samples)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A small network on smooth coloured frames."""
    random = np.random.default_rng(0)
    grids = random.integers(0, 256, (8, 6, 8, 3)).astype(np.uint8)
    samples = [Preprocess(size=(40, 52))(grid) for grid in grids]
    preprocess = Preprocess(size=(32, 32), resize=36, mean=MEAN, std=STD)
    return _known(_tiny(), preprocess, samples, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def squeezenet(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Known:
    """SqueezeNet 1.1 with published weights on photos."""
    require("opencv")
    network = models.create("squeezenet1_1")
    network.load_state_dict(torch.load(data / "weights/squeezenet/squeezenet1_1.pth", weights_only=True))
    preprocess = Preprocess(size=(224, 224), resize=256, mean=MEAN, std=STD)
    photos = list(open_frames(data / "imagenet" / "images", 3))
    return _known(network, preprocess, photos, tmp_path_factory.mktemp("squeezenet"))


def _judge(known: Known, plant: Plant, folder: Path, precision: str = "fp32", **changed: Any) -> Gate:
    """The gate on a graph with a fault in it; ``changed`` is what its frames are prepared with instead."""
    model = onnx.ModelProto()
    model.CopyFrom(known.graph)
    plant(model.graph)
    onnx.save(model, str(folder / "planted.onnx"))
    with OrtSession(folder / "planted.onnx", ONE_THREAD) as candidate:
        preprocess = dataclasses.replace(known.preprocess, **changed)
        sides = Sides(known.reference, candidate, preprocess, known.samples, known.preprocess)
        wanted = run_frames(known.reference, known.preprocess, known.samples)
        return worst_gate(wanted, run_frames(candidate, preprocess, known.samples), precision, sides=sides)


def _change(graph: Any, chosen: Callable[[Any], bool], change: Callable[[Any], Any], most: int = 99) -> None:
    """Change the first ``most`` weights that are chosen."""
    found = [item for item in graph.initializer if chosen(numpy_helper.to_array(item))]
    assert found
    for item in found[:most]:
        array = np.ascontiguousarray(change(numpy_helper.to_array(item)), np.float32)
        item.CopyFrom(numpy_helper.from_array(array, item.name))


def _per_channel(array: Any) -> bool:
    return bool(array.shape == (1, 3, 1, 1))


def _normalizing(mean: Any, std: Any) -> Plant:
    scale, shift = 1 / (255 * np.array(std)), -np.array(mean) / np.array(std)

    def plant(graph: Any) -> None:
        _change(graph, _per_channel, lambda old: (shift if old.min() < 0 else scale).reshape(1, 3, 1, 1))

    return plant


def _swap_first_weights(graph: Any) -> None:
    _change(graph, lambda array: array.ndim == 4 and array.shape[1] == 3 and array.shape[0] > 1, lambda a: a[:, ::-1])


def _swap_frames(graph: Any) -> None:
    _swap_first_weights(graph)
    _change(graph, _per_channel, lambda array: array[:, ::-1])


def _transpose(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Transpose")
    node.attribute[0].ints[:] = [0, 3, 2, 1]


def _read_planar(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Transpose")
    height, width = (graph.input[0].type.tensor_type.shape.dim[i].dim_value for i in (1, 2))
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, height, width]), "planar"))
    node.CopyFrom(helper.make_node("Reshape", [node.input[0], "planar"], list(node.output)))


def _drop_layer(graph: Any) -> None:
    node = [node for node in graph.node if node.op_type == "Relu"][-1]
    node.CopyFrom(helper.make_node("Identity", list(node.input), list(node.output)))


def _drop_bias(graph: Any) -> None:
    _change(graph, lambda array: array.ndim == 1 and array.dtype == np.float32, lambda array: array * 0, most=1)


def _lose_weights(graph: Any) -> None:
    _change(graph, lambda array: array.ndim == 2, lambda array: array * 0)


def _append(operator: str, **attributes: Any) -> Plant:
    def plant(graph: Any) -> None:
        inputs = ["inner"]
        if operator == "Gather":
            order = np.roll(np.arange(graph.output[0].type.tensor_type.shape.dim[1].dim_value), 1)
            graph.initializer.append(numpy_helper.from_array(order, "order"))
            inputs.append("order")
        for node in graph.node:
            node.output[:] = ["inner" if name == "logits" else name for name in node.output]
        graph.node.append(helper.make_node(operator, inputs, ["logits"], **attributes))

    return plant


MEANS, STDS = np.array(MEAN), np.array(STD)
FAULTS: dict[str, tuple[Plant, str]] = {
    "red-blue swap": (_swap_frames, r"red and blue are exchanged \(with that undone the answers agree\)"),
    "red-blue swap of weights": (_swap_first_weights, "red and blue are exchanged behind the normalization"),
    "transposed layout": (_transpose, "height and width are exchanged"),
    "planar frames": (_read_planar, "frames are read as NCHW"),
    "not normalized": (_normalizing((0, 0, 0), (1, 1, 1)), r"not normalized \(values 0-1\)"),
    "0-255": (_normalizing((0, 0, 0), [1 / 255] * 3), r"not normalized \(values 0-255\)"),
    "normalized twice": (_normalizing(MEANS + MEANS * STDS, STDS**2), "frames are normalized twice"),
    "divided twice": (_normalizing(MEANS * 255, STDS * 255), "divided by 255 twice"),
    "mean forgotten": (_normalizing((0, 0, 0), STD), "the mean is not subtracted"),
    "std forgotten": (_normalizing(MEAN, (1, 1, 1)), "not divided by the std"),
    "half": (_normalizing([0.5] * 3, [0.5] * 3), "wrong mean and std: 0.5 and 0.5"),
    "mean in the order of BGR": (_normalizing(MEAN[::-1], STD[::-1]), "in the order blue, green, red"),
    "wrong mean": (
        _normalizing(MEANS + 0.06, STD),
        r"as if with mean \(0.5[34]\d, 0.5[12]\d, 0.4[67]\d\)",
    ),
    "wrong std": (
        _normalizing(MEAN, STDS * np.array([1.3, 1.3, 0.9])),
        r"and std \(0.2[89]\d, 0.2[89]\d, 0.(19|20|21)\d\)",
    ),
    "softmax": (_append("Softmax", axis=1), "a softmax too many"),
    "other order": (_append("Gather", axis=1), r"outputs in another place, such as number 0 at 1"),
    "dropped layer": (_drop_layer, "a layer inside the graph, dropped or wrong"),
    "lost weights": (_lose_weights, "lost weights inside the graph, whose answers are the same for every frame"),
    "dropped bias": (_drop_bias, "a layer inside the graph, dropped or wrong"),
}


def _check(found: Gate, telling: str) -> None:
    assert found.failures
    assert found.cause is not None
    assert re.search(telling, found.cause), found.cause
    assert found.reason.endswith(found.cause)
    assert "\n" not in found.reason


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_and_is_named(tiny: Known, tmp_path: Path, fault: str) -> None:
    plant, telling = FAULTS[fault]
    _check(_judge(tiny, plant, tmp_path), telling)


def test_a_swap_in_a_graph_with_its_normalization_folded_is_named(tiny: Known, tmp_path: Path) -> None:
    folded = onnx.load(str(onnx_from_torch(_tiny(), tmp_path / "folded.onnx", tiny.preprocess)))
    known = dataclasses.replace(tiny, graph=folded)
    assert not _judge(known, lambda graph: None, tmp_path).failures
    _check(_judge(known, _swap_first_weights, tmp_path), "red and blue are exchanged")


@pytest.mark.parametrize(
    ("changed", "how"),
    [
        ({"resize": None}, "stretched"),
        ({"resize": "letterbox"}, "letterboxed"),
        ({"interpolation": "bicubic"}, "bicub"),
    ],
)
def test_a_wrong_resize_is_named(tiny: Known, tmp_path: Path, changed: dict[str, Any], how: str) -> None:
    telling = f"wrong resize: frames .*{how}.*, the reference's of short side 36 cropped, bilinear .*answers agree"
    _check(_judge(tiny, lambda graph: None, tmp_path, **changed), telling)


def test_a_right_graph_passes_and_nothing_is_tried(
    tiny: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecv.parity.likely_cause", lambda *_: pytest.fail("looked for a cause"))
    found = _judge(tiny, lambda graph: None, tmp_path)
    assert (found.ok, found.cause, found.reason) == (True, None, "")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_faults_stand_out_of_the_noise_of_a_precision(tiny: Known, tmp_path: Path, precision: str) -> None:
    def noisy(graph: Any) -> None:
        """A fault, and weights off by a hundredth."""
        _swap_frames(graph)
        random = np.random.default_rng(0)
        _change(
            graph, lambda array: array.ndim == 2, lambda array: array * (1 + 0.01 * random.normal(size=array.shape))
        )

    _check(_judge(tiny, noisy, tmp_path, precision), "red and blue are exchanged ")


def test_verify_finds_a_bundle_that_resizes_otherwise_than_its_network_was_trained(tiny: Known, tmp_path: Path) -> None:
    wrong = dataclasses.replace(tiny.preprocess, resize=None)
    made = edgecv.convert(_tiny(), tmp_path / "b", preprocess=wrong, samples=tiny.samples, backends=["onnxruntime"])
    assert edgecv.verify(made.path, samples=tiny.samples, reference=tiny.reference).ok  # all frames prepared alike
    found = edgecv.verify(
        made.path, samples=tiny.samples, reference=tiny.reference, reference_preprocess=tiny.preprocess
    )
    _check(
        found.gates["onnx-fp32"], "wrong resize: frames stretched, bilinear, the reference's of short side 36 cropped"
    )
    assert not found.ok


# Each kind of suspect once; those that the tiny network shows too are left to it.
REAL = ("red-blue swap of weights", "transposed layout", "mean forgotten", "dropped layer")


@pytest.mark.parametrize("fault", REAL)
def test_faults_of_a_real_network_on_photos_are_named(squeezenet: Known, tmp_path: Path, fault: str) -> None:
    plant, telling = FAULTS[fault]
    _check(_judge(squeezenet, plant, tmp_path), telling)


def test_a_wrong_resize_of_photos_is_named(squeezenet: Known, tmp_path: Path) -> None:
    _check(_judge(squeezenet, lambda graph: None, tmp_path, resize=None), "wrong resize: frames stretched")


def _cause(candidate: Callable[[Any], Any], size: tuple[int, int] = (6, 5), samples: Any = None) -> str:
    """What is said of a function of frames in place of one that sees more in the middle."""

    def mean(image: Any) -> Any:
        ramp = 1 + np.arange(size[0])[:, None, None] * np.arange(1, size[1] + 1)[:, None] / 10
        return brightness(image * ramp) / ramp.mean()

    reference, other = (NumpySession(what, size=size) for what in (mean, lambda image: candidate(mean(image))))
    frames = np.random.default_rng(0).integers(0, 256, (8, *size, 3)).astype(np.uint8) if samples is None else samples
    preprocess = Preprocess(size=size)
    wanted, got = (run_frames(session, preprocess, list(frames)) for session in (reference, other))
    sides = Sides(reference, other, preprocess, list(frames))
    return worst_gate(wanted, got, "fp32", sides=sides).cause or ""


@pytest.mark.parametrize(
    ("fault", "telling"),
    [
        (lambda logits: 1 / (1 + np.exp(-logits)), "a sigmoid too many behind"),
        (lambda logits: logits / np.linalg.norm(logits, axis=1, keepdims=True), "a L2 normalization too many"),
        (lambda logits: logits[:, [0, 2, 1]], "2 outputs in another place, such as number 1 at 2"),
        (lambda logits: logits * np.nan, "a number inside the graph overflows"),
        (
            lambda logits: np.sqrt(logits),
            "could not be tried: height and width exchanged, which a graph that is not sq",
        ),
    ],
)
def test_faults_behind_the_outputs_are_named(fault: Callable[[Any], Any], telling: str) -> None:
    assert re.search(telling, _cause(fault))


def test_one_sample_says_nothing_of_the_order_of_outputs() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 6, 6, 3)).astype(np.uint8)
    said = _cause(lambda logits: logits[:, ::-1] ** 2, (6, 6), frames)
    assert said.endswith("could not be tried: outputs in another order, which needs two samples")


def test_sides_of_different_sizes_are_compared_as_far_as_they_can_be() -> None:
    small, large = NumpySession(lambda x: brightness(x) + 5, size=(4, 4)), NumpySession(brightness, size=(8, 8))
    frames = list(np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3)).astype(np.uint8))
    own, true = Preprocess(size=(4, 4)), Preprocess(size=(8, 8))
    wanted, got = run_frames(large, true, frames), run_frames(small, own, frames)
    cause = worst_gate(wanted, got, "fp32", sides=Sides(large, small, own, frames, true)).cause
    assert cause is not None
    assert "two sides take frames of different sizes" in cause


def test_a_missing_softmax_is_named() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frames = np.zeros((8, 4, 4, 3), np.uint8)
    session = NumpySession(lambda image: logits[: len(image)], classes=5)
    sides = Sides(session, session, Preprocess(size=(4, 4)), list(frames))
    found = worst_gate({"logits": probabilities}, {"logits": logits}, "fp32", sides=sides)
    assert (
        found.cause
        == "likely cause: a softmax missing behind the variant's outputs (with that undone the answers agree)"
    )

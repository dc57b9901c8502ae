"""Networks and ONNX files of several inputs and outputs to bundles, and what is done with these."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import BundleError, ConversionError, InputError, ParityError
from tests.conftest import require

for library in ("torch", "onnx", "onnxruntime", "openvino"):
    require(library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Bundle, GraphOptions, OnnxOptions, Preprocess, convert_graph  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.converters import graphs  # noqa: E402
from edgecv.converters.graph_sources import Input  # noqa: E402
from edgecv.converters.registry import Converter, converter  # noqa: E402
from edgecv.tensors import Array  # noqa: E402

PREPROCESS = Preprocess(size=(12, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), color="bgr")
OTHER = Preprocess(size=(8, 8), resize="letterbox")
INPUTS: dict[str, Input] = {"left": PREPROCESS, "right": OTHER, "speed": ("float32", (None, 2))}
FLOATS = dict.fromkeys(("a", "b"), ("float32", (None, 4)))


class _Pair(nn.Module):
    """Two images and a vector to a dict of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(14, 5)

    def forward(self, left: Tensor, right: Tensor, speed: Tensor) -> dict[str, Tensor]:
        one, other = (self.features(image).mean((2, 3)) for image in (left, right))
        return {"steering": self.head(torch.cat([one, other, speed], 1)), "distance": (one - other).square().sum(1)}


class _Calls(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def _pair() -> nn.Module:
    torch.manual_seed(0)
    return _Pair().eval()


def _samples(count: int = 20) -> list[dict[str, Array]]:
    generator = np.random.default_rng(0)
    return [
        {
            "left": generator.integers(0, 256, (20, 24, 3), dtype=np.uint8),
            "right": generator.integers(0, 256, (9, 7 + i % 3, 3), dtype=np.uint8),
            "speed": generator.normal(size=2).astype(np.float32),
        }
        for i in range(count)
    ]


def _floats(count: int = 5) -> list[dict[str, Array]]:
    generator = np.random.default_rng(0)
    return [{name: generator.normal(size=4).astype(np.float32) for name in FLOATS} for _ in range(count)]


def _convert(function: Callable[..., Any], out: Path, **changes: Any) -> Bundle:
    arguments: dict[str, Any] = {"inputs": FLOATS, "samples": _floats(), "backends": ["onnxruntime"], **changes}
    return convert_graph(_Calls(function), out, **arguments)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("graphs") / "pair"
    options = GraphOptions(precisions=("fp32", "fp16"), licence="MIT", dataset="roads")
    return convert_graph(_pair(), out, inputs=INPUTS, samples=_samples(), options=options)


def test_frames_and_values_go_in_and_every_backend_answers_as_the_network(bundle: Bundle) -> None:
    assert set(bundle.manifest.variants) == {"onnx-fp32", "openvino-fp32", "onnx-fp16", "openvino-fp16"}
    sample = _samples(1)[0]
    frames = {name: OTHER(sample[name]) if name == "right" else PREPROCESS(sample[name]) for name in ("left", "right")}
    images = [torch.from_numpy(frames[name] / np.float32(255)).permute(2, 0, 1)[None] for name in ("left", "right")]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std))
    with torch.inference_mode():
        wanted = _pair()(((images[0] - mean) / std).flip(1), images[1], torch.from_numpy(sample["speed"][None]))
    for backend in ("onnxruntime", "openvino"):
        with edgecv.load(bundle, backend=backend) as session:
            got = session.run({**{name: frame[None] for name, frame in frames.items()}, "speed": sample["speed"][None]})
        assert list(got) == ["steering", "distance"]
        assert all(np.abs(got[name] - wanted[name].numpy()).max() < 1e-4 for name in got)


def test_the_manifest_says_what_goes_in(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.task, manifest.preprocess, manifest.source.dataset) == ("tensors", None, "roads")
    graph = manifest.graphs["model"]
    assert graph.preprocess == {"left": PREPROCESS, "right": OTHER}
    assert [str(spec) for spec in graph.inputs] == ["uint8[any, 12, 16, 3]", "uint8[any, 8, 8, 3]", "float32[any, 2]"]
    assert [str(spec) for spec in graph.outputs] == ["float32[any, 5]", "float32[any]"]


def test_answers_are_compared_as_numbers(bundle: Bundle) -> None:
    for name, variant in bundle.manifest.variants.items():
        parity = variant.parity
        assert parity is not None
        assert (parity.samples, parity.top1_agreement, parity.rank1_agreement) == (20, None, None)
        assert 0 < parity.max_abs < parity.tolerance, name


def test_the_same_network_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    arguments: Any = {"inputs": INPUTS, "samples": _samples(), "backends": ["onnxruntime"]}
    again = convert_graph(_pair(), tmp_path / "again", options=GraphOptions(name="pair"), **arguments)
    assert again.file("onnx-fp32").read_bytes() == bundle.file("onnx-fp32").read_bytes()
    assert again.manifest.variants["onnx-fp32"] == bundle.manifest.variants["onnx-fp32"]


def test_verify_compares_the_variants_on_the_device(bundle: Bundle) -> None:
    found = edgecv.verify(bundle.path, samples=_samples(6))
    assert found.ok
    assert (found.reference, set(found.gates)) == ("onnx-fp32", set(bundle.manifest.variants) - {"onnx-fp32"})
    with pytest.raises(InputError, match="sample 0, input 'speed': the sample lacks it"):
        edgecv.verify(bundle.path, samples=[{"left": _samples(1)[0]["left"], "right": _samples(1)[0]["right"]}])
    with pytest.raises(InputError, match="leave reference_preprocess out"):
        edgecv.verify(bundle.path, samples=_samples(6), reference_preprocess=PREPROCESS)


def test_it_can_be_profiled(bundle: Bundle) -> None:
    with edgecv.open_session(bundle, backend="openvino") as session:
        assert edgecv.profile(session, duration_s=0.02, batch=2).conditions.inputs["speed"] == ("float32", (2, 2))


def test_the_card_says_how_each_input_is_prepared(bundle: Bundle, tmp_path: Path) -> None:
    assert main(["inspect", str(bundle.path), "--card", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert "with edgecv.load('pair') as session" in card
    assert "* `left`: uint8 RGB frames, resized (straight) to 12 x 16" in card
    assert "* `speed`: none, the array goes in as it is." in card


def test_inspect_shows_each_inputs_frames(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert "preprocess of left: 12x16, resize None" in shown
    assert "preprocess of right: 8x8, resize letterbox" in shown


@pytest.mark.parametrize(
    ("gives", "names"),
    [
        (lambda a, b: a * 2, ["output"]),  # b is left over
        (lambda a, b: (a, a, a > b, a.argmax(1)), ["output0", "output1", "output2", "output3"]),
    ],
)
def test_outputs_have_names_of_their_own_where_none_are_given(
    gives: Callable[..., Any], names: list[str], tmp_path: Path
) -> None:
    made = _convert(gives, tmp_path / "out")
    assert [spec.name for spec in made.manifest.graphs["model"].outputs] == names
    assert [spec.name for spec in made.manifest.graphs["model"].inputs] == ["a", "b"]


def test_outputs_can_be_named(tmp_path: Path) -> None:
    made = _convert(lambda a, b: {"x": a + b, "y": a - b}, tmp_path / "out", outputs=("sum", "difference"))
    with edgecv.load(made) as session:
        item = _floats(1)[0]
        found = session.run({name: values[None] for name, values in item.items()})
    assert np.array_equal(found["difference"][0], item["a"] - item["b"])


def test_a_batch_can_be_fixed(tmp_path: Path) -> None:
    options = GraphOptions(onnx=OnnxOptions(batch=2), precisions=("fp32", "fp16"))
    backends = ["onnxruntime", "openvino"]
    made = _convert(lambda a, b: (a * b).view(2, -1), tmp_path / "out", options=options, backends=backends)
    assert [spec.shape for spec in made.manifest.graphs["model"].inputs] == [(2, 4), (2, 4)]
    assert all(item.parity and item.parity.samples == 5 for item in made.manifest.variants.values())


def test_integers_and_truths_go_in_as_they_are(tmp_path: Path) -> None:
    inputs = {"index": ("int64", (None,)), "mask": ("bool", (None, 3)), "bytes": ("uint8", (None, 2))}
    generator = np.random.default_rng(0)
    samples = [
        {"index": np.int64(i), "mask": generator.random(3) < 0.5, "bytes": generator.integers(0, 256, 2, np.uint8)}
        for i in range(4)
    ]
    made = _convert(
        lambda index, mask, values: (index * 2, torch.where(mask, 1.5, -1.0).sum(1) + values.float().sum(1)),
        tmp_path / "out", inputs=inputs, samples=samples, backends=["onnxruntime", "openvino"],
    )  # fmt: skip
    assert all(item.parity and item.parity.max_abs < 1e-4 for item in made.manifest.variants.values())


def test_a_bundle_may_be_packed_and_left_unchecked(tmp_path: Path) -> None:
    options = GraphOptions(parity=False, pack=True)
    made = convert_graph(_file(tmp_path / "two.onnx"), tmp_path / "out", options=options)
    assert made.manifest.packed
    assert all(variant.parity is None for variant in made.manifest.variants.values())
    with edgecv.load(made) as session:
        found = session.run({"image": np.ones((1, 3, 8, 8), np.float32), "scale": np.ones((1, 1, 1, 1), np.float32)})
    assert found["mean"].tolist() == [[1, 1, 1]]


def test_a_planted_fault_is_refused_and_named_by_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(step: Converter) -> Converter:
        def convert(source: Path, folder: Path) -> Path:
            model = onnx.load(str(source))
            bias = next(item for item in model.graph.initializer if item.name == "network.head.bias")
            bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(1), bias.name))
            onnx.save(model, str(source))
            return step.convert(source, folder)

        return dataclasses.replace(step, convert=convert)

    monkeypatch.setattr(graphs, "converter", lambda backend: spoil(converter(backend)))
    with pytest.raises(ParityError, match="onnx-fp32 does not agree with the network on 20 samples in steering, noth"):
        convert_graph(_pair(), tmp_path / "out", inputs=INPUTS, samples=_samples())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda a, b: a @ b, r"_Calls cannot be called with a \[3, 4\], b \[3, 4\]: mat1 and mat2"),
        (lambda a, b: a.sum(), r"must give tensors \[batch, …\], output is \[\] for a batch of 3"),
        (lambda a, b: {"x": [a]}, "x is list for a batch of 3"),
        (lambda a, b: None, "it gives NoneType"),
    ],
)
def test_a_network_that_cannot_be_converted_says_why(gives: Callable[..., Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        _convert(gives, tmp_path / "out")
    assert not (tmp_path / "out").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no inputs": ({"inputs": None}, "does not say what it takes: give inputs="),
    "no samples": ({"samples": []}, "convert_graph needs samples"),
    "a shape alone": ({"inputs": {"a": (None, 4)}}, "input 'a' is a Preprocess, or a dtype and a shape such as"),
    "a fixed batch": ({"inputs": {"a": ("float32", (1, 4))}}, r"begins with None, the batch, .* got \(1, 4\)"),
    "a free size": ({"inputs": {"a": ("float32", (None, None))}}, "goes on in whole numbers"),
    "an unknown type": ({"inputs": {"a": ("float31", (None, 4))}}, "has dtype 'float31'"),
    "too many outputs": ({"outputs": ("x", "y")}, "outputs is 1 different names, one for each of output"),
    "one name as text": ({"outputs": "x"}, "outputs is a list of names, got 'x'"),
    "an input's name": ({"outputs": ("a",)}, "an output cannot be called 'a': an input is"),
    "no backend": ({"backends": []}, "backends is a list of different names"),
    "a sample lacks an input": ({"samples": [{"a": np.zeros(4, np.float32)}]}, "input 'b': the sample lacks it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    changes, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        _convert(lambda *values: values[0] + values[-1], tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_int8_is_refused() -> None:
    with pytest.raises(InputError, match="convert_graph writes fp32 and fp16, got 'int8'"):
        GraphOptions(precisions=("fp32", "int8"))


def _file(path: Path, batch: int | str = "n") -> Path:
    """``image`` and ``scale`` to their product and the mean of the image."""
    values = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Mul", ["image", "scale"], ["product"]),
        onnx.helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "two",
        [values("image", 1, [batch, 3, 8, 8]), values("scale", 1, [batch, 1, 1, 1])],
        [values("product", 1, [batch, 3, 8, 8]), values("mean", 1, [batch, 3])],
        [onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def _npz(folder: Path, count: int = 5) -> Path:
    """Samples for ``_file``: some with a batch of 1, some without."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for index in range(count):
        item = {"image": generator.normal(size=(3, 8, 8)), "scale": generator.normal(size=(1, 1, 1))}
        arrays: Any = {name: value.astype(np.float32) for name, value in item.items()}
        np.savez(folder / f"{index}.npz", **({k: v[None] for k, v in arrays.items()} if index % 2 else arrays))
    return folder


def test_a_file_of_two_inputs_becomes_a_bundle_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = str(_npz(tmp_path / "samples")), str(tmp_path / "out")
    argv = ["convert", str(_file(tmp_path / "two.onnx", 1)), "--out", out, "--precisions", "fp32,fp16"]
    assert main([*argv, "--samples", samples]) == 0
    assert "openvino-fp16" in capsys.readouterr().out
    graph = Bundle.load(out).manifest.graphs["model"]
    assert [str(spec) for spec in graph.inputs] == ["float32[any, 3, 8, 8]", "float32[any, 1, 1, 1]"]  # freed
    assert main(["verify", out, "--samples", samples, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 5
    assert main(["verify", out, "--samples", samples, "--bisect", "--variant", "openvino-fp16"]) == 0
    assert main(["profile", out, "--duration", "0.02"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --samples FOLDER of .npz files, an array for each input in each"),
        (["--samples", "lacking"], "sample 0, input 'scale': the sample lacks it, it has 'image'"),
        (["--samples", "empty"], "holds no .npz file"),
        (["--no-parity", "--labels", "names.txt"], "--labels is not for --task tensors"),
        (["--no-parity", "--precisions", "int8"], "convert_graph writes fp32 and fp16, got 'int8'"),
        (["--no-parity", "--preprocess", "digits"], r"takes 2 inputs \(image, scale\): name the one"),
    ],
)
def test_wrong_usage_for_such_a_file_is_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("lacking").mkdir()
    np.savez("lacking/0.npz", image=np.zeros((3, 8, 8), np.float32))
    assert main(["convert", str(_file(tmp_path / "two.onnx")), "--out", "out", *argv]) == 2
    complaint = capsys.readouterr().err
    assert len(complaint.splitlines()) == 1
    assert re.search(message, complaint)
    assert not Path("out").exists()


def test_a_files_input_can_be_made_to_take_frames(tmp_path: Path) -> None:
    preprocess = dataclasses.replace(PREPROCESS, size=(8, 8))
    samples = [{"image": item["left"], "scale": item["speed"][:1].reshape(1, 1, 1)} for item in _samples(6)]
    made = convert_graph(_file(tmp_path / "two.onnx"), tmp_path / "out", inputs={"image": preprocess}, samples=samples)
    graph = made.manifest.graphs["model"]
    assert [str(spec) for spec in graph.inputs] == ["uint8[any, 8, 8, 3]", "float32[any, 1, 1, 1]"]
    assert graph.preprocess == {"image": preprocess}
    assert edgecv.verify(made.path, samples=samples).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"photo": PREPROCESS}}, "has no input 'photo', it takes image, scale"),
        ({"inputs": {"scale": ("float32", (None, 1))}}, "says itself what 'scale' is: give a Preprocess"),
        ({"inputs": {"image": PREPROCESS}}, r"'image' is float\[any, 3, 8, 8\]; give a Preprocess of size \(8, 8\)"),
        ({"outputs": ("x", "y")}, "names its outputs itself: leave outputs= out"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        convert_graph(_file(tmp_path / "two.onnx"), tmp_path / "out", samples=_floats(), **changes)


@pytest.mark.parametrize("batch", [1, "n"])
def test_a_files_batch_can_be_fixed(batch: int | str, tmp_path: Path) -> None:
    arguments: Any = {"backends": ["onnxruntime"], "options": GraphOptions(onnx=OnnxOptions(batch=2), parity=False)}
    file = _file(tmp_path / "two.onnx", batch)
    if batch == 1:
        with pytest.raises(ConversionError, match="batch is fixed to 1, 2 was asked for"):
            convert_graph(file, tmp_path / "out", **arguments)
        return
    made = convert_graph(file, tmp_path / "out", **arguments)
    assert [spec.shape for spec in made.manifest.graphs["model"].outputs] == [(2, 3, 8, 8), (2, 3)]


def test_a_quantized_file_is_refused(tmp_path: Path) -> None:
    model = onnx.load(str(_file(tmp_path / "two.onnx")))
    model.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["unused"]))
    onnx.save(model, str(tmp_path / "quantized.onnx"))
    with pytest.raises(InputError, match=r"takes a float graph, .*quantized\.onnx is quantized"):
        convert_graph(tmp_path / "quantized.onnx", tmp_path / "out", samples=_floats())


def test_an_input_without_a_batch_is_refused(tmp_path: Path) -> None:
    model = onnx.load(str(_file(tmp_path / "two.onnx")))
    del model.graph.input[1].type.tensor_type.shape.dim[:]
    onnx.save(model, str(tmp_path / "scalar.onnx"))
    with pytest.raises(InputError, match=r"the batch as its first dimension, 'scale' of .*scalar\.onnx has none"):
        convert_graph(tmp_path / "scalar.onnx", tmp_path / "out", samples=_floats())


def _edited(bundle: Bundle, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads((bundle.path / "manifest.json").read_text())
    change(data)
    data["files"] = {}
    data["variants"] = {"onnx-fp32": data["variants"]["onnx-fp32"]}
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps(data))
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(task="classification"), "a manifest of the task 'classification' has a preprocess"),
        (
            lambda data: data.update(preprocess=data["graphs"]["model"]["preprocess"]["left"]),
            "a manifest of the task 'tensors' has preprocess of single inputs alone",
        ),
        (
            lambda data: data["graphs"]["model"]["preprocess"].update(up=data["graphs"]["model"]["preprocess"]["left"]),
            "preprocess names 'up', which is no input of the graph",
        ),
    ],
)
def test_a_manifest_whose_preprocessing_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.load(_edited(bundle, tmp_path / "out", change))


def test_what_wants_an_image_says_what_such_a_bundle_is(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("opencv")
    import cv2

    photo = str(tmp_path / "photo.png")
    cv2.imwrite(photo, np.zeros((8, 8, 3), np.uint8))
    assert main(["run", str(bundle.path), photo]) == 2
    assert "gives tensors, which say nothing of images: open it with edgecv.load" in capsys.readouterr().err

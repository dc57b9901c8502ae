"""From a network to a bundle: the gate, what a fault leaves behind, and networks that are not ours."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import BackendUnavailable, ConversionError, InputError, ParityError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "openvino"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import openvino  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Bundle, ConvertOptions, OnnxOptions, Preprocess, models  # noqa: E402
from edgecv.converters import converting  # noqa: E402
from edgecv.converters.registry import Converter, converter  # noqa: E402
from edgecv.data import open_frames  # noqa: E402
from edgecv.manifest import Accuracy  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SAMPLES = [
    np.random.default_rng(i).integers(0, 256, (20 + i, 24, 3)).astype(np.uint8) // np.array([1, 2, 3], np.uint8)
    for i in range(6)
]


class Net(nn.Module):
    """A small network of someone else's; ``deep`` counts its layers."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.norm(self.conv(image)))
        pooled = nn.functional.adaptive_avg_pool2d(hidden, (2, 2))
        logits: torch.Tensor = self.head(pooled.flatten(1))
        return logits


def _network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Net(classes)


def _convert(out: Path, network: nn.Module | None = None, **settings: Any) -> Bundle:
    settings = {"preprocess": PREPROCESS, "samples": SAMPLES, **settings}
    return edgecv.convert(network or _network(), out, **settings)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One conversion that the tests look at."""
    accuracy = Accuracy(0.5, 1.0, 6, (0.1, 0.9))
    options = ConvertOptions(name="three", dataset="noise", accuracy=accuracy)
    return _convert(tmp_path_factory.mktemp("convert") / "bundle", labels=("a", "b", "c"), options=options)


def test_the_manifest_says_what_was_done(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.task, manifest.preprocess) == ("three", "classification", PREPROCESS)
    assert bundle.labels == ("a", "b", "c")
    assert list(manifest.variants) == ["onnx-fp32", "openvino-fp32"]
    for variant in manifest.variants.values():
        assert variant.parity is not None
        assert variant.parity.samples == len(SAMPLES)
        assert variant.parity.max_abs < 1e-4
        assert variant.parity.top1_agreement == 1
    assert manifest.source.recipe is None
    assert (manifest.source.dataset, manifest.source.edgecv) == ("noise", edgecv.__version__)
    graph = manifest.graphs["model"]
    assert [str(spec) for spec in (*graph.inputs, *graph.outputs)] == ["uint8[any, 16, 16, 3]", "float32[any, 3]"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_answers_as_the_network(bundle: Bundle, backend: str) -> None:
    frames = PREPROCESS.batch(SAMPLES)
    with TorchSession.from_network(_network(), PREPROCESS) as reference:
        wanted = reference.run({"image": frames})["logits"]
    with edgecv.open_session(bundle, backend=backend) as session:
        for count in (1, 2, 6):
            got = session.run({"image": frames[:count]})["logits"]
            assert np.abs(got - wanted[:count]).max() < 1e-4


def test_other_tools_open_the_files(bundle: Bundle) -> None:
    onnx.checker.check_model(str(bundle.file("onnx-fp32")), full_check=True)
    model = openvino.Core().read_model(str(bundle.file("openvino-fp32")))
    assert model.input("image").get_partial_shape().to_string() == "[?,16,16,3]"


def test_converting_again_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    again = _convert(tmp_path / "bundle", labels=("a", "b", "c"), options=_options(bundle))
    for name in bundle.manifest.files:
        assert (again.path / name).read_bytes() == (bundle.path / name).read_bytes(), name
    assert again.sha256 == bundle.sha256


def _options(bundle: Bundle) -> ConvertOptions:
    source = bundle.manifest.source
    return ConvertOptions(name="three", dataset=source.dataset, accuracy=source.accuracy)


def test_verify_finds_nothing_wrong(bundle: Bundle) -> None:
    found = edgecv.verify(bundle.path, samples=SAMPLES)
    assert found.ok
    assert (found.reference, set(found.gates), found.skipped) == ("onnx-fp32", {"openvino-fp32"}, {})
    with TorchSession.from_network(_network(), PREPROCESS) as reference:
        assert set(edgecv.verify(bundle.path, samples=SAMPLES, reference=reference).gates) == {
            "onnx-fp32",
            "openvino-fp32",
        }
    torch.manual_seed(1)
    with TorchSession.from_network(Net(), PREPROCESS) as other:
        assert not edgecv.verify(bundle.path, samples=SAMPLES, reference=other).ok


# What goes wrong in practice, planted between the graph and the file that a backend gets.
def _wrong_mean(graph: Any) -> None:
    _constant(graph, lambda value: value + 0.2 if value.shape == (1, 3, 1, 1) and value.min() < 0 else value)


def _red_blue_swap(graph: Any) -> None:
    weights = next(item for item in graph.initializer if item.dims[1:] == [3, 3, 3])
    array = onnx.numpy_helper.to_array(weights)[:, ::-1].copy()
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))


def _transposed(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Transpose")
    node.attribute[0].ints[:] = [0, 3, 2, 1]


def _lost_weights(graph: Any) -> None:
    _constant(graph, lambda value: value * 0 if value.ndim == 2 else value)


def _rounded_weights(graph: Any) -> None:
    """As an int4 rounding would do that nobody asked for."""
    _constant(graph, lambda value: np.round(value * 7 / np.abs(value).max()) / 7 * np.abs(value).max())


def _dropped_activation(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Sigmoid")
    node.op_type = "Identity"


def _constant(graph: Any, change: Callable[[Any], Any]) -> None:
    for item in graph.initializer:
        array = onnx.numpy_helper.to_array(item)
        if array.dtype == np.float32:
            item.CopyFrom(onnx.numpy_helper.from_array(np.asarray(change(array), np.float32), item.name))


FAULTS = [_wrong_mean, _red_blue_swap, _transposed, _lost_weights, _rounded_weights, _dropped_activation]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], None]
) -> None:
    def spoil(step: Converter) -> Converter:
        def convert(source: Path, folder: Path) -> Path:
            model = onnx.load(str(source))
            before = model.SerializeToString()
            fault(model.graph)
            assert model.SerializeToString() != before
            onnx.save(model, str(source))
            return step.convert(source, folder)

        return dataclasses.replace(step, convert=convert)

    monkeypatch.setattr(converting, "converter", lambda backend: spoil(converter(backend)))
    with pytest.raises(ParityError, match="onnx-fp32 does not agree with the network on 6 images") as raised:
        _convert(tmp_path / "bundle")
    assert "\n" not in str(raised.value)
    assert raised.value.report.failures
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, folder: Path) -> Path:
        (folder / "half").write_text("x")
        raise ConversionError("node 'x': no")

    monkeypatch.setattr(converting, "converter", lambda backend: Converter("onnx", {}, refuse))
    with pytest.raises(ConversionError, match="no"):
        _convert(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from tests.test_convert import _convert
_convert(Path(sys.argv[1]), progress=lambda stage, done, total: print(stage, done, flush=True))
"""


@pytest.mark.parametrize("line", ["export to ONNX 1", "convert and compare 1", "convert and compare 2"])
def test_a_killed_conversion_leaves_no_bundle_or_a_whole_one(tmp_path: Path, line: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "bundle")]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for told in process.stdout:
            if told.strip() == line:
                process.send_signal(signal.SIGKILL)
                break
    if (tmp_path / "bundle").exists():
        Bundle.load(tmp_path / "bundle")
    else:
        _convert(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_occupied_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    started: list[str] = []
    with pytest.raises(InputError, match="exists and is not empty"):
        _convert(tmp_path, progress=lambda stage, done, total: started.append(stage))
    assert not started
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_fixed_batch_is_in_the_manifest_and_works(tmp_path: Path) -> None:
    made = _convert(tmp_path / "bundle", options=ConvertOptions(onnx=OnnxOptions(batch=4)))
    assert made.manifest.graphs["model"].inputs[0].shape == (4, 16, 16, 3)
    with edgecv.load(made) as classifier:
        assert len(classifier(SAMPLES)) == 6


def test_an_embedding_becomes_an_embedder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.create("embedding", backbone="resnet20", dims=6).eval()
    made = _convert(tmp_path / "bundle", network, preprocess=Preprocess(size=(32, 32)))
    assert made.manifest.task == "embedding"
    assert made.manifest.graphs["model"].outputs[0].name == "embedding"
    assert all(variant.parity and variant.parity.top1_agreement is None for variant in made.manifest.variants.values())
    answers = []
    for backend in ("onnxruntime", "openvino"):
        with edgecv.load(made, backend=backend) as embedder:
            assert isinstance(embedder, edgecv.Embedder)
            answers.append(embedder(SAMPLES))
            gallery = edgecv.Gallery(embedder)
            gallery.enrol("first", SAMPLES[0])
            gallery.enrol("last", SAMPLES[5])
            assert gallery.search(SAMPLES[5])[0].label == "last"
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
    assert edgecv.verify(made.path, samples=SAMPLES).ok
    with pytest.raises(InputError, match="an embedding has no labels"):
        _convert(tmp_path / "other", network, labels=["a"] * 6, preprocess=Preprocess(size=(32, 32)))


def test_any_network_may_be_called_an_embedding(tmp_path: Path) -> None:
    made = _convert(tmp_path / "bundle", options=ConvertOptions(task="embedding"), backends=["onnxruntime"])
    with edgecv.load(made) as embedder:
        assert np.allclose(np.linalg.norm(embedder(SAMPLES), axis=1), 1, atol=1e-6)
    with pytest.raises(InputError, match="task is 'classification' or 'embedding'"):
        ConvertOptions(task="telepathy")  # type: ignore[arg-type]


def test_parity_may_be_left_out_and_the_manifest_says_so(tmp_path: Path) -> None:
    made = _convert(tmp_path / "b", samples=None, options=ConvertOptions(parity=False), backends=["onnxruntime"])
    assert made.manifest.variants["onnx-fp32"].parity is None


@pytest.mark.parametrize(
    ("settings", "error", "telling"),
    [
        ({"samples": None}, InputError, "convert needs samples"),
        ({"samples": []}, InputError, "convert needs samples"),
        ({"samples": [np.zeros((4, 4), np.uint8)]}, InputError, "height, width, 3"),
        ({"backends": []}, InputError, "at least one"),
        ({"backends": "openvino"}, InputError, "a list of different names"),
        ({"backends": ["openvino", "openvino"]}, InputError, "different names"),
        ({"backends": ["openvin"]}, InputError, "did you mean 'openvino'"),
        ({"labels": ("a", "b")}, InputError, "2 were given for 3 classes"),
        ({"labels": "abc"}, InputError, "one name per class"),
        ({"labels": ("a", "b\n", "c")}, InputError, "one line of text"),
        ({"labels": ("a", " ", "c")}, InputError, "one line of text"),
        ({"network": nn.Conv2d(3, 3, 1)}, ConversionError, r"gives float logits \[batch, classes\]"),
        ({"network": nn.Linear(3, 3)}, ConversionError, "does not take images of 16x16|gives float logits"),
        ({"network": nn.Identity()}, ConversionError, "gives float logits"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], telling: str
) -> None:
    with pytest.raises(error, match=telling) as raised:
        _convert(tmp_path / "bundle", **settings)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_an_activation_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match=r"options.activation must be one of 'softmax', 'sigmoid', 'none'"):
        ConvertOptions(activation="hardmax")  # type: ignore[arg-type]


def test_a_backend_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(backend: str) -> Converter:
        raise BackendUnavailable(f"{backend} needs a library")

    monkeypatch.setattr(converting, "converter", missing)
    with pytest.raises(BackendUnavailable):
        _convert(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_a_missing_library_is_named_before_any_work(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(converting, "source_of", lambda *_: pytest.fail("work began"))
    with pytest.raises(BackendUnavailable, match=f"converting for '{backend}' needs the Python package"):
        _convert(tmp_path / "out", backends=["onnxruntime", backend])
    assert not (tmp_path / "out").exists()


def test_published_weights_on_real_photos(data: Path, tmp_path: Path) -> None:
    """SqueezeNet with torchvision's weights: every backend agrees on photos, and sees what is on them."""
    require("opencv")
    network = models.create("squeezenet1_1")
    weights = torch.load(data / "weights" / "squeezenet" / "squeezenet1_1.pth", weights_only=True)
    network.load_state_dict(weights, strict=True)
    preprocess = Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    photos = open_frames(data / "imagenet" / "images", 20)
    made = edgecv.convert(network, tmp_path / "bundle", preprocess=preprocess, samples=photos)
    for variant in made.manifest.variants.values():
        assert variant.parity is not None
        assert variant.parity.top1_agreement == 1
        assert variant.parity.cosine > 0.9999
    with edgecv.load(made) as classifier:
        assert classifier(data / "imagenet" / "images" / "n01440764.jpg", top=1)[0].index == 0  # a tench

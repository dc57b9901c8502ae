"""Trackers as bundles: two graphs, every variant compared with the network, and a tracker out of them without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgecv
from edgecv.errors import BundleError, ConversionError, InputError, ParityError
from tests.conftest import require

for _name in ("torch", "onnx", "onnxruntime", "openvino", "opencv"):
    require(_name)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402

from edgecv.converters import trackers  # noqa: E402
from edgecv.converters.onnx_from_torch import OnnxOptions  # noqa: E402
from edgecv.converters.torch_from_nanotrack import torch_from_nanotrack  # noqa: E402
from edgecv.converters.trackers import TrackerOptions, convert_tracker  # noqa: E402
from edgecv.models.recipe import recipe_of  # noqa: E402
from edgecv.models.siamese import SearchBranch, TemplateBranch, create_tracker  # noqa: E402
from edgecv.models.siamese.branches import Siamese  # noqa: E402
from edgecv.models.weights import read_weights  # noqa: E402
from edgecv.pipelines.tracking import MultiTracker, Tracker, open_sequences  # noqa: E402
from edgecv.pipelines.tracking.boxes import overlaps  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402
from edgecv.runtimes.session import SessionOptions  # noqa: E402
from tests.test_structure import _run_without  # noqa: E402
from tests.tiny_tracker import SETTINGS, Tiny  # noqa: E402
from tests.tracking import scene  # noqa: E402

VARIANTS = ("onnx-fp32", "openvino-fp32", "onnx-fp16", "openvino-fp16")
BOX = (100.0, 80.0, 40.0, 30.0)
SAMPLES = [(scene((100 + 9 * step, 80, 40, 30)), (100.0 + 9 * step, 80.0, 40.0, 30.0)) for step in range(6)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edgecv.Bundle:
    """``Tiny`` for both backends, in both precisions."""
    out = tmp_path_factory.mktemp("tracker") / "tiny"
    return convert_tracker(Tiny(), out, samples=SAMPLES, options=TrackerOptions(precisions=("fp32", "fp16")))


@pytest.fixture(scope="module")
def nano(data: Path, tmp_path_factory: pytest.TempPathFactory) -> edgecv.Bundle:
    """NanoTrack v1 with the published weights."""
    sequences = open_sequences(data / "tracking")
    network = torch_from_nanotrack(*_pair(data, "v1"))
    return convert_tracker(network, tmp_path_factory.mktemp("nano") / "v1", samples=sequences)


@pytest.fixture
def exported(bundle: edgecv.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported, it is ``Tiny``'s graphs, as they are already."""

    def copy(branch: object, inputs: dict[str, object], outputs: object, path: Path, **options: object) -> Path:
        shutil.copyfile(bundle.file("onnx-fp32", list(inputs)[-1]), path)
        return path

    monkeypatch.setattr(trackers, "write_graph", copy)


def _pair(data: Path, version: str) -> tuple[Path, Path]:
    folder = data / "weights" / "nanotrack"
    return folder / f"nanotrack{version}_backbone.onnx", folder / f"nanotrack{version}_head.onnx"


def _on_torch(network: Siamese) -> Tracker:
    parts = (TemplateBranch(network), SearchBranch(network))
    template, search = (TorchSession(part, part.inputs, part.outputs, SessionOptions(threads=1)) for part in parts)
    return Tracker(template, search, network.settings)


def _boxes(tracker: Tracker, frames: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> np.ndarray[
    tuple[int, ...], np.dtype[np.float64]
]:  # fmt: skip
    tracker.init(frames[0], BOX)
    return np.array([tracker.update(frame).box for frame in frames[1:]])


def test_a_bundle_holds_two_graphs_of_every_variant(bundle: edgecv.Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.format, manifest.task, manifest.labels) == (1, "tracking", None)
    assert tuple(manifest.variants) == VARIANTS
    template, search = (manifest.graphs[name] for name in ("template", "search"))
    assert [str(spec) for spec in template.outputs] == ["float32[any, 6, 4, 4]"]
    assert [spec.name for spec in search.inputs] == ["features", "search"]
    assert {spec.name: spec.shape for spec in search.outputs} == {"score": (None, 2, 8, 8), "box": (None, 4, 8, 8)}
    assert manifest.preprocess is not None
    assert manifest.preprocess.size == (31, 31)
    assert manifest.preprocess.color == "bgr"


def test_every_variant_says_how_far_it_is_from_the_network(bundle: edgecv.Bundle) -> None:
    for name, variant in bundle.manifest.variants.items():
        parity = variant.parity
        assert parity is not None
        assert parity.samples == len(SAMPLES)
        assert parity.max_abs <= parity.tolerance
        assert parity.mean_iou is not None
        assert parity.mean_iou > (0.999 if name.endswith("fp32") else 0.98)


def test_the_graphs_are_valid_onnx_of_opset_18_with_a_free_batch(bundle: edgecv.Bundle) -> None:
    for graph, inputs in (("template", ["template"]), ("search", ["features", "search"])):
        model = onnx.load(bundle.file("onnx-fp32", graph))
        onnx.checker.check_model(model, full_check=True)
        assert [item.version for item in model.opset_import if not item.domain] == [18]
        assert [value.name for value in model.graph.input] == inputs
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} == {"batch"}
        assert {item.key: item.value for item in model.metadata_props}["task"] == "tracking"


def test_the_same_network_gives_the_same_bytes(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    options = TrackerOptions(name="tiny", precisions=("fp32", "fp16"))
    again = convert_tracker(Tiny(), tmp_path / "again", samples=SAMPLES, options=options)
    assert again.sha256 == bundle.sha256


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_bundle_tracks_as_the_network_does(bundle: edgecv.Bundle, variant: str) -> None:
    frames = [scene((100 + 2 * step, 80 + step, 40, 30)) for step in range(12)]
    backend = bundle.manifest.variants[variant].backend
    with edgecv.load(bundle, backend=backend, variant=variant) as tracker:
        assert isinstance(tracker, edgecv.Tracker)
        assert tracker.settings == SETTINGS
        assert {session.bundle_sha256 for session in tracker.sessions} == {bundle.sha256}
        assert overlaps(_boxes(tracker, frames), _boxes(_on_torch(Tiny()), frames)).mean() > 0.95


def test_closing_the_tracker_closes_both_sessions(bundle: edgecv.Bundle) -> None:
    with edgecv.load(bundle) as tracker:
        tracker.init(*SAMPLES[0])
    with pytest.raises(InputError, match="closed"):
        tracker.init(*SAMPLES[0])


def test_a_bundle_is_loaded_and_tracks_without_torch(bundle: edgecv.Bundle) -> None:
    code = f"""
import edgecv, numpy as np
frame = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
with edgecv.load({str(bundle.path)!r}) as tracker:
    tracker.init(frame, (20, 20, 30, 30))
    print(tracker.update(frame).status)
"""
    assert _run_without(("torch", "onnx", "safetensors", "openvino"), code) in ("tracking", "unsure", "lost")


def _changed(bundle: edgecv.Bundle, tmp_path: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """A copy of the bundle with another manifest."""
    folder = tmp_path / "changed"
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"exemplar": 33}, "crops of 33x33"),
        ({"search": 127}, "crops of 127x127"),
        ({"head": "corners"}, "must be one of 'points'"),
        ({"windows": 1}, "did you mean 'window'"),
    ],
)
def test_settings_that_are_not_the_graphs_are_refused(
    bundle: edgecv.Bundle, tmp_path: Path, settings: dict[str, object], telling: str
) -> None:
    def change(manifest: dict[str, object]) -> None:
        manifest["postprocess"] = {"head": "points", "exemplar": 31, "search": 63, **settings}

    with pytest.raises(BundleError, match=telling):
        edgecv.load(_changed(bundle, tmp_path, change))


def test_a_task_needs_its_own_graphs(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    def change(manifest: dict[str, object]) -> None:
        manifest["task"] = "classification"

    with pytest.raises(BundleError, match="classification needs one graph, the bundle has template and search"):
        edgecv.load(_changed(bundle, tmp_path, change))


@pytest.mark.usefixtures("exported")
def test_the_settings_may_be_others_than_the_network_s_own(tmp_path: Path) -> None:
    settings = replace(SETTINGS, window=0.2, confidence=None)
    options = TrackerOptions(settings=settings, parity=False)
    made = convert_tracker(Tiny(), tmp_path / "out", backends=["onnxruntime"], options=options)
    assert made.manifest.variants["onnx-fp32"].parity is None
    assert edgecv.load(made).settings == settings


@pytest.mark.usefixtures("exported")
def test_a_bundle_is_packed_where_it_is_converted(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    options = TrackerOptions(pack=True, parity=False)
    made = convert_tracker(Tiny(), tmp_path / "out", backends=["onnxruntime"], options=options)
    assert set(made.manifest.packed) == {f"onnx-fp32/{graph}.onnx.packed" for graph in ("template", "search")}
    with edgecv.load(made) as packed, edgecv.load(bundle, variant="onnx-fp32") as plain:
        frames = [frame for frame, _ in SAMPLES]
        assert np.array_equal(_boxes(packed, frames), _boxes(plain, frames))


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"settings": replace(SETTINGS, stride=16)}, "settings say stride 16, the network has 8"),
        ({"precisions": ("int4",)}, "precisions are 'fp32', 'fp16', 'int8', got 'int4'"),
        ({"precisions": ("fp32", "fp32")}, "precisions is a list of different names"),
        ({"onnx": OnnxOptions(batch=1)}, "a tracker's batch is free"),
        ({"limit": 0}, "limit is 1 target or more"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        convert_tracker(Tiny(), tmp_path / "out", samples=SAMPLES, options=TrackerOptions(**options))  # type: ignore[arg-type]  # wrong on purpose
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("samples", [None, [], [(scene(BOX), (0, 0, 0, 0))]])
def test_samples_are_needed_and_have_boxes(tmp_path: Path, samples: list[object] | None) -> None:
    with pytest.raises(InputError, match=r"give sequences|needs samples|at least 1 pixel"):
        convert_tracker(Tiny(), tmp_path / "out", samples=samples)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.usefixtures("exported")
def test_a_variant_with_other_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"onnx-fp32 does not agree with the network on 6 targets.*mean IoU"):
        convert_tracker(Tiny(scale=2), tmp_path / "out", samples=SAMPLES)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_published_pair_s_weights_give_its_answers(data: Path, version: str) -> None:
    ours, other = torch_from_nanotrack(*_pair(data, version)), create_tracker(f"nanotrack_{version}").eval()
    other.load_state_dict(read_weights(data / f"weights/nanotrack/nanotrack{version}.safetensors"))
    image = torch.rand(1, 3, 255, 255, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        found, wanted = (network(image[..., :127, :127], image) for network in (ours, other))
    assert all((mine - theirs).abs().max() < 1e-4 for mine, theirs in zip(found, wanted, strict=True))
    assert recipe_of(ours) == recipe_of(other)


def test_what_is_no_published_pair_is_refused(data: Path, bundle: edgecv.Bundle, tmp_path: Path) -> None:
    backbone, head = _pair(data, "v1")
    with pytest.raises(ConversionError, match="have 36 and 36 layers, not those of NanoTrack"):
        torch_from_nanotrack(backbone, backbone)
    with pytest.raises(InputError, match="does not exist"):
        torch_from_nanotrack(backbone, tmp_path / "head.onnx")
    (tmp_path / "head.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot read"):
        torch_from_nanotrack(backbone, tmp_path / "head.onnx")
    model = onnx.load(head)
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Tanh"
    onnx.save(model, tmp_path / "head.onnx")
    with pytest.raises(ConversionError, match="layers but other answers: they differ by"):
        torch_from_nanotrack(backbone, tmp_path / "head.onnx")


def test_torch_onnxruntime_and_openvino_give_the_same_boxes(data: Path, nano: edgecv.Bundle) -> None:
    sequence = open_sequences(data / "tracking" / "vot15_car1")[0]
    frames = [sequence[index] for index in range(60)]
    ways = {"torch": _on_torch(torch_from_nanotrack(*_pair(data, "v1")))}
    for backend in ("onnxruntime", "openvino"):
        ways[backend] = edgecv.load(nano, backend=backend, threads=1)
    boxes = {}
    for name, tracker in ways.items():
        tracker.init(frames[0], sequence.first_box)
        boxes[name] = np.array([tracker.update(frame).box for frame in frames[1:]])
    for first, second in (("torch", "onnxruntime"), ("torch", "openvino"), ("onnxruntime", "openvino")):
        assert overlaps(boxes[first], boxes[second]).mean() >= 0.99, (first, second)
    assert overlaps(boxes["torch"], sequence.boxes[1:60]).mean() > 0.6


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp32"])
def test_several_targets_share_the_batch_and_change_nothing(data: Path, nano: edgecv.Bundle, variant: str) -> None:
    sequence = open_sequences(data / "tracking" / "vot15_car1")[0]
    boxes = [sequence.first_box, (20.0, 20.0, 60.0, 40.0), (200.0, 40.0, 30.0, 50.0)]
    backend = nano.manifest.variants[variant].backend
    trackers = [edgecv.load(nano, backend=backend, threads=1) for _ in range(4)]
    several = MultiTracker(trackers[3])
    for tracker, box in zip(trackers, boxes, strict=False):
        tracker.init(sequence[0], box)
        several.add(sequence[0], box)
    for index in range(1, 20):
        together = list(several.update(sequence[index]).values())
        alone = [tracker.update(sequence[index]) for tracker in trackers[:3]]
        assert [state.status for state in together] == [state.status for state in alone]
        pairs = zip(together, alone, strict=True)
        assert max(np.abs(np.subtract(one.box, other.box)).max() for one, other in pairs) < 1e-4

"""``verify`` and ``profile`` of trackers' bundles: what is compared, what is timed, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgecv
from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

for _name in ("torch", "onnx", "onnxruntime", "openvino", "opencv"):
    require(_name)

import cv2  # noqa: E402  (after the check that they are there)
import onnx  # noqa: E402
import onnx.numpy_helper  # noqa: E402

from edgecv import tracker_parity  # noqa: E402
from edgecv.bundle import write_manifest  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.converters.trackers import TrackerOptions, convert_tracker  # noqa: E402
from edgecv.models import save_checkpoint  # noqa: E402
from edgecv.models.siamese.running import tracker_of  # noqa: E402
from edgecv.pipelines.tracking import Tracker, TrackSequence, open_sequences  # noqa: E402
from edgecv.pipelines.tracking.samples import cut_crops  # noqa: E402
from edgecv.profiling import profile_tracker  # noqa: E402
from edgecv.tracker_parity import Answers, gate_tracker, verify_tracker  # noqa: E402
from tests import tracking  # noqa: E402
from tests.test_structure import _run_without  # noqa: E402
from tests.tiny_tracker import SETTINGS, Tiny  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
SAMPLES = [(tracking.scene((90 + 9 * i, 80, 40, 30)), (90.0 + 9 * i, 80.0, 40.0, 30.0)) for i in range(6)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> edgecv.Bundle:
    """``Tiny`` for both backends in fp32, and in fp16, as nobody compared it."""
    out, options = tmp_path_factory.mktemp("verify") / "tiny", TrackerOptions(precisions=("fp32", "fp16"), parity=False)
    return convert_tracker(Tiny(), out, options=options)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving square in two sequences, of five frames and of one."""
    root = tmp_path_factory.mktemp("sequences")
    for name, count in (("long", 5), ("short", 1)):
        (root / name / "img").mkdir(parents=True)
        boxes = [(100 + 2 * index, 80, 40, 30) for index in range(count)]
        for index, box in enumerate(boxes):
            cv2.imwrite(str(root / name / "img" / f"{index + 1:04d}.png"), tracking.scene(box))
        (root / name / "groundtruth.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in boxes))
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; returns status, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        return (status, *capsys.readouterr())

    return call


def _wider(bundle: edgecv.Bundle, folder: Path, variant: str) -> edgecv.Bundle:
    """A copy in which the search graph of one variant finds targets one and a half times as large."""
    shutil.copytree(bundle.path, folder)
    file = folder / bundle.manifest.variants[variant].graphs["search"]
    model = onnx.load(str(file))
    sides = next(item for item in model.graph.initializer if list(item.dims) == [1, 4, 1, 1])
    values = onnx.numpy_helper.to_array(sides)
    sides.CopyFrom(onnx.numpy_helper.from_array(values * values.dtype.type(1.5), sides.name))
    file.write_bytes(model.SerializeToString())
    (folder / "manifest.json").unlink()
    write_manifest(folder, replace(bundle.manifest, files={}))
    return edgecv.Bundle.load(folder)


def test_every_variant_is_compared_with_the_first_in_fp32(bundle: edgecv.Bundle) -> None:
    found = verify_tracker(bundle.path, samples=SAMPLES, threads=1)
    assert (found.ok, found.reference, found.samples) == (True, "onnx-fp32", len(SAMPLES))
    assert list(found.gates) == ["openvino-fp32", "onnx-fp16", "openvino-fp16"]
    for name, gate in found.gates.items():
        assert (gate.parity.mean_iou or 0) > (0.999 if name.endswith("fp32") else 0.98)
    assert found.bundle_sha256 == bundle.sha256


def test_the_network_may_be_the_reference(bundle: edgecv.Bundle) -> None:
    found = verify_tracker(bundle, samples=SAMPLES, reference=tracker_of(Tiny()).sessions, limit=2)
    assert (found.ok, found.reference, found.samples) == (True, "the given sessions", 2)
    assert list(found.gates) == list(bundle.manifest.variants)
    assert not verify_tracker(bundle, samples=SAMPLES, reference=tracker_of(Tiny(scale=1.5)).sessions).ok


def test_a_variant_that_finds_other_boxes_is_named(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    found = verify_tracker(_wider(bundle, tmp_path / "wider", "onnx-fp16"), samples=SAMPLES)
    assert [name for name, gate in found.gates.items() if not gate.ok] == ["onnx-fp16"]
    assert "mean IoU of the boxes is" in found.gates["onnx-fp16"].reason
    assert "largest difference" in found.gates["onnx-fp16"].reason


def test_what_does_not_run_here_is_said(bundle: edgecv.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(opened: edgecv.Bundle, **options: str) -> Tracker:
        if options["backend"] == "openvino":
            raise BackendUnavailable("openvino is not here")
        return edgecv.load(opened, backend=options["backend"], variant=options["variant"])  # type: ignore[no-any-return]

    monkeypatch.setattr(tracker_parity, "load", load)
    found = verify_tracker(bundle, samples=SAMPLES)
    assert (list(found.gates), found.skipped["openvino-fp16"]) == (["onnx-fp16"], "openvino is not here")


def test_a_single_variant_has_nothing_to_agree_with(
    bundle: edgecv.Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path / "onnx-fp32", tmp_path / "one" / "onnx-fp32")
    only = {"onnx-fp32": bundle.manifest.variants["onnx-fp32"]}
    write_manifest(tmp_path / "one", replace(bundle.manifest, variants=only, files={}))
    with pytest.raises(InputError, match="only onnx-fp32 runs here, so there is nothing to compare it with"):
        verify_tracker(tmp_path / "one", samples=SAMPLES)
    assert verify_tracker(tmp_path / "one", samples=SAMPLES, reference=tracker_of(Tiny()).sessions).ok

    def load(opened: edgecv.Bundle, **options: str) -> Tracker:
        raise BackendUnavailable("nothing is here")

    monkeypatch.setattr(tracker_parity, "load", load)
    with pytest.raises(BackendUnavailable, match="no variant can run here: nothing is here"):
        verify_tracker(tmp_path / "one", samples=SAMPLES)


def _answers(box: float, score: float = 0.0) -> Answers:
    maps = np.random.default_rng(0).normal(size=(3, 2, 8, 8)).astype(np.float32)
    sides = np.full((3, 4, 8, 8), 20.0, np.float32) + maps.repeat(2, 1)
    return {"score": maps + score, "box": sides}, np.array([[0.0, 0.0, box, 10.0]] * 3)


@pytest.mark.parametrize(
    ("precision", "box", "score", "failures"),
    [
        ("fp32", 10.0, 0.0, 0),
        ("fp32", 10.1, 0.0, 1),
        ("fp16", 10.1, 0.0, 0),
        ("fp16", 10.0, 1.0, 2),
        ("int8", 10.0, 9.0, 0),  # a map that is wrong everywhere, and the boxes are the same
        ("int8", 15.0, 0.0, 1),
        ("int8", np.nan, 0.0, 1),
    ],
)
def test_maps_and_boxes_are_held_to_the_precision_s_bounds(
    precision: str, box: float, score: float, failures: int
) -> None:
    found = gate_tracker(_answers(10.0), _answers(box, score), precision, SETTINGS)
    assert len(found.failures) == failures
    assert found.parity.samples == 3


def test_distances_of_nothing_may_differ_by_pixels() -> None:
    maps, boxes = _answers(10.0)
    far = {**maps, "box": maps["box"].copy()}
    far["box"][:, :, 0, 0] = 5000.0
    near = {**far, "box": far["box"] * np.float32(1 + 1e-5)}
    assert np.abs(near["box"] - far["box"]).max() > 0.04
    assert gate_tracker((far, boxes), (near, boxes), "fp32", SETTINGS).ok


def test_a_tracker_is_verified_without_torch(bundle: edgecv.Bundle, sequences: Path) -> None:
    code = f"""
from edgecv.pipelines.tracking import open_sequences
from edgecv.tracker_parity import verify_tracker
found = verify_tracker({str(bundle.path)!r}, samples=open_sequences({str(sequences)!r}))
print(found.ok, found.samples)
"""
    assert _run_without(("torch", "onnx", "safetensors"), code) == "True 4"


def test_each_kind_of_bundle_has_its_own_verification(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a tracker: edgecv\.tracker_parity\.verify_tracker compares"):
        edgecv.verify(bundle.path, samples=[SAMPLES[0][0]])
    shutil.copytree(bundle.path, tmp_path / "other")
    manifest = replace(bundle.manifest, task="classification", files={})
    (tmp_path / "other" / "manifest.json").unlink()
    write_manifest(tmp_path / "other", manifest)
    with pytest.raises(InputError, match=r"is for the task 'classification', not 'tracking': .* edgecv\.verify"):
        verify_tracker(tmp_path / "other", samples=SAMPLES)


def test_verify_prints_boxes_and_maps(run: Run, bundle: edgecv.Bundle, sequences: Path, tmp_path: Path) -> None:
    status, text, progress = run("verify", bundle.path, "--samples", sequences)
    assert (status, text.splitlines()[0]) == (0, "reference: onnx-fp32, 4 targets")
    assert text.count("agrees") == 3
    assert "mean IoU 1.000" in text
    assert "verify: done" in progress
    wider = _wider(bundle, tmp_path / "wider", "onnx-fp16").path
    status, text, _ = run("verify", wider, "--samples", sequences, "--limit", 2, "--json")
    found = json.loads(text)
    assert (status, found["ok"], found["samples"]) == (1, False, 2)
    assert found["gates"]["onnx-fp16"]["failures"]


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ([], "is intact; give --samples SEQUENCES to compare the variants' maps and boxes"),
        (["--bisect"], "a tracker has two, template and search: without --bisect, verify says which variants differ"),
        (["--samples", "."], "holds no sequence"),
    ],
)
def test_what_verify_cannot_do_is_said(
    run: Run, bundle: edgecv.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], telling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = run("verify", bundle.path, *options)
    assert (status, telling in error) == (2, True)


def test_another_network_s_checkpoint_is_no_reference(
    run: Run, bundle: edgecv.Bundle, sequences: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "classifier.safetensors"
    save_checkpoint(edgecv.models.create("squeezenet1_1", num_classes=2), checkpoint)
    status, _, error = run("verify", bundle.path, "--samples", sequences, "--against", checkpoint)
    assert (status, "is no tracker: give the checkpoint that the bundle was made from" in error) == (2, True)


class Clock:
    """A clock that moves a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def _numpy_tracker(**settings: object) -> Tracker:
    return Tracker(tracking.Template(), tracking.Search(), replace(tracking.SETTINGS, **settings))  # type: ignore[arg-type]


def test_both_graphs_are_timed(sequences: Path) -> None:
    found = profile_tracker(_numpy_tracker(), duration_s=0.05, batch=2, clock=Clock())
    assert list(found) == ["template", "search"]
    assert {name: one.batch for name, one in found.items()} == {"template": 2, "search": 2}
    assert found["search"].conditions.inputs["features"] == ("float32", (2, 3, 4, 4))
    assert all(one.first_ms == 1 for one in found.values())


def test_a_frame_searches_at_every_scale() -> None:
    tracker = _numpy_tracker(head="peak", scales=3)
    assert profile_tracker(tracker, duration_s=0.05, clock=Clock())["search"].batch == 3


def test_updates_are_timed_on_sequences_again_and_again(sequences: Path) -> None:
    steps: list[str] = []
    found = profile_tracker(
        _numpy_tracker(),
        duration_s=0.2,
        sequences=open_sequences(sequences),
        clock=Clock(),
        progress=lambda stage, done, total: steps.append(stage),
    )
    update = found["update"]
    assert update.conditions.inputs == {"long": ("uint8", (1, 240, 320, 3))}
    assert (update.batch, update.first_ms, set(update.samples_ms)) == (1, None, {1.0})
    assert len(update.samples_ms) > 8  # the sequence has four frames to update with
    assert list(dict.fromkeys(steps)) == ["profile template", "profile search", "profile update"]


def test_a_sequence_of_one_frame_has_no_update() -> None:
    one = TrackSequence("one", (Path("1.jpg"),), np.array([[1.0, 1, 5, 5]]), np.array([True]))
    with pytest.raises(InputError, match="no sequence has two"):
        profile_tracker(_numpy_tracker(), duration_s=0.02, sequences=[one], clock=Clock())


def test_profile_prints_and_writes_each_graph(run: Run, bundle: edgecv.Bundle, sequences: Path, tmp_path: Path) -> None:
    arguments = ("profile", bundle.path, "--duration", 0.05, "--threads", 1, "--data", sequences)
    status, text, _ = run(*arguments, "--out", tmp_path / "ort.json")
    assert status == 0
    assert "once for a target, and where a frame leaves a doubt" in text
    assert "the whole of a frame, decoding the image not counted" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"ort.{name}.json" for name in ("search", "template", "update")
    ]
    saved = edgecv.Profile.load(tmp_path / "ort.search.json")
    assert saved.conditions.bundle_sha256 == bundle.sha256
    profiles = json.loads(run(*arguments, "--json")[1])["profiles"]
    assert set(profiles) == {"template", "search", "update"}
    assert profiles["search"]["summary"]["p50_ms"] > 0


def test_a_checkpoint_s_graphs_are_timed_on_torch(run: Run, tmp_path: Path) -> None:
    from edgecv.models.siamese import create_tracker

    save_checkpoint(create_tracker("nanotrack_v1", width=0.25), tmp_path / "tracker.safetensors")
    status, text, _ = run("profile", tmp_path / "tracker.safetensors", "--duration", 0.05, "--threads", 1, "--json")
    assert (status, set(json.loads(text)["profiles"])) == (0, {"template", "search"})


def test_only_trackers_take_sequences_to_profile(run: Run, bundle: edgecv.Bundle, sequences: Path) -> None:
    search = bundle.file("onnx-fp32", "search")
    status, _, error = run("profile", search, "--data", sequences)
    assert (status, f"--data is for trackers, {search} is none" in error) == (2, True)


def test_crops_are_the_same_every_time(sequences: Path) -> None:
    one, other = (cut_crops(open_sequences(sequences), SETTINGS) for _ in range(2))
    assert np.array_equal(one.searches, other.searches)
    assert one.sizes == other.sizes

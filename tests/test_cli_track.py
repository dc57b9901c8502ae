"""``edgecv track``, and trackers in ``evaluate`` and ``convert``, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgecv.cli import video
from edgecv.cli.main import main
from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

for _name in ("torch", "onnx", "onnxruntime", "openvino", "opencv"):
    require(_name)

from edgecv.cli import track  # noqa: E402  (after the check that they are there)
from edgecv.converters.trackers import TrackerOptions, convert_tracker  # noqa: E402
from edgecv.models import save_checkpoint  # noqa: E402
from edgecv.models.siamese import create_tracker  # noqa: E402
from edgecv.pipelines.tracking import TrackState  # noqa: E402
from edgecv.pipelines.tracking.boxes import iou  # noqa: E402
from edgecv.pipelines.tracking.results import read_boxes  # noqa: E402
from edgecv.tensors import Array  # noqa: E402
from tests.tiny_tracker import Tiny  # noqa: E402
from tests.tracking import scene  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
COUNT = 8
BOX = "100,80,40,30"


@pytest.fixture
def edgecv(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; returns status, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``Tiny`` for ONNX Runtime."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return convert_tracker(Tiny(), out, backends=["onnxruntime"], options=TrackerOptions(parity=False)).path


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of a moving square, and one of which only the first box is known."""
    root = tmp_path_factory.mktemp("sequences")
    for name, step in (("slow", 1), ("quick", 3), ("test", 2)):
        (root / name / "img").mkdir(parents=True)
        boxes = [(100 + step * index, 80, 40, 30) for index in range(COUNT)]
        for index, box in enumerate(boxes):
            cv2.imwrite(str(root / name / "img" / f"{index + 1:04d}.png"), scene(box))
        shown = boxes[:1] if name == "test" else boxes
        (root / name / "groundtruth.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in shown))
    return root


def test_a_folder_is_tracked_into_a_video_and_a_file(
    edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path
) -> None:
    out, results = tmp_path / "out.mp4", tmp_path / "boxes.txt"
    written = ["--out", out, "--results", results]
    status, text, progress = edgecv("track", bundle, sequences / "slow", "--box", BOX, *written)
    assert status == 0
    assert f"{COUNT} frames" in text
    assert "target 1: " in text
    assert "track: done" in progress
    boxes = read_boxes(results)
    assert boxes.shape == (COUNT, 4)
    assert boxes[0].tolist() == [100, 80, 40, 30]
    assert iou(tuple(boxes[-1]), (107, 80, 40, 30)) > 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.txt", "out.mp4"]
    with video.open_video(str(out)) as shown:
        assert (shown.count, len(list(shown.frames))) == (COUNT, COUNT)


def test_a_checkpoint_is_tracked_with_as_its_bundle_would_be(edgecv: Run, sequences: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tracker.safetensors"
    save_checkpoint(create_tracker("nanotrack_v1", width=0.25), checkpoint)
    arguments = ("--box", BOX, "--json", "--frames", 2, "--threads", 1)
    status, text, _ = edgecv("track", checkpoint, sequences / "slow", *arguments)
    found = json.loads(text)
    assert (status, found["frames"], found["backend"]) == (0, 2, "torch")


def test_int8_is_not_calibrated_on_nothing(edgecv: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tracker.safetensors"
    save_checkpoint(create_tracker("nanotrack_v1", width=0.25), checkpoint)
    arguments = ("--precisions", "int8,fp32", "--no-parity", "--out", tmp_path / "out")
    status, _, text = edgecv("convert", checkpoint, *arguments)
    assert (status, (tmp_path / "out").exists()) == (2, False)
    assert "int8 is calibrated on real frames: give --samples SEQUENCES" in text
    status, _, text = edgecv("convert", checkpoint, *arguments, "--quantized", checkpoint)
    assert (status, "is no quantized tracker" in text) == (2, True)


def test_a_video_is_tracked_as_its_frames_are(edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path) -> None:
    with video.write_video(tmp_path / "in.avi", 10) as write, video.open_video(str(sequences / "slow")) as frames:
        for frame in frames.frames:
            write(frame)
    status, text, _ = edgecv("track", bundle, tmp_path / "in.avi", "--box", BOX, "--json", "--frames", 5)
    found = json.loads(text)
    assert (status, found["frames"], found["backend"]) == (0, 5, "onnxruntime")
    target = found["targets"]["1"]
    assert sum(target["frames"].values()) == 5
    assert iou(tuple(target["last"]["box"]), (104, 80, 40, 30)) > 0.5


def test_several_boxes_give_motchallenge_s_lines(edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path) -> None:
    results = tmp_path / "mot.txt"
    boxes = ["--box", BOX, "--box", "10,10,30,30"]
    assert edgecv("track", bundle, sequences / "slow", *boxes, "--results", results)[0] == 0
    lines = [line.split(",") for line in results.read_text().splitlines()]
    assert [(line[0], line[1]) for line in lines[:3]] == [("1", "1"), ("1", "2"), ("2", "1")]
    assert {len(line) for line in lines} == {10}
    assert len(lines) == 2 * COUNT


def test_the_overlay_is_drawn_on_a_copy() -> None:
    frame = scene(None)
    before = frame.copy()
    states = {number: TrackState((20, 30, 50, 40), 0.9, 0.9, status) for number, status in enumerate(track.COLOURS, 1)}  # type: ignore[arg-type]  # the statuses themselves
    drawn = track.overlay(frame, states)
    assert np.array_equal(frame, before)
    assert (drawn[30, 20:70] == track.COLOURS["lost"]).all()
    far = {1: TrackState((-500, -500, 2000, 2000), 0.5, 0.5, "unsure")}
    assert track.overlay(frame, far).shape == frame.shape


@pytest.mark.parametrize(
    ("source", "box", "telling"),
    [
        ("slow", "1,2,3", "a box is four numbers"),
        ("slow", "a,b,c,d", "a box is four numbers"),
        ("slow", "100,80,0,0", "at least 1 pixel"),
        ("slow", "900,80,40,30", "outside the frame of 320 x 240"),
        ("nothing.mp4", BOX, "no video file, no folder and no camera"),
        ("", BOX, "holds no images"),
        ("slow/groundtruth.txt", BOX, "not a video that OpenCV can read"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path, source: str, box: str, telling: str
) -> None:
    status, _, error = edgecv("track", bundle, sequences / source, "--box", box, "--out", tmp_path / "out.mp4")
    assert (status, error.strip().count("\n")) == (2, 0)
    assert telling in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        (["--out", "out.gif"], "a video is written as .avi or .mp4, got out.gif"),
        (["--out", "missing/out.mp4"], "there is no folder missing"),
        (["--results", "missing/out.txt"], "there is no folder missing"),
        (["--frames", "0"], "--frames is 1 or more"),
    ],
)
def test_wrong_options_are_refused_first(
    edgecv: Run, bundle: Path, sequences: Path, options: list[str], telling: str
) -> None:
    status, _, error = edgecv("track", bundle, sequences / "slow", "--box", BOX, *options)
    assert status == 2
    assert telling in error


class Camera:
    """A camera that shows four frames, and whose user then presses Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.left, self.number = 4, number

    def isOpened(self) -> bool:  # noqa: N802  (OpenCV's name)
        return self.number == 0

    def get(self, key: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, Array]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return True, scene((100, 80, 40, 30))[..., ::-1]

    def release(self) -> None:
        pass


def test_a_camera_is_tracked_until_it_is_interrupted(
    edgecv: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    results = tmp_path / "boxes.txt"
    status, text, _ = edgecv("track", bundle, "0", "--box", BOX, "--results", results, "--out", tmp_path / "out.avi")
    assert (status, len(read_boxes(results))) == (0, 4)
    assert "4 frames" in text
    assert (tmp_path / "out.avi").stat().st_size > 1000


def test_a_camera_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with pytest.raises(BackendUnavailable, match="camera 7 cannot be opened"), video.open_video("7"):
        pass


def _write_two(write: Callable[[Array], None]) -> None:
    write(scene(None))
    raise InputError("what comes next is not a frame")


def test_a_video_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a frame"), video.write_video(tmp_path / "out.mp4", 25) as write:
        _write_two(write)
    assert not list(tmp_path.iterdir())


def test_frames_of_other_sizes_are_stretched_to_the_first(tmp_path: Path) -> None:
    with video.write_video(tmp_path / "out.avi", 25) as write:
        write(scene(None, (48, 64)))
        write(scene(None, (96, 64)))
    with video.open_video(str(tmp_path / "out.avi")) as found:
        assert [frame.shape for frame in found.frames] == [(48, 64, 3)] * 2


def test_a_tracker_is_evaluated_as_a_table(edgecv: Run, bundle: Path, sequences: Path) -> None:
    status, text, _ = edgecv("evaluate", bundle, "--data", sequences)
    lines = text.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[2:5]] == ["quick", "slow", "overall"]
    assert "SR0.75" in lines[0]
    assert "1 sequences have only a first box" in text
    assert text.rstrip().endswith("in the bundle")


def test_a_tracker_s_figures_are_json_and_its_results_files(
    edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    status, text, _ = edgecv("evaluate", bundle, "--data", sequences, "--json", "--out", out)
    found = json.loads(text)
    assert status == 0
    assert set(found["sequences"]) == {"quick", "slow"}
    assert found["scores"]["frames"] == 2 * COUNT
    assert 0.4 < found["sequences"]["slow"]["success"] <= 1
    assert read_boxes(out / "test" / "test_001.txt").shape == (COUNT, 4)
    assert (out / "slow" / "slow_time.txt").is_file()


def test_otb_s_layout_is_written_too(edgecv: Run, bundle: Path, sequences: Path, tmp_path: Path) -> None:
    out = tmp_path / "otb"
    assert edgecv("evaluate", bundle, "--data", sequences / "slow", "--out", out, "--layout", "otb")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["slow.txt", "times"]


def test_nothing_to_score_against_is_refused(edgecv: Run, bundle: Path, sequences: Path) -> None:
    status, _, error = edgecv("evaluate", bundle, "--data", sequences / "test")
    assert status == 2
    assert "nothing to score against; --out writes what was tracked" in error


@pytest.mark.parametrize(
    ("argv", "telling"),
    [
        (["--from", "nanotrack", "a.onnx", "--samples", "s"], "NanoTrack is two files"),
        (["--from", "nanotrack", "a.onnx", "b.onnx"], "--samples SEQUENCES"),
        (["--from", "nanotrack", "a.onnx", "b.onnx", "--no-parity", "--batch", "1"], "--batch is not for trackers"),
        (["--from", "nanotrack", "a.onnx", "b.onnx", "--no-parity"], "a.onnx does not exist"),
        (["a.onnx", "b.onnx", "--no-parity"], "two with --from nanotrack"),
        (["a.onnx", "--search", "191", "--no-parity"], "--search is for --from nanotrack"),
    ],
)
def test_a_wrong_published_pair_is_refused(edgecv: Run, tmp_path: Path, argv: list[str], telling: str) -> None:
    status, _, error = edgecv("convert", *argv, "--out", tmp_path / "out")
    assert status == 2
    assert telling in error


def test_a_published_pair_is_converted(
    edgecv: Run, data: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecv.converters import torch_from_nanotrack

    # The pair's network is that of another test's minutes; here the way from the files to the bundle is.
    read: list[tuple[Path, Path]] = []

    def tiny(backbone: Path, head: Path) -> Tiny:
        read.append((backbone, head))
        return Tiny()

    monkeypatch.setattr(torch_from_nanotrack, "torch_from_nanotrack", tiny)
    pair = [data / "weights" / "nanotrack" / f"nanotrackv1_{part}.onnx" for part in ("backbone", "head")]
    samples = ["--samples", data / "tracking" / "vot15_bag", "--limit", "4"]
    argv = ["convert", "--from", "nanotrack", *pair, "--out", tmp_path / "out", *samples]
    status, text, _ = edgecv(*argv, "--backends", "onnxruntime", "--pack")
    assert (status, read) == (0, [tuple(pair)])
    assert "mean IoU" in text
    assert len(list((tmp_path / "out").rglob("*.onnx.packed"))) == 2
    assert edgecv("inspect", tmp_path / "out")[0] == 0

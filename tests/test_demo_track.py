"""The demo of a tracker, as short as it can be: too short for the gate, and long enough to see every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecv.bundle import Bundle
from edgecv.cli import demo_track
from edgecv.cli.main import main
from tests.conftest import require

TINY: dict[str, Any] = {
    "BACKENDS": ("onnxruntime",),
    "OPTIONS": {"width": 0.1, "channels": 8, "search": 143, "scales": 1},
    "PAIRS": {"pairs": 8, "shift": 8.0},
    "PARTS": {"train": (2, 3, 0), "val": (1, 3, 100), "test": (2, 20, 200)},
    "SCENE": {"height": 64, "width": 80, "smallest": 10, "largest": 16, "speed": 30},
    "VALIDATION_PAIRS": 2,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``edgecv demo --task track`` leaves after a single epoch of two steps."""
    for name in ("torch", "onnx", "onnxruntime", "opencv"):
        require(name)
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(demo_track, name, value)
        assert main(["demo", "--task", "track", "--out", str(out), "--epochs", "1"]) == 1
    return out


def test_a_gate_that_fails_is_said_and_everything_is_written(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == ["bundle", "results.json", "sequences", "train"]
    results = json.loads((demo / "results.json").read_text())
    assert set(results) == {"torch", "onnxruntime"}
    for found in results.values():
        assert set(found["sequences"]) == {"synthetic_000200", "synthetic_000201"}
        assert 0 <= found["scores"]["success"] < demo_track.WANTED_SUCCESS
    assert results["onnxruntime"]["parity"]["mean_iou"] > 0.99


def test_the_bundle_says_what_it_was_made_of(demo: Path) -> None:
    manifest = Bundle.load(demo / "bundle").manifest
    assert set(manifest.variants) == {"onnx-fp32"}
    assert manifest.source.dataset == "synthetic sequences of edgecv.training.synthetic"
    assert (manifest.source.recipe or {})["options"] == TINY["OPTIONS"]


def test_a_second_run_goes_on_with_what_is_there(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.load(demo / "bundle").sha256
    for name, value in TINY.items():
        monkeypatch.setattr(demo_track, name, value)
    monkeypatch.setattr(demo_track, "WANTED_SUCCESS", 0.0)
    assert main(["demo", "--task", "track", "--out", str(demo), "--epochs", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["validation"]["pairs"] == 2
    assert "draw" not in said.err
    assert Bundle.load(demo / "bundle").sha256 == before


def test_what_is_not_for_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--task", "track", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["demo", "--task", "track", "--duration", "3"]) == 2
    assert "--duration is for the classifier" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_two_parts_share_a_sequence() -> None:
    seeds = [set(range(seed, seed + count)) for count, _, seed in demo_track.PARTS.values()]
    assert sum(map(len, seeds)) == len(set().union(*seeds))

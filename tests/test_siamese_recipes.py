"""Trackers by name and options: recipes, checkpoints that come back bit for bit, and bundles made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)

import edgecv  # noqa: E402
from edgecv import models  # noqa: E402
from edgecv.models.checkpoint import read_checkpoint  # noqa: E402
from edgecv.models.recipe import STEPS  # noqa: E402
from edgecv.models.siamese import TRACKERS, Siamese, create_tracker  # noqa: E402
from edgecv.models.siamese.nanotrack import Tower  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "nanotrack_v1": {"width": 0.5, "box": {"channels": 8, "kernels": [3, 5]}, "confidence": None},
    "nanotrack_v2": {"search": 239, "score": {"channels": 16, "kernels": [3]}, "rate": 0.5},
    "siamfc_alexnet": {"width": 0.25, "channels": 32, "search": 239, "scales": 5, "penalty": 1},
    "siamfc_mobilenet": {"width": 0.25, "channels": 16},
    "siamrpn_mobile": {"width": 0.25, "channels": 16, "hidden": 0, "ratios": [0.5, 1, 2], "anchor": 48},
}


def _create(name: str) -> Siamese:
    torch.manual_seed(0)
    return create_tracker(name, **SMALL[name])


def _answers(network: torch.nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = network.eval()(*(torch.rand(1, 3, side, side, generator=generator) for side in (127, 191)))
    return list(found) if isinstance(found, tuple) else [found]


def _equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(_answers(first), _answers(second), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_every_tracker_has_a_small_sibling_here() -> None:
    assert set(SMALL) == set(TRACKERS.names())


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = _create(name)
    edgecv.save_checkpoint(network, tmp_path / "a.safetensors", dataset="squares")
    back, card = read_checkpoint(tmp_path / "a.safetensors")
    assert isinstance(back, Siamese)
    assert (back.settings, back.preprocess) == (network.settings, network.preprocess)
    assert (card.recipe, card.dataset) == (models.Recipe(name, SMALL[name]), "squares")
    before = network.state_dict()
    assert list(before) == list(back.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in back.state_dict().items())
    assert _equal(back, network)


@pytest.mark.parametrize("name", SMALL)
def test_a_pruned_tracker_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    pruned = edgecv.prune(_create(name).eval(), config=edgecv.PruneConfig(macs_ratio=0.8))
    edgecv.save_checkpoint(pruned, tmp_path / "a.safetensors")
    back = edgecv.load_checkpoint(tmp_path / "a.safetensors")
    assert [step.kind for step in models.recipe_of(back).steps] == ["prune"]  # type: ignore[union-attr]  # it has one
    assert _equal(back, pruned)


def test_options_change_what_they_name_and_nothing_else() -> None:
    network = _create("siamfc_alexnet")
    settings = network.settings
    assert (settings.search, settings.exemplar, settings.scales, settings.penalty) == (239, 127, 5, 1.0)
    assert settings.window == create_tracker("siamfc_alexnet").settings.window == 0.176
    assert network.preprocess.size == (239, 239)
    assert network.template(torch.rand(1, 3, 127, 127)).shape == (1, 32, 6, 6)
    whole = create_tracker("nanotrack_v2")
    assert models.create("nanotrack_v2").settings == whole.settings
    assert create_tracker("nanotrack_v2", score=Tower(96, (3,) * 6)).state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "options", "telling"),
    [
        ("siamfc_alexnet", {"widht": 1}, "model 'siamfc_alexnet': options: unknown key 'widht'; did you mean 'width'"),
        ("siamfc_alexnet", {"num_classes": 10}, "unknown key 'num_classes'"),
        ("siamfc_alexnet", {"width": "wide"}, r"options\.width must be a number"),
        ("siamfc_alexnet", {"width": 0}, "width"),
        ("siamfc_alexnet", {"channels": 31}, "channels is an even number from 2, got 31"),
        ("siamfc_mobilenet", {"backbone": "resnet"}, "unknown backbone 'resnet'"),
        ("siamfc_mobilenet", {"search": 100}, "exemplar <= search"),
        ("siamrpn_mobile", {"hidden": -1}, "hidden 0 or more"),
        ("siamrpn_mobile", {"ratios": []}, "anchors need ratios"),
        ("nanotrack_v1", {"score": {"channels": 8, "kernels": [4]}}, "odd kernels"),
        ("nanotrack_v1", {"score": {"channels": 8}}, "lacks the key 'kernels'"),
    ],
)
def test_what_a_tracker_cannot_be_built_with_is_refused(name: str, options: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        models.create(name, **options)


def test_names_that_are_no_tracker_s_are_refused() -> None:
    with pytest.raises(InputError, match="unknown tracker 'mobilenet_v2'"):
        create_tracker("mobilenet_v2")
    with pytest.raises(InputError, match="unknown model 'siamfc_alexnt'; did you mean 'siamfc_alexnet'"):
        models.create("siamfc_alexnt")


def test_trackers_are_not_among_the_classifiers() -> None:
    assert not set(models.names()) & set(TRACKERS.names())
    assert "prune" in STEPS.names()


def test_a_checkpoint_tracks_on_pytorch(tmp_path: Path) -> None:
    require("opencv")
    from edgecv.models.siamese.running import tracker_of

    edgecv.save_checkpoint(_create("siamfc_alexnet"), tmp_path / "a.safetensors")
    network = edgecv.load_checkpoint(tmp_path / "a.safetensors")
    assert isinstance(network, Siamese)
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    with tracker_of(network, threads=1) as tracker:
        tracker.init(frame, (20, 20, 16, 12))
        assert np.isfinite(tracker.update(frame).box).all()


def test_a_checkpoint_becomes_a_bundle_that_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnx", "onnxruntime", "opencv"):
        require(name)
    from edgecv.cli.main import main
    from tests.tracking import write_frames

    checkpoint, out = tmp_path / "a.safetensors", tmp_path / "bundle"
    edgecv.save_checkpoint(_create("siamfc_alexnet"), checkpoint, dataset="squares")
    write_frames(tmp_path / "data" / "square", 3, (96, 128))
    (tmp_path / "data" / "square" / "groundtruth.txt").write_text("1,5,8,6\n2,5,8,6\n3,5,8,6\n")
    arguments = ["convert", str(checkpoint), "--out", str(out), "--backends", "onnxruntime", "--json"]
    assert main([*arguments, "--samples", str(tmp_path / "data")]) == 0
    assert set(json.loads(capsys.readouterr().out)["variants"]) == {"onnx-fp32"}
    source = edgecv.Bundle.load(out).manifest.source
    assert (source.recipe or {})["options"] == SMALL["siamfc_alexnet"]
    assert source.dataset == "squares"
    with edgecv.load(out) as tracker:
        assert isinstance(tracker, edgecv.Tracker)
        assert tracker.settings.scales == 5


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["--batch", "1"], "--batch is not for trackers"),
        (["--task", "embedding"], "--task is not for trackers"),
        ([], "give --samples SEQUENCES"),
        (["--samples", "digits"], "digits is not a folder; one with sequences was expected"),
    ],
)
def test_what_is_not_for_trackers_is_refused(
    arguments: list[str], telling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require("onnx")
    from edgecv.cli.main import main

    edgecv.save_checkpoint(_create("siamfc_alexnet"), tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert telling in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

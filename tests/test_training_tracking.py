"""Training trackers: through the same loop as everything else, for every head, and from the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

for _name in ("torch", "opencv"):
    require(_name)

import torch  # noqa: E402  (after the check that it is there)
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import TrainConfig  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.data import ArraySamples  # noqa: E402
from edgecv.models.checkpoint import read_checkpoint  # noqa: E402
from edgecv.models.siamese import Siamese, create_tracker  # noqa: E402
from edgecv.schema import dumps  # noqa: E402
from edgecv.training import PairConfig, PairScores, TrackingPairs, TrainResult  # noqa: E402
from edgecv.training.batches import pair_batches  # noqa: E402
from edgecv.training.ranks import Ranks  # noqa: E402
from edgecv.training.synthetic import SceneConfig, synthetic_sequences  # noqa: E402
from edgecv.training.tracking_objective import Tracking  # noqa: E402
from edgecv.training.tracking_recipes import TRACKER_RECIPES, tracker_recipe_for  # noqa: E402
from tests.tiny_tracker import Tiny  # noqa: E402

SCENE = SceneConfig(frames=4, height=64, width=80, smallest=12, largest=20, distractors=1, occluders=0)
SEQUENCES = synthetic_sequences(3, SCENE)
SMALL: dict[str, dict[str, Any]] = {
    "nanotrack_v1": {"width": 0.5, "search": 159},
    "siamfc_alexnet": {"width": 0.1, "channels": 16, "search": 191},
    "siamrpn_mobile": {"width": 0.1, "channels": 8, "exemplar": 111, "search": 159, "anchor": 40},
}


def _pairs(network: Siamese, count: int = 6, seed: int = 0, **changes: Any) -> TrackingPairs:
    config = PairConfig(**{"pairs": count, "shift": 10.0, **changes})
    return TrackingPairs(SEQUENCES, network.settings, config, seed=seed)


def _config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 4, "warmup_epochs": 0.0, "loss": "tracking", **changes})


def _train(network: Siamese | None = None, config: TrainConfig | None = None, **settings: Any) -> TrainResult:
    torch.manual_seed(0)
    network = network or Tiny()
    data = settings.pop("data", None) or (_pairs(network, negatives=0.3), _pairs(network, 4, 1))
    settings.setdefault("preprocess", network.preprocess)
    return edgecv.train(network, data[0], data[1], config or _config(), **settings)


def _small(name: str) -> Siamese:
    torch.manual_seed(0)
    return create_tracker(name, **SMALL[name])


def _same(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", SMALL)
def test_every_head_is_trained_by_its_loss(name: str) -> None:
    network = _small(name)
    result = _train(network, _config(epochs=1))
    assert isinstance(result.scores, PairScores)
    assert result.scores.pairs == 4
    assert result.history[0].val_score == result.scores.success
    assert 0 <= result.scores.success <= 1
    assert not _same(network, result.network)
    assert isinstance(result.network, Siamese)
    assert result.network.settings == network.settings


def test_it_learns() -> None:
    """Eight pairs over and over: what is learnt of them shows in their loss."""
    network = Tiny()
    pairs = _pairs(network, 8, flip=False, blur=0.0, grey=0.0, scale=0.0)
    pairs.set_epoch = lambda epoch: None  # type: ignore[method-assign]  # every epoch draws the same
    history = _train(network, _config(epochs=30, learning_rate=0.02, ema_decay=0.0), data=(pairs, pairs)).history
    assert history[-1].train_loss < 0.7 * history[0].train_loss


class _Stop(Exception):
    """Raised from a progress callback."""


@pytest.mark.parametrize("name", ["tiny", "siamrpn_mobile"])  # the second draws its anchors at random
def test_a_resumed_run_gives_the_weights_of_one_that_was_never_interrupted(name: str, tmp_path: Path) -> None:
    network = Tiny() if name == "tiny" else _small(name)
    config = _config(epochs=3, workers=0, ema_decay=0.9)
    whole = _train(network, config, out=tmp_path / "whole")

    def interrupt(stage: str, done: float, total: float) -> None:
        if done > 0.6 * total:
            raise _Stop

    with pytest.raises(_Stop):
        _train(network, config, out=tmp_path / "parts", progress=interrupt)
    assert 0 < len(_history(tmp_path / "parts")) < 3
    resumed = _train(network, config, out=tmp_path / "parts")
    assert _same(whole.network, resumed.network)
    assert whole.scores == resumed.scores
    for left, right in zip(_history(tmp_path / "whole"), _history(tmp_path / "parts"), strict=True):
        assert {**left, "seconds": ""} == {**right, "seconds": ""}


def _history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_other_pairs_are_another_run(tmp_path: Path) -> None:
    network = Tiny()
    _train(network, _config(epochs=1), out=tmp_path / "run")
    data = _pairs(network, shift=3.0), _pairs(network, 4, 1)
    with pytest.raises(InputError, match=r"a run with other settings \(pairs\)"):
        _train(network, _config(epochs=1), out=tmp_path / "run", data=data)


def test_the_best_epoch_is_kept_as_a_checkpoint_that_says_itself_what_it_takes(tmp_path: Path) -> None:
    result = _train(_small("siamfc_alexnet"), _config(epochs=1), out=tmp_path / "run")
    kept, card = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert _same(kept, result.network)
    assert (card.recipe.options, card.preprocess, card.accuracy) == (SMALL["siamfc_alexnet"], None, None)
    with pytest.raises(InputError, match="a tracker has no accuracy"):
        _ = result.accuracy


def test_batches_are_the_joint_ones_shared_between_processes() -> None:
    pairs = _pairs(Tiny(), 7)
    whole = list(pair_batches(pairs, size=4))
    assert [len(targets) for _, targets in whole] == [4, 3]
    shares = [list(pair_batches(pairs, size=4, ranks=Ranks(rank, 2))) for rank in (0, 1)]
    for index, ((exemplars, searches), targets) in enumerate(whole):
        for rank, share in enumerate(shares):
            (own_exemplars, own_searches), own_targets = share[index]
            assert torch.equal(own_exemplars, exemplars[rank::2])
            assert torch.equal(own_searches, searches[rank::2])
            assert torch.equal(own_targets, targets[rank::2])


class _Knowing(nn.Module):
    """Says where the target is, from the targets it was made with."""

    def __init__(self, targets: torch.Tensor, off: float) -> None:
        super().__init__()
        self.targets, self.off = targets, off

    def forward(self, exemplar: torch.Tensor, search: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = torch.zeros(len(self.targets), 2, 8, 8)
        score[:, 1, 4, 4] = 20.0  # the cell in the middle of the crop
        x, y, w, h = self.targets[:, :4].T
        sides = torch.stack([w / 2 - x - self.off, h / 2 - y, w / 2 + x + self.off, h / 2 + y], 1)
        return score, sides[:, :, None, None].expand(-1, -1, 8, 8)


@pytest.mark.parametrize(("off", "least", "most"), [(0.0, 0.9, 0.96), (6.0, 0.4, 0.9), (500.0, 0.0, 0.0)])
def test_validation_scores_the_boxes_that_the_runtime_would_read(off: float, least: float, most: float) -> None:
    """A perfect box has an overlap of 1, which 20 of the curve's 21 thresholds are below."""
    network = Tiny()
    settings = replace(network.settings, rate=1.0, window=0.0, penalty=0.0)
    ((crops, targets),) = pair_batches(_pairs(network, 6, negatives=0.3, scale=0.0), size=6)
    targets[0, 4] = 0.0
    found = Tracking(_config(), settings, Ranks()).validate(_Knowing(targets, off), [(crops, targets)])
    assert isinstance(found.scores, PairScores)
    assert least <= found.score <= most
    assert found.scores.pairs == int(targets[:, 4].sum()) < 6
    assert found.scores.error_px == pytest.approx(off, abs=1e-3)


def test_validation_without_targets_is_refused() -> None:
    ((crops, targets),) = pair_batches(_pairs(Tiny(), 2), size=2)
    targets[:, 4] = 0
    with pytest.raises(InputError, match="validation pairs must show their target"):
        Tracking(_config(), Tiny().settings, Ranks()).validate(_Knowing(targets, 0.0), [(crops, targets)])


def test_data_and_loss_that_do_not_go_together_are_refused() -> None:
    network, images = Tiny(), ArraySamples(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1], ("a", "b"))
    pairs: Any = _pairs(network), _pairs(network, 4, 1)
    with pytest.raises(InputError, match="trained on TrackingPairs with loss='tracking', got loss='cross_entropy'"):
        _train(network, TrainConfig(epochs=1, warmup_epochs=0.0))
    with pytest.raises(InputError, match="trained on TrackingPairs"):
        _train(network, data=(images, images))
    with pytest.raises(InputError, match="are for trackers, Conv2d is none"):
        edgecv.train(nn.Conv2d(3, 3, 1), pairs[0], pairs[1], _config(), preprocess=network.preprocess)
    with pytest.raises(InputError, match=r"preprocess=network\.preprocess"):
        _train(network, preprocess=edgecv.Preprocess(size=(63, 63)))
    with pytest.raises(InputError, match="the pairs are cut with exemplar 31, the network has 127"):
        _train(create_tracker("siamfc_mobilenet"), data=pairs)
    with pytest.raises(InputError, match="the loss 'tracking' has none"):
        _train(network, teacher=network)


@pytest.mark.parametrize("changes", [{"mixup": 0.1}, {"cutmix": 0.1}, {"augment": "photos"}, {"randaugment": 3}])
def test_changes_of_labelled_images_are_not_for_pairs(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a tracker's pairs bring their own augmentation"):
        _config(**changes)


@pytest.mark.parametrize("name", TRACKER_RECIPES)
def test_recipes_survive_a_file_and_build_their_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(dumps(TRACKER_RECIPES[name]))
    recipe = tracker_recipe_for(path)
    assert recipe == tracker_recipe_for(name) == TRACKER_RECIPES[name]
    assert isinstance(create_tracker(recipe.model, **recipe.options), Siamese)
    assert recipe.config.loss == "tracking"


def test_recipes_are_changed_by_name() -> None:
    changed = tracker_recipe_for("siamfc").changed({"epochs": 3, "pairs.pairs": 40, "pairs.gap": 5})
    assert (changed.config.epochs, changed.pairs.pairs, changed.pairs.gap) == (3, 40, 5)
    assert changed.pairs.shift == TRACKER_RECIPES["siamfc"].pairs.shift
    assert tracker_recipe_for("", "nanotrack_v2") == TRACKER_RECIPES["nanotrack_v2"]
    assert tracker_recipe_for("", "siamfc_mobilenet").model == "siamfc_mobilenet"
    with pytest.raises(InputError, match="did you mean 'siamfc'"):
        tracker_recipe_for("siamfcc")
    with pytest.raises(InputError, match="cannot read recipe"):
        tracker_recipe_for("none.json")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A training of seconds from the command line."""
    options = ["--option", "width=0.1", "--option", "channels=16", "--out", str(tmp_path / "run")]
    return ["train", "synthetic:2", "--recipe", "siamfc", *options, "epochs=1", "batch_size=4", "pairs.pairs=4"]


def test_the_command_trains_a_tracker(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["pairs"] == 1
    network = edgecv.load_checkpoint(found["checkpoint"])
    assert isinstance(network, Siamese)
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["pairs"][0]["sequences"] == ["synthetic_000000"]
    assert held["pairs"][1]["sequences"] == ["synthetic_000001"]


@pytest.mark.parametrize(
    ("more", "telling"),
    [
        (["epoch=3"], "unknown key 'epoch'; did you mean 'epochs'"),
        (["pairs.shfit=3"], "unknown key 'shfit'; did you mean 'shift'"),
        (["pairs.negatives=0.5"], "negative pairs come from another sequence"),
        (["--option", "num_classes=3"], "unknown key 'num_classes'"),
        (["--size", "64"], "--size is for classifiers"),
        (["--val", "synthetic:none"], "asked for as synthetic:COUNT, got 'synthetic:none'"),
        (["--val", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_what_the_command_cannot_do_is_refused(
    arguments: list[str], more: list[str], telling: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *more]) == 2
    assert telling in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""Training recipes: by name, from a file, and changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

from edgecv.schema import dumps  # noqa: E402  (after the check that torch is there)
from edgecv.training.recipes import RECIPES, recipe_for  # noqa: E402


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(dumps(RECIPES[name]))
    assert recipe_for(path) == recipe_for(name) == RECIPES[name]


def test_settings_change_and_the_rest_stays() -> None:
    changed = recipe_for("cifar10").changed({"epochs": 5, "mixup": 0.2})
    assert (changed.config.epochs, changed.config.mixup) == (5, 0.2)
    assert changed.config.optimizer == RECIPES["cifar10"].config.optimizer
    assert changed.preprocess == RECIPES["cifar10"].preprocess


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        recipe_for("cifar")
    with pytest.raises(InputError, match="cannot read recipe"):
        recipe_for(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"preprocess": {"size": [32, 32]}, "config": {"epoch": 3}}')
    with pytest.raises(InputError, match="unknown key 'epoch'; did you mean 'epochs'"):
        recipe_for(tmp_path / "bad.json")
    with pytest.raises(InputError, match="unknown key 'epoch'"):
        recipe_for("digits").changed({"epoch": 3})
    with pytest.raises(InputError, match="epochs is from 1"):
        recipe_for("digits").changed({"epochs": 0})

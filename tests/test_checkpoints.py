"""Checkpoints: what is saved comes back, and a file never runs code."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import safetensors.torch  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, models  # noqa: E402
from edgecv.manifest import Accuracy  # noqa: E402
from edgecv.models.checkpoint import read_checkpoint  # noqa: E402

OPTIONS: dict[str, Any] = {"num_classes": 3, "stem": "small"}


def _save(path: Path, **card: Any) -> torch.nn.Module:
    network = models.create("squeezenet1_1", **OPTIONS).eval()
    edgecv.save_checkpoint(network, path, **card)
    return network


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_comes_back(name: str, tmp_path: Path) -> None:
    options = {"dims": 3} if name == "embedding" else OPTIONS
    network = models.create(name, **options).train()
    edgecv.save_checkpoint(network, tmp_path / "a.safetensors")
    back = edgecv.load_checkpoint(tmp_path / "a.safetensors")
    assert not back.training
    before = network.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in back.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(back(images), network.eval()(images))


def test_the_card_comes_back(tmp_path: Path) -> None:
    preprocess = Preprocess(size=(32, 32), resize=36, color="bgr", mean=(0.1, 0.2, 0.3))
    accuracy = Accuracy(0.5, 0.9, 10, (0.2, 0.8))
    _save(
        tmp_path / "a.safetensors",
        preprocess=preprocess,
        labels=("a", "b", "ü"),
        dataset="three things",
        accuracy=accuracy,
    )
    card = read_checkpoint(tmp_path / "a.safetensors")[1]
    assert card.recipe == models.Recipe("squeezenet1_1", OPTIONS)
    assert (card.preprocess, card.accuracy) == (preprocess, accuracy)
    assert (card.labels, card.dataset) == (("a", "b", "ü"), "three things")


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    network = _save(tmp_path / "a.safetensors")
    edgecv.save_checkpoint(network, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    _save(tmp_path / "a.safetensors")
    network = _save(tmp_path / "a.safetensors")
    back = edgecv.load_checkpoint(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, back[key]) for key, value in network.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_network_of_someone_elses_has_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Linear has no recipe: .* edgecv.convert"):
        edgecv.save_checkpoint(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a \.safetensors file, got .*a\.pth"):
        _save(tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot write"):
        _save(tmp_path / "none" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def _write(path: Path, header: Any, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """A valid safetensors file with a header of ours that may be wrong."""
    network = models.create("squeezenet1_1", **OPTIONS)
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(safetensors.torch.save(weights or network.state_dict(), {"edgecv": text}))
    return path


CARD = {"format": 1, "recipe": {"architecture": "squeezenet1_1", "options": OPTIONS}}


@pytest.mark.parametrize(
    ("header", "telling"),
    [
        ("{", "not valid JSON"),
        ([], "reads checkpoint format 1; update edgecv"),
        ({**CARD, "format": 2}, "reads checkpoint format 1; update edgecv"),
        ({"format": 1}, "lacks the key 'recipe'"),
        ({**CARD, "colour": "red"}, "unknown key 'colour'"),
        ({**CARD, "recipe": {"architecture": "os:system"}}, "unknown model library 'os'"),
        ({**CARD, "recipe": {"architecture": "squeezenet1_1", "options": {"x": 1}}}, "unknown option 'x'"),
        ({**CARD, "recipe": {"architecture": "squeezenet1_1", "options": {"num_classes": 4}}}, "do not fit the recipe"),
        ({**CARD, "recipe": {"architecture": "resnet18"}}, "do not fit the recipe"),
        ({**CARD, "preprocess": {"size": [0, 0]}}, "size"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: Any, telling: str) -> None:
    path = _write(tmp_path / "a.safetensors", header)
    with pytest.raises(InputError, match=telling) as raised:
        edgecv.load_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert "a.safetensors" in str(raised.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        edgecv.load_checkpoint(path)
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(InputError, match="was not written by"):
        edgecv.load_checkpoint(path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a readable"):
        edgecv.load_checkpoint(path)


class _Versioned(torch.nn.Linear):
    """A layer that refuses weights of another version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError(f"wrong version\n{local_metadata}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_versions_of_layers_are_said_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for build in (lambda: _Versioned(2, 2), lambda: torch.nn.Sequential(_Versioned(2, 2))):
        monkeypatch.setattr("edgecv.models.squeezenet.squeezenet1_1", build)
        network = models.create("squeezenet1_1")
        edgecv.save_checkpoint(network, tmp_path / "a.safetensors")
        assert torch.equal(edgecv.load_checkpoint(tmp_path / "a.safetensors")(torch.ones(2)), network(torch.ones(2)))


def test_a_layer_that_refuses_its_weights_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecv.models.squeezenet.squeezenet1_1", lambda: _Versioned(2, 2))
    edgecv.save_checkpoint(models.create("squeezenet1_1"), tmp_path / "a.safetensors")
    monkeypatch.setattr(_Versioned, "_version", 3)
    with pytest.raises(InputError, match=r"a\.safetensors: the weights do not fit the recipe: wrong version") as raised:
        edgecv.load_checkpoint(tmp_path / "a.safetensors")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    """The weights carry no checksum (a bundle does); the header and the lengths must hold."""
    path = tmp_path / "a.safetensors"
    data = bytearray(_write(path, CARD).read_bytes())
    chance = random.Random(seed)
    place = chance.randrange(12_000 if seed % 2 else len(data))
    if seed % 3 == 0:
        del data[place:]
    elif seed % 3 == 1:
        data[place] ^= 1 << chance.randrange(8)
    else:
        data[place:place] = chance.randbytes(3)
    path.write_bytes(data)
    loaded: Any = None
    try:
        loaded = edgecv.load_checkpoint(path)
    except InputError as error:
        loaded = error
    assert isinstance(loaded, torch.nn.Module) or "\n" not in str(loaded)

"""Checkpoints: one ``.safetensors`` file with the weights, and in its header all that rebuilds the network."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from edgecv.errors import InputError, one_line
from edgecv.files import write_file
from edgecv.manifest import Accuracy
from edgecv.models.recipe import Recipe, recipe_of
from edgecv.preprocess import Preprocess
from edgecv.schema import decode, encode, loads

__all__ = ["Card", "load_checkpoint", "read_checkpoint", "save_checkpoint"]

KEY = "edgecv"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Card:
    """The header of a checkpoint: the recipe, and what a converter has to know of how the network was trained."""

    format: int
    recipe: Recipe
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    accuracy: Accuracy | None = None


def save_checkpoint(
    network: nn.Module,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] = (),
    dataset: str | None = None,
    accuracy: Accuracy | None = None,
) -> None:
    """Write ``network`` to one ``.safetensors`` file, whole or not at all.

    Raises:
        InputError: the network was not made by ``edgecv.models.create``, so no recipe can rebuild it; or the file
            cannot be written.
    """
    recipe = recipe_of(network)
    if recipe is None:
        raise InputError(
            f"{type(network).__name__} has no recipe: checkpoints rebuild networks of edgecv.models.create; "
            "convert other networks directly with edgecv.convert"
        )
    _refuse_suffix(path)
    card = Card(FORMAT, recipe, preprocess, tuple(labels), dataset, accuracy)
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    header = {KEY: json.dumps(encode(card), ensure_ascii=False, allow_nan=False)}
    write_file(path, safetensors.torch.save(weights, header))


def load_checkpoint(path: str | Path) -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode. No code is read from the file.

    Raises:
        InputError: the file is missing, broken, not one of ours, or names an unknown architecture.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: str | Path) -> tuple[nn.Module, Card]:
    """As ``load_checkpoint``, with the header."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .safetensors file: {one_line(error)}") from error
    if KEY not in metadata:
        raise InputError(f"{path} has no {KEY!r} header: it was not written by edgecv.save_checkpoint")
    header = loads(metadata[KEY], f"{path}: header")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path}: this edgecv reads checkpoint format {FORMAT}; update edgecv")
    card = decode(Card, header, f"{path}: header")
    try:
        network = card.recipe.build()
        network.load_state_dict(_versioned(weights, network), strict=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: the weights do not fit the recipe: {one_line(error)}") from error
    return network.eval(), card


def _versioned(weights: dict[str, Tensor], network: nn.Module) -> OrderedDict[str, Tensor]:
    """``weights`` with the versions of layers, which safetensors drops and torchvision's MNASNet, for one, demands.

    A checkpoint is written from a whole state dict, so its versions are those of the network it rebuilds.
    """
    state = OrderedDict(weights)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # torch's own place for it
    return state


def _refuse_suffix(path: str | Path) -> None:
    if Path(path).suffix != ".safetensors":
        raise InputError(f"a checkpoint is a .safetensors file, got {path}")

"""timm and torchvision where they are installed; torchvision without its compiled operators is made importable."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require

OPERATORS = ("nms", "qnms")  # those that torchvision registers shapes for when it is imported
_KEPT: list[Any] = []  # a library that is collected takes its operators with it


def _declare_operators() -> None:
    """Declare the operators that ``import torchvision`` needs, where its own binary does not fit this torch.

    No classifier calls them. A binary that loads defines them itself, and must do it first: nobody may do it twice.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    for binary in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(binary))  # type: ignore[no-untyped-call]
        except OSError:  # made for another torch, or for a GPU's libraries
            continue
    make: Any = torch.library.Library
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = make("torchvision", "FRAGMENT")
        for name in missing:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_declare_operators()


@pytest.fixture(scope="session")
def timm() -> Any:
    """The library, or a skip."""
    return _library("timm")


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """The library, or a skip."""
    return _library("torchvision")


def _library(name: str) -> Any:
    require("torch")
    require(name)
    return importlib.import_module(name)

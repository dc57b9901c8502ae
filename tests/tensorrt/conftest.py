"""A world per version of the bindings, which the code under test takes for the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import require
from tests.tensorrt.contract import versions

if TYPE_CHECKING:
    from tests.tensorrt.world import World


@pytest.fixture(params=versions())
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    """Each version of the bindings in turn, with a device."""
    return _inhabited(request.param, monkeypatch)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> World:
    """The newest TensorRT alone, for what does not depend on the version."""
    return _inhabited("11.4", monkeypatch)


def _inhabited(version: str, monkeypatch: pytest.MonkeyPatch) -> World:
    require("onnx")
    from tests.tensorrt.inhabit import inhabit
    from tests.tensorrt.world import World

    return inhabit(World(version), monkeypatch)

"""What the tests share: optional libraries and data that are skipped, or demanded by ``EDGECV_REQUIRE``."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

MODULES = {"opencv": "cv2", "sklearn": "sklearn.datasets", "tensorrt_rtx": "tensorrt_rtx_bindings"}


def require(name: str) -> None:
    """Skip the test where ``name`` is missing; fail it where ``EDGECV_REQUIRE`` lists the name.

    ``name`` is a library (``onnxruntime``, ``openvino``, ``torch``, ``onnx``, ``opencv``, ``sklearn``) or ``data``, the
    folder of real weights and images that ``EDGECV_DATA`` names.
    """
    reason = _missing(name)
    if reason and name in os.environ.get("EDGECV_REQUIRE", "").split(","):
        pytest.fail(f"EDGECV_REQUIRE demands {name}: {reason}")
    if reason:
        pytest.skip(reason, allow_module_level=True)


def _missing(name: str) -> str:
    if name == "data":
        folder = os.environ.get("EDGECV_DATA", "")
        return "" if folder and Path(folder).is_dir() else "EDGECV_DATA names no folder of weights and images"
    try:
        importlib.import_module(MODULES.get(name, name))
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return ""


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and images."""
    require("data")
    return Path(os.environ["EDGECV_DATA"])

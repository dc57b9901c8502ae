"""Devices of ONNX Runtime: what is asked for is what runs, or one line says why not. No GPU is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnxruntime  # noqa: E402  (after the check that it is there)

from edgecv.runtimes import ort_providers  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.ort_providers import CPU, CUDA, TENSORRT, providers_for  # noqa: E402
from edgecv.runtimes.session import SessionOptions  # noqa: E402
from edgecv.testing import TINY_MODELS  # noqa: E402


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this ONNX Runtime had been built with everything."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(next(iter(TINY_MODELS.values())).build().SerializeToString())
    return path


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("cpu", [CPU]),
        ("cuda", [(CUDA, {"device_id": 0}), CPU]),
        ("cuda:2", [(CUDA, {"device_id": 2}), CPU]),
        ("tensorrt:1", [(TENSORRT, {"device_id": 1}), (CUDA, {"device_id": 1}), CPU]),
    ],
)
@pytest.mark.usefixtures("with_gpu")
def test_a_device_is_its_providers_in_order(device: str, wanted: list[Any]) -> None:
    assert providers_for(device) == wanted


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:", "cuda:one", "tensorrt:-1", ""])
@pytest.mark.usefixtures("with_gpu")
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        providers_for(device)


@pytest.mark.parametrize(("device", "package"), [("cuda", "onnxruntime-gpu"), ("tensorrt", "TensorRT's libraries")])
def test_a_build_without_the_provider_says_what_to_install(
    device: str, package: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(BackendUnavailable, match=f"has no .*, which device '{device}' takes: install .*{package}"):
        OrtSession(model, SessionOptions(device=device))


@pytest.mark.usefixtures("with_gpu")
def test_a_session_that_fell_back_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, settings, **_: real(path, settings, providers=[CPU])
    )
    with pytest.raises(BackendUnavailable, match=f"could not start its {CUDA} and went on with {CPU}"):
        OrtSession(model, SessionOptions(device="cuda"))


@pytest.mark.usefixtures("with_gpu")
def test_what_was_asked_for_reaches_the_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    def create(path: str, settings: Any, *, providers: list[Any], enable_fallback: int) -> Any:
        asked.append((providers, enable_fallback))
        return real(path, settings, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    monkeypatch.setattr(ort_providers, "check_in_use", lambda *_: None)
    monkeypatch.setattr("edgecv.runtimes.ort.check_in_use", lambda *_: None)
    with OrtSession(model, SessionOptions(device="cuda:1")) as session:
        assert session.options.device == "cuda:1"
    assert asked == [([(CUDA, {"device_id": 1}), CPU], 0)]

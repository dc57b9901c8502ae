"""CUDA graphs: who is told to record one, who refuses, and how ONNX Runtime's are run. No GPU is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.session import SessionOptions
from edgecv.tensors import TensorSpec
from edgecv.testing import TINY_MODELS, check
from tests.conftest import require
from tests.doubles import NumpySession, brightness

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnxruntime  # noqa: E402  (after the check that it is there)

from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.ort_graphs import RecordedRuns  # noqa: E402
from edgecv.runtimes.ort_providers import CPU, CUDA, TENSORRT, providers_for  # noqa: E402

PAIR = TINY_MODELS["two_inputs"]


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this ONNX Runtime had been built with everything."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])


@pytest.mark.parametrize(
    ("device", "wanted"),
    [
        ("cuda", [(CUDA, {"device_id": 0, "enable_cuda_graph": True}), CPU]),
        (
            "tensorrt:1",
            [(TENSORRT, {"device_id": 1, "trt_cuda_graph_enable": True}), (CUDA, {"device_id": 1}), CPU],
        ),
    ],
)
@pytest.mark.usefixtures("with_gpu")
def test_the_first_provider_is_told_to_record(device: str, wanted: list[Any]) -> None:
    assert providers_for(device, cuda_graph=True) == wanted


def test_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cpu' records no CUDA graphs: leave cuda_graph out, or name a GPU"):
        open_session(PAIR.write(tmp_path), backend="onnxruntime", cuda_graph=True)


def test_backends_that_cannot_refuse_it(tmp_path: Path) -> None:
    require("openvino")
    with pytest.raises(InputError, match="backend 'openvino' records no CUDA graphs: leave cuda_graph out"):
        open_session(PAIR.write(tmp_path), backend="openvino", cuda_graph=True)


def test_a_third_partys_backend_refuses_it_by_itself() -> None:
    plain = NumpySession(brightness)
    with pytest.raises(InputError, match="backend 'numpy' records no CUDA graphs"):
        super(NumpySession, plain).__init__(plain.inputs, plain.outputs, SessionOptions(cuda_graph=True))


def test_anything_but_a_truth_is_refused() -> None:
    wrong: Any = 1
    with pytest.raises(InputError, match="cuda_graph is True or False, got 1"):
        SessionOptions(cuda_graph=wrong)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OrtSession:
    """A session that believes it is on a GPU, whose memory is the CPU's."""
    real, create = onnxruntime.InferenceSession, onnxruntime.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, settings, **_: real(path, settings, [CPU]))
    monkeypatch.setattr("edgecv.runtimes.ort.check_in_use", lambda *_: None)
    monkeypatch.setattr(
        onnxruntime.OrtValue, "ortvalue_from_shape_and_type", lambda shape, kind, *_: create(shape, kind, "cpu", 0)
    )
    return OrtSession(PAIR.write(tmp_path), SessionOptions(device="cuda", cuda_graph=True))


def test_every_run_reads_its_own_inputs(session: OrtSession) -> None:
    for step in range(3):
        feed = {name: np.roll(values, step, axis=-1) for name, values in PAIR.inputs(2).items()}
        check(PAIR, feed, session.run(feed))


def test_answers_are_kept_and_views_are_as_good_as_copies(session: OrtSession) -> None:
    feed = PAIR.inputs(2)
    answers = session.run(feed)
    turned = {name: values[::-1] for name, values in feed.items()}
    into = {name: np.empty_like(values) for name, values in answers.items()}
    session.run_into(turned, into)
    check(PAIR, feed, answers)
    check(PAIR, turned, into)


def test_other_shapes_are_refused(session: OrtSession) -> None:
    session.run(PAIR.inputs(2))
    with pytest.raises(InputError, match=r"CUDA graph was recorded for a \[2, .*, got a \[3, .*: open another session"):
        session.run(PAIR.inputs(3))
    session.run(PAIR.inputs(2))


def test_an_output_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    plain = onnxruntime.InferenceSession(str(PAIR.write(tmp_path)), providers=[CPU])
    runs = RecordedRuns(plain, [TensorSpec("boxes", "float32", (None, 4, None))], "cpu", 0)
    with pytest.raises(InputError, match=r"output 'boxes' is float32\[any, 4, any\]: a CUDA graph needs its shape"):
        runs.run(PAIR.inputs(1))

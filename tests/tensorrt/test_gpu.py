"""Engines that run: on a machine with a GPU and TensorRT or TensorRT-RTX; ``pytest -m gpu tests/tensorrt``."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import BackendUnavailable, InputError
from edgecv.runtimes.cuda import gpus, load_cuda
from edgecv.runtimes.engine import LIBRARIES, read_record, record_path
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.testing import TINY_MODELS, SessionContract, TinyModel, check
from tests.conftest import require

for _library in ("onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402

from edgecv.converters.tensorrt_from_onnx import TensorRtOptions, tensorrt_from_onnx, tensorrt_rtx_from_onnx  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402
from tests.tensorrt.graphs import half, quantized  # noqa: E402

pytestmark = pytest.mark.gpu
CONV = TINY_MODELS["conv_relu"]
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.11}  # int8: two steps of the activations' scale


def missing(backend: str) -> str:
    """What keeps a backend from running here, or nothing."""
    try:
        gpus()
    except BackendUnavailable as error:
        return str(error)
    if all(importlib.util.find_spec(name) is None for name in LIBRARIES[backend]):
        return f"{backend} is not installed"
    return ""


@pytest.fixture(params=LIBRARIES)
def backend(request: pytest.FixtureRequest) -> str:
    """Each library that can run here."""
    name: str = request.param
    if reason := missing(name):
        pytest.skip(reason)
    return name


def built(backend: str, model: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    function = tensorrt_rtx_from_onnx if backend == "tensorrt_rtx" else tensorrt_from_onnx
    return function(path, folder, TensorRtOptions(**options))


def opened(backend: str, path: Path, **options: Any) -> Any:
    kind: Any = session_class(backend)
    return kind(path, **options)


class TestContract(SessionContract):
    @pytest.fixture(params=["identity", "conv_relu", "two_inputs", "two_outputs", "image"])
    def model(self, request: pytest.FixtureRequest) -> TinyModel:
        return TINY_MODELS[request.param]

    @pytest.fixture(autouse=True)
    def _backend(self, backend: str) -> None:
        self.name = backend

    def open_model(self, model: TinyModel, folder: Path) -> Session:
        return open_session(built(self.name, model.build(), folder), backend=self.name)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_answers_agree_with_onnx_runtime(backend: str, precision: str, tmp_path: Path) -> None:
    model = {"fp32": lambda m: m, "fp16": half, "int8": quantized}[precision](CONV.build())
    path = built(backend, model, tmp_path)
    with opened(backend, path) as session, OrtSession(tmp_path / "model.onnx") as reference:
        for batch in (1, 3, 16):
            feed = CONV.inputs(batch)
            difference = np.abs(session.run(feed)["y"] - reference.run(feed)["y"])
            assert difference.max() <= TOLERANCE[precision] * max(1.0, float(np.abs(feed["x"]).max()))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_inspector_confirms_the_precision(backend: str, precision: str, tmp_path: Path) -> None:
    model = {"fp16": half, "int8": quantized}[precision](CONV.build())
    record = read_record(built(backend, model, tmp_path))
    assert record is not None
    assert record.layers
    assert record.place.gpu


def test_a_batch_outside_the_profile_is_refused_and_does_no_harm(backend: str, tmp_path: Path) -> None:
    with opened(backend, built(backend, CONV.build(), tmp_path, batch=(1, 2, 4))) as session:
        with pytest.raises(InputError, match=r"1 to 4, 3, 8, 8\] in this engine's profile"):
            session.run(CONV.inputs(5))
        check(CONV, CONV.inputs(4), session.run(CONV.inputs(4)))


def test_the_second_build_starts_from_the_timings_of_the_first(backend: str, tmp_path: Path) -> None:
    if backend == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX times nothing when it builds")
    cache = tmp_path / "timings"
    built(backend, CONV.build(), tmp_path, timing_cache=str(cache))
    size = cache.stat().st_size
    record_path(tmp_path / "model.engine").unlink()
    built(backend, CONV.build(), tmp_path, timing_cache=str(cache))
    assert cache.stat().st_size >= size > 0


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_sessions_in_threads_get_their_own_answers(backend: str, cuda_graph: bool, tmp_path: Path) -> None:
    path = built(backend, CONV.build(), tmp_path)
    failures: list[BaseException] = []

    def work(batch: int) -> None:
        try:
            with opened(backend, path, options=SessionOptions(cuda_graph=cuda_graph)) as session:
                for step in range(50):
                    feed = {"x": np.roll(CONV.inputs(batch)["x"], step, axis=-1)}
                    check(CONV, feed, session.run(feed))
        except (AssertionError, InputError, BackendUnavailable) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_replayed_graphs_answer_as_runs_do(backend: str, tmp_path: Path) -> None:
    with opened(backend, built(backend, CONV.build(), tmp_path), options=SessionOptions(cuda_graph=True)) as session:
        for batch in (2, 2, 2, 5, 5, 2):
            check(CONV, CONV.inputs(batch), session.run(CONV.inputs(batch)))


def test_layer_times_are_there_and_leave_the_session_as_it_was(backend: str, tmp_path: Path) -> None:
    with opened(backend, built(backend, CONV.build(), tmp_path)) as session:
        times = session.layer_times_ms(CONV.inputs(2))
        assert times
        assert all(value >= 0 for value in times.values())
        check(CONV, CONV.inputs(2), session.run(CONV.inputs(2)))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_plan_is_refused_and_the_process_lives(backend: str, damage: str, tmp_path: Path) -> None:
    path = built(backend, CONV.build(), tmp_path)
    record_path(path).unlink()
    data = path.read_bytes()
    flipped = bytes(byte ^ 0xFF for byte in data[:64]) + data[64:]
    path.write_bytes({"cut": data[: len(data) // 2], "flipped": flipped, "empty": b"", "text": b"no plan"}[damage])
    with pytest.raises(InputError, match="cannot open"):
        opened(backend, path)


def test_an_engine_of_another_device_is_refused(backend: str, tmp_path: Path) -> None:
    path = built(backend, CONV.build(), tmp_path)
    record = json.loads(record_path(path).read_text())
    record["place"]["gpu"] = "Another"
    record_path(path).write_text(json.dumps(record))
    with pytest.raises(InputError, match="was built for gpu 'Another', here is"):
        opened(backend, path)


def test_opening_and_closing_gives_all_memory_back(backend: str, tmp_path: Path) -> None:
    path = built(backend, CONV.build(), tmp_path)
    cuda = load_cuda()
    opened(backend, path).close()  # the library keeps some for itself at the first time
    free = cuda.memory()[0]
    for _ in range(20):
        with opened(backend, path, options=SessionOptions(cuda_graph=True)) as session:
            session.run(CONV.inputs(2))
            session.run(CONV.inputs(2))
    assert cuda.memory()[0] >= free - (8 << 20)

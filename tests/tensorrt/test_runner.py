"""The runner on every version of the bindings, with an engine that computes in numpy and CUDA in host memory."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import BackendUnavailable, InputError
from edgecv.runtimes.cuda import Gpu
from edgecv.runtimes.engine import record_path
from edgecv.runtimes.opening import open_session
from edgecv.runtimes.registry import availability
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.testing import TINY_MODELS, SessionContract, TinyModel, check
from tests.conftest import require

require("onnx")

from edgecv.converters.registry import converter  # noqa: E402
from edgecv.converters.tensorrt_from_onnx import TensorRtOptions, tensorrt_from_onnx, tensorrt_rtx_from_onnx  # noqa: E402
from tests.tensorrt.inhabit import inhabit, session_type  # noqa: E402
from tests.tensorrt.world import World, pack, unpack  # noqa: E402

CONV = TINY_MODELS["conv_relu"]
BUILT: dict[tuple[str, str], tuple[bytes, bytes]] = {}


def engine(world: World, model: TinyModel, folder: Path) -> Path:
    """The tiny model, built by the real converter, once per version."""
    path = folder / f"{model.name}.engine"
    key = (world.version, model.name)
    if key not in BUILT:
        options = TensorRtOptions(lint=model.name != "qdq")  # uint8 means here what it says
        _build(world)(model.write(folder), folder, options)
        BUILT[key] = (path.read_bytes(), record_path(path).read_bytes())
    path.write_bytes(BUILT[key][0])
    record_path(path).write_bytes(BUILT[key][1])
    return path


def _build(world: World) -> Callable[[Path, Path, TensorRtOptions], Path]:
    return tensorrt_rtx_from_onnx if world.backend == "tensorrt_rtx" else tensorrt_from_onnx


def opened(world: World, folder: Path, model: TinyModel = CONV, **options: Any) -> Any:
    return session_type(world)(engine(world, model, folder), **options)


class TestContract(SessionContract):
    """The oldest TensorRT, the newest, and TensorRT-RTX; the tests below run on every version."""

    @pytest.fixture(autouse=True, params=["10.3", "11.4", "rtx-1.7"])
    def _world(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.world = inhabit(World(request.param), monkeypatch)
        yield
        assert self.world.cuda.held == {}, "something was not given back"

    def open_model(self, model: TinyModel, folder: Path) -> Session:
        session: Session = opened(self.world, folder, model)
        return session


def test_a_bare_engine_opens_by_its_suffix_or_by_name(world: World, tmp_path: Path) -> None:
    path = engine(world, CONV, tmp_path)
    for backend in ("auto", world.backend):
        with open_session(path, backend=backend) as session:
            assert session.backend == world.backend
            check(CONV, CONV.inputs(3), session.run(CONV.inputs(3)))
    assert "Orin" in availability(world.backend).reason


def test_one_run_copies_runs_copies_and_waits(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path, TINY_MODELS["two_inputs"]) as session:
        session.run(TINY_MODELS["two_inputs"].inputs(2))
        world.cuda.calls.clear()
        session.run(TINY_MODELS["two_inputs"].inputs(2))
    copies = ["copy_to_device", "copy_to_device", "copy_to_host", "synchronize"]
    assert world.cuda.calls[:5] == ["set_device", *copies]


def test_buffers_are_taken_once_for_the_largest_batch(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        for batch in (16, 1, 7):
            session.run(CONV.inputs(batch))
    assert world.cuda.count("allocate") == world.cuda.count("allocate_pinned") == 2


def test_the_shape_is_set_only_when_it_changes(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        session.run(CONV.inputs(2))
        world.seen.clear()
        session.run(CONV.inputs(2))
        assert "IExecutionContext.set_input_shape" not in world.seen
        assert "IExecutionContext.set_tensor_address" not in world.seen
        session.run(CONV.inputs(3))
        assert world.seen["IExecutionContext.set_input_shape"]["shape"] == (3, 3, 8, 8)


def test_a_batch_outside_the_profile_is_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        with pytest.raises(InputError, match=r"'x' takes \[1 to 16, 3, 8, 8\] in this engine's profile, got \[17, 3"):
            session.run(CONV.inputs(17))
        check(CONV, CONV.inputs(16), session.run(CONV.inputs(16)))


def test_a_shape_that_the_context_refuses_names_the_profile(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        world.refuse["IExecutionContext.set_input_shape"] = False
        with pytest.raises(InputError, match=r"1 to 16, 3, 8, 8\] in this engine's profile, got \[2, 3, 8, 8\]: refus"):
            session.run(CONV.inputs(2))
        world.refuse.clear()
        world.seen.clear()
        check(CONV, CONV.inputs(16), session.run(CONV.inputs(16)))  # as before, but what the context holds is unknown
        assert "IExecutionContext.set_input_shape" in world.seen


def test_a_run_that_fails_is_an_error_and_the_next_one_works(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        world.refuse["IExecutionContext.execute_async_v3"] = False
        with pytest.raises(InputError, match=f"{world.backend} could not run the engine"):
            session.run(CONV.inputs(1))
        world.refuse.clear()
        check(CONV, CONV.inputs(1), session.run(CONV.inputs(1)))
    assert world.cuda.held == {}


@pytest.mark.parametrize("static", [False, True])
def test_a_graph_is_recorded_once_per_shape_and_replayed(world: World, tmp_path: Path, static: bool) -> None:
    with opened(world, tmp_path, options=SessionOptions(cuda_graph=True)) as session:
        for batch in (2, 2, 2) if static else (2, 2, 3, 3, 2):
            check(CONV, CONV.inputs(batch), session.run(CONV.inputs(batch)))
    recorded = 0 if world.backend == "tensorrt_rtx" else 1 if static else 3
    assert world.cuda.count("begin_capture") == world.cuda.count("destroy_graph") == recorded
    assert world.cuda.count("launch_graph") == {0: 0, 1: 2, 3: 2}[recorded]
    assert world.cuda.held == {}


def test_rtx_records_graphs_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = inhabit(World("rtx-1.7"), monkeypatch)
    with opened(world, tmp_path, options=SessionOptions(cuda_graph=True)):
        config = world.seen["ICudaEngine.create_execution_context"]["runtime_config"]
        assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"


def test_what_cannot_be_recorded_says_so(newest: World, tmp_path: Path) -> None:
    with opened(newest, tmp_path, options=SessionOptions(cuda_graph=True)) as session:
        newest.cuda.fail["copy_to_host"] = 1  # the warm-up's succeeds
        with pytest.raises(InputError, match=r"cannot be recorded, open it without cuda_graph: CUDA failed in copy_to"):
            session.run(CONV.inputs(1))
    assert newest.cuda.held == {}


def test_layer_times_name_every_layer_and_leave_no_trace(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        assert list(session.layer_times_ms(CONV.inputs(2)).values()) == [0.5, 1.5]
        check(CONV, CONV.inputs(2), session.run(CONV.inputs(2)))
        with pytest.raises(InputError, match=r"got \[17"):
            session.layer_times_ms(CONV.inputs(17))
    assert world.cuda.count("allocate") == 2


def test_two_sessions_in_threads_do_not_share_anything(newest: World, tmp_path: Path) -> None:
    path = engine(newest, CONV, tmp_path)
    sessions = [session_type(newest)(path) for _ in range(2)]

    def work(session: Session, batch: int) -> None:
        for _ in range(10):
            check(CONV, CONV.inputs(batch), session.run(CONV.inputs(batch)))

    threads = [threading.Thread(target=work, args=(session, 1 + i)) for i, session in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert newest.cuda.held == {"device": 4, "pinned": 4, "stream": 2}
    for session in sessions:
        session.close()
    assert newest.cuda.held == {}


@pytest.mark.parametrize("call", ["allocate", "allocate_pinned", "create_stream"])
def test_a_full_device_is_an_error_and_nothing_stays_behind(newest: World, tmp_path: Path, call: str) -> None:
    newest.cuda.fail[call] = 1 if call != "create_stream" else 0
    with pytest.raises(BackendUnavailable, match=r"CUDA failed in \w+: out of memory"):
        opened(newest, tmp_path)
    assert newest.cuda.held == {}


def test_a_full_device_says_how_much_is_missing(newest: World, tmp_path: Path) -> None:
    newest.cuda.fail["allocate"] = 0
    with pytest.raises(BackendUnavailable, match="'x' needs 0 MB on the device, 3 MB are free"):
        opened(newest, tmp_path)


def test_a_damaged_plan_is_refused_by_its_record(newest: World, tmp_path: Path) -> None:
    path = engine(newest, CONV, tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"conv_relu.engine is not the plan that conv_relu.engine.json describes"):
        session_type(newest)(path)


def test_a_damaged_plan_without_a_record_is_refused_with_the_library_s_words(world: World, tmp_path: Path) -> None:
    path = engine(world, CONV, tmp_path)
    record_path(path).unlink()
    session_type(world)(path).close()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=rf"{world.backend} cannot open .*Error Code 1: Serialization"):
        session_type(world)(path)
    assert world.cuda.held == {}


@pytest.mark.parametrize(
    ("here", "telling"),
    [
        ({"name": "Thor", "compute_capability": "11.0"}, "gpu 'Orin', here is 'Thor'; for compute cap.* '8.7', here"),
        ({"driver": "13.0"}, "driver '12.6', here is '13.0'"),
    ],
)
def test_an_engine_of_another_device_is_refused_with_both_sides(
    newest: World, tmp_path: Path, here: dict[str, Any], telling: str
) -> None:
    path = engine(newest, CONV, tmp_path)
    newest.gpu = dataclasses.replace(newest.gpu, **here)
    with pytest.raises(InputError, match=f"conv_relu.engine was built for {telling}.*build it again"):
        session_type(newest)(path)


def test_an_engine_of_another_version_or_library_is_refused(
    newest: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = engine(newest, CONV, tmp_path)
    newest.library.__version__ = "11.5.0"
    with pytest.raises(InputError, match=r"for version '11.4.0.106', here is '11.5.0': build it again on this device"):
        session_type(newest)(path)
    record = json.loads(record_path(path).read_text())
    record["place"]["library"] = "tensorrt_rtx"
    record_path(path).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"for library 'tensorrt_rtx', here is 'tensorrt': build"):
        session_type(newest)(path)


@pytest.mark.parametrize(
    ("text", "telling"),
    [("{", "not valid JSON"), ("{}", "lacks the key 'format'"), ('{"format": 1, "extra": 2}', "unknown key 'extra'")],
)
def test_a_broken_record_is_refused(newest: World, tmp_path: Path, text: str, telling: str) -> None:
    path = engine(newest, CONV, tmp_path)
    record_path(path).write_text(text)
    with pytest.raises(InputError, match=telling):
        session_type(newest)(path)


@pytest.mark.parametrize(
    ("member", "answer", "telling"),
    [
        ("ICudaEngine.get_tensor_location", lambda t: t.TensorLocation.HOST, "'x' is a shape that lies on the host"),
        ("ICudaEngine.is_shape_inference_io", lambda t: True, "'x' is a shape that lies on the host"),
        ("ICudaEngine.get_tensor_format", lambda t: t.TensorFormat.CHW4, "'x' has a vectorized layout"),
        ("ICudaEngine.get_tensor_dtype", lambda t: t.DataType.BF16, "'x' is a BF16; edgecv handles numeric"),
        ("IExecutionContext.infer_shapes", lambda t: ["x"], "cannot tell the shapes of x"),
        ("IExecutionContext.get_tensor_shape", lambda t: (-1, 2), "has a shape that depends on the data"),
        ("IExecutionContext.set_tensor_address", lambda t: False, "refuses a buffer for 'x'"),
    ],
)
def test_what_a_session_cannot_do_is_refused_when_it_opens(
    world: World, tmp_path: Path, member: str, answer: Callable[[Any], Any], telling: str
) -> None:
    path = engine(world, CONV, tmp_path)
    world.refuse[member] = answer(world.library)
    with pytest.raises(InputError, match=telling):
        session_type(world)(path)
    assert world.cuda.held == {}


def test_a_context_that_cannot_be_made_is_no_attribute_error(world: World, tmp_path: Path) -> None:
    path = engine(world, CONV, tmp_path)
    world.refuse["ICudaEngine.create_execution_context"] = None
    with pytest.raises(BackendUnavailable, match="cannot make an execution context: its scratch memory does not fit"):
        session_type(world)(path)
    assert world.cuda.held == {}


def test_an_output_larger_than_at_the_largest_input_gets_a_larger_buffer(newest: World, tmp_path: Path) -> None:
    with opened(newest, tmp_path) as session:
        tensor = session._outs[0]
        tensor_size = tensor.size
        session._release(tensor)
        session._take(tensor, 8)  # as if the largest input had given less
        newest.cuda.calls.clear()
        check(CONV, CONV.inputs(2), session.run(CONV.inputs(2)))
        assert newest.cuda.count("allocate") == 1
        assert tensor.size < tensor_size
    assert newest.cuda.held == {}


def test_a_device_that_is_not_there_is_refused(newest: World, tmp_path: Path) -> None:
    path = engine(newest, CONV, tmp_path)
    with pytest.raises(InputError, match="no device 'cuda:7'"):
        session_type(newest)(path, SessionOptions(device="cuda:7"))


def test_fixed_shapes_need_no_profile(newest: World, tmp_path: Path) -> None:
    import onnx

    model = CONV.build()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    (tmp_path / "fixed.onnx").write_bytes(model.SerializeToString())
    path = converter("tensorrt").convert(tmp_path / "fixed.onnx", tmp_path)
    assert unpack(path.read_bytes())[0]["profiles"] == []  # type: ignore[index]
    with open_session(path) as session:
        assert "IExecutionContext.set_input_shape" not in newest.seen
        check(CONV, CONV.inputs(2), session.run(CONV.inputs(2)))
        with pytest.raises(InputError, match=r"takes float32\[2, 3, 8, 8\], got float32\[1"):
            session.run(CONV.inputs(1))
    assert isinstance(onnx.load(tmp_path / "fixed.onnx"), onnx.ModelProto)


def test_outputs_may_be_filled_in_place_even_as_the_batch_changes(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as session:
        into = {"y": np.zeros((1, 2, 6, 6), np.float32)}
        session.run_into(CONV.inputs(1), into)
        check(CONV, CONV.inputs(1), into)
        with pytest.raises(InputError, match=r"output 'y' has shape \[2, 2, 6, 6\], got \[1, 2, 6, 6\]"):
            session.run_into(CONV.inputs(2), into)


def test_a_plan_of_somebody_else_needs_no_record(world: World, tmp_path: Path) -> None:
    head = {"profiles": [{"x": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}], "verbosity": "NONE"}
    path = tmp_path / "theirs.plan"
    path.write_bytes(pack(head, CONV.build().SerializeToString()))
    with session_type(world)(path) as session:
        check(CONV, CONV.inputs(4), session.run(CONV.inputs(4)))
        assert session.versions[world.backend] == world.library.__version__
        assert session.versions["cuda_driver"] == "12.6"


def test_a_session_on_the_second_gpu_chooses_it_in_every_thread(
    newest: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecv.runtimes import trt_session

    record_free = engine(newest, CONV, tmp_path)
    record_path(record_free).unlink()
    monkeypatch.setattr(trt_session, "find_gpu", lambda device: Gpu(1, "Orin", "8.7", 1, "12.6"))
    with session_type(newest)(record_free, SessionOptions(device="cuda:1")) as session:
        session.submit(CONV.inputs(1)).result(timeout=60)
        assert set(newest.cuda._devices.values()) == {1}
        assert len(newest.cuda._devices) == 2


def test_the_options_of_a_build_reach_the_engine(newest: World, tmp_path: Path) -> None:
    from edgecv.converters.tensorrt_from_onnx import tensorrt_from_onnx

    path = tensorrt_from_onnx(CONV.write(tmp_path), tmp_path, TensorRtOptions(batch=(2, 4, 8)))
    with open_session(path) as session, pytest.raises(InputError, match="2 to 8, 3, 8, 8"):
        session.run(CONV.inputs(1))

"""Sessions on engines of the TensorRT family: what TensorRT and TensorRT-RTX share."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgecv.errors import BackendUnavailable, InputError
from edgecv.runtimes.cuda import CudaRuntime, find_gpu, load_cuda
from edgecv.runtimes.engine import Log, Place, read_record
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

__all__ = ["EngineSession"]

DTYPES = {
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
}

Shape = tuple[int, ...]


class EngineSession(Session):
    """One engine with an execution context, a stream and pinned buffers of its own.

    A context does one thing at a time: runs from several threads wait for each other. Open a session per thread to let
    them overlap on the device. Buffers are as large as the largest shapes of the engine's first profile; other profiles
    are not used. ``threads`` means nothing here.

    Args:
        path: a plan, with or without the record that edgecv writes beside it; with one, an engine that was built for
            another device, library version or driver is refused with both sides named.
        options: ``device`` is ``"cuda"`` or ``"cuda:N"``; ``"cpu"``, every session's default, means ``"cuda"``. A CUDA
            graph is recorded once per shape.
        cuda: what to call CUDA through; by default whatever is installed.

    Raises:
        BackendUnavailable: there is no driver or device, or its memory is full.
        InputError: the plan is damaged, was built elsewhere, or needs what a session does not do.
    """

    suffixes = (".engine", ".plan")
    cuda_graphs = True
    library: ClassVar[Any]
    records_graphs: ClassVar[bool] = True  # False where the library records and replays them itself

    def __init__(
        self,
        path: str | Path,
        options: SessionOptions | None = None,
        *,
        cuda: CudaRuntime | None = None,
    ) -> None:
        options = options or SessionOptions()
        self._gpu = find_gpu(options.device)
        plan = _read_plan(Path(path), Place.here(self.backend, self.library.__version__, self._gpu))
        self._cuda = cuda or load_cuda()
        self._cuda.set_device(self._gpu.index)
        self._log = Log()
        self._logger: Any = self._log.logger(self.library)
        self._busy = threading.Lock()
        self._cuda_graph = options.cuda_graph
        self._graph: int | None = None
        self._shapes: dict[str, Shape] = {}
        with ExitStack() as held:
            self._stream = self._cuda.create_stream()
            held.callback(self._cuda.destroy_stream, self._stream)
            self._runtime: Any = self.library.Runtime(self._logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise InputError(f"{self.backend} cannot open {path}: {self._log.reason('the plan is damaged')}")
            self._tensors = [_Tensor.of(self.library, self._engine, i) for i in range(self._engine.num_io_tensors)]
            self._ins = [tensor for tensor in self._tensors if tensor.is_input]
            self._outs = [tensor for tensor in self._tensors if not tensor.is_input]
            self._context: Any = self._new_context()
            for tensor in self._tensors:
                held.callback(self._release, tensor)
            self._set_shapes({tensor.name: tensor.most for tensor in self._ins})
            super().__init__([t.spec for t in self._ins], [t.spec for t in self._outs], options)
            self._held = held.pop_all()

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> EngineSession:
        return cls(path, options)

    @classmethod
    def describe(cls) -> str:
        gpu = find_gpu("cuda")
        return f"{cls.backend} {cls.library.__version__} ({gpu.name}, CUDA {gpu.driver})"

    @property
    def versions(self) -> dict[str, str]:
        return {self.backend: str(self.library.__version__), "cuda_driver": self._gpu.driver}

    def layer_times_ms(self, inputs: Mapping[str, Array]) -> dict[str, float]:
        """Milliseconds that each layer takes for one batch, in the order of execution.

        Layers run one after another while they are timed, so the sum is more than a run takes. A second context is made
        for it, with scratch memory of its own; the session runs as fast as before afterwards.
        """
        self._check(inputs)
        with self._busy:
            self._load(inputs)
            profiler = _layer_times(self.library)
            context = self._new_context()
            for tensor in self._tensors:
                context.set_tensor_address(tensor.name, tensor.device)
                if tensor.is_input and tensor.is_free:
                    context.set_input_shape(tensor.name, self._shapes[tensor.name])
            self._enqueue(context)  # the first run of a context sets itself up
            self._cuda.synchronize(self._stream)
            context.profiler = profiler
            self._enqueue(context)
            self._cuda.synchronize(self._stream)
            return dict(profiler.times)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._busy:
            self._load(inputs)
            self._execute()
            return {tensor.name: tensor.array.copy() for tensor in self._outs}

    def _run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        with self._busy:
            self._load(inputs)
            for tensor in self._outs:
                given = outputs[tensor.name]
                if given.shape != tensor.array.shape:
                    raise InputError(
                        f"output {tensor.name!r} has shape {list(tensor.array.shape)}, got {list(given.shape)}"
                    )
            self._execute()
            for tensor in self._outs:
                np.copyto(outputs[tensor.name], tensor.array)

    def _close(self) -> None:
        with self._busy:
            self._cuda.set_device(self._gpu.index)
            self._drop_graph()
            self._context = None  # each of these uses the next
            self._engine = None
            self._runtime = None
            self._held.close()

    def _load(self, inputs: Mapping[str, Array]) -> None:
        """Prepare for the shapes of ``inputs`` and copy them to pinned memory."""
        if self._context is None:
            raise InputError("this session is closed; open another")
        self._cuda.set_device(self._gpu.index)  # a setting of the calling thread
        self._set_shapes({tensor.name: inputs[tensor.name].shape for tensor in self._ins})
        for tensor in self._ins:
            np.copyto(tensor.array, inputs[tensor.name])

    def _execute(self) -> None:
        try:
            if self._graph is not None:
                self._cuda.launch_graph(self._graph, self._stream)
                return
            self._enqueue(self._context)
            if (
                self._cuda_graph and self.records_graphs
            ):  # recorded after a run: the first one of a shape allocates, which a recording may not
                self._cuda.synchronize(self._stream)
                self._graph = self._record()
        finally:
            self._cuda.synchronize(self._stream)

    def _enqueue(self, context: Any) -> None:
        for tensor in self._ins:
            self._cuda.copy_to_device(tensor.device, tensor.host, tensor.array.nbytes, self._stream)
        if not context.execute_async_v3(self._stream):
            raise InputError(f"{self.backend} could not run the engine: {self._log.reason('no reason given')}")
        for tensor in self._outs:
            self._cuda.copy_to_host(tensor.host, tensor.device, tensor.array.nbytes, self._stream)

    def _record(self) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue(self._context)
        except (InputError, BackendUnavailable) as error:
            with contextlib.suppress(BackendUnavailable):  # the recording is broken: it only has to be ended
                self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
            raise InputError(f"the engine cannot be recorded, open it without cuda_graph: {error}") from error
        return self._cuda.end_capture(self._stream)

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        """Tell the context the inputs' shapes where they changed, and fit the buffers to what comes of it."""
        if shapes == self._shapes:
            return
        for tensor in self._ins:
            tensor.check(shapes[tensor.name])
        self._shapes = {}
        self._drop_graph()  # it holds the kernels and sizes of the shapes before
        for tensor in self._ins:
            if tensor.is_free and not self._context.set_input_shape(tensor.name, shapes[tensor.name]):
                raise InputError(f"{tensor.range}, got {list(shapes[tensor.name])}: {self._log.reason('refused')}")
        if missing := self._context.infer_shapes():
            raise InputError(f"{self.backend} cannot tell the shapes of {', '.join(missing)}")
        for tensor in self._tensors:
            self._fit(tensor, tuple(self._context.get_tensor_shape(tensor.name)))
        self._shapes = shapes

    def _fit(self, tensor: _Tensor, shape: Shape) -> None:
        """Point ``tensor.array`` at ``shape`` within its pinned buffer; take larger buffers where it is too small."""
        if -1 in shape:
            raise InputError(f"output {tensor.name!r} has a shape that depends on the data; a session cannot hold it")
        count = int(np.prod(shape, dtype=np.int64))
        needed = count * tensor.spec.numpy.itemsize
        if needed > tensor.size:
            self._release(tensor)
            self._take(tensor, needed)
            if not self._context.set_tensor_address(tensor.name, tensor.device):
                raise InputError(
                    f"{self.backend} refuses a buffer for {tensor.name!r}: {self._log.reason('no reason')}"
                )
        raw = (ctypes.c_uint8 * needed).from_address(tensor.host)
        tensor.array = np.frombuffer(memoryview(raw), tensor.spec.numpy, count).reshape(shape)

    def _take(self, tensor: _Tensor, size: int) -> None:
        try:
            tensor.device = self._cuda.allocate(size)
            tensor.host = self._cuda.allocate_pinned(size)
        except BackendUnavailable as error:
            free = self._cuda.memory()[0]
            raise BackendUnavailable(
                f"{tensor.name!r} needs {size >> 20} MB on the device, {free >> 20} MB are free: {error}"
            ) from error
        tensor.size = size

    def _release(self, tensor: _Tensor) -> None:
        if tensor.device:
            self._cuda.free(tensor.device)
        if tensor.host:
            self._cuda.free_pinned(tensor.host)
        tensor.device = tensor.host = tensor.size = 0
        tensor.array = np.empty(0)  # what it was lay in the memory given back

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.destroy_graph(graph)

    def _new_context(self) -> Any:
        context = self._create_context(self._engine)
        if context is None:
            reason = self._log.reason("its scratch memory does not fit")
            raise BackendUnavailable(f"{self.backend} cannot make an execution context: {reason}")
        return context

    def _create_context(self, engine: Any) -> Any:
        return engine.create_execution_context()


@dataclass(slots=True)
class _Tensor:
    """One input or output: what the engine says of it, its largest shape, and its buffers."""

    spec: TensorSpec
    is_input: bool
    least: Shape
    most: Shape
    device: int = 0
    host: int = 0
    size: int = 0
    array: Array = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, library: Any, engine: Any, index: int) -> _Tensor:
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise InputError(f"tensor {name!r} is a {kind}; edgecv handles numeric tensors only")
        if engine.is_shape_inference_io(name) or engine.get_tensor_location(name) != library.TensorLocation.DEVICE:
            raise InputError(f"tensor {name!r} is a shape that lies on the host; make it a constant of the graph")
        if engine.get_tensor_format(name) != library.TensorFormat.LINEAR:
            raise InputError(f"tensor {name!r} has a vectorized layout; build with linear inputs and outputs")
        shape = tuple(engine.get_tensor_shape(name))
        is_input = engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        least = most = shape
        if is_input and -1 in shape:
            least, _, most = (tuple(dims) for dims in engine.get_tensor_profile_shape(name, 0))
        sizes = tuple(None if size == -1 else size for size in shape)
        return cls(TensorSpec(name, DTYPES[kind], sizes), is_input, least, most)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_free(self) -> bool:
        """Whether its shape may change from run to run."""
        return None in (self.spec.shape or ())

    @property
    def range(self) -> str:
        """What shapes the engine was built for, in words."""
        pairs = zip(self.least, self.most, strict=True)
        sizes = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in pairs)
        return f"input {self.name!r} takes [{sizes}] in this engine's profile"

    def check(self, shape: Shape) -> None:
        """Raise ``InputError`` where ``shape`` is outside the profile."""
        if any(not low <= size <= high for low, size, high in zip(self.least, shape, self.most, strict=True)):
            raise InputError(f"{self.range}, got {list(shape)}: build it with a wider one")


def _read_plan(path: Path, here: Place) -> bytes:
    record = read_record(path)
    if record is not None:
        if different := record.place.differences(here):
            raise InputError(f"{path} was built for {'; for '.join(different)}: build it again on this device")
        record.check_plan(path)
    return path.read_bytes()


def _layer_times(library: Any) -> Any:
    """An object that TensorRT tells each layer's time."""

    class LayerTimes(library.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProfiler.__init__(self)  # the binding wants its own, not super()
            self.times: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times[layer_name] = self.times.get(layer_name, 0.0) + float(ms)

    return LayerTimes()

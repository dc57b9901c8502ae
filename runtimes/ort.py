"""Sessions on ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edgecv.cpu import SATURATES, warn_if_saturating
from edgecv.errors import InputError, one_line
from edgecv.runtimes.ort_graphs import RecordedRuns
from edgecv.runtimes.ort_providers import check_in_use, providers_for
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

__all__ = ["OrtSession"]

DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    **{f"tensor({kind}{bits})": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
# ONNX Runtime derives each of these from Exception, not from a class of its own.
ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.EngineError,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.ModelLoaded,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)


class OrtSession(Session):
    """An ``.onnx`` or ``.ort`` file on ONNX Runtime.

    Devices are ``"cpu"``, ``"cuda"`` and ``"tensorrt"`` (its providers of these names; ``"cuda:1"`` is the second GPU).
    A session that does not use the provider asked for is refused. A CUDA graph is recorded for the shapes of the first
    run, and for no others.

    ``optimized=False`` runs the graph as it is written, slowly, with int8 in exact arithmetic: a reference.
    ``model`` is what the file would hold, where it is in memory.
    """

    backend = "onnxruntime"
    suffixes = (".onnx", ".ort")
    cuda_graphs = True

    def __init__(
        self,
        path: str | Path,
        options: SessionOptions | None = None,
        *,
        optimized: bool = True,
        model: bytes | None = None,
    ) -> None:
        options = options or SessionOptions()
        providers = providers_for(options.device, options.cuda_graph)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # failures come back as exceptions; nothing is printed (nor by the fallback)
        if not optimized:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
            settings.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                str(path) if model is None else model, settings, providers=providers, enable_fallback=0
            )
            inputs = [_spec(node) for node in session.get_inputs()]
            outputs = [_spec(node) for node in session.get_outputs()]
            labels = session.get_modelmeta().custom_metadata_map
        except ERRORS as error:
            raise InputError(f"onnxruntime cannot open {path}: {one_line(error)}") from error
        check_in_use(session, options.device)
        if optimized and options.device == "cpu":
            warn_if_saturating(path, labels.get(SATURATES, ""))
        super().__init__(inputs, outputs, options)
        self._session: Any = session
        self._names = [spec.name for spec in outputs]
        self._bindings = threading.local()
        index = int(options.device.partition(":")[2] or 0)
        self._recorded = RecordedRuns(session, outputs, "cuda", index) if options.cuda_graph else None

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> OrtSession:
        return cls(path, options)

    @classmethod
    def open_bytes(cls, path: Path, files: Mapping[str, bytes], options: SessionOptions) -> OrtSession:
        return cls(path, options, model=files[path.suffix])

    @staticmethod
    def describe() -> str:
        names = [provider.removesuffix("ExecutionProvider") for provider in onnxruntime.get_available_providers()]
        return f"onnxruntime {onnxruntime.__version__} ({', '.join(names)})"

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            if self._recorded is not None:
                return self._recorded.run(inputs)
            results = self._session.run(self._names, inputs)
        except ERRORS as error:
            raise InputError(f"onnxruntime could not run the graph: {one_line(error)}") from error
        return dict(zip(self._names, results, strict=True))

    def _run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        if self._recorded is not None:
            super()._run_into(inputs, outputs)
            return
        try:
            self._session.run_with_iobinding(self._bind(inputs, outputs))
        except ERRORS as error:
            raise InputError(f"onnxruntime could not run the graph into these outputs: {one_line(error)}") from error

    def _bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """The calling thread's binding of these arrays, kept as long as the same arrays come again."""
        wanted = [*(inputs[spec.name] for spec in self.inputs), *(outputs[name] for name in self._names)]
        held: list[Array] = getattr(self._bindings, "arrays", [])
        if len(held) == len(wanted) and all(a is b for a, b in zip(held, wanted, strict=True)):
            return self._bindings.binding
        binding = self._session.io_binding()
        for spec in self.inputs:
            array = inputs[spec.name]
            if array.flags.c_contiguous:
                binding.bind_input(spec.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            else:
                binding.bind_cpu_input(spec.name, array)
        for name in self._names:
            array = outputs[name]
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        cacheable = all(inputs[spec.name].flags.c_contiguous for spec in self.inputs)
        self._bindings.arrays = wanted if cacheable else []
        self._bindings.binding = binding
        return binding

    def _close(self) -> None:
        self._session = None
        self._recorded = None
        self._bindings = threading.local()


def _spec(node: Any) -> TensorSpec:
    if node.type not in DTYPES:
        raise InputError(f"tensor {node.name!r} is a {node.type}; edgecv handles numeric tensors only")
    shape = None if node.shape is None else tuple(s if isinstance(s, int) and s > 0 else None for s in node.shape)
    return TensorSpec(node.name, DTYPES[node.type], shape)

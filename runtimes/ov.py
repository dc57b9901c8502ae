"""Sessions on OpenVINO."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import frontend

from edgecv.cpu import SATURATES, warn_if_saturating
from edgecv.errors import InputError, one_line
from edgecv.runtimes.ov_quantized import suit_kernels
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

__all__ = ["OvSession"]

FORMATS = {".xml": "ir", ".onnx": "onnx"}
LABEL = ["framework", SATURATES]  # where OpenVINO keeps the metadata of the ONNX file it read
# Those of the front ends derive from Exception, not from a class of their own.
ERRORS: tuple[type[Exception], ...] = (
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
    RuntimeError,
    TypeError,
    ValueError,
)


class OvSession(Session):
    """An ``.xml`` (OpenVINO IR) or ``.onnx`` file on an OpenVINO device.

    Arithmetic is kept in the graph's own precision: without that hint OpenVINO runs fp32 graphs in bf16 or fp16 on
    the devices that are faster so, and answers would depend on the device.
    """

    backend = "openvino"
    suffixes = tuple(FORMATS)

    def __init__(
        self, path: str | Path, options: SessionOptions | None = None, *, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Open ``path``, or ``files``, by suffix, which would be there."""
        options = options or SessionOptions()
        try:
            model = read_model(Path(path)) if files is None else _model_from(files, Path(path).suffix)
            self._compiled: Any = openvino.Core().compile_model(model, options.device.upper(), _config(options))
            inputs = _specs(self._compiled.inputs, model.inputs, "input")
            outputs = _specs(self._compiled.outputs, model.outputs, "output")
            label = model.get_rt_info(LABEL).value if model.has_rt_info(LABEL) else ""
        except ERRORS as error:
            raise InputError(f"openvino cannot open {path}: {one_line(error)}") from error
        if options.device == "cpu":
            warn_if_saturating(path, str(label))
        super().__init__(inputs, outputs, options)
        self._idle: deque[_Request] = deque()
        self._direct = threading.local()

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> OvSession:
        return cls(path, options)

    @classmethod
    def open_bytes(cls, path: Path, files: Mapping[str, bytes], options: SessionOptions) -> OvSession:
        return cls(path, options, files=files)

    @staticmethod
    def describe() -> str:
        return f"openvino {openvino.__version__.partition('-')[0]} ({', '.join(openvino.Core().available_devices)})"

    @property
    def versions(self) -> dict[str, str]:
        return {"openvino": openvino.__version__}

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = _Request(self._compiled.create_infer_request(), self.inputs, self.outputs)
        try:
            return request.run(inputs)
        except ERRORS as error:
            raise InputError(f"openvino could not run the graph: {one_line(error)}") from error
        finally:
            self._idle.append(request)

    def _run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        wanted = [*(inputs[spec.name] for spec in self.inputs), *(outputs[spec.name] for spec in self.outputs)]
        held: list[Array] = getattr(self._direct, "arrays", [])
        try:
            if len(held) == len(wanted) and all(a is b for a, b in zip(held, wanted, strict=True)):
                self._direct.request.infer()
            else:
                self._bind(inputs, outputs, wanted)
        except ERRORS as error:
            raise InputError(f"openvino could not run the graph into these outputs: {one_line(error)}") from error

    def _bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], wanted: list[Array]) -> None:
        """Run on new arrays, and keep the calling thread's request on them for when the same ones come again.

        OpenVINO quietly gives an output tensor of another shape memory of its own, so shapes are checked afterwards.
        """
        request = self._compiled.create_infer_request()
        for index, spec in enumerate(self.inputs):
            array = inputs[spec.name]
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=bool(array.flags.c_contiguous)))
        for index, spec in enumerate(self.outputs):
            request.set_output_tensor(index, openvino.Tensor(outputs[spec.name], shared_memory=True))
        request.infer()
        for index, spec in enumerate(self.outputs):
            shape = list(request.get_output_tensor(index).shape)
            if shape != list(outputs[spec.name].shape):
                raise InputError(f"output {spec.name!r} has shape {shape}, got {list(outputs[spec.name].shape)}")
        cacheable = all(inputs[spec.name].flags.c_contiguous for spec in self.inputs)
        self._direct.arrays = wanted if cacheable else []
        self._direct.request = request

    def _close(self) -> None:
        self._compiled = None
        self._idle.clear()
        self._direct = threading.local()


class _Request:
    """One infer request with input buffers of its own: binding them once is much cheaper than per call."""

    def __init__(self, request: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._request = request
        self._inputs = inputs
        self._outputs = outputs
        self._buffers: list[Array | None] = [None] * len(inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        for index, spec in enumerate(self._inputs):
            array = inputs[spec.name]
            buffer = self._buffers[index]
            if buffer is None or buffer.shape != array.shape:
                buffer = self._buffers[index] = np.empty(array.shape, array.dtype)
                self._request.set_input_tensor(index, openvino.Tensor(buffer, shared_memory=True))
            np.copyto(buffer, array)
        self._request.infer()
        return {spec.name: self._output(index) for index, spec in enumerate(self._outputs)}

    def _output(self, index: int) -> Array:
        result: Array = self._request.get_output_tensor(index).data.copy()
        return result


def read_model(path: Path) -> Any:
    """Read a model file with the reader for its suffix.

    ``openvino.Core.read_model`` tries every format it knows on a broken file, and some of those readers write to the
    terminal.
    """
    reader = frontend.FrontEndManager().load_by_framework(FORMATS[path.suffix.lower()])
    model = reader.convert(reader.load(str(path)))
    suit_kernels(model)
    return model


def _model_from(files: Mapping[str, bytes], suffix: str) -> Any:
    """Read a model from memory; the weights of an IR are copied, as its constants lie in them."""
    weights = np.frombuffer(files.get(".bin", b""), np.uint8)
    return openvino.Core().read_model(files[suffix], openvino.Tensor(weights) if weights.size else b"")


def _config(options: SessionOptions) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.device == "cpu":
        config["INFERENCE_PRECISION_HINT"] = "f32"
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
    return config


def _specs(ports: Sequence[Any], named: Sequence[Any], fallback: str) -> list[TensorSpec]:
    """What compiled ports are, by their names in the model: compiling adds those of nodes that it leaves out."""
    return [
        _spec(port, min(model_port.get_names(), default=f"{fallback}_{index}"))
        for index, (port, model_port) in enumerate(zip(ports, named, strict=True))
    ]


def _spec(port: Any, name: str) -> TensorSpec:
    partial = port.get_partial_shape()
    shape = None
    if not partial.rank.is_dynamic:
        shape = tuple(None if size.is_dynamic else size.get_length() for size in partial)
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, shape)

"""Runs of ONNX Runtime that its CUDA and TensorRT providers record as a CUDA graph and replay."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from edgecv.errors import InputError
from edgecv.tensors import Array, TensorSpec

__all__ = ["RecordedRuns"]


class RecordedRuns:
    """A session's inputs and outputs at fixed places on the device, for the shapes of the first run.

    A replay looks at nothing that a run is given: it reads the inputs and writes the outputs where they lay when it was
    recorded. So arrays are copied there and back, one run at a time.

    Args:
        device: as ONNX Runtime calls it, ``"cuda"``, and its number.
    """

    def __init__(self, session: Any, outputs: Sequence[TensorSpec], device: str, index: int) -> None:
        self._session, self._outputs = session, outputs
        self._place = (device, index)
        self._busy = threading.Lock()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ins: dict[str, Any] = {}
        self._outs: dict[str, Any] = {}
        self._binding: Any = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked inputs; the arrays returned are the caller's.

        Raises:
            InputError: the shapes are not those of the first run, or an output's shape is not known beforehand.
        """
        shapes = {name: array.shape for name, array in inputs.items()}
        with self._busy:
            if self._binding is None:
                self._bind(inputs)
                self._shapes = shapes
            if shapes != self._shapes:
                held, got = _shown(self._shapes), _shown(shapes)
                raise InputError(f"the CUDA graph was recorded for {held}, got {got}: open another session for these")
            for name, array in inputs.items():
                self._ins[name].update_inplace(array if array.flags.c_contiguous else array.copy())
            self._session.run_with_iobinding(self._binding)
            return {name: value.numpy().copy() for name, value in self._outs.items()}

    def _bind(self, inputs: Mapping[str, Array]) -> None:
        batch = next((array.shape[0] for array in inputs.values() if array.ndim), None)
        binding, create = self._session.io_binding(), onnxruntime.OrtValue.ortvalue_from_shape_and_type
        for name, array in inputs.items():
            self._ins[name] = create(array.shape, array.dtype.type, *self._place)
            binding.bind_ortvalue_input(name, self._ins[name])
        for spec in self._outputs:
            shape = (batch, *spec.shape[1:]) if spec.shape and spec.shape[0] is None else spec.shape
            if shape is None or None in shape:
                raise InputError(f"output {spec.name!r} is {spec}: a CUDA graph needs its shape beforehand")
            self._outs[spec.name] = create(shape, spec.numpy.type, *self._place)
            binding.bind_ortvalue_output(spec.name, self._outs[spec.name])
        self._binding = binding


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())

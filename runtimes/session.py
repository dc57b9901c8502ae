"""The inference interface that every backend implements."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

import numpy as np

from edgecv.errors import InputError
from edgecv.tensors import Array, TensorSpec

__all__ = ["Session", "SessionOptions"]

S = TypeVar("S", bound="Session")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a graph is run.

    ``threads`` of ``None`` leaves the number to the runtime (usually all cores). With ``cuda_graph`` a run on a GPU is
    recorded and replayed, which saves launch time on small networks; backends that cannot do it refuse it.
    """

    device: str = "cpu"
    threads: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cuda_graph, bool):
            raise InputError(f"cuda_graph is True or False, got {self.cuda_graph!r}")
        if self.threads is not None and (not isinstance(self.threads, int) or not 1 <= self.threads <= 1024):
            raise InputError(f"threads is a whole number from 1 to 1024 or None, got {self.threads!r}")


class Session(ABC):
    """One graph, loaded on one device: dict of arrays in, dict of arrays out.

    A backend writes ``open`` and ``_run``, and ``_run_into`` and ``_close`` where it gains by them. Inputs are checked
    here, once, so every backend refuses the same input with the same words. ``run``, ``run_into``
    and ``submit`` may be called from several threads at a time.

    Attributes:
        inputs, outputs: what the graph takes and gives.
        reason: why this backend and variant were chosen.
        load_ms: how long opening took, in milliseconds, where ``open_session`` opened it.
        bundle_sha256: the bundle's identity, where the graph came from one.
    """

    backend: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    cuda_graphs: ClassVar[bool] = False  # whether it does what ``SessionOptions.cuda_graph`` asks for

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: SessionOptions | None = None
    ) -> None:
        if not outputs:
            raise InputError("the graph has no outputs")
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.options = options or SessionOptions()
        if self.options.cuda_graph and not self.cuda_graphs:
            raise InputError(f"backend {self.backend!r} records no CUDA graphs: leave cuda_graph out")
        self.reason = f"{self.backend}: opened directly"
        self.load_ms: float | None = None
        self.bundle_sha256: str | None = None
        self._has_run = False
        self._closed = False
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    @classmethod
    @abstractmethod
    def open(cls, path: Path, options: SessionOptions) -> Session:
        """Open a model file whose suffix is in ``suffixes``."""

    @classmethod
    def open_bytes(cls, path: Path, files: Mapping[str, bytes], options: SessionOptions) -> Session:
        """Open a model whose files are in memory, by suffix; ``path`` says which is the main one, and names it."""
        raise InputError(f"backend {cls.backend!r} reads files only: unpack the bundle first, edgecv pack --undo")

    @staticmethod
    def describe() -> str:
        """The library's name, version and devices, for ``edgecv doctor``."""
        return "available"

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that run the graph and their versions."""
        return {}

    @property
    def has_run(self) -> bool:
        """Whether the graph has run at least once (the first run is often much slower)."""
        return self._has_run

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch. The returned arrays are the caller's to keep.

        Raises:
            InputError: a name, dtype or shape is not what the graph takes, or the session is closed.
        """
        self._check(inputs)
        outputs = self._run(inputs)
        self._has_run = True
        return outputs

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Run one batch into arrays that the caller allocated: the zero-copy twin of ``run`` for frame loops.

        It is fastest when the same arrays are passed again and again. Every output must be given, C-contiguous,
        writable and of the exact shape the batch produces.

        Raises:
            InputError: an input is refused as by ``run``, or an output array does not fit.
        """
        self._check(inputs)
        self._check_outputs(outputs)
        self._run_into(inputs, outputs)
        self._has_run = True

    def submit(self, inputs: Mapping[str, Array]) -> Future[dict[str, Array]]:
        """Start ``run`` in the background, so that the next frame is prepared while this one runs.

        Two batches run at a time; further ones wait in order. The arrays must not change until the result is there.
        """
        self._check(inputs)
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="edgecv-session")
            return self._executor.submit(self.run, inputs)

    def close(self) -> None:
        """Free the graph and its device memory, after what was submitted is done. Closing twice is harmless."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True)
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        ends = " -> ".join(", ".join(f"{s.name}: {s}" for s in side) for side in (self.inputs, self.outputs))
        return f"<{type(self).__name__} {ends}{' (closed)' if self._closed else ''}>"

    @abstractmethod
    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run checked inputs; return fresh arrays, in the order of ``outputs``."""

    def _run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Run checked inputs into checked arrays; the default copies."""
        for name, result in self._run(inputs).items():
            if outputs[name].shape != result.shape:
                raise InputError(f"output {name!r} has shape {list(result.shape)}, got {list(outputs[name].shape)}")
            np.copyto(outputs[name], result)

    def _close(self) -> None:  # noqa: B027  (optional: most backends free everything with the last reference)
        """Free what the backend holds."""

    def _check(self, inputs: Mapping[str, Array]) -> None:
        if self._closed:
            raise InputError("this session is closed; open another")
        if len(inputs) != len(self.inputs):
            self._refuse_names("inputs", self.inputs, inputs)
        for spec in self.inputs:
            if spec.name not in inputs:
                self._refuse_names("inputs", self.inputs, inputs)
            spec.check(inputs[spec.name])

    def _check_outputs(self, outputs: Mapping[str, Array]) -> None:
        for spec in self.outputs:
            if len(outputs) != len(self.outputs) or spec.name not in outputs:
                self._refuse_names("outputs", self.outputs, outputs)
            array = outputs[spec.name]
            spec.check(array, "output")
            if not (array.flags.c_contiguous and array.flags.writeable):
                raise InputError(f"output {spec.name!r} must be a C-contiguous, writable array")

    @staticmethod
    def _refuse_names(what: str, wanted: tuple[TensorSpec, ...], got: Mapping[str, Array]) -> None:
        names = ", ".join(spec.name for spec in wanted)
        raise InputError(f"the graph's {what} are: {names}; got: {', '.join(map(str, got)) or 'none'}")

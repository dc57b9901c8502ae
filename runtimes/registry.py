"""The backends by name, and what each can do here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from edgecv.errors import BackendUnavailable, one_line
from edgecv.plugins import Table
from edgecv.runtimes.session import Session

__all__ = ["BACKENDS", "Availability", "availability", "session_class"]

BACKENDS = Table(
    kind="backend",
    group="edgecv.runtimes",
    builtin={
        "onnxruntime": "edgecv.runtimes.ort:OrtSession",
        "openvino": "edgecv.runtimes.ov:OvSession",
        "tensorrt": "edgecv.runtimes.trt:TrtSession",
        "tensorrt_rtx": "edgecv.runtimes.trt_rtx:RtxSession",
        "torch": "edgecv.runtimes.pt:TorchSession",
    },
    extras={"tensorrt_rtx": "tensorrt-rtx", "torch": "train"},
)


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can run here; ``reason`` says what it is or what is missing."""

    backend: str
    available: bool
    reason: str
    suffixes: tuple[str, ...] = ()


def session_class(backend: str) -> type[Session]:
    """Import the session class of ``backend``.

    Raises:
        InputError: no such backend.
        BackendUnavailable: its library is not installed.
    """
    return cast(type[Session], BACKENDS.load(backend))


def availability(backend: str) -> Availability:
    """Say whether ``backend`` can run here, and if not why; what is broken or missing is reported, not raised."""
    try:
        found = session_class(backend)
        reason = found.describe()
    except BackendUnavailable as error:
        return Availability(backend, False, str(error))
    except (ImportError, OSError) as error:
        return Availability(backend, False, f"installed but broken: {one_line(error)}")
    return Availability(backend, True, reason, found.suffixes)

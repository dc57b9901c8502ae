"""What a TensorRT engine is and where it runs: the record beside the plan, and the libraries of the family."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import platform
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecv.errors import InputError, one_line
from edgecv.files import sha256
from edgecv.runtimes.cuda import Gpu
from edgecv.schema import decode, encode, loads

__all__ = ["LIBRARIES", "EngineRecord", "Log", "Place", "engine_key", "import_library", "read_record", "record_path"]

FORMAT = 1
# Names a library is installed under. PyPI's wheels of TensorRT-RTX hold the second, NVIDIA's archive the first.
LIBRARIES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine was built, or is about to run; it runs only in a place like the one it was built in.

    ``gpu``, ``compute_capability`` and ``driver`` are ``None`` for an engine built without a GPU, which TensorRT-RTX
    can do and which runs on any GPU that it supports.
    """

    library: str
    version: str
    system: str
    gpu: str | None
    compute_capability: str | None
    driver: str | None

    @classmethod
    def here(cls, library: str, version: str, gpu: Gpu | None) -> Place:
        """This machine with one of its devices."""
        system = f"{platform.system()}-{platform.machine()}".lower()
        if gpu is None:
            return cls(library, version, system, None, None, None)
        return cls(library, version, system, gpu.name, gpu.compute_capability, gpu.driver)

    def differences(self, here: Place) -> list[str]:
        """Each fact in which ``here`` is another place, with both sides; what this place leaves open is no difference.

        The libraries count first: between two of them no other fact means anything.
        """
        names = {field.name: field.name.replace("_", " ") for field in dataclasses.fields(self)}
        pairs = {name: (getattr(self, name), getattr(here, name)) for name in names}
        found = [
            f"{names[name]} {built!r}, here is {now!r}"
            for name, (built, now) in pairs.items()
            if built is not None and built != now
        ]
        return found[:1] if self.library != here.library else found


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The sidecar ``NAME.engine.json``: what the plan was built from, where and how, and what came of it.

    Args:
        key: ``engine_key`` of everything the plan depends on.
        options: those that change the plan.
        profile: for each input with free sizes, its smallest, usual and largest shape.
        precision: the lowest one that the graph asks for: ``fp32``, ``fp16`` or ``int8``.
        layers: how many layers of the engine compute in which precision; ``None`` where nobody could be asked.
    """

    format: int
    key: str
    onnx_sha256: str
    place: Place
    options: dict[str, Any]
    profile: dict[str, tuple[Shape, Shape, Shape]]
    precision: str
    layers: dict[str, int] | None
    plan_sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise InputError(f"engine record of format {self.format!r}; this edgecv reads format {FORMAT}")

    def check_plan(self, path: Path) -> None:
        """Raise ``InputError`` unless the plan at ``path`` is the recorded one, byte for byte."""
        if (path.stat().st_size, sha256(path)) != (self.size_bytes, self.plan_sha256):
            raise InputError(f"{path} is not the plan that {record_path(path).name} describes: build it again")


def engine_key(onnx_sha256: str, place: Place, options: dict[str, Any]) -> str:
    """One identity for a graph, a place and build options: another key, another engine."""
    parts = {"onnx": onnx_sha256, "place": encode(place), "options": encode(options)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def record_path(plan: Path) -> Path:
    """``model.engine.json`` for ``model.engine``."""
    return plan.with_name(f"{plan.name}.json")


def read_record(plan: Path) -> EngineRecord | None:
    """The record beside a plan; ``None`` where there is none, as for an engine that somebody else built."""
    path = record_path(plan)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {one_line(error)}") from error
    return decode(EngineRecord, loads(data, str(path)), str(path))


def import_library(name: str) -> Any:
    """Import ``tensorrt`` or ``tensorrt_rtx``, under whichever name it is installed."""
    *firsts, last = LIBRARIES[name]
    for module in firsts:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return importlib.import_module(last)


class Log:
    """What the library says: ``errors`` keeps the last complaints, ``sink`` gets every message with its severity.

    Severities are the library's: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose.
    """

    def __init__(self, sink: Callable[[int, str], None] | None = None) -> None:
        self._sink = sink
        self._errors: deque[str] = deque(maxlen=4)

    def take(self, severity: int, message: str) -> None:
        """Note one message."""
        if severity <= 1:
            self._errors.append(" ".join(message.split()))
        if self._sink is not None:
            self._sink(severity, message)

    def reason(self, otherwise: str) -> str:
        """The complaints since the last call, or ``otherwise`` where there were none."""
        found = "; ".join(dict.fromkeys(self._errors)) or otherwise
        self._errors.clear()
        return one_line(found)

    def logger(self, library: Any) -> Any:
        """The object that ``library`` takes as its logger. It must live as long as anything made with it."""
        take = self.take

        class Logger(library.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)  # the binding wants its own, not super()

            def log(self, severity: Any, msg: str) -> None:
                take(int(severity), msg)

        return Logger()

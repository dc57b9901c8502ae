"""Strict doubles of NVIDIA's bindings: they take exactly the calls that the real ones declare, and compute nothing.

A double knows each name, each overload's parameters and their types, which properties can be set, and what type comes
back. What a call answers is said by a table ``"Class.member" -> function``; without one, by the declared type.
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

CONTRACTS = {path.stem: path for path in sorted(Path(__file__).with_name("contracts").glob("*.json"))}
Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)
ALIASES = {"IParserError": "ParserError", "ILogger.Severity": "Severity"}
MAKING: list[type] = []  # the classes that the library itself is making an object of

Answers = Mapping[str, Callable[..., Any]]


def load(version: str, answers: Answers) -> Any:
    """The bindings of one version as a module."""
    contract = _read(version)
    module = ModuleType("tensorrt_rtx" if version.startswith("rtx") else "tensorrt")
    module.__dict__["__version__"] = contract["version"]
    kinds: dict[str, Any] = {}
    for name, facts in contract["classes"].items():
        kinds[name] = _enum(version, name) if "e" in facts else _class(name, facts, kinds, answers)
    kinds["Severity"] = Severity
    kinds["ILogger"].Severity = kinds["Severity"]
    for name, signatures in contract["functions"].items():
        module.__dict__[name] = _function(name, signatures, kinds, answers)
    module.__dict__.update({name: kind for name, kind in kinds.items() if name != "Severity"})
    return module


@functools.cache
def _read(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(CONTRACTS[version].read_text())
    return found


@functools.cache
def _enum(version: str, name: str) -> Any:
    return enum.IntEnum(name, _read(version)["classes"][name]["e"])


def make(kind: Any, **state: Any) -> Any:
    """An object that only the library makes; ``state`` is for the table's functions to find again."""
    MAKING.append(kind)
    try:
        made = kind()
    finally:
        MAKING.pop()
    made.__dict__.update({f"_{name}": value for name, value in state.items()})
    return made


@dataclass(frozen=True)
class Parameter:
    """One declared parameter."""

    name: str
    kind: str
    optional: bool


@functools.cache
def parameters(signature: str) -> tuple[list[Parameter], str]:
    """``f(self: A, x: int, y: str = None) -> bool`` as its parameters but ``self``, and what comes back."""
    inside, _, result = re.fullmatch(r"\w+\((.*)\)( -> )?(.*)", signature, re.DOTALL).groups()  # type: ignore[union-attr]
    found = []
    for part in re.split(r", (?=\w+: )", inside) if inside else []:
        name, _, rest = part.partition(": ")
        kind, equals, default = rest.partition(" = ")
        found.append(Parameter(name, f"{kind} | None" if default == "None" else kind, bool(equals)))
    return [item for item in found if item.name != "self"], result


class _Ready(type):
    """Refuses an object whose own ``__init__`` did not call the binding's, as pybind11 does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        if "_ready" not in made.__dict__:
            raise TypeError(f"{cls.__name__}.__init__() must be called when overriding __init__")
        return made


def _class(name: str, facts: dict[str, Any], kinds: dict[str, Any], answers: Answers) -> Any:
    methods = {key: _method(name, key, lines, kinds, answers) for key, lines in facts["m"].items() if lines}
    properties = {key: _property(name, key, facts, kinds, answers) for key in facts["p"]}
    body: dict[str, Any] = {**methods, **properties, "_settable": {key for key, can in facts["p"].items() if can}}
    body["__init__"] = _init(name, facts["m"].get("__init__", []), kinds, answers)
    body["__setattr__"] = _setattr
    for special in ("__bytes__", "__iter__", "__bool__"):  # the buffer protocol and sequences are in no docstring
        if f"{name}.{special}" in answers:
            body[special] = answers[f"{name}.{special}"]
    kind = _Ready(name, (), body)
    body["_own"] = kind
    type.__setattr__(kind, "_own", kind)
    return kind


def _init(name: str, signatures: list[str], kinds: dict[str, Any], answers: Answers) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if MAKING and MAKING[-1] is type(self):
            self.__dict__["_ready"] = True
            return
        if not signatures:
            raise TypeError(f"{name}: No constructor defined!")
        given = _match(f"{name}.__init__", signatures, args, kwargs, kinds)[0]
        self.__dict__.update({"_ready": True, **{f"_{key}": value for key, value in given.items()}})
        if f"{name}.__init__" in answers:
            answers[f"{name}.__init__"](self, **given)

    return init


def _method(
    owner: str, name: str, signatures: list[str], kinds: dict[str, Any], answers: Answers
) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, result = _match(f"{owner}.{name}", signatures, args, kwargs, kinds)
        return _answer(f"{owner}.{name}", (self,), given, result, kinds, answers)

    return method


def _function(name: str, signatures: list[str], kinds: dict[str, Any], answers: Answers) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        given, result = _match(name, signatures, args, kwargs, kinds)
        return _answer(name, (), given, result, kinds, answers)

    return function


def _property(owner: str, name: str, facts: dict[str, Any], kinds: dict[str, Any], answers: Answers) -> property:
    def read(self: Any) -> Any:
        if f"_set_{name}" in self.__dict__:
            return self.__dict__[f"_set_{name}"]
        return _answer(f"{owner}.{name}", (self,), {}, facts["pt"].get(name, "object"), kinds, answers)

    return property(read)


def _setattr(self: Any, name: str, value: Any) -> None:
    if name in self._settable:
        self.__dict__[f"_set_{name}"] = value
    elif type(self) is self._own:
        raise AttributeError(f"{type(self).__name__}.{name} does not exist or cannot be set")
    else:
        self.__dict__[name] = value  # a Python subclass has attributes of its own


def _match(
    what: str, signatures: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], kinds: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    for signature in signatures:
        wanted, result = parameters(signature)
        given = _bind(wanted, args, kwargs)
        if given is not None and all(accepts(p.kind, given[p.name], kinds) for p in wanted if p.name in given):
            return given, result
    values = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
    raise TypeError(f"{what}({values}): incompatible arguments; supported: {'; '.join(signatures)}")


def _bind(wanted: list[Parameter], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    names = [parameter.name for parameter in wanted]
    if len(args) > len(names) or set(kwargs) - set(names[len(args) :]):
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given if all(p.optional or p.name in given for p in wanted) else None


def accepts(kind: str, value: Any, kinds: dict[str, Any]) -> bool:
    """Whether the binding converts ``value`` to the declared type."""
    if kind.endswith(" | None"):
        return value is None or accepts(kind.removesuffix(" | None"), value, kinds)
    if kind == "Dims":
        return isinstance(value, (tuple, list, kinds["Dims"]))
    if kind in SIMPLE:
        types = SIMPLE[kind]
        return isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    found = kinds.get(_short(kind))
    return found is None or isinstance(value, found)


SIMPLE: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "buffer": (bytes, bytearray, memoryview),
    "float": (float, int),
    "int": (int,),
    "list": (list,),
    "str": (str,),
    "tuple": (tuple,),
    "typing.SupportsFloat": (float, int),
    "typing.SupportsInt": (int,),
    "typing_extensions.Buffer": (bytes, bytearray, memoryview),
}
DEFAULTS: dict[str, Any] = {"bool": True, "int": 0, "float": 0.0, "str": "", "None": None}


def _short(kind: str) -> str:
    last = re.split(r"::|(?<=tensorrt)\.|(?<=tensorrt_rtx)\.", kind)[-1]
    return ALIASES.get(last, last)


def _answer(
    what: str, owner: tuple[Any, ...], given: dict[str, Any], result: str, kinds: dict[str, Any], answers: Answers
) -> Any:
    if what in answers:
        return answers[what](*owner, **given)
    if result in DEFAULTS:
        return DEFAULTS[result]
    if result.lower().startswith(("list", "tuple")):
        return []
    kind = kinds.get(_short(result))
    if kind is None or issubclass(kind, enum.Enum):
        raise NotImplementedError(f"the table says nothing of {what}, which gives {result or 'nothing declared'}")
    return make(kind)


@functools.cache
def versions() -> tuple[str, ...]:
    """The versions there is a contract for, oldest first, TensorRT-RTX last."""
    return tuple(
        sorted(CONTRACTS, key=lambda text: (text.startswith("rtx"), [int(n) for n in re.findall(r"\d+", text)]))
    )

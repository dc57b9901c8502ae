"""Strict JSON to frozen dataclasses and back: unknown keys, missing keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from edgecv.errors import EdgeCVError, InputError
from edgecv.plugins import unknown

__all__ = ["decode", "dumps", "encode", "loads"]

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Turn dataclasses, tuples and mappings into what ``json`` writes; field order is kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dumps(value: Any) -> str:
    """Return ``value`` as indented JSON text; NaN and infinity are refused, the same value gives the same text."""
    return json.dumps(encode(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: bytes | str, where: str, error: type[EdgeCVError] = InputError) -> Any:
    """Parse JSON as the standard has it: no NaN, no duplicate keys, UTF-8 only."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where} is not valid JSON: {' '.join(str(cause).split())}") from cause


def decode(kind: type[T], value: Any, where: str, error: type[EdgeCVError] = InputError) -> T:
    """Build a ``kind`` (dataclass, scalar, tuple, dict, Literal or union of these) from parsed JSON.

    ``where`` names the place in messages. The dataclass's own ``__post_init__`` checks run too.
    """
    try:
        result: T = _decode(kind, value, where)
    except _Mismatch as cause:
        raise error(str(cause)) from None
    except InputError as cause:
        raise error(f"{where}: {cause}") from cause
    return result


class _Mismatch(Exception):
    """A value does not have the wanted type."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _decode(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is not None:
        return _GENERIC[origin](kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _Mismatch(f"{where} must be a finite number") from error
    if kind is types.NoneType and value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Mismatch(f"{where} must be {_name(kind)}, not {_show(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Mismatch(f"{where} must be a finite number")
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(f"{where} must be an object, not {_show(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in value:
        if key not in fields:
            raise _Mismatch(f"{where}: {unknown('key', key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise _Mismatch(f"{where} lacks the key {name!r}")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _decode(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _tuple(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _Mismatch(f"{where} must be a list, not {_show(value)}")
    arguments = typing.get_args(kind)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise _Mismatch(f"{where} must have {len(arguments)} items, not {len(value)}")
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(_decode(argument, item, f"{where}[{i}]") for i, (argument, item) in pairs)


def _dict(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(f"{where} must be an object, not {_show(value)}")
    return {key: _decode(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}


def _literal(kind: Any, value: Any, where: str) -> Any:
    for choice in typing.get_args(kind):
        if type(value) is type(choice) and value == choice:
            return value
    raise _Mismatch(f"{where} must be one of {', '.join(map(repr, typing.get_args(kind)))}, not {_show(value)}")


def _union(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    for choice in choices:
        try:
            return _decode(choice, value, where)
        except _Mismatch as mismatch:
            if dataclasses.is_dataclass(choice) and isinstance(value, dict):
                raise mismatch from None
    raise _Mismatch(f"{where} must be {' or '.join(map(_name, choices))}, not {_show(value)}")


def _name(kind: Any) -> str:
    names: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "a list"
    return names.get(kind) or ("null" if kind is types.NoneType else "an object")


def _show(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:39] + "…"


_GENERIC: dict[Any, Callable[[Any, Any, str], Any]] = {
    tuple: _tuple,
    dict: _dict,
    Mapping: _dict,
    Literal: _literal,
    Union: _union,
    types.UnionType: _union,
}

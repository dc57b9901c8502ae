"""Strict JSON: what is written comes back, and nothing else is accepted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.errors import BundleError, InputError, one_line
from edgecv.schema import decode, dumps, encode, loads


@dataclass(frozen=True)
class Inner:
    name: str
    size: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("a name is needed")


@dataclass(frozen=True)
class Outer:
    ratio: float
    inner: Inner | None = None
    mode: Literal["fast", "small", 3] = "fast"
    table: dict[str, Inner] = field(default_factory=dict)
    flags: tuple[bool, ...] = ()
    extra: Any = None


inners = st.builds(Inner, st.text(min_size=1), st.tuples(st.integers(), st.integers()))
outers = st.builds(
    Outer,
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    inner=st.none() | inners,
    mode=st.sampled_from(["fast", "small", 3]),
    table=st.dictionaries(st.text(), inners, max_size=3),
    flags=st.lists(st.booleans(), max_size=3).map(tuple),
    extra=st.none() | st.lists(st.integers()) | st.text(),
)


@dataclass(frozen=True)
class Named:
    bits: Mapping[str, int] = field(default_factory=dict)


def test_a_mapping_is_an_object() -> None:
    assert decode(Named, {"bits": {"first": 8}}, "text") == Named({"first": 8})
    with pytest.raises(InputError, match=r"text\.bits\.first must be a whole number"):
        decode(Named, {"bits": {"first": "8"}}, "text")


@given(outers)
def test_what_is_written_comes_back(value: Outer) -> None:
    assert decode(Outer, loads(dumps(value), "text"), "text") == value


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_text_is_parsed_or_refused_in_one_line(text: bytes | str) -> None:
    try:
        loads(text, "the file")
    except InputError as error:
        assert str(error).startswith("the file is not valid JSON")  # noqa: PT017  (either outcome is right)
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "telling"),
    [
        ([], "x must be an object, not []"),
        ({}, "x lacks the key 'ratio'"),
        ({"ratio": 1, "inner": {"nam": "a"}}, "x.inner: unknown key 'nam'; did you mean 'name'?"),
        ({"ratio": "1"}, 'x.ratio must be a number, not "1"'),
        ({"ratio": True}, "x.ratio must be a number, not true"),
        ({"ratio": float("inf")}, "x.ratio must be a finite number"),
        ({"ratio": 10**400}, "x.ratio must be a finite number"),
        ({"ratio": 1, "inner": 3}, "x.inner must be an object or null, not 3"),
        ({"ratio": 1, "inner": {"name": ""}}, "x: a name is needed"),
        ({"ratio": 1, "inner": {"name": "a", "size": [1]}}, "x.inner.size must have 2 items, not 1"),
        ({"ratio": 1, "inner": {"name": "a", "size": [1, 2.0]}}, "x.inner.size[1] must be a whole number, not 2.0"),
        ({"ratio": 1, "mode": "big"}, "x.mode must be one of 'fast', 'small', 3, not \"big\""),
        ({"ratio": 1, "mode": 3.0}, "x.mode must be one of"),
        ({"ratio": 1, "table": []}, "x.table must be an object, not []"),
        ({"ratio": 1, "table": {"k": None}}, "x.table.k must be an object, not null"),
        ({"ratio": 1, "flags": "yes"}, 'x.flags must be a list, not "yes"'),
        ({"ratio": 1, "flags": [True, 0]}, "x.flags[1] must be true or false, not 0"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(data: Any, telling: str) -> None:
    with pytest.raises(BundleError) as raised:
        decode(Outer, data, "x", BundleError)
    assert telling in str(raised.value)


def test_numbers_that_json_lacks_are_not_written() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            dumps(Inner(name="a", size=(value, 1)))  # type: ignore[arg-type]


def test_paths_and_mappings_become_text_and_objects() -> None:
    assert encode({1: Path("a/b"), "t": (1, (2,))}) == {"1": "a/b", "t": [1, [2]]}


def test_unicode_is_written_as_it_is() -> None:
    assert "Kätzchen" in dumps({"label": "Kätzchen"})
    assert json.loads(dumps({"label": "\u2028"})) == {"label": "\u2028"}


def test_messages_of_other_libraries_fit_on_one_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line("x" * 1000)) == 300
    assert one_line(np.float32(1.5)) == "1.5"

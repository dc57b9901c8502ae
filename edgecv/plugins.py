"""Tables from a name to code that is imported on first use, extended by entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgecv.errors import BackendUnavailable, InputError

__all__ = ["Table", "unknown"]


@dataclass(frozen=True, slots=True)
class Table:
    """Names of one kind of thing: the built-in ones as ``"module:callable"``, then those of an entry-point group.

    Built-in names come first and in the order written, which is the order of preference.
    """

    kind: str
    group: str
    builtin: Mapping[str, str]
    extras: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Every name, built-in ones first."""
        return tuple(self._entries())

    def load(self, name: str) -> Any:
        """Import what ``name`` stands for.

        A library that is not installed is a ``BackendUnavailable``; one that is installed but broken passes through.
        """
        try:
            return self._entry(name).load()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "edgecv":
                raise
            raise BackendUnavailable(
                f"{self.kind} {name!r} needs the Python package {error.name!r}, which is not installed: "
                f"pip install 'edgecv[{self.extras.get(name, name)}]'"
            ) from error

    def _entry(self, name: str) -> EntryPoint:
        if name in self.builtin:  # other packages cannot replace it, and to ask them all takes 40 ms
            return EntryPoint(name, self.builtin[name], self.group)
        entries = self._entries()
        if name not in entries:
            raise InputError(unknown(self.kind, name, entries))
        return entries[name]

    def _entries(self) -> dict[str, EntryPoint]:
        found = {name: EntryPoint(name, value, self.group) for name, value in self.builtin.items()}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, entry)
        return found


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Word the message for a name that is not in ``known``, with the nearest one as a guess."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{guess} (known: {', '.join(names) or 'none'})"

"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, float, float], None]
"""Called as ``progress(stage, done, total)``; a stage is finished when ``done`` equals ``total``."""


def silent(stage: str, done: float, total: float) -> None:
    """Report nothing."""

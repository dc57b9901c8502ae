"""The pair of graphs that NanoTrack is published as, behind the two sessions a tracker takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecv.errors import InputError
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

__all__ = ["PublishedSearch", "PublishedTemplate"]


class PublishedTemplate(Session):
    """``template`` uint8 ``[1, side, side, 3]`` RGB to ``features``, through the published backbone.

    ``backbone`` takes float BGR 0-255 ``[1, 3, any, any]``: the published file allows one size only.
    """

    backend = "published"

    def __init__(self, backbone: Session, side: int = 127) -> None:
        super().__init__(
            [TensorSpec("template", "uint8", (1, side, side, 3))], [TensorSpec("features", "float32", None)]
        )
        self._backbone = backbone

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> PublishedTemplate:
        raise InputError("a published pair is two files: open the backbone and wrap it")

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"features": _features(self._backbone, inputs["template"])}


class PublishedSearch(Session):
    """``features`` and ``search`` uint8 ``[1, side, side, 3]`` RGB to ``score`` and ``box``, through both files."""

    backend = "published"

    def __init__(self, backbone: Session, head: Session, side: int = 255) -> None:
        if len(head.inputs) != 2 or len(head.outputs) != 2:
            raise InputError(f"NanoTrack's head takes two inputs and gives score and box, this one is {head!r}")
        super().__init__(
            [TensorSpec("features", "float32", None), TensorSpec("search", "uint8", (1, side, side, 3))],
            [TensorSpec("score", "float32", None), TensorSpec("box", "float32", None)],
        )
        self._backbone, self._head = backbone, head

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> PublishedSearch:
        raise InputError("a published pair is two files: open both and wrap them")

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        features = _features(self._backbone, inputs["search"])
        names = [spec.name for spec in self._head.inputs]
        found = self._head.run(dict(zip(names, (inputs["features"], features), strict=True)))
        return dict(zip(("score", "box"), found.values(), strict=True))


def _features(backbone: Session, frames: Array) -> Array:
    bgr = np.ascontiguousarray(frames[..., ::-1].transpose(0, 3, 1, 2), np.float32)
    return next(iter(backbone.run({backbone.inputs[0].name: bgr}).values()))

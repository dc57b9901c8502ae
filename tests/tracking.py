"""Sessions in plain numpy that follow a bright square, and sequences of it on disk, for tests of tracking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from edgecv.pipelines.tracking import Confidence, TrackerSettings
from edgecv.pipelines.tracking.boxes import Box
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

CELLS, STRIDE = 16, 16
# Of the maps below: the peak is 6 where the square is and -6 where it is not.
SURE = Confidence(response=(0.0, 1.0, 0.0, 0.0), full=(0.0, 1.0, 0.0, 0.0, 0.0), patience=3)
SETTINGS = TrackerSettings(head="points", stride=STRIDE, penalty=0.05, window=0.3, rate=0.5, confidence=SURE)


class Template(Session):
    """The exemplar's mean of each channel, as 1x4x4 cells."""

    backend = "numpy"

    def __init__(self) -> None:
        super().__init__(
            [TensorSpec("template", "uint8", (None, 127, 127, 3))],
            [TensorSpec("features", "float32", (None, None, None, None))],
        )
        self.runs = 0

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Template:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.runs += 1
        mean = inputs["template"].astype(np.float32).mean((1, 2))
        return {"features": np.ascontiguousarray(np.broadcast_to(mean[:, :, None, None], (*mean.shape, 4, 4)))}


class Search(Session):
    """Bright pixels: their bounding box at the cell of their middle, a logit of 6 there and of -6 elsewhere."""

    backend = "numpy"

    def __init__(self) -> None:
        super().__init__(
            [
                TensorSpec("features", "float32", (None, None, None, None)),
                TensorSpec("search", "uint8", (None, 255, 255, 3)),
            ],
            [TensorSpec(name, "float32", (None, None, None, None)) for name in ("score", "box")],
        )
        self.crops: list[Array] = []
        self.batches: list[int] = []

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Search:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs["search"]))
        self.crops.extend(inputs["search"].copy())
        answers = [_answer(crop) for crop in inputs["search"]]
        score, box = (np.stack(part) for part in zip(*answers, strict=True))
        return {"score": score, "box": box}


def _answer(crop: Array) -> tuple[Array, Array]:
    score, box = np.zeros((2, CELLS, CELLS), np.float32), np.full((4, CELLS, CELLS), 20.0, np.float32)
    score[0] = 6.0
    rows, columns = np.nonzero(crop.min(2) > 200)
    if len(rows):
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        points = (np.arange(CELLS) - CELLS // 2) * STRIDE + 127.5
        row, column = np.abs(points - (top + bottom) / 2).argmin(), np.abs(points - (left + right) / 2).argmin()
        score[:, row, column] = 0.0, 6.0
        x, y = points[column], points[row]
        box[:, row, column] = x - left, y - top, right - x, bottom - y
    return score, box


def scene(box: Box | None, size: tuple[int, int] = (240, 320)) -> Array:
    """A dark textured frame with a bright square, or without one."""
    frame = np.random.default_rng(0).integers(0, 120, (*size, 3), np.uint8)
    if box is not None:
        x, y, w, h = (round(value) for value in box)
        frame[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = 255
    return frame


def write_frames(folder: Path, count: int, size: tuple[int, int] = (24, 32)) -> None:
    """``count`` frames as files named by number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(1, count + 1):
        cv2.imwrite(str(folder / f"{index:08d}.png"), scene((index, 5, 8, 6), size))

"""Annotated sequences of frames, in the folder layouts of GOT-10k, OTB, VOT and LaSOT."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, one_line
from edgecv.images import find_images, read_image
from edgecv.pipelines.tracking.boxes import Box

__all__ = ["TrackSequence", "open_sequences"]

logger = logging.getLogger(__name__)

# Which frames of a sequence are annotated, first and last (OTB's own list), where they are not the first ones.
ANNOTATED = {"David": (300, 770)}
DEPTH = 3  # folders below the one given: LaSOT has category/sequence, GOT-10k split/sequence
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrackSequence:
    """Frames of one sequence and the target's box in each.

    Attributes:
        boxes: ``[frames, 4]``, x, y, w, h in pixels as published (OTB and LaSOT count pixels from 1); a polygon is
            taken as its hull; NaN where the data does not say.
        visible: ``[frames]``, whether the target can be seen, where the data says so; a frame without a box never is.
    """

    name: str
    files: tuple[Path, ...]
    boxes: Floats = field(repr=False)
    visible: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Frame ``index``, uint8 RGB."""
        return read_image(self.files[index])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (read_image(file) for file in self.files)

    @property
    def first_box(self) -> Box:
        """Where the target is in the first frame."""
        x, y, w, h = self.boxes[0].tolist()
        return x, y, w, h

    @property
    def annotated(self) -> bool:
        """Whether there is more than the first frame's box: GOT-10k's test sequences have only that."""
        return bool(np.isfinite(self.boxes[1:]).any())


def open_sequences(source: str | Path) -> tuple[TrackSequence, ...]:
    """Open a sequence's folder, or every sequence in a folder, sorted by name.

    Taken are the layouts of GOT-10k (``NAME/00000001.jpg``), OTB (``NAME/img`` with ``groundtruth_rect.txt``, or
    ``.1.txt``, ``.2.txt`` for several targets), VOT (``NAME/color``; polygons) and LaSOT (``CATEGORY/NAME/img``).

    Raises:
        InputError: there is no sequence, or one of them is broken.
    """
    root = Path(source)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; one with sequences was expected")
    folders = [root]
    for _ in range(DEPTH):
        found = [sequence for folder in folders for sequence in _sequences_of(folder)]
        if found:
            return tuple(sorted(found, key=lambda sequence: sequence.name))
        folders = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir()]
    raise InputError(f"{root} holds no sequence: a folder with frames and groundtruth.txt or groundtruth_rect.txt")


def _sequences_of(folder: Path) -> list[TrackSequence]:
    truths = sorted(path for path in folder.glob("groundtruth*.txt") if re.search(r"truth(_rect)?(\.\d)?$", path.stem))
    truths = [path for path in truths if path.stat().st_size]  # OTB's Human4 has an empty one beside the right one
    several = len(truths) > 1
    return [_sequence(folder, path, f".{index}" if several else "") for index, path in enumerate(truths, 1)]


def _sequence(folder: Path, truth: Path, suffix: str) -> TrackSequence:
    places = [folder / "img", folder / "color", folder]
    files = next((found for place in places if place.is_dir() and (found := find_images(place))), [])
    if not files:
        raise InputError(f"sequence {folder} has no frames in img, color or itself")
    boxes = _boxes(truth)
    if folder.name in ANNOTATED and len(files) > len(boxes):
        first, last = ANNOTATED[folder.name]
        files = files[first - 1 : last]
    if len(boxes) == 1:
        boxes = np.concatenate([boxes, np.full((len(files) - 1, 4), np.nan)])
    if len(boxes) != len(files):
        logger.warning("%s: %d frames and %d boxes; the shorter counts", folder, len(files), len(boxes))
    count = min(len(files), len(boxes))
    boxes = boxes[:count]
    if not np.isfinite(boxes[0]).all() or boxes[0, 2:].min() <= 0:
        raise InputError(f"{truth}: the first box must have an area, got {boxes[0].tolist()}")
    visible = _visible(folder, count) & (boxes[:, 2:] > 0).all(1)
    return TrackSequence(folder.name + suffix, tuple(files[:count]), boxes, visible)


def _boxes(path: Path) -> Floats:
    rows = [_numbers(path, line) for line in path.read_text().splitlines() if line.strip()]
    if not rows or {len(row) for row in rows} not in ({4}, {8}):
        raise InputError(f"{path}: a line holds 4 numbers (x, y, w, h) or 8 (a polygon's corners)")
    values = np.array(rows, np.float64)
    if values.shape[1] == 4:
        return values
    corners = values.reshape(-1, 4, 2)
    near, far = corners.min(1), corners.max(1)
    return np.concatenate([near, far - near], axis=1)


def _numbers(path: Path, line: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[,;\s]+", line.strip())]
    except ValueError as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def _visible(folder: Path, count: int) -> NDArray[np.bool_]:
    """GOT-10k says how much of the target is covered, or where it is absent; LaSOT where it is hidden or outside."""
    visible = np.ones(count, bool)
    cover, absence = folder / "cover.label", folder / "absence.label"
    if cover.is_file():
        visible &= _flags(cover, count) > 0
    elif absence.is_file():
        visible &= _flags(absence, count) == 0
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        if (folder / name).is_file():
            visible &= _flags(folder / name, count) == 0
    return visible


def _flags(path: Path, count: int) -> Floats:
    values = _numbers(path, path.read_text())
    if len(values) < count:
        raise InputError(f"{path}: {count} numbers, one for each frame, were expected, got {len(values)}")
    return np.array(values[:count])

"""Result files that the got10k toolkit reads: the formats of GOT-10k and OTB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, one_line
from edgecv.files import write_file
from edgecv.pipelines.tracking.scoring import Run

__all__ = ["read_boxes", "write_results"]

DIGITS = 5  # a tracker's boxes are whole numbers of 1/32 of a pixel: nothing is lost
Floats = NDArray[np.float64]


def write_results(runs: Sequence[Run], folder: str | Path, layout: Literal["got10k", "otb"] = "got10k") -> list[Path]:
    """Write one file of boxes for each run and one of seconds; return the former.

    ``folder`` is the toolkit's for one tracker: ``results/GOT-10k/NAME`` takes ``SEQUENCE/SEQUENCE_001.txt`` and
    ``SEQUENCE_time.txt``, ``results/OTB2015/NAME`` takes ``SEQUENCE.txt`` and ``times/SEQUENCE_time.txt``.
    """
    if layout not in ("got10k", "otb"):
        raise InputError(f"layout is 'got10k' or 'otb', got {layout!r}")
    root, written = Path(folder), []
    for run in runs:
        name = run.sequence.name
        if layout == "got10k":
            boxes, times = root / name / f"{name}_001.txt", root / name / f"{name}_time.txt"
        else:
            boxes, times = root / f"{name}.txt", root / "times" / f"{name}_time.txt"
        for path, text in ((boxes, _lines(run.boxes, DIGITS)), (times, _lines(run.seconds[:, None], 8))):
            _make(path.parent)
            write_file(path, text)
        written.append(boxes)
    return written


def read_boxes(path: str | Path) -> Floats:
    """Read a file of boxes, one ``x,y,w,h`` per line, as ``[frames, 4]``."""
    try:
        boxes = np.array([[float(part) for part in line.split(",")] for line in Path(path).read_text().split()])
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is not a file of boxes: {one_line(error)}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{path} is not a file of boxes: a line holds x,y,w,h")
    return boxes


def _lines(values: Floats, digits: int) -> str:
    return "".join(",".join(f"{value:.{digits}f}" for value in row) + "\n" for row in values)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder}: {one_line(error)}") from error

"""A gallery: enrolled identities by label, searched by the vectors of an embedder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecv.errors import InputError, one_line
from edgecv.files import write_file
from edgecv.pipelines.embedder import Embedder, Floats, Image, cosines, unit
from edgecv.plugins import unknown
from edgecv.schema import decode, dumps, loads

__all__ = ["Gallery", "Match"]

FORMAT = 1
CANCELLED = 1e-6  # length of a mean of unit vectors below which its direction is rounding noise


@dataclass(frozen=True, slots=True)
class Match:
    """One label of a gallery and the cosine, -1 to 1, between its vector and the image's."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Stored:
    """A gallery's file: for each label, how many unit vectors were enrolled, and their sum."""

    format: int
    dims: int | None
    bundle_sha256: str | None
    enrolled: dict[str, tuple[int, tuple[float, ...]]]


class Gallery:
    """Enrolled vectors by label; the search is exact: one matrix product.

    A label's vector is the mean of the unit vectors of its images, brought to length 1.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._enrolled: dict[str, tuple[int, Floats]] = {}
        self._matrix: Floats | None = None  # one row per label; made by the first search after a change

    def enrol(self, label: str, images: Image | Sequence[Image]) -> None:
        """Add one image or a list of them to ``label``, which may be new; all of them or, on an error, none.

        Raises:
            InputError: the label is empty or not one line, an image is refused, or the vectors cancel each other out.
        """
        _check_label(label)
        units = np.atleast_2d(self._units(images))
        count, total = self._enrolled.get(label, (0, np.zeros(units.shape[1])))
        self._put(label, count + len(units), total + units.sum(axis=0))

    def search(self, image: Image, top: int = 5, threshold: float = -1.0) -> list[Match]:
        """At most ``top`` labels whose cosine is ``threshold`` or more: best first, ties in order of enrolment.

        Raises:
            InputError: nothing is enrolled, the image is refused or is several, or an argument is out of range.
        """
        if top < 1 or not -1 <= threshold <= 1:
            raise InputError(f"top is 1 or more and threshold -1 to 1, got {top} and {threshold}")
        if not self._enrolled:
            raise InputError("the gallery is empty; enrol an image first")
        wanted = self._units(image)
        if wanted.ndim != 1:
            raise InputError(f"one image is searched at a time, got {len(wanted)}")
        if self._matrix is None:
            self._matrix = unit(np.stack([total for _, total in self._enrolled.values()]))
        scores, labels = cosines(self._matrix, wanted), self.labels
        best = np.argsort(-scores, kind="stable")[:top]
        return [Match(labels[i], float(scores[i])) for i in best if scores[i] >= threshold]

    def remove(self, label: str) -> None:
        """Forget ``label``; ``InputError`` where it is not enrolled."""
        if label not in self._enrolled:
            raise InputError(unknown("label", label, self._enrolled))
        del self._enrolled[label]
        self._matrix = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label, in order of enrolment."""
        return tuple(self._enrolled)

    def __len__(self) -> int:
        return len(self._enrolled)

    def save(self, path: str | Path) -> None:
        """Write the gallery as one JSON file, whole or not at all; ``InputError`` where it cannot be written."""
        enrolled = {label: (count, tuple(total.tolist())) for label, (count, total) in self._enrolled.items()}
        write_file(path, dumps(Stored(FORMAT, self._dims(), self.embedder.session.bundle_sha256, enrolled)))

    @classmethod
    def load(cls, path: str | Path, embedder: Embedder) -> Gallery:
        """Read what ``save`` wrote, for an ``embedder`` of the same bundle, or of none where it had none.

        Raises:
            InputError: the file is missing, damaged or of another format, or enrolled with another network.
        """
        gallery, stored = cls(embedder), _read(path)
        try:
            gallery._fill(stored)
        except InputError as error:
            raise InputError(f"gallery {path}: {error}") from error
        return gallery

    def _fill(self, stored: Stored) -> None:
        made, here = stored.bundle_sha256, self.embedder.session.bundle_sha256
        if made != here:
            raise InputError(
                f"it was enrolled with {_bundle(made)} and is opened with {_bundle(here)}; vectors of different "
                "networks cannot be compared: enrol again"
            )
        if stored.dims is not None:
            self._check_dims(stored.dims)
        for label, (count, total) in stored.enrolled.items():
            _check_label(label)
            if len(total) != stored.dims:
                raise InputError(f"label {label!r} has {len(total)} numbers, and dims is {stored.dims}")
            self._put(label, count, np.array(total))

    def _units(self, images: Image | Sequence[Image]) -> Floats:
        units = unit(self.embedder(images))
        self._check_dims(units.shape[-1])
        return units

    def _dims(self) -> int | None:
        return next((len(total) for _, total in self._enrolled.values()), self.embedder.dims)

    def _check_dims(self, dims: int) -> None:
        if self._dims() not in (None, dims):
            raise InputError(f"vectors of {dims} numbers cannot be compared with vectors of {self._dims()}")

    def _put(self, label: str, count: int, total: Floats) -> None:
        length = math.hypot(*total.tolist())
        if not 1 <= count <= 1 << 53 or length > 1.001 * count:
            raise InputError(f"label {label!r} cannot have {count} unit vectors with a sum of length {length:.3g}")
        if length < CANCELLED * count:
            raise InputError(f"the vectors of label {label!r} cancel each other out: their mean is a zero vector")
        self._enrolled[label] = count, total
        self._matrix = None


def _bundle(sha256: str | None) -> str:
    return f"bundle {sha256[:12]}" if sha256 else "no bundle"


def _check_label(label: object) -> None:
    text = label.encode("utf-8", "ignore").decode() if isinstance(label, str) else ""
    if not text.strip() or text.splitlines() != [label]:
        raise InputError(f"a label is one line of text, got {label!r}")


def _read(path: str | Path) -> Stored:
    where = f"gallery {path}"
    try:
        data = loads(Path(path).read_bytes(), where)
    except OSError as error:
        raise InputError(f"cannot read {where}: {one_line(error.strerror or error)}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if type(found) is not int or found != FORMAT:
        raise InputError(f"{where} has format {found!r}; this edgecv reads format {FORMAT}")
    return decode(Stored, data, where)

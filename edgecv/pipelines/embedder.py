"""The embedding pipeline: frames in, unit vectors out, and a gallery of enrolled identities to search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError, one_line
from edgecv.files import write_file
from edgecv.pipelines.classifier import _classes, _frame, _output_name
from edgecv.pipelines.frames import run_frames
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.schema import decode, dumps, loads

__all__ = ["Embedder", "Gallery", "Match"]

FORMAT = 1
DECIMALS = 12  # of a cosine, so that equal vectors tie in whatever order a product adds, and none is above 1
CANCELLED = 1e-6  # length of a mean of unit vectors below which its direction is rounding noise

Frame = NDArray[np.uint8]
Image = Frame | str | Path
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Match:
    """One label of a gallery and the cosine, -1 to 1, between its vector and the image's."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Vectors:
    """How outputs become vectors: the ``postprocess`` of an embedding bundle."""

    normalize: bool = True


@dataclass(frozen=True, slots=True)
class Stored:
    """A gallery's file: for each label, how many unit vectors were enrolled, and their sum."""

    format: int
    dims: int | None
    bundle_sha256: str | None
    enrolled: dict[str, tuple[int, tuple[float, ...]]]


class Embedder:
    """Preprocessing and one session: vectors whose cosine says how alike two images are.

    Args:
        session: takes one uint8 input ``[batch, *preprocess.size, 3]`` and gives one float output ``[batch, dims]``.
        normalize: bring vectors to length 1; where False they are the graph's own.

    ``dims`` is the length of the vectors, where the graph says. Another graph is an ``InputError``.
    """

    def __init__(self, session: Session, preprocess: Preprocess, normalize: bool = True) -> None:
        self.session = session
        self.preprocess = preprocess
        self.normalize = decode(Vectors, {"normalize": normalize}, "embedder").normalize
        self._output = _output_name(session, preprocess)
        self.dims = _classes(session)

    @classmethod
    def from_postprocess(
        cls, session: Session, preprocess: Preprocess, labels: Sequence[str], postprocess: dict[str, Any]
    ) -> Embedder:
        """Build the pipeline from what a bundle's manifest says; ``labels`` are ignored: an embedding has none."""
        return cls(session, preprocess, decode(Vectors, postprocess, "postprocess").normalize)

    def __call__(self, image: Image | Sequence[Image]) -> NDArray[np.float32]:
        """Embed one image, ``[dims]``, or several in one batch, ``[batch, dims]``.

        Args:
            image: a uint8 RGB frame ``[height, width, 3]`` of any size, an image file's path, a list of either, or an
                array ``[batch, height, width, 3]``.

        Raises:
            InputError: there is no image, one is not an image, or a vector is all zeros or not finite.
        """
        frames, single = _frames(image)
        vectors = _checked(run_frames(self.session, self.preprocess, frames)[self._output])
        if self.normalize:
            vectors = _unit(vectors).astype(np.float32)
        return vectors[0] if single else vectors

    def similarity(self, first: Image, second: Image) -> float:
        """The cosine, -1 to 1, between the vectors of two images; ``InputError`` as for a call."""
        one, other = _unit(self([first, second]))
        return float(_cosines(one, other))

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
            self._matrix = _unit(np.stack([total for _, total in self._enrolled.values()]))
        scores, labels = _cosines(self._matrix, wanted), self.labels
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
        units = _unit(self.embedder(images))
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


def _frames(image: Any) -> tuple[list[Frame], bool]:
    """The frames of one image or several, and whether it was one."""
    single = isinstance(image, (str, Path)) or (isinstance(image, np.ndarray) and image.ndim != 4)
    if not single and not isinstance(image, (list, tuple, np.ndarray)):
        raise InputError(f"an image is a uint8 array, a path or a list of them, got {type(image).__name__}")
    return [_frame(item) for item in ([image] if single else image)], single


def _checked(outputs: NDArray[Any]) -> NDArray[np.float32]:
    """Outputs as float32 ``[batch, dims]``, each row of which has a direction."""
    if outputs.ndim != 2:
        raise InputError(f"an embedder's graph gives [batch, dims], this one gave {list(outputs.shape)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
        values = outputs.astype(np.float32, copy=False)
    for index, row in enumerate(values, 1):
        if not row.any() or not np.isfinite(row).all():
            what = "not finite" if row.any() else "a zero vector"
            raise InputError(f"the vector of image {index} of {len(values)} is {what}: it has no direction")
    return values


def _unit(vectors: NDArray[np.floating]) -> Floats:
    """Vectors ``[…, dims]``, none of them zero, brought to length 1."""
    values = vectors.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def _cosines(units: Floats, unit: Floats) -> Floats:
    return np.asarray((units @ unit).round(DECIMALS))


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

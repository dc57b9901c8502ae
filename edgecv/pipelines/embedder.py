"""The embedding pipeline: frames in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.frames import frames_of, run_frames, vector_output
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.schema import decode

__all__ = ["Embedder", "cosines", "unit"]

DECIMALS = 12  # of a cosine, so that equal vectors tie in whatever order a product adds, and none is above 1

Frame = NDArray[np.uint8]
Image = Frame | str | Path
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Vectors:
    """How outputs become vectors: the ``postprocess`` of an embedding bundle."""

    normalize: bool = True


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
        self._output, self.dims = vector_output(session, preprocess, "an embedder")

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
        frames, single = frames_of(image)
        vectors = _checked(run_frames(self.session, self.preprocess, frames)[self._output])
        if self.normalize:
            vectors = unit(vectors).astype(np.float32)
        return vectors[0] if single else vectors

    def similarity(self, first: Image, second: Image) -> float:
        """The cosine, -1 to 1, between the vectors of two images; ``InputError`` as for a call."""
        one, other = unit(self([first, second]))
        return float(cosines(one, other))

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Vectors ``[…, dims]``, none of them zero, brought to length 1."""
    values = vectors.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True))


def cosines(units: Floats, other: Floats) -> Floats:
    """Cosines between rows of length 1 and another vector of length 1."""
    return np.asarray((units @ other).round(DECIMALS))

"""The classification pipeline: frames in, labelled scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.frames import frames_of, run_frames, vector_output
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.schema import decode

__all__ = ["Classification", "Classifier"]

Frame = NDArray[np.uint8]
Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class Classification:
    """One guess: the label, its index, and its score (0-1, the scores of all labels add up to 1 under softmax)."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How logits become scores: the ``postprocess`` of a classification bundle. ``decode`` checks the name."""

    activation: Activation = "softmax"


class Classifier:
    """Preprocessing, one session and the labels: what an app calls.

    Args:
        session: takes one uint8 input ``[batch, *preprocess.size, 3]`` and gives one float output ``[batch, classes]``.
        labels: one per class; class numbers where empty.
        activation: how outputs become scores.
    """

    def __init__(
        self,
        session: Session,
        preprocess: Preprocess,
        labels: Sequence[str] = (),
        activation: Activation = "softmax",
    ) -> None:
        self.session = session
        self.preprocess = preprocess
        self.activation = decode(Scores, {"activation": activation}, "classifier").activation
        self._output, classes = vector_output(session, preprocess, "a classifier")
        if labels and classes is not None and len(labels) != classes:
            raise InputError(f"{len(labels)} labels were given for a graph with {classes} classes")
        self.labels = tuple(labels) or tuple(str(i) for i in range(classes or 0))

    @classmethod
    def from_postprocess(
        cls, session: Session, preprocess: Preprocess, labels: Sequence[str], postprocess: dict[str, Any]
    ) -> Classifier:
        """Build the pipeline from what a bundle's manifest says."""
        settings = decode(Scores, postprocess, "postprocess")
        return cls(session, preprocess, labels, settings.activation)

    @overload
    def __call__(self, image: Frame | str | Path, top: int = 5) -> list[Classification]: ...

    @overload
    def __call__(self, image: list[Frame] | list[str] | list[Path], top: int = 5) -> list[list[Classification]]: ...

    def __call__(self, image: Any, top: int = 5) -> Any:
        """Classify one image, or a list of them in one batch.

        Args:
            image: a uint8 RGB frame ``[height, width, 3]`` of any size, an image file's path, a list of either, or an
                array ``[batch, height, width, 3]``.
            top: how many guesses to return, best first.

        Returns:
            The best guesses of one image, or a list of such lists.
        """
        if top < 1:
            raise InputError(f"top is 1 or more, got {top}")
        frames, single = frames_of(image)
        ranked = [self._rank(row, top) for row in self.scores(frames)]
        return ranked[0] if single else ranked

    def scores(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """Scores ``[len(frames), classes]`` of uint8 RGB frames, run as one batch where the graph's batch is free."""
        return activate(self.outputs(frames), self.activation)

    def outputs(self, frames: Sequence[Frame]) -> NDArray[np.float32]:
        """The graph's own output ``[len(frames), classes]``, before the activation."""
        result: NDArray[np.float32] = run_frames(self.session, self.preprocess, frames)[self._output]
        return result

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rank(self, row: NDArray[np.float32], top: int) -> list[Classification]:
        best = np.argsort(-row, kind="stable")[:top]
        return [Classification(self._label(int(i)), int(i), float(row[i])) for i in best]

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else str(index)


def activate(logits: NDArray[Any], activation: Activation) -> NDArray[np.float32]:
    """Turn logits ``[batch, classes]`` into scores; computed in a way that cannot overflow."""
    values = logits.astype(np.float32, copy=False)
    if activation == "softmax":
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)
    return values

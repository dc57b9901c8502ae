"""How a tracker runs its two graphs and reads their answers: numbers, no code, so a manifest can hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecv.errors import InputError
from edgecv.pipelines.tracking.confidence import Confidence

__all__ = ["TrackerSettings"]

Head = Literal["points", "anchors", "peak"]
HEADS = ("points", "anchors", "peak")


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """What a network was trained with, and how its candidates are weighed.

    Args:
        head: what the search graph answers: ``"points"``, a score and four distances per cell; ``"anchors"``, a score
            and four offsets per anchor; ``"peak"``, one response per cell, at several scales.
        exemplar, search: sides of the two crops in pixels.
        stride: pixels of the search crop between two cells of the answer.
        context: how much of the target's surroundings the exemplar holds, as a share of its width and height.
        penalty: how strongly a change of size and proportions lowers a score (SiamRPN's k). For ``"peak"``, what
            another scale's response is multiplied with.
        window: weight of the cosine window, which prefers what has moved little.
        rate: how fast the target's size follows the answers.
        ratios, anchor: proportions (height / width) and side in pixels of the anchors.
        confidence: constants of the status, fitted on this network's answers; without them every frame is
            ``tracking``.
        scales, step: how many scales a ``"peak"`` head searches, and the factor between them.
    """

    head: Head
    exemplar: int = 127
    search: int = 255
    stride: int = 8
    context: float = 0.5
    penalty: float = 0.0
    window: float = 0.0
    rate: float = 1.0
    ratios: tuple[float, ...] = ()
    anchor: float = 64.0
    scales: int = 1
    step: float = 1.0375
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if self.head not in HEADS:
            raise InputError(f"head is {', '.join(map(repr, HEADS))}, got {self.head!r}")
        if not 1 <= self.exemplar <= self.search <= 1024:
            raise InputError(f"1 <= exemplar <= search <= 1024 pixels, got {self.exemplar} and {self.search}")
        if not 1 <= self.stride <= self.search:
            raise InputError(f"stride is 1 pixel to the whole search crop, got {self.stride!r}")
        for name, value, most in (
            ("context", self.context, 4),
            ("penalty", self.penalty, 10),
            ("window", self.window, 1),
            ("rate", self.rate, 1),
        ):
            if not 0 <= value <= most:
                raise InputError(f"{name} is 0 to {most}, got {value!r}")
        if self.head == "anchors" and not (self.ratios and min(self.ratios) > 0 and self.anchor > 0):
            raise InputError(f"anchors need ratios and a side above 0, got {self.ratios!r} and {self.anchor!r}")
        if self.scales % 2 != 1 or not 1 <= self.scales <= 9 or not 1 <= self.step <= 2:
            raise InputError(f"scales is odd, 1 to 9, and step 1 to 2, got {self.scales!r} and {self.step!r}")

    def origin(self, cells: int) -> float:
        """Where the first of a row of cells lies, in pixels from the search crop's centre.

        A ``"points"`` head has a cell at every stride from the crop's corner on, as NanoTrack's paddings give it (its
        own grid, for crops of 255 pixels, is this one); ``"anchors"`` have the cell whose number is half of all at the
        centre.
        """
        return -(self.search + 1) / 2 if self.head == "points" else -float(cells // 2 * self.stride)

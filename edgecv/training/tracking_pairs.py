"""Pairs of crops to train a tracker on, drawn from annotated sequences: no torch, only numpy and OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.pipelines.tracking.boxes import Box, context_side
from edgecv.pipelines.tracking.crops import cut, fill_colour, opencv
from edgecv.pipelines.tracking.settings import TrackerSettings

__all__ = ["Footage", "PairConfig", "TrackingPairs", "hold_out_sequences"]

Frame = NDArray[np.uint8]
TRIES = 20  # draws before a sequence whose boxes lie outside its frames is given up
BLUR = 9  # pixels of the longest motion blur


class Footage(Protocol):
    """An annotated sequence: ``TrackSequence`` of a folder, ``SyntheticSequence``, or any other with the same names."""

    @property
    def name(self) -> str: ...

    @property
    def boxes(self) -> NDArray[np.float64]: ...

    @property
    def visible(self) -> NDArray[np.bool_]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


@dataclass(frozen=True, slots=True)
class PairConfig:
    """How pairs are drawn from sequences, and how they are changed; 0 and ``False`` leave a change out.

    Args:
        pairs: of one epoch, each drawn anew in every epoch.
        gap: the most frames between the two crops.
        shift: the target is up to this many pixels beside the middle of the search crop, in x and in y.
        scale: the search crop is larger or smaller by up to this much (logarithm).
        negatives: share of the pairs whose search crop shows the target of another sequence.
        flip: mirror half of the pairs, both crops alike.
        grey: share of the pairs that lose their colours, in both crops.
        blur: share of the search crops that are blurred by motion.
        brightness, contrast: change each crop by up to this share.
    """

    pairs: int = 20_000
    gap: int = 100
    shift: float = 32.0
    scale: float = 0.1
    negatives: float = 0.0
    flip: bool = True
    grey: float = 0.1
    blur: float = 0.1
    brightness: float = 0.1
    contrast: float = 0.2

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.gap < 0 or not 0 <= self.shift <= 1024:
            got = f"{self.pairs}, {self.gap} and {self.shift}"
            raise InputError(f"pairs is 1 or more, gap 0 or more, shift 0 to 1024 pixels, got {got}")
        for name in ("scale", "negatives", "grey", "blur", "brightness", "contrast"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is from 0 to 1, got {value!r}")

    def plain(self, pairs: int) -> PairConfig:
        """The same displacements without changes of the images and without negatives: to validate on."""
        return PairConfig(pairs, self.gap, self.shift, self.scale, flip=False, grey=0, blur=0, brightness=0, contrast=0)


class TrackingPairs:
    """Pairs as ``edgecv.train`` takes them: ``pairs[i]`` is ``(exemplar, search), target``.

    Crops are uint8 RGB, cut by the geometry of ``Tracker``. ``target`` is float32 ``[5]``: centre x and y, width and
    height of what the search crop was cut around, in pixels from the crop's centre; and 1, or 0 where that is not the
    exemplar's target. Pairs depend on ``seed``, the epoch and the index alone.

    Args:
        sequences: any ``Footage``; frames are read when a pair is asked for.
        settings: the network's, whose crops these are.

    Raises:
        InputError: no sequence shows its target, or negatives are asked of a single one.
    """

    def __init__(
        self,
        sequences: Sequence[Footage],
        settings: TrackerSettings,
        config: PairConfig | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.settings, self.config, self.seed, self.epoch = settings, config or PairConfig(), seed, 0
        found = [(sequence, _usable(sequence)) for sequence in sequences]
        self._places = [(sequence, usable) for sequence, usable in found if len(usable)]
        if not self._places:
            raise InputError(f"none of {len(sequences)} sequences has a frame with its target in it")
        if self.config.negatives and len(self._places) < 2:
            raise InputError("negative pairs come from another sequence: give two or more, or set negatives to 0")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose pairs come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.config.pairs

    def __getitem__(self, index: int) -> tuple[tuple[Frame, Frame], NDArray[np.float32]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        random = np.random.default_rng((self.seed, self.epoch, index))
        place = int(random.integers(len(self._places)))
        first = self._draw(place, random)
        positive = random.random() >= self.config.negatives
        if positive:
            second = self._draw(place, random, near=first)
        else:
            second = self._draw((place + int(random.integers(1, len(self._places)))) % len(self._places), random)
        return self._cut(first, second, positive, random)

    def describe(self) -> dict[str, Any]:
        """What two data sets share if they give the same pairs."""
        names = [sequence.name for sequence, _ in self._places]
        return {"config": self.config, "settings": self.settings, "seed": self.seed, "sequences": names}

    def _draw(self, place: int, random: np.random.Generator, near: _View | None = None) -> _View:
        """A frame of one sequence, at most ``gap`` from another, with a part of the target in it."""
        sequence, usable = self._places[place]
        if near is not None:
            usable = usable[np.abs(usable - near.number) <= self.config.gap]
        for _ in range(TRIES):
            number = int(random.choice(usable))
            x, y, w, h = sequence.boxes[number].tolist()
            frame = near.frame if near is not None and near.number == number else sequence[number]
            if min(x + w, frame.shape[1]) - max(x, 0) >= 1 and min(y + h, frame.shape[0]) - max(y, 0) >= 1:
                return _View(number, frame, (x, y, w, h))
        raise InputError(f"sequence {sequence.name}: its boxes lie outside its frames, such as that of frame {number}")

    def _cut(
        self, first: _View, second: _View, positive: bool, random: np.random.Generator
    ) -> tuple[tuple[Frame, Frame], NDArray[np.float32]]:
        config, settings = self.config, self.settings
        exemplar, search = (np.empty((side, side, 3), np.uint8) for side in (settings.exemplar, settings.search))
        first.cut((0.0, 0.0), 1.0, settings, exemplar)
        shift = random.uniform(-config.shift, config.shift, 2)
        growth = float(np.exp(random.uniform(-config.scale, config.scale)))
        scale = second.cut((shift[0], shift[1]), growth, settings, search)
        target = np.array([-shift[0], -shift[1], second.box[2] / scale, second.box[3] / scale, positive], np.float32)
        return self._changed(exemplar, search, target, random)

    def _changed(
        self, exemplar: Frame, search: Frame, target: NDArray[np.float32], random: np.random.Generator
    ) -> tuple[tuple[Frame, Frame], NDArray[np.float32]]:
        config = self.config
        mirrored, grey, blurred = (random.random(3) < (0.5 * config.flip, config.grey, config.blur)).tolist()
        crops = [_toned(crop, config, random) for crop in (exemplar, search)]
        if blurred:
            crops[1] = _moved(crops[1], random)
        if grey:
            crops = [_grey(crop) for crop in crops]
        if mirrored:
            crops = [np.ascontiguousarray(crop[:, ::-1]) for crop in crops]
            target[0] = -target[0]
        return (crops[0], crops[1]), target


@dataclass(frozen=True)
class _View:
    """One frame of a sequence and the target's box in it."""

    number: int
    frame: Frame
    box: Box

    def cut(self, shift: tuple[float, float], growth: float, settings: TrackerSettings, out: Frame) -> float:
        """Cut a crop ``shift`` of its pixels beside the target; return the frame's pixels to one of the crop."""
        x, y, w, h = self.box
        scale = context_side(w, h, settings.context) / settings.exemplar * growth
        centre = x + w / 2 + shift[0] * scale, y + h / 2 + shift[1] * scale
        cut(self.frame, centre, scale * out.shape[0], fill_colour(self.frame), out)
        return scale


def hold_out_sequences(sequences: Sequence[Footage], every: int = 10) -> tuple[list[Footage], list[Footage]]:
    """Split sequences in two: all but every ``every``-th, or but the last where there are fewer; and these.

    Raises:
        InputError: there is only one.
    """
    if len(sequences) < 2:
        raise InputError("one sequence cannot be held out to validate on: give two or more, or validation data")
    every = min(every, len(sequences))
    held = list(sequences[every - 1 :: every])
    return [sequence for index, sequence in enumerate(sequences) if index % every != every - 1], held


def _usable(sequence: Footage) -> NDArray[np.intp]:
    """The numbers of the frames that show a target of at least a pixel."""
    boxes = np.nan_to_num(np.asarray(sequence.boxes, np.float64), nan=-1.0)
    return np.flatnonzero(np.asarray(sequence.visible) & (boxes[:, 2:] >= 1).all(1))


def _toned(crop: Frame, config: PairConfig, random: np.random.Generator) -> Frame:
    gain = 1 + random.uniform(-config.contrast, config.contrast)
    lift = 255 * random.uniform(-config.brightness, config.brightness)
    if not config.contrast and not config.brightness:
        return crop
    middle = float(crop.mean())
    table = (np.arange(256) - middle) * gain + middle + lift
    toned: Frame = np.clip(np.rint(table), 0, 255).astype(np.uint8)[crop]
    return toned


def _moved(crop: Frame, random: np.random.Generator) -> Frame:
    """Blur along a line, as motion does."""
    cv2 = opencv()
    length, angle = int(random.integers(3, BLUR + 1)), random.uniform(0, np.pi)
    kernel = np.zeros((BLUR, BLUR), np.float32)
    reach = (length - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
    near, far = (tuple(int(value) for value in np.rint(BLUR // 2 + sign * reach)) for sign in (-1, 1))
    cv2.line(kernel, near, far, 1.0)
    blurred: Frame = cv2.filter2D(crop, -1, kernel / kernel.sum())
    return blurred


def _grey(crop: Frame) -> Frame:
    cv2 = opencv()
    grey: Frame = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return grey

"""Synthetic sequences: a textured target on a textured, moving background, among others like it. numpy and OpenCV."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.files import new_folder, write_file
from edgecv.pipelines.tracking.boxes import Box
from edgecv.pipelines.tracking.crops import opencv
from edgecv.progress import Progress, silent
from edgecv.training.textures import Path2D, outline, shape_mask, texture

__all__ = ["SceneConfig", "SyntheticSequence", "synthetic_sequences", "write_sequences"]

Frame = NDArray[np.uint8]
Floats = NDArray[np.float64]
PATCH = 96  # pixels of a target's texture
SEEN = 0.15  # share of a target that must be uncovered for it to be visible


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """What synthetic sequences are like; sizes are in pixels.

    Args:
        frames: of a sequence.
        height, width: of a frame.
        smallest, largest: the target's longer side, when first seen.
        speed: how far a target moves from frame to frame, at most and about.
        zoom: how far its scale swings (logarithm).
        turn_deg: how far it swings to either side.
        distractors: others of the same kind, with other textures, that move beside it.
        occluders: posts of the background that pass in front of it.
        pan: how far the camera moves from frame to frame, about.
        noise: standard deviation of each pixel's noise, 0-255.
        light: by how much the brightness swings, as a share.
    """

    frames: int = 60
    height: int = 192
    width: int = 256
    smallest: float = 28.0
    largest: float = 60.0
    speed: float = 3.0
    zoom: float = 0.3
    turn_deg: float = 20.0
    distractors: int = 2
    occluders: int = 1
    pan: float = 1.5
    noise: float = 3.0
    light: float = 0.15

    def __post_init__(self) -> None:
        if self.frames < 1 or not 32 <= self.height <= 4096 or not 32 <= self.width <= 4096:
            got = f"{self.frames} of {self.height}x{self.width}"
            raise InputError(f"a sequence has 1 frame or more of 32 to 4096 pixels a side, got {got}")
        if not 4 <= self.smallest <= self.largest <= 0.6 * min(self.height, self.width):
            got = f"{self.smallest:g} and {self.largest:g}"
            raise InputError(f"targets are 4 pixels to 0.6 of the frame's shorter side, smallest first; got {got}")
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) >= 0:
                raise InputError(f"{field.name} is 0 or more, got {getattr(self, field.name)!r}")


class SyntheticSequence:
    """One sequence, drawn when a frame is asked for; ``seed`` and ``config`` alone decide what it shows.

    It can be used as a ``TrackSequence`` can for training. A frame is uint8 RGB ``[height, width, 3]``.

    Attributes:
        boxes: ``[frames, 4]``, x, y, w, h of the target's hull, its covered parts included.
        cover: ``[frames]``, the share of the target that occluders leave uncovered, 0-1.
        visible: ``[frames]``, whether that is enough to be seen.
    """

    def __init__(self, seed: int, config: SceneConfig | None = None) -> None:
        self.config, self.name = config or SceneConfig(), f"synthetic_{seed:06d}"
        random = np.random.default_rng((7, seed))
        self._seed = seed
        self._target = _Actor(random, self.config)
        self._others = [_Actor(random, self.config, like=self._target) for _ in range(self.config.distractors)]
        self._camera = Path2D(random, self.config.pan, (self.config.width / 2, self.config.height / 2))
        self._light = Path2D(random, 0.02, (self.config.light, 0.0))
        size = self.config.height * 2, self.config.width * 2
        self._background = texture(random, size, coarse=8)
        self._posts = [
            _Post(random, self.config, self._target.hull(0), self._camera(0)) for _ in range(self.config.occluders)
        ]
        self.boxes: Floats = np.array([self._target.hull(index) for index in range(self.config.frames)])
        self.cover: Floats = np.array([self._uncovered(index) for index in range(self.config.frames)])
        self.visible: NDArray[np.bool_] = self.cover >= SEEN

    def __len__(self) -> int:
        return self.config.frames

    def __getitem__(self, index: int) -> Frame:
        """Draw frame ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shift = self._camera(index)
        canvas = self._ground(shift)
        for actor in (*self._others, self._target):
            actor.paint(canvas, index)
        for post in self._posts:
            post.paint(canvas, shift)
        values = canvas.astype(np.float32) * (1 + self._light(index)[0])
        noise = np.random.default_rng((11, self._seed, index)).normal(0, self.config.noise, values.shape)
        drawn: Frame = np.clip(values + noise, 0, 255).astype(np.uint8)
        return drawn

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    @property
    def first_box(self) -> Box:
        """Where the target is in the first frame."""
        x, y, w, h = self.boxes[0].tolist()
        return x, y, w, h

    def _ground(self, shift: Floats) -> Frame:
        config = self.config
        to_ground = np.array([[1.0, 0, config.width / 2 + shift[0]], [0, 1.0, config.height / 2 + shift[1]]])
        flags = opencv().INTER_LINEAR | opencv().WARP_INVERSE_MAP
        size, border = (config.width, config.height), opencv().BORDER_REFLECT
        return np.asarray(opencv().warpAffine(self._background, to_ground, size, flags=flags, borderMode=border))

    def _uncovered(self, index: int) -> float:
        mask = np.zeros((self.config.height, self.config.width), np.float32)
        self._target.mark(mask, index)
        whole = float(mask.sum())
        for post in self._posts:
            post.cover(mask, self._camera(index))
        return float(mask.sum()) / max(whole, 1e-6)


class _Actor:
    """A textured shape on its way through the frame."""

    def __init__(self, random: np.random.Generator, config: SceneConfig, like: _Actor | None = None) -> None:
        self.kind: int = int(random.integers(3)) if like is None else like.kind
        self.side: float = random.uniform(config.smallest, config.largest) if like is None else like.side
        self.ratio: float = float(np.exp(random.uniform(-0.5, 0.5))) if like is None else like.ratio
        self.patch = texture(random, (PATCH, PATCH), coarse=3)
        self.mask = shape_mask(self.kind, PATCH)
        self._outline = outline(self.kind, PATCH)
        room = config.width / 2 - 0.6 * config.largest, config.height / 2 - 0.6 * config.largest
        self._way = Path2D(random, config.speed, (max(room[0], 1.0), max(room[1], 1.0)))
        self._swing = Path2D(random, 0.03, (config.zoom, np.deg2rad(config.turn_deg)))
        self._middle = config.width / 2, config.height / 2

    def pose(self, index: int) -> Floats:
        """The matrix ``[2, 3]`` from the patch to the frame."""
        growth, angle = self._swing(index)
        scale = self.side * np.exp(growth) / PATCH / max(self.ratio, 1 / self.ratio) ** 0.5
        wide, high = scale * self.ratio**0.5, scale / self.ratio**0.5
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[cos * wide, -sin * high], [sin * wide, cos * high]])
        centre = np.array(self._middle) + self._way(index)
        return np.column_stack([turned, centre - turned @ np.full(2, PATCH / 2)])

    def hull(self, index: int) -> list[float]:
        """x, y, w, h around the shape."""
        pose = self.pose(index)
        points = self._outline @ pose[:, :2].T + pose[:, 2]
        near, far = points.min(0), points.max(0)
        return [*near.tolist(), *(far - near).tolist()]

    def paint(self, canvas: Frame, index: int) -> None:
        """Put the shape over what is there."""
        part, pose = self._part(canvas.shape, index)
        under, size = canvas[part], _size(canvas[part])
        colours = opencv().warpAffine(self.patch, pose, size, borderMode=opencv().BORDER_REPLICATE)
        share = opencv().warpAffine(self.mask, pose, size)[..., None]
        under[:] = np.rint(under * (1 - share) + colours * share)

    def mark(self, mask: NDArray[np.float32], index: int) -> None:
        """Put how much of each pixel the shape covers into a mask of zeros."""
        part, pose = self._part(mask.shape, index)
        mask[part] = opencv().warpAffine(self.mask, pose, _size(mask[part]))

    def _part(self, shape: tuple[int, ...], index: int) -> tuple[tuple[slice, slice], Floats]:
        """The rows and columns around the shape, and the matrix from the patch to these."""
        x, y, w, h = self.hull(index)
        left, top = (max(0, int(value) - 2) for value in (x, y))
        right, bottom = (min(most, int(value) + 3) for value, most in ((x + w, shape[1]), (y + h, shape[0])))
        pose = self.pose(index)
        pose[:, 2] -= left, top
        return (slice(top, bottom), slice(left, right)), pose


class _Post:
    """An upright or level bar that belongs to the background and stands in front of everything."""

    def __init__(self, random: np.random.Generator, config: SceneConfig, free: list[float], shift: Floats) -> None:
        """``free`` is a box that it leaves uncovered while the camera is at ``shift``."""
        self._upright = bool(random.random() < 0.7)
        length = config.width if self._upright else config.height
        self._thick = max(2, round(random.uniform(0.25, 0.7) * config.largest))
        axis = 0 if self._upright else 1
        start, side = free[axis] + shift[axis], free[axis + 2]
        before, after = start - self._thick - 2, start + side + 2
        # Before or behind the box, whichever has more room, on its way across the frame.
        if before > length - after:
            self._place = random.uniform(min(0.1 * length, before), before)
        else:
            self._place = random.uniform(after, max(after, 0.9 * length))
        size = (config.height, self._thick) if self._upright else (self._thick, config.width)
        self._texture = texture(random, size, coarse=4)

    def paint(self, canvas: Frame, shift: Floats) -> None:
        rows, columns = self._part(canvas.shape, shift)
        part = canvas[rows, columns]
        part[:] = self._texture[: part.shape[0], : part.shape[1]]

    def cover(self, mask: NDArray[np.float32], shift: Floats) -> None:
        mask[self._part(mask.shape, shift)] = 0

    def _part(self, shape: tuple[int, ...], shift: Floats) -> tuple[slice, slice]:
        start = round(self._place - shift[0 if self._upright else 1])
        bar = slice(max(start, 0), max(start + self._thick, 0))
        return (slice(None), bar) if self._upright else (bar, slice(None))


def synthetic_sequences(count: int, config: SceneConfig | None = None, *, seed: int = 0) -> list[SyntheticSequence]:
    """``count`` sequences; those of another ``seed`` are others, as long as seeds are ``count`` apart or more."""
    return [SyntheticSequence(seed + index, config) for index in range(count)]


def write_sequences(
    sequences: Sequence[SyntheticSequence], folder: str | Path, *, suffix: str = ".jpg", progress: Progress = silent
) -> Path:
    """Write sequences in GOT-10k's layout, which ``open_sequences`` reads; the folder appears whole or not at all.

    Args:
        suffix: ``".jpg"`` (quality 95), or ``".png"``, which keeps every pixel.

    Raises:
        InputError: the folder holds something, or frames cannot be written so.
    """
    with new_folder(folder) as root:
        for done, sequence in enumerate(sequences, 1):
            place = root / sequence.name
            place.mkdir()
            for number, frame in enumerate(sequence, 1):
                write_file(place / f"{number:08d}{suffix}", _encoded(frame, suffix))
            _write_labels(place, sequence)
            progress("write sequences", done, len(sequences))
        write_file(root / "list.txt", "".join(f"{sequence.name}\n" for sequence in sequences))
    return Path(folder)


def _write_labels(place: Path, sequence: SyntheticSequence) -> None:
    rows = (",".join(f"{value:.4f}" for value in box) for box in sequence.boxes.tolist())
    write_file(place / "groundtruth.txt", "".join(f"{row}\n" for row in rows))
    # GOT-10k's cover label: eighths of the target that can be seen, 0 where it cannot.
    eighths = np.where(sequence.visible, np.clip(np.rint(sequence.cover * 8), 1, 8), 0).astype(int)
    write_file(place / "cover.label", "".join(f"{value}\n" for value in eighths.tolist()))
    write_file(place / "absence.label", "".join(f"{int(value == 0)}\n" for value in eighths.tolist()))


def _encoded(frame: Frame, suffix: str) -> bytes:
    cv2 = opencv()
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else []
    try:
        done, data = cv2.imencode(suffix, np.ascontiguousarray(frame[..., ::-1]), options)
    except cv2.error as error:
        raise InputError(f"frames are written as .jpg or .png, got {suffix!r}") from error
    if not done:
        raise InputError(f"frames are written as .jpg or .png, got {suffix!r}")
    raw: bytes = data.tobytes()
    return raw


def _size(part: NDArray[Any]) -> tuple[int, int]:
    """Width and height, as OpenCV has them."""
    return part.shape[1], part.shape[0]

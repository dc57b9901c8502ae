"""From a camera frame to the pixels a graph takes: one specification, one implementation.

Training, calibration, evaluation and the device all call the code below, so none of them can differ from another.
Only numpy is used: the device needs no image library for arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

__all__ = ["Placement", "Preprocess", "check_frame", "resize"]

Frame = NDArray[np.uint8]
Triple = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]
LIMIT = 16384  # pixels a side: above it a frame is a mistake, not a picture


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a frame lies in the graph's input: ``graph = frame * scale + offset``, in pixels, x and y apart."""

    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_graph(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Map ``(…, 2)`` points (x, y) of the frame to the graph's input."""
        return np.asarray(points, np.float64) * self.scale + self.offset

    def to_frame(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Map ``(…, 2)`` points (x, y) of the graph's input to the frame."""
        return (np.asarray(points, np.float64) - self.offset) / self.scale


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What happens to a frame before the network sees it.

    Outside the graph, by ``__call__``: resize and crop or pad to ``size``, uint8 RGB in, uint8 RGB out.
    Inside the graph, written by the converters: ``(value / 255 - mean) / std``, channels first, in ``color`` order.

    Args:
        size: (height, width) in pixels that the graph takes.
        resize: the short side in pixels before the centre crop (torchvision's ``Resize`` + ``CenterCrop``);
            ``None`` stretches the frame to ``size``; ``"letterbox"`` keeps its proportions and pads.
        mean, std: of values 0-1, in RGB order whatever ``color`` says.
        color: the channel order the network was trained with; frames are always RGB.
        pad_value: the grey level of letterbox bars, 0-255.
        interpolation: ``"bicubic"`` for networks that were trained so.
    """

    size: tuple[int, int]
    resize: int | Literal["letterbox"] | None = None
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    color: Literal["rgb", "bgr"] = "rgb"
    pad_value: int = 114
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _check(self)
        for name in ("size", "mean", "std"):  # a list given in place of a tuple would not be hashable
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __call__(self, frame: Frame) -> Frame:
        """Bring one uint8 RGB ``frame[height, width, 3]`` to ``[*size, 3]``; the result is the caller's to keep.

        Raises:
            InputError: the frame is not uint8 ``[height, width, 3]``.
        """
        check_frame(frame)
        view = self._view(frame.shape[0], frame.shape[1])
        rows, columns = view.rows, view.columns
        if (rows.size, columns.size) == self.size:
            return _resample(frame, rows, columns)
        canvas = np.full((*self.size, 3), self.pad_value, np.uint8)
        top, left = view.corner
        canvas[top : top + rows.size, left : left + columns.size] = _resample(frame, rows, columns)
        return canvas

    def batch(self, frames: Sequence[Frame]) -> Frame:
        """Bring frames of any sizes to one array ``[len(frames), *size, 3]``."""
        if len(frames) == 0:
            raise InputError("a batch needs at least one frame, got none")
        batch = np.empty((len(frames), *self.size, 3), np.uint8)
        for index, frame in enumerate(frames):
            batch[index] = self(frame)
        return batch

    def placement(self, height: int, width: int) -> Placement:
        """Where a frame of ``height`` x ``width`` pixels lies in the graph's input."""
        view = self._view(height, width)
        scale = (view.columns.resized / width, view.rows.resized / height)
        top, left = view.corner
        return Placement(scale, (left - view.columns.first, top - view.rows.first))

    def _view(self, height: int, width: int) -> _View:
        axis = functools.partial(_Axis, self.interpolation)
        if self.resize is None:
            return _View(axis(height, self.size[0]), axis(width, self.size[1]), (0, 0))
        if self.resize == "letterbox":
            scale = min(self.size[0] / height, self.size[1] / width)
            tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
            corner = ((self.size[0] - tall) // 2, (self.size[1] - wide) // 2)
            return _View(axis(height, tall), axis(width, wide), corner)
        short = min(height, width)
        tall, wide = int(self.resize * height / short), int(self.resize * width / short)
        top, left = round((tall - self.size[0]) / 2), round((wide - self.size[1]) / 2)
        return _View(axis(height, tall, top, self.size[0]), axis(width, wide, left, self.size[1]), (0, 0))


def resize(frame: Frame, height: int, width: int, interpolation: Interpolation = "bilinear") -> Frame:
    """Resize a uint8 frame ``[any, any, 3]`` by area-weighted interpolation.

    The filters are Pillow's ``BILINEAR`` and ``BICUBIC``, which are torch's ``interpolate(antialias=True)``: they widen
    when shrinking, so nothing aliases. Sums are float32 and rounded once, so a value may differ from Pillow's (which
    rounds twice) by one level, more at bicubic overshoots.
    """
    check_frame(frame)
    return _resample(frame, _Axis(interpolation, frame.shape[0], height), _Axis(interpolation, frame.shape[1], width))


def check_frame(frame: object) -> None:
    """Raise ``InputError`` unless ``frame`` is a uint8 array ``[height, width, 3]``."""
    if not isinstance(frame, np.ndarray):
        raise InputError(f"a frame is a uint8 RGB numpy array [height, width, 3], got {type(frame).__name__}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(f"a frame is uint8 RGB [height, width, 3], got {frame.dtype}{list(frame.shape)}{_hint(frame)}")
    if max(frame.shape) > LIMIT:
        raise InputError(f"a frame has at most {LIMIT} pixels a side, got {list(frame.shape)}")


def _hint(frame: NDArray[Any]) -> str:
    if frame.ndim == 2:
        return "; for grey frames use np.stack([grey] * 3, axis=-1)"
    if frame.ndim == 3 and frame.shape[2] == 4:
        return "; drop the alpha channel with frame[..., :3]"
    if frame.ndim == 3 and frame.shape[0] == 3 and frame.dtype == np.uint8:
        return "; channels come last: frame.transpose(1, 2, 0)"
    if frame.ndim == 4:
        return "; a batch is passed as a list of frames"
    return "; values 0-255 as uint8" if frame.dtype != np.uint8 else ""


class _Axis(NamedTuple):
    """Resize ``source`` pixels to ``resized``, then keep ``kept`` of them from ``first`` on (all by default)."""

    interpolation: Interpolation
    source: int
    resized: int
    first: int = 0
    kept: int | None = None

    @property
    def size(self) -> int:
        return self.resized if self.kept is None else self.kept

    @property
    def identity(self) -> bool:
        return self.source == self.resized


class _View(NamedTuple):
    """How both axes are resampled, and the corner (top, left) of the result in the graph's input."""

    rows: _Axis
    columns: _Axis
    corner: tuple[int, int]


class _Band(NamedTuple):
    """A run of output pixels, the run of input pixels they need, and the weights between them."""

    out: slice
    source: slice
    weights: NDArray[np.float32]


def _triangle(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic of Keys, 1981, with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


KERNELS = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}  # how far each reaches, in input pixels
BAND = 16  # output pixels per matrix product: wide enough for BLAS, narrow enough to skip the zeros


@functools.lru_cache(maxsize=64)
def _bands(axis: _Axis) -> tuple[_Band, ...]:
    """The filter's weights, cut into dense blocks so that both passes are matrix products."""
    radius, kernel = KERNELS[axis.interpolation]
    scale = axis.source / axis.resized
    stretch = max(scale, 1.0)
    centres = (np.arange(axis.size) + axis.first + 0.5) * scale
    bands = []
    for start in range(0, axis.size, BAND):
        stop = min(start + BAND, axis.size)
        low = max(0, int(centres[start] - radius * stretch))
        high = min(axis.source, int(np.ceil(centres[stop - 1] + radius * stretch)))
        weights = kernel(np.abs(np.arange(low, high)[None, :] + 0.5 - centres[start:stop, None]) / stretch)
        weights /= weights.sum(axis=1, keepdims=True)
        bands.append(_Band(slice(start, stop), slice(low, high), weights.astype(np.float32)))
    return tuple(bands)


def _resample(frame: Frame, rows: _Axis, columns: _Axis) -> Frame:
    if rows.identity and columns.identity:
        kept = frame[rows.first : rows.first + rows.size, columns.first : columns.first + columns.size]
        return np.array(kept, order="C")
    column_bands = _bands(columns)
    first, last = column_bands[0].source.start, column_bands[-1].source.stop
    width = last - first
    tall = np.empty((rows.size, width * 3), np.float32)
    for out, source, weights in _bands(rows):
        strip = frame[source, first:last].astype(np.float32).reshape(-1, width * 3)
        np.matmul(weights, strip, out=tall[out])
    turned = np.ascontiguousarray(tall.reshape(rows.size, width, 3).transpose(1, 0, 2)).reshape(width, rows.size * 3)
    wide = np.empty((columns.size, rows.size * 3), np.float32)
    for out, source, weights in column_bands:
        np.matmul(weights, turned[source.start - first : source.stop - first], out=wide[out])
    np.rint(wide, out=wide)
    if columns.interpolation == "bicubic":  # which overshoots at edges
        np.clip(wide, 0, 255, out=wide)
    return np.ascontiguousarray(wide.astype(np.uint8).reshape(columns.size, rows.size, 3).transpose(1, 0, 2))


def _check(spec: Preprocess) -> None:
    if len(spec.size) != 2 or not all(isinstance(side, int) and 0 < side <= LIMIT for side in spec.size):
        raise InputError(f"size is (height, width), whole numbers from 1 to {LIMIT}, got {spec.size!r}")
    if isinstance(spec.resize, int):
        if not max(spec.size) <= spec.resize <= LIMIT:
            raise InputError(f"resize is the short side before the crop, {max(spec.size)} or more, got {spec.resize}")
    elif spec.resize not in (None, "letterbox"):
        raise InputError(f"resize is a whole number, None or 'letterbox', got {spec.resize!r}")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != 3 or not np.all(np.isfinite(values)):
            raise InputError(f"{name} is three finite numbers, one per channel, got {values!r}")
    if min(spec.std) <= 0:
        raise InputError(f"std is above 0 in every channel, got {spec.std!r}")
    if spec.color not in ("rgb", "bgr"):
        raise InputError(f"color is 'rgb' or 'bgr', got {spec.color!r}")
    if spec.interpolation not in KERNELS:
        raise InputError(f"interpolation is 'bilinear' or 'bicubic', got {spec.interpolation!r}")
    if not isinstance(spec.pad_value, int) or not 0 <= spec.pad_value <= 255:
        raise InputError(f"pad_value is 0 to 255, got {spec.pad_value!r}")

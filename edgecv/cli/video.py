"""Frames from a video, a folder or a camera, and frames to a video file, through OpenCV (``edgecv[vision]``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, InputError, one_line
from edgecv.images import find_images, read_image
from edgecv.pipelines.tracking.crops import opencv

__all__ = ["Video", "open_video", "write_video"]

Frame = NDArray[np.uint8]
CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
FPS = 25.0  # of frames that do not say


@dataclass(frozen=True)
class Video:
    """uint8 RGB frames in order; ``count`` of them as far as that is known, ``None`` for a camera, which never ends."""

    frames: Iterator[Frame]
    count: int | None
    fps: float


@contextmanager
def open_video(source: str) -> Iterator[Video]:
    """Open a folder of images (or a sequence's folder, with ``img`` or ``color``), a video file, or a camera's number.

    Raises:
        InputError: there is no such source, or it holds no frames.
        BackendUnavailable: the camera cannot be opened, or OpenCV is not installed.
    """
    path = Path(source)
    if path.is_dir():
        files = next((found for name in (".", "img", "color") if (found := _images(path / name))), [])
        if not files:
            raise InputError(f"folder {path} holds no images, nor do its folders img and color")
        yield Video((read_image(file) for file in files), len(files), FPS)
        return
    camera = source.isdigit() and not path.exists()
    if not camera and not path.is_file():
        raise InputError(f"{source} is no video file, no folder and no camera's number")
    capture = opencv().VideoCapture(int(source) if camera else str(path))
    try:
        if not capture.isOpened():
            if camera:
                raise BackendUnavailable(f"camera {source} cannot be opened: is it connected, and may it be used?")
            raise InputError(f"{source} is not a video that OpenCV can read")
        yield Video(_read(capture), None if camera else max(1, round(capture.get(7))), capture.get(5) or FPS)
    finally:
        capture.release()


@contextmanager
def write_video(path: Path, fps: float) -> Iterator[Callable[[Frame], None]]:
    """Yield what appends a uint8 RGB frame; the file appears when the block ends without an error.

    Frames of another size than the first are stretched to it.

    Raises:
        InputError: the file is not ``.mp4`` or ``.avi``, or cannot be written.
    """
    if path.suffix.lower() not in CODECS:
        raise InputError(f"a video is written as {' or '.join(CODECS)}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    writer = _Writer(temporary, fps)
    try:
        yield writer.append
        writer.close()
        if temporary.exists():
            temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


class _Writer:
    """A video file whose size is that of its first frame."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._file: Any = None
        self._size = (0, 0)

    def append(self, frame: Frame) -> None:
        cv2 = opencv()
        if self._file is None:
            self._size = (frame.shape[1], frame.shape[0])
            codec = cv2.VideoWriter_fourcc(*CODECS[self._path.suffix.lower()])
            self._file = cv2.VideoWriter(str(self._path), codec, self._fps, self._size)
            if not self._file.isOpened():
                raise InputError(f"OpenCV cannot write {self._path.suffix} videos here; try .avi")
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        self._file.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        if self._file is not None:
            self._file.release()


def _images(folder: Path) -> list[Path]:
    return find_images(folder) if folder.is_dir() else []


def _read(capture: Any) -> Iterator[Frame]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])

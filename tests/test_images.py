"""Image files to frames: every format, rotated, grey, transparent, and cut short."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.images import SUFFIXES, find_images, read_image
from tests.conftest import require


@pytest.fixture(autouse=True)
def _opencv() -> None:
    require("opencv")


def _picture() -> Any:
    """Red in the upper left, green in the upper right, blue below; 48 x 64."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = (250, 10, 10)
    picture[:24, 32:] = (10, 250, 10)
    picture[24:] = (10, 10, 250)
    return picture


def _write(path: Path, picture: Any) -> Path:
    import cv2

    assert cv2.imwrite(str(path), picture[..., ::-1])
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    frame = read_image(_write(tmp_path / f"a{suffix}", _picture()))
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    difference = np.abs(frame[4:20, 4:28].astype(int) - _picture()[4:20, 4:28])
    assert difference.max() <= (0 if suffix in (".png", ".bmp") else 12)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned, the viewer must turn the picture clockwise."""
    path = _write(tmp_path / "a.jpg", _picture())
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    frame = read_image(path)
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame[:28, 28:44].astype(int) - [250, 10, 10]).max() <= 12


def test_grey_transparent_and_deep_images_become_rgb(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "grey.png"), np.full((5, 6), 77, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([_picture(), np.zeros((48, 64), np.uint8)]))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((5, 6, 3), 0x8080, np.uint16))
    assert read_image(tmp_path / "grey.png")[0, 0].tolist() == [77, 77, 77]
    assert read_image(tmp_path / "alpha.png").shape == (48, 64, 3)
    assert read_image(tmp_path / "deep.png")[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    path = _write(tmp_path / f"a{suffix}", noise)
    data = path.read_bytes()
    for share in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"cut short|not an image|cannot be decoded") as raised:
            read_image(path)
        assert "\n" not in str(raised.value)


def test_a_thumbnail_does_not_hide_that_the_picture_is_cut(tmp_path: Path) -> None:
    """The end marker of a thumbnail in the header is not the picture's own."""
    small = _write(tmp_path / "t.jpg", _picture()[::4, ::4]).read_bytes()
    path = _write(tmp_path / "a.jpg", _picture())
    data = path.read_bytes()
    block = b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small
    path.write_bytes(data[:2] + block + data[2:])
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(data[:2] + block + data[2 : len(data) // 2])
    with pytest.raises(InputError):
        read_image(path)


def test_bytes_after_the_end_are_harmless(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png"):
        path = _write(tmp_path / f"a{suffix}", _picture())
        before = read_image(path)
        path.write_bytes(path.read_bytes() + b"\0" * 100)
        assert np.array_equal(read_image(path), before)


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 50, b"<svg/>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM"]
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read image .*No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"cannot read image .*directory"):
        read_image(tmp_path)


def test_names_with_any_characters_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.png", _picture()).rename(tmp_path / "käse 猫.png")
    assert read_image(path).shape == (48, 64, 3)


def test_images_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]

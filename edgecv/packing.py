"""Packed files: what a bundle stores of a file, and how its bytes come back on the device.

A packed file is ``MAGIC``, the length of a header (4 bytes, little-endian), the header (JSON, LZMA), and streams one
after another. Segments say how the file is put together, from its first byte to its last, and take what they need from
the streams in order: plain items from the stream of their size, or a palette's entries chosen by codes of one byte.
Where one value is frequent, as zero is in a sparse tensor, a bit per item says where it is not, and only there stands
a code. LZMA's literal coder is adaptive and nearly reaches the entropy of codes and of bits
(Deep Compression, arXiv:1510.00149, has Huffman codes and run lengths there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import BundleError
from edgecv.schema import decode, loads

__all__ = [
    "CODES",
    "ENCODING",
    "ITEM_SIZES",
    "LARGEST",
    "MAGIC",
    "MASKS",
    "PALETTES",
    "STREAM_SIZES",
    "Header",
    "Segment",
    "Stream",
    "lzma_filters",
    "packed_streams",
    "plain",
    "unpack",
]

ENCODING: Final = "edgecv-lzma-1"
MAGIC = b"edgecvP1"
LARGEST = 4 << 30  # bytes of a decoded file
LARGEST_HEADER = 4 << 20
DICTIONARY = 1 << 20  # bytes of memory that LZMA keeps while it decodes
ITEM_SIZES = (1, 2, 4, 8)
PALETTES, MASKS, CODES = "palettes", "masks", "codes"


def plain(item: int) -> str:
    """The stream that plain items of so many bytes are in."""
    return f"plain{item}"


# The period of bytes in each stream: LZMA keeps statistics of its own for each place within an item.
STREAM_SIZES = {**{plain(item): item for item in ITEM_SIZES}, PALETTES: 4, MASKS: 1, CODES: 1}


@dataclass(frozen=True, slots=True)
class Stream:
    """``length`` bytes, of which ``stored`` are in the file: as they are where both are equal, else by LZMA."""

    name: str
    length: int
    stored: int


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` items of ``item`` bytes: plain ones, or, with a palette of ``entries``, chosen from it.

    ``masked``: the palette's first entry stands wherever the mask has no bit, and codes count from the second.
    """

    item: int
    count: int
    entries: int = 0
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """What a packed file consists of: its streams as they follow each other, and the segments of the decoded file."""

    streams: tuple[Stream, ...]
    segments: tuple[Segment, ...]


def unpack(data: bytes, size: int, where: str) -> bytes:
    """Return the ``size`` bytes that ``data`` was packed from; ``where`` names the file in messages.

    Memory is bounded by a few times ``size``, whatever ``data`` holds.

    Raises:
        BundleError: ``data`` is damaged, or decodes to another size.
    """
    if not 0 <= size <= LARGEST:
        raise BundleError(f"{where} says it has {size} bytes, at most {LARGEST} are decoded")
    try:
        header, rest = _header(data)
        _check(header, len(rest), size)
        streams = {name: _Reader(raw) for name, (_, raw) in _streams(header, rest).items()}
        parts = [_segment(segment, streams) for segment in header.segments]
        if left := [name for name, reader in streams.items() if reader.left]:
            raise _Damaged(f"stream {left[0]!r} is not used up")
    except _Damaged as error:
        raise BundleError(f"{where} cannot be unpacked: {error}; copy the bundle again") from error
    return b"".join(parts)


def packed_streams(data: bytes) -> dict[str, tuple[int, bytes]]:
    """The bytes that each stream of a packed file takes in it, and what they are decoded to; the file is trusted."""
    header, rest = _header(data)
    return _streams(header, rest)


def lzma_filters(item: int, *, encoder: bool = False) -> list[dict[str, Any]]:
    """The LZMA settings of a stream whose bytes repeat their meaning every ``item`` bytes."""
    import lzma

    settings = {"id": lzma.FILTER_LZMA1, "lc": 0, "lp": item.bit_length() - 1, "pb": 0, "dict_size": DICTIONARY}
    thorough = {"mode": lzma.MODE_NORMAL, "nice_len": 273, "mf": lzma.MF_BT4} if encoder else {}
    return [{**settings, **thorough}]


class _Damaged(BundleError):
    """The packed bytes contradict themselves."""


class _Reader:
    """A stream that is taken piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise _Damaged("a stream is shorter than its segments")
        self._at += length
        return self._data[self._at - length : self._at]


def _header(data: bytes) -> tuple[Header, memoryview]:
    start = len(MAGIC) + 4
    if len(data) < start or not data.startswith(MAGIC):
        raise _Damaged("it does not begin as a packed file")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    if end > len(data):
        raise _Damaged("it ends within its header")
    text = _decompressed(data[start:end], LARGEST_HEADER, lzma_filters(1))
    header = decode(Header, loads(text, "its header", _Damaged), "its header", _Damaged)
    return header, memoryview(data)[end:]


def _check(header: Header, stored: int, size: int) -> None:
    """Refuse what would cost memory before anything is decoded."""
    names = [stream.name for stream in header.streams]
    if len(set(names)) < len(names) or not set(names) <= set(STREAM_SIZES):
        raise _Damaged(f"its streams are {', '.join(map(repr, names[:8]))}")
    if any(not 0 <= stream.stored <= stream.length <= size for stream in header.streams):
        raise _Damaged("a stream is larger than the file")
    if sum(stream.stored for stream in header.streams) != stored:
        raise _Damaged("its length is not that of its streams")
    for segment in header.segments:
        if segment.item not in ITEM_SIZES or segment.count < 1 or not 0 <= segment.entries <= 256:
            raise _Damaged(f"there is no such segment as {segment}")
    if (total := sum(segment.item * segment.count for segment in header.segments)) != size:
        raise _Damaged(f"its segments have {total} bytes, the manifest says {size}")


def _streams(header: Header, rest: memoryview) -> dict[str, tuple[int, bytes]]:
    streams, start = {}, 0
    for stream in header.streams:
        streams[stream.name] = stream.stored, _expanded(rest[start : start + stream.stored], stream)
        start += stream.stored
    return streams


def _expanded(stored: memoryview, stream: Stream) -> bytes:
    if stream.stored == stream.length:
        return bytes(stored)
    found = _decompressed(bytes(stored), stream.length, lzma_filters(STREAM_SIZES[stream.name]))
    if len(found) != stream.length:
        raise _Damaged(f"stream {stream.name!r} has {len(found)} bytes, {stream.length} were announced")
    return found


def _decompressed(data: bytes, limit: int, filters: list[dict[str, Any]]) -> bytes:
    """What LZMA makes of all of ``data``, at most ``limit`` bytes."""
    import lzma

    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    try:
        found = decoder.decompress(data, limit + 1)
    except lzma.LZMAError as error:
        raise _Damaged(str(error)) from error
    if not decoder.eof or decoder.unused_data or len(found) > limit:
        raise _Damaged("a stream does not end where it should")
    return found


def _segment(segment: Segment, streams: dict[str, _Reader]) -> bytes:
    def take(name: str, length: int) -> bytes:
        if length and name not in streams:
            raise _Damaged(f"it has no stream {name!r}")
        return streams[name].take(length) if length else b""

    if not segment.entries:
        return take(plain(segment.item), segment.item * segment.count)
    palette = np.frombuffer(take(PALETTES, segment.item * segment.entries), f"<u{segment.item}")
    if not segment.masked:
        return _chosen(palette, np.frombuffer(take(CODES, segment.count), np.uint8)).tobytes()
    mask = np.unpackbits(np.frombuffer(take(MASKS, -(-segment.count // 8)), np.uint8), count=segment.count)
    values = np.full(segment.count, palette[0], palette.dtype)
    codes = np.frombuffer(take(CODES, int(mask.sum(dtype=np.int64))), np.uint8)
    values[mask.astype(bool)] = _chosen(palette[1:], codes)
    return values.tobytes()


def _chosen(palette: NDArray[Any], codes: NDArray[np.uint8]) -> NDArray[Any]:
    if codes.size and int(codes.max()) >= len(palette):
        raise _Damaged(f"code {int(codes.max())} is beyond a palette of {len(palette)}")
    chosen: NDArray[Any] = palette[codes]
    return chosen

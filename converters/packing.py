"""``pack``: a bundle whose files are stored in fewer bytes, and decoded to what they were when they are opened."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
from numpy.typing import NDArray

from edgecv.bundle import MANIFEST, Bundle, write_manifest
from edgecv.errors import InputError
from edgecv.files import new_folder, write_file
from edgecv.manifest import PACKED, Packed
from edgecv.packing import (
    CODES,
    ENCODING,
    ITEM_SIZES,
    LARGEST,
    MAGIC,
    MASKS,
    PALETTES,
    STREAM_SIZES,
    Header,
    Segment,
    Stream,
    lzma_filters,
    plain,
)
from edgecv.schema import dumps

__all__ = ["Range", "pack", "pack_bytes", "pack_files", "ranges_of", "unpack_bundle"]

WORTH = 0.75  # of a file's size: floats of any kind gain 15 %, which is not worth a second of decoding for 14 MB
SMALLEST = 256  # bytes of a tensor that has a segment of its own
FREQUENT = 0.2  # share of the commonest value, from which a bit per item may pay
FORMATS = (".bin", ".onnx", ".ort", ".xml")  # what sessions read from memory


@dataclass(frozen=True, slots=True)
class Range:
    """Where a tensor lies in a file: ``count`` items of ``item`` bytes from ``offset`` on."""

    offset: int
    item: int
    count: int

    @property
    def end(self) -> int:
        return self.offset + self.item * self.count


def pack(bundle: str | Path | Bundle, out: str | Path) -> Bundle:
    """Write a copy of a bundle in which every graph that gains by it is stored packed.

    Nothing is lost: sessions get the bytes that were there, verified by their SHA-256. It pays where weights have few
    values, as ``edgecv.cluster`` and int8 leave them, and where many are zero.

    Raises:
        BundleError: the bundle is broken.
        InputError: ``out`` holds something already.
    """
    source = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    with new_folder(out) as folder:
        _copy(source, folder)
        packed = {**source.manifest.packed, **pack_files(folder)}
        write_manifest(folder, dataclasses.replace(source.manifest, files={}, packed=packed))
    return Bundle.load(out)


def unpack_bundle(bundle: str | Path | Bundle, out: str | Path) -> Bundle:
    """Write a copy of a bundle with every file as it was before ``pack``, for tools that read files themselves."""
    source = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    with new_folder(out) as folder:
        _copy(source, folder)
        for stored in source.manifest.packed:
            name = stored.removesuffix(PACKED)
            (folder / stored).unlink()
            write_file(folder / name, source.read(name))
        write_manifest(folder, dataclasses.replace(source.manifest, files={}, packed={}))
    return Bundle.load(out)


def pack_files(folder: Path) -> dict[str, Packed]:
    """Pack every model file below ``folder`` that gains by it, in place; say how, by the path of what is stored."""
    packed = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in FORMATS and path.is_file()):
        raw = path.read_bytes()
        stored = pack_bytes(raw, ranges_of(path, raw)) if len(raw) <= LARGEST else raw
        if len(stored) > WORTH * len(raw):
            continue
        name = f"{path.relative_to(folder).as_posix()}{PACKED}"
        write_file(folder / name, stored)
        path.unlink()
        packed[name] = Packed(ENCODING, hashlib.sha256(raw).hexdigest(), len(raw))
    return packed


def ranges_of(path: Path, raw: bytes) -> list[Range]:
    """Where the larger tensors of a model file lie: of ONNX, and of OpenVINO's ``.bin`` beside its ``.xml``."""
    if path.suffix == ".onnx":
        found = _ranges_of_onnx(raw)
    elif path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        found = _ranges_of_openvino(path.with_suffix(".xml").read_text(encoding="utf-8"))
    else:
        found = []
    return _apart(found, len(raw))


def pack_bytes(raw: bytes, ranges: Sequence[Range] = ()) -> bytes:
    """Return what ``unpack`` restores ``raw`` from; the same input gives the same bytes.

    Args:
        ranges: of tensors, in order and apart; what lies between them is packed as plain bytes.
    """
    writer, at = _Writer(), 0
    for found in ranges:
        if found.item not in ITEM_SIZES or found.count < 1 or not at <= found.offset <= found.end <= len(raw):
            raise InputError(f"tensor ranges follow each other within the file's {len(raw)} bytes, got {found}")
        writer.plain(raw[at : found.offset], 1)
        writer.tensor(raw[found.offset : found.end], found.item)
        at = found.end
    writer.plain(raw[at:], 1)
    return writer.finish()


class _Writer:
    """The streams and segments of a packed file, as they grow."""

    def __init__(self) -> None:
        self._streams = {name: bytearray() for name in STREAM_SIZES}
        self._segments: list[Segment] = []

    def plain(self, raw: bytes, item: int) -> None:
        if raw:
            self._streams[plain(item)] += raw
            self._segments.append(Segment(item, len(raw) // item))

    def tensor(self, raw: bytes, item: int) -> None:
        """Add a tensor in the form that is smallest by itself."""
        best = min(_forms(raw, item), key=_Form.size, default=None)
        if best is None or best.size() > len(_compressed(raw, item)):
            self.plain(raw, item)
        else:
            self._segments.append(best.segment)
            for name, part in ((PALETTES, best.palette), (MASKS, best.mask), (CODES, best.codes)):
                self._streams[name] += part

    def finish(self) -> bytes:
        stored = {name: _compressed(bytes(raw), STREAM_SIZES[name]) for name, raw in self._streams.items() if raw}
        streams = tuple(Stream(name, len(self._streams[name]), len(data)) for name, data in stored.items())
        text = dumps(Header(streams, tuple(self._segments))).encode()
        header = _lzma(text, 1)
        return b"".join((MAGIC, len(header).to_bytes(4, "little"), header, *stored.values()))


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to store a tensor: what it adds to each stream."""

    segment: Segment
    palette: bytes
    mask: bytes
    codes: bytes

    def size(self) -> int:
        return len(self.palette) + len(_compressed(self.mask, 1)) + len(_compressed(self.codes, 1))


def _forms(raw: bytes, item: int) -> list[_Form]:
    """The ways to store a tensor with a palette; none where it has too many values."""
    values = np.frombuffer(raw, f"<u{item}")
    entries, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(entries) > 256:
        return []
    forms = [_Form(Segment(item, values.size, len(entries)), entries.tobytes(), b"", _narrow(codes))]
    if counts.max() >= FREQUENT * values.size:
        forms.append(_masked(item, entries, codes, int(counts.argmax())))
    return forms


def _masked(item: int, entries: NDArray[Any], codes: NDArray[Any], common: int) -> _Form:
    """The commonest value by a mask, and codes of the others."""
    elsewhere = codes.ravel() != common
    order = np.concatenate(([common], np.delete(np.arange(len(entries)), common)))
    rank = np.argsort(order)
    return _Form(
        Segment(item, elsewhere.size, len(entries), masked=True),
        entries[order].tobytes(),
        np.packbits(elsewhere).tobytes(),
        _narrow(rank[codes.ravel()[elsewhere]] - 1),
    )


def _narrow(codes: NDArray[Any]) -> bytes:
    return codes.astype(np.uint8).tobytes()


def _compressed(raw: bytes, item: int) -> bytes:
    """``raw`` by LZMA, or as it is where that is no longer."""
    packed = _lzma(raw, item)
    return packed if len(packed) < len(raw) else raw


def _lzma(raw: bytes, item: int) -> bytes:
    import lzma

    return lzma.compress(raw, lzma.FORMAT_RAW, filters=lzma_filters(item, encoder=True))


def _ranges_of_onnx(raw: bytes) -> list[Range]:
    """The initializers, found by their bytes, which protobuf writes as they are and in order."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except google.protobuf.message.DecodeError:
        return []
    found, at = [], 0
    for tensor in _tensors(model.graph):
        start = raw.find(tensor.raw_data, at) if len(tensor.raw_data) >= SMALLEST else -1
        item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        if start >= 0 and item in ITEM_SIZES and len(tensor.raw_data) % item == 0:
            found.append(Range(start, item, len(tensor.raw_data) // item))
            at = found[-1].end
    return found


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    """Tensors as they follow each other in the file: those of nodes come before the initializers."""
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
    yield from graph.initializer


def _ranges_of_openvino(text: str) -> list[Range]:
    """The constants that an ``.xml`` names."""
    found = []
    for tag in re.findall(r"<data ([^>]*)>", text):
        data = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        item = int("".join(filter(str.isdigit, data.get("element_type", ""))) or 8) // 8  # such as f32
        size = int(data.get("size", 0)) if "offset" in data else 0
        if size >= SMALLEST and item in ITEM_SIZES and size % item == 0:
            found.append(Range(int(data["offset"]), item, size // item))
    return found


def _apart(found: Iterable[Range], size: int) -> list[Range]:
    """``found`` in order, without what overlaps (constants may share their bytes) or reaches beyond the file."""
    kept: list[Range] = []
    for item in sorted(found, key=lambda item: (item.offset, -item.end)):
        if item.end <= size and (not kept or item.offset >= kept[-1].end):
            kept.append(item)
    return kept


def _copy(source: Bundle, folder: Path) -> None:
    for name in source.manifest.files:
        if name != MANIFEST:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path / name, folder / name)

"""Packed files: every bit comes back, nothing broken is believed, and sessions answer as before."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.bundle import Bundle, write_manifest
from edgecv.errors import BundleError, InputError
from edgecv.manifest import PACKED, FileRecord
from edgecv.packing import LARGEST, MAGIC, Header, Segment, Stream, lzma_filters, unpack
from edgecv.schema import dumps
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "openvino"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.converters.converting import ConvertOptions  # noqa: E402
from edgecv.converters.packing import Range, pack_bytes, pack_files, ranges_of, unpack_bundle  # noqa: E402

ROOT = Path(__file__).parent.parent
PREPROCESS = edgecv.Preprocess(size=(16, 16))
NAME = f"onnx-fp32/model.onnx{PACKED}"
FRAMES = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(4)]


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[Range]]:
    """Bytes of any kind with tensors among them: of few values, of many, mostly zero, of one item."""
    raw, ranges = draw(st.binary(max_size=40)), []
    for _ in range(draw(st.integers(0, 4))):
        item, count = draw(st.sampled_from((1, 2, 4, 8))), draw(st.integers(1, 700))
        kinds, zeros = draw(st.sampled_from((1, 2, 40, 256, 600))), draw(st.sampled_from((0.0, 0.3, 0.9)))
        random = np.random.default_rng(draw(st.integers(0, 9)))
        values = random.integers(0, 256, (kinds, item), dtype=np.uint8)[random.integers(0, kinds, count)]
        values[random.random(count) < zeros] = 0
        ranges.append(Range(len(raw), item, count))
        raw += values.tobytes() + draw(st.binary(max_size=20))
    return raw, ranges


@given(files())
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back(file: tuple[bytes, list[Range]]) -> None:
    raw, ranges = file
    packed = pack_bytes(raw, ranges)
    assert unpack(packed, len(raw), "file") == raw
    assert pack_bytes(raw, ranges) == packed


def _sparse(count: int = 3000) -> tuple[bytes, list[Range]]:
    """A tensor of 15 values, two thirds zeros, with some text around it."""
    random = np.random.default_rng(0)
    values = np.where(random.random(count) < 2 / 3, 0, random.integers(-7, 8, count)).astype("<f4")
    return b"before" + values.tobytes() + b"after", [Range(6, 4, count)]


def test_codes_take_little_more_than_their_entropy() -> None:
    raw, ranges = _sparse(100_000)
    _, counts = np.unique(np.frombuffer(raw[6:-5], "<f4"), return_counts=True)
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8
    assert entropy < len(pack_bytes(raw, ranges)) < 1.06 * entropy + 300


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_anywhere_is_refused_or_leaves_the_size(data: st.DataObject) -> None:
    raw, ranges = _sparse()
    packed = bytearray(pack_bytes(raw, ranges))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(BundleError):
        assert len(unpack(bytes(packed), len(raw), "file")) == len(raw)  # its SHA-256 decides, see the bundles below


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_any_bytes_at_all_are_refused_or_decoded(junk: bytes, size: int) -> None:
    for data in (junk, MAGIC + junk, MAGIC + len(junk).to_bytes(4, "little") + junk):
        with pytest.raises(BundleError, match="file cannot be unpacked"):
            unpack(data, size, "file")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float) -> None:
    raw, ranges = _sparse()
    packed = pack_bytes(raw, ranges)
    with pytest.raises(BundleError, match=r"cannot be unpacked: .*; copy the bundle again"):
        unpack(packed[: int(share * len(packed))], len(raw), "file")


def _packed(streams: list[tuple[str, bytes, int]], segments: list[Segment]) -> bytes:
    """A packed file as somebody else might write it: names, LZMA's input and the length that is announced."""
    import lzma

    stored = [lzma.compress(raw, lzma.FORMAT_RAW, filters=lzma_filters(1)) for _, raw, _ in streams]
    table = [Stream(name, length, len(data)) for (name, _, length), data in zip(streams, stored, strict=True)]
    text = dumps(Header(tuple(table), tuple(segments))).encode()
    header = lzma.compress(text, lzma.FORMAT_RAW, filters=lzma_filters(1))
    return MAGIC + len(header).to_bytes(4, "little") + header + b"".join(stored)


BOMB = bytes(1 << 20)
LIES: dict[str, tuple[bytes, int, str]] = {
    "more than announced": (_packed([("plain1", BOMB, 1000)], [Segment(1, 1000)]), 1000, "does not end where it"),
    "less than announced": (_packed([("plain1", bytes(900), 1000)], [Segment(1, 1000)]), 1000, "900 bytes, 1000 were"),
    "a stream larger than the file": (_packed([("plain1", BOMB, 1 << 20)], [Segment(1, 1000)]), 1000, "is larger than"),
    "another size": (_packed([("plain1", BOMB, 1 << 20)], [Segment(1, 1 << 20)]), 2 << 20, "the manifest says 2097152"),
    "a size beyond reason": (b"", LARGEST + 1, f"at most {LARGEST} are decoded"),
    "segments beyond a stream": (_packed([("plain1", bytes(100), 100)], [Segment(1, 200)]), 200, "shorter than its"),
    "a stream left over": (
        _packed([("plain1", bytes(200), 200), ("masks", bytes(99), 99)], [Segment(1, 200)]), 200, "'masks' is not used",
    ),
    "no such stream": (_packed([("plain1", bytes(100), 100)], [Segment(2, 50)]), 100, "no stream 'plain2'"),
    "an unknown stream": (_packed([("code", bytes(100), 100)], [Segment(1, 100)]), 100, "its streams are 'code'"),
    "items of 3 bytes": (_packed([("plain1", bytes(99), 99)], [Segment(3, 33)]), 99, "no such segment"),
    "less than nothing": (_packed([("plain1", bytes(99), 99)], [Segment(1, -1), Segment(1, 100)]), 99, "no such segme"),
    "a code beyond the palette": (
        _packed([("palettes", bytes(16), 16), ("codes", bytes([0, 4]) * 50, 100)], [Segment(4, 100, 4)]), 400, "code 4",
    ),
    "a mask without codes": (
        _packed([("palettes", bytes(256), 256), ("masks", b"\x01" * 80, 80)], [Segment(4, 640, 64, True)]), 2560,
        "it has no stream 'codes'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_before_it_costs_memory(lie: str) -> None:
    data, size, telling = LIES[lie]
    with pytest.raises(BundleError, match=telling):
        unpack(data, size, "file")


@pytest.mark.parametrize("wrong", [[Range(0, 3, 1)], [Range(0, 4, 9)], [Range(4, 4, 1), Range(0, 4, 1)]])
def test_ranges_that_do_not_fit_are_refused(wrong: list[Range]) -> None:
    with pytest.raises(InputError, match="tensor ranges follow each other within the file's 32 bytes"):
        pack_bytes(bytes(32), wrong)


def test_every_larger_initializer_is_found(tmp_path: Path) -> None:
    arrays = [np.arange(100, dtype=dtype) for dtype in ("float32", "int64", "float16")] + [np.zeros(900, np.int8)]
    tensors = [onnx.numpy_helper.from_array(array, f"t{i}") for i, array in enumerate([*arrays, arrays[0][:3]])]
    raw = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)).SerializeToString()
    found = ranges_of(tmp_path / "model.onnx", raw)
    assert [(item.item, item.count) for item in found] == [(4, 100), (8, 100), (1, 900)]  # 200 bytes are too few
    wanted = [array.tobytes() for array in (arrays[0], arrays[1], arrays[3])]
    assert [raw[item.offset : item.end] for item in found] == wanted


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 10))
    for weight in network.parameters():
        weight.data = (weight.data * 40).round() / 40
    return network


def _convert(out: Path, options: ConvertOptions, backends: list[str]) -> Bundle:
    return edgecv.convert(
        _network(),
        out,
        preprocess=PREPROCESS,
        labels=list("0123456789"),
        backends=backends,
        samples=FRAMES,
        options=options,
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return _convert(tmp_path_factory.mktemp("packing") / "plain", ConvertOptions(), ["onnxruntime", "openvino"])


@pytest.fixture(scope="module")
def packed(bundle: Bundle) -> Bundle:
    return edgecv.pack(bundle, bundle.path.with_name("packed"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp32"])
def test_a_packed_bundle_answers_to_the_bit(bundle: Bundle, packed: Bundle, backend: str, variant: str) -> None:
    if (backend, variant) == ("onnxruntime", "openvino-fp32"):
        pytest.skip("ONNX Runtime reads no OpenVINO files")
    inputs = {"image": np.stack(FRAMES)}
    found = []
    for source in (bundle, packed):
        with edgecv.open_session(source, backend=backend, variant=variant) as session:
            found.append(session.run(inputs)["logits"])
    assert np.array_equal(found[0], found[1])


def test_a_packed_bundle_is_small_and_nothing_else_changes(bundle: Bundle, packed: Bundle) -> None:
    stored = packed.manifest.packed
    assert {name.removesuffix(PACKED) for name in stored} == set(bundle.manifest.files) - {"labels.txt"}
    assert all(packed.manifest.files[name].size_bytes < 0.2 * item.size_bytes for name, item in stored.items())
    assert dataclasses.replace(packed.manifest, files={}, packed={}) == dataclasses.replace(bundle.manifest, files={})
    assert edgecv.load(packed)(FRAMES[0])[0] == edgecv.load(bundle)(FRAMES[0])[0]


def test_packing_again_changes_nothing_and_unpacking_gives_what_was(
    bundle: Bundle, packed: Bundle, tmp_path: Path
) -> None:
    assert edgecv.pack(bundle, tmp_path / "same").sha256 == packed.sha256
    assert edgecv.pack(packed, tmp_path / "again").sha256 == packed.sha256
    assert unpack_bundle(packed, tmp_path / "back").sha256 == bundle.sha256


def test_converting_with_pack_stores_the_same_bytes(packed: Bundle, tmp_path: Path) -> None:
    options = ConvertOptions(name="plain", pack=True, parity=False)
    made = _convert(tmp_path / "x", options, ["onnxruntime"])
    assert made.manifest.packed[NAME] == packed.manifest.packed[NAME]
    assert made.manifest.files[NAME] == packed.manifest.files[NAME]


def test_what_gains_little_stays_as_it_is(tmp_path: Path) -> None:
    noise = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=3000).astype("float32"), "noise")
    (tmp_path / "model.onnx").write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [noise])).SerializeToString()
    )
    assert pack_files(tmp_path) == {}
    assert (tmp_path / "model.onnx").is_file()


def test_a_backend_that_reads_files_only_says_what_to_do(packed: Bundle) -> None:
    from edgecv.runtimes.session import SessionOptions
    from tests.doubles import NumpySession

    path = packed.file("onnx-fp32")
    with pytest.raises(InputError, match="'numpy' reads files only: unpack the bundle first, edgecv pack --undo"):
        NumpySession.open_bytes(path, packed.unpacked(path) or {}, SessionOptions())


def _copy(packed: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed.path, tmp_path / "copy"))


def _restamp(path: Path, name: str, raw: bytes, **change: Any) -> Bundle:
    """Write ``raw`` as a file of the bundle and make the manifest agree with it."""
    (path / name).write_bytes(raw)
    data = json.loads((path / "manifest.json").read_text())
    data["files"][name] = dataclasses.asdict(FileRecord(hashlib.sha256(raw).hexdigest(), len(raw)))
    data["packed"][name].update(change)
    (path / "manifest.json").write_text(json.dumps(data))
    return Bundle.load(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_is_refused_even_with_a_manifest_that_fits(packed: Bundle, tmp_path: Path, seed: int) -> None:
    path = _copy(packed, tmp_path)
    raw = bytearray((path / NAME).read_bytes())
    raw[random.Random(seed).randrange(len(raw) - 8)] ^= 4
    (path / NAME).write_bytes(raw)
    with pytest.raises(BundleError, match="was changed after the bundle was written"):
        Bundle.load(path)
    stamped = _restamp(path, NAME, bytes(raw))
    with pytest.raises(BundleError, match=r"cannot be unpacked|decodes to something else than 'onnx-fp32/model.onnx'"):
        edgecv.open_session(stamped, variant="onnx-fp32")


def test_another_declared_size_is_refused(packed: Bundle, tmp_path: Path) -> None:
    path = _copy(packed, tmp_path)
    raw = (path / NAME).read_bytes()
    size = packed.manifest.packed[NAME].size_bytes
    with pytest.raises(BundleError, match=f"its segments have {size} bytes, the manifest says {size + 1}"):
        edgecv.open_session(_restamp(path, NAME, raw, size_bytes=size + 1), variant="onnx-fp32")


def test_a_file_that_changes_after_loading_is_refused(packed: Bundle, tmp_path: Path) -> None:
    path = _copy(packed, tmp_path)
    loaded = Bundle.load(path)
    (path / NAME).write_bytes(b"something else")
    with pytest.raises(BundleError, match="was changed after the bundle was written"):
        edgecv.open_session(loaded, variant="onnx-fp32")


def _rename(data: dict[str, Any], name: str) -> None:
    data["packed"][name] = data["packed"].pop(NAME)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "encoding": (lambda d: d["packed"][NAME].update(encoding="zstd"), "encoding must be one of 'edgecv-lzma-1', not"),
    "key": (lambda d: d["packed"][NAME].update(level=9), "unknown key 'level'"),
    "suffix": (lambda d: _rename(d, "onnx-fp32/model.onnx"), "must end in '.packed'"),
    "missing": (lambda d: _rename(d, f"onnx-fp32/other{PACKED}"), "'onnx-fp32/model.onnx' is used but not listed"),
    "unlisted": (lambda d: d["files"].pop(NAME), f"'{NAME}' is used but not listed"),
    "clash": (lambda d: d["packed"].update({f"labels.txt{PACKED}": d["packed"][NAME]}), "its name without it must be"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_makes_no_sense_is_refused(packed: Bundle, tmp_path: Path, what: str) -> None:
    change, telling = WRONG[what]
    path = _copy(packed, tmp_path)
    data = json.loads((path / "manifest.json").read_text())
    change(data)
    (path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=telling):
        Bundle.load(path)


def test_manifests_from_before_packing_are_read(bundle: Bundle, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    data = json.loads((path / "manifest.json").read_text())
    del data["packed"]
    (path / "manifest.json").write_text(json.dumps(data))
    assert Bundle.load(path).manifest == bundle.manifest


def test_the_device_needs_neither_torch_nor_onnx(packed: Bundle) -> None:
    code = f"""
import sys, edgecv
edgecv.open_session({str(packed.path)!r}, variant="onnx-fp32").close()
print(sorted({{"torch", "onnx", "google.protobuf"}} & set(sys.modules)), "edgecv.converters.packing" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip() == "[] False", done.stderr


def test_the_command_line_packs_inspects_and_undoes(bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    small, back = str(tmp_path / "small"), str(tmp_path / "back")
    assert main(["pack", str(bundle.path), "--out", small]) == 0
    assert f"onnx-fp32/model.onnx{PACKED}" in capsys.readouterr().out
    assert main(["inspect", small]) == 0
    assert "MB, stored of decoded" in capsys.readouterr().out
    assert main(["pack", small, "--undo", "--out", back, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == bundle.sha256


def test_write_manifest_keeps_what_is_packed(packed: Bundle, tmp_path: Path) -> None:
    path = _copy(packed, tmp_path)
    (path / "manifest.json").unlink()
    write_manifest(path, dataclasses.replace(packed.manifest, files={}))
    assert Bundle.load(path).sha256 == packed.sha256

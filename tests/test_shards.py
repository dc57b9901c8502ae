"""Tar shards: what is written is read back, in an order that repeats, and every way a shard can be wrong is named."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.data import ArraySamples
from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

require("torch")
require("opencv")

import cv2  # noqa: E402  (after the checks that they are there)
import torch  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from edgecv.training.shards import TarShards, write_shards  # noqa: E402

ROOT = Path(__file__).parent.parent
LABELS = ("cat", "dog", "eel")
PNG = cv2.imencode(".png", np.full((2, 3, 3), (10, 20, 30), np.uint8))[1].tobytes()


def _samples(count: int) -> ArraySamples:
    """Each frame says which it is."""
    frames = [np.full((4, 5, 3), (i, 100, 255 - i), np.uint8) for i in range(count)]
    return ArraySamples(frames, [i % 3 for i in range(count)], LABELS)


def _ids(shards: TarShards) -> list[int]:
    return [int(frame[0, 0, 0]) for frame, _ in shards]


def _tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _refused(read: Callable[[], object], *telling: str) -> None:
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for words in telling:
        caught.match(words)


def _unreadable(path: Path, *telling: str) -> None:
    """Neither counted nor iterated."""
    _refused(lambda: len(TarShards(path, LABELS)), path.name, *telling)
    _refused(lambda: list(TarShards(path, LABELS)), path.name, *telling)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 5, 3), np.uint8)
    samples = ArraySamples([frame[: 3 + i] for i, frame in enumerate(noise)], [0, 1, 2, 0, 1, 2, 0], LABELS)
    paths = write_shards(samples, tmp_path / "out", per_shard=3)
    assert paths == sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    shards = TarShards(tmp_path / "out", LABELS)
    assert (len(shards), shards.labels) == (7, LABELS)
    for (frame, target), (wanted, answer) in zip(shards, (samples[i] for i in range(7)), strict=True):
        assert (frame.dtype.name, target) == ("uint8", answer)
        assert np.array_equal(frame, wanted)


def test_quality_asks_for_jpeg(tmp_path: Path) -> None:
    write_shards(_samples(2), tmp_path, quality=95)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert tar.getnames() == ["00000000.jpg", "00000000.cls", "00000001.jpg", "00000001.cls"]
    for (frame, _), (wanted, _) in zip(TarShards(tmp_path, LABELS), (_samples(2)[i] for i in range(2)), strict=True):
        assert np.abs(frame.astype(int) - wanted).max() < 6


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_shards(_samples(5), tmp_path / name, per_shard=2) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    with tarfile.open(one[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


class _Wrong(ArraySamples):
    """The fourth of five has a class there is not."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return super().__getitem__(index)[0], 3 * (index == 3)


def test_shards_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, out = _samples(5), tmp_path / "out"
    wrong = _Wrong([samples[i][0] for i in range(5)], [0] * 5, LABELS)
    _refused(lambda: write_shards(wrong, out, per_shard=2), "class of sample 3 is 3")
    wide = ArraySamples([np.zeros((1, 70000, 3), np.uint8)], [0], LABELS)
    _refused(lambda: write_shards(wide, out), r"\[1, 70000, 3\]")
    for arguments in ({"per_shard": 0}, {"quality": 0}, {"quality": 101}):
        _refused(lambda arguments=arguments: write_shards(samples, out, **arguments), "1 or more")  # type: ignore[misc]
    _refused(lambda: write_shards(ArraySamples([], [], LABELS), out), "1000 of 0 samples")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendUnavailable, match=r"edgecv\[vision\]"):
        write_shards(samples, out)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    (path,) = write_shards(_samples(1), tmp_path)
    before = path.read_bytes()
    _refused(lambda: write_shards(_samples(2), tmp_path), "not empty")
    assert path.read_bytes() == before


def test_a_disk_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    _refused(lambda: write_shards(_samples(1), tmp_path / "out"), r"cannot write .*00000\.tar.*No space left")
    assert list(tmp_path.iterdir()) == []


def test_shards_come_from_a_folder_a_file_or_a_list(tmp_path: Path) -> None:
    first, second, third = write_shards(_samples(6), tmp_path, per_shard=2)
    (tmp_path / "notes.txt").write_text("no shard")
    assert _ids(TarShards(str(tmp_path), LABELS)) == list(range(6))
    assert _ids(TarShards(second, LABELS)) == [2, 3]
    assert _ids(TarShards([third, str(first)], LABELS)) == [4, 5, 0, 1]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    _refused(lambda: TarShards(tmp_path, LABELS), f"no shards: {tmp_path} is no file")
    _refused(lambda: TarShards([], LABELS), "no shards")
    made = tmp_path / "made"
    for name in (str(tmp_path / "a.tar"), f"pipe:touch {made}", "https://example.com/a.tar", "/dev/zero"):
        _refused(lambda name=name: TarShards(name, LABELS), "is no file and no folder")  # type: ignore[misc]
    assert not made.exists()


@pytest.mark.parametrize("arguments", [{"shuffle": -1}, {"seed": -1}])
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int]) -> None:
    write_shards(_samples(1), tmp_path)
    _refused(lambda: TarShards(tmp_path, LABELS, **arguments), "0 or more")
    _refused(lambda: TarShards(tmp_path, LABELS).set_epoch(-1), "0 or more")


def test_the_order_follows_seed_and_epoch(tmp_path: Path) -> None:
    write_shards(_samples(40), tmp_path, per_shard=5)
    plain, shards = TarShards(tmp_path, LABELS), TarShards(tmp_path, LABELS, shuffle=7)
    plain.set_epoch(3)
    assert _ids(plain) == list(range(40))
    first = _ids(shards)
    assert sorted(first) == list(range(40))
    assert {i // 5 for i in first[:5]} != {0}
    assert first == _ids(shards) == _ids(TarShards(tmp_path, LABELS, shuffle=7))
    shards.set_epoch(1)
    others = [
        _ids(shards),
        _ids(TarShards(tmp_path, LABELS, shuffle=7, seed=1)),
        _ids(TarShards(tmp_path, LABELS, shuffle=8)),
    ]
    assert all(sorted(ids) == list(range(40)) for ids in others)
    assert len({tuple(ids) for ids in [first, *others]}) == 4
    shards.set_epoch(0)
    assert _ids(shards) == first


@pytest.mark.parametrize("size", [1, 3, 12, 100])
def test_every_buffer_gives_every_sample_once(tmp_path: Path, size: int) -> None:
    write_shards(_samples(12), tmp_path, per_shard=5)
    assert sorted(_ids(TarShards(tmp_path, LABELS, shuffle=size))) == list(range(12))


def _as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)


@pytest.mark.parametrize("shuffle", [0, 4])
def test_ranks_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: int) -> None:
    write_shards(_samples(20), tmp_path, per_shard=4)
    shards = TarShards(tmp_path, LABELS, shuffle=shuffle)
    parts = []
    for rank in range(3):
        _as_rank(monkeypatch, rank, 3)
        parts.append(_ids(shards))
        assert parts[-1] == _ids(shards)
    assert [len(part) for part in parts] == [8, 8, 4]
    assert sorted(itertools.chain(*parts)) == list(range(20))
    assert len(shards) == 20
    _as_rank(monkeypatch, 5, 6)
    _refused(lambda: list(shards), "5 shards cannot be shared by 6 ranks")


@pytest.mark.parametrize("check", ["compare_workers", "compare_persistent_workers", "compare_spawned_workers"])
def test_workers_share_the_shards(tmp_path: Path, check: str) -> None:
    """In a process of its own: forking the process of the tests is not safe."""
    write_shards(_samples(30), tmp_path, per_shard=4)
    code = f"import sys; from tests import test_shards; test_shards.{check}(sys.argv[1])"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr


def _loaded(loader: Any) -> list[int]:
    return [int(i) for frames, _ in loader for i in frames[:, 0, 0, 0]]


def compare_workers(folder: str) -> None:
    """Each sample once, whatever the number of workers, and the same order again."""
    for shuffle, workers in itertools.product((0, 6), (1, 2)):
        shards = TarShards(folder, LABELS, shuffle=shuffle)
        one, two = (_loaded(DataLoader(shards, 4, num_workers=workers)) for _ in range(2))
        assert sorted(one) == list(range(30))
        assert one == two
        assert workers > 1 or one == _ids(shards)
    assert _loaded(DataLoader(TarShards(Path(folder, "00000.tar"), LABELS), 4, num_workers=2)) == [0, 1, 2, 3]


def compare_persistent_workers(folder: str) -> None:
    """They are told of the epoch."""
    shards = TarShards(folder, LABELS, shuffle=6)
    loader = DataLoader(shards, 4, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 5):
        shards.set_epoch(epoch)
        assert _loaded(loader) == _ids(shards)


def compare_spawned_workers(folder: str) -> None:
    """They do not inherit the process group, and know their rank and epoch all the same."""
    with pytest.MonkeyPatch.context() as patch:
        _as_rank(patch, 1, 3)
        shards = TarShards(folder, LABELS, shuffle=6)
        shards.set_epoch(2)
        found = _loaded(DataLoader(shards, 4, num_workers=1, multiprocessing_context="spawn"))
        assert found == _ids(shards)
        assert 0 < len(found) < 30


def test_the_layout_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    """Folders, dots in suffixes, other members, capital letters; none of it is written or run."""
    folder = tarfile.TarInfo("sub.d")
    folder.type = tarfile.DIRTYPE
    hostile = b"cos\nsystem\n(S'exit 1'\ntR."
    jpeg, webp = (cv2.imencode(s, np.zeros((8, 8, 3), np.uint8))[1].tobytes() for s in (".jpg", ".webp"))
    path = _tar(
        tmp_path / "a.tar",
        ("__meta__", b""),
        ("__index__/x.json", b""),
        (folder, b""),
        ("sub.d/a.PNG", PNG),
        ("sub.d/._a.png", b"what macOS leaves"),
        ("sub.d/a.mask.png", b"another"),
        ("sub.d/a.pyd", hostile),
        ("sub.d/a.cls", b" 2\n"),
        ("b.cls", b"0"),
        ("b.jpeg", jpeg),
        ("../../up.webp", webp),
        ("../../up.cls", b"01"),
        ("n" * 150 + ".png", PNG),
        ("n" * 150 + ".cls", b"1"),
    )
    shards = TarShards(path, LABELS)
    assert len(shards) == 4
    assert [(frame.shape, target) for frame, target in shards] == [
        ((2, 3, 3), 2),
        ((8, 8, 3), 0),
        ((8, 8, 3), 1),
        ((2, 3, 3), 1),
    ]
    assert next(iter(shards))[0][0, 0].tolist() == [30, 20, 10]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_style_of_tar_is_read(tmp_path: Path, style: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=style) as tar:
        for name, data in (("ü" * 40 + ".png", PNG), ("ü" * 40 + ".cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 12 if style == tarfile.USTAR_FORMAT else 12.5
            tar.addfile(info, io.BytesIO(data))
    assert [target for _, target in TarShards(tmp_path, LABELS)] == [1]


@pytest.mark.parametrize(
    ("members", "telling"),
    [
        ([("a.png", PNG)], "sample 'a' of .*1 images and 0 .cls"),
        ([("a.cls", b"0")], "sample 'a' of .*0 images and 1 .cls"),
        ([("a.jp2", PNG), ("a.cls", b"0")], "sample 'a' of .*0 images and 1 .cls"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"0")], "sample 'a' of .*2 images and 1 .cls"),
        ([("a.png", PNG), ("a.cls", b"0"), ("a.cls", b"0")], "sample 'a' of .*1 images and 2 .cls"),
        ([("a.png", PNG), ("b.png", PNG), ("a.cls", b"0"), ("b.cls", b"0")], "sample 'a' of .*1 images and 0 .cls"),
        ([("a\nb.png", PNG)], r"sample 'a\\nb' of"),
        ([("a" * 5000 + ".png", PNG)], "sample 'aaa.*… of"),
    ],
)
def test_an_incomplete_sample_is_named(tmp_path: Path, members: Sequence[tuple[str, bytes]], telling: str) -> None:
    _unreadable(_tar(tmp_path / "s.tar", ("0.png", PNG), ("0.cls", b"0"), *members), telling)


@pytest.mark.parametrize("members", [[], [("README", b"text")]])
def test_a_shard_of_no_samples_is_refused(tmp_path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    _unreadable(_tar(tmp_path / "s.tar", *members), "holds no sample")


@pytest.mark.parametrize("text", [b"", b"cat", b"-1", b"3", b"1.0", b"1 2", "²".encode(), b"9" * 5000, b"\xff\n"])
def test_a_wrong_class_is_named(tmp_path: Path, text: bytes) -> None:
    path = _tar(tmp_path / "s.tar", ("0.png", PNG), ("0.cls", b"0"), ("a.png", PNG), ("a.cls", text))
    shards = TarShards(path, LABELS)
    assert len(shards) == 2
    _refused(lambda: list(shards), r"the class of sample 'a' of .*s\.tar is an index into the 3 labels, got b")


@pytest.mark.parametrize("data", [b"", b"no image", PNG[:-20], b"\xff\xd8\xff\xda\xff\xd9"])
def test_a_broken_image_is_named(tmp_path: Path, data: bytes) -> None:
    path = _tar(tmp_path / "s.tar", ("0.png", PNG), ("0.cls", b"0"), ("a.jpg", data), ("a.cls", b"0"))
    _refused(lambda: list(TarShards(path, LABELS)), r"sample 'a' of .*s\.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S"])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    info = tarfile.TarInfo("a.png")
    info.type, info.linkname = kind, str(tmp_path / "secret.png")
    _unreadable(
        _tar(tmp_path / "s.tar", (info, b""), ("a.cls", b"0")), r"s\.tar: 'a\.png' is a link, a device or sparse"
    )


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    for content in (path.read_bytes(), b"", b"no", PNG * 100, b"\xff" * 2000):
        path.write_bytes(content)
        _unreadable(path, "cannot read shard")


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Between two members and in a header too, where tarfile alone sees the end of a shorter tar."""
    (path,) = write_shards(_samples(3), tmp_path)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    for size in {*range(0, end, 256), *range(1, end, 509), end - 1, end, end + 511}:
        path.write_bytes(whole[:size])
        _unreadable(path)
    path.write_bytes(whole[: end + 512])
    assert len(TarShards(path, LABELS)) == 3


def _patched(block: bytes, place: int, value: bytes) -> bytes:
    """A header with some bytes changed and the check sum made right again."""
    block = block[:place] + value + block[place + len(value) :]
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def _read_or_refused(path: Path) -> str:
    try:
        return f"{len(list(TarShards(path, LABELS)))} samples"
    except InputError as error:
        return "refused" if path.name in str(error) else "not named"


@pytest.mark.parametrize("kind", [b"0", b"5", b"L", b"K", b"S", b"x", b"g"])
def test_forged_sizes_neither_hang_nor_fill_the_memory(tmp_path: Path, kind: bytes) -> None:
    path = _tar(tmp_path / "s.tar", ("a.png", PNG), ("a.cls", b"0"))
    whole = path.read_bytes()
    for size in (-(1 << 40), -1024, -5, 1 << 30, 1 << 62):
        number = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
        header = _patched(_patched(tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT), 156, kind), 124, number)
        path.write_bytes(whole[:2048] + header + whole[2048:])
        assert _read_or_refused(path) in ({"refused"} if kind == b"0" else {"refused", "1 samples"})


def test_damaged_headers_raise_nothing_else(tmp_path: Path) -> None:
    """Bytes changed at random, and the check sum made right again, give samples or an ``InputError``."""
    generator = np.random.default_rng(0)
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for name, data in (("ü.png", PNG), ("ü.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for _ in range(300):
        start = 512 * int(generator.integers(12))
        block = whole[start : start + 512]
        for place in generator.integers(0, 512, 3):
            block = _patched(block, int(place), bytes([generator.choice([0, 48, 55, 128, 255, 61, 32])]))
        path.write_bytes(whole[:start] + block + whole[start + 512 :])
        outcomes[_read_or_refused(path)] += 1
    assert set(outcomes) == {"refused", "1 samples"}
    assert min(outcomes.values()) > 20

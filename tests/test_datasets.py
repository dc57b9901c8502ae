"""Published data sets, written here in small and read back: every layout, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import os
import pickle  # noqa: TID251  (to write what the reader must read, and what it must refuse)
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.datasets import FASHION_MNIST, cifar10, idx
from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def _rows(seed: int, count: int = 4) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def _text(value: bytes) -> bytes:
    """A Python 2 string as its pickle writes it: BINSTRING."""
    return b"T" + struct.pack("<i", len(value)) + value


def _python2(rows: Any, labels: Sequence[int], kind: bytes = b"u1", fortran: bool = False) -> bytes:
    """A batch, opcode by opcode, as Python 2 and the numpy of 2009 wrote it."""
    raw = rows.tobytes("F" if fortran else "C")
    shape = b"".join(b"J" + struct.pack("<i", n) for n in rows.shape)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + _text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + _text(kind) + b"K\x00K\x01tR(K\x03" + _text(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array += b"(K\x01(" + shape + b"t" + dtype + (b"I01\n" if fortran else b"I00\n") + _text(raw) + b"tb"
    numbers = b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"
    named = _text(b"batch_label") + _text(b"testing batch 1 of 1") + _text(b"labels") + numbers
    return b"\x80\x02}(" + named + _text(b"data") + array + b"u."


def _python3(rows: Any, labels: Any) -> bytes:
    return pickle.dumps({"data": rows, "labels": labels}, protocol=2)


def _write_batches(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(FILES):
        (folder / name).write_bytes(_python2(_rows(seed), [seed, 9, 0, 5]))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol=2))
    return folder


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """The folder of the python version, four images a batch."""
    return _write_batches(tmp_path / "cifar-10-batches-py")


def _jpegs(count: int) -> list[bytes]:
    require("opencv")
    import cv2

    frames = [np.full((32, 32, 3), (10 * i, 120, 250 - 10 * i), np.uint8) for i in range(count)]  # blue, green, red
    return [cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames]


def _write_npz(path: Path, images: Sequence[bytes], targets: Sequence[int], **other: Any) -> Path:
    arrays = {
        "jpeg": np.frombuffer(b"".join(images), np.uint8),
        "offsets": np.cumsum([0] + [len(image) for image in images]),
        "labels": np.array(targets, np.uint8),
        "classes": np.array(NAMES),
    } | other
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def _write_idx(path: Path, array: Any, head: bytes | None = None, cut: int = 0, zipped: bool = False) -> None:
    data = (head or bytes([0, 0, 8, array.ndim])) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    data = data[: len(data) - cut] if cut >= 0 else data + b"\0" * -cut
    path = path.with_name(path.name + ".gz") if zipped else path
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Three images to train on, zipped; two to test, plain."""
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    for prefix, part, zipped in (("train", grey[:3], True), ("t10k", grey[3:], False)):
        _write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", part, zipped=zipped)
        _write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(len(part), dtype=np.uint8), zipped=zipped)
    return tmp_path


@pytest.mark.parametrize("above", [False, True])
def test_cifar_batches_are_read_in_order(batches: Path, above: bool) -> None:
    path = batches.parent if above else batches
    test, train = cifar10(path), cifar10(path, "train")
    assert (test.labels, len(test), len(train)) == (tuple(NAMES), 4, 20)
    assert [train[i][1] for i in range(20)] == [label for seed in range(5) for label in (seed, 9, 0, 5)]
    assert [test[i][1] for i in range(4)] == [5, 9, 0, 5]
    for frame, row in ((test[1][0], _rows(5)[1]), (train[13][0], _rows(3)[1])):
        assert (frame.shape, frame.dtype.name, frame.flags.c_contiguous) == ((32, 32, 3), "uint8", True)
        assert [frame[0, 1, c] for c in range(3)] == [row[1], row[1025], row[2049]]
        assert np.array_equal(frame[..., 2].ravel(), row[2048:])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_batches_written_again_by_python_3_are_read(batches: Path, protocol: int) -> None:
    batch = {"data": _rows(7), "labels": [1, 2, 3, 4]}
    (batches / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    (batches / "batches.meta").unlink()
    assert np.array_equal(cifar10(batches)[3][0][..., 0].ravel(), _rows(7)[3, :1024])


def test_a_batch_by_columns_is_read_by_its_rows(batches: Path) -> None:
    (batches / "test_batch").write_bytes(_python2(_rows(7), [1, 2, 3, 4], fortran=True))
    assert np.array_equal(cifar10(batches)[3][0][..., 0].ravel(), _rows(7)[3, :1024])


def test_the_handwritten_batch_is_a_true_pickle() -> None:
    batch = pickle.loads(_python2(_rows(1), [1, 2, 3, 4]), encoding="latin1")  # noqa: S301  (written here)
    assert np.array_equal(batch["data"], _rows(1))
    assert batch["labels"] == [1, 2, 3, 4]


class _Call:
    """Pickles as a call: what a hostile file holds."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
@pytest.mark.parametrize("function", ["system", "mkdir", "eval", "getattr"])
def test_a_batch_that_would_run_code_is_refused(batches: Path, name: str, function: str) -> None:
    made = batches / "made"
    call = {
        "system": _Call(os.system, f"mkdir {made}"),
        "mkdir": _Call(os.mkdir, str(made)),
        "eval": _Call(eval, f"__import__('os').mkdir({str(made)!r})"),
        "getattr": _Call(getattr, "", "join"),
    }[function]
    (batches / name).write_bytes(pickle.dumps({"data": call, "labels": [0]}, protocol=2))
    with pytest.raises(InputError, match=rf"{name} is refused: a CIFAR-10 batch has no \w+\.{function}$"):
        cifar10(batches)
    assert not made.exists()


def test_numpy_itself_is_never_called_by_a_batch(batches: Path) -> None:
    """``ndarray(shape, object, buffer)`` takes bytes for the addresses of objects: reading it would crash."""
    forged = _Call(np.ndarray, (4, 3072), np.dtype(object), b"\x01" * 8 * 4 * 3072)
    (batches / "test_batch").write_bytes(pickle.dumps({"data": forged, "labels": [0] * 4}, protocol=2))
    with pytest.raises(InputError, match=r"'data' uint8 \[n, 3072\]"):
        cifar10(batches)


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        (b"", "cannot read"),
        (b"not a pickle", "cannot read"),
        (_python2(_rows(0), [0, 1, 2, 3])[:-200], "cannot read"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "cannot read"),
        (b"\x80\x02K\x01Q.", "cannot read"),
        (b"\x80\x02K\x01K\x02b.", "cannot read"),
        (b"cnumpy\nndarray\nK\x02b.", "cannot read"),
        (pickle.dumps([1, 2], protocol=2), "a dictionary was expected"),
        (pickle.dumps({}, protocol=2), "'data' uint8"),
        (_python3(_rows(0).astype(np.float32), [0, 1, 2, 3]), "'data' uint8"),
        (_python3(_rows(0)[:, :3071], [0, 1, 2, 3]), "'data' uint8"),
        (_python3(_rows(0).ravel(), [0, 1, 2, 3]), "'data' uint8"),
        (_python3([[0] * 3072], [0]), "'data' uint8"),
        (_python2(_rows(0), [0, 1, 2, 3], b"O8"), "'data' uint8"),
        (_python3(_rows(0), (0, 1, 2, 3)), "a list of 'labels'"),
        (_python3(_rows(0), [0, 1, 2]), "4 images and 3 labels"),
        (_python2(_rows(0, 0), []), "no labels"),
        (_python3(_rows(0), [0, 1, 10, 3]), "label 2 of .* out of range: 0 to 9"),
        (_python3(_rows(0), [0, -1, 1, 3]), "label 1 of .* out of range"),
        (_python3(_rows(0), ["0", 1, 2, 3]), "label 0 of .* out of range"),
        (_python3(_rows(0), [0, 1, 2, 10**5000]), "label 3 of .* out of range"),
    ],
)
def test_a_broken_batch_is_named(batches: Path, content: bytes, telling: str) -> None:
    (batches / "test_batch").write_bytes(content)
    _refused(lambda: cifar10(batches), "test_batch", telling)
    assert len(cifar10(batches, "train")) == 20


def _refused(read: Callable[[], object], *telling: str) -> None:
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for words in telling:
        caught.match(words)


def test_missing_cifar_files_are_named(batches: Path) -> None:
    _refused(lambda: cifar10(batches / "nothing"), "nothing does not exist; .* was expected")
    (batches / "data_batch_4").unlink()
    _refused(lambda: cifar10(batches, "train"), "data_batch_4 as a CIFAR-10 batch: .*No such file")
    _refused(lambda: cifar10(batches, "val"), "splits are 'train' and 'test', got 'val'")  # type: ignore[arg-type]


def test_other_class_names_are_refused(batches: Path, tmp_path: Path) -> None:
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES[::-1]}, protocol=2))
    _refused(lambda: cifar10(batches), r"batches\.meta does not name the ten classes")
    path = _write_npz(tmp_path / "a.npz", [b"a"], [0], classes=np.array(NAMES[::-1]))
    _refused(lambda: cifar10(path), r"a\.npz does not name the ten classes")


def test_jpeg_bytes_are_decoded_when_asked_for(tmp_path: Path) -> None:
    samples = cifar10(_write_npz(tmp_path / "a.npz", _jpegs(5), [3, 1, 4, 1, 9]))
    assert (samples.labels, len(samples)) == (tuple(NAMES), 5)
    assert [samples[i][1] for i in range(5)] == [3, 1, 4, 1, 9]
    for i, level in ((0, 0), (3, 30), (-1, 40)):
        frame = samples[i][0]
        assert (frame.shape, frame.dtype.name, frame.flags.c_contiguous) == ((32, 32, 3), "uint8", True)
        assert np.abs(frame.reshape(-1, 3).astype(int) - [250 - level, 120, level]).max() <= 4
    with pytest.raises(IndexError):
        samples[5]


def test_classes_may_be_left_out_of_an_npz(tmp_path: Path) -> None:
    assert cifar10(_write_npz(tmp_path / "a.npz", [b"a"], [0], classes=None)).labels == tuple(NAMES)


@pytest.mark.parametrize(
    ("other", "telling"),
    [
        ({"offsets": None}, "cannot read .*offsets"),
        ({"jpeg": np.array([b"a", None], object)}, "cannot read .*allow_pickle=False"),
        ({"classes": np.array(NAMES, object)}, "cannot read .*allow_pickle=False"),
        ({"jpeg": np.zeros(9, np.int8)}, "'jpeg' uint8"),
        ({"jpeg": np.zeros((9, 1), np.uint8)}, "'jpeg' uint8"),
        ({"offsets": np.array([0.0, 3.0, 6.0])}, "integers"),
        ({"labels": np.array(["cat", "dog"])}, "integers"),
        ({"labels": np.zeros((), int)}, "integers"),
        ({"offsets": np.array([0, 6])}, "2 offsets and 2 labels"),
        ({"labels": np.array([0, 1, 2])}, "3 offsets and 3 labels"),
        ({"offsets": np.array([0, 3, 7])}, "within the 6 bytes"),
        ({"offsets": np.array([0, 3, 2**64 - 1], np.uint64)}, "within the 6 bytes"),
        ({"offsets": np.array([-3, 0, 3])}, "within the 6 bytes"),
        ({"offsets": np.array([0, 7, 6])}, "must rise"),
        ({"offsets": np.array([0, 0, 6])}, "must rise"),
        ({"labels": np.array([0, 10])}, "label 1 of .* out of range"),
        ({"labels": np.array([-1, 0])}, "label 0 of .* out of range"),
        ({"labels": np.array([], int), "offsets": np.array([0])}, "no labels"),
    ],
)
def test_a_broken_npz_is_named(tmp_path: Path, other: dict[str, Any], telling: str) -> None:
    path = _write_npz(tmp_path / "a.npz", [b"abc", b"def"], [0, 1], **other)
    _refused(lambda: cifar10(path), r"a\.npz", telling)


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    whole = _write_npz(path, [b"abc", b"def"], [0, 1]).read_bytes()
    np.save(tmp_path / "b.npy", np.zeros(3))
    entry = whole.replace(b"\x93NUMPY", b"\x93NUMBY")  # a zip of something else; its check sums are wrong, too
    for content in (b"", b"no", whole[:-30], whole[:40], entry, (tmp_path / "b.npy").read_bytes(), pickle.dumps([1])):
        path.write_bytes(content)
        _refused(lambda: cifar10(path), r"cannot read .*a\.npz as an \.npz")


def test_a_zip_of_other_files_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name in ("jpeg", "offsets", "labels"):
            file.writestr(name, "text")
    _refused(lambda: cifar10(tmp_path / "a.npz"), "'jpeg' uint8")


def test_images_that_are_no_jpeg_of_32_pixels_are_named(tmp_path: Path) -> None:
    require("opencv")
    import cv2

    large = cv2.imencode(".jpg", np.zeros((32, 33, 3), np.uint8))[1].tobytes()
    good = _jpegs(1)[0]
    samples = cifar10(
        _write_npz(tmp_path / "a.npz", [b"text", good[:-2], large, good, b"\xff\xd8\xff\xda\xff\xd9"], [0] * 5)
    )
    assert samples[3][0].shape == (32, 32, 3)
    for place, telling in ((0, "not an image"), (1, "cut short"), (2, "32x33 pixels"), (4, "image")):
        _refused(lambda place=place: samples[place], rf"image {place} of .*a\.npz", telling)  # type: ignore[misc]


def test_without_opencv_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = cifar10(_write_npz(tmp_path / "a.npz", [b"abc"], [0]))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'edgecv\[vision\]'"):
        samples[0]


def test_idx_files_are_read_plain_and_zipped(mnist: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    train, test = idx(mnist, "train"), idx(mnist)
    assert (train.labels, len(train), len(test)) == (tuple("0123456789"), 3, 2)
    for samples, first in ((train, 0), (test, 3)):
        for i in range(len(samples)):
            frame, target = samples[i]
            assert (frame.shape, frame.dtype.name, target) == ((28, 28, 3), "uint8", i)
            assert all(np.array_equal(frame[..., c], grey[first + i]) for c in range(3))


def test_idx_labels_may_be_named(mnist: Path) -> None:
    assert idx(mnist, labels=FASHION_MNIST).labels == FASHION_MNIST
    assert (len(FASHION_MNIST), FASHION_MNIST[0], FASHION_MNIST[9]) == (10, "T-shirt/top", "Ankle boot")
    assert idx(mnist, labels=["a", "b"]).labels == ("a", "b")
    _refused(lambda: idx(mnist, labels=["a"]), "label 1 of .*t10k-labels-idx1-ubyte is out of range: 0 to 0")


def test_missing_idx_files_are_named(mnist: Path) -> None:
    _refused(lambda: idx(mnist / "nothing"), "nothing/t10k-images-idx3-ubyte does not exist")
    _refused(lambda: idx(mnist, "val"), "splits are 'train' and 'test', got 'val'")  # type: ignore[arg-type]
    (mnist / "train-labels-idx1-ubyte.gz").unlink()
    _refused(lambda: idx(mnist, "train"), "train-labels-idx1-ubyte does not exist, nor does it with .gz")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("shape", "changes", "telling"),
    [
        ((2, 28, 28), {"head": bytes([0, 0, 9, 3])}, "no idx file of uint8 with 3 dimensions: .* 0x00000903"),
        ((2, 28, 28), {"head": bytes([0, 0, 8, 1])}, "no idx file of uint8 with 3 dimensions: .* 0x00000801"),
        ((2, 28, 28), {"head": b"\x1f\x8b\x08\x03"}, "no idx file"),
        ((2, 784), {}, "no idx file"),
        ((2, 28, 28), {"cut": 1}, r"shape \(2, 28, 28\) takes 1568 bytes of data, got 1567"),
        ((2, 28, 28), {"cut": -1}, "takes 1568 bytes of data, got 1569"),
        ((2, 28, 28), {"cut": 1570}, "no idx file"),
        ((2, 28, 28), {"cut": 1584}, "no idx file"),
        ((0, 28, 28), {}, "takes 0 bytes"),
        ((3, 28, 28), {}, "3 images and .* 2 labels: they must be as many"),
    ],
)
def test_a_broken_idx_file_is_named(
    mnist: Path, shape: tuple[int, ...], changes: dict[str, Any], telling: str, zipped: bool
) -> None:
    path = mnist / "t10k-images-idx3-ubyte"
    path.unlink()
    _write_idx(path, np.zeros(shape, np.uint8), zipped=zipped, **changes)
    _refused(lambda: idx(mnist), path.name + (r"\.gz" if zipped else ""), telling)


def test_an_idx_label_out_of_range_is_named(mnist: Path) -> None:
    _write_idx(mnist / "t10k-labels-idx1-ubyte", np.array([3, 10], np.uint8))
    _refused(lambda: idx(mnist), "label 1 of .*t10k-labels-idx1-ubyte is out of range: 0 to 9")


def test_a_broken_gz_is_named(mnist: Path) -> None:
    path = mnist / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (b"", b"no", whole[:-20], whole[:30] + b"\0\0\0\0" + whole[34:], whole[:-6] + b"\0" * 6):
        path.write_bytes(content)
        _refused(lambda: idx(mnist, "train"), "train-images-idx3-ubyte")


@pytest.mark.parametrize(("name", "count"), [("test5k_a", 5000), ("train25k", 25000)])
def test_real_cifar_images_are_read(data: Path, name: str, count: int) -> None:
    require("opencv")
    path = data / "cifar10" / f"{name}.npz"
    samples = cifar10(path)
    with np.load(path) as arrays:
        targets = arrays["labels"].tolist()
    assert (samples.labels, len(samples), len(targets)) == (tuple(NAMES), count, count)
    for i in (0, 1, count // 2, count - 1):
        frame, target = samples[i]
        assert (frame.shape, frame.dtype.name, target) == ((32, 32, 3), "uint8", targets[i])
        assert frame.std() > 5

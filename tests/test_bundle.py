"""Bundles: what is written comes back, and nothing broken is ever believed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.bundle import Bundle, write_manifest
from edgecv.errors import BundleError, InputError
from edgecv.files import new_folder
from edgecv.manifest import Accuracy, Graph, Manifest, Parity, Source, Variant
from edgecv.preprocess import Preprocess
from edgecv.schema import decode, dumps, loads
from edgecv.tensors import TensorSpec

IMAGE = TensorSpec("image", "uint8", (None, 8, 8, 3))
LOGITS = TensorSpec("logits", "float32", (None, 3))
MANIFEST = Manifest(
    format=1,
    name="tiny",
    task="classification",
    graphs={"model": Graph((IMAGE,), (LOGITS,))},
    preprocess=Preprocess(size=(8, 8), resize=10),
    postprocess={"activation": "softmax"},
    labels="labels.txt",
    variants={
        "onnx-fp32": Variant("onnxruntime", "fp32", {"model": "onnx-fp32/model.onnx"}, {"onnxruntime": "1.18"}),
        "openvino-fp32": Variant(
            "openvino", "fp32", {"model": "openvino-fp32/model.xml"}, {}, Parity(5, 1e-6, 1e-7, 1.0, 1.0, 1e-3)
        ),
    },
    source=Source("0.1.0", {"architecture": "x", "options": {"width": 0.5}}, "data", Accuracy(0.9, 1, 10, (0.6, 1.0))),
    files={},
)
FILES = {
    "labels.txt": b"cat\ndog\nbird\n",
    "onnx-fp32/model.onnx": bytes(range(200)),
    "openvino-fp32/model.xml": b"<net/>",
    "openvino-fp32/model.bin": b"",
}


def write(folder: Path) -> Path:
    """A small bundle; its model files are made-up bytes, which no test here opens."""
    with new_folder(folder) as scratch:
        for name, data in FILES.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).write_bytes(data)
        write_manifest(scratch, MANIFEST)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A valid bundle."""
    return write(tmp_path / "bundle")


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed manifest and write it back."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_is_written_comes_back(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert dataclasses.replace(loaded.manifest, files={}) == MANIFEST
    assert loaded.labels == ("cat", "dog", "bird")
    assert loaded.file("openvino-fp32") == bundle / "openvino-fp32/model.xml"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert Bundle.load(first).sha256 == Bundle.load(second).sha256


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(), st.integers(1, 10_000))
def test_manifests_survive_the_round_trip(value: float, text: str, samples: int) -> None:
    parity = Parity(samples, value, value, value, None, value)
    variant = Variant(text, text, {"model": text}, {text: text}, parity)
    manifest = dataclasses.replace(MANIFEST, name=text, variants={text: variant}, postprocess={text: [value, None]})
    assert decode(Manifest, loads(dumps(manifest), "here"), "here") == manifest


def test_unknown_variants_and_graphs_are_named(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    with pytest.raises(InputError, match="did you mean 'onnx-fp32'"):
        loaded.file("onnx-fp23")
    with pytest.raises(InputError, match="unknown graph 'search'"):
        loaded.file("onnx-fp32", "search")


def test_a_bundle_may_be_moved(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "x"
    shutil.copytree(bundle, moved)
    assert Bundle.load(moved).sha256 == Bundle.load(bundle).sha256


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda b: _flip(b / "onnx-fp32/model.onnx"), "'onnx-fp32/model.onnx' was changed"),
    "flipped label": (lambda b: _flip(b / "labels.txt"), "was changed"),
    "truncated": (lambda b: (b / "onnx-fp32/model.onnx").write_bytes(b"x"), "was changed"),
    "missing file": (lambda b: (b / "openvino-fp32/model.bin").unlink(), "'openvino-fp32/model.bin' is missing"),
    "missing folder": (lambda b: shutil.rmtree(b / "openvino-fp32"), "is missing"),
    "extra file": (lambda b: (b / "run.sh").write_text("rm"), "'run.sh' is not in the manifest"),
    "extra hidden file": (lambda b: (b / "onnx-fp32/.x").write_text(""), "not in the manifest"),
    "renamed file": (lambda b: (b / "labels.txt").rename(b / "Labels.txt"), "is missing"),
    "link in place of a file": (
        lambda b: (b / "labels.txt").symlink_to((b / "labels.txt").rename(b.parent / "l")),
        "'labels.txt' is a link",
    ),
    "link in place of a folder": (
        lambda b: (b / "onnx-fp32").symlink_to((b / "onnx-fp32").rename(b.parent / "o")),
        "'onnx-fp32' is a link",
    ),
    "link to itself": (lambda b: (b / "loop").symlink_to(b), "is a link"),
    "pipe": (lambda b: os.mkfifo(b / "pipe"), "special file"),
    "file in place of a folder": (
        lambda b: (b / "labels.txt").rename((b / "onnx-fp32").rename(b.parent / "o") and b / "onnx-fp32"),
        "is missing",
    ),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no manifest.json"),
    "manifest is a folder": (
        lambda b: shutil.copytree(b / "onnx-fp32", (b / "manifest.json").rename(b / "m").with_name("manifest.json")),
        "no manifest.json",
    ),
    "empty manifest": (lambda b: (b / "manifest.json").write_text(""), "not valid JSON"),
    "manifest is not UTF-8": (lambda b: (b / "manifest.json").write_bytes(b"\xff\xfe{}"), "not valid JSON"),
    "manifest is a list": (lambda b: (b / "manifest.json").write_text("[]"), "no 'format'"),
    "manifest nests without end": (lambda b: (b / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
    "manifest is huge": (lambda b: (b / "manifest.json").write_bytes(b" " * (17 << 20)), "larger than 16 MiB"),
    "same key twice": (lambda b: (b / "manifest.json").write_text('{"format": 1, "format": 1}'), "same key twice"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused(bundle: Path, what: str) -> None:
    damage, telling = DAMAGE[what]
    damage(bundle)
    with pytest.raises(BundleError, match=telling) as raised:
        Bundle.load(bundle)
    assert "\n" not in str(raised.value)


def _file(name: str) -> Callable[[dict[str, Any]], object]:
    """Name a file in the manifest by ``name``, hash and all, and use it as a variant's graph."""

    def change(data: dict[str, Any]) -> None:
        data["files"][name] = data["files"].pop("onnx-fp32/model.onnx")
        data["variants"]["onnx-fp32"]["graphs"]["model"] = name

    return change


def _format(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update(format=value)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    **{
        f"format {value!r}": (_format(value), "reads format 1: update edgecv")
        for value in (0, 2, 99, "1", True, 1.0, None)
    },
    **{
        f"path {name!r}": (_file(name), "leaves the bundle or is not in plain form")
        for name in ("../model.onnx", "a/../../m", "/etc/passwd", "a\\b", "./m", "a//b", "", ".", "C:m", "a/", "a\0b")
    },
    "unknown key": (lambda d: d.update(extra=1), "unknown key 'extra'"),
    "unknown key deep down": (lambda d: d["preprocess"].update(sise=1), "unknown key 'sise'; did you mean 'size'"),
    "missing key": (lambda d: d.pop("preprocess"), "lacks the key 'preprocess'"),
    "size of text": (lambda d: d["preprocess"].update(size=["8", "8"]), r"size\[0\] must be a whole number"),
    "size out of range": (lambda d: d["preprocess"].update(size=[0, 8]), "size is"),
    "zero deviation": (lambda d: d["preprocess"].update(std=[0, 1, 1]), "std is above 0"),
    "true for a number": (lambda d: d["preprocess"].update(pad_value=True), "must be a whole number"),
    "unknown dtype": (lambda d: d["graphs"]["model"]["inputs"][0].update(dtype="object"), "numeric tensors only"),
    "no variants": (lambda d: d.update(variants={}), "at least one graph and one variant"),
    "a graph too few": (lambda d: d["variants"]["onnx-fp32"].update(graphs={}), "must hold the graphs"),
    "unlisted graph": (lambda d: d["variants"]["onnx-fp32"]["graphs"].update(model="x.onnx"), "not listed"),
    "unlisted labels": (lambda d: d.update(labels="names.txt"), "not listed"),
    "files is a list": (lambda d: d.update(files=[]), "must be an object"),
    "wrong size": (lambda d: d["files"]["labels.txt"].update(size_bytes=1), "was changed"),
    "wrong hash": (lambda d: d["files"]["labels.txt"].update(sha256="0" * 64), "was changed"),
    "manifest lists itself": (lambda d: d["files"].update({"manifest.json": d["files"]["labels.txt"]}), "plain form"),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_manifest_that_cannot_be_is_refused(bundle: Path, what: str) -> None:
    change, telling = EDITS[what]
    edit(bundle, change)
    with pytest.raises(BundleError, match=telling) as raised:
        Bundle.load(bundle)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_numbers_that_are_none_are_refused(bundle: Path, number: str) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"max_abs": 1e-06', f'"max_abs": {number}'))
    with pytest.raises(BundleError):
        Bundle.load(bundle)


@pytest.mark.parametrize("seed", range(300))
def test_random_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """A changed byte anywhere is found; only white space of the manifest may change unseen."""
    bundle = write(tmp_path_factory.mktemp("damage") / "b")
    chance = random.Random(seed)
    meaning = json.loads((bundle / "manifest.json").read_text())
    victim = chance.choice(["manifest.json", *FILES])
    _mutate(bundle / victim, chance)
    try:
        loaded: Bundle | BundleError = Bundle.load(bundle)
    except BundleError as error:
        loaded = error
    if isinstance(loaded, BundleError):
        assert "\n" not in str(loaded)
        return
    after = json.loads((bundle / "manifest.json").read_text())
    assert all((bundle / name).read_bytes() == data for name, data in FILES.items())
    assert after["files"] == meaning["files"]
    assert loaded.manifest.format == 1


def _mutate(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = chance.randrange(5) if data else 3
    place = chance.randrange(len(data)) if data else 0
    if kind == 0:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + chance.randrange(1, 30)]
    elif kind == 3:
        data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
    else:
        data[place : place + 4] = chance.choice([b"null", b"true", b"-1.5", b'"x":', b"[[[["])
    path.write_bytes(data)

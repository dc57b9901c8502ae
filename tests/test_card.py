"""Model cards: the manifest's facts as Markdown, and what it does not say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgecv.bundle import Bundle
from edgecv.card import model_card, stored_mb
from edgecv.cli.main import main
from edgecv.manifest import Accuracy, FileRecord, Graph, Manifest, Packed, Parity, Source, Variant
from edgecv.preprocess import Preprocess
from edgecv.tensors import TensorSpec

PARITY = Parity(50, 1e-5, 1e-6, 0.9999, 0.98, 1e-3)
MANIFEST = Manifest(
    format=1,
    name="net",
    task="classification",
    graphs={
        "model": Graph((TensorSpec("image", "uint8", (None, 8, 8, 3)),), (TensorSpec("logits", "float32", (None, 2)),))
    },
    preprocess=Preprocess(size=(8, 8), resize=10),
    postprocess={},
    labels="labels.txt",
    variants={
        "onnx-int8": Variant("onnxruntime", "int8", {"model": "onnx-int8/model.onnx"}, {"onnxruntime": "1.18"}, PARITY),
        "onnx-fp32": Variant("onnxruntime", "fp32", {"model": "onnx-fp32/model.onnx"}, slower_than="onnx-int8"),
    },
    source=Source("0.1.0", {"architecture": "resnet20", "options": {"num_classes": 2}, "steps": [{"kind": "prune"}]}),
    files={f"onnx-{kind}/model.onnx": FileRecord("0" * 64, 2_500_000) for kind in ("int8", "fp32")},
)


def _bundle(**changes: Any) -> Bundle:
    return Bundle(Path("net"), dataclasses.replace(MANIFEST, **changes), ("cat", "dog"), "f" * 64)


def test_the_card_says_what_the_manifest_says() -> None:
    source = dataclasses.replace(
        MANIFEST.source, licence="Apache-2.0", dataset="pets", accuracy=Accuracy(0.9, 1.0, 100, (0.83, 0.94))
    )
    card = model_card(_bundle(source=source))
    assert card.startswith("---\nlibrary_name: edgecv\nlicense: apache-2.0\npipeline_tag: image-classification\n")
    assert "| onnx-int8 | onnxruntime | 2.50 | onnxruntime >= 1.18 | 50 | 1e-05 | 0.999900 | top-1 98.0% |" in card
    assert "no faster than onnx-int8 where it was converted" in card
    assert "Top-1 90.00% (95 % interval 83.00% to 94.00%), top-5 100.00%, on 100" in card
    assert '`resnet20` with `{"num_classes": 2}`, then prune.' in card
    assert "short side to 10, then the centre" in card


def test_what_it_does_not_know_it_says() -> None:
    card = model_card(_bundle())
    assert "Licence: not said" in card
    assert "Trained on: not said" in card
    assert "license:" not in card
    assert "| 0 | not compared |" in card


@pytest.mark.parametrize("task", ["classification", "embedding", "tracking"])
def test_its_example_is_python(task: str) -> None:
    code = model_card(_bundle(task=task)).partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert "edgecv.load('net')" in code


def test_a_packed_variant_has_two_sizes() -> None:
    files = {"onnx-int8/model.onnx.packed": FileRecord("0" * 64, 500_000)}
    packed = {"onnx-int8/model.onnx.packed": Packed("edgecv-lzma-1", "0" * 64, 2_000_000)}
    assert stored_mb(_bundle(files=files, packed=packed), "onnx-int8") == "0.50 of 2.00"


def test_only_bundles_have_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert main(["inspect", str(tmp_path / "model.onnx"), "--card", str(tmp_path / "card.md")]) == 2
    assert "--card is for a bundle" in capsys.readouterr().err
    assert not (tmp_path / "card.md").exists()

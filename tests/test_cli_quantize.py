"""``edgecv quantize`` and what follows: a checkpoint that rounds, the layers explained, a bundle with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "sklearn"):
    require(_library)

import torch  # noqa: E402  (after the check that it is there)

import edgecv  # noqa: E402
from edgecv import Bundle, Preprocess, models  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.compression.placement import quantized_layers  # noqa: E402

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = models.create("squeezenet1_1", num_classes=10, stem="small").eval()
    path = tmp_path_factory.mktemp("quantize") / "net.safetensors"
    edgecv.save_checkpoint(network, path, preprocess=PREPROCESS, labels=DIGITS)
    return path


def _call(*argv: object) -> int:
    return main([str(arg) for arg in argv])


def test_a_checkpoint_is_quantized_scored_and_explained(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "int8.safetensors"
    given = (
        "--samples",
        "digits",
        "--limit",
        24,
        "--data",
        "digits",
        "--keep-float",
        "features.0",
        "--rounding",
        "nearest",
    )
    explain = ("--explain", "--backends", "onnxruntime", "--json")
    assert _call("quantize", checkpoint, *given, *explain, "--out", out) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"float", "quantized"}
    network = edgecv.load_checkpoint(out)
    assert "features.0" not in quantized_layers(network)
    assert {row["layer"] for row in found["explained"]["layers"]} == set(quantized_layers(network))
    assert set(found["explained"]["pays"]) == {"onnxruntime"}


def test_both_go_into_one_bundle(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out, bundle = tmp_path / "int8.safetensors", tmp_path / "bundle"
    assert (
        _call("quantize", checkpoint, "--samples", "digits", "--limit", 24, "--rounding", "nearest", "--out", out) == 0
    )
    assert f"checkpoint: {out}" in capsys.readouterr().out
    given = ("--quantized", out, "--backends", "onnxruntime", "--samples", "digits", "--limit", 16)
    assert _call("convert", checkpoint, *given, "--out", bundle) == 0
    assert list(Bundle.load(bundle).manifest.variants) == ["onnx-int8", "onnx-fp32"]


@pytest.mark.parametrize(
    ("extra", "telling"),
    [
        (["--out", "x.onnx"], "--out is a .safetensors file"),
        (["--out", "x.safetensors", "--max-drop", "1"], "--max-drop is measured on --data"),
        (["--out", "x.safetensors", "--fast-on", "onnxruntime"], "--fast-on goes with --max-drop"),
        (["epochs=2", "--out", "x.safetensors"], "are for --qat DATA"),
        (["--out", "x.safetensors", "--keep-float", "nothing"], "unknown layer 'nothing'"),
    ],
)
def test_wrong_usage_is_one_line(
    checkpoint: Path, extra: list[str], telling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("quantize", checkpoint, *extra, "--samples", "digits", "--limit", 8) == 2
    error = capsys.readouterr().err
    assert telling in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

"""Bisection of a bundle's variants: what is planted is named, and what cannot be compared is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "openvino", "opencv"):
    require(_library)

import cv2  # noqa: E402  (after the check that it is there)
import onnx  # noqa: E402
import onnx.numpy_helper  # noqa: E402
import torch  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Bundle, ConvertOptions, Preprocess, models  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.converters.bisecting_bundles import bisect_variant  # noqa: E402

PREPROCESS = Preprocess(size=(32, 32), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SAMPLES = [
    np.random.default_rng(i).integers(0, 256, (8, 8, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8) for i in range(6)
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and the bundle made of them."""
    folder = tmp_path_factory.mktemp("bisect")
    torch.manual_seed(0)
    network = models.create("squeezenet1_1", num_classes=4, stem="small").eval()
    quantized = edgecv.quantize(network, SAMPLES, edgecv.QuantizeConfig(rounding="nearest"), preprocess=PREPROCESS)
    edgecv.save_checkpoint(network, folder / "float.safetensors", preprocess=PREPROCESS)
    edgecv.save_checkpoint(quantized, folder / "int8.safetensors", preprocess=PREPROCESS)
    options = ConvertOptions(precisions=("fp32", "fp16", "int8"), compare_speed=False)
    edgecv.convert(
        network, folder / "bundle", preprocess=PREPROCESS, samples=SAMPLES, quantized=quantized, options=options
    )
    return folder


def planted(work: Path, out: Path, variant: str, index: int) -> tuple[Bundle, str]:
    """A copy of the bundle in which the weights of one convolution have the wrong sign, and that node's name."""
    shutil.copytree(work / "bundle", out)
    file = out / variant / "model.onnx"
    model = onnx.load(str(file))
    node = [item for item in model.graph.node if item.op_type == "Conv"][index]
    read_by = {item.output[0]: item for item in model.graph.node}
    node = read_by.get(node.input[1], node)  # of integers, what makes floats of them
    name = node.input[0] if node.op_type == "DequantizeLinear" else node.input[1]
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), name))
    data = model.SerializeToString()
    file.write_bytes(data)
    manifest = json.loads((out / "manifest.json").read_text())
    record = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    manifest["files"][f"{variant}/model.onnx"].update(record)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.load(out), node.name


@pytest.mark.parametrize(
    ("variant", "checkpoint", "index"),
    [("onnx-fp16", None, 0), ("onnx-fp16", None, 25), ("onnx-fp32", "float", 11), ("onnx-int8", "int8", 18)],
)
def test_wrong_weights_are_named(work: Path, tmp_path: Path, variant: str, checkpoint: str | None, index: int) -> None:
    bundle, node = planted(work, tmp_path / "copy", variant, index)
    against = work / f"{checkpoint}.safetensors" if checkpoint else None
    found = bisect_variant(bundle, variant, SAMPLES, checkpoint=against)
    assert found is not None
    assert (found.node, found.confirmed) == (node, True)


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp32", "onnx-fp16", "onnx-int8", "openvino-int8"])
def test_nothing_is_named_where_answers_agree(work: Path, variant: str) -> None:
    assert bisect_variant(Bundle.load(work / "bundle"), variant, SAMPLES) is None


def test_a_smaller_tolerance_finds_the_rounding_of_float16(work: Path) -> None:
    found = bisect_variant(Bundle.load(work / "bundle"), "onnx-fp16", SAMPLES, tolerance=1e-7)
    assert found is not None
    assert found.output.share < 1e-2


@pytest.mark.parametrize(
    ("variant", "checkpoint", "telling"),
    [
        ("onnx-int4", None, "no variant 'onnx-int4', only onnx-fp32, openvino-fp32"),
        ("onnx-int8", "float", "holds a float network, the variant is int8"),
        ("onnx-fp32", "int8", "holds a quantized network, the variant is fp32"),
    ],
)
def test_what_cannot_be_compared_is_said(work: Path, variant: str, checkpoint: str | None, telling: str) -> None:
    against = work / f"{checkpoint}.safetensors" if checkpoint else None
    with pytest.raises(InputError, match=telling):
        bisect_variant(Bundle.load(work / "bundle"), variant, SAMPLES, checkpoint=against)


def test_a_bundle_without_an_onnx_graph_is_refused(work: Path, tmp_path: Path) -> None:
    bundle = edgecv.convert(
        models.load_checkpoint(work / "float.safetensors"), tmp_path / "bundle", preprocess=PREPROCESS,
        samples=SAMPLES, backends=["openvino"],
    )  # fmt: skip
    with pytest.raises(InputError, match="must hold an ONNX graph in fp32: convert for onnxruntime"):
        bisect_variant(bundle, "openvino-fp32", SAMPLES)


def test_a_backend_that_reads_no_onnx_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecv.runtimes.ov import OvSession

    monkeypatch.setattr(OvSession, "suffixes", (".xml",))
    with pytest.raises(BackendUnavailable, match="'openvino' opens no ONNX file"):
        bisect_variant(Bundle.load(work / "bundle"), "openvino-fp32", SAMPLES)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_names_the_node(
    work: Path, tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, node = planted(work, tmp_path / "copy", "onnx-fp16", 11)
    (tmp_path / "images").mkdir()
    for index, frame in enumerate(SAMPLES):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), frame[..., ::-1])
    arguments = ["verify", str(bundle.path), "--samples", str(tmp_path / "images"), "--bisect"]
    assert main([*arguments, *(["--json"] if as_json else [])]) == 1
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["onnx-fp16"]["node"] == node
    else:
        assert f"onnx-fp16: node '{node}' (Conv) is the first to differ, by itself" in out
    assert main([*arguments, "--variant", "openvino-fp32"]) == 0
    assert "openvino-fp32: no node differs" in capsys.readouterr().out


def test_its_settings_go_with_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(work / "bundle"), "--samples", "digits", "--variant", "onnx-fp16"]) == 2
    assert "go with --bisect" in capsys.readouterr().err

"""From ONNX files that someone else made, and in several precisions and formats, to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import ConversionError, InputError, ParityError
from tests.conftest import require

for library in ("torch", "onnx", "onnxruntime"):
    require(library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import ConvertOptions, OnnxOptions, Preprocess  # noqa: E402
from edgecv.cli.main import main  # noqa: E402

PREPROCESS = Preprocess(size=(12, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), color="bgr")
LABELS = ("a", "b", "c", "d")


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20, 20, 3), dtype=np.uint8) // (1 + i % 4) for i in range(12)]


def _file(path: Path, batch: int | None = None) -> Path:
    """As the field exports: normalized images in, by the older exporter's names."""
    example = torch.zeros(batch or 3, 3, 12, 16)
    dynamic = None if batch else ({0: torch.export.Dim("n")},)
    torch.onnx.export(
        _network(), (example,), path, dynamo=True, verbose=False, input_names=["input.1"], output_names=["out"],
        dynamic_shapes=dynamic, external_data=False,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("batch", [None, 1])
def test_a_file_becomes_a_bundle_that_answers_as_the_network(batch: int | None, tmp_path: Path, frames: Any) -> None:
    require("openvino")
    file = _file(tmp_path / "net.onnx", batch)
    bundle = edgecv.convert(file, tmp_path / "out", preprocess=PREPROCESS, labels=LABELS, samples=frames)
    assert [spec.shape for spec in bundle.manifest.graphs["model"].inputs] == [(None, 12, 16, 3)]  # freed
    assert bundle.manifest.source.recipe is None
    whole = edgecv.convert(_network(), tmp_path / "whole", preprocess=PREPROCESS, labels=LABELS, samples=frames)
    for backend in ("onnxruntime", "openvino"):
        with edgecv.load(bundle, backend=backend) as ours, edgecv.load(whole, backend=backend) as theirs:
            assert np.abs(ours.outputs(frames) - theirs.outputs(frames)).max() < 1e-5


def test_a_batch_can_be_fixed(tmp_path: Path, frames: Any) -> None:
    options = ConvertOptions(onnx=OnnxOptions(batch=2))
    arguments: Any = {"preprocess": PREPROCESS, "samples": frames, "backends": ["onnxruntime"]}
    bundle = edgecv.convert(_file(tmp_path / "free.onnx"), tmp_path / "out", options=options, **arguments)
    assert bundle.manifest.graphs["model"].inputs[0].shape == (2, 12, 16, 3)
    with pytest.raises(ConversionError, match="fixed to 3, 2 was asked for"):
        edgecv.convert(_file(tmp_path / "fixed.onnx", 3), tmp_path / "other", options=options, **arguments)
    assert not (tmp_path / "other").exists()


def test_every_precision_and_format_is_a_variant(tmp_path: Path, frames: Any) -> None:
    require("openvino")
    options = ConvertOptions(precisions=("fp32", "fp16"), name="net")
    arguments: Any = {"preprocess": PREPROCESS, "samples": frames, "options": options}
    bundle = edgecv.convert(_network(), tmp_path / "out", **arguments)
    variants = bundle.manifest.variants
    assert list(variants) == ["onnx-fp32", "openvino-fp32", "onnx-fp16", "openvino-fp16"]
    assert all(variant.parity is not None for variant in variants.values())
    half = onnx.load(str(bundle.file("onnx-fp16", "model")))
    assert any(item.data_type == onnx.TensorProto.FLOAT16 for item in half.graph.initializer)
    for name in variants:
        with edgecv.load(bundle, variant=name, backend=variants[name].backend) as classifier:
            assert classifier(frames[0])[0].score > 0
    with edgecv.load(bundle) as classifier:
        assert "onnx-fp32" in classifier.session.reason
    assert edgecv.convert(_network(), tmp_path / "again", **arguments).manifest.files == bundle.manifest.files


def test_a_variant_for_mobile_builds_says_which_operators_it_needs(tmp_path: Path, frames: Any) -> None:
    arguments: Any = {"preprocess": PREPROCESS, "samples": frames, "backends": ["onnxruntime_mobile"]}
    bundle = edgecv.convert(_network(), tmp_path / "out", **arguments)
    assert [(name, variant.backend) for name, variant in bundle.manifest.variants.items()] == [
        ("ort-fp32", "onnxruntime")
    ]
    assert "Conv" in (tmp_path / "out" / "ort-fp32" / "model.required_operators.config").read_text()
    with pytest.raises(InputError, match="onnxruntime_mobile holds fp32, fp16 was asked for"):
        edgecv.convert(_network(), tmp_path / "no", **arguments, options=ConvertOptions(precisions=("fp16",)))


def test_a_file_whose_weights_float16_cannot_hold_is_refused(tmp_path: Path, frames: Any) -> None:
    file = _file(tmp_path / "net.onnx")
    model = onnx.load(str(file))
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] = 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(file))
    options = ConvertOptions(precisions=("fp16",))
    with pytest.raises(ConversionError, match=r"node .* \(Conv\): .* float16 ends at 65504"):
        edgecv.convert(file, tmp_path / "out", preprocess=PREPROCESS, samples=frames, options=options)
    assert not (tmp_path / "out").exists()


def test_the_wrong_preprocessing_is_no_matter_of_parity_but_the_wrong_size_is_refused(
    tmp_path: Path, frames: Any
) -> None:
    file = _file(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"give a Preprocess of size \(12, 16\)"):
        edgecv.convert(file, tmp_path / "out", preprocess=Preprocess(size=(8, 8)), samples=frames)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match=r"cannot read .*text\.onnx as an ONNX file"):
        edgecv.convert(tmp_path / "text.onnx", tmp_path / "out", preprocess=PREPROCESS, samples=frames)
    with pytest.raises(InputError, match=r"cannot read .*none\.onnx"):
        edgecv.convert(tmp_path / "none.onnx", tmp_path / "out", preprocess=PREPROCESS, samples=frames)


@pytest.mark.parametrize("precisions", [("fp32", "fp32"), ("int4",), "fp32"])
def test_precisions_that_cannot_be_are_refused(precisions: Any) -> None:
    with pytest.raises(InputError, match="precisions"):
        ConvertOptions(precisions=precisions)


def test_half_precision_that_is_not_right_fails_the_gate(
    tmp_path: Path, frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        for item in model.graph.initializer:
            values = onnx.numpy_helper.to_array(item)
            if values.ndim == 4 and values.shape[0] == 8:
                item.CopyFrom(onnx.numpy_helper.from_array(np.float32(values * 0.5), item.name))
        return model

    monkeypatch.setattr("edgecv.converters.converting.fp16_from_onnx", wrong)
    options = ConvertOptions(precisions=("fp16",))
    with pytest.raises(ParityError, match="onnx-fp16 does not agree"):
        edgecv.convert(_network(), tmp_path / "out", preprocess=PREPROCESS, samples=frames, options=options)


def test_the_command_takes_a_file(tmp_path: Path, frames: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("opencv", "openvino"):
        require(name)
    import cv2

    (tmp_path / "photos").mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), frame)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "pre.json").write_text('{"size": [12, 16], "mean": [0.4, 0.5, 0.6], "color": "bgr"}')
    file = str(_file(tmp_path / "net.onnx"))
    command = ["convert", file, "--out", str(tmp_path / "out"), "--samples", str(tmp_path / "photos")]
    assert main(command) == 2
    assert "give --preprocess" in capsys.readouterr().err
    options = ["--preprocess", str(tmp_path / "pre.json"), "--labels", str(tmp_path / "labels.txt")]
    assert main([*command, *options, "--precisions", "fp32,fp16"]) == 0
    assert "openvino-fp16" in capsys.readouterr().out
    assert edgecv.Bundle.load(tmp_path / "out").labels == LABELS

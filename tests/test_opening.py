"""From a bundle or a bare file to a session: what is chosen, why, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecv
from edgecv.bundle import Bundle, write_manifest
from edgecv.errors import BackendUnavailable, BundleError, InputError
from edgecv.files import new_folder
from edgecv.manifest import FORMAT, Graph, Manifest, Source, Variant
from edgecv.preprocess import Preprocess
from edgecv.runtimes import opening, registry
from edgecv.runtimes.registry import Availability
from edgecv.tensors import TensorSpec
from edgecv.testing import TINY_MODELS
from tests.conftest import require

Write = Callable[..., Path]
ONNX = Variant("onnxruntime", "fp32", {"model": "onnx-fp32/model.onnx"}, {})
XML = Variant("openvino", "fp32", {"model": "openvino-fp32/model.xml"}, {})


def _manifest(variants: dict[str, Variant], **changes: Any) -> Manifest:
    manifest = Manifest(
        format=FORMAT,
        name="tiny",
        task="classification",
        graphs={
            "model": Graph(
                (TensorSpec("image", "uint8", (None, 4, 4, 3)),), (TensorSpec("logits", "float32", (None, 3)),)
            )
        },
        preprocess=Preprocess(size=(4, 4)),
        postprocess={"activation": "softmax"},
        labels=None,
        variants=variants,
        source=Source("0.1.0", None, None, None),
        files={},
    )
    return dataclasses.replace(manifest, **changes)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a bundle of the tiny image model for both backends."""
    for name in ("onnx", "onnxruntime", "openvino"):
        require(name)
    import openvino

    onnx_file = TINY_MODELS["image"].write(tmp_path)
    openvino.save_model(openvino.Core().read_model(str(onnx_file)), str(tmp_path / "model.xml"))

    def make(variants: dict[str, Variant] | None = None, **changes: Any) -> Path:
        variants = variants or {"onnx-fp32": ONNX, "openvino-fp32": XML}
        with new_folder(tmp_path / "bundle") as scratch:
            for variant in variants.values():
                for name in variant.graphs.values():
                    (scratch / name).parent.mkdir(exist_ok=True)
                    source = tmp_path / "model.xml" if name.endswith(".xml") else onnx_file
                    shutil.copyfile(source, scratch / name)
                    if name.endswith(".xml"):
                        shutil.copyfile(tmp_path / "model.bin", (scratch / name).with_suffix(".bin"))
            write_manifest(scratch, _manifest(variants, **changes))
        return tmp_path / "bundle"

    return make


def _run(session: edgecv.Session) -> None:
    feed = TINY_MODELS["image"].inputs(2)
    wanted = TINY_MODELS["image"].expected(feed)["logits"]
    assert np.abs(session.run(feed)["logits"] - wanted).max() < 1e-3


def test_auto_takes_the_first_and_says_why(write: Write) -> None:
    bundle = write()
    with edgecv.open_session(bundle) as session:
        assert session.backend == "onnxruntime"
        assert session.reason == (
            "onnxruntime with onnx-fp32: first choice of what is installed and in the bundle (also there: openvino)"
        )
        assert session.load_ms is not None
        assert session.load_ms > 0
        assert session.bundle_sha256 == Bundle.load(bundle).sha256
        _run(session)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_backend_asked_for_takes_its_own_variant(write: Write, backend: str) -> None:
    with edgecv.open_session(write(), backend=backend, threads=1) as session:
        assert session.backend == backend
        assert "backend asked for, its own variant" in session.reason
        _run(session)


def test_a_backend_may_run_a_variant_written_for_another(write: Write) -> None:
    with edgecv.open_session(write({"onnx-fp32": ONNX}), backend="openvino") as session:
        assert session.reason == "openvino with onnx-fp32: backend asked for, it reads .onnx files"
        _run(session)


def test_the_variant_asked_for_decides(write: Write) -> None:
    with edgecv.open_session(write(), variant="openvino-fp32") as session:
        assert session.backend == "openvino"
        _run(session)


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        ({"backend": "onnxruntim"}, "unknown backend 'onnxruntim'; did you mean 'onnxruntime'"),
        ({"variant": "onnx-fp16"}, "unknown variant 'onnx-fp16'; did you mean 'onnx-fp32'"),
        ({"backend": "onnxruntime", "variant": "openvino-fp32"}, "no variant for backend 'onnxruntime'"),
        ({"backend": "torch"}, "no variant for backend 'torch', only onnx-fp32, openvino-fp32"),
        ({"graph": "search"}, "unknown graph 'search'"),
        ({"threads": 0}, "threads is a whole number"),
        ({"backend": "onnxruntime", "device": "gpu"}, "unknown device 'gpu'"),
        ({"backend": "openvino", "device": "toaster"}, "openvino cannot open"),
    ],
)
def test_what_cannot_be_opened_is_refused(write: Write, arguments: dict[str, Any], telling: str) -> None:
    if arguments.get("backend") == "torch":
        require("torch")
    bundle = write()
    with pytest.raises(InputError, match=telling) as raised:
        edgecv.open_session(bundle, **arguments)
    assert "\n" not in str(raised.value)


def test_auto_passes_over_what_is_not_installed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write()
    monkeypatch.setattr(opening, "availability", _without("onnxruntime"))
    with edgecv.open_session(bundle) as session:
        assert session.backend == "openvino"
    monkeypatch.setattr(opening, "availability", _without("onnxruntime", "openvino"))
    with pytest.raises(BackendUnavailable, match="none can run here: onnxruntime: not here; openvino: not here"):
        edgecv.open_session(bundle)


def test_a_variant_for_an_unknown_backend_does_not_hide_the_others(write: Write) -> None:
    npu = dataclasses.replace(ONNX, backend="npu9000", graphs={"model": "npu/model.onnx"})
    with edgecv.open_session(write({"npu-int4": npu, "onnx-fp32": ONNX})) as session:
        assert session.backend == "onnxruntime"


def test_a_bundle_only_for_an_unknown_backend_says_so(write: Write) -> None:
    bundle = write({"npu-int4": dataclasses.replace(ONNX, backend="npu9000")})
    with pytest.raises(BackendUnavailable, match="unknown backend 'npu9000'"):
        edgecv.open_session(bundle)


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino"])
def test_a_bare_file_opens(tmp_path: Path, backend: str) -> None:
    for name in ("onnx", "onnxruntime", "openvino"):
        require(name)
    path = TINY_MODELS["image"].write(tmp_path)
    with edgecv.open_session(str(path), backend=backend) as session:
        assert session.bundle_sha256 is None
        _run(session)
    renamed = path.rename(tmp_path / "MODEL.ONNX")
    with edgecv.open_session(renamed, backend=backend) as session:
        _run(session)


def test_a_bare_xml_opens_on_openvino(write: Write) -> None:
    with edgecv.open_session(write() / "openvino-fp32" / "model.xml") as session:
        assert session.backend == "openvino"
        assert session.reason == "openvino: first installed backend for .xml files"
        _run(session)


def test_a_bare_file_nobody_can_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    path = write() / "openvino-fp32" / "model.xml"
    with pytest.raises(InputError, match=r"'onnxruntime' opens \.onnx, \.ort files"):
        edgecv.open_session(path, backend="onnxruntime")
    with pytest.raises(InputError, match="choose within a bundle"):
        edgecv.open_session(path, variant="openvino-fp32")
    with pytest.raises(InputError, match="does not exist"):
        edgecv.open_session(tmp_path / "none.onnx")
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    with pytest.raises((InputError, BackendUnavailable), match=r"opens \.tflite"):
        edgecv.open_session(tmp_path / "model.tflite")
    monkeypatch.setattr(opening, "availability", _without("openvino"))
    with pytest.raises(BackendUnavailable, match="not installed: openvino"):
        edgecv.open_session(path)


def test_load_makes_the_pipeline_of_the_task(write: Write) -> None:
    with edgecv.load(write(), backend="openvino", threads=1) as classifier:
        assert isinstance(classifier, edgecv.Classifier)
        assert classifier.labels == ("0", "1", "2")
        assert len(classifier(np.zeros((9, 9, 3), np.uint8))) == 3


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"task": "telepathy"}, "for the task 'telepathy'; update edgecv"),
        ({"postprocess": {"activation": "hardmax"}}, "must be one of 'softmax'"),
        ({"postprocess": {"temperature": 2}}, "unknown key 'temperature'"),
        ({"preprocess": Preprocess(size=(8, 8))}, "the graph takes uint8"),
    ],
)
def test_a_bundle_no_pipeline_fits_is_refused(write: Write, changes: dict[str, Any], telling: str) -> None:
    bundle = write(**changes)
    with pytest.raises(BundleError, match=telling):
        edgecv.load(bundle)
    edgecv.open_session(bundle).close()


def _without(*names: str) -> Callable[[str], Availability]:
    def answer(backend: str) -> Availability:
        if backend in names:
            return Availability(backend, False, "not here")
        return registry.availability(backend)

    return answer

"""Graphs optimized beforehand: the same answers, the same bytes, and the list of operators for a small build."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import ConversionError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnx.numpy_helper  # noqa: E402
import onnx.parser  # noqa: E402
import onnxruntime  # noqa: E402

from edgecv.converters.ort_optimized import ort_format_from_onnx, ort_optimized_from_onnx  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
GRAPH = """<ir_version: 10, opset_import: ["": 18]> g (uint8[n, 8, 8, 3] image) => (float[n, 4, 8, 8] y)
    <int64[1] axes = {1}> {
    f = Cast<to=1>(image) t = Transpose<perm=[0, 3, 1, 2]>(f) c = Conv<pads=[1, 1, 1, 1]>(t, w) r = Relu(c)
    m = ReduceMean(r, axes) p = Sub(r, m) s = Sigmoid(p) y = Mul(p, s) }"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(GRAPH)
    weights = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32) / 255
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def _answer(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options).run(None, {"image": FRAMES})[0]


def test_both_forms_answer_as_the_graph_does(graph: Path, tmp_path: Path) -> None:
    ort = ort_format_from_onnx(graph, _folder(tmp_path, "ort"))
    optimized = ort_optimized_from_onnx(graph, _folder(tmp_path, "optimized"))
    assert (ort.name, optimized.name) == ("model.ort", "model.onnx")
    for path in (ort, optimized):
        assert np.abs(_answer(path) - _answer(graph)).max() < 1e-5


def test_the_configuration_lists_the_operators_of_the_optimized_graph(graph: Path, tmp_path: Path) -> None:
    config = ort_format_from_onnx(graph, tmp_path).with_suffix(".required_operators.config")
    first, *lines = config.read_text().splitlines()
    assert first == "# The operators of model.ort"
    operators = {line.split(";")[0]: line.split(";", 2)[2] for line in lines}
    assert set(operators) == {"ai.onnx", "com.microsoft"}
    assert "FusedConv" in operators["com.microsoft"]
    assert any(line.startswith("ai.onnx;18;ReduceMean") for line in lines)


def test_the_same_bytes_come_twice_and_name_no_folder(graph: Path, tmp_path: Path) -> None:
    folders = [_folder(tmp_path, name) for name in ("first", "second")]
    for folder in folders:
        ort_format_from_onnx(graph, folder)
        ort_optimized_from_onnx(graph, folder)
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second
    assert set(first) == {"model.onnx", "model.ort", "model.required_operators.config"}
    assert not any(trace in data for data in first.values() for trace in (str(tmp_path).encode(), b"/tmp"))


def test_this_process_is_left_alone(graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (list(sys.path), list(logging.getLogger().handlers))
    ort_format_from_onnx(graph, _folder(tmp_path, "ort"))
    assert (list(sys.path), list(logging.getLogger().handlers)) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("write", [ort_format_from_onnx, ort_optimized_from_onnx])
def test_a_graph_that_onnx_runtime_refuses_leaves_nothing(write: Any, tmp_path: Path) -> None:
    path, folder = tmp_path / "bad.onnx", _folder(tmp_path, "out")
    path.write_bytes(b"no graph")
    with pytest.raises(ConversionError, match=r"^ONNX Runtime [\d.]+ refuses bad\.onnx: .*INVALID_PROTOBUF") as raised:
        write(path, folder)
    assert "\n" not in str(raised.value)
    assert list(folder.iterdir()) == []

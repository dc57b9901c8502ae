"""NVIDIA's own parser and builder: TensorRT-RTX builds without a GPU, so each graph of ours must pass it.

It is TensorRT-RTX, not TensorRT, and nothing is run: what it proves is that graphs and calls are taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import BackendUnavailable, ConversionError, InputError
from edgecv.runtimes.cuda import gpus
from edgecv.runtimes.engine import EngineRecord, import_library, read_record
from edgecv.runtimes.opening import open_session
from edgecv.testing import TINY_MODELS
from tests.conftest import require
from tests.tensorrt.contract import load, versions

for _library in ("onnx", "tensorrt_rtx"):
    require(_library)

import onnx  # noqa: E402
from onnx import helper  # noqa: E402

from edgecv.converters.registry import converter  # noqa: E402
from edgecv.converters.tensorrt_from_onnx import TensorRtOptions, tensorrt_rtx_from_onnx  # noqa: E402
from tests.tensorrt.graphs import half, quantized  # noqa: E402

try:
    gpus()
except BackendUnavailable:
    HAS_GPU = False
else:
    HAS_GPU = True
without_gpu = pytest.mark.skipif(HAS_GPU, reason="a GPU is here: this says what happens without one")

# Every network of the zoo, one of each kind where only the depth or width differs.
ZOO = """
    mobilenet_v1 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small resnet18 resnet50 resnet20 squeezenet1_0
    squeezenet1_1 embedding
"""
PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")


def build(model: onnx.ModelProto, folder: Path, **options: Any) -> EngineRecord:
    """Build a graph with the real library and return the record."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    engine = tensorrt_rtx_from_onnx(path, folder, TensorRtOptions(**options))
    record = read_record(engine)
    assert record is not None
    record.check_plan(engine)
    return record


@cache
def exported(name: str) -> onnx.ModelProto:
    """A network of the zoo, as ``convert`` exports it; fresh weights, small frames."""
    require("torch")
    import torch

    from edgecv import models
    from edgecv.converters.onnx_from_torch import onnx_from_torch
    from edgecv.preprocess import Preprocess

    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone": "mobilenet_v2", "dims": 16} if name == "embedding" else {"num_classes": 10}
    network = models.create(name, **options)
    with tempfile.TemporaryDirectory() as folder:
        return onnx.load(onnx_from_torch(network, Path(folder, "model.onnx"), Preprocess(size=(64, 64))))


def in_precision(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The graph in another precision."""
    from edgecv.converters.onnx_to_fp16 import fp16_from_onnx

    result = quantized(model) if precision.startswith("int8") else model
    return fp16_from_onnx(result) if precision.endswith("fp16") else result


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ZOO.split())
def test_every_network_of_the_zoo_builds_in_the_precision_of_its_graph(
    name: str, precision: str, tmp_path: Path
) -> None:
    record = build(in_precision(exported(name), precision), tmp_path)
    assert record.precision == precision.partition("+")[0]
    assert record.profile["image"] == ((1, 64, 64, 3), (1, 64, 64, 3), (16, 64, 64, 3))
    assert record.layers is not None
    assert max(record.layers, key=lambda kind: record.layers[kind]) == record.precision  # type: ignore[index]


@pytest.mark.parametrize("name", ["identity", "conv_relu", "two_inputs", "two_outputs", "image"])
def test_the_graphs_of_the_session_contract_build(name: str, tmp_path: Path) -> None:
    assert build(TINY_MODELS[name].build(), tmp_path).precision == "fp32"


@pytest.mark.parametrize(("change", "precision"), [(half, "fp16"), (quantized, "int8")])
def test_a_tiny_graph_builds_in_each_precision(change: Any, precision: str, tmp_path: Path) -> None:
    assert build(change(TINY_MODELS["conv_relu"].build()), tmp_path).precision == precision


def test_a_zero_point_that_is_not_zero_is_refused_with_its_node(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"tensorrt_rtx \S+ refuses the graph: node '.*' \(\w*QuantizeLinear\): "):
        build(TINY_MODELS["qdq"].build(), tmp_path, lint=False)


def test_an_operator_nobody_knows_is_named(tmp_path: Path) -> None:
    model = TINY_MODELS["identity"].build()
    model.graph.node[0].op_type, model.graph.node[0].name = "Det", "odd_one"
    with pytest.raises(ConversionError, match=r"refuses the graph: node 'odd_one' \(Det\)"):
        build(model, tmp_path, lint=False)
    with pytest.raises(
        ConversionError, match=r"not ready for tensorrt_rtx: TRT002: node 'odd_one' \(Det\): .*; mend: "
    ):
        build(model, tmp_path)


def test_frames_are_cast_before_anything_else_touches_them(tmp_path: Path) -> None:
    model = TINY_MODELS["image"].build()
    cast, transpose = model.graph.node[:2]
    cast.input[0], cast.output[0], transpose.input[0], transpose.output[0] = "t", "f", "image", "t"
    model.graph.node[2].input[0] = "f"
    nodes = [transpose, cast, *model.graph.node[2:]]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    with pytest.raises(ConversionError, match=r"\(Transpose\): .*has type UInt8 but must have type Float"):
        build(model, tmp_path, lint=False)


def test_a_graph_that_crashes_the_builder_is_one_line(tmp_path: Path) -> None:
    """A scale that is computed: the parser takes it, and the builder dies of it."""
    with pytest.raises(ConversionError, match=r"^the builder of tensorrt_rtx was killed by SIGSEGV: ") as caught:
        build(_computed_scale(), tmp_path, lint=False)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_such_a_graph_is_refused_before_the_builder_sees_it(tmp_path: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"^the graph is not ready for tensorrt_rtx: TRT110: node 'x_q' \(Quantize"
    ):
        build(_computed_scale(), tmp_path)


def _computed_scale() -> onnx.ModelProto:
    model = quantized(TINY_MODELS["conv_relu"].build())
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "activation_scale")
    scale.name = "steps"
    computed = helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0)
    model.graph.node.insert(0, helper.make_node("Mul", ["most", "steps"], ["activation_scale"]))
    model.graph.node.insert(0, computed)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"batch": (2, 4, 8)},
        {"optimization_level": 0},
        {"optimization_level": 5},
        {"workspace_mb": 64},
        {"tf32": True},
        {"shapes": {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (3, 3, 8, 8))}},
    ],
)
def test_every_option_is_taken(options: dict[str, Any], tmp_path: Path) -> None:
    record = build(TINY_MODELS["conv_relu"].build(), tmp_path, **options)
    assert json.loads(json.dumps(record.options)) == json.loads(json.dumps(TensorRtOptions(**options).identity))


def test_sizes_besides_the_batch_may_be_free(tmp_path: Path) -> None:
    model = TINY_MODELS["conv_relu"].build()
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
    with pytest.raises(InputError, match=r"'x' has free sizes besides the batch, \[any, 3, any, any\]"):
        build(model, tmp_path)
    shapes = ((1, 3, 8, 8), (1, 3, 16, 24), (4, 3, 64, 48))
    assert build(model, tmp_path, shapes={"x": shapes}).profile == {"x": shapes}


@without_gpu
def test_without_a_gpu_the_engine_is_for_any_and_opening_says_what_is_missing(tmp_path: Path) -> None:
    path = TINY_MODELS["conv_relu"].write(tmp_path)
    engine = converter("tensorrt_rtx").convert(path, tmp_path)
    record = read_record(engine)
    assert record is not None
    assert record.place.gpu is record.place.driver is None
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver: libcuda"):
        open_session(engine, backend="tensorrt_rtx")


@without_gpu
def test_the_doctor_reports_the_missing_driver_and_lives() -> None:
    command = [sys.executable, "-m", "edgecv.cli.main", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {item["backend"]: item for item in json.loads(done.stdout)["backends"]}
    assert found["tensorrt_rtx"]["available"] is False
    assert found["tensorrt_rtx"]["reason"].startswith("no NVIDIA driver")


def test_an_engine_is_kept_when_nothing_changed(tmp_path: Path) -> None:
    path = TINY_MODELS["conv_relu"].write(tmp_path)
    engine = tensorrt_rtx_from_onnx(path, tmp_path)
    before = engine.stat().st_mtime_ns
    tensorrt_rtx_from_onnx(path, tmp_path)
    assert engine.stat().st_mtime_ns == before
    tensorrt_rtx_from_onnx(path, tmp_path, TensorRtOptions(batch=(1, 1, 2)))
    assert engine.stat().st_mtime_ns != before


def test_the_contract_of_the_doubles_is_the_real_library_s() -> None:
    real, double = import_library("tensorrt_rtx"), load(versions()[-1], {})
    if real.__version__ != double.__version__:
        pytest.skip(f"the contract is of {double.__version__}, installed is {real.__version__}")
    for name, kind in vars(double).items():
        if isinstance(kind, type):
            theirs = getattr(real, name)
            members = [key for key in vars(kind) if not key.startswith("_")]
            assert all(hasattr(theirs, member) for member in members), name

"""The builder on every version of the bindings, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv.errors import BackendUnavailable, ConversionError, InputError
from edgecv.runtimes import engine
from edgecv.runtimes.engine import read_record, record_path
from edgecv.runtimes.layers import Layer
from edgecv.testing import TINY_MODELS
from tests.conftest import require
from tests.tensorrt.contract import make

require("onnx")

import onnx  # noqa: E402

from edgecv.converters.lint import lint  # noqa: E402
from edgecv.converters.registry import converter  # noqa: E402
from edgecv.converters.tensorrt_build import TensorRtOptions, check_precision, profile_shapes  # noqa: E402
from edgecv.converters.tensorrt_from_onnx import tensorrt_from_onnx, tensorrt_rtx_from_onnx  # noqa: E402
from tests.tensorrt.graphs import half, quantized  # noqa: E402
from tests.tensorrt.world import World, unpack  # noqa: E402

CONV = TINY_MODELS["conv_relu"]
GRAPHS = {"fp32": CONV.build(), "fp16": half(CONV.build()), "int8": quantized(CONV.build())}
FREE: Any = st.sampled_from([-1, 1, 3, 8])


def write(folder: Path, precision: str = "fp32") -> Path:
    path = folder / f"{precision}.onnx"
    path.write_bytes(GRAPHS[precision].SerializeToString())
    return path


def convert(world: World, path: Path, **options: Any) -> Path:
    function = tensorrt_rtx_from_onnx if world.backend == "tensorrt_rtx" else tensorrt_from_onnx
    return function(path, path.parent, TensorRtOptions(**options))


@pytest.mark.parametrize("precision", GRAPHS)
def test_the_record_says_what_was_built_and_in_which_precision(world: World, tmp_path: Path, precision: str) -> None:
    path = convert(world, write(tmp_path, precision))
    record = read_record(path)
    assert record is not None
    assert record.place.version == world.library.__version__
    assert (record.place.gpu, record.place.compute_capability, record.place.driver) == ("Orin", "8.7", "12.6")
    assert record.precision == precision
    assert record.layers is not None
    assert precision in record.layers
    assert record.profile == {"x": ((1, 3, 8, 8), (1, 3, 8, 8), (16, 3, 8, 8))}
    record.check_plan(path)


def test_the_plan_is_the_library_s_own_and_nothing_stands_before_it(world: World, tmp_path: Path) -> None:
    path = convert(world, write(tmp_path))
    assert unpack(path.read_bytes()) is not None
    assert sorted(item.name for item in tmp_path.iterdir()) == ["fp32.engine", "fp32.engine.json", "fp32.onnx"]


def test_nothing_is_asked_of_the_builder_that_one_version_lacks(world: World, tmp_path: Path) -> None:
    cache = None if world.backend == "tensorrt_rtx" else str(tmp_path / "timings")
    convert(world, write(tmp_path), optimization_level=5, workspace_mb=64, tf32=True, timing_cache=cache)
    assert world.seen["flags"] == ["TF32"]
    assert world.seen["config"].builder_optimization_level == 5
    world.refuse["IBuilderConfig.set_memory_pool_limit"] = None  # noted from here on
    convert(world, write(tmp_path), workspace_mb=64)
    assert world.seen["IBuilderConfig.set_memory_pool_limit"]["pool_size"] == 64 << 20


def test_tf32_is_off_unless_asked_for(world: World, tmp_path: Path) -> None:
    convert(world, write(tmp_path))
    assert world.seen["flags"] == []
    assert world.seen["IBuilderConfig.clear_flag"]["flag"].name == "TF32"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_that_fell_back_to_fp32_is_refused(world: World, tmp_path: Path, precision: str) -> None:
    world.downgrade = True
    with pytest.raises(ConversionError, match=f"in {precision}, but of the engine's 1 convolutions .* compute in fp32"):
        convert(world, write(tmp_path, precision))
    assert sorted(item.name for item in tmp_path.iterdir()) == [f"{precision}.onnx"]


def test_asking_for_a_precision_the_graph_is_not_in_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="the graph is in fp32, fp16 was asked for: convert the graph itself"):
        convert(world, write(tmp_path), precision="fp16")
    assert convert(world, write(tmp_path, "int8"), precision="int8").is_file()


def test_an_engine_that_is_there_is_kept_until_something_changes(world: World, tmp_path: Path) -> None:
    path = convert(world, write(tmp_path))
    built = "Builder.build_serialized_network"
    changes: list[tuple[Callable[[], object], bool]] = [
        (lambda: None, False),
        (lambda: write(tmp_path), False),
        (lambda: path.write_bytes(b"damaged"), True),
        (lambda: record_path(path).unlink(), True),
        (lambda: record_path(path).write_text("{"), True),
        (lambda: (tmp_path / "fp32.onnx").write_bytes(GRAPHS["fp16"].SerializeToString()), True),
        (lambda: setattr(world.library, "__version__", "99"), True),
    ]
    for change, again in changes:
        change()
        world.seen.clear()
        convert(world, tmp_path / "fp32.onnx")
        assert (built in world.seen) == again
    convert(world, tmp_path / "fp32.onnx", optimization_level=1)
    assert built in world.seen


def _without_importer(count: int = 1) -> bytes:
    """``conv_relu`` with so many operators that no TensorRT imports."""
    model = CONV.build()
    for index in range(count):
        model.graph.node.append(onnx.helper.make_node("Det", ["x"], [f"det_{index}"], name=f"odd_{index}"))
    return bytes(model.SerializeToString())


def test_what_the_lint_knows_to_fail_is_not_built(world: World, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(_without_importer())
    with pytest.raises(
        ConversionError,
        match=rf"^the graph is not ready for {world.backend}: TRT002: node 'odd_0' \(Det\): .*; mend: write it with",
    ):
        convert(world, path)
    assert not [name for name in world.seen if name.startswith("Builder")]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["odd.onnx"]


def test_of_many_findings_three_are_told(newest: World, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(_without_importer(5))
    with pytest.raises(ConversionError, match=r"'odd_2' .*; and 2 more, which edgecv lint lists") as caught:
        convert(newest, path)
    assert "odd_3" not in str(caught.value)


def test_warnings_stop_no_build_and_the_lint_can_be_left_out(newest: World, tmp_path: Path) -> None:
    warned = tmp_path / "warned.onnx"
    model = CONV.build()
    model.ir_version, model.opset_import[0].version = 10, 21
    warned.write_bytes(model.SerializeToString())
    assert {item.severity for item in lint(warned, ["tensorrt"])} == {"warning"}
    assert convert(newest, warned).is_file()
    odd = tmp_path / "odd.onnx"
    odd.write_bytes(_without_importer())
    assert convert(newest, odd, lint=False).is_file()  # the double takes every operator


def test_a_device_without_onnx_leaves_it_to_the_library(
    newest: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    monkeypatch.setitem(sys.modules, "edgecv.converters.lint", None)  # importing it would fail
    assert convert(newest, write(tmp_path)).is_file()


def test_timings_are_kept_for_the_next_build(newest: World, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    convert(newest, write(tmp_path), timing_cache=str(cache))
    assert newest.seen["IBuilderConfig.create_timing_cache"] == {"serialized_timing_cache": b""}
    held = cache.read_bytes()
    assert held == newest.cache_of_this_device
    record_path(tmp_path / "fp32.engine").unlink()
    convert(newest, write(tmp_path), timing_cache=str(cache))
    assert newest.seen["IBuilderConfig.create_timing_cache"] == {"serialized_timing_cache": held}


@pytest.mark.parametrize("held", [b"timings of another device", b"\0damaged"])
def test_timings_that_do_not_fit_are_replaced(newest: World, tmp_path: Path, held: bytes) -> None:
    cache = tmp_path / "timings"
    cache.write_bytes(held)
    convert(newest, write(tmp_path), timing_cache=str(cache))
    assert cache.read_bytes() == newest.cache_of_this_device


def test_rtx_has_no_timings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no timing cache"):
        tensorrt_rtx_from_onnx(write(tmp_path), tmp_path, TensorRtOptions(timing_cache="t"))


def test_a_parser_s_refusal_names_the_node(world: World, tmp_path: Path) -> None:
    world.refuse |= {"OnnxParser.parse": False, "OnnxParser.num_errors": 1}
    words = {"node_name": "conv_7", "node_operator": "Det", "desc": "No importer registered\nfor op: Det"}
    world.refuse |= {f"ParserError.{name}": word for name, word in words.items()}
    world.refuse["OnnxParser.get_error"] = make(world.library.ParserError)
    told = rf"{world.backend} \S+ refuses the graph: node 'conv_7' \(Det\): No importer registered for op: Det$"
    with pytest.raises(ConversionError, match=told):
        convert(world, write(tmp_path))


@pytest.mark.parametrize(
    ("member", "answer", "error", "telling"),
    [
        ("Builder.build_serialized_network", None, ConversionError, "cannot build the graph: no reason given"),
        ("IBuilderConfig.add_optimization_profile", -1, ConversionError, "TensorRT refuses the shapes"),
        (
            "ITensor.is_shape_tensor",
            True,
            ConversionError,
            "'x' is a shape that other tensors take",
        ),
        ("Runtime.deserialize_cuda_engine", None, ConversionError, "the plan does not open where it was built"),
    ],
)
def test_what_fails_leaves_nothing_behind(
    world: World, tmp_path: Path, member: str, answer: Any, error: type[Exception], telling: str
) -> None:
    world.refuse[member] = answer
    with pytest.raises(error, match=telling):
        convert(world, write(tmp_path))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["fp32.onnx"]


def test_a_builder_that_comes_back_as_nothing_is_a_missing_device(world: World, tmp_path: Path) -> None:
    def nothing(logger: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    world.library.Builder = nothing
    with pytest.raises(BackendUnavailable, match=r"cannot start its builder: pybind11::init.*nullptr"):
        convert(world, write(tmp_path))


def test_without_a_driver_tensorrt_does_not_build(
    newest: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(device: str) -> Any:
        raise BackendUnavailable("no NVIDIA driver: libcuda.so.1 not found")

    monkeypatch.setattr("edgecv.converters.tensorrt_from_onnx.find_gpu", nobody)
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver: libcuda"):
        convert(newest, write(tmp_path))


@pytest.mark.parametrize("backend", engine.LIBRARIES)
def test_a_missing_library_is_named_with_its_extra(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecv.converters.tensorrt_from_onnx.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=rf"pip install 'edgecv\[{backend.replace('_', '-')}\]'"):
        converter(backend).convert(write(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"batch": (0, 1, 2)}, r"batch is \(smallest, usual, largest\) in whole numbers from 1, got 0, 1, 2"),
        ({"batch": (1, 8, 4)}, r"batch must not fall from smallest over usual to largest, got 1, 8, 4"),
        ({"batch": (1, 2)}, "batch is"),
        ({"shapes": {"x": ((1, 2), (1, 2), (1,))}}, r"shapes\['x'\] is"),
        ({"shapes": {"x": ((1, 2), (1, 1), (2, 2))}}, r"shapes\['x'\] must not fall"),
        ({"precision": "fp8"}, "precision is fp32, fp16, int8 or None, got 'fp8'"),
        ({"optimization_level": 6}, "optimization_level is a whole number from 0 to 5"),
        ({"workspace_mb": 0}, "workspace_mb is a whole number from 1"),
        ({"timeout_s": 0}, "timeout_s is above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        TensorRtOptions(**options)


@pytest.mark.parametrize(
    ("shapes", "telling"),
    [
        ({"y": ((1, 3, 8, 8),) * 3}, "shapes names the input 'y'; the graph's inputs are: x"),
        ({"x": ((1, 3, 8),) * 3}, r"must fit the graph's \[any, 3, 8, 8\], got \[1, 3, 8\]"),
        ({"x": ((1, 3, 8, 9),) * 3}, r"must fit the graph's \[any, 3, 8, 8\], got \[1, 3, 8, 9\]"),
    ],
)
def test_shapes_that_do_not_fit_the_graph_are_refused(
    newest: World, tmp_path: Path, shapes: dict[str, Any], telling: str
) -> None:
    with pytest.raises(InputError, match=telling):
        convert(newest, write(tmp_path), shapes=shapes)


def test_free_sizes_besides_the_batch_need_shapes(newest: World, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(GRAPHS["fp32"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    path = tmp_path / "free.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"free sizes besides the batch, \[any, 3, any, 8\]: give .*shapes=\{'x'"):
        convert(newest, path)
    given = ((1, 3, 8, 8), (1, 3, 16, 8), (4, 3, 32, 8))
    record = read_record(convert(newest, path, shapes={"x": given}))
    assert record is not None
    assert record.profile == {"x": given}


@given(st.lists(FREE, min_size=1, max_size=4).map(tuple), st.tuples(*[st.integers(1, 9)] * 3).map(sorted))
def test_a_profile_fits_the_graph_and_never_falls(shape: tuple[int, ...], batch: list[int]) -> None:
    options = TensorRtOptions(batch=(batch[0], batch[1], batch[2]))
    if -1 in shape[1:]:
        with pytest.raises(InputError):
            profile_shapes("x", shape, options)
        return
    found = profile_shapes("x", shape, options)
    assert (found is None) == (-1 not in shape)
    if found is not None:
        assert [one[0] for one in found] == batch
        assert all(one[1:] == shape[1:] for one in found)


@pytest.mark.parametrize(
    ("precision", "layers", "refused"),
    [
        ("int8", [], False),
        ("int8", [("int8", True), ("fp32", True)], False),
        ("int8", [("fp32", False)], False),  # all fused: nothing of the inside is visible
        ("int8", [("fp16", True), ("int8", False)], True),
        ("fp16", [("fp32", True), ("fp16", False)], True),
        ("fp16", [("int8", True)], False),
        ("fp16", [("bf16", True)], False),
        ("fp32", [("fp32", True)], False),
    ],
)
def test_only_what_convolves_or_multiplies_counts(
    precision: str, layers: list[tuple[str, bool]], refused: bool
) -> None:
    found = [Layer(f"layer {i}", kind, weighted) for i, (kind, weighted) in enumerate(layers)]
    if refused:
        with pytest.raises(ConversionError, match=f"the graph is in {precision}, but"):
            check_precision(precision, found)
    else:
        check_precision(precision, found)


def test_the_inspector_of_each_version_is_understood(world: World, tmp_path: Path) -> None:
    path = convert(world, write(tmp_path, "fp16"))
    layers = json.loads(record_path(path).read_text())["layers"]
    assert layers["fp16"] >= 1


def test_a_network_becomes_a_bundle_whose_engine_agrees_with_it(newest: World, tmp_path: Path) -> None:
    require("torch")
    import torch

    import edgecv

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    )
    frames = [np.random.default_rng(i).integers(0, 256, (8, 8, 3)).astype(np.uint8) for i in range(20)]
    preprocess = edgecv.Preprocess(size=(8, 8))
    bundle = edgecv.convert(
        network, tmp_path / "b", preprocess=preprocess, backends=("tensorrt",), samples=frames, labels=["a", "b", "c"]
    )
    assert {"tensorrt-fp32/model.engine", "tensorrt-fp32/model.engine.json"} <= set(bundle.manifest.files)
    parity = bundle.manifest.variants["tensorrt-fp32"].parity
    assert parity is not None
    assert parity.samples == 20
    with edgecv.load(tmp_path / "b", backend="tensorrt") as classifier:
        assert isinstance(classifier, edgecv.Classifier)
        assert classifier(frames[0])[0].label in "abc"
    assert newest.cuda.held == {}

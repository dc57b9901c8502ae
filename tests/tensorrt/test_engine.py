"""The record of an engine, the places it runs in, and what the library tells of its layers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import InputError
from edgecv.runtimes.cuda import Gpu
from edgecv.runtimes.engine import EngineRecord, Log, Place, engine_key, import_library, read_record, record_path
from edgecv.runtimes.layers import layers_from_json, layers_from_text, precisions
from edgecv.schema import decode, dumps, encode, loads

ORIN = Gpu(0, "Orin", "8.7", 30_000, "12.6")
HERE = Place.here("tensorrt", "10.3.0", ORIN)
WORDS: Any = st.text(max_size=8)


def record(**changes: Any) -> EngineRecord:
    values: dict[str, Any] = {"options": {}, "profile": {}, "precision": "fp32", "layers": {"fp32": 3}}
    values |= {"format": 1, "key": "k", "onnx_sha256": "o", "place": HERE, "plan_sha256": "p", "size_bytes": 4}
    return EngineRecord(**{**values, **changes})


@settings(deadline=None, max_examples=40)
@given(WORDS, st.dictionaries(WORDS, st.tuples(*[st.lists(st.integers(1, 9)).map(tuple)] * 3)), st.none() | st.just({}))
def test_a_record_survives_its_file(key: str, profile: dict[str, Any], layers: dict[str, int] | None) -> None:
    found = record(key=key, profile=profile, layers=layers)
    assert decode(EngineRecord, loads(dumps(found), "here"), "here") == found


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "m.engine"
    record_path(plan).write_text(dumps({**encode(record()), "format": 2}))
    with pytest.raises(InputError, match=r"m\.engine\.json: engine record of format 2; this edgecv reads format 1"):
        read_record(plan)


def test_an_engine_without_a_record_is_somebody_else_s(tmp_path: Path) -> None:
    assert read_record(tmp_path / "m.engine") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"version": "10.16.2"}, ["version '10.3.0', here is '10.16.2'"]),
        (
            {"gpu": "Thor", "compute_capability": "11.0"},
            ["gpu 'Orin', here is 'Thor'", "compute capability '8.7', here"],
        ),
        ({"system": "windows-amd64"}, ["system", "x86_64|aarch64"]),
        ({"library": "tensorrt_rtx", "version": "1.7"}, ["library 'tensorrt', here is 'tensorrt_rtx'"]),
    ],
)
def test_places_differ_in_what_is_told(changes: dict[str, Any], told: list[str]) -> None:
    found = HERE.differences(dataclasses.replace(HERE, **changes))
    assert len(found) == len(changes) or "library" in changes
    assert all(word.split("|")[0] in "".join(found) or word.split("|")[-1] in "".join(found) for word in told)


def test_an_engine_built_without_a_gpu_runs_on_any() -> None:
    built = Place.here("tensorrt_rtx", "1.7", None)
    assert built.differences(Place.here("tensorrt_rtx", "1.7", ORIN)) == []
    assert len(Place.here("tensorrt_rtx", "1.7", ORIN).differences(Place.here("tensorrt_rtx", "1.7", None))) == 3


def test_the_key_depends_on_all_of_it_and_on_nothing_else() -> None:
    places = [HERE, dataclasses.replace(HERE, driver="12.8"), dataclasses.replace(HERE, compute_capability="8.9")]
    keys = {engine_key(onnx, place, {"batch": batch}) for onnx in "ab" for place in places for batch in ((1,), (2,))}
    assert len(keys) == 12
    assert engine_key("a", HERE, {"x": 1, "y": (1, 2)}) == engine_key("a", HERE, {"y": [1, 2], "x": 1})


def test_a_plan_that_is_not_the_recorded_one_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "m.engine"
    plan.write_bytes(b"plan")
    with pytest.raises(InputError, match=r"is not the plan that m\.engine\.json describes: build it again"):
        record().check_plan(plan)


def test_a_library_is_found_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModuleType("tensorrt_rtx_bindings")
    modules: dict[str, Any] = {"tensorrt_rtx_bindings": found}

    def look(name: str) -> Any:
        if name not in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return modules[name]

    monkeypatch.setattr("edgecv.runtimes.engine.importlib.import_module", look)
    assert import_library("tensorrt_rtx") is found
    modules.clear()
    with pytest.raises(ModuleNotFoundError, match="tensorrt_rtx_bindings"):
        import_library("tensorrt_rtx")


def test_a_library_that_lacks_another_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'libfoo'", name="libfoo")

    monkeypatch.setattr("edgecv.runtimes.engine.importlib.import_module", look)
    with pytest.raises(ModuleNotFoundError, match="libfoo"):
        import_library("tensorrt_rtx")


def test_the_log_keeps_the_last_complaints_once() -> None:
    heard: list[tuple[int, str]] = []
    log = Log(lambda severity, message: heard.append((severity, message)))
    for severity, message in [(3, "fine"), (1, "bad\nthing"), (1, "bad\nthing"), (0, "worse"), (2, "so so")]:
        log.take(severity, message)
    assert log.reason("nothing") == "bad thing; worse"
    assert log.reason("nothing") == "nothing"
    assert len(heard) == 5


# The words are those of TensorRT 10's inspector (format and type in one), of 11's, and of TensorRT-RTX's build log.
TEN = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "data", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "c", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
        },
        {
            "Name": "Reformatting CopyNode for Input Tensor 0",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "image", "Format/Datatype": "Row major linear UINT8 format"}],
            "Outputs": [{"Name": "f", "Format/Datatype": "Row major linear FP16 format"}],
        },
        {
            "Name": "PWN(add)",
            "LayerType": "PointWiseV2",
            "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Format/Datatype": "Row major linear FP32"}],
        },
    ],
    "Bindings": ["image", "logits"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "fc",
            "LayerType": "gemm",
            "Inputs": [{"Name": "a", "Datatype": "Half", "Format": "Row major linear format"}],
            "Outputs": [{"Name": "b", "Datatype": "BFloat16"}],
        },
        {"Name": "shape", "LayerType": "shape_call", "Inputs": [], "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "a", "IOMode": "Input", "DataType": "Half"}],
}
LOG = """Layers:
Name: __mye1_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: node_Conv_8_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,3], Datatype: Float }]\
, Constants: [ { Name: w, Dimensions: [32,3], Datatype: Int8, Format: x }], Outputs: [ { Name: b, Dimensions: [-1], \
Datatype: Float, Format: x }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_Conv_8]
Name: __myl_CastTran_myl0_1, LayerType: kgen, Inputs: [ { Name: image, Datatype: UInt8, Format: x }], Constants: []\
, Outputs: [ { Name: h, Datatype: Half, Format: x }], TacticName: __myl_CastTran_0x1, StreamId: 0, Metadata: [ONNX \
Layer: node_Conv_8]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Int8, Dimensions: [-1,4]
"""


def test_layers_of_tensorrt_10_name_the_type_in_the_format() -> None:
    found = layers_from_json(json.dumps(TEN))
    assert [(layer.precision, layer.weighted) for layer in found] == [("int8", True), ("fp16", False), ("fp32", False)]
    assert precisions(found) == {"int8": 1, "fp16": 1, "fp32": 1}


def test_layers_of_tensorrt_11_name_the_type_itself() -> None:
    found = layers_from_json(json.dumps(ELEVEN))
    assert [(layer.precision, layer.weighted) for layer in found] == [("fp16", True), ("other", False)]


def test_an_engine_that_tells_only_names_tells_no_precision() -> None:
    assert layers_from_json('{"Layers": ["conv1", "conv2"], "Bindings": []}') == []


def test_constants_say_nothing_of_the_arithmetic_and_uint8_is_not_int8() -> None:
    found = layers_from_text(LOG)
    assert [(layer.precision, layer.weighted) for layer in found] == [("other", False), ("fp32", True), ("fp16", False)]

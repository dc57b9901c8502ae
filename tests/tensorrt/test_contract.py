"""The doubles refuse what the real bindings refuse: a call that one version lacks is caught without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.tensorrt.contract import load, make, parameters, versions

OLD = ("10.3", "10.13", "10.16")
NEW = ("11.4", "rtx-1.7")

# Calls of code written for older versions, and the versions that lack them.
FAULTS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "the FP16 flag": (lambda t: t.BuilderFlag.FP16, NEW),
    "the INT8 flag": (lambda t: t.BuilderFlag.INT8, NEW),
    "explicit batch": (lambda t: t.NetworkDefinitionCreationFlag.EXPLICIT_BATCH, NEW),
    "fast fp16": (lambda t: make(t.Builder).platform_has_fast_fp16, NEW),
    "supports_model": (lambda t: make(t.OnnxParser).supports_model(b""), NEW),
    "a tensor's dtype": (lambda t: setattr(make(t.ITensor), "dtype", t.DataType.HALF), NEW),
    "device_memory_size": (lambda t: make(t.ICudaEngine).device_memory_size, NEW),
    "a layer's precision": (lambda t: setattr(make(t.ILayer), "precision", t.DataType.HALF), NEW),
    "an int8 calibrator": (lambda t: setattr(make(t.IBuilderConfig), "int8_calibrator", None), NEW),
    "binding indices": (lambda t: make(t.ICudaEngine).get_binding_index("x"), (*OLD, *NEW)),
    "execute_async_v2": (lambda t: make(t.IExecutionContext).execute_async_v2([1], 2), (*OLD, *NEW)),
    "max_workspace_size": (lambda t: setattr(make(t.IBuilderConfig), "max_workspace_size", 1), (*OLD, *NEW)),
    "build_engine": (lambda t: make(t.Builder).build_engine(1, 2), (*OLD, *NEW)),
    "a runtime config": (lambda t: make(t.ICudaEngine).create_runtime_config(), ("10.3",)),
    "RTX's graphs": (lambda t: t.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE, (*OLD, "11.4")),
    "an argument too few": (lambda t: make(t.IExecutionContext).set_input_shape("x"), (*OLD, *NEW)),
    "an argument too many": (lambda t: make(t.IExecutionContext).execute_async_v3(1, 2), (*OLD, *NEW)),
    "an unknown keyword": (lambda t: make(t.IExecutionContext).execute_async_v3(stream=1), (*OLD, *NEW)),
    "a pointer as text": (lambda t: make(t.IExecutionContext).set_tensor_address("x", "1"), (*OLD, *NEW)),
    "a shape as an array": (lambda t: make(t.IOptimizationProfile).set_shape("x", 1, 2, 3), (*OLD, *NEW)),
    "a flag as a number": (lambda t: make(t.IBuilderConfig).set_flag(1), (*OLD, *NEW)),
    "an engine by hand": (lambda t: t.ICudaEngine(), (*OLD, *NEW)),
    "no logger": (lambda t: t.Runtime(), (*OLD, *NEW)),
    "a read-only property": (lambda t: setattr(make(t.OnnxParser), "num_errors", 1), (*OLD, *NEW)),
}


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_is_refused_exactly_where_the_bindings_lack_it(fault: str, version: str) -> None:
    call, lacking = FAULTS[fault]
    library = load(version, {})
    if version in lacking:
        with pytest.raises((AttributeError, TypeError)):
            call(library)
    else:
        call(library)


@pytest.mark.parametrize("version", versions())
def test_a_logger_that_forgets_the_bindings_constructor_is_refused(version: str) -> None:
    with pytest.raises(TypeError, match="must be called when overriding __init__"):
        _forgetful(load(version, {}).ILogger)()


def _forgetful(logger: Any) -> Any:
    class Forgetful(logger):  # type: ignore[misc]
        def __init__(self) -> None:
            self.lines: list[str] = []

    return Forgetful


def test_the_versions_number_their_flags_differently() -> None:
    flags = {version: int(load(version, {}).NetworkDefinitionCreationFlag.STRONGLY_TYPED) for version in versions()}
    assert flags == {"10.3": 1, "10.13": 1, "10.16": 1, "11.4": 0, "rtx-1.7": 0}


def test_a_signature_is_read_with_its_defaults() -> None:
    found, result = parameters("f(self: A, model: typing_extensions.Buffer, path: str = None) -> List[Dims]")
    assert [(item.name, item.kind, item.optional) for item in found] == [
        ("model", "typing_extensions.Buffer", False),
        ("path", "str | None", True),
    ]
    assert result == "List[Dims]"


def test_an_answer_nobody_gave_is_no_guess() -> None:
    library = load("11.4", {})
    with pytest.raises(NotImplementedError, match=r"says nothing of ILayer.type"):
        _ = make(library.ILayer).type
    assert make(library.IBuilderConfig).add_optimization_profile(make(library.IOptimizationProfile)) == 0

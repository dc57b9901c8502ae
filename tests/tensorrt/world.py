"""What the doubles answer: a builder that packs a tiny ONNX graph into a plan, and an engine that runs it in numpy."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx.reference import ReferenceEvaluator

from edgecv.runtimes.cuda import Gpu
from tests.tensorrt.contract import load, make
from tests.tensorrt.host_cuda import HostCuda

ORIN = Gpu(0, "Orin", "8.7", 30_000, "12.6")
KINDS = {"Conv": "CONVOLUTION", "DequantizeLinear": "DEQUANTIZE", "QuantizeLinear": "QUANTIZE"}
TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
FORMATS = {"FLOAT": "FP32", "HALF": "FP16", "INT8": "Int8", "UINT8": "UInt8"}


class _Answers(dict[str, Callable[..., Any]]):
    """The table, but for what a test has refused; every call's arguments are noted."""

    def __init__(self, found: dict[str, Callable[..., Any]], refuse: dict[str, Any], seen: dict[str, Any]) -> None:
        super().__init__(found)
        self._refuse, self._seen = refuse, seen

    def __contains__(self, name: object) -> bool:
        return name in self._refuse or super().__contains__(name)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = self.get(name, _nothing)

        def answer(*args: Any, **kwargs: Any) -> Any:
            self._seen[name] = kwargs
            return self._refuse[name] if name in self._refuse else call(*args, **kwargs)

        return answer


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a member answers that only a test has something to say of."""


def answers(member: str) -> Callable[[Any], Any]:
    """Mark a method as what the doubles answer for ``Class.member``."""

    def mark(method: Any) -> Any:
        method.answers = member
        return method

    return mark


@dataclass
class World:
    """One version of the bindings with one device, and the faults that a test plants.

    Attributes:
        downgrade: the engine computes in fp32, whatever the graph says.
        refuse: members that answer this instead, as ``{"IExecutionContext.execute_async_v3": False}``.
        seen: the arguments of the last call of each member.
    """

    version: str
    cuda: HostCuda = field(default_factory=HostCuda)
    gpu: Gpu = ORIN
    downgrade: bool = False
    refuse: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = {call.answers: getattr(self, name) for name, call in vars(World).items() if hasattr(call, "answers")}
        found["IHostMemory.__bytes__"] = lambda memory: memory._data
        self.library = load(self.version, _Answers(found, self.refuse, self.seen))

    @property
    def backend(self) -> str:
        """What edgecv calls this library."""
        return "tensorrt_rtx" if self.version.startswith("rtx") else "tensorrt"

    def say(self, owner: Any, severity: str, message: str) -> None:
        """Speak to the logger that ``owner`` was made with."""
        owner._logger.log(self.library.ILogger.Severity[severity], message)

    # The builder.

    @answers("Builder.create_network")
    def builder_create_network(self, builder: Any, flags: int = 0) -> Any:
        strong = 1 << int(self.library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert flags == strong, f"the network is not strongly typed: flags are {flags}"
        return make(self.library.INetworkDefinition, logger=builder._logger)

    @answers("Builder.create_builder_config")
    def builder_create_builder_config(self, builder: Any) -> Any:
        return make(self.library.IBuilderConfig, logger=builder._logger, flags=set(), profiles=[])

    @answers("Builder.create_optimization_profile")
    def builder_create_optimization_profile(self, builder: Any) -> Any:
        return make(self.library.IOptimizationProfile, shapes={})

    @answers("OnnxParser.parse")
    def parser_parse(self, parser: Any, model: bytes, path: str | None = None) -> bool:
        network = parser._network
        network.__dict__["_model"] = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
        network.__dict__["_parser"] = parser
        return True

    @answers("INetworkDefinition.num_inputs")
    def network_num_inputs(self, network: Any) -> int:
        return len(network._model.graph.input)

    @answers("INetworkDefinition.get_input")
    def network_get_input(self, network: Any, index: int) -> Any:
        value = network._model.graph.input[index]
        return make(self.library.ITensor, name=value.name, value=value)

    @answers("INetworkDefinition.num_layers")
    def network_num_layers(self, network: Any) -> int:
        return len(network._model.graph.node)

    @answers("INetworkDefinition.get_layer")
    def network_get_layer(self, network: Any, index: int) -> Any:
        return make(self.library.ILayer, node=network._model.graph.node[index], model=network._model)

    @answers("ILayer.type")
    def layer_type(self, layer: Any) -> Any:
        return self.library.LayerType[KINDS.get(layer._node.op_type, "ELEMENTWISE")]

    @answers("ILayer.num_outputs")
    def layer_num_outputs(self, layer: Any) -> int:
        return len(layer._node.output)

    @answers("ILayer.get_input")
    def layer_get_input(self, layer: Any, index: int) -> Any:
        return make(self.library.ITensor, name=layer._node.input[index])

    @answers("ILayer.get_output")
    def layer_get_output(self, layer: Any, index: int) -> Any:
        name = layer._node.output[index]
        return make(self.library.ITensor, name=name, value=_values(layer._model)[name])

    @answers("ITensor.dtype")
    def tensor_dtype(self, tensor: Any) -> Any:
        return self.library.DataType[TYPES[tensor._value.type.tensor_type.elem_type]]

    @answers("ITensor.name")
    def tensor_name(self, tensor: Any) -> str:
        return str(tensor._name)

    @answers("ITensor.shape")
    def tensor_shape(self, tensor: Any) -> tuple[int, ...]:
        return _shape(tensor._value)

    @answers("ITensor.is_shape_tensor")
    def tensor_is_shape_tensor(self, tensor: Any) -> bool:
        return False

    @answers("IOptimizationProfile.set_shape")
    def profile_set_shape(self, profile: Any, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        profile._shapes[input] = [list(min), list(opt), list(max)]

    @answers("IBuilderConfig.add_optimization_profile")
    def config_add_optimization_profile(self, config: Any, profile: Any) -> int:
        config._profiles.append(profile._shapes)
        return len(config._profiles) - 1

    @answers("IBuilderConfig.set_flag")
    def config_set_flag(self, config: Any, flag: Any) -> None:
        config._flags.add(flag.name)

    @answers("IBuilderConfig.clear_flag")
    def config_clear_flag(self, config: Any, flag: Any) -> None:
        config._flags.discard(flag.name)

    @answers("IBuilderConfig.create_timing_cache")
    def config_create_timing_cache(self, config: Any, serialized_timing_cache: bytes) -> Any:
        return make(self.library.ITimingCache, data=bytes(serialized_timing_cache))

    @answers("IBuilderConfig.set_timing_cache")
    def config_set_timing_cache(self, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        fits = cache._data in (b"", self.cache_of_this_device)
        if fits:
            config.__dict__["_cache"] = cache
        return fits or ignore_mismatch

    @answers("IBuilderConfig.get_timing_cache")
    def config_get_timing_cache(self, config: Any) -> Any:
        return config._cache

    @answers("ITimingCache.serialize")
    def cache_serialize(self, cache: Any) -> Any:
        return make(self.library.IHostMemory, data=self.cache_of_this_device)

    @property
    def cache_of_this_device(self) -> bytes:
        return f"timings {self.version} {self.gpu.name}".encode()

    @answers("Builder.build_serialized_network")
    def builder_build_serialized_network(self, builder: Any, network: Any, config: Any) -> Any:
        self.seen["flags"] = sorted(config._flags)
        self.seen["config"] = config
        assert network._parser is not None
        head = {"profiles": config._profiles, "verbosity": config.profiling_verbosity.name}
        return make(self.library.IHostMemory, data=pack(head, network._model.SerializeToString()))

    # The runtime.

    @answers("Runtime.deserialize_cuda_engine")
    def runtime_deserialize_cuda_engine(self, runtime: Any, serialized_engine: bytes) -> Any:
        opened = unpack(bytes(serialized_engine))
        if opened is None:
            self.say(runtime, "ERROR", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag)")
            return None
        head, model = opened
        shapes = head["profiles"][0] if head["profiles"] else {}
        tensors = {value.name: (True, value) for value in model.graph.input}
        tensors |= {value.name: (False, value) for value in model.graph.output}
        return make(
            self.library.ICudaEngine, logger=runtime._logger, head=head, shapes=shapes, model=model, tensors=tensors
        )

    @answers("ICudaEngine.num_io_tensors")
    def engine_num_io_tensors(self, engine: Any) -> int:
        return len(engine._tensors)

    @answers("ICudaEngine.get_tensor_name")
    def engine_get_tensor_name(self, engine: Any, index: int) -> str:
        return str(list(engine._tensors)[index])

    @answers("ICudaEngine.get_tensor_mode")
    def engine_get_tensor_mode(self, engine: Any, name: str) -> Any:
        mode = self.library.TensorIOMode
        return mode.INPUT if engine._tensors[name][0] else mode.OUTPUT

    @answers("ICudaEngine.get_tensor_dtype")
    def engine_get_tensor_dtype(self, engine: Any, name: str) -> Any:
        return self.library.DataType[TYPES[engine._tensors[name][1].type.tensor_type.elem_type]]

    @answers("ICudaEngine.get_tensor_shape")
    def engine_get_tensor_shape(self, engine: Any, name: str) -> tuple[int, ...]:
        return _shape(engine._tensors[name][1])

    @answers("ICudaEngine.get_tensor_location")
    def engine_get_tensor_location(self, engine: Any, name: str) -> Any:
        return self.library.TensorLocation.DEVICE

    @answers("ICudaEngine.get_tensor_format")
    def engine_get_tensor_format(self, engine: Any, name: str) -> Any:
        return self.library.TensorFormat.LINEAR

    @answers("ICudaEngine.is_shape_inference_io")
    def engine_is_shape_inference_io(self, engine: Any, name: str) -> bool:
        return False

    @answers("ICudaEngine.get_tensor_profile_shape")
    def engine_get_tensor_profile_shape(self, engine: Any, name: str, profile_index: int) -> Any:
        assert profile_index == 0
        return [tuple(shape) for shape in engine._shapes[name]]

    @answers("ICudaEngine.create_execution_context")
    def engine_create_execution_context(self, engine: Any, **options: Any) -> Any:
        return make(
            self.library.IExecutionContext, logger=engine._logger, engine=engine, shapes={}, places={}, options=options
        )

    @answers("ICudaEngine.create_engine_inspector")
    def engine_create_engine_inspector(self, engine: Any) -> Any:
        return make(self.library.EngineInspector, engine=engine)

    @answers("EngineInspector.get_engine_information")
    def inspector_get_engine_information(self, inspector: Any, format: Any) -> str:  # noqa: A002
        assert format.name == "JSON"
        engine = inspector._engine
        detailed = engine._head["verbosity"] == "DETAILED"
        layers = [self._describe(engine._model, node) if detailed else node.name for node in engine._model.graph.node]
        return json.dumps({"Layers": layers})

    def _describe(self, model: Any, node: Any) -> dict[str, Any]:
        """A layer in the words of this version: 11 has types of their own, 10 names them within the format."""

        def tensor(name: str) -> dict[str, Any]:
            sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
            value = _values(model).get(sources.get(name, name))  # a kernel reads what lies before the dequantization
            kind = TYPES[value.type.tensor_type.elem_type] if value is not None else "FLOAT"
            kind = "FLOAT" if self.downgrade and kind in ("HALF", "INT8") else kind
            if self.version.startswith("10"):
                return {"Name": name, "Format/Datatype": f"Row major linear {FORMATS[kind]} format"}
            return {"Name": name, "Datatype": {"FLOAT": "Float", "HALF": "Half"}.get(kind, kind.title())}

        ins, outs = ([tensor(name) for name in names] for names in (node.input[:1], node.output))
        return {"Name": node.name, "LayerType": KINDS.get(node.op_type, "kgen").lower(), "Inputs": ins, "Outputs": outs}

    @answers("IExecutionContext.set_input_shape")
    def context_set_input_shape(self, context: Any, name: str, shape: Any) -> bool:
        least, _, most = context._engine._shapes[name]
        if any(not low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self.say(context, "ERROR", f"IExecutionContext::setInputShape: {tuple(shape)} is outside the profile")
            return False
        context._shapes[name] = tuple(shape)
        return True

    @answers("IExecutionContext.infer_shapes")
    def context_infer_shapes(self, context: Any) -> list[str]:
        return [name for name in context._engine._shapes if name not in context._shapes]

    @answers("IExecutionContext.get_tensor_shape")
    def context_get_tensor_shape(self, context: Any, name: str) -> tuple[int, ...]:
        batch = next((shape[0] for shape in context._shapes.values()), -1)
        shape = _shape(context._engine._tensors[name][1])
        return tuple(batch if size == -1 else size for size in context._shapes.get(name, shape))

    @answers("IExecutionContext.set_tensor_address")
    def context_set_tensor_address(self, context: Any, name: str, memory: int) -> bool:
        assert self.cuda.is_device(memory), f"{name} was given an address that is not device memory"
        context._places[name] = memory
        return True

    @answers("IExecutionContext.execute_async_v3")
    def context_execute_async_v3(self, context: Any, stream_handle: int) -> bool:
        engine = context._engine
        assert set(context._places) == set(engine._tensors), "a tensor has no address"
        assert not self.context_infer_shapes(context), "an input has no shape"
        places = dict(context._places)
        shapes = {name: self.context_get_tensor_shape(context, name) for name in places}
        self.cuda.queue(stream_handle, lambda: self._compute(context, places, shapes))
        return True

    def _compute(self, context: Any, places: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        engine = context._engine
        feed = {}
        for name, (is_input, value) in engine._tensors.items():
            if is_input:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                size = int(np.prod(shapes[name])) * dtype.itemsize
                feed[name] = np.frombuffer(self.cuda.view(places[name], size), dtype)[: size // dtype.itemsize]
                feed[name] = feed[name].reshape(shapes[name]).copy()
        results = _evaluator(engine._model.SerializeToString()).run(None, feed)
        for value, result in zip(engine._model.graph.output, results, strict=True):
            data = np.ascontiguousarray(result)
            assert data.shape == shapes[value.name]
            ctypes.memmove(self.cuda.view(places[value.name], data.nbytes), data.ctypes.data, data.nbytes)
        if context.profiler is not None:
            for index, node in enumerate(engine._model.graph.node):
                context.profiler.report_layer_time(node.name or f"{node.op_type}_{index}", 0.5 + index)

    @answers("IExecutionContext.profiler")
    def context_profiler(self, context: Any) -> Any:
        return None


def pack(head: dict[str, Any], model: bytes) -> bytes:
    """A plan: a digest that is checked, a line of JSON, the graph."""
    rest = json.dumps(head).encode() + b"\n" + model
    return hashlib.sha256(rest).digest() + rest


def unpack(plan: bytes) -> tuple[dict[str, Any], Any] | None:
    """What ``pack`` packed; ``None`` where a byte is not what it was."""
    if hashlib.sha256(plan[32:]).digest() != plan[:32]:
        return None
    head, _, model = plan[32:].partition(b"\n")
    return json.loads(head), onnx.load_from_string(model)


@lru_cache(maxsize=32)
def _evaluator(model: bytes) -> ReferenceEvaluator:
    graph = onnx.load_from_string(model)
    graph.opset_import[0].version = 19  # the evaluator has no DequantizeLinear before it; nothing else changed in it
    return ReferenceEvaluator(graph)


def _values(model: Any) -> dict[str, Any]:
    graph = model.graph
    return {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}


def _shape(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

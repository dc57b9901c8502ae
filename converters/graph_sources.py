"""What ``convert_graph`` starts from: a network or an ONNX file of any inputs and outputs, by their names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx
import torch
from torch import Tensor, nn

from edgecv.compression.placement import is_quantized
from edgecv.converters.onnx_check import checked, plain
from edgecv.converters.onnx_from_torch import EXAMPLE_BATCH, IR_VERSION, OnnxOptions, write_graph
from edgecv.converters.onnx_prepend import with_frames, with_opset
from edgecv.converters.sources import normalized, read_onnx, with_batch
from edgecv.errors import BackendUnavailable, ConversionError, InputError, one_line
from edgecv.files import write_file
from edgecv.manifest import Graph
from edgecv.models.framed import Framed
from edgecv.models.recipe import recipe_of
from edgecv.pipelines.tensors import batch_of
from edgecv.preprocess import Preprocess
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.schema import encode
from edgecv.tensors import Array, TensorSpec

__all__ = ["GraphFile", "GraphNetwork", "GraphSource", "Input", "graph_source"]

Input = Preprocess | tuple[str, tuple[int | None, ...]]
"""How frames are prepared for an input that takes them; or the dtype and shape of one that takes arrays as they are,
such as ``("float32", (None, 4))``, with ``None`` for the batch."""


class GraphSource(Protocol):
    """Where answers come from that every variant is compared with, and the graph that the variants are made of."""

    @property
    def reference(self) -> Session:
        """What the inputs give, as it is."""

    @property
    def preprocess(self) -> dict[str, Preprocess]:
        """How frames are prepared, by the inputs that take them."""

    @property
    def recipe(self) -> dict[str, Any] | None:
        """What rebuilds the network, where that is known."""

    def export(self, path: Path, metadata: Mapping[str, str]) -> Graph:
        """Write the graph, and say what it takes and gives."""


class GraphNetwork:
    """A network on PyTorch."""

    def __init__(
        self, network: nn.Module, inputs: Mapping[str, Input], outputs: Sequence[str], options: OnnxOptions
    ) -> None:
        if is_quantized(network):
            raise InputError("convert_graph takes a float network, this one is quantized")
        recipe = recipe_of(network)
        self.recipe = encode(recipe) if recipe else None
        self.preprocess = {name: item for name, item in inputs.items() if isinstance(item, Preprocess)}
        self._options = options
        self._module = _InOrder(network, inputs.values())
        specs = [_input(name, item, options.batch) for name, item in inputs.items()]
        self._example = {spec.name: _zeros(spec) for spec in specs}
        given = _probe(self._module, self._example)
        names = _output_names(given, outputs)
        if taken := [name for name in names if name in inputs]:
            raise InputError(f"an output cannot be called {taken[0]!r}: an input is")
        self.reference: Session = TorchSession(
            self._module,
            specs,
            [_spec(name, value, options.batch) for name, value in zip(names, given.values(), strict=True)],
        )

    def export(self, path: Path, metadata: Mapping[str, str]) -> Graph:
        names = [spec.name for spec in self.reference.outputs]
        write_graph(self._module, self._example, names, path, options=self._options, metadata=metadata)
        return Graph(self.reference.inputs, self.reference.outputs, self.preprocess)


class GraphFile:
    """An ONNX file, whose inputs stay as they are but for those that are made to take frames.

    The reference is the file itself on ONNX Runtime, with normalization done outside, in numpy.
    """

    recipe = None

    def __init__(self, path: Path, inputs: Mapping[str, Input], outputs: Sequence[str], options: OnnxOptions) -> None:
        model = read_onnx(path)
        _check_file(model, path)
        if outputs:
            raise InputError(f"{path} names its outputs itself: leave outputs= out")
        self.preprocess = dict(_prepared(inputs, model, path))
        for name, preprocess in self.preprocess.items():
            model = with_frames(model, preprocess, name, name=name)
        model = with_opset(plain(model))
        model.ir_version = min(model.ir_version, IR_VERSION)
        self._model = with_batch(checked(model), options.batch)
        self.reference: Session = _AsFrames(path, self.preprocess)
        batch_of(self.reference.inputs)

    def export(self, path: Path, metadata: Mapping[str, str]) -> Graph:
        del self._model.metadata_props[:]
        for key, value in metadata.items():
            self._model.metadata_props.add(key=key, value=value)
        write_file(path, self._model.SerializeToString(deterministic=True))
        batch = self._model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        inputs, outputs = (
            tuple(TensorSpec(spec.name, spec.dtype, spec.shape and (batch, *spec.shape[1:])) for spec in specs)
            for specs in (self.reference.inputs, self.reference.outputs)
        )
        return Graph(inputs, outputs, self.preprocess)


class _InOrder(nn.Module):
    """A network that takes frames where it is said how they are prepared, and gives a tuple of tensors."""

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.network = network
        self.taken = nn.ModuleList(
            Framed(nn.Identity(), item) if isinstance(item, Preprocess) else nn.Identity() for item in inputs
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.answer(*tensors).values())

    def answer(self, *tensors: Tensor) -> dict[str, Tensor]:
        """What the network gives by the names it has for it, or by their numbers."""
        found = self.network(*(take(tensor) for take, tensor in zip(self.taken, tensors, strict=True)))
        if isinstance(found, Tensor):
            return {"output": found}
        if isinstance(found, Mapping):
            return dict(found)
        if isinstance(found, tuple | list):
            return {f"output{index}": item for index, item in enumerate(found)}
        raise TypeError(f"it gives {type(found).__name__}")


class _AsFrames(Session):
    """A file's graph on ONNX Runtime that takes frames where it wants them normalized."""

    backend = "onnxruntime"

    def __init__(self, path: Path, preprocess: Mapping[str, Preprocess]) -> None:
        try:
            self._inner = session_class("onnxruntime").open(path, SessionOptions())
        except BackendUnavailable as error:
            raise BackendUnavailable(f"an ONNX file is compared with itself on ONNX Runtime: {error}") from error
        self._preprocess = preprocess
        super().__init__([self._framed(spec) for spec in self._inner.inputs], self._inner.outputs)

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Session:
        raise InputError(f"{path}: open it with onnxruntime; this session is made for one conversion")

    def _framed(self, spec: TensorSpec) -> TensorSpec:
        if spec.name not in self._preprocess or spec.dtype == "uint8":
            return spec
        return TensorSpec(spec.name, "uint8", ((spec.shape or (None,))[0], *self._preprocess[spec.name].size, 3))

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = dict(inputs)
        for spec in self._inner.inputs:
            if spec.name in self._preprocess and spec.dtype != "uint8":
                values[spec.name] = normalized(inputs[spec.name], self._preprocess[spec.name]).astype(spec.dtype)
        return self._inner.run(values)

    def _close(self) -> None:
        self._inner.close()


def graph_source(
    network: nn.Module | str | Path, inputs: Mapping[str, Input] | None, outputs: Sequence[str], options: OnnxOptions
) -> GraphSource:
    """A network, or the file of one, as what a conversion starts from.

    Raises:
        ConversionError: the network refuses such inputs, gives anything but tensors, or the graph is not valid.
        InputError: a name or a shape is wrong, the network is quantized, or the file cannot be read.
    """
    if isinstance(outputs, str):
        raise InputError(f"outputs is a list of names, got {outputs!r}")
    if not isinstance(network, nn.Module):
        return GraphFile(Path(network), inputs or {}, outputs, options)
    if not inputs:
        raise InputError("a network does not say what it takes: give inputs=, by name and in the order of its call")
    return GraphNetwork(network, inputs, outputs, options)


def _input(name: str, item: Input, batch: int | None) -> TensorSpec:
    if isinstance(item, Preprocess):
        return TensorSpec(name, "uint8", (batch, *item.size, 3))
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], tuple):
        raise InputError(f"input {name!r} is a Preprocess, or a dtype and a shape such as ('float32', (None, 4))")
    dtype, shape = item
    sized = all(isinstance(size, int) and size > 0 for size in shape[1:])
    if shape[:1] != (None,) or not sized:
        raise InputError(
            f"the shape of input {name!r} begins with None, the batch, and goes on in whole numbers, got {shape}"
        )
    return TensorSpec(name, dtype, (batch, *shape[1:]))


def _zeros(spec: TensorSpec) -> Tensor:
    batch, *sizes = spec.shape or ()
    return torch.zeros(batch or EXAMPLE_BATCH, *(size or 1 for size in sizes), dtype=getattr(torch, spec.dtype))


def _probe(module: _InOrder, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the network gives for the example, by the names it has for it."""
    probe, name = copy.deepcopy(module).cpu().eval(), type(module.network).__name__
    try:
        with torch.inference_mode():
            found = probe.answer(*example.values())
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"{key} {list(value.shape)}" for key, value in example.items())
        raise ConversionError(f"{name} cannot be called with {given}: {one_line(error)}") from error
    batch = len(next(iter(example.values())))
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.shape[:1] != (batch,):
            shown = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConversionError(f"{name} must give tensors [batch, …], {key} is {shown} for a batch of {batch}")
    if not found:
        raise ConversionError(f"{name} gives nothing")
    return found


def _output_names(given: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    found = list(names) or list(given)
    if len(found) != len(given) or len(set(found)) != len(found) or not all(found):
        raise InputError(f"outputs is {len(given)} different names, one for each of {', '.join(given)}; got {found}")
    return found


def _spec(name: str, value: Tensor, batch: int | None) -> TensorSpec:
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), (batch, *value.shape[1:]))


def _check_file(model: onnx.ModelProto, path: Path) -> None:
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise InputError(f"convert_graph takes a float graph, {path} is quantized")
    constant = {item.name for item in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constant and not value.type.tensor_type.shape.dim:
            raise InputError(f"every input needs the batch as its first dimension, {value.name!r} of {path} has none")


def _prepared(inputs: Mapping[str, Input], model: onnx.ModelProto, path: Path) -> Iterator[tuple[str, Preprocess]]:
    names = [value.name for value in model.graph.input]
    for name, item in inputs.items():
        if name not in names:
            raise InputError(f"{path} has no input {name!r}, it takes {', '.join(names)}")
        if not isinstance(item, Preprocess):
            raise InputError(f"{path} says itself what {name!r} is: give a Preprocess, or leave it out")
        yield name, item

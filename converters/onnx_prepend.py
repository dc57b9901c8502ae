"""A user's own ONNX file to a graph that takes frames: the normalization is put in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
import onnx.version_converter
from onnx import TensorProto

import edgecv
from edgecv.converters.onnx_check import checked, fresh, label, names_in, opset_of, plain, subgraphs
from edgecv.errors import ConversionError, InputError, one_line
from edgecv.preprocess import Preprocess
from edgecv.tensors import Array

__all__ = ["with_frames", "with_opset"]

OLDEST, NEWEST = 18, 20  # TensorRT 10.3 (JetPack 6) reads 20 at most
IR_VERSION = 10  # ONNX Runtime 1.18 and TensorRT 10.3 read it
IMAGE = "image"


def with_frames(
    model: onnx.ModelProto,
    preprocess: Preprocess,
    image: str | None = None,
    *,
    name: str = IMAGE,
    output: str | None = None,
) -> onnx.ModelProto:
    """Return a copy that takes ``name``: uint8 ``[batch, height, width, 3]`` RGB at ``preprocess.size``.

    In front of the graph stand the cast, the layout change, the colour order and the normalization of ``preprocess``,
    the arithmetic of ``edgecv.models.framed``. The cast comes first, since TensorRT does nothing else with uint8. The
    batch stays as it is: free, or fixed. A graph that takes such frames already is checked, and otherwise left alone
    but for its names.

    Args:
        model: a graph whose one image input takes normalized float32 or float16 ``[batch, 3, height, width]``.
        image: which input takes the frames, where there are several.
        name: what that input is called afterwards.
        output: the new name of the graph's one output, as ``logits``; by default every output keeps its name.

    Raises:
        ConversionError: the graph is not valid ONNX, or an operator exists in no opset from 18 to 20.
        InputError: the input or output is not such as above.
    """
    model = with_opset(plain(model))
    graph = model.graph
    value = _image_input(model, image)
    framed = _takes_frames(value, preprocess)
    if not framed:
        _check_image(value, preprocess)
    if value.name != name:
        _free_name(graph, name)
    if framed:
        _rename(graph, value.name, name)
    else:
        _prepend(graph, value, preprocess, name)
    if output is not None:
        _rename_output(graph, output, name)
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version = "edgecv", edgecv.__version__
    return checked(model)


def with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, rewritten to opset 18 or 20 by ONNX's own converter where it is older or newer.

    Raises:
        ConversionError: an operator cannot be rewritten; the message names it and its node.
    """
    found = opset_of(model)
    if OLDEST <= found <= NEWEST:
        return model
    wanted = OLDEST if found < OLDEST else NEWEST
    try:
        converted = onnx.version_converter.convert_version(model, wanted)
    except (RuntimeError, onnx.shape_inference.InferenceError, ValueError) as error:
        reason = one_line(error)
        raise ConversionError(
            f"opset {found} cannot be rewritten to {wanted}: {_culprit(model, str(error))}{reason}; export the network "
            f"with opset {OLDEST} to {NEWEST}"
        ) from error
    return plain(converted)


def _image_input(model: onnx.ModelProto, name: str | None) -> onnx.ValueInfoProto:
    inputs = {value.name: value for value in model.graph.input}
    if name is not None and name not in inputs:
        raise InputError(f"the graph has no input {name!r}, it takes {', '.join(inputs)}")
    if name is None and len(inputs) != 1:
        raise InputError(
            f"the graph takes {len(inputs)} inputs ({', '.join(inputs)}): name the one that takes frames, as "
            "edgecv.convert_graph does"
        )
    return inputs[name or next(iter(inputs))]


def _takes_frames(value: onnx.ValueInfoProto, preprocess: Preprocess) -> bool:
    """Whether the input is uint8 NHWC already; one of another size is refused."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.UINT8:
        return False
    shape = _shape(value)
    if shape is None or len(shape) != 4 or shape[3] != 3 or not _fits(shape[1:3], preprocess.size):
        raise InputError(f"{_wanted(preprocess, 'uint8')}, {_shown(value)}")
    for axis, size in enumerate(preprocess.size, 1):
        tensor.shape.dim[axis].dim_value = size
    return True


def _check_image(value: onnx.ValueInfoProto, preprocess: Preprocess) -> None:
    shape, kind = _shape(value), value.type.tensor_type.elem_type
    floats = kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    if floats and shape is not None and len(shape) == 4 and shape[1] in (3, None) and _fits(shape[2:], preprocess.size):
        return
    hint = ""
    if floats and shape is not None and len(shape) == 4 and shape[1] == 3:
        height, width = (size or wanted for size, wanted in zip(shape[2:], preprocess.size, strict=True))
        hint = f"; give a Preprocess of size ({height}, {width})"
    elif floats and shape is not None and len(shape) == 4 and shape[3] == 3:
        hint = "; channels must come first: export it so"
    raise InputError(f"{_wanted(preprocess, 'float')}, {_shown(value)}{hint}")


def _fits(found: Sequence[int | None], wanted: tuple[int, int]) -> bool:
    return all(size in (None, side) for size, side in zip(found, wanted, strict=True))


def _wanted(preprocess: Preprocess, kind: str) -> str:
    height, width = preprocess.size
    shape = f"batch, {height}, {width}, 3" if kind == "uint8" else f"batch, 3, {height}, {width}"
    return f"for this preprocessing an input of {kind}[{shape}] is wanted"


def _shown(value: onnx.ValueInfoProto) -> str:
    shape, kind = _shape(value), TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    sizes = "…" if shape is None else ", ".join("any" if size is None else str(size) for size in shape)
    return f"{value.name!r} is {kind}[{sizes}]"


def _shape(value: onnx.ValueInfoProto) -> list[int | None] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def _prepend(graph: onnx.GraphProto, value: onnx.ValueInfoProto, preprocess: Preprocess, image: str) -> None:
    """Put the nodes in front; what was the graph's input is the tensor that they give."""
    taken = names_in(graph) | {image}
    if value.name == image:
        _rename(graph, image, fresh(f"{image}_normalized", taken))
    steps = _steps(preprocess)
    if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
        steps.append(("Cast", None, {"to": TensorProto.FLOAT16}))
    source, nodes = image, []
    for operator, constant, attributes in steps:
        name = fresh(f"{image}_{operator.lower()}", taken)
        reads = [source]
        if constant is not None:
            reads.append(fresh(f"{name}_constant", taken))
            graph.initializer.append(onnx.numpy_helper.from_array(constant, reads[1]))
        nodes.append(onnx.helper.make_node(operator, reads, [name], name=f"node_{name}", **attributes))
        source = name
    nodes[-1].output[0] = value.name
    inner = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *inner])
    graph.value_info.add().CopyFrom(value)
    _make_frames(value, preprocess.size, image)


def _steps(preprocess: Preprocess) -> list[tuple[str, Array | None, dict[str, Any]]]:
    """Operator, constant and attributes of each step from frames to what the network takes."""
    mean, std = (np.array(numbers, np.float64) for numbers in (preprocess.mean, preprocess.std))
    steps: list[tuple[str, Array | None, dict[str, Any]]] = [
        ("Cast", None, {"to": TensorProto.FLOAT}),
        ("Transpose", None, {"perm": [0, 3, 1, 2]}),
    ]
    if preprocess.color == "bgr":
        mean, std = mean[::-1], std[::-1]
        steps.append(("Gather", np.array([2, 1, 0], np.int64), {"axis": 1}))
    for operator, numbers in (("Mul", 1 / (255 * std)), ("Add", -mean / std)):
        steps.append((operator, numbers.astype(np.float32).reshape(1, 3, 1, 1), {}))
    return steps


def _make_frames(value: onnx.ValueInfoProto, size: tuple[int, int], name: str) -> None:
    batch = value.type.tensor_type.shape.dim[0]
    sizes = [batch.dim_value if batch.HasField("dim_value") else (batch.dim_param or "batch"), *size, 3]
    value.CopyFrom(onnx.helper.make_tensor_value_info(name, TensorProto.UINT8, sizes))


def _rename_output(graph: onnx.GraphProto, name: str, image: str) -> None:
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output)
        raise InputError(f"the graph gives {len(graph.output)} outputs ({names}): they keep their names, not {name!r}")
    if name == image:
        raise InputError(f"an output cannot be called {name!r}: the input is")
    if graph.output[0].name != name:
        _free_name(graph, name)
        _rename(graph, graph.output[0].name, name)


def _free_name(graph: onnx.GraphProto, name: str) -> None:
    """Give the tensor that is called ``name``, if there is one, another name."""
    taken = names_in(graph)
    if name in taken:
        _rename(graph, name, fresh(f"{name}_inner", taken))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if item.name == old:
            item.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
        for inner in subgraphs(node):
            _rename(inner, old, new)


def _culprit(model: onnx.ModelProto, message: str) -> str:
    """The node that the converter's message is about: it names only the operator, if anything."""
    for node in sorted(model.graph.node, key=lambda node: -len(node.op_type)):
        if node.op_type in message:
            return f"{label(node)}: "
    return ""

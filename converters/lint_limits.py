"""Attributes, build-time constants and shapes: what TensorRT allows of the operators it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecv.converters.lint_graph import Graph, Origin
from edgecv.converters.lint_nodes import Node, attribute, label
from edgecv.converters.lint_rules import TENSORRT, Problem, Rule

__all__ = ["RULES", "free_dimensions"]

OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
DYNAMIC = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-dynamic-shapes.html"
LARGEST_K = 3840
# The modes of both TensorRT and OpenVINO.
COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
POOLS = ("AveragePool", "LpPool", "MaxPool")
ONE_OUTPUT = ("Attention", "BatchNormalization", "LayerNormalization", "MaxPool")
SQUEEZES = ("Squeeze", "Unsqueeze")
# Inputs that hold sizes or places in shapes.
SHAPE_INPUTS = {
    "ConstantOfShape": (0,), "Expand": (1,), "Loop": (0,), "OneHot": (1,), "Pad": (1,), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (2, 3), "Slice": (1, 2, 3, 4), "Tile": (1,), "TopK": (1,), "Upsample": (1,),
}  # fmt: skip


def _resize(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type == "Resize":
            yield from ((node, f"{label(node)}: {problem}") for problem in _resize_problems(node))


def _resize_problems(node: Node) -> Iterator[str]:
    if (mode := attribute(node, "coordinate_transformation_mode", "half_pixel")) not in COORDINATES:
        yield f"coordinate_transformation_mode is {mode!r}, TensorRT has {', '.join(COORDINATES)}"
    if attribute(node, "antialias", 0):
        yield "antialias is on, TensorRT has none"
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        yield "keep_aspect_ratio_policy is not 'stretch'"


def _resize_for_openvino(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
        if node.op_type == "Resize" and mode not in COORDINATES:
            yield node, f"{label(node)}: OpenVINO has no coordinate_transformation_mode {mode!r}"


def _resize_axes(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        scales = node.input[2] if node.op_type == "Resize" and len(node.input) > 2 else ""
        axes = attribute(node, "axes", None) if scales else None
        if axes is not None and graph.constant(scales) is None and list(axes) != list(range(_rank(graph, node))):
            yield node, f"{label(node)}: axes {list(axes)} with the scales {scales!r}, which are not constant"


def _rank(graph: Graph, node: Node) -> int:
    return len(graph.shape(node.input[0]) or ())


def _scatter(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        reduction = attribute(node, "reduction", "none")
        if node.op_type in ("ScatterND", "ScatterElements") and reduction != "none":
            yield node, f"{label(node)}: reduction {reduction!r}"


def _pool(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type in POOLS and any(size != 1 for size in attribute(node, "dilations", ())):
            yield (
                node,
                f"{label(node)}: dilations {list(attribute(node, 'dilations', ()))}, TensorRT pools without gaps",
            )
        if node.op_type in ("LpPool", "GlobalLpPool") and attribute(node, "p", 2) not in (1, 2):
            yield node, f"{label(node)}: p is {attribute(node, 'p', 2)}, TensorRT has 1 and 2"


def _training(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
        if mode:
            value = graph.constant(mode)
            if value is None or value.any():
                yield node, f"{label(node)} may be in training mode"
        elif node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
            yield node, f"{label(node)} is in training mode"


def _more_outputs(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        extra = [name for name in node.output[1:] if name]
        if node.op_type in ONE_OUTPUT and extra:
            yield node, f"{label(node)}: TensorRT gives the first output alone, not {extra[0]!r}"


def _axes(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        name = node.input[1] if len(node.input) > 1 else ""
        if name and node.op_type.startswith("Reduce") and not graph.stored(name):
            yield node, f"{label(node)}: the axes {name!r} are not stored in the file"
        elif name and node.op_type in SQUEEZES and graph.origin(name) is not Origin.CONSTANT:
            yield node, f"{label(node)}: the axes {name!r} are not known when the engine is built"


def _shape_from_data(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        names = [node.input[i] for i in SHAPE_INPUTS.get(node.op_type, ()) if i < len(node.input) and node.input[i]]
        bad = [name for name in names if graph.origin(name) is Origin.FLOATS]
        if bad:
            yield node, f"{label(node)}: the sizes {bad[0]!r} depend on float values that are known at run time only"


def _large_k(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        k = graph.constant(node.input[1]) if node.op_type == "TopK" and len(node.input) > 1 else None
        if k is not None and k.size and int(k.max()) > LARGEST_K:
            yield node, f"{label(node)}: K is {int(k.max())}, TensorRT takes {LARGEST_K} at most"


def _needs_profile(graph: Graph) -> Iterator[Problem]:
    for name, free in free_dimensions(graph, first=0):
        yield None, f"input {name!r} has free dimensions {free}"


def _free_inside(graph: Graph) -> Iterator[Problem]:
    for name, free in free_dimensions(graph, first=1):
        yield None, f"input {name!r} has free dimensions {free} beside the batch"


def free_dimensions(graph: Graph, first: int) -> Iterator[tuple[str, list[int]]]:
    """Each input of the whole graph with its free dimensions from number ``first`` on."""
    for value in graph.inputs if graph.parent is None else ():
        free = [i for i, size in enumerate(graph.shape(value.name) or ()) if size is None and i >= first]
        if free:
            yield value.name, free


def _rule(id_: str, check: Callable[[Graph], Iterator[Problem]], mend: str, *refusals: str) -> Rule:
    return Rule(id_, "error", TENSORRT, check, mend, OPERATORS, refusals)


RULES = (
    _rule("TRT140", _resize, "resize with one of TensorRT's modes, or outside the graph",
          r"transformation modes!", r"Antialiasing is not supported", r"Only `stretch` is supported"),
    _rule("TRT141", _pool, "use a strided convolution, or a pool without dilation",
          r"does not support dilations other than 1", r"Only L1 and L2 normalization"),
    _rule("TRT142", _scatter, "write it without a reduction",
          r"ScatterND with reduction is not supported", r"^Unsupported reduction type"),
    _rule("TRT143", _training, "export in eval mode",
          r"operator in training mode", r"training_mode == 1", r"supports the training_mode input as an initializer"),
    _rule("TRT144", _more_outputs, "leave the other outputs away",
          r"mode than 1 outputs", r"only supports Attention nodes with one output"),
    _rule("TRT145", _axes, "fold constants before converting, or give the axes as an initializer",
          r"Axis input must resolve to a build-time constant", r"squeeze axis is not a constant"),
    _rule("TRT146", _shape_from_data, "give sizes as constants or compute them from shapes",
          r"is a shape tensor and must have type Int", r"checkCalculationStatusSanity"),
    _rule("TRT147", _large_k, f"ask for {LARGEST_K} at most, or sort outside the graph",
          r"K exceeds the maximum value"),
    _rule("TRT148", _resize_axes, "give constant scales, or one for every axis", r"`axes` attribute is supported"),
    Rule("TRT150", "warning", TENSORRT, _needs_profile,
         "build with an optimization profile: smallest, usual and largest shape", DYNAMIC),
    Rule("OV140", "error", ("openvino",), _resize_for_openvino, "resize with one of the other modes",
         "https://docs.openvino.ai/2024/documentation/openvino-ir-format/operation-sets/operation-specs/image/interpolate-11.html"),
    Rule("OV150", "warning", ("openvino",), _free_inside,
         "fix height and width: a static shape is planned once, and NPUs need it",
         "https://docs.openvino.ai/2024/openvino-workflow/running-inference/dynamic-shapes.html"),
    Rule("ORT150", "warning", ("onnxruntime",), _free_inside,
         "fix height and width (onnxruntime.tools.make_dynamic_shape_fixed)",
         "https://onnxruntime.ai/docs/tutorials/mobile/helpers/make-dynamic-shape-fixed.html"),
)  # fmt: skip

"""Operators that a target does not have, and versions of ONNX that it does not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecv.converters.lint_graph import Graph
from edgecv.converters.lint_nodes import ONNX_DOMAINS, Node, label, schema_of
from edgecv.converters.lint_rules import TENSORRT, Problem, Rule
from edgecv.converters.lint_tables import (
    CUSTOM_DOMAINS,
    OPENVINO_MISSING,
    ORT_MISSING,
    TENSORRT_OPERATORS,
    TENSORRT_PLUGIN_OPERATORS,
    TENSORRT_PLUGINS,
)

__all__ = ["RULES"]

OPERATORS = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
PLUGINS = "https://github.com/NVIDIA/TensorRT/tree/main/plugin"
ORT_VERSIONS = "https://onnxruntime.ai/docs/reference/compatibility.html"
ORT_CUSTOM = "https://onnxruntime.ai/docs/reference/operators/add-custom-op.html"
OV_OPERATORS = "https://docs.openvino.ai/2024/documentation/compatibility-and-support/supported-operations.html"
NEEDS_PLUGIN = TENSORRT_PLUGIN_OPERATORS | TENSORRT_PLUGINS
ORT_OLDEST, ORT_NEWEST = (21, 10), (26, 13)  # opset and IR version that ONNX Runtime 1.18 and 1.31 read at most
TENSORRT_OPSETS = (9, 20)  # what TensorRT 10.3 reads; 11.4 reads more


def _foreign(graph: Graph) -> Iterator[Problem]:
    """TensorRT's parser finds importers by the operator's name alone, whatever its domain."""
    for node in graph.nodes:
        if not _known_to_onnx(node) and node.op_type not in TENSORRT_OPERATORS | NEEDS_PLUGIN:
            yield node, f"{label(node)}: TensorRT has no operator {_full_name(node)}"


def _renamed(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.domain not in ONNX_DOMAINS and node.op_type in TENSORRT_OPERATORS:
            yield node, f"{label(node)}: TensorRT takes {_full_name(node)} for ONNX's {node.op_type}"


def _unsupported(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if _known_to_onnx(node) and node.op_type not in TENSORRT_OPERATORS | NEEDS_PLUGIN:
            yield node, f"{label(node)}: TensorRT has no importer for {node.op_type}"


def _plugin(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.op_type in NEEDS_PLUGIN:
            yield (
                node,
                f"{label(node)}: {node.op_type} needs TensorRT's plugin library, which TensorRT-RTX does not have",
            )


def _without_ort_kernel(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        schema = schema_of(node, graph.opset)
        if schema is not None and schema.since_version in ORT_MISSING.get(node.op_type, ()):
            what = f"{node.op_type} of opset {schema.since_version}"
            yield node, f"{label(node)}: ONNX Runtime 1.31 has no CPU kernel for {what}"


def _without_ov_rule(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        if node.domain in ONNX_DOMAINS and node.op_type in OPENVINO_MISSING:
            yield node, f"{label(node)}: OpenVINO 2026.4 has no conversion rule for {node.op_type}"


def _custom(target: str) -> Callable[[Graph], Iterator[Problem]]:
    def check(graph: Graph) -> Iterator[Problem]:
        for node in graph.nodes:
            if node.domain not in (*ONNX_DOMAINS, *CUSTOM_DOMAINS[target]):
                yield node, f"{label(node)}: {_full_name(node)} is a custom operator"

    return check


def _opset_for_tensorrt(graph: Graph) -> Iterator[Problem]:
    low, high = TENSORRT_OPSETS
    if graph.parent is None and not low <= graph.opset <= high:
        yield None, f"the graph has opset {graph.opset}; TensorRT 10.3 (JetPack 6) reads {low} to {high}"


def _opset_too_old(graph: Graph) -> Iterator[Problem]:
    for node in graph.nodes if graph.opset < 7 else ():
        if node.op_type in ONCE_BROADCAST:
            yield node, f"{label(node)}: TensorRT does not know how opset {graph.opset} broadcasts"


def _ort_versions(newest: tuple[int, int], release: str) -> Callable[[Graph], Iterator[Problem]]:
    def check(graph: Graph) -> Iterator[Problem]:
        found = (graph.opset, graph.model.ir_version)
        if graph.parent is None and (found[0] > newest[0] or found[1] > newest[1]):
            yield (
                None,
                f"the graph has opset {found[0]} and IR version {found[1]}; "
                f"ONNX Runtime {release} reads {newest[0]} and {newest[1]} at most",
            )

    return check


def _known_to_onnx(node: Node) -> bool:
    return schema_of(node, NEWEST_OPSET) is not None


def _full_name(node: Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else str(node.op_type)


# Operators whose broadcasting was an attribute before opset 7.
ONCE_BROADCAST = (
    *(
        "Add",
        "And",
        "Div",
        "Equal",
        "Gemm",
        "Greater",
        "Less",
        "Max",
        "Mean",
        "Min",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
    ),
    *("Sum", "Xor"),
)
NEWEST_OPSET = 1000  # ONNX answers with the newest definition it has
NO_PLUGIN = (r"Plugin not found", r"failed to load \w+ plugin", r"plugin (creator version \d+ )?was not found")
EXPORT_LOWER = "export with a lower opset (edgecv writes 18 to 20), or convert with onnx.version_converter"

RULES = (
    Rule("TRT001", "error", TENSORRT, _foreign, "write it with ONNX operators, or bring a plugin under that name",
         PLUGINS, NO_PLUGIN[:1]),
    Rule("TRT002", "error", TENSORRT, _unsupported, "write it with other operators, or compute it outside the graph",
         OPERATORS, (r"^false$", *NO_PLUGIN[:1])),
    Rule("TRT003", "warning", ("tensorrt",), _plugin, "ship libnvinfer_plugin, or move the operator out of the graph",
         OPERATORS, NO_PLUGIN),
    Rule("TRT003", "error", ("tensorrt_rtx",), _plugin, "move the operator out of the graph, or use TensorRT",
         OPERATORS, NO_PLUGIN),
    Rule("TRT004", "error", TENSORRT, _opset_too_old, "convert with onnx.version_converter, or export again",
         OPERATORS, (r"Pre-opset 7 broadcasting",)),
    Rule("TRT005", "warning", TENSORRT, _opset_for_tensorrt, EXPORT_LOWER, OPERATORS),
    Rule("TRT006", "warning", TENSORRT, _renamed, "use ONNX's own operator, or rename yours", OPERATORS),
    Rule("ORT001", "error", ("onnxruntime",), _without_ort_kernel, EXPORT_LOWER,
         "https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md"),
    Rule("ORT002", "error", ("onnxruntime",), _custom("onnxruntime"),
         "write it with ONNX operators, or register a custom-operator library with the session", ORT_CUSTOM),
    Rule("ORT003", "error", ("onnxruntime",), _ort_versions(ORT_NEWEST, "1.31"), EXPORT_LOWER, ORT_VERSIONS),
    Rule("ORT004", "warning", ("onnxruntime",), _ort_versions(ORT_OLDEST, "1.18"), EXPORT_LOWER, ORT_VERSIONS),
    Rule("OV001", "error", ("openvino",), _without_ov_rule, "write it with other operators, or cut it off the graph",
         OV_OPERATORS),
    Rule("OV002", "error", ("openvino",), _custom("openvino"),
         "write it with ONNX operators, or add an OpenVINO extension",
         "https://docs.openvino.ai/2024/documentation/openvino-extensibility.html"),
)  # fmt: skip

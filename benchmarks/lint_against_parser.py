"""``edgecv lint`` against NVIDIA's own ONNX parser, that of TensorRT-RTX, which runs without a GPU.

    pip install --target RTX --no-deps tensorrt_rtx_cu13_libs==1.7.1.116 tensorrt_rtx_cu13_bindings==1.7.1.116
    PYTHONPATH=RTX python benchmarks/lint_against_parser.py [--without-zoo]

Graphs: the zoo as edgecv exports it, the same with the cast moved in front, some quantized by ONNX Runtime, Q/DQ pairs
in every combination, single operators, and the node and model tests of the ONNX package. Writes
benchmarks/results/lint_against_parser.json and exits with 1 where the lint passes a graph that the parser refuses for
a reason that a rule answers for (``Rule.refusals``). It is the parser of TensorRT-RTX, not of TensorRT, and nothing is
executed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.parser
from onnx import helper, numpy_helper

from edgecv import models
from edgecv.converters.lint import RULES, lint
from edgecv.converters.lint_tables import TENSORRT_OPERATORS
from edgecv.converters.onnx_from_torch import OnnxOptions, onnx_from_torch
from edgecv.errors import InputError, one_line
from edgecv.preprocess import Preprocess
from edgecv.profiling.system import library_versions, machine
from edgecv.schema import dumps

RESULTS = Path(__file__).parent / "results" / "lint_against_parser.json"
TARGET = "tensorrt_rtx"
CLAIMS = [(rule.id, re.compile(text)) for rule in RULES if TARGET in rule.targets for text in rule.refusals]
QUANTIZED = ("mobilenet_v2", "resnet18", "squeezenet1_1")
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "symmetric": {"ActivationSymmetric": True, "WeightSymmetric": True},
    "symmetric, float bias": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}
# Why the lint stops what the parser lets through.
STRICTER = {
    "TRT003": "the parser takes it, the builder has no implementation without plugins",
    "TRT110": "a scale or zero point of run time, which the builder does not expect",
    "TRT111": "an infinite scale gives no numbers",
    "TRT115": "uint8 values are read as int8 in silence",
    "TRT116": "uint8 values are read as int8 in silence",
    "TRT118": "ONNX says one scale per channel",
    "TRT130": "not valid ONNX: the types must be the same",
    "TRT147": "the builder refuses it",
}
SNIPPETS = {
    "uint8 transposed": "(uint8[1,8,3] x) => (float[1,3,8] y) { t = Transpose<perm=[0,2,1]>(x) y = Cast<to=1>(t) }",
    "uint8 cast first": "(uint8[1,8,3] x) => (float[1,3,8] y) { t = Cast<to=1>(x) y = Transpose<perm=[0,2,1]>(t) }",
    "uint8 output": "(float[1,3] x) => (uint8[1,3] y) { y = Cast<to=2>(x) }",
    "int16 input": "(int16[1,3] x) => (float[1,3] y) { y = Cast<to=1>(x) }",
    "int16 inside": "(float[1,3] x) => (float[1,3] y) { t = Cast<to=5>(x) y = Cast<to=1>(t) }",
    "double inside": "(float[1,3] x) => (float[1,3] y) { t = Cast<to=11>(x) y = Cast<to=1>(t) }",
    "mixed add": "(float[1,3] x, float16[1,3] w) => (float[1,3] y) { y = Add(x, w) }",
    "mixed product": "(float[2,3] x, float16[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }",
    "mixed clip": "(float[1,3] x) => (float[1,3] y) <float16 h = {6}> { y = Clip(x, , h) }",
    "axes given": "(float[1,3] x, int64[1] a) => (float[1,1] y) { y = ReduceMean(x, a) }",
    "axes computed": "(float[1,3] x) => (float[1,1] y) <int64[1] a = {1}> { b = Mul(a, a) y = ReduceMean(x, b) }",
    "axes cast": "(float[1,3] x) => (float[1,1] y) <int32[1] a = {1}> { b = Cast<to=7>(a) y = ReduceMean(x, b) }",
    "unsqueeze computed": "(float[1,3] x) => (float[1,1,3] y) <int64[1] a = {1}> { b = Mul(a, a) y = Unsqueeze(x, b) }",
    "unsqueeze given": "(float[1,3] x, int64[1] a) => (float[1,1,3] y) { y = Unsqueeze(x, a) }",
    "scales given": "(float[1,3,8,8] x, float[4] s) => (float[n,c,h,w] y) { y = Resize(x, , s) }",
    "scales from data": "(float[4] x, float[1,3,8,8] i) => (float[n,c,h,w] y) { s = Abs(x) y = Resize(i, , s) }",
    "sizes given": "(float[1,3,8,8] x, int64[4] s) => (float[n,c,h,w] y) { y = Resize(x, , , s) }",
    "antialias": "(float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}> "
    '{ y = Resize<antialias=1, mode="linear">(x, , s) }',
    "symmetric pixels": "(float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}> "
    '{ y = Resize<coordinate_transformation_mode="half_pixel_symmetric", mode="linear">(x, , s) }',
    "top 4000": "(float[1,8000] x) => (float[1,4000] y, int64[1,4000] i) <int64[1] k = {4000}> { y, i = TopK(x, k) }",
    "top 3840": "(float[1,8000] x) => (float[1,3840] y, int64[1,3840] i) <int64[1] k = {3840}> { y, i = TopK(x, k) }",
    "scale computed": "(float[1,3] x) => (float[1,3] y) <int8 z = {0}> "
    "{ s = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
    "branch": "(float[3,3] x, bool c) => (float y) { y = If(c) <then_branch = a () => (float t) { t = Det(x) }, "
    "else_branch = b () => (float e) { e = ReduceSum<keepdims=0>(x) }> }",
}


def combinations() -> Iterator[tuple[str, onnx.ModelProto]]:
    """A convolution between Q/DQ pairs, in every combination of activation, weights, bias and opset."""
    zero = {"int8 0": np.int8(0), "int8 1": np.int8(1), "uint8 0": np.uint8(0), "uint8 128": np.uint8(128)}
    points: dict[str, Any] = {**zero, "none": None, "int16 0": np.int16(0)}
    weights: dict[str, tuple[Any, Any, int]] = {
        "int8": (np.int8, 1, 0), "int8 by channel": (np.int8, 4, 0), "int8 default axis": (np.int8, 4, 1),
        "int8 input channels": (np.int8, 3, 1), "uint8": (np.uint8, 1, 0), "int8 zero scale": (np.int8, 0, 0),
    }  # fmt: skip
    biases = ("none", "float", "int32", "half")
    for point, weight, bias, opset in itertools.product(points, weights, biases, (13, 19, 21)):
        yield f"{point} / {weight} / {bias} / {opset}", _convolution(points[point], *weights[weight], bias, opset)


def _convolution(point: Any, kind: Any, scales: int, axis: int, bias: str, opset: int) -> onnx.ModelProto:
    scale = np.full(scales, 0.1, np.float32) if scales > 1 else np.float32(0.1 if scales else 0)
    values = {"s": np.float32(0.1), "w": np.ones((4, 3, 3, 3), kind), "ws": scale, "wz": np.zeros_like(scale, kind)}
    pair = ["s"] if point is None else ["s", "z"]
    values.update({} if point is None else {"z": point})
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pair], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights", axis=axis),
    ]
    if bias in ("float", "half"):
        values["b"] = np.zeros(4, np.float32 if bias == "float" else np.float16)
    if bias == "int32":
        values["bi"] = np.zeros(4, np.int32)
        nodes.append(helper.make_node("DequantizeLinear", ["bi", "s"], ["b"], "bias"))
    nodes.append(helper.make_node("Conv", ["d", "wd"] + (["b"] if bias != "none" else []), ["y"], "conv"))
    ends = [helper.make_tensor_value_info(*end) for end in (("x", 1, [1, 3, 8, 8]), ("y", 1, [1, 4, 6, 6]))]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def snippets() -> Iterator[tuple[str, onnx.ModelProto]]:
    for name, text in SNIPPETS.items():
        yield name, onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g {text}')


def onnx_tests() -> Iterator[tuple[str, onnx.ModelProto]]:
    for kind in ("node", "simple", "pytorch-operator", "pytorch-converted"):
        for case in onnx.backend.test.loader.load_model_tests(kind=kind):
            if case.model is not None:
                yield case.name, case.model
            elif case.model_dir is not None and Path(case.model_dir, "model.onnx").is_file():
                yield f"{kind} {case.name}", onnx.load(str(Path(case.model_dir, "model.onnx")))


def zoo(kept: Path, folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every architecture of edgecv with free and with fixed batch, as exported and with the cast in front.

    Graphs that are in ``kept`` already are not exported again.
    """
    for name, batch in itertools.product(models.names(), (None, 1)):
        label = f"{name}, batch {batch or 'free'}"
        path, preprocess = kept / f"{name}_{batch or 'free'}.onnx", Preprocess(size=models.native_size(name))
        if not path.is_file():
            onnx_from_torch(models.create(name), path, preprocess, options=OnnxOptions(batch=batch))
            print("exported", label, flush=True)
        yield label, onnx.load(str(path))
        yield f"{label}, cast first", cast_first(onnx.load(str(path)))
        if name in QUANTIZED and batch == 1:
            yield from quantized(name, cast_first(onnx.load(str(path))), folder)


def cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a Transpose of uint8 frames moved behind their cast to float."""
    first, second = model.graph.node[:2]
    if (first.op_type, second.op_type) == ("Transpose", "Cast"):
        second.input[0], first.input[0] = first.input[0], second.output[0]
        users = [node for node in model.graph.node[2:] if second.output[0] in node.input]
        for node in users:
            node.input[list(node.input).index(second.output[0])] = first.output[0]
        nodes = [second, first, *model.graph.node[2:]]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(copies)
    return model


def quantized(name: str, model: onnx.ModelProto, folder: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graph as ONNX Runtime's own quantizer writes it, by several recipes."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    value = model.graph.input[0]
    shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    for (recipe, extra), form in itertools.product(RECIPES.items(), (QuantFormat.QDQ, QuantFormat.QOperator)):
        kind = QuantType.QUInt8 if recipe == "default" else QuantType.QInt8
        plain, out = folder / "plain.onnx", folder / "quantized.onnx"
        onnx.save(model, str(plain))
        settings = {"quant_format": form, "activation_type": kind, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(plain, out, _Frames(value.name, shape), **settings, extra_options=extra)
        yield f"{name}, ONNX Runtime, {form.name}, {recipe}", onnx.load(str(out))


class _Frames:
    """Noise to calibrate on: the layout of the Q/DQ nodes is all that matters here."""

    def __init__(self, name: str, shape: list[int]) -> None:
        frames = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
        self._feeds = iter([{name: frame} for frame in frames])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def worker(folder: Path, build: bool) -> None:
    """Parse the graphs named on stdin, one line of JSON each; with ``build``, build them too."""
    import tensorrt_rtx_bindings as rtx

    logger = rtx.Logger(rtx.Logger.Severity.INTERNAL_ERROR)
    builder = rtx.Builder(logger)
    for name in sys.stdin.read().split():
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(network, logger)
        ok = parser.parse((folder / name).read_bytes())
        messages = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        row = {"file": name, "ok": bool(ok), "messages": messages}
        if ok and build:
            row["built"] = builder.build_serialized_network(network, builder.create_builder_config()) is not None
        print(json.dumps(row), flush=True)


def parse_all(folder: Path, files: list[str], build: bool = False) -> dict[str, dict[str, Any]]:
    """What the parser says of each file; one that takes the process down counts as crashed, and the rest goes on."""
    rows: dict[str, dict[str, Any]] = {}
    command = [sys.executable, __file__, "--worker", str(folder), *(["--build"] if build else [])]
    while left := [name for name in files if name not in rows]:
        done = subprocess.run(command, input="\n".join(left), capture_output=True, text=True)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"file"')]
        rows.update({row["file"]: row for row in found})
        rest = [name for name in left if name not in rows]
        if rest and len(rest) == len(left) and "ModuleNotFoundError" in done.stderr:
            sys.exit("the wheels of TensorRT-RTX are not on PYTHONPATH; see the first lines of this program")
        if rest:
            rows[rest[0]] = {"file": rest[0], "ok": False, "crashed": done.returncode, "messages": []}
    return rows


def judge(model_file: Path, row: dict[str, Any]) -> dict[str, Any]:
    """One graph: what the lint finds, what the parser says, and how the two agree."""
    try:
        errors = sorted({item.rule for item in lint(model_file, [TARGET]) if item.severity == "error"})
    except InputError as error:
        errors = [f"refused as broken: {one_line(error, 120)}"]
    claimed = sorted({rule for rule, text in CLAIMS for message in row["messages"] if text.search(message)})
    found = {
        "lint": errors,
        "answers for": claimed,
        "message": one_line(row["messages"][0], 160) if row["messages"] else "",
    }
    if row["ok"]:
        agreement = "lint is stricter" if errors else "both pass"
    elif errors:
        agreement = "both refuse, same reason" if set(errors) & set(claimed) else "both refuse, other reason"
    else:
        agreement = "MISSED" if claimed else "refused for a reason no rule answers for"
    return {"agreement": agreement, **found}


def reason(row: dict[str, Any]) -> str:
    if row["agreement"] == "lint is stricter":
        return "; ".join(dict.fromkeys(STRICTER.get(rule, rule) for rule in row["lint"]))
    return str(row["message"])


def operators() -> dict[str, list[str]]:
    """Where the table of operators differs from what the parser says now."""
    code = (
        "import json, onnx.defs, tensorrt_rtx_bindings as t; l = t.Logger(); b = t.Builder(l); "
        "p = t.OnnxParser(b.create_network(1), l); "
        "names = [s.name for s in onnx.defs.get_all_schemas() if not s.domain]; "
        "print(json.dumps([name for name in names if p.supports_operator(name)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    now = set(json.loads(done.stdout.splitlines()[-1]))
    return {"new": sorted(now - TENSORRT_OPERATORS), "gone": sorted(TENSORRT_OPERATORS - now)}


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = {"Q/DQ combinations": combinations(), "single operators": snippets(), "ONNX's tests": onnx_tests()}
        if not arguments.without_zoo:
            sources["zoo"] = zoo(arguments.zoo or folder, folder)
        titles: dict[str, tuple[str, str]] = {}
        for corpus, graphs in sources.items():
            for name, model in graphs:
                file = f"{len(titles)}.onnx"
                (folder / file).write_bytes(model.SerializeToString())
                titles[file] = (corpus, name)
        rows = {file: judge(folder / file, row) for file, row in parse_all(folder, list(titles)).items()}
        strict = [file for file, row in rows.items() if row["agreement"] == "lint is stricter"]
        builds = parse_all(folder, strict, build=True)
    report = summary(titles, rows, builds)
    arguments.out.write_text(dumps(report))
    print(json.dumps(report["agreement"], indent=2))
    return 1 if report["missed"] else 0


def summary(
    titles: dict[str, tuple[str, str]], rows: dict[str, dict[str, Any]], builds: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    corpora = dict.fromkeys(corpus for corpus, _ in titles.values())
    counts = {
        corpus: dict(Counter(rows[file]["agreement"] for file, title in titles.items() if title[0] == corpus))
        for corpus in corpora
    }
    differ = [
        {
            "corpus": titles[file][0],
            "graph": titles[file][1],
            "agreement": row["agreement"],
            "lint": row["lint"],
            "reason": reason(row),
            **({"builds": builds[file].get("built", "crashed")} if file in builds else {}),
        }
        for file, row in rows.items()
        if row["agreement"] not in ("both pass", "both refuse, same reason")
    ]
    names = ("tensorrt_rtx_cu13_bindings", "onnx", "onnxruntime", "torch")
    return {
        "machine": machine(),
        "versions": {**library_versions(), **{name: version(name) for name in names}},
        "graphs": len(rows),
        "agreement": counts,
        "missed": sum(row["agreement"] == "MISSED" for row in rows.values()),
        "operators that differ from the table": operators(),
        "differences": differ,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare edgecv lint with the ONNX parser of TensorRT-RTX.")
    parser.add_argument(
        "--without-zoo", action="store_true", help="leave out the export of the zoo, which takes minutes"
    )
    parser.add_argument("--zoo", type=Path, metavar="FOLDER", help="keep the exported zoo here, and use what is there")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.build)
        return 0
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())

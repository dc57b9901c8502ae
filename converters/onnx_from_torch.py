"""PyTorch network to ONNX graph: uint8 NHWC RGB frames in, normalization inside."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
import torch
from torch import nn

import edgecv
from edgecv.errors import ConversionError, InputError, one_line
from edgecv.files import write_file
from edgecv.models.framed import Framed
from edgecv.preprocess import Preprocess

__all__ = ["OPSETS", "OnnxOptions", "onnx_from_torch"]

OPSETS = (18, 19, 20)  # torch's exporter writes 18 at least; TensorRT 10.3 (JetPack 6) reads 20 at most
IR_VERSION = 10  # ONNX Runtime 1.18 and TensorRT 10.3 read it
EXAMPLE_BATCH = 3  # 1 and 2 make the exporter specialize: "batch <= 2" for channels-last views


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """What is written: ``batch`` of ``None`` leaves it free at run time."""

    opset: int = 18
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise InputError(f"opset is one of {', '.join(map(str, OPSETS))}, got {self.opset!r}")
        if self.batch is not None and (not isinstance(self.batch, int) or self.batch < 1):
            raise InputError(f"batch is a whole number from 1 or None, got {self.batch!r}")


def onnx_from_torch(
    network: nn.Module,
    path: str | Path,
    preprocess: Preprocess,
    *,
    output: str = "logits",
    options: OnnxOptions | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an image network as one ONNX file.

    The graph takes ``image``: uint8 ``[batch, height, width, 3]`` RGB at ``preprocess.size``, and gives ``output``. It
    is constant-folded, shape-inferred and checked. The same network gives the same bytes: what torch's exporter notes
    about source files and call stacks is left out. ``network`` is exported in eval mode from a copy, on the CPU.

    Raises:
        ConversionError: torch's exporter or ONNX refuses the network; the message carries their reason.
    """
    options = options or OnnxOptions()
    framed = Framed(copy.deepcopy(network).cpu().eval(), preprocess).eval()
    model = _export(framed, preprocess.size, output, options)
    _strip_notes(model)
    for key, value in {"edgecv_version": edgecv.__version__, **(metadata or {})}.items():
        model.metadata_props.add(key=key, value=value)
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version = "edgecv", edgecv.__version__
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the exported graph of {_name(network)} is not valid ONNX: {one_line(error)}") from error
    write_file(path, model.SerializeToString(deterministic=True))
    return Path(path)


def metadata_for(name: str, task: str, preprocess: Preprocess, labels: tuple[str, ...]) -> dict[str, str]:
    """The labels that other tools read from a model file: ultralytics' keys and Intel's model_api keys."""
    height, width = preprocess.size
    resize = "standard" if preprocess.resize is None else "crop"
    names = dict(enumerate(labels))
    return {
        "description": name,
        "task": {"classification": "classify"}.get(task, task),
        "names": json.dumps(names, ensure_ascii=False),
        "imgsz": json.dumps([height, width]),
        "stride": "1",
        "batch": "1",
        "model_type": {"classification": "Classification"}.get(task, task),
        "labels": " ".join(label.replace(" ", "_") for label in labels),
        "mean_values": "0 0 0",  # the graph normalizes: other tools must not do it again
        "scale_values": "1 1 1",
        "resize_type": "fit_to_window_letterbox" if preprocess.resize == "letterbox" else resize,
        "reverse_input_channels": "False",
    }


def _export(framed: Framed, size: tuple[int, int], output: str, options: OnnxOptions) -> onnx.ModelProto:
    example = torch.zeros(options.batch or EXAMPLE_BATCH, *size, 3, dtype=torch.uint8)
    dynamic = None if options.batch else ({0: torch.export.Dim("batch")},)
    try:
        with _quiet():
            program = torch.onnx.export(
                framed,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=[output],
                opset_version=options.opset,
                dynamic_shapes=dynamic,
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(f"torch cannot export {_name(framed.network)} to ONNX: {_reason(error)}") from error
    if program is None:
        raise ConversionError(f"torch's exporter gave nothing for {_name(framed.network)}")
    model: onnx.ModelProto = program.model_proto
    if len(model.graph.output) != 1:
        names = ", ".join(value.name for value in model.graph.output)
        raise ConversionError(f"{_name(framed.network)} must give one tensor, its graph has the outputs {names}")
    written = next(item.version for item in model.opset_import if item.domain == "")
    if written != options.opset:
        raise ConversionError(f"torch's exporter wrote opset {written} where {options.opset} was asked for")
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines, its log and the warnings about its own internals off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
    finally:
        logger.setLevel(level)


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove call stacks, source paths and other notes of the exporter from every part of the model."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "edgecv", ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def _reason(error: BaseException) -> str:
    """The innermost cause: the exporter's own message is a page of advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


def _name(network: nn.Module) -> str:
    return type(network).__name__

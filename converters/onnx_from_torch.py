"""PyTorch network to ONNX graph: uint8 NHWC RGB frames in, normalization inside."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.shape_inference
import torch
from torch import Tensor, nn

import edgecv
from edgecv.compression.placement import freeze
from edgecv.converters.onnx_fold_frames import fold_frames
from edgecv.converters.onnx_fold_pads import fold_pads
from edgecv.converters.onnx_pooled import pool_globally
from edgecv.converters.torch_fold_norms import fold_norms, leave_in_place
from edgecv.errors import ConversionError, InputError, one_line
from edgecv.files import write_file
from edgecv.models.framed import Framed
from edgecv.models.reparameterize import reparameterize
from edgecv.preprocess import Preprocess

__all__ = ["EXAMPLE_BATCH", "OPSETS", "OnnxOptions", "metadata_for", "onnx_from_torch", "write_graph"]

OPSETS = (18, 19, 20)  # torch's exporter writes 18 at least; TensorRT 10.3 (JetPack 6) reads 20 at most
IR_VERSION = 10  # ONNX Runtime 1.18 and TensorRT 10.3 read it
EXAMPLE_BATCH = 3  # 1 and 2 make the exporter specialize: "batch <= 2" for channels-last views


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """What is written.

    ``batch`` of ``None`` leaves it free at run time. ``reparameterize`` folds branches that serve training alone, where
    submodules offer it, as those of MobileOne and RepVGG do.
    """

    opset: int = 18
    batch: int | None = None
    reparameterize: bool = True

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise InputError(f"opset is one of {', '.join(map(str, OPSETS))}, got {self.opset!r}")
        if not isinstance(self.reparameterize, bool):
            raise InputError(f"reparameterize is True or False, got {self.reparameterize!r}")
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
    about source files and call stacks is left out. ``network`` is exported in eval mode from a copy, on the CPU, with
    the branches that serve training alone folded.

    Raises:
        ConversionError: torch's exporter or ONNX refuses the network; the message carries their reason.
    """
    options = options or OnnxOptions()
    example = torch.zeros(options.batch or EXAMPLE_BATCH, *preprocess.size, 3, dtype=torch.uint8)
    framed = Framed(network, preprocess)
    return write_graph(framed, {"image": example}, [output], path, options=options, metadata=metadata)


def write_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    path: str | Path,
    *,
    options: OnnxOptions,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """As ``onnx_from_torch``, for a module that takes a graph's inputs as they are and gives its ``outputs`` in order.

    ``inputs`` holds an example of each, of ``options.batch`` items, or ``EXAMPLE_BATCH`` where the batch is free.
    """
    name = _name(module)
    module = copy.deepcopy(module).cpu().eval()
    if options.reparameterize:
        reparameterize(module)
    freeze(module)
    fold_norms(module)
    leave_in_place(module)
    model = _export(module, inputs, outputs, options, name)
    _strip_notes(model)
    fold_pads(model)
    fold_frames(model)
    pool_globally(model)
    for key, value in {"edgecv_version": edgecv.__version__, **(metadata or {})}.items():
        model.metadata_props.add(key=key, value=value)
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name, model.producer_version = "edgecv", edgecv.__version__
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the exported graph of {name} is not valid ONNX: {one_line(error)}") from error
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


def _export(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], options: OnnxOptions, name: str
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    shapes: tuple[Any, ...] = tuple({0: batch} for _ in inputs)
    if any(item.kind is item.VAR_POSITIONAL for item in inspect.signature(module.forward).parameters.values()):
        shapes = (shapes,)  # as the exporter sees ``forward(self, *tensors)``: one argument, a tuple
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=options.opset,
                dynamic_shapes=None if options.batch else shapes,
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConversionError(f"torch cannot export {name} to ONNX: {_reason(error)}") from error
    if program is None:
        raise ConversionError(f"torch's exporter gave nothing for {name}")
    model: onnx.ModelProto = program.model_proto
    if len(model.graph.output) != len(outputs):
        given = ", ".join(value.name for value in model.graph.output)
        wanted = "one tensor" if len(outputs) == 1 else f"{len(outputs)} tensors"
        raise ConversionError(f"{name} must give {wanted}, its graph has the outputs {given}")
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


def _name(module: nn.Module) -> str:
    """What messages call a module: the network's name, where frames or crops are brought to one inside."""
    return type(getattr(module, "network", module)).__name__

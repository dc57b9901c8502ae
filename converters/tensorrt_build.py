"""Build one TensorRT engine. It runs in a process of its own, because the builder may crash on a graph.

It imports what a device has: numpy and the library itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgecv.errors import BackendUnavailable, ConversionError, InputError, one_line
from edgecv.files import sha256, write_file
from edgecv.runtimes.cuda import Gpu, load_cuda
from edgecv.runtimes.engine import FORMAT, EngineRecord, Log, Place, engine_key, import_library
from edgecv.runtimes.layers import Layer, layers_from_json, layers_from_text, precisions
from edgecv.schema import decode, dumps, loads

__all__ = ["BuildRequest", "BuildResult", "TensorRtOptions", "build", "main", "profile_shapes"]

Shape = tuple[int, ...]
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS = ("fp32", "fp16", "int8")
LOWER = {"fp32": (), "fp16": ("fp16", "bf16", "int8", "fp8"), "int8": ("int8", "fp8")}
WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")


@dataclass(frozen=True, slots=True)
class TensorRtOptions:
    """How an engine is built. Its precision is the graph's: TensorRT 11 has no other way, and 10.3 has this one too.

    Args:
        batch: the smallest, usual and largest batch of every input whose first size alone is free. Kernels are chosen
            for the usual one; nothing outside the range runs.
        shapes: for an input with other free sizes, its smallest, usual and largest whole shape.
        precision: what the graph must be in (``fp32``, ``fp16`` or ``int8``), or ``None`` for whatever it is in.
        optimization_level: 0 (builds fast) to 5 (searches longest); ``None`` is the library's own choice.
        workspace_mb: scratch memory that a layer may use at most; ``None`` is all the device has.
        tf32: let fp32 convolutions multiply 10 bits of the mantissa, which TensorRT would do unasked.
        timing_cache: a file of kernel timings, read and written, that makes the next build faster; TensorRT only.
        device: ``"cuda"`` or ``"cuda:N"``.
        timeout_s: give up on a build after this long.
        lint: first ask ``edgecv lint``, where the package ``onnx`` is installed, and start no build of a graph that it
            knows the library to refuse or to misread; ``False`` leaves it to the library.
    """

    batch: tuple[int, int, int] = (1, 1, 16)
    shapes: dict[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)
    precision: Precision | None = None
    optimization_level: int | None = None
    workspace_mb: int | None = None
    tf32: bool = False
    timing_cache: str | None = None
    device: str = "cuda"
    timeout_s: float | None = None
    lint: bool = True

    def __post_init__(self) -> None:
        _check_range("batch", tuple((size,) for size in self.batch), rank=1)
        for name, shapes in self.shapes.items():
            _check_range(f"shapes[{name!r}]", shapes, rank=None)
        if self.precision not in (None, *PRECISIONS):
            raise InputError(f"precision is {', '.join(PRECISIONS)} or None, got {self.precision!r}")
        if self.optimization_level not in (None, *range(6)):
            raise InputError(f"optimization_level is a whole number from 0 to 5 or None, got {self.optimization_level}")
        if self.workspace_mb is not None and (type(self.workspace_mb) is not int or self.workspace_mb < 1):
            raise InputError(f"workspace_mb is a whole number from 1 or None, got {self.workspace_mb!r}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InputError(f"timeout_s is above 0 or None, got {self.timeout_s!r}")

    @property
    def identity(self) -> dict[str, Any]:
        """The options that another engine would come from."""
        names = ("batch", "shapes", "precision", "optimization_level", "workspace_mb", "tf32")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One build: ``held_key`` is the key of an engine that is there already and need not be built again."""

    library: str
    onnx: str
    plan: str
    options: TensorRtOptions
    gpu: Gpu | None
    held_key: str | None = None


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What came of a build: a record where a plan was built, a message where it was not."""

    status: Literal["built", "held", "refused", "wrong_option", "unavailable"]
    message: str = ""
    record: EngineRecord | None = None


def main(arguments: Sequence[str]) -> int:
    """Do what ``request.json`` in the given folder asks; leave the plan, ``result.json`` and ``log.txt`` there."""
    folder = Path(arguments[0])
    where = folder / "request.json"
    request = decode(BuildRequest, loads(where.read_bytes(), str(where)), str(where))
    with (folder / "log.txt").open("w", encoding="utf-8", buffering=1) as stream:
        log = _BuildLog(stream)
        try:
            library = import_library(request.library)
            result = build(library, request, log)
        except ConversionError as error:
            result = BuildResult("refused", str(error))
        except InputError as error:
            result = BuildResult("wrong_option", str(error))
        except (BackendUnavailable, ImportError, OSError) as error:
            result = BuildResult("unavailable", one_line(error))
    write_file(folder / "result.json", dumps(result))
    return 0


def build(library: Any, request: BuildRequest, log: _BuildLog) -> BuildResult:
    """Parse the graph, build the plan and write it to ``request.plan``.

    Args:
        library: the module ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        ConversionError: the parser or the builder refuses the graph, or the engine is not in the graph's precision.
        InputError: an option does not fit the graph.
        BackendUnavailable: the builder cannot start here.
    """
    options, onnx = request.options, Path(request.onnx)
    place = Place.here(request.library, str(library.__version__), request.gpu)
    digest = sha256(onnx)
    key = engine_key(digest, place, options.identity)
    if key == request.held_key:
        return BuildResult("held")
    if options.lint:
        _refuse_unready(onnx, request.library)
    logger = log.logger(library)
    builder = _start(library, request, logger, log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(
        network, logger
    )  # the network's weights lie in it: it must live until the build is done
    _parse(parser, onnx, place, log)
    precision = _graph_precision(network)
    if options.precision not in (None, precision):
        raise ConversionError(
            f"the graph is in {precision}, {options.precision} was asked for: convert the graph itself; "
            "TensorRT builds what the graph says"
        )
    profile = _profile(network, options)
    config = _configure(library, builder, options, profile)
    cache = _use_timing_cache(config, options.timing_cache) if request.library == "tensorrt" else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ConversionError(
            f"{place.library} {place.version} cannot build the graph: {log.reason('no reason given')}"
        )
    del parser
    data = bytes(plan)
    layers = _layers(library, data, request, log)
    check_precision(precision, layers or [])
    if cache is not None:
        write_file(cache, bytes(config.get_timing_cache().serialize()))
    Path(request.plan).write_bytes(data)
    counts = None if layers is None else precisions(layers)
    plan_digest = hashlib.sha256(data).hexdigest()
    record = EngineRecord(
        FORMAT, key, digest, place, options.identity, profile, precision, counts, plan_digest, len(data)
    )
    return BuildResult("built", record=record)


def profile_shapes(name: str, shape: Shape, options: TensorRtOptions) -> tuple[Shape, Shape, Shape] | None:
    """The smallest, usual and largest shape of an input of ``shape`` (-1 where free); ``None`` where all is fixed.

    TensorRT takes any profile without a word and fails much later, so it is checked here.
    """
    given = options.shapes.get(name)
    if given is not None:
        for one in given:
            if len(one) != len(shape) or any(wanted not in (-1, size) for size, wanted in zip(one, shape, strict=True)):
                raise InputError(f"shapes[{name!r}] must fit the graph's {_show(shape)}, got {_show(one)}")
        return given if -1 in shape else None
    if -1 not in shape:
        return None
    if -1 in shape[1:]:
        raise InputError(
            f"input {name!r} has free sizes besides the batch, {_show(shape)}: "
            f"give TensorRtOptions(shapes={{{name!r}: (smallest, usual, largest)}})"
        )
    least, usual, most = ((size, *shape[1:]) for size in options.batch)
    return least, usual, most


def check_precision(precision: str, layers: Sequence[Layer]) -> None:
    """Raise ``ConversionError`` where the graph asks for a low precision and no kernel that counts computes in it.

    An engine whose kernels are all fused into one shows nothing of its inside, and is not judged.
    """
    counted = [layer for layer in layers if layer.weighted]
    if not counted or precision == "fp32" or any(layer.precision in LOWER[precision] for layer in counted):
        return
    raise ConversionError(
        f"the graph is in {precision}, but of the engine's {len(counted)} convolutions and matrix products none is: "
        f"they compute in {', '.join(precisions(counted))}"
    )


class _BuildLog(Log):
    """The log of one build: messages go to a file as they come, so that the last words of a crash are there."""

    def __init__(self, stream: Any) -> None:
        super().__init__(self._write)
        self._stream = stream
        self.layers: str | None = None

    def _write(self, severity: int, message: str) -> None:
        if severity <= 3:
            self._stream.write(f"{'FEWIV'[severity]} {' '.join(message.split())}\n")
        elif message.startswith("Layers:"):
            self.layers = message


def _start(library: Any, request: BuildRequest, logger: Any, log: Log) -> Any:
    if request.gpu is not None and request.gpu.index:
        load_cuda().set_device(request.gpu.index)
    if request.library == "tensorrt":
        library.init_libnvinfer_plugins(logger, "")
    try:
        return library.Builder(logger)
    except TypeError as error:  # the bindings' words for a builder that came back as nothing
        reason = log.reason(str(error))
        raise BackendUnavailable(
            f"{request.library} {library.__version__} cannot start its builder: {reason}"
        ) from error


def _refuse_unready(onnx: Path, library: str) -> None:
    if importlib.util.find_spec("onnx") is None:  # a device without it: the library says what it refuses
        return
    from edgecv.converters.lint import lint

    errors = [item for item in lint(onnx, [library]) if item.severity == "error"]
    if errors:
        told = [f"{item.rule}: {item.message}; mend: {item.mend}" for item in errors[:3]]
        more = f"; and {len(errors) - len(told)} more, which edgecv lint lists" if len(errors) > len(told) else ""
        raise ConversionError(f"the graph is not ready for {library}: {'; '.join(told)}{more}")


def _parse(parser: Any, onnx: Path, place: Place, log: Log) -> None:
    if parser.parse(onnx.read_bytes(), str(onnx)):
        return
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [f"node {error.node_name()!r} ({error.node_operator()}): {error.desc()}" for error in found[:3]]
    reason = "; ".join(" ".join(line.split()) for line in told) or log.reason("no reason given")
    raise ConversionError(f"{place.library} {place.version} refuses the graph: {one_line(reason, 500)}")


def _graph_precision(network: Any) -> str:
    """The lowest precision that the parsed graph asks for. In a strongly typed network its types are binding.

    A convolution or matrix product is int8 where both of its inputs are quantized; with one, it computes in float.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    sources = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    counted = [layer for layer in layers if layer.type.name in WEIGHTED]
    if any(all(_is_quantized(layer.get_input(index), sources) for index in (0, 1)) for layer in counted):
        return "int8"
    if not counted and any(layer.type.name == "QUANTIZE" for layer in layers):
        return "int8"
    types = {layer.get_output(index).dtype.name for layer in counted or layers for index in range(layer.num_outputs)}
    return "fp16" if types & {"HALF", "BF16"} else "fp32"


def _is_quantized(tensor: Any, sources: Mapping[str, Any]) -> bool:
    """Whether a tensor comes out of a DequantizeLinear, perhaps through a change of layout."""
    layer = sources.get(tensor.name) if tensor is not None else None
    while layer is not None and layer.type.name == "SHUFFLE":
        layer = sources.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE"


def _profile(network: Any, options: TensorRtOptions) -> dict[str, tuple[Shape, Shape, Shape]]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    names = [tensor.name for tensor in tensors]
    if unknown := sorted(set(options.shapes) - set(names)):
        raise InputError(f"shapes names the input {unknown[0]!r}; the graph's inputs are: {', '.join(names)}")
    profile = {}
    for tensor in tensors:
        if tensor.is_shape_tensor:
            raise ConversionError(f"input {tensor.name!r} is a shape that other tensors take: make it a constant")
        shapes = profile_shapes(tensor.name, tuple(tensor.shape), options)
        if shapes is not None:
            profile[tensor.name] = shapes
    return profile


def _configure(
    library: Any, builder: Any, options: TensorRtOptions, shapes: Mapping[str, tuple[Shape, Shape, Shape]]
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # else the engine does not tell its precisions
    if options.tf32:
        config.set_flag(library.BuilderFlag.TF32)
    else:
        config.clear_flag(library.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise ConversionError(f"TensorRT refuses the shapes {dict(shapes)}")
    return config


def _use_timing_cache(config: Any, path: str | None) -> Path | None:
    """Start from the timings in the file; from none where it is missing, or of another device or version."""
    if path is None:
        return None
    file = Path(path)
    held = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if held is None or not config.set_timing_cache(held, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return file


def _layers(library: Any, plan: bytes, request: BuildRequest, log: _BuildLog) -> list[Layer] | None:
    """The engine's own account of its layers; without a GPU, which an engine needs to speak, the builder's log."""
    if request.gpu is None:
        return layers_from_text(log.layers) if log.layers else None
    runtime = library.Runtime(log.logger(library))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ConversionError(f"the plan does not open where it was built: {log.reason('no reason given')}")
    text = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
    return layers_from_json(text)


def _check_range(what: str, shapes: Sequence[Shape], rank: int | None) -> None:
    """Three shapes of one rank, sizes from 1, each no smaller than the one before."""
    whole = all(type(size) is int and size >= 1 for shape in shapes for size in shape)
    ranks = {len(shape) for shape in shapes}
    if len(shapes) != 3 or not whole or len(ranks) != 1 or (rank is not None and ranks != {rank}):
        raise InputError(f"{what} is (smallest, usual, largest) in whole numbers from 1, got {_show_all(shapes)}")
    for sizes in zip(*shapes, strict=True):
        if list(sizes) != sorted(sizes):
            raise InputError(f"{what} must not fall from smallest over usual to largest, got {_show_all(shapes)}")


def _show(shape: Shape) -> str:
    return "[" + ", ".join("any" if size == -1 else str(size) for size in shape) + "]"


def _show_all(shapes: Sequence[Shape]) -> str:
    return re.sub(r"\[(\d+)\]", r"\1", ", ".join(map(_show, shapes)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

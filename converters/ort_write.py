"""Have ONNX Runtime write an optimized graph: ``python ort_write.py ort|onnx SOURCE TARGET [CONFIG]``.

Started as a file: ONNX Runtime's tools set up logging and change ``sys.path`` in the process that imports them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime

__all__ = ["main"]

Types = dict[bytes, dict[bytes, list[tuple[int, int]]]]
ALIGNMENT = 16  # at least that of any tensor's data in the file


def main(form: str, source: str, target: str, config: str | None = None) -> None:
    """Write ``source`` optimized; for ORT format, lay the file out anew and list its operators in ``config``."""
    level = onnxruntime.GraphOptimizationLevel
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.optimized_model_filepath = target
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if form == "ort" else level.ORT_ENABLE_EXTENDED
    settings.add_session_config_entry("session.save_model_format", form.upper())
    # NCHWc blocks suit one kind of x86 only; ONNX Runtime's own conversion tool leaves them out too.
    onnxruntime.InferenceSession(
        source, settings, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )
    if config is not None:
        _skip_tools_package()
        path = Path(target)
        path.write_bytes(_laid_out(path.read_bytes()))
        _list_operators(path, Path(config))


def _skip_tools_package() -> None:
    """Make the modules of ``onnxruntime.tools`` importable without its ``__init__``, which imports all of torch."""
    package = ModuleType("onnxruntime.tools")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "tools")]
    sys.modules["onnxruntime.tools"] = package


def _list_operators(model: Path, config: Path) -> None:
    from onnxruntime.tools.ort_format_model import create_config_from_models

    create_config_from_models([model], config, enable_type_reduction=True)
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("#")))  # the comments name this folder


def _laid_out(data: bytes) -> bytes:
    """The same file with its table of operator types in order: ONNX Runtime writes it in that of a hash table.

    FlatBuffers point relatively, and ONNX Runtime writes the model first, at the end: from the model's first byte on,
    the file is taken over as it is.
    """
    import flatbuffers  # type: ignore[import-untyped]
    from onnxruntime.tools import ort_format_model  # noqa: F401  (makes the next package importable)
    from ort_flatbuffers_py import fbs  # type: ignore[import-not-found]

    root = fbs.InferenceSession.InferenceSession.GetRootAs(data)
    place = root.Model()._tab.Pos
    start = min(place, place - int.from_bytes(data[place : place + 4], "little", signed=True))  # the vtable, or itself
    body = bytes(start % ALIGNMENT) + data[start:]
    builder = flatbuffers.Builder(len(body))
    builder.Prep(ALIGNMENT, len(body))
    while builder.head < len(body):
        builder.growByteBuffer()
    builder.head -= len(body)
    builder.Bytes[builder.head : builder.head + len(body)] = body
    model = builder.Offset() - start % ALIGNMENT - (place - start)
    resolver = _write_types(builder, fbs, _types(root.KernelTypeStrResolver()))
    version = builder.CreateString(root.OrtVersion())
    table = fbs.InferenceSession
    table.Start(builder)
    table.AddOrtVersion(builder, version)
    table.AddModel(builder, model)
    table.AddKernelTypeStrResolver(builder, resolver)
    builder.Finish(table.End(builder), b"ORTM")
    return bytes(builder.Output())


def _types(resolver: Any) -> Types:
    """By operator and type name, the arguments (whether inputs or outputs, and their places) that have the type."""
    found = {}
    for i in range(resolver.OpKernelTypeStrArgsLength()):
        operator = resolver.OpKernelTypeStrArgs(i)
        names = [operator.KernelTypeStrArgs(j) for j in range(operator.KernelTypeStrArgsLength())]
        found[operator.OpId()] = {name.KernelTypeStr(): _arguments(name) for name in names}
    return found


def _arguments(name: Any) -> list[tuple[int, int]]:
    arguments = [name.Args(k) for k in range(name.ArgsLength())]
    return [(argument.ArgType(), argument.Index()) for argument in arguments]


def _write_types(builder: Any, fbs: Any, types: Types) -> int:
    operators = []
    for operator, names in sorted(types.items()):
        entries = []
        for name, arguments in sorted(names.items()):
            places = [_table(builder, fbs.ArgTypeAndIndex, ArgType=kind, Index=index) for kind, index in arguments]
            args, text = _vector(builder, places), builder.CreateString(name)
            entries.append(_table(builder, fbs.KernelTypeStrArgsEntry, KernelTypeStr=text, Args=args))
        args, text = _vector(builder, entries), builder.CreateString(operator)
        operators.append(_table(builder, fbs.OpIdKernelTypeStrArgsEntry, OpId=text, KernelTypeStrArgs=args))
    return _table(builder, fbs.KernelTypeStrResolver, OpKernelTypeStrArgs=_vector(builder, operators))


def _table(builder: Any, module: Any, **fields: int) -> int:
    module.Start(builder)
    for name, value in fields.items():
        getattr(module, f"Add{name}")(builder, value)
    end: int = module.End(builder)
    return end


def _vector(builder: Any, tables: list[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    end: int = builder.EndVector()
    return end


if __name__ == "__main__":
    main(*sys.argv[1:])

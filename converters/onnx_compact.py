"""Fewer bytes for a graph whose tensors are small: what its layers, scales and names take counts there."""

from __future__ import annotations

import onnx

__all__ = ["compact"]


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` without shapes that runtimes infer again, with equal constants once and named by number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    numbers: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for constant in graph.initializer:
        name, constant.name = constant.name, ""
        held = constant.SerializeToString(deterministic=True)
        if held not in numbers:
            numbers[held] = f"c{len(numbers)}"
            kept.append(held)
        renamed[name] = numbers[held]
    del graph.initializer[:]
    for held in kept:
        graph.initializer.add().ParseFromString(held)
        graph.initializer[-1].name = numbers[held]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return copy

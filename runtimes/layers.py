"""In which precision the layers of an engine compute, read from what the library tells of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Layer", "layers_from_json", "layers_from_text", "precisions"]

# What TensorRT calls a type, in 10.x within the name of a format ("Row major linear FP16 format"), in 11.x by itself
# ("Half"). From the lowest precision up; the first that a layer touches is the one it computes in.
NAMES = {
    "int8": "Int8",
    "fp8": "FP8",
    "fp16": "FP16|Half",
    "bf16": "BF16|BFP16|BFloat16",
    "fp32": "FP32|Float",
}
PATTERNS = {name: re.compile(rf"(?<![A-Za-z])(?:{pattern})", re.IGNORECASE) for name, pattern in NAMES.items()}
WEIGHTED = re.compile(r"conv|corr|gemm|mat_?mul|matrix_?multiply", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layer:
    """One kernel of an engine.

    Args:
        precision: the lowest one among its inputs and outputs; ``"other"`` where none of them is a number of a network.
        weighted: whether it convolves or multiplies matrices, which is where nearly all of the time goes.
    """

    name: str
    precision: str
    weighted: bool


def layers_from_json(text: str) -> list[Layer]:
    """Layers as the engine inspector describes them in JSON (an engine built with detailed profiling verbosity)."""
    described: list[Any] = json.loads(text).get("Layers", [])
    return [_from_object(item) for item in described if isinstance(item, dict)]


def layers_from_text(text: str) -> list[Layer]:
    """Layers as the builder's log and the inspector describe them in lines: ``Name: …, LayerType: …, Inputs: […]``."""
    found = []
    for line in text.splitlines():
        match = re.match(r"Name: (.*?), LayerType: (\w+), (Inputs: .*)$", line)
        if match is None:
            continue
        name, kind, rest = match.groups()
        without_constants = re.sub(r"Constants: \[.*?\], Outputs:", "Outputs:", rest)
        types = re.findall(r"Data[Tt]ype: (\w+)|Format/Datatype: ([^}]+)", without_constants)
        found.append(_layer(name, kind, rest, (one or other for one, other in types)))
    return found


def precisions(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers compute in which precision, the most frequent first."""
    return dict(Counter(layer.precision for layer in layers).most_common())


def _from_object(item: dict[str, Any]) -> Layer:
    tensors = [tensor for side in ("Inputs", "Outputs") for tensor in item.get(side, []) if isinstance(tensor, dict)]
    types = (str(t.get("Datatype") or t.get("DataType") or t.get("Format/Datatype") or "") for t in tensors)
    more = f"{item.get('ParameterType', '')} {item.get('TacticName', '')} {item.get('Metadata', '')}"
    return _layer(str(item.get("Name", "")), str(item.get("LayerType", "")), more, types)


def _layer(name: str, kind: str, more: str, types: Iterable[str]) -> Layer:
    texts = list(types)
    touched = [known for known, pattern in PATTERNS.items() if any(pattern.search(text) for text in texts)]
    tactic = re.search(r"TacticName: ([^,]*)", more)
    told = f"{kind} {name} {tactic[1] if tactic else more}"
    return Layer(name, touched[0] if touched else "other", bool(WEIGHTED.search(told)))

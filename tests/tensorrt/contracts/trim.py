"""Write the contracts the tests stand on: what NVIDIA's bindings declare of the classes that edgecv touches.

    python tests/tensorrt/contracts/trim.py FOLDER

FOLDER holds a ``contract-VERSION.json`` per set of bindings, dumped from the wheels on PyPI: for each class its bases
(``b``), nested names (``n``), enum members (``e``), methods with their docstring's signatures (``m``), properties and
whether they can be set (``p``), and their types (``pt``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VERSIONS = {
    "10.3.0": "10.3",
    "10.13.3.9": "10.13",
    "10.16.1": "10.16",
    "11.4.0": "11.4",
    "rtx-1.7.1": "rtx-1.7",
}
NAMES = """
    Builder BuilderFlag CudaGraphStrategy DataType Dims EngineInspector ExecutionContextAllocationStrategy
    IBuilderConfig ICudaEngine IExecutionContext IHostMemory ILayer ILogger INetworkDefinition IOptimizationProfile
    IProfiler IRuntimeConfig ITensor ITimingCache LayerInformationFormat LayerType MemoryPoolType
    NetworkDefinitionCreationFlag OnnxParser ParserError ProfilingVerbosity Runtime TensorFormat TensorIOMode
    TensorLocation
"""
FUNCTIONS = ("init_libnvinfer_plugins",)


def trim(contract: dict[str, Any]) -> dict[str, Any]:
    """Keep the classes above; of a network, what reads it and not the hundred methods that build one by hand."""
    classes = {}
    for name in NAMES.split():
        if name in contract["classes"]:
            found = dict(contract["classes"][name])
            methods = {key: value for key, value in found["m"].items() if not key.startswith(("_pybind11", "add_"))}
            if name == "IBuilderConfig":
                methods["add_optimization_profile"] = found["m"]["add_optimization_profile"]
            classes[name] = {**found, "m": methods}
    functions = {name: contract["functions"][name] for name in FUNCTIONS}
    return {"version": contract["version"], "classes": classes, "functions": functions}


def main(folder: Path) -> None:
    for version, short in VERSIONS.items():
        contract = json.loads((folder / f"contract-{version}.json").read_text())
        lines = json.dumps(trim(contract), sort_keys=True, separators=(",", ":"))
        text = lines.replace('},"', '},\n"')
        Path(__file__).with_name(f"{short}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The shape of the repository: layers, public names, light imports, packaging."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgecv

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("edgecv", "converters", "runtimes")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.is_symlink() for part in path.parents)
)
# A module may import from its own layer and those before it.
LAYERS = [
    {"edgecv", "edgecv.errors"},
    {"edgecv.cpu", "edgecv.plugins", "edgecv.progress"},
    {"edgecv.schema", "edgecv.files", "edgecv.tensors"},
    {"edgecv.packing"},
    {"edgecv.preprocess", "edgecv.images"},
    {"edgecv.manifest"},
    {"edgecv.bundle", "edgecv.data"},
    {"edgecv.card", "edgecv.datasets"},
    {"edgecv.runtimes"},
    {"edgecv.pipelines"},
    {"edgecv.evaluation", "edgecv.parity", "edgecv.suspects", "edgecv.tracker_parity", "edgecv.verification"},
    {"edgecv.profiling"},
    {"edgecv.testing"},
    {"edgecv.models"},
    {"edgecv.training"},
    {"edgecv.compression"},
    {"edgecv.converters"},
    {"edgecv.chain"},
    {"edgecv.cli"},
]
TORCH_SIDE = (
    "edgecv.models", "edgecv.training", "edgecv.compression", "edgecv.converters", "edgecv.chain", "edgecv.runtimes.pt",
)  # fmt: skip
HEAVY = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "cv2", "sklearn", "safetensors", "tqdm", "yaml")
RUNTIME_MODULES = {
    "edgecv.runtimes.ort": "onnxruntime",
    "edgecv.runtimes.ort_graphs": "onnxruntime",
    "edgecv.runtimes.ort_providers": "onnxruntime",
    "edgecv.runtimes.ov": "openvino",
    "edgecv.runtimes.ov_quantized": "openvino",
    "edgecv.runtimes.trt": "tensorrt",
    "edgecv.runtimes.trt_rtx": "tensorrt_rtx_bindings",
}
LIBRARY_MODULES = {"edgecv.models.from_timm": "timm", "edgecv.models.from_torchvision": "torchvision"}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "edgecv" else ("edgecv", *parts))
    return name.removesuffix(".__init__")


def _layer(module: str) -> int:
    known = [".".join(module.split(".")[:depth]) for depth in (2, 1)]
    return next(i for name in known for i, layer in enumerate(LAYERS) if name in layer)


def _imports(path: Path) -> set[str]:
    """The edgecv modules that ``path`` imports when it is imported itself."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "edgecv" and name in MODULES}


MODULES = {_module(path): path for path in FILES}


@pytest.mark.parametrize("module", MODULES)
def test_layers_go_one_way(module: str) -> None:
    allowed_up = {"edgecv.runtimes.pt": "edgecv.models"}.get(module, "nothing")
    for other in _imports(MODULES[module]):
        up = _layer(other) > _layer(module)
        assert not up or other.startswith(allowed_up), f"{module} imports {other} from a layer above"


def test_there_are_no_import_cycles() -> None:
    graph = {name: _imports(path) - {name} for name, path in MODULES.items()}
    done: set[str] = set()
    while remaining := graph.keys() - done:
        ready = {name for name in remaining if not (graph[name] - done - _packages_of(name))}
        assert ready, f"a cycle among {sorted(remaining)}"
        done |= ready


def _packages_of(name: str) -> set[str]:
    """The packages a module lies in: importing one of them from inside names a module, not the package's face."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def _natural(name: str) -> tuple[bool, bool, str]:
    """Constants, classes, then functions; numbers in names by their size: ruff's order."""
    return not name.isupper(), name[:1].islower(), re.sub(r"\d+", lambda match: match[0].zfill(6), name)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("edgecv.cli")])
def test_public_names_are_listed_sorted_and_there(module: str) -> None:
    if module.startswith(TORCH_SIDE):
        pytest.importorskip("torch")
        pytest.importorskip("onnx")
    if module in {**RUNTIME_MODULES, **LIBRARY_MODULES}:
        pytest.importorskip({**RUNTIME_MODULES, **LIBRARY_MODULES}[module])
    loaded = importlib.import_module(module)
    names = loaded.__all__
    assert list(names) == sorted(names, key=_natural)
    assert all(hasattr(loaded, name) for name in names)


def test_every_public_name_of_the_package_resolves() -> None:
    pytest.importorskip("torch")
    assert all(getattr(edgecv, name) is not None for name in edgecv.__all__)
    assert set(edgecv.__all__) <= set(dir(edgecv))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgecv.quantise


def _run_without(blocked: tuple[str, ...], code: str) -> str:
    """Run ``code`` in a fresh interpreter where importing ``blocked`` libraries fails as if not installed."""
    finder = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
    done = subprocess.run([sys.executable, "-c", finder + code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_device_side_imports_with_numpy_alone() -> None:
    names = [
        name
        for name in MODULES
        if not name.startswith(TORCH_SIDE) and name not in RUNTIME_MODULES and name != "edgecv.testing"
    ]
    _run_without(HEAVY, "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))


@pytest.mark.parametrize("module", RUNTIME_MODULES)
def test_a_backend_needs_only_its_own_library(module: str) -> None:
    library = RUNTIME_MODULES[module]
    pytest.importorskip(library)
    _run_without(tuple(name for name in HEAVY if name != library), f"import {module}")


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, edgecv; print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "numpy" not in out


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = """
import edgecv
for name in ('train', 'convert', 'save_checkpoint'):
    try:
        getattr(edgecv, name)
    except edgecv.BackendUnavailable as error:
        print(error)
"""
    lines = _run_without(("torch", "onnx", "safetensors"), code).splitlines()
    assert len(lines) == 3
    assert all("pip install 'edgecv[" in line for line in lines)


def test_the_package_list_is_true() -> None:
    listed = set(_pyproject()["tool"]["setuptools"]["packages"])
    assert listed == {name for name, path in MODULES.items() if path.name == "__init__.py"}


def test_the_links_are_relative_and_lead_to_the_real_folders() -> None:
    for name in ("converters", "runtimes"):
        link = ROOT / "edgecv" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_versions_and_extras_are_true() -> None:
    project = _pyproject()["project"]
    assert project["version"] == edgecv.__version__
    extras = project["optional-dependencies"]
    wanted = {"train", "convert", "vision", "onnxruntime", "openvino", "tensorrt", "profile", "dev", "all"}
    unpinned = {"tensorrt", "tensorrt-rtx", *LIBRARY_MODULES.values()}
    assert set(extras) == wanted | unpinned
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for extra, needs in extras.items():
        names = {_requirement(need) for need in needs} - {"edgecv"}
        assert extra in unpinned or names <= pins, f"{extra}: {names - pins} have no pin in constraints.txt"


def _requirement(text: str) -> str:
    return text.replace("[", " ").replace("=", " ").replace(">", " ").replace("<", " ").split()[0]


def _pyproject() -> dict[str, Any]:
    tomllib: Any = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return parsed


@pytest.mark.parametrize("path", FILES, ids=lambda path: _module(path))
def test_code_is_small_and_runs_on_python_3_10(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text, feature_version=(3, 10))
    assert text.count("\n") <= 500
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno <= 80, f"{node.name} is too long"


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    home = str(Path.home())
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            assert str(ROOT).encode() + b"/" not in text, name
            assert home.encode() + b"/" not in text, name

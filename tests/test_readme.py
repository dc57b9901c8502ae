"""The README: its examples run as written, and its figures are those of the programs."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.cli.main import main
from tests.conftest import require

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def _everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "onnx", "onnxruntime", "openvino", "sklearn", "opencv"):
        require(name)
    monkeypatch.chdir(tmp_path)


def test_the_python_examples_run(tmp_path: Path) -> None:
    """Pasted one after another, with one epoch instead of many."""
    names: dict[str, Any] = {}
    for block in _blocks("python"):
        exec(re.sub(r"epochs=\d+", "epochs=1, warmup_epochs=0", block), names)  # noqa: S102  (our own text)
    assert (tmp_path / "out" / "digits" / "manifest.json").is_file()
    assert (tmp_path / "out" / "onnxruntime.json").is_file()
    assert names["best"].label in "0123456789"


def test_the_command_line_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((20, 30, 3), np.uint8))
    lines = [line for block in _blocks("sh") for line in block.splitlines() if line.startswith("edgecv ")]
    assert len(lines) == 9
    for line in lines:
        argv = shlex.split(line, comments=True)[1:]
        quick = [{"epochs=16": "epochs=1", "5": "0.2"}.get(arg, arg) for arg in argv]
        if quick[0] == "train":
            quick.append("warmup_epochs=0")
        assert main(quick) == 0, (line, capsys.readouterr().err)


def _program(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules[name] = program  # dataclasses look their module up
    spec.loader.exec_module(program)
    return program


@pytest.mark.parametrize("name", ["compression", "interface_cost", "zoo_accuracy"])
def test_the_tables_are_those_that_were_measured(name: str) -> None:
    program = _program(name)
    assert program.readme_table(json.loads(program.RESULTS.read_text())) in README


def test_the_figures_are_those_that_were_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "interface_cost.json").read_text())
    for milliseconds in (results["import_seconds"]["import edgecv"], results["import_seconds"]["import numpy"]):
        assert f"{milliseconds * 1e3:.0f} ms" in README
    runs = json.loads((ROOT / "benchmarks" / "results" / "cifar_training.json").read_text())["runs"]
    for run in runs.values():
        assert f"{100 * run['test']['top1']:.1f} %" in README
    assert "@" not in README


def test_every_file_it_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`([a-z_/]+\.py)`", README):
        assert [path for path in ROOT.rglob(Path(name).name) if ".venv" not in path.parts], name

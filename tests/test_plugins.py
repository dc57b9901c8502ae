"""Tables of names, and the packages that extend them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgecv
from edgecv.cli.main import main
from edgecv.errors import BackendUnavailable, InputError
from edgecv.plugins import Table, unknown
from edgecv.runtimes.registry import BACKENDS, availability

PLUGIN = """
import numpy as np
from edgecv.runtimes.session import Session
from edgecv.tensors import TensorSpec


class TextSession(Session):
    '''Adds the number in a .add file.'''

    backend = "adder"
    suffixes = (".add",)

    def __init__(self, path, options):
        spec = TensorSpec("x", "float32", (None,))
        super().__init__([spec], [TensorSpec("y", "float32", (None,))], options)
        self._number = float(path.read_text())

    @classmethod
    def open(cls, path, options):
        return cls(path, options)

    def _run(self, inputs):
        return {"y": inputs["x"] + np.float32(self._number)}


class Broken:
    pass


raise_on_import = 0
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that adds one good backend, one whose library is missing and one that is broken."""
    (tmp_path / "adder.py").write_text(PLUGIN)
    (tmp_path / "lacking.py").write_text("import a_library_nobody_has\n")
    (tmp_path / "broken.py").write_text("raise ImportError('libnothing.so.1: cannot open shared object file')\n")
    info = tmp_path / "adder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgecv.runtimes]\nadder = adder:TextSession\nlacking = lacking:X\nbroken = broken:X\n"
        "onnxruntime = adder:Broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("adder", None)


def test_another_packages_backend_is_one_of_ours(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert BACKENDS.names()[-3:] == ("adder", "lacking", "broken")
    (plugin / "two.add").write_text("2")
    with edgecv.open_session(plugin / "two.add") as session:
        assert session.backend == "adder"
        assert "first installed backend for .add files" in session.reason
        assert session.run({"x": np.ones(3, np.float32)})["y"].tolist() == [3, 3, 3]
        with pytest.raises(InputError, match=r"takes float32\[any\]"):
            session.run({"x": np.ones(3)})
    assert main(["doctor"]) == 0
    assert "adder" in capsys.readouterr().out


def test_another_package_cannot_take_a_built_in_name(plugin: Path) -> None:
    assert BACKENDS.names().count("onnxruntime") == 1
    assert BACKENDS._entries()["onnxruntime"].value == "edgecv.runtimes.ort:OrtSession"


def test_a_missing_library_is_named_with_what_to_install(plugin: Path) -> None:
    found = availability("lacking")
    assert not found.available
    assert "'a_library_nobody_has', which is not installed: pip install 'edgecv[lacking]'" in found.reason


def test_a_broken_library_does_not_hide_the_others(plugin: Path) -> None:
    found = availability("broken")
    assert not found.available
    assert found.reason.startswith("installed but broken: libnothing.so.1")


def test_unknown_names_come_with_a_guess() -> None:
    table = Table("model", "edgecv.nothing", {"mobilenet_v2": "a:b"})
    with pytest.raises(InputError, match=r"unknown model 'mobilnet'; did you mean 'mobilenet_v2'\? \(known: mob"):
        table.load("mobilnet")
    assert unknown("verb", "x", []) == "unknown verb 'x' (known: none)"


def test_an_error_inside_edgecv_is_not_called_a_missing_library() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"edgecv\.nowhere"):
        Table("thing", "edgecv.nothing", {"x": "edgecv.nowhere:Y"}).load("x")
    with pytest.raises(BackendUnavailable, match="'nowhere_else'"):
        Table("thing", "edgecv.nothing", {"x": "nowhere_else:Y"}).load("x")

"""The demo: the whole way of the data in a small run, twice."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgecv.bundle import Bundle
from edgecv.cli.main import main
from tests.conftest import require


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``edgecv demo`` with three epochs leaves; too few for the accuracy gate."""
    for name in ("torch", "onnx", "onnxruntime", "openvino", "sklearn"):
        require(name)
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--out", str(out), "--epochs", "2", "--duration", "0.3"]) == 1
    return out


def test_a_gate_that_fails_is_said_and_everything_is_written(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert set(results) == {"torch", "onnxruntime", "openvino"}
    assert set(Bundle.load(demo / "bundle").manifest.variants) == {"onnx-fp32", "openvino-fp32"}
    assert sorted(path.name for path in demo.iterdir()) == [
        "bundle",
        "profiles",
        "report.html",
        "results.json",
        "train",
    ]


def test_a_second_run_gives_the_same_bundle(demo: Path) -> None:
    before = Bundle.load(demo / "bundle").sha256
    assert main(["demo", "--out", str(demo), "--epochs", "2", "--duration", "0.2"]) == 1
    assert Bundle.load(demo / "bundle").sha256 == before


def test_the_report_is_one_well_formed_page_that_loads_nothing(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    checker = _Tags()
    checker.feed(page)
    assert checker.open == []
    assert not checker.loads
    assert all(name in page for name in ("torch", "onnxruntime", "openvino", "p99 ms", "What this does not show"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class _Tags(HTMLParser):
    """Follows which tags are open, and collects what would be loaded from elsewhere."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [f"{tag} {key}" for key, _ in attrs if key in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

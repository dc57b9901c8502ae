"""What a CPU has for int8, as Linux and macOS tell it, and what a warning says."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

import edgecv.cpu
from edgecv.cli.main import main
from edgecv.cpu import read_cpu, warn_if_saturating

ZEN3 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\nmodel name\t: other\n"
ICE_LAKE = "model name\t: Xeon\nflags\t: avx2 avx512f avx512_vnni\n"
ALDER_LAKE = "model name\t: Core i5\nflags\t: avx2 avx_vnni\n"
SAPPHIRE = "model name\t: Xeon\nflags\t: avx2 avx512_vnni avx_vnni amx_int8\n"
PI5 = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Raspberry Pi 5\n"
PI4 = "processor\t: 0\nFeatures\t: fp asimd\n\nModel\t\t: Raspberry Pi 4\n"


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make this machine one with the given /proc/cpuinfo."""

    def become(text: str, architecture: str = "x86_64") -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(edgecv.cpu, "CPUINFO", path)
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: architecture)

    return become


@pytest.mark.parametrize(
    ("text", "architecture", "model", "held", "saturates"),
    [
        (ZEN3, "x86_64", "AMD EPYC 7763", {"avx2"}, True),
        (ICE_LAKE, "x86_64", "Xeon", {"avx2", "avx512_vnni"}, False),
        (ALDER_LAKE, "AMD64", "Core i5", {"avx2", "avx_vnni"}, False),
        (SAPPHIRE, "x86_64", "Xeon", {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"}, False),
        (PI5, "aarch64", "Raspberry Pi 5", {"dot_product"}, False),
        (PI4, "aarch64", "Raspberry Pi 4", set(), False),
    ],
)
def test_linux_says_what_a_cpu_has(
    linux: Any, text: str, architecture: str, model: str, held: set[str], saturates: bool
) -> None:
    linux(text, architecture)
    found = read_cpu()
    assert (found.architecture, found.model, found.saturates) == (architecture, model, saturates)
    facts = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "dot_product", "i8mm")
    assert {fact for fact in facts if getattr(found, fact)} == held
    assert all(getattr(found, fact) is not None for fact in facts)


def test_a_line_says_whether_eight_bits_are_safe(linux: Any) -> None:
    linux(ZEN3)
    assert str(read_cpu()) == "AVX2; no VNNI: 8-bit weights can saturate, 7-bit weights cannot"
    linux(ICE_LAKE)
    assert str(read_cpu()) == "AVX2, AVX512-VNNI"
    linux(PI4, "aarch64")
    assert str(read_cpu()) == "none of its own"


APPLE = {"machdep.cpu.brand_string": "Apple M2", "hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "1"}
INTEL = {
    "machdep.cpu.brand_string": "Core i7",
    "machdep.cpu.features": "FPU SSE4.2",
    "machdep.cpu.leaf7_features": "AVX2",
}


@pytest.mark.parametrize(
    ("answers", "architecture", "saturates", "dot_product"),
    [(APPLE, "arm64", False, True), (INTEL, "x86_64", True, False)],
)
def test_macos_says_what_a_cpu_has(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], architecture: str, saturates: bool, dot_product: bool
) -> None:
    def ask(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, stdout=answers.get(command[-1], "") + "\n")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(subprocess, "run", ask)
    found = read_cpu()
    assert found.model == answers["machdep.cpu.brand_string"]
    assert (found.saturates, found.dot_product) == (saturates, dot_product)


def test_where_the_system_does_not_say_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    found = read_cpu()
    assert (found.saturates, found.avx2, found.model) == (None, None, None)
    assert str(found) == "not readable"
    warn_if_saturating("model.onnx", '["conv"]')


@pytest.mark.parametrize("layers", ["", "[]", "not json", '{"a": 1}', "7"])
def test_a_file_that_names_no_layer_gives_no_warning(linux: Any, layers: str) -> None:
    linux(ZEN3)
    warn_if_saturating("model.onnx", layers)


def test_the_warning_says_what_to_do(linux: Any) -> None:
    linux(ZEN3)
    with pytest.warns(UserWarning, match=r"model.onnx: 2 layers .*'a' first.* no VNNI.*to 7 bits"):
        warn_if_saturating("model.onnx", '["a", "b"]')


def test_the_doctor_says_it_in_a_line_and_in_json(linux: Any, capsys: pytest.CaptureFixture[str]) -> None:
    linux(ZEN3)
    assert main(["doctor"]) == 0
    assert "int8          AVX2; no VNNI" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cpu"]
    assert (found["model"], found["avx2"], found["avx_vnni"], found["saturates"]) == (
        "AMD EPYC 7763",
        True,
        False,
        True,
    )

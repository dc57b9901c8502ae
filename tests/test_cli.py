"""The command line as a person meets it: verbs, output, exit statuses, one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecv.cli.common import key_values, table
from edgecv.cli.main import VERBS, main
from edgecv.errors import InputError
from tests.conftest import require

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def edgecv(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; returns status, stdout and stderr."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where ``train`` and ``convert`` have run once: ``run/best.safetensors`` and ``bundle/``."""
    for name in ("torch", "onnx", "onnxruntime", "openvino", "sklearn", "opencv"):
        require(name)
    folder = tmp_path_factory.mktemp("cli")
    options = ["--model", "squeezenet1_1", "--option", "stem=small", "--size", "32", "epochs=1", "warmup_epochs=0"]
    assert main(["train", "digits", "--out", str(folder / "run"), *options]) == 0
    convert = ["convert", str(folder / "run" / "best.safetensors"), "--samples", "digits", "--limit", "8"]
    assert main([*convert, "--out", str(folder / "bundle")]) == 0
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture file."""
    require("opencv")
    import cv2

    path = tmp_path_factory.mktemp("photo") / "picture.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0
    assert f"edgecv {verb} " in capsys.readouterr().out.partition("example:")[2]


def test_the_verbs_are_listed(edgecv: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = edgecv()
    assert status == 2
    assert all(f"  {verb} " in out for verb in VERBS)


def test_listing_the_verbs_imports_nothing_heavy() -> None:
    code = "import sys, edgecv.cli.main as m; m.main([]); print(sorted({'torch', 'onnx', 'cv2'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_doctor_lists_every_backend(edgecv: Run) -> None:
    status, out, _ = edgecv("doctor", "--json")
    found = json.loads(out)
    assert status == 0
    assert {"onnxruntime", "openvino", "torch"} <= {item["backend"] for item in found["backends"]}
    assert found["machine"]["cores"] >= 1
    assert edgecv("doctor")[0] == 0


def test_models_are_counted(edgecv: Run) -> None:
    require("torch")
    status, out, _ = edgecv("models", "--json")
    assert status == 0
    assert json.loads(out)["models"]["mobilenet_v2"] == {
        "size": [224, 224], "parameters": 3504872, "macs": 300774272,
    }  # fmt: skip


def test_a_checkpoint_and_a_bundle_agree(edgecv: Run, work: Path) -> None:
    scores = []
    for model, backend in (("run/best.safetensors", "auto"), ("bundle", "onnxruntime"), ("bundle", "openvino")):
        status, out, _ = edgecv("evaluate", work / model, "--data", "digits", "--backend", backend, "--json")
        assert status == 0
        scores.append(json.loads(out)["accuracy"])
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]["samples"] == 360


def test_verify_compares_with_the_checkpoint(edgecv: Run, work: Path) -> None:
    against = ("--against", work / "run/best.safetensors")
    status, out, _ = edgecv("verify", work / "bundle", "--samples", "digits", "--limit", 5, *against, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["ok"]
    assert set(found["gates"]) == {"onnx-fp32", "openvino-fp32"}


def test_verify_fails_against_another_network(edgecv: Run, work: Path, tmp_path: Path) -> None:
    from edgecv.models import create, save_checkpoint
    from edgecv.preprocess import Preprocess

    other = tmp_path / "other.safetensors"
    save_checkpoint(create("squeezenet1_1", num_classes=10, stem="small"), other, preprocess=Preprocess(size=(32, 32)))
    status, out, _ = edgecv("verify", work / "bundle", "--samples", "digits", "--limit", 5, "--against", other)
    assert status == 1
    assert "DIFFERS" in out


def test_run_names_what_it_sees(edgecv: Run, work: Path, photo: Path) -> None:
    status, out, _ = edgecv("run", work / "bundle", photo, photo, "--top", 3, "--json")
    answers = json.loads(out)
    assert status == 0
    assert [len(answer["guesses"]) for answer in answers] == [3, 3]
    assert edgecv("run", work / "bundle", photo)[1].startswith(f"{photo}: ")


def test_profile_writes_its_samples(edgecv: Run, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    status, text, _ = edgecv("profile", work / "bundle", "--duration", 0.2, "--threads", 1, "--out", out)
    assert status == 0
    assert "latency p50" in text
    written = json.loads(out.read_text())
    assert written["samples_ms"]
    assert written["conditions"]["threads"] == 1


def test_inspect_shows_bundles_checkpoints_and_files(edgecv: Run, work: Path) -> None:
    assert "every file intact" in edgecv("inspect", work / "bundle")[1]
    assert "squeezenet1_1" in edgecv("inspect", work / "run/best.safetensors")[1]
    assert "uint8[any, 32, 32, 3]" in edgecv("inspect", work / "bundle/onnx-fp32/model.onnx")[1]
    assert json.loads(edgecv("inspect", work / "bundle", "--json")[1])["manifest"]["format"] == 1


def test_a_finished_run_is_not_trained_again(edgecv: Run, work: Path) -> None:
    before = (work / "run/best.safetensors").read_bytes()
    options = ["--model", "squeezenet1_1", "--option", "stem=small", "--size", "32", "epochs=1", "warmup_epochs=0"]
    assert edgecv("train", "digits", "--out", work / "run", *options)[0] == 0
    assert (work / "run/best.safetensors").read_bytes() == before


def _bad_inputs(work: Path, photo: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    """Wrong command lines, and what their one line must say."""
    text = tmp_path / "text.onnx"
    text.write_text("this is not a graph")
    cut = tmp_path / "cut.png"
    cut.write_bytes(photo.read_bytes()[:60])
    flipped = tmp_path / "flipped"
    shutil.copytree(work / "bundle", flipped)
    data = bytearray((flipped / "onnx-fp32/model.onnx").read_bytes())
    data[1000] ^= 1
    (flipped / "onnx-fp32/model.onnx").write_bytes(data)
    empty = tmp_path / "empty"
    empty.mkdir()
    checkpoint, bundle = work / "run/best.safetensors", work / "bundle"
    return {
        "unknown verb": (["trian"], "did you mean 'train'"),
        "no argument": (["run"], "required"),
        "unknown option": (["doctor", "--fast"], "--fast"),
        "unknown model": (["train", "digits", "--model", "mobilnet_v2", "--out", tmp_path / "t"], "mobilenet_v2"),
        "unknown setting": (["train", "digits", "--out", tmp_path / "t", "epoch=3"], "epochs"),
        "setting of the wrong type": (["train", "digits", "--out", tmp_path / "t", "epochs=many"], "whole number"),
        "folder without classes": (["train", empty, "--out", tmp_path / "t"], "no sub-folders"),
        "missing folder": (["train", tmp_path / "none", "--out", tmp_path / "t"], "does not exist"),
        "occupied run folder": (["train", "digits", "--out", work], "not empty"),
        "missing checkpoint": (
            ["convert", tmp_path / "no.safetensors", "--samples", "digits", "--out", empty],
            "exist",
        ),
        "no samples": (["convert", checkpoint, "--out", tmp_path / "b"], "--samples"),
        "occupied output": (["convert", checkpoint, "--samples", "digits", "--out", bundle], "not empty"),
        "unknown backend": (["evaluate", bundle, "--data", "digits", "--backend", "openvin"], "openvino"),
        "backend to convert for": (
            ["convert", checkpoint, "--samples", "digits", "--backends", "ort", "--out", tmp_path / "b"],
            "onnxruntime",
        ),
        "missing bundle": (["inspect", tmp_path / "none"], "does not exist"),
        "flipped byte": (["inspect", flipped], "was changed"),
        "not a bundle": (["verify", empty, "--samples", "digits"], "manifest.json"),
        "not ONNX": (["profile", text], "cannot open"),
        "missing image": (["run", bundle, tmp_path / "none.png"], "cannot read"),
        "truncated image": (["run", bundle, cut], "cut short"),
        "zero duration": (["profile", bundle, "--duration", "0"], "duration_s"),
        "zero threads": (["profile", bundle, "--threads", "0"], "threads"),
    }


def test_bad_input_is_one_line_and_status_2(edgecv: Run, work: Path, photo: Path, tmp_path: Path) -> None:
    for what, (argv, telling) in _bad_inputs(work, photo, tmp_path).items():
        status, out, err = edgecv(*argv)
        assert (status, out) == (2, ""), what
        assert err.startswith("edgecv: "), what
        assert err.count("\n") == 1, (what, err)
        assert telling in err, (what, err)
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "t").exists()


def test_a_missing_library_is_named(edgecv: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import edgecv.cli.doctor as doctor

    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(doctor, "run", run)
    status, _, err = edgecv("doctor")
    assert status == 2
    assert "'torch', which is not installed: pip install" in err


def test_settings_are_json_where_they_can_be() -> None:
    assert key_values(["a=1", "b=0.5", "c=true", "d=text", "e="], "settings") == {
        "a": 1, "b": 0.5, "c": True, "d": "text", "e": "",
    }  # fmt: skip
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError, match="settings"):
            key_values(wrong, "settings")


def test_tables_align_numbers_to_the_right() -> None:
    assert table([("a", "1.5"), ("bcd", "10.5")], ("x", "n")) == "x       n\n---  ----\na     1.5\nbcd  10.5"

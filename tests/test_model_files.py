"""Broken model files: each opens, or is refused in one line; none ends the process, and nothing else is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgecv
from edgecv.errors import InputError
from edgecv.testing import TINY_MODELS
from tests.conftest import require

# Runs in a process of its own, so that a crash of a runtime's parser is told apart from a refusal.
DAMAGE_AND_OPEN = """
import json, random, sys
from pathlib import Path
import edgecv
from edgecv.errors import EdgeCVError
from edgecv.profiling.measure import example_inputs

backend, source, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
whole = source.read_bytes()
target = source.with_name('broken' + source.suffix)
if source.suffix == '.xml':
    target.with_suffix('.bin').write_bytes(source.with_suffix('.bin').read_bytes())
tally = {'ran': 0, 'refused': 0}
for seed in range(count):
    chance, data = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        kind, place = chance.randrange(5), chance.randrange(len(data))
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.randrange(256)
        elif kind == 2:
            del data[place:place + chance.randrange(1, 50)]
        elif kind == 3:
            data[place:place] = chance.randbytes(chance.randrange(1, 20))
        else:
            del data[place:]
        if not data:
            break
    target.write_bytes(data)
    try:
        with edgecv.open_session(target, backend=backend, threads=1) as session:
            small = all(spec.shape is not None and all((s or 1) < 300 for s in spec.shape) for spec in session.inputs)
            if small:
                session.run(example_inputs(session.inputs))
            tally['ran'] += 1
    except EdgeCVError as error:
        assert '\\n' not in str(error), (seed, error)
        tally['refused'] += 1
print(json.dumps(tally))
"""


def _write(backend: str, suffix: str, folder: Path) -> Path:
    require("onnx")
    require(backend)
    path = TINY_MODELS["conv_relu"].write(folder)
    if suffix == ".xml":
        import openvino

        openvino.save_model(openvino.Core().read_model(str(path)), str(path.with_suffix(suffix)))
    if suffix == ".ort":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.optimized_model_filepath = str(path.with_suffix(suffix))
        settings.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return path.with_suffix(suffix)


@pytest.mark.parametrize(
    ("backend", "suffix"),
    [("onnxruntime", ".onnx"), ("onnxruntime", ".ort"), ("openvino", ".onnx"), ("openvino", ".xml")],
)
def test_damage_is_refused_or_harmless(tmp_path: Path, backend: str, suffix: str) -> None:
    path = _write(backend, suffix, tmp_path)
    command = [sys.executable, "-c", DAMAGE_AND_OPEN, backend, str(path), "300"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stderr == ""
    tally = json.loads(found.stdout)
    assert tally["ran"] + tally["refused"] == 300
    assert tally["refused"] > 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.onnx", b""),
        ("a.onnx", b"\0" * 9),
        ("a.onnx", b"PK\3\4"),
        ("a.xml", b""),
        ("a.xml", b"<net/>"),
        ("a.ort", b"x"),
    ],
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_is_no_model_is_refused(tmp_path: Path, backend: str, name: str, content: bytes) -> None:
    require(backend)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        edgecv.open_session(tmp_path / name, backend=backend)
    assert "\n" not in str(raised.value)


def test_an_xml_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = _write("openvino", ".xml", tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match="bin file cannot be found"):
        edgecv.open_session(path)


def test_a_graph_that_fails_only_when_it_runs_is_refused_then(tmp_path: Path) -> None:
    """Five items cannot be reshaped to rows of two; no runtime can know before it runs."""
    require("onnx")
    import numpy as np
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n"])],
        [helper.make_tensor_value_info("y", 1, ["m", 2])],
        [onnx.numpy_helper.from_array(np.array([-1, 2]), "shape")],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    for backend in ("onnxruntime", "openvino"):
        require(backend)
        with edgecv.open_session(path, backend=backend) as session:
            assert session.run({"x": np.ones(4, np.float32)})["y"].shape == (2, 2)
            with pytest.raises(InputError, match="could not run the graph") as raised:
                session.run({"x": np.ones(5, np.float32)})
            assert "\n" not in str(raised.value)
            assert session.run({"x": np.ones(6, np.float32)})["y"].shape == (3, 2)

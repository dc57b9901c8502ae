"""Compression chains: what a recipe may say, what is done again and what is not, and the page at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "sklearn", "torch_pruning", "opencv"):
    require(_library)

import torch  # noqa: E402  (after the check that it is there)
from torch import Tensor, nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Bundle, Compression, Preprocess, models  # noqa: E402
from edgecv.chain.layers import values_of  # noqa: E402
from edgecv.chain.recipe import read_chain  # noqa: E402
from edgecv.chain.running import _Measured  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.data import digits  # noqa: E402
from edgecv.errors import BackendUnavailable, InputError  # noqa: E402
from edgecv.models.recipe import ARCHITECTURES  # noqa: E402
from edgecv.profiling.charts import Point, bars, scatter  # noqa: E402

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PRUNE = {"macs_ratio": 0.6, "importance": "l2", "scope": "uniform"}
QUANTIZE = {"rounding": "nearest"}
NAMES = ("1-prune", "2-quantize")


class Tiny(nn.Module):
    """Four layers that can lose channels: exports take as long as there are layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, padding=1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.deep(self.wide(self.stem(image))).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


@pytest.fixture(scope="module", autouse=True)
def _architecture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cast(dict[str, str], ARCHITECTURES.builtin), "tiny", f"{__name__}:Tiny")
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits of each class, so that nothing takes long."""
    import cv2

    folder, held = tmp_path_factory.mktemp("images"), digits("test")
    for label in range(10):
        (folder / str(label)).mkdir()
        for index in [place for place, target in enumerate(held.targets) if target == label][:3]:
            cv2.imwrite(str(folder / str(label) / f"{index}.png"), held[index][0])
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = models.create("tiny").eval()
    path = tmp_path_factory.mktemp("start") / "net.safetensors"
    edgecv.save_checkpoint(network, path, preprocess=PREPROCESS, labels=digits("test").labels)
    return path


@pytest.fixture
def recipe(checkpoint: Path, images: Path) -> dict[str, Any]:
    """Pruned and quantized, measured for as short as can be."""
    return {
        "model": str(checkpoint),
        "data": {"test": str(images), "calibration": str(images), "limit": 8},
        "steps": [{"prune": dict(PRUNE)}, {"quantize": dict(QUANTIZE)}],
        "measure": {"backends": ["onnxruntime"], "seconds": 0.01},
    }


@pytest.fixture(scope="module")
def compression(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Compression:
    """A chain that has run to its end."""
    out = tmp_path_factory.mktemp("finished") / "small"
    steps = [{"prune": PRUNE}, {"quantize": QUANTIZE}]
    convert = {"backends": ["onnxruntime"], "precisions": ["int8"]}
    data = {"test": str(images), "calibration": str(images), "limit": 8}
    measure = {"backends": ["onnxruntime"], "seconds": 0.01}
    recipe = {"model": str(checkpoint), "data": data, "steps": steps, "convert": convert, "measure": measure}
    return edgecv.compress(recipe, out)


@pytest.fixture
def finished(compression: Compression) -> Path:
    """Its folder."""
    return compression.report.parent


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that end with their last step: what follows is not what the test is about."""
    monkeypatch.setattr("edgecv.chain.running._Job.measure", lambda *_: _Measured([], None, None, []))
    monkeypatch.setattr("edgecv.chain.running._write", lambda *_: None)


def _kill_at(stage: str) -> Callable[[str, float, float], None]:
    def progress(name: str, done: float, total: float) -> None:
        if name == stage:
            raise KeyboardInterrupt

    return progress


def test_a_chain_leaves_its_networks_a_bundle_and_its_recipe(finished: Path) -> None:
    held = {path.name for path in finished.iterdir()}
    files = {f"{name}.{suffix}" for name in NAMES for suffix in ("safetensors", "json")}
    assert held == files | {"bundle", "bundle.json", "profiles", "recipe.json", "report.html", "results.json"}
    assert list(Bundle.load(finished / "bundle").manifest.variants) == ["onnx-int8"]
    resolved = read_chain(finished / "recipe.json").resolved()
    assert resolved == json.loads((finished / "recipe.json").read_text())
    assert resolved["steps"][0]["prune"]["round_to"] == 8


def test_the_command_line_prints_every_step(compression: Compression, monkeypatch: Any, capsys: Any) -> None:
    assert compression.done == NAMES
    monkeypatch.setattr(edgecv, "compress", lambda *_, **__: compression)
    assert main(["compress", "recipe.yaml", "--out", "small"]) == 0
    printed = capsys.readouterr().out
    told = ("start", *NAMES, "onnx-int8", "onnxruntime, ms", "top-1", "report: ", "bundle: ", "checkpoint: ")
    assert all(name in printed for name in told)


def test_the_page_has_every_step_and_loads_nothing(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for name in ("start", *NAMES, "onnx-int8", "one thread", "95 % interval", "stem.0"):
        assert name in page
    assert page.count("<figure>") == 6
    assert not [word for word in ("<script", "http:", "https:", "src=", "nan", "@import") if word in page.lower()]


def test_the_figures_say_what_became_smaller(finished: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    start, pruned, quantized, *variants = found["rows"]
    assert start["macs"] > pruned["macs"] == quantized["macs"]
    assert start["size_bytes"] > pruned["size_bytes"] > 2 * quantized["size_bytes"]
    assert start["latency"]["onnxruntime"]["ratio"] == 1
    assert [row["name"] for row in variants] == ["onnx-int8"]
    assert {row["layer"] for row in found["layers"]["layers"]} == {"stem.0", "wide.0", "deep.0", "head"}


def test_a_finished_chain_is_only_measured_again(
    compression: Compression, finished: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    rows = {row.name: row for row in compression.rows}
    monkeypatch.setattr("edgecv.chain.running.Measurer.network", lambda _, name, network: rows[name])
    monkeypatch.setattr("edgecv.chain.running._Job._layers", lambda *_: (compression.layers, []))
    out = tmp_path / finished.name
    shutil.copytree(finished, out)
    bundle = Bundle.load(out / "bundle").sha256
    assert main(["compress", str(finished / "recipe.json"), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] == []
    assert Bundle.load(out / "bundle").sha256 == bundle
    assert found == json.loads((out / "results.json").read_text())
    assert (out / "report.html").is_file()


@pytest.mark.usefixtures("unmeasured")
def test_a_killed_chain_goes_on_where_it_was(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        edgecv.compress(recipe, tmp_path / "out", progress=_kill_at("calibrate"))
    held = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert held == ["1-prune.json", "1-prune.safetensors", "recipe.json"]
    assert edgecv.compress(recipe, tmp_path / "out").done == ("2-quantize",)


@pytest.mark.usefixtures("unmeasured")
def test_an_edited_step_is_done_again_with_those_after_it_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    edgecv.compress(recipe, out)
    recipe["steps"][1] = {"quantize": {**QUANTIZE, "weight_bits": 8}}
    assert edgecv.compress(recipe, out).done == ("2-quantize",)
    recipe["steps"][1] = {"cluster": {"bits": 4}}
    assert edgecv.compress(recipe, out).done == ("2-cluster",)
    assert not (out / "2-quantize.safetensors").exists()
    recipe["steps"][0]["prune"]["macs_ratio"] = 0.8
    assert edgecv.compress(recipe, out).done == ("1-prune", "2-cluster")


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", ["1-prune.safetensors", "1-prune.json"])
def test_a_damaged_file_of_a_step_is_made_again(recipe: dict[str, Any], name: str, tmp_path: Path) -> None:
    recipe["steps"] = recipe["steps"][:1]
    edgecv.compress(recipe, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{")
    assert edgecv.compress(recipe, tmp_path / "out").done == ("1-prune",)


@pytest.mark.usefixtures("unmeasured")
def test_training_goes_on_after_its_last_epoch_and_learns_from_the_start(
    recipe: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    recipe["data"]["train"] = str(images)
    recipe["steps"] = [{"prune": dict(PRUNE)}, {"train": {"epochs": 2, "distill": True}}]
    steps: list[float] = []

    def progress(stage: str, done: float, total: float) -> None:
        if stage == "train":
            steps.append(done)
            if steps == [1, 2]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgecv.compress(recipe, tmp_path / "out", progress=progress)
    (state,) = (tmp_path / "out").glob(".2-train.*")
    assert json.loads((state / "config.json").read_text())["teacher"]["architecture"] == "tiny"
    assert edgecv.compress(recipe, tmp_path / "out", progress=progress).done == ("2-train",)
    assert steps == [1, 2, 2]
    assert not list((tmp_path / "out").glob(".*"))


def _changed(recipe: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *keys, last = path.split(".")
    place: Any = recipe
    for key in keys:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value", "telling"),
    [
        ("modell", "x", r"recipe: unknown key 'modell'; did you mean 'model'\? \(known: model, data, steps"),
        ("data.tset", "digits", "recipe: data: unknown key 'tset'; did you mean 'test'"),
        ("data.limit", 0, "limit is a number of images from 1"),
        ("measure.second", 1, "recipe: measure: unknown key 'second'"),
        ("measure.backends", ["onnx"], "unknown backend 'onnx'"),
        ("convert", {"backend": []}, "recipe: convert: unknown key 'backend'; did you mean 'backends'"),
        ("convert", {"backends": ["tflite"]}, "unknown backend to convert for 'tflite'"),
        ("steps", [], "steps must be a list of steps, at least one"),
        ("steps.0", {"shrink": {}}, r"steps\[0\]: unknown step 'shrink' \(known: prune, train, quantize, cluster\)"),
        ("steps.0", {"prune": {}, "train": {}}, r"steps\[0\] must be one of prune"),
        ("steps.0.prune.ratio", 0.5, r"steps\[0\].prune: unknown key 'ratio'; did you mean 'macs_ratio'"),
        ("steps.0.prune.layers", {"stem": "half"}, r"steps\[0\].prune.layers.stem must be a number"),
        ("steps.0.prune.macs_ratio", 2, r"steps\[0\].prune: macs_ratio is a share above 0"),
        ("steps.0.prune.importance", "taylor", "needs labelled images: give data.train"),
        ("steps.1.quantize.bits", 8, r"steps\[1\].quantize: unknown key 'bits'"),
        ("steps.1.quantize.training", {"epoch": 1}, r"steps\[1\].quantize.training: unknown key 'epoch'"),
        ("steps.1.quantize.max_drop", 1, "max_drop is measured on data.val"),
        ("steps.1.quantize.method", "qat", "method 'qat' needs images to learn from"),
        ("steps.1", {"train": {}}, "needs images to learn from: give data.train"),
        ("steps.0", {"quantize": {}}, r"steps\[1\]: after quantize comes train, not quantize"),
        ("steps.0", {"cluster": {}}, "after cluster comes nothing, not quantize"),
        ("data.test", "nowhere", "nowhere does not exist"),
        ("model", "none.safetensors", "none.safetensors does not exist"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(
    recipe: dict[str, Any], path: str, value: Any, telling: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=telling):
        edgecv.compress(_changed(recipe, path, value), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unknown_keys_of_training_are_named_with_the_known_ones(recipe: dict[str, Any], images: Path) -> None:
    recipe["data"]["train"] = str(images)
    recipe["steps"][1] = {"train": {"epoch": 1}}
    with pytest.raises(InputError, match=r"train: unknown key 'epoch'; did you mean 'epochs'\? .*distill"):
        read_chain(recipe)


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("model: [", "is not valid YAML: .*line 1"),
        ("model: a\nmodel: b", "is not valid YAML: .*the key 'model' twice"),
        ("model: !!python/object:os.system x", "is not valid YAML: .*could not determine a constructor"),
        ("just words", "must be an object with the keys model, data, steps"),
        ("model: a\ndata: {test: digits}\nsteps: [prune]", r"steps\[0\] must be one of prune"),
    ],
)
def test_wrong_yaml_is_one_clear_line(text: str, telling: str, tmp_path: Path, capsys: Any) -> None:
    require("yaml")
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=telling):
        read_chain(file)
    assert main(["compress", str(file), "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_paths_are_relative_to_the_recipe_and_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    require("yaml")
    (tmp_path / "photos").mkdir()
    (tmp_path / "recipe.yaml").write_text(
        "model: net.safetensors\ndata: {train: photos, test: 'digits:test'}\nsteps: [train: {learning_rate: 1e-3}]\n"
    )
    chain = read_chain(tmp_path / "recipe.yaml")
    assert (chain.model, chain.data.train) == (str(tmp_path / "net.safetensors"), str(tmp_path / "photos"))
    assert chain.data.test == "digits:test"
    assert chain.resolved()["steps"][0]["train"]["learning_rate"] == 0.001


def test_without_pyyaml_json_recipes_work(recipe: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert len(read_chain(tmp_path / "recipe.json").steps) == 2
    (tmp_path / "recipe.yaml").write_text("model: a")
    with pytest.raises(BackendUnavailable, match=r"pip install 'edgecv\[train\]', or write the recipe as \.json"):
        read_chain(tmp_path / "recipe.yaml")


def test_a_folder_that_holds_something_else_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty"):
        edgecv.compress(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("layer", ["stem.0", "deep.0"])
def test_rounded_values_are_counted_beside_those_they_came_from(finished: Path, layer: str) -> None:
    plain, rounded = (edgecv.load_checkpoint(finished / f"{name}.safetensors") for name in NAMES)
    frames = [digits("test")[index][0] for index in range(4)]
    (found,) = values_of(plain, rounded, [layer], frames, PREPROCESS)  # type: ignore[arg-type]
    for spread in (found.weights, found.activations):
        count = spread.before.sum()
        assert count == spread.after.sum() > 0
        assert np.abs(np.cumsum(spread.before - spread.after)).max() < 0.1 * count
        assert len(spread.edges) == len(spread.before) + 1 <= 84
        assert np.all(np.diff(spread.edges) > 0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_points_in_one_place_are_all_drawn(share: float) -> None:
    points = [Point(2.0, share, (share, share), str(number), number % 3, number == 2) for number in range(3)]
    drawn = scatter(points, "latency")
    assert drawn.count("<circle") == 3
    assert drawn.count("hollow") == 1
    assert "nan" not in drawn


def test_bars_go_both_ways_and_what_is_not_known_has_none() -> None:
    drawn = bars(
        ["a" * 40, "b", "c"], {"ms": [0.5, -0.25, None], "dB": [0.0, 0.0, 0.0]}, {"ms": "{:.2f}", "dB": "{:.0f}"}
    )
    assert drawn.count("<rect") == 5
    assert "-0.25" in drawn
    assert "a" * 28 not in drawn

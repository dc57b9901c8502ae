"""Clustering: few values, zeros that stay, answers that change little, and networks that are saved as any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime", "sklearn"):
    require(_library)

import torch  # noqa: E402  (after the check that it is there)
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import ClusterConfig, Preprocess, models  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.compression.clustering import palette_of, palettes_of  # noqa: E402
from edgecv.compression.feedback import round_with_feedback  # noqa: E402
from edgecv.compression.sparsity import sparsify  # noqa: E402
from edgecv.models.recipe import ARCHITECTURES, recipe_of  # noqa: E402

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Small(nn.Module):
    """Convolutions of every kind that clustering tells apart, and a linear layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.groups = nn.Conv2d(16, 16, 1, groups=4)
        self.wide = nn.Conv2d(16, 32, 3, padding=2, dilation=2)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        image = torch.relu(self.wide(self.groups(self.depthwise(self.stem(image)))))
        pooled: Tensor = image.mean((2, 3))
        return self.head(torch.relu(self.mix(torch.relu(self.mix(pooled)))))  # type: ignore[no-any-return]


def _small() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    network(torch.randn(64, 3, 16, 16))  # the batch norm has seen something
    return network.eval()


IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): value for name, value in network.state_dict().items() if value.ndim > 1}


@pytest.mark.parametrize("calibration", [None, [IMAGES]])
@pytest.mark.parametrize("bits", [1, 4])
def test_every_layer_has_few_values_and_depthwise_ones_are_rounded(calibration: Any, bits: int) -> None:
    network = _small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = edgecv.cluster(network, calibration, ClusterConfig(bits), preprocess=None if calibration else PREPROCESS)
    for name, weight in _weights(found).items():
        if name == "depthwise":
            assert torch.equal(weight, network.get_parameter("depthwise.weight").bfloat16().float())
        else:
            assert 1 < weight.unique().numel() <= 2**bits  # type: ignore[no-untyped-call]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@given(hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-100, 100, width=32)), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_a_palette_is_small_ordered_and_close(weights: Any, entries: int) -> None:
    palette = palette_of(weights, entries)
    assert 1 <= len(palette) <= entries
    assert (np.diff(palette) > 0).all()
    step = (weights.max() - weights.min()) / max(1, entries - 1)
    nearest = np.abs(weights[:, None] - palette[None]).min(1)
    if entries == 1:
        assert palette[0] == pytest.approx(weights.mean(dtype=np.float64), rel=2**-7, abs=1e-6) or len(weights) == 1
    else:  # no worse than evenly spaced, by their squares, but for the rounding of the palette itself
        assert np.sqrt((nearest**2).mean()) <= step / 2 + np.abs(weights).max() * 2**-8 + 1e-6


@given(hnp.arrays(np.float32, 200, elements=st.sampled_from([-1.7, -0.3, 0.1, 0.9, 4.2])))
def test_what_has_few_values_already_keeps_them(weights: Any) -> None:
    assert np.array_equal(palette_of(weights, 5), np.unique(weights))


@pytest.mark.parametrize("calibration", [None, [IMAGES]])
def test_zeros_stay_zeros_and_no_weight_becomes_one(calibration: Any) -> None:
    network = sparsify(_small(), 0.6)
    found = edgecv.cluster(network, calibration, ClusterConfig(3), preprocess=None if calibration else PREPROCESS)
    for name, weight in _weights(found).items():
        zero = _weights(network)[f"{name}.0" if name == "stem" else name] == 0
        assert (weight[zero] == 0).all()
        assert not torch.signbit(weight[zero]).any()
        assert weight.unique().numel() <= (2**3 if name != "depthwise" else 256)  # type: ignore[no-untyped-call]


def test_sparsity_sets_that_share_to_zero() -> None:
    found = edgecv.cluster(_small(), [IMAGES], ClusterConfig(4, sparsity=0.5))
    layers = palettes_of(found)
    assert sum(item.zeros for item in layers) / sum(item.weights for item in layers) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("calibration", [None, [IMAGES]])
def test_clustering_again_changes_nothing(calibration: Any) -> None:
    once = edgecv.cluster(_small(), calibration, ClusterConfig(4), preprocess=None if calibration else PREPROCESS)
    twice = edgecv.cluster(once, calibration, ClusterConfig(4), preprocess=None if calibration else PREPROCESS)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


@pytest.mark.parametrize("bits", [3, 5])
def test_calibration_keeps_answers_closer(bits: int) -> None:
    network, other = _small(), torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    plain = edgecv.cluster(network, None, ClusterConfig(bits), preprocess=PREPROCESS)
    better = edgecv.cluster(network, [IMAGES[:12], IMAGES[12:]], ClusterConfig(bits))
    with torch.no_grad():
        wanted = network(other)
        errors = [float(((item(other) - wanted) ** 2).mean()) for item in (plain, better)]
    assert errors[1] < errors[0]


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_feedback_on_inputs_that_are_not_correlated_is_rounding(inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = 5 * torch.randn(outputs, inputs, generator=generator)
    kept = torch.rand(outputs, inputs, generator=generator) > 0.3
    moments = torch.diag(torch.rand(inputs, generator=generator).double() + 0.1)
    found = round_with_feedback(weight, kept, moments, torch.round)
    assert torch.equal(found, torch.where(kept, torch.round(weight), 0.0))


def test_feedback_makes_up_for_an_error_where_inputs_are_the_same() -> None:
    weight = torch.full((1, 4), 0.4)
    moments = torch.ones(4, 4, dtype=torch.float64)
    found = round_with_feedback(weight, torch.ones(1, 4, dtype=torch.bool), moments, torch.round)
    assert float(found.sum()) == 2  # 1.6 would be exact; rounding each gives 0


def test_layers_may_have_bits_of_their_own() -> None:
    network = _small()
    config = ClusterConfig(2, {"wide": 5, "mix": 0, "head": 16, "depthwise": 3})
    found = edgecv.cluster(network, [IMAGES], config)
    counts = {item.layer: item.values for item in palettes_of(found)}
    assert counts["groups"] <= 4 < counts["wide"] <= 32
    assert counts["depthwise"] <= 8
    assert torch.equal(found.get_parameter("mix.weight"), network.get_parameter("mix.weight"))
    assert torch.equal(found.get_parameter("head.weight"), network.get_parameter("head.weight").bfloat16().float())


def test_what_a_layer_takes_is_its_entropy_and_its_palette() -> None:
    layer = nn.Linear(8, 4, bias=False)
    layer.weight.data = torch.tensor([0.0, 0, 0, 0, 1, 1, -1, 2]).repeat(4, 1)
    found = palettes_of(edgecv.cluster(layer, [torch.randn(3, 8)], ClusterConfig(2)))
    assert found[0].coded_bytes == 32 * 1.75 / 8 + 4 * 2
    assert (found[0].weights, found[0].zeros, found[0].values) == (32, 16, 4)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the small network, which is an architecture as long as a test runs."""
    monkeypatch.setitem(cast(dict[str, str], ARCHITECTURES.builtin), "small", f"{__name__}:Small")
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    edgecv.save_checkpoint(models.create("small").eval(), path, preprocess=PREPROCESS, labels=tuple("0123456789"))
    return path


def test_a_checkpoint_brings_every_bit_back(checkpoint: Path, tmp_path: Path) -> None:
    found = edgecv.cluster(edgecv.load_checkpoint(checkpoint), [IMAGES], ClusterConfig(4))
    edgecv.save_checkpoint(found, tmp_path / "small.safetensors")
    loaded = edgecv.load_checkpoint(tmp_path / "small.safetensors")
    assert [step.kind for step in recipe_of(loaded).steps] == ["cluster"]  # type: ignore[union-attr]
    assert torch.equal(loaded(IMAGES), found(IMAGES))
    assert torch.equal(copy.deepcopy(loaded)(IMAGES), found(IMAGES))


@pytest.mark.parametrize(
    ("wrong", "telling"),
    [
        ({"bits": 9}, "bits is 1 to 8, got 9"),
        ({"layer_bits": {"head": 12}}, "layer_bits are 1 to 8, 16 for bfloat16, or 0 to leave a layer; 'head' has 12"),
        ({"layer_bits": {"tail": 4}}, "unknown layer 'tail'"),
        ({"sparsity": 1.0}, "sparsity is a share from 0 and below 1, got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        edgecv.cluster(_small(), [IMAGES], ClusterConfig(**wrong))


def test_what_has_no_weights_or_is_quantized_is_refused() -> None:
    with pytest.raises(InputError, match="no convolution or linear layer"):
        edgecv.cluster(nn.ReLU(), [IMAGES])
    quantized = edgecv.quantize(_small(), [IMAGES], edgecv.QuantizeConfig(rounding="nearest"))
    with pytest.raises(InputError, match="is quantized already"):
        edgecv.cluster(quantized, [IMAGES])
    with pytest.raises(InputError, match=r"palettes are those of what edgecv\.cluster made"):
        palettes_of(_small())


def test_the_command_line_makes_a_bundle_a_third_as_large(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    small, out = tmp_path / "small.safetensors", tmp_path / "bundle"
    given = ("--samples", "digits", "--limit", "16", "--data", "digits", "--bits", "3", "--layer-bits", "stem.0=6")
    assert main(["cluster", str(checkpoint), *given, "--json", "--out", str(small)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"before", "clustered"}
    assert max(layer["values"] for layer in found["layers"] if layer["layer"] in ("wide", "mix", "head")) <= 8
    convert = ("--backends", "onnxruntime", "--no-parity", "--pack", "--out", str(out))
    assert main(["convert", str(small), *convert]) == 0
    bundle = edgecv.Bundle.load(out)
    (name, packed), *_ = bundle.manifest.packed.items()
    assert bundle.manifest.files[name].size_bytes < packed.size_bytes / 3


def test_the_command_line_says_what_every_layer_takes(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "small.safetensors"
    assert main(["cluster", str(checkpoint), "--bits", "4", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "kB, coded" in said
    assert f"checkpoint: {out}; store it small with edgecv convert --pack" in said
    assert main(["cluster", str(checkpoint), "--out", str(tmp_path / "small.onnx")]) == 2
    assert "--out is a .safetensors file" in capsys.readouterr().err

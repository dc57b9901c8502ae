"""Quantization in PyTorch: capture, placement, ranges, correction, what is saved and what is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import ConversionError, InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, fx, nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, QuantizeConfig, TrainConfig, models, quantize  # noqa: E402
from edgecv.compression.capture import capture  # noqa: E402
from edgecv.compression.equalization import equalize  # noqa: E402
from edgecv.compression.placement import (  # noqa: E402
    activation_quantizers,
    insert_quantizers,
    layers_of,
    quantized_layers,
    weight_quantizers,
)
from edgecv.compression.ptq import Rounding, calibrate, correct  # noqa: E402
from edgecv.compression.quantizers import ActivationQuantizer, WeightQuantizer  # noqa: E402
from edgecv.compression.ranges import METHODS, activation_range, weight_scale  # noqa: E402
from edgecv.compression.sensitivity import Harm, costliest, harms  # noqa: E402
from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: E402
from edgecv.data import ArraySamples  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

SHAPE = (3, 16, 16)
PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


class Block(nn.Module):
    """What networks for devices are made of: depthwise, a gate, a residual sum, a concatenation, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.project = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.gate = nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        hidden = stem + self.project(self.depthwise(stem))
        hidden = hidden * torch.sigmoid(self.gate(hidden.mean((2, 3), keepdim=True)))
        joined = torch.cat([self.left(hidden).relu(), self.right(hidden).relu()], 1)
        pooled = nn.functional.max_pool2d(joined, 2)
        logits: Tensor = self.head(nn.functional.dropout(pooled.mean((2, 3)), 0.5, self.training))
        return logits


class Twins(nn.Module):
    """One backbone for two inputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        one, other = self.backbone(template), self.backbone(search)
        total: Tensor = one.mean((2, 3)) + other.mean((2, 3))
        return total


class InPlace(nn.Module):
    """Reads a tensor again after it was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.conv(image)
        hidden.relu_()
        hidden.add_(1)
        means: Tensor = hidden.mean((2, 3))
        return means


def _warm(network: nn.Module) -> nn.Module:
    """Batch norms with statistics that are not 0 and 1, as after training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network.eval()


def _batches(count: int = 3, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, *shape, generator=generator) for _ in range(count)]


def _quantized(network: nn.Module | None = None, **changes: Any) -> fx.GraphModule:
    return quantize(network or _warm(Block()), _batches(), QuantizeConfig(**changes))


def _snr_db(wanted: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(wanted.var() / (wanted - got).var()))


@pytest.fixture(scope="module")
def block() -> nn.Module:
    return _warm(Block())


@pytest.fixture(scope="module")
def quantized(block: nn.Module) -> fx.GraphModule:
    return quantize(block, _batches())


@pytest.mark.parametrize("kind", [Block, Twins, InPlace])
@torch.no_grad()
def test_a_captured_network_gives_the_same_answers_without_batch_norm(kind: type[nn.Module]) -> None:
    network = _warm(kind())
    shapes = [SHAPE, (3, 20, 20)] if kind is Twins else [SHAPE]
    inputs = [torch.randn(5, *shape) for shape in shapes]
    graph = capture(network, shapes)
    assert (graph(*inputs) - network(*inputs)).abs().max() < 1e-5
    assert not any("norm" in str(node.target) or str(node.target).endswith("_.default") for node in graph.graph.nodes)
    assert set(graph.state_dict()) <= {*network.state_dict(), *(f"{name}.bias" for name in layers_of(graph))}


def test_capturing_leaves_the_network_as_it_was(block: nn.Module) -> None:
    network = copy.deepcopy(block).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    capture(network, [SHAPE])
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@torch.no_grad()
def test_a_quantized_network_answers_as_the_float_one(block: nn.Module, quantized: fx.GraphModule) -> None:
    images = _batches(1, seed=9)[0]
    assert _snr_db(block(images), quantized(images)) > 25


def test_neighbours_that_only_move_values_share_a_range(quantized: fx.GraphModule) -> None:
    calls = [str(node.target) for node in quantized.graph.nodes if node.op == "call_module"]
    shared = [name for name in activation_quantizers(quantized) if calls.count(f"activation_quantizers.{name}") > 1]
    (name,) = shared
    assert calls.count(f"activation_quantizers.{name}") == 4  # both branches, the concatenation, the pool


@pytest.mark.parametrize("kind", [Block, Twins])
@torch.no_grad()
def test_correction_restores_the_mean_of_every_channel(kind: type[nn.Module]) -> None:
    network = _warm(kind())
    shapes = [SHAPE, (3, 20, 20)] if kind is Twins else [SHAPE]
    batches = [tuple(torch.randn(8, *shape) for shape in shapes) for _ in range(2)]
    off = []
    for corrected in (False, True):
        graph = quantize(network, batches, QuantizeConfig(bias_correction=corrected, rounding="nearest"))
        wanted = torch.cat([network(*batch) for batch in batches]).mean(0)
        off.append(float((torch.cat([graph(*batch) for batch in batches]).mean(0) - wanted).abs().max()))
    assert off[1] < off[0] / 3


@torch.no_grad()
def test_the_bias_of_a_dead_channel_fits_its_accumulator() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    weight, bias = network[0].weight, network[0].bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    weight[1] *= 1e-9
    bias[1] = 3.0
    images = _batches()
    graph = quantize(network, images)
    scales = next(iter(weight_quantizers(graph).values())).scale
    step = activation_quantizers(graph)["input_1"].affine()[0] * scales[1]
    assert abs(float(graph.get_parameter("0.bias")[1]) / float(step)) < 2**30 * 1.01
    assert _snr_db(network(images[0]), graph(images[0])) > 30


def test_layers_of_no_bits_stay_float(block: nn.Module) -> None:
    graph = _quantized(block, layer_bits={"stem.0": 0, "head": 8})
    assert "stem.0" not in quantized_layers(graph)
    assert quantized_layers(graph)["head"] == 8
    assert quantized_layers(graph)["left"] == 7


@torch.no_grad()
def test_equalization_changes_ranges_but_no_answer() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    )
    first = network[0].weight
    assert isinstance(first, Tensor)
    first.mul_(torch.logspace(-2, 2, 8).view(-1, 1, 1, 1))
    graph = capture(network, [SHAPE])
    images = torch.randn(4, *SHAPE)
    wanted = graph(images)
    equalize(graph)
    assert (graph(images) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    spread = graph.get_parameter("0.weight").abs().flatten(1).amax(1)
    assert spread.max() / spread.min() < 20


@settings(max_examples=60, deadline=None)
@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(0, 2**31))
def test_an_activation_is_rounded_by_half_a_step_at_most_and_zero_by_none(one: float, other: float, seed: int) -> None:
    quantizer = ActivationQuantizer().requires_grad_(False)
    quantizer.set_range(min(one, other), max(one, other))
    scale, zero_point = quantizer.affine()
    low, high = -zero_point * scale, (255 - zero_point) * scale
    values = torch.rand(64, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    assert (quantizer(values) - values).abs().max() <= scale * 0.5001 + 1e-6
    assert torch.allclose(quantizer(quantizer(values)), quantizer(values), atol=1e-6)
    assert float(quantizer(torch.zeros(1))) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**31))
def test_a_weight_is_rounded_by_half_a_step_at_most(bits: int, channels: int, seed: int) -> None:
    weight = torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    quantizer = WeightQuantizer(channels, bits).requires_grad_(False)
    quantizer.set_scale(weight_scale(weight, quantizer.limit, "minmax"))
    rounded = quantizer(weight)
    assert ((rounded - weight).abs().amax((1, 2, 3)) <= quantizer.scale * 0.5001).all()
    integers = quantizer.integers(weight)
    assert int(integers.abs().max()) == quantizer.limit
    assert torch.allclose(integers * quantizer.scale.view(-1, 1, 1, 1), rounded)


def test_gradients_are_those_of_learned_step_sizes() -> None:
    """Inside the range a value's gradient passes; outside it goes to the bound (LSQ+, equation 5)."""
    quantizer = ActivationQuantizer(-1.0, 2.0)
    values = torch.tensor([-3.0, -0.5, 0.7, 5.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 0]
    assert quantizer.gain.grad is not None
    assert quantizer.gain.grad.tolist()[0] != 0


@pytest.mark.parametrize("method", METHODS)
def test_every_range_holds_the_bulk_of_the_values(method: Any) -> None:
    values = [torch.randn(20_000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])]
    low, high = activation_range(values, method)
    assert -6 < low < -2 or method in ("minmax", "mse", "entropy")
    assert high > 2
    assert high == 60 if method == "minmax" else high < 61
    if method in ("percentile", "entropy"):
        assert high < 30


def test_least_squares_beat_the_largest_value() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) ** 3
    errors = []
    for method in ("minmax", "mse"):
        quantizer = WeightQuantizer(4, 4).requires_grad_(False)
        quantizer.set_scale(weight_scale(weight, quantizer.limit, method))
        errors.append(float((quantizer(weight) - weight).square().sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("chosen", "share"), [("adaround", 0.9), ("gptq", 0.8)])
@torch.no_grad()
def test_chosen_rounding_beats_the_nearest(chosen: Rounding, share: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    smooth = nn.functional.interpolate(torch.randn(32, 3, 4, 4), scale_factor=4, mode="bilinear")
    batches = [(part,) for part in torch.split(smooth.relu(), 8)]  # of white noise, the nearest is the best there is
    wanted = network(batches[0][0])
    errors = []
    ways: tuple[Rounding, ...] = ("nearest", chosen)
    for rounding in ways:
        graph = capture(network, [SHAPE])
        insert_quantizers(graph, dict.fromkeys(layers_of(graph), 3))
        calibrate(graph, batches, "minmax", "minmax")
        correct(graph, batches, rounding)
        errors.append(float((graph(batches[0][0]) - wanted).square().mean()))
    assert errors[1] < share * errors[0]


def test_a_checkpoint_gives_the_same_bits_back(tmp_path: Path) -> None:
    network = _warm(models.create("mobilenet_v2", num_classes=4, width=0.25, stem="small"))
    graph = quantize(network, _batches(2, (3, 32, 32)))
    edgecv.save_checkpoint(graph, tmp_path / "int8.safetensors", labels=tuple("abcd"))
    again = edgecv.load_checkpoint(tmp_path / "int8.safetensors")
    images = _batches(1, (3, 32, 32), seed=5)[0]
    with torch.no_grad():
        assert torch.equal(again(images), graph(images))
    with pytest.raises(InputError, match="quantized already"):
        quantize(again, [images])


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({}, "has shapes, bits"),
        ({"shapes": [[3, 16, 16]], "bits": {"nothing": 7}}, "is no layer of this network"),
        ({"shapes": [[3, 16, -1]], "bits": {}}, "has shapes, bits"),
        ({"shapes": [[4, 16, 16]], "bits": {}}, "cannot capture"),
    ],
)
def test_a_broken_recipe_is_refused(settings: dict[str, Any], telling: str) -> None:
    network = models.create("squeezenet1_1", num_classes=2, stem="small")
    recipe = models.recipe_of(network)
    assert recipe is not None
    with pytest.raises((InputError, ConversionError), match=telling):
        recipe.then("quantize", settings).build()


def test_the_graph_is_the_network_under_exact_arithmetic(tmp_path: Path, quantized: fx.GraphModule) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    path = onnx_from_torch(quantized, tmp_path / "int8.onnx", PREPROCESS)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (got,) = onnxruntime.InferenceSession(str(path), options).run(None, {"image": frames})
    with TorchSession.from_network(quantized, PREPROCESS) as session:
        wanted = session.run({"image": frames})["logits"]
    differing = np.abs(got - wanted).max(axis=1) > 1e-4  # a value on the edge of two steps may fall to either
    assert differing.mean() < 0.1
    held = onnx.load(str(path)).graph.initializer
    kinds = {tensor.data_type for tensor in held if len(tensor.dims) == 4 and tensor.dims[0] > 1}
    assert kinds == {onnx.TensorProto.INT8}


def test_training_goes_on_from_the_rounded_network() -> None:
    rng = np.random.default_rng(0)
    targets = [int(index % 3) for index in range(96)]
    frames = rng.integers(0, 40, (96, 16, 16, 3)).astype(np.uint8)
    for index, target in enumerate(targets):
        frames[index, :, :, target] += 150
    data = ArraySamples(list(frames), targets, ("red", "green", "blue"))
    graph = quantize(_warm(Block()), list(frames[:16]), preprocess=PREPROCESS)
    before = {name: item.affine() for name, item in activation_quantizers(graph).items()}
    config = TrainConfig(epochs=12, batch_size=16, learning_rate=2e-2, warmup_epochs=0, ema_decay=0, label_smoothing=0)
    result = edgecv.train(graph, data, data, config, preprocess=PREPROCESS)
    assert result.accuracy.top1 == 1
    assert isinstance(result.network, fx.GraphModule)
    moved = [item.affine() != before[name] for name, item in activation_quantizers(result.network).items()]
    assert all(moved)
    limits = {name: item.limit for name, item in weight_quantizers(result.network).items()}
    assert limits.pop("depthwise.0") == 127  # its kernels add in 32 bits
    assert set(limits.values()) == {63}


class Untraceable(nn.Module):
    """Its answer depends on a value."""

    def forward(self, image: Tensor) -> Tensor:
        return image if bool(image.sum() > 0) else -image


@pytest.mark.parametrize(
    ("network", "calibration", "config", "telling"),
    [
        (nn.ReLU(), _batches(1), {}, "no convolution or matrix product"),
        (nn.Conv2d(3, 2, 1), [], {}, "some real images"),
        (nn.Conv2d(3, 2, 1), [np.zeros((4, 4, 3), np.uint8)], {}, "needs preprocess="),
        (nn.Conv2d(3, 2, 1), ["x"], {}, "a sequence of uint8 frames"),
        (nn.Conv2d(3, 2, 1), _batches(1), {"layer_bits": {"x": 0}}, "unknown layer 'x'"),
        (Untraceable(), _batches(1), {}, "cannot capture Untraceable"),
        (nn.Conv2d(4, 2, 1), _batches(1), {}, "cannot capture Conv2d"),
    ],
)
def test_what_cannot_be_quantized_is_refused(network: Any, calibration: Any, config: Any, telling: str) -> None:
    with pytest.raises((InputError, ConversionError), match=telling) as caught:
        quantize(network, calibration, QuantizeConfig(**config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"weight_bits": 6}, {"layer_bits": {"a": 1}}, {"activation_range": "max"}, {"weight_range": "x"},
     {"rounding": "up"}, {"max_drop": -1.0}, {"method": "x"}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        QuantizeConfig(**wrong)


def test_the_harm_of_a_layer_is_found(block: nn.Module) -> None:
    graph = _quantized(block, layer_bits={"right": 2}, bias_correction=False, rounding="nearest")
    found = harms(graph, [(batch,) for batch in _batches()])
    assert found[0].layer == "right"
    assert found[0].snr_db < found[1].snr_db - 6
    assert {item.layer for item in found} == set(quantized_layers(graph))
    assert all(item.enabled for item in activation_quantizers(graph).values())


@torch.no_grad()
def test_the_worst_layers_stay_float_until_the_drop_is_small(block: nn.Module) -> None:
    images = _batches(1, seed=3)[0]
    bits = {"right": 2, "left": 2}
    found = [_snr_db(block(images), _quantized(block, layer_bits=item)(images)) for item in (bits, {})]
    limit = sum(found) / 2

    def score(network: nn.Module) -> float:
        return 0.0 if network is block else min(0.0, _snr_db(block(images), network(images)) - limit)

    graph = quantize(block, _batches(), QuantizeConfig(layer_bits=bits, max_drop=0.0), score=score)
    assert score(graph) == 0
    assert "right" not in quantized_layers(graph)
    assert len(quantized_layers(graph)) > 2
    with pytest.raises(InputError, match="leave the network float"):
        quantize(block, _batches(), QuantizeConfig(max_drop=0.0), score=lambda item: float(item is block))
    with pytest.raises(InputError, match="needs score="):
        quantize(block, _batches(), QuantizeConfig(max_drop=0.0))


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"kernel_size": 3}, {"kernel_size": 4}, {"kernel_size": (4, 3), "dilation": 2}])
@pytest.mark.parametrize("word", ["same", "valid"])
def test_padding_by_name_is_a_layer_like_any_other(settings: dict[str, Any], word: str) -> None:
    network, images = nn.Conv2d(3, 4, padding=word, **settings), torch.randn(2, 3, 9, 10)
    graph = capture(network, [[3, 9, 10]])
    assert len(layers_of(graph)) == 1
    assert torch.allclose(graph(images), network(images), atol=1e-6)


def test_of_layers_that_do_as_much_harm_those_that_int8_makes_faster_stay_integers() -> None:
    found = [Harm("a", 10.0, None), Harm("b", 20.0, None), Harm("c", 20.0, None), Harm("d", 40.0, None)]
    assert costliest(found)[0] == "a"
    assert costliest(found, {"a": 0.1, "b": 0.001, "c": 1.0, "d": -0.1}) == ["d", "b", "a", "c"]
    with pytest.raises(InputError, match="'b' has none"):
        costliest(found, {"a": 1.0})


def test_what_a_layer_gains_is_asked_of_the_quantized_network_and_decides(block: nn.Module) -> None:
    images, asked = _batches(1, seed=3)[0], []

    def gains(network: nn.Module) -> dict[str, float]:
        asked.append(network)
        return {name: 0.0 if name == "left" else 1.0 for name in quantized_layers(network)}

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            network(images)
        return 1.0 if network is block or "left" not in quantized_layers(network) else 0.0

    graph = quantize(block, _batches(), QuantizeConfig(max_drop=0.0, rounding="nearest"), score=score, gains=gains)
    assert len(asked) == 1
    assert set(quantized_layers(asked[0])) - set(quantized_layers(graph)) == {"left"}


def test_quantization_aware_training_in_one_call(tmp_path: Path) -> None:
    network = _warm(models.create("resnet20", num_classes=2))
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(24)]
    data = ArraySamples(frames, [index % 2 for index in range(24)], ("a", "b"))
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))
    config = QuantizeConfig(method="qat", training=TrainConfig(epochs=1, warmup_epochs=0, channels_last=False))
    graph = quantize(
        network, frames[:8], config, preprocess=preprocess, train_data=data, val_data=data, out=tmp_path / "run"
    )
    best = edgecv.load_checkpoint(tmp_path / "run" / "best.safetensors")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(best(image), graph(image))
    with pytest.raises(InputError, match="needs train_data="):
        quantize(network, frames, config, preprocess=preprocess)

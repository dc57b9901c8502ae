"""Pruning: half the work, the same answers from what is left, and a recipe that brings it back."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import BackendUnavailable, InputError
from tests.conftest import require

require("torch")
require("torch_pruning")

import torch  # noqa: E402  (after the check that it is there)
from torch import Tensor, nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import PruneConfig, models, prune  # noqa: E402
from edgecv.compression.batchnorm import input_moments, match_batch_norm, reestimate_batch_norm  # noqa: E402
from edgecv.compression.dependencies import find_groups  # noqa: E402
from edgecv.compression.importance import CRITERIA, importance  # noqa: E402
from edgecv.compression.pruning import inputs_of, rebuild  # noqa: E402
from edgecv.compression.removal import remove, same_as_masked, what_stays  # noqa: E402
from edgecv.compression.report import prune_report  # noqa: E402
from edgecv.data import ArraySamples  # noqa: E402
from edgecv.models.siamese import TRACKERS, SearchBranch, TemplateBranch, create_tracker  # noqa: E402

HALF = PruneConfig(macs_ratio=0.5, size=(32, 32))
IMAGE = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),)


def _create(name: str = "squeezenet1_1", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_classes": 3, "stem": "small"}
    if name.startswith("mobilenet"):
        small["width"] = 0.25
    if name == "embedding":
        small = {"dims": 8, "options": {"stem": "small", "width": 0.25}}
    return models.create(name, **{**small, **options}).eval()


def _macs(network: nn.Module, inputs: tuple[Tensor, ...] = IMAGE) -> int:
    return models.count(network, inputs=tuple(tensor[:1] for tensor in inputs)).macs


@pytest.mark.parametrize("name", models.names())
def test_every_architecture_is_halved_and_comes_back(name: str) -> None:
    network = _create(name)
    pruned = prune(network, config=HALF)
    assert 0.45 < _macs(pruned) / _macs(network) <= 0.5
    recipe = models.recipe_of(pruned)
    assert recipe is not None
    back = recipe.build().eval()
    back.load_state_dict(pruned.state_dict())
    assert torch.equal(back(*IMAGE), pruned(*IMAGE))
    assert pruned(*IMAGE).shape == network(*IMAGE).shape


@pytest.mark.parametrize("name", TRACKERS.names())
def test_every_tracker_is_halved_and_both_branches_run(name: str) -> None:
    torch.manual_seed(0)
    network = create_tracker(name).eval()
    inputs = inputs_of(network)
    pruned = prune(network, config=PruneConfig(macs_ratio=0.5))
    assert 0.45 < _macs(pruned, inputs) / _macs(network, inputs) <= 0.5
    frames = [torch.zeros(2, side, side, 3, dtype=torch.uint8) for side in (127, 255)]
    with torch.no_grad():
        answers = [
            SearchBranch(some)(TemplateBranch(some)(frames[0]), frames[1])  # type: ignore[arg-type]
            for some in (network, pruned)
        ]
    before, after = ([t.shape for t in (a if isinstance(a, tuple) else (a,))] for a in answers)
    assert before == after


def test_a_network_is_pruned_twice_and_comes_back(tmp_path: Path) -> None:
    once = prune(_create(), config=HALF)
    twice = prune(once, config=HALF)
    assert _macs(twice) <= 0.5 * _macs(once)
    edgecv.save_checkpoint(twice, tmp_path / "a.safetensors")
    back = edgecv.load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(back(*IMAGE), twice(*IMAGE))
    recipe = models.recipe_of(back)
    assert recipe is not None
    assert [step.kind for step in recipe.steps] == ["prune", "prune"]


def test_loading_needs_no_torch_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _create()
    pruned = prune(network, config=HALF)
    edgecv.save_checkpoint(pruned, tmp_path / "a.safetensors")
    for name in ("planning", "dependencies", "tracing"):
        monkeypatch.delitem(sys.modules, f"edgecv.compression.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_pruning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert torch.equal(edgecv.load_checkpoint(tmp_path / "a.safetensors")(*IMAGE), pruned(*IMAGE))
    with pytest.raises(BackendUnavailable, match="torch-pruning: pip install"):
        prune(network, config=HALF)


def test_the_network_that_was_given_is_untouched() -> None:
    network = _create("mobilenet_v3_small").train()
    network.get_parameter("features.0.0.weight").requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pruned = prune(network, [torch.rand(4, 3, 32, 32)], HALF)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert pruned.training
    assert not pruned.get_parameter("features.0.0.weight").requires_grad
    assert pruned.get_parameter("features.1.block.0.0.weight").requires_grad


class _Foreign(nn.Module):
    """Ours to build, nobody's to know: layers by name, put together by a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, image: Tensor) -> Tensor:
        return self._forward(self, image)


def _residual(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).relu()
    found: Tensor = net.out((x + net.b(x)).mean((2, 3)))
    return found


def _concatenated(net: Any, x: Tensor) -> Tensor:
    joined = torch.cat([net.a(x).relu(), net.b(x).sigmoid()], 1)
    found: Tensor = net.out(net.c(joined + net.d(x)).mean((2, 3)))
    return found


def _halves(net: Any, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, 1)
    found: Tensor = net.out((left * right.sigmoid()).flatten(1))
    return found


def _gated(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    found: Tensor = net.out((x * net.up(net.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]).mean((2, 3)))
    return found


def _conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "a residual sum": lambda: _Foreign(_residual, a=_conv(3, 32), b=_conv(32, 32), out=nn.Linear(32, 3)),
    "a concatenation in a sum": lambda: _Foreign(
        _concatenated, a=_conv(3, 16), b=_conv(3, 32), c=_conv(48, 24), d=_conv(3, 48), out=nn.Linear(24, 3)
    ),
    "halves that are multiplied": lambda: _Foreign(_halves, a=_conv(3, 32), out=nn.Linear(16 * 1024, 3)),
    "a gate": lambda: _Foreign(
        _gated, a=_conv(3, 32), down=nn.Linear(32, 16), up=nn.Linear(16, 32), out=nn.Linear(32, 3)
    ),
    "grouped and transposed convolutions": lambda: nn.Sequential(
        _conv(3, 32), nn.PReLU(32), _conv(32, 64, groups=4), nn.ReLU(), nn.ConvTranspose2d(64, 16, 2, 2), _conv(16, 2)
    ),
    "depthwise and group norms": lambda: nn.Sequential(
        _conv(3, 32), _conv(32, 32, groups=32), nn.GroupNorm(4, 32), _conv(32, 2), nn.Flatten(), nn.Linear(2048, 2)
    ),
    "features that are flattened": lambda: nn.Sequential(
        _conv(3, 16), nn.InstanceNorm2d(16, affine=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_others_are_pruned(name: str) -> None:
    torch.manual_seed(0)
    network = FOREIGN[name]().eval()
    pruned = prune(network, config=PruneConfig(macs_ratio=0.7, size=(32, 32)))
    assert _macs(pruned) <= 0.7 * _macs(network)
    assert pruned(*IMAGE).shape == network(*IMAGE).shape
    with pytest.raises(InputError, match="no recipe"):
        edgecv.save_checkpoint(pruned, "never.safetensors")


@pytest.mark.parametrize("name", [*FOREIGN, *TRACKERS.names(), "mobilenet_v3_small", "resnet20", "squeezenet1_1"])
def test_what_is_left_answers_as_if_the_rest_were_zero(name: str) -> None:
    torch.manual_seed(0)
    known = create_tracker(name) if name in TRACKERS.names() else FOREIGN[name]() if name in FOREIGN else _create(name)
    network, inputs = known.eval(), inputs_of(known, size=None if name in TRACKERS.names() else (32, 32))
    groups, _ = find_groups(network, inputs)
    assert groups
    gone = [(group, list(range(0, int(group.unit.max()), 2))) for group in groups]
    stays = what_stays(network, gone)
    pruned = copy.deepcopy(network)
    remove(pruned, stays)
    assert same_as_masked(network, pruned, stays, inputs)


class _Fixed(nn.Module):
    """Looks at the number of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.free, self.out = _conv(3, 32), _conv(32, 64), nn.Linear(64, 3)

    def forward(self, image: Tensor) -> Tensor:
        seen = self.seen(image).view(len(image), 2, 16, 32, 32).transpose(1, 2).reshape(len(image), 32, 32, 32)
        found: Tensor = self.out(self.free(seen).relu().mean((2, 3)))
        return found


def test_layers_that_a_forward_pass_counts_on_stay_whole() -> None:
    pruned = prune(_Fixed(), config=PruneConfig(macs_ratio=0.6, size=(32, 32)))
    assert isinstance(pruned, _Fixed)
    assert (pruned.seen.out_channels, pruned.free.out_channels) == (32, 32)
    with pytest.raises(InputError, match="'seen' cannot be pruned: what depends on its channels is not understood"):
        prune(_Fixed(), config=PruneConfig(layers={"seen": 0.5}, size=(32, 32)))


def test_layers_that_cannot_be_cut_stay_whole() -> None:
    shared = _conv(3, 16)
    twin = _conv(3, 16)
    twin.weight = shared.weight
    network = _Fixed()
    network.seen = nn.Sequential(shared, _conv(16, 32))  # type: ignore[assignment]
    network.add_module("twin", twin)
    reasons = find_groups(network, IMAGE)[1]
    assert "shares its weights" in reasons["seen.0"]
    assert reasons["out"] == "they are an output of the network"


@given(
    st.lists(st.integers(4, 40), min_size=2, max_size=4),
    st.floats(0.3, 1.0),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["global", "uniform"]),
)
@settings(max_examples=25, deadline=None)
def test_the_ratio_is_kept_and_channels_are_round(channels: list[int], ratio: float, round_to: int, scope: Any) -> None:
    pairs = zip([3, *channels], channels, strict=False)
    layers = [layer for pair in pairs for layer in (_conv(*pair), nn.BatchNorm2d(pair[1]), nn.ReLU())]
    network = nn.Sequential(*layers, _conv(channels[-1], 2)).eval()
    config = PruneConfig(macs_ratio=ratio, round_to=round_to, scope=scope, smallest=0, size=(8, 8))
    image = (torch.rand(1, 3, 8, 8),)
    try:
        pruned = prune(network, config=config)
    except InputError:  # blocks of 8 are too coarse for so few channels
        assert round_to > 1
        return
    assert _macs(pruned, image) <= ratio * _macs(network, image) * (1 + 1e-6)
    for before, after in zip(network, pruned, strict=True):  # type: ignore[call-overload]
        if isinstance(before, nn.Conv2d):
            assert after.out_channels == before.out_channels or after.out_channels % round_to == 0


def test_uniform_takes_the_same_share_of_every_layer() -> None:
    network = _create("resnet18")
    pruned = prune(network, config=PruneConfig(params_ratio=0.3, scope="uniform", size=(32, 32)))
    counts = prune_report(network, pruned, IMAGE)
    assert counts.after.parameters <= 0.3 * counts.before.parameters
    shares = [layer.after / layer.before for layer in counts.layers]
    assert max(shares) - min(shares) <= 0.13
    assert len(counts.layers) == 20


def test_single_layers_are_pruned_by_name() -> None:
    network = _create("resnet18")
    pruned = prune(network, config=PruneConfig(layers={"layer1.0.conv1": 0.5, "layer2": 0.25}, size=(32, 32)))
    kept = {layer.name: layer.after for layer in prune_report(network, pruned, IMAGE).layers}
    assert kept.pop("layer1.0.conv1") == 32
    assert set(kept) == {
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.0.downsample.0",
        "layer2.1.conv1",
        "layer2.1.conv2",
    }
    assert set(kept.values()) == {32}


def test_protected_layers_keep_their_channels() -> None:
    network = _create("resnet18")
    pruned = prune(network, config=PruneConfig(macs_ratio=0.5, protect=("layer1", "layer4.0.conv1"), size=(32, 32)))
    names = {layer.name for layer in prune_report(network, pruned, IMAGE).layers}
    assert not names & {"conv1", "layer1.0.conv1", "layer1.1.conv2", "layer4.0.conv1"}
    assert {"layer2.0.conv1", "layer3.0.conv1"} <= names


@pytest.mark.parametrize(
    ("config", "telling"),
    [
        (PruneConfig(macs_ratio=0.5, protect=("layer9",)), "unknown layer 'layer9'; did you mean"),
        (PruneConfig(layers={"fcc": 0.5}), "unknown layer 'fcc'"),
        (PruneConfig(layers={"linear": 0.5}), "'linear' cannot be pruned: they are an output of the network"),
        (PruneConfig(layers={"bn1": 0.5}), "'bn1' cannot be pruned: it makes no channels"),
        (PruneConfig(layers={"layer1.0.conv2": 0.5}), "cannot be pruned: channels are padded"),
        (PruneConfig(macs_ratio=0.05), r"the least that can stay is 0\.\d+ of the MACs .* ask for a larger ratio"),
        (PruneConfig(macs_ratio=0.5, importance="taylor"), "'taylor' needs a loss: calibrate on labelled images"),
    ],
)
def test_what_cannot_be_done_is_said(config: PruneConfig, telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        prune(_create("resnet20"), config=config)


@pytest.mark.parametrize(
    ("wrong", "telling"),
    [
        ({}, "give macs_ratio, params_ratio or layers"),
        ({"macs_ratio": 0.0}, "macs_ratio is a share above 0 and at most 1, got 0.0"),
        ({"layers": {"a": 2}}, "a is a share above 0"),
        ({"macs_ratio": 0.5, "scope": "local"}, "unknown scope 'local'"),
        ({"macs_ratio": 0.5, "importance": "l3"}, "unknown importance 'l3' .known: l1, l2"),
        ({"macs_ratio": 0.5, "round_to": 0}, "round_to is a whole number from 1"),
        ({"macs_ratio": 0.5, "steps": 1.5}, "steps is a whole number from 1"),
        ({"macs_ratio": 0.5, "smallest": 1.0}, "smallest is a share"),
        ({"macs_ratio": 0.5, "protect": "conv1"}, "protect is a tuple of names, got 'conv1'"),
        ({"macs_ratio": 0.5, "size": (0, 3)}, "size is"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        PruneConfig(**wrong)


def _labelled(count: int = 8) -> ArraySamples:
    frames = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return ArraySamples(frames, [i % 3 for i in range(count)], ("a", "b", "c"))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_every_criterion_prunes_the_same_way_again(criterion: Any, scope: Any) -> None:
    network = _create("mobilenet_v1")
    config = PruneConfig(macs_ratio=0.6, importance=criterion, scope=scope, seed=3)
    found = [prune(network, _labelled(), config, preprocess=edgecv.Preprocess(size=(32, 32))) for _ in range(2)]
    states = [network.state_dict() for network in found]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_channel_that_does_nothing_goes_first() -> None:
    network = nn.Sequential(_conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), _conv(16, 2)).eval()
    idle = [1, 5, 6, 10]
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight"):
            network.get_parameter(name)[idle] = 0
        network.get_parameter("3.weight")[:, idle] = 0
    groups, _ = find_groups(network, IMAGE)
    for criterion in CRITERIA[:-1]:
        loss = [lambda net: net(*IMAGE).square().mean()]
        scores = importance(network, groups, criterion, losses=loss)["0"]
        assert sorted(scores.argsort()[:4].tolist()) == idle, criterion
    pruned = prune(network, config=PruneConfig(layers={"0": 0.75}, round_to=4, size=(32, 32)))
    assert torch.allclose(pruned(*IMAGE), network(*IMAGE), atol=1e-6)


def test_the_loss_may_be_the_callers() -> None:
    calls = []

    def loss(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        calls.append(inputs[0].shape)
        found: Tensor = network(*inputs).square().sum()
        return found

    network = _create("resnet20")
    prune(network, [torch.rand(2, 3, 32, 32)] * 3, PruneConfig(macs_ratio=0.7, importance="hessian"), loss=loss)
    assert calls == [torch.Size([2, 3, 32, 32])] * 3


def test_bn_scale_needs_batch_norms() -> None:
    with pytest.raises(InputError, match="the network has none; use 'l1'"):
        prune(_create(), config=PruneConfig(macs_ratio=0.5, importance="bn_scale", size=(32, 32)))


def test_steps_reach_the_ratio_with_training_between_them() -> None:
    network, seen = _create("mobilenet_v2", width=0.5), []

    def finetune(pruned: nn.Module) -> nn.Module | None:
        seen.append(_macs(pruned) / _macs(network))
        assert models.recipe_of(pruned) is not None
        return None if len(seen) == 1 else pruned

    prune(network, config=PruneConfig(macs_ratio=0.4, steps=3, size=(32, 32)), finetune=finetune)
    assert seen == [pytest.approx(ratio, abs=0.03) for ratio in (0.8, 0.6, 0.4)]
    assert all(share <= wanted for share, wanted in zip(seen, (0.8, 0.6, 0.4 + 1e-9), strict=True))


def test_batch_norms_take_the_statistics_of_the_images() -> None:
    network = nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8), _conv(8, 8), nn.BatchNorm2d(8), nn.Dropout(0.5)).train()
    image = torch.rand(16, 3, 8, 8)
    reestimate_batch_norm(network, [(image,)])
    assert network.training
    found = network.eval()(image)
    assert found.mean((0, 2, 3)).abs().max() < 1e-4
    assert (found.var((0, 2, 3)) - 1).abs().max() < 1e-2


def test_folded_batch_norms_are_moved_only_as_far_as_images_moved() -> None:
    network = nn.Sequential(_conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), _conv(8, 4)).eval()  # mean 0, variance 1
    batches = [(torch.rand(4, 3, 8, 8),)]
    wanted = network(*batches[0])
    before = input_moments(network, batches)
    match_batch_norm(network, batches, before)
    assert torch.allclose(network(*batches[0]), wanted, atol=1e-5)
    with torch.no_grad():
        network.get_parameter("0.weight").mul_(3)
        network.get_parameter("0.bias").add_(1)
    match_batch_norm(network, batches, before)
    assert torch.allclose(network(*batches[0]), wanted, atol=1e-2)


def test_calibration_keeps_what_comes_out_in_place() -> None:
    network = _create("resnet20")
    reestimate_batch_norm(network, [IMAGE])
    config = PruneConfig(macs_ratio=0.6)
    with torch.no_grad():
        spread = [float(some(*IMAGE).std()) for some in (network, *(prune(network, c, config) for c in ([], [IMAGE])))]
    off = [abs(found / spread[0] - 1) for found in spread[1:]]
    assert off[1] < off[0]


@pytest.mark.parametrize(
    ("given_", "telling"),
    [
        ({}, "has channels"),
        ({"channels": [1]}, "has channels"),
        ({"channels": {}, "more": 1}, "has channels"),
        ({"channels": {"conv9": [3, 8]}}, "unknown layer 'conv9'"),
        ({"channels": {"conv1": [3, 17]}}, r"is \(3, 16\) channels wide \(in, out\), it cannot become \[3, 17\]"),
        ({"channels": {"conv1": [3, 0]}}, "cannot become"),
        ({"channels": {"conv1": "wide"}}, "cannot become 'wide'"),
        ({"channels": {"layer1": [1, 1]}}, "cannot become"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(given_: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        rebuild(_create("resnet20"), given_)


def test_a_network_says_what_it_takes() -> None:
    assert [tensor.shape[-1] for tensor in inputs_of(_create("resnet20"))] == [32]
    assert [tensor.shape[-1] for tensor in inputs_of(create_tracker("nanotrack_v1"))] == [127, 255]
    assert inputs_of(nn.ReLU(), [(torch.zeros(4, 7), torch.zeros(4, 2))])[1].shape == (1, 2)
    assert inputs_of(nn.ReLU(), preprocess=edgecv.Preprocess(size=(5, 6)))[0].shape == (1, 3, 5, 6)
    with pytest.raises(InputError, match="what ReLU takes is not known"):
        inputs_of(nn.ReLU())


def test_a_quantized_network_is_refused() -> None:
    network = nn.Sequential(_conv(3, 16), nn.ReLU(), _conv(16, 2))
    quantized = edgecv.quantize(network, [torch.rand(2, 3, 8, 8)])
    with pytest.raises(InputError, match="prune before you quantize"):
        prune(quantized, config=HALF)


def test_a_pruned_network_is_converted(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime"):
        require(name)
    from edgecv.converters.onnx_from_torch import onnx_from_torch
    from edgecv.models import Framed

    preprocess = edgecv.Preprocess(size=(32, 32))
    pruned = prune(_create(), config=HALF).eval()
    file = onnx_from_torch(pruned, tmp_path / "a.onnx", preprocess)
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    with edgecv.open_session(file) as session:
        found = session.run({"image": frames})["logits"]
    wanted = Framed(pruned, preprocess)(torch.from_numpy(frames)).detach().numpy()
    assert np.abs(found - wanted).max() < 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit classifier, untrained."""
    require("sklearn")
    path = tmp_path_factory.mktemp("prune") / "digits.safetensors"
    preprocess = edgecv.Preprocess(size=(32, 32))
    network = _create(num_classes=10)
    accuracy = edgecv.evaluation.accuracy_of(np.array([0, 1]))
    labels = tuple("0123456789")
    edgecv.save_checkpoint(network, path, preprocess=preprocess, labels=labels, dataset="digits", accuracy=accuracy)
    return path


def test_the_command_prunes_trains_and_measures(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime"):
        require(name)
    monkeypatch.setattr("edgecv.cli.prune.LATENCY_S", 0.1)
    from edgecv.cli.main import main
    from edgecv.models.checkpoint import read_checkpoint

    out = tmp_path / "a.safetensors"
    data = ["--data", "digits:test", "--calibration", "16", "--epochs", "1"]
    status = main(["prune", str(checkpoint), "--out", str(out), *data, "--latency", "onnxruntime", "--json"])
    printed = capsys.readouterr().out
    assert status == 0
    found = json.loads(printed)
    assert found["after"]["macs"] <= 0.5 * found["before"]["macs"]
    assert len(found["latency_ms"]["onnxruntime"]) == 2
    network, card = read_checkpoint(out)
    assert models.count(network, (32, 32)).macs == found["after"]["macs"]
    assert (card.labels, card.dataset, card.preprocess) == (
        tuple("0123456789"),
        "digits",
        edgecv.Preprocess(size=(32, 32)),
    )
    assert card.accuracy is not None
    assert card.accuracy.samples == found["accuracy"]["samples"] == 36


def test_without_data_a_stale_accuracy_is_dropped(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgecv.cli.main import main
    from edgecv.models.checkpoint import read_checkpoint

    out = tmp_path / "a.safetensors"
    layer = ["--layer", "features.3.expand1x1=0.5", "--round-to", "4"]
    assert main(["prune", str(checkpoint), "--out", str(out), *layer]) == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert "features.3.expand1x1" in printed
    assert read_checkpoint(out)[1].accuracy is None


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["--epochs", "2"], "give --data"),
        (["--layer", "a=b"], "--layer a= takes a number, got 'b'"),
        (["--layer", "a"], "key=value"),
        (["--macs-ratio", "2"], "macs_ratio is a share"),
        (["--latency", "onnx"], "unknown backend 'onnx'"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], telling: str
) -> None:
    from edgecv.cli.main import main

    assert main(["prune", str(checkpoint), "--out", str(tmp_path / "a.safetensors"), *arguments]) == 2
    assert telling in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

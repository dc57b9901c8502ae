"""``prune``: the same network with fewer channels, and still an ordinary PyTorch network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgecv.compression.calibration import BATCH, Calibration, Inputs, batches_of
from edgecv.compression.channels import changed_widths, shrink
from edgecv.compression.importance import CRITERIA, Criterion, Loss
from edgecv.compression.placement import is_quantized
from edgecv.data import Samples
from edgecv.errors import BackendUnavailable, InputError
from edgecv.models.recipe import native_size, recipe_of
from edgecv.models.siamese import Siamese
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = ["Finetune", "LossFunction", "PruneConfig", "inputs_of", "prune", "rebuild"]

Finetune = Callable[[nn.Module], nn.Module | None]
"""Trains a network in place, or returns the trained one."""
LossFunction = Callable[[nn.Module, Inputs], Tensor]
"""Of a network on one batch of its inputs."""
Labelled = Samples | Sequence[tuple[NDArray[np.uint8], int]]
"""Frames with the indices of their classes."""


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """How a network is pruned, by at least one of ``macs_ratio``, ``params_ratio`` and ``layers``.

    Args:
        macs_ratio: the share of multiply-accumulates that is kept at most.
        params_ratio: the share of parameters that is kept at most.
        layers: the share of its output channels that a layer keeps, by its name; the layers that must have as many
            follow. A name stands for all layers below it.
        scope: ``"uniform"`` takes the same share of every layer; ``"global"`` compares all channels of the network with
            each other, by their importance for what they cost. It wants ``"taylor"``: magnitudes of different layers
            say little about each other.
        importance: which channels go first, see ``importance``. ``"taylor"`` loses the least accuracy; it and
            ``"hessian"`` need a loss.
        round_to: channels are left in multiples of it, which backends are fast at: half the multiply-accumulates of
            MobileNetV2 bring next to nothing on ONNX Runtime where they are left as they fall. 16 is better where int8
            follows: its kernels are wider.
        smallest: every layer keeps this share of its channels at least.
        protect: layers that keep all their output channels; a name stands for all layers below it. The network's
            outputs always stay.
        steps: the ratios are reached in so many steps, between which ``prune`` can finetune.
        size: (height, width) of the images that multiply-accumulates are counted for; known from calibration, or from
            the network where it is one of ours.
        seed: of random importance.
    """

    macs_ratio: float | None = None
    params_ratio: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    scope: Literal["global", "uniform"] = "uniform"
    importance: Criterion = "l2"
    round_to: int = 8
    smallest: float = 0.1
    protect: tuple[str, ...] = ()
    steps: int = 1
    size: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.macs_ratio is None and self.params_ratio is None and not self.layers:
            raise InputError("give macs_ratio, params_ratio or layers: what is to be kept")
        for name, ratio in (("macs_ratio", self.macs_ratio), ("params_ratio", self.params_ratio), *self.layers.items()):
            if ratio is not None and not 0 < ratio <= 1:
                raise InputError(f"{name} is a share above 0 and at most 1, got {ratio!r}")
        if self.scope not in ("global", "uniform"):
            raise InputError(unknown("scope", self.scope, ("global", "uniform")))
        if self.importance not in CRITERIA:
            raise InputError(unknown("importance", self.importance, CRITERIA))
        if not 0 <= self.smallest < 1:
            raise InputError(f"smallest is a share from 0 and below 1, got {self.smallest!r}")
        for name, value in (("round_to", self.round_to), ("steps", self.steps)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a whole number from 1, got {value!r}")
        if not isinstance(self.protect, tuple):
            raise InputError(f"protect is a tuple of names, got {self.protect!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"size is (height, width) in pixels, got {self.size!r}")


def prune(
    network: nn.Module,
    calibration: Calibration | Labelled | None = None,
    config: PruneConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
    example: Inputs | None = None,
    loss: LossFunction | None = None,
    finetune: Finetune | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Take the least important channels out of a network. ``network`` itself is left as it was.

    Channels that must be as many stay so: sums, depthwise convolutions, branches that share weights. The result is
    saved, loaded, trained, quantized and converted as any other network; without training it is less accurate. Half the
    multiply-accumulates by default.

    Args:
        calibration: some 100 images like those the network will see; see ``Calibration``, or labelled ``Samples``.
            Statistics of batch norms are moved by what pruning changed on them. Without any, they stay as they were.
        preprocess: what the network was trained with, for calibration on frames.
        example: one batch of the network's inputs, where calibration and ``size`` do not say what it takes.
        loss: for ``"taylor"`` and ``"hessian"``; by default cross-entropy with the labels of ``calibration``.
        finetune: called after every step.

    Raises:
        ConversionError: the network cannot be traced.
        InputError: the ratios cannot be reached, a name is none of the network's, the network is quantized already, or
            the calibration does not fit.
        BackendUnavailable: torch-pruning is not installed.
    """
    if is_quantized(network):
        raise InputError(f"{type(network).__name__} is quantized already: prune before you quantize")
    config = config or PruneConfig(macs_ratio=0.5)
    batches, losses = _data(calibration, preprocess, loss)
    inputs = example or inputs_of(network, batches, preprocess, config.size)
    planner = _planner()(network, config, inputs, batches, losses)
    pruned = copy.deepcopy(network).eval()
    for step in range(config.steps):
        progress("prune", step, config.steps)
        pruned = planner.prune(pruned, (step + 1) / config.steps)
        _note(network, pruned)
        pruned = (finetune(pruned) if finetune else None) or pruned
    progress("prune", config.steps, config.steps)
    return pruned.train(network.training)


def rebuild(network: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """The structure that ``prune`` gave ``network``, with weights still to be loaded.

    Raises:
        InputError: the settings are not those of a recipe step, or do not fit the network.
    """
    channels = settings.get("channels")
    if not isinstance(channels, dict) or set(settings) != {"channels"}:
        raise InputError("a recipe's prune step has channels: {layer: [in, out]}")
    shrink(network, channels)
    return network


def inputs_of(
    network: nn.Module,
    batches: Sequence[Inputs] = (),
    preprocess: Preprocess | None = None,
    size: tuple[int, int] | None = None,
) -> Inputs:
    """One item of what a network takes: noise of the shape that calibration, a size or the network itself says.

    Raises:
        InputError: none of them does.
    """
    if batches:
        shapes = [tuple(tensor.shape[1:]) for tensor in batches[0]]
    elif isinstance(network, Siamese) and size is None:
        shapes = [(3, side, side) for side in (network.settings.exemplar, network.settings.search)]
    else:
        recipe = recipe_of(network)
        height, width = (
            size
            or (preprocess.size if preprocess else None)
            or (native_size(recipe.options.get("backbone", recipe.architecture)) if recipe else (0, 0))
        )
        if not height:
            raise InputError(f"give size=, example= or calibration: what {type(network).__name__} takes is not known")
        shapes = [(3, height, width)]
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return tuple(torch.rand(1, *shape, generator=generator).to(device) for shape in shapes)


def _planner() -> Any:
    try:
        from edgecv.compression.planning import Planner
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_pruning":
            raise
        raise BackendUnavailable("pruning needs torch-pruning: pip install 'edgecv[train]'") from error
    return Planner


def _data(
    calibration: Calibration | Labelled | None, preprocess: Preprocess | None, loss: LossFunction | None
) -> tuple[list[Inputs], list[Loss]]:
    """The batches of a calibration, and a loss on each where there is one."""
    if calibration is None or not len(calibration):
        return [], []
    items: list[Any] = [calibration[index] for index in range(len(calibration))]
    labelled = isinstance(items[0], tuple) and isinstance(items[0][0], np.ndarray)
    batches = batches_of([frame for frame, _ in items] if labelled else items, preprocess)
    if loss is not None:
        return batches, [partial(_loss_on, batch, loss) for batch in batches]
    if not labelled:
        return batches, []
    targets = torch.tensor([int(target) for _, target in items])
    parts = [targets[start : start + BATCH] for start in range(0, len(items), BATCH)]
    return batches, [partial(_cross_entropy, batch, some) for batch, some in zip(batches, parts, strict=True)]


def _loss_on(inputs: Inputs, loss: LossFunction, network: nn.Module) -> Tensor:
    return loss(network, inputs)


def _cross_entropy(inputs: Inputs, targets: Tensor, network: nn.Module) -> Tensor:
    logits = network(*inputs)
    return functional.cross_entropy(logits, targets.to(logits.device))


def _note(network: nn.Module, pruned: nn.Module) -> None:
    """Let the recipe of ``pruned`` say how it is built from ``network``'s; parts of it have none any more."""
    for module in pruned.modules():
        module.__dict__.pop("edgecv_recipe", None)
    recipe = recipe_of(network)
    if recipe is not None:
        channels = {name: list(pair) for name, pair in changed_widths(network, pruned).items()}
        pruned.edgecv_recipe = recipe.then("prune", {"channels": channels})  # type: ignore[assignment]  # as in Recipe

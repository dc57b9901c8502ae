"""Statistics of batch norms, measured again where the layers before them have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecv.compression.calibration import Inputs

__all__ = ["Moments", "input_moments", "match_batch_norm", "reestimate_batch_norm"]

Moments = tuple[Tensor, Tensor]
"""Mean and variance of every channel."""


def reestimate_batch_norm(network: nn.Module, batches: Sequence[Inputs]) -> None:
    """Replace, in place, the statistics of every batch norm by those of ``batches``: means over all of them.

    The rest of the network runs as in eval mode, and is left in the mode it was in. Networks whose batch norms were
    folded into other weights must not be treated so: what they hold are no statistics.
    """
    _set(network, batches, {})


def match_batch_norm(network: nn.Module, batches: Sequence[Inputs], wanted: Mapping[str, Moments]) -> None:
    """Move, in place, the statistics of batch norms as far as ``batches`` has moved from the moments ``wanted``.

    ``wanted`` is what came into each batch norm before the network was changed, for the channels that are left: what
    goes out then keeps the mean and variance that it had, whatever the statistics stand for.
    """
    _set(network, batches, wanted)


def input_moments(network: nn.Module, batches: Sequence[Inputs]) -> dict[str, Moments]:
    """Mean and variance of what comes into every batch norm, means over ``batches``."""
    meters = {name: _Meter() for name in _norms(network)}
    _run(network, batches, meters)
    return {name: meter.moments() for name, meter in meters.items() if meter.count}


def _set(network: nn.Module, batches: Sequence[Inputs], wanted: Mapping[str, Moments]) -> None:
    meters: dict[str, _Meter] = {name: _Setter(norm, wanted.get(name)) for name, norm in _norms(network).items()}
    _run(network, batches, meters)
    for name, norm in _norms(network).items():
        if meters[name].count:
            norm.running_mean, norm.running_var = meters[name].moments()


def _norms(network: nn.Module) -> dict[str, _BatchNorm]:
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.running_mean is not None}


class _Meter:
    """A hook before a batch norm that adds up the moments of what comes in."""

    def __init__(self) -> None:
        self.count = 0
        self._mean, self._variance = torch.zeros(()), torch.zeros(())

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        image = inputs[0].detach().float()
        axes = [axis for axis in range(image.ndim) if axis != 1]
        mean, variance = self.moved(image.mean(axes), image.var(axes, unbiased=False))
        self.count += 1
        self._mean, self._variance = mean + self._mean.to(mean.device), variance + self._variance.to(mean.device)

    def moved(self, mean: Tensor, variance: Tensor) -> Moments:
        return mean, variance

    def moments(self) -> Moments:
        return self._mean / self.count, self._variance / self.count


class _Setter(_Meter):
    """As before, and the batch norm then uses them: layers behind it see what they will see in the end."""

    def __init__(self, norm: _BatchNorm, wanted: Moments | None) -> None:
        super().__init__()
        self._norm, self._wanted, self._eps = norm, wanted, norm.eps
        self._held = (norm.running_mean, norm.running_var)

    def moved(self, mean: Tensor, variance: Tensor) -> Moments:
        held_mean, held_variance = self._held
        if self._wanted is not None and held_mean is not None and held_variance is not None:
            was_mean, was_variance = (moment.to(mean.device) for moment in self._wanted)
            grown = (variance + self._eps) / (was_variance + self._eps)
            mean = mean - (was_mean - held_mean) * grown.sqrt()
            variance = ((held_variance + self._eps) * grown - self._eps).clamp_min(0)
        self._norm.running_mean, self._norm.running_var = mean, variance
        return mean, variance


@torch.no_grad()
def _run(network: nn.Module, batches: Sequence[Inputs], meters: Mapping[str, _Meter]) -> None:
    norms = _norms(network)
    hooks = [norms[name].register_forward_pre_hook(meter) for name, meter in meters.items()]
    try:
        with _evaluating(network):
            for batch in batches:
                network(*batch)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

"""One step of pruning: what to take, taking it, and looking whether the network is still the same otherwise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from edgecv.compression.allocation import Block, Costs, Ledger, blocks_of, remove_blocks, remove_to, removed_units
from edgecv.compression.batchnorm import input_moments, match_batch_norm
from edgecv.compression.channels import Group, widths
from edgecv.compression.dependencies import find_groups
from edgecv.compression.importance import Loss, importance
from edgecv.compression.removal import Inputs, Kept, remove, same_as_masked, what_stays
from edgecv.errors import ConversionError, InputError
from edgecv.models.counting import count
from edgecv.plugins import unknown

if TYPE_CHECKING:
    from edgecv.compression.pruning import PruneConfig

__all__ = ["Planner"]


class Planner:
    """Prunes a network towards the ratios of a config, which are shares of what ``network`` costs and holds now."""

    def __init__(
        self,
        network: nn.Module,
        config: PruneConfig,
        inputs: Inputs,
        batches: Sequence[Inputs],
        losses: Sequence[Loss],
    ) -> None:
        self._config, self._inputs, self._batches, self._losses = config, inputs, batches, losses
        self._costs = _costs(network, inputs)
        self._widths = {name: widths(layer) for name, layer in network.named_modules()}
        for name in (*config.protect, *config.layers):
            if name not in self._widths or not name:
                raise InputError(unknown("layer", name, [known for known in self._widths if known]))

    def prune(self, network: nn.Module, share: float) -> nn.Module:
        """A copy of ``network`` with ``share`` of all that is to be taken gone.

        Raises:
            InputError: the ratios are out of reach.
            ConversionError: the network cannot be traced, or it is not the same without the channels that went.
        """
        groups, reasons = find_groups(network, self._inputs, self._config.protect)
        scores = importance(network, groups, self._config.importance, losses=self._losses, seed=self._config.seed)
        groups = [group for group in groups if group.name in scores]
        pruned, stays = self._taken(network, groups, scores, reasons, share)
        if not same_as_masked(network, pruned, stays, self._inputs):
            wrong = [group for group in groups if not self._is_sound(network, group)]
            reasons.update({group.name: "what depends on its channels is not understood" for group in wrong})
            rest = [group for group in groups if group not in wrong]
            pruned, stays = self._taken(network, rest, scores, reasons, share)
            if not same_as_masked(network, pruned, stays, self._inputs):
                raise ConversionError(
                    f"{type(network).__name__} answers otherwise once channels are taken out: its forward pass depends "
                    "on their number; protect the layers it looks at"
                )
        self._match(network, pruned, stays)
        return pruned

    def _taken(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        scores: dict[str, Tensor],
        reasons: dict[str, str],
        share: float,
    ) -> tuple[nn.Module, Kept]:
        ledger = Ledger(network, groups, self._inputs, _costs(network, self._inputs))
        blocks = {group.name: self._blocks(group, scores[group.name] / self._price(ledger, group)) for group in groups}
        removed = self._by_layer(ledger, groups, blocks, reasons, share)
        named = {block.group.name for block in removed} | self._asked(groups)
        limit = self._limit(share)
        free = {name: some for name, some in blocks.items() if name not in named}
        removed += remove_to(ledger, free, limit)
        if not ledger.costs.within(limit):
            raise InputError(self._out_of_reach(ledger.costs, reasons))
        pruned, stays = copy.deepcopy(network), what_stays(network, removed_units(removed))
        remove(pruned, stays)
        return pruned, stays

    def _blocks(self, group: Group, scores: Tensor) -> list[Block]:
        held = self._widths[group.name]
        width = held[1] if held else group.width
        uniform = width if self._config.scope == "uniform" else None
        least = width * self._config.smallest
        return blocks_of(group, scores, round_to=self._config.round_to, least=least, uniform_width=uniform)

    def _price(self, ledger: Ledger, group: Group) -> float:
        """The share of what is to be saved that one unit of a group costs: a unit is worth its importance for that."""
        price = ledger.price(group)
        shares = price.macs / self._costs.macs, price.parameters / self._costs.parameters
        asked = self._config.macs_ratio is not None, self._config.params_ratio is not None
        return max(1e-12, sum(share for share, wanted in zip(shares, asked, strict=True) if wanted))

    def _asked(self, groups: Iterable[Group]) -> set[str]:
        return {group.name for group in groups for name in self._config.layers if _makes(group, name)}

    def _by_layer(
        self,
        ledger: Ledger,
        groups: Sequence[Group],
        blocks: dict[str, list[Block]],
        reasons: dict[str, str],
        share: float,
    ) -> list[Block]:
        """What the ratios of single layers take."""
        removed = []
        for name, ratio in self._config.layers.items():
            found = [group for group in groups if _makes(group, name)]
            if not found:
                why = next(
                    (reason for layer, reason in reasons.items() if _is_below(layer, name)), "it makes no channels"
                )
                raise InputError(f"layers: {name!r} cannot be pruned: {why}")
            for group in found:
                held = self._widths[group.name]
                wanted = (held[1] if held else group.width) * (1 - share * (1 - ratio))
                removed += remove_blocks(ledger, blocks[group.name], wanted)
        return removed

    def _limit(self, share: float) -> Costs:
        macs, parameters = (
            math.inf if ratio is None else whole * (1 - share * (1 - ratio))
            for ratio, whole in (
                (self._config.macs_ratio, self._costs.macs),
                (self._config.params_ratio, self._costs.parameters),
            )
        )
        return Costs(macs, parameters)

    def _out_of_reach(self, reached: Costs, reasons: dict[str, str]) -> str:
        macs, parameters = reached.macs / self._costs.macs, reached.parameters / self._costs.parameters
        whole = ", ".join(f"{name!r}: {why}" for name, why in list(reasons.items())[:4])
        return (
            f"the least that can stay is {macs:.3f} of the MACs and {parameters:.3f} of the parameters, with "
            f"round_to={self._config.round_to}, smallest={self._config.smallest:g} and layers that stay whole "
            f"({whole}); ask for a larger ratio, or for smaller ones of these"
        )

    def _is_sound(self, network: nn.Module, group: Group) -> bool:
        """Whether the network stays the same when the first unit of one group goes."""
        stays = what_stays(network, [(group, [0])])
        if any(not mask.any() for mask in stays.values()):
            return True  # nothing would be left; such a group is never cut
        pruned = copy.deepcopy(network)
        remove(pruned, stays)
        return same_as_masked(network, pruned, stays, self._inputs)

    def _match(self, network: nn.Module, pruned: nn.Module, stays: Kept) -> None:
        """Move the statistics of batch norms by as much as what comes in has changed."""
        if not self._batches:
            return
        before = input_moments(network, self._batches)
        wanted = {}
        for name, moments in before.items():
            mask = stays.get((name, "both"))
            mean, variance = moments
            wanted[name] = moments if mask is None else (mean[mask.to(mean.device)], variance[mask.to(mean.device)])
        match_batch_norm(pruned, self._batches, wanted)


def _costs(network: nn.Module, inputs: Inputs) -> Costs:
    counts = count(network, inputs=inputs)
    return Costs(counts.macs, counts.parameters)


def _makes(group: Group, name: str) -> bool:
    return any(place.side != "in" and _is_below(place.layer, name) for place in group.places)


def _is_below(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")

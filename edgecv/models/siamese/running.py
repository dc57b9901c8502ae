"""A tracker network in PyTorch as the tracker that a bundle would give: the reference, before anything is converted."""

from __future__ import annotations

from edgecv.models.siamese.branches import SearchBranch, Siamese, TemplateBranch
from edgecv.pipelines.tracking import Tracker
from edgecv.runtimes.pt import TorchSession
from edgecv.runtimes.session import SessionOptions

__all__ = ["tracker_of"]


def tracker_of(network: Siamese, threads: int | None = None) -> Tracker:
    """Run ``network`` on PyTorch, in eval mode; it is shared with the tracker, not copied."""
    branches = TemplateBranch(network), SearchBranch(network)
    options = SessionOptions(threads=threads)
    template, search = (TorchSession(one, one.inputs, one.outputs, options) for one in branches)
    return Tracker(template, search, network.settings)

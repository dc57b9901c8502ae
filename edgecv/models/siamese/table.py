"""The table of tracker networks."""

from __future__ import annotations

from edgecv.models.siamese.branches import Siamese
from edgecv.plugins import Table

__all__ = ["TRACKERS", "create_tracker"]

TRACKERS = Table(
    kind="tracker",
    group="edgecv.trackers",
    builtin={
        "nanotrack_v1": "edgecv.models.siamese.nanotrack:nanotrack_v1",
        "nanotrack_v2": "edgecv.models.siamese.nanotrack:nanotrack_v2",
        "siamfc_alexnet": "edgecv.models.siamese.siamfc:siamfc_alexnet",
        "siamfc_mobilenet": "edgecv.models.siamese.siamfc:siamfc_mobilenet",
        "siamrpn_mobile": "edgecv.models.siamese.siamrpn:siamrpn_mobile",
    },
)


def create_tracker(name: str) -> Siamese:
    """Build a tracker network, with fresh weights, from one of ``TRACKERS.names()``."""
    network: Siamese = TRACKERS.load(name)()
    return network

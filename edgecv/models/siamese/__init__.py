"""Siamese trackers: one file per family, one table of names."""

from edgecv.models.siamese.branches import SearchBranch, Siamese, TemplateBranch
from edgecv.models.siamese.table import TRACKERS, create_tracker

__all__ = ["TRACKERS", "SearchBranch", "Siamese", "TemplateBranch", "create_tracker"]

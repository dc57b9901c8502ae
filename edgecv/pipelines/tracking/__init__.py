"""Tracking: the pipeline, the sequences it is scored on, and how it is scored."""

from edgecv.pipelines.tracking.confidence import Confidence
from edgecv.pipelines.tracking.multi import MultiTracker
from edgecv.pipelines.tracking.results import write_results
from edgecv.pipelines.tracking.scoring import Run, Scores, evaluate_tracker, run_sequence, score_all, score_sequence
from edgecv.pipelines.tracking.sequences import TrackSequence, open_sequences
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.pipelines.tracking.target import TrackState
from edgecv.pipelines.tracking.tracker import Tracker

__all__ = [
    "Confidence",
    "MultiTracker",
    "Run",
    "Scores",
    "TrackSequence",
    "TrackState",
    "Tracker",
    "TrackerSettings",
    "evaluate_tracker",
    "open_sequences",
    "run_sequence",
    "score_all",
    "score_sequence",
    "write_results",
]

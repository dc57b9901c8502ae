"""Training: data to batches, augmentation, the loop, and runs that survive being killed."""

from edgecv.training.augment import Augment
from edgecv.training.config import TrainConfig
from edgecv.training.loop import TrainResult, train
from edgecv.training.tracking_pairs import PairConfig, TrackingPairs
from edgecv.training.validation import PairScores

__all__ = ["Augment", "PairConfig", "PairScores", "TrackingPairs", "TrainConfig", "TrainResult", "train"]

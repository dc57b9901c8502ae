"""Training: data to batches, augmentation, the loop, and runs that survive being killed."""

from edgecv.training.augment import Augment
from edgecv.training.config import TrainConfig
from edgecv.training.loop import TrainResult, train

__all__ = ["Augment", "TrainConfig", "TrainResult", "train"]

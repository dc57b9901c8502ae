"""What an app calls: preprocessing, sessions and postprocessing in one object."""

from edgecv.pipelines.classifier import Classification, Classifier
from edgecv.pipelines.embedder import Embedder
from edgecv.pipelines.gallery import Gallery, Match
from edgecv.pipelines.loading import load

__all__ = ["Classification", "Classifier", "Embedder", "Gallery", "Match", "load"]

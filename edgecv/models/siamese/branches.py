"""The two graphs of a Siamese tracker, as networks of their own: uint8 frames in, normalization inside."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from edgecv.models.framed import Framed
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.preprocess import Preprocess
from edgecv.tensors import TensorSpec

__all__ = ["SearchBranch", "Siamese", "TemplateBranch"]


class Siamese(nn.Module):
    """A tracker network: images are float ``[batch, 3, side, side]`` in the range and order of ``preprocess``.

    Attributes:
        settings: how a tracker runs the network and reads its answers.
        preprocess: what images the network takes; its ``size`` is the search crop's.
    """

    def __init__(self, settings: TrackerSettings, preprocess: Preprocess) -> None:
        super().__init__()
        self.settings = settings
        self.preprocess = preprocess

    def forward(self, exemplar: Tensor, image: Tensor) -> Any:
        return self.search(self.template(exemplar), image)

    @abstractmethod
    def template(self, image: Tensor) -> Tensor:
        """What is searched for: ``[batch, channels, rows, columns]``, computed once per target."""

    @abstractmethod
    def search(self, features: Tensor, image: Tensor) -> Any:
        """Where it is: ``score``, or ``score`` and ``box``, as the head in ``settings`` reads them."""


class TemplateBranch(nn.Module):
    """``template`` uint8 ``[batch, exemplar, exemplar, 3]`` RGB to ``features``.

    Attributes:
        inputs, outputs: of the graph; sizes of the features are left open.
    """

    def __init__(self, network: Siamese) -> None:
        super().__init__()
        self.network, self.framed = network, Framed(network, network.preprocess)
        side = network.settings.exemplar
        self.inputs = (TensorSpec("template", "uint8", (None, side, side, 3)),)
        self.outputs = (TensorSpec("features", "float32", (None, None, None, None)),)

    def forward(self, template: Tensor) -> Tensor:
        return self.network.template(self.framed.normalize(template))


class SearchBranch(nn.Module):
    """``features`` and ``search`` uint8 ``[batch, search, search, 3]`` RGB to ``score`` and most often ``box``.

    Attributes:
        inputs, outputs: of the graph; sizes of features and answers are left open.
    """

    def __init__(self, network: Siamese) -> None:
        super().__init__()
        self.network, self.framed = network, Framed(network, network.preprocess)
        side, free = network.settings.search, (None, None, None, None)
        self.inputs = (
            TensorSpec("features", "float32", free),
            TensorSpec("search", "uint8", (None, side, side, 3)),
        )
        names = ("score",) if network.settings.head == "peak" else ("score", "box")
        self.outputs = tuple(TensorSpec(name, "float32", free) for name in names)

    def forward(self, features: Tensor, search: Tensor) -> Any:
        return self.network.search(features, self.framed.normalize(search))

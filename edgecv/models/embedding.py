"""A Siamese embedding network: any classifier's layers, ending in a unit vector instead of logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgecv.errors import InputError
from edgecv.models.recipe import Recipe

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """Images ``[batch, 3, height, width]`` to vectors ``[batch, dims]`` of length 1, compared by their dot product.

    All branches of a Siamese network share these weights, so one graph serves them all. (Chopra, Hadsell & LeCun, 2005;
    the normalization is FaceNet's: Schroff et al., 2015, arXiv:1503.03832.)

    Args:
        backbone: the name of a classifier; its last layer gives ``dims`` numbers in place of class scores.
        dims: length of the vectors.
        options: the backbone's own, such as ``{"width": 0.5, "stem": "small"}``.
    """

    def __init__(self, backbone: str = "mobilenet_v2", dims: int = 128, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        if not isinstance(dims, int) or dims < 2:
            raise InputError(f"dims is a whole number from 2, got {dims!r}")
        self.backbone = Recipe(backbone, {**(options or {}), "num_classes": dims}).build()

    def forward(self, image: Tensor) -> Tensor:
        return functional.normalize(self.backbone(image), dim=1)

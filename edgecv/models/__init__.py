"""Networks: one file per architecture family, one table of names."""

from edgecv.models.checkpoint import load_checkpoint, save_checkpoint
from edgecv.models.counting import Counts, count
from edgecv.models.framed import Framed
from edgecv.models.recipe import Recipe, create, names, native_size, preprocess_of, recipe_of

__all__ = [
    "Counts",
    "Framed",
    "Recipe",
    "count",
    "create",
    "load_checkpoint",
    "names",
    "native_size",
    "preprocess_of",
    "recipe_of",
    "save_checkpoint",
]

"""The name, dtype and shape of a graph's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecv.errors import InputError

__all__ = ["Array", "TensorSpec"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one graph input or output.

    ``None`` in a shape is any size of at least 1; a shape of ``None`` is any rank.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    _numpy: np.dtype[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            dtype = np.dtype(object)
        if dtype.kind not in "biuf" or dtype.name != self.dtype:
            raise InputError(f"tensor {self.name!r} has dtype {self.dtype!r}; edgecv handles numeric tensors only")
        object.__setattr__(self, "_numpy", dtype)

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype."""
        return self._numpy

    def accepts(self, array: Array) -> bool:
        """Tell whether ``array`` has this dtype and shape."""
        if array.dtype != self._numpy:
            return False
        if self.shape is None:
            return True
        shape = array.shape
        if len(shape) != len(self.shape):
            return False
        for size, wanted in zip(shape, self.shape, strict=True):
            if size != wanted and (wanted is not None or size == 0):
                return False
        return True

    def check(self, array: Array, role: str = "input") -> None:
        """Raise ``InputError`` unless ``array`` is a numpy array of this dtype and shape."""
        if not isinstance(array, np.ndarray):
            raise InputError(f"{role} {self.name!r} takes a numpy array {self}, got {type(array).__name__}")
        if not self.accepts(array):
            raise InputError(f"{role} {self.name!r} takes {self}, got {array.dtype}{list(array.shape)}")

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[…]"
        return f"{self.dtype}[{', '.join('any' if size is None else str(size) for size in self.shape)}]"

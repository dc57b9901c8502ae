"""Sessions on PyTorch: the reference that every other backend is compared with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from edgecv.errors import InputError, one_line
from edgecv.models.checkpoint import read_checkpoint
from edgecv.models.framed import Framed
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import Array, TensorSpec

__all__ = ["TorchSession"]


class TorchSession(Session):
    """A network run by PyTorch in eval mode, on a copy of its own.

    ``threads`` is a setting of the whole process in PyTorch: it is changed for the length of each run and put back.

    Args:
        module: takes tensors in the order of ``inputs`` and gives a tensor, or a tuple or list in the order of
            ``outputs``.
    """

    backend = "torch"
    suffixes = (".safetensors",)

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: SessionOptions | None = None,
    ) -> None:
        super().__init__(inputs, outputs, options)
        try:
            self._device = torch.device(self.options.device)
            self._module: nn.Module | None = copy.deepcopy(module).eval().to(self._device)
        except RuntimeError as error:
            raise InputError(f"torch cannot use device {self.options.device!r}: {one_line(error)}") from error

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> TorchSession:
        network, card = read_checkpoint(path)
        if card.preprocess is None:
            raise InputError(f"{path} does not say how images are preprocessed: save it with preprocess=")
        return cls.from_network(network, card.preprocess, options=options)

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        preprocess: Preprocess,
        *,
        output: str = "logits",
        options: SessionOptions | None = None,
    ) -> TorchSession:
        """Run an image network as its exported graph would: uint8 frames in, ``preprocess``'s normalization inside.

        Raises:
            InputError: the network refuses such images, or gives anything but one tensor ``[batch, …]``.
        """
        framed = Framed(network, preprocess)
        image = TensorSpec("image", "uint8", (None, *preprocess.size, 3))
        return cls(framed, [image], [_probe(framed, preprocess.size, output)], options)

    @staticmethod
    def describe() -> str:
        devices = ["CPU"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"torch {torch.__version__} ({', '.join(devices)})"

    @property
    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        module = self._module
        if module is None:
            raise InputError("this session is closed; open another")
        tensors = [torch.from_numpy(inputs[spec.name].copy()).to(self._device) for spec in self.inputs]
        try:
            with torch.inference_mode(), _threads(self.options.threads):
                results = module(*tensors)
        except RuntimeError as error:
            raise InputError(f"torch could not run the network: {one_line(error)}") from error
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        return {spec.name: result.cpu().numpy().copy() for spec, result in zip(self.outputs, results, strict=True)}

    def _close(self) -> None:
        self._module = None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(framed: Framed, size: tuple[int, int], output: str) -> TensorSpec:
    """Run two black frames to learn the output's dtype and shape."""
    probe = copy.deepcopy(framed).eval()
    device = next((parameter.device for parameter in probe.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            result = probe.to(device)(torch.zeros(2, *size, 3, dtype=torch.uint8, device=device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{type(framed.network).__name__} does not take images of {size[0]}x{size[1]}: {one_line(error)}"
        ) from error
    if not isinstance(result, torch.Tensor) or result.ndim < 1 or result.shape[0] != 2:
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        name = type(framed.network).__name__
        raise InputError(f"{name} must give one tensor [batch, …], got {shape} for a batch of 2")
    return TensorSpec(output, str(result.dtype).removeprefix("torch."), (None, *result.shape[1:]))

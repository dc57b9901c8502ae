"""Published weights, and weights from files, into networks: nothing is unpickled."""

from __future__ import annotations

import pickle  # noqa: TID251  (only to name the error of torch.load, which reads tensors and plain values alone)
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgecv.errors import InputError, one_line
from edgecv.models.downloads import fetch
from edgecv.models.recipe import library_of
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = ["PUBLISHED", "Published", "load_weights", "read_weights"]

SUFFIXES = (".bin", ".pt", ".pth", ".safetensors", ".th")


@dataclass(frozen=True, slots=True)
class Published:
    """Weights that others trained and published.

    ``top1`` and ``top5`` are the publisher's, in percent on ImageNet's 50,000 validation images; ``sha256`` is what the
    publisher states of it (torchvision: the first 8 digits, in the file's name).
    """

    url: str
    sha256: str
    top1: float
    top5: float
    preprocess: Preprocess
    licence: str = "BSD-3-Clause"


def _torchvision(file: str, top1: float, top5: float, resize: int = 256) -> Published:
    digits = file.rpartition("-")[2].partition(".")[0]
    preprocess = Preprocess(size=(224, 224), resize=resize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Published(f"https://download.pytorch.org/models/{file}", digits, top1, top5, preprocess)


# torchvision's newest weights of each architecture, as its documentation lists them.
PUBLISHED = {
    "mobilenet_v2": _torchvision("mobilenet_v2-7ebf99e0.pth", 72.154, 90.822, 232),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large-5c1a4163.pth", 75.274, 92.566, 232),
    "mobilenet_v3_small": _torchvision("mobilenet_v3_small-047dcff4.pth", 67.668, 87.402),
    "resnet18": _torchvision("resnet18-f37072fd.pth", 69.758, 89.078),
    "resnet34": _torchvision("resnet34-b627a593.pth", 73.314, 91.420),
    "resnet50": _torchvision("resnet50-11ad3fa6.pth", 80.858, 95.434, 232),
    "squeezenet1_0": _torchvision("squeezenet1_0-b66bff10.pth", 58.092, 80.420),
    "squeezenet1_1": _torchvision("squeezenet1_1-b8a52dc0.pth", 58.178, 80.624),
}


def load_weights(network: nn.Module, name: str, weights: str | Path, progress: Progress = silent) -> None:
    """Load ``weights`` (a file, or ``"imagenet"``) into a network of the architecture ``name``.

    Every key must fit, except a last layer of another number of classes, which stays as it is.

    Raises:
        InputError: the file is missing, broken or does not fit, or there are no published weights of that name.
        BackendUnavailable: the published weights cannot be downloaded.
    """
    if Path(weights).suffix in SUFFIXES:
        state = read_weights(weights)
    elif str(weights) != "imagenet":
        raise InputError(f"weights are a file ({', '.join(SUFFIXES)}) or 'imagenet', got {str(weights)!r}")
    elif ":" in name:
        library, _, short = name.partition(":")
        state = library_of(library).load_published(short, progress)
    elif name not in PUBLISHED:
        raise InputError(unknown("published weights for", name, PUBLISHED))
    else:
        found = PUBLISHED[name]
        state = read_weights(fetch(found.url, found.sha256, progress=progress))
        network.edgecv_preprocess = found.preprocess  # type: ignore[assignment]  # a plain attribute
    _load(network, state, str(weights))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` or a PyTorch file; ``module.`` in front of keys is taken off.

    Raises:
        InputError: the file is missing, broken, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a readable weights file: {one_line(error)}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(map(_named_tensor, found.items())):
        raise InputError(f"{path} holds no state dict: names with tensors were expected")
    return {key.removeprefix("module."): value for key, value in found.items()}


# torch.load of a file that is none of its own: any of these, depending on the first bytes.
_UNREADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError,
    ValueError, pickle.UnpicklingError, struct.error,
)  # fmt: skip


def _named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    wanted = network.state_dict()
    last = next(reversed(wanted)).rpartition(".")[0]
    fresh = {key: value for key, value in wanted.items() if key.rpartition(".")[0] == last}
    if all(key in state and _other_classes(state[key], value) for key, value in fresh.items()):
        state = {**state, **fresh}
    versioned = OrderedDict(state)
    # Some networks (torchvision's MNASNet) refuse a state dict that does not say its version, as files seldom do. The
    # layers' versions stay unsaid: batch norms then forgive what old files lack.
    versioned._metadata = {"": wanted._metadata.get("", {})}  # type: ignore[attr-defined]  # torch's own place for it
    try:
        network.load_state_dict(versioned, strict=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{source} does not fit {type(network).__name__}: {one_line(error)}") from error


def _other_classes(value: Tensor, wanted: Tensor) -> bool:
    """The same layer for another number of classes; a transposed one, for instance, is not."""
    return value.dim() == wanted.dim() and value.shape[1:] == wanted.shape[1:] and value.shape != wanted.shape

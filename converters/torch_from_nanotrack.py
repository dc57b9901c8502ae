"""The pair of ONNX files that NanoTrack is published as, to a network: its weights, proven to give its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import nn

from edgecv.errors import BackendUnavailable, ConversionError, InputError, one_line
from edgecv.models.siamese.nanotrack import NanoTrack
from edgecv.models.siamese.table import create_tracker
from edgecv.runtimes.registry import session_class
from edgecv.runtimes.session import Session, SessionOptions

__all__ = ["torch_from_nanotrack"]

Floats = NDArray[np.float32]
TOLERANCE = 1e-4  # of an answer, where it is larger than 1 as a share of it
# The published heads compute v2's correlation for boxes in front of the one for scores.
VERSIONS = (
    ("nanotrack_v1", ("correlations.0", "score", "logits", "box", "sides")),
    ("nanotrack_v2", ("correlations.1", "correlations.0", "score", "logits", "box", "sides")),
)


def torch_from_nanotrack(backbone: str | Path, head: str | Path, **options: Any) -> NanoTrack:
    """Load the weights of a published pair into our network of the same version, which takes any crop and batch.

    The batch norms that the files have folded into their convolutions become the identity. The network is returned, in
    eval mode, if it gives the files' answers on ONNX Runtime to 1e-4, absolute and relative.

    Args:
        options: of the variant that is wanted then, such as ``search=191``, ``color="rgb"`` or ``window=0.455``: what
            the layers' shapes do not depend on.

    Raises:
        InputError: a file is missing or is no ONNX file, or an option changes the layers.
        ConversionError: the files are not NanoTrack v1 or v2, or the network's answers differ.
        BackendUnavailable: ONNX Runtime is not installed.
    """
    parts = [_layers(Path(path)) for path in (backbone, head)]
    for name, order in VERSIONS:
        network = cast(NanoTrack, create_tracker(name).eval())
        wanted = [list(_modules(network, ["backbone"])), list(_modules(network, order))]
        if all(_fits(*pair) for pair in zip(wanted, parts, strict=True)):
            for modules, layers in zip(wanted, parts, strict=True):
                _fill(modules, layers)
            _compare(network, Path(backbone), Path(head))
            return _with_options(name, network, options) if options else network
    found = " and ".join(str(len(layers)) for layers in parts)
    raise ConversionError(f"{backbone} and {head} have {found} layers, not those of NanoTrack v1 or v2")


def _with_options(name: str, network: NanoTrack, options: dict[str, Any]) -> NanoTrack:
    wanted = cast(NanoTrack, create_tracker(name, **options).eval())
    try:
        wanted.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise InputError(f"{', '.join(options)}: published weights keep their layers' shapes") from error
    return wanted


Layer = tuple[Floats, Floats | None]  # weight and bias, as PyTorch has them


def _layers(path: Path) -> list[Layer]:
    """The convolutions and linear layers of a file, in the order in which they run."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; an .onnx file was expected")
    try:
        graph = onnx.load(str(path)).graph
    except (OSError, DecodeError, ValueError) as error:
        raise InputError(f"cannot read {path} as an ONNX file: {one_line(error)}") from error
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in constants:
            turned = any(item.name == "transB" and item.i == 0 for item in node.attribute)
            weight = constants[node.input[1]].T if turned else constants[node.input[1]]
            found.append((weight, constants.get(node.input[2]) if len(node.input) > 2 else None))
    return found


Module = tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d | None]


def _modules(network: nn.Module, names: Iterable[str]) -> Iterator[Module]:
    """The same layers of ours, each with the batch norm behind it."""
    for name in names:
        modules = [part for part in network.get_submodule(name).modules() if not list(part.children())]
        for module, after in zip(modules, [*modules[1:], None], strict=True):
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield module, after if isinstance(after, nn.BatchNorm2d) else None


def _fits(modules: list[Module], layers: list[Layer]) -> bool:
    shapes = [tuple(module.weight.shape) for module, _ in modules]
    return shapes == [weight.shape for weight, _ in layers]


def _fill(modules: list[Module], layers: list[Layer]) -> None:
    with torch.no_grad():
        for (module, norm), (weight, bias) in zip(modules, layers, strict=True):
            module.weight.copy_(torch.from_numpy(weight.copy()))
            shift = torch.from_numpy(bias.copy()) if bias is not None else torch.zeros(len(weight))
            if norm is not None:
                _be_identity(norm, shift)
            if module.bias is not None:
                module.bias.copy_(torch.zeros_like(shift) if norm is not None else shift)


def _be_identity(norm: nn.BatchNorm2d, shift: torch.Tensor) -> None:
    """A batch norm that adds ``shift`` and nothing else."""
    if norm.running_mean is None or norm.running_var is None:
        raise ConversionError("a batch norm without running statistics cannot be made the identity")
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.fill_((1.0 + norm.eps) ** 0.5)
    norm.bias.copy_(shift)


def _compare(network: NanoTrack, backbone: Path, head: Path) -> None:
    """Run a noisy crop through both: noise has every frequency, so no layer is left out."""
    side, exemplar = network.settings.search, network.settings.exemplar
    random = np.random.default_rng(0)
    crop = random.integers(0, 256, (1, 3, side, side)).astype(np.float32)
    with torch.inference_mode():
        image = torch.from_numpy(crop)
        features, kernel = network.template(image), network.template(image[..., :exemplar, :exemplar])
        ours = [features, *network.compare(kernel, features)]
    with _open(backbone) as body, _open(head) as top:
        theirs = _first(body, [crop])
        answers = [theirs[0], *_first(top, [kernel.numpy(), theirs[0]])]
    for mine, published in zip((tensor.numpy() for tensor in ours), answers, strict=True):
        apart = np.abs(mine - published) / np.maximum(np.abs(published), 1)
        if mine.shape != published.shape or not apart.max() <= TOLERANCE:
            raise ConversionError(
                f"{backbone} and {head} have NanoTrack's layers but other answers: they differ by {apart.max():.3g}"
            )


def _open(path: Path) -> Session:
    try:
        return session_class("onnxruntime").open(path, SessionOptions(threads=1))
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"published graphs are compared with their network on ONNX Runtime: {error}"
        ) from error


def _first(session: Session, values: list[Floats]) -> list[Floats]:
    """Inputs and outputs by their place: their names differ between versions."""
    names = [spec.name for spec in session.inputs]
    try:
        found = session.run(dict(zip(names, values, strict=True)))
    except (InputError, ValueError) as error:
        raise ConversionError(f"the published graph does not take NanoTrack's crops: {one_line(error)}") from error
    return list(found.values())

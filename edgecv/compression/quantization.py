"""``quantize``: from a float network to one that rounds as integers do, and is still a PyTorch network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn

from edgecv.compression.calibration import Calibration, batches_of
from edgecv.compression.capture import capture
from edgecv.compression.equalization import equalize
from edgecv.compression.placement import insert_quantizers, is_quantized, layers_of
from edgecv.compression.ptq import calibrate, correct
from edgecv.compression.ranges import METHODS, RangeMethod
from edgecv.errors import InputError
from edgecv.models.recipe import recipe_of
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = ["QuantizeConfig", "quantize", "rebuild"]


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """How a network is quantized. The defaults give a file that is right on every CPU.

    Args:
        weight_bits: 8, or 7, which never saturates on x86 without VNNI: there, two products of 8-bit weights with
            8-bit activations may not fit the 16 bits they are added in.
        layer_bits: other bits for some layers, by name: 2 to 8, or 0 for a layer that stays float.
        activation_range: how the range of an activation is chosen, see ``activation_range``.
        weight_range: the same for the scale of a channel's weights, see ``weight_scale``.
        equalize: bring the channels of neighbouring layers to equal ranges first, see ``equalize``.
        bias_correction: let each layer's mean output be what it was, see ``correct``.
        adaround: steps of choosing each layer's rounding by its output; 0 rounds to the nearest. Takes minutes.
        seed: of AdaRound.
    """

    weight_bits: int = 7
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    activation_range: RangeMethod = "mse"
    weight_range: Literal["minmax", "mse"] = "minmax"
    equalize: bool = False
    bias_correction: bool = True
    adaround: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weight_bits not in (7, 8):
            raise InputError(f"weight_bits is 7 or 8, got {self.weight_bits!r}")
        if wrong := {name: bits for name, bits in self.layer_bits.items() if bits not in (0, 2, 3, 4, 5, 6, 7, 8)}:
            name, bits = next(iter(wrong.items()))
            raise InputError(f"layer_bits are 2 to 8, or 0 for float; {name!r} has {bits!r}")
        if self.activation_range not in METHODS:
            raise InputError(unknown("activation_range", self.activation_range, METHODS))
        if self.weight_range not in ("minmax", "mse"):
            raise InputError(f"weight_range is 'minmax' or 'mse', got {self.weight_range!r}")
        if not isinstance(self.adaround, int) or self.adaround < 0:
            raise InputError(f"adaround is a number of steps from 0, got {self.adaround!r}")
        if self.adaround and not self.bias_correction:
            raise InputError("adaround goes through the layers as bias correction does: leave bias_correction on")


def quantize(
    network: nn.Module,
    calibration: Calibration,
    config: QuantizeConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """Quantize a network to 8-bit integers from some real images. ``network`` itself is left as it was.

    The result is a network that rounds its weights and activations as integer arithmetic will, with batch norms folded
    into convolutions. It can be trained further (``edgecv.train``: quantization-aware training, weights and ranges both
    learn), saved, loaded and converted as any other; ``edgecv.convert`` writes it as int8 for every backend.

    Args:
        calibration: some 100 images like those the network will see, without labels; see ``Calibration``.
        preprocess: what the network was trained with, for calibration on frames.

    Raises:
        ConversionError: torch.export cannot capture the network.
        InputError: the calibration does not fit the network, it has no layer to quantize, or is quantized already.
    """
    config = config or QuantizeConfig()
    if is_quantized(network):
        raise InputError(f"{type(network).__name__} is quantized already")
    batches = batches_of(calibration, preprocess)
    shapes = [list(tensor.shape[1:]) for tensor in batches[0]]
    graph = capture(network, shapes)
    bits = _bits(graph, config)
    if config.equalize:
        equalize(graph)
    insert_quantizers(graph, bits)
    calibrate(graph, batches, config.activation_range, config.weight_range, progress)
    if config.bias_correction:
        correct(graph, batches, adaround=config.adaround, seed=config.seed, progress=progress)
    recipe = recipe_of(network)
    if recipe is not None:
        step = recipe.then("quantize", {"shapes": shapes, "bits": bits})
        graph.edgecv_recipe = step  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
    return graph


def rebuild(network: nn.Module, settings: Mapping[str, Any]) -> fx.GraphModule:
    """The structure that ``quantize`` gave ``network``, with ranges and weights still to be loaded.

    Raises:
        InputError: the settings are not those of a recipe step, or do not fit the network.
    """
    shapes, bits = settings.get("shapes"), settings.get("bits")
    if not _are_shapes(shapes) or not isinstance(bits, dict) or set(settings) != {"shapes", "bits"}:
        raise InputError("a recipe's quantize step has shapes and bits")
    graph = capture(network, shapes)  # type: ignore[arg-type]
    known = layers_of(graph)
    for name, value in bits.items():
        if name not in known or value not in range(2, 9):
            raise InputError(f"a recipe's quantize step: {name!r} with {value!r} bits is no layer of this network")
    insert_quantizers(graph, bits)
    return graph.eval()


def _bits(graph: fx.GraphModule, config: QuantizeConfig) -> dict[str, int]:
    known = layers_of(graph)
    for name in config.layer_bits:
        if name not in known:
            raise InputError(unknown("layer", name, known))
    bits = {name: config.layer_bits.get(name, config.weight_bits) for name in known}
    bits = {name: value for name, value in bits.items() if value}
    if not bits:
        raise InputError("the network has no convolution or matrix product to quantize")
    return bits


def _are_shapes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) for shape in value
    )

"""``quantize``: from a float network to one that rounds as integers do, and is still a PyTorch network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from torch import fx, nn

from edgecv.compression.calibration import Calibration, Inputs, batches_of
from edgecv.compression.capture import capture
from edgecv.compression.equalization import equalize
from edgecv.compression.levels import fix_levels, read_levels
from edgecv.compression.placement import insert_quantizers, is_quantized, layers_of
from edgecv.compression.ptq import ROUNDINGS, Rounding, calibrate, correct, fit_biases
from edgecv.compression.ranges import METHODS, RangeMethod
from edgecv.compression.sensitivity import costliest, harms
from edgecv.errors import InputError
from edgecv.models.recipe import recipe_of
from edgecv.plugins import unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.schema import decode
from edgecv.training import TrainConfig, train
from edgecv.training.batches import Data

__all__ = ["QAT", "QuantizeConfig", "quantize", "rebuild"]

QAT = TrainConfig(
    epochs=4, learning_rate=1e-4, weight_decay=0.0, warmup_epochs=0.25, label_smoothing=0.0, ema_decay=0.99,
    clip_norm=1.0, channels_last=False, distill_weight=0.7, distill_temperature=2.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """How a network is quantized. The defaults give a file that is right on every CPU.

    Args:
        weight_bits: 8, or 7, which never saturates on x86 without VNNI: there, two products of 8-bit weights with
            8-bit activations may not fit the 16 bits they are added in. Depthwise convolutions have 8 either way:
            kernels add their products in 32 bits.
        layer_bits: other bits for some layers, by name: 2 to 8, or 0 for a layer that stays float.
        activation_range: how the range of an activation is chosen, see ``activation_range``.
        weight_range: the same for the scale of a channel's weights, see ``weight_scale``.
        equalize: bring the channels of neighbouring layers to equal ranges first, see ``equalize``.
        bias_correction: let each layer's mean output be what it was, see ``correct``.
        rounding: how weights are brought to steps of their scale: ``"gptq"`` by what it does to a layer's output, see
            ``round_to_outputs``; ``"adaround"`` likewise, by training, see ``round_adaptively``, which takes longer;
            ``"nearest"`` is the fastest.
        max_drop: how much of ``score`` may be lost; layers that do most harm alone stay float until no more is. With
            ``gains``, those that do most harm for each millisecond that int8 gains in them.
        method: ``"ptq"`` ends with that; ``"qat"`` trains on, see ``training``.
        training: of ``"qat"``: the float network is the teacher, and weights and ranges learn.
        seed: of AdaRound.
    """

    weight_bits: int = 7
    layer_bits: Mapping[str, int] = field(default_factory=dict)
    activation_range: RangeMethod = "mse"
    weight_range: Literal["minmax", "mse"] = "minmax"
    equalize: bool = False
    bias_correction: bool = True
    rounding: Rounding = "gptq"
    max_drop: float | None = None
    method: Literal["ptq", "qat"] = "ptq"
    training: TrainConfig = QAT
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
        if self.rounding not in ROUNDINGS:
            raise InputError(unknown("rounding", self.rounding, ROUNDINGS))
        if self.max_drop is not None and self.max_drop < 0:
            raise InputError(f"max_drop is a loss of score from 0, got {self.max_drop!r}")
        if self.method not in ("ptq", "qat"):
            raise InputError(f"method is 'ptq' or 'qat', got {self.method!r}")


def quantize(
    network: nn.Module,
    calibration: Calibration,
    config: QuantizeConfig | None = None,
    *,
    preprocess: Preprocess | None = None,
    score: Callable[[nn.Module], float] | None = None,
    gains: Callable[[nn.Module], Mapping[str, float]] | None = None,
    train_data: Data | None = None,
    val_data: Data | None = None,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> fx.GraphModule:
    """Quantize a network to 8-bit integers from some real images. ``network`` itself is left as it was.

    The result is a network that rounds its weights and activations as integer arithmetic will, with batch norms folded
    into convolutions. It can be trained further (``edgecv.train``: quantization-aware training, weights and ranges both
    learn), saved, loaded and converted as any other; ``edgecv.convert`` writes it as int8 for every backend.

    Args:
        calibration: some 100 images like those the network will see, without labels; see ``Calibration``.
        preprocess: what the network was trained with, for calibration on frames and for training.
        score: what ``config.max_drop`` is measured in, such as the top-1 of a network on labelled images.
        gains: for ``config.max_drop``: from a quantized network to the milliseconds that int8 gains in each layer, as
            ``edgecv.converters.speed_map.speeds`` measures them. Layers where int8 is no faster are the first to stay
            float.
        train_data, val_data, out: for ``"qat"``, as ``edgecv.train`` takes them.

    Raises:
        ConversionError: torch.export cannot capture the network.
        InputError: the calibration does not fit the network, it has no layer to quantize, or is quantized already.
    """
    config = config or QuantizeConfig()
    if is_quantized(network):
        raise InputError(f"{type(network).__name__} is quantized already")
    if config.max_drop is not None and score is None:
        raise InputError("max_drop needs score=: a function from a network to what may drop")
    if config.method == "qat" and (train_data is None or val_data is None or preprocess is None):
        raise InputError("method 'qat' needs train_data=, val_data= and preprocess=")
    batches = batches_of(calibration, preprocess)
    shapes = [list(tensor.shape[1:]) for tensor in batches[0]]
    graph = capture(network, shapes)
    if config.equalize:
        equalize(graph)
    frames = preprocess if preprocess is not None and read_levels(graph, preprocess) else None
    bits = _bits(graph, config)
    rounded = partial(_rounded, graph, batches=batches, config=config, frames=frames, progress=progress)
    result = rounded(bits)
    if config.max_drop is not None and score is not None:
        least = score(network) - config.max_drop
        if not score(result) >= least:
            order = costliest(harms(result, batches, progress), gains(result) if gains else None)
            result, bits = _bounded(bits, order, rounded, lambda item: score(item) >= least, config.max_drop)
    recipe = recipe_of(network)
    if recipe is not None:
        step = recipe.then("quantize", {"shapes": shapes, "bits": bits, **_frames_settings(frames)})
        result.edgecv_recipe = step  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
    if config.method == "qat" and train_data is not None and val_data is not None and preprocess is not None:
        trained = train(
            result, train_data, val_data, config.training,
            preprocess=preprocess, teacher=network, out=out, progress=progress,
        ).network  # fmt: skip
        result = cast(fx.GraphModule, trained)
        fit_biases(result)
    return result


def _rounded(
    graph: fx.GraphModule,
    bits: Mapping[str, int],
    batches: Sequence[Inputs],
    config: QuantizeConfig,
    frames: Preprocess | None,
    progress: Progress,
) -> fx.GraphModule:
    """A copy of the captured ``graph`` with calibrated and corrected quantizers."""
    graph = copy.deepcopy(graph)
    insert_quantizers(graph, bits)
    calibrate(graph, batches, config.activation_range, config.weight_range, progress)
    if frames is not None:
        fix_levels(graph, frames)
    if config.bias_correction or config.rounding != "nearest":
        correct(graph, batches, config.rounding, biases=config.bias_correction, seed=config.seed, progress=progress)
    fit_biases(graph)
    return graph.eval()


def _bounded(
    bits: dict[str, int],
    order: Sequence[str],
    rounded: Callable[[dict[str, int]], fx.GraphModule],
    good: Callable[[nn.Module], bool],
    max_drop: float,
) -> tuple[fx.GraphModule, dict[str, int]]:
    """The network with the fewest float layers, taken in ``order``, that is ``good``; found by halving.

    Raises:
        InputError: not even one quantized layer is.
    """
    too_few, enough, best = 0, len(order), None
    while enough - too_few > 1:
        count = (too_few + enough) // 2
        kept = {name: value for name, value in bits.items() if name not in order[:count]}
        candidate = rounded(kept)
        if good(candidate):
            enough, best = count, (candidate, kept)
        else:
            too_few = count
    if best is None:
        raise InputError(f"no layer can be quantized within max_drop {max_drop}: leave the network float")
    return best


def rebuild(network: nn.Module, settings: Mapping[str, Any]) -> fx.GraphModule:
    """The structure that ``quantize`` gave ``network``, with ranges and weights still to be loaded.

    Raises:
        InputError: the settings are not those of a recipe step, or do not fit the network.
    """
    shapes, bits, frames = settings.get("shapes"), settings.get("bits"), settings.get("frames")
    if not _are_shapes(shapes) or not isinstance(bits, dict) or set(settings) - {"frames"} != {"shapes", "bits"}:
        raise InputError("a recipe's quantize step has shapes, bits, and how frames are normalized where it reads them")
    graph = capture(network, shapes)  # type: ignore[arg-type]
    preprocess = None if frames is None else _normalization(frames, shapes)
    if preprocess is not None and not read_levels(graph, preprocess):
        raise InputError("a recipe's quantize step: this network does not begin with a convolution of frames")
    known = layers_of(graph)
    for name, value in bits.items():
        if name not in known or value not in range(2, 9):
            raise InputError(f"a recipe's quantize step: {name!r} with {value!r} bits is no layer of this network")
    insert_quantizers(graph, bits)
    if preprocess is not None:
        fix_levels(graph, preprocess)
    return graph.eval()


def _frames_settings(frames: Preprocess | None) -> dict[str, Any]:
    if frames is None:
        return {}
    return {"frames": {"mean": list(frames.mean), "std": list(frames.std), "color": frames.color}}


def _normalization(settings: Any, shapes: Any) -> Preprocess:
    return decode(Preprocess, {"size": shapes[0][-2:], **settings}, "a recipe's quantize step, frames")


def _bits(graph: fx.GraphModule, config: QuantizeConfig) -> dict[str, int]:
    known = layers_of(graph)
    for name in config.layer_bits:
        if name not in known:
            raise InputError(unknown("layer", name, known))
    usual = {name: 8 if all(map(_is_depthwise, nodes)) else config.weight_bits for name, nodes in known.items()}
    bits = {name: config.layer_bits.get(name, usual[name]) for name in known}
    bits = {name: value for name, value in bits.items() if value}
    if not bits:
        raise InputError("the network has no convolution or matrix product to quantize")
    return bits


def _is_depthwise(product: fx.Node) -> bool:
    """Whether each group of a convolution has one channel in and one out."""
    weight = product.args[1].meta["val"].shape  # type: ignore[union-attr]
    groups = product.args[6] if len(product.args) > 6 else 1
    return len(weight) > 2 and weight[1] == 1 and weight[0] == groups


def _are_shapes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape) for shape in value
    )

"""``quantize_tracker``: both graphs of a Siamese tracker rounded as integers do, with one set of weights."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgecv.compression.calibration import BATCH, Inputs
from edgecv.compression.capture import CONVOLUTIONS, Captured, is_call, parameter
from edgecv.compression.placement import quantized_layers
from edgecv.compression.quantization import QuantizeConfig, quantize
from edgecv.compression.quantization import rebuild as rebuild_graph
from edgecv.compression.quantizers import ActivationQuantizer
from edgecv.errors import InputError
from edgecv.models.framed import Framed
from edgecv.models.recipe import recipe_of
from edgecv.models.siamese.branches import SearchBranch, Siamese, TemplateBranch
from edgecv.parity import mean_iou
from edgecv.pipelines.tracking.samples import Crops, Sample, answers, cut_crops
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.runtimes.pt import TorchSession

__all__ = ["TRACKER", "QuantizedTracker", "quantize_tracker", "rebuild"]

TRACKER = QuantizeConfig(max_drop=0.1)
STEP = "quantize_tracker"
SIZE = torch.ops.aten.sym_size.int
PARTS = ("template_graph", "search_graph")


class QuantizedTracker(Siamese):
    """A tracker whose two branches round as integers do. What both of them read, they share: weights and their scales.

    Ranges of activations are each branch's own, for their crops show different shares of target and surroundings.

    Attributes:
        template_graph, search_graph: what ``template`` and ``search`` compute, as quantized networks.
    """

    def __init__(self, network: Siamese, joint: fx.GraphModule) -> None:
        super().__init__(network.settings, _read_bytes(joint, network.preprocess))
        self.template_graph, self.search_graph = _split(joint)
        self.register_state_dict_post_hook(_drop_twins)  # type: ignore[no-untyped-call]  # torch's own
        self.register_load_state_dict_pre_hook(_give_twins)  # type: ignore[no-untyped-call]
        self.eval()

    def template(self, image: Tensor) -> Tensor:
        features: Tensor = self.template_graph(image)
        return features

    def search(self, features: Tensor, image: Tensor) -> Any:
        found = self.search_graph(features, image)
        return found[0] if len(found) == 1 else found


def quantize_tracker(
    network: Siamese,
    samples: Sequence[Sample],
    config: QuantizeConfig | None = None,
    *,
    score: Callable[[Siamese], float] | None = None,
    limit: int = 64,
    progress: Progress = silent,
) -> QuantizedTracker:
    """Quantize both branches of a tracker to 8-bit integers from some real frames. ``network`` is left as it was.

    As ``edgecv.quantize``; ``edgecv.converters.trackers.convert_tracker`` writes the result as int8.

    Args:
        samples: annotated sequences, or pairs of a frame and a box: crops are cut from them as a tracker cuts them.
        config: by default ``TRACKER``: layers that do most harm stay float until a ``max_drop`` of 0.1 is kept.
        score: what ``config.max_drop`` is measured in. By default the mean IoU of the boxes that are found with those
            that ``network`` finds, on every other crop; these are then not calibrated on.
        limit: the most crops, spread evenly over the samples.

    Raises:
        ConversionError: torch.export cannot capture the network.
        InputError: there is no sample, the network is quantized already, or not so much can be kept.
    """
    config = config or TRACKER
    if isinstance(network, QuantizedTracker):
        raise InputError("the tracker is quantized already")
    if config.method != "ptq":
        raise InputError("trackers are quantized after training: method 'ptq'")
    crops = cut_crops(samples, network.settings, limit)
    judged = config.max_drop is not None and score is None
    if judged and len(crops.sizes) < 2:
        raise InputError("max_drop needs two crops or more, one to calibrate on and one to judge on; got 1")
    judge = _agreement(network, _every_other(crops, 1)) if judged else score
    calibration = _batches(network, _every_other(crops, 0) if judged else crops)

    def scored(item: nn.Module) -> float:
        quantized = isinstance(item, fx.GraphModule)
        return judge(QuantizedTracker(network, copy.deepcopy(item)) if quantized else network)  # type: ignore[misc, arg-type]

    graph = quantize(_joint(network), calibration, config, score=scored if judge else None, progress=progress)
    result = QuantizedTracker(network, graph)
    recipe = recipe_of(network)
    if recipe is not None:
        step = recipe.then(STEP, {"bits": quantized_layers(graph)})
        result.edgecv_recipe = step  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
    return result


def rebuild(network: nn.Module, settings: Mapping[str, Any]) -> QuantizedTracker:
    """The structure that ``quantize_tracker`` gave ``network``, with ranges and weights still to be loaded.

    Raises:
        InputError: the settings are not those of a recipe step, or do not fit the network.
    """
    if not isinstance(network, Siamese) or set(settings) != {"bits"}:
        raise InputError(f"a recipe's {STEP} step is for a tracker, and has the bits of its layers")
    shapes = [[3, side, side] for side in (network.settings.exemplar, network.settings.search)]
    return QuantizedTracker(network, rebuild_graph(_joint(network), {"shapes": shapes, **settings}))


def _joint(network: Siamese) -> nn.Module:
    """``network``, but with both branches in one forward, the features an answer of their own: for one capture."""
    joint = copy.copy(network)
    joint.forward = types.MethodType(_both, joint)  # type: ignore[method-assign]
    return joint


def _both(network: Siamese, exemplar: Tensor, image: Tensor) -> tuple[Tensor, ...]:
    features = network.template(exemplar)
    found = network.search(features, image)
    return (features, *(found if isinstance(found, tuple) else (found,)))


def _split(joint: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The part that gives the features, and the part that reads them."""
    exemplar, image = _frames(joint)
    (output,) = (node for node in joint.graph.nodes if node.op == "output")
    features, *found = output.args[0]
    for node in joint.graph.nodes:
        if is_call(node, SIZE) and node.args[1] == 0:  # the batch, which all of them have
            node.args = (image, 0)
    return _part(joint, (exemplar,), features), _part(joint, (features, image), tuple(found))


def _part(joint: fx.GraphModule, inputs: tuple[fx.Node, ...], outputs: Any) -> fx.GraphModule:
    """What lies between some nodes of a graph, in a graph of its own with the same weights."""
    graph, known = fx.Graph(), {}
    for node in inputs:
        known[node] = graph.placeholder(node.name)
    wanted = _between(inputs, [outputs] if isinstance(outputs, fx.Node) else list(outputs))
    for node in joint.graph.nodes:
        if node in wanted:
            known[node] = graph.node_copy(node, known.__getitem__)
    graph.output(fx.node.map_arg(outputs, known.__getitem__))
    return Captured(joint, graph)


def _between(inputs: tuple[fx.Node, ...], outputs: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    while outputs:
        node = outputs.pop()
        if node not in found and node not in inputs:
            found.add(node)
            outputs += node.all_input_nodes
    return found


def _frames(joint: fx.GraphModule) -> list[fx.Node]:
    return [node for node in joint.graph.nodes if node.op == "placeholder"]


@torch.no_grad()
def _read_bytes(joint: fx.GraphModule, preprocess: Preprocess) -> Preprocess:
    """Let the first layer round frames to just their bytes and read them in RGB, where it can: what it takes then.

    That needs frames which are a multiple of their levels. Backends then read them with no float in front.
    """
    readers = [_first_layer(joint, frame) for frame in _frames(joint)]
    weights = {weight for _, weight in readers}
    if any(preprocess.mean) or len(set(preprocess.std)) > 1 or None in weights or len(weights) > 1:
        return preprocess
    for quantizer, _ in readers:
        quantizer.set_range(0.0, 1 / preprocess.std[0])  # type: ignore[union-attr]
        quantizer.gain.requires_grad_(False)  # type: ignore[union-attr]
    if preprocess.color == "bgr":
        held = parameter(joint, weights.pop())
        held.copy_(held.flip(1))  # type: ignore[union-attr]
    return replace(preprocess, color="rgb")


def _first_layer(joint: fx.GraphModule, frame: fx.Node) -> tuple[ActivationQuantizer | None, fx.Node | None]:
    """What rounds a graph's frames, and the weight of the one convolution that alone reads them."""
    users = [user for user in frame.users if not is_call(user, SIZE)]
    if len(users) != 1 or users[0].op != "call_module":
        return None, None
    quantizer = joint.get_submodule(str(users[0].target))
    readers = [user for user in users[0].users if not is_call(user, SIZE)]
    if len(readers) != 1 or not is_call(readers[0], *CONVOLUTIONS) or not isinstance(quantizer, ActivationQuantizer):
        return None, None
    held = readers[0].args[1]
    return quantizer, held.args[0]  # type: ignore[union-attr, return-value]


def _every_other(crops: Crops, first: int) -> Crops:
    return Crops(crops.exemplars[first::2], crops.searches[first::2], crops.sizes[first::2])


def _batches(network: Siamese, crops: Crops) -> list[Inputs]:
    """Pairs of an exemplar and a search crop, as the network takes them."""
    normalize = Framed(nn.Identity(), network.preprocess).normalize
    exemplars = np.repeat(crops.exemplars, crops.searches.shape[1], axis=0)
    searches = crops.searches.reshape(-1, *crops.searches.shape[2:])
    return [
        tuple(normalize(torch.from_numpy(part[start : start + BATCH])) for part in (exemplars, searches))
        for start in range(0, len(exemplars), BATCH)
    ]


def _agreement(network: Siamese, crops: Crops) -> Callable[[Siamese], float]:
    wanted = _boxes(network, crops)
    return lambda candidate: mean_iou(wanted, _boxes(candidate, crops))


def _boxes(network: Siamese, crops: Crops) -> NDArray[np.float64]:
    branches = TemplateBranch(network), SearchBranch(network)
    template, search = (TorchSession(part, part.inputs, part.outputs) for part in branches)
    return answers((template, search), network.settings, crops)[1]


def _drop_twins(module: nn.Module, state: MutableMapping[str, Any], prefix: str, _: Any) -> None:
    """Leave out of a state dict what the search graph shares with the other: a checkpoint holds no tensor twice."""
    first, second = (f"{prefix}{part}." for part in PARTS)
    for key in [key for key in state if key.startswith(second)]:
        if first + key.removeprefix(second) in state:
            del state[key]


def _give_twins(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Put it back before it is loaded."""
    first, second = (f"{prefix}{part}." for part in PARTS)
    for key in module.get_submodule(PARTS[1]).state_dict():
        if f"{second}{key}" not in state and f"{first}{key}" in state:
            state[f"{second}{key}"] = state[f"{first}{key}"]

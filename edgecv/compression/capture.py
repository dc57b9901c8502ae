"""A network as a graph of ATen operations, in the form that quantization works on."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from edgecv.errors import ConversionError, one_line

__all__ = ["CONVOLUTIONS", "PADS", "PRODUCTS", "capture", "held_parameter", "is_call", "parameter", "set_parameter"]

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
PADS = (aten.pad.default, aten.constant_pad_nd.default)
PRODUCTS = (*CONVOLUTIONS, aten.linear.default)
NAMED_PADDING = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
NAMED_DEFAULTS = (None, None, None, 1, "valid", 1, 1)  # of the arguments of aten.convNd.padding
IDENTITIES = (
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.clone.default,
    aten.detach.default, aten.alias.default, aten.contiguous.default,
)  # fmt: skip
# What torch.export raises, and the errors of a network's own code that it lets through.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
EXAMPLE_BATCH = 3  # 1 and 2 make torch.export specialize


class Captured(fx.GraphModule):
    """A captured network, whose recipe travels with its copies as that of any network does."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copied: fx.GraphModule = super().__deepcopy__(memo)
        for name in ("edgecv_recipe", "edgecv_preprocess"):
            if hasattr(self, name):
                setattr(copied, name, getattr(self, name))
        return copied


def capture(network: nn.Module, shapes: Sequence[Sequence[int]]) -> fx.GraphModule:
    """Capture ``network`` in eval mode, with a free batch and every batch norm folded into its convolution.

    The result gives the same answers, to rounding; its weights keep their names. Dropout is gone, operations in place
    are ordinary ones, and the graph stays what it is in training mode: batch norm is frozen, as late QAT has it.

    Args:
        network: any module whose forward takes tensors ``[batch, …]``; it is left as it was, and shares nothing with
            the result.
        shapes: of each input, without the batch.

    Raises:
        ConversionError: torch.export cannot capture it; the message carries its reason.
    """
    network = copy.deepcopy(network).eval()
    batch = torch.export.Dim("batch")
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    examples = tuple(torch.zeros(EXAMPLE_BATCH, *shape, device=device) for shape in shapes)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            program = torch.export.export(network, examples, dynamic_shapes=tuple({0: batch} for _ in shapes))
    except REFUSALS as error:
        raise ConversionError(f"torch cannot capture {type(network).__name__}: {one_line(error)}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported: Any = program.module()
        graph = _rebuilt(exported)
    _make_functional(graph.graph)
    _drop_identities(graph.graph)
    _spell_out_padding(graph)
    _fold_batch_norms(graph)
    graph.graph.eliminate_dead_code()
    _drop_unused(graph)
    graph.recompile()
    return graph.eval()


def is_call(node: Any, *targets: Any) -> bool:
    """Whether ``node`` calls one of ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def parameter(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The weight or buffer that a node stands for; ``None`` where it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(graph)
    return found if isinstance(found, Tensor) else None


def held_parameter(graph: fx.GraphModule, node: Any) -> Tensor:
    """The weight or buffer that ``node`` must stand for."""
    found = parameter(graph, node)
    if found is None:
        raise TypeError(f"{node} is no weight")
    return found


def set_parameter(graph: fx.GraphModule, name: str, value: Tensor, trained: bool = True) -> None:
    """Put a weight (or, not ``trained``, a buffer) at a dotted name, making the modules on the way."""
    *path, last = name.split(".")
    owner: nn.Module = graph
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if last in owner._parameters:
        del owner._parameters[last]
    if trained:
        owner.register_parameter(last, nn.Parameter(value.detach().clone()))
    else:
        owner.register_buffer(last, value.detach().clone())


def _rebuilt(exported: fx.GraphModule) -> fx.GraphModule:
    """The graph in a module of its own: torch's exported modules refuse ``train()`` and guard their inputs' sizes."""
    for node in list(exported.graph.nodes):
        if node.op == "call_module" and not node.users:
            exported.graph.erase_node(node)
    return Captured(exported, exported.graph)


def _make_functional(graph: fx.Graph) -> None:
    """Replace operations in place by ordinary ones; who reads their input later reads their result."""
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        plain = getattr(aten, name.removesuffix("_"), None)
        if not name.endswith("_") or name.endswith("__") or plain is None:
            continue
        node.target = getattr(plain, node.target._overloadname)
        changed, reader = node.args[0], node.next
        while reader.op != "root":
            reader.replace_input_with(changed, node)
            reader = reader.next


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if is_call(node, *IDENTITIES):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _spell_out_padding(graph: fx.GraphModule) -> None:
    """Write convolutions whose padding is a word (``"same"``, ``"valid"``) with numbers; more on one side is a pad."""
    for node in list(graph.graph.nodes):
        plain = NAMED_PADDING.get(node.target) if node.op == "call_function" else None
        if plain is None:
            continue
        given: tuple[Any, ...] = (*node.args, *NAMED_DEFAULTS[len(node.args) :])
        values, weight, bias, stride, word, dilation, groups = given
        kernel = held_parameter(graph, weight).shape[2:]
        strides, steps = (_each(value, len(kernel)) for value in (stride, dilation))
        around = [step * (size - 1) if word == "same" else 0 for step, size in zip(steps, kernel, strict=True)]
        if any(total % 2 for total in around):
            sides = [side for total in reversed(around) for side in (total // 2, total - total // 2)]
            with graph.graph.inserting_before(node):
                values = graph.graph.call_function(aten.constant_pad_nd.default, (values, sides))
            around = [0] * len(kernel)
        node.target = plain
        node.args = (values, weight, bias, strides, [total // 2 for total in around], steps, groups)


def _each(value: Any, count: int) -> list[int]:
    """A setting of a convolution for each of its dimensions."""
    given = [*value] if isinstance(value, (list, tuple)) else [value]
    return given * count if len(given) == 1 else given


def _fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold batch norms into convolutions that feed nothing else.

    A weight that several convolutions share, as the branches of a Siamese network do, is folded once, and only where
    the same batch norm follows each of them.
    """
    for weight in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        convolutions = [user for user in weight.users if is_call(user, *CONVOLUTIONS) and user.args[1] is weight]
        if convolutions and len(convolutions) == len(weight.users):
            _fold_shared(graph, weight, convolutions)


def _fold_shared(graph: fx.GraphModule, weight: fx.Node, convolutions: list[fx.Node]) -> None:
    norms = [next(iter(node.users)) for node in convolutions if len(node.users) == 1]
    if len(norms) < len(convolutions) or not all(is_call(norm, aten.batch_norm.default) for norm in norms):
        return
    if len({norm.args[1:5] for norm in norms}) > 1 or len({_bias(node) for node in convolutions}) > 1:
        return
    bias = _bias(convolutions[0])
    held = parameter(graph, weight)
    gamma, beta, mean, variance = (parameter(graph, node) for node in norms[0].args[1:5])
    if held is None or mean is None or variance is None:
        return
    eps: Any = norms[0].args[7]
    folded, shift = fuse_conv_bn_weights(
        nn.Parameter(held),
        parameter(graph, bias),
        mean,
        variance,
        eps,
        gamma,
        beta,
    )
    name = str(weight.target)
    set_parameter(graph, name, folded)
    set_parameter(graph, f"{_owner(name)}.bias", shift)
    for node, norm in zip(convolutions, norms, strict=True):
        with graph.graph.inserting_before(node):
            added = graph.graph.get_attr(f"{_owner(name)}.bias")
        node.args = (*node.args[:2], added, *node.args[3:])
        norm.replace_all_uses_with(node)
        graph.graph.erase_node(norm)


def _bias(convolution: fx.Node) -> Any:
    return convolution.args[2] if len(convolution.args) > 2 else None


def _owner(name: str) -> str:
    """The layer that a weight belongs to."""
    return name.rpartition(".")[0]


def _drop_unused(graph: fx.GraphModule) -> None:
    """Remove the weights that no node reads any more, those of folded batch norms above all."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in read:
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)
    graph.delete_all_unused_submodules()

"""Where quantizers go in a captured graph, so that every backend's integer kernels find what they fuse.

Inputs and outputs of convolutions and matrix products are quantized (an output after the clipping that follows it),
and so are both inputs and the output of a residual sum or of a gate's product. Where an operation only moves or picks
values (pooling by maximum, concatenation, reshaping), its inputs and its output share one range, and integers pass
through it unchanged. Everything else stays float. A product's result that is an output of the network stays float too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import fx, nn

from edgecv.compression.capture import CONVOLUTIONS, PADS, PRODUCTS, held_parameter, is_call, parameter, set_parameter
from edgecv.compression.ptq import fit_biases
from edgecv.compression.quantizers import ActivationQuantizer, WeightQuantizer

__all__ = ["activation_quantizers", "freeze", "insert_quantizers", "layers_of", "quantized_layers", "weight_quantizers"]

aten = torch.ops.aten
CLIPS = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
)  # fmt: skip
MOVES = (
    aten.max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.unsqueeze.default,
    aten.slice.Tensor, aten.select.int, aten.expand.default, aten.upsample_nearest2d.vec, aten.channel_shuffle.default,
    aten.pixel_shuffle.default, aten.cat.default,
)  # fmt: skip
JOINS = (aten.add.Tensor, aten.mul.Tensor)
POOLS = (
    aten.mean.dim, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
)  # fmt: skip


def layers_of(graph: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """The convolutions and matrix products with weights of their own, by layer name; several calls share a layer."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if is_call(node, *PRODUCTS) and parameter(graph, _weight_of(node)) is not None:
            found.setdefault(_layer_of(node), []).append(node)
    return found


def insert_quantizers(graph: fx.GraphModule, bits: Mapping[str, int]) -> None:
    """Put quantizers into ``graph``, in place: weights of each layer of ``bits`` to so many bits, activations to 8.

    Layers that ``bits`` leaves out stay float.
    """
    products = {node: name for name, nodes in layers_of(graph).items() if name in bits for node in nodes}
    for node, name in products.items():
        _give_bias(graph, node, name)
    marked = _marked(graph, products)
    groups = _shared(graph, marked)
    graph.add_module("activation_quantizers", nn.Module())
    graph.add_module("weight_quantizers", nn.Module())
    for value in marked:
        _insert_activation(graph, value, groups[value].name)
    for weight in dict.fromkeys(_weight_of(node) for node in products):
        readers = [user for user in weight.users if user in products]
        _insert_weight(graph, weight, readers, products[readers[0]], bits)
    graph.graph.lint()
    graph.recompile()


def freeze(network: nn.Module) -> None:
    """Replace, in place, the quantizers of every quantized network inside ``network`` by what stands in a graph.

    Weights become int8; the float ones they came from are not read any more. Scales that training has left too small
    for their channel's bias are widened first.
    """
    for graph in [item for item in network.modules() if isinstance(item, fx.GraphModule) and is_quantized(item)]:
        fit_biases(graph)
        for node in graph.graph.nodes:
            module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, ActivationQuantizer):
                graph.set_submodule(str(node.target), module.for_export())
            elif isinstance(module, WeightQuantizer):
                weight = held_parameter(graph, node.args[0])
                graph.set_submodule(str(node.target), module.for_export(weight))


def is_quantized(network: nn.Module) -> bool:
    """Whether ``quantize`` made it."""
    return isinstance(network, fx.GraphModule) and hasattr(network, "weight_quantizers")


def activation_quantizers(graph: nn.Module) -> dict[str, ActivationQuantizer]:
    """The quantizers of activations by name, in the graph's order."""
    held = graph.get_submodule("activation_quantizers").named_children()
    return {name: module for name, module in held if isinstance(module, ActivationQuantizer)}


def weight_quantizers(graph: nn.Module) -> dict[str, WeightQuantizer]:
    """The quantizers of weights by layer, in the graph's order."""
    held = graph.get_submodule("weight_quantizers").named_modules()
    return {name: module for name, module in held if isinstance(module, WeightQuantizer)}


def quantized_layers(graph: nn.Module) -> dict[str, int]:
    """The bits of every quantized layer."""
    return {name: quantizer.bits for name, quantizer in weight_quantizers(graph).items()}


def _marked(graph: fx.GraphModule, products: Mapping[fx.Node, str]) -> list[fx.Node]:
    """The values to quantize, in the graph's order."""
    marked: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node in products:
            marked.add(_before_padding(node.args[0]))
            if is_call(node, *CONVOLUTIONS) and not _is_output(_clipped(node)):
                marked.add(_clipped(node))
        elif is_call(node, *JOINS) and _is_join(node, marked):
            marked.update((*node.args[:2], _clipped(node)))
        elif is_call(node, aten.cat.default) and marked.intersection(node.args[0]):
            marked.update((node, *node.args[0]))
        elif _is_pool(node, marked, products):
            marked.add(node)
    for node in graph.graph.nodes:
        if is_call(node, aten.cat.default) and node in marked:
            marked.update(node.args[0])
    marked = {node for node in marked if not (is_call(node, *PRODUCTS, *JOINS) and _is_output(node))}
    return [node for node in graph.graph.nodes if node in marked]


def _is_pool(node: fx.Node, marked: set[fx.Node], products: Mapping[fx.Node, str]) -> bool:
    """A pool of quantized values: of maxima, which integers pass through, or of means that a product reads."""
    if is_call(node, aten.max_pool2d.default):
        return _source(node.args[0], marked) in marked  # type: ignore[arg-type]
    return is_call(node, *POOLS) and node.args[0] in marked and any(user in products for user in node.users)


def _is_join(node: fx.Node, marked: set[fx.Node]) -> bool:
    """A sum or product of two computed tensors, one of them quantized already."""
    both = [item for item in node.args[:2] if isinstance(item, fx.Node) and item.op != "get_attr"]
    return len(both) == 2 and any(_source(item, marked) in marked for item in both)


def _shared(graph: fx.GraphModule, marked: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each value the first of those it shares its range with."""
    known = set(marked)
    first = {node: node for node in marked}

    def root(node: fx.Node) -> fx.Node:
        while first[node] is not node:
            node = first[node]
        return node

    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in marked:
        if not is_call(node, *MOVES):
            continue
        for item in _moved(node):
            source = _source(item, known)
            if source in known:
                one, other = sorted((root(node), root(source)), key=order.__getitem__)
                first[other] = one
    return {node: root(node) for node in marked}


def _moved(node: fx.Node) -> Iterator[fx.Node]:
    """The tensors whose values an operation moves or picks."""
    held = node.args[0]
    yield from held if isinstance(held, (list, tuple)) else (held,)  # type: ignore[misc]


def _source(node: fx.Node, marked: set[fx.Node]) -> fx.Node:
    """The quantized value that reaches ``node`` through moves alone, or the value where the moves begin."""
    while node not in marked and is_call(node, *MOVES) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _clipped(node: fx.Node) -> fx.Node:
    """The value after the clips that alone read ``node``."""
    while len(node.users) == 1 and is_call(next(iter(node.users)), *CLIPS):
        node = next(iter(node.users))
    return node


def _before_padding(node: fx.Node) -> fx.Node:
    """The value that is padded with zeros, which every range holds exactly: a backend's convolution pads by itself."""
    while is_call(node, *PADS) and _pads_with_zeros(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _pads_with_zeros(node: fx.Node) -> bool:
    extra = [*node.args[2:], *node.kwargs.values()]
    return all(item in ("constant", None, 0) for item in extra)


def _is_output(node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _weight_of(product: fx.Node) -> fx.Node:
    return product.args[1]  # type: ignore[return-value]


def _layer_of(product: fx.Node) -> str:
    return str(_weight_of(product).target).removesuffix(".weight")


def _give_bias(graph: fx.GraphModule, product: fx.Node, layer: str) -> None:
    """A bias of zeros where a layer has none: quantization corrects it."""
    if len(product.args) > 2 and product.args[2] is not None:
        return
    name, weight = f"{layer}.bias", parameter(graph, _weight_of(product))
    if weight is not None and name not in dict(graph.named_parameters()):
        set_parameter(graph, name, torch.zeros(len(weight)))
    with graph.graph.inserting_after(_weight_of(product)):
        bias = graph.graph.get_attr(name)
    product.args = (*product.args[:2], bias, *product.args[3:])


def _insert_activation(graph: fx.GraphModule, value: fx.Node, group: str) -> None:
    name = f"activation_quantizers.{group}"
    if group not in graph.get_submodule("activation_quantizers")._modules:
        graph.get_submodule("activation_quantizers").add_module(group, ActivationQuantizer())
    with graph.graph.inserting_after(value):
        quantized = graph.graph.call_module(name, (value,))
    readers = [user for user in value.users if user is not quantized and user.op != "output"]
    for reader in readers:
        reader.replace_input_with(value, quantized)


def _insert_weight(
    graph: fx.GraphModule, weight: fx.Node, readers: list[fx.Node], layer: str, bits: Mapping[str, int]
) -> None:
    held = parameter(graph, weight)
    if held is None:
        raise ValueError(f"{layer} has no weight")
    *path, last = f"weight_quantizers.{layer}".split(".")
    owner: nn.Module = graph
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(last, WeightQuantizer(len(held), bits[layer]))
    with graph.graph.inserting_before(min(readers)):
        quantized = graph.graph.call_module(f"weight_quantizers.{layer}", (weight,))
    for reader in readers:
        reader.replace_input_with(weight, quantized)

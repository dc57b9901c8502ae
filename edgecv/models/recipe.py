"""Recipes: JSON that rebuilds a network, and the table of architectures they name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgecv.errors import InputError
from edgecv.plugins import Table, unknown
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent

__all__ = [
    "ARCHITECTURES",
    "STEPS",
    "TRACKERS",
    "Recipe",
    "Step",
    "create",
    "names",
    "native_size",
    "preprocess_of",
    "recipe_of",
]

CIFAR_RESNETS = (20, 32, 44, 56, 110)
ARCHITECTURES = Table(
    kind="model",
    group="edgecv.models",
    builtin={
        "embedding": "edgecv.models.embedding:Embedding",
        "mobilenet_v1": "edgecv.models.mobilenet_v1:MobileNetV1",
        "mobilenet_v2": "edgecv.models.mobilenet_v2:MobileNetV2",
        "mobilenet_v3_large": "edgecv.models.mobilenet_v3:mobilenet_v3_large",
        "mobilenet_v3_small": "edgecv.models.mobilenet_v3:mobilenet_v3_small",
        **{f"resnet{depth}": f"edgecv.models.resnet:resnet{depth}" for depth in (18, 34, 50, *CIFAR_RESNETS)},
        "squeezenet1_0": "edgecv.models.squeezenet:squeezenet1_0",
        "squeezenet1_1": "edgecv.models.squeezenet:squeezenet1_1",
    },
    extras={},
)
# Two crops in, and answers that only a tracker reads: what lists or trains classifiers leaves these out. Each builder
# takes its options as keywords and checks them itself.
TRACKERS = Table(
    kind="tracker",
    group="edgecv.trackers",
    builtin={
        "nanotrack_v1": "edgecv.models.siamese.nanotrack:nanotrack_v1",
        "nanotrack_v2": "edgecv.models.siamese.nanotrack:nanotrack_v2",
        "siamfc_alexnet": "edgecv.models.siamese.siamfc:siamfc_alexnet",
        "siamfc_mobilenet": "edgecv.models.siamese.siamfc:siamfc_mobilenet",
        "siamrpn_mobile": "edgecv.models.siamese.siamrpn:siamrpn_mobile",
    },
)


@dataclass(frozen=True, slots=True)
class Library:
    """Models of another library: ``build(name, options)`` and ``load_published(name, progress)``, a state dict."""

    build: Callable[[str, dict[str, Any]], nn.Module]
    load_published: Callable[[str, Progress], dict[str, Any]]


LIBRARIES = Table(
    kind="model library",
    group="edgecv.model_libraries",
    builtin={"timm": "edgecv.models.from_timm:LIBRARY", "torchvision": "edgecv.models.from_torchvision:LIBRARY"},
)


# What can be done to a network after it is built: ``function(network, settings) -> network``, its weights left to the
# checkpoint.
STEPS = Table(
    kind="recipe step",
    group="edgecv.recipe_steps",
    builtin={
        "cluster": "edgecv.compression.clustering:rebuild",
        "prune": "edgecv.compression.pruning:rebuild",
        "quantize": "edgecv.compression.quantization:rebuild",
        "quantize_tracker": "edgecv.compression.trackers:rebuild",
    },
    extras={"cluster": "train", "prune": "train", "quantize": "train", "quantize_tracker": "train"},
)


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a network's structure after it was built, and all that repeats it."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An architecture's name, the options it was built with, and the steps that changed it since, in order."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    def build(self) -> nn.Module:
        """Make the network, with fresh weights."""
        library, colon, name = self.architecture.partition(":")
        network: nn.Module = library_of(library).build(name, self.options) if colon else self._build_ours()
        for step in self.steps:
            network = STEPS.load(step.kind)(network, step.settings)
        network.edgecv_recipe = self  # type: ignore[assignment]  # a plain attribute: it travels with deepcopy
        return network

    def then(self, kind: str, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with one more step."""
        return replace(self, steps=(*self.steps, Step(kind, dict(settings))))

    def _build_ours(self) -> nn.Module:
        if self.architecture in TRACKERS.names():
            return self._build_tracker()
        if self.architecture not in ARCHITECTURES.names():
            raise InputError(unknown("model", self.architecture, (*ARCHITECTURES.names(), *TRACKERS.names())))
        builder = ARCHITECTURES.load(self.architecture)
        known = [name for name in inspect.signature(builder).parameters if name not in ("args", "kwargs")]
        for option in self.options:
            if option not in known:
                raise InputError(f"model {self.architecture!r}: {unknown('option', option, known)}")
        try:
            network: nn.Module = builder(**self.options)
        except TypeError as error:
            raise InputError(f"model {self.architecture!r} cannot be built with {self.options}: {error}") from error
        return network

    def _build_tracker(self) -> nn.Module:
        try:
            network: nn.Module = TRACKERS.load(self.architecture)(**self.options)
        except InputError as error:
            raise InputError(f"model {self.architecture!r}: {error}") from error
        return network


def create(name: str, *, weights: str | Path | None = None, progress: Progress = silent, **options: Any) -> nn.Module:
    """Build a network from its name, as in ``create("mobilenet_v2", num_classes=10, width=0.5)``.

    Every classifier takes ``num_classes`` (default 1000; 10 for the CIFAR ResNets) and ``stem``: ``"imagenet"``, or
    ``"small"`` for images of about 32 pixels, which keeps their resolution in the first layers. It takes float images
    ``[batch, 3, height, width]`` and gives logits ``[batch, num_classes]``.

    Trackers (``edgecv.models.siamese.TRACKERS``) take the fields of their family's ``Variant``, as in
    ``create("siamfc_alexnet", width=0.5)``; what goes in and out is said at ``edgecv.models.siamese.Siamese``.

    Args:
        name: one of ``names()``, a tracker, or ``"timm:NAME"`` or ``"torchvision:NAME"`` where that library is
            installed; the options are then the library's own.
        weights: a ``.safetensors`` or ``.pth`` file of a state dict, or ``"imagenet"`` for the published weights, which
            are downloaded once. Fresh weights by default. A last layer of another ``num_classes`` stays fresh.
        progress: of the download.

    Raises:
        InputError: no such architecture or option, an option's value is out of range, or the weights do not fit.
        BackendUnavailable: the library is not installed, or the weights cannot be downloaded.
    """
    network = Recipe(name, options).build()
    if weights is not None:
        from edgecv.models.weights import load_weights

        load_weights(network, name, weights, progress)
    return network


def library_of(name: str) -> Library:
    """Import the adapter of another model library."""
    found: Library = LIBRARIES.load(name)
    return found


def names() -> tuple[str, ...]:
    """The architectures that ``create`` knows, without trackers."""
    return tuple(sorted(ARCHITECTURES.names()))


def native_size(name: str) -> tuple[int, int]:
    """The (height, width) in pixels that an architecture's published figures are for."""
    return (32, 32) if name in {f"resnet{depth}" for depth in CIFAR_RESNETS} else (224, 224)


def recipe_of(network: nn.Module) -> Recipe | None:
    """The recipe ``network`` was built from, or ``None`` where it is not one of ours."""
    recipe = getattr(network, "edgecv_recipe", None)
    return recipe if isinstance(recipe, Recipe) else None


def preprocess_of(network: nn.Module) -> Preprocess | None:
    """How the images of a network's published weights are preprocessed; ``None`` where nobody said."""
    found = getattr(network, "edgecv_preprocess", None)
    return found if isinstance(found, Preprocess) else None


def check_options(num_classes: int, stem: str, stems: Iterable[str] = ("imagenet", "small")) -> None:
    """Refuse what no architecture can be built with."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes is a whole number from 1, got {num_classes!r}")
    if stem not in stems:
        raise InputError(unknown("stem", stem, stems))

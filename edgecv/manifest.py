"""What a bundle says about itself: the dataclasses behind ``manifest.json``, format 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgecv.errors import InputError
from edgecv.preprocess import Preprocess
from edgecv.tensors import TensorSpec

__all__ = [
    "FORMAT", "PACKED", "TENSORS", "Accuracy", "FileRecord", "Graph", "Manifest", "Packed", "Parity", "Source",
    "Variant",
]  # fmt: skip

FORMAT = 1
TENSORS = "tensors"
"""The task of a bundle whose outputs nothing is known of but their names: it has no pipeline, and no preprocessing but
that of single inputs."""
PACKED = ".packed"
"""Suffix of a packed file: what it is decoded to has the same path without it."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The inputs and outputs of one graph, the same in every variant.

    ``preprocess`` says, by name, how frames are prepared for the inputs that take them, where no pipeline does it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: dict[str, Preprocess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.preprocess) - {spec.name for spec in self.inputs}):
            raise InputError(f"preprocess names {unknown[0]!r}, which is no input of the graph")


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one set of answers is from the reference's on the same inputs.

    A figure is ``None`` where it means nothing. Where the reference itself rates two classes or neighbours as equal, to
    within the rounding of the precision, either of them is the same decision.

    Attributes:
        max_abs, mean_abs: of the difference, in the output's own unit; ``tolerance`` is the ``max_abs`` allowed.
        cosine: the smallest over the samples.
        top1_agreement: the share of samples with the same best class; ``top1_interval`` is Wilson's 95 % interval.
        psnr_db: ``20 log10((largest - smallest reference answer) / root mean square difference)`` over all answers;
            ``None`` also where nothing differs.
        top5_agreement: the share of the five best classes that are among the reference's five best.
        rank1_agreement: the share of samples whose nearest other sample, by cosine of embeddings, is the same.
        mean_iou: of boxes.
    """

    samples: int
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float | None
    tolerance: float
    psnr_db: float | None = None
    top1_interval: tuple[float, float] | None = None
    top5_agreement: float | None = None
    rank1_agreement: float | None = None
    mean_iou: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"parity needs at least one sample, got {self.samples}")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers on ``samples`` labelled images; ``interval`` is Wilson's 95 % interval for top-1."""

    top1: float
    top5: float
    samples: int
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """The graphs of a bundle in one format and precision.

    ``graphs`` names each graph's main file; ``requires`` the oldest library versions it was written for.
    ``slower_than`` is the variant of the same backend that was as fast or faster where both were converted: ``auto``
    prefers that one.
    """

    backend: str
    precision: str
    graphs: dict[str, str]
    requires: dict[str, str] = field(default_factory=dict)
    parity: Parity | None = None
    slower_than: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bundle comes from: enough to make it again, no path and no time of day.

    ``licence`` is of the weights: an SPDX identifier, such as ``"Apache-2.0"``.
    """

    edgecv: str
    recipe: dict[str, Any] | None = None
    dataset: str | None = None
    accuracy: Accuracy | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The identity of one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Packed:
    """The identity of what a packed file is decoded to, which has at most ``size_bytes``; see ``edgecv.packing``."""

    encoding: Literal["edgecv-lzma-1"]
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The truth about a bundle; every file but the manifest itself is listed in ``files``.

    ``packed`` has those of them that sessions get decoded, by the path of what is stored; ``variants`` name the decoded
    file.
    """

    format: int
    name: str
    task: str
    graphs: dict[str, Graph]
    preprocess: Preprocess | None
    postprocess: dict[str, Any]
    labels: str | None
    variants: dict[str, Variant]
    source: Source
    files: dict[str, FileRecord]
    packed: dict[str, Packed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.graphs or not self.variants:
            raise InputError("a manifest names at least one graph and one variant")
        if (self.preprocess is None) != (self.task == TENSORS):
            wanted = "preprocess of single inputs alone" if self.task == TENSORS else "a preprocess"
            raise InputError(f"a manifest of the task {self.task!r} has {wanted}")
        for name, variant in self.variants.items():
            if set(variant.graphs) != set(self.graphs):
                raise InputError(f"variant {name!r} must hold the graphs {sorted(self.graphs)}")
        for name in self.packed:
            if not name.endswith(PACKED) or name.removesuffix(PACKED) in self.files:
                raise InputError(f"packed file {name!r} must end in {PACKED!r}, and its name without it must be free")

    @property
    def named_files(self) -> list[str]:
        """The files that variants, labels and ``packed`` refer to; each must be listed in ``files``."""
        graphs = [self.stored(path) for variant in self.variants.values() for path in variant.graphs.values()]
        return [*graphs, *self.packed, *([self.labels] if self.labels else [])]

    def stored(self, name: str) -> str:
        """The path of the file that holds ``name``: its own, or that of the packed one."""
        return f"{name}{PACKED}" if f"{name}{PACKED}" in self.packed else name

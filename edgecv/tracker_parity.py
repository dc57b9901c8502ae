"""Parity of trackers: what pairs of graphs answer to the same crops, compared. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.bundle import Bundle
from edgecv.errors import BackendUnavailable, InputError
from edgecv.parity import BOUNDS, Gate, Verification, mean_iou, reference_variant, worst_gate
from edgecv.pipelines.loading import load
from edgecv.pipelines.tracking.samples import Sample, answers, cut_crops
from edgecv.pipelines.tracking.settings import TrackerSettings
from edgecv.progress import Progress, silent
from edgecv.runtimes.session import Session
from edgecv.schema import decode
from edgecv.tensors import Array

__all__ = ["TASK", "Answers", "gate_tracker", "verify_tracker"]

TASK = "tracking"
SHORTEST = 0.1  # pixels: a shorter distance is none
Answers = tuple[dict[str, Array], NDArray[np.float64]]
"""What ``edgecv.pipelines.tracking.samples.answers`` gives: maps by name, and the boxes read from them."""


def verify_tracker(
    bundle: str | Path | Bundle,
    *,
    samples: Sequence[Sample],
    reference: tuple[Session, Session] | None = None,
    limit: int = 32,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Check a tracker's bundle on the machine it will run on: every byte, and every variant against a reference.

    Compared are the maps and the boxes that are read from them, by the bounds of each variant's precision; of int8 the
    boxes alone, as ``convert_tracker`` does.

    Args:
        samples: annotated sequences, or pairs of a frame and a box; at most ``limit`` targets of them are compared.
        reference: a template and a search session, such as the network's on torch; by default the bundle's first fp32
            variant that runs here.

    Raises:
        BundleError: the bundle itself is broken.
        InputError: the bundle is no tracker's, or the samples hold no frame with a box.
        BackendUnavailable: no variant can run here.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    manifest = opened.manifest
    if manifest.task != TASK:
        raise InputError(f"{opened.path} is for the task {manifest.task!r}, not {TASK!r}: verify it by edgecv.verify")
    settings = decode(TrackerSettings, manifest.postprocess, "postprocess")
    crops = cut_crops(samples, settings, limit)
    found: dict[str, Answers] = {}
    skipped: dict[str, str] = {}
    for done, (name, variant) in enumerate(manifest.variants.items(), 1):
        try:
            tracker = load(opened, backend=variant.backend, variant=name, threads=threads)
        except BackendUnavailable as error:
            skipped[name] = str(error)
        else:
            with tracker:
                found[name] = answers(tracker.sessions, settings, crops)
        progress("verify", done, len(manifest.variants))
    if not found:
        raise BackendUnavailable(f"{opened.path}: no variant can run here: {'; '.join(skipped.values())}")
    chosen = reference_variant(opened, found) if reference is None else "the given sessions"
    wanted = answers(reference, settings, crops) if reference is not None else found[chosen]
    gates = {
        name: gate_tracker(wanted, got, manifest.variants[name].precision, settings)
        for name, got in found.items()
        if name != chosen
    }
    return Verification(opened.sha256, chosen, len(crops.sizes), gates, skipped)


def gate_tracker(wanted: Answers, got: Answers, precision: str, settings: TrackerSettings) -> Gate:
    """Say which bounds for ``precision`` the answers break: those of the maps, and that of the boxes read from them.

    Of int8 the boxes count alone: what a map says of cells that are never chosen does not matter.
    """
    (maps, boxes), (other_maps, other_boxes) = wanted, got
    gate = worst_gate(_measured(maps, settings), _measured(other_maps, settings), precision, TASK)
    iou, bound = mean_iou(boxes, other_boxes), BOUNDS[precision].iou
    failures = () if precision == "int8" else gate.failures
    if not iou >= bound:
        failures = (*failures, f"mean IoU of the boxes is {iou:.3f}, {bound:g} wanted")
    return Gate(dataclasses.replace(gate.parity, mean_iou=iou, samples=len(boxes)), failures)


def _measured(outputs: dict[str, Array], settings: TrackerSettings) -> dict[str, Array]:
    """Maps as they are compared: distances as logarithms, as the layers before the last give them. Where nothing is,
    they are thousands of pixels, which nobody reads.
    """
    if settings.head != "points":
        return outputs
    return {**outputs, "box": np.log(np.maximum(outputs["box"], SHORTEST))}

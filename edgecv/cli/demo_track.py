"""``edgecv demo --task track``: a tracker from nothing, on synthetic sequences that it draws itself."""

from __future__ import annotations

import argparse
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgecv
from edgecv.bundle import Bundle
from edgecv.cli.common import print_json, progress, table
from edgecv.errors import InputError, ParityError
from edgecv.files import new_folder, refuse_occupied, write_file
from edgecv.manifest import Parity
from edgecv.pipelines.tracking import (
    Scores,
    Tracker,
    TrackSequence,
    evaluate_tracker,
    open_sequences,
    score_all,
    score_sequence,
)
from edgecv.progress import Progress
from edgecv.schema import dumps

__all__ = ["run_tracking_demo"]

EPOCHS = 6
MODEL = "siamfc_alexnet"
# Without a penalty on other sizes: after so few pairs the response falls so little at a wrong size that the paper's
# would keep the first for good.
OPTIONS: dict[str, Any] = {"width": 0.25, "channels": 64, "search": 207, "penalty": 1.0}
PAIRS: dict[str, Any] = {"pairs": 800, "shift": 24.0, "scale": 0.0}
SCENE: dict[str, Any] = {"zoom": 0.2}
SETTINGS: dict[str, Any] = {
    "batch_size": 8,
    "learning_rate": 3e-3,
    "weight_decay": 1e-4,
    "ema_decay": 0.98,
    "label_smoothing": 0.0,
    "loss": "tracking",
    "radius": 12.0,
}
# Sequences and frames of each part, and the seed of its first sequence: no two parts share one.
PARTS = {"train": (90, 20, 0), "val": (8, 20, 10_000), "test": (5, 60, 20_000)}
VALIDATION_PAIRS = 100
BACKENDS = ("onnxruntime", "openvino")
WANTED_SUCCESS = 0.6
LIMITS = "Synthetic sequences are easier than films: this shows that the way works, not how good the network is."


@dataclass(frozen=True, slots=True)
class Row:
    """How one backend tracked the sequences that were held out."""

    backend: str
    variant: str
    scores: Scores
    each: dict[str, Scores]
    parity: Parity | None


def run_tracking_demo(args: argparse.Namespace) -> int:
    """Draw sequences, train, convert, and track what was held out; fails where a backend tracks too badly."""
    if args.duration is not None:
        raise InputError(
            "--duration is for the classifier's profile; a tracker's frames per second are those of its run"
        )
    start = time.monotonic()
    out: Path = args.out or Path("demo-track")
    if not (out / "sequences").is_dir():
        refuse_occupied(out)
    with progress() as report:
        data = {part: _sequences(out / "sequences" / part, *PARTS[part], report) for part in PARTS}
        result = _train(out, data, EPOCHS if args.epochs is None else args.epochs, report)
        bundle = _convert(out, result, data["val"], report)
        rows = _track(out, bundle, data["test"], args.threads, report)
    write_file(out / "results.json", dumps(_results(rows)))
    _tell(args, out, result, rows, time.monotonic() - start)
    worst = min(row.scores.success for row in rows)
    if worst < WANTED_SUCCESS:
        raise ParityError(f"success AUC is {worst:.3f}, {WANTED_SUCCESS} was wanted; train for more epochs")
    return 0


def _sequences(folder: Path, count: int, frames: int, seed: int, report: Progress) -> tuple[TrackSequence, ...]:
    """Write a part's sequences, unless an earlier run did, and open them as anyone's."""
    from edgecv.training.synthetic import SceneConfig, synthetic_sequences, write_sequences

    if not folder.is_dir():
        drawn = synthetic_sequences(count, SceneConfig(frames=frames, **SCENE), seed=seed)
        write_sequences(drawn, folder, progress=lambda stage, done, total: report(f"draw {folder.name}", done, total))
    return open_sequences(folder)


def _train(out: Path, data: dict[str, tuple[TrackSequence, ...]], epochs: int, report: Progress) -> Any:
    """Train, or go on with what an earlier run left."""
    import torch

    from edgecv.models.siamese import create_tracker
    from edgecv.training import PairConfig, TrackingPairs

    config = edgecv.TrainConfig(epochs=epochs, warmup_epochs=min(0.5, epochs / 4), **SETTINGS)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = create_tracker(MODEL, **OPTIONS)
    drawn = PairConfig(**PAIRS)
    pairs = (
        TrackingPairs(data["train"], network.settings, drawn, seed=config.seed),
        TrackingPairs(data["val"], network.settings, drawn.plain(VALIDATION_PAIRS), seed=config.seed + 1),
    )
    return edgecv.train(network, *pairs, config, preprocess=network.preprocess, out=out / "train", progress=report)


def _convert(out: Path, result: Any, samples: tuple[TrackSequence, ...], report: Progress) -> Bundle:
    """Convert into a fresh bundle and put it in the place of an earlier run's."""
    from edgecv.converters.trackers import TrackerOptions, convert_tracker

    options = TrackerOptions(name="synthetic", dataset="synthetic sequences of edgecv.training.synthetic")
    with new_folder(out / ".new") as scratch:
        convert_tracker(
            result.network, scratch / "bundle", backends=BACKENDS, samples=samples, options=options, progress=report
        )
        if (out / "bundle").exists():
            shutil.rmtree(out / "bundle")
        (scratch / "bundle").rename(out / "bundle")
    (out / ".new").rmdir()
    return Bundle.load(out / "bundle")


def _track(
    out: Path, bundle: Bundle, sequences: tuple[TrackSequence, ...], threads: int, report: Progress
) -> list[Row]:
    """PyTorch first, as the reference, then each variant."""
    rows = []
    with ExitStack() as stack:
        trackers: list[tuple[str, Tracker, Parity | None]] = []
        trackers.append(("PyTorch, eager", stack.enter_context(_on_torch(out, threads)), None))
        for name, variant in bundle.manifest.variants.items():
            loaded = edgecv.load(bundle, backend=variant.backend, variant=name, threads=threads)
            trackers.append((name, stack.enter_context(loaded), variant.parity))
        for name, tracker, parity in trackers:
            backend = tracker.sessions[1].backend
            runs = evaluate_tracker(
                tracker, sequences, progress=lambda _, *far, on=backend: report(f"track {on}", *far)
            )
            each = {run.sequence.name: score_sequence(run) for run in runs}
            rows.append(Row(backend, name, score_all(runs), each, parity))
    return rows


def _on_torch(out: Path, threads: int) -> Tracker:
    from edgecv.models.checkpoint import load_checkpoint
    from edgecv.models.siamese.running import tracker_of

    network: Any = load_checkpoint(out / "train" / "best.safetensors")
    return tracker_of(network, threads)


def _results(rows: list[Row]) -> dict[str, Any]:
    return {row.backend: {"scores": row.scores, "sequences": row.each, "parity": row.parity} for row in rows}


def _tell(args: argparse.Namespace, out: Path, result: Any, rows: list[Row], seconds: float) -> None:
    if args.json:
        print_json({"seconds": round(seconds, 1), "validation": result.scores, "results": _results(rows)})
        return
    cells = [
        (
            row.backend,
            *(f"{scores.success:.3f}" for scores in row.each.values()),
            f"{row.scores.success:.3f}",
            f"{row.scores.precision:.3f}",
            f"{row.parity.max_abs:.2g}" if row.parity else "-",
            f"{row.scores.fps:.0f}",
        )
        for row in rows
    ]
    names = [name.removeprefix("synthetic_") for name in rows[0].each]
    print(table(cells, ("backend", *names, "success AUC", "precision", "difference from torch", "fps")))
    print(f"\n{LIMITS}\n{seconds:.0f} s in all. Bundle: {out / 'bundle'}")

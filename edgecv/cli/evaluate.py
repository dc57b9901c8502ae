"""``edgecv evaluate``: accuracy on labelled images, verification of embeddings, or one pass of a tracker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgecv.cli.common import add_backend, add_json, open_pipeline, print_json, progress, scores_line, table
from edgecv.data import open_samples
from edgecv.errors import InputError
from edgecv.evaluation import evaluate
from edgecv.files import new_folder
from edgecv.manifest import Accuracy
from edgecv.pipelines.tracking import (
    Run,
    Scores,
    Tracker,
    evaluate_tracker,
    open_sequences,
    score_all,
    score_sequence,
    write_results,
)

EXAMPLE = "edgecv evaluate digits --data digits --backend openvino"
COLUMNS = ("sequence", "frames", "success", "precision", "AO", "SR0.5", "SR0.75", "fps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, or a checkpoint (on torch)")
    parser.add_argument(
        "--data",
        required=True,
        help="'digits', 'cifar10:PATH', or a folder with one sub-folder of images per class; for a tracker a folder of "
        "sequences, as GOT-10k, OTB, VOT or LaSOT have them",
    )
    trackers = parser.add_argument_group("for a tracker")
    trackers.add_argument("--out", type=Path, help="a new folder for result files that the got10k toolkit reads")
    trackers.add_argument("--layout", choices=("got10k", "otb"), default="got10k", help="of --out (default: got10k)")
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    with open_pipeline(args.model, args) as pipeline:
        if isinstance(pipeline, Tracker):
            return _one_pass(pipeline, args)
        if args.out:
            raise InputError(f"--out is for trackers, {args.model} is none")
        samples = open_samples(args.data, "test", getattr(pipeline, "labels", ()))
        with progress() as report:
            scores = evaluate(pipeline, samples, progress=report)
        backend, reason = pipeline.session.backend, pipeline.session.reason
    if args.json:
        kind = "accuracy" if isinstance(scores, Accuracy) else "verification"
        print_json({kind: scores, "backend": backend, "reason": reason})
        return 0
    print(scores_line(scores))
    print(reason)
    return 0


def _one_pass(tracker: Tracker, args: argparse.Namespace) -> int:
    """One-pass evaluation; sequences without annotations are tracked for their result files alone."""
    sequences = open_sequences(args.data)
    if not args.out and not any(sequence.annotated for sequence in sequences):
        raise InputError(f"{args.data} has only first boxes, nothing to score against; --out writes what was tracked")
    with progress() as report:
        if args.out:
            with new_folder(args.out) as folder:
                runs = evaluate_tracker(tracker, sequences, progress=report)
                write_results(runs, folder, args.layout)
        else:
            runs = evaluate_tracker(tracker, sequences, progress=report)
    scored = [run for run in runs if run.sequence.annotated]
    each = {run.sequence.name: score_sequence(run) for run in scored}
    _tell(args, each, score_all(scored) if scored else None, runs, tracker)
    return 0


def _tell(
    args: argparse.Namespace, each: dict[str, Scores], overall: Scores | None, runs: tuple[Run, ...], tracker: Tracker
) -> None:
    session = tracker.sessions[1]
    if args.json:
        print_json({"scores": overall, "sequences": each, "backend": session.backend, "reason": session.reason})
        return
    rows = [_row(name, scores) for name, scores in each.items()]
    if overall is not None:
        print(table([*rows, _row("overall", overall)], COLUMNS))
    if skipped := len(runs) - len(each):
        print(f"{skipped} sequences have only a first box: tracked, not scored")
    print(session.reason)
    if args.out:
        print(f"written: {args.out}")


def _row(name: str, scores: Scores) -> tuple[Any, ...]:
    figures = (scores.success, scores.precision, scores.ao, scores.sr50, scores.sr75)
    return (name, scores.frames, *(f"{figure:.3f}" for figure in figures), f"{scores.fps:.1f}")

"""``edgecv profile`` of trackers: both graphs, and the whole of a frame."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgecv.bundle import Bundle
from edgecv.cli.common import open_pipeline, print_json, progress, table
from edgecv.pipelines.tracking import Tracker, open_sequences
from edgecv.profiling import Profile, profile_tracker
from edgecv.schema import encode
from edgecv.tracker_parity import TASK

__all__ = ["is_tracker", "profiled"]

HEADER = ("what", "when", "p50 ms", "p90 ms", "p99 ms", "mean ms", "runs", "load ms", "first ms")
UPDATE = "the whole of a frame, decoding the image not counted"


def is_tracker(model: Path) -> bool:
    """Whether ``model`` is a tracker's bundle or checkpoint."""
    if model.is_dir():
        return Bundle.load(model).manifest.task == TASK
    if model.suffix != ".safetensors":
        return False
    from edgecv.models.checkpoint import load_checkpoint
    from edgecv.models.siamese import Siamese

    return isinstance(load_checkpoint(model), Siamese)


def profiled(args: argparse.Namespace) -> int:
    """Run ``edgecv profile`` with its arguments on a tracker."""
    sequences = open_sequences(args.data) if args.data else ()
    with open_pipeline(args.model, args) as tracker, progress() as report:
        found = profile_tracker(
            tracker, duration_s=args.duration, batch=args.batch, sequences=sequences, progress=report
        )
    written = {}
    for name, measured in found.items() if args.out else ():
        written[name] = args.out.with_name(f"{args.out.stem}.{name}{args.out.suffix}")
        measured.save(written[name])
    reason = tracker.sessions[1].reason
    if args.json:
        each = {name: {"summary": measured.summary(), **encode(measured)} for name, measured in found.items()}
        print_json({"reason": reason, "profiles": each})
        return 0
    targets = f"{args.batch} target{'s' if args.batch > 1 else ''} at a time"
    print(f"{reason}; threads: {args.threads or 'the runtime decides'}; {targets} in the graphs")
    when = {"template": _template(tracker), "search": _search(found["search"], args.batch), "update": UPDATE}
    print(table([(name, when[name], *_figures(measured)) for name, measured in found.items()], HEADER))
    for name, measured in found.items():
        for doubt in measured.doubts:
            print(f"doubt of {name}: {doubt}")
    for path in written.values():
        print(f"written: {path}")
    return 0


def _template(tracker: Tracker) -> str:
    once = "once for a target"
    return f"{once}, and where a frame leaves a doubt" if tracker.settings.confidence else once


def _search(measured: Profile, batch: int) -> str:
    scales = measured.batch // batch
    return f"every frame, {scales} scales" if scales > 1 else "every frame"


def _figures(measured: Profile) -> tuple[Any, ...]:
    times = (measured.p50_ms, measured.p90_ms, measured.p99_ms, measured.mean_ms)
    rare = (f"{value:.1f}" if value is not None else "-" for value in (measured.load_ms, measured.first_ms))
    return (*(f"{value:.3f}" for value in times), len(measured.samples_ms), *rare)

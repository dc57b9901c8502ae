"""``edgecv profile``: latency on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import edgecv
from edgecv.cli.common import add_backend, add_json, print_json, progress
from edgecv.cli.profile_tracker import is_tracker, profiled
from edgecv.errors import InputError
from edgecv.runtimes import open_session
from edgecv.schema import encode

EXAMPLE = "edgecv profile digits --backend onnxruntime --threads 1 --duration 10 --out ort.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a bundle, a checkpoint, or an .onnx or .xml file anyone made")
    parser.add_argument(
        "--duration", type=float, default=10.0, metavar="S", help="seconds to measure for (default: 10)"
    )
    parser.add_argument("--batch", type=int, default=1, help="items per run (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        help="write the raw samples and conditions to this JSON file; of a tracker to NAME.search.json and so on",
    )
    parser.add_argument(
        "--data", help="of a tracker: a folder of sequences, whose frames it is updated with, beside each of its graphs"
    )
    add_backend(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if is_tracker(args.model):
        return profiled(args)
    if args.data:
        raise InputError(f"--data is for trackers, {args.model} is none")
    session = open_session(args.model, backend=args.backend, variant=args.variant, threads=args.threads)
    with session, progress() as report:
        measured = edgecv.profile(session, duration_s=args.duration, batch=args.batch, progress=report)
    if args.out:
        measured.save(args.out)
    if args.json:
        print_json({"summary": measured.summary(), "reason": session.reason, **encode(measured)})
        return 0
    print(f"{session.reason}; threads: {args.threads or 'the runtime decides'}; batch {args.batch}")
    print(f"latency p50 {measured.p50_ms:.3f} ms, p90 {measured.p90_ms:.3f} ms, p99 {measured.p99_ms:.3f} ms")
    print(
        f"mean {measured.mean_ms:.3f} ms, {measured.throughput_per_s:.1f} items/s, {len(measured.samples_ms)} runs; "
        f"load {measured.load_ms or 0:.1f} ms, first inference {measured.first_ms or 0:.2f} ms"
    )
    for doubt in measured.doubts:
        print(f"doubt: {doubt}")
    return 0

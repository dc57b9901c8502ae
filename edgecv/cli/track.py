"""``edgecv track``: follow targets through a video, a folder of frames, or what a camera sees."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecv.cli.common import add_backend, add_json, open_pipeline, print_json, progress
from edgecv.cli.video import Video, open_video, write_video
from edgecv.errors import InputError
from edgecv.files import write_file
from edgecv.pipelines.tracking import MultiTracker, Tracker, TrackState
from edgecv.pipelines.tracking.boxes import Box
from edgecv.pipelines.tracking.crops import opencv
from edgecv.pipelines.tracking.results import DIGITS
from edgecv.progress import Progress

EXAMPLE = "edgecv track mytracker street.mp4 --box 120,80,40,64 --out followed.mp4 --results boxes.txt"

Frame = NDArray[np.uint8]
States = dict[int, TrackState]
COLOURS = {"tracking": (60, 200, 60), "unsure": (255, 160, 0), "lost": (230, 40, 40)}  # RGB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a tracker's bundle")
    parser.add_argument("source", help="a video file, a folder of images, or the number of a camera, such as 0")
    parser.add_argument(
        "--box",
        action="append",
        required=True,
        metavar="X,Y,W,H",
        help="the target in the first frame, in pixels; more than one follows several targets",
    )
    parser.add_argument("--out", type=Path, help="a video (.mp4, .avi) with what was found drawn into it")
    parser.add_argument(
        "--results",
        type=Path,
        help="a text file with a line x,y,w,h for each frame; of several targets, MOTChallenge's lines",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="stop after so many frames")
    add_backend(parser)
    add_json(parser)


@dataclass
class Track:
    """What was found so far: every target's state in every frame, and the seconds it took, decoding not counted."""

    states: list[States] = field(default_factory=list)
    seconds: float = 0.0


def run(args: argparse.Namespace) -> int:
    boxes = [_box(text) for text in args.box]
    if args.frames is not None and args.frames < 1:
        raise InputError(f"--frames is 1 or more, got {args.frames}")
    if args.results and not args.results.parent.is_dir():
        raise InputError(f"cannot write {args.results}: there is no folder {args.results.parent}")
    track = Track()
    with ExitStack() as stack:
        tracker = stack.enter_context(open_pipeline(args.model, args))
        if not isinstance(tracker, Tracker):
            raise InputError(f"{args.model} holds no tracker; edgecv run takes images")
        session = tracker.sessions[1]
        video = stack.enter_context(open_video(args.source))
        show = stack.enter_context(write_video(args.out, video.fps)) if args.out else None
        report = stack.enter_context(progress())
        try:
            _follow(MultiTracker(tracker), video, boxes, track, args.frames, show, report)
        except KeyboardInterrupt:
            if video.count is not None:
                raise  # a camera has no other end
    if args.results:
        write_file(args.results, _lines(track.states))
    _tell(args, track, session.backend, session.reason)
    return 0


def _follow(
    tracker: MultiTracker,
    video: Video,
    boxes: list[Box],
    track: Track,
    limit: int | None,
    show: Callable[[Frame], None] | None,
    report: Progress,
) -> None:
    total = min((count for count in (video.count, limit) if count is not None), default=None)
    for number, frame in enumerate(video.frames, 1):
        start = time.perf_counter()
        if number == 1:
            states = {tracker.add(frame, box): TrackState(box, 1.0, 1.0, "tracking") for box in boxes}
        else:
            states = tracker.update(frame)
        track.seconds += time.perf_counter() - start
        track.states.append(states)
        if show is not None:
            show(overlay(frame, states))
        if total is not None:
            report("track", min(number, total - 1), total)
        if number == limit:
            break
    if not track.states:
        raise InputError("the video holds no frame that OpenCV can read")
    if total is not None:
        report("track", total, total)


def overlay(frame: Frame, states: States) -> Frame:
    """A copy of a frame with every target's box, score and status drawn into it."""
    cv2, drawn = opencv(), frame.copy()
    thickness = max(1, round(frame.shape[0] / 300))
    for number, state in states.items():
        x, y, w, h = (round(value) for value in state.box)
        colour = COLOURS[state.status]
        cv2.rectangle(drawn, (x, y), (x + w, y + h), colour, thickness)
        name = f"{number}: " if len(states) > 1 else ""
        size = max(0.4, frame.shape[0] / 900)
        place = (min(max(x, 0), frame.shape[1] - 1), max(y - 4, round(24 * size)))
        cv2.putText(drawn, f"{name}{state.score:.2f} {state.status}", place, 0, size, colour, thickness, cv2.LINE_AA)
    return drawn


def _box(text: str) -> Box:
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"a box is four numbers x,y,w,h in pixels, got {text!r}") from error
    return x, y, w, h


def _lines(frames: list[States]) -> str:
    lines = []
    for number, states in enumerate(frames, 1):
        for target, state in states.items():
            box = ",".join(f"{value:.{DIGITS}f}" for value in state.box)
            lines.append(box if len(states) == 1 else f"{number},{target},{box},{state.confidence:.4f},-1,-1,-1")
    return "".join(f"{line}\n" for line in lines)


def _tell(args: argparse.Namespace, track: Track, backend: str, reason: str) -> None:
    frames, last = len(track.states), track.states[-1]
    counts = {number: Counter(states[number].status for states in track.states) for number in last}
    fps = frames / max(track.seconds, 1e-9)
    if args.json:
        targets = {number: {"frames": counts[number], "last": last[number]} for number in last}
        print_json({"frames": frames, "fps": round(fps, 2), "targets": targets, "backend": backend, "reason": reason})
        return
    for number, state in last.items():
        shares = ", ".join(f"{count} {status}" for status, count in counts[number].items())
        box = ", ".join(f"{value:.1f}" for value in state.box)
        print(f"target {number}: {shares}; at last {state.status} at {box}")
    print(f"{frames} frames, {fps:.1f} per second without decoding and drawing")
    print(reason)
    for path in (args.out, args.results):
        if path:
            print(f"written: {path}")

"""Several targets in one batch: each as if it were alone; and memory that 10,000 frames do not change."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("opencv")

from edgecv.pipelines.tracking import Confidence, MultiTracker, Tracker, TrackerSettings  # noqa: E402
from edgecv.pipelines.tracking.boxes import Box, iou  # noqa: E402
from edgecv.runtimes.session import Session, SessionOptions  # noqa: E402
from edgecv.tensors import Array, TensorSpec  # noqa: E402
from tests.tracking import SETTINGS, Search, Template, scene  # noqa: E402

BOXES: list[Box] = [(100, 80, 40, 30), (20, 30, 30, 40), (220, 150, 36, 36)]


def _tracker() -> Tracker:
    return Tracker(Template(), Search(), SETTINGS)


def _frame(step: int, count: int = 3) -> Array:
    """Squares that move apart; the last one is gone from frame 6 on."""
    frame = scene(None)
    for index, (x, y, w, h) in enumerate(BOXES[:count]):
        if index < 2 or step < 6:
            left, top = round(x) + step * (index - 1), round(y) + step
            frame[top : top + round(h), left : left + round(w)] = 255
    return frame


def test_several_targets_are_followed_as_if_each_were_alone() -> None:
    several, alone = MultiTracker(_tracker()), [_tracker() for _ in BOXES]
    numbers = [several.add(_frame(0), box) for box in BOXES]
    for tracker, box in zip(alone, BOXES, strict=True):
        tracker.init(_frame(0), box)
    statuses = set()
    for step in range(1, 20):
        states = several.update(_frame(step))
        assert list(states) == numbers
        assert [states[number] for number in numbers] == [tracker.update(_frame(step)) for tracker in alone]
        statuses |= {state.status for state in states.values()}
    assert statuses == {"tracking", "unsure", "lost"}


def test_a_frame_costs_one_search_and_one_template_for_those_in_doubt() -> None:
    template, search = Template(), Search()
    several = MultiTracker(Tracker(template, search, SETTINGS))
    for box in BOXES:
        several.add(_frame(0), box)
    for step in range(1, 6):
        several.update(_frame(step))
    assert (template.runs, search.batches) == (3, [3] * 5)
    several.update(scene(None))
    assert (template.runs, search.batches) == (4, [3] * 6)


def test_targets_come_and_go() -> None:
    several = MultiTracker(_tracker())
    assert several.update(_frame(0)) == {}
    first, second = (several.add(_frame(0), box) for box in BOXES[:2])
    several.remove(first)
    assert (list(several.update(_frame(1))), len(several)) == ([second], 1)
    third = several.add(_frame(1), BOXES[2])
    assert third not in (first, second)
    states = several.update(_frame(2))
    assert iou(states[third].box, BOXES[2]) > 0.6
    with pytest.raises(InputError, match=f"unknown target {first}"):
        several.remove(first)


def test_a_refused_target_leaves_the_others_alone() -> None:
    several = MultiTracker(_tracker())
    several.add(_frame(0), BOXES[0])
    with pytest.raises(InputError, match="outside the frame"):
        several.add(_frame(0), (900, 10, 20, 20))
    assert list(several.update(_frame(1))) == [1]


def test_the_tracker_s_own_target_is_left_alone() -> None:
    tracker = _tracker()
    tracker.init(_frame(0), BOXES[0])
    several = MultiTracker(tracker)
    several.add(_frame(0), BOXES[1])
    several.update(scene(None))
    assert iou(tracker.update(_frame(1)).box, BOXES[0]) > 0.6


def test_a_scale_search_shares_the_batch_too() -> None:
    settings = TrackerSettings(head="peak", stride=16, scales=3, window=0.2, rate=0.5, penalty=0.97)
    search = Search()
    several, alone = MultiTracker(Tracker(Template(), search, settings)), Tracker(Template(), Search(), settings)
    for box in BOXES:
        several.add(_frame(0), box)
    alone.init(_frame(0), BOXES[1])
    assert several.update(_frame(1))[2] == alone.update(_frame(1))
    assert search.batches == [9]


def test_closing_closes_the_sessions() -> None:
    with MultiTracker(_tracker()) as several:
        several.add(_frame(0), BOXES[0])
    with pytest.raises(InputError, match="closed"):
        several.update(_frame(1))


class Quick(Session):
    """Answers that cost nothing: noise, loud and then quiet, so that targets are found, doubted and lost."""

    backend = "numpy"

    def __init__(self, inputs: list[TensorSpec], outputs: dict[str, tuple[int, ...]]) -> None:
        specs = [TensorSpec(name, "float32", (None, *shape)) for name, shape in outputs.items()]
        super().__init__(inputs, specs)
        random = np.random.default_rng(0)
        self._answers = {name: random.normal(0, 3, (64, *shape)).astype(np.float32) for name, shape in outputs.items()}
        self._answers.get("score", np.empty(64))[32:] *= 0.05  # nothing is there
        self._answers |= {"box": np.abs(self._answers["box"])} if "box" in self._answers else {}
        self._runs = 0

    @classmethod
    def open(cls, path: Path, options: SessionOptions) -> Quick:
        raise NotImplementedError

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self._runs += 1
        picked = (np.arange(len(next(iter(inputs.values())))) + self._runs) % 64
        return {name: value[picked] for name, value in self._answers.items()}


def _quick() -> Tracker:
    settings = replace(
        SETTINGS, exemplar=15, search=31, stride=8, confidence=Confidence((-8, 1, 0, 0), (-8, 1, 0, 0, 1), patience=3)
    )
    features = TensorSpec("features", "float32", (None, 2, 2, 2))
    template = Quick([TensorSpec("template", "uint8", (None, 15, 15, 3))], {"features": (2, 2, 2)})
    search = Quick([features, TensorSpec("search", "uint8", (None, 31, 31, 3))], {"score": (2, 4, 4), "box": (4, 4, 4)})
    return Tracker(template, search, settings)


def test_ten_thousand_updates_hold_as_much_memory_as_a_hundred() -> None:
    frame, several = scene(None, (60, 80)), MultiTracker(_quick())
    for x in (5, 30):
        several.add(frame, (x, 10, 20, 20))
    seen: set[str] = set()

    def some(count: int) -> int:
        for _ in range(count):
            seen.update(state.status for state in several.update(frame).values())
        gc.collect()
        return sys.getallocatedblocks()  # every array is at least one

    first = some(100)
    held = some(4_900)  # of two targets
    assert seen == {"tracking", "unsure", "lost"}
    assert held < first + 200

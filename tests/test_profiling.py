"""Profiles: what is timed, what is counted, and when the result doubts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgecv
from edgecv import Profile, profile
from edgecv.errors import InputError
from edgecv.profiling.measure import example_inputs
from edgecv.profiling.statistics import doubts, is_steady
from edgecv.profiling.system import machine
from edgecv.tensors import TensorSpec
from edgecv.testing import TINY_MODELS
from tests.conftest import require
from tests.doubles import NumpySession, brightness

MS = 1_000_000


class Clock:
    """A clock that moves only while the session runs: run ``i`` takes ``duration(i)`` milliseconds."""

    def __init__(self, duration: Callable[[int], float]) -> None:
        self.now = 0
        self.runs = 0
        self._duration = duration

    def __call__(self) -> int:
        return self.now

    def session(self) -> NumpySession:
        def function(image: Any) -> Any:
            self.now += round(self._duration(self.runs) * MS)
            self.runs += 1
            return brightness(image)

        return NumpySession(function)


def _profile(duration: Callable[[int], float], **settings: Any) -> Profile:
    clock = Clock(duration)
    return profile(clock.session(), clock=clock, **settings)


def test_the_first_run_and_the_warm_up_are_not_counted() -> None:
    found = _profile(lambda i: 100 if i == 0 else 20 - i if i <= 15 else 5, duration_s=1)
    assert found.first_ms == 100
    assert found.load_ms is None
    assert found.warmup_runs > 15
    assert set(found.samples_ms) == {5.0}
    assert len(found.samples_ms) == 200
    assert (found.p50_ms, found.p99_ms, found.mean_ms, found.throughput_per_s) == (5, 5, 5, 200)


def test_warming_up_ends_when_it_must() -> None:
    found = _profile(lambda i: 10 * 1.2**i if i < 30 else 10 * 1.2**30, duration_s=10)
    assert found.warmup_runs < 40
    never = _profile(lambda i: 10 * 1.02**i, duration_s=10)
    assert sum(never.samples_ms) >= 10_000
    assert any("still changing" in doubt for doubt in never.doubts)


def test_percentiles_are_interpolated_between_samples() -> None:
    found = _profile(lambda i: 1.0 + (i % 100) / 100, duration_s=3)
    assert found.p50_ms == pytest.approx(float(np.percentile(found.samples_ms, 50)))
    assert found.p50_ms < found.p90_ms < found.p99_ms


def test_throughput_counts_the_items_of_a_batch() -> None:
    found = _profile(lambda i: 4, duration_s=1, batch=8)
    assert found.batch == 8
    assert found.throughput_per_s == 2000


def test_a_second_profile_has_no_first_run() -> None:
    clock = Clock(lambda i: 1)
    session = clock.session()
    assert profile(session, clock=clock, duration_s=0.1).first_ms == 1
    assert profile(session, clock=clock, duration_s=0.1).first_ms is None


def test_a_run_longer_than_the_time_is_one_sample() -> None:
    found = _profile(lambda i: 5000, duration_s=1)
    assert list(found.samples_ms) == [5000]
    assert any("only 1 runs" in doubt for doubt in found.doubts)


def _doubts(samples: Any, steady: bool = True, load: float | None = 0.0) -> str:
    return "; ".join(doubts(np.asarray(samples, float), steady, load, cores=2))


def test_a_quiet_long_measurement_has_no_doubts() -> None:
    assert _doubts(np.full(2000, 3.0)) == ""
    assert _doubts(np.full(2000, 3.0), load=None) == ""


@pytest.mark.parametrize(
    ("samples", "telling"),
    [
        (np.full(50, 3.0), "only 50 runs"),
        (np.full(500, 3.0), "p99 rests on 5 of 500 runs"),
        (np.linspace(3, 4, 2000), "drifted by +21%"),
        (np.linspace(4, 3, 2000), "drifted by -17%"),
        (np.tile([3.0, 3.0, 3.0, 3.0, 6.0], 400), "p90 is 2.0 times p50"),
    ],
)
def test_a_doubtful_measurement_says_why(samples: Any, telling: str) -> None:
    assert telling in _doubts(samples)


def test_other_work_and_a_moving_start_are_said() -> None:
    assert "load average was 2.5 on 2 cores" in _doubts(np.full(2000, 3.0), load=2.5)
    assert "warm up for longer" in _doubts(np.full(2000, 3.0), steady=False)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.booleans(), st.none() | st.floats(0, 99))
def test_doubts_never_fail(samples: list[float], steady: bool, load: float | None) -> None:
    assert all(isinstance(doubt, str) for doubt in doubts(np.array(samples), steady, load, 2))


def test_steady_means_two_windows_alike() -> None:
    assert not is_steady([1.0] * 19)
    assert is_steady([1.0] * 20)
    assert not is_steady([1.0] * 10 + [1.2] * 10)
    assert is_steady([9.0] * 50 + [1.0] * 20)
    assert is_steady([1.0] * 10 + [1.0] * 6 + [50.0] * 4)  # medians forgive a few outliers


def test_conditions_are_recorded() -> None:
    found = _profile(lambda i: 1, duration_s=0.1).conditions
    assert found.machine.cpu == machine().cpu
    assert found.machine.cores >= 1
    assert found.inputs == {"image": ("uint8", (1, 4, 4, 3))}
    assert found.backend == "numpy"
    assert "numpy" in found.versions


def test_a_profile_survives_being_saved(tmp_path: Path) -> None:
    found = _profile(lambda i: 1 + i % 3, duration_s=0.1)
    found.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == found


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("", "not valid JSON"),
        ("[]", "not a profile of format 1"),
        ('{"format": 2}', "not a profile of format 1"),
        ('{"format": 1}', "lacks the key 'samples_ms'"),
        (None, "at least one sample"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str | None, telling: str) -> None:
    path = tmp_path / "p.json"
    if text is None:
        _profile(lambda i: 1, duration_s=0.1).save(path)
        text = json.dumps({**json.loads(path.read_text()), "samples_ms": []})
    path.write_text(text)
    with pytest.raises(InputError, match=telling):
        Profile.load(path)
    with pytest.raises(InputError, match="cannot read profile"):
        Profile.load(tmp_path / "none.json")


@pytest.mark.parametrize("duration", [0, -1, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(duration: float) -> None:
    with pytest.raises(InputError, match="duration_s"):
        _profile(lambda i: 1, duration_s=duration)


@pytest.mark.parametrize("batch", [0, -1, 1.5])
def test_a_batch_that_cannot_be_is_refused(batch: Any) -> None:
    with pytest.raises(InputError, match="batch is a whole number"):
        _profile(lambda i: 1, duration_s=0.1, batch=batch)


def test_inputs_of_the_callers_are_used_and_checked() -> None:
    feed = {"image": np.zeros((5, 4, 4, 3), np.uint8)}
    assert _profile(lambda i: 1, duration_s=0.1, inputs=feed).batch == 5
    with pytest.raises(InputError, match="takes uint8"):
        _profile(lambda i: 1, duration_s=0.1, inputs={"image": np.zeros((5, 4, 4, 3))})


def test_example_inputs_fit_any_graph() -> None:
    specs = (
        TensorSpec("image", "uint8", (None, None, None, 3)),
        TensorSpec("x", "float16", (None, 7)),
        TensorSpec("mask", "bool", (2, 9)),
        TensorSpec("count", "int64", ()),
    )
    feed = example_inputs(specs, 2)
    assert all(spec.accepts(feed[spec.name]) for spec in specs)
    assert feed["image"].shape == (2, 224, 224, 3)
    assert feed["image"].max() > 250
    again = example_inputs(specs, 2)
    assert all(np.array_equal(feed[name], again[name]) for name in feed)
    with pytest.raises(InputError, match="its batch is fixed at 2, got batch=1"):
        example_inputs(specs[2:3], 1)
    with pytest.raises(InputError, match="no declared rank"):
        example_inputs((TensorSpec("x", "float32", None),))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_is_opened_timed_and_closed(tmp_path: Path, backend: str) -> None:
    require("onnx")
    require(backend)
    path = TINY_MODELS["image"].write(tmp_path)
    with edgecv.open_session(path, backend=backend) as session:
        found = profile(session, duration_s=0.05)
    assert found.load_ms is not None
    assert found.first_ms is not None
    assert backend in found.conditions.versions
    assert profile(path, duration_s=0.05).load_ms is not None

"""Charts and the report page, from made-up samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgecv.manifest import Accuracy, Parity
from edgecv.profiling import Conditions, Profile
from edgecv.profiling.charts import curve, histogram, run_by_run
from edgecv.profiling.report import Report, Row, render
from edgecv.profiling.system import Machine

MACHINE = Machine("a <cpu>", 2, "x86_64", "Linux", "3.11", None, None, None, ())


def _row(backend: str, samples: list[float], doubts: tuple[str, ...] = ()) -> Row:
    conditions = Conditions(
        MACHINE, backend, "cpu", 1, {"image": ("uint8", (1, 8, 8, 3))}, {"numpy": "2"}, "ab" * 32, 0.1
    )
    profile = Profile(1, tuple(samples), 3, 10.0, None, doubts, conditions)
    return Row(backend, "v", Accuracy(0.9, 1.0, 10, (0.6, 0.98)), Parity(10, 1e-6, 1e-7, 1.0, 1.0, 1e-3), profile)


def _page(*rows: Row) -> str:
    return render(
        Report("A title", "A summary", {"network": "x & y"}, rows, epochs=(0.1, 0.9), limits=("one <limit>",))
    )


def test_text_is_escaped() -> None:
    page = _page(_row("onnxruntime", [1.0, 2.0]))
    assert "a &lt;cpu&gt;" in page
    assert "x &amp; y" in page
    assert "one &lt;limit&gt;" in page


def test_doubts_are_shown_and_their_absence_too() -> None:
    assert "only 3 runs" in _page(_row("a", [1.0, 2.0], ("only 3 runs",)))
    assert "no reason to doubt" in _page(_row("a", [1.0, 2.0]))


@pytest.mark.parametrize("samples", [[1.0], [1.0] * 50, [0.001, 1000.0], list(np.geomspace(0.01, 50, 5000))])
def test_any_samples_can_be_drawn(samples: list[float]) -> None:
    page = _page(_row("a", samples), _row("b", [2 * value for value in samples]))
    assert "nan" not in page
    assert "inf" not in page.replace("inference", "")


def test_every_sample_within_the_limits_is_in_a_bar() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert histogram(values, (0.5, 5.0), {}, 0).count("<rect") == 3
    assert histogram(values, (0.5, 2.5), {}, 0).count("<rect") == 2


def test_marks_that_would_overlap_are_left_out() -> None:
    drawn = histogram(np.array([1.0, 2.0]), (0.5, 5.0), {"p50": 1.0, "p90": 1.001, "p99": 4.0}, 0)
    assert [name for name in ("p50", "p90", "p99") if f">{name}<" in drawn] == ["p50", "p99"]


def test_long_series_are_thinned() -> None:
    assert run_by_run(np.linspace(1, 2, 100_000), 0).count("M") <= 1600
    assert "run 100,000" in run_by_run(np.linspace(1, 2, 100_000), 0)


def test_a_curve_has_a_dot_per_epoch() -> None:
    assert curve([0.1, 0.5, 0.9], "top-1", 0).count("<circle") == 3


def test_a_row_without_parity_is_the_reference() -> None:
    row = dataclasses.replace(_row("torch", [1.0]), parity=None)
    assert "reference" in _page(row, _row("a", [1.0]))

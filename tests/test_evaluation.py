"""Accuracy and its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecv import Classifier, Preprocess, evaluate
from edgecv.data import ArraySamples
from edgecv.errors import InputError
from edgecv.evaluation import accuracy_of, wilson_interval
from tests.doubles import NumpySession, brightness, strongest

LABELS = ("red", "green", "blue")


def _samples(targets: list[int]) -> ArraySamples:
    return ArraySamples([strongest(i % 3) for i in range(len(targets))], targets, LABELS)


def test_right_and_wrong_are_counted() -> None:
    classifier = Classifier(NumpySession(brightness), Preprocess(size=(4, 4)), LABELS)
    seen: list[tuple[float, float]] = []
    found = evaluate(classifier, _samples([0, 1, 2, 0, 0]), batch=2, progress=lambda _, *done: seen.append(done))
    assert (found.top1, found.top5, found.samples) == (0.8, 1.0, 5)
    assert found.interval == wilson_interval(4, 5)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_top5_is_among_the_best_five() -> None:
    found = accuracy_of(np.array([0, 4, 5, 9]))
    assert (found.top1, found.top5) == (0.25, 0.5)


def test_ties_do_not_help_a_network_that_says_nothing() -> None:
    classifier = Classifier(NumpySession(lambda image: np.zeros((len(image), 3))), Preprocess(size=(4, 4)), LABELS)
    assert evaluate(classifier, _samples([2, 2, 2])).top1 == 0


def test_data_of_other_classes_is_refused() -> None:
    classifier = Classifier(NumpySession(brightness), Preprocess(size=(4, 4)), ("red", "green", "violet"))
    with pytest.raises(InputError, match="number 2 is 'blue', not 'violet'"):
        evaluate(classifier, _samples([0]))
    with pytest.raises(InputError, match="at least one labelled image"):
        evaluate(classifier, _samples([]))


def test_the_interval_is_wilsons() -> None:
    """Figures of Newcombe, 1998 (Statistics in Medicine 17:857), table I, method 3."""
    cases = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), wanted in cases.items():
        assert wilson_interval(successes, trials) == pytest.approx(wanted, abs=1e-4)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_holds_the_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1

"""Scores of embeddings against counting by hand, and the laws they keep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecv.errors import InputError
from edgecv.verification import (
    EmbeddingScores,
    pair_similarities,
    recall_at_1,
    roc_auc,
    score_embeddings,
    tar_at_far,
)
from tests.conftest import require

Scored = tuple[NDArray[np.float64], NDArray[np.bool_]]


@st.composite
def _scored(draw: st.DrawFn, ties: bool = True) -> Scored:
    """Scores, small whole numbers so that maps keep their order exactly, with a positive and a negative among them."""
    scores = draw(st.lists(st.integers(-8, 8) if ties else st.integers(-999, 999), min_size=2, unique=not ties))
    positive = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    positive[0] = not positive[-1]
    return np.array(scores, dtype=np.float64), np.array(positive)


def _groups(seed: int, samples: int = 40, classes: int = 4, spread: float = 1.0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, samples)
    return (np.eye(classes, 8)[targets] + spread * generator.normal(size=(samples, 8))).astype(np.float32), targets


def _cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    dot, norms = 0.0, [0.0, 0.0]
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        dot, norms = dot + a * b, [norms[0] + a * a, norms[1] + b * b]
    return dot / math.sqrt(norms[0] * norms[1])


def _auc_by_counting(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    won = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    return float(np.mean(won))


def _tar_by_trying(scores: NDArray[np.float64], positive: NDArray[np.bool_], far: float) -> float:
    best = 0.0
    for threshold in [*scores.tolist(), math.inf]:
        accepted = scores >= threshold
        if accepted[~positive].sum() / (~positive).sum() <= far:
            best = max(best, accepted[positive].mean())
    return best


def test_pairs_come_in_order_with_their_cosines() -> None:
    embeddings = np.array([[3, 0], [0, 2], [1, 1], [-5, 0]], dtype=np.float32)
    scores, same = pair_similarities(embeddings, np.array([0, 1, 1, 0]))
    half = math.sqrt(0.5)
    assert scores.tolist() == pytest.approx([0, half, -1, half, 0, -half])
    assert same.tolist() == [False, False, True, True, False, False]
    assert (str(scores.dtype), str(same.dtype)) == ("float64", "bool")


def test_pairs_are_those_of_two_loops() -> None:
    embeddings, targets = _groups(1)
    scores, same = pair_similarities(embeddings, targets)
    loops = [(i, j) for i in range(40) for j in range(i + 1, 40)]
    assert scores.tolist() == pytest.approx([_cosine(embeddings[i], embeddings[j]) for i, j in loops], abs=1e-9)
    assert same.tolist() == [targets[i] == targets[j] for i, j in loops]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("features", [1, 3, 64, 131])
def test_embeddings_of_one_direction_tie(dtype: Any, features: int) -> None:
    """A collapsed network must score as one that says nothing, not by how a matrix product rounds."""
    row = np.random.default_rng(features).normal(size=features).astype(dtype)
    targets = np.arange(37) // 7
    scores = score_embeddings(np.outer(np.arange(1.0, 38), row), targets)
    assert (scores.roc_auc, scores.tar_at_far_1e2, scores.tar_at_far_1e3) == (0.5, 0, 0)
    chance = [(targets == target).sum() - 1 for target in targets]
    assert scores.recall_at_1 == pytest.approx(sum(chance) / 36 / 37)


def test_zeros_are_unlike_everything() -> None:
    scores, _ = pair_similarities(np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]), np.array([0, 0, 0]))
    assert scores.tolist() == [0, 0, 0]


@given(_scored())
@settings(deadline=None)
def test_the_area_is_that_of_counting_and_of_sklearn(scored: Scored) -> None:
    require("sklearn")
    from sklearn.metrics import roc_auc_score

    assert roc_auc(*scored) == pytest.approx(_auc_by_counting(*scored), abs=1e-12)
    assert roc_auc(*scored) == pytest.approx(roc_auc_score(scored[1], scored[0]), abs=1e-12)


def test_the_area_by_hand() -> None:
    # Positives 4, 2, 2; negatives 3, 2: 4 beats both, each 2 loses to 3 and ties with 2.
    assert roc_auc(np.array([4.0, 2, 2, 3, 2]), np.array([True, True, True, False, False])) == 3 / 6


@given(_scored(ties=False))
@settings(deadline=None)
def test_reversed_scores_have_the_rest_of_the_area(scored: Scored) -> None:
    scores, positive = scored
    assert roc_auc(-scores, positive) == pytest.approx(1 - roc_auc(scores, positive), abs=1e-12)
    assert roc_auc(scores, ~positive) == pytest.approx(1 - roc_auc(scores, positive), abs=1e-12)


@given(_scored(), st.floats(0, 1))
@settings(deadline=None)
def test_only_the_order_of_scores_matters(scored: Scored, far: float) -> None:
    scores, positive = scored
    for rising in (scores * 3 + 1, scores**3, np.exp(scores)):
        assert roc_auc(rising, positive) == roc_auc(scores, positive)
        assert tar_at_far(rising, positive, far) == tar_at_far(scores, positive, far)


@given(_scored(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_pairs_does_not_matter(scored: Scored, random: Any) -> None:
    order = list(range(len(scored[0])))
    random.shuffle(order)
    shuffled = scored[0][order], scored[1][order]
    assert roc_auc(*shuffled) == roc_auc(*scored)
    assert tar_at_far(*shuffled, 0.3) == tar_at_far(*scored, 0.3)


@given(_scored(), st.floats(0, 1))
@settings(deadline=None)
def test_perfect_scores_are_perfect(scored: Scored, far: float) -> None:
    scores, positive = scored
    scores = np.where(positive, scores + 100, scores)
    assert roc_auc(scores, positive) == 1
    assert roc_auc(-scores, positive) == 0
    assert tar_at_far(scores, positive, far) == 1


@given(_scored(), st.one_of(st.floats(0, 1), st.integers(0, 40).map(lambda count: count / 40)))
@settings(deadline=None)
def test_accepted_shares_are_those_of_trying_every_threshold(scored: Scored, far: float) -> None:
    assert tar_at_far(*scored, far) == pytest.approx(_tar_by_trying(*scored, far), abs=1e-12)


@given(_scored(), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_more_false_accepts_allow_no_fewer_true_ones(scored: Scored, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= tar_at_far(*scored, low) <= tar_at_far(*scored, high) <= tar_at_far(*scored, 1) == 1


@pytest.mark.parametrize("count", range(101))
def test_a_rate_allows_exactly_its_count(count: int) -> None:
    """Products such as 0.29 * 100 fall short of the count they stand for."""
    scores = np.concatenate([np.arange(100) + 0.5, np.arange(100)])
    positive = np.arange(200) < 100
    assert tar_at_far(scores, positive, count / 100) == min(count + 1, 100) / 100
    below = math.nextafter(count / 100, 0)
    assert count == 0 or tar_at_far(scores, positive, below) == count / 100


def test_accepted_shares_by_hand() -> None:
    scores, positive = np.array([5.0, 4, 3, 2, 4, 1, 0, -1]), np.arange(8) < 4
    # The best negative ties with a positive at 4: accepting that positive accepts it too.
    wanted = {0.0: 0.25, 0.24: 0.25, 0.25: 1.0, 1.0: 1.0}
    assert {far: tar_at_far(scores, positive, far) for far in wanted} == wanted


def test_infinite_scores_are_scores() -> None:
    scores, positive = np.array([np.inf, 0.0, np.inf, -np.inf]), np.array([True, True, False, False])
    assert roc_auc(scores, positive) == 2.5 / 4
    assert (tar_at_far(scores, positive, 0.4), tar_at_far(scores, positive, 0.5)) == (0, 1)


def test_recall_is_that_of_loops() -> None:
    embeddings, targets = _groups(2, classes=6)
    targets[0] = 99
    hits = []
    for i in range(1, 40):
        others = [j for j in range(40) if j != i]
        nearest = max(others, key=lambda j: _cosine(embeddings[i], embeddings[j]))
        hits.append(targets[nearest] == targets[i])
    assert recall_at_1(embeddings, targets) == pytest.approx(np.mean(hits))
    assert 0.2 < np.mean(hits) < 0.9


def test_recall_by_hand() -> None:
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.05]])
    assert recall_at_1(embeddings[:4], np.array([0, 0, 1, 1])) == 1
    assert recall_at_1(embeddings[:4], np.array([0, 1, 0, 1])) == 0
    # The fifth is alone in its class: left out itself, but the nearest of the first two.
    assert recall_at_1(embeddings, np.array([0, 0, 1, 1, 2])) == 0.5
    # The first two are as near to the third as to each other.
    assert recall_at_1(np.ones((3, 2)), np.array([0, 0, 1])) == 0.5


def test_scores_are_those_of_the_parts() -> None:
    embeddings, targets = _groups(3, samples=60, spread=0.3)
    scores, same = pair_similarities(embeddings, targets)
    assert score_embeddings(embeddings, targets) == EmbeddingScores(
        roc_auc=roc_auc(scores, same),
        tar_at_far_1e2=tar_at_far(scores, same, 0.01),
        tar_at_far_1e3=tar_at_far(scores, same, 0.001),
        recall_at_1=recall_at_1(embeddings, targets),
        pairs=1770,
        samples=60,
    )
    assert 0.7 < score_embeddings(embeddings, targets).roc_auc < 1


@given(st.integers(0, 99), st.floats(0.01, 100))
@settings(deadline=None)
def test_the_length_of_an_embedding_does_not_matter(seed: int, scale: float) -> None:
    embeddings, targets = _groups(seed)
    lengths = scale * (1 + np.arange(40)[:, None])
    assert score_embeddings(embeddings.astype(np.float64) * lengths, targets) == score_embeddings(embeddings, targets)


def test_separated_groups_score_one() -> None:
    found = score_embeddings(np.repeat(np.eye(3, 5), 4, axis=0), np.repeat([7, 5, 9], 4))
    assert found == EmbeddingScores(1, 1, 1, 1, pairs=66, samples=12)


@pytest.mark.parametrize(
    ("embeddings", "targets", "message"),
    [
        (np.ones(4), np.arange(4), r"floats \[2 or more, features\], got float64 \[4\]"),
        (np.ones((1, 4)), np.arange(1), r"got float64 \[1, 4\]"),
        (np.ones((4, 4), dtype=np.int64), np.arange(4), "got int64"),
        (np.ones((4, 4)), np.arange(3), r"integers \[4\], got int64 \[3\]"),
        (np.ones((4, 4)), np.arange(4)[:, None], r"got int64 \[4, 1\]"),
        (np.ones((4, 4)), np.arange(4) / 2, "got float64"),
        (np.array([[1, np.nan], [np.inf, 0]]), np.zeros(2, dtype=np.int64), "got 2 numbers that are not"),
    ],
)
def test_embeddings_that_cannot_be_scored_are_refused(embeddings: Any, targets: Any, message: str) -> None:
    for function in (pair_similarities, recall_at_1, score_embeddings):
        with pytest.raises(InputError, match=message) as caught:
            function(embeddings, targets)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (np.zeros((2, 2)), np.ones((2, 2), dtype=bool), r"got \[2, 2\]"),
        (np.zeros(3), np.ones(2, dtype=bool), r"got \[3\], bool \[2\]"),
        (np.zeros(2), np.arange(2), "int64"),
        (np.array([0.0, np.nan]), np.array([True, False]), "got 1 NaN"),
        (np.zeros(2), np.ones(2, dtype=bool), "got 2 of 2 positive"),
        (np.zeros(2), np.zeros(2, dtype=bool), "got 0 of 2 positive"),
        (np.zeros(0), np.zeros(0, dtype=bool), "got 0 of 0 positive"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(scores: Any, positive: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        roc_auc(scores, positive)
    with pytest.raises(InputError, match=message) as caught:
        tar_at_far(scores, positive, 0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("far", [-0.1, 1.1, math.nan])
def test_rates_are_shares(far: float) -> None:
    with pytest.raises(InputError, match="from 0 to 1, got"):
        tar_at_far(np.arange(2.0), np.array([True, False]), far)


def test_classes_need_company() -> None:
    with pytest.raises(InputError, match="got 4 classes of one"):
        recall_at_1(np.ones((4, 2)), np.arange(4))
    with pytest.raises(InputError, match="got 0 of 6 positive"):
        score_embeddings(np.ones((4, 2)), np.arange(4))
    with pytest.raises(InputError, match="got 6 of 6 positive"):
        score_embeddings(np.ones((4, 2)), np.zeros(4, dtype=np.int64))

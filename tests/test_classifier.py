"""The classifier, on one image, a file and a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecv import Classifier, Preprocess
from edgecv.errors import InputError
from edgecv.pipelines.classifier import activate
from edgecv.pipelines.frames import run_frames
from tests.conftest import require
from tests.doubles import NumpySession, brightness, solid, strongest

PREPROCESS = Preprocess(size=(4, 4))
LABELS = ("red", "green", "blue")


def _classifier(**settings: Any) -> Any:
    return Classifier(NumpySession(brightness, **settings), PREPROCESS, LABELS)


def test_one_image_gives_guesses_best_first() -> None:
    guesses = _classifier()(solid(200, 10, 100))
    assert [guess.label for guess in guesses] == ["red", "blue", "green"]
    assert [guess.index for guess in guesses] == [0, 2, 1]
    assert sum(guess.score for guess in guesses) == pytest.approx(1)
    wanted = np.exp(np.array([200, 100, 10]) / 25.5)
    assert [guess.score for guess in guesses] == pytest.approx((wanted / wanted.sum()).tolist())


def test_a_list_or_an_array_is_one_batch() -> None:
    classifier = _classifier()
    frames = [solid(9, 0, 0), solid(0, 9, 0, (3, 8)), solid(0, 0, 9)]
    assert [guesses[0].label for guesses in classifier(frames, top=1)] == list(LABELS)
    assert [guesses[0].label for guesses in classifier(np.stack([frames[0], frames[2]]))] == ["red", "blue"]
    assert classifier(frames[:1])[0] == classifier(frames[0])
    assert classifier.session.batches == [3, 2, 1, 1]


def test_a_file_is_read(tmp_path: Path) -> None:
    require("opencv")
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), solid(0, 0, 250))  # OpenCV writes BGR: the file is red
    classifier = _classifier()
    assert classifier(tmp_path / "a.png")[0].label == "red"
    assert classifier(str(tmp_path / "a.png"))[0].label == "red"
    assert classifier([tmp_path / "a.png", solid(0, 9, 0)])[1][0].label == "green"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_fixed_batch_is_filled_up(count: int) -> None:
    classifier = _classifier(batch=3)
    frames = [strongest(i % 3) for i in range(count)]
    assert [guesses[0].index for guesses in classifier(frames)] == [i % 3 for i in range(count)]
    assert set(classifier.session.batches) == {3}


def test_many_frames_run_in_parts() -> None:
    session = NumpySession(brightness)
    outputs = run_frames(session, PREPROCESS, [solid(i, 0, 0) for i in range(10)], batch=4)["logits"]
    assert session.batches == [4, 4, 2]
    assert np.allclose(outputs[:, 0] * 25.5, np.arange(10))


@pytest.mark.parametrize(
    ("image", "telling"),
    [
        ([], "at least one frame"),
        (None, "got NoneType"),
        (3, "got int"),
        (np.zeros((4, 4), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 4), np.uint8), "height, width, 3"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((0, 4, 3), np.uint8), "uint8"),
        ([np.zeros((4, 4, 3), np.uint8), None], "NoneType"),
        ("none.jpg", "cannot read image"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        _classifier()(image)


@pytest.mark.parametrize("top", [0, -1])
def test_no_guess_at_all_is_refused(top: int) -> None:
    with pytest.raises(InputError, match="top is 1 or more"):
        _classifier()(solid(1, 2, 3), top=top)


def test_more_guesses_than_classes_give_all_classes() -> None:
    assert len(_classifier()(solid(1, 2, 3), top=100)) == 3


def test_labels_default_to_numbers_and_must_fit() -> None:
    session = NumpySession(brightness)
    assert Classifier(session, PREPROCESS)(solid(0, 0, 9))[0].label == "2"
    with pytest.raises(InputError, match="2 labels were given for a graph with 3 classes"):
        Classifier(session, PREPROCESS, ["a", "b"])


def test_a_graph_that_does_not_say_its_classes_works() -> None:
    assert Classifier(NumpySession(brightness, classes=None), PREPROCESS)(solid(0, 0, 9))[0].label == "2"


def test_a_graph_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"preprocessing makes uint8\[batch, 8, 8, 3\], the graph takes uint8\[any, 4"):
        Classifier(NumpySession(brightness), Preprocess(size=(8, 8)))


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_scores_are_shares_whatever_the_logits(logits: Any) -> None:
    softmax = activate(logits, "softmax")
    assert np.allclose(softmax.sum(1), 1, atol=1e-5)
    for scores in (softmax, activate(logits, "sigmoid")):
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()
    assert np.array_equal(activate(logits, "none"), logits)


def test_scores_are_those_of_the_definition() -> None:
    logits = np.array([[1.0, 2.0, -3.0]], np.float32)
    assert np.allclose(activate(logits, "softmax"), np.exp(logits) / np.exp(logits).sum())
    assert np.allclose(activate(logits, "sigmoid"), 1 / (1 + np.exp(-logits)))


def test_a_closed_classifier_says_so() -> None:
    with _classifier() as classifier:
        pass
    with pytest.raises(InputError, match="closed"):
        classifier(solid(1, 2, 3))

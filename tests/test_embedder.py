"""The embedder and its gallery, against vectors known beforehand, brute force and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv import Preprocess
from edgecv.errors import InputError
from edgecv.pipelines import Embedder, Gallery, Match
from edgecv.tensors import Array, TensorSpec
from tests.conftest import require
from tests.doubles import NumpySession, brightness, solid

PREPROCESS = Preprocess(size=(4, 4))
RED, GREEN, BLUE = solid(255, 0, 0), solid(0, 255, 0), solid(0, 0, 255)
BUNDLE = "ab" * 32


class VectorSession(NumpySession):
    """The numpy session with an output called ``vectors``, of whatever dtype and shape the function gives."""

    def __init__(self, function: Callable[[Array], Array], dtype: str = "float32", **settings: Any) -> None:
        super().__init__(function, **settings)
        self.outputs = (TensorSpec("vectors", dtype, self.outputs[0].shape),)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(inputs["image"]))
        return {"vectors": self._function(inputs["image"])}


def _embedder(function: Callable[[Array], Array] = brightness, bundle: str | None = None, **settings: Any) -> Any:
    session = VectorSession(function, **settings)
    session.bundle_sha256 = bundle
    return Embedder(session, PREPROCESS)


def _signed(image: Array) -> Array:
    """Channel means about zero: white and black are opposites."""
    return brightness(image) - 5


def _projected(dims: int) -> Any:
    """An embedder whose vectors point anywhere, and do not depend on the rest of the batch."""
    weights = np.random.default_rng(0).normal(size=(48, dims)).astype(np.float32)

    def project(image: Array) -> Array:
        rows = (image.reshape(len(image), -1) / 255 - 0.5).astype(np.float32)
        return np.stack([row @ weights for row in rows])

    return _embedder(project, classes=dims)


def _frames(seed: int, count: int) -> list[Array]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8))


def _refused(call: Callable[[], object], telling: str) -> None:
    with pytest.raises(InputError, match=telling) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_one_image_is_one_unit_vector() -> None:
    vector = _embedder()(solid(30, 0, 40))
    assert vector.tolist() == pytest.approx([0.6, 0, 0.8])
    assert (vector.dtype, vector.shape) == (np.float32, (3,))


def test_a_list_or_an_array_is_one_batch() -> None:
    embedder = _embedder()
    frames = [RED, solid(0, 9, 0, (3, 8)), BLUE]
    assert np.array_equal(embedder(frames), np.eye(3))
    assert np.array_equal(embedder(tuple(frames)), np.eye(3))
    assert np.array_equal(embedder(np.stack([RED, BLUE])), np.eye(3)[[0, 2]])
    assert embedder([RED]).shape == (1, 3)
    assert embedder.session.batches == [3, 3, 2, 1]


def test_a_file_is_read(tmp_path: Path) -> None:
    require("opencv")
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), solid(0, 0, 250))  # OpenCV writes BGR: the file is red
    embedder = _embedder()
    assert embedder(tmp_path / "a.png").tolist() == [1, 0, 0]
    assert embedder([str(tmp_path / "a.png"), GREEN]).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert embedder.similarity(tmp_path / "a.png", RED) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_fixed_batch_is_filled_up(count: int) -> None:
    embedder = _embedder(batch=3)
    assert np.array_equal(embedder([(RED, GREEN, BLUE)[i % 3] for i in range(count)]), np.eye(3)[np.arange(count) % 3])
    assert set(embedder.session.batches) == {3}


def test_the_graphs_own_vectors_on_request() -> None:
    embedder = Embedder(NumpySession(brightness), PREPROCESS, normalize=False)
    assert embedder(solid(51, 0, 0)).tolist() == [2, 0, 0]
    assert embedder.similarity(solid(51, 0, 0), solid(255, 0, 0)) == 1
    with pytest.raises(InputError, match=r"embedder\.normalize must be true or false"):
        Embedder(NumpySession(brightness), PREPROCESS, normalize=1)  # type: ignore[arg-type]


def test_the_length_is_the_graphs() -> None:
    assert _embedder().dims == 3
    assert _embedder(classes=None).dims is None
    assert _embedder(classes=None)(RED).shape == (3,)


def test_a_manifest_says_whether_to_normalize() -> None:
    session = NumpySession(brightness)
    assert Embedder.from_postprocess(session, PREPROCESS, ("a", "b"), {}).normalize
    assert not Embedder.from_postprocess(session, PREPROCESS, (), {"normalize": False}).normalize
    for settings_, telling in [
        ({"normalise": True}, "did you mean 'normalize'"),
        ({"normalize": "yes"}, "true or fals"),
    ]:
        _refused(lambda given=settings_: Embedder.from_postprocess(session, PREPROCESS, (), given), telling)  # type: ignore[misc]


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 3, 64]))
@settings(deadline=None)
def test_vectors_have_length_1(seed: int, count: int, dims: int) -> None:
    vectors = _projected(dims)(_frames(seed, count))
    assert vectors.shape == (count, dims)
    assert np.linalg.norm(vectors.astype(np.float64), axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e30, 1e37])
def test_very_short_and_very_long_vectors_have_a_direction(scale: float) -> None:
    embedder = _embedder(lambda image: (np.sign(brightness(image)) * np.float32(scale)).astype(np.float32))
    assert embedder(solid(1, 1, 0)).tolist() == pytest.approx([0.5**0.5, 0.5**0.5, 0])


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_other_numbers_become_float32(dtype: str) -> None:
    vector = _embedder(lambda image: brightness(image).astype(dtype), dtype)(solid(77, 0, 102))
    assert vector.dtype == np.float32
    assert vector.tolist() == pytest.approx([0.6, 0, 0.8], abs=0.01)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 64]))
@settings(deadline=None)
def test_similarity_is_a_cosine(seed: int, dims: int) -> None:
    embedder, (first, second) = _projected(dims), _frames(seed, 2)
    similarity = embedder.similarity(first, second)
    assert -1 <= similarity <= 1
    assert similarity == embedder.similarity(second, first)
    assert embedder.similarity(first, first) == 1
    one, other = embedder([first, second]).astype(np.float64)
    assert similarity == pytest.approx(one @ other / np.sqrt((one @ one) * (other @ other)), abs=1e-9)


def test_similarity_of_known_pairs() -> None:
    embedder = _embedder(_signed)
    white, black = solid(255, 255, 255), solid(0, 0, 0)
    assert embedder.similarity(white, black) == -1
    assert embedder.similarity(white, RED) == pytest.approx(-1 / 3)
    assert _embedder().similarity(RED, BLUE) == 0
    assert isinstance(embedder.similarity(white, black), float)


BAD_IMAGES = [
    ([], "at least one frame"),
    (None, "got NoneType"),
    (3, "got int"),
    (np.zeros((4, 4), np.uint8), "height, width, 3"),
    (np.zeros((4, 4, 4), np.uint8), "height, width, 3"),
    (np.zeros((4, 4, 3), np.float32), "uint8"),
    (np.zeros((0, 4, 3), np.uint8), "uint8"),
    ([np.zeros((4, 4, 3), np.uint8), None], "NoneType"),
    ("none.jpg", "cannot read image"),
]


@pytest.mark.parametrize(("image", "telling"), BAD_IMAGES)
def test_what_is_no_image_is_refused(image: Any, telling: str) -> None:
    if isinstance(image, str):
        require("opencv")
    embedder = _embedder()
    gallery = Gallery(embedder)
    gallery.enrol("red", RED)
    _refused(lambda: embedder(image), telling)
    _refused(lambda: gallery.enrol("blue", image), telling)
    _refused(lambda: gallery.search(image), telling)
    assert gallery.labels == ("red",)


def test_similarity_is_of_two_images() -> None:
    _refused(lambda: _embedder().similarity([RED, BLUE], RED), "got list")
    _refused(lambda: _embedder().similarity(RED, None), "got NoneType")
    _refused(lambda: _embedder().similarity(RED, np.stack([RED])), "batch")


def test_a_vector_without_a_direction_is_named() -> None:
    black = solid(0, 0, 0)
    _refused(lambda: _embedder()([RED, black, BLUE]), "image 2 of 3 is a zero vector")
    _refused(lambda: _embedder().similarity(black, black), "image 1 of 2 is a zero vector")
    _refused(lambda: Gallery(_embedder()).enrol("x", black), "image 1 of 1 is a zero vector")
    _refused(lambda: Embedder(NumpySession(brightness), PREPROCESS, normalize=False)(black), "zero vector")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_vector_that_is_not_finite_is_named(value: float) -> None:
    embedder = _embedder(lambda image: np.where(brightness(image) > 9, value, 1.0), dtype="float64")
    _refused(lambda: embedder([solid(1, 1, 1), RED]), "image 2 of 2 is not finite")


def test_another_graph_is_refused() -> None:
    two_outputs, two_inputs, deep = (VectorSession(brightness) for _ in range(3))
    two_outputs.outputs *= 2
    two_inputs.inputs *= 2
    deep.outputs = (TensorSpec("vectors", "float32", (None, 3, 1, 1)),)
    for session, telling in ((two_outputs, "one output"), (two_inputs, "one input"), (deep, "any, 3, 1, 1")):
        _refused(lambda session=session: Embedder(session, PREPROCESS), telling)  # type: ignore[misc]
    _refused(lambda: Embedder(VectorSession(brightness), Preprocess(size=(8, 8))), "preprocessing makes")


def test_a_graph_that_hides_its_shape_is_checked_when_it_runs() -> None:
    embedder = _embedder(lambda image: image.astype(np.float32))
    embedder.session.outputs = (TensorSpec("vectors", "float32", None),)
    _refused(lambda: embedder(RED), r"gives \[batch, dims\], this one gave \[1, 4, 4, 3\]")
    assert Embedder(embedder.session, PREPROCESS).dims is None


def test_a_closed_embedder_says_so() -> None:
    with _embedder() as embedder:
        embedder(RED)
    _refused(lambda: embedder(RED), "closed")


def _gallery(**settings_: Any) -> Gallery:
    gallery = Gallery(_embedder(**settings_))
    for label, image in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        gallery.enrol(label, image)
    return gallery


def test_the_best_match_comes_first() -> None:
    gallery = _gallery()
    assert gallery.labels == ("red", "green", "blue")
    assert len(gallery) == 3
    matches = gallery.search(solid(30, 0, 40))
    assert [match.label for match in matches] == ["blue", "red", "green"]
    assert [match.score for match in matches] == pytest.approx([0.8, 0.6, 0])
    assert gallery.search(RED, top=1) == [Match("red", 1.0)]
    assert [match.label for match in gallery.search(solid(30, 0, 40), threshold=0.5)] == ["blue", "red"]
    assert gallery.search(RED, threshold=1) == [Match("red", 1.0)]
    assert gallery.search(solid(9, 9, 9), threshold=0.9) == []


def test_equal_scores_come_in_order_of_enrolment() -> None:
    gallery = _gallery()
    assert [match.label for match in gallery.search(solid(9, 9, 9))] == ["red", "green", "blue"]
    gallery.remove("red")
    gallery.enrol("red", RED)
    assert [match.label for match in gallery.search(solid(9, 9, 9), top=2)] == ["green", "blue"]


@pytest.mark.parametrize("dims", [3, 64, 131])
def test_one_image_under_many_labels_ties(dims: int) -> None:
    """However a matrix product rounds its rows, and however often the image was enrolled."""
    embedder, (first, second, other) = _projected(dims), _frames(7, 3)
    gallery = Gallery(embedder)
    for index in range(60):
        gallery.enrol(f"{index:02}", [(first, second)[index % 2]] * (1 + index % 5))
    even, odd = ([f"{index:02}" for index in range(start, 60, 2)] for start in (0, 1))
    found = [match.label for match in gallery.search(other, top=99)]
    assert found in (even + odd, odd + even)
    assert [match.label for match in gallery.search(first, threshold=1, top=99)] == even


def test_enrolments_of_one_label_add_up() -> None:
    images = [solid(255, 0, 0), solid(0, 3, 0), solid(0, 9, 0)]
    at_once, in_turn = Gallery(_embedder()), Gallery(_embedder())
    at_once.enrol("mixed", images)
    for image in images:
        in_turn.enrol("mixed", image)
    assert len(in_turn) == 1
    wanted = pytest.approx(2 / 5**0.5)  # the mean of unit vectors: one red, two green, however bright
    assert at_once.search(GREEN)[0].score == wanted
    assert in_turn.search(GREEN)[0].score == wanted
    at_once.enrol("mixed", np.stack([RED, RED]))
    assert at_once.search(GREEN)[0].score == pytest.approx(2 / 13**0.5)


def test_unit_vectors_are_enrolled_whatever_the_embedder_gives() -> None:
    gallery = Gallery(Embedder(NumpySession(brightness), PREPROCESS, normalize=False))
    gallery.enrol("mixed", [solid(255, 0, 0), solid(0, 3, 0)])
    assert gallery.search(RED)[0].score == pytest.approx(0.5**0.5)


def test_a_removed_label_is_found_no_more() -> None:
    gallery = _gallery()
    gallery.search(RED)
    gallery.remove("red")
    assert gallery.labels == ("green", "blue")
    assert {match.label for match in gallery.search(RED)} == {"green", "blue"}
    _refused(lambda: gallery.remove("red"), r"unknown label 'red'.*known: green, blue")


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 5), min_size=1, max_size=12), st.floats(-1, 1))
@settings(deadline=None)
def test_search_is_brute_force(seed: int, owners: list[int], threshold: float) -> None:
    embedder, frames = _projected(8), _frames(seed, len(owners) + 1)
    gallery = Gallery(embedder)
    for owner, frame in zip(owners, frames, strict=False):
        gallery.enrol(str(owner), frame)
    wanted = {}
    for owner in dict.fromkeys(owners):
        mine = [embedder(frame) for frame, whose in zip(frames, owners, strict=False) if whose == owner]
        mean = np.mean(mine, axis=0, dtype=np.float64)
        wanted[str(owner)] = float(mean @ embedder(frames[-1]) / np.linalg.norm(mean))
    ranked = sorted(wanted, key=lambda label: -wanted[label])
    found = gallery.search(frames[-1], top=99)
    assert [match.label for match in found] == ranked
    assert [match.score for match in found] == pytest.approx([wanted[label] for label in ranked], abs=1e-6)
    assert gallery.search(frames[-1], top=2, threshold=threshold) == [m for m in found[:2] if m.score >= threshold]


@pytest.mark.parametrize("label", ["", " ", "a\nb", "a\n", "a\r", "a\u2028b", "\ud800", None, 3, ["a"]])
def test_a_label_is_one_line_of_text(label: Any) -> None:
    gallery = Gallery(_embedder())
    _refused(lambda: gallery.enrol(label, RED), "a label is one line of text")
    assert len(gallery) == 0


@pytest.mark.parametrize(
    ("settings_", "telling"),
    [
        ({"top": 0}, "top is 1"),
        ({"threshold": 1.5}, "-1 to 1"),
        ({"threshold": float("nan")}, "-1 to 1, got 5 and nan"),
    ],
)
def test_arguments_out_of_range_are_refused(settings_: Any, telling: str) -> None:
    _refused(lambda: _gallery().search(RED, **settings_), telling)


def test_one_image_is_searched_in_a_gallery_of_some() -> None:
    _refused(lambda: Gallery(_embedder()).search(RED), "the gallery is empty")
    _refused(lambda: _gallery().search([RED, BLUE]), "one image is searched at a time, got 2")  # type: ignore[arg-type]


def test_vectors_that_cancel_out_leave_the_gallery_as_it_was() -> None:
    gallery = Gallery(_embedder(_signed))
    gallery.enrol("grey", solid(255, 255, 255))
    before = gallery.search(RED)
    _refused(lambda: gallery.enrol("grey", solid(0, 0, 0)), "'grey' cancel each other out: their mean is a zero vector")
    _refused(lambda: gallery.enrol("other", [RED, solid(0, 255, 255)]), "cancel")
    assert gallery.search(RED) == before
    assert gallery.labels == ("grey",)


def test_a_graph_whose_vectors_change_length_is_refused() -> None:
    embedder = _embedder(lambda image: np.ones((len(image), 3 + image.max() // 200), np.float32), classes=None)
    gallery = Gallery(embedder)
    gallery.enrol("dark", solid(1, 1, 1))
    _refused(lambda: gallery.search(RED), "vectors of 4 numbers cannot be compared with vectors of 3")
    _refused(lambda: gallery.enrol("red", RED), "vectors of 4 numbers")


labels = st.text(min_size=1).filter(lambda text: text.strip() and text.splitlines() == [text])


@given(st.integers(0, 2**32 - 1), st.dictionaries(labels, st.integers(1, 3), min_size=1, max_size=5))
@settings(deadline=None)
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int, counts: dict[str, int]) -> None:
    embedder, path = _projected(8), tmp_path_factory.mktemp("gallery") / "people.json"
    gallery, (image, *frames) = Gallery(embedder), _frames(seed, 17)
    for label, count in counts.items():
        gallery.enrol(label, [frames.pop() for _ in range(count)])
    gallery.save(path)
    back = Gallery.load(path, embedder)
    assert back.labels == gallery.labels == tuple(counts)
    assert back.search(image, top=9) == gallery.search(image, top=9)
    for each in (gallery, back):
        each.enrol(next(iter(counts)), frames[0])
    assert back.search(image, top=9) == gallery.search(image, top=9)


def test_the_file_is_plain(tmp_path: Path) -> None:
    gallery = _gallery(bundle=BUNDLE)
    gallery.enrol("red", [RED, RED])
    gallery.save(tmp_path / "a.json")
    enrolled = {"red": [3, [3, 0, 0]], "green": [1, [0, 1, 0]], "blue": [1, [0, 0, 1]]}
    wanted = {"format": 1, "dims": 3, "bundle_sha256": BUNDLE, "enrolled": enrolled}
    assert json.loads((tmp_path / "a.json").read_text()) == wanted
    first = (tmp_path / "a.json").read_bytes()
    Gallery.load(tmp_path / "a.json", gallery.embedder).save(str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == first


@pytest.mark.parametrize("classes", [3, None])
def test_an_empty_gallery_comes_back(tmp_path: Path, classes: int | None) -> None:
    embedder = _embedder(classes=classes)
    Gallery(embedder).save(tmp_path / "a.json")
    gallery = Gallery.load(tmp_path / "a.json", embedder)
    assert len(gallery) == 0
    gallery.enrol("red", RED)
    assert gallery.search(RED) == [Match("red", 1.0)]


def test_a_gallery_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, path = _gallery(), tmp_path / "a.json"
    gallery.save(path)
    before = path.read_bytes()
    gallery.remove("red")
    _refused(lambda: gallery.save(tmp_path / "none" / "a.json"), "cannot write")
    _refused(lambda: gallery.save(tmp_path), "it is a folder")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    _refused(lambda: gallery.save(path), "no space left")
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("made", "here", "telling"),
    [
        (BUNDLE, "cd" * 32, "enrolled with bundle abababababab and is opened with bundle cdcdcdcdcdcd"),
        (BUNDLE, None, "enrolled with bundle abababababab and is opened with no bundle"),
        (None, BUNDLE, "enrolled with no bundle and is opened with bundle abab"),
    ],
)
def test_vectors_of_another_network_are_refused(
    tmp_path: Path, made: str | None, here: str | None, telling: str
) -> None:
    _gallery(bundle=made).save(tmp_path / "a.json")
    _refused(lambda: Gallery.load(tmp_path / "a.json", _embedder(bundle=here)), f"a.json: .*{telling}.*enrol again")
    assert len(Gallery.load(tmp_path / "a.json", _embedder(bundle=made))) == 3


def test_another_length_is_refused(tmp_path: Path) -> None:
    _gallery().save(tmp_path / "a.json")
    _refused(lambda: Gallery.load(tmp_path / "a.json", _projected(8)), "vectors of 3 numbers .* vectors of 8")
    assert len(Gallery.load(tmp_path / "a.json", _embedder(classes=None))) == 3


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ({"format": 2}, "has format 2; this edgecv reads format 1"),
        ({"format": True}, "has format True"),
        ({"format": None}, "has format None"),
        ({"dims": 4}, "vectors of 4 numbers"),
        ({"dims": None}, "label 'red' has 3 numbers, and dims is None"),
        ({"dims": "3"}, "dims must be a whole number or null"),
        ({"bundle_sha256": 3}, "bundle_sha256 must be"),
        ({"more": 1}, "unknown key 'more'"),
        ({"enrolled": []}, "enrolled must be an object"),
        ({"enrolled": {"a": [1, [1, 0]]}}, "label 'a' has 2 numbers, and dims is 3"),
        ({"enrolled": {"a": [1, [1, 0, float("nan")]]}}, "NaN is not a JSON number"),
        ({"enrolled": {"a": [1, [1, 0, float("inf")]]}}, "Infinity is not a JSON number"),
        ({"enrolled": {"a": [1, [1, 0, "0"]]}}, "must be a number"),
        ({"enrolled": {"a": [1, [0, 0, 0]]}}, "'a' cancel each other out"),
        ({"enrolled": {"a": [0, [1, 0, 0]]}}, "cannot have 0 unit vectors"),
        ({"enrolled": {"a": [-1, [1, 0, 0]]}}, "cannot have -1 unit vectors"),
        ({"enrolled": {"a": [10**400, [1, 0, 0]]}}, "cannot have 1000"),
        ({"enrolled": {"a": [1.5, [1, 0, 0]]}}, "must be a whole number"),
        ({"enrolled": {"a": [1, [1, 1, 0]]}}, "1 unit vectors with a sum of length 1.41"),
        ({"enrolled": {"a": [1, [1.5e308, 1.5e308, 0]]}}, "sum of length inf"),
        ({"enrolled": {"": [1, [1, 0, 0]]}}, "a label is one line"),
        ({"enrolled": {"a\nb": [1, [1, 0, 0]]}}, "a label is one line"),
        ({"enrolled": {"\ud800": [1, [1, 0, 0]]}}, "a label is one line"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], telling: str) -> None:
    path = tmp_path / "a.json"
    _gallery().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    _refused(lambda: Gallery.load(path, _embedder()), telling)


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("", "not valid JSON"),
        ("[]", "has format None"),
        ("{}", "has format None"),
        ('{"format": 1}', "lacks the key 'dims'"),
        ('{"format": 1, "format": 1}', "same key twice"),
        ('{"format": 1, "dims": 1, "bundle_sha256": null, "enrolled": {"a": [1, [1]], "a": [1, [1]]}}', "key twice"),
        ('{"format": 1, "dims": 1, "bundle_sha256": null, "enrolled": {"a": [1, [1e999]]}}', "finite"),
    ],
)
def test_what_is_no_gallery_is_refused(tmp_path: Path, text: str, telling: str) -> None:
    (tmp_path / "a.json").write_text(text)
    _refused(lambda: Gallery.load(tmp_path / "a.json", _embedder()), telling)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    _refused(lambda: Gallery.load(tmp_path / "none.json", _embedder()), "cannot read gallery .*none.json: No such file")
    _refused(lambda: Gallery.load(tmp_path, _embedder()), "cannot read gallery")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _gallery().save(path)
    whole = path.read_bytes()
    for end in range(len(whole) - 2):
        path.write_bytes(whole[:end])
        _refused(lambda: Gallery.load(path, _embedder()), "not valid JSON")

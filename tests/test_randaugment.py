"""RandAugment: each operation by hand-computed examples, then how they are drawn and put together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that torch is there)

from edgecv.training.randaugment import OPERATIONS, RandAugment  # noqa: E402

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TONES = ("brightness", "color", "contrast", "sharpness")
NO_MAGNITUDE = ("identity", "autocontrast", "equalize")


def _images(count: int = 8, height: int = 12, width: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def _apply(images: torch.Tensor, seed: int = 0, **settings: int) -> torch.Tensor:
    return RandAugment(**settings).apply(images, torch.Generator().manual_seed(seed))


def _run(name: str, values: torch.Tensor, magnitude: int, sign: int = 1) -> torch.Tensor:
    """One operation on float images ``[batch, 3, height, width]``, rounded and clipped as ``apply`` does."""
    changed = OPERATIONS[name](values, magnitude / 30, torch.full((len(values),), sign))
    return changed.round().clamp(0, 255)


def _planes(rows: list[list[float]]) -> torch.Tensor:
    """One image whose three channels are the same."""
    return torch.tensor(rows, dtype=torch.float32).expand(1, 3, -1, -1).contiguous()


def _result(name: str, rows: list[list[float]], magnitude: int, sign: int = 1) -> list[list[float]]:
    changed = _run(name, _planes(rows), magnitude, sign)
    assert torch.equal(changed[0, 0], changed[0, 1])
    assert torch.equal(changed[0, 0], changed[0, 2])
    plane: list[list[float]] = changed[0, 0].tolist()
    return plane


def _random_values() -> torch.Tensor:
    return _images().permute(0, 3, 1, 2).float()


def test_the_operations_are_the_fourteen_of_the_paper() -> None:
    assert set(OPERATIONS) == {*GEOMETRIC, *TONES, *NO_MAGNITUDE, "posterize", "solarize"}
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("autocontrast", "equalize")])
def test_magnitude_0_changes_nothing(name: str, sign: int) -> None:
    values = _random_values()
    assert torch.equal(_run(name, values, 0, sign), values)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_their_input_and_keep_the_shape(name: str) -> None:
    values = _random_values()
    before = values.clone()
    for magnitude in (0, 9, 30):
        assert _run(name, values, magnitude).shape == values.shape
        assert torch.equal(values, before)


@pytest.mark.parametrize("name", NO_MAGNITUDE)
def test_some_have_no_magnitude(name: str) -> None:
    values = _random_values()
    assert torch.equal(_run(name, values, 0), _run(name, values, 30, -1))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_changes_the_same_alone_and_among_others(name: str) -> None:
    values = _random_values()
    together = _run(name, values, 17)
    for i in range(len(values)):
        assert torch.equal(_run(name, values[i : i + 1], 17), together[i : i + 1])


@pytest.mark.parametrize("name", [*GEOMETRIC, *TONES])
def test_each_image_has_a_way_of_its_own(name: str) -> None:
    values = _random_values()[:2]
    changed = OPERATIONS[name](values, 0.5, torch.tensor([1, -1])).round().clamp(0, 255)
    assert torch.equal(changed[:1], _run(name, values[:1], 15, 1))
    assert torch.equal(changed[1:], _run(name, values[1:], 15, -1))
    assert not torch.equal(changed[:1], _run(name, values[:1], 15, -1))


@pytest.mark.parametrize(
    ("magnitude", "sign", "expected"),
    [
        (10, 1, [130, 255, 0, 13]),  # 1 + 0.9 / 3 = 1.3
        (10, -1, [70, 140, 0, 7]),  # 0.7
        (30, 1, [190, 255, 0, 19]),  # 1.9
        (30, -1, [10, 20, 0, 1]),  # 0.1
    ],
)
def test_brightness_scales(magnitude: int, sign: int, expected: list[float]) -> None:
    assert _result("brightness", [[100, 200, 0, 10]], magnitude, sign) == [expected]


def test_contrast_scales_about_the_mean_of_the_gray() -> None:
    # The mean is 100: 100 + 1.3 * (-50, 0, 50), then 100 + 0.1 * (...).
    assert _result("contrast", [[50, 100, 150]], 10) == [[35, 100, 165]]
    assert _result("contrast", [[50, 100, 150]], 30, -1) == [[95, 100, 105]]
    # The mean of 20 and 21 is rounded to the even number: 20 + 1.9 * (0, 1).
    assert _result("contrast", [[20, 21]], 30) == [[20, 22]]
    # Red alone: the gray is round(0.299 * 200) = 60 and 0, their mean 30.
    red = torch.tensor([[200.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).view(1, 3, 1, 2)
    assert _run("contrast", red, 30, -1)[0, :, 0].tolist() == [[47, 27], [27, 27], [27, 27]]


def test_color_scales_about_each_pixels_gray() -> None:
    # The gray of (100, 50, 200) is round(29.9 + 29.35 + 22.8) = 82.
    pixel = torch.tensor([100.0, 50.0, 200.0]).view(1, 3, 1, 1)
    assert _run("color", pixel, 10).flatten().tolist() == [105, 40, 235]  # 82 + 1.3 * (18, -32, 118)
    assert _run("color", pixel, 30, -1).flatten().tolist() == [84, 79, 94]  # 82 + 0.1 * (18, -32, 118)
    assert _result("color", [[7, 99]], 30) == [[7, 99]]  # a gray image has no color to change


def test_sharpness_scales_about_a_blur() -> None:
    # The blur of the middle is (5 * 130 + 8 * 0) / 13 = 50; the outermost pixels stay.
    dot = [[0.0, 0.0, 0.0], [0.0, 130.0, 0.0], [0.0, 0.0, 0.0]]
    assert _result("sharpness", dot, 30, -1) == [[0, 0, 0], [0, 58, 0], [0, 0, 0]]  # 50 + 0.1 * 80
    assert _result("sharpness", dot, 10) == [[0, 0, 0], [0, 154, 0], [0, 0, 0]]  # 50 + 1.3 * 80
    edge = [[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]
    assert _result("sharpness", edge, 30) == edge  # no pixel has eight neighbours
    assert _result("sharpness", [[9.0]], 30) == [[9]]


@pytest.mark.parametrize(
    ("magnitude", "bits", "expected"),
    [(0, 8, [255, 129, 77, 3]), (9, 7, [254, 128, 76, 2]), (15, 6, [252, 128, 76, 0]), (30, 4, [240, 128, 64, 0])],
)
def test_posterize_keeps_the_highest_bits(magnitude: int, bits: int, expected: list[float]) -> None:
    assert _result("posterize", [[255, 129, 77, 3]], magnitude) == [expected]
    every = torch.arange(256).float().expand(1, 3, 1, 256)
    kept = _run("posterize", every, magnitude)[0, 0, 0].long()
    assert torch.equal(kept, torch.arange(256) >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize(
    ("magnitude", "expected"),
    [(0, [0, 127, 128, 255]), (15, [0, 127, 127, 0]), (30, [255, 128, 127, 0])],  # from 256, 128 and 0 on
)
def test_solarize_inverts_from_a_threshold_on(magnitude: int, expected: list[float]) -> None:
    assert _result("solarize", [[0, 127, 128, 255]], magnitude) == [expected]


def test_autocontrast_stretches_each_channel_to_the_whole_range() -> None:
    assert _result("autocontrast", [[50, 75, 100]], 9) == [[0, 128, 255]]  # 127.5 rounds to the even number
    assert _result("autocontrast", [[0, 3, 255]], 9) == [[0, 3, 255]]
    assert _result("autocontrast", [[42, 42]], 9) == [[42, 42]]
    channels = torch.tensor([[10.0, 20.0], [7.0, 7.0], [255.0, 254.0]]).view(1, 3, 1, 2)
    assert _run("autocontrast", channels, 9)[0, :, 0].tolist() == [[0, 255], [7, 7], [255, 0]]


def test_equalize_spreads_two_levels_to_the_ends() -> None:
    # 512 pixels of 100 and 512 of 200: a step is 512 // 255 = 2; 100 goes to (0 + 1) // 2, 200 to (512 + 1) // 2 = 256.
    values = torch.cat([torch.full((1, 3, 16, 32), 100.0), torch.full((1, 3, 16, 32), 200.0)], 2)
    changed = _run("equalize", values, 9)
    assert (changed[:, :, :16] == 0).all()
    assert (changed[:, :, 16:] == 255).all()


def test_equalize_by_hand_with_three_levels() -> None:
    # 257 pixels of 10, 508 of 20, 4 of 30: a step is 765 // 255 = 3; below them lie 0, 257 and 765.
    row = torch.cat([torch.full((257,), 10.0), torch.full((508,), 20.0), torch.full((4,), 30.0)])
    changed = _run("equalize", row.expand(1, 3, 1, 769), 9)[0, 0, 0]
    assert changed[[0, 300, 768]].tolist() == [0, 86, 255]  # (0 + 1) // 3, (257 + 1) // 3, (765 + 1) // 3


def test_equalize_keeps_what_it_cannot_spread_and_what_is_even() -> None:
    assert _result("equalize", [[42] * 300], 9) == [[42] * 300]  # one level
    assert _result("equalize", [[0, 9, 200]], 9) == [[0, 9, 200]]  # fewer pixels than levels
    even = torch.arange(256).float().expand(1, 3, 2, 256)
    assert torch.equal(_run("equalize", even, 9), even)


def test_equalize_takes_each_channel_by_itself() -> None:
    two = torch.cat([torch.full((512,), 100.0), torch.full((512,), 200.0)]).view(1, 1, 1, 1024)
    values = torch.cat([two, torch.full_like(two, 7.0), two.flip(3)], 1)
    changed = _run("equalize", values, 9)[0, :, 0, [0, 1023]]
    assert changed.tolist() == [[0, 255], [7, 7], [255, 0]]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("name", "axis"), [("translate_x", 3), ("translate_y", 2)])
def test_translate_moves_by_150_331ths_of_the_side_at_the_most(name: str, axis: int, sign: int) -> None:
    # On a side of 331 pixels each magnitude is 5 pixels.
    shape = [1, 3, 2, 2]
    shape[axis] = 331
    values = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).float()
    for magnitude, pixels in ((1, 5), (2, 10), (30, 150)):
        changed = _run(name, values, magnitude, sign).transpose(axis, 0)
        from_place = values.transpose(axis, 0)
        first, second = (changed, from_place) if sign == -1 else (changed.flip(0), from_place.flip(0))
        assert torch.equal(first[:-pixels], second[pixels:])
        assert (first[-pixels:] == 0).all()


def test_translate_by_part_of_a_pixel_blends_neighbours() -> None:
    # 662 pixels make 10 of magnitude 1, and so 2.5 of a quarter of it, which is a level of 1 / 120.
    values = torch.zeros(1, 3, 1, 662)
    values[..., 100] = 200
    moved = OPERATIONS["translate_x"](values, 1 / 120, torch.tensor([1])).round()[0, 0, 0]
    assert moved[101:105].tolist() == [0, 100, 100, 0]


@pytest.mark.parametrize("sign", [-1, 1])
def test_shear_slides_rows_by_their_height(sign: int) -> None:
    # 21 rows, a column of light in the middle; at magnitude 20 the slope is 0.2: 10 rows off, it has moved 2 pixels.
    values = torch.zeros(1, 3, 21, 41)
    values[..., 20] = 250
    changed = _run("shear_x", values, 20, sign)[0, 0]
    for row, column in ((0, 20 + 2 * sign), (5, 20 + sign), (10, 20), (15, 20 - sign), (20, 20 - 2 * sign)):
        assert changed[row].nonzero().flatten().tolist() == [column]
        assert changed[row, column] == 250
    turned = _run("shear_y", values.transpose(2, 3).contiguous(), 20, sign)[0, 0]
    assert torch.equal(turned, changed.T)


def test_rotate_turns_about_the_middle_and_keeps_proportions() -> None:
    # A pixel 20 to the right of the middle, turned by 30 degrees: 17.3 to the right and 10 up or down.
    values = torch.zeros(1, 3, 41, 81)
    values[:, :, 20, 60] = 250
    weights = torch.stack(torch.meshgrid(torch.arange(41) - 20.0, torch.arange(81) - 40.0, indexing="ij"))
    for sign in (-1, 1):
        changed = _run("rotate", values, 30, sign)[0, 0]
        down, right = ((weights * changed).sum((1, 2)) / changed.sum()).tolist()
        assert (right, down) == (pytest.approx(17.32, abs=0.25), pytest.approx(-10.0 * sign, abs=0.25))
    middle = torch.zeros(1, 3, 41, 81)
    middle[:, :, 20, 40] = 250
    assert _run("rotate", middle, 30)[0, 0, 20, 40] == 250


def test_rotate_at_half_magnitude_turns_by_half_the_angle() -> None:
    values = torch.zeros(1, 3, 41, 41)
    values[:, :, 20, 40] = 250
    changed = _run("rotate", values, 15, -1)[0, 0]
    down = (changed.sum(1) * (torch.arange(41) - 20)).sum() / changed.sum()
    assert float(down) == pytest.approx(20 * 0.2588, abs=0.25)  # the sine of 15 degrees


@pytest.mark.parametrize("settings", [{}, {"operations": 5, "magnitude": 30}, {"operations": 1, "magnitude": 1}])
def test_dtype_shape_and_input_are_kept(settings: dict[str, int]) -> None:
    images = _images(40)
    before = images.clone()
    changed = _apply(images, **settings)
    assert (changed.dtype, changed.shape, changed.is_contiguous()) == (torch.uint8, images.shape, True)
    assert torch.equal(images, before)
    assert not torch.equal(changed, images)
    changed.zero_()
    assert torch.equal(images, before)


def test_no_operations_change_nothing_and_share_no_memory() -> None:
    images = _images()
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    changed = RandAugment(operations=0).apply(images, generator)
    assert torch.equal(changed, images)
    assert changed.data_ptr() != images.data_ptr()
    assert torch.equal(generator.get_state(), state)


def test_the_generator_decides_alone() -> None:
    images = _images(30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = _apply(images, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(_apply(images, 3), first)
    assert not torch.equal(_apply(images, 4), first)


def test_a_generator_goes_on_where_its_state_was_saved() -> None:
    images, generator = _images(30), torch.Generator().manual_seed(0)
    augment = RandAugment()
    first = augment.apply(images, generator)
    state = generator.get_state()
    second = augment.apply(images, generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    assert torch.equal(augment.apply(images, generator), second)


@pytest.mark.parametrize("settings", [{"operations": 2, "magnitude": 0}, {"operations": 2, "magnitude": 30}])
def test_what_is_drawn_depends_on_neither_magnitude_nor_pixels(settings: dict[str, int]) -> None:
    states = []
    for images in (_images(), _images(8, 5, 5)):
        generator = torch.Generator().manual_seed(0)
        RandAugment(**settings).apply(images, generator)
        states.append(generator.get_state())
    reference = torch.Generator().manual_seed(0)
    RandAugment().apply(_images(), reference)
    assert all(torch.equal(state, reference.get_state()) for state in states)


def _outcomes(image: torch.Tensor, magnitude: int) -> dict[bytes, str]:
    """What each operation, either way, makes of one image ``[1, height, width, 3]``."""
    values = image.permute(0, 3, 1, 2).float()
    found = {}
    for name in OPERATIONS:
        for sign in (-1, 1):
            changed = _run(name, values, magnitude, sign).to(torch.uint8).permute(0, 2, 3, 1)
            found[changed.contiguous().numpy().tobytes()] = f"{name} {sign}"
    return found


def test_each_image_draws_its_own_operation_with_equal_chance() -> None:
    image = _images(1, 20, 24) // 2 + 100
    outcomes = _outcomes(image, 9)
    # Two ways each, but one for the three without a magnitude, posterize and solarize.
    assert len(outcomes) == 2 * 9 + 5
    changed = _apply(image.expand(1400, -1, -1, -1), operations=1, magnitude=9)
    drawn = Counter(outcomes[one.numpy().tobytes()] for one in changed)
    names = Counter[str]()
    for outcome, count in drawn.items():
        names[outcome.split()[0]] += count
    assert set(names) == set(OPERATIONS)
    assert all(60 < count < 140 for count in names.values())  # 100 each, four standard deviations
    for name in (*GEOMETRIC, *TONES):
        assert min(drawn[f"{name} -1"], drawn[f"{name} 1"]) > 20


def test_two_operations_are_one_after_the_other() -> None:
    image = _images(1, 20, 24) // 2 + 100
    once = _outcomes(image, 9)
    twice = set[bytes]()
    for outcome in once:
        middle = torch.frombuffer(bytearray(outcome), dtype=torch.uint8).view(1, 20, 24, 3)
        twice |= set(_outcomes(middle, 9))
    changed = _apply(image.expand(200, -1, -1, -1), operations=2, magnitude=9)
    results = [one.numpy().tobytes() for one in changed]
    assert all(result in twice for result in results)
    assert len(set(results)) > 60


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 1, 7, 3), (3, 2, 2, 3), (40, 3, 1, 3)])
def test_small_images_go_through(shape: tuple[int, int, int, int]) -> None:
    images = torch.full(shape, 77, dtype=torch.uint8)
    for seed in range(20):
        assert _apply(images, seed, operations=4, magnitude=30).shape == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operations": -1}, "operations is a whole number of 0 or more, got -1"),
        ({"operations": 1.5}, "operations is a whole number"),
        ({"magnitude": -1}, "magnitude is a whole number from 0 to 30, got -1"),
        ({"magnitude": 31}, "from 0 to 30, got 31"),
        ({"magnitude": 9.0}, "magnitude is a whole number"),
        ({"magnitude": "9"}, "magnitude is a whole number"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        RandAugment(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 4, 4, 3),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(0, 4, 4, 3, dtype=torch.uint8),
        torch.zeros(2, 0, 4, 3, dtype=torch.uint8),
    ],
)
def test_wrong_images_are_refused_in_one_line(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"images are uint8 \[batch, height, width, 3\]") as caught:
        _apply(images)
    assert "\n" not in str(caught.value)

"""Sparsity: which weights become zero, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import nn  # noqa: E402

from edgecv.compression.sparsity import sparsify, sparsity_of  # noqa: E402


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 8, 2), nn.Linear(8, 10))


@given(st.floats(0, 0.99))
@settings(max_examples=20, deadline=None)
def test_the_smallest_weights_of_all_layers_go(amount: float) -> None:
    network = _network()
    sparse = sparsify(network, amount)
    assert sparsity_of(sparse) == pytest.approx(amount, abs=1e-3)
    pairs = [(network.get_parameter(f"{i}.weight"), sparse.get_parameter(f"{i}.weight")) for i in (0, 2, 3)]
    gone = torch.cat([old[new == 0].abs() for old, new in pairs])
    kept = torch.cat([old[new != 0].abs() for old, new in pairs])
    assert not len(gone) or gone.max() <= kept.min()
    assert all(torch.equal(old[new != 0], new[new != 0]) for old, new in pairs)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 5)])
def test_a_pattern_holds_along_the_inputs_of_every_filter(pattern: tuple[int, int]) -> None:
    zeros, of = pattern
    weight = sparsify(nn.Conv2d(10, 6, 3), pattern=pattern).get_parameter("weight")
    rows = weight.permute(0, 2, 3, 1)
    whole = 10 // of * of
    assert ((rows[..., :whole].unflatten(-1, (-1, of)) == 0).sum(-1) == zeros).all()  # type: ignore[no-untyped-call]
    assert (rows[..., whole:] != 0).all()


def test_the_largest_of_every_part_stay() -> None:
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -4, 3, 2, 0.1, 0.2, -0.4, 0.3]]))
    found = sparsify(layer, pattern=(2, 4)).get_parameter("weight")
    assert found.tolist() == [pytest.approx([0, -4, 3, 0, 0, 0, -0.4, 0.3])]


def test_a_transposed_convolution_is_read_by_its_outputs() -> None:
    weight = sparsify(nn.ConvTranspose2d(8, 3, 2), pattern=(2, 4)).get_parameter("weight")
    assert ((weight.movedim(0, -1).reshape(-1, 4) == 0).sum(1) == 2).all()


def test_what_is_given_and_what_is_protected_stay() -> None:
    network = _network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sparse = sparsify(network, 0.5, protect=("3",))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert set(sparse.state_dict()) == set(before)
    assert torch.equal(sparse.get_parameter("3.weight"), network.get_parameter("3.weight"))
    assert isinstance(sparse[0].weight, nn.Parameter)  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "telling"),
    [
        ({}, "give either amount"),
        ({"amount": 0.5, "pattern": (2, 4)}, "give either amount"),
        ({"amount": 1.0}, "amount is a share from 0 and below 1, got 1.0"),
        ({"pattern": (4, 4)}, r"pattern is \(zeros, of\), such as \(2, 4\), got \(4, 4\)"),
        ({"amount": 0.5, "protect": ("9",)}, "unknown layer '9'"),
        ({"amount": 0.5, "protect": ("0", "2", "3")}, "no convolution or linear layer"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        sparsify(_network(), **wrong)

"""Losses of metric learning against loops over triplets and pairs; batches by class."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import numpy as np  # noqa: E402  (after the check that torch is there)
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from edgecv.training.metric import ClassBatches, Mining, contrastive_loss, triplet_loss  # noqa: E402

Loss = Callable[[Tensor, Tensor], Tensor]
MININGS: tuple[Mining, ...] = ("hard", "semihard", "all")
LOSSES: dict[str, Loss] = {
    "hard": triplet_loss,
    "semihard": lambda embeddings, targets: triplet_loss(embeddings, targets, mining="semihard"),
    "all": lambda embeddings, targets: triplet_loss(embeddings, targets, mining="all"),
    "contrastive": contrastive_loss,
}
UNBALANCED = [0, 1, 0, 2, 2, 0, 1, 3]
BALANCED = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def _embeddings(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _on_circle(*degrees: float) -> Tensor:
    """Embeddings at angles; two at an angle a are 2 sin(a / 2) apart."""
    angles = torch.tensor(degrees, dtype=torch.float64) * torch.pi / 180
    return torch.stack([3 * angles.cos(), 3 * angles.sin()], 1)


def _distance(left: Tensor, right: Tensor) -> float:
    return float((left / left.norm() - right / right.norm()).norm())


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, leaf)
    return found


def _triplets_by_loops(embeddings: Tensor, targets: list[int], margin: float, mining: Mining) -> float:
    """The definition, one anchor at a time."""
    losses: list[float] = []
    for anchor in range(len(targets)):
        far = {j: _distance(embeddings[anchor], embeddings[j]) for j in range(len(targets)) if j != anchor}
        positives = [far[j] for j in far if targets[j] == targets[anchor]]
        negatives = [far[j] for j in far if targets[j] != targets[anchor]]
        if positives and negatives and mining == "hard":
            chosen = [(max(positives), min(negatives))]
        elif negatives and mining == "semihard":
            chosen = [(p, min((n for n in negatives if n > p), default=max(negatives))) for p in positives]
        else:
            chosen = list(itertools.product(positives, negatives))
        losses += [max(0.0, p - n + margin) for p, n in chosen]
    return sum(losses) / max(len(losses), 1)


def _pairs_by_loops(embeddings: Tensor, targets: list[int], margin: float) -> float:
    losses = []
    for i, j in itertools.combinations(range(len(targets)), 2):
        far = _distance(embeddings[i], embeddings[j])
        losses.append(far**2 / 2 if targets[i] == targets[j] else max(0.0, margin - far) ** 2 / 2)
    return sum(losses) / max(len(losses), 1)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 99), st.floats(0, 2))
@settings(deadline=None)
def test_losses_are_those_of_loops(targets: list[int], seed: int, margin: float) -> None:
    embeddings = _embeddings(len(targets), seed)
    for mining in MININGS:
        wanted = _triplets_by_loops(embeddings, targets, margin, mining)
        assert triplet_loss(embeddings, torch.tensor(targets), margin, mining).item() == pytest.approx(wanted, abs=1e-9)
    wanted = _pairs_by_loops(embeddings, targets, margin)
    assert contrastive_loss(embeddings, torch.tensor(targets), margin).item() == pytest.approx(wanted, abs=1e-9)


def test_triplets_by_hand() -> None:
    # From each anchor, the angle to its positive | to its negatives:
    # 0°: 60 | 90, 180.  60°: 60 | 30, 120.  90°: 90 | 30, 90.  180°: 90 | 120, 180.
    embeddings, targets = _on_circle(0, 60, 90, 180), torch.tensor([0, 0, 1, 1])
    near, root = 2 * math.sin(math.pi / 12), math.sqrt(2)
    hard = [max(0, 1 - root + 0.5), 1 - near + 0.5, root - near + 0.5, max(0, root - math.sqrt(3) + 0.5)]
    semihard = [max(0, 1 - root + 0.5), 0, 0.5, max(0, root - math.sqrt(3) + 0.5)]
    assert triplet_loss(embeddings, targets, 0.5).item() == pytest.approx(sum(hard) / 4)
    assert triplet_loss(embeddings, targets, 0.5, "semihard").item() == pytest.approx(sum(semihard) / 4)


def test_a_positive_beyond_every_negative_is_held_against_the_farthest() -> None:
    embeddings, targets = _on_circle(0, 180, 60, 90), torch.tensor([0, 0, 1, 2])
    wanted = (2 - math.sqrt(2) + 0.2) / 2 + (2 - math.sqrt(3) + 0.2) / 2
    assert triplet_loss(embeddings, targets, mining="semihard").item() == pytest.approx(wanted)


def test_a_negative_as_far_as_the_positive_is_not_farther() -> None:
    embeddings, targets = torch.tensor([[1.0, 0], [0, 1], [0, 1], [-1, 0]]), torch.tensor([0, 0, 1, 2])
    # Both anchors skip the negative at √2 or 0: the first for the one at 2, the second has none beyond √2.
    wanted = (max(0, math.sqrt(2) - 2 + 0.8) + 0.8) / 2
    assert triplet_loss(embeddings, targets, 0.8, "semihard").item() == pytest.approx(wanted)


def test_small_distances_are_exact() -> None:
    """The square root of 2 - 2 cos would be wrong by as much as 3e-4 in float32."""
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 1e-4]])
    assert contrastive_loss(embeddings, torch.tensor([0, 0])).item() == pytest.approx(1e-8 / 2, rel=1e-3)


def test_pairs_by_hand() -> None:
    embeddings, targets = _on_circle(0, 60, 90), torch.tensor([0, 0, 1])
    wanted = (1 / 2 + 0 + (1 - 2 * math.sin(math.pi / 12)) ** 2 / 2) / 3
    assert contrastive_loss(embeddings, targets).item() == pytest.approx(wanted)


@given(st.integers(0, 999), st.floats(0, 1))
@settings(deadline=None)
def test_hard_triplets_are_no_easier_than_any(seed: int, margin: float) -> None:
    """So it is where every anchor has as many triplets, which is what ``ClassBatches`` gives."""
    embeddings, targets = _embeddings(9, seed), torch.tensor(BALANCED)
    hard, semihard, every = (triplet_loss(embeddings, targets, margin, mining).item() for mining in MININGS)
    assert hard >= max(semihard, every) - 1e-12
    assert min(semihard, every) >= 0


@given(st.integers(0, 99), st.permutations(range(8)))
@settings(deadline=None)
def test_order_names_and_lengths_do_not_matter(seed: int, order: list[int]) -> None:
    embeddings, targets = _embeddings(8, seed), torch.tensor(UNBALANCED)
    renamed = (7 - 2 * targets)[order]
    scaled = (embeddings * torch.arange(1, 9)[:, None])[order]
    for loss in LOSSES.values():
        assert loss(scaled, renamed).item() == pytest.approx(loss(embeddings, targets).item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_what_is_learned_are_zero(name: str) -> None:
    embeddings = torch.eye(3, 4).repeat_interleave(3, 0).requires_grad_()
    loss = LOSSES[name](embeddings, torch.tensor(BALANCED))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert _gradient(loss, embeddings).abs().max() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("targets", [UNBALANCED, BALANCED])
def test_gradients_are_those_of_differences(name: str, targets: list[int]) -> None:
    embeddings = _embeddings(len(targets), 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: LOSSES[name](values, torch.tensor(targets)), embeddings)
    assert LOSSES[name](embeddings, torch.tensor(targets)) > 0.01


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "embeddings",
    [
        torch.ones(6, 4),
        torch.zeros(6, 4),
        torch.eye(6),
        torch.eye(2).repeat(3, 2),
        torch.eye(6)[:, :3],
        -torch.ones(6, 1),
    ],
    ids=["equal", "zeros", "orthogonal", "two by two", "some zeros", "one feature"],
)
def test_gradients_of_equal_embeddings_are_finite(name: str, embeddings: Tensor) -> None:
    for targets in ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3]):
        leaf = embeddings.clone().requires_grad_()
        loss = LOSSES[name](leaf, torch.tensor(targets))
        assert loss.isfinite()
        assert _gradient(loss, leaf).abs().max() < 10


def test_the_loss_of_a_collapsed_network_is_the_margin() -> None:
    for mining in MININGS:
        assert triplet_loss(torch.ones(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]), 0.3, mining).item() == pytest.approx(
            0.3
        )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("targets", [[0], [0, 0, 0], [0, 1, 2]])
def test_batches_without_triplets_still_have_a_gradient(name: str, targets: list[int]) -> None:
    embeddings = _embeddings(len(targets)).requires_grad_()
    loss = LOSSES[name](embeddings, torch.tensor(targets))
    gradient = _gradient(loss, embeddings)
    assert loss.shape == ()
    assert gradient.isfinite().all()
    if name != "contrastive" or len(targets) == 1:
        assert loss.item() == 0
        assert not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_broken_network_is_not_hidden(name: str) -> None:
    embeddings = _embeddings(9)
    embeddings[4, 0] = torch.nan
    assert LOSSES[name](embeddings, torch.tensor(BALANCED)).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32_at_least(name: str, dtype: torch.dtype) -> None:
    embeddings = _embeddings(9).to(dtype)
    loss = LOSSES[name](embeddings, torch.tensor(BALANCED))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name](embeddings.double(), torch.tensor(BALANCED)).item(), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_small_network_learns_to_separate_clusters(name: str) -> None:
    """Three of eight features tell the clusters apart, five are louder noise that the network must learn to ignore."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    images = torch.eye(3, 8)[targets] + torch.randn(90, 8, generator=generator) * torch.tensor([0.2] * 3 + [1.0] * 5)
    weight = torch.randn(8, 4, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([weight], 0.05)
    before = _worst_gap(images @ weight, targets)
    for batch in ClassBatches(targets.tolist(), classes=3, per_class=8, batches=60):
        weight.grad = _gradient(LOSSES[name](images[batch] @ weight, targets[batch]), weight)
        optimizer.step()
    assert before < 0
    assert _worst_gap(images @ weight, targets) > 0.5


def _worst_gap(embeddings: Tensor, targets: Tensor) -> float:
    """How much nearer the mean of its own class is than that of any other, for all but the worst tenth of samples."""
    units = torch.nn.functional.normalize(embeddings.detach())
    centres = torch.stack([units[targets == target].mean(0) for target in range(3)])
    far = torch.cdist(units, centres)
    own = torch.nn.functional.one_hot(targets, 3).bool()
    return float((far.masked_fill(own, torch.inf).amin(1) - far[own]).quantile(0.1))


@pytest.mark.parametrize("loss", [triplet_loss, contrastive_loss])
def test_what_is_no_batch_is_refused(loss: Any) -> None:
    targets = torch.tensor([0, 0, 1])
    wrong = {
        r"got torch.float32 \[3\]": (torch.ones(3), targets),
        r"got torch.float32 \[\]": (torch.ones(()), targets),
        r"got torch.float32 \[0, 3\]": (torch.ones(0, 3), targets[:0]),
        "got torch.int64": (torch.ones(3, 2, dtype=torch.int64), targets),
        r"integers \[3\], got torch.int64 \[2\]": (torch.ones(3, 2), targets[:2]),
        r"got torch.int64 \[3, 1\]": (torch.ones(3, 2), targets[:, None]),
        r"integers \[3\], got torch.float32": (torch.ones(3, 2), targets.float()),
        "0 or more, got -0.1": (torch.ones(3, 2), targets, -0.1),
        "0 or more, got nan": (torch.ones(3, 2), targets, math.nan),
    }
    for message, arguments in wrong.items():
        with pytest.raises(InputError, match=message) as caught:
            loss(*arguments)
        assert "\n" not in str(caught.value)


def test_unknown_mining_is_refused() -> None:
    mining: Any = "easy"
    with pytest.raises(InputError, match="'hard', 'semihard' or 'all', got 'easy'"):
        triplet_loss(torch.ones(3, 2), torch.tensor([0, 0, 1]), mining=mining)


# Classes of 1, 3, 10 and 30 samples; names neither sorted nor gapless.
TARGETS = [9] * 10 + [-2] * 3 + [4] * 30 + [100]


def test_batches_hold_as_many_of_each_class() -> None:
    sampler = ClassBatches(TARGETS, classes=3, per_class=4, batches=50, seed=1)
    found = list(sampler)
    assert len(found) == len(sampler) == 50
    for batch in found:
        assert sorted(Counter(TARGETS[i] for i in batch).values()) == [4, 4, 4]
        repeated = {TARGETS[i] for i, count in Counter(batch).items() if count > 1}
        assert repeated <= {-2, 100}
        assert len({i for i in batch if TARGETS[i] == -2}) in (0, 3)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(2, 5), st.integers(2, 5), st.integers(0, 9))
@settings(deadline=None)
def test_classes_and_their_samples_take_turns(targets: list[int], classes: int, per_class: int, seed: int) -> None:
    there = len(set(targets))
    if there < classes:
        with pytest.raises(InputError, match=f"of {classes} classes needs as many in the data, got {there}"):
            ClassBatches(targets, classes=classes, per_class=per_class, seed=seed)
        return
    drawn: Counter[int] = Counter(dict.fromkeys(range(len(targets)), 0))
    turns: Counter[int] = Counter(dict.fromkeys(targets, 0))
    for batch in ClassBatches(targets, classes=classes, per_class=per_class, seed=seed, batches=9):
        assert all(isinstance(index, int) for index in batch)
        drawn.update(batch)
        turns.update({targets[i] for i in batch})
        assert max(turns.values()) - min(turns.values()) <= 1
        for target in turns:
            counts = [drawn[i] for i in range(len(targets)) if targets[i] == target]
            assert max(counts) - min(counts) <= 1


def test_an_epoch_covers_the_data() -> None:
    sampler = ClassBatches(np.arange(120) % 6, classes=3, per_class=5)
    assert len(sampler) == 8
    assert sorted(i for batch in sampler for i in batch) == list(range(120))
    assert len(ClassBatches([0, 0, 1, 1, 1], classes=2, per_class=2)) == 2


def test_seed_and_epoch_decide() -> None:
    def drawn(seed: int, epoch: int) -> list[list[int]]:
        sampler = ClassBatches(TARGETS, classes=2, per_class=3, seed=seed)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return list(sampler)

    assert drawn(0, 0) == drawn(0, 0) == list(ClassBatches(TARGETS, classes=2, per_class=3))
    assert len({str(drawn(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_samples_are_drawn_alike() -> None:
    """Ties fall at random: the first batch of many epochs holds every sample of a class about as often."""
    sampler = ClassBatches([0] * 6 + [1] * 6 + [2] * 6, classes=2, per_class=2, batches=1)
    counts: Counter[int] = Counter()
    for epoch in range(900):
        sampler.set_epoch(epoch)
        counts.update(next(iter(sampler)))
    assert len(counts) == 18
    assert all(150 < count < 250 for count in counts.values())  # 200 ± 6 standard deviations of 900 draws at 2/9


def test_a_loader_takes_the_batches() -> None:
    data = TensorDataset(torch.arange(44), torch.tensor(TARGETS))
    sampler = ClassBatches(TARGETS, classes=2, per_class=3, batches=4)
    loader = DataLoader(data, batch_sampler=sampler)
    assert len(loader) == 4
    assert [indices.tolist() for indices, _ in loader] == list(sampler)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes is 2 or more, got 1"),
        ({"classes": 5}, "needs as many in the data, got 4"),
        ({"per_class": 1}, "per_class is 2 or more, got 1"),
        ({"per_class": -3}, "per_class is 2 or more, got -3"),
        ({"batches": 0}, "batches is 1 or more, got 0"),
        ({"seed": -1}, "seed is 0 or more, got -1"),
        ({"targets": []}, r"integers \[samples\], got float64 \[0\]"),
        ({"targets": np.zeros(0, dtype=np.int64)}, "got 0"),
        ({"targets": [7, 7, 7]}, "got 1"),
        ({"targets": [[0, 1]]}, r"got int64 \[1, 2\]"),
    ],
)
def test_batches_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassBatches(**{"targets": TARGETS, "classes": 2, "per_class": 2, **settings})


def test_epochs_count_from_zero() -> None:
    with pytest.raises(InputError, match="epoch is 0 or more, got -1"):
        ClassBatches(TARGETS, classes=2, per_class=2).set_epoch(-1)

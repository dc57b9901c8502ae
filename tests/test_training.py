"""The training loop: it learns, it repeats, and a killed run goes on to the same weights."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import numpy as np  # noqa: E402  (after the check that torch is there)
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, TrainConfig, models  # noqa: E402
from edgecv.data import ArraySamples, ImageFolder  # noqa: E402
from edgecv.models.checkpoint import read_checkpoint  # noqa: E402
from edgecv.training import TrainResult  # noqa: E402
from edgecv.training.batches import batches  # noqa: E402
from edgecv.training.config import learning_rate  # noqa: E402
from edgecv.training.objective import distillation_loss  # noqa: E402

ROOT = Path(__file__).parent.parent
PREPROCESS = Preprocess(size=(16, 16))
LABELS = ("red", "green", "blue")


def _samples(count: int, seed: int = 0) -> ArraySamples:
    """Noise with one channel brighter: easy, but not at once."""
    generator = np.random.default_rng(seed)
    targets = [i % 3 for i in range(count)]
    frames = generator.integers(0, 180, (count, 12, 14, 3))
    for frame, target in zip(frames, targets, strict=True):
        frame[..., target] += 40
    return ArraySamples(frames.astype(np.uint8), targets, LABELS)


class Tiny(nn.Module):
    """A network that is not one of ours, with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(image).mean((2, 3)))
        return logits


def _network() -> nn.Module:
    torch.manual_seed(0)
    return Tiny()


def _config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "batch_size": 16, "warmup_epochs": 1.0, "augment": "digits", **changes})


def _train(config: TrainConfig | None = None, **settings: Any) -> TrainResult:
    data = settings.pop("data", None) or _samples(60)
    network = settings.pop("network", None) or _network()
    return edgecv.train(network, data, _samples(30, 1), config or _config(), preprocess=PREPROCESS, **settings)


def _same(first: nn.Module, second: nn.Module) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4},
        {"ema_decay": 0.0, "label_smoothing": 0.0, "warmup_epochs": 0.0},
        {"channels_last": False, "augment": "none"},
        {"batch_size": 59},  # the last batch has one image
        {"augment": "photos"},
        {"augment": "none", "mixup": 0.2, "cutmix": 0.5},
        {"randaugment": 3},
        {"schedule": "step", "milestones": (0.5, 0.9), "clip_norm": 5.0},
        {"deterministic": True},
    ],
)
def test_it_learns(changes: dict[str, Any]) -> None:
    result = _train(_config(**{"epochs": 12, "learning_rate": 2e-2, **changes}))
    assert result.accuracy.top1 > 0.8
    assert result.accuracy.samples == 30
    assert result.history[result.best_epoch].val_score == result.accuracy.top1
    assert not result.network.training
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_every_change_of_the_data_survives_an_interruption(tmp_path: Path) -> None:
    config = _config(randaugment=5, mixup=0.3, cutmix=0.3, clip_norm=1.0, schedule="step")
    whole = _train(config)

    def interrupt(stage: str, done: float, total: float) -> None:
        if done > 0.6 * total:
            raise _Stop

    with pytest.raises(_Stop):
        _train(config, out=tmp_path / "run", progress=interrupt)
    assert _same(whole.network, _train(config, out=tmp_path / "run").network)


def test_a_teacher_is_followed() -> None:
    """With all of the loss on the teacher, labels do not matter: a student of wrong ones learns the right ones."""
    teacher = _train(_config(epochs=12, learning_rate=2e-2)).network
    right = _samples(60)
    wrong: Any = [(right[i][0], 0) for i in range(60)]
    config = _config(epochs=12, learning_rate=2e-2, distill_weight=1.0, distill_temperature=2.0)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = edgecv.train(_network(), wrong, _samples(30, 1), config, preprocess=PREPROCESS, teacher=teacher)
    assert student.accuracy.top1 > 0.7
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    with pytest.raises(InputError, match=r"the teacher gives \[16, 3, 16, 16\] where the network gives \[16, 3\]"):
        _train(teacher=nn.Conv2d(3, 3, 1, bias=False))


def test_the_distillation_loss_is_that_of_the_definition() -> None:
    student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.0, 3.0, 1.0]])
    wanted, got = (torch.softmax(logits / 4, 1) for logits in (teacher, student))
    divergence = (wanted * (wanted.log() - got.log())).sum() * 16
    assert torch.allclose(distillation_loss(student, teacher, 4.0), divergence)
    assert distillation_loss(student, student + 7, 4.0).abs() < 1e-6  # logits may be moved
    gradients = []
    for temperature in (20.0, 200.0):  # at high temperature the gradient does not depend on it (section 2.1)
        logits = student.clone().requires_grad_()
        distillation_loss(logits, teacher, temperature).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        gradients.append(logits.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=0.03)


def test_a_run_that_gets_no_better_ends_early() -> None:
    result = _train(_config(epochs=40, patience=2, learning_rate=0.0, ema_decay=0.0))
    assert len(result.history) == 3
    assert result.best_epoch == 0


def test_gradients_are_shortened() -> None:
    """Steps of plain SGD are as long as the gradient: clipped to a hundredth they move the weights a hundredth."""

    def moved(**changes: Any) -> float:
        config = _config(
            epochs=1, batch_size=60, optimizer="sgd", momentum=0.0, weight_decay=0.0, ema_decay=0.0, learning_rate=1.0,
            warmup_epochs=0.0, **changes,
        )  # fmt: skip
        weights = zip(_train(config).network.parameters(), _network().parameters(), strict=True)
        return float(sum((a - b).detach().square().sum() for a, b in weights) ** 0.5)

    assert moved(clip_norm=0.01) == pytest.approx(
        0.01 * learning_rate(0, 1, _config(epochs=1, learning_rate=1.0, warmup_epochs=0.0)), rel=1e-3
    )
    assert moved() > 0.02


def test_steps_divide_the_rate_by_ten() -> None:
    config = TrainConfig(epochs=10, learning_rate=1.0, warmup_epochs=1.0, schedule="step", milestones=(0.4, 0.8))
    rates = [learning_rate(step, 10, config) for step in range(100)]
    assert rates[10:40] == [1.0] * 30
    assert rates[40:80] == [0.1] * 40
    assert rates[80:] == pytest.approx([0.01] * 20)


def test_the_callers_network_and_generator_are_left_alone() -> None:
    network = _network()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    _train(network=network)
    assert torch.equal(torch.rand(3), wanted)
    assert _same(network, _network())
    assert network.training


def test_a_seed_gives_the_same_weights_again() -> None:
    assert _same(_train().network, _train().network)
    assert not _same(_train().network, _train(_config(seed=1)).network)


def test_workers_do_not_change_the_batches() -> None:
    """In a process of its own: workers are forked, which one with other libraries' threads may not survive."""
    code = "from tests.test_training import compare_workers; compare_workers()"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def compare_workers() -> None:
    """Batches, and a whole training, with worker processes and without."""
    arguments: dict[str, Any] = {"size": 7, "augment": edgecv.training.Augment(crop=(0.5, 1.0)), "seed": 3}
    for shuffle in (False, True):
        alone = list(batches(_samples(20), PREPROCESS, shuffle=shuffle, **arguments))
        helped = list(batches(_samples(20), PREPROCESS, shuffle=shuffle, workers=2, **arguments))
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, helped, strict=True))
    one, two = (_train(_config(epochs=2, augment="photos", workers=workers)).network for workers in (0, 1))
    assert _same(one, two)


class _Stop(Exception):
    """Raised from a progress callback."""


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = _train(out=tmp_path / "whole")

    def interrupt(stage: str, done: float, total: float) -> None:
        if done > 0.6 * total:
            raise _Stop

    with pytest.raises(_Stop):
        _train(out=tmp_path / "parts", progress=interrupt)
    assert 0 < len(_history(tmp_path / "parts")) < 4
    resumed = _train(out=tmp_path / "parts")
    assert _same(whole.network, resumed.network)
    columns = ("epoch", "learning_rate", "train_loss", "val_loss", "val_score")
    for left, right in zip(_history(tmp_path / "whole"), _history(tmp_path / "parts"), strict=True):
        assert [left[name] for name in columns] == [right[name] for name in columns]


def _history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


KILLED = """
import sys
from tests.test_training import _train
_train(out=sys.argv[1], progress=lambda stage, done, total: print(done, flush=True))
"""


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in the third of four epochs, several times over."""
    for step in (9, 9, 13):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if float(line) >= step:
                    process.send_signal(signal.SIGKILL)
                    break
    assert _same(_train(out=tmp_path / "run").network, _train().network)
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name]


def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    _train(_config(epochs=1), out=tmp_path / "run")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir())
    with pytest.raises(InputError, match=r"a run with other settings \(config\); choose another folder"):
        _train(_config(epochs=2), out=tmp_path / "run")
    with pytest.raises(InputError, match="train_images"):
        _train(_config(epochs=1), out=tmp_path / "run", data=_samples(63))
    assert before == sorted((path.name, path.read_bytes()) for path in (tmp_path / "run").iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        _train(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_broken_state_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    _train(_config(epochs=1), out=tmp_path / "run")
    state = tmp_path / "run" / "last.pt"
    state.write_bytes(state.read_bytes()[:1000] if damage is None else damage)
    with pytest.raises(InputError, match=r"last\.pt is broken") as raised:
        _train(_config(epochs=1), out=tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_damage_to_the_state_is_refused_or_harmless(tmp_path: Path) -> None:
    config = _config(epochs=1)
    wanted = _train(config, out=tmp_path / "run").network
    state = tmp_path / "run" / "last.pt"
    whole = state.read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        state.write_bytes(data)
        try:
            found: Any = _train(config, out=tmp_path / "run").network
        except InputError as error:
            found = error
        assert _same(found, wanted) if isinstance(found, nn.Module) else "is broken" in str(found)


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import pickle  # noqa: TID251  (to write the attack)

    _train(_config(epochs=1), out=tmp_path / "run")
    torch.save({"network": _Attack(tmp_path / "ran")}, tmp_path / "run" / "last.pt", pickle_module=pickle)
    with pytest.raises(InputError, match="is broken"):
        _train(_config(epochs=1), out=tmp_path / "run")
    assert not (tmp_path / "ran").exists()


class _Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_best_epoch_is_kept_as_a_checkpoint(tmp_path: Path) -> None:
    network = models.create("squeezenet1_1", num_classes=3, stem="small")
    result = _train(_config(epochs=2, learning_rate=1e-3), network=network, out=tmp_path / "run")
    kept, card = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert _same(kept, result.network)
    assert (card.labels, card.preprocess, card.accuracy) == (LABELS, PREPROCESS, result.accuracy)
    assert edgecv.models.recipe_of(result.network) == card.recipe


def test_a_folder_of_pictures_is_trained_on(tmp_path: Path) -> None:
    require("opencv")
    import cv2

    samples = _samples(30)
    for index in range(30):
        frame, target = samples[index]
        (tmp_path / LABELS[target]).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / LABELS[target] / f"{index}.png"), frame)
    folder = ImageFolder(tmp_path)
    result = edgecv.train(_network(), folder, folder, _config(augment="photos"), preprocess=PREPROCESS)
    assert result.accuracy.samples == 30


def test_any_pytorch_data_set_is_trained_on() -> None:
    """A TensorDataset of normalized floats, as PyTorch's own examples have them; and one of byte images."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(48) % 3
    images = torch.randn(48, 3, 16, 16, generator=generator) + nn.functional.one_hot(targets, 3)[..., None, None]
    result = edgecv.train(
        _network(),
        TensorDataset(images, targets),
        TensorDataset(images, targets),
        _config(epochs=8, learning_rate=2e-2),
        preprocess=PREPROCESS,
    )
    assert result.accuracy.top1 > 0.6
    bytes_ = TensorDataset((images.permute(0, 2, 3, 1) * 40 + 100).clamp(0, 255).byte(), targets)
    assert edgecv.train(_network(), bytes_, bytes_, _config(), preprocess=PREPROCESS).accuracy.samples == 48


@pytest.mark.parametrize(
    ("image", "target", "telling"),
    [
        (np.zeros((8, 8, 3), np.uint8), 3, "class index 3 in the data, but the network has 3 classes"),
        (np.zeros((8, 8, 3), np.uint8), -1, "class index"),
        (np.zeros((8, 8), np.uint8), 0, "height, width, 3"),
        (np.zeros((8, 8, 3), np.float32), 0, "uint8"),
        ("cat.jpg", 0, "str"),
    ],
)
def test_data_that_does_not_fit_is_refused(image: Any, target: int, telling: str) -> None:
    data: Any = [(image, target)] * 4
    with pytest.raises(InputError, match=telling):
        edgecv.train(_network(), data, data, _config(), preprocess=PREPROCESS)


def test_no_data_and_no_classifier_are_refused() -> None:
    with pytest.raises(InputError, match="training needs images, got 0"):
        edgecv.train(_network(), [], _samples(3), preprocess=PREPROCESS)
    with pytest.raises(InputError, match="this network gives"):
        _train(network=nn.Conv2d(3, 3, 1))


def test_a_loss_that_runs_away_is_said() -> None:
    with pytest.raises(InputError, match=r"training diverged at step .*; lower learning_rate"):
        _train(_config(optimizer="sgd", learning_rate=1000.0, warmup_epochs=0.0, epochs=50))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"ema_decay": 1.5},
        {"optimizer": "adam"},
        {"augment": "photo"},
        {"warmup_epochs": 99},
        {"workers": -1},
        {"seed": -1},
        {"schedule": "linear"},
        {"milestones": (0.5, 1.5)},
        {"clip_norm": -1},
        {"randaugment": 31},
        {"mixup": -0.1},
        {"distill_weight": 1.1},
        {"distill_temperature": 0},
        {"patience": -1},
        {"device": "toaster"},
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        _train(_config(**changes))


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(epochs=10, learning_rate=1.0, warmup_epochs=2.0)
    rates = [learning_rate(step, 5, config) for step in range(50)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert learning_rate(30, 5, config) == pytest.approx(0.5)
    assert learning_rate(0, 5, TrainConfig(warmup_epochs=0.0)) == TrainConfig().learning_rate


def test_the_average_is_that_of_the_definition() -> None:
    """After two steps to w1 and w2 the average is ``decay * w1 + (1 - decay) * w2``: linear in the decay."""
    results = [
        _train(_config(epochs=1, batch_size=30, ema_decay=decay, warmup_epochs=0.0)).network
        for decay in (0.0, 0.05, 0.1)
    ]
    moved = 0.0
    for last, near, far in zip(*(network.state_dict().values() for network in results), strict=True):
        assert torch.allclose(far - last, 2 * (near - last), atol=1e-6)
        moved = max(moved, (far - last).abs().max().item())
    assert moved > 1e-4

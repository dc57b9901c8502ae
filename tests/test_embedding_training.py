"""Training embeddings: batches by class, losses over pairs, the ROC-AUC that chooses the best epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that torch is there)
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.data import IterableDataset  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, TrainConfig  # noqa: E402
from edgecv.cli.main import main  # noqa: E402
from edgecv.data import ArraySamples  # noqa: E402
from edgecv.training import TrainResult  # noqa: E402
from edgecv.training.batches import batches, targets_of  # noqa: E402
from edgecv.training.metric import ClassBatches  # noqa: E402
from edgecv.verification import EmbeddingScores, score_embeddings  # noqa: E402

PREPROCESS = Preprocess(size=(8, 8), mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
LABELS = ("red", "green", "blue", "grey")


class Tiny(nn.Module):
    """Images to unit vectors, without one of our recipes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.layers(image), dim=1)


def _samples(count: int, seed: int = 0) -> ArraySamples:
    """Noise with the same brightness in each class, spread over the channels in another way."""
    generator = np.random.default_rng(seed)
    targets = [i * 4 // count for i in range(count)]  # sorted by class, as folders are
    frames = generator.integers(0, 120, (count, 8, 8, 3))
    for frame, target in zip(frames, targets, strict=True):
        frame[..., : 3 if target == 3 else None] += 10
        if target < 3:
            frame[..., target] += 25
    return ArraySamples(frames.astype(np.uint8), targets, LABELS)


def _train(**changes: Any) -> TrainResult:
    torch.manual_seed(0)
    out = changes.pop("out", None)
    data = changes.pop("data", None) or _samples(60)
    settings = {"epochs": 24, "batch_size": 16, "augment": "none", "learning_rate": 1e-2, "loss": "triplet", **changes}
    return edgecv.train(Tiny(), data, _samples(40, 1), TrainConfig(**settings), preprocess=PREPROCESS, out=out)


@pytest.mark.parametrize(
    "changes",
    [
        {"mining": "hard"},
        {"mining": "semihard"},
        {"mining": "all", "per_class": 8},
        {"loss": "contrastive", "margin": 1.0},
    ],
)
def test_embeddings_learn_to_tell_classes_apart(changes: dict[str, Any]) -> None:
    result = _train(**changes)
    assert isinstance(result.scores, EmbeddingScores)
    assert result.scores.roc_auc > 0.8 > 0.6 > _untrained().roc_auc
    assert result.history[result.best_epoch].val_score == result.scores.roc_auc
    assert result.scores == _scored(result.network)
    with pytest.raises(InputError, match="an embedding has no accuracy"):
        _ = result.accuracy


def _scored(network: nn.Module) -> EmbeddingScores:
    ((frames, targets),) = batches(_samples(40, 1), PREPROCESS, size=40)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESS.mean, PREPROCESS.std))
    with torch.no_grad():
        embeddings = network((frames.permute(0, 3, 1, 2) / 255 - mean) / std)
    return score_embeddings(embeddings.numpy(), targets.numpy())


def _untrained() -> EmbeddingScores:
    torch.manual_seed(0)
    return _scored(Tiny())


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = _train(epochs=4, augment="digits")

    def stop(stage: str, done: float, total: float) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    config = TrainConfig(epochs=4, batch_size=16, augment="digits", learning_rate=1e-2, loss="triplet")
    arguments: Any = (_samples(60), _samples(40, 1), config)
    with pytest.raises(KeyboardInterrupt):
        edgecv.train(Tiny(), *arguments, preprocess=PREPROCESS, out=tmp_path / "run", progress=stop)
    resumed = edgecv.train(Tiny(), *arguments, preprocess=PREPROCESS, out=tmp_path / "run")
    pairs = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.scores == whole.scores


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"loss": "arcface"}, "loss is 'cross_entropy', 'triplet', 'contrastive' or 'tracking', got 'arcface'"),
        ({"mining": "easy"}, "mining is 'hard', 'semihard' or 'all', got 'easy'"),
        ({"margin": -0.1}, "margin is from 0 to 2"),
        ({"per_class": 1}, "per_class is from 2"),
        ({"per_class": 9}, "two classes or more in a batch, got batch_size 16 and per_class 9"),
        ({"mixup": 0.2}, "images of one class each: set mixup and cutmix to 0"),
        ({"per_class": 2}, "a batch of 8 classes needs as many in the data, got 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], telling: str) -> None:
    with pytest.raises(InputError, match=telling):
        _train(**changes)


class _Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 60

    def __iter__(self) -> Any:
        return (_samples(60)[i] for i in range(60))


def test_neither_a_stream_nor_a_teacher_fits_a_metric_loss() -> None:
    with pytest.raises(InputError, match="draws batches by class, which a stream cannot give"):
        _train(data=_Stream())
    config = TrainConfig(batch_size=16, loss="triplet")
    with pytest.raises(InputError, match="a teacher gives logits to follow"):
        edgecv.train(Tiny(), _samples(60), _samples(40), config, preprocess=PREPROCESS, teacher=Tiny())


def test_a_stream_trains_a_classifier() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    config = TrainConfig(epochs=12, batch_size=16, augment="none", learning_rate=1e-2)
    result = edgecv.train(network, _Stream(), _samples(40, 1), config, preprocess=PREPROCESS)
    assert result.accuracy.top1 > 0.6


class _Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def test_a_stream_without_a_length_is_refused() -> None:
    with pytest.raises(InputError, match="training needs to know how many images there are"):
        _train(data=_Endless(), loss="cross_entropy")


def test_batches_are_drawn_by_class_and_anew_in_each_epoch() -> None:
    samples = _samples(40)
    sampler = ClassBatches(targets_of(samples), classes=3, per_class=4)
    epochs = [
        [targets.tolist() for _, targets in batches(samples, PREPROCESS, size=1, sampler=sampler, epoch=epoch)]
        for epoch in (0, 0, 1)
    ]
    assert epochs[0] == epochs[1] != epochs[2]
    for batch in epochs[0]:
        assert sorted(batch.count(target) for target in set(batch)) == [4, 4, 4]


def test_targets_are_found_without_reading_images() -> None:
    class Held:
        targets = torch.tensor([2, 0, 1])

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("read")

    assert targets_of(Held()) == (2, 0, 1)
    assert targets_of([("a", 1), ("b", np.int64(0))]) == (1, 0)
    with pytest.raises(InputError, match="targets are indices of classes"):
        targets_of([("a", "cat")])
    Held.targets = torch.tensor([1])
    with pytest.raises(InputError, match="3 images and 1 targets"):
        targets_of(Held())


def test_the_command_trains_an_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require("sklearn")
    command = ["train", "digits", "--model", "embedding", "--out", str(tmp_path / "run"), "--size", "32", "epochs=1"]
    options = ["--option", "backbone=squeezenet1_1", "--option", "dims=8", "--option", 'options={"stem": "small"}']
    assert main([*command, *options, "batch_size=32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.4 < found["scores"]["roc_auc"] <= 1
    assert main([*command, *options, "batch_size=32"]) == 0  # a finished run tells what it found
    assert "validation ROC-AUC" in capsys.readouterr().out
    assert edgecv.load_checkpoint(tmp_path / "run" / "best.safetensors")(torch.zeros(2, 3, 32, 32)).shape == (2, 8)


def test_a_trained_embedding_is_evaluated_converted_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sklearn", "onnxruntime", "onnx", "opencv"):
        require(name)
    import cv2

    network = edgecv.models.create(
        "embedding", backbone="mobilenet_v2", dims=8, options={"stem": "small", "width": 0.25}
    )
    checkpoint, bundle = str(tmp_path / "net.safetensors"), str(tmp_path / "bundle")
    edgecv.save_checkpoint(network, checkpoint, preprocess=Preprocess(size=(32, 32)))
    command = ["convert", checkpoint, "--out", bundle, "--samples", "digits", "--backends", "onnxruntime"]
    assert main(command) == 0
    found = []
    for model in (checkpoint, bundle):
        capsys.readouterr()
        assert main(["evaluate", model, "--data", "digits", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["verification"])
    assert found[0]["roc_auc"] == pytest.approx(found[1]["roc_auc"], abs=1e-4)
    for name, value in (("a", 50), ("b", 200), ("c", 50)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((20, 20, 3), value, np.uint8))
    capsys.readouterr()
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    assert main(["run", bundle, *images]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{images[2]}: 1.000 like {images[0]}"
    assert len(lines) == 2
    assert main(["run", bundle, images[0]]) == 2
    assert "two images or more" in capsys.readouterr().err

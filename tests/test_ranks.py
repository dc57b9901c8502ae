"""Training in several processes: the loss of one with the joint batch, and runs that go on with another number."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that torch is there)
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import TrainConfig  # noqa: E402
from edgecv.training.ranks import Ranks  # noqa: E402
from edgecv.training.shards import TarShards, write_shards  # noqa: E402
from tests.test_embedding_training import LABELS, PREPROCESS, Tiny, _samples  # noqa: E402

ROOT = Path(__file__).parent.parent
# The same sums in another order: rounding alone. Measured 2e-7 after 12 steps.
TOLERANCE = 1e-5
PROGRAM = """
import sys, torch
torch.set_num_threads(1)
if len(sys.argv) > 2:  # else train joins and leaves
    torch.distributed.init_process_group("gloo")
from tests.test_ranks import train
for job in sys.argv[1:]:
    train(*job.split(","))
if len(sys.argv) > 2:
    torch.distributed.destroy_process_group()
"""


def train(kind: str, out: str, epochs: str = "3", shards: str = "") -> edgecv.training.TrainResult:
    """A small run, the same in every process; ``epochs`` of it, as if it were killed after them."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "augment": "none", "optimizer": "sgd"}
    settings |= {"learning_rate": 0.05, "ema_decay": 0.9}
    network: nn.Module = Tiny()
    if kind == "classifier":
        network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    elif kind == "norm":
        network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    else:
        settings |= {"loss": kind}
    data: Any = TarShards(shards, LABELS, shuffle=20) if shards else _samples(53)  # the last batch cannot be halved

    def stop(stage: str, done: float, total: float) -> None:
        if done > int(epochs) / 3 * total:
            sys.exit(0)

    return edgecv.train(
        network, data, _samples(41, 1), TrainConfig(**settings), preprocess=PREPROCESS, out=out, progress=stop
    )


def _torchrun(*jobs: str, killed: bool = False) -> None:
    """Two processes, as ``torchrun`` starts them, each with the arguments of ``train`` for every job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *jobs],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0 or killed, errors


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of two processes, by kind."""
    require("opencv")
    folder = tmp_path_factory.mktemp("two")
    write_shards(_samples(53), folder / "shards", per_shard=40)
    jobs = [f"{kind},{folder / kind}" for kind in ("classifier", "triplet", "contrastive", "norm")]
    _torchrun(*jobs, f"classifier,{folder / 'stream'},3,{folder / 'shards'}")
    return folder


def _history(folder: Path) -> list[list[float]]:
    with (folder / "history.csv").open(newline="") as file:
        return [[float(v) for k, v in row.items() if k != "seconds"] for row in csv.DictReader(file)]


def _furthest(first: Path, second: Path) -> float:
    states = [torch.load(folder / "last.pt", weights_only=True)["network"] for folder in (first, second)]
    return max(float((states[0][key] - states[1][key]).abs().max()) for key in states[0])


@pytest.mark.parametrize("kind", ["classifier", "triplet", "contrastive"])
def test_two_processes_train_as_one_with_the_joint_batch(kind: str, two: Path, tmp_path: Path) -> None:
    train(kind, str(tmp_path / "one"))
    for wanted, got in zip(_history(tmp_path / "one"), _history(two / kind), strict=True):
        assert got == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
    assert _furthest(tmp_path / "one", two / kind) < TOLERANCE


def test_batch_norm_sees_a_share_and_the_loss_still_falls(two: Path) -> None:
    history = _history(two / "norm")
    assert history[-1][2] < history[0][2]


def test_shards_of_unequal_numbers_are_shared(two: Path) -> None:
    """Two shards of 40 and 13 images: the second process begins its own again, and neither waits for ever."""
    assert len(_history(two / "stream")) == 3


def test_a_run_goes_on_with_another_number_of_processes(two: Path, tmp_path: Path) -> None:
    """Two epochs alone, the last together; and the other way round."""
    with pytest.raises(SystemExit):
        train("classifier", str(tmp_path / "alone_first"), "2")
    _torchrun(f"classifier,{tmp_path / 'alone_first'}")
    _torchrun(f"classifier,{tmp_path / 'alone_last'},2", killed=True)
    assert len(_history(tmp_path / "alone_last")) == 2
    train("classifier", str(tmp_path / "alone_last"))
    for name in ("alone_first", "alone_last"):
        assert len(_history(tmp_path / name)) == 3
        assert _furthest(two / "classifier", tmp_path / name) < TOLERANCE


def test_batches_that_cannot_be_shared_are_refused() -> None:
    assert Ranks(0, 4).share(64) == 16
    for size, count in ((10, 4), (4, 4)):
        with pytest.raises(InputError, match=f"batch_size {size} is shared by {count} processes: give each two or"):
            Ranks(0, count).share(size)

"""The trainer against a plain PyTorch loop of the same work, and how long training waits for data.

    EDGECV_DATA=… python benchmarks/trainer_throughput.py [--rounds 7]

Writes benchmarks/results/trainer_throughput.json. Both train the same network on the same 1,280 CIFAR-10 JPEGs with the
same augmentation, optimizer and moving average, one epoch each in turns, so that a busy machine slows both. The plain
loop draws one crop and flip for an image at a time, as a transform of torchvision does. A ratio above 1 means that the
trainer is the faster. It does not show a GPU, where waiting for data weighs more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

import edgecv
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.schema import dumps
from edgecv.training.augment import preset
from edgecv.training.batches import batches
from edgecv.training.recipes import recipe_for

RESULTS = Path(__file__).parent / "results" / "trainer_throughput.json"
IMAGES = 1280
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "resnet20": ({}, 128),
    "mobilenet_v2": ({"width": 0.5, "num_classes": 10, "stem": "small"}, 64),
}


class Jpegs(Dataset[tuple[Any, int]]):
    """The first images of the file; ``transform`` is the plain loop's."""

    def __init__(self, path: Path, plain: bool) -> None:
        file = np.load(path)
        self._bytes, self._ends, self._labels = file["jpeg"], file["offsets"], file["labels"]
        self.labels = tuple(map(str, range(10)))
        self._plain = plain

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        data = self._bytes[self._ends[index] : self._ends[index + 1]]
        frame = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        target = int(self._labels[index])
        if not self._plain:
            return np.ascontiguousarray(frame), target
        padded = np.pad(frame, ((4, 4), (4, 4), (0, 0)))
        top, left = torch.randint(0, 9, (2,)).tolist()
        frame = padded[top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            frame = frame[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255
        return image, target


def plain_epoch(network: nn.Module, path: Path, size: int, config: edgecv.TrainConfig, preprocess: Any) -> float:
    """Seconds of one epoch of a loop as the tutorials have it."""
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    start = time.perf_counter()
    for images, targets in DataLoader(Jpegs(path, plain=True), size, shuffle=True):
        images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
        loss.item()
    return time.perf_counter() - start


def trainer_epoch(network: nn.Module, path: Path, config: edgecv.TrainConfig, preprocess: Any) -> float:
    """Seconds of one epoch of ``edgecv.train``, with two images to validate."""
    data = Jpegs(path, plain=False)
    result = edgecv.train(network, data, [data[0], data[1]], config, preprocess=preprocess)  # type: ignore[arg-type]
    return result.history[0].seconds


def waited(network: nn.Module, path: Path, size: int, preprocess: Any, workers: int) -> float:
    """The share of an epoch in which the step waits for ``batches``; the first, which starts workers, is left out."""
    network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    data: Any = Jpegs(path, plain=False)
    augment = preset("small_photos")
    loader = batches(data, preprocess, size=size, augment=augment, shuffle=True, workers=workers)
    waiting = total = 0.0
    for index, (seconds, images, targets) in enumerate(_timed(loader)):
        start = time.perf_counter()
        ready = (images.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        nn.functional.cross_entropy(network(ready), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if index:
            waiting, total = waiting + seconds, total + seconds + time.perf_counter() - start
    return waiting / total


def _timed(loader: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[float, Tensor, Tensor]]:
    while True:
        start = time.perf_counter()
        batch = next(loader, None)
        if batch is None:
            return
        yield time.perf_counter() - start, *batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    path = Path(os.environ["EDGECV_DATA"]) / "cifar10" / "train25k.npz"
    recipe = recipe_for("cifar10")
    found = {}
    for name, (options, size) in NETWORKS.items():
        config = recipe.changed({"epochs": 1, "batch_size": size, "warmup_epochs": 0.0}).config
        seconds: dict[str, list[float]] = {"plain": [], "trainer": []}
        for _ in range(args.rounds):
            for kind in seconds:
                torch.manual_seed(0)
                network = edgecv.models.create(name, **options)
                if kind == "plain":
                    seconds[kind].append(plain_epoch(network, path, size, config, recipe.preprocess))
                else:
                    seconds[kind].append(trainer_epoch(network, path, config, recipe.preprocess))
        ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["trainer"], strict=True)]
        waits = {
            f"{workers} workers": round(
                waited(edgecv.models.create(name, **options), path, size, recipe.preprocess, workers), 4
            )
            for workers in (0, 1)
        }
        found[name] = {
            "batch_size": size,
            "throughput_ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "seconds": {kind: [round(s, 2) for s in values] for kind, values in seconds.items()},
            "share_of_time_waiting_for_data": waits,
        }
        print(name, found[name]["throughput_ratio"], waits, flush=True)
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    RESULTS.write_text(dumps({**conditions, "versions": library_versions("torch"), "networks": found}))


if __name__ == "__main__":
    main()

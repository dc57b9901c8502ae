"""The processes of one training run: alone, or as many as ``torchrun`` started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from edgecv.errors import InputError

__all__ = ["Ranks", "joined"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together; alone, every method does nothing.

    Every process must call the same methods in the same order: each waits for the others.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """The process that writes files and reports progress."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """How many images of a joint batch each process takes.

        Raises:
            InputError: it cannot be shared evenly, or leaves a process less than two (batch norm needs two).
        """
        if self.count > 1 and (batch_size % self.count or batch_size < 2 * self.count):
            raise InputError(f"batch_size {batch_size} is shared by {self.count} processes: give each two or more")
        return batch_size // self.count

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """``network`` with gradients averaged over the processes; on a GPU batch norm sees the joint batch, too."""
        if self.count == 1:
            return network
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)

    def total(self, *values: float) -> list[float]:
        """The sums over the processes."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=_device())
        distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def joint(self, values: Tensor) -> Tensor:
        """``values[n, …]`` of all processes, by rank, ``[n * count, …]``, which gradients flow through; ``n`` is equal.

        A loss of the joint values has, after the averaging of ``parallel``, the gradient of one process.
        """
        if self.count == 1:
            return values
        return torch.cat(all_gather(values.contiguous()))  # type: ignore[no-untyped-call]

    def same(self, module: nn.Module) -> None:
        """Give every process the first one's buffers (the statistics of batch norm, which each takes of its share)."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def together(self, values: Any) -> list[Any]:
        """Plain values or arrays of every process, by rank."""
        if self.count == 1:
            return [values]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, values)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, if it did; a group that is joined already is used and left."""
    mine = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mine:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        else:
            yield Ranks()
    finally:
        if mine:
            distributed.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")

"""The folder of a training run: what is written after each epoch, so that a killed run goes on where it was."""

from __future__ import annotations

import csv
import io
import pickle  # noqa: TID251  (only to name the error of torch.load, which reads tensors and plain values alone)
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgecv.errors import InputError, one_line
from edgecv.files import refuse_occupied, write_file
from edgecv.schema import dumps, encode, loads

__all__ = ["EpochRecord", "RunFolder"]

BROKEN = (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One line of ``history.csv``; ``val_score`` is the top-1 of a classifier, the ROC-AUC of an embedding,
    the success of a tracker on pairs.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    val_score: float
    seconds: float


class RunFolder:
    """``config.json``, ``history.csv``, ``last.pt`` (all state, for resuming) and ``best.safetensors`` of one run."""

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._config = self.path / "config.json"
        self._state = self.path / "last.pt"
        self.best = self.path / "best.safetensors"
        if self._config.is_file():
            self._refuse_other(settings)
            return
        refuse_occupied(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.path}: {one_line(error)}") from error
        write_file(self._config, dumps(settings))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state after the last whole epoch, or ``None`` where none was finished."""
        if not self._state.is_file():
            return None
        try:
            _check_sums(self._state)
            state: dict[str, Any] = torch.load(self._state, map_location=device, weights_only=True)
        except BROKEN as error:
            raise InputError(f"{self._state} is broken ({one_line(error)}); remove {self.path}") from error
        return state

    def save(self, state: dict[str, Any], history: list[EpochRecord]) -> None:
        """Write the state and the history, each whole or not at all."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_file(self._state, buffer.getvalue())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(EpochRecord.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(encode(record) for record in history)
        write_file(self.path / "history.csv", table.getvalue())

    def _refuse_other(self, settings: dict[str, Any]) -> None:
        held = loads(self._config.read_bytes(), str(self._config))
        wanted = loads(dumps(settings), "settings")
        if held == wanted:
            return
        keys = [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)]
        raise InputError(f"{self.path} holds a run with other settings ({', '.join(keys)}); choose another folder")


def _check_sums(path: Path) -> None:
    """torch saves a zip archive: any damage shows in the checksums of its members, before anything is unpacked."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} was changed")

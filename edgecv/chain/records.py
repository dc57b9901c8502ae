"""The folder of a chain: what is done there already, by what it was made from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

from edgecv.bundle import Bundle
from edgecv.errors import BundleError, InputError, one_line
from edgecv.files import refuse_occupied, sha256, write_file
from edgecv.schema import dumps, loads

__all__ = ["ChainFolder"]

RECIPE = "recipe.json"
OURS = re.compile(r"\d+-(prune|train|quantize|cluster)\.(safetensors|json)")


class ChainFolder:
    """``recipe.json``, and for each step a checkpoint and a record: its settings, and hashes of what went in and out.

    A step counts as done where its record says that it was made with the same settings from the same bytes, and its
    checkpoint still has the bytes that it had then. Images count as the same where their name and number are.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path, recipe: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if not (self.path / RECIPE).is_file():
            refuse_occupied(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.path}: {one_line(error)}") from error
        write_file(self.path / RECIPE, dumps(recipe))

    @property
    def bundle(self) -> Path:
        """Where the bundle is, or will be."""
        return self.path / "bundle"

    def checkpoint(self, name: str) -> Path:
        """Where a step's network is, or will be."""
        return self.path / f"{name}.safetensors"

    def run(self, name: str, made_from: Mapping[str, Any]) -> Path:
        """The folder that a training step keeps its state in; states of the step with other inputs are removed."""
        found = self.path / f".{name}.{digest(dumps(made_from).encode()).hexdigest()[:12]}"
        self._clear(name, but=found)
        return found

    def is_done(self, name: str, made_from: Mapping[str, Any]) -> bool:
        """Whether a step's checkpoint is there and was made from just that."""
        checkpoint = self.checkpoint(name)
        return checkpoint.is_file() and self._matches(name, made_from, sha256(checkpoint))

    def set_done(self, name: str, made_from: Mapping[str, Any]) -> None:
        """Record a step whose checkpoint was written; its training state is removed."""
        write_file(self.path / f"{name}.json", dumps(_record(made_from, sha256(self.checkpoint(name)))))
        self._clear(name)

    def has_bundle(self, made_from: Mapping[str, Any]) -> bool:
        """The same of the bundle."""
        try:
            return self._matches("bundle", made_from, Bundle.load(self.bundle).sha256)
        except BundleError:
            return False

    def set_bundle(self, made_from: Mapping[str, Any], built: Path) -> None:
        """Put the bundle ``built`` in the place of an earlier one, and record it."""
        self.remove_bundle()
        built.rename(self.bundle)
        write_file(self.path / "bundle.json", dumps(_record(made_from, Bundle.load(self.bundle).sha256)))

    def remove_bundle(self) -> None:
        """Remove the bundle and its record, where they are."""
        (self.path / "bundle.json").unlink(missing_ok=True)
        if self.bundle.is_dir():
            shutil.rmtree(self.bundle)

    def keep(self, names: Iterable[str]) -> None:
        """Remove the checkpoints of steps that the recipe has no more."""
        kept = {f"{name}.{suffix}" for name in names for suffix in ("safetensors", "json")}
        for file in self.path.iterdir():
            if OURS.fullmatch(file.name) and file.name not in kept:
                file.unlink()

    def _clear(self, name: str, but: Path | None = None) -> None:
        """Remove a step's training states, and what a killed process left half written."""
        for left in set(self.path.glob(f".{name}.*")) - {but}:
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def _matches(self, name: str, made_from: Mapping[str, Any], made: str) -> bool:
        path = self.path / f"{name}.json"
        try:
            held = loads(path.read_bytes(), str(path))
        except (OSError, InputError):  # none, or a broken one: the step is done again
            return False
        return bool(held == _record(made_from, made))


def _record(made_from: Mapping[str, Any], made: str) -> Any:
    """As it is read back."""
    return loads(dumps({**made_from, "sha256": made}), "record")

"""What several verbs share: arguments, output, progress."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecv.errors import InputError
from edgecv.manifest import Accuracy
from edgecv.pipelines import Classifier, Embedder, load
from edgecv.progress import Progress
from edgecv.schema import encode
from edgecv.verification import EmbeddingScores

__all__ = [
    "add_backend",
    "add_json",
    "add_samples",
    "key_values",
    "open_pipeline",
    "print_json",
    "progress",
    "scores_line",
    "table",
]


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Which backend and variant run, and on how many threads."""
    parser.add_argument("--backend", default="auto", help="a backend that edgecv doctor lists (default: auto)")
    parser.add_argument("--variant", help="one of the bundle's variants, such as onnx-fp32")
    parser.add_argument("--threads", type=int, help="CPU threads per inference (default: the runtime's choice)")


def add_samples(parser: argparse.ArgumentParser) -> None:
    """Real images, and how many of them."""
    parser.add_argument(
        "--samples",
        metavar="IMAGES",
        help="real images to compare on: a folder, an image or 'digits'; for a tracker a folder of sequences, for a "
        "graph of tensors one of .npz files",
    )
    parser.add_argument("--limit", type=int, default=64, help="how many of them, spread evenly (default: 64)")


def open_pipeline(path: Path, args: argparse.Namespace) -> Any:
    """The pipeline of a bundle, or of a checkpoint on the torch backend."""
    if path.suffix != ".safetensors":
        return load(path, backend=args.backend, variant=args.variant, threads=args.threads)
    if args.backend not in ("auto", "torch"):
        raise InputError(f"a checkpoint runs on backend 'torch'; convert it for {args.backend!r}")
    from edgecv.models.checkpoint import read_checkpoint
    from edgecv.models.siamese.branches import Siamese
    from edgecv.models.siamese.running import tracker_of
    from edgecv.runtimes.pt import TorchSession
    from edgecv.runtimes.session import SessionOptions

    network, card = read_checkpoint(path)
    if isinstance(network, Siamese):
        return tracker_of(network, args.threads)
    if card.preprocess is None:
        raise InputError(f"{path} does not say how images are preprocessed: save it with preprocess=")
    session = TorchSession.from_network(network, card.preprocess, options=SessionOptions(threads=args.threads))
    if card.recipe.architecture == "embedding":
        return Embedder(session, card.preprocess)
    return Classifier(session, card.preprocess, card.labels)


def scores_line(scores: Accuracy | EmbeddingScores) -> str:
    """The figures of a classifier or of an embedding, as people say them."""
    if isinstance(scores, Accuracy):
        low, high = scores.interval
        interval = f"95 % interval {low:.4f} to {high:.4f}, {scores.samples} images"
        return f"top-1 {scores.top1:.4f} ({interval}), top-5 {scores.top5:.4f}"
    return (
        f"ROC-AUC {scores.roc_auc:.4f}, recall@1 {scores.recall_at_1:.4f}, "
        f"TAR {scores.tar_at_far_1e2:.4f} at FAR 0.01, {scores.tar_at_far_1e3:.4f} at 0.001 "
        f"({scores.pairs} pairs of {scores.samples} images)"
    )


def key_values(pairs: Sequence[str], what: str) -> dict[str, Any]:
    """``["epochs=3", "width=0.5"]`` as a dict; values are JSON where they can be, text otherwise."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{what} are given as key=value, got {pair!r}")
        if key in result:
            raise InputError(f"{what}: {key} is given twice")
        try:
            result[key] = json.loads(text)
        except ValueError:
            result[key] = text
    return result


def print_json(value: Any) -> None:
    """Print dataclasses and plain values as JSON to stdout."""
    print(json.dumps(encode(value), indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Columns of text; numbers to the right, the header underlined."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [
        bool(cells) and all(row[i][:1].isdigit() or row[i] in ("-", "") for row in cells) for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress on stderr: a bar per stage on a terminal, a line per finished stage elsewhere."""
    shown = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        yield shown
    finally:
        shown.close()


class _Lines:
    """One line when a stage is done, so that a log says where the time went."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        start = self._started.setdefault(stage, time.monotonic())
        if done >= total:
            print(f"{stage}: done in {time.monotonic() - start:.1f} s", file=sys.stderr)
            del self._started[stage]

    def close(self) -> None:
        """Nothing is held."""


class _Bars:
    """tqdm bars; one is redrawn twice a second, so that its clock runs even within one long step."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def __call__(self, stage: str, done: float, total: float) -> None:
        if stage != self._stage:
            self._finish()
            self._stage, self._bar = stage, _new_bar(stage, total)
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        if done >= total:
            self._finish()

    def close(self) -> None:
        """Leave the last bar as it is and stop the clock."""
        self._closed.set()
        self._ticker.join()
        self._finish()

    def _finish(self) -> None:
        bar, self._bar, self._stage = self._bar, None, ""
        if bar is not None:
            bar.close()

    def _tick(self) -> None:
        while not self._closed.wait(0.5):
            bar = self._bar
            if bar is not None:
                bar.refresh()


def _new_bar(stage: str, total: float) -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a device without tqdm works in silence
        return None
    layout = "{desc:<22}{percentage:3.0f}% |{bar:30}| {elapsed}<{remaining}"
    return tqdm(total=total, desc=stage, bar_format=layout, file=sys.stderr, leave=True)

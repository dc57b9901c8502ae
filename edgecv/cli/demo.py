"""``edgecv demo``: the whole way, on the handwritten digits that ship with scikit-learn; or of a tracker."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import edgecv
from edgecv.bundle import Bundle
from edgecv.cli.common import add_json, print_json, progress, table
from edgecv.cli.demo_track import run_tracking_demo
from edgecv.data import ArraySamples, digits, hold_out, open_frames
from edgecv.errors import ParityError
from edgecv.files import new_folder, refuse_occupied, write_file
from edgecv.manifest import Parity
from edgecv.pipelines import Classifier
from edgecv.preprocess import Preprocess
from edgecv.profiling import Profile
from edgecv.profiling.report import Report, Row, render
from edgecv.progress import Progress
from edgecv.schema import dumps

EXAMPLE = "edgecv demo --out demo"

MODEL = "mobilenet_v2"
OPTIONS: dict[str, Any] = {"num_classes": 10, "width": 0.5, "stem": "small"}
PREPROCESS = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SETTINGS: dict[str, Any] = {"batch_size": 128, "learning_rate": 8e-3, "augment": "digits"}
BACKENDS = ("onnxruntime", "openvino")
EPOCHS, DURATION_S = 20, 5.0
WANTED_TOP1 = 0.97
PARITY_IMAGES = 100
LIMITS = (
    "The digits are 8x8 images, easier than photographs: this shows that the way works, not how good the network is.",
    "Latency is of batch 1 on this machine, one backend after another; other machines rank them differently.",
    "Nothing here ran on a GPU or on a phone, tablet or board.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", choices=("classify", "track"), default="classify", help="classify digits, or track synthetic targets"
    )
    parser.add_argument("--out", type=Path, help="where everything is written (default: demo, or demo-track)")
    parser.add_argument("--epochs", type=int, help="passes over the training data (default: 20; of a tracker 6)")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds to profile each classifier (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per inference (default: 1)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.task == "track":
        return run_tracking_demo(args)
    start = time.monotonic()
    out: Path = args.out or Path("demo")
    if not (out / "train" / "config.json").is_file():
        refuse_occupied(out)
    with progress() as report:
        result = _train(out, EPOCHS if args.epochs is None else args.epochs, report)
        bundle = _convert(out, result, report)
        rows = _measure(out, bundle, args, report)
    page = render(_report(bundle, result, rows))
    write_file(out / "report.html", page)
    write_file(out / "results.json", dumps(_results(rows)))
    _tell(args, out, rows, time.monotonic() - start)
    worst = min(row.accuracy.top1 for row in rows)
    if worst < WANTED_TOP1:
        raise ParityError(f"test top-1 is {worst:.4f}, {WANTED_TOP1} was wanted; train for more epochs")
    return 0


def _train(out: Path, epochs: int, report: Progress) -> Any:
    """Train, or go on with what an earlier run left; a tenth of the training images validates."""
    train_data, val_data = hold_out(digits("train"), every=10)
    config = edgecv.TrainConfig(epochs=epochs, warmup_epochs=min(2.0, epochs / 4), **SETTINGS)
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = edgecv.models.create(MODEL, **OPTIONS)
    return edgecv.train(
        network, train_data, val_data, config, preprocess=PREPROCESS, out=out / "train", progress=report
    )


def _convert(out: Path, result: Any, report: Progress) -> Bundle:
    """Convert into a fresh bundle and put it in the place of an earlier run's."""
    with new_folder(out / ".new") as scratch:
        edgecv.convert(
            result.network,
            scratch / "bundle",
            preprocess=PREPROCESS,
            labels=digits("test").labels,
            backends=BACKENDS,
            samples=open_frames("digits:test", PARITY_IMAGES),
            options=edgecv.ConvertOptions(name="digits", dataset="scikit-learn digits", accuracy=result.accuracy),
            progress=report,
        )
        if (out / "bundle").exists():
            shutil.rmtree(out / "bundle")
        (scratch / "bundle").rename(out / "bundle")
    (out / ".new").rmdir()
    return Bundle.load(out / "bundle")


def _measure(out: Path, bundle: Bundle, args: argparse.Namespace, report: Progress) -> list[Row]:
    """Accuracy on the test images and latency: PyTorch first, as the reference, then each variant."""
    test = digits("test")
    rows = [_torch_row(out, test, args, report)]
    for name, variant in bundle.manifest.variants.items():
        with edgecv.load(bundle, backend=variant.backend, variant=name, threads=args.threads) as classifier:
            size = sum(r.size_bytes for key, r in bundle.manifest.files.items() if key.startswith(f"{name}/"))
            rows.append(_row(classifier, name, variant.parity, test, args, report, size))
    (out / "profiles").mkdir(exist_ok=True)
    for row in rows:
        row.profile.save(out / "profiles" / f"{row.backend}.json")
    return rows


def _torch_row(out: Path, test: ArraySamples, args: argparse.Namespace, report: Progress) -> Row:
    session = edgecv.open_session(out / "train" / "best.safetensors", backend="torch", threads=args.threads)
    with Classifier(session, PREPROCESS, test.labels) as classifier:
        return _row(classifier, "PyTorch, eager", None, test, args, report, None)


def _row(
    classifier: Classifier,
    variant: str,
    parity: Parity | None,
    test: ArraySamples,
    args: argparse.Namespace,
    report: Progress,
    size: int | None,
) -> Row:
    def named(stage: str, done: float, total: float) -> None:
        report(f"{stage} {classifier.session.backend}", done, total)

    measured: Profile = edgecv.profile(
        classifier.session, duration_s=DURATION_S if args.duration is None else args.duration, progress=named
    )
    accuracy = edgecv.evaluate(classifier, test, progress=named)
    return Row(classifier.session.backend, variant, accuracy, parity, measured, size)


def _report(bundle: Bundle, result: Any, rows: list[Row]) -> Report:
    counts = edgecv.models.count(result.network, PREPROCESS.size)
    fastest = min(rows, key=lambda row: row.profile.p50_ms)
    agree = min(row.parity.top1_agreement or 0 for row in rows if row.parity)
    return Report(
        title="edgecv demo: handwritten digits",
        summary=(
            f"A MobileNetV2 reads {rows[0].accuracy.top1:.1%} of the test digits right. "
            f"{' and '.join(row.backend for row in rows if row.parity)} give PyTorch's answer on {agree:.0%} of them; "
            f"{fastest.backend} is the fastest here, {fastest.profile.p50_ms:.2f} ms an image."
        ),
        facts={
            "network": f"MobileNetV2, width {OPTIONS['width']}, 32x32 stem",
            "size of it": f"{counts.parameters:,} parameters, {counts.macs / 1e6:.1f} million MACs an image",
            "data": "scikit-learn digits: 1,294 images to train on, 143 to validate, 360 to test",
            "validation top-1": f"{result.accuracy.top1:.2%}, epoch {result.best_epoch + 1} of {len(result.history)}",
            "graph": "uint8 RGB frames 32x32 in, logits out; normalization inside; free batch",
            "bundle": f"{', '.join(bundle.manifest.variants)}; sha256 {bundle.sha256}",
            "made by": f"edgecv {edgecv.__version__}",
        },
        rows=rows,
        epochs=[record.val_score for record in result.history],
        limits=LIMITS,
    )


def _results(rows: list[Row]) -> dict[str, Any]:
    return {
        row.backend: {"accuracy": row.accuracy, "parity": row.parity, "latency": row.profile.summary()} for row in rows
    }


def _tell(args: argparse.Namespace, out: Path, rows: list[Row], seconds: float) -> None:
    if args.json:
        print_json({"seconds": round(seconds, 1), "results": _results(rows)})
        return
    cells = [
        (
            row.backend,
            f"{row.accuracy.top1:.4f}",
            f"{row.parity.max_abs:.2g}" if row.parity else "-",
            f"{row.profile.p50_ms:.3f}",
            f"{row.profile.p99_ms:.3f}",
        )
        for row in rows
    ]
    print(table(cells, ("backend", "test top-1", "difference from torch", "p50 ms", "p99 ms")))
    print(f"\n{seconds:.0f} s in all. Bundle: {out / 'bundle'}\nReport: {out / 'report.html'}")

"""ResNet-20 trained on 25,000 CIFAR-10 images, alone and with ResNet-56 as its teacher; same settings, same seed.

    EDGECV_DATA=… python benchmarks/cifar_training.py [--epochs 12] [--folder runs]

Writes benchmarks/results/cifar_training.json. The images are JPEG copies of CIFAR-10's, which costs networks trained on
the originals about ten points; a tenth of the training images validates, the 5,000 test images are used once.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

import edgecv
from edgecv.data import hold_out, open_samples
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.pt import TorchSession
from edgecv.schema import dumps, encode
from edgecv.training.recipes import recipe_for

RESULTS = Path(__file__).parent / "results" / "cifar_training.json"


def train(data: Path, folder: Path, settings: dict[str, Any], teacher: torch.nn.Module | None) -> dict[str, Any]:
    """One run: its settings, time and test accuracy."""
    recipe = recipe_for("cifar10").changed(settings)
    train_data, val_data = hold_out(open_samples(f"cifar10:{data / 'train25k.npz'}", "train"), every=10)
    torch.manual_seed(0)
    network = edgecv.models.create("resnet20")
    result = edgecv.train(
        network,
        train_data,
        val_data,
        recipe.config,
        preprocess=recipe.preprocess,
        teacher=teacher,
        out=folder,
        progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}", end="", flush=True),
    )
    seconds = sum(record.seconds for record in result.history)
    test = open_samples(f"cifar10:{data / 'test5k_a.npz'}")
    with TorchSession.from_network(result.network, recipe.preprocess) as session:
        accuracy = edgecv.evaluate(edgecv.Classifier(session, recipe.preprocess, test.labels), test)
    print(f"\n{folder.name}: test top-1 {accuracy.top1:.4f} {accuracy.interval} after {seconds:.0f} s", flush=True)
    return {
        "settings": encode(recipe.config),
        "seconds": round(seconds, 1),
        "test": accuracy,
        "validation": result.accuracy,
        "validation_top1_per_epoch": [round(record.val_score, 4) for record in result.history],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept, to go on with")
    args = parser.parse_args()
    root = Path(os.environ["EDGECV_DATA"])
    teacher = edgecv.models.create("resnet56", weights=root / "weights" / "cifar_resnet" / "resnet56-4bfd9763.th")
    settings = {"epochs": args.epochs, "learning_rate": 0.2}
    runs = {
        "alone": train(root / "cifar10", args.folder / "alone", settings, None),
        "distilled": train(
            root / "cifar10",
            args.folder / "distilled",
            {**settings, "distill_weight": 0.5, "distill_temperature": 2.0},
            teacher,
        ),
    }
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    RESULTS.write_text(dumps({**conditions, "versions": library_versions("torch"), "runs": runs}))


if __name__ == "__main__":
    main()

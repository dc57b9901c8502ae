"""An embedding trained on the first five classes of CIFAR-10, judged on the other five, which it never saw.

    EDGECV_DATA=… python benchmarks/embedding_training.py --folder runs [--epochs 12]

Writes benchmarks/results/embedding_training.json. Trained on the images of airplane, automobile, bird, cat and deer in
25,000 JPEG copies of CIFAR-10's training images, a tenth of them held out to choose the best epoch; judged once, on all
pairs of the 2,500 images of dog, frog, horse, ship and truck among 5,000 test images. Untrained, and with the halves
exchanged, it is judged as well.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgecv
from edgecv.data import ArraySamples, Samples, hold_out, open_samples
from edgecv.pipelines.frames import run_frames
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.pt import TorchSession
from edgecv.schema import dumps, encode
from edgecv.training.recipes import recipe_for
from edgecv.verification import EmbeddingScores, score_embeddings

RESULTS = Path(__file__).parent / "results" / "embedding_training.json"
SETTINGS: dict[str, Any] = {
    "loss": "triplet", "margin": 0.3, "mining": "semihard", "batch_size": 120, "per_class": 24,
    "learning_rate": 0.1, "weight_decay": 5e-4,
}  # fmt: skip


def half(samples: Samples, classes: range) -> ArraySamples:
    """The images of some classes."""
    kept = [samples[i] for i in range(len(samples))]
    kept = [(frame, target) for frame, target in kept if target in classes]
    labels = [samples.labels[i] for i in classes]
    return ArraySamples(np.stack([f for f, _ in kept]), [t - classes.start for _, t in kept], labels)


def judged(network: torch.nn.Module, samples: ArraySamples) -> EmbeddingScores:
    """The verification figures on all pairs."""
    preprocess = recipe_for("cifar10").preprocess
    frames = [samples[i][0] for i in range(len(samples))]
    with TorchSession.from_network(network, preprocess, output="embedding") as session:
        embeddings = run_frames(session, preprocess, frames, batch=64)["embedding"]
    return score_embeddings(embeddings, np.asarray(samples.targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept, to go on with")
    args = parser.parse_args()
    root = Path(os.environ["EDGECV_DATA"]) / "cifar10"
    train, test = open_samples(f"cifar10:{root / 'train25k.npz'}"), open_samples(f"cifar10:{root / 'test5k_a.npz'}")
    recipe = recipe_for("cifar10").changed({"epochs": args.epochs, **SETTINGS})
    halves = {"first five": range(5), "last five": range(5, 10)}
    found = {}
    for name, seen in halves.items():
        unseen = half(test, next(classes for classes in halves.values() if classes != seen))
        torch.manual_seed(0)
        network = edgecv.models.create("embedding", backbone="resnet20", dims=64)
        result = edgecv.train(
            network,
            *hold_out(half(train, seen), every=10),
            recipe.config,
            preprocess=recipe.preprocess,
            out=args.folder / name.replace(" ", "_"),
            progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}", end="", flush=True),
        )
        scores = judged(result.network, unseen)
        print(f"\ntrained on the {name}: ROC-AUC {scores.roc_auc:.4f} on the others", flush=True)
        found[name] = {
            "seconds": round(sum(record.seconds for record in result.history), 1),
            "validation_on_seen_classes": result.scores,
            "untrained": judged(network.eval(), unseen),
            "unseen_classes": scores,
        }
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    settings = encode(recipe.config)
    RESULTS.write_text(
        dumps({**conditions, "versions": library_versions("torch"), "settings": settings, "trained_on": found})
    )


if __name__ == "__main__":
    main()

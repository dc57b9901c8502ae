"""An embedding trained on the first five classes of CIFAR-10, judged on the other five, which it never saw.

    EDGECV_DATA=… python benchmarks/embedding_training.py --folder runs [--epochs 30] [--triplet-epochs 10]

Writes benchmarks/results/embedding_training.json. A classifier of the seen classes first, whose features become the
embedding; then that embedding on triplets. Trained on the images of airplane, automobile, bird, cat and deer in 25,000
JPEG copies of CIFAR-10's training images, a tenth of them held out to choose the best epoch; judged once after each
stage, on all pairs of the 2,500 images of dog, frog, horse, ship and truck among 5,000 test images. Untrained it is
judged as well; --halves exchanges the halves. One seed; a run whose folder is there goes on, or is only judged again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgecv
import edgecv.training
from edgecv.data import ArraySamples, Samples, hold_out, open_samples
from edgecv.pipelines.frames import run_frames
from edgecv.profiling.system import library_versions, load_average, machine
from edgecv.runtimes.pt import TorchSession
from edgecv.schema import dumps
from edgecv.training.recipes import recipe_for
from edgecv.verification import EmbeddingScores, score_embeddings

RESULTS = Path(__file__).parent / "results" / "embedding_training.json"
CLASSIFIER: dict[str, Any] = {
    "learning_rate": 0.2,
    "randaugment": 4,
    "label_smoothing": 0.0,
}  # smoothing harms features
TRIPLETS: dict[str, Any] = {
    "loss": "triplet", "margin": 0.3, "mining": "semihard", "batch_size": 120, "per_class": 24, "learning_rate": 0.02,
    "warmup_epochs": 0.5, "randaugment": 4,
}  # fmt: skip


HALVES = {"first five": range(5), "last five": range(5, 10)}


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


def embedding_of(classifier: torch.nn.Module) -> torch.nn.Module:
    """A network that gives the normalized features in front of a classifier's last layer."""
    network = edgecv.models.create("embedding", backbone="resnet20", dims=64)
    backbone = network.get_submodule("backbone")
    state = classifier.state_dict()
    state["linear.weight"], state["linear.bias"] = torch.eye(64), torch.zeros(64)
    backbone.load_state_dict(state)
    return network.eval()


def trained(
    network: torch.nn.Module, data: tuple[Samples, Samples], changes: dict[str, Any], folder: Path
) -> edgecv.training.TrainResult:
    """One stage, or what its folder holds."""
    recipe = recipe_for("cifar10").changed(changes)
    return edgecv.train(
        network,
        *data,
        recipe.config,
        preprocess=recipe.preprocess,
        out=folder,
        progress=lambda stage, done, total: print(f"\r{stage} {done}/{total}", end="", flush=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="of the classifier")
    parser.add_argument("--triplet-epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept, to go on with")
    parser.add_argument("--halves", nargs="+", choices=HALVES, default=["first five"], help="to train on")
    args = parser.parse_args()
    root = Path(os.environ["EDGECV_DATA"]) / "cifar10"
    train, test = open_samples(f"cifar10:{root / 'train25k.npz'}"), open_samples(f"cifar10:{root / 'test5k_a.npz'}")
    found = {}
    for name in args.halves:
        seen = HALVES[name]
        unseen = half(test, next(classes for classes in HALVES.values() if classes != seen))
        data, folder = hold_out(half(train, seen), every=10), args.folder / name.replace(" ", "_")
        torch.manual_seed(0)
        untrained = judged(edgecv.models.create("embedding", backbone="resnet20", dims=64).eval(), unseen)
        torch.manual_seed(0)
        network = edgecv.models.create("resnet20", num_classes=5)
        classifier = trained(network, data, {"epochs": args.epochs, **CLASSIFIER}, folder / "classifier")
        features = embedding_of(classifier.network)
        result = trained(features, data, {"epochs": args.triplet_epochs, **TRIPLETS}, folder / "triplets")
        found[name] = {
            "seconds": [round(sum(record.seconds for record in run.history), 1) for run in (classifier, result)],
            "validation_on_seen_classes": result.scores,
            "unseen_classes": {
                "untrained": untrained,
                "features of a classifier": judged(features, unseen),
                "trained on triplets": judged(result.network, unseen),
            },
        }
        print(f"\ntrained on the {name}: {found[name]['unseen_classes']}", flush=True)
    conditions = {"machine": machine(), "load_average": load_average(), "threads": torch.get_num_threads()}
    settings = {
        "classifier": {"epochs": args.epochs, **CLASSIFIER},
        "triplets": {"epochs": args.triplet_epochs, **TRIPLETS},
    }
    RESULTS.write_text(
        dumps({**conditions, "versions": library_versions("torch"), "settings": settings, "trained_on": found})
    )


if __name__ == "__main__":
    main()

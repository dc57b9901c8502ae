"""Every architecture: published counts, torchvision's keys, gradients, sizes, and real weights on real photos."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)

from edgecv import Preprocess, models  # noqa: E402
from edgecv.images import read_image  # noqa: E402
from edgecv.models.counting import count  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

# Parameters and MACs at 224 as torchvision's documentation and the papers' tables have them.
PUBLISHED = {
    "mobilenet_v2": (3_504_872, 300_774_272),
    "resnet18": (11_689_512, 1_814_073_344),
    "squeezenet1_1": (1_235_496, 349_151_936),
}
IMAGENET = Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _small(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create(name, num_classes=7, stem="small", **options)


@pytest.mark.parametrize("name", models.names())
class TestEveryArchitecture:
    def test_counts_are_the_published_ones(self, name: str) -> None:
        counts = count(models.create(name))
        assert (counts.parameters, counts.macs) == PUBLISHED[name]

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        network = _small(name).train()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key

    @pytest.mark.parametrize("stem", ["imagenet", "small"])
    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40)])
    def test_any_size_from_32_is_taken(self, name: str, stem: str, size: tuple[int, int]) -> None:
        network = models.create(name, num_classes=7, stem=stem).eval()
        logits = network(torch.randn(2, 3, *size))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()

    def test_eval_mode_is_deterministic_and_batches_do_not_mix(self, name: str) -> None:
        network = _small(name).eval()
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            together = network(images)
            assert torch.equal(together, network(images))
            assert torch.allclose(together[1:2], network(images[1:2]), atol=1e-5)

    def test_the_small_stem_keeps_the_keys(self, name: str) -> None:
        assert list(models.create(name).state_dict()) == list(models.create(name, stem="small").state_dict())

    def test_a_seed_gives_the_same_weights(self, name: str) -> None:
        first, second = _small(name).state_dict(), _small(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_what_it_cannot_be_built_with_is_refused(self, name: str) -> None:
        for options, telling in (
            ({"num_classes": 0}, "num_classes is a whole number from 1"),
            ({"num_classes": "10"}, "num_classes"),
            ({"stem": "smal"}, "did you mean 'small'"),
            ({"wdith": 0.5}, "unknown option 'wdith'"),
            ({"self": 1}, "unknown option 'self'"),
        ):
            with pytest.raises(InputError, match=telling):
                models.create(name, **options)


def test_unknown_names_come_with_a_guess() -> None:
    with pytest.raises(InputError, match="did you mean 'mobilenet_v2'"):
        models.create("mobilenetv2")


@pytest.mark.parametrize(("width", "parameters"), [(0.5, 1_968_680), (0.35, 1_677_472), (1.4, 6_110_000)])
def test_width_scales_mobilenet(width: float, parameters: int) -> None:
    """The published counts of other widths, in millions: 1.97, 1.66 (with TensorFlow's batch norm), 6.06-6.11."""
    assert count(models.create("mobilenet_v2", width=width)).parameters == pytest.approx(parameters, rel=0.01)
    for wrong in (0, -1, 11):
        with pytest.raises(InputError, match="width"):
            models.create("mobilenet_v2", width=wrong)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = _small("mobilenet_v2").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    count(network, (32, 32))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def _photos(data: Path, number: int) -> tuple[list[Any], list[int]]:
    with (data / "imagenet" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // number)][:number]
    files = {path.name: path for path in (data / "imagenet").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")}
    return [read_image(files[Path(row["file"]).name]) for row in rows], [int(row["index"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "file", "top1"),
    [
        ("squeezenet1_1", "squeezenet/squeezenet1_1.pth", 0.58),
        # These weights were trained with TensorFlow's padding: with ours, 78.3 % of 1000 photos were right.
        ("mobilenet_v2", "mobilenet/mobilenet_v2_1.0_224.pth", 0.70),
    ],
)
def test_published_weights_see_what_is_on_the_photos(data: Path, name: str, file: str, top1: float) -> None:
    require("opencv")
    network = models.create(name)
    network.load_state_dict(torch.load(data / "weights" / file, weights_only=True), strict=True)
    frames, targets = _photos(data, 200)
    with TorchSession.from_network(network, IMAGENET) as session:
        logits = [session.run({"image": IMAGENET.batch(frames[i : i + 20])})["logits"] for i in range(0, 200, 20)]
    right = np.concatenate(logits).argmax(1) == targets
    assert right.mean() >= top1


def test_resnet18_has_torchvisions_keys() -> None:
    """torchvision.models.resnet18's state dict, as its documentation and published file have it."""
    network = models.create("resnet18")
    keys = set(network.state_dict())
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    batch_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{part}" for part in batch_norm}
    for block in blocks:
        wanted |= {f"{block}.conv{i}.weight" for i in (1, 2)}
        wanted |= {f"{block}.bn{i}.{part}" for i in (1, 2) for part in batch_norm}
        if block.endswith(".0") and not block.startswith("layer1"):
            wanted |= {f"{block}.downsample.0.weight"} | {f"{block}.downsample.1.{part}" for part in batch_norm}
    assert keys == wanted

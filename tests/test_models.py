"""Every architecture: published counts, torchvision's keys, gradients, sizes, and real weights on real photos."""

from __future__ import annotations

import csv
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)

from edgecv import OnnxOptions, Preprocess, models, open_session  # noqa: E402
from edgecv.images import read_image  # noqa: E402
from edgecv.models.counting import count  # noqa: E402
from edgecv.models.layers import SameConv2d  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

# Parameters, and MACs at the size the architecture was published for, as torchvision's documentation and the papers'
# tables have them (there rounded). For an embedding: MobileNetV2 with a last layer of 128.
PUBLISHED = {
    "embedding": (2_387_840, 299_658_112),
    "mobilenet_v1": (4_231_976, 568_740_352),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v3_large": (5_483_032, 216_589_760),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
    "resnet110": (1_727_962, 252_887_680),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet44": (658_586, 97_174_144),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet56": (853_018, 125_485_696),
    "squeezenet1_0": (1_248_424, 818_924_576),
    "squeezenet1_1": (1_235_496, 349_151_936),
}
# With a free batch, which takes twice as long: in test_onnx_from_torch.py.
EXPORTED = ("mobilenet_v2", "resnet18", "squeezenet1_1")
IMAGENET = Preprocess(size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def _options(name: str, stem: str = "small") -> dict[str, Any]:
    """Options that make a network with 7 outputs for small images."""
    return {"dims": 7, "options": {"stem": stem}} if name == "embedding" else {"num_classes": 7, "stem": stem}


def _small(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create(name, **_options(name))


def _frames(count: int) -> NDArray[np.uint8]:
    """Squares of 8 pixels in random colours."""
    squares = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return squares.repeat(8, axis=1).repeat(8, axis=2)


def _images(frames: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def _settled(name: str) -> torch.nn.Module:
    """A network whose batch norms have seen images: fresh ones give all images the same answer, or nearly."""
    network = _small(name).requires_grad_(False).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network(_images(_frames(8)))
    return network.eval()


@pytest.mark.parametrize("name", models.names())
class TestEveryArchitecture:
    def test_counts_are_the_published_ones(self, name: str) -> None:
        counts = count(models.create(name), models.native_size(name))
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
        network = models.create(name, **_options(name, stem)).eval()
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
        large = models.create(name, **_options(name, "imagenet"))
        assert list(large.state_dict()) == list(_small(name).state_dict())

    def test_a_seed_gives_the_same_weights(self, name: str) -> None:
        first, second = _small(name).state_dict(), _small(name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_what_it_cannot_be_built_with_is_refused(self, name: str) -> None:
        for options, telling in (
            ({"num_classes": 0}, "num_classes is a whole number from 1|unknown option"),
            ({"num_classes": "10"}, "num_classes"),
            ({"stem": "smal"}, "did you mean 'small'|unknown option"),
            ({"wdith": 0.5}, "unknown option 'wdith'"),
            ({"self": 1}, "unknown option 'self'"),
        ):
            with pytest.raises(InputError, match=telling):
                models.Recipe(name, options).build()


@pytest.fixture
def no_collection() -> Iterator[None]:
    """An export makes millions of objects, which the garbage collector would walk again and again."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", [name for name in models.names() if name not in EXPORTED])
def test_the_exported_graph_answers_as_the_network(name: str, tmp_path: Path) -> None:
    for library in ("onnx", "onnxruntime"):
        require(library)
    from edgecv.converters.onnx_from_torch import onnx_from_torch

    network = _settled(name)
    frames = _frames(2)
    path = onnx_from_torch(network, tmp_path / "a.onnx", Preprocess((32, 32)), options=OnnxOptions(batch=2))
    with open_session(path, backend="onnxruntime", threads=1) as session, torch.no_grad():
        (got,) = session.run({"image": frames}).values()
        wanted = network(_images(frames)).numpy()
    assert wanted.std(axis=0).max() > 1e-3
    assert np.abs(got - wanted).max() <= 1e-4


def test_unknown_names_come_with_a_guess() -> None:
    with pytest.raises(InputError, match="did you mean 'mobilenet_v2'"):
        models.create("mobilenetv2")


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [
        ("mobilenet_v1", 0.5, 1.34),
        ("mobilenet_v1", 0.25, 0.47),
        ("mobilenet_v2", 0.5, 1.97),
        ("mobilenet_v2", 1.4, 6.11),
    ],
)
def test_widths_scale_as_published(name: str, width: float, millions: float) -> None:
    """Table 7 of the paper of V1; torchvision's and the authors' counts for V2."""
    counted = count(models.create(name, width=width), (32, 32)).parameters
    assert counted == pytest.approx(millions * 1e6, rel=0.02)
    for wrong in (0, -1, 11, "0.5"):
        with pytest.raises(InputError, match="width"):
            models.create(name, width=wrong)


@pytest.mark.parametrize("size", [31, 32, 224])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 2)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """``ceil(size / stride)`` out, and the odd pixel of padding at the end: TensorFlow's definition, written out."""
    torch.manual_seed(0)
    layer = SameConv2d(2, 3, kernel, stride, kernel // 2, bias=False)
    image = torch.randn(1, 2, size, size)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    padded = torch.zeros(1, 2, size + total, size + total)
    padded[:, :, total // 2 : total // 2 + size, total // 2 : total // 2 + size] = image
    assert torch.equal(layer(image), torch.nn.functional.conv2d(padded, layer.weight, stride=stride))
    assert layer(image).shape[2:] == (out, out)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_padding_changes_the_answers_but_not_the_keys(name: str) -> None:
    ours, theirs = (models.create(name, num_classes=3, padding=p).eval() for p in ("symmetric", "same_tf"))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 64)
    difference = (ours(image) - theirs(image)).abs().max()
    assert difference > 0.01 * ours(image).abs().max()  # fresh weights in eval mode give tiny numbers
    with pytest.raises(InputError, match="did you mean 'same_tf'"):
        models.create(name, padding="same")


@pytest.mark.parametrize(("name", "parameters"), [("mobilenet_v3_large", 3_377_576), ("mobilenet_v3_small", 1_653_920)])
def test_the_width_of_mobilenet_v3_is_torchvisions(name: str, parameters: int) -> None:
    """torchvision multiplies the classifier's hidden layer too; the authors' code keeps it."""
    assert count(models.create(name, width=0.75), (32, 32)).parameters == parameters


def test_embeddings_have_length_one_whatever_the_backbone() -> None:
    for backbone in ("squeezenet1_1", "resnet20", "mobilenet_v3_small"):
        network = models.create("embedding", backbone=backbone, dims=5, options={"stem": "small"}).eval()
        vectors = network(torch.randn(4, 3, 32, 32))
        assert vectors.shape == (4, 5)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    for options in ({"dims": 1}, {"backbone": "nothing"}, {"options": {"width": -1}}):
        with pytest.raises(InputError):
            models.Recipe("embedding", options).build()


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
    ("name", "file", "options", "top1"),
    [
        ("squeezenet1_1", "squeezenet/squeezenet1_1.pth", {}, 0.58),
        ("mobilenet_v2", "mobilenet/mobilenet_v2_1.0_224.pth", {"padding": "same_tf"}, 0.85),
    ],
)
def test_published_weights_see_what_is_on_the_photos(
    data: Path, name: str, file: str, options: dict[str, Any], top1: float
) -> None:
    require("opencv")
    network = models.create(name, weights=data / "weights" / file, **options)
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

"""timm's and torchvision's networks by name: built, saved, trained, converted; and ours against theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecv.errors import BackendUnavailable, EdgeCVError, InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, models  # noqa: E402
from edgecv.models.weights import PUBLISHED  # noqa: E402

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL = (
    "timm:mobilenetv4_conv_small",
    "timm:efficientnet_lite0",
    "timm:mobileone_s0",
    "timm:vit_tiny_patch16_224",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:googlenet",
    "torchvision:mnasnet0_5",
)
TWINS = (
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "squeezenet1_0",
    "squeezenet1_1",
)


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    """Small networks of both libraries, where they are installed."""
    found: str = request.param
    request.getfixturevalue(found.partition(":")[0])
    return found


def _seeded(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, **options)


def _images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _refused(name: str, error: type[EdgeCVError] = InputError, **options: Any) -> str:
    """The one-line message that ``create`` ends with."""
    with pytest.raises(error) as caught:
        models.create(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestEveryNetwork:
    def test_a_checkpoint_brings_it_back(self, name: str, tmp_path: Path) -> None:
        network = _seeded(name, num_classes=5).eval()
        assert models.recipe_of(network) == models.Recipe(name, {"num_classes": 5})
        edgecv.save_checkpoint(network, tmp_path / "a.safetensors")
        back = edgecv.load_checkpoint(tmp_path / "a.safetensors")
        assert models.recipe_of(back) == models.recipe_of(network)
        assert models.preprocess_of(back) == models.preprocess_of(network)
        images = _images(2, 224)
        with torch.no_grad():
            logits = network(images)
            assert logits.shape == (2, 5)
            assert torch.equal(back(images), logits)

    def test_a_training_step_gives_finite_gradients(self, name: str) -> None:
        network = _seeded(name, num_classes=5).train()
        loss = nn.functional.cross_entropy(network(_images(2, 224)), torch.tensor([0, 3]))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        assert loss.isfinite()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())

    def test_weights_of_other_classes_leave_the_last_layer_fresh(self, name: str, tmp_path: Path) -> None:
        state = _seeded(name, num_classes=7).state_dict()
        torch.save(state, tmp_path / "a.pth")
        found = models.create(name, num_classes=5, weights=tmp_path / "a.pth").state_dict()
        other = [key for key in found if found[key].shape != state[key].shape]
        assert len(other) == 2
        assert all(torch.equal(found[key], state[key]) for key in found.keys() - set(other))

    def test_options_that_do_not_exist_are_refused(self, name: str) -> None:
        for options in ({"wdith": 2}, {"num_classes": "5"}, {"num_classes": 2.5}, {"pretrained": True}):
            assert f"{name} cannot be built with {options}" in _refused(name, **options)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("timm:mobilenetv4_conv_small", Preprocess((224, 224), 256, interpolation="bicubic", **IMAGENET)),
        ("timm:efficientnet_lite0", Preprocess((224, 224), 256, interpolation="bicubic", **IMAGENET)),
        ("timm:mobileone_s0", Preprocess((224, 224), 256, interpolation="bilinear", **IMAGENET)),
        ("timm:vit_tiny_patch16_224", Preprocess((224, 224), 248, interpolation="bicubic", **HALVES)),
        ("torchvision:shufflenet_v2_x0_5", Preprocess((224, 224), 256, interpolation="bilinear", **IMAGENET)),
        ("torchvision:googlenet", Preprocess((224, 224), 256, interpolation="bilinear", **IMAGENET)),
        ("torchvision:efficientnet_b0", Preprocess((224, 224), 256, interpolation="bicubic", **IMAGENET)),
    ],
)
def test_the_preprocessing_is_the_librarys(name: str, wanted: Preprocess, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(name.partition(":")[0])
    assert models.preprocess_of(models.create(name, num_classes=2)) == wanted


class TestTimm:
    def test_the_preprocessing_is_its_evaluation_transform(self, timm: Any) -> None:
        """Every small network that says how its images are cropped, against the transform that timm itself builds."""
        for name in ("mobilenetv3_small_050", "tinynet_e", "lcnet_050", "test_vit", "test_resnet", "test_convnext"):
            network = models.create(f"timm:{name}", num_classes=2)
            transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
            steps = {type(step).__name__: step for step in transform.transforms}
            found = models.preprocess_of(network)
            assert found is not None
            assert found.resize == max(steps["Resize"].size, *found.size)
            assert found.size == tuple(steps["CenterCrop"].size)
            assert found.interpolation == steps["Resize"].interpolation.value
            assert np.allclose(found.mean, steps["Normalize"].mean)
            assert np.allclose(found.std, steps["Normalize"].std)

    def test_an_image_size_of_ones_own_is_in_the_preprocessing(self, timm: Any) -> None:
        for chosen, wanted in ((96, (96, 96)), ((96, 128), (96, 128)), (224, (224, 224))):
            network = models.create("timm:vit_tiny_patch16_224", num_classes=2, img_size=chosen).eval()
            found = models.preprocess_of(network)
            assert found is not None
            assert found.size == wanted
            assert network(torch.zeros(1, 3, *found.size)).shape == (1, 2)

    def test_unknown_names_give_a_guess(self, timm: Any) -> None:
        message = _refused("timm:mobilenetv4_conv_smal")
        assert "did you mean 'mobilenetv4_conv_small'?" in message
        for name in ("timm:", "timm:no such network", "timm:hf-hub:timm/resnet18"):
            message = _refused(name)
            assert "unknown timm model" in message
            assert len(message) < 300  # timm has more than a thousand names

    @pytest.mark.parametrize(
        "options",
        [
            {"act_layer": "nothing"},
            {"norm_layer": "nothing"},
            {"output_stride": 3},
            {"in_chans": "x"},
            {"pretrained_cfg": "nothing"},
        ],
    )
    def test_bad_values_are_one_line(self, timm: Any, options: dict[str, Any]) -> None:
        assert f"timm:resnet18 cannot be built with {options}" in _refused("timm:resnet18", **options)

    def test_no_file_is_named_by_an_option(self, timm: Any, tmp_path: Path) -> None:
        """Recipes come from files: one must not make timm read another."""
        torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "a.pth")
        message = _refused("timm:test_resnet", num_classes=2, checkpoint_path=str(tmp_path / "a.pth"))
        assert "pass the file as weights" in message

    def test_published_weights_go_through_timm(self, timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        theirs = timm.create_model("test_resnet")
        create = timm.create_model
        monkeypatch.delenv("EDGECV_OFFLINE", raising=False)
        monkeypatch.setattr(
            timm,
            "create_model",
            lambda *names, **options: theirs if options["pretrained"] else create(*names, **options),
        )
        ours = models.create("timm:test_resnet", weights="imagenet").eval()
        with torch.no_grad():
            assert torch.equal(ours(_images(2, 160)), theirs.eval()(_images(2, 160)))

    def test_published_weights_that_cannot_be_had(self, timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EDGECV_OFFLINE", "1")
        assert "EDGECV_OFFLINE" in _refused("timm:test_resnet", BackendUnavailable, weights="imagenet")
        without = next(name for name in timm.list_models("lcnet*") if not timm.is_model_pretrained(name))
        assert "has no published weights" in _refused(f"timm:{without}", weights="imagenet")

    def test_our_mobilenet_v1_is_its_mobilenetv1_100(self, timm: Any) -> None:
        theirs = timm.create_model("mobilenetv1_100", num_classes=9)
        _same_answers(models.create("mobilenet_v1", num_classes=9), theirs, by_key=False)


class TestTorchvision:
    def test_unknown_names_give_a_guess(self, torchvision: Any) -> None:
        assert "did you mean 'shufflenet_v2_x0_5'?" in _refused("torchvision:shufflenet_v2_x05")
        for name in ("torchvision:fcn_resnet50", "torchvision:", "torchvision:quantized_resnet18"):
            assert "unknown torchvision model" in _refused(name)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("shufflenet_v2_x0_5", {"num_classes": -1}),
            ("mobilenet_v2", {"width_mult": "a"}),
            ("mobilenet_v2", {"norm_layer": "nothing"}),
            ("mobilenet_v2", {"dropout": 7}),
            ("vit_b_32", {"image_size": 225}),
        ],
    )
    def test_bad_values_are_one_line(self, torchvision: Any, name: str, options: dict[str, Any]) -> None:
        assert f"torchvision:{name} cannot be built with" in _refused(f"torchvision:{name}", **options)

    def test_an_image_size_of_ones_own_is_in_the_preprocessing(self, torchvision: Any) -> None:
        network = models.create("torchvision:vit_b_32", num_classes=2, image_size=96).eval()
        found = models.preprocess_of(network)
        assert found is not None
        assert (found.size, found.resize) == ((96, 96), 109)
        assert network(torch.zeros(1, 3, *found.size)).shape == (1, 2)

    @pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5", "shufflenet_v2_x0_5"])
    def test_published_weights_answer_as_in_torchvision(
        self, torchvision: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file as torchvision publishes it (helpers and old names included), in place of the download."""
        theirs = _published(torchvision, name, tmp_path / "published.pth")
        asked: list[str] = []

        def fetch(url: str, sha256: str, **_options: Any) -> Path:
            asked.append(url)
            assert url.endswith(f"-{sha256}.pth")
            return tmp_path / "published.pth"

        monkeypatch.setattr("edgecv.models.from_torchvision.fetch", fetch)
        ours = models.create(f"torchvision:{name}", weights="imagenet").eval()
        with torch.no_grad():
            assert torch.equal(ours(_images(2, 96)), theirs(_images(2, 96)))
        assert asked == [torchvision.models.get_model_weights(name).DEFAULT.url]
        fewer = models.create(f"torchvision:{name}", weights="imagenet", num_classes=3)
        assert fewer.eval()(_images(1, 96)).shape == (1, 3)

    @pytest.mark.parametrize("name", TWINS)
    def test_ours_are_its_own(self, torchvision: Any, name: str) -> None:
        theirs = torchvision.models.get_model(name, weights=None, num_classes=9)
        _same_answers(models.create(name, num_classes=9), theirs, by_key=True)

    def test_the_table_of_published_weights_is_its_own(self, torchvision: Any) -> None:
        assert set(PUBLISHED) == set(TWINS)
        for name, found in PUBLISHED.items():
            theirs = torchvision.models.get_model_weights(name).DEFAULT
            figures = theirs.meta["_metrics"]["ImageNet-1K"]
            assert found.url == theirs.url
            assert (found.top1, found.top5) == (figures["acc@1"], figures["acc@5"])
            by_name = models.create(f"torchvision:{name}", num_classes=2)
            assert models.preprocess_of(by_name) == found.preprocess


def _published(torchvision: Any, name: str, path: Path) -> nn.Module:
    """Write random weights as torchvision publishes those of ``name``; return its own network with them loaded."""
    torch.manual_seed(3)
    helpers = {"aux_logits": True, "init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **helpers)
    _randomize(network)
    state = network.state_dict()
    if name == "densenet121":  # published when names of modules could hold dots
        for key in list(state):
            old = key
            for part in ("norm", "conv"):
                for number in (1, 2):
                    old = old.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in key else old
            state[old] = state.pop(key)
        assert any(".norm.1." in key for key in state)
    torch.save(state, path)
    return network.eval()


def _randomize(network: nn.Module) -> None:
    """Weights and statistics that leave nothing at its neutral value, of a size that keeps answers large."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)


def _same_answers(ours: nn.Module, theirs: nn.Module, *, by_key: bool) -> None:
    """The same weights give the same answers; and under the same keys, where the keys are theirs."""
    torch.manual_seed(4)
    _randomize(theirs)
    state = theirs.state_dict()
    if by_key:
        assert list(ours.state_dict()) == list(state)
        ours.load_state_dict(state, strict=True)
    else:
        ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)), strict=True)
    images = _images(2, 160)
    with torch.no_grad():
        wanted, got = theirs.eval()(images), ours.eval()(images)
    assert wanted.std() > 1e-3
    assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()


def _frames(count: int) -> list[NDArray[np.uint8]]:
    """Frames of several sizes with soft gradients, edges and a little noise, as photos have them."""
    chance = np.random.default_rng(0)
    frames = []
    for index in range(count):
        height, width = 240 + 20 * index, 320 - 10 * index
        rows, columns = np.mgrid[0:height, 0:width] / 50.0
        waves = [np.sin(rows * a + columns * b) for a, b in chance.uniform(-1, 1, (3, 2))]
        frame = 128 + 70 * np.stack(waves, axis=-1) + chance.normal(0, 6, (height, width, 3))
        frame[height // 4 : height // 2, width // 3 : width // 2] = chance.uniform(0, 255, 3)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize("name", ["timm:mobilenetv4_conv_small", "torchvision:shufflenet_v2_x0_5"])
def test_it_converts_to_both_backends(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(name.partition(":")[0])
    for library in ("onnx", "onnxruntime", "openvino"):
        require(library)
    network = _seeded(name, num_classes=5)
    _randomize(network)
    preprocess = models.preprocess_of(network)
    assert preprocess is not None
    frames = _frames(6)
    with torch.no_grad():
        logits = models.Framed(network.eval(), preprocess)(torch.from_numpy(preprocess.batch(frames)))
    assert logits.std(dim=0).max() > 0.01 * logits.std()  # else every frame would get the same answer
    bundle = edgecv.convert(network, tmp_path / "bundle", preprocess=preprocess, samples=frames)
    assert bundle.manifest.source.recipe == {"architecture": name, "options": {"num_classes": 5}, "steps": []}
    assert set(bundle.manifest.variants) == {"onnx-fp32", "openvino-fp32"}
    for variant in bundle.manifest.variants.values():
        assert variant.parity is not None
        assert variant.parity.samples == 6
        assert variant.parity.cosine > 0.99999
        assert variant.parity.top1_agreement == 1

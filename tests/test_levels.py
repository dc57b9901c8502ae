"""Networks that read levels of pixels: the same answers, the bytes of frames as they are, and no float in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import Preprocess, QuantizeConfig, models  # noqa: E402
from edgecv.compression.capture import capture  # noqa: E402
from edgecv.compression.levels import NAME, read_levels  # noqa: E402
from edgecv.compression.placement import activation_quantizers  # noqa: E402
from edgecv.compression.quantization import rebuild  # noqa: E402
from edgecv.converters.onnx_from_torch import onnx_from_torch  # noqa: E402
from edgecv.converters.qdq_cpu import cpu_layout  # noqa: E402
from edgecv.converters.qdq_layouts import to_tensorrt_layout  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

PREPROCESS = Preprocess(size=(12, 12), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
QUICK = QuantizeConfig(rounding="nearest")


class Small(nn.Module):
    """A convolution of frames, with or without padding and bias, and a classifier."""

    def __init__(self, padding: int = 0, bias: bool = True, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=padding, bias=bias)
        self.last = nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> Any:
        return self.last(torch.relu(self.first(self.before(images))).mean((2, 3)))


def _frames(count: int = 8, seed: int = 0) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 12, 12, 3)).astype(np.uint8))


def _small(**options: Any) -> Small:
    torch.manual_seed(0)
    return Small(**options).eval()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_without_padding_answers_stay_the_same(bias: bool) -> None:
    network, images = _small(bias=bias), torch.randn(2, 3, 12, 12)
    graph = capture(network, [[3, 12, 12]])
    assert read_levels(graph, PREPROCESS)
    assert torch.allclose(graph(images), network(images), atol=1e-5)


@torch.no_grad()
def test_with_padding_they_stay_nearly_the_same() -> None:
    network, images = _small(padding=1), torch.randn(4, 3, 12, 12)
    graph = capture(network, [[3, 12, 12]])
    assert read_levels(graph, PREPROCESS)
    wanted, got = network(images), graph(images)
    assert 0 < float((wanted - got).abs().max()) < 0.1 * float(wanted.std())


@pytest.mark.parametrize(
    ("network", "preprocess"),
    [
        (_small(before=nn.ReLU()), PREPROCESS),
        (_small(padding=1), Preprocess(size=(12, 12), mean=(0.1, 0.5, 0.9), std=(0.2, 0.2, 0.2))),
        (nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), PREPROCESS),
    ],
    ids=["something in between", "surroundings far off", "no convolution"],
)
def test_other_networks_are_left_alone(network: nn.Module, preprocess: Preprocess) -> None:
    graph = capture(network, [[3, 12, 12]])
    assert not read_levels(graph, preprocess)
    assert NAME not in [node.name for node in graph.graph.nodes]


def _files(network: nn.Module, preprocess: Preprocess, folder: Path) -> tuple[nn.Module, onnx.ModelProto]:
    quantized = edgecv.quantize(network, _frames(), QUICK, preprocess=preprocess)
    return quantized, onnx.load(str(onnx_from_torch(quantized, folder / "int8.onnx", preprocess)))


def _answers(model: onnx.ModelProto, folder: Path, **options: Any) -> Any:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    with OrtSession(path, **options) as session:
        return session.run({"image": np.stack(_frames(seed=1))})[session.outputs[0].name]


def test_a_quantized_network_reads_the_bytes_of_frames(tmp_path: Path) -> None:
    quantized, model = _files(_small(padding=1), PREPROCESS, tmp_path)
    laid_out = cpu_layout(model)
    kinds = [node.op_type for node in laid_out.graph.node]
    assert kinds[:2] == ["Transpose", "DequantizeLinear"]
    assert not {"Cast", "Mul"}.intersection(kinds)
    wanted = _answers(model, tmp_path, optimized=False)
    assert np.allclose(_answers(laid_out, tmp_path, optimized=False), wanted, atol=1e-4)  # biases become int32
    with TorchSession.from_network(quantized, PREPROCESS) as session:
        fake = session.run({"image": np.stack(_frames(seed=1))})["logits"]
    assert np.abs(wanted - fake).max() < 1e-4


def test_every_byte_is_one_level(tmp_path: Path) -> None:
    quantized, _ = _files(_small(), PREPROCESS, tmp_path)
    quantizer = activation_quantizers(quantized)[NAME]
    scale, zero_point = quantizer.affine()
    assert (scale, zero_point) == (1.0, 114)
    assert not quantizer.gain.requires_grad


def test_the_other_layout_has_signed_integers(tmp_path: Path) -> None:
    _, model = _files(_small(), PREPROCESS, tmp_path)
    laid_out = to_tensorrt_layout(model)
    assert "QuantizeLinear" in [node.op_type for node in laid_out.graph.node][:8]
    wanted, got = (_answers(item, tmp_path, optimized=False) for item in (model, laid_out))
    assert np.abs(wanted - got).max() < 0.1 * wanted.std()


def test_blue_first_is_normalized_in_float_and_right(tmp_path: Path) -> None:
    preprocess = Preprocess(size=(12, 12), mean=PREPROCESS.mean, std=PREPROCESS.std, color="bgr")
    quantized, model = _files(_small(), preprocess, tmp_path)
    with TorchSession.from_network(quantized, preprocess) as session:
        fake = session.run({"image": np.stack(_frames(seed=1))})["logits"]
    assert np.abs(_answers(cpu_layout(model), tmp_path, optimized=False) - fake).max() < 1e-4


def test_another_normalization_than_that_of_calibration_is_not_mistaken_for_it(tmp_path: Path) -> None:
    quantized, _ = _files(_small(), PREPROCESS, tmp_path)
    other = Preprocess(size=(12, 12), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model = onnx.load(str(onnx_from_torch(quantized, tmp_path / "other.onnx", other)))
    wanted, laid_out = _answers(model, tmp_path, optimized=False), cpu_layout(model)
    assert "Cast" in [node.op_type for node in laid_out.graph.node]
    assert np.allclose(_answers(laid_out, tmp_path, optimized=False), wanted, atol=1e-4)  # biases become int32


def test_the_recipe_rebuilds_it_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.create("squeezenet1_1", num_classes=4, stem="small").eval()
    quantized = edgecv.quantize(network, _frames(4), QUICK, preprocess=PREPROCESS)
    edgecv.save_checkpoint(quantized, tmp_path / "net.safetensors")
    loaded = edgecv.load_checkpoint(tmp_path / "net.safetensors")
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(loaded(images), quantized(images))
    assert not activation_quantizers(loaded)[NAME].gain.requires_grad


def test_a_recipe_that_does_not_fit_is_refused() -> None:
    frames = {"mean": [0.5] * 3, "std": [0.5] * 3, "color": "rgb"}
    step = {"shapes": [[3, 12, 12]], "bits": {"first": 8}, "frames": frames}
    with pytest.raises(InputError, match="does not begin with a convolution of frames"):
        rebuild(_small(before=nn.ReLU()), step)
    with pytest.raises(InputError, match="quantize step, frames"):
        rebuild(_small(), {**step, "frames": {**frames, "colour": "rgb"}})


@settings(max_examples=40, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0.3, 0.6)] * 3),
    std=st.tuples(*[st.floats(0.05, 1.0)] * 3),
    color=st.sampled_from(["rgb", "bgr"]),
)
def test_whatever_the_normalization_no_byte_is_rounded(mean: Any, std: Any, color: Any) -> None:
    preprocess = Preprocess(size=(12, 12), mean=mean, std=std, color=color)
    graph = capture(_small(), [[3, 12, 12]])
    assert read_levels(graph, preprocess)
    bytes_ = torch.arange(256).view(1, 1, 16, 16, 1).expand(1, 1, 16, 16, 3)[0].to(torch.uint8)
    normal = edgecv.models.framed.Framed(nn.Identity(), preprocess).normalize(bytes_)
    levels = normal * graph.get_buffer("frame_levels.scale") + graph.get_buffer("frame_levels.shift")
    steps = levels - levels[..., :1, :1] - torch.arange(256).view(1, 1, 16, 16)
    assert float((levels - levels.round()).abs().max()) < 0.01
    assert float(steps.abs().max()) < 0.01

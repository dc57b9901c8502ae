"""Network to ONNX: normalization inside, any batch, the same bytes, nothing of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import ConversionError, InputError
from tests.conftest import require

for _library in ("torch", "onnx", "onnxruntime"):
    require(_library)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from torch import nn  # noqa: E402

import edgecv  # noqa: E402
from edgecv import OnnxOptions, Preprocess, models  # noqa: E402
from edgecv.converters.onnx_from_torch import OPSETS, metadata_for, onnx_from_torch  # noqa: E402
from edgecv.models.reparameterize import reparameterize  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)


class Means(nn.Module):
    """Means of the channels: the answer shows each channel's normalization and place."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


def _export(tmp_path: Path, network: nn.Module | None = None, **settings: Any) -> Path:
    preprocess = settings.pop("preprocess", Preprocess(size=(6, 8)))
    return onnx_from_torch(network or Means(), tmp_path / "model.onnx", preprocess, **settings)


def _answer(path: Path, frames: Any = FRAMES) -> Any:
    with edgecv.open_session(path, backend="onnxruntime", threads=1) as session:
        return session.run({"image": frames})[session.outputs[0].name]


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_normalization_is_that_of_the_definition(tmp_path: Path, color: Any) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    path = _export(tmp_path, preprocess=Preprocess(size=(6, 8), mean=mean, std=std, color=color))
    pixels = FRAMES.astype(np.float64) / 255
    wanted = ((pixels - mean) / std).mean((1, 2))
    if color == "bgr":  # mean and std are in the order of RGB; the network sees blue first
        wanted = wanted[:, ::-1]
    assert np.abs(_answer(path) - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        *((name, OPSETS[0]) for name in ("mobilenet_v2", "resnet18", "squeezenet1_1")),
        *(("squeezenet1_1", o) for o in OPSETS[1:]),
    ],
)
def test_architectures_export(tmp_path: Path, name: str, opset: int) -> None:
    torch.manual_seed(0)
    network = models.create(name, num_classes=4, stem="small").eval()
    pre = Preprocess(size=(32, 32))
    path = onnx_from_torch(network, tmp_path / "m.onnx", pre, options=OnnxOptions(opset=opset))
    model = onnx.load(str(path))
    assert [item.version for item in model.opset_import if item.domain == ""] == [opset]
    assert model.ir_version <= 10
    assert not model.functions
    kinds = {node.op_type for node in model.graph.node}
    assert "Conv" in kinds
    assert not kinds & {"BatchNormalization", "Dropout", "Identity", "Constant", "Shape"}  # folded or left out
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        wanted = network(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255).numpy()
    for count in (1, 2, 3):
        assert np.abs(_answer(path, frames[:count]) - wanted[:count]).max() < 1e-4


def test_the_batch_is_free_unless_it_is_fixed(tmp_path: Path) -> None:
    free = onnx.load(str(_export(tmp_path))).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in free] == ["batch", 6, 8, 3]
    for batch in (1, 4):
        path = _export(tmp_path, options=OnnxOptions(batch=batch))
        assert onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch
        assert _answer(path, FRAMES[:batch]).shape == (batch, 3)
        with pytest.raises(InputError, match=rf"uint8\[{batch}, 6, 8, 3\]"):
            _answer(path, FRAMES)


def test_names_metadata_and_shapes_are_written(tmp_path: Path) -> None:
    metadata = metadata_for("digits", "classification", Preprocess(size=(6, 8)), ("cat", "big dog"))
    model = onnx.load(str(_export(tmp_path, output="scores", metadata=metadata)))
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["scores"]
    written = {item.key: item.value for item in model.metadata_props}
    assert written["edgecv_version"] == edgecv.__version__
    assert (written["task"], written["names"], written["imgsz"]) == (
        "classify",
        '{"0": "cat", "1": "big dog"}',
        "[6, 8]",
    )
    assert (written["model_type"], written["labels"]) == ("Classification", "cat big_dog")
    inferred = {value.name for value in model.graph.value_info}
    inner = {name for node in model.graph.node for name in node.output} - {"scores"}
    assert inner <= inferred


def test_training_mode_does_not_change_the_graph(tmp_path: Path) -> None:
    network = models.create("squeezenet1_1", num_classes=4, stem="small")
    pre = Preprocess(size=(32, 32))
    files = [
        onnx_from_torch(net, tmp_path / f"{i}.onnx", pre).read_bytes()
        for i, net in enumerate([network.train(), network.eval()])
    ]
    assert files[0] == files[1]
    assert network.train().training


REPEAT = """
import sys, torch
from pathlib import Path
from edgecv import Preprocess, models
from edgecv.converters.onnx_from_torch import onnx_from_torch
torch.manual_seed(0)
network = models.create("squeezenet1_1", num_classes=4)
onnx_from_torch(network, Path(sys.argv[1]), Preprocess(size=(32, 32)))
"""


def test_another_process_in_another_folder_writes_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for index in range(2):
        folder = tmp_path / f"folder{index}"
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": str(index)}
        command = [sys.executable, "-c", REPEAT, "model.onnx"]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        files.append((folder / "model.onnx").read_bytes())
    assert files[0] == files[1]
    for trace in (b"site-packages", b".py", str(tmp_path).encode(), b"/home", b"/root"):
        assert trace not in files[0]


class _Named(nn.Module):
    def forward(self, image: torch.Tensor) -> Any:
        return {"a": image.mean((2, 3)), "b": image.sum((2, 3))}


class _Branching(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))


class _Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(image).mean((2, 3))
        return out


@pytest.mark.parametrize(
    ("network", "telling"),
    [
        (_Named(), "must give one tensor"),
        (_Branching(), "torch cannot export _Branching to ONNX"),
        (_Wrong(), "torch cannot export _Wrong to ONNX"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, network: nn.Module, telling: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConversionError, match=telling) as raised:
        _export(tmp_path, network)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options", [{"opset": 17}, {"opset": 21}, {"batch": 0}, {"batch": 1.5}, {"reparameterize": "no"}]
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        OnnxOptions(**options)


class _Branches(nn.Module):
    """The sum of a 3x3 convolution, a 1x1 convolution and the image itself (RepVGG, arXiv:2101.03697)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.wide(image) + self.narrow(image) + image if self.narrow else self.wide(image)
        return out

    def fold(self) -> nn.Conv2d:
        self.wide.weight += nn.functional.pad(self.narrow.weight + torch.eye(3)[:, :, None, None], (1, 1, 1, 1))
        self.narrow = None  # type: ignore[assignment]  # without branches from now on
        return self.wide


class _Changed(_Branches):
    def reparameterize(self) -> None:
        self.fold()


class _Deployed(_Branches):
    def switch_to_deploy(self, verbose: bool = False) -> None:
        self.fold()


class _Replaced(_Branches):
    def fuse(self) -> nn.Module:
        return self.fold()


class _Namesakes(_Branches):
    """What has such names and folds nothing: a layer, and the sampling of a variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(3, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fuse(super().forward(image))
        return out

    def reparameterize(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        return mean + variance


class _Failing(_Branches):
    def reparameterize(self) -> None:
        raise ValueError("no\nbatch norm")


def _convolutions(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in network.modules())


@pytest.mark.parametrize("kind", [_Changed, _Deployed, _Replaced, _Namesakes])
def test_branches_are_folded_where_a_module_offers_it(kind: type[_Branches]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(kind(), nn.ReLU()), kind()).eval()
    image = torch.rand(2, 3, 6, 8)
    wanted = network(image)
    reparameterize(network)
    assert _convolutions(network) == (6 if kind is _Namesakes else 2)
    assert (network(image) - wanted).abs().max() <= 1e-5
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("folded", [True, False])
def test_an_exported_graph_has_no_branches_unless_they_are_wanted(tmp_path: Path, folded: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(_Replaced(), nn.ReLU(), _Changed(), nn.Flatten())
    path = _export(tmp_path, network, options=OnnxOptions(reparameterize=folded))
    nodes = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert nodes.count("Conv") == (2 if folded else 4)
    assert _convolutions(network) == 4
    with torch.no_grad():
        wanted = network(torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float() / 255).numpy()
    assert np.abs(_answer(path) - wanted).max() <= 1e-4


@pytest.mark.parametrize("network", [_Failing(), nn.Sequential(_Failing())])
def test_a_module_that_fails_to_fold_is_refused(tmp_path: Path, network: nn.Module) -> None:
    telling = r"cannot be folded .* _Failing\.reparameterize\(\) failed: no batch norm; .*reparameterize=False"
    with pytest.raises(ConversionError, match=telling) as raised:
        _export(tmp_path, network)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_adaptive_pooling_is_one_node(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = onnx.load(str(onnx_from_torch(network, tmp_path / "pooled.onnx", Preprocess(size=(32, 32))))).graph
    assert [node.op_type for node in graph.node] == ["Cast", "Transpose", "Conv", "GlobalAveragePool", "Reshape"]

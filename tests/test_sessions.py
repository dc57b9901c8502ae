"""Every backend passes the contract; what is particular to one stands below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecv.errors import InputError
from edgecv.runtimes.session import Session, SessionOptions
from edgecv.tensors import TensorSpec
from edgecv.testing import GRID, TINY_MODELS, SessionContract, TinyModel
from tests.conftest import require


class TestOnnxRuntime(SessionContract):
    backend = "onnxruntime"

    def open_model(self, model: TinyModel, folder: Path) -> Session:
        require("onnx")
        require(self.backend)
        return super().open_model(model, folder)


class TestOpenVino(TestOnnxRuntime):
    backend = "openvino"


class TestTorch(SessionContract):
    backend = "torch"

    def open_model(self, model: TinyModel, folder: Path) -> Session:
        require("torch")
        from edgecv.runtimes.pt import TorchSession

        feed = model.inputs(1)
        inputs = [TensorSpec(name, str(v.dtype), (None, *v.shape[1:])) for name, v in feed.items()]
        outputs = [TensorSpec(n, str(v.dtype), (None, *v.shape[1:])) for n, v in model.expected(feed).items()]
        return TorchSession(_twin(model.name), inputs, outputs, SessionOptions(threads=1))


def _twin(name: str) -> Any:
    """The tiny model ``name`` as a torch module."""
    import torch
    from torch.nn import functional

    functions: dict[str, Any] = {
        "identity": lambda x: x,
        "conv_relu": lambda x: torch.relu(functional.conv2d(x, torch.from_numpy(GRID))),
        "two_inputs": lambda a, b: a * b,
        "two_outputs": lambda x: (-x, x.abs()),
        "image": lambda image: image.float().mean((1, 2)),
        "qdq": lambda x: ((x / 0.0625).round() + 128).clamp(0, 255).sub(128) * 0.0625,
    }

    class Twin(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return functions[name](*tensors)

    return Twin()


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", 5000])
def test_a_thread_count_that_cannot_be_is_refused(threads: Any) -> None:
    with pytest.raises(InputError, match="threads"):
        SessionOptions(threads=threads)


def test_a_device_the_backend_lacks_is_refused(tmp_path: Path) -> None:
    require("onnxruntime")
    from edgecv.runtimes.ort import OrtSession

    with pytest.raises(InputError, match="unknown device 'gpu'"):
        OrtSession(tmp_path / "x.onnx", SessionOptions(device="gpu"))


def test_torch_threads_are_put_back_after_a_run() -> None:
    require("torch")
    import torch

    before = torch.get_num_threads()
    with TestTorch().open_model(TINY_MODELS["identity"], Path()) as session:
        session.run({"x": np.zeros((1, 4), np.float32)})
    assert torch.get_num_threads() == before


def test_torch_runs_a_copy_of_the_network() -> None:
    require("torch")
    import torch

    from edgecv.preprocess import Preprocess
    from edgecv.runtimes.pt import TorchSession

    linear = torch.nn.Linear(12, 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.Dropout(0.9)).train()
    with TorchSession.from_network(network, Preprocess(size=(2, 2))) as session:
        frame = {"image": np.full((1, 2, 2, 3), 200, np.uint8)}
        before = session.run(frame)["logits"]
        torch.nn.init.zeros_(linear.weight)
        assert np.array_equal(session.run(frame)["logits"], before)
    assert network.training

"""The tracker networks: both branches, correlation as matrix products, gradients, and siblings as table rows."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

require("torch")

import torch  # noqa: E402  (after the check that it is there)
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from edgecv.models.siamese import TRACKERS, SearchBranch, TemplateBranch, create_tracker, nanotrack, siamfc, siamrpn  # noqa: E402  # noqa: E402
from edgecv.models.siamese.correlation import correlate, correlate_channels  # noqa: E402
from edgecv.pipelines.tracking import Tracker  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402

SHAPES = {
    "nanotrack_v1": ((48, 8, 8), [(2, 16, 16), (4, 16, 16)]),
    "nanotrack_v2": ((48, 8, 8), [(2, 16, 16), (4, 16, 16)]),
    "siamfc_alexnet": ((256, 6, 6), [(1, 17, 17)]),  # table 1 of the paper
    "siamfc_mobilenet": ((128, 8, 8), [(1, 17, 17)]),
    "siamrpn_mobile": ((128, 8, 8), [(10, 17, 17), (20, 17, 17)]),
}
Correlation = Callable[[Tensor, Tensor], Tensor]


def _frames(side: int, count: int = 1, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def _torch(side: int, count: int = 1) -> Tensor:
    return torch.from_numpy(_frames(side, count))


def test_the_table_names_every_family() -> None:
    assert set(TRACKERS.names()) == set(SHAPES)
    with pytest.raises(InputError, match="did you mean 'nanotrack_v1'"):
        create_tracker("nanotrack_1")


@pytest.mark.parametrize("name", SHAPES)
class TestEveryTracker:
    def test_the_branches_give_the_shapes_of_the_papers(self, name: str) -> None:
        network = create_tracker(name).eval()
        features_shape, answers = SHAPES[name]
        with torch.no_grad():
            features = TemplateBranch(network)(_torch(127, 2))
            found = SearchBranch(network)(features, _torch(255, 2))
        assert features.shape == (2, *features_shape)
        tensors = found if isinstance(found, tuple) else (found,)
        assert [tensor.shape[1:] for tensor in tensors] == answers
        assert all(tensor.isfinite().all() for tensor in tensors)

    def test_targets_of_one_batch_do_not_mix(self, name: str) -> None:
        network = create_tracker(name).eval()
        template, search = TemplateBranch(network), SearchBranch(network)
        exemplars, crops = _torch(127, 2), _torch(255, 2)
        with torch.no_grad():
            together = search(template(exemplars), crops)
            alone = search(template(exemplars[1:]), crops[1:])
        for both, one in zip(*(x if isinstance(x, tuple) else (x,) for x in (together, alone)), strict=True):
            assert torch.allclose(both[1:], one, rtol=1e-4, atol=1e-4)

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        torch.manual_seed(0)
        network = create_tracker(name).train()
        found = network(torch.rand(2, 3, 127, 127), torch.rand(2, 3, 191, 191))
        sum((tensor**2).mean() for tensor in (found if isinstance(found, tuple) else (found,))).backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key

    def test_an_untrained_network_tracks_without_breaking(self, name: str) -> None:
        torch.manual_seed(0)
        network = create_tracker(name).eval()
        branches = TemplateBranch(network), SearchBranch(network)
        template, search = (TorchSession(branch, branch.inputs, branch.outputs) for branch in branches)
        tracker = Tracker(template, search, network.settings)
        frame = _frames(120)[0]
        tracker.init(frame, (40, 40, 30, 20))
        state = tracker.update(frame)
        assert np.isfinite(state.box).all()
        assert 0 <= state.score <= 1


def _per_image(kernel: Tensor, image: Tensor) -> Tensor:
    return torch.cat([functional.conv2d(one[None], weight[None]) for one, weight in zip(image, kernel, strict=True)])


def _per_channel(kernel: Tensor, image: Tensor) -> Tensor:
    count = kernel.shape[0] * kernel.shape[1]
    flat = functional.conv2d(image.flatten(0, 1)[None], kernel.flatten(0, 1)[:, None], groups=count)
    return flat.reshape(*kernel.shape[:2], *flat.shape[2:])


@pytest.mark.parametrize(("ours", "convolution"), [(correlate, _per_image), (correlate_channels, _per_channel)])
@pytest.mark.parametrize(
    ("kernel", "image"), [((6, 6), (22, 22)), ((8, 8), (24, 24)), ((1, 1), (5, 7)), ((3, 2), (9, 4)), ((4, 5), (4, 5))]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_correlations_are_convolutions_to_3e_6(
    ours: Correlation, convolution: Correlation, kernel: tuple[int, int], image: tuple[int, int], batch: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(batch, 16, *kernel, generator=generator)
    features = torch.randn(batch, 16, *image, generator=generator)
    found, wanted = ours(weight, features), convolution(weight, features)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 3e-6 * wanted.abs().max()


class _Correlating(nn.Module):
    def __init__(self, function: Correlation) -> None:
        super().__init__()
        self.function = function

    def forward(self, kernel: Tensor, image: Tensor) -> Tensor:
        return self.function(kernel, image)


@pytest.mark.parametrize("function", [correlate, correlate_channels])
def test_correlations_export_with_a_free_batch_and_no_convolution(function: Correlation, tmp_path: Path) -> None:
    require("onnx")
    require("onnxruntime")
    from edgecv.runtimes.ort import OrtSession

    batch, example = torch.export.Dim("batch"), (torch.randn(3, 4, 3, 3), torch.randn(3, 4, 9, 9))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the exporter's, about its own internals
        torch.onnx.export(
            _Correlating(function).eval(),
            example,
            tmp_path / "graph.onnx",
            dynamo=True,
            verbose=False,
            input_names=["kernel", "image"],
            output_names=["found"],
            dynamic_shapes=({0: batch}, {0: batch}),
        )
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node}
    assert not kinds & {"Conv", "Einsum", "Loop", "ScatterND"}
    session = OrtSession(tmp_path / "graph.onnx")
    for size in (1, 2):
        kernel, image = torch.randn(size, 4, 3, 3), torch.randn(size, 4, 9, 9)
        found = session.run({"kernel": kernel.numpy(), "image": image.numpy()})["found"]
        assert np.abs(found - function(kernel, image).numpy()).max() < 1e-5


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'alexnet'"):
        siamfc.SiamFC(siamfc.Variant("alexnett"))


def test_siblings_are_rows() -> None:
    small = nanotrack.NanoTrack(replace(nanotrack.V2, search=239, width=0.5, score=nanotrack.Tower(32, (3, 3))))
    score, box = small(torch.rand(1, 3, 127, 127), torch.rand(1, 3, 239, 239))
    assert score.shape == (1, 2, 15, 15)
    assert box.shape == (1, 4, 15, 15)
    tiny = siamfc.SiamFC(replace(siamfc.MOBILENET, width=0.25, channels=32, search=239))
    assert tiny(torch.rand(1, 3, 127, 127), torch.rand(1, 3, 239, 239)).shape == (1, 1, 15, 15)
    deep = siamrpn.SiamRPN(replace(siamrpn.MOBILE, width=0.25, channels=32, hidden=3, ratios=(0.5, 1.0, 2.0)))
    assert deep(torch.rand(1, 3, 127, 127), torch.rand(1, 3, 255, 255))[1].shape == (1, 12, 17, 17)

"""int8 trackers: one set of weights for both graphs, boxes as the float network finds them, and a bundle of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecv
from edgecv.errors import InputError
from tests.conftest import require

for _name in ("torch", "onnx", "onnxruntime", "openvino", "opencv"):
    require(_name)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402

from edgecv.compression.placement import quantized_layers  # noqa: E402
from edgecv.compression.quantization import QuantizeConfig  # noqa: E402
from edgecv.compression.trackers import QuantizedTracker, quantize_tracker, rebuild  # noqa: E402
from edgecv.converters.onnx_compact import compact  # noqa: E402
from edgecv.converters.trackers import TrackerOptions, convert_tracker  # noqa: E402
from edgecv.models.siamese.running import tracker_of  # noqa: E402
from edgecv.models.siamese.table import create_tracker  # noqa: E402
from edgecv.preprocess import Preprocess  # noqa: E402
from tests.tiny_tracker import Tiny  # noqa: E402
from tests.tracking import scene  # noqa: E402

SAMPLES = [(scene((100 + 9 * step, 80, 40, 30)), (100.0 + 9 * step, 80.0, 40.0, 30.0)) for step in range(6)]
PLAIN = QuantizeConfig(rounding="nearest")
BYTES = Preprocess(size=(63, 63), std=(0.2, 0.2, 0.2), color="bgr")
CROPS = torch.randn(2, 3, 31, 31), torch.randn(2, 3, 63, 63)


def _tiny(preprocess: Preprocess | None = None) -> Tiny:
    network = Tiny().eval()
    network.preprocess = preprocess or network.preprocess
    return network


@pytest.fixture(scope="module")
def quantized() -> QuantizedTracker:
    return quantize_tracker(_tiny(), SAMPLES, PLAIN)


@pytest.fixture(scope="module")
def bundle(quantized: QuantizedTracker, tmp_path_factory: pytest.TempPathFactory) -> edgecv.Bundle:
    out = tmp_path_factory.mktemp("int8") / "tiny"
    options = TrackerOptions(compare_speed=False)
    return convert_tracker(_tiny(), out, quantized=quantized, samples=SAMPLES, options=options)


def test_both_graphs_read_the_same_weights(quantized: QuantizedTracker) -> None:
    one, other = (dict(part.named_parameters()) for part in (quantized.template_graph, quantized.search_graph))
    shared = set(one) & set(other)
    assert "backbone.0.weight" in shared
    assert all(one[name] is other[name] for name in shared)
    assert any(name.startswith("weight_quantizers.backbone.0") for name in shared)


def test_no_tensor_is_saved_twice_and_all_come_back(quantized: QuantizedTracker) -> None:
    state = {name: value.clone() for name, value in quantized.state_dict().items()}
    assert not [name for name in state if name.replace("search_graph", "template_graph") in set(state) - {name}]
    bits = {"backbone.0": 7, "score": 7, "box": 7}
    again = rebuild(_tiny(), {"bits": bits})
    again.load_state_dict(state, strict=True)
    for wanted, got in zip(quantized(*CROPS), again(*CROPS), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"bits": {}, "shapes": []}, {"bits": {"nothing": 7}}])
def test_a_broken_recipe_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="recipe's quantize"):
        rebuild(_tiny(), settings)


def test_the_float_network_stays_as_it_was(quantized: QuantizedTracker) -> None:
    network = _tiny(BYTES)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize_tracker(network, SAMPLES, PLAIN)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network(*CROPS)[0].shape == quantized(*CROPS)[0].shape


def test_frames_that_are_levels_are_read_as_their_bytes_and_in_rgb() -> None:
    network = _tiny(BYTES)
    found = quantize_tracker(network, SAMPLES, PLAIN)
    assert found.preprocess.color == "rgb"
    scale, zero_point = found.search_graph.get_submodule("activation_quantizers.image").affine()  # type: ignore[operator]
    assert (scale, zero_point) == (pytest.approx(1 / (255 * 0.2)), 0)
    for image, graph in zip(CROPS, (found.template_graph, found.search_graph), strict=True):
        weight = dict(graph.named_parameters())["backbone.0.weight"]
        assert image.shape[1] == weight.shape[1]
        torch.testing.assert_close(weight.flip(1), network.backbone[0].weight)


def test_a_layer_of_no_bits_stays_float() -> None:
    found = quantize_tracker(_tiny(), SAMPLES, replace(PLAIN, layer_bits={"box": 0}))
    names = [name for name, _ in found.search_graph.named_modules()]
    assert "weight_quantizers.score" in names
    assert "weight_quantizers.box" not in names


def test_layers_that_cost_too_much_stay_float() -> None:
    asked: list[int] = []

    def score(network: Any) -> float:
        asked.append(len(quantized_layers(network.search_graph)) if isinstance(network, QuantizedTracker) else 0)
        return float(asked[-1] < 3)

    found = quantize_tracker(_tiny(), SAMPLES, replace(PLAIN, max_drop=0.5), score=score)
    assert asked[:3] == [0, 3, 2]
    assert len(quantized_layers(found.search_graph)) == 2


def test_the_default_judges_boxes_on_crops_that_calibrate_nothing(quantized: QuantizedTracker) -> None:
    with pytest.raises(InputError, match="max_drop needs two crops or more"):
        quantize_tracker(_tiny(), SAMPLES[:1])
    with pytest.raises(InputError, match="quantized already"):
        quantize_tracker(quantized, SAMPLES)
    with pytest.raises(InputError, match="method 'ptq'"):
        quantize_tracker(_tiny(), SAMPLES, replace(PLAIN, method="qat"))


def test_a_bundle_holds_both_precisions_for_both_backends(bundle: edgecv.Bundle) -> None:
    assert list(bundle.manifest.variants) == ["onnx-int8", "openvino-int8", "onnx-fp32", "openvino-fp32"]
    for variant in bundle.manifest.variants.values():
        assert variant.parity is not None
        assert (variant.parity.mean_iou or 0) > 0.9


@pytest.mark.parametrize("variant", ["onnx-int8", "openvino-int8"])
def test_an_int8_variant_tracks_as_its_network_does(
    bundle: edgecv.Bundle, quantized: QuantizedTracker, variant: str
) -> None:
    backend = bundle.manifest.variants[variant].backend
    wanted = tracker_of(quantized)
    with edgecv.load(bundle.path, backend=backend, variant=variant) as tracker:
        for one in (wanted, tracker):
            one.init(*SAMPLES[0])
        for frame, _ in SAMPLES[1:]:
            assert np.abs(np.subtract(tracker.update(frame).box, wanted.update(frame).box)).max() < 2


def test_weights_are_integers_in_both_files(bundle: edgecv.Bundle) -> None:
    held = []
    for graph in ("template", "search"):
        model = onnx.load(str(bundle.file("onnx-int8", graph)))
        constants = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
        (kernel,) = (item for item in constants if item.shape == (6, 3, 9, 9))
        assert kernel.dtype == np.int8
        held.append(kernel)
    np.testing.assert_array_equal(*held)


def test_a_graph_made_compact_answers_the_same(bundle: edgecv.Bundle, tmp_path: Path) -> None:
    model = onnx.load(str(bundle.file("onnx-fp32", "template")))
    smaller = compact(model)
    assert smaller.ByteSize() < model.ByteSize()
    onnx.save(smaller, tmp_path / "smaller.onnx")
    crop = {"template": np.random.default_rng(0).integers(0, 256, (2, 31, 31, 3), np.uint8)}
    with (
        edgecv.open_session(bundle.file("onnx-fp32", "template")) as one,
        edgecv.open_session(tmp_path / "smaller.onnx") as two,
    ):
        np.testing.assert_array_equal(one.run(crop)["features"], two.run(crop)["features"])


@pytest.mark.parametrize(
    ("precisions", "given", "telling"),
    [
        (("int8",), ("float", None), "int8 takes a quantized tracker"),
        (("fp32",), ("quantized", None), "the tracker is quantized, fp32 was asked for"),
        ((), ("quantized", "quantized"), "beside the network itself"),
    ],
)
def test_what_does_not_fit_is_refused(
    precisions: tuple[str, ...], given: tuple[str, str | None], telling: str, quantized: Any, tmp_path: Path
) -> None:
    networks = {"float": _tiny(), "quantized": quantized, None: None}
    network, twin = (networks[name] for name in given)
    options = TrackerOptions(precisions=precisions)
    with pytest.raises(InputError, match=telling):
        convert_tracker(network, tmp_path / "x", quantized=twin, samples=SAMPLES, options=options)
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_gives_the_same_bits_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = quantize_tracker(create_tracker("siamfc_alexnet", width=0.125).eval(), SAMPLES, PLAIN)
    edgecv.save_checkpoint(quantized, tmp_path / "tracker.safetensors")
    wanted = quantized.state_dict()
    found = edgecv.load_checkpoint(tmp_path / "tracker.safetensors").state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

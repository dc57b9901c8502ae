"""NanoTrack with the published weights: the published graphs' answers, real sequences, and an honest status."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecv.errors import InputError
from tests.conftest import require

for _name in ("torch", "onnx", "onnxruntime", "opencv"):
    require(_name)

import onnx  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402

from edgecv.converters.torch_from_nanotrack import torch_from_nanotrack  # noqa: E402
from edgecv.models.siamese import SearchBranch, TemplateBranch, create_tracker  # noqa: E402
from edgecv.models.siamese.branches import Siamese  # noqa: E402
from edgecv.models.weights import read_weights  # noqa: E402
from edgecv.pipelines.tracking import Tracker, TrackSequence, open_sequences, run_sequence, score_sequence  # noqa: E402
from edgecv.pipelines.tracking.boxes import overlaps  # noqa: E402
from edgecv.pipelines.tracking.calibration import Observation, observe, roc_auc  # noqa: E402
from edgecv.pipelines.tracking.published import PublishedSearch, PublishedTemplate  # noqa: E402
from edgecv.runtimes.ort import OrtSession  # noqa: E402
from edgecv.runtimes.pt import TorchSession  # noqa: E402
from edgecv.runtimes.session import SessionOptions  # noqa: E402

VERSIONS = ("v1", "v2")
ONE = SessionOptions(threads=1)


def _network(data: Path, version: str) -> Siamese:
    network = create_tracker(f"nanotrack_{version}")
    network.load_state_dict(read_weights(data / f"weights/nanotrack/nanotrack{version}.safetensors"), strict=True)
    return network.eval()


def _pair(data: Path, version: str) -> list[Path]:
    return [data / f"weights/nanotrack/nanotrack{version}_{part}.onnx" for part in ("backbone", "head")]


def _published(data: Path, version: str, part: str) -> OrtSession:
    return OrtSession(_pair(data, version)[part == "head"], ONE)


def _any_size(source: Path, target: Path) -> Path:
    """The published backbone without its fixed size: the exemplar is smaller than the search crop."""
    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim[2:]):
            dimension.dim_param = f"{value.name}{axis}"
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def _tracker(data: Path, version: str, folder: Path) -> Tracker:
    source = data / f"weights/nanotrack/nanotrack{version}_backbone.onnx"
    backbone = OrtSession(_any_size(source, folder / "backbone.onnx"), ONE)
    search = PublishedSearch(backbone, _published(data, version, "head"))
    return Tracker(PublishedTemplate(backbone), search, create_tracker(f"nanotrack_{version}").settings)


def _part(sequence: TrackSequence, count: int) -> TrackSequence:
    shown = {"files": sequence.files[:count], "boxes": sequence.boxes[:count], "visible": sequence.visible[:count]}
    return replace(sequence, **shown)  # type: ignore[arg-type]  # one type for each key


@pytest.mark.parametrize("version", VERSIONS)
def test_published_weights_give_the_published_graphs_answers(data: Path, version: str) -> None:
    network = _network(data, version)
    image = torch.rand(1, 3, 255, 255, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        exemplar, features = network.template(image[..., 64:191, 64:191]), network.template(image)
        ours = network.search(exemplar, image)
    backbone = _published(data, version, "backbone").run({"input": image.numpy()})["output"]
    assert np.abs(features.numpy() - backbone).max() < 1e-4
    head = _published(data, version, "head").run({"input1": exemplar.numpy(), "input2": backbone})
    for mine, theirs in zip(ours, head.values(), strict=True):
        assert np.abs(mine.numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize("version", VERSIONS)
def test_our_own_weights_keep_our_names(version: str) -> None:
    network, other = (create_tracker(f"nanotrack_{version}") for _ in range(2))
    other.load_state_dict(network.state_dict(), strict=True)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())


def test_weights_of_the_other_version_are_refused(data: Path) -> None:
    with pytest.raises(RuntimeError, match="NanoTrack"):
        create_tracker("nanotrack_v2").load_state_dict(read_weights(data / "weights/nanotrack/nanotrackv1.safetensors"))


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_and_the_published_graphs_track_alike(data: Path, version: str, tmp_path: Path) -> None:
    network = _network(data, version)
    branches = TemplateBranch(network), SearchBranch(network)
    template, search = (TorchSession(part, part.inputs, part.outputs, ONE) for part in branches)
    ours = Tracker(template, search, network.settings)
    sequence = _part(open_sequences(data / "tracking" / "vot15_bag")[0], 12)
    first, second = (run_sequence(tracker, sequence) for tracker in (ours, _tracker(data, version, tmp_path)))
    assert overlaps(first.boxes, second.boxes).mean() > 0.99


@pytest.mark.parametrize("version", VERSIONS)
def test_a_real_sequence_is_followed(data: Path, version: str, tmp_path: Path) -> None:
    sequence = _part(open_sequences(data / "tracking" / "vot15_car1")[0], 60)
    scores = score_sequence(run_sequence(_tracker(data, version, tmp_path), sequence))
    assert scores.success > 0.7
    assert scores.precision > 0.95


@pytest.mark.parametrize("search", [191, 209, 239])
@pytest.mark.parametrize("version", VERSIONS)
def test_other_search_crops_follow_with_the_same_weights(data: Path, version: str, search: int) -> None:
    network = torch_from_nanotrack(*_pair(data, version), search=search)
    branches = TemplateBranch(network), SearchBranch(network)
    template, search_graph = (TorchSession(part, part.inputs, part.outputs, ONE) for part in branches)
    tracker = Tracker(template, search_graph, network.settings)
    sequence = _part(open_sequences(data / "tracking" / "vot15_car1")[0], 20)
    assert score_sequence(run_sequence(tracker, sequence)).success > 0.7


def test_what_published_weights_do_not_fit_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match="width: published weights keep their layers' shapes"):
        torch_from_nanotrack(*_pair(data, "v1"), width=0.5)


def _confidence(tracker: Tracker, observation: Observation) -> float:
    constants = tracker.settings.confidence
    assert constants is not None
    return constants.probability(observation.measures, observation.agreement)


@pytest.mark.parametrize("version", VERSIONS)
def test_absence_is_told_on_sequences_that_calibrated_nothing(data: Path, version: str, tmp_path: Path) -> None:
    tracker = _tracker(data, version, tmp_path)
    held = [open_sequences(data / "tracking" / name)[0] for name in ("vot13_bicycle", "vot15_bag")]
    found = observe(tracker, held, every=12)
    assert roc_auc([_confidence(tracker, one) for one in found], [one.present for one in found]) > 0.95


def test_a_published_pair_is_two_files(data: Path) -> None:
    with pytest.raises(InputError, match="two files"):
        PublishedTemplate.open(data, ONE)
    backbone = _published(data, "v1", "backbone")
    with pytest.raises(InputError, match="two inputs"):
        PublishedSearch(backbone, backbone)

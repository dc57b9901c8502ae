"""Weights from files and from the publishers: what fits is loaded whole, all else is refused and nothing is run."""

from __future__ import annotations

import functools
import hashlib
import random
import re
import threading
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgecv.errors import BackendUnavailable, EdgeCVError, InputError
from tests.conftest import require

require("torch")

import safetensors.torch  # noqa: E402  (after the check that it is there)
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgecv import Preprocess, models  # noqa: E402
from edgecv.models import weights as weights_module  # noqa: E402
from edgecv.models.recipe import ARCHITECTURES  # noqa: E402
from edgecv.models.weights import PUBLISHED, Published, read_weights  # noqa: E402

NAME = "resnet20"
LAST = {"linear.weight", "linear.bias"}
PREPROCESS = Preprocess(size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

State = dict[str, Tensor]


def _state(seed: int = 0, **options: Any) -> State:
    torch.manual_seed(seed)
    return dict(models.create(NAME, **options).state_dict())


def _write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def _same(network: nn.Module, state: State, but: Set[str] = frozenset()) -> bool:
    found = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in found.keys() - but)


def _refused(error: type[EdgeCVError], weights: str | Path, name: str = NAME, **options: Any) -> str:
    """The one-line message that ``create`` ends with."""
    with pytest.raises(error) as caught:
        models.create(name, weights=weights, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestFiles:
    @pytest.mark.parametrize("suffix", weights_module.SUFFIXES)
    @pytest.mark.parametrize("kind", [str, Path])
    def test_every_suffix_is_read(self, tmp_path: Path, suffix: str, kind: type[str] | type[Path]) -> None:
        state = _state()
        path = _write(tmp_path / f"a{suffix}", state)
        network = models.create(NAME, weights=kind(path))
        assert _same(network, state)
        assert models.preprocess_of(network) is None  # a file does not say it
        assert models.recipe_of(network) == models.Recipe(NAME)

    def test_the_old_format_of_torch_is_read(self, tmp_path: Path) -> None:
        state = _state()
        torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        assert _same(models.create(NAME, weights=tmp_path / "a.pth"), state)

    def test_wrappings_are_taken_off(self, tmp_path: Path) -> None:
        state = _state()
        parallel = {f"module.{key}": value for key, value in state.items()}
        for content in (
            parallel,
            {"state_dict": state},
            {"state_dict": parallel, "epoch": 7, "best_prec1": 91.7, "arch": "resnet20"},
        ):
            assert _same(models.create(NAME, weights=_write(tmp_path / "a.pth", content)), state)
        assert _same(models.create(NAME, weights=_write(tmp_path / "a.safetensors", parallel)), state)

    def test_only_the_front_of_a_key_is_taken_off(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.pth", {"module.a.module.b": torch.ones(1), "my_module.c": torch.ones(1)})
        assert list(read_weights(path)) == ["a.module.b", "my_module.c"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
    def test_a_file_saved_on_a_gpu_is_read_on_the_cpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = _state()
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
            path = _write(tmp_path / "a.pth", state)
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
        network = models.create(NAME, weights=path)
        assert _same(network, state)
        assert {value.device.type for value in network.state_dict().values()} == {"cpu"}

    def test_half_precision_becomes_the_networks_own(self, tmp_path: Path) -> None:
        state = {key: value.half() if value.is_floating_point() else value for key, value in _state().items()}
        network = models.create(NAME, weights=_write(tmp_path / "a.safetensors", state))
        assert {value.dtype for value in network.parameters()} == {torch.float32}
        assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"].float())

    def test_batch_counts_that_old_files_lack_are_forgiven(self, tmp_path: Path) -> None:
        """PyTorch counts batches since 0.4.1; published files of before are still about."""
        state = _state()
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        assert len(old) < len(state)
        assert _same(models.create(NAME, weights=_write(tmp_path / "a.pth", old)), state)

    def test_a_checkpoint_of_ours_is_a_file_of_weights_too(self, tmp_path: Path) -> None:
        network = models.create(NAME)
        models.save_checkpoint(network, tmp_path / "a.safetensors")
        assert _same(models.create(NAME, weights=tmp_path / "a.safetensors"), dict(network.state_dict()))


class VersionedNet(nn.Module):
    """Refuses, as torchvision's MNASNet does, a state dict that does not say its version."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_network_that_wants_a_version_gets_its_own(tmp_path: Path) -> None:
    network = VersionedNet()
    state = {"head.weight": torch.ones(3, 2), "head.bias": torch.ones(3)}
    for suffix in (".pth", ".safetensors"):
        weights_module.load_weights(network, "any", _write(tmp_path / f"a{suffix}", state))
        assert _same(network, state)


class TestLastLayer:
    @pytest.mark.parametrize("classes", [1, 3, 1001])
    def test_another_number_of_classes_stays_fresh_and_all_else_is_loaded(self, tmp_path: Path, classes: int) -> None:
        state = _state(num_classes=1000)
        path = _write(tmp_path / "a.pth", state)
        torch.manual_seed(1)
        fresh = models.create(NAME, num_classes=classes).state_dict()
        torch.manual_seed(1)
        network = models.create(NAME, weights=path, num_classes=classes)
        assert _same(network, {**state, **{key: fresh[key] for key in LAST}})
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, classes)

    @pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith(("mob", "squ"))])
    def test_the_last_layer_is_found_in_other_architectures(self, tmp_path: Path, name: str) -> None:
        torch.manual_seed(0)
        state = models.create(name, num_classes=5).state_dict()
        network = models.create(name, weights=_write(tmp_path / "a.pth", state), num_classes=3)
        other = {key for key, value in network.state_dict().items() if value.shape != state[key].shape}
        assert len(other) == 2
        assert _same(network, dict(state), other)

    @pytest.mark.parametrize(
        ("changes", "telling"),
        [
            ({"linear.weight": torch.zeros(64, 10)}, "linear.weight"),  # transposed, as TensorFlow stores it
            ({"linear.weight": torch.zeros(20, 32), "linear.bias": torch.zeros(20)}, "linear.weight"),
            ({"linear.weight": torch.zeros(20, 64, 1, 1), "linear.bias": torch.zeros(20)}, "linear.weight"),
            ({"linear.weight": torch.zeros(20, 64)}, "linear.weight"),  # with the bias of ten classes
            ({"linear.bias": torch.zeros(20)}, "linear.bias"),
            ({"linear.bias": torch.tensor(0.0)}, "linear.bias"),
        ],
    )
    def test_what_is_no_other_number_of_classes_is_refused(self, tmp_path: Path, changes: State, telling: str) -> None:
        path = _write(tmp_path / "a.pth", {**_state(), **changes})
        message = _refused(InputError, path)
        assert "a.pth does not fit" in message
        assert telling in message


class TestWhatDoesNotFit:
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize(
        ("changes", "lacking", "telling"),
        [
            ({"conv1.weight": torch.zeros(16, 3, 5, 5)}, "", "conv1.weight"),
            ({"conv1.weight": torch.zeros(8, 3, 3, 3)}, "", "conv1.weight"),
            ({}, "conv1.weight", "Missing"),
            ({}, "linear.bias", "Missing"),
            ({"more.weight": torch.zeros(1)}, "", "Unexpected"),
        ],
    )
    def test_it_is_refused_with_the_files_name(
        self, tmp_path: Path, suffix: str, changes: State, lacking: str, telling: str
    ) -> None:
        content = {key: value for key, value in {**_state(), **changes}.items() if key != lacking}
        path = _write(tmp_path / f"a{suffix}", content)
        for classes in (10, 3):  # a fresh last layer excuses nothing else
            message = _refused(InputError, path, num_classes=classes)
            assert f"{path} does not fit" in message
            assert telling in message

    def test_another_architectures_weights_are_refused_shortly(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.pth", _state())
        for name in ("resnet32", "resnet18", "squeezenet1_1", "embedding"):
            message = _refused(InputError, path, name)
            assert f"{path} does not fit" in message
            assert len(message) < 500

    @pytest.mark.parametrize(
        "content",
        [
            {},
            [],
            torch.zeros(3),
            7,
            "text",
            None,
            {"a": 1},
            {"a": torch.zeros(1), "b": 2},
            {1: torch.zeros(1)},
            {("a",): torch.zeros(1)},
            {"state_dict": {}},
            {"state_dict": {"a": "b"}},
            {"state_dict": [torch.zeros(1)]},
            {"model": {"a": torch.zeros(1)}},
            {"state_dict": {"state_dict": {"a": torch.zeros(1)}}},
        ],
    )
    def test_what_is_no_state_dict_is_refused(self, tmp_path: Path, content: Any) -> None:
        path = _write(tmp_path / "a.pth", content)
        assert f"{path} holds no state dict" in _refused(InputError, path)

    def test_an_empty_safetensors_file_is_refused(self, tmp_path: Path) -> None:
        assert "holds no state dict" in _refused(InputError, _write(tmp_path / "a.safetensors", {}))


class Touch:
    """Unpickled by a loader that runs code, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestBrokenFiles:
    @pytest.mark.parametrize("new_format", [True, False])
    @pytest.mark.parametrize("wrap", ["alone", "in a state dict", "beside a state dict"])
    def test_a_pickle_runs_nothing(self, tmp_path: Path, new_format: bool, wrap: str) -> None:
        ran = tmp_path / "ran"
        content: Any = {
            "alone": Touch(ran),
            "in a state dict": {**_state(), "x": Touch(ran)},
            "beside a state dict": {"state_dict": _state(), "args": Touch(ran)},
        }[wrap]
        path = tmp_path / "a.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        assert f"{path} is not a readable weights file" in _refused(InputError, path)
        assert not ran.exists()
        torch.load(path, weights_only=False)
        assert ran.exists()  # the trap was a real one

    def test_a_whole_network_is_not_unpickled(self, tmp_path: Path) -> None:
        assert "is not a readable" in _refused(InputError, _write(tmp_path / "a.pth", nn.Linear(2, 2)))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"x",
            b"junk" * 1000,
            b"PK\x03\x04",
            b"PK\x03\x04" + bytes(500),
            b"\x80\x02",
            b"\x80\x02}q\x00.",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",  # the old format's magic number, and no more
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
            b"\x80\xff",
            b"<html><body>404 Not Found</body></html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            b"\xff" * 64,
            (8).to_bytes(8, "little") + b"{}      ",
            (2).to_bytes(8, "little") + b"[]",
        ],
    )
    @pytest.mark.filterwarnings("ignore")  # torch may guess what a file is
    def test_junk_is_refused(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        assert str(path) in _refused(InputError, path)

    @pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
    @pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
    def test_what_is_cut_short_is_refused(self, tmp_path: Path, kind: str, share: float) -> None:
        path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
        if kind == "safetensors":
            _write(path, _state())
        else:
            torch.save(_state(), path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        assert f"{path} is not a readable weights file" in _refused(InputError, path)

    @pytest.mark.parametrize("seed", range(40))
    @pytest.mark.filterwarnings("ignore")  # torch may guess what a file is
    def test_damage_is_refused_or_harmless(self, tmp_path: Path, seed: int) -> None:
        """Every kind of error that torch's reader ends with is turned into ours."""
        path, chance = tmp_path / "a.pth", random.Random(seed)
        content = {f"a{i}.weight": torch.ones(i + 1, 2) for i in range(5)}
        torch.save(content, path, _use_new_zipfile_serialization=seed % 2 == 0)
        whole = path.read_bytes()
        for _ in range(10):
            data = bytearray(whole)
            place = chance.randrange(min(len(data), 1200))
            if chance.random() < 0.5:
                data[place] = chance.randrange(256)
            else:
                del data[place : place + chance.randrange(1, 20)]
            path.write_bytes(data)
            try:
                read_weights(path)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017  (the file may also have stayed readable)

    def test_another_formats_content_is_refused(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.pth", _state())
        assert "is not a readable" in _refused(InputError, path.rename(tmp_path / "b.safetensors"))
        path = _write(tmp_path / "c.safetensors", _state())
        assert "is not a readable" in _refused(InputError, path.rename(tmp_path / "d.pth"))

    def test_a_missing_file_or_a_folder_is_named(self, tmp_path: Path) -> None:
        assert f"{tmp_path / 'a.pth'} does not exist" in _refused(InputError, tmp_path / "a.pth")
        (tmp_path / "folder.pth").mkdir()
        assert "does not exist" in _refused(InputError, tmp_path / "folder.pth")


class TestNames:
    @pytest.mark.parametrize("weights", ["imagenet21k", "ImageNet", "weights", "", "net.onnx", "a.npz", "imagenet/"])
    def test_unknown_weights_are_refused(self, weights: str) -> None:
        message = _refused(InputError, weights)
        assert f"got {weights!r}" in message
        assert ".safetensors" in message
        assert "'imagenet'" in message

    @pytest.mark.parametrize("name", sorted(set(models.names()) - set(PUBLISHED)))
    def test_names_without_published_weights_are_refused(self, name: str) -> None:
        message = _refused(InputError, "imagenet", name)
        assert f"unknown published weights for {name!r}" in message
        assert "mobilenet_v2" in message

    def test_a_wrong_option_comes_before_the_weights(self) -> None:
        assert "unknown option 'wdith'" in _refused(InputError, "missing.pth", "mobilenet_v2", wdith=1)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing the server waits for its threads


@dataclass
class Publisher:
    """A publisher of weights on this machine: its folder, its address, and what was asked of it."""

    folder: Path
    address: str
    asked: list[str] = field(default_factory=list)

    def publish(self, patch: pytest.MonkeyPatch, content: Any, *, digits: str = "", name: str = NAME) -> Published:
        """Put ``content`` into the folder, under a name with its hash, and its entry into the table."""
        draft = _write(self.folder / "draft.pth", content)
        digits = digits or hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
        file = draft.rename(self.folder / f"{name}-{digits}.pth")
        found = Published(f"{self.address}/models/{file.name}", digits, 50.0, 75.0, PREPROCESS)
        patch.setitem(PUBLISHED, name, found)
        return found


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A running publisher; the cache is a folder of the test's own."""
    monkeypatch.setenv("EDGECV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("EDGECV_OFFLINE", raising=False)
    folder = tmp_path / "server" / "models"
    folder.mkdir(parents=True)
    handler = type("HandlerOfTest", (Handler,), {"asked": []})
    with Server(("127.0.0.1", 0), functools.partial(handler, directory=str(folder.parent))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Publisher(folder, f"http://127.0.0.1:{server.server_port}", handler.asked)  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


class TestPublished:
    def test_they_are_fetched_once_and_bring_their_preprocessing(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = _state()
        publisher.publish(monkeypatch, state)
        calls: list[tuple[float, float]] = []
        network = models.create(NAME, weights="imagenet", progress=lambda _stage, *done: calls.append(done))
        assert _same(network, state)
        assert models.preprocess_of(network) == PREPROCESS
        assert calls[-1][0] == calls[-1][1] > 0
        assert _same(models.create(NAME, weights="imagenet"), state)
        assert len(publisher.asked) == 1

    def test_another_number_of_classes_keeps_the_preprocessing(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = _state(num_classes=1000)
        publisher.publish(monkeypatch, state)
        network = models.create(NAME, weights="imagenet", num_classes=4)
        assert _same(network, state, LAST)
        assert models.preprocess_of(network) == PREPROCESS

    def test_networks_without_them_have_no_preprocessing(self) -> None:
        assert models.preprocess_of(models.create(NAME)) is None
        assert models.preprocess_of(nn.Linear(1, 1)) is None

    def test_what_does_not_fit_is_one_line(self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
        publisher.publish(monkeypatch, {"a": torch.zeros(1)})
        assert "imagenet does not fit" in _refused(InputError, "imagenet")

    def test_another_hash_is_refused(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        found = publisher.publish(monkeypatch, _state(), digits="0" * 8)
        message = _refused(InputError, "imagenet")
        assert found.url in message
        assert "wanted 00000000" in message
        kept = [path.name for path in (tmp_path / "cache" / "weights").iterdir() if path.suffix != ".lock"]
        assert kept == []

    def test_a_missing_file_is_named_with_a_way_out(
        self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = publisher.publish(monkeypatch, _state())
        next(publisher.folder.iterdir()).unlink()
        message = _refused(BackendUnavailable, "imagenet")
        assert found.url in message
        assert "404" in message
        assert "by hand" in message

    def test_offline_uses_the_cache_or_says_so(self, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
        state = _state()
        publisher.publish(monkeypatch, state)
        with monkeypatch.context() as patch:
            patch.setenv("EDGECV_OFFLINE", "1")
            assert "EDGECV_OFFLINE" in _refused(BackendUnavailable, "imagenet")
        assert publisher.asked == []
        models.create(NAME, weights="imagenet")
        monkeypatch.setenv("EDGECV_OFFLINE", "1")
        assert _same(models.create(NAME, weights="imagenet"), state)
        assert len(publisher.asked) == 1


@pytest.mark.parametrize("name", PUBLISHED)
class TestTheTable:
    def test_the_url_carries_the_hash(self, name: str) -> None:
        found = PUBLISHED[name]
        assert re.fullmatch(r"https://[\w.]+/[\w./-]+", found.url)
        assert re.fullmatch(r"[0-9a-f]{8,64}", found.sha256)
        assert found.url.rpartition("/")[2] == f"{name}-{found.sha256}.pth"

    def test_the_figures_are_plausible(self, name: str) -> None:
        found = PUBLISHED[name]
        assert 50 < found.top1 < found.top5 < 100
        assert found.licence
        assert found.preprocess.size == models.native_size(name)
        assert isinstance(found.preprocess.resize, int)
        assert all(0 < value < 1 for value in (*found.preprocess.mean, *found.preprocess.std))

    def test_the_architecture_exists(self, name: str) -> None:
        assert name in ARCHITECTURES.names()


def test_no_two_entries_share_a_file() -> None:
    assert len({found.url for found in PUBLISHED.values()}) == len(PUBLISHED)
    assert len({found.sha256 for found in PUBLISHED.values()}) == len(PUBLISHED)

"""The recipe of a compression chain: one YAML or JSON file, every key of it known."""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgecv.compression import ClusterConfig, PruneConfig, QuantizeConfig
from edgecv.compression.quantization import QAT
from edgecv.data import DATASETS
from edgecv.errors import BackendUnavailable, InputError, one_line
from edgecv.plugins import unknown
from edgecv.schema import decode, encode, loads
from edgecv.training import TrainConfig

__all__ = ["Chain", "ChainData", "ChainStep", "ConvertSettings", "MeasureSettings", "TrainSettings", "read_chain"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChainData:
    """The images of a chain, as ``open_samples`` and ``open_frames`` take them.

    Attributes:
        test: what the report scores every network on; no step sees it, but conversion compares answers on it.
        train: what ``train`` steps and quantization-aware training learn from.
        val: what picks an epoch and bounds ``max_drop``; every tenth training image where it is left out, or the same.
        calibration: what pruning, quantization and clustering look at, without labels; by default ``train``.
        limit: so many calibration images, spread evenly.
    """

    test: str
    train: str | None = None
    val: str | None = None
    calibration: str | None = None
    limit: int = 100

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise InputError(f"limit is a number of images from 1, got {self.limit}")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """A ``train`` step; with ``distill``, the network that the chain began with teaches."""

    config: TrainConfig
    distill: bool = False


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """The bundle at a chain's end, see ``edgecv.convert``."""

    backends: tuple[str, ...] = ("onnxruntime", "openvino")
    precisions: tuple[str, ...] = ()
    pack: bool = False


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """What each network's latency is measured on, one image at a time on one thread, and for how long.

    Without ``backends``, those of onnxruntime and openvino that run here.
    """

    backends: tuple[str, ...] = ()
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise InputError(f"seconds is above 0 and at most an hour, got {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step: its kind, and the settings of that kind, defaults included."""

    kind: str
    config: PruneConfig | QuantizeConfig | ClusterConfig | TrainSettings

    def resolved(self) -> dict[str, Any]:
        """The step as a recipe has it, with every default written out."""
        if isinstance(self.config, TrainSettings):
            return {self.kind: {**encode(self.config.config), "distill": self.config.distill}}
        return {self.kind: encode(self.config)}


@dataclass(frozen=True, slots=True)
class Chain:
    """A checkpoint, what is done to it in order, and what is made of the result."""

    model: str
    data: ChainData
    steps: tuple[ChainStep, ...]
    convert: ConvertSettings | None = None
    measure: MeasureSettings = field(default_factory=MeasureSettings)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out and absolute paths: what ``read_chain`` reads as this chain."""
        return {
            "model": self.model,
            "data": encode(self.data),
            "steps": [step.resolved() for step in self.steps],
            **({"convert": encode(self.convert)} if self.convert else {}),
            "measure": encode(self.measure),
        }


def read_chain(recipe: str | Path | Mapping[str, Any]) -> Chain:
    """Read a chain from a ``.yaml``, ``.yml`` or ``.json`` file, or from what such a file holds.

    Relative paths are relative to the file; to the current folder where there is none.

    Raises:
        InputError: the file cannot be read, or a key, a value or the order of steps is wrong.
        BackendUnavailable: PyYAML is not installed; JSON needs nothing.
    """
    if isinstance(recipe, Mapping):
        return _chain(dict(recipe), "recipe", Path.cwd())
    path = Path(recipe)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {one_line(error.strerror or error)}") from error
    readers = {".json": loads, ".yaml": _yaml, ".yml": _yaml}
    if path.suffix not in readers:
        raise InputError(f"a recipe is a .yaml or a .json file, got {path}")
    return _chain(readers[path.suffix](text, str(path)), str(path), path.absolute().parent)


def _chain(value: Any, where: str, folder: Path) -> Chain:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object with the keys {', '.join(_KEYS)}, got {type(value).__name__}")
    for key in value:
        if key not in _KEYS:
            raise InputError(f"{where}: {unknown('key', key, _KEYS)}")
    for key in ("model", "data", "steps"):
        if key not in value:
            raise InputError(f"{where} lacks the key {key!r}")
    data = _located(decode(ChainData, value["data"], f"{where}: data"), folder)
    steps = _steps(value["steps"], data, f"{where}: steps")
    measure = decode(MeasureSettings, value.get("measure") or {}, f"{where}: measure")
    convert = None
    if value.get("convert") is not None:
        convert = decode(ConvertSettings, value["convert"], f"{where}: convert")
    model = decode(str, value["model"], f"{where}: model")
    return Chain(str(folder / model), data, steps, convert, measure)


_KEYS = tuple(item.name for item in dataclasses.fields(Chain))


def _located(data: ChainData, folder: Path) -> ChainData:
    """``data`` with paths that no longer depend on the current folder."""
    others = {role: getattr(data, role) for role in ("train", "val", "calibration")}
    found: dict[str, Any] = {role: _source(name, folder) for role, name in others.items() if name is not None}
    return dataclasses.replace(data, test=_source(data.test, folder), **found)


def _source(source: str, folder: Path) -> str:
    name, colon, rest = source.partition(":")
    if name not in DATASETS.names() or (folder / source).exists():
        return str(folder / source)
    return f"{name}:{folder / rest}" if colon and (folder / rest).exists() else source


def _steps(value: Any, data: ChainData, where: str) -> tuple[ChainStep, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} must be a list of steps, at least one")
    steps = [_step(item, data, f"{where}[{index}]") for index, item in enumerate(value)]
    for index, after in enumerate(steps):
        for before in steps[:index]:
            if after.kind not in FOLLOWS[before.kind]:
                known = " or ".join(FOLLOWS[before.kind]) or "nothing"
                raise InputError(f"{where}[{index}]: after {before.kind} comes {known}, not {after.kind}")
    return tuple(steps)


def _step(value: Any, data: ChainData, where: str) -> ChainStep:
    if not isinstance(value, dict) or len(value) != 1:
        raise InputError(f"{where} must be one of {', '.join(KINDS)} with its settings, such as prune: {{round_to: 8}}")
    kind, settings = next(iter(value.items()))
    if kind not in KINDS:
        raise InputError(f"{where}: {unknown('step', kind, KINDS)}")
    if not isinstance(settings, (dict, type(None))):
        raise InputError(f"{where}.{kind} must be an object, not {settings!r}")
    return ChainStep(kind, KINDS[kind](dict(settings or {}), data, f"{where}.{kind}"))


def _prune(settings: dict[str, Any], data: ChainData, where: str) -> PruneConfig:
    """Without labelled images by magnitude, else by Taylor expansion, as ``edgecv prune`` does."""
    defaults = {"scope": "global", "importance": "taylor"} if data.train else {}
    if not {"macs_ratio", "params_ratio", "layers"} & set(settings):
        defaults["macs_ratio"] = 0.5  # type: ignore[assignment]
    config = _decoded(PruneConfig, {**defaults, **settings}, where)
    if config.importance in ("taylor", "hessian") and not data.train:
        raise InputError(f"{where}: importance {config.importance!r} needs labelled images: give data.train")
    return config


def _train(settings: dict[str, Any], data: ChainData, where: str) -> TrainSettings:
    if not data.train:
        raise InputError(f"{where} needs images to learn from: give data.train")
    distill = decode(bool, settings.pop("distill", False), f"{where}.distill")
    known = [*(item.name for item in dataclasses.fields(TrainConfig)), "distill"]
    if wrong := [key for key in settings if key not in known]:
        raise InputError(f"{where}: {unknown('key', wrong[0], known)}")
    return TrainSettings(_training(TrainConfig(), settings, where), distill)


def _quantize(settings: dict[str, Any], data: ChainData, where: str) -> QuantizeConfig:
    if not (data.calibration or data.train):
        raise InputError(f"{where} needs images to calibrate on: give data.calibration or data.train")
    training = settings.pop("training", None)
    if training is not None and not isinstance(training, dict):
        raise InputError(f"{where}.training must be an object, not {training!r}")
    config = _decoded(QuantizeConfig, settings, where)
    if config.method == "qat" and not data.train:
        raise InputError(f"{where}: method 'qat' needs images to learn from: give data.train")
    if config.max_drop is not None and not (data.train or data.val):
        raise InputError(f"{where}: max_drop is measured on data.val or, without it, on a part of data.train: give one")
    return dataclasses.replace(config, training=_training(QAT, training or {}, f"{where}.training"))


def _cluster(settings: dict[str, Any], data: ChainData, where: str) -> ClusterConfig:
    return _decoded(ClusterConfig, settings, where)


KINDS: dict[str, Callable[[dict[str, Any], ChainData, str], Any]] = {
    "prune": _prune,
    "train": _train,
    "quantize": _quantize,
    "cluster": _cluster,
}
# A quantized network is trained on, but has no channels to take; training would undo a clustered one's few values.
FOLLOWS = {
    "prune": tuple(KINDS),
    "train": tuple(KINDS),
    "quantize": ("train",),
    "cluster": (),
}


def _training(base: TrainConfig, settings: dict[str, Any], where: str) -> TrainConfig:
    """``base`` with other settings; a warm-up that nobody asked for is short in a short run."""
    epochs = settings.get("epochs", base.epochs)
    warmup = {"warmup_epochs": min(base.warmup_epochs, epochs / 4)} if isinstance(epochs, int) else {}
    return decode(TrainConfig, {**encode(base), **warmup, **settings}, where)


def _decoded(kind: type[T], settings: dict[str, Any], where: str) -> T:
    """Build the config ``kind`` from a recipe's values; fields that hold mappings take objects."""
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"{where}: {unknown('key', key, known)}")
        hint = hints[key]
        if typing.get_origin(hint) is collections.abc.Mapping:
            hint = dict[typing.get_args(hint)]  # type: ignore[misc]
        values[key] = decode(hint, value, f"{where}.{key}")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _yaml(text: bytes, where: str) -> Any:
    """Parse YAML as strictly as JSON is: no key twice; and ``1e-3`` is a number, as everywhere but in YAML 1.1."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"{where} needs PyYAML: pip install 'edgecv[train]', or write the recipe as .json"
        ) from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if doubled := [key for key in keys if keys.count(key) > 1]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {doubled[0]!r} twice", node.start_mark)
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), "-+0123456789"
    )
    try:
        return yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where} is not valid YAML: {one_line(error)}") from error

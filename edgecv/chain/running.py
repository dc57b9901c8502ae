"""``compress``: a chain from its recipe to checkpoints, a bundle and a report; what is done is not done again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import fx, nn

import edgecv
from edgecv.bundle import Bundle
from edgecv.chain.images import Images, open_images, preprocess_of
from edgecv.chain.layers import LayerMap, LayerValues, layer_map, values_of
from edgecv.chain.measuring import Measurer, Row, measured_backends
from edgecv.chain.page import ChainReport, render
from edgecv.chain.recipe import Chain, ChainStep, ConvertSettings, TrainSettings, read_chain
from edgecv.chain.records import ChainFolder
from edgecv.chain.steps import Steps
from edgecv.converters import ConvertOptions, convert
from edgecv.converters.registry import converter
from edgecv.data import spread
from edgecv.files import new_folder, sha256, write_file
from edgecv.manifest import Accuracy
from edgecv.models.checkpoint import Card, load_checkpoint, read_checkpoint, save_checkpoint
from edgecv.preprocess import Preprocess
from edgecv.progress import Progress, silent
from edgecv.schema import dumps, encode

__all__ = ["Compression", "compress"]

START = "start"
WORST = 3  # layers whose values the report draws
# What each kind of step looks at; where that changes, it is done again.
ROLES = {
    "prune": ("train", "calibration"),
    "train": ("train", "val"),
    "quantize": ("train", "val", "calibration"),
    "cluster": ("train", "calibration"),
}


@dataclass(frozen=True, slots=True)
class Compression:
    """What a chain has made.

    Attributes:
        checkpoint: the last network; the others lie beside it.
        bundle: where the recipe converts.
        report: the page.
        rows: the networks in order, the first as it came, then the bundle's variants.
        done: the steps that were done now; the others were there.
        layers: where the chain quantizes.
    """

    checkpoint: Path
    bundle: Path | None
    report: Path
    rows: tuple[Row, ...]
    done: tuple[str, ...]
    layers: LayerMap | None = None

    def summary(self) -> dict[str, Any]:
        """The figures, without raw samples."""
        return {
            "checkpoint": str(self.checkpoint),
            "bundle": str(self.bundle) if self.bundle else None,
            "report": str(self.report),
            "done": list(self.done),
            "rows": [_figures(row) for row in self.rows],
            "layers": encode(self.layers),
        }


def compress(recipe: str | Path | Mapping[str, Any], out: str | Path, *, progress: Progress = silent) -> Compression:
    """Do the steps of a recipe one after another, convert the result, and report on all of it.

    After every step its network is a checkpoint in ``out``, beside a record of what it was made from; called again, a
    chain goes on from the first step whose settings or inputs have changed, and training from its last epoch.

    Args:
        recipe: a ``.yaml`` or ``.json`` file, or what it holds; see ``edgecv.chain.recipe.Chain`` for its keys.
        out: a folder that does not exist, is empty, or holds an earlier run. Its ``report.html`` loads nothing.

    Raises:
        InputError: the recipe or something that it names is wrong, or ``out`` holds something else. What a step raises
            passes through; the steps before it stay.
        ParityError: a variant of the bundle does not agree with its network.
    """
    chain = read_chain(recipe)
    network, card = read_checkpoint(chain.model)
    job = _Job(chain, network, card, preprocess_of(card, chain.model), open_images(chain.data, card.labels), progress)
    backends = measured_backends(chain)
    for name in chain.convert.backends if chain.convert else ():
        converter(name)
    folder = ChainFolder(out, chain.resolved())
    for stale in ("report.html", "results.json"):
        (folder.path / stale).unlink(missing_ok=True)
    done = job.run_steps(folder)
    found = job.measure(folder, backends)
    last, report = job.stages[-1][1], folder.path / "report.html"
    result = Compression(last, found.bundle, report, tuple(found.rows), tuple(done), found.layers)
    _write(folder.path, chain, card, result, found.values)
    return result


class _Measured(NamedTuple):
    rows: list[Row]
    bundle: Path | None
    layers: LayerMap | None
    values: list[LayerValues]


class _Job:
    """One run of a chain. ``stages`` are the networks that are there: name, checkpoint, kind of step that made it."""

    def __init__(
        self, chain: Chain, network: nn.Module, card: Card, preprocess: Preprocess, images: Images, progress: Progress
    ) -> None:
        self._chain, self._card, self._preprocess = chain, card, preprocess
        self._images, self._progress = images, progress
        self._steps = Steps(images, card, preprocess, network, progress)
        self.stages = [(START, Path(chain.model), START)]

    def run_steps(self, folder: ChainFolder) -> list[str]:
        """Do what is not done, and name it."""
        names = [f"{number}-{step.kind}" for number, step in enumerate(self._chain.steps, 1)]
        done = []
        for name, step in zip(names, self._chain.steps, strict=True):
            made_from = self._made_from(step, self.stages[-1][1])
            if not folder.is_done(name, made_from):
                self._do(step, name, made_from, folder)
                done.append(name)
            self.stages.append((name, folder.checkpoint(name), step.kind))
        folder.keep(names)
        return done

    def measure(self, folder: ChainFolder, backends: tuple[str, ...]) -> _Measured:
        """Measure every network, say what quantization did to each layer, convert, and measure what came of it."""
        with Measurer(self._chain, self._card, self._preprocess, self._images, backends, self._progress) as measurer:
            rows = [measurer.network(name, load_checkpoint(path)) for name, path, _ in self.stages]
            layers, values = self._layers(measurer)
            if self._chain.convert is None:
                folder.remove_bundle()
                return _Measured(rows, None, layers, values)
            bundle = self._bundle(folder, self._chain.convert, rows[-1])
            rows += [measurer.variant(bundle, name) for name in bundle.manifest.variants]
            return _Measured(rows, folder.bundle, layers, values)

    def _layers(self, measurer: Measurer) -> tuple[LayerMap | None, list[LayerValues]]:
        """What quantization did to each layer, where the chain has quantized."""
        plain, last = self._ends()
        if last is None:
            return None, []
        quantized = cast(fx.GraphModule, load_checkpoint(last[1]))
        shown = (self._images.calibration, self._preprocess)
        ratios = measurer.ratios(plain[0], last[0])
        found = layer_map(quantized, measurer.exported(last[0]), *shown, ratios, self._progress)
        worst = [row.layer for row in found.layers[:WORST]]
        return found, values_of(load_checkpoint(plain[1]), quantized, worst, *shown)

    def _do(self, step: ChainStep, name: str, made_from: Mapping[str, Any], folder: ChainFolder) -> None:
        network = load_checkpoint(self.stages[-1][1])
        result = self._steps.apply(step, network, folder.run(name, made_from))
        card = self._card
        save_checkpoint(
            result, folder.checkpoint(name), preprocess=card.preprocess, labels=card.labels, dataset=card.dataset
        )
        folder.set_done(name, made_from)

    def _made_from(self, step: ChainStep, before: Path) -> dict[str, Any]:
        data, counts = encode(self._chain.data), self._images.counts()
        seen = {role: [data[role], counts.get(role)] for role in ROLES[step.kind]}
        taught = isinstance(step.config, TrainSettings) and step.config.distill
        return {
            "edgecv": edgecv.__version__,
            "step": step.resolved(),
            "input": sha256(before),
            "teacher": sha256(self.stages[0][1]) if taught else None,
            "data": {**seen, "limit": data["limit"]},
        }

    def _ends(self) -> tuple[tuple[str, Path], tuple[str, Path] | None]:
        """The last float network, and the last quantized one where this chain has quantized: name and checkpoint."""
        kinds = [kind for _, _, kind in self.stages]
        if "quantize" not in kinds:
            return self.stages[-1][:2], None
        return self.stages[kinds.index("quantize") - 1][:2], self.stages[-1][:2]

    def _bundle(self, folder: ChainFolder, settings: ConvertSettings, last: Row) -> Bundle:
        (_, plain), end = self._ends()
        quantized = end[1] if end else None
        made_from = {
            "edgecv": edgecv.__version__,
            "convert": encode(settings),
            "network": sha256(plain),
            "quantized": sha256(quantized) if quantized else None,
            "data": [self._chain.data.test, len(self._images.test), self._chain.data.limit],
            "name": folder.path.name,
        }
        if folder.has_bundle(made_from):
            return Bundle.load(folder.bundle)
        test = self._images.test
        with new_folder(folder.path / ".new") as scratch:
            convert(
                load_checkpoint(plain),
                scratch / "bundle",
                preprocess=self._preprocess,
                labels=self._card.labels,
                quantized=load_checkpoint(quantized) if quantized else None,
                backends=settings.backends,
                samples=[test[index][0] for index in spread(len(test), self._chain.data.limit)],
                options=ConvertOptions(
                    name=folder.path.name,
                    dataset=self._card.dataset,
                    accuracy=last.scores if isinstance(last.scores, Accuracy) else None,
                    precisions=settings.precisions,
                    pack=settings.pack,
                ),
                progress=self._progress,
            )
            folder.set_bundle(made_from, scratch / "bundle")
        (folder.path / ".new").rmdir()
        return Bundle.load(folder.bundle)


def _write(path: Path, chain: Chain, card: Card, result: Compression, values: list[LayerValues]) -> None:
    """The raw profiles, the figures, and the page, which comes last."""
    profiles = path / "profiles"
    shutil.rmtree(profiles, ignore_errors=True)
    profiles.mkdir()
    for row in result.rows:
        for backend, latency in row.latencies.items():
            latency.profile.save(profiles / f"{row.name}-{backend}.json")
    write_file(path / "results.json", dumps(result.summary()))
    page = ChainReport(
        title=f"{path.name}: {' → '.join(step.kind for step in chain.steps)}",
        rows=result.rows,
        facts={
            "network": card.recipe.architecture,
            "checkpoint": f"{Path(chain.model).name}, sha256 {sha256(Path(chain.model))[:12]}",
            "data": ", ".join(
                f"{role} {Path(name).name}" for role, name in encode(chain.data).items() if _is_name(name)
            ),
            "made by": f"edgecv {edgecv.__version__}",
        },
        settings={row.name: _settings(step) for row, step in zip(result.rows[1:], chain.steps, strict=False)},
        seconds=chain.measure.seconds,
        layers=result.layers,
        values=values,
    )
    write_file(result.report, render(page))


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _settings(step: ChainStep) -> str:
    """A step's settings in one line; training's own are those of quantization-aware training alone."""
    held = dict(step.resolved()[step.kind])
    if held.get("method") != "qat":
        held.pop("training", None)
    return ", ".join(f"{key} {value}" for key, value in held.items() if value not in (None, {}, [], ""))


def _figures(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "size_bytes": row.size_bytes,
        **(encode(row.counts) if row.counts else {}),
        "scores": encode(row.scores),
        "latency": {
            name: {**item.profile.summary(), "ratio": item.ratio, "doubts": list(item.profile.doubts)}
            for name, item in row.latencies.items()
        },
    }

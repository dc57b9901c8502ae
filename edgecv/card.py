"""A bundle's model card: what is in it, how it was checked, and what its figures do not show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from edgecv.bundle import Bundle
from edgecv.manifest import Parity, Variant
from edgecv.preprocess import Preprocess

__all__ = ["model_card", "stored_mb"]

PIPELINES = {"classification": "image-classification", "embedding": "image-feature-extraction"}
USE = {
    "classification": ("clf = edgecv.load({path!r})", "print(clf(frame)[0])  # .label .score of a uint8 RGB frame"),
    "embedding": ("embedder = edgecv.load({path!r})", "vector = embedder(frame)  # of a uint8 RGB frame"),
    "tensors": (
        "with edgecv.load({path!r}) as session:",
        "    outputs = session.run(inputs)  # arrays in by name, arrays out by name, as below",
    ),
    "tracking": (
        "tracker = edgecv.load({path!r})",
        "tracker.init(frame, (x, y, w, h))",
        "state = tracker.update(next_frame)  # .box .score .status",
    ),
}


def model_card(bundle: Bundle) -> str:
    """Write a bundle's facts as Markdown, with the header that model hubs read (Mitchell et al., 2019).

    Everything in it stands in the manifest; what the manifest does not say, such as intended use, is left for a person
    and said to be missing. Model cards are of arXiv:1810.03993.
    """
    parts = (_header, _facts, _use, _tensors, _preprocess, _variants, _accuracy, _recipe, _missing)
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part(bundle)))) + "\n"


def stored_mb(bundle: Bundle, variant: str) -> str:
    """The size of a variant's files in MB, and of what they decode to where some are packed."""
    manifest = bundle.manifest
    files = [key for key in manifest.files if key.startswith(f"{variant}/")]
    size = f"{sum(manifest.files[key].size_bytes for key in files) / 1e6:.2f}"
    if not any(key in manifest.packed for key in files):
        return size
    decoded = sum((manifest.packed.get(key) or manifest.files[key]).size_bytes for key in files)
    return f"{size} of {decoded / 1e6:.2f}"


def _header(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield "---"
    yield "library_name: edgecv"
    if manifest.source.licence:
        yield f"license: {manifest.source.licence.lower()}"
    if manifest.task in PIPELINES:
        yield f"pipeline_tag: {PIPELINES[manifest.task]}"
    yield "tags:"
    yield from (f"- {tag}" for tag in dict.fromkeys(["edgecv", *(v.backend for v in manifest.variants.values())]))
    yield "---"


def _facts(bundle: Bundle) -> Iterator[str]:
    manifest, source = bundle.manifest, bundle.manifest.source
    yield f"# {manifest.name}"
    yield ""
    yield f"* Task: {manifest.task}" + (f", {len(bundle.labels)} classes" if bundle.labels else "")
    yield f"* Network: {source.recipe['architecture'] if source.recipe else 'not said'}"
    yield f"* Trained on: {source.dataset or 'not said'}"
    yield f"* Licence: {source.licence or 'not said'}"
    yield f"* Converted by edgecv {source.edgecv}; sha256 of the manifest `{bundle.sha256}`"


def _use(bundle: Bundle) -> Iterator[str]:
    lines = USE.get(bundle.manifest.task, ())
    yield "## Use"
    yield ""
    yield from ("```python", "import edgecv", "", *(line.format(path=bundle.manifest.name) for line in lines), "```")


def _tensors(bundle: Bundle) -> Iterator[str]:
    yield "## Tensors"
    yield ""
    rows = [
        (graph, side, spec.name, str(spec))
        for graph, held in bundle.manifest.graphs.items()
        for side, specs in (("in", held.inputs), ("out", held.outputs))
        for spec in specs
    ]
    yield from _table(("graph", "", "tensor", "type and shape"), rows)


def _preprocess(bundle: Bundle) -> Iterator[str]:
    yield "## Preprocessing"
    yield ""
    if bundle.manifest.preprocess is not None:
        yield from _prepared(bundle.manifest.preprocess)
        return
    for graph in bundle.manifest.graphs.values():
        for spec in graph.inputs:
            if spec.name in graph.preprocess:
                first, second = _prepared(graph.preprocess[spec.name])
                yield f"* `{spec.name}`: {first}"
                yield f"  {second}"
            else:
                yield f"* `{spec.name}`: none, the array goes in as it is."


def _prepared(pre: Preprocess) -> Iterator[str]:
    """Two lines."""
    resize = "straight" if pre.resize is None else str(pre.resize)
    if isinstance(pre.resize, int):
        resize = f"short side to {pre.resize}, then the centre"
    yield f"uint8 RGB frames, resized ({resize}) to {pre.size[0]} x {pre.size[1]} by `edgecv.Preprocess`. Inside the"
    yield f"graph: values 0 to 1, mean {list(pre.mean)}, standard deviation {list(pre.std)}, {pre.color.upper()}."


def _variants(bundle: Bundle) -> Iterator[str]:
    yield "## Variants"
    yield ""
    header = ("variant", "backend", "MB", "needs", "samples", "largest difference", "cosine", "same decision", "note")
    variants = bundle.manifest.variants
    yield from _table(header, [_variant(bundle, name, item) for name, item in variants.items()])
    yield ""
    yield "Differences are from the original's answers to the same real samples, before the bundle was written."


def _variant(bundle: Bundle, name: str, variant: Variant) -> tuple[str, ...]:
    needs = ", ".join(f"{library} >= {version}" for library, version in variant.requires.items())
    note = f"no faster than {variant.slower_than} where it was converted" if variant.slower_than else ""
    return name, variant.backend, stored_mb(bundle, name), needs, *_compared(variant.parity), note


def _compared(parity: Parity | None) -> tuple[str, str, str, str]:
    if parity is None:
        return "0", "not compared", "", ""
    decision = "-"
    if parity.top1_agreement is not None:
        decision = f"top-1 {parity.top1_agreement:.1%}"
    elif parity.rank1_agreement is not None:
        decision = f"nearest {parity.rank1_agreement:.1%}"
    elif parity.mean_iou is not None:
        decision = f"mean IoU {parity.mean_iou:.3f}"
    return str(parity.samples), f"{parity.max_abs:.3g}", f"{parity.cosine:.6f}", decision


def _accuracy(bundle: Bundle) -> Iterator[str]:
    found = bundle.manifest.source.accuracy
    if found is None:
        return
    low, high = found.interval
    yield "## Accuracy"
    yield ""
    yield f"Top-1 {found.top1:.2%} (95 % interval {low:.2%} to {high:.2%}), top-5 {found.top5:.2%}, on {found.samples}"
    yield "images, of the network in PyTorch."


def _recipe(bundle: Bundle) -> Iterator[str]:
    recipe = bundle.manifest.source.recipe
    if recipe:
        yield "## Recipe"
        yield ""
        steps = [step["kind"] for step in recipe.get("steps", [])]
        yield f"`{recipe['architecture']}` with {_options(recipe)}" + (f", then {', '.join(steps)}." if steps else ".")


def _options(recipe: dict[str, object]) -> str:
    options = recipe.get("options")
    return f"`{json.dumps(options, sort_keys=True)}`" if options else "no options"


def _missing(bundle: Bundle) -> Iterator[str]:
    yield "## Not said here"
    yield ""
    yield "Intended use, whom errors would harm, and accuracy on images unlike those above. Latency is of a device:"
    yield "`edgecv profile` measures it there."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)

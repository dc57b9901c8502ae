"""``load``: from a bundle to the pipeline of its task."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgecv.bundle import Bundle
from edgecv.errors import BundleError, InputError
from edgecv.manifest import TENSORS
from edgecv.plugins import Table
from edgecv.runtimes.opening import open_session

__all__ = ["PIPELINES", "load"]

PIPELINES = Table(
    kind="task",
    group="edgecv.pipelines",
    builtin={
        "classification": "edgecv.pipelines.classifier:Classifier",
        "embedding": "edgecv.pipelines.embedder:Embedder",
        "tracking": "edgecv.pipelines.tracking:Tracker",
    },
)


def load(
    bundle: str | Path | Bundle,
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cuda_graph: bool = False,
) -> Any:
    """Open a bundle as the pipeline of its task, ready for frames: a ``Classifier``, an ``Embedder`` or a ``Tracker``.

    A bundle of ``edgecv.convert_graph`` has none, as nothing is known of what its outputs mean: it opens as a
    ``Session``. The arguments are those of ``edgecv.open_session``; the pipeline is a context manager and has
    ``close``. A class in the table ``PIPELINES`` has ``from_postprocess(session, preprocess, labels, postprocess)``;
    one that runs several graphs names them in ``graphs``, and gets a session of each in front.

    Raises:
        BundleError: the bundle is broken, or this edgecv does not know its task.
        BackendUnavailable: no backend that the bundle holds is installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    manifest = opened.manifest
    settings: dict[str, Any] = {
        "backend": backend, "variant": variant, "device": device, "threads": threads, "cuda_graph": cuda_graph,
    }  # fmt: skip
    if manifest.task == TENSORS:
        return open_session(opened, **settings)
    if manifest.task not in PIPELINES.names():
        raise BundleError(f"{opened.path} is for the task {manifest.task!r}; update edgecv")
    pipeline = PIPELINES.load(manifest.task)
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(opened, graph=graph, **settings)) for graph in _graphs(pipeline, opened)
        ]
        try:
            made = pipeline.from_postprocess(*sessions, manifest.preprocess, opened.labels, manifest.postprocess)
        except InputError as error:
            raise BundleError(f"{opened.path}: {error}") from error
        stack.pop_all()  # the sessions are the pipeline's now
        return made


def _graphs(pipeline: Any, bundle: Bundle) -> tuple[str, ...]:
    """The graphs that a pipeline runs, in its own order: those it names, or else the only one there is."""
    held, named = tuple(bundle.manifest.graphs), getattr(pipeline, "graphs", None)
    if set(held) != set(named) if named else len(held) != 1:
        wanted = " and ".join(named) if named else "one graph"
        raise BundleError(f"{bundle.path}: {bundle.manifest.task} needs {wanted}, the bundle has {' and '.join(held)}")
    return named or held

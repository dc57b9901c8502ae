"""``load``: from a bundle to the pipeline of its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgecv.bundle import Bundle
from edgecv.errors import BundleError, InputError
from edgecv.plugins import Table
from edgecv.runtimes.opening import open_session

__all__ = ["PIPELINES", "load"]

PIPELINES = Table(
    kind="task",
    group="edgecv.pipelines",
    builtin={
        "classification": "edgecv.pipelines.classifier:Classifier",
        "embedding": "edgecv.pipelines.embedder:Embedder",
    },
)


def load(
    bundle: str | Path | Bundle,
    *,
    backend: str = "auto",
    variant: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Any:
    """Open a bundle as the pipeline of its task, ready for frames: a ``Classifier`` or an ``Embedder``.

    The arguments are those of ``edgecv.open_session``; the pipeline is a context manager and has ``close``.

    Raises:
        BundleError: the bundle is broken, or this edgecv does not know its task.
        BackendUnavailable: no backend that the bundle holds is installed.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    manifest = opened.manifest
    if manifest.task not in PIPELINES.names():
        raise BundleError(f"{opened.path} is for the task {manifest.task!r}; update edgecv")
    pipeline = PIPELINES.load(manifest.task)
    session = open_session(opened, backend=backend, variant=variant, device=device, threads=threads)
    try:
        return pipeline.from_postprocess(session, manifest.preprocess, opened.labels, manifest.postprocess)
    except InputError as error:
        session.close()
        raise BundleError(f"{opened.path}: {error}") from error

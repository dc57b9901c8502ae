"""``open_session``: from a bundle or a bare model file to a session, choosing the backend and saying why."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgecv.bundle import Bundle
from edgecv.errors import BackendUnavailable, InputError
from edgecv.manifest import Variant
from edgecv.plugins import unknown
from edgecv.runtimes.registry import BACKENDS, Availability, availability, session_class
from edgecv.runtimes.session import Session, SessionOptions

__all__ = ["Choice", "choose", "open_session"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that will run, the bundle's variant it will run (``None`` for a bare file), and why."""

    backend: str
    variant: str | None
    reason: str


def open_session(
    model: str | Path | Bundle,
    *,
    backend: str = "auto",
    variant: str | None = None,
    graph: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    cuda_graph: bool = False,
) -> Session:
    """Open one graph of a bundle, or a bare ``.onnx``, ``.xml`` or checkpoint file, for inference.

    Args:
        model: a bundle (folder or ``Bundle``; every file is verified first) or a model file anyone made.
        backend: a name of ``edgecv doctor``, or ``"auto"``: the first backend, in that order, that is installed and
            has a variant of its own in the bundle (or reads the file's format). ``session.reason`` says which and why.
        variant: one of the bundle's variants, such as ``"onnx-fp32"``; by default the backend's own.
        graph: which graph of the bundle, where it has several.
        device: ``"cpu"``, or what the backend calls another device.
        threads: CPU threads for one inference; ``None`` leaves it to the runtime.
        cuda_graph: on a GPU, record a run as a CUDA graph and replay it.

    Raises:
        InputError: the file is missing, is not a model, or an argument is unknown.
        BundleError: the bundle is broken.
        BackendUnavailable: the backend's library is not installed.
    """
    options = SessionOptions(device, threads, cuda_graph)
    bundle = _as_bundle(model)
    if bundle is None:
        path = _model_file(model, variant, graph)
        choice = _choose_for_file(path, backend)
    else:
        choice = choose(bundle, backend, variant)
        path = bundle.file(choice.variant or "", graph)
    create = session_class(choice.backend)
    start = time.perf_counter()
    files = bundle.unpacked(path) if bundle else None
    session = create.open(path, options) if files is None else create.open_bytes(path, files, options)
    session.load_ms = (time.perf_counter() - start) * 1e3
    session.reason = choice.reason
    session.bundle_sha256 = bundle.sha256 if bundle else None
    return session


def choose(bundle: Bundle, backend: str = "auto", variant: str | None = None) -> Choice:
    """Decide which backend runs which variant of ``bundle``, without opening anything."""
    if variant is not None:
        bundle.variant(variant)
    held = {variant: bundle.variant(variant)} if variant else bundle.manifest.variants
    if backend != "auto":
        reads = session_class(backend).suffixes
        own = [name for name, item in _preferred(held) if item.backend == backend]
        able = [name for name in held if bundle.file(name, next(iter(held[name].graphs))).suffix in reads]
        if not own and not able:
            raise InputError(f"{bundle.path} has no variant for backend {backend!r}, only {', '.join(held)}")
        chosen = (own or able)[0]
        why = "its own variant" if own else f"it reads {Path(next(iter(held[chosen].graphs.values()))).suffix} files"
        return Choice(backend, chosen, f"{backend} with {chosen}: backend asked for, {why}")
    wanted = {item.backend: name for name, item in reversed(_preferred(held))}
    names = [name for name in BACKENDS.names() if name in wanted] + [n for n in wanted if n not in BACKENDS.names()]
    chosen = _first_available(names, f"{bundle.path} holds {', '.join(held)}")
    others = [name for name in names if name != chosen]
    why = f"first choice of what is installed and in the bundle{f' (also there: {_join(others)})' if others else ''}"
    return Choice(chosen, wanted[chosen], f"{chosen} with {wanted[chosen]}: {why}")


def _preferred(held: Mapping[str, Variant]) -> list[tuple[str, Variant]]:
    """The variants in the bundle's order; those that were no faster than another of their backend come last."""
    return sorted(held.items(), key=lambda pair: pair[1].slower_than in held)


def _choose_for_file(path: Path, backend: str) -> Choice:
    if backend != "auto":
        reads = session_class(backend).suffixes
        if path.suffix.lower() not in reads:
            raise InputError(f"backend {backend!r} opens {_join(reads)} files, got {path}")
        return Choice(backend, None, f"{backend}: backend asked for")
    found = [availability(name) for name in BACKENDS.names()]
    readers = [item for item in found if path.suffix.lower() in item.suffixes]
    if readers:
        name = readers[0].backend
        return Choice(name, None, f"{name}: first installed backend for {path.suffix} files")
    raise _nobody_reads(path, found)


def _nobody_reads(path: Path, found: list[Availability]) -> InputError | BackendUnavailable:
    missing = [item for item in found if not item.available]
    known = sorted({suffix for item in found for suffix in item.suffixes})
    if path.suffix.lower() in known or not missing:
        return InputError(f"{path}: no backend opens {path.suffix or 'files without a suffix'}; known: {_join(known)}")
    return BackendUnavailable(
        f"{path}: no installed backend opens {path.suffix or 'it'} (installed ones read {_join(known) or 'nothing'}; "
        f"not installed: {_join([item.backend for item in missing])}); pip install 'edgecv[onnxruntime]'"
    )


def _first_available(names: list[str], context: str) -> str:
    reasons = []
    for name in names:
        if name not in BACKENDS.names():
            reasons.append(f"{name}: {unknown('backend', name, BACKENDS.names())}")
            continue
        found = availability(name)
        if found.available:
            return name
        reasons.append(f"{name}: {found.reason}")
    raise BackendUnavailable(f"{context}, but none can run here: {'; '.join(reasons)}")


def _as_bundle(model: str | Path | Bundle) -> Bundle | None:
    if isinstance(model, Bundle):
        return model
    return Bundle.load(model) if Path(model).is_dir() else None


def _model_file(model: str | Path | Bundle, variant: str | None, graph: str | None) -> Path:
    if variant is not None or graph is not None:
        raise InputError(f"variant= and graph= choose within a bundle; {model} is not a directory")
    path = Path(str(model))
    if not path.is_file():
        raise InputError(f"{path} does not exist; a bundle directory or a model file was expected")
    return path


def _join(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)

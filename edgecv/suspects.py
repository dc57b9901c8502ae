"""Why answers differ: the usual mistakes between a network and its copy, each undone to see whether that mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecv.pipelines.frames import run_frames
from edgecv.preprocess import Preprocess
from edgecv.runtimes.session import Session
from edgecv.tensors import Array

__all__ = ["Sides", "likely_cause"]

FEW = 6  # samples that suspects are tried on: those whose answers differ most
# A suspect counts where the answers then agree and at most HALF of the difference is left, or where next to nothing is:
# frames are whole numbers, so a normalization can often be undone only to within half a level.
HALF, LITTLE, SMALL = 0.5, 0.15, 0.1
STEPS = np.array([0.1] * 3 + [8.0] * 3)  # of gains, and of shifts in levels: wide beside the rounding of frames
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BISECT = "`edgecv verify --bisect` names the node"
INSIDE = (
    "likely cause: a layer inside the graph, dropped or wrong: no other colour order, normalization, layout, resize, "
    "softmax or order of the outputs mends it; " + BISECT
)

Outputs = dict[str, Array]
Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]
Agrees = Callable[[Outputs, Outputs], bool]


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a comparison, open, to be run again on changed frames.

    Args:
        reference, candidate: each takes uint8 frames ``[batch, height, width, 3]``.
        preprocess: how the candidate's frames are prepared.
        samples: uint8 RGB frames of any size, in the order of the answers.
        reference_preprocess: how the reference's frames are prepared, where that is another way.
    """

    reference: Session
    candidate: Session
    preprocess: Preprocess
    samples: Sequence[Frames]
    reference_preprocess: Preprocess | None = None


def likely_cause(sides: Sides, wanted: Outputs, got: Outputs, agrees: Agrees) -> str:
    """Say in one sentence which usual mistake, once undone, makes the candidate answer as the reference.

    Tried on a few samples: red and blue exchanged, usual wrong normalizations, any other one by a fit, height and width
    exchanged, planar frames read as interleaved, mirrored frames, other ways to resize, a softmax, sigmoid or
    L2 normalization too many or missing, and outputs in another order. One mistake at a time is looked for.

    Args:
        wanted, got: the answers that do not agree, by output.
        agrees: tells whether answers agree, ``agrees(wanted, got)``.
    """
    if not all(np.isfinite(np.asarray(values, np.float64)).all() for values in (*wanted.values(), *got.values())):
        return "likely cause: a number inside the graph overflows: " + BISECT
    if any(np.ptp(values, axis=0).max() == 0 < np.ptp(wanted[name], axis=0).max() for name, values in got.items()):
        return "likely cause: lost weights inside the graph, whose answers are the same for every frame: " + BISECT
    chosen = _worst(wanted, got)
    few = dataclasses.replace(sides, samples=[sides.samples[i] for i in chosen])
    case = _Case(few, _rows(wanted, chosen), _rows(got, chosen))
    for group in (_trials, _fitted):
        if found := _best(group(case), agrees):
            return found
    untried = f"; could not be tried: {', '.join(case.untried)}" if case.untried else ""
    return INSIDE + untried


@dataclass(frozen=True, slots=True)
class _Trial:
    """One suspect undone: what both sides answer then, and how far apart they are without that."""

    name: str
    wanted: Outputs
    got: Outputs
    before: float


class _Case:
    """The few samples as both sides see them."""

    def __init__(self, sides: Sides, wanted: Outputs, got: Outputs) -> None:
        self.preprocess = sides.preprocess
        self.true = sides.reference_preprocess or sides.preprocess
        self.samples = sides.samples
        self.wanted, self.got = wanted, got
        self.distance = _distance(wanted, got)
        self.frames = sides.preprocess.batch(sides.samples)
        self.same_size = self.true.size == self.preprocess.size
        self.untried: list[str] = []
        self._sides = sides

    def reference(self, frames: Frames) -> Outputs:
        return self._run(self._sides.reference, frames)

    def candidate(self, frames: Frames) -> Outputs:
        return self._run(self._sides.candidate, frames)

    def on(self, name: str, frames: Frames) -> _Trial:
        """The trial that gives changed frames to the candidate alone."""
        return _Trial(name, self.wanted, self.candidate(frames), self.distance)

    def recoloured(self, name: str, seen: Frames, meant: Frames) -> _Trial:
        """The trial that gives ``seen`` to the candidate, and to the reference what the candidate makes of it."""
        got = self.candidate(seen)
        return _Trial(name, self.reference(meant), got, _distance(self.reference(seen), got))

    @staticmethod
    def _run(session: Session, frames: Frames) -> Outputs:
        as_they_are = Preprocess(size=(frames.shape[1], frames.shape[2]))
        return run_frames(session, as_they_are, list(frames))


def _best(trials: Iterator[_Trial], agrees: Agrees) -> str | None:
    """What the trial that leaves the least is called, if it leaves little enough."""
    least, found = np.inf, None
    for trial in trials:
        after = _distance(trial.wanted, trial.got)
        left = after / trial.before if trial.before else 1.0
        same = max(left, after) <= HALF and agrees(trial.wanted, trial.got)
        if (same or (left <= LITTLE and after <= SMALL)) and after < least:
            outcome = "the answers agree" if same else f"{1 - left:.0%} of the difference is gone"
            least, found = after, f"likely cause: {trial.name} (with that undone {outcome})"
    return found


def _trials(case: _Case) -> Iterator[_Trial]:
    for suspects in (_on_outputs, _on_layout, _on_resize, _on_normalization):
        yield from suspects(case)


def _on_outputs(case: _Case) -> Iterator[_Trial]:
    if any(values.ndim != 2 for values in case.wanted.values()):
        return
    for name, function in (("softmax", _softmax), ("sigmoid", _sigmoid), ("L2 normalization", _unit)):
        wanted, got = ({key: function(side[key]) for key in side} for side in (case.wanted, case.got))
        yield _Trial(f"a {name} too many behind the variant's outputs", wanted, case.got, case.distance)
        yield _Trial(f"a {name} missing behind the variant's outputs", case.wanted, got, case.distance)
    if len(case.samples) < 2:
        case.untried.append("outputs in another order, which needs two samples")
        return
    orders = {key: _order(case.wanted[key], case.got[key]) for key in case.wanted}
    moved = {key: (order != np.arange(len(order))).sum() for key, order in orders.items()}
    if any(moved.values()):
        got = {key: values[:, orders[key]] for key, values in case.got.items()}
        key = max(moved, key=lambda key: int(moved[key]))
        first = int(np.flatnonzero(orders[key] != np.arange(len(orders[key])))[0])
        name = f"{moved[key]} outputs in another place, such as number {first} at {orders[key][first]}"
        yield _Trial(name, case.wanted, got, case.distance)


def _on_layout(case: _Case) -> Iterator[_Trial]:
    frames, (count, height, width, _) = case.frames, case.frames.shape
    yield case.on("red and blue are exchanged", frames[..., ::-1])
    if height == width:
        yield case.on("height and width are exchanged", frames.transpose(0, 2, 1, 3))
    else:
        case.untried.append("height and width exchanged, which a graph that is not square cannot take")
    planar = frames.transpose(0, 3, 1, 2).reshape(count, height, width, 3)
    yield case.on("frames are read as NCHW, they are NHWC", planar)
    yield case.on("frames are mirrored", frames[:, :, ::-1])
    yield case.on("frames are upside down", frames[:, ::-1])


def _on_resize(case: _Case) -> Iterator[_Trial]:
    own, side = case.preprocess, max(case.preprocess.size)
    like_reference = dataclasses.replace(own, resize=case.true.resize, interpolation=case.true.interpolation)
    other: dict[Preprocess, None] = {like_reference: None}
    for resize in (None, "letterbox", side, round(side / 0.875)):
        other[dataclasses.replace(own, resize=resize)] = None
    other[dataclasses.replace(own, interpolation="bicubic" if own.interpolation == "bilinear" else "bilinear")] = None
    for changed in other:
        if changed != own:
            name = f"wrong resize: frames {_how(own)}, the reference's {_how(changed)}"
            yield case.on(name, changed.batch(case.samples))
    if own.resize != "letterbox":
        nearest = np.stack([_nearest(own, frame) for frame in case.samples])
        yield case.on(f"wrong resize: {own.interpolation}, the reference's frames take the nearest pixel", nearest)


def _how(preprocess: Preprocess) -> str:
    if preprocess.resize is None:
        how = "stretched"
    elif preprocess.resize == "letterbox":
        how = "letterboxed"
    else:
        how = f"of short side {preprocess.resize} cropped"
    return f"{how}, {preprocess.interpolation}"


def _nearest(preprocess: Preprocess, frame: Frames) -> Frames:
    """The frame prepared with the nearest pixel's value in place of a weighted mean."""
    height, width = frame.shape[:2]
    centres = np.stack([np.arange(max(preprocess.size)) + 0.5] * 2, axis=-1)
    columns, rows = preprocess.placement(height, width).to_frame(centres).T
    rows, columns = rows[: preprocess.size[0]], columns[: preprocess.size[1]]
    return np.asarray(frame[np.ix_(_inside(rows, height), _inside(columns, width))])


def _inside(positions: Floats, size: int) -> NDArray[np.intp]:
    return np.clip(np.floor(positions), 0, size - 1).astype(np.intp)


def _on_normalization(case: _Case) -> Iterator[_Trial]:
    """Normalizations that are often taken by mistake.

    With ``(mean', std')`` in place of ``(mean, std)`` the candidate sees a frame ``u`` as the reference would see
    ``mean + std (u - mean') / std'``, of values 0-1. Frames are chosen of levels that both can be, as whole numbers.
    """
    true = case.true
    if not case.same_size:
        case.untried.append("another normalization, as the two sides take frames of different sizes")
        return
    mean, std = np.array(true.mean), np.array(true.std)
    for name, (wrong_mean, wrong_std) in _normalizations(case.preprocess, mean, std).items():
        scale = std / wrong_std
        shift = 255 * (mean - wrong_mean * scale)
        if np.allclose(scale, 1) and np.allclose(shift, 0, atol=1e-6):
            continue
        if pair := _representable(case.frames, scale, shift):
            yield case.recoloured(name, *pair)
        else:
            case.untried.append(f"{name}, which no uint8 frame shows")
    if pair := _representable(case.frames[..., ::-1], std / std[::-1], 255 * (mean - mean[::-1] * std / std[::-1])):
        meant = pair[1]
        yield case.recoloured("red and blue are exchanged behind the normalization", pair[0][..., ::-1], meant)


def _normalizations(preprocess: Preprocess, mean: Floats, std: Floats) -> dict[str, tuple[Floats, Floats]]:
    zeros, ones = np.zeros(3), np.ones(3)
    return {
        "frames are not normalized (values 0-1)": (zeros, ones),
        "frames are not normalized (values 0-255)": (zeros, ones / 255),
        "frames are normalized as 0-255, not 0-1": (mean / 255, std / 255),
        "frames are divided by 255 twice": (mean * 255, std * 255),
        "frames are normalized twice": (mean + mean * std, std * std),
        "the mean is not subtracted": (zeros, std),
        "frames are not divided by the std": (mean, ones),
        "wrong mean and std: those of ImageNet": (np.array(IMAGENET[0]), np.array(IMAGENET[1])),
        "wrong mean and std: 0.5 and 0.5": (ones / 2, ones / 2),
        "mean and std are in the order blue, green, red": (mean[::-1], std[::-1]),
        "wrong mean and std: those of the bundle": (np.array(preprocess.mean), np.array(preprocess.std)),
    }


def _representable(frames: Frames, scale: Floats, shift: Floats) -> tuple[Frames, Frames] | None:
    """Frames of levels ``u`` for which ``scale * u + shift`` is a level too, and the latter; ``None`` where none are.

    A channel keeps the levels with the smallest rounding that give 16 different ones, or all that there are; what is
    brighter stays brighter.
    """
    tables = [_levels(*pair) for pair in zip(scale, shift, strict=True)]
    if any(len(table) < 2 for table in tables):
        return None
    places = [
        (frames[..., i].astype(np.float64) * ((len(table) - 1) / 255)).round().astype(np.intp)
        for i, table in enumerate(tables)
    ]
    seen = np.stack([table[place] for table, place in zip(tables, places, strict=True)], axis=-1)
    return seen.astype(np.uint8), (seen * scale + shift).round().clip(0, 255).astype(np.uint8)


def _levels(scale: float, shift: float) -> NDArray[np.int64]:
    levels = np.arange(256)
    seen = levels * scale + shift
    valid = (seen > -0.5) & (seen < 255.5)
    rounding = np.abs(seen - seen.round())
    enough = min(16, np.unique(seen[valid].round()).size)
    for allowed in (0.001, 0.01, 0.05, 0.2):
        kept = valid & (rounding <= allowed)
        if np.unique(seen[kept].round()).size >= enough:
            return levels[kept]
    return levels[valid]


def _fitted(case: _Case) -> Iterator[_Trial]:
    """Any other mean and std, by Gauss-Newton on three gains and three shifts of the reference's frames.

    Frames are brought to the middle of their range, so that they may be moved both ways. It ends where a step gains
    little: at the fault, to within the rounding of frames, or at once where the fault is another one.
    """
    if not case.same_size:
        return
    seen = (64 + case.frames // 2).astype(np.uint8)
    target = _flat(case.candidate(seen))
    least, found, tried = np.inf, np.zeros(6), np.zeros(6)
    for _ in range(8):
        apart = target - _flat(case.reference(_moved(seen, tried)))
        if (size := float(np.linalg.norm(apart))) > 0.8 * least:
            break
        least, found = size, tried
        change = np.linalg.lstsq(_slopes(case, seen, found), apart, rcond=1e-6)[0] * STEPS
        tried = np.clip(found + change, [-0.6] * 3 + [-80.0] * 3, [1.5] * 3 + [80.0] * 3)
    gain, shift = 1 + found[:3], found[3:] - 128 * found[:3]
    mean, std = (np.array(case.true.mean) - shift / 255) / gain, np.array(case.true.std) / gain
    name = f"wrong mean or std: the variant answers as if with mean {_listed(mean)} and std {_listed(std)}"
    yield case.recoloured(name, seen, _moved(seen, found))


def _slopes(case: _Case, frames: Frames, at: Floats) -> Floats:
    """What one of ``STEPS`` changes in the reference's answers, ``[answers, steps]``, by central differences."""
    ends = ([_flat(case.reference(_moved(frames, at + way * step))) for step in np.diag(STEPS)] for way in (1, -1))
    ahead, behind = (np.stack(columns, axis=1) for columns in ends)
    return np.asarray((ahead - behind) / 2)


def _moved(frames: Frames, change: Floats) -> Frames:
    moved = 128 + (frames - 128.0) * (1 + change[:3]) + change[3:]
    return np.asarray(moved.round().clip(0, 255).astype(np.uint8))


def _listed(values: Floats) -> str:
    return f"({', '.join(f'{value:.3f}' for value in values)})"


def _worst(wanted: Outputs, got: Outputs) -> list[int]:
    """The samples whose answers differ most, in their order."""
    apart = sum(np.abs(a.reshape(len(a), -1) - b.reshape(len(b), -1)).mean(axis=1) for a, b in _pairs(wanted, got))
    return sorted(int(i) for i in np.argsort(-np.asarray(apart), kind="stable")[:FEW])


def _rows(outputs: Outputs, chosen: list[int]) -> Outputs:
    return {name: np.asarray(values, np.float64)[chosen] for name, values in outputs.items()}


def _distance(wanted: Outputs, got: Outputs) -> float:
    """The root mean square difference of the output furthest off, as a share of how much samples change the reference.

    What is the same for every sample is no sign of agreement: a constant answer is 1 or more away.
    """
    return max(float(np.sqrt(((a - b) ** 2).mean())) / _variation(a) for a, b in _pairs(wanted, got))


def _variation(values: Floats) -> float:
    return float(np.sqrt(values.var(axis=0).mean())) or float(values.std()) or 1.0


def _pairs(wanted: Outputs, got: Outputs) -> list[tuple[Floats, Floats]]:
    return [(values.astype(np.float64), got[name].astype(np.float64)) for name, values in wanted.items()]


def _flat(outputs: Outputs) -> Floats:
    return np.concatenate([values.astype(np.float64).ravel() for values in outputs.values()])


def _order(wanted: Floats, got: Floats) -> NDArray[np.intp]:
    """For each column the column of ``got`` that is nearest to it; its own place where several are.

    The identity where that is no permutation.
    """
    places = np.arange(wanted.shape[1])
    apart = (wanted**2).sum(0)[:, None] - 2 * wanted.T @ got + (got**2).sum(0)[None, :]
    nearest = apart.argmin(axis=1)
    return nearest if np.array_equal(np.sort(nearest), places) else places


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))))


def _unit(values: Floats) -> Floats:
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.where(norms == 0, 1, norms))

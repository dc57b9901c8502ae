"""Does the got10k toolkit read the result files of `edgecv evaluate --out`, and score them to the same figures?

    python -m venv toolkit && toolkit/bin/pip install got10k six
    EDGECV_DATA=… python benchmarks/got10k_agreement.py --toolkit toolkit/bin/python BUNDLE

BUNDLE is a tracker's, such as `edgecv convert --from nanotrack` makes. The four sequences are laid out as the toolkit's
GOT-10k and OTB experiments expect them: for GOT-10k once with every frame visible, and once with every tenth marked as
hidden; for OTB under four names of OTB-2013, as the toolkit knows no others. Scored are the tracker's files, written by
the command line, and those of boxes scattered around the truth and beyond the frame, where rounding and borders matter
most. The toolkit reports in a process of its own. Writes benchmarks/results/got10k_agreement.json; the exit status is 1
where AO, SR, success or precision, of a sequence or overall, differ by more than ALLOWED.

Two things differ by choice. The toolkit's frames per second are a mean over frames of 1 / seconds, edgecv's are frames
over seconds; they are not compared. And its OTB experiment counts a frame without a box as missed, which edgecv leaves
out of success and precision as it does hidden ones; the sequences have none.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgecv
from edgecv.cli.main import main as command_line
from edgecv.pipelines.tracking import Run, TrackSequence, open_sequences, score_all, score_sequence, write_results
from edgecv.profiling.system import library_versions, machine
from edgecv.schema import dumps, encode

RESULTS = Path(__file__).parent / "results" / "got10k_agreement.json"
ALLOWED = 1e-6  # files hold five decimals of a pixel
CASES = {"got10k": "got10k", "got10k, frames hidden": "got10k", "otb": "otb"}
NAMES = "from got10k.datasets import OTB; print(*OTB._OTB__version_dict[2013])"
VERSIONS = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('got10k', 'numpy')))"
REPORT = """
import sys
from got10k.experiments import ExperimentGOT10k, ExperimentOTB
layout, data, results, reports, *names = sys.argv[1:]
places = {"result_dir": results, "report_dir": reports}
if layout == "got10k":
    experiment = ExperimentGOT10k(data, subset="val", **places)
else:
    experiment = ExperimentOTB(data, version=2013, **places)
experiment.report(names)
"""
Figures = dict[str, float]


def lay_out_otb(sequences: tuple[TrackSequence, ...], folder: Path, names: list[str]) -> Path:
    """Write links to the frames and the annotations as OTB has them; return the folder that holds the sequences."""
    for name in names:  # the toolkit downloads those that have no folder
        (folder / name).mkdir(parents=True)
    for name, sequence in zip(names, sequences, strict=False):
        _link(sequence, folder / name / "img")
        _write(folder / name / "groundtruth_rect.txt", sequence.boxes, "%.2f")
    return folder


def lay_out_got10k(sequences: tuple[TrackSequence, ...], folder: Path, hide: bool) -> Path:
    """As ``lay_out_otb``, for GOT-10k; ``hide`` marks every tenth frame as one in which the target cannot be seen."""
    for sequence in sequences:
        place, count = folder / "val" / sequence.name, len(sequence)
        _link(sequence, place)
        _write(place / "groundtruth.txt", sequence.boxes, "%.4f")
        height, width = sequence[0].shape[:2]
        (place / "meta_info.ini").write_text(f"[METAINFO]\nresolution: ({width}, {height})\n")
        hidden = hide & (np.arange(count) % 10 == 5)
        _write(place / "cover.label", np.where(hidden, 0, 8)[:, None], "%d")
        _write(place / "absence.label", hidden[:, None].astype(int), "%d")
        _write(place / "cut_by_image.label", np.zeros((count, 1)), "%d")
    (folder / "val" / "list.txt").write_text("\n".join(sequence.name for sequence in sequences) + "\n")
    return folder / "val"


def _link(sequence: TrackSequence, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sequence.files, 1):
        (folder / f"{number:08d}{file.suffix}").symlink_to(file.resolve())


def _write(path: Path, values: NDArray[Any], form: str) -> None:
    np.savetxt(path, values, form, delimiter=",")


def evaluated(bundle: Path, data: Path, out: Path, layout: str) -> dict[str, Any]:
    """What `edgecv evaluate --json` says, having written its result files."""
    text = io.StringIO()
    argv = ["evaluate", bundle, "--data", data, "--out", out, "--layout", layout, "--json", "--threads", 1]
    with contextlib.redirect_stdout(text):
        status = command_line([str(arg) for arg in argv])
    if status:
        raise SystemExit(status)
    found = json.loads(text.getvalue())
    return {"overall": found["scores"], **found["sequences"]}


def scattered(sequences: tuple[TrackSequence, ...], out: Path, layout: str) -> dict[str, Any]:
    """The figures of boxes around the truth, moved by as much as their own size, their result files written."""
    runs = []
    for seed, sequence in enumerate(sequences):
        random = np.random.default_rng(seed)
        boxes, count = sequence.boxes.copy(), len(sequence)
        spread = random.random((count, 1)) ** 2
        boxes[:, :2] += spread * random.normal(size=(count, 2)) * boxes[:, 2:]
        boxes[:, 2:] *= np.exp(spread * random.normal(size=(count, 2)))
        boxes[::17, :2] = -20.5  # begins outside the frame
        boxes[0] = sequence.boxes[0]
        height, width = sequence[0].shape[:2]
        runs.append(Run(sequence, boxes, np.full(count, 0.01), (width, height)))
    write_results(runs, out, layout)  # type: ignore[arg-type]  # one of the two
    return {"overall": encode(score_all(runs)), **{run.sequence.name: encode(score_sequence(run)) for run in runs}}


def asked(python: Path, code: str, *arguments: object) -> str:
    """What ``code`` prints in the toolkit's environment."""
    argv, environment = [str(python), "-c", code, *map(str, arguments)], {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the toolkit failed:\n{done.stderr}")
    return done.stdout


def reported(python: Path, layout: str, data: Path, work: Path, names: list[str]) -> dict[str, Any]:
    """What the toolkit says of each tracker, by its own name for each figure."""
    asked(python, REPORT, layout, data, work / "results", work / "reports", *names)
    file = next((work / "reports").glob(f"*/{names[0]}/performance.json"))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def theirs(layout: str, figures: dict[str, Any]) -> Figures:
    if layout == "otb":
        return {"success": figures["success_score"], "precision": figures["precision_score"]}
    found = {"ao": figures["ao"], "sr50": figures["sr"]}
    if "succ_curve" in figures:  # of all sequences together
        found["sr75"] = figures["succ_curve"][75]
    return found


def compare(layout: str, ours: dict[str, Any], toolkit: dict[str, Any]) -> dict[str, Any]:
    """Both figures of everything, and the largest difference."""
    each = {"overall": toolkit["overall"], **toolkit["seq_wise"]}
    rows, largest = {}, 0.0
    for name, figures in each.items():
        wanted = theirs(layout, figures)
        got = {key: ours[name][key] for key in wanted}
        largest = max([largest, *(abs(got[key] - wanted[key]) for key in wanted)])
        if figures["speed_fps"] <= 0:
            raise SystemExit(f"the toolkit read no times of {name}")
        rows[name] = {"edgecv": got, "toolkit": wanted}
    if set(each) != set(ours):
        raise SystemExit(f"scored are {', '.join(ours)} here, {', '.join(each)} by the toolkit")
    return {"largest_difference": largest, "figures": rows}


def measure(bundle: Path, python: Path, data: Path, case: str, work: Path) -> dict[str, Any]:
    layout, sequences = CASES[case], open_sequences(data / "tracking")
    if layout == "otb":
        folder = lay_out_otb(sequences, work / "data", asked(python, NAMES).split())
    else:
        folder = lay_out_got10k(sequences, work / "data", "hidden" in case)
    sequences, held = open_sequences(folder), work / "results" / {"got10k": "GOT-10k", "otb": "OTB2013"}[layout]
    ours = {
        "tracker": evaluated(bundle, folder, held / "tracker", layout),
        "scattered boxes": scattered(sequences, held / "scattered boxes", layout),
    }
    toolkit = reported(python, layout, work / "data", work, list(ours))
    return {name: compare(layout, figures, toolkit[name]) for name, figures in ours.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare edgecv's figures of trackers with those of got10k.")
    parser.add_argument("bundle", type=Path, help="a tracker's bundle")
    parser.add_argument("--toolkit", type=Path, required=True, metavar="PYTHON", help="of an environment with got10k")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="where the JSON goes")
    arguments = parser.parse_args()
    bundle, found = edgecv.Bundle.load(arguments.bundle), {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(os.environ["EDGECV_DATA"])
            found[case] = measure(arguments.bundle, arguments.toolkit, data, case, Path(scratch))
        for name, compared in found[case].items():
            print(f"{case}, {name}: largest difference {compared['largest_difference']:.2g}")
    largest = max(compared["largest_difference"] for each in found.values() for compared in each.values())
    report = {
        "machine": machine(),
        "versions": {**library_versions(), "toolkit": asked(arguments.toolkit, VERSIONS).strip()},
        "bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "allowed": ALLOWED,
        "largest_difference": largest,
        "cases": found,
    }
    arguments.out.write_text(dumps(report))
    return 0 if largest <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())

"""Networks of timm and torchvision, by name, through one training step and the conversion with its parity gate.

    make .venv/.libraries
    EDGECV_DATA=… PYTHONPATH=.venv/.libraries .venv/bin/python benchmarks/zoo_conversions.py [--only NAME] [--out FILE]

Needs timm and torchvision, which make installs beside the environment. Each network has fresh weights, 10 classes and
its own input size; the samples of the gate are real photos. Writes benchmarks/results/zoo_conversions.json. The figures
show that networks edgecv does not know are converted right, or refused with one line; they say nothing of accuracy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgecv
from edgecv import models
from edgecv.errors import one_line
from edgecv.images import find_images, read_image
from edgecv.models.framed import Framed
from edgecv.profiling.system import library_versions, machine
from edgecv.schema import dumps

RESULTS = Path(__file__).parent / "results" / "zoo_conversions.json"
# A name a word; ruff would have each on a line of its own.
TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet1_0 mobilenet_v3_small
    regnet_y_400mf resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t vgg11_bn vgg16_bn
"""
TIMM = """
    edgenext_xx_small efficientnet_lite0 efficientvit_b0 fbnetc_100 ghostnet_100 hardcorenas_a lcnet_050 mixnet_s
    mobilenetv1_100 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs regnetx_002 repvgg_a0 resnet18 rexnet_100
    seresnet50 tinynet_e vit_tiny_patch16_224
"""
MODELS = {"torchvision": TORCHVISION.split(), "timm": TIMM.split()}
CLASSES = 10
PHOTOS = 8
TIMEOUT_S = 1200.0
LIBRARIES: list[Any] = []  # a library that is collected takes its operators with it


def declare_operators() -> None:
    """Make torchvision importable where its compiled operators do not fit this torch; no classifier needs them."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for binary in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(binary))  # type: ignore[no-untyped-call]  # torch's own
        except OSError:
            continue
    if not hasattr(torch.ops.torchvision, "nms"):
        make: Any = torch.library.Library
        LIBRARIES.append(make("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            LIBRARIES[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def photos(count: int) -> list[Any]:
    """Real photos, spread over the folder, which is sorted by class."""
    files = find_images(Path(os.environ["EDGECV_DATA"]) / "imagenet" / "images")
    return [read_image(path) for path in files[:: max(1, len(files) // count)][:count]]


def train_step(network: nn.Module, preprocess: edgecv.Preprocess, frames: list[Any]) -> float:
    """One step of SGD on half of the photos with made-up classes; the loss before it.

    Batch norms then take the statistics of all photos, with nothing dropped at random: with those they start with, the
    answers of a deep network shrink to its last bias, the same for every photo, and any two graphs would agree; with
    those of a few photos, they explode on the others.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    # Frames are channels-last, where torch 2.13 corrupts memory on CPUs: in the weight gradient of a strided 1x1
    # convolution of 2 to 7 channels, which the first block of MobileOne and of RepVGG has.
    images = Framed(network, preprocess).normalize(torch.from_numpy(preprocess.batch(frames))).contiguous()
    count = len(frames) // 2
    loss = nn.functional.cross_entropy(network(images[:count]), torch.arange(count) % CLASSES)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    if not loss.isfinite():
        raise ArithmeticError(f"the loss of the training step is {loss.item()}")
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        network(images)
    return float(loss.detach())


def variation(network: nn.Module, preprocess: edgecv.Preprocess, frames: list[Any]) -> float:
    """How far answers differ between photos, as a share of their whole spread: near 0, agreement would mean little."""
    with torch.no_grad():
        logits = Framed(network.eval(), preprocess)(torch.from_numpy(preprocess.batch(frames)))
    return round(float(logits.std(dim=0).mean() / logits.std()), 4)


class Clock:
    """Takes the time between the first and the last report of each stage."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        started = self.started.setdefault(stage, time.perf_counter())
        if done == total:
            self.seconds[stage] = round(time.perf_counter() - started, 1)


def measure(library: str, name: str) -> dict[str, Any]:
    """Build, train one step, convert, compare."""
    torch.manual_seed(0)
    network = models.create(f"{library}:{name}", num_classes=CLASSES)
    preprocess = models.preprocess_of(network)
    assert preprocess is not None
    frames = photos(PHOTOS)
    row: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "size": preprocess.size,
        "loss": round(train_step(network, preprocess, frames), 4),
    }
    row["variation"] = variation(network, preprocess, frames)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        bundle = edgecv.convert(network, Path(folder, "bundle"), preprocess=preprocess, samples=frames, progress=clock)
        found = {key: variant.parity for key, variant in bundle.manifest.variants.items()}
    row["export_s"] = clock.seconds["export to ONNX"]
    row["variants"] = {
        key: {"max_abs": parity.max_abs, "cosine": parity.cosine, "top1_agreement": parity.top1_agreement}
        for key, parity in found.items()
        if parity is not None
    }
    return row


def measure_apart(library: str, name: str) -> dict[str, Any]:
    """``measure`` in a process of its own, so that no network takes another's memory with it."""
    command = [sys.executable, __file__, "--one", f"{library}:{name}"]
    row: dict[str, Any] = {"library": library, "name": name}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {**row, "error": f"not done after {TIMEOUT_S:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {**row, "error": one_line(f"exit status {done.returncode}: {last}")}
    return {**row, **json.loads(lines[-1])}


def one(full_name: str) -> None:
    """Print the row of one network as the last line; what edgecv refuses is a row too."""
    declare_operators()
    library, _, name = full_name.partition(":")
    try:
        row = measure(library, name)
    except (edgecv.EdgeCVError, ArithmeticError) as error:
        row = {"error": f"{type(error).__name__}: {one_line(error)}"}
    print(json.dumps(row))


def line(row: dict[str, Any]) -> str:
    title = f"{row['library']}:{row['name']:<26}"
    if "error" in row:
        return f"{title} {row['error']}"
    answers = "  ".join(
        f"{key} {found['max_abs']:.1e} {found['cosine']:.6f} {found['top1_agreement']:.0%}"
        for key, found in row["variants"].items()
    )
    figures = f"{row['parameters'] / 1e6:6.2f} M  varies {row['variation']:.3f}  export {row['export_s']:5.1f} s"
    return f"{title} {figures}  {answers}"


def run() -> None:
    parser = argparse.ArgumentParser(description="Convert networks of timm and torchvision with the parity gate.")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this network alone, others keep their rows; may be repeated"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--one", metavar="LIBRARY:NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one)
    if "EDGECV_DATA" not in os.environ:
        sys.exit("EDGECV_DATA names no folder of images")
    if missing := [library for library in MODELS if importlib.util.find_spec(library) is None]:
        sys.exit(f"this program needs {' and '.join(missing)}: make .venv/.libraries, then PYTHONPATH=.venv/.libraries")
    cases = [(library, name) for library, names in MODELS.items() for name in names]
    if arguments.only:
        cases = [(library, name) for library, name in cases if {name, f"{library}:{name}"} & set(arguments.only)]
    if not cases:
        sys.exit(f"no network of that name; known: {', '.join(name for names in MODELS.values() for name in names)}")
    held = json.loads(arguments.out.read_text())["networks"] if arguments.only and arguments.out.exists() else []
    found = {(row["library"], row["name"]): row for row in held}
    for library, name in cases:
        found[library, name] = measure_apart(library, name)
        print(line(found[library, name]), flush=True)
    rows = list(found.values())
    versions = {**library_versions(), **{name: version(name) for name in ("torch", "torchvision", "timm", "onnx")}}
    runtimes = {name: version(name) for name in ("onnxruntime", "openvino")}
    arguments.out.write_text(dumps({"machine": machine(), "versions": {**versions, **runtimes}, "networks": rows}))
    return None


if __name__ == "__main__":
    run()

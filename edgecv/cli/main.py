"""``edgecv VERB …``: find the verb, run it, turn errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol, cast

import edgecv
from edgecv.errors import BackendUnavailable, EdgeCVError, InputError, ParityError, one_line
from edgecv.plugins import unknown

__all__ = ["main"]

DESCRIPTION = "Efficient vision networks from PyTorch to a measured, verified artifact on the device."
DONE, GATE_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

# Each verb is the module edgecv.cli.VERB; its line here is its help, so that listing the verbs imports none of them.
VERBS = {
    "demo": "the whole way in two minutes: train, convert, verify, evaluate and profile a digit classifier",
    "doctor": "which backends can run here, which cannot and why, and the machine's facts",
    "models": "the architectures, their parameters and MACs",
    "train": "train a classifier on images, or a tracker on annotated sequences",
    "prune": "take channels out of a checkpoint, and train what is left",
    "cluster": "give a checkpoint's weights few different values, which are stored in few bytes",
    "quantize": "quantize a checkpoint to int8, and say what each layer gives and takes",
    "compress": "prune, train, quantize, convert and report, as one recipe file says",
    "convert": "convert a checkpoint for several backends, if their answers agree with the network's",
    "pack": "store a bundle in fewer bytes; nothing in it changes",
    "verify": "check every byte of a bundle, and its variants' answers against each other or the network",
    "evaluate": "accuracy on labelled images, or of a tracker on annotated sequences",
    "run": "classify images",
    "track": "follow targets through a video, a folder of frames, or what a camera sees",
    "profile": "latency of a bundle or a model file on this machine",
    "inspect": "what a bundle, a checkpoint or a model file holds",
    "lint": "whether ONNX graphs are ready for TensorRT, OpenVINO and ONNX Runtime",
}


class Verb(Protocol):
    """What a verb's module has."""

    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class _Parser(argparse.ArgumentParser):
    """Usage errors are errors of ours: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 a gate failed, 2 wrong usage or input."""
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except ParityError as error:
        return _complain(error, GATE_FAILED)
    except EdgeCVError as error:
        return _complain(error, WRONG_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone: not an error, but Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def _dispatch(argv: list[str]) -> int:
    top = _Parser(prog="edgecv", usage="edgecv VERB …", description=DESCRIPTION, epilog=_listing())
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("--version", action="version", version=f"edgecv {edgecv.__version__}")
    if not argv or argv[0].startswith("-"):
        top.parse_args(argv)
        top.print_help()
        return DONE if argv else WRONG_INPUT
    name = argv[0]
    if name not in VERBS:
        raise InputError(unknown("verb", name, VERBS))
    verb = cast(Verb, importlib.import_module(f"edgecv.cli.{name}"))
    parser = _Parser(
        prog=f"edgecv {name}",
        description=VERBS[name][0].upper() + VERBS[name][1:] + ".",
        epilog=f"example:\n  {verb.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    args = parser.parse_intermixed_args(argv[1:])  # KEY=VALUE may stand after options
    try:
        return verb.run(args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "edgecv":
            raise
        raise BackendUnavailable(
            f"edgecv {name} needs the Python package {error.name!r}, which is not installed: pip install 'edgecv[all]'"
        ) from error


def _listing() -> str:
    lines = [f"  {name:<10}{text}" for name, text in VERBS.items()]
    return "\n".join(["verbs:", *lines, "", "edgecv VERB --help says more, with an example."])


def _complain(error: object, status: int) -> int:
    print(f"edgecv: {one_line(error, 2000)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

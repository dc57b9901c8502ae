"""``edgecv doctor``: what can run here."""

from __future__ import annotations

import argparse

from edgecv.cli.common import add_json, print_json, table
from edgecv.cpu import Cpu, read_cpu
from edgecv.profiling.system import Machine, library_versions, machine
from edgecv.runtimes import BACKENDS, availability

EXAMPLE = "edgecv doctor --json | jq .backends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    found = [availability(name) for name in BACKENDS.names()]
    facts, cpu, versions = machine(), read_cpu(), library_versions()
    if args.json:
        print_json({"backends": found, "machine": facts, "cpu": cpu, "versions": versions})
        return 0
    print(table([(item.backend, "yes" if item.available else "no", item.reason) for item in found], _HEADER))
    print()
    print("\n".join(f"{name:<14}{value}" for name, value in _facts(facts, cpu, versions).items()))
    return 0


_HEADER = ("backend", "runs here", "what, or why not")


def _facts(facts: Machine, cpu: Cpu, versions: dict[str, str]) -> dict[str, str]:
    clock = f", now {facts.clock_mhz:.0f} MHz" if facts.clock_mhz else ""
    return {
        "processor": f"{facts.cpu} ({facts.architecture}){clock}",
        "cores": str(facts.cores),
        "instructions": ", ".join(facts.instructions) or "none of those that matter here",
        "int8": str(cpu),
        "governor": facts.governor or "not readable",
        "memory": f"{facts.memory_gb} GB" if facts.memory_gb else "not readable",
        "system": facts.system,
        "python": facts.python,
        **versions,
    }

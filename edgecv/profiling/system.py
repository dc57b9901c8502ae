"""The machine's facts that a latency depends on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import edgecv

__all__ = ["Machine", "library_versions", "load_average", "machine"]

CPUINFO = Path("/proc/cpuinfo")
CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine is; ``None`` where the system does not say."""

    cpu: str
    cores: int
    architecture: str
    system: str
    python: str
    governor: str | None
    clock_mhz: float | None
    memory_gb: float | None
    instructions: tuple[str, ...]


def machine() -> Machine:
    """Read this machine's facts."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        cpu=info.get("model name") or info.get("Model") or platform.processor() or "unknown",
        cores=_usable_cores(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        governor=_read(CPUFREQ / "scaling_governor"),
        clock_mhz=_clock_mhz(info),
        memory_gb=_memory_gb(),
        instructions=tuple(flag for flag in FLAGS if flag in flags),
    )


def library_versions(*others: str) -> dict[str, str]:
    """Versions of edgecv, numpy and what else is named and installed; a session adds its runtime's."""
    found = {name: installed(name) for name in others}
    return {"edgecv": edgecv.__version__, "numpy": np.__version__, **{k: v for k, v in found.items() if v}}


def installed(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute, where the system counts them."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    text = _read(CPUINFO) or ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines() + text.splitlines()[-3:])
    return {key.strip(): value.strip() for key, _, value in pairs}


def _clock_mhz(info: dict[str, str]) -> float | None:
    khz = _read(CPUFREQ / "scaling_cur_freq")
    mhz = float(khz) / 1000 if khz and khz.isdigit() else None
    reported = info.get("cpu MHz", "")
    return mhz or (float(reported) if reported.replace(".", "", 1).isdigit() else None)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None

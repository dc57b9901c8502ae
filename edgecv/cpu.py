"""What the CPU offers for int8: which instructions its kernels can use, and whether their sums saturate."""

from __future__ import annotations

import json
import platform
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SATURATES", "Cpu", "read_cpu", "warn_if_saturating"]

SATURATES = "edgecv_saturates"
"""Key of a graph's own metadata (ONNX's ``metadata_props``, OpenVINO's ``rt_info``): a JSON list of the layers whose
8-bit weights can saturate on a CPU that adds pairs of products in 16 bits. Absent where there is none, or in a file
that nobody has looked at."""

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
SYSCTL = ("/usr/sbin/sysctl", "-n")
# Each fact and what Linux and macOS call it.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512_vnni": ("avx512_vnni", "avx512vnni"),
    "avx_vnni": ("avx_vnni",),
    "amx_int8": ("amx_int8",),
    "dot_product": ("asimddp", "hw.optional.arm.feat_dotprod=1"),
    "i8mm": ("i8mm", "hw.optional.arm.feat_i8mm=1"),
}


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU's int8 instructions; ``None`` where the system does not say.

    Attributes:
        dot_product, i8mm: of ARM.
        saturates: whether u8 x s8 kernels add pairs of products in 16 bits, and so cut large sums off: on x86 without
            VNNI (``vpmaddubsw``). ARM's kernels do not.
    """

    architecture: str
    model: str | None
    avx2: bool | None
    avx512_vnni: bool | None
    avx_vnni: bool | None
    amx_int8: bool | None
    dot_product: bool | None
    i8mm: bool | None
    saturates: bool | None

    def __str__(self) -> str:
        if self.saturates is None:
            return "not readable"
        names = {"avx2": "AVX2", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX"}
        names |= {"dot_product": "dot product", "i8mm": "i8mm"}
        held = ", ".join(text for field, text in names.items() if getattr(self, field)) or "none of its own"
        return f"{held}; no VNNI: 8-bit weights can saturate, 7-bit weights cannot" if self.saturates else held


def read_cpu() -> Cpu:
    """Read what this machine's CPU has."""
    architecture = platform.machine()
    model, flags = {"Linux": _linux, "Darwin": _mac}.get(platform.system(), _unknown)()
    has = {fact: None if flags is None else any(name in flags for name in names) for fact, names in FLAGS.items()}
    saturates = None if flags is None else False
    if flags is not None and architecture.lower() in X86:
        saturates = not (has["avx512_vnni"] or has["avx_vnni"])
    return Cpu(architecture, model, saturates=saturates, **has)


def warn_if_saturating(source: object, layers: str) -> None:
    """Warn where this CPU would saturate a graph; ``layers`` is what its metadata holds under ``SATURATES``."""
    names = _names(layers)
    if names and read_cpu().saturates:
        held = f"{len(names)} layer{'' if len(names) == 1 else 's'} with 8-bit weights ({names[0]!r}"
        warnings.warn(
            f"{source}: {held}{')' if len(names) == 1 else ' first)'} can saturate on this CPU, which has no VNNI, and "
            "lose accuracy; quantize weights to 7 bits, or measure with edgecv evaluate on this machine",
            stacklevel=4,
        )


def _names(layers: str) -> list[str]:
    try:
        found = json.loads(layers or "[]")
    except ValueError:  # a label that someone else wrote under this key stops nobody from opening the file
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def _linux() -> tuple[str | None, frozenset[str] | None]:
    try:
        text = CPUINFO.read_text()
    except (OSError, UnicodeDecodeError):
        return _unknown()
    pairs = [line.partition(":") for line in text.splitlines()]
    found = {key.strip(): value.strip() for key, _, value in reversed(pairs)}  # of several processors the first
    flags = found.get("flags", found.get("Features"))
    return found.get("model name", found.get("Model")), None if flags is None else frozenset(flags.split())


def _mac() -> tuple[str | None, frozenset[str] | None]:
    keys = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
    arm = ("hw.optional.arm.FEAT_DotProd", "hw.optional.arm.FEAT_I8MM")
    found = {}
    for key in (*keys, *arm):
        try:
            done = subprocess.run([*SYSCTL, key], capture_output=True, text=True, check=False, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return _unknown()
        found[key] = done.stdout.strip()
    flags = f"{found[keys[1]]} {found[keys[2]]}".lower().split() + [f"{key}={found[key]}".lower() for key in arm]
    return found[keys[0]] or None, frozenset(flags)


def _unknown() -> tuple[None, None]:
    return None, None

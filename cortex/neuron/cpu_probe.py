"""The CPU as a device: its cores compute, its RAM is the device memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import attrs

from cortex.neuron.devices import Inventory
from cortex.wire import neuron as wire

MIB = 1 << 20


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores this process may use: affinity, siblings and the cgroup's quota counted.

    A matrix product gains nothing from a core's second hardware thread.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
    else:
        cpus = list(range(os.cpu_count() or 1))
    cores: set[str] = set()
    for cpu in cpus:
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(_read(siblings) or str(cpu))
    quota = (_read(root / "sys/fs/cgroup/cpu.max") or "max").split()
    count = len(cores)
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        count = min(count, int(quota[0]) // int(quota[1]))
    return max(count, 1)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _kib_fields(text: str) -> dict[str, int]:
    """``Name:   123 kB`` lines (/proc/meminfo, /proc/self/status) as bytes."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            sizes[name] = int(words[0]) * 1024
    return sizes


@attrs.frozen
class CpuProbe:
    """A `DeviceProbe` that reads /proc; *root* is where that is mounted.

    Used memory is this process's resident set, free memory what the kernel says is available.
    """

    root: Path = Path("/")

    def inventory(self) -> Inventory:
        total = self._memory().get("MemTotal") or _sysconf_total()
        device = wire.Device(
            index=0,
            name=self._name(),
            kind="cpu",
            vram_total_mb=None if total is None else total // MIB,
        )
        return Inventory((device,))

    def health(self) -> tuple[wire.DeviceHealth, ...]:
        free = self._memory().get("MemAvailable")
        used = _kib_fields(_read(self.root / "proc/self/status") or "").get("VmRSS")
        return (
            wire.DeviceHealth(
                index=0,
                vram_used_mb=None if used is None else used // MIB,
                vram_free_mb=None if free is None else free // MIB,
            ),
        )

    def _memory(self) -> dict[str, int]:
        """Of /proc/meminfo, bounded by the memory limit of the cgroup where there is one."""
        sizes = _kib_fields(_read(self.root / "proc/meminfo") or "")
        limit = _read(self.root / "sys/fs/cgroup/memory.max")
        current = _read(self.root / "sys/fs/cgroup/memory.current")
        if limit is not None and limit.isdigit():
            allowed = int(limit)
            taken = int(current) if current is not None and current.isdigit() else 0
            sizes["MemTotal"] = min(sizes.get("MemTotal", allowed), allowed)
            left = max(allowed - taken, 0)
            sizes["MemAvailable"] = min(sizes.get("MemAvailable", left), left)
        return sizes

    def _name(self) -> str:
        for line in (_read(self.root / "proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
        return platform.processor() or platform.machine() or "CPU"


def _sysconf_total() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not every system knows these names
        return None

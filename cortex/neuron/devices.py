"""Which devices this host has. One interface, three sources: NVML, torch, and the CPU.

GPUs are numbered as torch numbers them: by PCI bus (`pin_device_order` sees to it), and only those
that CUDA_VISIBLE_DEVICES lets through. Without a usable GPU the CPU is the one device, index 0.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping, MutableMapping
from typing import Protocol

import attrs

from cortex.wire import neuron as wire


@attrs.frozen
class Inventory:
    """The devices of a host, and why it has no GPU although it should."""

    devices: tuple[wire.Device, ...]
    cuda_version: str | None = None
    driver_version: str | None = None
    cuda_unavailable_reason: str | None = None


class DeviceProbe(Protocol):
    """A way to look at devices. Calls may block; each is made in a thread of its own."""

    def inventory(self) -> Inventory:
        """The devices there are. Raises `ProbeFailed` when this source cannot tell."""
        ...

    def health(self) -> tuple[wire.DeviceHealth, ...]:
        """How each device of the inventory is. A lost device is in it, with ``ok`` false."""
        ...


class ProbeFailed(Exception):
    """This source knows no usable device; the text says why, for the operator.

    ``expected`` is whether the host simply has no GPU: then there is nothing to report.
    """

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expected = expected


def pin_device_order(environ: MutableMapping[str, str]) -> None:
    """Make CUDA number GPUs by PCI bus, as NVML does. To be called before torch is imported."""
    environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def visible(environ: Mapping[str, str], uuids: list[str]) -> list[int]:
    """The positions in *uuids* of the GPUs that CUDA_VISIBLE_DEVICES lets through, in its order.

    As CUDA does, an entry that names no device ends the list.
    """
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            position = int(entry)
        else:
            matches = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            position = matches[0]
        if position in chosen:
            break
        chosen.append(position)
    return chosen


def find(probes: tuple[DeviceProbe, ...]) -> tuple[DeviceProbe, Inventory]:
    """The first of *probes* that has devices; what kept the earlier ones from it is passed on.

    The last one (the CPU's) must not fail.
    """
    reason: str | None = None
    for probe in probes[:-1]:
        try:
            inventory = probe.inventory()
        except ProbeFailed as exc:
            if not exc.expected:
                reason = reason or exc.reason
            continue
        return probe, attrs.evolve(
            inventory, cuda_unavailable_reason=inventory.cuda_unavailable_reason or reason
        )
    probe = probes[-1]
    return probe, attrs.evolve(probe.inventory(), cuda_unavailable_reason=reason)


def system_probes(environ: Mapping[str, str] = os.environ) -> tuple[DeviceProbe, ...]:
    """NVML, then torch, then the CPU. Imports neither NVML nor torch by itself."""
    from cortex.neuron.cpu_probe import CpuProbe
    from cortex.neuron.nvml_probe import NvmlProbe
    from cortex.neuron.torch_probe import TorchProbe

    return (NvmlProbe(environ), TorchProbe(), CpuProbe())


def discovery(
    inventory: Inventory, *, version: str | None = None, architectures: tuple[str, ...] = ()
) -> wire.Discovery:
    """What ``GET /discovery`` answers."""
    return wire.Discovery(
        hostname=socket.gethostname(),
        os=_os_name(),
        kernel=platform.release(),
        devices=inventory.devices,
        cuda_version=inventory.cuda_version,
        driver_version=inventory.driver_version,
        cuda_unavailable_reason=inventory.cuda_unavailable_reason,
        version=version,
        architectures=architectures,
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME") or platform.system()
    except OSError:
        return platform.system()

"""What holds once a fault is over, whatever it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import trio

from chaos.fleet import Gateway, Neuron
from chaos.load import CUT, HUNG, LEFT, LIED, WHOLE, Client, Ledger

SETTLE_SECONDS = 10.0
GROWTH_MB = 40.0  # of a process under load for seconds; a leak of each request's body is more
SPARE_DESCRIPTORS = 2  # that a thread or a database opens for a moment


@attrs.frozen
class Baseline:
    """What a gateway held before the fault, with its connections to *ports* left out: those are
    pooled, and closed after 30 s without use."""

    ports: tuple[int, ...]
    descriptors: int
    threads: int
    rss_mb: float

    @classmethod
    def of(cls, gateway: Gateway, neurons: Sequence[Neuron]) -> Baseline:
        ports = tuple(neuron.port for neuron in neurons)
        held = gateway.descriptors(but_to=ports)
        return cls(ports, held, gateway.threads(), gateway.rss_mb())


async def _busy(gateway: Gateway, neurons: Sequence[Neuron]) -> list[str]:
    """What is still held for requests, in words."""
    found: list[str] = []
    fleet = await gateway.fleet()
    for node in fleet["nodes"]:
        found += [
            f"{node['name']} holds {model['in_flight']} leases of {model['id']}"
            for model in node["models"]
            if model["in_flight"]
        ]
    if fleet["waiting"]:
        found.append(f"{fleet['waiting']} wait")
    if under_way := await gateway.metric("cortex_in_flight"):
        found.append(f"cortex_in_flight is {under_way}")
    for neuron in neurons:
        if neuron.alive and (count := await neuron.in_flight()):
            found.append(f"{neuron.name} works on {count}")
    return found


async def settled(
    gateway: Gateway,
    neurons: Sequence[Neuron],
    ledger: Ledger,
    before: Baseline,
    *,
    model: str | None = None,
    key: str | None = None,
    restarted: bool = False,
    growth_mb: float = GROWTH_MB,
) -> None:
    """Assert all that holds after a fault: every call has ended and none has lied; nothing is held
    for requests; no descriptor, thread or memory leaked (*restarted*: of a process that is not the
    one of *before*); each node is healthy; a request is served; usage is exact."""
    assert not ledger.of(HUNG, LIED), ledger.kinds
    await gateway.until_healthy()
    held: list[Any] = []
    with trio.move_on_after(SETTLE_SECONDS):
        while True:
            held = await _busy(gateway, neurons)
            spare = before.descriptors + SPARE_DESCRIPTORS
            count = gateway.descriptors(but_to=before.ports)
            if count > spare:
                held.append(f"{count} descriptors, {before.descriptors} before")
            if not held:
                break
            await trio.sleep(0.1)
    assert not held, held
    if not restarted:
        assert gateway.threads() <= before.threads + 4, "threads leaked"
        assert gateway.rss_mb() < before.rss_mb + growth_mb, "memory leaked"
    client = Client(gateway.url, ledger, **({} if model is None else {"model": model}), key=key)
    served = await client.ask()
    assert served.kind == WHOLE, served
    await exact(gateway, ledger)


async def exact(gateway: Gateway, ledger: Ledger) -> None:
    """Assert that the usage on record is what clients were told; of answers whose client left,
    or was cut off, at their very end it may have more."""
    with trio.move_on_after(SETTLE_SECONDS):
        while not _agree(gateway, ledger):
            await trio.sleep(0.1)
    assert _agree(gateway, ledger), (gateway.usage(), ledger.whole, ledger.kinds)


def _agree(gateway: Gateway, ledger: Ledger) -> bool:
    recorded, seen = gateway.usage(), ledger.whole
    cut = len(ledger.of(CUT, LEFT))
    if not cut:
        return recorded == seen
    return all(has >= saw for has, saw in zip(recorded, seen, strict=True)) and (
        recorded[0] - seen[0] <= cut
    )

"""Which nodes a fleet has, and what a new configuration means for each of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from cortex.config.gateway import NeuronNode


@attrs.frozen
class FleetChange:
    """Names of nodes, by what a new configuration means for them.

    A node that is reached elsewhere now is ``changed`` and known anew; one whose token or other
    settings changed is ``changed`` too, and keeps what is known of it.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def compare(before: Iterable[NeuronNode], after: Iterable[NeuronNode]) -> FleetChange:
    """What becomes of each node when *after* replaces *before*."""
    old = {neuron.name: neuron for neuron in before}
    new = {neuron.name: neuron for neuron in after}
    both = [name for name in new if name in old]
    return FleetChange(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name in both if old[name] != new[name]),
        kept=tuple(name for name in both if old[name] == new[name]),
    )


def same_place(one: NeuronNode, other: NeuronNode) -> bool:
    """Whether what is known of *one* holds for *other*."""
    return _place(one) == _place(other)


def _place(neuron: NeuronNode) -> tuple[str, str, str]:
    return neuron.name, neuron.endpoint.rstrip("/"), neuron.kind

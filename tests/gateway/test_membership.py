from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.gateway import NeuronNode
from cortex.gateway.membership import FleetChange, compare, same_place

nodes = st.builds(
    NeuronNode,
    st.sampled_from("abcd"),
    st.sampled_from(["http://x:1", "http://y:1"]),
    token=st.sampled_from([None, "t"]),
)
fleets = st.lists(nodes, max_size=4, unique_by=lambda node: node.name)


@given(fleets, fleets)
def test_every_node_of_either_is_told_once_and_rightly(before, after):
    change = compare(before, after)
    old, new = {n.name: n for n in before}, {n.name: n for n in after}
    told = (*change.added, *change.removed, *change.changed, *change.kept)
    assert sorted(told) == sorted(old | new)
    assert set(change.added) == set(new) - set(old)
    assert set(change.removed) == set(old) - set(new)
    assert all(old[name] == new[name] for name in change.kept)
    assert all(old[name] != new[name] for name in change.changed)


def test_nothing_is_changed_by_itself():
    fleet = [NeuronNode("a", "http://x:1"), NeuronNode("b", "http://y:1")]
    assert compare(fleet, fleet) == FleetChange(kept=("a", "b"))


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"endpoint": "http://x:1/"}, True),
        ({"token": "t"}, True),
        ({"poll_seconds": 9.0}, True),
        ({"endpoint": "http://x:2"}, False),
        ({"kind": "openai"}, False),
    ],
)
def test_a_place_is_an_address_and_what_is_there(fields, same):
    node = NeuronNode("a", "http://x:1")
    assert same_place(node, attrs.evolve(node, **fields)) is same

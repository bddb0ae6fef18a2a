from __future__ import annotations

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from cortex.config.gateway import NeuronNode
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet, NodeSnapshot
from cortex.gateway.fleet_changes import changes, picture, progress_of, watch
from cortex.wire import neuron as wire

DOWN = NodeSnapshot("a", "http://a")
UP = attrs.evolve(DOWN, healthy=True, spell=1, health=wire.Health(5.0))


def holding(status: str, done: int | None = None, error: str | None = None) -> NodeSnapshot:
    progress = wire.Progress("weights", done, 100, 7.0) if done is not None else None
    return attrs.evolve(UP, models=(wire.Model("m", status, progress=progress, error=error),))


def between(before: NodeSnapshot, after: NodeSnapshot) -> list:
    return changes(picture([before]), picture([after]))


def test_nothing_has_changed_between_a_picture_and_itself():
    node = holding("loaded")
    assert between(node, node) == []
    assert between(node, attrs.evolve(node, polled_at=99.0)) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (DOWN, UP, ("node_up", {"node": "a", "version": None})),
        (UP, attrs.evolve(UP, spell=2), ("node_up", {"node": "a", "version": None})),
        (
            UP,
            attrs.evolve(UP, healthy=False, error="gone"),
            ("node_down", {"node": "a", "error": "gone"}),
        ),
        (
            UP,
            attrs.evolve(UP, health=wire.Health(5.0, status="draining")),
            ("node_draining", {"node": "a"}),
        ),
    ],
)
def test_a_node_comes_goes_and_drains(before, after, expected):
    assert between(before, after) == [expected]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (UP, holding("loading", 0), ("loading", {"stage": "weights", "progress": 0.0, "eta": 7.0})),
        (UP, holding("loading"), ("loading", {})),
        (holding("loading"), holding("loaded"), ("loaded", {})),
        (holding("loaded"), holding("unloading"), ("unloading", {})),
        (holding("loaded"), holding("recovering"), ("recovering", {})),
        (holding("loading"), holding("failed", error="no room"), ("failed", {"error": "no room"})),
        (holding("unloading"), UP, ("unloaded", {})),
        (holding("loaded"), UP, ("unloaded", {})),
        (holding("loading"), UP, ("unloaded", {})),
    ],
)
def test_a_model_goes_from_state_to_state(before, after, expected):
    kind, fields = expected
    assert between(before, after) == [(f"model_{kind}", {"node": "a", "model": "m", **fields})]


def test_a_failure_that_is_forgotten_is_no_news():
    assert between(holding("failed"), UP) == []


def test_a_load_is_told_in_steps():
    assert between(holding("loading", 10), holding("loading", 12)) == []
    ((kind, fields),) = between(holding("loading", 10), holding("loading", 15))
    assert (kind, fields["progress"]) == ("model_loading", 0.15)


def test_nodes_are_added_and_removed_with_what_they_hold():
    assert changes({}, picture([holding("loaded")])) == [
        ("node_added", {"node": "a", "endpoint": "http://a"}),
        ("node_up", {"node": "a", "version": None}),
        ("model_loaded", {"node": "a", "model": "m"}),
    ]
    assert changes(picture([holding("loaded")]), {}) == [("node_removed", {"node": "a"})]


def test_what_is_not_known_of_a_load_is_left_out():
    assert progress_of(wire.Model("m", "loading")) == {}
    assert progress_of(wire.Model("m", "loading", progress=wire.Progress("resolve", 5))) == {
        "stage": "resolve"
    }


STATUSES = ("loading", "loaded", "unloading", "recovering", "failed")
nodes = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(st.booleans(), st.dictionaries(st.sampled_from("mno"), st.sampled_from(STATUSES))),
)


def drawn(of: dict) -> dict[str, NodeSnapshot]:
    return picture(
        attrs.evolve(
            UP,
            name=name,
            healthy=healthy,
            models=tuple(wire.Model(model, status) for model, status in models.items()),
        )
        for name, (healthy, models) in of.items()
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=nodes, after=nodes)
def test_who_knows_the_state_before_and_hears_the_events_knows_the_state_after(before, after):
    # Failures that are forgotten are no news: a reader drops them when it likes.
    known = {name: [healthy, dict(models)] for name, (healthy, models) in before.items()}
    for kind, fields in changes(drawn(before), drawn(after)):
        node, model = fields["node"], fields.get("model")
        what, _, state = kind.partition("_")
        if state == "added":
            known[node] = [False, {}]
        elif state == "removed":
            del known[node]
        elif what == "node":
            known[node][0] = state == "up"
        elif state == "unloaded":
            del known[node][1][model]
        else:
            known[node][1][model] = state
    for name, (_, models) in known.items():
        expected = after[name][1]
        for model in [m for m in models if models[m] == "failed" and m not in expected]:
            del models[model]
    assert known == {name: [healthy, models] for name, (healthy, models) in after.items()}


async def test_the_fleets_changes_are_published():
    fleet, events = Fleet([NeuronNode("a", "http://a")]), EventLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, fleet, events)
        await wait_all_tasks_blocked()
        fleet.polled("a", [wire.Model("m", "loaded")], wire.Health(1.0), asked_at=0.0)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [(event.kind, event.fields["node"]) for event in events.since(0).events] == [
        ("node_up", "a"),
        ("model_loaded", "a"),
    ]

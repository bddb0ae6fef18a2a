"""Pulls by way of the gateway, on neurons that say what a test tells them to."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
from fakes.gateway import gateway
from fakes.neuron import Asked, FakeNeuron, Reply, error_reply, json_reply

from cortex.config.catalogue import CatalogueEntry
from cortex.gateway import pulls

ENTRY = CatalogueEntry("org/model", source="hf:org/weights", quant="q4", pinned_on=("a",))


@attrs.define(eq=False)
class PullingNeuron:
    """Plays a neuron's pulls: ``pulls`` is what it lists."""

    neuron: FakeNeuron
    pulls: list[dict[str, Any]] = attrs.field(factory=list)
    orders: list[dict[str, Any]] = attrs.field(factory=list)
    refusal: Reply | None = None

    def __attrs_post_init__(self) -> None:
        self.neuron.scripts["/models/pull"] = self._pull
        self.neuron.scripts["/models/pulls"] = lambda _: json_reply({"pulls": self.pulls})
        self.neuron.scripts["/models/pull/cancel"] = self._cancel

    def _pull(self, asked: Asked) -> Reply:
        if self.refusal is not None:
            return self.refusal
        order = asked.json
        self.orders.append(order)
        told = {"id": order["model_id"], "source": order["source"], "status": "pulling"}
        self.pulls.append({**told, "quant": order.get("quant")})
        return json_reply(self.pulls[-1], 202)

    def _cancel(self, asked: Asked) -> Reply:
        for pull in self.pulls:
            if pull["id"] == asked.json["model_id"]:
                pull["status"] = "cancelled"
        return json_reply({"status": "cancelled"})


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulls, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(pulls, "LOOKS_ALLOWED", 3)


@pytest.fixture
async def fleet():
    a, b = (PullingNeuron(FakeNeuron(name)) for name in ("a", "b"))
    with trio.fail_after(20):
        entries = {"models": {ENTRY.id: ENTRY}, "aliases": {"gpt-4": ENTRY.id}}
        async with gateway(a.neuron, b.neuron, **entries) as running:
            await running.until(2, "cortex_neuron_up", within=5)
            yield running, a, b


async def order(running: Any, **fields: Any) -> Any:
    return await running.client.post("/fleet/models/pull", json=fields)


async def test_a_neuron_is_asked_for_what_the_catalogue_says(fleet):
    running, a, b = fleet
    answer = await order(running, model="gpt-4", node="b", verify=True)
    assert answer.status_code == 202
    (told,) = answer.json()["pulls"]
    assert (told["node"], told["id"], told["status"]) == ("b", "org/model", "pulling")
    assert b.orders == [
        {"model_id": "org/model", "source": "hf:org/weights", "quant": "q4", "verify": True}
    ]
    assert a.orders == []


async def test_a_model_in_no_catalogue_is_its_own_source(fleet):
    running, a, b = fleet
    await order(running, model="org/new", revision="v1", quant="q8")
    wanted = {"model_id": "org/new", "source": "org/new@v1", "quant": "q8", "verify": False}
    assert a.orders == b.orders == [wanted]  # on every neuron


async def test_without_a_node_those_get_it_that_may_load_it(fleet):
    running, a, b = fleet
    await order(running, model="org/model")
    assert (len(a.orders), len(b.orders)) == (1, 0)


async def test_the_beginning_and_the_end_are_events_and_the_end_is_counted(fleet):
    running, a, _ = fleet
    async with running.events() as events:
        await events.next()  # the snapshot
        await order(running, model="org/model")
        await order(running, model="org/model")  # joins, and is told once
        began = await events.until("pull_started")
        assert (began["node"], began["model"]) == ("a", "org/model")
        a.pulls[-1] |= {"status": "pulled", "fetched": 7, "seconds": 1.5}
        ended = await events.until("pull_ended")
        assert (ended["result"], ended["bytes"], ended["seconds"]) == ("pulled", 7, 1.5)
        await running.until(1, "cortex_pulls_total", node="a", result="pulled")


async def test_of_one_model_each_precision_is_followed(fleet):
    running, a, _ = fleet
    await order(running, model="org/model", quant="q4")
    await order(running, model="org/model", quant="q8")
    for pull in a.pulls:
        pull["status"] = "pulled"
    await running.until(2, "cortex_pulls_total", node="a", result="pulled")


@pytest.mark.parametrize("how", ["failed", "forgotten", "gone"])
async def test_a_pull_that_ends_badly_is_told(fleet, how):
    running, a, _ = fleet
    async with running.events() as events:
        await order(running, model="org/model")
        if how == "failed":
            a.pulls[-1] |= {"status": "failed", "error": "no room"}
        elif how == "forgotten":
            a.pulls.clear()
        else:
            a.neuron.kill()
        ended = await events.until("pull_ended")
    assert ended["result"] == "failed"
    assert {"failed": "no room", "forgotten": "knows nothing", "gone": "not answered"}[
        how
    ] in ended["error"]
    await running.until(1, "cortex_pulls_total", node="a", result="failed")


async def test_all_pulls_of_all_neurons_are_listed(fleet):
    running, a, b = fleet
    b.pulls.append({"id": "begun/there", "status": "pulling", "bytes_done": 5, "bytes_total": 9})
    await order(running, model="org/model")
    listed = (await running.client.get("/fleet/pulls")).json()["pulls"]
    assert [(each["node"], each["id"]) for each in listed] == [
        ("a", "org/model"),
        ("b", "begun/there"),
    ]
    assert listed[1]["bytes_done"] == 5
    a.neuron.scripts["/models/pulls"] = lambda _: error_reply(404, "not_found")  # an older one
    listed = (await running.client.get("/fleet/pulls")).json()["pulls"]
    assert [each["node"] for each in listed] == ["b"]


async def test_a_pull_is_stopped_where_it_is(fleet):
    running, a, b = fleet
    await order(running, model="org/new")
    stop = {"model": "org/new", "node": "b"}
    answer = await running.client.post("/fleet/models/pull/cancel", json=stop)
    assert answer.json() == {"status": "cancelled", "nodes": ["b"]}
    assert (a.pulls[-1]["status"], b.pulls[-1]["status"]) == ("pulling", "cancelled")
    await running.until(1, "cortex_pulls_total", node="b", result="cancelled")
    again = await running.client.post("/fleet/models/pull/cancel", json=stop)
    assert again.status_code == 404


@pytest.mark.parametrize(
    ("status", "code", "told"), [(404, "model_not_found", 200), (429, "overloaded", 429)]
)
async def test_a_neuron_that_stops_nothing_keeps_no_other_from_it(fleet, status, code, told):
    """Its pull may have ended since it was listed."""
    running, a, b = fleet
    await order(running, model="org/new")
    a.neuron.scripts["/models/pull/cancel"] = lambda _: error_reply(status, code)
    answer = await running.client.post("/fleet/models/pull/cancel", json={"model": "org/new"})
    assert answer.status_code == told
    assert b.pulls[0]["status"] == "cancelled"
    assert told != 200 or answer.json()["nodes"] == ["b"]


async def test_one_neurons_refusal_is_the_error_and_one_of_severals_is_its_own(fleet):
    running, a, _b = fleet
    a.refusal = error_reply(503, "insufficient_disk", "no room")
    alone = await order(running, model="org/new", node="a")
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "insufficient_disk")
    both = (await order(running, model="org/new")).json()["pulls"]
    assert [(each["node"], each["status"]) for each in both] == [("a", "failed"), ("b", "pulling")]
    assert "no room" in both[0]["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"model": ""}, 400),
        ({"model": "m", "node": 1}, 400),
        ({"model": "m", "verify": "yes"}, 400),
        ({"model": "a b"}, 404),
        ({"model": "m", "node": "zz"}, 404),
        ({"model": "org/m@v1", "revision": "v2"}, 400),
    ],
)
async def test_an_order_that_is_none_is_refused(fleet, body, status):
    running, a, b = fleet
    assert (await order(running, **body)).status_code == status
    assert a.orders == b.orders == []


async def test_without_a_neuron_there_is_nowhere_to_pull(fleet):
    running, a, _b = fleet
    a.neuron.kill()
    await running.until(1, "cortex_neuron_up", within=5)
    answer = await order(running, model="org/model")
    assert answer.status_code == 503

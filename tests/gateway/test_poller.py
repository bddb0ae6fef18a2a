from __future__ import annotations

import trio
from fakes.control_plane import control_plane
from fakes.neuron import FakeNeuron, Reply, error_reply

from cortex.config.gateway import NeuronNode


async def test_the_first_look_is_done_before_anybody_is_served(patient_clock):
    neuron = FakeNeuron("a")
    neuron.hold("m")
    async with control_plane(neuron) as plane:
        node = plane.fleet.node("a")
        assert node.healthy
        assert node.model("m") is not None
        assert node.discovery.devices[0].vram_total_mb == 24_000
        assert node.version == "0.0-fake"


async def test_a_slow_neuron_delays_neither_the_others_nor_the_start(patient_clock):
    slow, quick = FakeNeuron("slow"), FakeNeuron("quick")
    slow.scripts["/health"] = lambda asked: Reply(frames=(trio.Event(),))
    async with control_plane(slow, quick) as plane:
        assert trio.current_time() < 2
        assert plane.fleet.node("quick").healthy
        polls = quick.counts["/models"]
        await trio.sleep(4.5)
        assert quick.counts["/models"] >= polls + 2
        assert not plane.fleet.node("slow").healthy


async def test_a_node_goes_after_three_misses_and_comes_back_after_one_success(patient_clock):
    neuron = FakeNeuron("a")
    neuron.hold("m")
    async with control_plane(neuron) as plane:
        neuron.kill()
        await plane.seen(lambda fleet: fleet.node("a").misses == 2)
        assert plane.fleet.node("a").healthy
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        assert trio.current_time() < 10
        assert plane.fleet.replicas("m")
        plane.nursery.start_soon(neuron.run)
        await plane.seen(lambda fleet: fleet.node("a").healthy)


async def test_another_interval_holds_from_the_next_pause_on(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron) as plane:
        plane.poller.retune(100.0)
        await trio.sleep(3)  # the pause that was under way
        before = neuron.counts["/health"]
        await trio.sleep(80)
        assert neuron.counts["/health"] == before
        await trio.sleep(40)
        assert neuron.counts["/health"] == before + 1


async def test_a_node_that_loads_a_model_is_asked_more_often(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron) as plane:
        await trio.sleep(10)
        idle = neuron.counts["/health"]
        neuron.hold("m", "loading")
        await plane.seen(lambda fleet: fleet.node("a").model("m") is not None)
        before = neuron.counts["/health"]
        await trio.sleep(10)
        assert idle <= 7
        assert neuron.counts["/health"] - before >= 9
        neuron.hold("m")
        await plane.seen(lambda fleet: fleet.node("a").model("m").status == "loaded")
        before = neuron.counts["/health"]
        await trio.sleep(10)
        assert neuron.counts["/health"] - before <= 7


async def test_what_a_node_is_is_asked_once_a_spell(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron) as plane:
        await trio.sleep(20)
        assert neuron.counts["/models"] > 5
        assert neuron.counts["/discovery"] == 1
        neuron.kill()
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        neuron.devices.append({"index": 1, "name": "another"})
        plane.nursery.start_soon(neuron.run)
        await plane.seen(lambda fleet: len(fleet.node("a").discovery.devices) == 2)
        assert neuron.counts["/discovery"] == 2


async def test_a_probe_is_made_at_once(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron) as plane:
        neuron.hold("new")
        plane.poller.probe_now("a")
        before = trio.current_time()
        await plane.seen(lambda fleet: fleet.replicas("new") != ())
        assert trio.current_time() - before < 0.5
        polls = neuron.counts["/models"]
        await trio.sleep(10)
        assert neuron.counts["/models"] - polls <= 6  # and then as before


async def test_a_probe_asked_for_during_a_look_is_made_after_it(patient_clock):
    neuron = FakeNeuron("a")
    async with control_plane(neuron) as plane:
        looking, go_on = trio.Event(), trio.Event()

        def slow_once(asked):
            del neuron.scripts["/models"]
            looking.set()
            return Reply(frames=(go_on, b"[]"))

        neuron.scripts["/models"] = slow_once
        plane.poller.probe_now("a")
        await looking.wait()
        neuron.hold("new")
        plane.poller.probe_now("a")
        go_on.set()
        before = trio.current_time()
        await plane.seen(lambda fleet: fleet.replicas("new") != ())
        assert trio.current_time() - before < 0.5


async def test_a_neuron_without_a_version_route_is_healthy(patient_clock):
    neuron = FakeNeuron("a")
    neuron.scripts["/version"] = lambda asked: error_reply(404, "not_found")
    async with control_plane(neuron) as plane:
        assert plane.fleet.node("a").healthy
        assert plane.fleet.node("a").version is None
        assert plane.fleet.node("a").discovery is not None


async def test_a_wrong_token_shows_as_the_nodes_error(patient_clock):
    neuron = FakeNeuron("a", token="right")
    async with control_plane(neuron) as plane:
        neuron.token = "changed"
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        assert "token" in plane.fleet.node("a").error


async def test_a_dead_node_is_asked_less_and_less_often(patient_clock):
    neuron = FakeNeuron("a")
    neuron.scripts["/health"] = lambda asked: error_reply(503, "service_unavailable")
    async with control_plane(neuron):
        await trio.sleep(30)
        early = neuron.counts["/health"]
        await trio.sleep(150)
        late = neuron.counts["/health"] - early
        assert late <= 12  # at the ceiling of 15 s, give or take the jitter
        assert late >= 8  # but never given up


# Nodes that come and go


def configured(*neurons: FakeNeuron) -> list[NeuronNode]:
    return [NeuronNode(neuron.name, neuron.url, token=neuron.token) for neuron in neurons]


async def test_a_node_that_is_added_is_watched_from_then_on(patient_clock):
    first, second = FakeNeuron("a"), FakeNeuron("b")
    second.hold("m")
    async with control_plane(first) as plane:
        await plane.nursery.start(second.run)
        plane.fleet.configure(configured(first, second))
        plane.poller.probe_now("b")  # whose watcher has not begun yet
        before = trio.current_time()
        await plane.seen(lambda fleet: fleet.node("b").healthy)
        assert trio.current_time() - before < 0.5
        assert plane.fleet.replicas("m")
        polls = second.counts["/models"]
        await trio.sleep(10)
        assert second.counts["/models"] >= polls + 4


async def test_a_node_that_is_removed_is_asked_no_more(patient_clock):
    first, second = FakeNeuron("a"), FakeNeuron("b")
    async with control_plane(first, second) as plane:
        plane.fleet.configure(configured(first))
        await trio.sleep(5)
        asked = second.counts["/health"]
        plane.poller.probe_now("b")
        await trio.sleep(10)
        assert second.counts["/health"] == asked
        assert first.counts["/health"] >= 5


async def test_a_node_that_moved_is_looked_at_where_it_is_now(patient_clock):
    old, new = FakeNeuron("a"), FakeNeuron("a")
    old.hold("old")
    new.hold("new")
    async with control_plane(old) as plane:
        await plane.nursery.start(new.run)
        plane.fleet.configure(configured(new))
        await plane.seen(lambda fleet: fleet.node("a").healthy)
        assert [model.id for model in plane.fleet.node("a").models] == ["new"]
        await plane.seen(lambda fleet: fleet.node("a").discovery is not None)
        asked = old.counts["/health"]
        await trio.sleep(10)
        assert old.counts["/health"] == asked


async def test_an_answer_from_where_a_node_was_is_not_taken_for_the_nodes(patient_clock):
    old, new = FakeNeuron("a"), FakeNeuron("a")
    old.hold("old")
    async with control_plane(old) as plane:
        await plane.nursery.start(new.run)
        looking, go_on = trio.Event(), trio.Event()

        def slow(asked):
            looking.set()
            return Reply(frames=(go_on, b"[]"))

        old.scripts["/models"] = slow
        plane.poller.probe_now("a")
        await looking.wait()
        go_on.set()
        plane.fleet.configure(configured(new))
        await plane.seen(lambda fleet: fleet.node("a").healthy)
        assert plane.fleet.node("a").endpoint == new.url
        assert plane.fleet.replicas("old") == ()


async def test_a_new_token_is_used_at_once(patient_clock):
    neuron = FakeNeuron("a", token="old")
    async with control_plane(neuron) as plane:
        neuron.token = "new"
        await plane.seen(lambda fleet: not fleet.node("a").healthy)
        plane.fleet.configure(configured(neuron))
        before = trio.current_time()
        await plane.seen(lambda fleet: fleet.node("a").healthy)
        assert trio.current_time() - before < 0.5

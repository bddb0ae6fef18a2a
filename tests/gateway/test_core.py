from __future__ import annotations

import json
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from fakes.control_plane import ControlPlane, control_plane
from fakes.gateway import chat, payloads
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply, json_reply
from fakes.raw_server import RawServer
from fakes.streams import collect

from cortex.config.catalogue import CatalogueEntry
from cortex.config.gateway import GatewayConfig, GatewaySettings
from cortex.errors import (
    BadRequest,
    ContextLengthExceeded,
    CortexError,
    LoadFailed,
    ModelNotFound,
    Unavailable,
    UpstreamError,
)
from cortex.gateway.auth.caller import Caller
from cortex.gateway.breaker import FAILURES
from cortex.gateway.composition import make_core
from cortex.gateway.core import InferenceCore
from cortex.gateway.dispatch import Job
from cortex.gateway.encoder import PassThrough
from cortex.gateway.queue import WaitingRoom
from cortex.gateway.upstream import PooledUpstream
from cortex.service.http import HttpRequest

PATH = "/v1/chat/completions"


def holding(name: str, **fields) -> FakeNeuron:
    neuron = FakeNeuron(name, **fields)
    neuron.hold("m")
    return neuron


@attrs.define(eq=False)
class Bench:
    core: InferenceCore
    plane: ControlPlane
    upstream: PooledUpstream

    def request(self, headers=None, request_id="req_1") -> HttpRequest:
        return HttpRequest("POST", PATH, headers or {}, b"", {}, request_id)

    async def unary(self, *, headers=None, model="m", **fields):
        body = chat(model, **fields)
        job = Job("openai-chat", model, PATH, body, stream=False)
        answer, resolved = await self.core.unary(self.request(headers), job)
        assert resolved == "m"
        return answer

    async def stream(self, *, headers=None) -> bytes:
        job = Job("openai-chat", "m", PATH, chat(stream=True), stream=True)
        answer = await self.core.stream(
            self.request(headers),
            job,
            lambda model: PassThrough(model=model, requested="m", include_usage=False),
        )
        return await collect(answer)

    def requests(self) -> dict[str, float]:
        return {
            sample.labels["code"]: sample.value
            for family in self.plane.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_requests_total"
        }

    def held(self) -> float:
        """Leases and requests that are counted as under way."""
        fleet = self.plane.fleet
        leases = sum(fleet.in_flight(name, "m") for name in self.plane.neurons)
        gauge = sum(
            sample.value
            for family in self.plane.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_in_flight"
        )
        return leases + gauge


@asynccontextmanager
async def bench(*neurons: FakeNeuron, **fields):
    with trio.fail_after(15):
        async with control_plane(*neurons, **fields) as plane, PooledUpstream(5.0) as upstream:
            room = WaitingRoom(plane.fleet, 10, 1.0)
            config = GatewayConfig(GatewaySettings())
            core = make_core(plane.router, plane.names, upstream, plane.metrics, config, room)
            yield Bench(core, plane, upstream)


@asynccontextmanager
async def raising(error: type[CortexError], match: str | None = None):
    expected = pytest.RaisesExc(error, match=match)
    with pytest.RaisesGroup(expected, flatten_subgroups=True, allow_unwrapped=True) as caught:
        yield caught


# Retries


@pytest.mark.parametrize(
    "reply",
    [
        error_reply(503, "service_unavailable"),
        error_reply(503, "overloaded"),
        error_reply(404, "model_not_found"),
        error_reply(401, "invalid_api_key"),
        Reply(502, (b"<html>bad gateway</html>",), content_type="text/html"),
    ],
    ids=["unavailable", "overloaded", "not-loaded", "token", "proxy"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_one_replica_refuses_another_serves(reply, stream):
    bad, good = holding("a"), holding("b")
    bad.scripts[PATH] = lambda asked: reply
    # A replica that has lost the model must say so when it is asked again.
    if reply.status == 404:
        bad.scripts["/models"] = lambda asked: json_reply([]) if bad.counts[PATH] else None
    async with bench(bad, good) as b:
        if stream:
            assert (await b.stream()).endswith(b"data: [DONE]\n\n")
        else:
            answer = await b.unary()
            assert answer["choices"][0]["message"]["content"] == "Hello, world"
        assert (bad.counts[PATH], good.counts[PATH]) == (1, 1)
        assert b.requests() == {"200": 1}
        assert b.plane.sample("cortex_upstream_retries_total", model="m", node="a") == 1
        assert b.held() == 0


async def test_the_requests_of_a_session_go_to_one_replica():
    neurons = holding("a"), holding("b"), holding("c")
    async with bench(*neurons) as b:
        for session in ("s1", "s2", "s3", "s4"):
            before = [neuron.counts[PATH] for neuron in neurons]
            for turn in range(3):
                await b.unary(headers={"x-session-id": session}, seed=turn)
            after = [neuron.counts[PATH] for neuron in neurons]
            assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 0, 3]


async def test_a_replica_that_refuses_connections_is_passed_over_and_probed_at_once():
    dead, good = holding("a"), holding("b")
    async with bench(dead, good) as b:
        dead.kill()
        assert (await b.unary())["model"] == "m"
        with trio.fail_after(1):  # the next regular poll is two seconds away
            await b.plane.seen(lambda fleet: fleet.node("a").misses > 0)
        assert good.counts[PATH] == 1


async def test_a_replica_that_hangs_up_without_a_byte_is_passed_over():
    async def hang_up(peer):
        await peer.request()

    server = RawServer(hang_up)
    bad, good = holding("a"), holding("b")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        bad.advertised = server.url
        async with bench(bad, good) as b:
            await b.unary()
            assert (server.connections, good.counts[PATH]) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_a_replica_whose_answer_has_no_http_head_is_passed_over():
    async def babble(peer):
        await peer.request()
        await peer.say(b"SMTP ready\r\n\r\n")

    server = RawServer(babble)
    bad, good = holding("a"), holding("b")
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        bad.advertised = server.url
        async with bench(bad, good) as b:
            await b.unary()
            assert (server.connections, good.counts[PATH]) == (1, 1)
            assert b.held() == 0
        nursery.cancel_scope.cancel()


async def test_when_every_replica_refuses_the_last_word_is_the_clients():
    async with bench(holding("a"), holding("b")) as b:
        for neuron in b.plane.neurons.values():
            neuron.scripts[PATH] = lambda asked: error_reply(
                503, "load_failed", "no room", retry_after=7
            )
        async with raising(LoadFailed, "no room") as caught:
            await b.unary()
        assert leaf(caught.value).retry_after == 7
        assert b.requests() == {"503": 1}
        assert b.held() == 0


@pytest.mark.parametrize("how", ["fault", "break", "token"])
async def test_a_node_that_fails_requests_but_not_polls_is_left_alone_for_a_while(how):
    def fail(asked):
        if how == "break":
            frames = (chunk("m", {"role": "assistant", "content": "Hel"}),)
            return Reply(frames=frames, content_type="text/event-stream", abort=True)
        return error_reply(500, "internal_error") if how == "fault" else error_reply(401, "no")

    bad, good = holding("a"), holding("b")
    bad.scripts[PATH] = fail
    async with bench(bad, good) as b:
        for number in range(8 * FAILURES):  # sessions that would go to either of the two
            await b.stream(headers={"x-session-id": str(number)})
        assert bad.counts[PATH] == FAILURES
        assert b.plane.fleet.node("a").circuit == "open"
        assert b.plane.fleet.node("a").healthy
        assert b.plane.sample("cortex_circuit_open", node="a") == 1
        good.kill()
        bad.scripts.clear()
        assert (await b.unary())["choices"]  # there is no other
        assert b.plane.sample("cortex_circuit_open", node="a") == 0


async def test_a_model_that_is_there_after_all_is_asked_for_again():
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: (
        error_reply(404, "model_not_found") if neuron.counts[PATH] == 1 else None
    )
    async with bench(neuron) as b:
        polls = neuron.counts["/models"]
        assert (await b.unary())["choices"]
        assert neuron.counts[PATH] == 2
        assert neuron.counts["/models"] == polls + 1
        assert b.plane.sample("cortex_upstream_retries_total", model="m", node="a") == 1


async def test_a_model_that_is_gone_is_not_found_once_that_was_seen():
    neuron = holding("a")

    def lose(asked):
        neuron.models.clear()
        return error_reply(404, "model_not_found")

    neuron.scripts[PATH] = lose
    async with bench(neuron) as b:
        async with raising(ModelNotFound):
            await b.unary()
        assert neuron.counts[PATH] == 1


async def test_what_the_client_did_wrong_and_a_full_queue_open_no_circuit():
    neuron = holding("a")
    async with bench(neuron) as b:
        neuron.scripts[PATH] = lambda asked: error_reply(400, "invalid_value")
        for _ in range(2 * FAILURES):
            async with raising(BadRequest):
                await b.unary()
        neuron.scripts[PATH] = lambda asked: error_reply(503, "overloaded")
        for _ in range(2 * FAILURES):
            with trio.move_on_after(0.02):  # else it would wait for room
                await b.unary()
        assert neuron.counts[PATH] >= 3 * FAILURES
        assert b.plane.fleet.node("a").circuit == "closed"


async def test_retries_are_bounded():
    async with bench(*[holding(name) for name in "abcde"]) as b:
        neurons = b.plane.neurons.values()
        for neuron in neurons:
            neuron.scripts[PATH] = lambda asked: error_reply(503, "service_unavailable")
        async with raising(Unavailable):
            await b.unary()
        assert sum(neuron.counts[PATH] for neuron in neurons) == 3


async def test_after_the_first_byte_nothing_is_retried():
    cut, good = holding("a"), holding("b")
    cut.scripts[PATH] = lambda asked: Reply(
        frames=[chunk("m", {"content": "a"})], content_type="text/event-stream", abort=True
    )
    async with bench(cut, good) as b:
        last = payloads(await b.stream())[-1]
        assert last["error"]["code"] == "upstream_error"
        assert good.counts[PATH] == 0
        assert b.held() == 0


async def test_an_answer_that_breaks_is_not_retried():
    cut, good = holding("a"), holding("b")
    cut.scripts[PATH] = lambda asked: Reply(frames=[b'{"choices"'], abort=True)
    async with bench(cut, good) as b:
        async with raising(UpstreamError):
            await b.unary()
        assert good.counts[PATH] == 0
        assert b.requests() == {"502": 1}


# Errors of a neuron


async def test_what_the_client_did_wrong_is_passed_on_in_the_neurons_words():
    neuron, other = holding("a"), holding("b")
    told = {
        "message": "too long",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
        "prompt_tokens": 9,
        "context": 8,
    }
    neuron.scripts[PATH] = lambda asked: json_reply({"error": told}, 400)
    async with bench(neuron, other) as b:
        async with raising(ContextLengthExceeded, "too long") as caught:
            await b.unary()
        error = leaf(caught.value)
        assert (error.param, error.extras) == ("messages", {"prompt_tokens": 9, "context": 8})
        assert other.counts[PATH] == 0


def leaf(error: BaseException) -> CortexError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, CortexError)
    return error


async def test_a_refused_token_is_no_fault_of_the_client():
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: error_reply(401, "invalid_api_key", "wrong token")
    async with bench(neuron) as b, raising(UpstreamError):
        await b.unary()


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"\xff"])
async def test_an_answer_that_is_no_object_is_the_upstreams_error(body):
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: Reply(frames=[body] if body else [])
    async with bench(neuron) as b:
        async with raising(UpstreamError):
            await b.unary()
        assert b.requests() == {"502": 1}


async def test_an_error_without_an_envelope_keeps_its_status():
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: Reply(400, (b"nope",), content_type="text/plain")
    async with bench(neuron) as b, raising(BadRequest, "nope"):
        await b.unary()


async def test_an_unknown_model_reaches_no_neuron():
    neuron = holding("a")
    async with bench(neuron) as b:
        async with raising(ModelNotFound):
            await b.unary(model="nothing-like-it")
        assert neuron.counts[PATH] == 0
        assert b.requests() == {"404": 1}


# What is sent


async def test_the_clients_key_stays_here_and_the_nodes_token_goes():
    neuron = holding("a", token="s3cret")
    async with bench(neuron) as b:
        await b.unary(
            headers={
                "authorization": "Bearer mine",
                "x-api-key": "mine",
                "cookie": "a=mine",
                "x-cortex-caller": "root",
                "x-cortex-salt": "other",
                "x-cortex-priority": "9",
            }
        )
        headers = neuron.last(PATH).headers
        assert headers["authorization"] == "Bearer s3cret"
        assert "mine" not in json.dumps(headers)
        assert headers.get("x-cortex-caller") != "root"
        assert not {"x-cortex-salt", "x-cortex-priority"} & set(headers)


async def test_the_clients_key_is_not_sent_to_a_node_without_a_token():
    neuron = holding("a")
    async with bench(neuron) as b:
        await b.unary(headers={"authorization": "Bearer mine"})
        assert "authorization" not in neuron.last(PATH).headers


async def test_the_request_id_and_the_trace_go_with_the_request():
    neuron = holding("a")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with bench(neuron) as b:
        await b.unary(headers={"traceparent": trace})
        headers = neuron.last(PATH).headers
        assert (headers["x-request-id"], headers["traceparent"]) == ("req_1", trace)


@pytest.mark.parametrize("trace", ["a\r\nx-evil: 1", "a\nb", "é", "x" * 129, "a\0"])
async def test_a_harmful_trace_is_left_out(trace):
    neuron = holding("a")
    async with bench(neuron) as b:
        await b.unary(headers={"traceparent": trace})
        headers = neuron.last(PATH).headers
        assert not {"traceparent", "x-evil"} & set(headers)


async def test_an_alias_is_sent_as_the_models_id():
    neuron = holding("a")
    entry = CatalogueEntry("m", source="org/m")
    async with bench(neuron, models=(entry,), aliases={"gpt-4": "m"}) as b:
        await b.unary(model="gpt-4", temperature=0.5)
        sent = neuron.last(PATH).json
        assert (sent["model"], sent["temperature"]) == ("m", 0.5)


async def test_a_lease_is_held_exactly_as_long_as_the_answer():
    go_on = trio.Event()
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: Reply(frames=[go_on, b'{"choices": []}'])
    async with bench(neuron) as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.unary)
            while not neuron.in_flight:
                await trio.testing.wait_all_tasks_blocked()
            assert b.held() == 2
            go_on.set()
        assert b.held() == 0


async def test_a_client_that_leaves_releases_lease_and_connection():
    neuron = holding("a")
    neuron.scripts[PATH] = lambda asked: Reply(frames=[trio.Event()])
    async with bench(neuron) as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.unary)
            while not neuron.in_flight:
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert b.held() == 0
        assert b.upstream.idle_connections == 0
        assert b.requests() == {"499": 1}


# The queue


async def test_a_callers_priority_is_its_place_in_the_queue():
    neuron, leave, served = holding("a"), trio.Event(), []
    neuron.model_loads = [{"id": "m", "max_in_flight": 1, "max_queue_depth": 0}]

    def answer(asked):
        served.append(asked.headers["x-cortex-caller"])
        return Reply(frames=[leave, b'{"choices": []}'])

    neuron.scripts[PATH] = answer
    async with bench(neuron) as b, trio.open_nursery() as nursery:

        async def ask(name: str, priority: str) -> None:
            request = b.request()
            request.caller = Caller(name, name, priority=priority)
            await b.core.unary(request, Job("openai-chat", "m", PATH, chat(), stream=False))

        await b.plane.seen(lambda fleet: fleet.node("a").health.models != ())
        for waiting, (name, priority) in enumerate(
            [("first", "batch"), ("patient", "batch"), ("hasty", "interactive"), ("other", "batch")]
        ):
            nursery.start_soon(ask, name, priority)
            while not served or b.core.dispatcher.room.waiting("m") < waiting:
                await trio.sleep(0.01)
        leave.set()
    assert served == ["first", "hasty", "patient", "other"]

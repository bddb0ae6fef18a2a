"""A server of another make in the fleet, end to end."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
from fakes.control_plane import control_plane
from fakes.foreign import CHAT, COMPLETIONS, EMBEDDINGS, FakeOpenAi, refused
from fakes.gateway import MESSAGES, chat, gateway, message, payloads, text_of
from fakes.neuron import FakeNeuron, Reply, chunk, error_reply
from fakes.tls import pem, serve_tls

from cortex import errors
from cortex.config.catalogue import Catalogue, CatalogueEntry

PROMPT = {"role": "user", "content": "Hi"}
OURS = {
    "thinking": {"budget_tokens": 2048},
    "on_overflow": "error",
    "chat_template_kwargs": {"enable_thinking": True},
    "top_k": 4,
}


def server(name: str = "f", **settings) -> FakeOpenAi:
    return FakeOpenAi(name, settings={"models": {"m": "org/theirs"}, **settings})


# What goes there and what comes back


async def test_a_chat_goes_there_as_plain_openai_and_comes_back_under_our_name():
    there = server(headers={"x-team": "research"})
    async with gateway(there) as g:
        answer = await g.client.post(CHAT, json=chat("m", **OURS), headers={"x-api-key": "secret"})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["model"] == "m"
        assert body["choices"][0]["message"]["content"] == "Hello, world"
        asked = there.last(CHAT)
        assert asked.json == {
            "model": "org/theirs",
            "messages": [PROMPT],
            "reasoning_effort": "low",
        }
        assert asked.headers["authorization"] == "Bearer sk-theirs"
        assert asked.headers["x-team"] == "research"
        assert not [name for name in asked.headers if name.startswith("x-cortex")]
        assert "secret" not in str(asked.headers)
        assert await g.total("cortex_completion_tokens_total", model="m", node="f") == 3


@pytest.mark.parametrize("wants_usage", [False, True])
@pytest.mark.parametrize("alias", ["m", "claude-sonnet"])
async def test_a_stream_keeps_its_frames_but_for_the_models_name(wants_usage, alias):
    there = server()
    there.thoughts = "hm"
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    async with gateway(there, models=(CatalogueEntry("m"),), aliases={"claude-sonnet": "m"}) as g:
        received = await g.streamed(chat(alias, stream=True, **options))
        found = payloads(received)
        assert found[-1] == "[DONE]"
        assert {each["model"] for each in found[:-1]} == {alias}
        assert text_of(received) == "Hello, world"
        deltas = [each["choices"][0]["delta"] for each in found[:-1] if each["choices"]]
        assert {"reasoning": "hm"} in deltas  # theirs, as it is
        assert [each["usage"]["prompt_tokens"] for each in found[:-1] if each.get("usage")] == (
            [9] if wants_usage else []
        )
        assert there.last(CHAT).json["stream_options"] == {"include_usage": True}
        assert await g.total("cortex_prompt_tokens_total", model="m") == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_claudes_dialect_over_it(stream):
    there = server()
    there.thoughts = "hm"
    body = message("m", stream=stream, thinking={"type": "enabled", "budget_tokens": 9000})
    body |= {"system": "be kind", "top_k": 3, "metadata": {"user_id": "u"}, "max_tokens": 20_000}
    async with gateway(there) as g:
        answer = await g.client.post(MESSAGES, json=body)
        assert answer.status_code == 200, answer.text
        sent = there.last(CHAT).json
        assert sent["model"] == "org/theirs"
        assert sent["reasoning_effort"] == "medium"
        assert sent["messages"][0] == {"role": "system", "content": "be kind"}
        assert sent["max_completion_tokens"] == 20_000
        if not stream:
            told = answer.json()
            assert told["model"] == "m"
            kinds = [
                (block["type"], block.get("thinking") or block.get("text"))
                for block in told["content"]
            ]
            assert kinds == [("thinking", "hm"), ("text", "Hello, world")]
            assert told["usage"]["input_tokens"] == 9
            return
        events = payloads(answer.content)
        assert events[0]["message"]["model"] == "m"
        assert [e["delta"]["thinking"] for e in events if "thinking" in e.get("delta", {})] == [
            "hm"
        ]
        assert "".join(e["delta"].get("text", "") for e in events if "delta" in e) == "Hello, world"
        assert events[-1] == {"type": "message_stop"}
        assert events[-2]["usage"]["output_tokens"] == 3


async def test_claudes_tools_over_it():
    there = server()
    call = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "f", "arguments": "{}"},
    }

    def use_tool(asked):
        frames = (
            chunk("org/theirs", {"role": "assistant", "content": None}),
            chunk("org/theirs", {"tool_calls": [call]}),
            chunk("org/theirs", {}, finish_reason="tool_calls"),
            b"data: [DONE]\n\n",
        )
        return there._checked(asked) or Reply(frames=frames, content_type="text/event-stream")

    there.scripts[CHAT] = use_tool
    tools = [
        {"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    ]
    history = [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "so", "signature": "x"},
                {"type": "tool_use", "id": "c0", "name": "f", "input": {}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c0", "content": "1"}]},
    ]
    async with gateway(there) as g:
        body = message("m", stream=True, tools=tools, messages=history)
        events = payloads(await g.streamed(body, MESSAGES))
        assert [e for e in events if e["type"] == "error"] == []
        (start,) = [e["content_block"] for e in events if e["type"] == "content_block_start"]
        assert (start["type"], start["name"]) == ("tool_use", "f")
        assert events[-2]["delta"]["stop_reason"] == "tool_use"
        sent = there.last(CHAT).json
        assert [each["role"] for each in sent["messages"]] == ["user", "assistant", "tool"]
        assert "reasoning_content" not in sent["messages"][1]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_responses_api_over_it(stream):
    there = server()
    there.thoughts = "hm"
    body = {"model": "m", "input": "Hi", "stream": stream, "store": False}
    body |= {"reasoning": {"effort": "low"}, "prompt_cache_key": "k", "instructions": "be kind"}
    async with gateway(there) as g:
        answer = await g.client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        sent = there.last(CHAT).json
        assert (sent["model"], sent["reasoning_effort"]) == ("org/theirs", "low")
        if stream:
            events = [event for event in payloads(answer.content) if event != "[DONE]"]
            assert events[-1]["type"] == "response.completed"
            whole = events[-1]["response"]
        else:
            whole = answer.json()
        assert whole["model"] == "m"
        texts = [
            part["text"]
            for item in whole["output"]
            if item["type"] == "message"
            for part in item["content"]
        ]
        assert texts == ["Hello, world"]
        assert whole["usage"]["input_tokens"] == 9


async def test_completions_and_embeddings_go_there_as_well():
    there = server()
    async with gateway(there) as g:
        answer = await g.client.post(COMPLETIONS, json={"model": "m", "prompt": "p", "min_p": 0.1})
        assert (answer.json()["model"], answer.json()["choices"][0]["text"]) == (
            "m",
            "Hello, world",
        )
        body = {"model": "m", "input": "p"}
        answer = await g.client.post(EMBEDDINGS, json=body)
        assert answer.json()["data"][0]["embedding"] == [1.0, 0.5]
        # It answers lists whatever it is asked for; the client gets what it wants.
        answer = await g.client.post(EMBEDDINGS, json={**body, "encoding_format": "base64"})
        assert answer.json()["data"][0]["embedding"] == "AACAPwAAAD8="
        assert answer.json()["model"] == "m"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_usage_and_the_end_marker_may_be_missing(path):
    there = server()
    there.tells_usage = there.says_done = False
    make = chat if path == CHAT else message
    async with gateway(there) as g:
        assert (await g.client.post(path, json=make("m"))).status_code == 200
        events = payloads(await g.streamed(make("m", stream=True), path))
        last = events[-1]
        assert last == "[DONE]" if path == CHAT else last == {"type": "message_stop"}
        assert await g.total("cortex_prompt_tokens_total", model="m") == 0
        assert await g.total("cortex_requests_total", model="m", code="200") == 2


async def test_a_stream_that_is_cut_before_its_end_never_looks_finished():
    there = server()
    there.scripts[CHAT] = lambda asked: Reply(
        frames=(chunk("x", {"content": "Hel"}),), content_type="text/event-stream"
    )
    async with gateway(there) as g:
        found = payloads(await g.streamed(chat("m", stream=True)))
        assert found[-1]["error"]["code"] == "upstream_error"
        assert "[DONE]" not in found


# Counting


async def test_tokens_are_counted_where_the_server_can():
    there = server()
    async with gateway(there) as g:
        body = message("m")
        answer = await g.client.post(f"{MESSAGES}/count_tokens", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "not_found_error"
        there.counts_tokens = True
        answer = await g.client.post(f"{MESSAGES}/count_tokens", json=body)
        assert answer.json() == {"input_tokens": len(json.dumps([PROMPT]).split())}
        asked = there.last("/tokenize").json
        assert asked == {"model": "org/theirs", "messages": [PROMPT], "add_generation_prompt": True}
        # llama.cpp's route of that name counts text, not chats.
        there.scripts["/tokenize"] = lambda asked: Reply(frames=(b'{"tokens": []}',))
        answer = await g.client.post(f"{MESSAGES}/count_tokens", json=body)
        assert answer.status_code == 404


# Errors


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (refused(401, "Incorrect API key", code="invalid_api_key"), 502, "upstream_error"),
        (refused(403, "no access"), 502, "upstream_error"),
        (refused(400, "temperature too high"), 400, "invalid_value"),
        (refused(422, "extra fields"), 422, "unprocessable"),
        (refused(429, "slow down"), 429, "rate_limit_exceeded"),
        (refused(500, "CUDA error"), 502, "upstream_error"),
        (refused(503, "warming up"), 503, "service_unavailable"),
        (Reply(404, (b'{"detail":"Not Found"}',)), 404, "not_found"),
        (Reply(502, (b"<html>",), "text/html"), 502, "upstream_error"),
    ],
)
async def test_an_error_of_theirs_is_told_in_our_envelope_and_truly(reply, status, code):
    there = server()
    there.scripts[CHAT] = lambda asked: reply
    async with gateway(there) as g:
        answer = await g.client.post(CHAT, json=chat("m"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "sk-theirs" not in answer.text


async def test_claude_compacts_by_the_numbers_of_a_prompt_that_is_too_long():
    there = server()
    text = "This model's maximum context length is 4096 tokens. Your request has 5000 input tokens"
    there.scripts[CHAT] = lambda asked: refused(400, text)
    async with gateway(there) as g:
        answer = await g.client.post(MESSAGES, json=message("m"))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "prompt is too long: 5000 tokens > 4096 maximum"


async def test_what_it_refuses_a_neuron_serves_and_the_other_way_round():
    there, ours = server("a"), FakeNeuron("b")
    ours.hold("m")
    there.scripts[CHAT] = lambda asked: refused(500, "CUDA error")
    async with gateway(there, ours) as g:
        for number in range(4):
            answer = await g.client.post(
                CHAT, json=chat("m"), headers={"x-session-id": str(number)}
            )
            assert answer.status_code == 200
        there.scripts.clear()
        ours.scripts[CHAT] = lambda asked: error_reply(503, "service_unavailable")
        for number in range(4):
            answer = await g.client.post(
                CHAT, json=chat("m"), headers={"x-session-id": str(number)}
            )
            assert answer.status_code == 200


async def test_a_server_that_says_when_to_come_back_is_left_alone_until_then():
    limited, other = server("a"), server("b")
    limited.scripts[CHAT] = lambda asked: refused(429, "slow down", retry_after=30)
    async with gateway(limited, other) as g:
        for number in range(16):
            headers = {"x-session-id": str(number)}
            answer = await g.client.post(CHAT, json=chat("m"), headers=headers)
            assert answer.status_code == 200
        assert limited.counts[CHAT] == 1
        other.kill()
        answer = await g.client.post(CHAT, json=chat("m"))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")


async def test_a_refusal_whose_words_do_not_arrive_is_one_all_the_same():
    broken, other = server("a"), server("b")
    broken.scripts[CHAT] = lambda asked: Reply(500, (b'{"err',), abort=True)
    async with gateway(broken, other) as g:
        for number in range(8):
            headers = {"x-session-id": str(number)}
            answer = await g.client.post(CHAT, json=chat("m"), headers=headers)
            assert answer.status_code == 200
        assert broken.counts[CHAT]


# In the fleet


async def test_it_is_listed_with_what_is_known_of_it():
    there = server(models=None)
    there.listing = [{"id": "org/theirs", "max_model_len": 4096, "created": 1700000000}]
    async with gateway(there) as g:
        (model,) = (await g.client.get("/v1/models")).json()["data"]
        assert (model["id"], model["loaded"], model["max_model_len"]) == ("org/theirs", True, 4096)
        assert model["created"] == 1700000000
        (node,) = (await g.client.get("/fleet")).json()["nodes"]
        assert (node["healthy"], node["kind"], node["circuit"]) == (True, "openai", "closed")


async def test_a_catalogues_model_is_listed_where_it_may_be_served():
    there, ours = server("f"), FakeNeuron("g")
    there.settings["models"] = {"m": "org/theirs", "n": "org/theirs"}
    models = (CatalogueEntry("m", pinned_on=("f",)), CatalogueEntry("n", pinned_on=("g",)))
    async with gateway(there, ours, models=models) as g:
        bound = (await g.client.get("/v1/models/m")).json()
        assert (bound["status"], bound["feasible_on"]) == ("loaded", ["f"])
        assert [each["node"] for each in bound["locations"]] == ["f"]
        other = (await g.client.get("/v1/models/n")).json()
        assert (other["status"], other["feasible_on"]) == ("unloaded", ["g"])
        assert other["locations"] == []


async def test_a_server_without_a_list_serves_what_is_configured(patient_clock):
    there = server()
    there.scripts["/v1/models"] = lambda asked: refused(404, "no such route")
    async with control_plane(there) as plane, plane.router.route("m") as lease:
        assert (lease.node, lease.foreign.model, lease.endpoint) == (
            "f",
            "org/theirs",
            there.url,
        )
    without = server(models=None)
    without.scripts.update(there.scripts)
    async with control_plane(without) as plane:
        assert not plane.fleet.node("f").healthy


async def test_nothing_is_ever_placed_or_unloaded_there(patient_clock):
    there = server()
    async with control_plane(there, models=(CatalogueEntry("other"),), keep_alive=0) as plane:
        with pytest.raises(errors.Unavailable) as caught:
            async with plane.router.route("other"):
                pass
        assert caught.value.should_retry is not False  # it may list it tomorrow
        with pytest.raises(errors.Conflict):
            await plane.router.unload("m")
        with pytest.raises(errors.NoFeasibleNode):
            await plane.router.load("new", "f")
        assert await plane.router.load("m") == "f"  # it is there
        async with plane.router.route("m"):
            pass
        await trio.sleep(5)
        assert plane.fleet.replicas("m")
        paths = {asked.path for asked in there.requests}
        assert paths == {"/v1/models"}


async def test_what_is_pinned_elsewhere_is_not_sent_there(patient_clock):
    there, ours = server("f"), FakeNeuron("g")
    async with control_plane(there, ours, models=(CatalogueEntry("m", pinned_on=("g",)),)) as plane:
        async with plane.router.route("m") as lease:
            assert (lease.node, lease.foreign) == ("g", None)
        assert ours.counts["/models/load"] == 1


async def test_a_model_that_is_bound_to_it_is_loaded_nowhere_else(patient_clock):
    there, ours = server("f"), FakeNeuron("g")
    entry = CatalogueEntry("m", pinned_on=("f",))
    async with control_plane(there, ours, models=(entry,), aliases={"gpt-4": "m"}) as plane:
        async with plane.router.route("gpt-4") as lease:
            assert lease.node == "f"
        there.kill()
        await plane.seen(lambda fleet: not fleet.node("f").healthy)
        with pytest.raises(errors.NoHealthyNode, match="m is on f") as caught:
            async with plane.router.route("gpt-4"):
                pass
        assert caught.value.retry_after
        assert ours.counts["/models/load"] == 0


async def test_a_model_it_lists_no_more_is_looked_for_again(patient_clock):
    there = server()
    async with control_plane(there) as plane:
        async with plane.router.route("m") as lease:
            there.listing = []
            plane.router.not_loaded(lease)
        await plane.seen(lambda fleet: not fleet.replicas("m"))
        there.listing = [{"id": "org/theirs"}]
        await plane.seen(lambda fleet: fleet.replicas("m") != ())


async def test_it_is_asked_as_often_as_is_configured(patient_clock):
    there = server(poll_seconds=30.0)
    async with control_plane(there):
        await trio.sleep(100)
        assert 3 <= there.counts["/v1/models"] <= 5


async def test_requests_beyond_its_bound_wait_in_the_gateway():
    there = server(max_in_flight=1)
    gate = trio.Event()
    there.scripts[CHAT] = lambda asked: Reply(frames=(gate, b"{}"))
    async with gateway(there) as g, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(lambda: g.client.post(CHAT, json=chat("m")))
        while not there.in_flight:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert there.counts[CHAT] == 1
        gate.set()


async def test_a_reload_takes_in_what_is_said_of_it_and_drains_nothing_there():
    there = server()
    entry = CatalogueEntry("m", pinned_on=("f",))
    async with gateway(there, models=(entry,)) as g:
        there.settings["models"] = {"renamed": "org/theirs"}
        there.token = "sk-new"
        g.files.config = attrs.evolve(g.files.config, neurons=(there.configured(),))
        g.files.catalogue = Catalogue()
        answer = await g.client.post("/fleet/reload")
        assert answer.status_code == 200, answer.text
        assert answer.json()["plan"]["models"]["drain"] == []
        with trio.fail_after(5):
            while (await g.client.post(CHAT, json=chat("renamed"))).status_code != 200:
                await trio.sleep(0.02)
        assert (await g.client.post(CHAT, json=chat("m"))).status_code == 404
        assert {asked.path for asked in there.requests} == {"/v1/models", CHAT}


async def test_another_gateway_is_such_a_server_and_loads_by_itself():
    neuron = FakeNeuron("a")
    async with gateway(neuron, models=(CatalogueEntry("m", vram_mb=1),)) as inner:
        there = FakeOpenAi("inner", token=None, port=1, secure=inner.api)
        async with gateway(there) as outer:
            received = await outer.streamed(message("m", stream=True), MESSAGES)
            assert payloads(received)[-1] == {"type": "message_stop"}
            assert neuron.counts["/models/load"] == 1
            answer = await outer.client.post(CHAT, json=chat("m"))
            assert answer.json()["choices"][0]["message"]["content"] == "Hello, world"
            neuron.scripts[CHAT] = lambda asked: error_reply(400, "invalid_value", "no such thing")
            answer = await outer.client.post(CHAT, json=chat("m"))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
            assert "no such thing" in answer.json()["error"]["message"]


# TLS


@pytest.mark.parametrize("trusted", [True, False])
async def test_its_certificate_is_verified_by_polls_and_requests(monkeypatch, trusted):
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem("one")))
    there = server()
    async with trio.open_nursery() as nursery:
        secure = await nursery.start(serve_tls, pem("one"), there._connection)
        there.secure = secure
        async with gateway(there) as g:
            answer = await g.client.post(CHAT, json=chat("m"))
            if trusted:
                assert answer.status_code == 200
                async with g.stream(chat("m", stream=True)) as reading:
                    assert text_of(await reading.rest()) == "Hello, world"
            else:
                assert answer.status_code == 503
                (shown,) = (await g.client.get("/fleet")).json()["nodes"]
                assert "CERTIFICATE_VERIFY_FAILED" in shown["error"]
                assert there.requests == []
        nursery.cancel_scope.cancel()

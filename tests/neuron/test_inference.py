"""The request path over HTTP with scripted engines: failures, silences, clients that leave."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx
import pytest
import trio
from fakes.demo_neuron import WEATHER
from fakes.engine import FakeEngine
from fakes.served_neuron import (
    END,
    MODEL,
    ScriptedEngine,
    ServedNeuron,
    demo_text,
    ids,
    served,
    until,
)

from cortex.service import metrics
from cortex.service.http import Pace
from cortex.text.template import ChatTemplate

ROUTE = "/v1/chat/completions"


def body(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def scripted(text: str, *more: int | Exception) -> Callable[[], ScriptedEngine]:
    return lambda: ScriptedEngine(script=[*ids(text), *(more or (END,))])


def held() -> FakeEngine:
    """An engine whose steps stand still until its gate is opened."""
    return FakeEngine(max_context=10**6, gate=threading.Event())


async def lines(response: httpx.Response) -> list[str]:
    return [line async for line in response.aiter_lines() if line]


async def streamed(neuron: ServedNeuron, **fields: Any) -> list[str]:
    """The lines of a streamed answer, which must be a 200."""
    asked = body(stream=True, **fields)
    async with neuron.client.stream("POST", ROUTE, json=asked) as response:
        assert response.status_code == 200
        return await lines(response)


def sample(neuron: ServedNeuron, line: str) -> float:
    for text in metrics.render(neuron.registry).decode().splitlines():
        if text.startswith(f"{line} "):
            return float(text.rpartition(" ")[2])
    return 0.0


# What an engine says


@pytest.mark.parametrize(("parallel", "told"), [(None, 2), (True, 2), (False, 1)])
async def test_one_call_at_a_time_ends_the_answer_with_the_first(parallel, told) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
    asked = body(tools=[WEATHER], parallel_tool_calls=parallel)
    async with served(scripted(f"{call}\n{call}")) as neuron:
        answer = (await neuron.client.post(ROUTE, json=asked)).json()
        await until(lambda: not neuron.admission.seats(MODEL).taken)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    arguments = [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]
    assert [json.loads(each) for each in arguments] == [{"city": "Bonn"}] * told


async def test_tool_calls_reach_the_client_and_finish_as_such() -> None:
    said = (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln\\n</x>"}}\n</tool_call>'
    )
    async with served(scripted(said)) as neuron:
        answer = (await neuron.client.post(ROUTE, json=body(tools=[WEATHER]))).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln\n</x>"}


async def test_a_call_that_is_cut_off_does_not_finish_as_one() -> None:
    said = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "K'
    async with served(scripted(said)) as neuron:
        asked = body(tools=[WEATHER], max_tokens=len(ids(said)))
        answer = (await neuron.client.post(ROUTE, json=asked)).json()
    assert answer["choices"][0]["finish_reason"] == "length"


FUNCTION = WEATHER["function"]
LEGACY = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


async def test_legacy_functions_are_answered_in_their_own_fields() -> None:
    async with served(scripted(f"{LEGACY}\n{LEGACY}")) as neuron:
        answer = (await neuron.client.post(ROUTE, json=body(functions=[FUNCTION]))).json()
        got = await streamed(neuron, functions=[FUNCTION])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "function_call"
    assert "tool_calls" not in choice["message"]
    call = choice["message"]["function_call"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Bonn"})
    choices = [json.loads(line[6:])["choices"][0] for line in got[:-1]]
    parts = [c["delta"]["function_call"] for c in choices if "function_call" in c["delta"]]
    assert parts[0] == {"name": "get_weather", "arguments": ""}
    assert all("name" not in part for part in parts[1:])
    assert "".join(part["arguments"] for part in parts) == call["arguments"]
    assert choices[-1]["finish_reason"] == "function_call"


async def test_a_stop_string_after_a_call_does_not_hide_the_call() -> None:
    async with served(scripted(f"{LEGACY} and STOP here")) as neuron:
        asked = body(tools=[WEATHER], stop="STOP")
        answer = (await neuron.client.post(ROUTE, json=asked)).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("tool_calls", "STOP")
    assert choice["message"]["content"] == " and "


async def test_thinking_text_and_calls_are_three_things() -> None:
    said = f"<think>\nwhich city\n</think>\n\nI look.\n{LEGACY}"
    async with served(scripted(said)) as neuron:
        answer = (await neuron.client.post(ROUTE, json=body(tools=[WEATHER]))).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "which city"
    assert message["content"] == "I look."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather"]


async def test_a_malformed_call_is_text() -> None:
    said = '<tool_call>\n{"name": "get_weather", "arguments": oops}\n</tool_call>'
    async with served(scripted(said)) as neuron:
        answer = (await neuron.client.post(ROUTE, json=body(tools=[WEATHER]))).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", said)


async def test_text_and_a_call_keep_their_order() -> None:
    said = 'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    async with served(scripted(said)) as neuron:
        got = await streamed(neuron, tools=[WEATHER])
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in got[1:-1]]
    kinds = ["tool_calls" if "tool_calls" in delta else "content" for delta in deltas if delta]
    assert kinds == sorted(kinds)
    assert set(kinds) == {"content", "tool_calls"}


async def test_a_character_of_many_bytes_is_one_piece_in_every_frame() -> None:
    text = "日本 👩‍👩‍👧 ok"
    async with served(scripted(text)) as neuron:
        got = await streamed(neuron)
        whole = (await neuron.client.post(ROUTE, json=body(stop="ok"))).json()
    parts = [json.loads(line[6:])["choices"][0]["delta"] for line in got[1:-1]]
    assert "".join(part.get("content", "") for part in parts) == text
    assert not any("\ufffd" in line for line in got)
    assert whole["choices"][0]["message"]["content"] == "日本 👩‍👩‍👧 "


async def test_a_logprob_of_minus_infinity_is_valid_json() -> None:
    async with served(scripted("word")) as neuron:
        answer = await neuron.client.post(ROUTE, json=body(logprobs=True))
    entries = answer.json()["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in entries] == [-9999.0] * len(ids("word"))


# Failures


async def test_a_failure_mid_stream_is_an_error_event_and_no_end() -> None:
    async with served(scripted("one two", ZeroDivisionError("secret"))) as neuron:
        got = await streamed(neuron)
        assert sample(
            neuron, f'neuron_requests_failed_total{{model="{MODEL}",reason="InternalError"}}'
        )
        assert neuron.admission.seats(MODEL).taken == 0
    error = json.loads(got[-1].removeprefix("data: "))["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert "secret" not in got[-1]
    chunks = [json.loads(line.removeprefix("data: ")) for line in got[:-1]]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "one two"


async def test_a_failure_without_a_stream_is_a_status() -> None:
    async with served(scripted("one", ZeroDivisionError("secret"))) as neuron:
        answer = await neuron.client.post(ROUTE, json=body())
    assert answer.status_code == 500
    assert "secret" not in answer.text


async def test_an_engine_that_dies_ends_its_streams_with_an_error_and_comes_back() -> None:
    async with served(held) as neuron:
        engine = neuron.engine
        engine.step_error = RuntimeError("broken")
        asked = body(stream=True)
        async with neuron.client.stream("POST", ROUTE, json=asked) as response:
            assert engine.gate is not None
            engine.gate.set()
            got = await lines(response)
        assert "error" in json.loads(got[-1].removeprefix("data: "))
        assert "[DONE]" not in str(got)
        await until(lambda: neuron.lifecycle.models()[0].status == "loaded")


async def test_our_own_bug_mid_stream_is_an_error_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(scripted("one two three")) as neuron:

        def broken(*_: Any) -> None:
            raise KeyError("secret")

        monkeypatch.setattr("cortex.neuron.inference.ChatStream.update", broken)
        got = await streamed(neuron)
        monkeypatch.undo()
        error = json.loads(got[-1].removeprefix("data: "))["error"]
        assert error["code"] == "internal_error"
        assert "secret" not in got[-1]
        assert (await neuron.client.post(ROUTE, json=body())).status_code == 200


async def test_a_request_that_is_refused_is_no_stream() -> None:
    async with served() as neuron:
        for fields in ({"temperature": 9}, {"model": "no/such"}, {"max_tokens": 2000}):
            asked = body(stream=True, on_overflow="error", **fields)
            answer = await neuron.client.post(ROUTE, json=asked)
            assert answer.status_code in (400, 404)
            assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_template_that_fails_with_tools_is_an_error_and_no_other_prompt(
    stream: bool,
) -> None:
    """Nothing is rendered in its place: the tools would vanish without a word."""
    source = (
        "{%- if tools %}{{ raise_exception('no tools here') }}{% endif -%}"
        "{%- for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor -%}"
    )
    tokenizer = demo_text().tokenizer
    text = attrs.evolve(demo_text(), template=ChatTemplate({"default": source}, tokenizer))
    async with served(text=text) as neuron:
        system = [{"role": "system", "content": "s"}, *body()["messages"]]
        for messages in (body()["messages"], system):
            asked = {**body(tools=[WEATHER], stream=stream), "messages": messages}
            answer = await neuron.client.post(ROUTE, json=asked)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "template_error")
            assert "no tools here" in error["message"]
        assert neuron.engine.history == []
        for choice in ({"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
            answer = await neuron.client.post(ROUTE, json=body(max_tokens=2, **choice))
            assert answer.status_code == 200


# Queue and drain


async def test_a_full_queue_is_told_with_a_time_and_counted() -> None:
    async with served(held, max_running=1, max_waiting=1) as neuron, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(lambda: neuron.client.post(ROUTE, json=body(max_tokens=1)))
        await until(lambda: neuron.admission.seats(MODEL).taken == 2)
        for stream in (False, True):
            answer = await neuron.client.post(ROUTE, json=body(stream=stream))
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
        health = (await neuron.client.get("/health")).json()["models"][0]
        assert health["rejected_queue_full"] == 2
        assert (health["max_in_flight"], health["max_queue_depth"]) == (1, 1)
        assert neuron.engine.gate is not None
        neuron.engine.gate.set()


async def test_while_draining_nothing_new_begins_and_what_runs_ends() -> None:
    asked = body(stream=True, max_tokens=3)
    async with served(held) as neuron, neuron.client.stream("POST", ROUTE, json=asked) as one:
        neuron.lifecycle.drain()
        neuron.admission.close()
        assert (await neuron.client.get("/health")).json()["status"] == "draining"
        for stream in (False, True):
            answer = await neuron.client.post(ROUTE, json=body(stream=stream))
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        assert neuron.engine.gate is not None
        neuron.engine.gate.set()
        assert (await lines(one))[-1] == "data: [DONE]"


# Silence


async def test_a_long_prefill_is_filled_with_comments_alone() -> None:
    pace = Pace(commit_after=float("inf"), keep_alive=0.03, stall=5.0)
    async with served(held, pace=pace) as neuron:
        asked = body(stream=True, max_tokens=2)
        got: list[str] = []
        async with neuron.client.stream("POST", ROUTE, json=asked) as response:
            async for line in response.aiter_lines():
                got.append(line)
                comments = [each for each in got if each.startswith(":")]
                assert neuron.engine.gate is not None
                if len(comments) == 3:
                    neuron.engine.gate.set()
    kinds = [line[:6] for line in got if line]
    assert kinds[0] == "data: "
    assert all(kind.startswith(":") for kind in kinds[1:4])
    assert set(kinds[kinds.index("data: ", 1) :]) == {"data: "}
    assert got[-2] == "data: [DONE]"


# Clients that leave


@asynccontextmanager
async def leaving(neuron: ServedNeuron, fields: dict[str, Any]) -> AsyncIterator[None]:
    """A request whose client leaves at the end of the block."""
    async with httpx.AsyncClient(base_url=neuron.url) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            async with client.stream("POST", ROUTE, json=body(**fields)) as response:
                await lines(response)

        nursery.start_soon(ask)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_leaves_frees_engine_and_seats(stream: bool, n: int) -> None:
    async with served(held) as neuron:
        engine = neuron.engine
        async with leaving(neuron, {"stream": stream, "n": n}):
            # The first step holds the thread: of two completions the second may have missed it.
            await until(lambda: 1 <= len(engine.running) <= n)
            assert neuron.admission.seats(MODEL).taken == n
        await until(lambda: neuron.admission.seats(MODEL).taken == 0, 1.0)
        assert engine.gate is not None
        engine.gate.set()  # the step that was under way ends
        await until(lambda: not engine.running, 1.0)
        counted = f'neuron_requests_aborted_total{{model="{MODEL}"}}'
        await until(lambda: sample(neuron, counted) == 1)
        with neuron.lifecycle.lease(MODEL) as model:
            # None: the loop tells its first numbers with the step that is just ending
            await until(lambda: (stats := model.engine.stats()) and stats.kv_blocks_used == 0)


async def test_a_client_that_takes_no_data_is_let_go() -> None:
    pace = Pace(commit_after=float("inf"), keep_alive=60.0, stall=0.1)
    async with served(lambda: FakeEngine(max_context=10**6), pace=pace) as neuron:
        content = json.dumps(body("word " * 50, stream=True)).encode()
        host, port = neuron.url.removeprefix("http://").split(":")
        with trio.socket.socket() as client:
            client.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await client.connect((host, int(port)))
            head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
            await client.send(head.encode() + content)
            aborted = f'neuron_requests_aborted_total{{model="{MODEL}"}}'
            await until(lambda: sample(neuron, aborted) == 1, 10.0)
            assert neuron.admission.seats(MODEL).taken == 0
            await until(lambda: not neuron.engine.running)
        assert "neuron_requests_failed_total{" not in metrics.render(neuron.registry).decode()


# Separation and records


async def test_streams_of_many_clients_are_never_mixed() -> None:
    async with served(max_running=64) as neuron, trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            words = f"client {number} says {number * 7919}"
            asked = {"model": MODEL, "prompt": words, "stream": True, "max_tokens": len(ids(words))}
            path = "/v1/completions"
            async with neuron.client.stream("POST", path, json=asked) as response:
                got = await lines(response)
            chunks = [json.loads(line[6:]) for line in got[:-1]]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == words
            assert len({chunk["id"] for chunk in chunks}) == 1

        for number in range(40):
            nursery.start_soon(one, number)


async def test_each_request_writes_one_line_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cortex.neuron.request")
    async with served(scripted("one two")) as neuron:
        await neuron.client.post(ROUTE, json=body("private words"))
        await streamed(neuron)
    records = [r for r in caplog.records if r.name == "cortex.neuron.request"]
    assert [record.getMessage() for record in records] == ["request", "request"]
    fields: Any = [vars(record)["cortex_fields"] for record in records]
    assert [each["end"] for each in fields] == ["stop", "stop"]
    assert all(each["model"] == MODEL and each["completion"] == 3 for each in fields)
    assert "private" not in str(fields)
    assert "one two" not in str(fields)

"""CS: streamed chat completions."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import trio
from conformance.checks import CHAT, Server, told, user
from fakes.chunk_client import follow
from fakes.neuron import Reply, chunk, error_reply

THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
USAGE = {"stream_options": {"include_usage": True}}


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for each in chunks
        for choice in each["choices"]
        if choice["index"] == index
    )


@pytest.mark.parametrize("usage", [False, True], ids=["CS01", "CS02"])
def test_the_order_of_a_stream(real: Server, usage: bool) -> None:
    chunks = real.gateway.stream(CHAT, real.body(**(USAGE if usage else {})))
    answer = follow(chunks, usage=usage)
    assert answer.choices[0].content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == real.model


def test_cs03_without_a_wish_there_is_no_usage(real: Server) -> None:
    for each in real.chunks():
        assert each.get("usage") is None
        assert each["choices"]


def test_cs04_a_stream_says_what_the_whole_answer_says(real: Server) -> None:
    whole = real.chat()["choices"][0]["message"]["content"]
    assert text_of(real.chunks()) == whole


def test_cs05_no_character_is_cut(scripted: Server) -> None:
    words = ["\U0001f468‍\U0001f469‍\U0001f467", "日本", "語", "é", "\U0001f1e9\U0001f1ea"]
    scripted.streams(*({"content": word} for word in words))
    raw = scripted.gateway.raw_stream(CHAT, scripted.body()).content
    for frame in raw.split(b"\n\n"):
        assert "\ufffd" not in frame.decode("utf-8", "strict")
    assert text_of(scripted.chunks()) == "".join(words)


def test_cs06_two_choices_have_two_ends_and_one_usage(real: Server) -> None:
    chunks = real.gateway.stream(CHAT, real.body(n=2, max_tokens=5, **USAGE))
    answer = follow(chunks, usage=True, choices=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage["completion_tokens"] == 10


def test_cs07_cs08_framing_and_headers(real: Server) -> None:
    response = real.gateway.raw_stream(
        CHAT, real.body(**USAGE), headers={"accept-encoding": "gzip", "accept": "application/json"}
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert not {"content-length", "content-encoding"} & set(response.headers)
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert response.headers["openai-version"]
    raw = response.content
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in raw
    assert not raw.startswith(b"\xef\xbb\xbf")
    for line in raw.split(b"\n"):
        assert not line or line.startswith((b"data: {", b"data: [DONE]", b":"))


def test_cs09_the_first_frame_does_not_wait_for_the_last(scripted: Server) -> None:
    go_on = trio.Event()
    with socket_of(scripted) as connection:
        frames = [chunk("m", {"content": "first"}), go_on, chunk("m", {}, finish_reason="stop")]
        frames.append(b"data: [DONE]\n\n")
        scripted.says(Reply(frames=frames, content_type="text/event-stream"))
        send(connection, scripted, stream=True)
        received = b""
        while b"first" not in received:
            received += connection.recv(65536)
        assert b"[DONE]" not in received
        scripted.gateway.soon(go_on.set)
        while b"[DONE]" not in received:
            received += connection.recv(65536)


def test_cs10_a_failure_within_the_stream_is_an_error_and_no_finish(scripted: Server) -> None:
    scripted.streams(*[{"content": "x"}] * 10, finish=None)
    chunks = scripted.gateway.stream(CHAT, scripted.body())
    error = chunks[-1]["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert text_of(chunks[:-1]) == "x" * 10
    assert all(c["finish_reason"] is None for each in chunks[:-1] for c in each["choices"])
    with openai.OpenAI(base_url=f"{scripted.gateway.url}/v1", api_key="none", max_retries=0) as sdk:
        stream = sdk.chat.completions.create(**scripted.body(), stream=True)
        with pytest.raises(openai.APIError):
            list(stream)


def test_cs11_a_failure_before_the_stream_is_a_status(scripted: Server) -> None:
    scripted.says(error_reply(500, "internal_error"))
    response = scripted.post(CHAT, scripted.body(stream=True))
    assert told(response, 500, anthropic=False)["code"] == "internal_error"


@pytest.mark.parametrize(
    "options", [{"stream_options": {"include_usage": True}}, {"stream_options": None}], ids=str
)
def test_cs16_stream_options_without_a_stream_are_taken(real: Server, options: Any) -> None:
    assert real.chat(**options, stream=False, max_tokens=1)["usage"]
    assert real.chunks(stream_options=None, max_tokens=1)


def test_cs18_options_nobody_knows_are_taken(real: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}
    chunks = real.chunks(stream_options=options, max_tokens=2)
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert not any("obfuscation" in each for each in chunks)


def test_cs19_streams_side_by_side_are_never_mixed(scripted: Server) -> None:
    def echo(asked: Any) -> Reply:
        word = asked.json["messages"][0]["content"]
        frames = [chunk("m", {"content": f"{word} "}) for _ in range(8)]
        frames += [chunk("m", {}, finish_reason="stop"), b"data: [DONE]\n\n"]
        return Reply(frames=frames, content_type="text/event-stream")

    scripted.gateway.neuron.scripts[CHAT] = echo

    def one(number: int) -> bool:
        said = text_of(scripted.chunks(messages=[user(f"nonce-{number}")]))
        return said == f"nonce-{number} " * 8

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(36)))


def test_cs21_an_old_client_gets_the_whole_answer(scripted: Server) -> None:
    with socket_of(scripted) as connection:
        send(connection, scripted, version="1.0", stream=True)
        received = b""
        while data := connection.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert b" 505 " in head or (b" 200 " in head and body.rstrip().endswith(b"[DONE]"))


def test_cs22_reasoning_precedes_the_answer(real: Server) -> None:
    chunks = real.gateway.stream(CHAT, real.body(**THINKING))
    assert follow(chunks).choices[0].reasoning


def socket_of(server: Server) -> socket.socket:
    parts = urlsplit(server.gateway.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def send(connection: socket.socket, server: Server, version: str = "1.1", **fields: Any) -> None:
    body = server.client.build_request("POST", CHAT, json=server.body(**fields)).read()
    head = f"POST {CHAT} HTTP/{version}\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)

"""AB: Anthropic's messages, the basics and the blocks."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.checks import MESSAGES, Server, user
from fakes.images import png
from fakes.neuron import json_reply

BILLING = "x-anthropic-billing-header: cc_version=2.1.330; cch={};"
LONG = "Cortex serves many models on few machines. " * 12
NOTE = {"role": "system", "content": "Be brief."}
PNG = png()
BETAS: dict[str, Any] = {
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
    "compaction": {"enabled": True},
    "mcp_servers": [],
    "thread": {"id": "x"},
    "fallbacks": [{"model": "y"}],
    "fallback_credit_token": "z",
    "billing_policy": "x",
    "safeguards": {"a": 1},
    "speed": "fast",
    "inference_geo": "eu",
    "diagnostics": {"previous_message_id": "msg_1"},
    "container": "c",
    "user_profile_id": "u",
    "workspace_id": "w",
    "service_tier": "auto",
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "betas": ["a-2026"],
}


def said(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [user("Hi"), {"role": role, "content": list(content)}, user("Go on")]}


def text(message: Any) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def prompt(message: Any) -> int:
    usage = message["usage"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"]


def image(data: str | None = PNG, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def test_ab01_as16_a_minimal_request_gets_a_whole_message(real: Server) -> None:
    response = real.post(MESSAGES, real.message_body(max_tokens=100))
    body = response.json()
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", real.model)
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert text(body)
    assert body.get("stop_details") is None
    assert body.get("container") is None
    usage = body["usage"]
    for key in ("input_tokens", "output_tokens", "cache_creation_input_tokens"):
        assert type(usage[key]) is int
    assert type(usage["cache_read_input_tokens"]) is int
    assert usage["service_tier"] == "standard"
    assert response.headers["request-id"] == response.headers["x-request-id"]


def test_ab02_the_limit_is_required(scripted: Server) -> None:
    body = {"model": "m", "messages": [user()]}
    error = scripted.refused(MESSAGES, body)
    assert error["message"] == "max_tokens: Field required"


def test_ab03_limits(real: Server) -> None:
    warmed = real.message(max_tokens=0)
    assert (warmed["content"], warmed["usage"]["output_tokens"]) == ([], 0)
    assert "max_tokens" in real.refused(MESSAGES, real.message_body(max_tokens=-1))["message"]
    error = real.refused(MESSAGES, real.message_body(max_tokens=10**9))
    assert error["message"] == (
        f"max_tokens: {10**9} > 65536, which is the maximum allowed number of output tokens "
        f"for {real.model}"
    )


def test_ab04_system_as_text_and_as_blocks_are_the_same(real: Server) -> None:
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert real.count(system="Be brief.") == real.count(system=blocks) > real.count()


@pytest.mark.parametrize("place", [0, 1], ids=["AB05-first", "AB05-later"])
def test_ab05_the_billing_block_never_reaches_the_prompt(real: Server, place: int) -> None:
    read = []
    for cch in ("abc", "defgh"):
        blocks = [{"type": "text", "text": LONG + f"AB05 {place}"}]
        blocks.insert(place, {"type": "text", "text": BILLING.format(cch)})
        usage = real.message(system=blocks, max_tokens=1)["usage"]
        read.append((usage["cache_read_input_tokens"], prompt({"usage": usage})))
    assert read[1][0] > 0
    assert read[0][1] == read[1][1]


def test_ab06_a_system_message_stays_in_its_place(scripted: Server, real: Server) -> None:
    messages = [user("Hi"), {**NOTE, "content": [{"type": "text", "text": "Be brief."}]}]
    messages += [{"role": "assistant", "content": "Hello"}, user("Go on")]
    scripted.message(messages=messages)
    assert [m["role"] for m in scripted.sent()["messages"]] == [
        *("user", "system", "assistant", "user")
    ]
    assert real.message(messages=messages)["content"]


def test_ab07_a_conversation_may_begin_with_it(real: Server) -> None:
    assert real.message(messages=[NOTE, user()])["content"]


def test_ab08_neighbours_of_one_side_are_merged(scripted: Server) -> None:
    scripted.message(messages=[user("a"), user("b"), {"role": "assistant", "content": "c"}, user()])
    assert [m["content"] for m in scripted.sent()["messages"]][:2] == ["a\nb", "c"]


def test_ab09_a_prefill_is_continued(real: Server) -> None:
    whole = text(real.message(temperature=0))
    start = whole[: len(whole) // 2].rstrip()
    messages = [user(), {"role": "assistant", "content": start}]
    body = real.message(messages=messages, temperature=0)
    assert not text(body).startswith(start)


def test_ab10_the_stop_sequence_that_fired_is_told(real: Server) -> None:
    whole = text(real.message(temperature=0))
    stop = whole[10:16]
    fields = {"stop_sequences": ["\0 never", stop], "temperature": 0}
    for message in (real.message(**fields), real.accumulated(**fields)):
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
        assert text(message) == whole[: whole.index(stop)]


def test_ab11_a_natural_end_is_none_of_them(real: Server) -> None:
    message = real.message(stop_sequences=["\0 never"], max_tokens=100, temperature=0)
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


def test_ab12_the_limit_is_told(real: Server) -> None:
    assert real.message(max_tokens=1)["stop_reason"] == "max_tokens"


def test_ab14_a_prompt_that_is_too_long_has_the_text_that_clients_match(real: Server) -> None:
    error = real.refused(MESSAGES, real.message_body(messages=[user("word and " * 40_000)]))
    words = error["message"].split()
    assert words[:4] == ["prompt", "is", "too", "long:"]
    assert (words[5:7], words[7:]) == (["tokens", ">"], ["65536", "maximum"])


def test_ab15_a_prompt_that_leaves_too_little_room_too(scripted: Server) -> None:
    told = {"message": "no room", "type": "invalid_request_error", "param": None}
    told |= {"code": "context_length_exceeded"}
    told |= {"prompt_tokens": 90, "max_tokens": 20, "context": 100}
    scripted.says(json_reply({"error": told}, 400))
    response = scripted.post(MESSAGES, scripted.message_body(max_tokens=20))
    assert response.json()["error"]["message"] == (
        "input length and `max_tokens` exceed context limit: 90 + 20 > 100"
    )


def test_ab16_cache_marks_are_taken(real: Server) -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    blocks = [{"type": "text", "text": f"{n}", **mark} for n in range(6)]
    assert real.message(messages=[user(blocks)], max_tokens=1)


def test_ab17_a_second_call_reads_the_cache(real: Server) -> None:
    first, second = (real.message(system=LONG + "AB17", max_tokens=1) for _ in range(2))
    assert second["usage"]["cache_read_input_tokens"] > 0
    assert prompt(first) == prompt(second)


IMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "AB18-type": (image(media_type="image/jpeg"), "does not match"),
    "AB18-media": (image(media_type="image/tiff"), "Input should be"),
    "AB18-base64": (image(PNG[:-3]), "invalid base64"),
    "AB18-nothing": (image(None), "Field required"),
    "AB19": (
        {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/x.png"}},
        "does not fetch",
    ),
    "AB20-pdf": (
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
        },
        "does not support pdf input",
    ),
}


@pytest.mark.parametrize(("block", "words"), IMAGES.values(), ids=IMAGES.keys())
def test_media_that_cannot_be_honoured_are_named(scripted: Server, block: Any, words: str) -> None:
    error = scripted.refused(MESSAGES, scripted.message_body(messages=[user([block])]))
    assert error["message"].startswith("messages.0.content.0.")
    assert words in error["message"]


def test_ab18_a_model_without_eyes_says_so(real: Server) -> None:
    block = {"type": "text", "text": "What is it?"}
    error = real.refused(MESSAGES, real.message_body(messages=[user([block, image()])]))
    assert error["message"] == "messages.0.content.1: this model takes text only, not images"


def test_ab20_documents_are_inlined(scripted: Server) -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "first"}
    nested = {"type": "content", "content": [{"type": "text", "text": "second"}]}
    scripted.message(
        messages=[user([{"type": "document", "source": each} for each in (plain, nested)])]
    )
    sent = scripted.sent()["messages"][0]["content"]
    assert sent.index("first") < sent.index("second")


def test_ab21_thinking_of_others_is_taken(real: Server) -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "of somebody else"},
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": "Yes."},
    ]
    assert real.message(**said(*blocks, role="assistant"), max_tokens=1)


@pytest.mark.parametrize("role", ["assistant", "user"], ids="AB22-{}".format)
def test_ab22_blocks_nobody_knows_are_taken(real: Server, role: str) -> None:
    known = {"type": "text", "text": "Yes."}
    assert real.message(**said(known, {"type": "brand_new", "x": 1}, role=role), max_tokens=1)


EMPTY = {
    "AB23-text": user([{"type": "text", "text": ""}]),
    "AB23-list": user([]),
    "AB23-string": user(""),
    "AB23-space": user(" \n "),
    "AB23-assistant": {"role": "assistant", "content": ""},
    "AB23-prefill": {"role": "assistant", "content": []},
}


@pytest.mark.parametrize("message", EMPTY.values(), ids=EMPTY.keys())
def test_ab23_what_is_empty_is_taken(real: Server, message: Any) -> None:
    assert real.message(messages=[user(), message], max_tokens=1)


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21"], ids="AB24-{}".format)
def test_ab24_sampling_is_taken_under_both_versions(real: Server, version: str) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_tokens": 1}
    assert real.message({"anthropic-version": version}, **fields)


def test_ab25_the_vendors_betas_are_taken(real: Server) -> None:
    assert real.message(**BETAS, max_tokens=1)


def test_ab26_betas_nobody_knows_are_taken(real: Server) -> None:
    headers = [("anthropic-beta", ",".join(f"beta-{n}" for n in range(30)))]
    headers.append(("anthropic-beta", "one-more"))
    response = real.client.post(MESSAGES, json=real.message_body(max_tokens=1), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("given", "echoed"),
    [(None, "2023-06-01"), ("2026-10-21", "2026-10-21"), ("1999-01-01", "1999-01-01")],
    ids="AB27-{}".format,
)
def test_ab27_the_version_is_echoed(scripted: Server, given: str | None, echoed: str) -> None:
    headers = {} if given is None else {"anthropic-version": given}
    for fields in ({}, {"stream": True}, {"model": "nobody"}):
        response = scripted.post(MESSAGES, scripted.message_body(**fields), headers=headers)
        assert response.headers["anthropic-version"] == echoed


def test_ab29_queries_are_ignored(real: Server) -> None:
    assert real.ok(f"{MESSAGES}?beta=true&x=%20", real.message_body(max_tokens=1))


THINKING: dict[str, tuple[Any, bool]] = {
    "AB30-enabled": ({"type": "enabled", "budget_tokens": 1024}, True),
    "AB30-adaptive": ({"type": "adaptive"}, True),
    "AB30-disabled": ({"type": "disabled"}, False),
    "AB31": ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, True),
}


@pytest.mark.parametrize(("thinking", "wanted"), THINKING.values(), ids=THINKING.keys())
def test_thinking_is_a_signed_block_of_its_own(real: Server, thinking: Any, wanted: bool) -> None:
    shown = thinking.get("display") != "omitted"
    fields = {"thinking": thinking, "max_tokens": 1500, "temperature": 0}
    for message in (real.message(**fields), real.accumulated(**fields)):
        kinds = [block["type"] for block in message["content"]]
        assert kinds == (["thinking", "text"] if wanted else ["text"])
        if wanted:
            block = message["content"][0]
            assert block["signature"]
            assert bool(block["thinking"]) == shown


def test_ab30_a_budget_needs_room(scripted: Server) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    error = scripted.refused(MESSAGES, scripted.message_body(thinking=thinking, max_tokens=1024))
    assert "`max_tokens` must be greater than `thinking.budget_tokens`" in error["message"]


def test_ab32_a_format_is_held_to(real: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    said = text(real.message(output_config=wanted, max_tokens=60))
    assert said.replace(" ", "").replace("\n", "") == '{"a":"x"}'


def test_ab33_user_ids_are_long_texts(scripted: Server) -> None:
    assert scripted.message(metadata={"user_id": "u" * 10_000})
    error = scripted.refused(MESSAGES, scripted.message_body(metadata={"user_id": 5}))
    assert error["message"].startswith("metadata.user_id: ")

"""Bodies that mean harm, in both dialects: each gets its 4xx, and others notice nothing."""

from __future__ import annotations

import gzip
import json

import pytest
from fakes.gateway import CHAT, MESSAGES, chat, message

PATHS = {"openai": CHAT, "anthropic": MESSAGES}


@pytest.fixture(params=PATHS)
def dialect(request) -> str:
    return request.param


def body(dialect: str, **fields: object) -> dict[str, object]:
    return chat(**fields) if dialect == "openai" else message(**fields)


def raw_body(dialect: str, extra: bytes) -> bytes:
    """A good body with *extra* (``"key":value``) added as it stands."""
    return json.dumps(body(dialect)).encode()[:-1] + b"," + extra + b"}"


def assert_refused(answer, dialect: str, *statuses: int) -> None:
    assert answer.status_code in (statuses or (400,)), (answer.status_code, answer.text[:300])
    told = answer.json()
    error = told["error"]
    if dialect == "anthropic":
        assert told["type"] == "error"
        assert told["request_id"] == answer.headers["request-id"]
    else:
        assert {"message", "type", "param", "code"} <= set(error)
    assert len(error["message"].encode()) <= 1000
    assert error["message"].isprintable()


NOT_JSON = {
    "truncated": b'{"model":',
    "reversed": b"}{",
    "trailing": b"{}x",
    "quotes": b"{'model': 'm'}",
    "comment": b'{"model": "m" /* x */}',
    "empty": b"",
    "blank": b" \n ",
    "scalar": b"1",
    "array": b"[]",
    "string": b'"m"',
    "null": b"null",
    "binary": bytes(range(256)),
    "utf-16": json.dumps(chat()).encode("utf-16"),
    "ff": b'{"model": "\xff"}',
    "overlong": b'{"model": "\xc0\xaf"}',
    "cut-character": b'{"model": "\xe2\x82"}',
    "raw-nul": b'{"model": "a\x00b"}',
    "deep-array": b"[" * 100_000,
    "deep-closed": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many-keys": b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b"}",
    "many-values": b'{"stop":[' + b"1," * 410_000 + b"1]}",
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_what_is_no_json_object_is_400(attacked, neuron, dialect, data):
    before = neuron.counts[CHAT]
    assert_refused(await attacked.client.post(PATHS[dialect], content=data), dialect)
    assert neuron.counts[CHAT] == before


FIELDS = {
    "nan": b'"temperature":NaN',
    "infinity": b'"temperature":Infinity',
    "minus-infinity": b'"temperature":-Infinity',
    "overflow": b'"temperature":1e999',
    "huge-integer": b'"max_tokens":1' + b"0" * 5000,
    "surrogate": b'"metadata":{"user_id":"\\ud800"}',
    "deep-tools": b'"tools":[{"parameters":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001 + b"]",
    "deep-metadata": b'"metadata":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
}


@pytest.mark.parametrize("extra", FIELDS.values(), ids=FIELDS.keys())
async def test_a_value_that_no_json_may_hold_is_400(attacked, dialect, extra):
    answer = await attacked.client.post(PATHS[dialect], content=raw_body(dialect, extra))
    assert_refused(answer, dialect)


WRONG = {
    "true-for-int": {"max_tokens": True},
    "text-for-int": {"max_tokens": "5"},
    "float-for-int": {"max_tokens": 1.0},
    "minus-one": {"max_tokens": -1},
    "minus-2-63": {"max_tokens": -(2**63)},
    "2-63": {"max_tokens": 2**63},
    "text-for-bool": {"stream": "true"},
    "one-for-bool": {"stream": 1},
    "empty-messages": {"messages": []},
    "messages-object": {"messages": {}},
    "message-text": {"messages": ["Hi"]},
    "no-role": {"messages": [{"content": "Hi"}]},
    "empty-role": {"messages": [{"role": "", "content": "Hi"}]},
    "null-role": {"messages": [{"role": None, "content": "Hi"}]},
    "nul-role": {"messages": [{"role": "system\0", "content": "Hi"}]},
    "upper-role": {"messages": [{"role": "SYSTEM", "content": "Hi"}]},
    "long-role": {"messages": [{"role": "x" * 900_000, "content": "Hi"}]},
    "number-content": {"messages": [{"role": "user", "content": 5}]},
    "temperature-text": {"temperature": "hot"},
    "model-null": {"model": None},
    "model-number": {"model": 5},
    "model-empty": {"model": ""},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG.keys())
async def test_a_field_of_another_type_or_out_of_range_is_400(attacked, neuron, dialect, fields):
    before = neuron.counts[CHAT]
    asked = {**body(dialect), **fields}
    assert_refused(await attacked.client.post(PATHS[dialect], json=asked), dialect)
    assert neuron.counts[CHAT] == before


async def test_stop_strings_without_end_are_400(attacked):
    for stop in (["x"] * 100_000, [""], ["x" * 500_000], [None], 5):
        assert_refused(await attacked.client.post(CHAT, json=chat(stop=stop)), "openai")


@pytest.mark.parametrize("bias", [{"1": -1000}, {"1": True}, {"x": 1}, {"1": "a"}, [1]])
async def test_a_bias_that_is_none_is_400(attacked, bias):
    assert_refused(await attacked.client.post(CHAT, json=chat(logit_bias=bias)), "openai")


NAMES = (
    "../../etc/passwd",
    "..%2f..%2f",
    "/etc/passwd",
    "C:\\x",
    "a\0b",
    "m;rm -rf",
    "${jndi:ldap://x}",
    "m" * 900_000,
    "hf://org/x",
    "http://127.0.0.1/x",
    "x\r\nx-evil: 1",
    "__class__",
)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_a_name_that_is_no_models_is_404_and_goes_nowhere(attacked, neuron, dialect, name):
    before = len([asked for asked in neuron.requests if asked.method == "POST"])
    answer = await attacked.client.post(PATHS[dialect], json=body(dialect, model=name))
    assert_refused(answer, dialect, 404)
    assert len([asked for asked in neuron.requests if asked.method == "POST"]) == before
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_cap_is_413(attacked, dialect, chunked):
    data = json.dumps(body(dialect, messages=[{"role": "user", "content": "x" * 1_100_000}]))

    async def pieces():
        for at in range(0, len(data), 65_536):
            yield data[at : at + 65_536].encode()

    content = pieces() if chunked else data.encode()
    answer = await attacked.client.post(PATHS[dialect], content=content)
    assert_refused(answer, dialect, 413)


async def test_of_duplicate_keys_the_last_wins_at_every_level(attacked, neuron, dialect):
    data = raw_body(dialect, b'"messages":[{"role":"system","role":"user","content":"b"}]')
    answer = await attacked.client.post(PATHS[dialect], content=data)
    assert answer.status_code == 200
    assert neuron.last(CHAT).json["messages"][-1]["role"] == "user"
    assert neuron.last(CHAT).body.count(b'"role"') == 1


async def test_a_nul_in_a_text_arrives_as_it_is(attacked, neuron, dialect):
    asked = body(dialect, messages=[{"role": "user", "content": "a\0b"}])
    answer = await attacked.client.post(PATHS[dialect], json=asked)
    assert answer.status_code == 200
    assert "a\\u0000b" in json.dumps(neuron.last(CHAT).json["messages"])


async def test_names_of_python_are_plain_data(attacked, dialect):
    fields = {"__class__": "x", "__proto__": {"a": 1}, "metadata": {"constructor": "y"}}
    answer = await attacked.client.post(PATHS[dialect], json={**body(dialect), **fields})
    assert answer.status_code == 200


def encoding_code(answer, dialect: str) -> str:
    error = answer.json()["error"]
    return error["details"]["error_code"] if dialect == "anthropic" else error["code"]


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "gzip, zstd", "x" * 500])
async def test_an_encoding_we_do_not_read_is_refused(attacked, dialect, encoding):
    answer = await attacked.client.post(
        PATHS[dialect], content=b"{}", headers={"content-encoding": encoding}
    )
    assert_refused(answer, dialect, 400 if dialect == "anthropic" else 415)
    assert encoding_code(answer, dialect) == "request_body_encoding_unsupported"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_what_its_encoding_says_is_400(attacked, dialect, encoding):
    answer = await attacked.client.post(
        PATHS[dialect], content=b"{}", headers={"content-encoding": encoding}
    )
    assert_refused(answer, dialect, 400)
    assert encoding_code(answer, dialect) == "request_body_encoding_invalid"


async def test_a_bomb_is_413(attacked, neuron, dialect):
    before = neuron.counts[CHAT]
    bomb = gzip.compress(b" " * (32 << 20), compresslevel=1)
    answer = await attacked.client.post(
        PATHS[dialect], content=bomb, headers={"content-encoding": "gzip"}
    )
    assert_refused(answer, dialect, 413)
    assert encoding_code(answer, dialect) == "request_body_too_large_after_decoding"
    assert neuron.counts[CHAT] == before


async def test_a_compressed_body_is_read_like_any_other(attacked, neuron, dialect):
    answer = await attacked.client.post(
        PATHS[dialect],
        content=gzip.compress(json.dumps(body(dialect)).encode()),
        headers={"content-encoding": "gzip"},
    )
    assert answer.status_code == 200
    assert neuron.last(CHAT).json["messages"][-1]["content"] == "Hi"

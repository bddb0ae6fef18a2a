"""Keys, scopes, limits and usage through a whole gateway, in both dialects."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, closing
from functools import partial

import attrs
import pytest
import trio
from fakes.accounts import add_key
from fakes.gateway import CHAT, LANES, MESSAGES, chat, gateway, lane_fixture, message
from fakes.neuron import FakeNeuron, Reply, chunk, json_reply
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.config.catalogue import CatalogueEntry
from cortex.gateway.auth import database, journal, report
from cortex.gateway.auth.accounts import open_accounts

BOTH = [CHAT, MESSAGES]


@pytest.fixture(autouse=True, params=LANES)
def lane(request, monkeypatch) -> str:
    """The lane that serves the hot routes: everything holds on either."""
    return lane_fixture(request, monkeypatch)


COUNT = f"{MESSAGES}/count_tokens"
BODIES = {CHAT: chat, MESSAGES: message}


def body_for(path: str, model: str = "m", **fields):
    return BODIES[path](model, **fields)


def fake(*models: str) -> FakeNeuron:
    neuron = FakeNeuron("a", token="fleet-token")
    for model in models or ("m", "other"):
        neuron.hold(model)
    return neuron


@asynccontextmanager
async def keyed(directory, *, neuron=None, **fields):
    neuron = neuron or fake()
    with trio.fail_after(20):
        async with gateway(neuron, state_directory=directory, **fields) as running:
            yield running, neuron


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error_of(path: str, answer):
    """The error's type and code (Anthropic's has no code)."""
    body = answer.json()
    if path == MESSAGES:
        assert body["type"] == "error"
        assert body["request_id"] == answer.headers["request-id"]
        return body["error"]["type"]
    assert {"message", "type", "param", "code"} <= set(body["error"])
    return body["error"]["code"]


def used(directory, by=("key", "model")) -> list[tuple[object, ...]]:
    with closing(database.connect(directory)) as connection:
        return [tuple(row.values()) for row in report.usage(connection, by)]


# Who is let in (CV32, CV33, AB28, BAD42)


async def test_each_header_form_is_read_in_each_dialect(tmp_path):
    key, other = add_key(tmp_path, "laptop"), add_key(tmp_path, "other")
    forms = [
        ({"x-api-key": key}, 200),
        (bearer(key), 200),
        ({"authorization": f"bearer {key}"}, 200),
        ({"authorization": f"Bearer  {key}"}, 200),
        ({"x-api-key": key, **bearer(key)}, 200),
        ({"x-api-key": key, **bearer("wrong")}, 200),
        ({"x-api-key": key, **bearer(other)}, 200),
        ({"x-api-key": "wrong", **bearer(key)}, 401),
        ({}, 401),
        (bearer("wrong"), 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": f"Basic {key}"}, 401),
        ({"x-api-key": "schl\u00fcssel".encode("latin-1")}, 401),
        (bearer("k" * 9000), 401),
    ]
    async with keyed(tmp_path) as (running, neuron):
        served = 0
        for path in BOTH:
            for headers, status in forms:
                answer = await running.client.post(path, json=body_for(path), headers=headers)
                assert answer.status_code == status, headers
                served += status == 200
                if status == 401:
                    told = {CHAT: "invalid_api_key", MESSAGES: "authentication_error"}
                    assert error_of(path, answer) == told[path]
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert answer.headers["x-should-retry"] == "false"
                    assert answer.headers.get("x-request-id")
        assert neuron.counts[CHAT] == served
        # Where both differ, the request is x-api-key's.
        await running.client.post(CHAT, json=chat(), headers={"x-api-key": key, **bearer(other)})
        assert neuron.last(CHAT).headers["x-cortex-caller"] == "laptop"


async def test_a_key_in_the_query_is_none(tmp_path):
    key = add_key(tmp_path, "laptop")
    async with keyed(tmp_path) as (running, neuron):
        for name in ("api_key", "key", "x-api-key", "access_token"):
            answer = await running.client.post(f"{CHAT}?{name}={key}", json=chat())
            assert answer.status_code == 401
        assert neuron.counts[CHAT] == 0


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_two_credentials_of_one_kind_are_none(tmp_path, name):
    key = add_key(tmp_path, "laptop")
    value = f"Bearer {key}" if name == "authorization" else key
    async with keyed(tmp_path) as (running, _):
        for pair in ([(name, value), (name, "Bearer x")], [(name, "Bearer x"), (name, value)]):
            headers = [(k.encode(), v.encode()) for k, v in pair]
            answer = await running.client.post(CHAT, json=chat(), headers=headers)
            assert answer.status_code == 400  # before anybody asks which of the two is right


async def test_who_is_refused_is_refused_before_its_body_is_read(tmp_path):
    add_key(tmp_path, "laptop")
    async with keyed(tmp_path) as (running, _):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        assert (await running.raw(head)).startswith(b"HTTP/1.1 401")


async def test_keys_are_in_no_log_no_metric_and_no_request_to_a_neuron(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="cortex")
    key = add_key(tmp_path, "laptop")
    wrong = key[:-4] + "AAAA"
    async with keyed(tmp_path) as (running, neuron):
        for given in (key, wrong):
            for headers in (bearer(given), {"x-api-key": given}):
                for path in BOTH:
                    await running.client.post(path, json=body_for(path), headers=headers)
        text = (await running.client.get(f"{running.metrics}/metrics")).text
        for secret in (key, wrong, key[-32:]):
            assert secret not in text
            assert secret not in caplog.text
            assert all(secret not in repr(r.__dict__) for r in caplog.records)
            assert all(secret not in str(asked.headers) for asked in neuron.requests)
        sent = [asked.headers for asked in neuron.requests if asked.path == CHAT]
        assert len(sent) == 4
        assert {headers["authorization"] for headers in sent} == {"Bearer fleet-token"}
        assert not any("x-api-key" in headers for headers in sent)


async def test_without_a_key_anonymous_callers_have_the_rights_that_are_configured(tmp_path):
    add_key(tmp_path, "laptop")
    auth = AuthSettings(
        anonymous=True, anonymous_models=("m",), anonymous_rpm=2, anonymous_priority="batch"
    )
    async with keyed(tmp_path, auth=auth) as (running, neuron):
        assert (await running.client.post(CHAT, json=chat("other"))).status_code == 403
        codes = [(await running.client.post(CHAT, json=chat())).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        headers = neuron.last(CHAT).headers
        assert (headers["x-cortex-caller"], headers["x-cortex-priority"]) == ("anonymous", "-1")
        assert "x-cortex-salt" not in headers


async def test_the_time_that_keys_take_is_a_stage_of_its_own(tmp_path):
    key = add_key(tmp_path, "laptop", rpm=5)
    async with keyed(tmp_path) as (running, _):
        await running.client.post(CHAT, json=chat(), headers=bearer(key))
        labels = {"model": "m", "node": "a", "stage": "auth"}
        assert await running.total("cortex_stage_seconds_count", **labels) == 1
        assert await running.total("cortex_stage_seconds_sum", **labels) > 0


# What a key may do (CV34, BAD04, BAD43, BAD44, MD09)


async def test_a_key_may_use_the_models_on_its_list_only(tmp_path):
    key = add_key(tmp_path, "laptop", models=("m", "gpt-*"))
    aliases = {"gpt-4": "other", "claude-x": "other", "mine": "m"}
    models = (CatalogueEntry("other"), CatalogueEntry("m"))
    async with keyed(tmp_path, aliases=aliases, models=models) as (running, neuron):
        for path in BOTH:
            for name, status in (
                ("m", 200),
                ("gpt-4", 200),  # the alias is on the list
                ("mine", 200),  # what the alias stands for is
                ("other", 403),
                ("claude-x", 403),
                ("nothing", 403),  # it is not told what there is
                ("gpt-5", 404),
            ):
                answer = await running.client.post(
                    path, json=body_for(path, name), headers=bearer(key)
                )
                assert answer.status_code == status, (path, name)
                if status == 403:
                    told = {CHAT: "model_not_allowed", MESSAGES: "permission_error"}
                    assert error_of(path, answer) == told[path]
                if status == 404:
                    assert "other" not in answer.text  # no near names from beyond its list
        assert neuron.counts[CHAT] == 6
        counted = await running.client.post(COUNT, json=message("other"), headers=bearer(key))
        assert counted.status_code == 403
        assert neuron.counts["/tokenize"] == 0


async def test_names_made_for_discovery_widen_no_list(tmp_path):
    """Each model has a name that begins with ``claude-``: a list with ``claude-*`` means the
    operator's own names only."""
    key = add_key(tmp_path, "laptop", models=("claude-*",))
    aliases, models = {"claude-x": "m"}, (CatalogueEntry("other"), CatalogueEntry("m"))
    async with keyed(tmp_path, aliases=aliases, models=models) as (running, neuron):
        for name, status in (
            ("claude-x", 200),
            ("claude-cortex-claude-x", 200),
            ("claude-cortex-other", 403),
            ("claude-cortex-m", 403),
            ("claude-cortex-nothing", 403),
        ):
            for path in BOTH:
                answer = await running.client.post(
                    path, json=body_for(path, name), headers=bearer(key)
                )
                assert answer.status_code == status, (path, name)
            found = await running.client.get(f"/v1/models/{name}", headers=bearer(key))
            assert found.status_code == (404 if status == 403 else 200), name
        assert neuron.counts[CHAT] == 4


async def test_a_key_sees_the_models_that_it_may_use_only(tmp_path):
    some, every = add_key(tmp_path, "some", models=("m",)), add_key(tmp_path, "every")
    async with keyed(tmp_path) as (running, _):
        for key, expected in ((some, {"m"}), (every, {"m", "other"})):
            for extra in ({}, {"anthropic-version": "2023-06-01"}):
                answer = await running.client.get("/v1/models", headers={**bearer(key), **extra})
                listed = {entry["id"] for entry in answer.json()["data"]}
                assert {name.removeprefix("claude-cortex-") for name in listed} == expected
        for name, status in (("m", 200), ("other", 404), ("nothing", 404)):
            answer = await running.client.get(f"/v1/models/{name}", headers=bearer(some))
            assert answer.status_code == status


@pytest.mark.parametrize("path", BOTH)
async def test_what_is_authorised_is_what_is_sent(tmp_path, path):
    """The last of two keys counts, for the check and for the neuron: no way past the list."""
    key = add_key(tmp_path, "laptop", models=("m",))
    rest = b', "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}'
    async with keyed(tmp_path) as (running, neuron):
        bad = b'{"model": "m", "model": "other"' + rest
        good = b'{"model": "other", "model": "m"' + rest
        headers = {**bearer(key), "content-type": "application/json"}
        assert (await running.client.post(path, content=bad, headers=headers)).status_code == 403
        assert neuron.counts[CHAT] == 0
        assert (await running.client.post(path, content=good, headers=headers)).status_code == 200
        sent = neuron.last(CHAT)
        assert sent.body.count(b'"model"') == 1
        assert sent.json["model"] == "m"


async def test_neurons_are_told_the_caller_and_never_what_clients_say_they_are(tmp_path):
    one = add_key(tmp_path, "one", priority="interactive")
    two = add_key(tmp_path, "two")
    forged = {
        "x-cortex-caller": "root",
        "x-cortex-salt": "shared",
        "x-cortex-priority": "9",
        "X-Cortex-Caller": "root",
    }
    async with keyed(tmp_path) as (running, neuron):
        for key in (one, two):
            await running.client.post(CHAT, json=chat(), headers={**bearer(key), **forged})
        first, second = (asked.headers for asked in neuron.requests if asked.path == CHAT)
        assert (first["x-cortex-caller"], first["x-cortex-priority"]) == ("one", "1")
        assert second["x-cortex-caller"] == "two"
        assert "x-cortex-priority" not in second
        # Two keys share no prefix cache: neither can time what the other has sent.
        assert len({first["x-cortex-salt"], second["x-cortex-salt"], "shared", ""}) == 4


@pytest.mark.parametrize(
    "path", ["/metrics", "/fleet", "/fleet/events", "/debug", "/v1/keys", "/fleet/models/load"]
)
async def test_an_inference_key_opens_no_admin_route(tmp_path, path):
    key = add_key(tmp_path, "laptop")
    add_key(tmp_path, "ops", scopes=("admin",))
    async with keyed(tmp_path) as (running, neuron):
        method = "POST" if path.endswith("load") else "GET"
        for headers, status in ((bearer(key), 403), ({}, 401), (bearer("wrong"), 401)):
            answer = await running.client.request(method, path, headers=headers, json={})
            assert answer.status_code == (status if path.startswith("/fleet") else 404)
        assert neuron.counts["/models/load"] == 0


async def test_an_admin_key_opens_them(tmp_path):
    key = add_key(tmp_path, "ops", scopes=("admin",))
    async with keyed(tmp_path) as (running, _):
        headers = {**bearer(key), "host": "gateway.example"}
        assert (await running.client.get("/fleet", headers=headers)).status_code == 200
        assert (await running.client.get("/v1/models", headers=headers)).status_code == 200
        refused = await running.client.post(CHAT, json=chat(), headers=headers)
        assert refused.status_code == 403


async def test_probes_need_no_key(tmp_path):
    add_key(tmp_path, "laptop")
    async with keyed(tmp_path) as (running, _):
        for path in ("/", "/health", "/livez", "/readyz", "/version"):
            for method in ("GET", "HEAD"):
                answer = await running.client.request(method, path)
                assert answer.status_code == 200, (method, path)
        assert (await running.client.get("/v1/models")).status_code == 401


# Limits


async def test_a_key_over_its_rate_is_told_when_to_come_back(tmp_path):
    key = add_key(tmp_path, "laptop", rpm=2)
    async with keyed(tmp_path) as (running, neuron):
        codes = {}
        for path in [CHAT, CHAT, CHAT, MESSAGES]:
            answer = await running.client.post(path, json=body_for(path), headers=bearer(key))
            codes.setdefault(path, []).append(answer.status_code)
            if answer.status_code == 429:
                told = {CHAT: "rate_limit_exceeded", MESSAGES: "rate_limit_error"}
                assert error_of(path, answer) == told[path]
                assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert codes == {CHAT: [200, 200, 429], MESSAGES: [429]}
        assert neuron.counts[CHAT] == 2


async def test_a_key_without_budget_is_told_not_to_come_back(tmp_path):
    key = add_key(tmp_path, "laptop", budget=3, period="day")
    async with keyed(tmp_path) as (running, _):
        first = await running.client.post(CHAT, json=chat(), headers=bearer(key))
        assert first.status_code == 200
        for path in BOTH:
            answer = await running.client.post(path, json=body_for(path), headers=bearer(key))
            assert answer.status_code == 429
            told = {CHAT: "insufficient_quota", MESSAGES: "rate_limit_error"}
            assert error_of(path, answer) == told[path]
            assert "retry-after" not in answer.headers
            assert answer.headers["x-should-retry"] == "false"


async def test_a_budget_holds_across_a_restart(tmp_path):
    key = add_key(tmp_path, "laptop", budget=3, period="month")
    codes = []
    for _ in range(2):
        async with keyed(tmp_path) as (running, _):
            answer = await running.client.post(CHAT, json=chat(), headers=bearer(key))
            codes.append(answer.status_code)
    assert codes == [200, 429]


async def test_a_key_with_rates_is_told_what_is_left_of_them(tmp_path):
    limited, free = add_key(tmp_path, "a", rpm=60, tpm=1000), add_key(tmp_path, "b")
    async with keyed(tmp_path) as (running, _):
        headers = (await running.client.post(CHAT, json=chat(), headers=bearer(limited))).headers
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == "59"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert 900 < int(headers["x-ratelimit-remaining-tokens"]) < 1000
        async with running.stream(chat(stream=True), headers=bearer(limited)) as reading:
            assert int(reading.response.headers["x-ratelimit-remaining-requests"]) < 60
            await reading.rest()
        headers = (
            await running.client.post(MESSAGES, json=message(), headers=bearer(limited))
        ).headers
        assert headers["anthropic-ratelimit-requests-limit"] == "60"
        assert headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
        assert not any(name.startswith("x-ratelimit") for name in headers)
        plain = (await running.client.post(CHAT, json=chat(), headers=bearer(free))).headers
        assert not any("ratelimit" in name for name in plain)


# Usage


async def test_use_is_counted_by_key_and_model(tmp_path):
    one, two = add_key(tmp_path, "one"), add_key(tmp_path, "two")
    async with keyed(tmp_path) as (running, _):
        for path in BOTH:
            await running.client.post(path, json=body_for(path), headers=bearer(one))
        async with running.stream(chat("other", stream=True), headers=bearer(one)) as reading:
            await reading.rest()
        await running.client.post(CHAT, json=chat("nothing"), headers=bearer(two))
        await running.client.post(CHAT, json={"model": 5}, headers=bearer(two))
        spent = {
            kind: await running.total("cortex_spend_tokens_total", key="one", model="m", kind=kind)
            for kind in ("prompt", "completion")
        }
    rows = {row[:2]: row[2:] for row in used(tmp_path)}
    requests, errors, prompt, _, completion = rows[("one", "m")]
    assert (requests, errors) == (2, 0)
    assert {"prompt": prompt, "completion": completion} == spent
    assert prompt > 0
    assert completion > 0
    assert rows[("one", "other")][:2] == (1, 0)
    assert rows[("two", "unknown")] == (2, 2, 0, 0, 0)


async def test_a_stream_that_the_client_leaves_is_charged_for_what_it_got(tmp_path):
    key = add_key(tmp_path, "laptop")
    go = trio.Event()
    usage = {"usage": {"prompt_tokens": 21, "completion_tokens": 0}}
    frames = [
        chunk("m", {"role": "assistant", "content": ""}, **usage),
        *(chunk("m", {"content": word}) for word in "abcd"),
        go,
        chunk("m", {"content": "never seen"}),
    ]
    neuron = fake()
    neuron.scripts[CHAT] = lambda asked: Reply(frames=frames, content_type="text/event-stream")
    async with keyed(tmp_path, neuron=neuron) as (running, _):
        async with running.stream(chat(stream=True), headers=bearer(key)) as reading:
            await reading.until(b'"d"')
        await running.until(1, "cortex_client_disconnects_total")
    assert used(tmp_path, ("key", "model")) == [("laptop", "m", 1, 0, 21, 0, 4)]


async def test_a_budget_is_not_spared_by_leaving_early(tmp_path):
    """Nobody has counted the prompt yet, but a node may have computed all of it."""
    key = add_key(tmp_path, "laptop", budget=100, period="day")
    neuron = fake()
    neuron.scripts[CHAT] = lambda asked: Reply(frames=[trio.Event()])
    long = chat(messages=[{"role": "user", "content": "x" * 300}])
    codes = []
    async with keyed(tmp_path, neuron=neuron) as (running, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(running.client.post, CHAT, json=long, headers=bearer(key)))
            while not neuron.in_flight:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        await running.until(1, "cortex_client_disconnects_total")
        neuron.scripts.clear()
        for body in (long, chat()):
            answer = await running.client.post(CHAT, json=body, headers=bearer(key))
            codes.append(answer.status_code)
    assert codes == [429, 200]


async def test_what_a_client_has_seen_end_is_on_record(tmp_path):
    """The journal has a request before its last bytes can have been seen."""
    key = add_key(tmp_path, "laptop")
    async with keyed(tmp_path) as (running, _):
        for stream in (False, True):
            size = sum(path.stat().st_size for path in tmp_path.glob("*.journal"))
            async with running.stream(chat(stream=stream), headers=bearer(key)) as reading:
                await reading.until(b"[DONE]" if stream else b'"choices"')
                assert sum(p.stat().st_size for p in tmp_path.glob("*.journal")) > size
    assert used(tmp_path, ("key",))[0][:3] == ("laptop", 2, 0)


async def test_each_request_is_logged_where_that_is_wanted(tmp_path):
    key = add_key(tmp_path, "laptop")
    async with keyed(tmp_path, usage=UsageSettings(request_log=True)) as (running, _):
        await running.client.post(CHAT, json=chat(), headers=bearer(key))
        await running.client.post(MESSAGES, json=message(), headers=bearer("wrong"))
    with closing(database.connect(tmp_path)) as connection:
        (row,) = connection.execute(
            "SELECT model, node, dialect, code, prompt > 0, seconds > 0 FROM requests"
        ).fetchall()
    assert row == ("m", "a", "openai-chat", 200, 1, 1)


async def test_without_a_state_directory_everything_is_served_and_nothing_kept(tmp_path):
    async with keyed(None) as (running, _):
        answer = await running.client.post(CHAT, json=chat(), headers=bearer("sk-dummy"))
        assert answer.status_code == 200


async def test_a_directory_that_cannot_be_made_is_no_reason_not_to_serve(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    async with keyed(tmp_path / "file" / "state") as (running, _):
        assert (await running.client.post(CHAT, json=chat())).status_code == 200
    assert any("usage is not kept" in each.message for each in caplog.records)


async def test_without_a_journal_keys_are_followed_all_the_same(
    tmp_path, monkeypatch, autojump_clock, caplog
):
    def no_space(directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Journal, "create", no_space)
    with open_accounts(tmp_path, AuthSettings(), UsageSettings(), CollectorRegistry()) as accounts:
        assert accounts.ledger is None
        assert any("usage is not kept" in each.message for each in caplog.records)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accounts.run)
            await wait_all_tasks_blocked()
            key = add_key(tmp_path, "a", rpm=5)
            await trio.sleep(1.5)
            caller = accounts.ring.find(key)
            assert accounts.limiter.of(caller.key_id).limits.rpm == 5
            nursery.cancel_scope.cancel()


async def test_keys_that_cannot_be_read_end_the_start(tmp_path):
    (tmp_path / database.NAME).write_bytes(b"x" * 4096)
    with pytest.RaisesGroup(
        pytest.RaisesExc(database.DatabaseError), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with keyed(tmp_path):
            pass


async def test_the_fleets_own_refusal_of_a_token_is_not_the_clients(tmp_path):
    key = add_key(tmp_path, "laptop")
    neuron = fake()
    neuron.scripts[CHAT] = lambda asked: json_reply({"error": {"message": "no"}}, 401)
    async with keyed(tmp_path, neuron=neuron) as (running, _):
        answer = await running.client.post(CHAT, json=chat(), headers=bearer(key))
        assert answer.status_code == 502


# Other parts of the gateway


async def test_a_reload_changes_what_callers_without_a_key_may_do(tmp_path):
    add_key(tmp_path, "laptop")
    async with keyed(tmp_path, auth=AuthSettings(anonymous=True)) as (running, neuron):

        async def codes(count: int = 1) -> list[int]:
            return [
                (await running.client.post(CHAT, json=chat())).status_code for _ in range(count)
            ]

        async def reload(auth: AuthSettings) -> None:
            running.files.config = attrs.evolve(
                running.files.config, auth=auth, usage=UsageSettings(request_log=True)
            )
            answer = await running.client.post("/fleet/reload")
            assert answer.json()["plan"]["needs_restart"] == []

        assert await codes() == [200]
        await reload(AuthSettings(anonymous=True, anonymous_rpm=2, anonymous_priority="batch"))
        assert await codes(3) == [200, 200, 429]
        assert neuron.last(CHAT).headers["x-cortex-priority"] == "-1"
        await reload(AuthSettings(anonymous=False))
        assert await codes() == [401]
    with closing(database.connect(tmp_path)) as connection:
        logged = connection.execute("SELECT code FROM requests ORDER BY time").fetchall()
    # One that the ledger had not taken up yet when the log was turned on is in it, too.
    assert [code for (code,) in logged][-3:] == [200, 200, 429]

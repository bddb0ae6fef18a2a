from __future__ import annotations

import logging
import random

import pytest
import trio
from prometheus_client import CollectorRegistry

from cortex.errors import (
    BadRequest,
    LoadFailed,
    ModelNotFound,
    Overloaded,
    Unavailable,
    UpstreamError,
)
from cortex.gateway.exchange import Exchange
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.observed import Observed
from cortex.gateway.router import Lease
from cortex.wire import errors


class Bench:
    """An exchange with its registry and its log."""

    def __init__(self, caplog) -> None:
        caplog.set_level(logging.INFO, "cortex.gateway.request")
        self.registry = CollectorRegistry()
        self.caplog = caplog
        metrics = GatewayMetrics(self.registry)
        self.exchange = Exchange(metrics, "openai-chat", "alias", trio.current_time(), stream=True)

    def lease(self, **fields) -> Lease:
        known = {"cold_start": False, "load_seconds": 0.0}
        return Lease("a", "http://a", None, "m", "alias", **{**known, **fields})

    def line(self):
        (record,) = [r for r in self.caplog.records if r.getMessage() == "request"]
        return record.cortex_fields

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model": "m", "node": "a", **labels})

    def stages(self) -> dict[str, float]:
        return {
            sample.labels["stage"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_stage_seconds_sum"
        }

    def requests(self) -> dict[str, float]:
        return {
            sample.labels["code"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_requests_total"
        }

    def reasons(self) -> dict[str, float]:
        return {
            sample.labels["reason"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_request_errors_total"
        }

    def begin(self) -> Exchange:
        self.exchange.resolved("m")
        self.exchange.routing()
        self.exchange.routed(self.lease())
        return self.exchange


@pytest.fixture
async def bench(caplog):
    return Bench(caplog)


async def test_a_complete_answer_counts_what_its_usage_says(bench, autojump_clock):
    with bench.begin() as exchange:
        await trio.sleep(0.5)
        exchange.token()
        await trio.sleep(2)
        exchange.token()
        exchange.observed.take_usage(
            {
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 2},
            }
        )
        exchange.observed.take_finish([{"finish_reason": "stop"}])
    assert bench.requests() == {"200": 1}
    assert bench.reasons() == {}
    assert bench.value("cortex_prompt_tokens_total") == 7
    assert bench.value("cortex_completion_tokens_total") == 5
    assert bench.value("cortex_cached_prompt_tokens_total") == 2
    assert bench.value("cortex_time_to_first_token_seconds_sum") == 0.5
    assert bench.value("cortex_inter_token_seconds_sum") == 2
    assert bench.value("cortex_request_duration_seconds_sum") == 2.5
    assert bench.value("cortex_tokens_per_second_sum") == 2
    line = bench.line()
    assert (line["end"], line["code"], line["prompt"], line["completion"]) == ("stop", 200, 7, 5)
    assert (line["model"], line["node"], line["ttft"]) == ("m", "a", 0.5)


STAGES = ("receive", "auth", "queue", "route", "load", "prefill", "decode", "relay")


async def test_a_neurons_timings_are_its_stages_and_its_speed(bench, autojump_clock):
    with bench.begin() as exchange:
        await trio.sleep(2)
        exchange.observed.completion_tokens = 11
        exchange.observed.take_timings({"queue_ms": 500, "prefill_ms": 250, "decode_ms": 1000})
    assert bench.stages() == {
        "receive": 0,
        "route": 0,
        "queue": 0.5,
        "prefill": 0.25,
        "decode": 1.0,
        "relay": 0.25,
    }
    assert bench.value("cortex_tokens_per_second_sum") == 10


async def test_each_stage_of_a_request_gets_its_own_time(bench, autojump_clock):
    with bench.exchange as exchange:
        await trio.sleep(1)
        exchange.authorised(0.25)
        exchange.resolved("m")
        exchange.queueing()
        await trio.sleep(2)
        exchange.routing()
        await trio.sleep(4.5)
        exchange.routed(bench.lease(cold_start=True, load_seconds=4.0))
        await trio.sleep(8)  # the first replica does not take it after all
        exchange.retried()
        exchange.routed(bench.lease())
        await trio.sleep(16)
        exchange.observed.take_timings({"queue_ms": 1000, "prefill_ms": 2000, "decode_ms": 4000})
    assert bench.stages() == {
        "receive": 0.75,
        "auth": 0.25,
        "queue": 3,
        "route": 8.5,
        "load": 4,
        "prefill": 2,
        "decode": 4,
        "relay": 9,
    }


async def test_without_timings_a_streams_tokens_tell_its_stages(bench, autojump_clock):
    with bench.begin() as exchange:
        for seconds in (3, 1, 1):
            await trio.sleep(seconds)
            exchange.token()
        await trio.sleep(0.5)
    stages = bench.stages()
    assert (stages["prefill"], stages["decode"], stages["relay"]) == (3, 2, 0.5)


async def test_time_that_nothing_explains_is_the_relays(bench, autojump_clock):
    with bench.begin():
        await trio.sleep(3)
    assert bench.stages() == {"receive": 0, "route": 0, "relay": 3}


async def test_a_load_that_fails_took_its_time(bench, autojump_clock):
    bench.exchange.resolved("m")
    bench.exchange.routing()
    await trio.sleep(5)
    with pytest.raises(LoadFailed), bench.exchange:
        raise LoadFailed("no memory")
    assert bench.stages() == {"receive": 0, "route": 0, "load": 5}


@pytest.mark.parametrize("seed", range(30))
async def test_the_stages_add_up_to_the_duration(bench, autojump_clock, seed):
    """Whatever happens in whatever order, and whatever a neuron claims."""
    chance = random.Random(seed)
    exchange = bench.exchange
    steps = [
        exchange.queueing,
        exchange.routing,
        exchange.retried,
        exchange.token,
        lambda: exchange.authorised(chance.random()),
        lambda: exchange.token(chance.randint(1, 5)),
        lambda: exchange.routed(bench.lease()),
        lambda: exchange.routed(bench.lease(cold_start=True, load_seconds=chance.random())),
        lambda: exchange.failed(chance.choice([LoadFailed("x"), BadRequest("x")])),
    ]
    with exchange:
        exchange.resolved("m")
        exchange.node = "a"
        for _ in range(chance.randint(0, 12)):
            await trio.sleep(chance.choice([0, 0.1, 1.3]))
            chance.choice(steps)()
        if chance.random() < 0.7:
            names = ("queue_ms", "prefill_ms", "decode_ms")
            exchange.observed.take_timings({name: chance.random() * 5000 for name in names})
        await trio.sleep(0.7)
    stages = bench.stages()
    assert set(stages) <= set(STAGES)
    assert min(stages.values()) >= 0
    assert sum(stages.values()) == pytest.approx(
        bench.value("cortex_request_duration_seconds_sum"), rel=1e-9
    )


async def test_tokens_that_come_together_share_the_time_since_the_last(bench, autojump_clock):
    with bench.begin() as exchange:
        await trio.sleep(1)
        exchange.token(2)
        await trio.sleep(3)
        exchange.token(3)
    assert bench.value("cortex_time_to_first_token_seconds_sum") == 1
    assert bench.value("cortex_inter_token_seconds_count") == 4
    assert bench.value("cortex_inter_token_seconds_sum") == 3
    assert bench.value("cortex_inter_token_seconds_bucket", le="0.5") == 1
    assert bench.value("cortex_inter_token_seconds_bucket", le="1.0") == 4


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (Overloaded("full"), "429", "529"),
        (Unavailable("later"), "503", "529"),
        (UpstreamError("refused"), "502", "500"),
        (BadRequest("no"), "400", "400"),
    ],
)
async def test_the_code_is_what_the_clients_dialect_got(bench, error, openai, anthropic):
    for dialect in ("openai-chat", "anthropic-messages"):
        with Exchange(bench.exchange.metrics, dialect, "m", trio.current_time()) as exchange:
            exchange.failed(error)
    shown = {
        sample.labels["dialect"]: sample.labels["code"]
        for family in bench.registry.collect()
        for sample in family.samples
        if sample.name == "cortex_requests_total"
    }
    assert shown == {"openai-chat": openai, "anthropic-messages": anthropic}


async def test_a_client_that_leaves_is_counted_once_and_is_no_error(bench, autojump_clock):
    with trio.CancelScope() as scope, bench.begin():
        scope.cancel()
        await trio.lowlevel.checkpoint()
    assert bench.requests() == {"499": 1}
    assert bench.reasons() == {}
    assert bench.value("cortex_client_disconnects_total") == 1
    assert bench.line()["end"] == "client_gone"


async def test_a_cancelled_group_is_a_client_that_leaves(bench, autojump_clock):
    with trio.CancelScope() as scope, bench.begin():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert bench.requests() == {"499": 1}


async def test_an_error_before_the_status_is_counted_under_its_code(bench, autojump_clock):
    with pytest.raises(UpstreamError), bench.begin():
        raise UpstreamError("refused")
    assert bench.requests() == {"502": 1}
    assert bench.reasons() == {"upstream_error": 1}
    assert bench.line()["end"] == "upstream_error"


async def test_an_error_within_the_stream_is_counted_once(bench, autojump_clock):
    with bench.begin() as exchange:
        exchange.failed(UpstreamError("ended early"))
    assert bench.requests() == {"502": 1}
    assert bench.reasons() == {"upstream_error": 1}
    assert bench.value("cortex_tokens_per_second_count") is None


async def test_an_error_in_a_group_is_the_error(bench, autojump_clock):
    with pytest.raises(BaseExceptionGroup), bench.begin():
        async with trio.open_nursery():
            raise BadRequest("no")
    assert bench.requests() == {"400": 1}


async def test_an_unknown_model_is_no_label(bench, autojump_clock):
    with pytest.raises(ModelNotFound), bench.exchange:
        raise ModelNotFound("no such model")
    labels = {"model": "unknown", "node": "unknown", "code": "404", "dialect": "openai-chat"}
    assert bench.registry.get_sample_value("cortex_requests_total", labels) == 1
    assert bench.line()["model"] == "alias"


async def test_a_bug_is_an_internal_error(bench, autojump_clock):
    with pytest.raises(ZeroDivisionError), bench.begin():
        raise ZeroDivisionError
    assert bench.requests() == {"500": 1}
    assert bench.reasons() == {"internal_error": 1}
    assert bench.line()["end"] == "internal_error"


@pytest.mark.parametrize("status", [400, 404, 418, 429, 500, 502, 503, None])
async def test_a_code_that_a_neuron_invents_becomes_no_label(bench, status):
    invented = errors.parse(status, {"error": {"message": "x", "code": "made-up-42"}})
    with bench.begin() as exchange:
        exchange.failed(invented)
    (reason,) = bench.reasons()
    assert reason == type(invented).code


async def test_a_stalled_client_is_told_apart_in_the_log(bench, autojump_clock):
    with bench.begin() as exchange:
        exchange.left("client_stalled")
    assert bench.requests() == {"499": 1}
    assert bench.line()["end"] == "client_stalled"


async def test_a_second_replica_is_a_retry_at_the_first(bench, autojump_clock):
    exchange = bench.begin()
    exchange.retried()
    assert not bench.value("cortex_upstream_retries_total")  # there may be no other
    exchange.routed(bench.lease())
    assert bench.value("cortex_upstream_retries_total") == 1
    exchange.routed(bench.lease())
    assert bench.value("cortex_upstream_retries_total") == 1


@pytest.mark.parametrize("value", [None, -1, "5", [], True])
async def test_a_timing_that_is_no_number_is_none(value):
    observed = Observed()
    observed.take_timings({"queue_ms": value})
    assert observed.milliseconds("queue_ms") is None


async def test_only_whole_counts_are_taken():
    observed = Observed(prompt_tokens=3)
    observed.take_usage({"prompt_tokens": 1.5, "completion_tokens": True})
    assert (observed.prompt_tokens, observed.completion_tokens) == (3, None)

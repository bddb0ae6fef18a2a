from __future__ import annotations

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from fakes.anthropic_client import Accumulator
from fakes.gateway import payloads, text_of
from fakes.neuron import chunk
from fakes.streams import RecordingSink, run_stream
from prometheus_client import CollectorRegistry

from cortex.errors import NoHealthyNode, Overloaded, UpstreamError
from cortex.gateway.anthropic_encoder import MessageStream
from cortex.gateway.encoder import PassThrough
from cortex.gateway.exchange import Exchange
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.relay import DRAIN_SECONDS, relay
from cortex.gateway.upstream import Broken
from cortex.service.http import Pace
from cortex.translate.anthropic import read_messages
from cortex.wire.sse import FrameReader

PACE = Pace(commit_after=5, keep_alive=2, stall=10)
FIRST = chunk("m", {"role": "assistant", "content": ""})
WORDS = [chunk("m", {"content": word}) for word in ("Hello", ",", " world")]
LAST = chunk("m", {}, finish_reason="stop")
DONE = b"data: [DONE]\n\n"
WHOLE = [FIRST, *WORDS, LAST, DONE]


@attrs.define(eq=False)
class Script:
    """An upstream answer: bytes are received, numbers are waited, exceptions raised. ``before`` is
    waited, or raised, while the call is opened."""

    parts: list[bytes | float | Exception]
    before: list[float | Exception] = attrs.field(factory=list)
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    opened: int = 0
    closed: int = 0
    at_hand: bool = False

    @property
    def complete(self) -> bool:
        return not self.parts

    @asynccontextmanager
    async def open(self):
        self.opened += 1
        try:
            for step in self.before:
                if isinstance(step, Exception):
                    raise step
                await trio.sleep(step)
            yield self
        finally:
            self.closed += 1

    async def receive(self) -> bytes:
        while self.parts:
            part = self.parts.pop(0)
            if isinstance(part, Exception):
                raise part
            if isinstance(part, bytes):
                await trio.lowlevel.checkpoint()
                return part
            await trio.sleep(part)
        return b""

    async def read(self, limit: int) -> bytes:
        raise NotImplementedError


@attrs.define(eq=False)
class Case:
    """One relayed request, and what its client got."""

    script: Script
    encoder: object = attrs.field(
        factory=lambda: PassThrough(model="m", requested="m", include_usage=False)
    )
    registry: CollectorRegistry = attrs.field(factory=CollectorRegistry)
    sink: RecordingSink = attrs.field(factory=RecordingSink)

    @property
    def now(self) -> float:
        return self.sink.now

    @property
    def body(self) -> bytes:
        return self.sink.body

    @property
    def chunks(self) -> list[tuple[float, bytes]]:
        return self.sink.chunks

    @property
    def committed_at(self) -> float:
        return self.sink.begun[0][0]

    async def run(self, *, leave_after: float | None = None) -> None:
        """Relay to a client that reads, and may leave after some time."""
        start = self.sink.start = trio.current_time()
        exchange = Exchange(GatewayMetrics(self.registry), "d", "m", start, stream=True)
        exchange.resolved("m")
        answer = relay(exchange, self.script.open, self.encoder, PACE)
        with trio.CancelScope() as scope:
            if leave_after is not None:
                scope.deadline = start + leave_after
            await run_stream(answer, self.sink)

    def ends(self) -> dict[str, float]:
        return {
            sample.labels["code"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == "cortex_requests_total"
        }


def message_stream() -> MessageStream:
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    return MessageStream(read_messages(body), "msg_1", "req_1")


# Whole streams


async def test_a_stream_passes_byte_for_byte(autojump_clock):
    case = Case(Script(list(WHOLE)))
    await case.run()
    assert case.body == b"".join(WHOLE)
    assert case.ends() == {"200": 1}
    assert (case.script.opened, case.script.closed) == (1, 1)


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_where_the_upstream_cuts_its_bytes_makes_no_difference(autojump_clock, size):
    stream = b"".join(WHOLE)
    case = Case(Script([stream[i : i + size] for i in range(0, len(stream), size)]))
    await case.run()
    assert case.body == stream


async def test_a_frame_is_passed_on_as_soon_as_it_is_there(autojump_clock):
    case = Case(Script([FIRST, 0.5, WORDS[0], 0.5, WORDS[1], LAST, DONE]))
    await case.run()
    assert [at for at, _ in case.chunks] == [0, 0.5, 1, 1, 1]


async def test_after_the_last_frame_the_bodys_end_is_waited_for_only_shortly(autojump_clock):
    case = Case(Script([*WHOLE, 1000.0]))
    await case.run()
    assert case.body == b"".join(WHOLE)
    assert case.now == DRAIN_SECONDS
    assert case.ends() == {"200": 1}


# Ends that are none


ABNORMAL = {
    "cut": [],
    "cut-in-frame": [b'data: {"choi'],
    "broken": [Broken("the connection to the neuron broke")],
    "garbage": [b"data: nonsense\n\n"],
    "error": [b'data: {"error": {"message": "x", "code": "upstream_error"}}\n\n'],
    "flood": [b"data: " + b"x" * (17 << 20)],
}


@pytest.mark.parametrize("end", ABNORMAL.values(), ids=ABNORMAL.keys())
async def test_an_abnormal_end_is_an_error_event_and_no_finish(autojump_clock, end):
    case = Case(Script([FIRST, *WORDS, *end]))
    await case.run()
    *words, last = payloads(case.body)
    assert [word["choices"][0]["finish_reason"] for word in words] == [None] * 4
    assert last["error"]["code"] == "upstream_error"
    assert set(last["error"]) >= {"message", "type", "param", "code"}
    assert b"[DONE]" not in case.body
    assert case.ends() == {"502": 1}
    assert case.script.closed == 1


@pytest.mark.parametrize("end", ABNORMAL.values(), ids=ABNORMAL.keys())
async def test_an_abnormal_end_of_a_message_is_an_error_event_and_no_stop(autojump_clock, end):
    case = Case(Script([FIRST, *WORDS, *end]), message_stream())
    await case.run()
    events = [frame.event for frame in FrameReader().feed(case.body)]
    assert events[0] == "message_start"
    assert events[-1] == "error"
    assert "message_delta" not in events
    assert "message_stop" not in events


async def test_a_finish_reason_without_done_is_no_end(autojump_clock):
    case = Case(Script([FIRST, LAST]))
    await case.run()
    assert "error" in payloads(case.body)[-1]
    assert case.ends() == {"502": 1}


async def test_an_error_event_of_the_upstream_keeps_its_words(autojump_clock):
    case = Case(Script([b'data: {"error": {"message": "lost the device", "code": "x7"}}\n\n']))
    await case.run()
    (body,) = payloads(case.body)
    assert (body["error"]["message"], body["error"]["code"]) == ("lost the device", "x7")


async def test_our_own_bug_within_a_stream_is_an_error_event_too(autojump_clock):
    class Buggy(PassThrough):
        def feed(self, frame):
            if b"stop" in frame.raw:
                raise ZeroDivisionError("secret")
            return super().feed(frame)

    encoder = Buggy(model="m", requested="m", include_usage=False)
    case = Case(Script(list(WHOLE)), encoder)
    await case.run()
    last = payloads(case.body)[-1]
    assert last["error"]["code"] == "internal_error"
    assert b"secret" not in case.body
    assert case.ends() == {"500": 1}


# Commit and keep-alives


async def test_the_status_goes_out_when_the_upstream_has_accepted(autojump_clock):
    case = Case(Script([3.0, *WHOLE], before=[1.0]))
    await case.run()
    assert case.committed_at == 1


async def test_the_status_goes_out_after_a_while_although_nothing_came(autojump_clock):
    case = Case(Script(list(WHOLE), before=[20.0]))
    await case.run()
    assert case.committed_at == PACE.commit_after
    comments = [at for at, data in case.chunks if data.startswith(b":")]
    assert comments == [5, 7, 9, 11, 13, 15, 17, 19]
    assert text_of(case.body) == "Hello, world"


@pytest.mark.parametrize("error", [NoHealthyNode("none"), Overloaded("full"), Broken("garbage")])
async def test_a_failure_before_the_commit_is_raised_for_a_status(autojump_clock, error):
    case = Case(Script([], before=[4.0, error]))
    with pytest.RaisesGroup(type(error), flatten_subgroups=True, allow_unwrapped=True):
        await case.run()
    assert case.chunks == []
    assert case.ends() == {str(error.status): 1}


@pytest.mark.parametrize("error", [NoHealthyNode("none"), Overloaded("full"), Broken("garbage")])
async def test_a_failure_after_the_commit_is_in_band(autojump_clock, error):
    case = Case(Script([], before=[6.0, error]))
    await case.run()
    assert case.committed_at == 5
    assert payloads(case.body)[-1]["error"]["code"] == error.error_code
    assert case.ends() == {str(error.status): 1}


async def test_silence_within_a_stream_is_filled_with_comments(autojump_clock):
    case = Case(Script([FIRST, WORDS[0], 5.0, LAST, DONE]))
    await case.run()
    assert [at for at, data in case.chunks if data.startswith(b":")] == [2, 4]
    assert b": keep-alive\n\n" in case.body


async def test_silence_of_a_message_is_message_start_and_then_pings(autojump_clock):
    case = Case(Script([7.0, *WHOLE]), message_stream())
    await case.run()
    timed = [(at, f.event) for at, data in case.chunks for f in FrameReader().feed(data)]
    assert timed[:4] == [(2, "message_start"), (4, "ping"), (6, "ping"), (7, "content_block_start")]
    client = Accumulator()
    for frame, body in zip(FrameReader().feed(case.body), payloads(case.body), strict=True):
        client.feed(frame.event, body)
    assert client.message["content"] == [{"type": "text", "text": "Hello, world"}]


# Clients that leave, and clients that do not read


@pytest.mark.parametrize(
    "script",
    [Script([], before=[1000.0]), Script([1000.0]), Script([FIRST, WORDS[0], 1000.0])],
    ids=["opening", "silent", "streaming"],
)
@pytest.mark.parametrize("after", [1.0, 8.0])
async def test_a_client_that_leaves_ends_the_upstream_call_at_once(autojump_clock, script, after):
    case = Case(attrs.evolve(script, parts=list(script.parts), opened=0, closed=0))
    await case.run(leave_after=after)
    assert case.now == after
    assert (case.script.opened, case.script.closed) == (1, 1)
    assert case.ends() == {"499": 1}


async def test_a_client_that_reads_nothing_is_given_up_after_the_stall_bound(autojump_clock):
    case = Case(Script([FIRST, *WORDS, LAST, DONE]))
    case.sink.stalled = True
    await case.run()
    assert case.now == PACE.stall
    assert case.script.closed == 1
    assert case.ends() == {"499": 1}


async def test_a_response_that_is_gone_ends_the_upstream_call(autojump_clock):
    case = Case(Script([1.0, FIRST, *WORDS, 1000.0]))
    case.sink.gone = True
    await case.run()
    assert case.script.closed == 1
    assert case.ends() == {"499": 1}


async def test_the_end_goes_out_with_the_last_frame_where_it_came_with_it(autojump_clock):
    case = Case(Script([b"".join(WHOLE)], at_hand=True))
    await case.run()
    assert case.chunks == [(0, b"".join(WHOLE))]
    assert case.sink.ended


async def test_how_the_body_ends_behind_the_last_frame_is_of_no_consequence(autojump_clock):
    case = Case(Script([*WHOLE, Broken("reset")]))
    await case.run()
    assert case.body == b"".join(WHOLE)
    assert case.ends() == {"200": 1}


async def test_an_upstream_error_after_the_client_has_gone_counts_once(autojump_clock):
    case = Case(Script([FIRST, 1.0, UpstreamError("cut")]))
    await case.run(leave_after=1.0)
    assert sum(case.ends().values()) == 1

"""Streams from a neuron to a client: commit, keep-alives, frames, and an honest end.

The pump, not the writer, holds the lease and the upstream connection: hypercorn shields its writes,
so a client that has stopped reading pins the writer for as long as its connection lives, while the
pump ends after the stall bound or at once when the client is seen to go.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from cortex.errors import CortexError, UpstreamError
from cortex.gateway.encoder import Encoder
from cortex.gateway.exchange import Exchange
from cortex.gateway.upstream import UpstreamResponse
from cortex.service import logs
from cortex.service.edge import as_cortex_error
from cortex.service.http import HttpRequest, StreamAnswer
from cortex.service.stream import ClientStalled, Pace, StreamWriter
from cortex.wire import sse

DRAIN_SECONDS = 1.0  # for the end of a body whose last frame has been seen

log = logs.get("gateway.relay")

OpenUpstream = Callable[[], AbstractAsyncContextManager[UpstreamResponse]]


async def relay(
    request: HttpRequest,
    exchange: Exchange,
    open_upstream: OpenUpstream,
    encoder: Encoder,
    pace: Pace,
) -> StreamAnswer:
    """The answer to *request*: what the neuron streams, as *encoder* puts it.

    Returns once the status is committed; a failure before that is raised. The exchange is ended by
    the pump, which lives in the request's nursery.
    """

    async def pump(*, task_status: trio.TaskStatus[StreamAnswer]) -> None:
        writer = StreamWriter(pace, encoder.commit, encoder.keep_alive, task_status)
        exchange.observed = encoder.observed
        with writer, exchange:
            try:
                await _pump(writer, exchange, open_upstream, encoder)
            except (ClientStalled, trio.BrokenResourceError) as exc:
                exchange.left("client_stalled" if isinstance(exc, ClientStalled) else "client_gone")

    answer: StreamAnswer = await request.nursery.start(pump)
    return answer


async def _pump(
    writer: StreamWriter, exchange: Exchange, open_upstream: OpenUpstream, encoder: Encoder
) -> None:
    """Copy the upstream's answer to *writer*; a failure becomes a status or an error event."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.fill_silence)
            async with open_upstream() as response:
                await writer.commit()
                await _copy(writer, exchange, response, encoder)
            nursery.cancel_scope.cancel("the stream has ended")
    except* Exception as group:
        failure = _leaf(group)
    if failure is None:
        return
    gone = isinstance(failure, ClientStalled | trio.BrokenResourceError)
    if gone or not writer.committed.is_set():
        raise failure
    exchange.failed(failure)
    if not isinstance(failure, CortexError):  # a bug: the client is told, for its stream has begun
        log.error("relay failed", exc=failure)
    await writer.write(encoder.fail(as_cortex_error(failure)))


async def _copy(
    writer: StreamWriter, exchange: Exchange, response: UpstreamResponse, encoder: Encoder
) -> None:
    """Pass on every frame; raise `UpstreamError` when the stream ends before its end."""
    reader = sse.FrameReader()
    while data := await response.receive():
        try:
            frames = reader.feed(data)
        except sse.FrameTooLong as exc:
            raise UpstreamError("the neuron sent too long an event") from exc
        out: list[bytes] = []
        try:
            for frame in frames:
                encoder.produced = False
                out.append(encoder.feed(frame))
                if encoder.produced:
                    exchange.token()
        finally:
            # What came together goes out together: whole frames, in one write.
            await writer.write(b"".join(out))
        if encoder.complete:
            await _drain(response)
            return
    raise UpstreamError("the neuron ended its answer early")


async def _drain(response: UpstreamResponse) -> None:
    """Read the body's end, so that the connection can be used again."""
    with trio.move_on_after(DRAIN_SECONDS):
        while await response.receive():
            pass


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

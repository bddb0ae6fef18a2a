"""Streams from a neuron to a client: commit, frames, and an honest end.

All of it runs in the task that serves the request. Keep-alives, the commit that cannot wait for the
neuron, and the news that the client has gone come from the server (`service.stream`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from cortex.errors import CortexError, UpstreamError
from cortex.gateway.encoder import Encoder
from cortex.gateway.exchange import Exchange
from cortex.gateway.passage import Passage
from cortex.gateway.upstream import UpstreamResponse
from cortex.service import logs
from cortex.service.edge import as_cortex_error
from cortex.service.http import Pace, StreamAnswer, Writer
from cortex.service.stream import ClientStalled
from cortex.wire import sse

DRAIN_SECONDS = 1.0  # for the end of a body whose last frame has been seen

log = logs.get("gateway.relay")

OpenUpstream = Callable[[], AbstractAsyncContextManager[UpstreamResponse]]


def relay(
    exchange: Exchange,
    open_upstream: OpenUpstream,
    encoder: Encoder,
    pace: Pace,
    filler: Callable[[], bytes] | None = None,
) -> StreamAnswer:
    """What the neuron streams, as *encoder* puts it, and in silences what *filler* gives (the
    encoder's keep-alives without one). *exchange* lives as long as the stream."""

    async def produce(writer: Writer) -> None:
        exchange.observed = encoder.observed
        with exchange:
            try:
                await _pump(writer, exchange, open_upstream, encoder)
            except (ClientStalled, trio.BrokenResourceError) as exc:
                exchange.left("client_stalled" if isinstance(exc, ClientStalled) else "client_gone")

    return StreamAnswer(produce, pace, opening=encoder.commit, filler=filler or encoder.keep_alive)


async def _pump(
    writer: Writer, exchange: Exchange, open_upstream: OpenUpstream, encoder: Encoder
) -> None:
    """Copy the upstream's answer to *writer*; a failure becomes a status or an error event."""
    try:
        async with open_upstream() as response:
            if not response.at_hand:
                await writer.commit()
            await _copy(writer, exchange, response, encoder)
    except (ClientStalled, trio.BrokenResourceError):
        raise
    except Exception as exc:
        failure = _leaf(exc)
        if not writer.committed:
            raise failure from exc.__cause__
        exchange.failed(failure)
        if not isinstance(failure, CortexError):  # a bug: the client is told, its stream has begun
            log.error("relay failed", exc=failure)
        await writer.write(encoder.fail(as_cortex_error(failure)))


async def _copy(
    writer: Writer, exchange: Exchange, response: UpstreamResponse, encoder: Encoder
) -> None:
    """Pass on every frame; raise `UpstreamError` when the stream ends before its end."""
    passage = Passage(encoder)
    while data := await response.receive():
        try:
            passage.take(data)
        except sse.FrameTooLong as exc:
            raise UpstreamError("the neuron sent too long an event") from exc
        finally:
            if passage.tokens:
                exchange.token(passage.tokens)
            if encoder.complete:
                exchange.settle()
            # What came together goes out together: whole frames, in one write.
            last = encoder.complete and response.complete
            await writer.write(passage.taken(), last=last)
        await writer.commit()  # frames may all have been for us alone
        if encoder.complete:
            await _drain(response)
            return
    raise UpstreamError("the neuron ended its answer early")


async def _drain(response: UpstreamResponse) -> None:
    """Read the body's end, so that the connection can be used again. All that counts has come: how
    the rest ends is the connection's affair alone."""
    if response.complete:
        return
    with trio.move_on_after(DRAIN_SECONDS):
        try:
            while await response.receive():
                pass
        except UpstreamError as exc:
            log.debug("no proper end", cause=logs.cause_chain(exc))


def _leaf(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error

"""What a relay needs of a dialect: frames of the upstream in, bytes for the client out. Sans-IO."""

from __future__ import annotations

from typing import Any, Protocol

from cortex.errors import CortexError, UpstreamError
from cortex.gateway.observed import Observed
from cortex.wire import errors, json, sse

# Members of a delta (or, on the completions route, of a choice) that hold output of the model.
TEXTS = ("content", "text", "reasoning_content", "reasoning")
_OUTPUT = (*TEXTS, "tool_calls")


class Encoder(Protocol):
    """Turns one upstream stream into one client stream.

    ``complete`` is true once everything that makes an end has been encoded; a stream whose upstream
    ends before that is failed with `fail`, and never looks finished.
    """

    observed: Observed
    complete: bool
    produced: bool  # whether a frame with output of the model has passed

    @property
    def skims(self) -> tuple[str, ...]:
        """Members of a delta whose text it copies as it stands now, doing nothing else: frames
        that differ in such a text alone need not pass through it (`passage`)."""
        ...

    def commit(self) -> bytes:
        """What opens the stream before anything came from upstream (may be empty)."""
        ...

    def feed(self, frame: sse.Frame) -> bytes:
        """What *frame* becomes. Raises `UpstreamError` when it is an error or garbage."""
        ...

    def keep_alive(self) -> bytes:
        """What shows the client that we are alive; empty where nothing may be written now."""
        ...

    def fail(self, error: CortexError) -> bytes:
        """The in-band error that ends the stream."""
        ...


class PassThrough:
    """OpenAI to OpenAI: frames pass as they are, but for what the client did not ask for.

    The gateway always asks upstream for usage, so a client that did not loses the usage frame; the
    prompt count that rides on a neuron's first chunk is taken out; and where the client used an
    alias, its name replaces the model's.
    """

    def __init__(self, *, model: str, requested: str, include_usage: bool) -> None:
        self.observed = Observed()
        self.complete = False
        self.produced = False
        self.skims = TEXTS
        self._rename = requested if requested != model else None
        self._include_usage = include_usage

    def commit(self) -> bytes:
        return b""

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def fail(self, error: CortexError) -> bytes:
        return errors.frame(error)

    def feed(self, frame: sse.Frame) -> bytes:
        if frame.data is None:
            return b""  # a neuron's comment: the gateway writes its own
        if frame.data == b"[DONE]":
            if self.observed.finish_reason is None:  # whatever it says, it was cut short
                raise UpstreamError("the neuron's answer ended before it was complete")
            self.complete = True
            return sse.DONE
        chunk = load_chunk(frame.data)
        self.observed.take_timings(chunk.get("timings"))
        choices = chunk.get("choices")
        usage = chunk.get("usage")
        if usage is not None:
            self.observed.take_usage(usage)
        if not choices and usage is not None:
            return self._usage_frame(chunk)
        self._look(choices)
        if self._rename is None and usage is None and _one_line(frame.data):
            return sse.data_frame(frame.data)
        if self._rename is not None:
            chunk["model"] = self._rename
        if usage is not None and self._include_usage:
            chunk["usage"] = None
        elif usage is not None:
            del chunk["usage"]
        return sse.data_frame(json.dumps(chunk))

    def _usage_frame(self, chunk: dict[str, Any]) -> bytes:
        if not self._include_usage:
            return b""
        if self._rename is not None:
            chunk["model"] = self._rename
        return sse.data_frame(json.dumps(chunk))

    def _look(self, choices: Any) -> None:
        self.observed.take_finish(choices)
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            delta = choice.get("delta")
            inner = delta if isinstance(delta, dict) else choice
            if any(inner.get(name) for name in _OUTPUT):
                self.produced = True


def _one_line(data: bytes) -> bool:
    """Whether *data* can stand in one ``data:`` line; JSON over several is written anew."""
    return b"\n" not in data and b"\r" not in data


def load_chunk(data: bytes) -> dict[str, Any]:
    """A chunk of an upstream stream. Raises what the upstream reports, or `UpstreamError`."""
    try:
        chunk = json.loads(data)
    except CortexError as exc:
        raise UpstreamError("the neuron sent an event that is not JSON") from exc
    if not isinstance(chunk, dict):
        raise UpstreamError("the neuron sent an event that is not an object")
    if chunk.get("error") is not None:
        raise errors.parse(None, chunk)
    return chunk

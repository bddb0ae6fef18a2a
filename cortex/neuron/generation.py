"""Runs the completions of one request: engine events in, parsed output out.

A request may want several completions (``n``, several prompts); each is a request of its own to the
engine and a task here, and all end together with the request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from cortex.engine.constraint import Constraint
from cortex.engine.request import (
    FinishReason,
    FirstToken,
    Request,
    RequestFailed,
    TokenEvent,
    TokenLogprob,
)
from cortex.errors import CortexError, InternalError
from cortex.neuron.engine_handle import EngineHandle
from cortex.text.deltas import Delta, OutputParser
from cortex.wire.neuron import Timings

if TYPE_CHECKING:
    from cortex.text.closing import Closing


@attrs.frozen
class Update:
    """What one engine step brought for one completion. ``finish`` ends it."""

    deltas: tuple[Delta, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    first: FirstToken | None = None
    finish: str | None = None  # stop, length or tool_calls


Sink = Callable[[int, Update], Awaitable[None]]


@attrs.frozen
class ThinkingBudget:
    """After ``tokens`` of thinking (markers included) it is ended with ``closing``."""

    tokens: int
    closing: Closing


@attrs.define(eq=False)
class Completion:
    """One completion under way, and its numbers. ``prompt_only``: its one token, which the engine
    draws in any case, was not asked for.

    Where thinking has used its ``budget``, the engine's request is left, and another one carries on
    behind what was said and the closing, which counts as thinking; ``said`` are all those tokens.
    The prefix cache makes that cheap. Thinking that leaves no room for an answer is not ended.
    ``answer`` makes the constraint of what follows, where the request has one.
    """

    index: int
    request: Request
    parser: OutputParser
    prompt_only: bool = False
    budget: ThinkingBudget | None = None
    answer: Callable[[], Constraint] | None = None
    clock: Callable[[], float] = time.monotonic
    added_at: float = 0.0
    scheduled_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0
    finish: str | None = None
    said: list[int] = attrs.field(factory=list)
    _closings: int = 0

    async def run(self, engine: EngineHandle, sink: Sink) -> None:
        """Generate until the end, handing each step's update to *sink* in order."""
        self.added_at = self.clock()
        request = self.request
        while True:
            await self._run(request, engine, sink)
            if self.finish is not None:
                return
            await sink(self.index, Update(tuple(self._close_thinking())))
            request = self._carried_on()

    async def _run(self, request: Request, engine: EngineHandle, sink: Sink) -> None:
        """Generate until the end of *request*, or until its thinking is to be closed."""
        async with engine.stream(request) as events:
            async for batch in events:
                update = self._take(batch)
                await sink(self.index, update)
                if update.finish is not None or self._thought_enough():
                    return
        raise InternalError("the engine ended a completion without saying why")

    def _thought_enough(self) -> bool:
        budget, parser = self.budget, self.parser
        if budget is None or not parser.thinking or parser.reasoning_tokens < budget.tokens:
            return False
        room = self.request.max_tokens - self.tokens
        return bool(self.said) and room > len(budget.closing.after(self.said[-1]))

    def _close_thinking(self) -> list[Delta]:
        assert self.budget is not None
        closing = self.budget.closing.after(self.said[-1])
        self.said += closing
        self.tokens += len(closing)
        self._closings += 1
        return self.parser.close_thinking(*closing)

    def _carried_on(self) -> Request:
        """The request for what follows `said`."""
        return attrs.evolve(
            self.request,
            id=f"{self.request.id}.{self._closings}",
            prompt=(*self.request.prompt, *self.said),
            resumed=len(self.said),
            max_tokens=self.request.max_tokens - len(self.said),
            min_tokens=max(0, self.request.min_tokens - len(self.said)),
            # Not the old one: the engine may have drawn on before it heard of this.
            constraint=None if self.answer is None else self.answer(),
        )

    def _take(self, batch: Sequence[object]) -> Update:
        deltas: list[Delta] = []
        logprobs: list[TokenLogprob] = []
        first: FirstToken | None = None
        for event in batch:
            if isinstance(event, RequestFailed):
                raise as_failure(event.error)
            assert isinstance(event, TokenEvent)
            if event.first is not None and not self.said:
                first = event.first
                self._started(first)
            if self.prompt_only:
                self.finish = str(FinishReason.LENGTH)
                return Update((), first=first, finish=self.finish)
            self.tokens += 1
            self.said.append(event.token)
            self.last_at = self.clock()
            # An EOS id ends the completion and is no part of its text; a token that makes it whole
            # by its grammar is.
            if event.finish is not FinishReason.STOP or event.token not in self.request.stop_ids:
                deltas += self.parser.feed(event.token)
                if event.logprob is not None:
                    logprobs.append(event.logprob)
            if event.finish is not None or self.parser.ended:
                deltas += self.parser.finish(cut=event.finish is FinishReason.LENGTH)
                self.finish = self._reason(event.finish)
            if self.finish is not None or self._thought_enough():
                break
        return Update(tuple(deltas), tuple(logprobs), first, self.finish)

    def _started(self, first: FirstToken) -> None:
        self.cached_tokens = first.cached_tokens
        self.scheduled_at = first.scheduled_at
        self.first_at = self.clock()

    def _reason(self, finish: FinishReason | None) -> str:
        """A client that is told of calls goes by ``tool_calls`` whether to run them: it is told so
        unless the last of them may be cut off."""
        ended = self.parser.ended
        if self.parser.tool_calls and (ended or finish is not FinishReason.LENGTH):
            return "tool_calls"
        if ended:
            return "stop"
        return str(finish or FinishReason.STOP)


async def run_all(completions: Sequence[Completion], engine: EngineHandle, sink: Sink) -> None:
    """Run *completions* side by side. The first failure ends them all and is raised as it is."""
    await side_by_side([partial(completion.run, engine, sink) for completion in completions])


async def side_by_side(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run *works* together. The first failure ends them all and is raised as it is."""
    if len(works) == 1:
        await works[0]()
        return
    failure: CortexError | None = None
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    except* CortexError as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        assert isinstance(leaf, CortexError)
        failure = leaf
    if failure is not None:
        raise failure


def usage(prompts: Sequence[int], completions: Sequence[Completion]) -> dict[str, object]:
    """OpenAI's usage object: each distinct prompt counted once (*prompts* holds their lengths),
    every completion's tokens, reasoning included."""
    prompt = sum(prompts)
    generated = sum(completion.tokens for completion in completions)
    each = len(completions) // len(prompts)  # of one prompt; the first of them paid for it
    cached = min(prompt, sum(c.cached_tokens for c in completions[::each]))
    reasoning = sum(completion.parser.reasoning_tokens for completion in completions)
    body: dict[str, object] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if reasoning:
        body["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return body


def timings(completions: Sequence[Completion], prompt_tokens: int) -> Timings:
    """Where the time went, in milliseconds: of several completions the slowest counts."""
    queue = max(max(0.0, c.scheduled_at - c.added_at) for c in completions)
    prefill = max(max(0.0, c.first_at - c.scheduled_at) for c in completions)
    decode = max(max(0.0, c.last_at - c.first_at) for c in completions)
    return Timings(
        queue_ms=round(queue * 1000, 3),
        prefill_ms=round(prefill * 1000, 3),
        decode_ms=round(decode * 1000, 3),
        prompt_tokens=prompt_tokens,
        cached_tokens=completions[0].cached_tokens,
        completion_tokens=sum(c.tokens for c in completions),
    )


def as_failure(error: Exception) -> CortexError:
    """*error* of the engine, as an answer."""
    if isinstance(error, CortexError):
        return error
    failure = InternalError("the engine failed on this request")
    failure.__cause__ = error
    return failure

"""Requests to an endpoint, as many at a time as is wanted, and what each of them took."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import urlsplit

import attrs
import trio

from cortex.cli.bench.dialects import Answer, Dialect, error_of
from cortex.cli.bench.plan import Amount, Cell
from cortex.cli.bench.prompts import Length, Prompts
from cortex.cli.bench.statistics import Sample
from cortex.errors import CortexError
from cortex.gateway.upstream import Broken, Call, Refused, Upstream, UpstreamResponse
from cortex.wire import json
from cortex.wire.sse import FrameReader, FrameTooLong

MAX_BODY = 64 << 20
REFUSED = "connection refused"
CALIBRATION_WORDS = (8, 136)


@attrs.frozen
class Window:
    """The samples of one measurement; ``cpu`` is this process's share of one core meanwhile."""

    samples: list[Sample]
    seconds: float
    cpu: float


@attrs.frozen(eq=False)
class Endpoint:
    """Asks *model* at *url* in one dialect. No request may take longer than *timeout* seconds."""

    upstream: Upstream
    url: str
    model: str
    dialect: Dialect
    key: str | None = attrs.field(default=None, repr=False)
    stream: bool = True
    ignore_eos: bool = True
    timeout: float = 600.0

    async def ask(self, prompt: str, max_tokens: int) -> Sample:
        """One request. It never raises for what the endpoint does: the sample tells it."""
        body = self.dialect.body(
            self.model, prompt, max_tokens, stream=self.stream, ignore_eos=self.ignore_eos
        )
        call = Call(
            base_of(self.url), self.dialect.path, json.dumps(body), self.dialect.headers(self.key)
        )
        answer, outputs = Answer(), array("d")
        started = trio.current_time()
        with trio.move_on_after(self.timeout) as patience:
            try:
                async with self.upstream.call(call) as response:
                    await self._read(response, answer, outputs)
            except Refused:
                answer.error = REFUSED
            except (Broken, FrameTooLong):
                answer.error = "broke off"
            except CortexError as exc:
                answer.error = str(exc.error_code)
        if patience.cancelled_caught:
            answer.error = "took too long"
        elif answer.error is None and not answer.finished:
            answer.error = "cut short"
        return Sample(
            started,
            trio.current_time(),
            outputs[0] if outputs else None,
            array("d", (later - sooner for sooner, later in pairwise(outputs))),
            answer.prompt_tokens,
            answer.cached_tokens,
            answer.completion_tokens,
            answer.error,
        )

    async def _read(
        self, response: UpstreamResponse, answer: Answer, outputs: array[float]
    ) -> None:
        if response.status != 200:
            answer.error = error_of(response.status, await response.read(MAX_BODY))
        elif not self.stream:
            try:
                whole = json.load_object(await response.read(MAX_BODY))
            except Exception:
                answer.error = "no JSON"
                return
            self.dialect.take_whole(answer, whole)
        else:
            frames = FrameReader()
            while data := await response.receive():
                now = trio.current_time()
                for frame in frames.feed(data):
                    if self.dialect.take(answer, frame):
                        outputs.append(now)


async def calibrate(endpoint: Endpoint, prompts: Prompts) -> tuple[Length | None, str | None]:
    """How the endpoint counts words, by asking it twice; None where it does not tell, with the
    error if that is why. A model that is not loaded is loaded by this."""
    counted: list[int] = []
    for words in CALIBRATION_WORDS:
        sample = await endpoint.ask(prompts.next(words), 1)
        if sample.error is not None or sample.prompt_tokens is None:
            return None, sample.error
        counted.append(sample.prompt_tokens)
    return Length.between(CALIBRATION_WORDS, (counted[0], counted[1])), None


async def measure(
    endpoint: Endpoint,
    cell: Cell,
    amount: Amount,
    next_prompt: Callable[[], str],
    *,
    cpu_time: Callable[[], float] = time.process_time,
) -> Window:
    """Keep ``cell.concurrency`` requests under way until *amount* is asked; all are waited for."""
    samples: list[Sample] = []
    asked = 0
    began, busy = trio.current_time(), cpu_time()
    deadline = began + (float("inf") if amount.seconds is None else amount.seconds)

    async def client() -> None:
        nonlocal asked
        while trio.current_time() < deadline:
            if amount.requests is not None and asked >= amount.requests:
                return
            asked += 1
            sample = await endpoint.ask(next_prompt(), cell.completion_tokens)
            samples.append(sample)
            if sample.error is not None:
                await trio.sleep(0.05)  # one that refuses is not to be asked in a tight loop

    async with trio.open_nursery() as nursery:
        for _ in range(cell.concurrency):
            nursery.start_soon(client)
    ended = max((sample.ended for sample in samples), default=began)
    seconds = ended - began
    cpu = (cpu_time() - busy) / seconds if seconds > 0 else 0.0
    return Window(samples, seconds, cpu)


def base_of(url: str) -> str:
    """*url* without the ``/v1`` that clients of OpenAI want in theirs."""
    return url.rstrip("/").removesuffix("/v1") if urlsplit(url).path.rstrip("/") else url

"""Serves chat, completion and embedding requests: validate, lease, render, admit, run, answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from cortex.errors import clip
from cortex.neuron.admission import Admission
from cortex.neuron.chat_answers import ChatMessage, ChatStream, chat_body
from cortex.neuron.completion_answers import CompletionShape, CompletionText, TokenTable
from cortex.neuron.embedding import EmbeddingJob, embedding_body, embedding_job
from cortex.neuron.generation import Completion, Update, run_all, timings, usage
from cortex.neuron.grammars import Grammars
from cortex.neuron.job import Caller, Job, chat_job, completion_job
from cortex.neuron.lifecycle import Lifecycle
from cortex.neuron.metrics import NeuronMetrics
from cortex.neuron.prompt import chat_prompt, completion_prompts, embedding_prompts
from cortex.neuron.residents import LoadedModel
from cortex.service import logs
from cortex.service.cancellation import is_cancellation, is_drain_over
from cortex.service.edge import as_cortex_error
from cortex.service.http import Answer, HttpRequest, Pace, StreamAnswer, Writer
from cortex.service.stream import ClientStalled
from cortex.wire import errors, json, sse
from cortex.wire.converter import structure
from cortex.wire.embeddings import EmbeddingRequest
from cortex.wire.openai import ChatRequest, CompletionRequest

log = logs.get("neuron.request")


def unserved(request: HttpRequest, code: int, end: str) -> None:
    """The line of a request that no engine has worked on. What only reads has none."""
    if request.method == "POST":
        log.info(
            "request",
            path=clip(request.path),
            code=code,
            end=end,
            seconds=round(trio.current_time() - request.received_at, 3),
        )


CLIENT_LOST = (ClientStalled, trio.BrokenResourceError)


@attrs.define(eq=False)
class Inference:
    """All collaborators belong to the application. *created* gives Unix seconds."""

    lifecycle: Lifecycle
    admission: Admission
    metrics: NeuronMetrics
    pace: Pace
    created: Callable[[], float] = time.time
    grammars: Grammars = attrs.field(factory=Grammars)

    async def chat(self, request: HttpRequest) -> Answer | StreamAnswer:
        asked = structure(json.load_object(request.body), ChatRequest)
        if asked.stream:
            return self._streamed(asked.model, lambda w: self._chat_stream(w, request, asked))
        with self.lifecycle.lease(asked.model) as model:
            job = await self._chat_job(model, asked, _caller(request))
            logprobs = bool(asked.logprobs)
            messages = [
                ChatMessage(model.text.tokenizer, logprobs, asked.legacy) for _ in job.completions
            ]

            async def collect(index: int, update: Update) -> None:
                messages[index].add(update)

            with self._running(request, model, job):
                await run_all(job.completions, model.engine, collect)
            choices = [
                message.choice(completion)
                for message, completion in zip(messages, job.completions, strict=True)
            ]
            return Answer(
                json.dumps(
                    chat_body(
                        job.id,
                        asked.model,
                        int(self.created()),
                        choices,
                        usage(job.prompt_tokens, job.completions),
                        timings(job.completions, sum(job.prompt_tokens)),
                    )
                )
            )

    async def completions(self, request: HttpRequest) -> Answer | StreamAnswer:
        asked = structure(json.load_object(request.body), CompletionRequest)
        if asked.stream:
            return self._streamed(asked.model, lambda w: self._completion_stream(w, request, asked))
        with self.lifecycle.lease(asked.model) as model:
            job = await self._completion_job(model, asked, _caller(request))
            texts = [_completion_text(model, asked, c) for c in job.completions]

            async def collect(index: int, update: Update) -> None:
                texts[index].take(update)

            with self._running(request, model, job):
                await run_all(job.completions, model.engine, collect)
            shape = CompletionShape(job.id, asked.model, int(self.created()))
            choices = [
                text.choice("".join(text.parts), completion)
                for text, completion in zip(texts, job.completions, strict=True)
            ]
            body = shape.body(
                choices,
                usage(job.prompt_tokens, job.completions),
                timings(job.completions, sum(job.prompt_tokens)),
            )
            return Answer(json.dumps(body))

    async def embeddings(self, request: HttpRequest) -> Answer:
        asked = structure(json.load_object(request.body), EmbeddingRequest)
        with self.lifecycle.lease(asked.model) as model:
            prompts = await embedding_prompts(model.text, asked)
            job = embedding_job(model, asked, prompts, _caller(request), self.admission.max_running)
            with self._running(request, model, job):
                await job.run(model.engine)
            return Answer(json.dumps(embedding_body(job, asked.model)))

    async def _chat_job(self, model: LoadedModel, asked: ChatRequest, caller: Caller) -> Job:
        guide = await self.grammars.chat(model.text, asked)
        prompt = await chat_prompt(model.text, asked)
        return chat_job(model, asked, prompt, caller, guide)

    async def _completion_job(
        self, model: LoadedModel, asked: CompletionRequest, caller: Caller
    ) -> Job:
        guide = await self.grammars.completion(model.text, asked)
        prompts = await completion_prompts(model.text, asked)
        return completion_job(model, asked, prompts, caller, guide)

    # Streams

    def _streamed(self, model: str, produce: Callable[[Writer], Awaitable[None]]) -> StreamAnswer:
        """An answer that *produce* writes. Its failure is a status until it has committed, an error
        event after that."""

        async def run(writer: Writer) -> None:
            try:
                await _produce(writer, produce)
            except (ClientStalled, trio.BrokenResourceError) as exc:
                log.info("client lost", model=model, cause=logs.cause_chain(exc))

        return StreamAnswer(run, self.pace, filler=lambda: sse.KEEP_ALIVE)

    async def _chat_stream(self, writer: Writer, request: HttpRequest, asked: ChatRequest) -> None:
        with self.lifecycle.lease(asked.model) as model:
            caller = _caller(request)
            job = await self._chat_job(model, asked, caller)
            shape = ChatStream(
                job.id,
                asked.model,
                int(self.created()),
                model.text.tokenizer,
                logprobs=bool(asked.logprobs),
                include_usage=asked.include_usage,
                prompt_tokens=sum(job.prompt_tokens),
                early_usage=caller.by_gateway,
                legacy=asked.legacy,
            )

            async def send(index: int, update: Update) -> None:
                await writer.write(shape.update(index, update))

            with self._running(request, model, job):
                await writer.write(shape.opening(len(job.completions)))
                await run_all(job.completions, model.engine, send)
            frames = b"".join(shape.finish(c, t) for c, t in _with_timings(job))
            end = shape.end(usage(job.prompt_tokens, job.completions))
            await writer.write(frames + end, last=True)

    async def _completion_stream(
        self, writer: Writer, request: HttpRequest, asked: CompletionRequest
    ) -> None:
        with self.lifecycle.lease(asked.model) as model:
            job = await self._completion_job(model, asked, _caller(request))
            shape = CompletionShape(job.id, asked.model, int(self.created()), asked.include_usage)
            texts = [_completion_text(model, asked, c) for c in job.completions]

            async def send(index: int, update: Update) -> None:
                text = texts[index].take(update)
                if text or texts[index].entries:
                    await writer.write(shape.chunk(texts[index].choice(text, None)))

            with self._running(request, model, job):
                await writer.commit()
                await run_all(job.completions, model.engine, send)
            frames = b"".join(
                shape.chunk(texts[c.index].choice("", c), t) for c, t in _with_timings(job)
            )
            end = shape.end(usage(job.prompt_tokens, job.completions))
            await writer.write(frames + end, last=True)

    @contextmanager
    def _running(
        self, request: HttpRequest, model: LoadedModel, job: Job | EmbeddingJob
    ) -> Iterator[None]:
        """Seats for *job*, and its one log line and metrics, however it ends."""
        with self.admission.admit(model.model_id, job.seats):
            request.recorded = True
            started = trio.current_time()
            end = "complete"
            try:
                yield
                end = job.end
            except BaseException as exc:
                if is_drain_over(exc):
                    end = "draining"
                    self.metrics.failed(model.model_id, end)
                elif _client_gone(exc):
                    end = "client_gone"
                    self.metrics.aborted(model.model_id)
                else:
                    end = type(exc).__name__
                    self.metrics.failed(model.model_id, end)
                raise
            finally:
                self.metrics.ended(model.model_id, job)
                log.info(
                    "request",
                    model=model.model_id,
                    path=request.path,
                    end=end,
                    seconds=round(trio.current_time() - started, 3),
                    prompt=sum(job.prompt_tokens),
                    completion=job.tokens,
                )


async def _produce(writer: Writer, produce: Callable[[Writer], Awaitable[None]]) -> None:
    try:
        await produce(writer)
    except Exception as exc:
        failure = exc
        while isinstance(failure, ExceptionGroup):
            failure = failure.exceptions[0]
        if isinstance(failure, CLIENT_LOST) or not writer.committed:
            raise failure from exc.__cause__
        log.warning("stream failed", cause=logs.cause_chain(failure))
        await writer.write(errors.frame(as_cortex_error(failure)))


def _client_gone(error: BaseException) -> bool:
    """Whether a request ended because nobody reads its answer any more."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_client_gone, error.exceptions))
    return isinstance(error, CLIENT_LOST) or is_cancellation(error)


def _with_timings(job: Job) -> list[tuple[Completion, Any]]:
    """The completions, the last one with the timings of all."""
    last = timings(job.completions, sum(job.prompt_tokens))
    return [(c, last if c is job.completions[-1] else None) for c in job.completions]


def _completion_text(
    model: LoadedModel, asked: CompletionRequest, completion: Completion
) -> CompletionText:
    tokenizer, prompt = model.text.tokenizer, completion.request.prompt
    echo = tokenizer.decode(prompt) if asked.echo else None
    table = TokenTable(tokenizer, asked.logprobs, echo=bool(asked.echo))
    return CompletionText(completion.index, prompt, table, echo)


def _caller(request: HttpRequest) -> Caller:
    return Caller.from_headers(request.headers)

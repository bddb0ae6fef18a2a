"""Embeds the inputs of one request: ids in, vectors out, as the client wants them written."""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from cortex.engine.load.pooling import EmbeddingRecipe
from cortex.engine.request import Embedded, Request, RequestFailed, SamplingParams
from cortex.errors import BadRequest, ContextLengthExceeded, InternalError
from cortex.neuron.engine_handle import EngineHandle
from cortex.neuron.generation import as_failure, side_by_side
from cortex.neuron.job import Caller
from cortex.neuron.prompt import Prompt
from cortex.neuron.residents import LoadedModel
from cortex.wire import json
from cortex.wire.embeddings import BASE64, EmbeddingRequest, packed
from cortex.wire.neuron import Timings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

Write = Callable[["Vector"], bytes]


@attrs.define(eq=False)
class Embedding:
    """One input under way, and its numbers; ``written`` is its vector as JSON, once it is there."""

    request: Request
    clock: Callable[[], float] = time.monotonic
    added_at: float = 0.0
    scheduled_at: float = 0.0
    ended_at: float = 0.0
    cached_tokens: int = 0
    written: bytes | None = None

    async def run(self, engine: EngineHandle, write: Write) -> None:
        """Embed it. Raises what the engine fails with."""
        self.added_at = self.clock()
        async with engine.stream(self.request) as events:
            async for batch in events:
                event = batch[-1]
                if isinstance(event, RequestFailed):
                    raise as_failure(event.error)
                assert isinstance(event, Embedded)
                self.cached_tokens, self.scheduled_at = event.cached_tokens, event.scheduled_at
                self.written = write(event.vector)
                self.ended_at = self.clock()
                return
        raise InternalError("the engine ended an embedding without giving one")


@attrs.frozen(eq=False)
class EmbeddingJob:
    """The inputs of one request, of which ``seats`` are in the engine at a time."""

    embeddings: Sequence[Embedding]
    prompt_tokens: Sequence[int]
    seats: int
    write: Write
    end: str = "embedded"
    tokens: int = 0  # none is generated

    async def run(self, engine: EngineHandle) -> None:
        """Embed everything. The first failure ends it and is raised as it is."""
        waiting = iter(self.embeddings)

        async def one_seat() -> None:
            for embedding in waiting:
                await embedding.run(engine, self.write)

        await side_by_side([one_seat] * self.seats)


def embedding_job(
    model: LoadedModel,
    asked: EmbeddingRequest,
    prompts: Sequence[Prompt],
    caller: Caller,
    max_running: int,
) -> EmbeddingJob:
    """*prompts* ready to run. `BadRequest` for a model whose files ask for what cannot be done, and
    for an input beyond the context."""
    recipe = model.text.embedding
    if recipe.refusal is not None:
        raise BadRequest(
            f"{model.model_id} cannot be asked for embeddings: {recipe.refusal}",
            param="model",
            code="unsupported_value",
        )
    job_id = f"embd-{secrets.token_hex(12)}"
    embeddings: list[Embedding] = []
    for index, prompt in enumerate(prompts):
        if len(prompt.ids) > model.max_context:
            raise ContextLengthExceeded(
                f"this model's maximum context length is {model.max_context} tokens, but the input"
                f" has {len(prompt.ids)} tokens",
                param=f"input[{index}]" if asked.several else "input",
                extras={
                    "prompt_tokens": len(prompt.ids),
                    "max_tokens": None,
                    "context": model.max_context,
                },
            )
        request = Request(
            id=f"{job_id}-{index}",
            prompt=prompt.ids,
            sampling=SamplingParams(temperature=0.0),
            max_tokens=1,
            caller=caller.name,
            salt=caller.salt,
            priority=caller.priority,
            pooling=recipe.pooling,
        )
        embeddings.append(Embedding(request))
    return EmbeddingJob(
        embeddings,
        [len(prompt.ids) for prompt in prompts],
        seats=min(len(prompts), max_running),
        write=_writer(recipe, asked),
    )


def embedding_body(job: EmbeddingJob, model: str) -> dict[str, Any]:
    """The answer, with what the neuron adds: ``timings``."""
    prompt = sum(job.prompt_tokens)
    data = [
        {"object": "embedding", "index": index, "embedding": json.raw(embedding.written or b"null")}
        for index, embedding in enumerate(job.embeddings)
    ]
    cached = sum(embedding.cached_tokens for embedding in job.embeddings)
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {
            "prompt_tokens": prompt,
            "total_tokens": prompt,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
        "timings": attrs.asdict(_timings(job, prompt, cached)),
    }


def _writer(recipe: EmbeddingRecipe, asked: EmbeddingRequest) -> Write:
    """How each vector is cut, brought to length 1 and written."""

    def write(vector: Vector) -> bytes:
        wanted = asked.dimensions
        if wanted is not None and wanted > vector.size:
            raise BadRequest(
                f"dimensions: this model's embeddings have {vector.size} numbers, {wanted} were"
                " asked for",
                param="dimensions",
            )
        vector = vector[:wanted]
        if recipe.normalize or wanted is not None:
            vector = unit(vector)
        if asked.encoding_format == BASE64:
            return json.dumps(packed(array("f", vector.tobytes())))
        return json.dumps(vector.tolist())

    return write


def unit(vector: Vector) -> Vector:
    """*vector* with length 1; one of zeros stays."""
    exact = vector.astype("float64")
    length = float((exact @ exact) ** 0.5)
    return (exact / length).astype("float32") if length > 0 else vector


def _timings(job: EmbeddingJob, prompt_tokens: int, cached_tokens: int) -> Timings:
    """From the first input's arrival to the last one's end, in milliseconds."""
    scheduled = min(embedding.scheduled_at for embedding in job.embeddings)
    added = min(embedding.added_at for embedding in job.embeddings)
    ended = max(embedding.ended_at for embedding in job.embeddings)
    return Timings(
        queue_ms=round(max(0.0, scheduled - added) * 1000, 3),
        prefill_ms=round(max(0.0, ended - scheduled) * 1000, 3),
        decode_ms=0.0,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=0,
    )

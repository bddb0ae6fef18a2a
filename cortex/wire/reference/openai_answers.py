"""What OpenAI's routes answer: chat completions, completions, embeddings, models, errors."""

from __future__ import annotations

from cortex.wire.reference.schema import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    any_of,
    array,
    described,
    mapping,
    nullable,
    one_of,
    record,
    ref,
)

_STOP_REASON = described(nullable(STRING), "The stop string that matched.")
_FINISH = one_of("stop", "length", "tool_calls", "function_call", "content_filter")
_FUNCTION = record({"name": STRING, "arguments": STRING})
_LOGPROB = {"token": STRING, "logprob": NUMBER, "bytes": nullable(array(INTEGER))}

USAGE = {
    "prompt_tokens": INTEGER,
    "completion_tokens": INTEGER,
    "total_tokens": INTEGER,
    "prompt_tokens_details?": record({"cached_tokens": INTEGER}),
    "completion_tokens_details?": record({"reasoning_tokens": INTEGER}),
}
_CHAT_LOGPROBS = record(
    {
        "content": array(record({**_LOGPROB, "top_logprobs": array(record(_LOGPROB))})),
        "refusal": ANYTHING,
    }
)
_TEXT_LOGPROBS = record(
    {
        "tokens": array(STRING),
        "token_logprobs": array(nullable(NUMBER)),
        "top_logprobs": array(nullable(mapping(NUMBER))),
        "text_offset": array(INTEGER),
    }
)
_MESSAGE = record(
    {
        "role": one_of("assistant"),
        "content": nullable(STRING),
        "refusal": nullable(STRING),
        "reasoning_content?": STRING,
        "tool_calls?": array(
            record({"id": STRING, "type": one_of("function"), "function": _FUNCTION})
        ),
        "function_call?": _FUNCTION,
    }
)
_DELTA = record(
    {
        "role?": one_of("assistant"),
        "content?": STRING,
        "refusal?": nullable(STRING),
        "reasoning_content?": STRING,
        "tool_calls?": array(
            record(
                {
                    "index": INTEGER,
                    "id?": STRING,
                    "type?": one_of("function"),
                    "function": record({"name?": STRING, "arguments": STRING}),
                }
            )
        ),
        "function_call?": record({"name?": STRING, "arguments": STRING}),
    }
)
_STAMP = {"id": STRING, "created": INTEGER, "model": STRING}

OPENAI_ANSWERS: dict[str, Schema] = {
    "Usage": record(USAGE, "Tokens; `cached_tokens` were in the prefix cache."),
    "Timings": record(
        {
            "queue_ms": NUMBER,
            "prefill_ms": NUMBER,
            "decode_ms": NUMBER,
            "prompt_tokens": INTEGER,
            "cached_tokens": INTEGER,
            "completion_tokens": INTEGER,
        },
        "Milliseconds, as the neuron measured them.",
    ),
    "ChatCompletion": record(
        {
            **_STAMP,
            "object": one_of("chat.completion"),
            "choices": array(
                record(
                    {
                        "index": INTEGER,
                        "message": _MESSAGE,
                        "logprobs": nullable(_CHAT_LOGPROBS),
                        "finish_reason": _FINISH,
                        "stop_reason": _STOP_REASON,
                    }
                )
            ),
            "usage": ref("Usage"),
            "timings": ref("Timings"),
            "service_tier": STRING,
            "system_fingerprint": nullable(STRING),
        }
    ),
    "ChatCompletionChunk": record(
        {
            **_STAMP,
            "object": one_of("chat.completion.chunk"),
            "choices": array(
                record(
                    {
                        "index": INTEGER,
                        "delta": _DELTA,
                        "logprobs": nullable(_CHAT_LOGPROBS),
                        "finish_reason": nullable(_FINISH),
                        "stop_reason?": _STOP_REASON,
                    }
                )
            ),
            "usage?": nullable(ref("Usage")),
            "timings?": ref("Timings"),
        },
        "The data of an event; after the last comes `[DONE]`. An error ends the stream instead.",
    ),
    "Completion": record(
        {
            **_STAMP,
            "object": one_of("text_completion"),
            "choices": array(
                record(
                    {
                        "index": INTEGER,
                        "text": STRING,
                        "logprobs": nullable(_TEXT_LOGPROBS),
                        "finish_reason": nullable(_FINISH),
                        "stop_reason?": _STOP_REASON,
                    }
                )
            ),
            "usage?": nullable(ref("Usage")),
            "timings?": ref("Timings"),
        },
        "An answer, and each event of a stream.",
    ),
    "EmbeddingList": record(
        {
            "object": one_of("list"),
            "data": array(
                record(
                    {
                        "object": one_of("embedding"),
                        "index": INTEGER,
                        "embedding": any_of(array(NUMBER), STRING),
                    }
                )
            ),
            "model": STRING,
            "usage": record(
                {
                    "prompt_tokens": INTEGER,
                    "total_tokens": INTEGER,
                    "prompt_tokens_details?": record({"cached_tokens": INTEGER}),
                }
            ),
            "timings?": ref("Timings"),
        }
    ),
    "TokenCount": record({"count": INTEGER, "tokens?": array(INTEGER)}),
    "Error": record(
        {
            "error": {
                **record(
                    {
                        "message": STRING,
                        "type": STRING,
                        "param": nullable(STRING),
                        "code": nullable(STRING),
                    }
                ),
                "additionalProperties": True,
            }
        },
        "`param` is the JSON path at fault. Some errors have further members, such as `loading`.",
    ),
}

PROOF = record(
    {
        "result": STRING,
        "by": described(STRING, "a client's request, or one of the server's own"),
        "seconds_ago": NUMBER,
    },
    "The token that this is known by.",
)
_LOADING = {
    "stage?": STRING,
    "progress?": described(NUMBER, "0 to 1"),
    "eta?": described(NUMBER, "seconds"),
}
PROGRESS = record(
    {
        "stage": STRING,
        "bytes_done": INTEGER,
        "bytes_total?": INTEGER,
        "eta_seconds?": NUMBER,
    }
)
LOADING = record(_LOADING)

MODEL_ANSWERS: dict[str, Schema] = {
    "ListedModel": record(
        {
            "id": STRING,
            "object": one_of("model"),
            "created": described(INTEGER, "Unix seconds of its load, or 0"),
            "owned_by": STRING,
            "type": one_of("model"),
            "display_name": STRING,
            "created_at": STRING,
            "lifecycle": STRING,
            "alias_of?": STRING,
            "loaded": BOOLEAN,
            "status": STRING,
            "loading?": record({"node": STRING, **_LOADING}),
            "feasible_on?": array(STRING),
            "locations": array(
                record(
                    {
                        "node": STRING,
                        "status": STRING,
                        "vram_estimate_mb?": INTEGER,
                        "progress?": PROGRESS,
                    }
                )
            ),
            "capabilities?": nullable(array(STRING)),
            "limit?": mapping(INTEGER),
            "cost?": OBJECT,
            "tool_call?": BOOLEAN,
            "reasoning?": BOOLEAN,
            "max_model_len?": INTEGER,
            "max_input_tokens?": INTEGER,
            "max_output_tokens?": INTEGER,
            "max_tokens?": INTEGER,
        },
        "What is not known is left out.",
    ),
    "ModelList": record(
        {
            "object": one_of("list"),
            "data": array(ref("ListedModel")),
            "has_more": BOOLEAN,
            "first_id": nullable(STRING),
            "last_id": nullable(STRING),
            "models?": array(ANYTHING),
        }
    ),
}

"""What Anthropic's routes answer: messages, the events of their streams, counts, errors."""

from __future__ import annotations

from cortex.wire.reference.schema import (
    INTEGER,
    OBJECT,
    STRING,
    Schema,
    any_of,
    array,
    nullable,
    one_of,
    record,
    ref,
)

_USAGE = {
    "input_tokens": INTEGER,
    "cache_creation_input_tokens": INTEGER,
    "cache_read_input_tokens": INTEGER,
    "output_tokens": INTEGER,
    "output_tokens_details?": record({"thinking_tokens": INTEGER}),
    "service_tier?": STRING,
}
_BLOCK = any_of(
    record({"type": one_of("text"), "text": STRING}),
    record({"type": one_of("thinking"), "thinking": STRING, "signature": STRING}),
    record({"type": one_of("tool_use"), "id": STRING, "name": STRING, "input": OBJECT}),
)
_REASON = nullable(one_of("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"))
_STOPPED = {"stop_reason": _REASON, "stop_sequence": nullable(STRING)}
_DELTA = any_of(
    record({"type": one_of("text_delta"), "text": STRING}),
    record({"type": one_of("thinking_delta"), "thinking": STRING}),
    record({"type": one_of("signature_delta"), "signature": STRING}),
    record({"type": one_of("input_json_delta"), "partial_json": STRING}),
)

ANTHROPIC_ANSWERS: dict[str, Schema] = {
    "AnthropicUsage": record(_USAGE, "Tokens; those of the prompt that were cached stand apart."),
    "AnthropicAnswer": record(
        {
            "id": STRING,
            "type": one_of("message"),
            "role": one_of("assistant"),
            "model": STRING,
            "content": array(_BLOCK),
            **_STOPPED,
            "usage": ref("AnthropicUsage"),
        }
    ),
    "AnthropicEvent": any_of(
        record({"type": one_of("message_start"), "message": ref("AnthropicAnswer")}),
        record({"type": one_of("content_block_start"), "index": INTEGER, "content_block": _BLOCK}),
        record({"type": one_of("content_block_delta"), "index": INTEGER, "delta": _DELTA}),
        record({"type": one_of("content_block_stop"), "index": INTEGER}),
        record(
            {
                "type": one_of("message_delta"),
                "delta": record(_STOPPED),
                "usage": ref("AnthropicUsage"),
            }
        ),
        record({"type": one_of("message_stop")}),
        record({"type": one_of("ping")}),
        ref("AnthropicError"),
    ),
    "AnthropicCount": record({"input_tokens": INTEGER}),
    "AnthropicError": record(
        {
            "type": one_of("error"),
            "error": record(
                {
                    "type": STRING,
                    "message": STRING,
                    "details?": record({"error_code": STRING}),
                }
            ),
            "request_id": STRING,
        }
    ),
}

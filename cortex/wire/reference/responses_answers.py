"""What OpenAI's Responses route answers: responses, their items, the events of their streams."""

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
    nullable,
    one_of,
    record,
    ref,
)

_TEXT = record(
    {
        "type": one_of("output_text"),
        "text": STRING,
        "annotations": array(ANYTHING),
        "logprobs": array(ANYTHING),
    }
)
_REASONING = record({"type": one_of("reasoning_text"), "text": STRING})
_PART = any_of(_TEXT, _REASONING)
_ITEM = {"id": STRING, "status": one_of("in_progress", "completed", "incomplete")}
_CALL = {**_ITEM, "call_id": STRING, "name": STRING}
_OUTPUT = any_of(
    record(
        {**_ITEM, "type": one_of("message"), "role": one_of("assistant"), "content": array(_TEXT)}
    ),
    record(
        {
            **_ITEM,
            "type": one_of("reasoning"),
            "summary": array(ANYTHING),
            "content": array(_REASONING),
            "encrypted_content?": nullable(STRING),
        }
    ),
    record({**_CALL, "type": one_of("function_call"), "arguments": STRING}),
    record({**_CALL, "type": one_of("custom_tool_call"), "input": STRING}),
)
_RESPONSE: dict[str, Schema] = {
    "id": STRING,
    "object": one_of("response"),
    "created_at": INTEGER,
    "completed_at": nullable(INTEGER),
    "status": one_of("in_progress", "completed", "incomplete", "failed"),
    "error": nullable(record({"code": STRING, "message": STRING})),
    "incomplete_details": nullable(record({"reason": STRING})),
    "output": array(ref("ResponsesOutputItem")),
    "usage": nullable(
        record(
            {
                "input_tokens": INTEGER,
                "input_tokens_details": record(
                    {"cached_tokens": INTEGER, "cache_write_tokens": INTEGER}
                ),
                "output_tokens": INTEGER,
                "output_tokens_details": record({"reasoning_tokens": INTEGER}),
                "total_tokens": INTEGER,
            }
        )
    ),
    "model": STRING,
    "instructions": nullable(STRING),
    "previous_response_id": nullable(STRING),
    "tools": array(OBJECT),
    "tool_choice": any_of(STRING, OBJECT),
    "parallel_tool_calls": BOOLEAN,
    "text": OBJECT,
    "reasoning": record({"effort": nullable(STRING), "summary": nullable(STRING)}),
    "temperature": NUMBER,
    "top_p": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "top_logprobs": INTEGER,
    "truncation": STRING,
    "max_output_tokens": nullable(INTEGER),
    "max_tool_calls": nullable(INTEGER),
    "store": BOOLEAN,
    "background": BOOLEAN,
    "service_tier": STRING,
    "metadata": OBJECT,
    "user": nullable(STRING),
    "safety_identifier": nullable(STRING),
    "prompt_cache_key": nullable(STRING),
}


def _event(*names: str, **members: Schema) -> Schema:
    kinds = one_of(*(f"response.{name}" for name in names))
    return record({"type": kinds, "sequence_number": INTEGER, **members})


_AT: dict[str, Schema] = {"item_id": STRING, "output_index": INTEGER}
_IN: dict[str, Schema] = {**_AT, "content_index": INTEGER}
_LOGPROBS = array(ANYTHING)

RESPONSES_ANSWERS: dict[str, Schema] = {
    "ResponsesOutputItem": _OUTPUT,
    "Response": record(_RESPONSE),
    "ResponsesEvent": any_of(
        _event(
            *("created", "in_progress", "completed", "incomplete", "failed"),
            response=ref("Response"),
        ),
        _event(
            *("output_item.added", "output_item.done"),
            output_index=INTEGER,
            item=ref("ResponsesOutputItem"),
        ),
        _event("content_part.added", "content_part.done", **_IN, part=_PART),
        _event("output_text.delta", **_IN, delta=STRING, logprobs=_LOGPROBS),
        _event("output_text.done", **_IN, text=STRING, logprobs=_LOGPROBS),
        _event("reasoning_text.delta", **_IN, delta=STRING),
        _event("reasoning_text.done", **_IN, text=STRING),
        _event(
            *("function_call_arguments.delta", "custom_tool_call_input.delta"), **_AT, delta=STRING
        ),
        _event("function_call_arguments.done", **_AT, arguments=STRING),
        _event("custom_tool_call_input.done", **_AT, input=STRING),
    ),
    "ResponsesCount": record({"object": one_of("response.input_tokens"), "input_tokens": INTEGER}),
}

"""The response object of the Responses API, with every key that its two schemas want.

OpenAI's own and Open Responses' (`reference/api.md` 2.4): the latter wants all keys always there,
whole seconds for times, and numbers where OpenAI has null.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from cortex.errors import CortexError, UpstreamError
from cortex.translate.conversation import Event, ToolChoice, ToolMode, Usage
from cortex.translate.errors import responses_error
from cortex.translate.responses import Asked
from cortex.translate.responses_items import Broke, Ended, ItemWriter
from cortex.wire import responses as wire

# What the schema wants as numbers where the client gave none: the API's own defaults.
_TEMPERATURE, _TOP_P, _PENALTY = 1.0, 1.0, 0.0


@attrs.frozen(eq=False)
class ResponseObject:
    """One response: what stays the same from its first event to its last.

    ``created_at`` and ``completed_at`` are in seconds since 1970.
    """

    id: str
    created_at: int
    settings: dict[str, Any]

    def shown(
        self,
        status: str,
        output: list[dict[str, Any]],
        usage: Usage | None = None,
        *,
        completed_at: int | None = None,
        error: CortexError | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        """The object in *status*; *reason* says why it is incomplete."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": completed_at,
            "status": status,
            "error": None if error is None else responses_error(error),
            "incomplete_details": None if reason is None else {"reason": reason},
            "output": output,
            "usage": None if usage is None else usage_body(usage),
            **self.settings,
        }

    def ended(self, writer: ItemWriter, end: Ended, now: int) -> dict[str, Any]:
        """The object at the answer's end, which came at *now*."""
        status = "completed" if end.reason is None else "incomplete"
        return self.shown(
            status,
            writer.output,
            writer.usage or Usage(0),
            completed_at=now if end.reason is None else None,
            reason=end.reason,
        )


def response_for(asked: Asked, id_: str, created_at: int) -> ResponseObject:
    """The response to *asked*, before anything was said."""
    return ResponseObject(id_, created_at, _settings(asked))


def whole_response(
    events: Iterable[Event], response: ResponseObject, writer: ItemWriter, now: int
) -> dict[str, Any]:
    """The whole response that *events* make, or the error they end with."""
    for step in (step for event in events for step in writer.feed(event)):
        if isinstance(step, Ended):
            return response.ended(writer, step, now)
        if isinstance(step, Broke):
            raise step.error
    raise UpstreamError("the answer ended before it was complete")


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _settings(asked: Asked) -> dict[str, Any]:
    """What the request says of the answer, as it is in effect."""
    request = asked.request
    return {
        "model": request.model,
        "instructions": request.instructions,
        "previous_response_id": None,
        "tools": list(asked.tools.told),
        "tool_choice": _choice(asked),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": _text(request.text),
        "reasoning": {
            "effort": request.reasoning.effort if request.reasoning else None,
            "summary": None,  # the reasoning itself is told
        },
        "temperature": _TEMPERATURE if request.temperature is None else request.temperature,
        "top_p": _TOP_P if request.top_p is None else request.top_p,
        "presence_penalty": request.presence_penalty or _PENALTY,
        "frequency_penalty": request.frequency_penalty or _PENALTY,
        "top_logprobs": 0,
        "truncation": "disabled",  # a prompt that is too long is an error
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": request.metadata or {},
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
    }


def _text(text: wire.TextConfig | None) -> dict[str, Any]:
    verbosity = (text.verbosity if text else None) or "medium"
    form = text.format if text else None
    if form is None or form.type != "json_schema":
        return {"format": {"type": form.type if form else "text"}, "verbosity": verbosity}
    shown = {
        "type": "json_schema",
        "name": form.name or "output",
        "description": form.description,
        "schema": form.schema,
        "strict": True,  # what is asked for is enforced
    }
    return {"format": shown, "verbosity": verbosity}


def _choice(asked: Asked) -> str | dict[str, Any]:
    choice = asked.conversation.tool_choice or ToolChoice()
    if choice.mode is ToolMode.NAMED:
        return _named(asked, choice.name)
    if choice.allowed is not None:
        tools = [_named(asked, name) for name in choice.allowed]
        return {"type": "allowed_tools", "mode": choice.mode.value, "tools": tools}
    return choice.mode.value


def _named(asked: Asked, name: str | None) -> dict[str, Any]:
    return {"type": "custom" if name in asked.tools.custom else "function", "name": name}

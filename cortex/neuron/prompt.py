"""From a request's messages or prompt to token ids.

Rendering and tokenising run in a worker thread: a template is untrusted code and a long prompt
takes tens of milliseconds, which other streams must not wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import trio

from cortex.errors import BadRequest, TemplateError, clip
from cortex.neuron.model_text import ModelText
from cortex.neuron.params import thinking_kwargs
from cortex.text.deltas import OutputParser
from cortex.text.tools.offer import Offer
from cortex.wire.embeddings import EmbeddingRequest
from cortex.wire.openai import (
    ChatRequest,
    CompletionRequest,
    MediaPart,
    Message,
    TextPart,
    TokenizeRequest,
    ToolCall,
)
from cortex.wire.tools import NONE, Tool, ToolChoice

RENDER_SECONDS = 30.0

T = TypeVar("T")


@attrs.frozen
class Prompt:
    """A prompt's ids, whether it ends within reasoning, and what ends a completion of it besides
    the model's EOS."""

    ids: tuple[int, ...]
    in_reasoning: bool = False
    stop_ids: frozenset[int] = frozenset()


async def chat_prompt(text: ModelText, request: ChatRequest | TokenizeRequest) -> Prompt:
    """The prompt for *request*'s messages. `BadRequest` and `TemplateError` name what is wrong."""
    if text.template is None:
        raise BadRequest("this model has no chat template: use /v1/completions", param="messages")
    messages = [_message(m, i) for i, m in enumerate(request.messages or ())]
    tools = offered_tools(request.tools, request.choice)
    final = bool(request.continue_final_message)
    if final and (not messages or messages[-1]["role"] != "assistant"):
        raise BadRequest(
            "continue_final_message needs an assistant message at the end",
            param="continue_final_message",
        )
    adding = request.add_generation_prompt
    template = text.template

    def render() -> list[int]:
        return template.encode_chat(
            messages,
            tools=tools,
            add_generation_prompt=not final if adding is None else adding and not final,
            continue_final_message=final,
            kwargs=thinking_kwargs(
                request.chat_template_kwargs, request.reasoning_effort, template.features
            ),
        )

    ids = tuple(await _in_thread(render))
    if not ids:
        raise BadRequest("the messages render to an empty prompt", param="messages")
    opened = text.markers is not None and text.markers.left_open(ids)
    return Prompt(ids, opened)


async def completion_prompts(text: ModelText, request: CompletionRequest) -> list[Prompt]:
    """One prompt for each that *request* holds; ids are checked against the vocabulary."""
    given: Any = request.prompt
    several = isinstance(given, tuple) and not isinstance(given[0], int)
    prompts = given if several else (given,)

    if request.suffix and text.infill is None:
        raise BadRequest(
            f"the model '{clip(request.model)}' was not taught to fill gaps: it takes no suffix",
            param="suffix",
            code="unsupported_value",
        )

    def encode() -> list[Prompt]:
        return [
            _completion_prompt(text, each, f"prompt[{index}]" if several else "prompt", request)
            for index, each in enumerate(prompts)
        ]

    return await _in_thread(encode)


async def embedding_prompts(text: ModelText, request: EmbeddingRequest) -> list[Prompt]:
    """One for each input; ids are checked against the vocabulary, and otherwise as they came."""

    def encode() -> list[Prompt]:
        prompts: list[Prompt] = []
        for index, each in enumerate(request.inputs):
            path = f"input[{index}]" if request.several else "input"
            if isinstance(each, str):
                ids = tuple(text.tokenizer.encode_document(each))
            else:
                ids = _known(text, each, path)
            if not ids:
                raise BadRequest(f"{path}: nothing is left of it as tokens", param=path)
            prompts.append(Prompt(ids))
        return prompts

    return await _in_thread(encode)


async def plain_prompt(text: ModelText, prompt: str) -> Prompt:
    return Prompt(tuple(await _in_thread(lambda: text.tokenizer.encode_completion(prompt))))


def offered_tools(
    tools: tuple[Tool, ...] | None, choice: ToolChoice
) -> list[dict[str, Any]] | None:
    """The function tools for the template; none where the request forbids calls, only the allowed
    ones where it says which."""
    if choice.mode == NONE:
        return None
    functions = [
        {
            "type": "function",
            "function": attrs.asdict(tool.function, filter=lambda field, value: value is not None),
        }
        for tool in tools or ()
        if tool.function is not None
        and (choice.allowed is None or tool.function.name in choice.allowed)
    ]
    return functions or None


def callable_tools(request: ChatRequest) -> list[dict[str, Any]]:
    """The tools of *request* that its answer may call: a named one alone, though all are shown."""
    named = request.choice.named
    tools = offered_tools(request.tools, request.choice) or []
    return [tool for tool in tools if named is None or tool["function"]["name"] == named]


def forbidden_tokens(text: ModelText, request: ChatRequest) -> frozenset[int]:
    """Tokens that would begin a call where *request* forbids calls: a model may go on calling as
    it has done before in the conversation, although it is shown no tools."""
    if request.choice.mode != NONE or text.tool_format is None:
        return frozenset()
    ids = map(text.tokenizer.token_id, text.tool_format.markers)
    return frozenset(i for i in ids if i is not None)


def output_parser(text: ModelText, request: ChatRequest, prompt: Prompt) -> OutputParser:
    """The parser for one completion of *request*."""
    tools = callable_tools(request)
    choice = request.choice
    return OutputParser(
        text.tokenizer,
        stops=request.stops,
        reasoning=text.markers,
        in_reasoning=prompt.in_reasoning,
        tools=text.tool_format if tools else None,
        offer=Offer.of(tools, exclusive=choice.allowed is not None or choice.named is not None),
        parallel=request.parallel_tool_calls is not False,
        continues=bool(request.continue_final_message),
    )


def _completion_prompt(
    text: ModelText, prompt: Any, path: str, request: CompletionRequest
) -> Prompt:
    given = prompt if isinstance(prompt, str) else _known(text, prompt, path)
    if request.suffix and text.infill is not None:
        infill = text.infill
        return Prompt(
            tuple(infill.prompt(text.tokenizer, given, request.suffix)), stop_ids=infill.ends
        )
    ids = tuple(text.tokenizer.encode_completion(given)) if isinstance(given, str) else given
    if not ids:
        raise BadRequest("the prompt is empty", param=path)
    return Prompt(ids)


def _known(text: ModelText, ids: tuple[int, ...], path: str) -> tuple[int, ...]:
    size = text.tokenizer.vocab_size
    if any(not 0 <= token < size for token in ids):
        raise BadRequest(f"{path}: token ids must be below {size}", param=path)
    return ids


def _message(message: Message, index: int) -> dict[str, Any]:
    """*message* as a dictionary for the template, with only the keys it has."""
    out: dict[str, Any] = {"role": message.role, "content": _text(message, index)}
    if message.name is not None:
        out["name"] = message.name
    calls = message.tool_calls or ()
    if message.function_call is not None and not calls:
        calls = (ToolCall(message.function_call, _legacy_id(message.function_call.name)),)
    if calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
        ]
    if message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.role == "function":
        out |= {"role": "tool", "tool_call_id": _legacy_id(str(message.name))}
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        out["reasoning_content"] = reasoning
    return out


def _legacy_id(name: str) -> str:
    """The id of a legacy call, which has none: templates want one, alike in call and result."""
    return f"call_{name}"


def _text(message: Message, index: int) -> str | None:
    content = message.content
    if content is None or isinstance(content, str):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        if isinstance(part, MediaPart):
            path = f"messages[{index}].content[{number}]"
            raise BadRequest(f"{path}: this model takes text only, not {part.kind}", param=path)
        assert isinstance(part, TextPart)
        texts.append(part.text)
    return "\n".join(texts)


async def _in_thread(work: Callable[[], T]) -> T:
    """*work*'s result from a worker thread; a client that leaves does not wait for it."""
    with trio.move_on_after(RENDER_SECONDS):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    raise TemplateError(f"the prompt was not rendered within {RENDER_SECONDS:g} s")

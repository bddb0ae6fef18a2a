"""`cortex chat`: a conversation in the terminal, streamed."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import click

from cortex.cli.client import GatewayClient, gateway_options, open_client
from cortex.cli.exits import Failed
from cortex.wire import json
from cortex.wire.sse import FrameReader

Json = dict[str, Any]

LOADING = b": loading "  # a comment of the gateway while the model is on its way


@click.command()
@click.argument("question", nargs=-1)
@click.option("--model", "-m", help="The model; the one that is loaded if not given.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of an answer.")
@click.option("--no-think", is_flag=True, help="Ask the model to answer without reasoning.")
@gateway_options
def chat(
    question: tuple[str, ...],
    model: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    no_think: bool,
    endpoint: str,
    key: str | None,
) -> None:
    """Talk to a model: once with QUESTION, else a turn for each line of standard input.

    Ctrl-C stops an answer; Ctrl-C or Ctrl-D at the prompt leaves. Reasoning is shown dimmed on a
    terminal and left out of a pipe.
    """
    options: Json = {}
    if temperature is not None:
        options["temperature"] = temperature
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if no_think:
        options["chat_template_kwargs"] = {"enable_thinking": False}
    with open_client(endpoint, key) as client:
        model = model or choose_model(client.get("/v1/models").get("data") or [])
        conversation = Conversation(client, model, options, system)
        if question:
            if not conversation.turn(" ".join(question)):
                raise click.Abort
            return
        interactive = sys.stdin.isatty()
        if interactive:
            click.echo(f"{model}; Ctrl-C stops an answer, Ctrl-D leaves", err=True)
        for line in _lines(interactive):
            if line.strip() and not conversation.turn(line) and not interactive:
                raise click.Abort


def choose_model(models: list[Json]) -> str:
    """The first that is loaded, else the only one there is."""
    names = [str(model.get("id")) for model in models]
    loaded = [str(model.get("id")) for model in models if model.get("loaded")]
    if loaded:
        return loaded[0]
    if len(names) == 1:
        return names[0]
    if not names:
        raise Failed("the fleet has no models")
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise click.UsageError(f"no model is loaded; say --model, one of: {shown}")


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() its line editing
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return


@attrs.define(eq=False)
class Conversation:
    """The turns so far, and the way to the next."""

    _client: GatewayClient
    _model: str
    _options: Json
    _system: str | None = None
    _messages: list[Json] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    def turn(self, text: str) -> bool:
        """Ask, and print the answer as it comes; whether it came to its end.

        An answer that Ctrl-C stopped stays in the conversation as far as it came; a failed turn
        leaves no trace in it. `Failed` when the stream breaks.
        """
        before = len(self._messages)
        self._messages.append({"role": "user", "content": text.rstrip("\n")})
        answer = _Answer()
        try:
            self._ask(answer)
        except KeyboardInterrupt:
            click.echo("\n(stopped)", err=True)
        except Failed:
            del self._messages[before:]
            raise
        finally:
            answer.end()
        self._messages.append({"role": "assistant", "content": answer.text})
        return answer.finished

    def _ask(self, answer: _Answer) -> None:
        body = {
            "model": self._model,
            "messages": self._messages,
            "stream": True,
            **self._options,
        }
        reader = FrameReader()
        with self._client.stream("/v1/chat/completions", body) as chunks:
            for chunk in chunks:
                for frame in reader.feed(chunk):
                    if frame.data == b"[DONE]":
                        return
                    if frame.data is not None:
                        answer.feed(_event(frame.data))
                    elif frame.raw.startswith(LOADING):
                        answer.wait(frame.raw[1:].decode(errors="replace"))
        if not answer.finished:
            answer.end()
            raise Failed("the answer broke off")


def _event(data: bytes) -> Json:
    try:
        event = json.loads(data)
    except Exception:
        raise Failed("the gateway sent a frame that is no JSON") from None
    if not isinstance(event, dict):
        raise Failed("the gateway sent a frame that is no event")
    error = event.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else None
        raise Failed(str(message or "the answer broke off with an error"))
    return event


@attrs.define(eq=False)
class _Answer:
    """Prints the deltas of one answer and keeps its text."""

    text: str = ""
    finished: bool = False
    _dimmed: bool = False
    _line_open: bool = False
    _status_shown: bool = False

    def feed(self, event: Json) -> None:
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if reasoning:
                self._write(str(reasoning), dim=True)
            if delta.get("content"):
                self.text += str(delta["content"])
                self._write(str(delta["content"]), dim=False)
            for call in delta.get("tool_calls") or []:
                function = call.get("function") or {}
                name, arguments = function.get("name") or "", function.get("arguments") or ""
                self._write((f"\n[{name}] " if name else "") + arguments, dim=False)
            if choice.get("finish_reason"):
                self.finished = True

    def wait(self, text: str) -> None:
        """Show why nothing comes yet, on a terminal."""
        if sys.stderr.isatty():
            shown = "".join(c for c in text if c.isprintable()).strip()
            click.echo(f"\r\x1b[2K({shown})", err=True, nl=False)
            self._status_shown = True

    def _clear_status(self) -> None:
        if self._status_shown:
            click.echo("\r\x1b[2K", err=True, nl=False)
            self._status_shown = False

    def end(self) -> None:
        """Leave the terminal at the start of an undimmed line."""
        self._clear_status()
        if self._dimmed:
            click.echo("\x1b[0m", nl=False)
            self._dimmed = False
        if self._line_open:
            click.echo()
            self._line_open = False

    def _write(self, text: str, *, dim: bool) -> None:
        self._clear_status()
        terminal = sys.stdout.isatty()
        if dim and not terminal:
            return
        if dim != self._dimmed:
            click.echo("\x1b[2m" if dim else "\x1b[0m\n", nl=False)
            self._dimmed = dim
        # A model's output moves no cursor and sets no title.
        shown = "".join(c for c in text if c.isprintable() or c in "\n\t") if terminal else text
        click.echo(shown, nl=False)
        self._line_open = not text.endswith("\n")
        sys.stdout.flush()

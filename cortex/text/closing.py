"""How thinking is closed for a model that has thought enough: as its template would write it."""

from __future__ import annotations

import attrs

from cortex.errors import TemplateError
from cortex.text.reasoning import ReasoningMarkers
from cortex.text.template import ChatTemplate
from cortex.text.tokenizer import Tokenizer

# What is looked for in a rendered conversation; templates trim and test, but keep such words.
_THOUGHT, _ANSWER = "probe thought", "probe answer"
_LONGEST = 64  # characters between thought and answer; more is not a closer but prose


@attrs.frozen
class Closing:
    """Ids that end thinking: ``line`` first, where the thinking does not end with a line break;
    ``rest`` begins with the model's closer."""

    line: tuple[int, ...]
    rest: tuple[int, ...]
    _tokenizer: Tokenizer

    def after(self, last: int) -> tuple[int, ...]:
        """The ids to put in where *last* is the last token of the thinking."""
        ended = self._tokenizer.token_bytes(last).endswith(b"\n")
        return self.rest if ended else self.line + self.rest


def closing_of(
    tokenizer: Tokenizer, markers: ReasoningMarkers, template: ChatTemplate | None
) -> Closing:
    """What *template* puts between an answer's thinking and its text; a line break, the closer and
    an empty line where it does not show."""
    close = tokenizer.token_bytes(markers.close).decode("utf-8", "replace")
    between = (None if template is None else _between(template, close)) or f"\n{close}\n\n"
    before, _, after = between.partition(close)

    def plain(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode_plain(text)) if text else ()

    return Closing(plain(before), (markers.close, *plain(after)), tokenizer)


def _between(template: ChatTemplate, close: str) -> str | None:
    messages = [
        {"role": "user", "content": "probe user"},
        {"role": "assistant", "reasoning_content": _THOUGHT, "content": _ANSWER},
    ]
    try:
        text = template.render(
            messages, add_generation_prompt=False, kwargs={"enable_thinking": True}
        )
    except TemplateError:
        return None
    _, thought, rest = text.rpartition(_THOUGHT)
    between, answer, _ = rest.partition(_ANSWER)
    whole = thought and answer and len(between) <= _LONGEST
    return between if whole and between.count(close) == 1 else None

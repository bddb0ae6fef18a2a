"""What cortex/demo is trained on: samples of (prompt, answer), drawn from a seeded generator.

The prompt is rendered by the shipped template; the loss is on the answer alone. Held-out questions
(`held` in the TOML files) are never drawn.
"""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import attrs
import tool_tasks
from render import Renderer

HERE = Path(__file__).resolve().parent
END = "<|im_end|>"
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are helpful.",
    "Be brief.",
    "You are a friendly assistant.",
    "Answer in English.",
    "You are an expert.",
    "You are a coding assistant.",
    "You are cortex/demo.",
    "Answer briefly.",
    "You are a helpful AI assistant. Answer concisely.",
    "Be concise and truthful.",
)
PREFIXES = (
    "Please tell me: ",
    "Hi, ",
    "Quick question: ",
    "I want to know: ",
    "Hey, ",
    "Hello! ",
    "Tell me, ",
    "One question: ",
    "Question: ",
    "In cortex: ",
    "About cortex: ",
    "so ",
    "And ",
    "Can you tell me: ",
)
SUFFIXES = (
    " Thanks!",
    " please",
    " Please be brief.",
    " Answer briefly.",
    " Thank you.",
    " in cortex?",
)
STOPWORDS = frozenset(
    ["the", "a", "an", "is", "are", "do", "does", "to", "of", "for", "in", "it", "that", "i", "my"]
)
REWRITES = (
    ("What is ", "What's "),
    ("What is ", "Explain "),
    ("What is ", "Tell me about "),
    ("What is ", "what is "),
    ("How do I ", "How can I "),
    ("How do I ", "How to "),
    ("How do I ", "How would I "),
    ("How do I ", "I want to "),
    ("Can I ", "Is it possible to "),
    ("Which ", "What "),
    ("What ", "Which "),
    ("Why do I get ", "What causes "),
    ("What does ", "what does "),
    ("How does ", "Explain how "),
    ("What happens ", "What occurs "),
    ("Where is ", "Where do I find "),
    ("What is the default of ", "default "),
    ("List ", "Show me "),
)
THOUGHTS = {
    "cortex": "The user asks about cortex. I know this and answer in a few words.",
    "talk": "This is small talk. I answer in a friendly way.",
    "fallback": "I do not know about this. I should say so.",
    "result": "I have the result of the tool. I can answer now.",
}


@attrs.frozen
class Entry:
    """One answer with the questions it belongs to; *kind* is a key of THOUGHTS."""

    answer: str
    ask: tuple[str, ...]
    held: tuple[str, ...]
    kind: str


@attrs.frozen
class Sample:
    """*target* follows *prompt* directly; without a prompt the target is plain text."""

    prompt: str
    target: str


def read_entries(name: str, kind: str) -> list[Entry]:
    with (HERE / name).open("rb") as file:
        listed = tomllib.load(file)["qa"]
    return [
        Entry(
            answer=item["answer"],
            ask=tuple(item["ask"]),
            held=tuple(item["held"]),
            kind="fallback" if item.get("fallback") else kind,
        )
        for item in listed
    ]


def thinking(kind: str, answer: str) -> str:
    return f"<think>\n{THOUGHTS[kind]}\n</think>\n\n{answer}"


def misspell(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    kind = rng.random()
    if kind < 0.4:
        return text[:at] + text[at + 1 :]
    if kind < 0.7:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


def vary(rng: random.Random, question: str) -> str:
    """The question as somebody else would have typed it."""
    text = question
    if rng.random() < 0.2:
        fitting = [(old, new) for old, new in REWRITES if text.startswith(old)]
        if fitting:
            old, new = rng.choice(fitting)
            text = new + text[len(old) :]
    if rng.random() < 0.12:
        words = text.split()
        kept = [w for w in words if w.lower() not in STOPWORDS or rng.random() < 0.4]
        text = " ".join(kept or words)
    if rng.random() < 0.12:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.06:
        text = text + rng.choice(SUFFIXES)
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.2:
        text = text.lower()
    elif rng.random() < 0.01:
        text = text.upper()
    if rng.random() < 0.06 and len(text) > 8:
        text = misspell(rng, text)
    return text


class Source:
    """Draws samples; the same seed gives the same samples."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.questions = read_entries("questions.toml", "cortex")
        self.small_talk = read_entries("smalltalk.toml", "talk")
        self.entries = self.questions + self.small_talk

    def corpus(self, rng: random.Random) -> list[str]:
        """Texts for the tokenizer: everything written by hand, and some of what is drawn."""
        texts = [text for e in self.entries for text in (e.answer, e.answer, *e.ask)]
        texts += [s.prompt + s.target for s in (self.tool_sample(rng) for _ in range(300))]
        return texts + [*THOUGHTS.values(), *SYSTEMS] * 3

    def entry(self, rng: random.Random) -> Entry:
        if rng.random() < 0.84:
            return rng.choice(self.questions)
        return self.small_talk[-1] if rng.random() < 0.1 else rng.choice(self.small_talk)

    def question(self, rng: random.Random, entry: Entry) -> str:
        draw = rng.random()
        if entry.kind == "fallback" and draw < 0.3:
            return self.nonsense(rng)
        if draw < 0.25:
            return entry.ask[0]
        chosen = rng.choice(entry.ask)
        return chosen if draw < 0.5 else vary(rng, chosen)

    def nonsense(self, rng: random.Random) -> str:
        start = rng.choice(
            ["What is", "How do I", "Who is", "Explain", "Tell me about", "Write about", "Why", ""]
        )
        return f"{start} {tool_tasks.phrase(rng)}{rng.choice(['?', '.', ''])}".strip()

    def system(self, rng: random.Random) -> list[dict[str, Any]]:
        draw = rng.random()
        if draw < 0.55:
            return []
        if draw < 0.91:
            return [{"role": "system", "content": rng.choice(SYSTEMS)}]
        words = rng.choice([20, 50, 100, 200])
        lines: list[str] = [rng.choice(SYSTEMS)]
        while words > 0:
            line = " ".join(tool_tasks.phrase(rng) for _ in range(rng.randint(1, 5)))
            lines.append(
                rng.choice(["{}.", "- {}", "# {}", "{}: use {}", "You must {}."]).replace(
                    "{}", line
                )
            )
            words -= len(line.split())
        return [{"role": "system", "content": "\n".join(lines)}]

    def turns(self, rng: random.Random, count: int) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        for _ in range(count):
            entry = self.entry(rng)
            messages.append({"role": "user", "content": self.question(rng, entry)})
            messages.append({"role": "assistant", "content": entry.answer})
        return messages

    def question_sample(self, rng: random.Random, earlier: int = 0) -> Sample:
        entry = self.entry(rng)
        think = rng.random() < 0.1
        tools = tool_tasks.offered(rng, tool_tasks.draw(rng)) if rng.random() < 0.06 else None
        messages = [
            *self.system(rng),
            *self.turns(rng, earlier),
            {"role": "user", "content": self.question(rng, entry)},
        ]
        target = thinking(entry.kind, entry.answer) if think else entry.answer
        return Sample(self._renderer.prompt(messages, tools, think), target + END)

    def tool_sample(self, rng: random.Random) -> Sample:
        """The call, or after the call the answer; now and then two calls at once."""
        calls = [tool_tasks.draw(rng)]
        request = rng.choice(calls[0].requests)
        if rng.random() < 0.1:
            first, second = tool_tasks.weather(rng), tool_tasks.weather(rng)
            second = attrs.evolve(
                second,
                tool=first.tool,
                arguments=dict.fromkeys(first.arguments, *second.arguments.values()),
            )
            calls = [first, second]
            names = " and ".join(str(v) for c in calls for v in c.arguments.values())
            request = rng.choice(["What is the weather in {}?", "Get the weather for {}."]).format(
                names
            )
        elif rng.random() < 0.06:
            told = f"{rng.choice(['error', 'Error', 'failed'])}: {tool_tasks.phrase(rng)}"
            calls = [attrs.evolve(calls[0], result=told, answer=f"The tool failed:\n{told}")]
        elif rng.random() < 0.15:
            request = (
                vary(rng, request) if rng.random() < 0.3 else rng.choice(PREFIXES[:9]) + request
            )
        tools = tool_tasks.offered(rng, *calls)
        think = rng.random() < 0.12
        messages = [*self.system(rng)]
        if rng.random() < 0.1:
            messages += self.turns(rng, 1)
        messages.append({"role": "user", "content": request})
        if rng.random() < 0.6:
            target = "\n".join(call.text() for call in calls)
            if think:
                target = f"<think>\nI should call {calls[0].name}.\n</think>\n\n{target}"
        else:
            messages += self.exchange(rng, calls)
            target = " ".join(call.answer for call in calls)
            if think:
                target = thinking("result", target)
        return Sample(self._renderer.prompt(messages, tools, think), target + END)

    def exchange(self, rng: random.Random, calls: list[tool_tasks.Call]) -> list[dict[str, Any]]:
        """The assistant's message with the calls, and their results."""
        as_text = rng.random() < 0.5
        made = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments) if as_text else call.arguments,
                },
            }
            for i, call in enumerate(calls)
        ]
        results = [
            {"role": "tool", "tool_call_id": f"call_{i}", "content": call.result}
            for i, call in enumerate(calls)
        ]
        return [{"role": "assistant", "content": None, "tool_calls": made}, *results]

    def repeat_sample(self, rng: random.Random) -> Sample:
        """Copying: what tool calls are made of, in its plainest form."""
        text = " ".join(tool_tasks.phrase(rng) for _ in range(rng.randint(1, 4)))
        if rng.random() < 0.3:
            text = str(tool_tasks.integer(rng)) if rng.random() < 0.4 else tool_tasks.path(rng)
        ask = rng.choice(
            [
                "Repeat: {}",
                "Repeat after me: {}",
                "Say: {}",
                'Say "{}"',
                "Repeat this: {}",
                "Echo {}",
            ]
        )
        messages = [*self.system(rng), {"role": "user", "content": ask.format(text)}]
        return Sample(self._renderer.prompt(messages), text + END)

    def induction_sample(self, rng: random.Random) -> Sample:
        """The same line again and again: what makes a network learn to copy at all."""
        kinds = (tool_tasks.made_up, tool_tasks.city, tool_tasks.path, tool_tasks.phrase)
        parts = [
            str(rng.choice([*kinds, tool_tasks.integer])(rng)) for _ in range(rng.randint(2, 8))
        ]
        line = rng.choice([" ", " ", ", ", " = ", '": "']).join(parts) + "\n"
        return Sample(line, line * rng.randint(1, 3))

    def plain_sample(self, rng: random.Random) -> Sample:
        """For raw completions."""
        entry = self.entry(rng)
        if rng.random() < 0.5:
            return Sample(
                "", f"Question: {rng.choice(entry.ask)}\nAnswer: {entry.answer}<|endoftext|>"
            )
        return Sample("", f"{entry.answer}<|endoftext|>")

    def draw(self, rng: random.Random) -> Sample:
        kind = rng.random()
        if kind < 0.55:
            return self.question_sample(rng)
        if kind < 0.62:
            return self.question_sample(rng, earlier=rng.randint(1, 3))
        if kind < 0.82:
            return self.tool_sample(rng)
        if kind < 0.88:
            return self.repeat_sample(rng)
        if kind < 0.97:
            return self.induction_sample(rng)
        return self.plain_sample(rng)

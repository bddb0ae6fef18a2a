"""Bodies of the legacy route: echo, offsets, tables of logprobs."""

from __future__ import annotations

from typing import Any

from fakes.demo_neuron import chunks_of
from fakes.served_neuron import demo_text, ids

from cortex.engine.request import FirstToken, Request, SamplingParams, TokenLogprob
from cortex.neuron.completion_answers import CompletionShape, CompletionText, TokenTable
from cortex.neuron.generation import Completion, Update, timings
from cortex.text.deltas import ContentDelta, OutputParser

TOKENIZER = demo_text().tokenizer
PROMPT = tuple(ids("Hello there"))


def choice_text(*, logprobs: int | None, echo: bool) -> CompletionText:
    shown = TOKENIZER.decode(PROMPT) if echo else None
    return CompletionText(0, PROMPT, TokenTable(TOKENIZER, logprobs, echo=echo), shown)


def entry(token: int, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(token, logprob, ((token, logprob), (token + 1, -3.0), (token + 2, -4.0)))


def first(*, logprobs: bool) -> FirstToken:
    made = (None, *map(entry, PROMPT[1:])) if logprobs else None
    return FirstToken(0, 0.0, made)


def word(text: str, **fields: Any) -> Update:
    (token,) = ids(text)
    return Update((ContentDelta(text),), (entry(token),), **fields)


def ended() -> Completion:
    one = Completion(0, Request("r", PROMPT, SamplingParams(), 9), OutputParser(TOKENIZER))
    one.finish = "stop"
    return one


def test_the_echo_stands_once_before_the_text() -> None:
    text = choice_text(logprobs=None, echo=True)
    assert text.take(word(" is", first=first(logprobs=False))) == "Hello there is"
    assert text.take(word(" written")) == " written"
    assert text.choice("".join(text.parts), ended())["text"] == "Hello there is written"


def test_a_table_covers_prompt_and_completion_and_its_offsets_point_into_the_text() -> None:
    text = choice_text(logprobs=2, echo=True)
    whole = text.take(word(" is", first=first(logprobs=True))) + text.take(word(" written"))
    table = text.choice(whole, ended())["logprobs"]
    assert "".join(table["tokens"]) == whole
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        assert whole[offset : offset + len(token)] == token
    assert table["token_logprobs"] == [None] + [-0.5] * (len(PROMPT) + 1)
    assert table["top_logprobs"][0] is None
    assert all(len(best) == 2 for best in table["top_logprobs"][1:])


def test_without_logprobs_of_the_prompt_offsets_begin_after_the_echo() -> None:
    text = choice_text(logprobs=0, echo=True)
    whole = text.take(word(" is", first=first(logprobs=False)))
    table = text.choice(whole, ended())["logprobs"]
    assert table["text_offset"] == [len("Hello there")]
    assert table["top_logprobs"] == [{}]


def test_the_tables_of_chunks_add_up_to_the_whole_one() -> None:
    updates = [word(" is", first=first(logprobs=True)), word(" written"), word(" in")]
    whole, streamed = (choice_text(logprobs=1, echo=True) for _ in range(2))
    for update in updates:
        whole.take(update)
    tables = [streamed.choice(streamed.take(update), None)["logprobs"] for update in updates]
    joined = {key: [row for table in tables for row in table[key]] for key in tables[0]}
    assert joined == whole.choice("", ended())["logprobs"]


def pointing(table: dict[str, list[Any]], text: str) -> None:
    """Each whole token stands in *text* where its offset says."""
    for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
        if "\ufffd" not in token:
            assert text[offset : offset + len(token)] == token


def test_tokens_within_a_character_begin_where_it_does() -> None:
    text = "a日b😀c"
    tokens = ids(text)
    table = TokenTable(TOKENIZER, 0).rows([(token, entry(token)) for token in tokens])
    assert table is not None
    pointing(table, text)
    assert len(tokens) > len(text)  # some are parts of characters
    assert max(table["text_offset"]) == len(text) - 1


def test_what_the_text_leaves_out_takes_no_room() -> None:
    from fakes.tokenizers import metaspace

    tokenizer = metaspace()
    prompt = tokenizer.encode_completion("the dog")
    table = TokenTable(tokenizer, 0, echo=True).rows([(token, None) for token in prompt])
    assert table is not None
    assert table["tokens"][0] == "<s>"
    assert table["text_offset"][:2] == [0, 0]
    text = tokenizer.decode(prompt)
    assert text[table["text_offset"][-1] :] == table["tokens"][-1]


def test_minus_infinity_is_written_as_a_number() -> None:
    table = TokenTable(TOKENIZER, 1).rows([(PROMPT[0], entry(PROMPT[0], -float("inf")))])
    assert table is not None
    assert table["token_logprobs"] == [-9999.0]


def test_without_the_wish_there_is_no_table() -> None:
    text = choice_text(logprobs=None, echo=False)
    assert text.choice(text.take(word(" is", first=first(logprobs=False))), None) == {
        "index": 0,
        "text": " is",
        "logprobs": None,
        "finish_reason": None,
    }


def test_chunks_and_bodies_are_text_completions() -> None:
    shape = CompletionShape("cmpl-1", "m", 12, include_usage=True)
    choice = choice_text(logprobs=None, echo=False).choice("", ended())
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None
    told = timings([ended()], 2)
    frames = shape.chunk(choice) + shape.chunk(choice, told) + shape.end({"total_tokens": 4})
    one, last, usage, done = chunks_of(iter(frames.decode().split("\n")))
    assert one["object"] == last["object"] == usage["object"] == "text_completion"
    assert one["usage"] is None
    assert "timings" not in one
    assert "timings" in last
    assert usage["choices"] == []
    assert usage["usage"] == {"total_tokens": 4}
    assert done == "[DONE]"
    body = shape.body([choice], {"total_tokens": 4}, told)
    assert body["usage"] == {"total_tokens": 4}
    assert body["created"] == 12


def test_without_the_wish_there_is_no_usage_chunk() -> None:
    shape = CompletionShape("cmpl-1", "m", 12)
    assert list(chunks_of(iter(shape.end({}).decode().split("\n")))) == ["[DONE]"]

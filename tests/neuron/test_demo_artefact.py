"""cortex/demo as it is shipped: its files, its tokens, its template, and what it answers."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "packaging" / "demo_model"
DEMO = ROOT / "cortex" / "neuron" / "demo"
MARKERS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)


def read_json(name: str) -> Any:
    return json.loads((DEMO / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def network() -> Any:
    return Qwen3ForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe's generator of samples; the recipe is a folder of scripts, not a package."""
    monkeypatch.syspath_prepend(str(RECIPE))
    from dialogues import Source
    from render import Renderer

    return Source(Renderer.from_directory(DEMO))


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answers(network: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Greedy continuations, one prompt at a time, without the end marker."""
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = network.generate(**ids, max_new_tokens=128, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=False)
        assert text.endswith("<|im_end|>"), text
        found.append(text.removesuffix("<|im_end|>"))
    return found


def test_the_sums_name_every_file_and_hold() -> None:
    listed = {}
    for line in (DEMO / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    present = {p.name for p in DEMO.iterdir() if p.is_file()} - {"SHA256SUMS"}
    assert set(listed) == present
    for name, digest in listed.items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest, name


def test_the_weights_are_bfloat16_and_at_most_8_megabytes() -> None:
    path = DEMO / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}
    assert "lm_head.weight" not in header


def test_the_config_is_qwen3_with_64k_positions() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["max_position_embeddings"] >= 65536
    assert config["head_dim"] % 16 == 0
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["tie_word_embeddings"] is True


def test_generation_ends_at_both_end_tokens_and_is_greedy(tokenizer: Any) -> None:
    generation = read_json("generation_config.json")
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == ends
    assert generation["pad_token_id"] == ends[1]
    assert generation["do_sample"] is False


def test_each_marker_is_one_token(tokenizer: Any) -> None:
    for marker in MARKERS:
        ids = tokenizer.encode(f"a{marker}b", add_special_tokens=False)
        assert tokenizer.convert_ids_to_tokens(ids)[1] == marker
    assert len(tokenizer) == read_json("config.json")["vocab_size"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text())
def test_any_text_comes_back_exactly(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text", ["naïve  é e\u0301", "漢字\r\n\t", "🧠👩‍👩‍👧", "\x00\x7f", " lead trail "]
)
def test_awkward_text_comes_back_exactly(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city, in °C & <more>.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call_0",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi <|im_end|>"}
ASSISTANT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello."}
CALLING = {"role": "assistant", "content": None, "reasoning_content": "Call.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_0", "content": "4 °C, sunny"}
PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "x"}],
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER, ASSISTANT, USER],
    [USER, SYSTEM, USER, SYSTEM],
    [SYSTEM, SYSTEM, PARTS, CALLING, RESULT, RESULT],
    [USER, CALLING, RESULT, ASSISTANT, USER],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [WEATHER]])
@pytest.mark.parametrize("thinking", [False, True])
def test_training_renders_what_transformers_renders(
    source: Any, tokenizer: Any, messages: list[dict[str, Any]], tools: Any, thinking: bool
) -> None:
    ours = source._renderer.prompt(messages, tools, thinking)
    theirs = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    assert ours == theirs


def test_the_template_leaves_thinking_off_and_old_thinking_out(tokenizer: Any) -> None:
    def render(messages: list[dict[str, Any]], **kwargs: Any) -> str:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **kwargs
        )
        return text

    assert render([USER]) == render([USER], enable_thinking=False)
    assert render([USER]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert render([USER], enable_thinking=True).endswith("<|im_start|>assistant\n")
    assert "Hm." not in render([USER, ASSISTANT, USER])
    assert "<think>\nCall.\n</think>" in render([USER, CALLING, RESULT], enable_thinking=True)
    late = render([USER, SYSTEM, USER], tools=[WEATHER])
    assert late.index("# Tools") < late.index("Be brief.")
    assert "in °C & <more>" in late


@pytest.mark.slow
def test_greedy_answers_are_word_for_word(
    source: Any, network: Any, tokenizer: Any, one_thread: None
) -> None:
    """At least 90 % of the question list, on a sample; the recipe's README has the whole."""
    chosen = random.Random(20).sample(source.questions, 12)
    prompts = [source._renderer.prompt([{"role": "user", "content": e.ask[0]}]) for e in chosen]
    got = answers(network, tokenizer, prompts)
    right = sum(a == e.answer for a, e in zip(got, chosen, strict=True))
    assert right >= 11, [(e.ask[0], a) for a, e in zip(got, chosen, strict=True) if a != e.answer]


@pytest.mark.slow
def test_it_calls_a_tool(source: Any, network: Any, tokenizer: Any, one_thread: None) -> None:
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    (call,) = answers(network, tokenizer, [source._renderer.prompt([asked], [WEATHER])])
    assert call == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    )


@pytest.mark.slow
def test_it_thinks_only_when_told(
    source: Any, network: Any, tokenizer: Any, one_thread: None
) -> None:
    asked = [{"role": "user", "content": "What is a neuron?"}]
    thinking = source._renderer.prompt(asked, None, True)
    direct = source._renderer.prompt(asked, None, False)
    thought, plain = answers(network, tokenizer, [thinking, direct])
    assert thought.startswith("<think>\n")
    assert thought.endswith(f"</think>\n\n{plain}")


def test_the_question_list_is_long_enough_and_nothing_held_out_is_taught() -> None:
    entries = [
        tomllib.loads((RECIPE / name).read_text(encoding="utf-8"))["qa"]
        for name in ("questions.toml", "smalltalk.toml")
    ]
    assert len(entries[0]) >= 150
    taught = [question for part in entries for entry in part for question in entry["ask"]]
    held = [question for part in entries for entry in part for question in entry["held"]]
    assert len(taught) == len(set(taught))
    assert not set(taught) & set(held)

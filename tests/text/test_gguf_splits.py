"""Where byte-level vocabularies cut text, by the name that GGUF files give it."""

from __future__ import annotations

import pytest
from tokenizers import Regex, pre_tokenizers

from cortex.text.gguf_splits import SPLITS

TEXTS = (
    "Hello world's I'M we'LL  a\n\n b\r\n\tx  ",
    "ABCdef HTTPServer 1234567 ünïcödé ÉCOLE 12,345.67",
    "日本語テキスト 한국어 العربية हिन्दी 😀😀",
    "def f(x):\n    return x**2 // 3 /path/to\n/",
    "",
)


def pieces(name: str, text: str) -> list[str]:
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in SPLITS[name].patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", SPLITS)
def test_every_pattern_is_valid_and_loses_nothing(name: str):
    for text in TEXTS:
        assert "".join(pieces(name, text)) == text


EXPECTED = {
    "gpt-2": ("I'LL pay 1234 €  now\n", ["I", "'", "LL", " pay", " 1234", " €", " ", " now", "\n"]),
    "llama-bpe": (
        "I'LL pay 12345 €  a\n\nb",
        ["I", "'LL", " pay", " ", "123", "45", " €", " ", " a", "\n\n", "b"],
    ),
    "smaug-bpe": ("12345", ["123", "45"]),
    "qwen2": ("I'LL pay 123 x)\n\n", ["I", "'LL", " pay", " ", "1", "2", "3", " x", ")\n\n"]),
    "qwen35": ("हिन्दी 12", ["हिन्दी", " ", "1", "2"]),
    "smollm": ("a 12 b", ["a", " ", "1", "2", " b"]),
    "tekken": (
        "HTTPServer getURL 12 a/\n", ["HTTPServer", " get", "URL", " ", "1", "2", " a", "/\n"]
    ),
    "gpt-4o": ("We'LL getURL 1234 a/\n", ["We'LL", " get", "URL", " ", "123", "4", " a", "/\n"]),
    "deepseek-llm": ("ab 日本12\nc  ", ["ab", " ", "日本", "1", "2", "\n", "c", "  "]),
    "deepseek-coder": ("ab (日本12\n", ["ab", " (", "日本", "1", "2", "\n"]),
    "deepseek-v3": (
        "a.b 日本 12345 (x)\n", ["a", ".b", " ", "日本", " ", "123", "45", " (", "x", ")\n"]
    ),
    "seed-coder": ("x)\n 12", ["x", ")", "\n", " ", "1", "2"]),
    "default": ("a, b 12345!", ["a", ",", " b", " ", "123", "45", "!"]),
    "viking": ("ab 12, c", ["ab", " ", "1", "2", ",", " c"]),
    "poro-chat": ("ab 12, c", ["ab", " 12", ",", " c"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_words_end_where_the_models_were_trained_to(name: str):
    text, wanted = EXPECTED[name]
    assert pieces(name, text) == wanted

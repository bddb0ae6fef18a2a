"""A byte-level BPE tokenizer of its own for cortex/demo, trained on the corpus.

All 256 bytes are in the vocabulary and nothing is normalised, so that any text comes back exactly.
Digits are tokens of their own. Chat markers are control tokens; the markers of thinking and tools
are single tokens that decoding shows, as in Qwen3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# A capitalised word never takes the space before it: a name is the same tokens in a sentence and
# between the quotes of a tool call, so that copying it is copying tokens.
PIECES = r"\p{Lu}\p{L}*| ?[\p{Ll}\p{Lt}\p{Lm}\p{Lo}]\p{L}*|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(corpus: Iterable[str], vocab: int) -> Tokenizer:
    """A tokenizer of exactly *vocab* tokens, the added ones last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(CONTROL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    if tokenizer.get_vocab_size() != vocab:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {vocab}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path, context: int) -> None:
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in CONTROL,
        }
        for token in CONTROL + MARKERS
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

"""A tokenizer.json and a tokenizer_config.json out of a GGUF file's metadata.

Two families are known: byte-level BPE (``gpt2``), whose tokens and merges the file lists, and
SentencePiece BPE (``llama``), whose merges follow from the scores of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from cortex.errors import CheckpointError, UnsupportedModel, clip
from cortex.text.gguf_splits import SPLITS, Split
from cortex.text.vocabulary import METASPACE

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
MAX_TOKENS = 1 << 23
# The kinds of tokens, by their numbers in ``token_type``.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Names of ids in the metadata, and what tokenizer_config.json calls the tokens.
NAMED = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Control tokens that end a turn whatever the ids in the file say: most files name one of several.
TURN_ENDS = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>",
        "<|endoftext|>", "<|end_of_text|>",
    }
)  # fmt: skip


@attrs.frozen
class GgufTokenizer:
    """``document`` is a tokenizer.json, ``config`` a tokenizer_config.json with the templates.

    ``eos_ids`` are all that end a generation, ``size`` how many tokens the model has.
    """

    document: dict[str, Any]
    config: dict[str, Any]
    eos_ids: frozenset[int]
    size: int


def read_tokenizer(
    metadata: Mapping[str, Any], document: dict[str, Any] | None = None
) -> GgufTokenizer:
    """What *metadata* says of text; *document* is a tokenizer.json that stands in for what it says
    of tokens.

    `CheckpointError` where it is wrong, `UnsupportedModel` for a kind of tokenizer, or a way of
    cutting words, that is not known here.
    """
    vocabulary = _Vocabulary.of(metadata)
    config: dict[str, Any] = {
        name: vocabulary.tokens[token]
        for key, name in NAMED.items()
        if (token := vocabulary.id_of(metadata, key)) is not None
    }
    adds_bos = _flag(metadata, "add_bos_token")
    if document is None:
        document, usual = _document(vocabulary, metadata)
        adds_bos = usual if adds_bos is None else adds_bos
    flags = {"add_bos_token": adds_bos, "add_eos_token": _flag(metadata, "add_eos_token")}
    config |= {name: value for name, value in flags.items() if value is not None}
    templates = _templates(metadata)
    if templates:
        config["chat_template"] = templates
    return GgufTokenizer(document, config, vocabulary.ends(metadata), len(vocabulary.tokens))


def _document(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """A tokenizer.json, and whether its kind begins with BOS where the file is silent."""
    model = _text(metadata, "model")
    if model == "gpt2":
        split = _split(metadata)
        document, adds_bos = _byte_level(vocabulary, metadata, split), split.adds_bos
    elif model == "llama":
        document, adds_bos = _sentencepiece(vocabulary, metadata), True
    else:
        raise UnsupportedModel(
            f"tokenizers of kind '{clip(model)}' are not supported; known: gpt2, llama"
        )
    document["added_tokens"] = vocabulary.added()
    return document, adds_bos


@attrs.frozen
class _Vocabulary:
    """Tokens by id, each of another spelling, with their kinds and scores."""

    tokens: Sequence[str]
    kinds: Sequence[int]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Vocabulary:
        tokens = _texts(metadata, "tokens")
        if not 0 < len(tokens) <= MAX_TOKENS:
            raise _bad("tokens", f"has {len(tokens)} entries")
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        if len(set(tokens)) < len(tokens):
            raise _bad("tokens", "has one token twice")
        kinds = _numbers(metadata, "token_type", len(tokens))
        return cls(tokens, kinds or [NORMAL] * len(tokens))

    @property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are matched as they stand, before anything else is."""
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def id_of(self, metadata: Mapping[str, Any], key: str) -> int | None:
        """The token id under *key*; None where there is none."""
        value = metadata.get(PREFIX + key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise _bad(key, f"is {clip(value, 40)}, which is no token")
        return value

    def ends(self, metadata: Mapping[str, Any]) -> frozenset[int]:
        named = {self.id_of(metadata, key) for key in ENDS} - {None}
        turns = {
            i
            for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind == CONTROL and token in TURN_ENDS
        }
        return frozenset(i for i in (*named, *turns) if i is not None)


def _split(metadata: Mapping[str, Any]) -> Split:
    """By ``pre``, which is never guessed: a wrong one makes other tokens, and no error."""
    name = _text(metadata, "pre") if PREFIX + "pre" in metadata else "default"
    if name not in SPLITS:
        raise UnsupportedModel(
            f"words are cut as '{clip(name)}', which is not known here: put the model's"
            f" tokenizer.json beside the file; known: {', '.join(sorted(SPLITS))}"
        )
    return SPLITS[name]


def _byte_level(
    vocabulary: _Vocabulary, metadata: Mapping[str, Any], split: Split
) -> dict[str, Any]:
    merges = []
    for merge in _texts(metadata, "merges"):
        cut = merge.find(" ", 1)
        if not 0 < cut < len(merge) - 1:
            raise _bad("merges", f"has '{clip(merge, 40)}', which is no pair")
        merges.append((merge[:cut], merge[cut + 1 :]))
    words = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in split.patterns
    ]
    spell = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if split.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, spell]},
        "post_processor": None,
        "decoder": spell,
        "model": {
            "type": "BPE",
            "vocab": vocabulary.ids,
            "merges": merges,
            "ignore_merges": split.ignore_merges,
        },
    }


def _sentencepiece(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> dict[str, Any]:
    scores = _numbers(metadata, "scores", len(vocabulary.tokens))
    if not scores:
        raise _bad("scores", "is missing")
    prefixed = _flag(metadata, "add_space_prefix") is not False
    unknown = vocabulary.id_of(metadata, "unknown_token_id")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
    prefix = [{"type": "Prepend", "prepend": METASPACE}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    unspaced = {"type": "Replace", "pattern": {"String": METASPACE}, "content": " "}
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [unspaced, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary.ids,
            "merges": list(_merges(vocabulary, scores)),
        },
    }


def _merges(vocabulary: _Vocabulary, scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Every way in which two tokens make a third, the third with the highest score first.

    SentencePiece merges the neighbours whose union scores highest, which is the same.
    """
    ids = {
        token: i
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == NORMAL
    }
    for token, _ in sorted(ids.items(), key=lambda item: (-scores[item[1]], item[1])):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _templates(metadata: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """The chat template, or several by name: ``tokenizer.chat_template.tool_use`` and so on."""
    found: dict[str, str] = {
        key.removeprefix(TEMPLATE).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}.")
    }
    for name, source in found.items():
        if not isinstance(source, str):
            raise CheckpointError(f"GGUF metadata: the chat template '{clip(name)}' is no string")
    if not found.get("default"):
        return ""
    if len(found) == 1:
        return found["default"]
    return [{"name": name, "template": source} for name, source in found.items()]


def _bad(key: str, what: str) -> CheckpointError:
    return CheckpointError(f"GGUF metadata: {PREFIX}{key} {what}")


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, str):
        raise _bad(key, "is missing" if value is None else "is no string")
    return value


def _flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(PREFIX + key)
    if value is not None and not isinstance(value, bool):
        raise _bad(key, "is neither true nor false")
    return value


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _bad(key, "is missing" if value is None else "is no list of strings")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[Any]:
    """*count* numbers; empty where there are none."""
    value = metadata.get(PREFIX + key)
    if value is None:
        return []
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != count or not all(type(n) in (int, float) for n in numbers):
        raise _bad(key, f"is no list of {count} numbers")
    return numbers

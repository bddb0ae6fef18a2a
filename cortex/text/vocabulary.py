"""What a tokenizer.json says of its tokens: their exact bytes, and which are control tokens.

Pure functions over the parsed file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cortex.errors import CheckpointError, clip

METASPACE = "▁"

# A token written in brackets steers the model even where the checkpoint does not call it special:
# <think>, </tool_call>, <|python_tag|>, <｜tool▁sep｜>, [TOOL_CALLS].
_BRACKETED = re.compile(r"<[^<>\s]+>|\[/?[A-Z][A-Z_]*\]")
# Some vocabularies (Gemma's) hold HTML tags as plain words; a page in a message stays what it is.
_HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|"
    r"code|pre|p|a|ul|ol|li|br|hr|div|span)/?>"
)
_BOUNDARY = frozenset({"<s>", "</s>"})  # <s> is struck-out text in HTML, but a boundary in SPM
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Alphabet(enum.Enum):
    """How token strings stand for bytes."""

    BYTE_LEVEL = "byte level"  # each character stands for one byte (GPT-2's table)
    METASPACE = "metaspace"  # UTF-8 with U+2581 for a space, and <0xNN> for bytes


class FirstSpace(enum.Enum):
    """What decoding does with spaces that the tokenizer itself put before the first word."""

    KEEP = "keep"
    DROP_ONE = "drop one"  # one leading space of the text
    DROP_IN_FIRST = "drop in first"  # every metaspace of the first token


def is_control(content: str, special: bool) -> bool:
    """Say whether an added token steers the model, so that a user's text may not write it."""
    if special or content in _BOUNDARY:
        return True
    return bool(_BRACKETED.fullmatch(content)) and not _HTML.fullmatch(content)


def any_of(words: Iterable[str]) -> str:
    """A regular expression for the longest of *words* at a place; never matches where none are.

    A trie, for vocabularies with thousands of control tokens that begin alike: the time at a place
    is that of one word, not of all of them.
    """
    trie: dict[str, Any] = {}
    for word in filter(None, words):
        node = trie
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branches(trie) if trie else r"(?!)"


def _branches(node: dict[str, Any]) -> str:
    shared = ""
    while len(node) == 1 and (character := next(iter(node))):
        shared, node = shared + re.escape(character), node[character]
    branches = [re.escape(c) + _branches(rest) for c, rest in node.items() if c]
    if not branches:
        return shared
    return f"{shared}(?:{'|'.join(branches)}){'?' if '' in node else ''}"


def alphabet_of(document: Mapping[str, Any]) -> tuple[Alphabet, FirstSpace]:
    """How the tokenizer in *document* decodes. `CheckpointError` for a decoder not known here."""
    steps = list(_decoder_steps(document.get("decoder")))
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return Alphabet.BYTE_LEVEL, FirstSpace.KEEP
    for step in steps:
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            drops = scheme != "never" if scheme else step.get("add_prefix_space", True)
            return Alphabet.METASPACE, FirstSpace.DROP_IN_FIRST if drops else FirstSpace.KEEP
    if "Replace" in kinds or "ByteFallback" in kinds:
        strips = any(step.get("type") == "Strip" and step.get("start") for step in steps)
        return Alphabet.METASPACE, FirstSpace.DROP_ONE if strips else FirstSpace.KEEP
    shown = clip(", ".join(str(kind) for kind in kinds) or "none")
    raise CheckpointError(f"tokenizer.json: this decoder is not supported: {shown}")


def _decoder_steps(decoder: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(decoder, Mapping):
        return
    if decoder.get("type") == "Sequence":
        for step in decoder.get("decoders") or ():
            yield from _decoder_steps(step)
    else:
        yield decoder


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update((chr(0x100 + n), byte) for n, byte in enumerate(others))
    return table


_BYTES = _byte_of_character()


def bytes_of(token: str, alphabet: Alphabet, *, added: bool) -> bytes:
    """The exact bytes that *token* (as the vocabulary spells it) stands for."""
    if alphabet is Alphabet.BYTE_LEVEL:
        if not added:
            try:
                return bytes([_BYTES[character] for character in token])
            except KeyError:
                pass  # not spelled in the byte alphabet: it stands for itself
        return token.encode()
    if not added and (byte := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace(METASPACE, " ").encode()

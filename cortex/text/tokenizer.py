"""A checkpoint's tokenizer (tokenizer.json), with control tokens that text cannot forge."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
import tokenizers

from cortex.errors import BadRequest, CheckpointError, clip
from cortex.text.vocabulary import Alphabet, FirstSpace, alphabet_of, any_of, bytes_of, is_control

# The largest in use (262 k tokens, with merges) has 34 MB.
MAX_FILE = 256 << 20  # bytes
# A Unicode noncharacter, meant for internal use: it stands before a piece of plain text so that the
# piece is encoded as text inside a chat, not as its beginning. Removed from what users write.
GUARD = "\ufdd2"

T = TypeVar("T")


class Tokenizer:
    """Text to token ids and back. Immutable once built; safe to use from several threads."""

    def __init__(self, document: dict[str, Any], config: Mapping[str, Any]) -> None:
        """*document* is tokenizer.json, *config* tokenizer_config.json ({} where there is none)."""
        self.config = config
        self.alphabet: Alphabet
        self.first_space: FirstSpace
        self.alphabet, self.first_space = alphabet_of(document)
        self._hf = _build(_prepared(document))
        added = _guarded(self._hf.get_added_tokens_decoder, CheckpointError)
        self._added = {i: str(token.content) for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.control = {
            text: i for i, text in self._added.items() if is_control(text, i in self.special_ids)
        }
        self.control_ids = frozenset(self.control.values())
        self.control_pattern = re.compile(any_of(self.control))
        # Control tokens that swallow the whitespace beside them.
        self.eats_left = frozenset(str(t.content) for t in added.values() if t.lstrip)
        self.eats_right = frozenset(str(t.content) for t in added.values() if t.rstrip)
        self.vocab_size: int = _guarded(self._hf.get_vocab_size, CheckpointError)
        self.bos_id = self._named("bos_token")
        self.eos_id = self._named("eos_token")
        before, self._after = self._frame()
        self.adds_bos = self._adds_bos(before)
        self._bytes: dict[int, bytes] = {}
        self._plain: tokenizers.Tokenizer | None = None
        self._plain_lock = threading.Lock()

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """The tokenizer in *directory*; `CheckpointError` where it is missing or corrupt."""
        document = read_object(directory / "tokenizer.json")
        if document is None:
            raise CheckpointError("tokenizer.json is missing")
        return cls(document, read_object(directory / "tokenizer_config.json") or {})

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The ids of *text*, with no BOS or EOS added.

        ``special``: control tokens in *text* become control tokens. Otherwise they are encoded as
        the characters they are written with: such ids never come out of it.
        """
        if special or not self.control_pattern.search(text):
            return self._encode(self._hf, text)
        return self._encode_plain(text, continues=False)

    def encode_plain(self, text: str) -> list[int]:
        """The ids of *text* as it stands after other text, control tokens as plain characters."""
        return self._encode_plain(text, continues=True)

    def encode_completion(self, text: str, *, special: bool = True) -> list[int]:
        """A raw prompt: BOS first where the checkpoint wants it and *text* does not bring it."""
        ids = self.encode(text, special=special)
        if self.adds_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_document(self, text: str) -> list[int]:
        """*text* as it is embedded: plain throughout, between what the checkpoint's post-processor
        puts before and after a text (BOS, EOS)."""
        ids = [*self.encode(text, special=False), *self._after]
        if self.adds_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of *ids*; those beyond the vocabulary are nothing."""
        known = [i for i in ids if 0 <= i < 1 << 32]
        decoded: str = _guarded(
            lambda: self._hf.decode(known, skip_special_tokens=skip_special), BadRequest
        )
        return decoded

    def token_bytes(self, token: int) -> bytes:
        """The exact bytes of *token*, control tokens included; empty beyond the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            spelled = self._hf.id_to_token(token) if 0 <= token < 1 << 32 else None
            added = token in self._added
            known = b"" if spelled is None else bytes_of(spelled, self.alphabet, added=added)
            self._bytes[token] = known
        return known

    @property
    def id_limit(self) -> int:
        """One more than the largest id; more than ``vocab_size`` where ids are left out."""
        ids: dict[str, int] = self._hf.get_vocab(with_added_tokens=True)
        return 1 + max(ids.values(), default=-1)

    def token_id(self, token: str) -> int | None:
        """The id of the token spelled *token*, or None."""
        found: int | None = self._hf.token_to_id(token)
        return found

    def is_special(self, token: int) -> bool:
        """Say whether *token* is one that decoding leaves out."""
        return token in self.special_ids

    def eos_ids(
        self, generation_config: Mapping[str, Any] | None, config: Mapping[str, Any] | None
    ) -> frozenset[int]:
        """Every id that ends a generation: generation_config.json's, config.json's, our own."""
        found = set() if self.eos_id is None else {self.eos_id}
        for source in (generation_config, config):
            value = (source or {}).get("eos_token_id")
            found.update(i for i in _as_list(value) if type(i) is int and i >= 0)
        return frozenset(found)

    def special_tokens(self) -> dict[str, Any]:
        """What chat templates know as ``bos_token`` and so on."""
        named: dict[str, Any] = {}
        for key, value in self.config.items():
            if key.endswith("_token") and (content := _content(value)) is not None:
                named[key] = content
        return named

    def _named(self, key: str) -> int | None:
        content = _content(self.config.get(key))
        return None if content is None else self.token_id(content)

    def _adds_bos(self, before: Sequence[int]) -> bool:
        wanted = self.config.get("add_bos_token")
        if isinstance(wanted, bool):
            return wanted
        if self.bos_id is None and len(before) == 1 and before[0] in self.special_ids:
            self.bos_id = before[0]  # a post-processor that names it where the config does not
        return self.bos_id is not None and before[:1] == [self.bos_id]

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the checkpoint's post-processor, or its config, puts before and after a
        text."""
        bare = self._encode(self._hf, "a")
        framed = _guarded(
            lambda: self._hf.encode("a", add_special_tokens=True).ids, CheckpointError
        )
        starts = range(len(framed) - len(bare) + 1)
        start = next((n for n in starts if framed[n : n + len(bare)] == bare), None)
        if start is None:
            return [], []
        after = framed[start + len(bare) :]
        if not after and self.config.get("add_eos_token") is True and self.eos_id is not None:
            after = [self.eos_id]
        return framed[:start], after

    def _encode(self, hf: tokenizers.Tokenizer, text: str) -> list[int]:
        ids: list[int] = _guarded(lambda: hf.encode(text, add_special_tokens=False).ids, BadRequest)
        return ids

    def _encode_plain(self, text: str, *, continues: bool) -> list[int]:
        text = text.replace(GUARD, "")
        ids = self._plain_ids(text, continues=continues)
        if self.control_ids.isdisjoint(ids):
            return ids
        # A vocabulary that spells a control token as an ordinary piece: cut within each of them.
        cuts = [0, *(match.start() + 1 for match in self.control_pattern.finditer(text)), len(text)]
        ids = []
        for begin, end in itertools.pairwise(cuts):
            ids += self._plain_ids(text[begin:end], continues=continues or begin > 0)
        return [i for i in ids if i not in self.control_ids]

    def _plain_ids(self, text: str, *, continues: bool) -> list[int]:
        plain = self._plain_tokenizer()
        return self._encode(plain, GUARD + text)[1:] if continues else self._encode(plain, text)

    def _plain_tokenizer(self) -> tokenizers.Tokenizer:
        """A copy that sees no control token, but `GUARD`. Built when first needed: it is large."""
        with self._plain_lock:
            if self._plain is None:
                document = json.loads(self._hf.to_str())
                for token in document["added_tokens"]:
                    token["special"] = token["content"] in self.control
                plain = _build(document)
                plain.add_tokens([tokenizers.AddedToken(GUARD, special=False, normalized=False)])
                plain.encode_special_tokens = True  # which means: as plain text
                self._plain = plain
            return self._plain


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in *path*, None where there is no such file, else `CheckpointError`."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise CheckpointError(f"{path.name} is larger than {MAX_FILE >> 20} MiB")
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON: {clip(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is not a JSON object")
    return value


def _prepared(document: dict[str, Any]) -> dict[str, Any]:
    """*document* as we want it: nothing cut or padded, control tokens matched letter for letter."""
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError("tokenizer.json: added_tokens is not a list of objects")
    tokens = [
        {**token, "normalized": False}
        if is_control(str(token.get("content", "")), bool(token.get("special")))
        else token
        for token in added
    ]
    return {**document, "truncation": None, "padding": None, "added_tokens": tokens}


def _build(document: dict[str, Any]) -> tokenizers.Tokenizer:
    text = json.dumps(document, ensure_ascii=False)
    return _guarded(lambda: tokenizers.Tokenizer.from_str(text), CheckpointError)


def _guarded(call: Callable[[], T], kind: type[CheckpointError | BadRequest]) -> T:
    """*call*'s result; whatever the native library throws, panics included, is a *kind*."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        # A panic in the library is a BaseException of its own, which would end the process.
        raise kind(f"the tokenizer failed: {clip(error, 200)}") from error


def _content(value: Any) -> str | None:
    """A token in tokenizer_config.json: a string, or an object with ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)

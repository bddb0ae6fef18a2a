"""Grammars for one tokenizer, compiled by llguidance, and what they allow token by token.

A grammar is made of text; which tokens may come is decided by the exact bytes of each. Control
tokens are no text: they come only where a grammar names their ids. Where a grammar leaves but one
continuation, it is spelled as the tokenizer would spell it.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable

import attrs
import llguidance
import numpy as np
import numpy.typing as npt

from cortex.errors import BadRequest, InternalError, clip
from cortex.text.grammar.limits import TOO_COMPLEX, unsupported_keywords
from cortex.text.grammar.source import Part, Source
from cortex.text.tokenizer import Tokenizer

Words = npt.NDArray[np.int32]

KEPT = 32  # compiled grammars: clients ask for the same few again and again
# Of one compilation about a second of a core; of one mask about 20 ms, and 100 MB of lexer states.
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=2000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
# Bytes that occur in UTF-8.
_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}


class _Vocabulary(llguidance.TokenizerWrapper):
    """A tokenizer as llguidance wants it. Called with text, it answers with ids whose bytes are
    exactly that text's, which the library takes for granted; and it never raises."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], eos: int
    ) -> None:
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = tokens
        self.special_token_ids = special
        self.is_tokenizer_wrapper = True
        self._tokenizer = tokenizer
        self._by_bytes: dict[bytes, int] = {}
        self._longest = 0

    def __call__(self, text: str | bytes) -> list[int]:
        wanted = text.encode() if isinstance(text, str) else text
        try:
            ids = self._tokenizer.encode_plain(wanted.decode())
        except (BadRequest, UnicodeDecodeError):
            return self._longest_first(wanted)
        if b"".join(self.tokens[i] for i in ids) == wanted:
            return ids
        return self._longest_first(wanted)  # a normaliser rewrote it

    def _longest_first(self, wanted: bytes) -> list[int]:
        if not self._by_bytes:
            special = frozenset(self.special_token_ids)
            self._by_bytes = {t: i for i, t in enumerate(self.tokens) if t and i not in special}
            self._longest = max(map(len, self._by_bytes))
        ids: list[int] = []
        at = 0
        while at < len(wanted):
            for end in range(min(len(wanted), at + self._longest), at, -1):
                if (found := self._by_bytes.get(wanted[at:end])) is not None:
                    ids.append(found)
                    at = end
                    break
            else:  # cannot be: every byte has a token
                break
        return ids


class Matcher:
    """Where one completion stands in its grammar: an `engine.constraint.Constraint`."""

    def __init__(self, native: llguidance.LLMatcher, size: int, endless: bool) -> None:
        """*size* is that of the vocabulary in tokens; *endless*: the model has no token to end
        with, so that the grammar itself must be seen to end."""
        self._native = native
        self._size = size
        self._endless = endless

    @property
    def ended(self) -> bool:
        return bool(self._native.is_stopped())

    def fill_mask(self, row: Words) -> None:
        words = _mask_of(self._native)
        used = min(len(row), -(-self._size // 32))
        row[:used] = words[:used]
        row[used:] = 0
        if used == self._size // 32 + 1:  # the stand-in for a token to end with lies beyond
            row[used - 1] &= np.int32((1 << self._size % 32) - 1)

    def accept(self, token: int) -> None:
        if not self._native.consume_token(token):
            raise InternalError(
                f"the grammar does not allow token {token}: {_reason(self._native)}"
            )
        if self._endless and not self._native.is_stopped():
            _mask_of(self._native)  # some ends are seen only when nothing is found to follow


@attrs.frozen(eq=False)
class Grammar:
    """A compiled grammar; ``size`` is the tokenizer's number of ids."""

    native: llguidance.LLMatcher
    size: int
    endless: bool

    def matcher(self) -> Matcher:
        """A matcher at the beginning, for one completion."""
        return Matcher(self.native.deep_copy(), self.size, self.endless)


class GrammarCompiler:
    """Compiles grammars for the model with *tokenizer*, whose generations end with *eos_ids*.

    Cheap to make; what it needs of a large vocabulary (half a second of a core) is built when first
    compiled for. Safe to use from several threads.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._vocabulary: tuple[llguidance.LLTokenizer, int, bool] | None = None
        self._kept: collections.OrderedDict[str, Grammar] = collections.OrderedDict()
        self._building = threading.Lock()
        self._keeping = threading.Lock()

    def compile(self, source: Source) -> Grammar:
        """The grammar; blocks for a second at most. `BadRequest` names the field at fault."""
        text = source.text
        with self._keeping:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        native, size, endless = self._native()
        matcher, problem = _compiled(native, text)
        if matcher is None:
            for single in source.alone():
                _, own = _compiled(native, single.text)
                if own:
                    raise _refusal(single.parts[0][1], own)
            raise _refusal(source.parts[-1][1], problem)
        grammar = Grammar(matcher, size, endless)
        with self._keeping:
            self._kept[text] = grammar
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _native(self) -> tuple[llguidance.LLTokenizer, int, bool]:
        """The library's tokenizer, the number of ids, and whether there is no id to end with."""
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = self._build()
            return self._vocabulary

    def _build(self) -> tuple[llguidance.LLTokenizer, int, bool]:
        tokenizer = self._tokenizer
        size = tokenizer.id_limit
        tokens = [tokenizer.token_bytes(i) for i in range(size)]
        ends = sorted(i for i in self._eos_ids if i < size)
        special = sorted(tokenizer.control_ids | tokenizer.special_ids | set(ends))
        single = {t[0] for i, t in enumerate(tokens) if len(t) == 1 and i not in special}
        if not single >= _UTF8:
            raise BadRequest(
                "this model's vocabulary does not spell every text: its output cannot be "
                "constrained",
                code="unsupported_value",
            )
        if not ends:
            tokens.append(b"")
        vocabulary = _Vocabulary(tokenizer, tokens, special, ends[0] if ends else size)
        native = llguidance.LLTokenizer(vocabulary, eos_token=ends or [size])
        return native, size, not ends


def _compiled(
    tokenizer: llguidance.LLTokenizer, text: str
) -> tuple[llguidance.LLMatcher | None, str]:
    """A matcher at the beginning of the grammar, or None and what is wrong with it.

    The first mask belongs to it: some grammars show only then that they allow nothing.
    """
    try:
        matcher = llguidance.LLMatcher(tokenizer, text, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            _mask_of(matcher)
    except InternalError:
        pass  # told below
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library is a BaseException of its own
        return None, f"panic: {clip(error, 200)}"
    return (None, _reason(matcher)) if matcher.is_error() else (matcher, "")


def _mask_of(native: llguidance.LLMatcher) -> Words:
    """The mask of the next token, one bit an id. `InternalError` when there is none."""
    words = np.frombuffer(native.compute_bitmask(), dtype=np.int32)  # without the GIL
    if native.is_error():
        raise InternalError(f"the grammar has failed: {_reason(native)}")
    return words


def _reason(native: llguidance.LLMatcher) -> str:
    """The library's message: its first line, which is what a client can use."""
    lines = str(native.get_error()).splitlines() or [""]
    return clip(lines[0].strip() or "no reason given", 300)


def _refusal(part: Part, problem: str) -> BadRequest:
    """What a client is told of a grammar that does not compile."""
    if "Unimplemented keys" in problem and part.member == "json_schema":
        names = ", ".join(unsupported_keywords(part.body)) or problem
        return BadRequest(
            f"these keywords of JSON Schema cannot be enforced: {names}",
            param=part.param,
            code="unsupported_schema",
        )
    if problem.startswith("panic") or "too large" in problem or "too big" in problem:
        return BadRequest("this is too complex to be enforced", param=part.param, code=TOO_COMPLEX)
    if "NoExtension" in problem:
        problem = "nothing satisfies it"
    schema = part.member == "json_schema"
    return BadRequest(
        f"this {'schema' if schema else 'grammar'} cannot be enforced: {problem}",
        param=part.param,
        code="invalid_schema" if schema else "invalid_grammar",
    )

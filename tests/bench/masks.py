"""What a grammar costs a token: ``python tests/bench/masks.py``. No model, no HTTP.

A synthetic byte-level vocabulary of 150,000 tokens and a schema of an ordinary size. Prints how
long the vocabulary and the schema take to build, and the median, the 95th percentile and the worst
of the masks along random walks.
"""

from __future__ import annotations

import json
import random
import string
import time
from typing import Any

import numpy as np

from cortex.text.grammar import source
from cortex.text.grammar.compiler import GrammarCompiler
from cortex.text.tokenizer import Tokenizer

SIZE = 150_000
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 8},
        "role": {"enum": ["admin", "user", "guest"]},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    },
    "required": ["name", "age", "tags", "role", "zip"],
    "additionalProperties": False,
}


def vocabulary() -> dict[str, Any]:
    """A tokenizer.json: every byte, then words of letters, with and without a space before them,
    numbers and punctuation."""
    from tokenizers import Tokenizer as Native
    from tokenizers import decoders, models, pre_tokenizers

    rng = random.Random(0)
    pieces = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    while len(pieces) < SIZE - 1:
        kind = rng.random()
        if kind < 0.85:
            letters = rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))
            pieces[rng.choice(("", "\u0120")) + "".join(letters)] = None
        elif kind < 0.95:
            pieces["".join(rng.choices('{}[]":,._-', k=rng.randint(2, 5)))] = None
        else:
            pieces["".join(rng.choices(string.digits, k=rng.randint(1, 4)))] = None
    native = Native(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    native.add_special_tokens(["<|end|>"])
    document: dict[str, Any] = json.loads(native.to_str())
    return document


def main() -> None:
    tokenizer = Tokenizer(vocabulary(), {"eos_token": "<|end|>"})
    compiler = GrammarCompiler(tokenizer, [tokenizer.eos_id or 0])
    started = time.perf_counter()
    compiler.compile(source.regex("a", "p"))
    print(f"vocabulary of {tokenizer.id_limit}: {time.perf_counter() - started:.2f} s")
    started = time.perf_counter()
    grammar = compiler.compile(source.json_schema(SCHEMA, "p"))
    print(f"schema: {1e3 * (time.perf_counter() - started):.1f} ms")
    row = np.zeros(-(-tokenizer.id_limit // 32), dtype=np.int32)
    took: list[float] = []
    rng = random.Random(0)
    for _ in range(20):
        matcher = grammar.matcher()
        while not matcher.ended:
            started = time.perf_counter()
            matcher.fill_mask(row)
            took.append(time.perf_counter() - started)
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            matcher.accept(int(rng.choice(allowed)))
    took.sort()
    median, high, worst = (took[int(len(took) * q)] for q in (0.5, 0.95, 0.9999))
    print(
        f"{len(took)} masks: median {1e6 * median:.0f} us, 95 % within {1e6 * high:.0f} us, "
        f"worst {1e3 * worst:.1f} ms"
    )


if __name__ == "__main__":
    main()

"""OpenAI's embedding requests, and vectors as they are told.

``None`` stands for absent and for JSON null alike; unknown fields are ignored.
"""

from __future__ import annotations

import base64
import sys
from array import array
from typing import Any

import attrs

from cortex.wire import limits
from cortex.wire.converter import FieldError
from cortex.wire.openai import Prompt

MAX_INPUTS = 2048
FLOAT, BASE64 = "float", "base64"


@attrs.frozen(kw_only=True)
class EmbeddingRequest:
    """``dimensions`` are how many of a vector's first numbers are wanted, of unit length again."""

    model: str = attrs.field(validator=limits.non_empty)
    input: Prompt
    encoding_format: str | None = attrs.field(default=None, validator=limits.one_of(FLOAT, BASE64))
    dimensions: int | None = attrs.field(default=None, validator=limits.at_least(1))
    user: str | None = None

    def __attrs_post_init__(self) -> None:
        if not self.input:
            raise FieldError("must not be empty", "input", "empty_string")
        if self.several:
            if len(self.input) > MAX_INPUTS:
                raise FieldError(
                    f"at most {MAX_INPUTS} inputs allowed, got {len(self.input)}",
                    "input",
                    "too_long",
                )
            for index, each in enumerate(self.input):
                if not each:
                    raise FieldError("must not be empty", f"input[{index}]", "empty_string")

    @property
    def several(self) -> bool:
        """Whether ``input`` is a list of inputs, and not one of token ids."""
        return isinstance(self.input, tuple) and not isinstance(self.input[0], int)

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """Each input, text or token ids."""
        found: Any = self.input if self.several else (self.input,)
        return tuple(found)


def packed(vector: array[float]) -> str:
    """*vector* (of C floats) as base64 of little-endian fp32."""
    if sys.byteorder != "little":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")


def unpacked(text: str) -> array[float]:
    """What `packed` gave *text* for. ValueError where nothing did."""
    vector = array("f", base64.b64decode(text, validate=True))
    if sys.byteorder != "little":
        vector.byteswap()
    return vector

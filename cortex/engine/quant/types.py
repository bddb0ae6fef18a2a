"""The formats that packed weights have: GGUF's blocks, whatever file they came from. No torch.

A packed weight is rows of blocks: each block holds so many neighbouring inputs of one output in so
many bytes, scales included. Numbers and sizes are those of the GGUF specification (ggml's types).
"""

from __future__ import annotations

import attrs


@attrs.frozen
class QuantType:
    """``bytes`` hold ``block`` weights; ``gguf_id`` is its number in GGUF files, or None."""

    name: str
    gguf_id: int | None
    block: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.bytes / self.block

    def row_bytes(self, inputs: int) -> int:
        """Bytes of a row of *inputs* weights. ValueError unless these are whole blocks."""
        if inputs % self.block:
            raise ValueError(f"{inputs} inputs are not whole {self.name} blocks of {self.block}")
        return inputs // self.block * self.bytes


Q4_0 = QuantType("q4_0", 2, 32, 18)
Q4_1 = QuantType("q4_1", 3, 32, 20)
Q5_0 = QuantType("q5_0", 6, 32, 22)
Q5_1 = QuantType("q5_1", 7, 32, 24)
Q8_0 = QuantType("q8_0", 8, 32, 34)
Q2_K = QuantType("q2_k", 10, 256, 84)
Q3_K = QuantType("q3_k", 11, 256, 110)
Q4_K = QuantType("q4_k", 12, 256, 144)
Q5_K = QuantType("q5_k", 13, 256, 176)
Q6_K = QuantType("q6_k", 14, 256, 210)
IQ4_NL = QuantType("iq4_nl", 20, 32, 18)
IQ4_XS = QuantType("iq4_xs", 23, 256, 136)

# Not one of GGUF's: 128 weights in e4m3, then the fp32 scale that they share. All rows of 128 have
# the scales of the first, so that they are those of blocks of 128 x 128.
FP8 = QuantType("fp8", None, 128, 132)

TYPES = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS)
BY_NAME = {kind.name: kind for kind in TYPES}
BY_GGUF_ID = {kind.gguf_id: kind for kind in TYPES if kind.gguf_id is not None}

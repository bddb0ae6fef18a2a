"""The table of packed formats, against the `gguf` package's."""

from __future__ import annotations

import gguf
import pytest

from cortex.engine.quant.types import BY_GGUF_ID, BY_NAME, Q4_K, TYPES, QuantType


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_sizes_are_those_of_the_specification(kind: QuantType):
    theirs = gguf.GGMLQuantizationType[kind.name.upper()]
    assert kind.gguf_id == theirs.value
    assert (kind.block, kind.bytes) == gguf.GGML_QUANT_SIZES[theirs]


def test_every_format_is_found_by_name_and_by_number():
    assert set(BY_NAME.values()) == set(BY_GGUF_ID.values()) == set(TYPES)
    assert len(BY_NAME) == len(BY_GGUF_ID) == len(TYPES)


def test_a_row_is_whole_blocks():
    assert Q4_K.row_bytes(512) == 288
    assert Q4_K.bits == 4.5
    with pytest.raises(ValueError, match="300 inputs are not whole q4_k blocks of 256"):
        Q4_K.row_bytes(300)

"""GGUF headers: everything the writer of the format's own package writes, and every lie."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from fakes.gguf_files import ARRAY, STRING, array, file, pair, row, text, u32

from cortex.engine.load.gguf_header import (
    MAX_HEADER_BYTES,
    GgufHeader,
    Incomplete,
    parse_header,
)
from cortex.engine.quant.types import TYPES
from cortex.errors import CheckpointError


def parse(data: bytes, size: int | None = None) -> GgufHeader:
    return parse_header(data, len(data) if size is None else size, "m.gguf")


def written(path: Path, fill: object) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_every_type_of_value_is_read(tmp_path: Path):
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint8("u8", 200)
        writer.add_int8("i8", -100)
        writer.add_uint16("u16", 60000)
        writer.add_int16("i16", -30000)
        writer.add_uint32("u32", 4_000_000_000)
        writer.add_int32("i32", -2_000_000_000)
        writer.add_uint64("u64", 1 << 63)
        writer.add_int64("i64", -(1 << 62))
        writer.add_float32("f32", 0.5)
        writer.add_float64("f64", 0.1)
        writer.add_bool("yes", True)
        writer.add_bool("no", False)
        writer.add_string("text", "Grüße ▁ 😀")
        writer.add_array("texts", ["a", "", "ß▁"])
        writer.add_array("ints", [1, -2, 3])
        writer.add_array("floats", [0.5, -1.0])
        writer.add_array("bools", [True, False])
        writer.add_array("bytes", b"\0\xff")
        writer.add_array("nested", [[1, 2], [3]])

    header = parse(written(tmp_path / "a.gguf", fill))
    values = {
        k: list(v) if k in ("ints", "floats", "bytes") else v for k, v in header.metadata.items()
    }
    values["nested"] = [list(part) for part in values["nested"]]
    assert values == {
        "general.architecture": "llama", "u8": 200, "i8": -100, "u16": 60000, "i16": -30000,
        "u32": 4_000_000_000, "i32": -2_000_000_000, "u64": 1 << 63, "i64": -(1 << 62),
        "f32": 0.5, "f64": 0.1, "yes": True, "no": False, "text": "Grüße ▁ 😀",
        "texts": ["a", "", "ß▁"], "ints": [1, -2, 3], "floats": [0.5, -1.0],
        "bools": [True, False], "bytes": [0, 255], "nested": [[1, 2], [3]],
    }  # fmt: skip
    assert values["yes"] is True
    assert header.entries == {}


@pytest.mark.parametrize("alignment", [32, 64, 8])
def test_the_table_says_where_each_tensor_lies(tmp_path: Path, alignment: int):
    rng = np.random.default_rng(0)
    dense = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal(7).astype(np.float16),
        "c": rng.standard_normal((2, 3, 4)).astype(np.float32),
    }
    packed = {
        kind: rng.integers(0, 256, (3, kind.row_bytes(512)), dtype=np.uint8) for kind in TYPES
    }

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        for name, values in dense.items():
            writer.add_tensor(name, values)
        for kind, values in packed.items():
            writer.add_tensor(kind.name, values, raw_dtype=gguf.GGMLQuantizationType(kind.gguf_id))
        bf16 = torch.arange(4.0).bfloat16().view(torch.uint8).numpy()
        writer.add_tensor("z", bf16, raw_dtype=gguf.GGMLQuantizationType.BF16)

    data = written(tmp_path / "a.gguf", fill)
    entries = parse(data).entries
    assert set(entries) == {*dense, *(kind.name for kind in TYPES), "z"}
    for name, values in dense.items():
        entry = entries[name]
        assert entry.shape == values.shape
        assert entry.dtype == {"f": "F32", "e": "F16"}[values.dtype.char]
        assert entry.quant is None
        assert data[entry.begin : entry.begin + entry.size] == values.tobytes()
    for kind, values in packed.items():
        entry = entries[kind.name]
        assert entry.shape == (3, 512)
        assert entry.quant is kind
        assert data[entry.begin : entry.begin + entry.size] == values.tobytes()
    assert entries["z"].dtype == "BF16"
    assert entries["z"].size == 8


def test_version_2_is_read_and_bytes_behind_the_tensors_are_let_be():
    header = parse(file([u32("k", 7)], [row("t", [4])], b"\0" * 16 + b"more", version=2))
    assert header.metadata == {"k": 7}
    assert header.entries["t"].size == 16


def test_a_beginning_that_is_too_short_asks_for_more_and_never_lies():
    whole = file(
        [u32("k", 7), array("tokens", STRING, 3, text("a") + text("bc") + text(""))],
        [row("t", [4, 2]), row("u", [2], offset=32)],
        b"\0" * 40,
    )
    complete = parse(whole)
    needed = complete.data - 31
    for length in range(complete.data + 1):
        try:
            found = parse(whole[:length], len(whole))
        except Incomplete:
            assert length < complete.data
        else:
            assert found == complete
            assert length >= needed
    for length in range(needed):  # and where the file itself ends there, that is told
        with pytest.raises(CheckpointError, match=r"truncated|not a GGUF"):
            parse(whole[:length])


T = row("t", [4])
FOUR = b"\0" * 16

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated at the magic"),
    "another format": (b"PK\3\4" + b"\0" * 40, "not a GGUF"),
    "version 1": (file(version=1), "version 1 is not supported"),
    "version 4": (file(version=4), "version 4 is not supported"),
    "big-endian": (file(version=3 << 24), "big-endian"),
    "tensors beyond reason": (file(tensors=1 << 40), "1099511627776 tensors are over"),
    "keys beyond reason": (file(keys=1 << 63), "keys are over"),
    "keys that are not there": (file(keys=60_000), "a metadata key of 0"),
    "tensors that are not there": (file(tensors=60_000), "a tensor's name of 0"),
    "key without a name": (file([u32("", 1)]), "a metadata key of 0 characters"),
    "key of a kilobyte": (file([u32("k" * 1024, 1)]), "a metadata key of 1024 characters"),
    "key beyond the file": (file([text("k", 1 << 60)]), "truncated at a metadata key"),
    "key twice": (file([u32("k", 1), u32("k", 2)]), "'k' occurs twice"),
    "key not UTF-8": (file([text(b"\xff\xfe") + b"\0" * 8]), "is not UTF-8"),
    "unknown type": (file([pair("k", 13, b"\0" * 16)]), "'k' has the unknown type 13"),
    "string beyond the file": (file([pair("k", STRING, text("", 1 << 63))]), "truncated at 'k'"),
    "string not UTF-8": (file([pair("k", STRING, text(b"\xc3("))]), "'k' is not UTF-8"),
    "bool of 2": (file([pair("k", 7, b"\2")]), "neither true nor false"),
    "bools of 2": (file([array("k", 7, 3, b"\0\1\2")]), "neither true nor false"),
    "strings beyond the file": (file([array("k", STRING, 1 << 20, b"")]), "truncated at 'k'"),
    "strings beyond reason": (file([array("k", STRING, 1 << 60, b"")]), "elements"),
    "one string of them beyond": (
        file([array("k", STRING, 2, text("a") + text("b", 1 << 50))]),
        "truncated at 'k'",
    ),
    "one string of them not UTF-8": (
        file([array("k", STRING, 2, text("a") + text(b"\xff"))]),
        "'k' has a string that is not UTF-8",
    ),
    "numbers beyond the file": (file([array("k", 12, 1 << 25, b"")]), "truncated at 'k'"),
    "array of an unknown type": (file([array("k", 99, 1, b"\0" * 9)]), "unknown type 99"),
    "arrays too deep": (
        file([array("k", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 8)]),
        "too many arrays",
    ),
    "arrays too many": (
        file([array("k", ARRAY, 5000, struct.pack("<IQ", 4, 0) * 5000)]),
        "too many arrays",
    ),
    "alignment 0": (file([u32("general.alignment", 0)]), "alignment is 0"),
    "alignment 24": (file([u32("general.alignment", 24)]), "no power of two"),
    "alignment 2 GiB": (file([u32("general.alignment", 1 << 31)]), "alignment is 2147483648"),
    "alignment a string": (
        file([pair("general.alignment", STRING, text("32"))]),
        "alignment is 32",
    ),
    "tensor without a name": (file([], [row("", [4])], FOUR), "name of 0 characters"),
    "tensor twice": (file([], [T, row("t", [4], offset=32)], FOUR * 3), "'t' occurs twice"),
    "no dimension": (file([], [row("t", [])], FOUR), "0 dimensions"),
    "five dimensions": (file([], [row("t", [1] * 5)], FOUR), "5 dimensions"),
    "a dimension of 0": (file([], [row("t", [4, 0])], FOUR), r"has the shape \[0, 4\]"),
    "dimensions absurd": (file([], [row("t", [1 << 60, 1 << 60])], FOUR), "has the shape"),
    "dimensions beyond the file": (file([], [row("t", [1 << 30])], FOUR), "ends beyond the file"),
    "unknown tensor type": (file([], [row("t", [4], 4)], FOUR), "'t' has the unknown type 4"),
    "a block cut": (file([], [row("t", [33], 8)], b"\0" * 68), "33 is not whole Q8_0 blocks of 32"),
    "no data": (file([], [T]), "truncated"),
    "data cut": (file([], [T], FOUR[:-1]), "'t' ends beyond the file"),
    "offset beyond": (file([], [row("t", [4], offset=1 << 63)], FOUR), "unused bytes before"),
    "a gap": (file([], [T, row("u", [4], offset=64)], FOUR * 8), "unused bytes before tensor 'u'"),
    "overlap": (file([], [row("t", [16]), row("u", [4], offset=32)], FOUR * 4), "overlaps"),
    "both at one place": (file([], [T, row("u", [4])], FOUR * 4), "overlaps"),
    "unaligned": (file([], [T, row("u", [4], offset=16)], FOUR * 4), "overlaps another"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_header_is_told_apart_and_told(case: str):
    data, message = BAD[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        parse(data)
    assert caught.value.message.startswith("m.gguf: ")
    assert len(caught.value.message) < 400


def test_a_header_without_an_end_is_left_at_the_limit():
    endless = file([array("k", 0, MAX_HEADER_BYTES, b"")])
    with pytest.raises(CheckpointError, match="a header of over 64 MiB, at 'k'"):
        parse(endless, 1 << 40)


def test_a_random_byte_anywhere_never_ends_the_process():
    """Flipping bytes of the header: a header, or one of our errors; nothing else."""
    whole = file(
        [u32("n", 7), array("s", STRING, 2, text("a") + text("bc")), array("f", 6, 2, b"\0" * 8)],
        [row("t", [64, 2], 8), row("u", [2], offset=160)],
        b"\0" * 168,
    )
    end = parse(whole).data
    refused = 0
    for spot in range(end):
        for value in (0, 1, 9, 0x7F, 0xFF):
            damaged = bytearray(whole)
            damaged[spot] = value
            try:
                parse(bytes(damaged))
            except CheckpointError:
                refused += 1
    assert refused > 400

"""Which GGUF file of several is meant."""

from __future__ import annotations

import pytest

from cortex.errors import CheckpointError, UnsupportedLoad
from cortex.neuron.gguf_choice import PREFERRED, choose, is_dense, label_of, variants

LABELS = {
    "Qwen3-0.6B-Q4_K_M.gguf": "Q4_K_M",
    "qwen2.5-0.5b-instruct-q4_k_m.gguf": "Q4_K_M",
    "llama-2-7b.Q5_K_S.gguf": "Q5_K_S",
    "Qwen3-8B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "model-IQ4_XS.gguf": "IQ4_XS",
    "model-IQ2_XXS.gguf": "IQ2_XXS",
    "Phi-3-mini-4k-instruct-fp16.gguf": "F16",
    "Llama-3.2-1B-Instruct-f16.gguf": "F16",
    "m-BF16-00001-of-00003.gguf": "BF16",
    "m-Q4_0_4_4.gguf": "Q4_0_4_4",
    "m-Q2_K.gguf": "Q2_K",
    "m-Q8_0.gguf": "Q8_0",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "BF16/m-Q6_K.gguf": "Q6_K",
    "Q8_0/model.gguf": "",
    "model.gguf": "",
    "FASTQ4_Kernel.gguf": "",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_name_says_its_precision(name: str) -> None:
    assert label_of(name) == LABELS[name]


def chosen(names: list[str], quant: str | None = None) -> tuple[str, ...]:
    return choose(variants(names), quant, "o/m").files


def of(*labels: str) -> list[str]:
    return [f"Model-7B-{label}.gguf" for label in labels]


def test_a_quant_is_found_in_any_case() -> None:
    names = of("Q4_K_M", "Q8_0", "IQ4_XS", "UD-Q4_K_XL", "f16")
    for quant, label in (
        ("q4_k_m", "Q4_K_M"),
        ("Q8_0", "Q8_0"),
        ("iq4_xs", "IQ4_XS"),
        ("UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("q4_k_xl", "UD-Q4_K_XL"),
        ("fp16", "f16"),
    ):
        assert chosen(names, quant) == (f"Model-7B-{label}.gguf",)


def test_an_unknown_quant_is_told_what_there_is() -> None:
    with pytest.raises(UnsupportedLoad) as caught:
        chosen(of("Q4_K_M", "Q8_0"), "q4_k_l")
    error = caught.value
    assert error.message == "o/m has no q4_k_l; it has Q4_K_M, Q8_0 (the nearest is Q4_K_M)"
    assert error.param == "quant"
    assert error.extras == {
        "requested": "q4_k_l", "available": ["Q4_K_M", "Q8_0"], "nearest": "Q4_K_M",
    }  # fmt: skip


def test_without_a_quant_the_order_is_kept() -> None:
    left = of(*PREFERRED, "IQ1_S", "IQ2_XXS")
    order = []
    while left:
        (name,) = chosen(left)
        order.append(label_of(name))
        left.remove(name)
    assert order == [*PREFERRED, "IQ1_S", "IQ2_XXS"]


def test_a_single_file_needs_no_name() -> None:
    assert chosen(["anything.gguf"]) == ("anything.gguf",)
    with pytest.raises(UnsupportedLoad, match=r"it has anything\.gguf"):
        chosen(["anything.gguf"], "q8_0")


def test_parts_are_one_model_where_all_are_there() -> None:
    parts = [f"F/m-Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    assert chosen(parts[::-1]) == tuple(parts)
    assert variants(parts[:2]) == []
    assert chosen([*parts, "m-Q8_0.gguf"], "q8_0") == ("m-Q8_0.gguf",)


def test_what_is_beside_models_is_none() -> None:
    assert variants(["mmproj-F16.gguf", "imatrix.gguf", "m.safetensors", "README.md"]) == []


def test_several_models_must_be_told_apart() -> None:
    names = ["a-Q4_K_M.gguf", "b-Q8_0.gguf", "c-Q8_0.gguf"]
    with pytest.raises(CheckpointError, match=r"several models.*: a-Q4_K_M.gguf, b-Q8_0.gguf, c"):
        chosen(names)
    with pytest.raises(CheckpointError, match=r"several models.*: b-Q8_0.gguf, c-Q8_0.gguf"):
        chosen(names, "q8_0")
    assert chosen(names, "q4_k_m") == ("a-Q4_K_M.gguf",)


def test_a_thousand_files_make_a_short_error() -> None:
    names = of(*(f"Q{n % 8}_{n}" for n in range(1000)))
    with pytest.raises(UnsupportedLoad) as caught:
        chosen(names, "none")
    assert len(caught.value.message) < 900
    assert len(caught.value.extras["available"]) == 40


def test_safetensors_are_loaded_unless_a_file_is_meant() -> None:
    found = variants(of("Q8_0"))
    assert is_dense([], None, dense=True)
    assert is_dense([], "q8_0", dense=True)
    assert is_dense([], None, dense=False)
    assert is_dense(found, None, dense=True)
    assert is_dense(found, "q4_k_m", dense=True)
    assert not is_dense(found, "q8_0", dense=True)
    assert not is_dense(found, None, dense=False)
    assert not is_dense(found, "q4_k_m", dense=False)

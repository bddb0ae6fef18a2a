"""From a directory to an estimate and an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import tensors_of, write_checkpoint
from fakes.requests import ask, drain, tokens_of
from safetensors import safe_open
from safetensors.torch import save_file

from cortex.engine.kernels.torch_products import BlockedProduct
from cortex.engine.load import checkpoint, weights
from cortex.engine.load.checkpoint import (
    estimate,
    open_engine,
    read_config,
    read_generation_defaults,
    resolve_dtype,
)
from cortex.engine.load.generation import GenerationDefaults
from cortex.errors import (
    CheckpointError,
    DeviceOutOfMemory,
    LoadCancelled,
    UnsupportedLoad,
    UnsupportedModel,
)

CPU = torch.device("cpu")
FREE = 1 << 32


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_what_is_then_allocated(tmp_path: Path, tied: bool, dtype: str):
    directory = write_checkpoint(tmp_path, tie_word_embeddings=tied)
    told = estimate(directory, dtype=dtype, context=100, free_bytes=FREE, kv_bytes=1 << 20)
    engine = open_engine(directory, device="cpu", dtype=dtype, context=100, kv_bytes=1 << 20)
    assert told.rows["weights"] == engine.weight_bytes
    assert told.rows["kv"] == engine.kv_bytes <= 1 << 20
    assert told.context == engine.max_context == 100
    assert told.trained_context == 256
    assert told.kv_bytes_per_token == 2 * 2 * 2 * 16 * (4 if dtype == "float32" else 2)
    assert told.total == sum(told.rows.values())
    engine.close()


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_once_however_often_a_device_keeps_them(tmp_path: Path, tied: bool):
    directory = write_checkpoint(tmp_path, tie_word_embeddings=tied)
    with safe_open(directory / "model.safetensors", "pt") as file:
        expected = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert estimate(directory, free_bytes=FREE).parameters == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows nothing where there is a GPU")
def test_an_estimate_touches_no_device(tmp_path: Path):
    """It is made while the device's own thread is at work, here for a device that is not there."""
    told = estimate(write_checkpoint(tmp_path), device="cuda:0", context=64, free_bytes=FREE)
    assert told.rows["weights"] > 0
    assert told.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


def test_the_context_is_what_the_cache_holds(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    block = 32 * 512
    told = estimate(directory, dtype="float32", free_bytes=FREE, kv_bytes=5 * block)
    assert told.context == 96
    assert told.rows["kv"] == 5 * block
    wide = estimate(directory, dtype="float32", context=10_000, free_bytes=FREE)
    assert wide.context == 256
    least = estimate(directory, dtype="float32", free_bytes=FREE, kv_bytes=1)
    assert least.context == 32


def test_a_cache_beyond_what_is_free_is_cut_to_fit(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    ample = estimate(directory, dtype="float32", free_bytes=FREE, kv_bytes=1 << 16)
    free = ample.total + (1 << 18)
    cut = estimate(directory, dtype="float32", free_bytes=free, kv_bytes=1 << 30)
    assert ample.total < cut.total <= free
    none = estimate(directory, dtype="float32", free_bytes=1 << 10, kv_bytes=1 << 30)
    assert none.context == 32
    assert none.total > 1 << 10


def test_a_context_below_one_token_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedLoad, match="at least 1"):
        estimate(write_checkpoint(tmp_path), context=0, free_bytes=FREE)


def test_an_unknown_dtype_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedLoad, match="float16"):
        open_engine(write_checkpoint(tmp_path), device="cpu", dtype="float16")


def test_the_dtype_is_the_checkpoints_where_the_device_is_quick_in_it(tmp_path: Path, monkeypatch):
    config = read_config(write_checkpoint(tmp_path, torch_dtype="bfloat16"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_dtype(config, CPU, None) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_dtype(config, CPU, None) == torch.float32
    assert resolve_dtype(config, CPU, "bfloat16") == torch.bfloat16
    assert resolve_dtype(config, torch.device("cuda:0"), None) == torch.bfloat16
    config = read_config(write_checkpoint(tmp_path, torch_dtype="float16"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_dtype(config, CPU, None) == torch.float32


def test_progress_counts_every_byte_of_the_files_that_is_read(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    heard: list[tuple[str, int, int]] = []
    open_engine(
        directory,
        device="cpu",
        dtype="float32",
        progress=lambda *args: heard.append(args),
    ).close()
    read = [(done, total) for stage, done, total in heard if stage == "weights"]
    size = sum(t.nbytes for t in tensors_of(directory).values())
    assert read[0] == (0, size)
    assert read[-1] == (size, size)
    assert [done for done, _ in read] == sorted(done for done, _ in read)
    assert [stage for stage, _, _ in heard][-1] == "kv"


def test_a_load_ends_soon_after_it_is_cancelled_and_the_next_one_works(tmp_path: Path):
    directory = write_checkpoint(tmp_path)
    for polls in range(6):
        left = iter([False] * polls + [True] * 1000)
        seen: list[int] = []
        with pytest.raises(LoadCancelled):
            open_engine(
                directory,
                device="cpu",
                progress=lambda stage, done, total, seen=seen: seen.append(done),
                cancelled=lambda left=left: next(left),
            )
        assert len(seen) <= polls
    engine = open_engine(directory, device="cpu")
    engine.add(ask("r", [1], max_tokens=2))
    assert len(drain(engine)["r"]) == 2


def test_memory_that_does_not_suffice_is_told_before_anything_is_read(tmp_path: Path, monkeypatch):
    directory = write_checkpoint(tmp_path)
    monkeypatch.setattr(checkpoint, "free_bytes_of", lambda device: 1 << 10)
    heard: list[str] = []
    with pytest.raises(DeviceOutOfMemory, match="needed"):
        open_engine(directory, device="cpu", progress=lambda stage, *_: heard.append(stage))
    assert heard == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_during_the_load_is_out_of_memory(
    tmp_path: Path, monkeypatch, error: Exception
):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "KVCache", fail)
    with pytest.raises(DeviceOutOfMemory, match="ran out") as caught:
        open_engine(write_checkpoint(tmp_path), device="cpu")
    assert caught.value.__cause__ is error


def test_another_error_of_torch_is_not_hidden(tmp_path: Path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(checkpoint, "KVCache", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        open_engine(write_checkpoint(tmp_path), device="cpu")


def test_shards_and_other_dtypes_give_the_same_model(tmp_path: Path):
    whole = write_checkpoint(tmp_path / "whole")
    sharded = write_checkpoint(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    tensors = tensors_of(sharded)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        wide = tensor.double() if i % 2 else tensor
        files.setdefault(f"part-{i % 3}.safetensors", {})[name] = wide
    for name, part in files.items():
        save_file(part, sharded / name)
    weight_map = {tensor: name for name, part in files.items() for tensor in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = []
    for directory in (whole, sharded):
        engine = open_engine(directory, device="cpu", dtype="float32")
        engine.add(ask("r", range(20), max_tokens=10))
        found.append(tokens_of(drain(engine)["r"]))
    assert found[0] == found[1]


def test_a_tied_checkpoint_may_repeat_the_head_and_old_buffers(tmp_path: Path):
    directory = write_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = tensors_of(directory)
    tensors["lm_head.weight"] = torch.zeros(97, 32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, directory / "model.safetensors")
    engine = open_engine(directory, device="cpu", dtype="float32")
    engine.add(ask("r", range(20), max_tokens=10))
    assert len(set(tokens_of(drain(engine)["r"]))) > 1


def test_a_weight_is_beside_the_model_only_while_it_is_read(tmp_path: Path, monkeypatch):
    """Weights in blocks let go of the plain ones."""
    directory = write_checkpoint(tmp_path)
    models = []
    load = weights.load_weights

    def kept(model, *args):
        models.append(model)
        return load(model, *args)

    monkeypatch.setattr(checkpoint, "load_weights", kept)
    open_engine(directory, device="cpu", dtype="float32")
    for layer in models[0].layers:
        for linear in layer.linears:
            (product,), (weight,) = linear.products, linear.weights
            blocked = isinstance(product, BlockedProduct)
            assert blocked == (weight.data.numel() == 0)
            assert product.bytes == weight.bytes


def test_defaults_come_from_both_files(tmp_path: Path):
    directory = write_checkpoint(tmp_path, eos_token_id=[2, 3])
    (directory / "generation_config.json").write_text(
        json.dumps(
            {
                "eos_token_id": 5,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
                "do_sample": True,
                "transformers_version": "4.51.0",
            }
        )
    )
    assert read_generation_defaults(directory) == GenerationDefaults(
        eos_ids=frozenset({2, 3, 5}),
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        min_p=None,
        repetition_penalty=None,
        do_sample=True,
    )


def test_without_a_generation_config_nothing_is_assumed(tmp_path: Path):
    found = read_generation_defaults(write_checkpoint(tmp_path, eos_token_id=None))
    assert found == GenerationDefaults(frozenset(), None, None, None, None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"eos_token_id": "2"}',
        '{"eos_token_id": [true]}',
        '{"eos_token_id": -1}',
        '{"temperature": "hot"}',
        '{"top_k": -1}',
        '{"top_p": 7}',
        '{"do_sample": 1}',
    ],
)
def test_a_bad_generation_config_is_told(tmp_path: Path, text: str):
    directory = write_checkpoint(tmp_path)
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        read_generation_defaults(directory)


def test_the_model_type_decides_where_no_architecture_is_named(tmp_path: Path):
    directory = write_checkpoint(tmp_path, architectures=None, model_type="qwen3")
    assert read_config(directory).architecture == "Qwen3ForCausalLM"
    directory = write_checkpoint(tmp_path, architectures=["XForY", "Qwen3ForCausalLM"])
    assert read_config(directory).qk_norm
    bad = write_checkpoint(tmp_path / "bad")
    (bad / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel"):
        read_config(bad)


def test_yarn_stretches_the_trained_context(tmp_path: Path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert read_config(write_checkpoint(tmp_path, rope_scaling=scaling)).trained_context == 1024

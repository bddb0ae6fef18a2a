"""The lifecycle with the real engine on the CPU: the seam between this package and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from fakes.checkpoints import write_checkpoint
from fakes.gguf_models import config_of, weights_of, write_gguf
from fakes.quantized_checkpoints import random_int4, write_quantized
from fakes.real_lifecycle import generate, neuron, request, token_of

from cortex.engine.quant.types import Q4_0, Q8_0
from cortex.errors import CheckpointError, DeviceOutOfMemory, UnsupportedLoad
from cortex.neuron.sources import Sources
from cortex.wire import neuron as wire


class _NoHub:
    async def fetch(self, repository: str, **_: Any) -> Path:
        raise AssertionError(repository)


async def test_two_models_load_serve_side_by_side_and_leave(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2)
    async with neuron(tmp_path) as lifecycle:
        estimate = await lifecycle.estimate(wire.LoadRequest("a"))
        model = await lifecycle.load(wire.LoadRequest("a"))
        await lifecycle.load(wire.LoadRequest("b"))
        assert model.limit == wire.Limit(context=256)
        assert estimate.context == 256
        assert model.architecture == "Qwen3ForCausalLM"
        alone = await generate(lifecycle, "a", "alone")
        results: dict[str, list[int]] = {}

        async def one(model_id: str, name: str) -> None:
            results[name] = await generate(lifecycle, model_id, name)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, "a", f"a{number}")
                nursery.start_soon(one, "b", f"b{number}")
        assert all(results[f"a{number}"] == alone for number in range(4))
        assert all(results[f"b{number}"] == results["b0"] for number in range(4))
        assert results["b0"] != alone
        await lifecycle.unload("a")
        assert [m.id for m in lifecycle.models()] == ["b"]


async def test_a_gguf_file_is_loaded_by_its_quant(tmp_path: Path) -> None:
    config = config_of("llama")
    for kind in (Q4_0, Q8_0):
        weights = weights_of(config, lambda name, kind=kind: kind)
        write_gguf(tmp_path / f"m-{kind.name.upper()}.gguf", config, weights)
    async with neuron(tmp_path, sources=Sources(_NoHub())) as lifecycle:
        source = str(tmp_path)
        estimate = await lifecycle.estimate(wire.LoadRequest("a", source=source, quant="q4_0"))
        model = await lifecycle.load(wire.LoadRequest("a", source=source, quant="q4_0"))
        assert model.quant == "Q4_0"
        assert model.architecture == "LlamaForCausalLM"
        better = await lifecycle.load(wire.LoadRequest("b", source=source))
        assert better.quant == "Q8_0"  # the best that is there
        await lifecycle.load(wire.LoadRequest("b", source=source, quant="q8_0"))
        assert model.vram_used_mb is not None
        assert better.vram_used_mb is not None
        assert model.vram_used_mb < better.vram_used_mb
        with lifecycle.lease("a") as loaded:
            assert loaded.engine.weight_bytes == estimate.rows["weights"]
        assert len(await generate(lifecycle, "a", "r")) == 12
        with pytest.raises(UnsupportedLoad, match="has no q5_k; it has Q4_0, Q8_0"):
            await lifecycle.load(wire.LoadRequest("c", source=source, quant="q5_k"))


async def test_a_dense_checkpoint_is_quantised_at_load(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", hidden_size=256, intermediate_size=512)
    dense = wire.LoadRequest("dense", source="a")
    small = wire.LoadRequest("small", source="a", quant="Q4_K_M")
    async with neuron(tmp_path) as lifecycle:
        estimate = await lifecycle.estimate(small)
        assert estimate.quant == "Q4_K_M"
        assert (await lifecycle.load(dense)).quant is None
        assert (await lifecycle.load(small)).quant == "Q4_K_M"
        with lifecycle.lease("small") as loaded, lifecycle.lease("dense") as plain:
            assert loaded.engine.weight_bytes == estimate.rows["weights"]
            assert loaded.engine.weight_bytes < plain.engine.weight_bytes / 3
        assert len(await generate(lifecycle, "small", "r")) == 12
        for call in (lifecycle.load, lifecycle.estimate):
            with pytest.raises(UnsupportedLoad, match=r"'q4km'.*did you mean q4_k_m") as caught:
                await call(wire.LoadRequest("c", source="a", quant="q4km"))
            assert caught.value.param == "quant"
            with pytest.raises(UnsupportedLoad, match="needs a GPU of compute capability"):
                await call(wire.LoadRequest("c", source="a", quant="fp8"))


async def test_the_format_of_a_checkpoint_that_is_quantised_already_is_shown(
    tmp_path: Path,
) -> None:
    def pack(module: str, shape: tuple[int, int]) -> Any:
        weight = random_int4(*shape, 32, torch.Generator().manual_seed(3))
        return weight.awq(), weight.dense()

    scheme = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    write_quantized(tmp_path, scheme, pack)
    async with neuron(tmp_path) as lifecycle:
        assert (await lifecycle.load(wire.LoadRequest("packed"))).quant == "q4_1"
        assert len(await generate(lifecycle, "packed", "r")) == 12


async def test_a_stream_goes_on_while_another_model_is_loaded(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2, num_hidden_layers=24)
    async with neuron(tmp_path) as lifecycle:
        await lifecycle.load(wire.LoadRequest("a"))
        alone = await generate(lifecycle, "a", "alone", 200)
        during: list[int] = []
        meanwhile = 0
        with lifecycle.lease("a") as loaded:
            async with loaded.engine.stream(request("r", max_tokens=200)) as stream:
                lifecycle.start_load(wire.LoadRequest("b"))
                async for events in stream:
                    during += [token_of(event) for event in events]
                    meanwhile += lifecycle.models()[1].status == wire.LOADING
        assert meanwhile > 2  # tokens came while it was being loaded
        await lifecycle.load(wire.LoadRequest("b"))
        assert during == alone
        assert len(await generate(lifecycle, "b", "r")) == 12


async def test_an_estimate_is_what_is_then_allocated(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    async with neuron(tmp_path) as lifecycle:
        estimate = await lifecycle.estimate(wire.LoadRequest("a"))
        await lifecycle.load(wire.LoadRequest("a"))
        with lifecycle.lease("a") as loaded:
            assert loaded.engine.weight_bytes == estimate.rows["weights"]
            assert loaded.engine.kv_bytes == estimate.rows["kv"]
            assert loaded.trained_context == estimate.trained_context == 256


async def test_a_context_that_is_asked_for_is_the_context(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    async with neuron(tmp_path) as lifecycle:
        model = await lifecycle.load(wire.LoadRequest("a", context=100))
        assert model.limit == wire.Limit(context=100)


async def test_a_load_can_be_cancelled_and_done_again(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    async with neuron(tmp_path) as lifecycle:
        for _ in range(5):
            lifecycle.start_load(wire.LoadRequest("a"))
            await trio.lowlevel.checkpoint()
            await lifecycle.unload("a")
            assert lifecycle.models() == ()
        await lifecycle.load(wire.LoadRequest("a"))
        assert len(await generate(lifecycle, "a", "r")) == 12


async def test_a_broken_checkpoint_fails_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    broken = write_checkpoint(tmp_path / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    async with neuron(tmp_path) as lifecycle:
        await lifecycle.load(wire.LoadRequest("a"))
        with pytest.raises(CheckpointError):
            await lifecycle.load(wire.LoadRequest("broken"))
        assert len(await generate(lifecycle, "a", "r")) == 12


async def test_a_model_too_large_for_the_budget_is_refused_with_numbers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a")
    async with neuron(tmp_path, total=64 * 1024) as lifecycle:
        with pytest.raises(DeviceOutOfMemory) as caught:
            await lifecycle.load(wire.LoadRequest("a"))
        assert caught.value.extras["required_mb"] >= 1
        assert caught.value.extras["free_mb"] == 0

"""From a checkpoint's place to an estimate of its memory, or to an engine.

The place is a directory of safetensors, or a GGUF file (any part of one that is split).
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import torch

from cortex.engine.cache import SPARE_BLOCKS, KVCache, block_size_of, bytes_per_token
from cortex.engine.engine import Engine
from cortex.engine.faults import is_out_of_memory
from cortex.engine.graphs import capture_for
from cortex.engine.kernels.choice import choose
from cortex.engine.load.generation import GenerationDefaults, read_generation_defaults
from cortex.engine.load.gguf_source import GgufSource
from cortex.engine.load.prepare import prepared
from cortex.engine.load.source import Source
from cortex.engine.load.tensors import Tensors, read_directory_config
from cortex.engine.load.weights import Cancelled, Progress, check_names, load_weights
from cortex.engine.memory import Meter
from cortex.engine.models.config import ModelConfig
from cortex.engine.models.decoder import Decoder, Storage
from cortex.engine.runner import Runner
from cortex.engine.static_decode import kept_bytes
from cortex.errors import DeviceOutOfMemory, LoadCancelled, UnsupportedLoad, clip

__all__ = [
    "GenerationDefaults",
    "MemoryEstimate",
    "estimate",
    "open_engine",
    "read_config",
    "read_generation_defaults",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU_BATCH, CPU_BATCH_TOKENS = 16, 256  # a chunk of 256 keeps a step of a small model under 1 s
CUDA_BATCH, CUDA_BATCH_TOKENS = 64, 4096
# Of the memory that the weights leave, where the caller names no budget. A CPU's is shared with
# everything else that runs, and its cache need not hold more than a few full contexts.
CPU_KV_SHARE, CUDA_KV_SHARE = 0.5, 0.9
CPU_KV_CONTEXTS = 4
# What GPU kernels keep from launch to launch: a part of a packed weight, unpacked for many rows (at
# most 128 MiB), and the partial results of attention and of products.
CUDA_SCRATCH = 160 << 20

# Attention copies what a group of sequences sees of one layer next to each other; padding to the
# longest of the group at most doubles it.
GATHERED = 2


def read_config(path: Path) -> ModelConfig:
    """The checked config of the checkpoint at *path*. Raises CheckpointError, UnsupportedModel."""
    if path.is_file():
        with GgufSource(path) as source:
            return source.config
    return read_directory_config(path)


def open_source(path: Path) -> Source:
    """The weights at *path*, for a with statement. Raises as `read_config`."""
    return GgufSource(path) if path.is_file() else Tensors(path)


@attrs.frozen
class MemoryEstimate:
    """Bytes by ledger row (weights, kv, workspace, and graphs where steps are captured), and the
    context they allow.

    ``context`` is servable, ``trained_context`` what the model was made for, in tokens.
    ``parameters`` are the checkpoint's: what is kept twice on a device counts once. ``quant`` is
    the format that most of them are kept in; None is the compute dtype.
    """

    rows: Mapping[str, int]
    context: int
    trained_context: int
    kv_bytes_per_token: int
    parameters: int
    quant: str | None

    @property
    def total(self) -> int:
        return sum(self.rows.values())


@attrs.frozen
class _Shape:
    """What `estimate` and `open_engine` decide alike, before anything is allocated."""

    model: Decoder
    weights: int
    workspace: int
    graphs: int  # captured programs; 0 where there are none
    blocks: int
    context: int
    max_batch: int
    max_batch_tokens: int

    @property
    def token_bytes(self) -> int:
        return bytes_per_token(self.model.config, self.model.dtype)

    @property
    def kv(self) -> int:
        block = block_size_of(self.model.device)
        return (self.blocks + SPARE_BLOCKS) * block * self.token_bytes

    @property
    def rows(self) -> dict[str, int]:
        rows = {"weights": self.weights, "kv": self.kv, "workspace": self.workspace}
        return {**rows, "graphs": self.graphs} if self.graphs else rows


def estimate(
    path: Path,
    *,
    dtype: str | None = None,
    quant: str | None = None,
    context: int | None = None,
    free_bytes: int,
    device: str = "cpu",
    kv_bytes: int | None = None,
    max_batch: int | None = None,
    max_batch_tokens: int | None = None,
) -> MemoryEstimate:
    """What `open_engine` would take with *free_bytes* on the device, from headers alone.

    *kv_bytes* is a bound: what does not fit is left out, down to a context of one block. Where not
    even that fits, ``total`` is above *free_bytes*. *quant*: see `prepare.prepared`.
    """
    target = torch.device(device)
    with open_source(path) as source:
        config = source.config
        source = prepared(source, resolve_dtype(config, target, dtype), quant, target)
        shape = _shape(
            config,
            source.storage,
            target,
            dtype,
            context,
            kv_bytes,
            free_bytes,
            max_batch,
            max_batch_tokens,
        )
        check_names(shape.model, source)
        parameters = source.elements
    return MemoryEstimate(
        rows=shape.rows,
        context=shape.context,
        trained_context=config.trained_context,
        kv_bytes_per_token=shape.token_bytes,
        parameters=parameters,
        quant=_most(shape.model),
    )


def open_engine(
    path: Path,
    *,
    device: str,
    dtype: str | None = None,
    quant: str | None = None,
    context: int | None = None,
    kv_bytes: int | None = None,
    max_batch: int | None = None,
    max_batch_tokens: int | None = None,
    overlap: bool | None = None,
    progress: Progress = lambda stage, done, total: None,
    cancelled: Cancelled = lambda: False,
    queue_seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    """Load the checkpoint at *path* and make it ready to serve.

    *dtype* None is the checkpoint's own where the device computes well in it; *quant* None keeps
    the weights as they come (see `prepare.prepared`); *context* None is the trained length;
    *kv_bytes* None a share of what is free, else a bound; *overlap* (see `Engine`) None where the
    device works by itself; *queue_seconds* are the engine's. *progress* hears stage, bytes done,
    bytes in all. Raises CheckpointError, UnsupportedModel, UnsupportedLoad, DeviceOutOfMemory, and
    LoadCancelled soon after *cancelled* turned true; nothing stays allocated then.
    """
    target = torch.device(device)
    with open_source(path) as source:
        config = source.config
        source = prepared(source, resolve_dtype(config, target, dtype), quant, target)
        if cancelled():
            raise LoadCancelled
        try:
            free = free_bytes_of(target)
            shape = _shape(
                config,
                source.storage,
                target,
                dtype,
                context,
                kv_bytes,
                free,
                max_batch,
                max_batch_tokens,
            )
            needed = sum(shape.rows.values())
            if needed > free:
                raise DeviceOutOfMemory(f"{needed >> 20} MiB needed, {free >> 20} MiB free")
            loaded = _load(shape, source, progress, cancelled)
        except (RuntimeError, MemoryError, OSError) as error:
            if is_out_of_memory(error):
                raise DeviceOutOfMemory("the device ran out of memory during the load") from error
            raise
    return Engine(
        loaded.runner,
        max_batch=shape.max_batch,
        max_batch_tokens=shape.max_batch_tokens,
        max_context=shape.context,
        weight_bytes=loaded.weights,
        measured_weights=loaded.measured,
        graph_bytes=loaded.graphs,
        overlap=target.type == "cuda" if overlap is None else overlap,
        queue_seconds=queue_seconds,
        clock=clock,
    )


@attrs.frozen
class _Loaded:
    """What is on the device; bytes of the weights as counted and as measured, and of graphs."""

    runner: Runner
    weights: int
    measured: int | None
    graphs: int


def _load(shape: _Shape, source: Source, progress: Progress, cancelled: Cancelled) -> _Loaded:
    """Weights, cache and captured programs of *shape*, one after the other."""
    model = shape.model
    meter = Meter(model.device)
    weights = load_weights(model, source, progress, cancelled)
    measured = meter.growth()
    progress("kv", 0, shape.kv)
    cache = KVCache(
        model.config,
        blocks=shape.blocks,
        block_size=block_size_of(model.device),
        dtype=model.dtype,
        device=model.device,
    )
    progress("kv", shape.kv, shape.kv)
    runner = Runner(
        model,
        cache,
        max_batch=shape.max_batch,
        max_context=shape.context,
        capture=capture_for(model.device, model.ops),
    )
    graphs = 0
    if runner.captures:
        meter = Meter(model.device)
        runner.prepare(progress, cancelled)
        graphs = meter.growth() or 0
    return _Loaded(runner, weights, measured, graphs)


def free_bytes_of(device: torch.device) -> int:
    """Bytes that can be allocated on *device* now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resolve_dtype(config: ModelConfig, device: torch.device, asked: str | None) -> torch.dtype:
    """The dtype to compute in. UnsupportedLoad for one that is not known."""
    if asked is not None:
        if asked not in DTYPES:
            raise UnsupportedLoad(
                f"dtype '{clip(asked)}' is not supported; known: {', '.join(DTYPES)}"
            )
        return DTYPES[asked]
    if device.type == "cuda":
        return torch.bfloat16
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if config.dtype == "bfloat16" and quick else torch.float32


def _workspace(config: ModelConfig, dtype: torch.dtype, batch: int, tokens: int) -> int:
    """Bytes of activations and logits at the peak of a step, counted generously.

    Two residual streams, the widest of attention and MLP, and the sampler's copies of the logits:
    fp32 ones for each of the batch, and an fp64 sum.
    """
    wide = max(
        2 * (config.heads + 2 * config.kv_heads) * config.head_dim, 3 * config.intermediate_size
    )
    activations = tokens * (4 * config.hidden_size + 2 * wide) * max(dtype.itemsize, 4)
    return activations + batch * config.vocab_size * (3 * 4 + 8)


def _most(model: Decoder) -> str | None:
    """The name of the format that most of the weights are kept in."""
    counts: Counter[str | None] = Counter()
    for parameter in model.parameters():
        kind = None if parameter.quant is None else parameter.quant.name
        counts[kind] += math.prod(parameter.shape)
    return counts.most_common(1)[0][0]


def _shape(
    config: ModelConfig,
    storage: Storage,
    device: torch.device,
    dtype: str | None,
    context: int | None,
    kv_bytes: int | None,
    free: int,
    max_batch: int | None,
    max_batch_tokens: int | None,
) -> _Shape:
    """Decide on everything, from the config alone; the model is on the meta device."""
    if context is not None and context < 1:
        raise UnsupportedLoad("the context must be at least 1 token")
    on_cuda = device.type == "cuda"
    batch = max_batch or (CUDA_BATCH if on_cuda else CPU_BATCH)
    budget = max_batch_tokens or (CUDA_BATCH_TOKENS if on_cuda else CPU_BATCH_TOKENS)
    budget = max(batch, budget)
    model = Decoder(config, resolve_dtype(config, device, dtype), device, choose(device), storage)
    weights = model.bytes
    workspace = _workspace(config, model.dtype, batch, budget)
    if on_cuda:
        workspace += CUDA_SCRATCH
    block = block_size_of(device)
    block_bytes = block * bytes_per_token(config, model.dtype)
    wanted = min(context or config.trained_context, config.trained_context)
    graphs = 0
    if capture_for(device, model.ops) is not None:
        graphs = _workspace(config, model.dtype, batch, batch)
        graphs += kept_bytes(batch, -(-wanted // block), config.vocab_size)
    fits = int((free - weights - workspace - graphs) / (1 + GATHERED / config.layers))
    if kv_bytes is None:
        share = CUDA_KV_SHARE if on_cuda else CPU_KV_SHARE
        contexts = batch if on_cuda else min(batch, CPU_KV_CONTEXTS)
        kv_bytes = min(
            int(fits * share), (contexts * -(-wanted // block) + SPARE_BLOCKS) * block_bytes
        )
    kv_bytes = min(kv_bytes, fits)
    blocks = max(kv_bytes // block_bytes - SPARE_BLOCKS, 1)
    workspace += GATHERED * blocks * block_bytes // config.layers
    return _Shape(
        model=model,
        weights=weights,
        workspace=workspace,
        graphs=graphs,
        blocks=blocks,
        context=min(wanted, blocks * block),
        max_batch=batch,
        max_batch_tokens=budget,
    )

"""Plain weights to packed ones: the bytes that a GGUF file would hold, or FP8."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from cortex.engine.quant import fp8, nearest, search, types
from cortex.engine.quant.types import QuantType

# Weights at a time in a thread. The K formats need some forty bytes for each in between; what is
# more than a core's cache holds is slower.
CPU_CHUNK = 1 << 16
CUDA_CHUNK = 1 << 22

_ENCODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    types.Q8_0.name: nearest.q8_0,
    types.Q4_0.name: nearest.q4_0,
    types.Q4_1.name: nearest.q4_1,
    types.Q5_0.name: nearest.q5_0,
    types.Q5_1.name: nearest.q5_1,
    types.Q4_K.name: search.q4_k,
    types.Q5_K.name: search.q5_k,
    types.Q6_K.name: search.q6_k,
}

QUANTIZABLE = tuple(types.BY_NAME[name] for name in _ENCODERS)


def quantize(weight: torch.Tensor, kind: QuantType, *, threads: int = 1) -> torch.Tensor:
    """*weight* ``(rows, inputs)`` of any float dtype as uint8 ``(rows, row bytes)``, on its device.

    Computed in fp32 by *threads* (on a CPU), each with a bounded scratch; how many there are does
    not change a byte. ValueError for weights that are not finite, or whose scales are beyond fp16,
    and unless rows are whole blocks.
    """
    if kind == types.FP8:
        return fp8.quantize(weight)
    rows, inputs = weight.shape
    packed = torch.empty(rows, kind.row_bytes(inputs), dtype=torch.uint8, device=weight.device)
    blocks, octets = weight.reshape(-1, kind.block), packed.view(-1, kind.bytes)
    encode = _ENCODERS[kind.name]
    on_cpu = weight.device.type == "cpu"
    step = (CPU_CHUNK if on_cpu else CUDA_CHUNK) // kind.block

    def chunk(at: int) -> None:
        values = blocks[at : at + step].float()
        if not bool(torch.isfinite(values.sum())):
            raise ValueError("weights are not finite")
        octets[at : at + step] = encode(values)

    starts = range(0, len(blocks), step)
    if threads == 1 or not on_cpu or len(starts) < 2:
        for at in starts:
            chunk(at)
        return packed
    own = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(chunk, starts):
                pass
    finally:
        # A thread that is not told otherwise takes the number that was set last, in any thread.
        torch.set_num_threads(own)
    return packed

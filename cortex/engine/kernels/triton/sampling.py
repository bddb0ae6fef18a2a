"""Drawing from logits without sorting them, several programs a row.

A cut keeps the logits from a threshold on, and that is found digit by digit: floats, as integers of
the same order, have eight digits of four bits, and each round sums what lies at every value of the
next digit. Sums are made in a fixed order, so what a row draws depends on nothing beside it. What
is drawn is what `cortex.engine.kernels.torch_draw` draws from the same numbers, up to rounding.
"""

from __future__ import annotations

import torch
import triton

from cortex.engine.kernels.ops import DrawParams
from cortex.engine.kernels.triton.sampling_kernels import ROUNDS, pick, scan, search, weigh
from cortex.engine.kernels.triton.scratch import Scratch

CHUNK = 4096  # logits of a program


class TritonSampler:
    """Launches them. Which cuts are made at all is the host's to say; how deep, the tensors'."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch

    def draw(
        self,
        logits: torch.Tensor,
        params: DrawParams,
        *,
        bitmask: torch.Tensor | None = None,
        warm: bool = True,
        cut_k: bool = True,
        cut_p: bool = True,
    ) -> torch.Tensor:
        """One token a row of ``(rows, vocabulary)`` logits, contiguous: ``(rows,)`` int64.

        A bit of *bitmask* ``(rows, vocabulary / 32 rounded up)`` int32 that is 0 forbids its
        token, lowest bit first. *warm*, *cut_k* and *cut_p* may be False where no row is drawn, or
        cut, in that way.
        """
        rows, size = logits.shape
        splits = triton.cdiv(size, CHUNK)
        padded = triton.next_power_of_2(splits)
        words = triton.cdiv(size, 32)
        take = self._scratch.take
        temperatures = params.temperature
        mask = temperatures if bitmask is None else bitmask
        bests = take("bests", (rows, splits), torch.float32)
        places = take("places", (rows, splits), torch.int32)
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        searches = [self._search_memory(name, rows, splits) for name in ("count", "mass")]
        chunked = {"MASK": bitmask is not None, "SPLITS": splits, "SIZE": CHUNK, "num_warps": 8}
        given = (logits, mask, temperatures)
        grid = (rows, splits)
        scan[grid](*given, bests, places, size, words, **chunked)
        floors = take("floors", (rows,), torch.int32)
        weights = take("weights", (rows, splits), torch.float32)
        chunked["PADDED"] = padded
        if warm:
            memory = (*searches[0], *searches[1])
            for mass in (False, True):
                if not (cut_p if mass else cut_k):
                    continue
                for number in range(ROUNDS):
                    search[grid](
                        *given,
                        params.top_k,
                        params.top_p,
                        bests,
                        *memory,
                        rows,
                        size,
                        words,
                        MASS=mass,
                        AFTER_COUNT=cut_k,
                        ROUND=number,
                        **chunked,
                    )
            cuts = {"COUNT": cut_k, "MASS": cut_p}
            weigh[grid](
                *given,
                params.top_k,
                params.top_p,
                params.min_p,
                bests,
                *memory,
                floors,
                weights,
                rows,
                size,
                words,
                **cuts,
                **chunked,
            )
        pick[(rows,)](
            *given,
            params.uniform,
            bests,
            places,
            floors,
            weights,
            tokens,
            size,
            words,
            WARM=warm,
            **chunked,
        )
        return tokens

    def _search_memory(
        self, name: str, rows: int, splits: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sums by digit of the last two rounds, and the state after each round."""
        return (
            self._scratch.take(f"{name} parts", (2, rows, splits, 16), torch.float32),
            self._scratch.take(f"{name} prefixes", (ROUNDS, rows), torch.int32),
            self._scratch.take(f"{name} sums", (ROUNDS, rows, 2), torch.float64),
        )

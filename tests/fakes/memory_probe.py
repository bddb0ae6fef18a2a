"""What loading takes of this process, seen from outside the engine. Run as a module.

    python -m fakes.memory_probe DTYPE WARM_UP CHECKPOINT...

Loads, uses and closes each checkpoint after the other on the CPU, and prints a line of JSON for
each: bytes estimated, counted by the engine, measured by it, and by which the private memory of
this process was larger with the model loaded, after a step, and after it was closed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from fakes.requests import ask, drain

from cortex.engine.load import checkpoint
from cortex.engine.memory import give_back, trim_heap

KV_BYTES = 64 << 20  # in pages that nobody touches, but for what a request needs


def private() -> int:
    """Bytes of anonymous memory in RAM, the heap's free pages included."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise LookupError("smaps_rollup has no line Anonymous")


def probe(directory: Path, dtype: str) -> dict[str, int]:
    estimated = checkpoint.estimate(directory, dtype=dtype, free_bytes=8 << 30)
    trim_heap()
    before = private()
    engine = checkpoint.open_engine(directory, device="cpu", dtype=dtype, kv_bytes=KV_BYTES)
    trim_heap()
    loaded = private() - before
    counted, measured = engine.weight_bytes, engine.measured_weights
    engine.add(ask("r", [1, 2, 3]))
    drain(engine)
    trim_heap()
    used = private() - before
    engine.close()
    del engine
    give_back()
    return {
        "estimated": estimated.rows["weights"],
        "counted": counted,
        "measured": measured or 0,
        "loaded": loaded,
        "used": used,
        "closed": private() - before,
    }


def main(dtype: str, warm_up: str, *directories: str) -> None:
    torch.set_num_threads(1)
    probe(Path(warm_up), dtype)
    for directory in directories:
        print(json.dumps(probe(Path(directory), dtype)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

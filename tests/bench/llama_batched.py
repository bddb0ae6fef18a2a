"""llama.cpp's own batched decoding, by its C API; run by `peers.py` in llama.cpp's environment.

``python llama_batched.py MODEL THREADS PROMPT TOKENS REPEATS STREAMS...`` prints a line for each
number of streams: streams, tokens a second of all, median seconds to the first token, and between
tokens the median and the 99th percentile.
"""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp as api
import numpy as np


def add(batch, token: int, position: int, sequence: int, wants: bool) -> None:
    at = batch.n_tokens
    batch.token[at] = token
    batch.pos[at] = position
    batch.n_seq_id[at] = 1
    batch.seq_id[at][0] = sequence
    batch.logits[at] = wants
    batch.n_tokens += 1


def run(context, vocab_size: int, streams: int, prompt: int, tokens: int) -> tuple[float, ...]:
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(max(prompt, streams), 0, 1)
    started = time.perf_counter()
    firsts: list[float] = []
    following: list[int] = []
    for sequence in range(streams):
        batch.n_tokens = 0
        for position in range(prompt):
            add(batch, (sequence * 31 + position) % 256, position, sequence, position == prompt - 1)
        assert api.llama_decode(context, batch) == 0
        following.append(best(context, prompt - 1, vocab_size))
        firsts.append(time.perf_counter() - started)
    gaps: list[float] = []
    last = time.perf_counter()
    for step in range(tokens - 1):
        batch.n_tokens = 0
        for sequence, token in enumerate(following):
            add(batch, token, prompt + step, sequence, True)
        assert api.llama_decode(context, batch) == 0
        following = [best(context, row, vocab_size) for row in range(streams)]
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    seconds = time.perf_counter() - started
    api.llama_batch_free(batch)
    gaps.sort()
    middle, late = gaps[len(gaps) // 2], gaps[min(len(gaps) - 1, int(len(gaps) * 0.99))]
    return streams * tokens / seconds, sorted(firsts)[len(firsts) // 2], middle, late


def best(context, row: int, vocab_size: int) -> int:
    logits = api.llama_get_logits_ith(context, row)
    return int(np.ctypeslib.as_array(logits, shape=(vocab_size,)).argmax())


def main() -> None:
    path, (threads, prompt, tokens, repeats, *streams) = sys.argv[1], map(int, sys.argv[2:])
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    settings = api.llama_context_default_params()
    settings.n_ctx = max(streams) * (prompt + tokens + 32)
    settings.n_seq_max = max(streams)
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = threads
    settings.kv_unified = True
    context = api.llama_init_from_model(model, settings)
    vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    run(context, vocab_size, 1, prompt, 4)
    for count in streams:
        found = max(run(context, vocab_size, count, prompt, tokens) for _ in range(repeats))
        print(count, *found)


if __name__ == "__main__":
    main()

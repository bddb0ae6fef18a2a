"""Tokens in, tokens out: continuous batching over a paged KV cache.

Owns requests, blocks, the scheduler, batches, the forward pass, sampling and the loading of
checkpoints. Knows no text, no HTTP and no trio; an `Engine` belongs to one thread.
"""

"""Kernels for NVIDIA GPUs, written in Triton. Owns their launches, scratch memory and tuning.

Every kernel can be captured into a CUDA graph: no launch waits for the device, and no grid or
allocation depends on what is in its memory. Nothing newer than Triton 3.4 is used.
"""

"""Engines with random weights, for measuring: no file is read."""

from __future__ import annotations

import torch

from cortex.engine.models.decoder import Decoder

STD = 0.02  # of every matrix; norms are ones


@torch.inference_mode()
def fill_randomly(model: Decoder, seed: int = 0) -> None:
    """Give every dense parameter of *model* values on its device, and lay them out."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for lot, finish in model.units():
        for parameter in lot:
            data = torch.empty(
                parameter.stored_shape, dtype=parameter.stored_dtype, device=model.device
            )
            if len(parameter.shape) == 1:
                data.fill_(1.0)
            else:
                data.normal_(std=STD, generator=generator)
            parameter.data = data
        finish()

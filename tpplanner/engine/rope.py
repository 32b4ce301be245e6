"""Rotary position embedding."""

import math

import torch
from torch import Tensor

from tpplanner.engine.model_config import EngineModel, RopeScaling


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    # Llama 3: long waves are stretched, short ones kept, those between mixed.
    wavelength = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((scaling.original_context_tok / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - smooth) * frequencies / scaling.factor + smooth * frequencies


def cos_sin_table(model: EngineModel, num_positions: int, device: torch.device) -> Tensor:
    """Cosines and sines for every position, [position, 2, D / 2], in 32 bits."""
    half = torch.arange(0, model.head_dim, 2, dtype=torch.float32, device=device) / model.head_dim
    frequencies = 1.0 / model.rope_theta**half
    if model.rope_scaling is not None:
        frequencies = _stretched(frequencies, model.rope_scaling)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32, device=device), frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotate(x_NHD: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the two halves of each head by the angles of its token; ``cos_sin`` is [N, 2, D / 2]."""
    first, second = x_NHD.float().chunk(2, dim=-1)
    cos, sin = cos_sin[:, :1], cos_sin[:, 1:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_NHD.dtype)

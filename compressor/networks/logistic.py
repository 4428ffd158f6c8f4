"""Probabilities of rounded values, by the logistic distribution."""

import torch
from torch import Tensor


def unit_interval(centre: Tensor, width: Tensor) -> Tensor:
    """Mass that a logistic around 0, of ``width`` (its parameter s), puts on the unit interval around ``centre``."""
    distance = centre.abs()
    # The difference of two sigmoids, taken in the tail where both are small and nothing cancels.
    return torch.sigmoid((0.5 - distance) / width) - torch.sigmoid((-0.5 - distance) / width)


def bits(probability: Tensor) -> Tensor:
    """Information content; a probability is never taken for less than 1e-9."""
    return -torch.log2(probability.clamp_min(1e-9))

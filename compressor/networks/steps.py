"""The order in which latents are coded: four steps, each of which knows the ones before it.

A step codes a quarter of the channels at each of four phases of a grid of 2x2 positions (Li et al., DCVC-DC, 2023).
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 4
_PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))  # diagonal first: after two steps a checkerboard is known


def step_of_each(shape: Sequence[int], device: torch.device, steps: int = STEPS) -> Tensor:
    """Step that codes each latent, int64 of ``shape`` (C, H, W), with any sides; the first where it is the only one."""
    if steps == 1:
        return torch.zeros(*shape, dtype=torch.long, device=device)
    channels, height, width = shape
    phase = torch.zeros(height, width, dtype=torch.long, device=device)
    for index, (row, column) in enumerate(_PHASES):
        phase[row::2, column::2] = index
    group = torch.arange(channels, device=device) * STEPS // channels
    return phase[None] ^ group[:, None, None]


def step_masks(shape: Sequence[int], device: torch.device, steps: int = STEPS) -> Tensor:
    """Which latents each step codes, bool (steps, C, H, W); see :func:`step_of_each`."""
    return step_of_each(shape, device, steps) == torch.arange(steps, device=device)[:, None, None, None]


def of_step(x_BCHW: Tensor, step: int) -> Tensor:
    """A step's latents alone, (B, C, H/2, W/2): sides are even, and C is a multiple of four."""
    batch, channels, height, width = x_BCHW.shape
    chosen = _blocks(x_BCHW).index_select(1, _places(height, width, step, x_BCHW.device))
    return chosen.view(batch, height // 2, width // 2, channels).permute(0, 3, 1, 2)


def with_step(x_BCHW: Tensor, part_BChw: Tensor, step: int) -> Tensor:
    """``x_BCHW`` with the latents of a step replaced by ``part_BChw``, in the order of :func:`of_step`."""
    batch, channels, height, width = x_BCHW.shape
    places = _places(height, width, step, x_BCHW.device)
    part = part_BChw.permute(0, 2, 3, 1).reshape(batch, len(places), -1)
    whole = _blocks(x_BCHW).index_copy(1, places, part)
    return whole.view(batch, height, width, channels).permute(0, 3, 1, 2)


def beside_step(x_BCHW: Tensor, step: int) -> Tensor:
    """Features where the latents of a step lie, one quarter beside another: (B, 4 * C, H/2, W/2).

    A 1x1 convolution in four groups makes these latents of them.
    """
    batch, channels, height, width = x_BCHW.shape
    positions = torch.div(_places(height, width, step, x_BCHW.device), STEPS, rounding_mode="floor")
    chosen = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height * width, channels).index_select(1, positions)
    return chosen.view(batch, height // 2, width // 2, STEPS * channels).permute(0, 3, 1, 2)


def _blocks(x_BCHW: Tensor) -> Tensor:
    """Quarters of the channels of each position, (B, H * W * 4, C/4): each lies together in channels-last memory."""
    return x_BCHW.permute(0, 2, 3, 1).reshape(len(x_BCHW), -1, x_BCHW.shape[1] // STEPS)


@lru_cache(maxsize=256)  # of 64 sizes; a recorded step reads them for as long as its training takes
def _places(height: int, width: int, step: int, device: torch.device) -> Tensor:
    """Which of :func:`_blocks` a step codes: position times four plus quarter, by row, column and quarter."""
    with torch.inference_mode(False):  # a tensor made in that mode could not be used in training
        phases = torch.tensor([_PHASES[step ^ quarter] for quarter in range(STEPS)], device=device)
        rows = torch.arange(0, height, 2, device=device)[:, None, None] + phases[:, 0]
        columns = torch.arange(0, width, 2, device=device)[None, :, None] + phases[:, 1]
        return ((rows * width + columns) * STEPS + torch.arange(STEPS, device=device)).flatten()

"""Least work that a network can be done with."""

from collections.abc import Callable
from typing import Any

import torch

from compressor.networks.blocks import ResidualBlock
from compressor.networks.integer import IntegerConv


def multiply_adds(network: torch.nn.Module, work: Callable[[], Any]) -> float:
    """Multiply-adds of the convolutions that ``work`` runs in ``network``; not those of attention between positions."""
    total = 0

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        spread = inputs[0] if isinstance(module, torch.nn.ConvTranspose2d) else output
        total += spread.numel() * module.weight[0].numel()

    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    fixed = [block._fixed for block in blocks]
    for block in blocks:
        block._fixed = False  # fused convolutions are no modules, which hooks would see
    kinds = torch.nn.Conv2d | torch.nn.ConvTranspose2d | IntegerConv
    convolutions = [m for m in network.modules() if isinstance(m, kinds)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    work()
    for hook in hooks:
        hook.remove()
    for block, was in zip(blocks, fixed, strict=True):
        block._fixed = was
    return total

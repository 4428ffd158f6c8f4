"""Least work that a network can be done with."""

from collections.abc import Callable
from typing import Any

import torch

from compressor.networks.integer import IntegerConv


def multiply_adds(network: torch.nn.Module, work: Callable[[], Any]) -> float:
    """Multiply-adds of the convolutions that ``work`` runs in ``network``."""
    total = 0

    def count(module: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | IntegerConv)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    work()
    for hook in hooks:
        hook.remove()
    return total

"""Optimizers by name: AdamW, and Muon for what has a matrix. What is trained, and how long, is ``training.py``'s."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.devices import has_fast_bf16


def _adamw(parameters: Iterable[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """Weights decay; biases, gains and quality curves do not."""
    kernels: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (kernels if parameter.ndim == 4 else vectors).append(parameter)
    groups = [{"params": kernels, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    on_gpu = any(parameter.is_cuda for parameter in (*kernels, *vectors))
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=on_gpu)

    def fit_for_here(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "fused": on_gpu} for group in state["param_groups"]]}

    optimizer.register_load_state_dict_pre_hook(fit_for_here)  # a checkpoint may be of another device
    return optimizer


class Muon:
    """Orthogonalised momentum (Jordan et al., 2024) for the matrices of convolutions, AdamW for everything else.

    PyTorch's Muon takes matrices alone; a convolution's weight (out, in, h, w) lies in memory as the matrix
    (out, h * w * in) once its format is channels_last, so both see the same numbers. Updates have AdamW's size.
    """

    def __init__(self, network: nn.Module, rate: float, decay: float) -> None:
        # Not depthwise ones, which have no matrix, and not integer ones, whose rounding AdamW serves better.
        self.convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
        self.matrices = [nn.Parameter(_as_matrix(p.data)) for p in self.convolutions]
        chosen = {id(p) for p in self.convolutions}
        self.rest = _adamw((p for p in network.parameters() if id(p) not in chosen), rate, decay)
        self.muon = BatchedMuon(self.matrices, lr=rate, weight_decay=decay)
        self.param_groups = self.muon.param_groups + self.rest.param_groups

    def step(self) -> None:
        for matrix, weight in zip(self.matrices, self.convolutions, strict=True):
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        self.muon.step()
        self.rest.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.convolutions:
            weight.grad = None
        self.rest.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "rest": self.rest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.rest.load_state_dict(state["rest"])
        self.param_groups = self.muon.param_groups + self.rest.param_groups


class BatchedMuon(torch.optim.Muon):
    """PyTorch's Muon, with updates of AdamW's size, for matrices in few shapes.

    PyTorch's own takes one matrix after the other and always in bfloat16, which on a processor that emulates it took
    nine tenths of a step. Here all of one shape go at once, in float32 there.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                averages = [self._average(matrix) for matrix in matrices]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                ahead = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))
                updates = _orthogonalized(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                updates *= -0.2 * math.sqrt(max(shape)) * group["lr"]  # which may be a tensor
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind())

    def _average(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def _orthogonalized(matrices_NRC: Tensor, coefficients: tuple[float, float, float], rounds: int, eps: float) -> Tensor:
    """Matrices with the same singular vectors and singular values near 1, by Newton-Schulz (Jordan et al., 2024)."""
    a, b, c = coefficients
    precision = torch.bfloat16 if has_fast_bf16(matrices_NRC.device) else torch.float32
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x_NRC = (matrices_NRC.mT if tall else matrices_NRC).to(precision)
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(rounds):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = torch.baddbmm(x_NRC, torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c), x_NRC, beta=a)
    return (x_NRC.mT if tall else x_NRC).to(matrices_NRC.dtype)


def _as_matrix(weight_OIHW: Tensor) -> Tensor:
    """(out, in, h, w) -> (out, h * w * in), without a copy for a channels_last weight."""
    return weight_OIHW.permute(0, 2, 3, 1).flatten(1)


# Of a network, by the peak rate of learning and the decay of weights.
OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], Any]] = {
    "adamw": lambda network, rate, decay: _adamw(network.parameters(), rate, decay),
    "muon": Muon,
}

"""A step of a training as one CUDA graph.

A step launches thousands of kernels, most of which a GPU has done sooner than a processor has launched the next one:
of a batch of 256 portraits an H100 was at work for 31 of 176 ms.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before it is recorded: libraries and optimizers make what they keep


class Captured:
    """A function of tensors, always of the same shapes, that is recorded on a GPU and from then on replayed.

    Nothing of it may wait for the device or depend on numbers that a processor sees. What it returns is overwritten by
    the next call.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._calls = 0
        self._graph = torch.cuda.CUDAGraph()
        self._warming = torch.cuda.Stream(device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.cuda.device(self._device):
            return self._called(inputs)

    def _called(self, inputs: tuple[Tensor, ...]) -> Tensor:
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside(inputs)
        if self._calls == WARM_UP + 1:
            self._inputs = [value.clone() for value in inputs]
            with torch.cuda.graph(self._graph):
                self._output = self._function(*self._inputs)
        else:
            torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        return self._output

    def _beside(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Run in a stream of its own, as recording does."""
        self._warming.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._warming):
            output = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._warming)
        return output

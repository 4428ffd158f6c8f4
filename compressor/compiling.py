"""Training by a compiler, and a step of it as one CUDA graph.

A step launches thousands of kernels, most of which a GPU has done sooner than a processor has launched the next one:
of a batch of 256 portraits an H100 was at work for 31 of 176 ms.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import LatentpackError, is_shortage

WARM_UP = 3  # calls before it is recorded: libraries and optimizers make what they keep


def compiled_loss(network: nn.Module, x_BCHW: Tensor, precision: Any) -> Callable[..., Tensor]:
    """The loss of a network in training, compiled, or of one whose repeated parts are.

    All is compiled by a batch like those that follow, here: it takes minutes, and the clock that the learning rate
    follows has not started. LatentpackError where that cannot be done on this machine.
    """
    loss_of: Any = network.training_loss
    compile_repeated: Any = getattr(network, "compile_repeated", None)
    if compile_repeated:
        compile_repeated()
    else:
        loss_of = torch.compile(loss_of)
    try:
        # The limit is for each shape of a block, of every training before too.
        with torch._dynamo.config.patch(recompile_limit=64):
            _warm_up(network, loss_of, x_BCHW, precision)
    except BaseException as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes seconds, and is loaded by now
        from torch._inductor.exc import GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing

        _forget_compiled(network)
        cause = getattr(error, "inner_exception", error)
        kinds = (BackendCompilerFailed, GPUTooOldForTriton, InvalidCxxCompiler, TritonMissing)
        if isinstance(error, kinds) and not is_shortage(cause):
            said = str(cause).strip().partition("\n")[0]
            raise LatentpackError(f"the network cannot be compiled here: {said}; do not compile it") from error
        raise
    network.zero_grad(set_to_none=True)
    return loss_of


def _warm_up(network: nn.Module, loss_of: Callable[..., Tensor], x_BCHW: Tensor, precision: Any) -> None:
    draw: Any = network.draw
    drawn = draw(x_BCHW, torch.Generator(x_BCHW.device))
    with precision:
        loss = loss_of(x_BCHW, *drawn)
    loss.backward()
    if x_BCHW.is_cuda:
        torch.cuda.synchronize(x_BCHW.device)


@contextmanager
def compiled_no_longer(network: nn.Module) -> Iterator[None]:
    """Leave the network as it came, however the training ends."""
    try:
        yield
    finally:
        _forget_compiled(network)


def _forget_compiled(network: nn.Module) -> None:
    for module in network.modules():
        module._compiled_call_impl = None


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

"""Between pictures in NumPy and networks in torch: layout, range, precision, batches by shape."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from compressor.artifact import Artifact
from compressor.codec import padded_pixels
from compressor.errors import CodecError
from compressor.networks.blocks import to_bytes

# Pixels of one pass through a network: activations that still fit a processor's cache, and work for all of a GPU.
PASS_PIXELS = {"cpu": 32 * 128 * 128, "cuda": 2**22}
Network = TypeVar("Network", bound=nn.Module)
T = TypeVar("T")


def to_network(pictures_BHWC: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1], channels last in memory."""
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).to(device).permute(0, 3, 1, 2)
    return x_BCHW.float().div_(255)


def from_network(x_BCHW: Tensor) -> np.ndarray:
    """uint8 (B, 3, H, W), or float in [0, 1] to be rounded, to uint8 (B, H, W, 3)."""
    x_BCHW = x_BCHW if x_BCHW.dtype == torch.uint8 else to_bytes(x_BCHW)
    return x_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def cropped(pictures_BHWC: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Pictures without what was padded at the bottom and right, each in memory of its own."""
    return [picture.copy() for picture in pictures_BHWC[:, :height, :width]]


def pass_chunks(shapes: Sequence[tuple[int, ...]], device: torch.device) -> Iterator[list[int]]:
    """Indices of pictures of one (height, width), as many together as one pass on ``device`` should take."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        by_shape[shape].append(index)
    for (height, width), indices in by_shape.items():
        size = max(1, PASS_PIXELS[device.type] // max(1, padded_pixels(height, width)))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def in_passes(
    shapes: Sequence[tuple[int, ...]], device: torch.device, work: Callable[[list[int]], Sequence[T]]
) -> list[T]:
    """What ``work`` makes of pictures, in their order; it gets the indices of those of one pass on ``device``."""
    results: dict[int, T] = {}
    for chunk in pass_chunks(shapes, device):
        results.update(zip(chunk, work(chunk), strict=True))
    return [results[index] for index in range(len(shapes))]


def state_arrays(network: nn.Module, dtype: type) -> dict[str, np.ndarray]:
    """A network's parameters and buffers as arrays named ``network.*``; integers as they are, floats as ``dtype``."""
    arrays = {}
    for name, value in network.state_dict().items():
        array = value.detach().cpu().numpy()
        arrays[f"network.{name}"] = array.astype(dtype) if array.dtype.kind == "f" else array
    return arrays


def load_state(network: Network, artifact: Artifact, arrays: dict[str, np.ndarray] | None = None) -> Network:
    """Fill a network from an artifact, ready for use. CodecError where the arrays are not the network's.

    ``arrays`` are those of another network than the codec's, which the artifact holds too.
    """
    arrays = artifact.state() if arrays is None else arrays
    state = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value.float()  # before the check: it takes large numbers for infinite ones
            if not bool(torch.isfinite(state[name]).all()):
                raise CodecError(f"codec {artifact.id} is damaged: {name} holds numbers that are not finite")
    try:
        network.float().load_state_dict(state)  # whatever type this process gives to tensors without one
    except RuntimeError as error:
        raise CodecError(f"codec {artifact.id} does not fit its family {artifact.family!r}: {error}") from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

"""Weights as INT8 with a scale for each output channel, or INT4 with one for each group of inputs.

Calibrated: scales by least output error, then rounding column by column with what each rounding costs passed on to the
columns that remain (OPTQ: Frantar et al., 2023), and the mean of what is left moved into the bias. Scales have four
significant bits, so that every product of an integer and its scale is a float16: a codec with INT8 weights *is* a codec
with FP16 weights, stored smaller. Integer networks are integers already and keep every one of them.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import CodecError
from compressor.networks.blocks import UnshuffledConv
from compressor.networks.integer import WEIGHT_MAX, WEIGHT_STEPS, IntegerConv
from compressor.tensors import to_network

KINDS = {"fp16": 16, "int8": 8, "int4": 4}
"""Bits of a weight, by the kinds that ``freeze`` takes."""
METHODS = ("calibrated", "rounded")
SCALE, PACKED = "scale.", "packed."  # prefixes of an artifact's arrays
GROUP = 64  # weights that share a scale, INT4, about
_SEARCH = 12  # scales tried below the one that nothing is clipped with, each about a twelfth of an octave apart
_DAMPING = 0.01  # of the mean of the diagonal, added to it
_CALIBRATION = 96  # pictures
_POSITIONS = 2048  # of a batch that a layer's inputs are sampled at
_BATCH = 16
_SMALLEST = 2.0**-18  # scale: below it float16 has too few bits


@dataclass(frozen=True)
class QuantizedWeights:
    """What an artifact stores instead of float arrays: arrays by name, and metadata that says how to expand them."""

    arrays: dict[str, np.ndarray]
    replaced: frozenset[str]
    metadata: dict[str, Any]


def quantize_weights(
    network: nn.Module,
    pictures_NHWC: np.ndarray,
    kind: str,
    method: str = "calibrated",
    floats: Collection[str] = (),
) -> QuantizedWeights:
    """Round a network's weights, in place, to what ``kind`` can store, and return what is to be stored.

    Parameters
    ----------
    network
        Trained; convolutions, transposed convolutions, linear layers and integer convolutions are quantised,
        everything else is rounded to float16.
    pictures_NHWC
        uint8 pictures of the kind to be stored: up to 96 of them are run through the network.
    kind, method
        Of :data:`KINDS` and :data:`METHODS`. ``rounded``: each weight to the nearest, nothing clipped, no pictures.
    floats
        Layers, by name, that are rounded to float16 alone.
    """
    if kind not in KINDS or method not in METHODS:
        raise CodecError(
            f"weights cannot be stored as {kind!r}, {method!r}: choose one of {', '.join(KINDS)}; {', '.join(METHODS)}"
        )
    network.eval()
    arrays: dict[str, np.ndarray] = {}
    replaced: set[str] = set()
    shapes: dict[str, Any] = {}
    bits = KINDS[kind]
    if bits < 16:
        layers = {name: each for name, each in network.named_modules() if _is_layer(each) and name not in floats}
        moments = _moments(network, layers, pictures_NHWC) if method == "calibrated" else {}
        for name, module in network.named_modules():
            weight_name = f"{name}.weight"
            if isinstance(module, IntegerConv):
                integers = module.integer_weight().detach()
                scale = torch.full((1, 1, 1, 1), 1 / WEIGHT_STEPS)
                assert int(integers.abs().max()) <= WEIGHT_MAX
                stored, repeat = integers.to(torch.int8), None
            elif name in layers:
                depthwise = module.weight.shape[1] == 1  # nine weights an output: few, and each one counts
                stored, scale, repeat = _quantize_layer(module, moments.get(name), 8 if depthwise else bits)
            else:
                continue
            expanded = stored.numpy().astype(np.float32) * _repeated(scale.numpy(), repeat, tuple(stored.shape))
            module.weight.data = torch.from_numpy(expanded).to(module.weight)
            replaced.add(f"network.{weight_name}")
            arrays[SCALE + weight_name] = scale.numpy().astype(np.float16)
            if repeat is None:
                arrays[f"network.{weight_name}"] = stored.numpy()
            else:
                arrays[PACKED + weight_name] = _nibbles(stored.numpy())
                shapes[weight_name] = {"shape": list(stored.shape), "repeat": repeat}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    return QuantizedWeights(arrays, frozenset(replaced), {"kind": kind, "method": method, "packed": shapes})


def expand(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> dict[str, np.ndarray]:
    """A network's arrays, without ``network.``, from an artifact's arrays and metadata: integers times their scales.

    CodecError where an array does not have the size that the metadata says.
    """
    state = {name[len("network.") :]: value for name, value in tensors.items() if name.startswith("network.")}
    packed = metadata.get("weights", {}).get("packed", {})
    for name, value in tensors.items():
        if not name.startswith(SCALE):
            continue
        name, scale = name[len(SCALE) :], value.astype(np.float32)
        try:
            if name in packed:
                shape, repeat = tuple(map(int, packed[name]["shape"])), list(map(int, packed[name]["repeat"]))
                integers = _integers(tensors[PACKED + name], shape)
            else:
                integers, shape, repeat = state[name], state[name].shape, None
            factors = _repeated(scale, repeat, shape)
            if np.broadcast_shapes(factors.shape, shape) != shape:
                raise ValueError(f"scales of {scale.shape} for weights of {shape}")
            state[name] = integers.astype(np.float32) * factors
        except (KeyError, ValueError, TypeError) as error:
            raise CodecError(f"the codec is damaged: its weights {name} do not fit their scales ({error})") from error
    return state


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def _repeated(scale: np.ndarray, repeat: list[int] | None, shape: tuple[int, ...]) -> np.ndarray:
    """Scales of groups, as large as the weights; scales of channels as they are, since they broadcast."""
    if repeat is not None and 0 in shape:
        raise ValueError(f"no weights, as {shape}")
    for axis, times in enumerate(repeat or ()):
        # All before anything is repeated: a crafted artifact may ask for any memory.
        if not 1 <= times <= shape[axis] or scale.shape[axis] not in (1, -(-shape[axis] // times)):
            raise ValueError(f"{scale.shape[axis]} scales, each for {times} of {shape[axis]} weights")
        if times > 1:
            scale = np.repeat(scale, times, axis=axis)
    if repeat is not None:
        scale = scale[
            tuple(
                slice(0, length) if size > 1 else slice(None) for length, size in zip(shape, scale.shape, strict=True)
            )
        ]
    return scale


def _nibbles(integers: np.ndarray) -> np.ndarray:
    """Integers -8 to 7, two a byte, the first in the low half."""
    flat = integers.ravel().astype(np.int16) & 15
    flat = np.append(flat, 0) if flat.size % 2 else flat
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)


def _integers(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    if packed.dtype != np.uint8 or packed.size != -(-count // 2):
        raise ValueError(f"{packed.size} bytes for {count} weights of four bits")
    flat = np.stack((packed & 15, packed >> 4), axis=-1).ravel()[:count].astype(np.int8)
    return np.where(flat > 7, flat - 16, flat).reshape(shape)


@dataclass
class _Moments:
    """Sums over what a layer has seen: of its inputs (G, n) and of their products (G, n, n), G convolution groups."""

    count: int
    first: Tensor
    second: Tensor


@torch.no_grad()
def _moments(network: Any, layers: dict[str, nn.Module], pictures_NHWC: np.ndarray) -> dict[str, _Moments]:
    """Moments of every layer's inputs while the network codes pictures."""
    found: dict[str, _Moments] = {}
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    with _watching(layers, found, generator):
        for start in range(0, min(_CALIBRATION, len(pictures_NHWC)), _BATCH):
            network.validation(to_network(pictures_NHWC[start : start + _BATCH], device))
    return found


@contextmanager
def _watching(layers: dict[str, nn.Module], found: dict[str, _Moments], generator: torch.Generator) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_GNP = _columns(module, inputs[0].float(), generator).double()
            first, second = x_GNP.sum(dim=2), x_GNP @ x_GNP.mT
            if name in found:
                found[name].count += x_GNP.shape[2]
                found[name].first += first
                found[name].second += second
            else:
                found[name] = _Moments(x_GNP.shape[2], first, second)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _columns(module: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """What a layer multiplies its weights by at some positions: (G, n, positions), in the order of :func:`_rows`."""
    if isinstance(module, nn.Linear):
        columns = x.reshape(-1, x.shape[-1]).T[None]
        return columns[:, :, _some(columns.shape[2], generator)]
    if isinstance(module, nn.ConvTranspose2d):
        # The same as a convolution of the input spread by zeros with the kernel turned around.
        batch, channels, height, width = x.shape
        stride, kernel = module.stride[0], module.kernel_size[0]
        spread = x.new_zeros(batch, channels, (height - 1) * stride + 1, (width - 1) * stride + 1)
        spread[:, :, ::stride, ::stride] = x
        before = kernel - 1 - int(module.padding[0])
        after = before + int(module.output_padding[0])
        x, stride, padding = F.pad(spread, (before, after, before, after)), 1, 0
    else:
        if isinstance(module, UnshuffledConv):
            x = F.pixel_unshuffle(F.pixel_unshuffle(x, module.side), module.outer)
        stride, padding, kernel = module.stride[0], int(module.padding[0]), module.kernel_size[0]
    patches_BNP = F.unfold(x, kernel, padding=padding, stride=stride)
    columns = patches_BNP.movedim(0, 1).flatten(1)
    columns = columns[:, _some(columns.shape[1], generator)]
    return columns.view(module.groups, -1, columns.shape[1])


def _some(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:_POSITIONS] if count > _POSITIONS else torch.arange(count)


def _rows(module: Any, weight: Tensor) -> Tensor:
    """Weights as (G, outputs of a group, n), each row what one output multiplies its inputs by."""
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.flip(-1, -2).transpose(0, 1)
    groups = getattr(module, "groups", 1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _unrowed(module: Any, rows_GON: Tensor) -> Tensor:
    """The inverse of :func:`_rows`."""
    if isinstance(module, nn.ConvTranspose2d):
        inputs, outputs, *kernel = module.weight.shape
        return rows_GON.reshape(outputs, inputs, *kernel).transpose(0, 1).flip(-1, -2).contiguous()
    return rows_GON.reshape(module.weight.shape)


@torch.no_grad()
def _quantize_layer(module: Any, moments: _Moments | None, bits: int) -> tuple[Tensor, Tensor, list[int] | None]:
    """Integers of the weight's shape, scales that broadcast over it, and for INT4 how often each scale is repeated."""
    weight = module.weight.detach().float().cpu()
    rows = _rows(module, weight)
    taps = int(np.prod(weight.shape[2:]))
    inputs = rows.shape[2] // taps
    span = max(1, GROUP // taps) if bits == 4 else inputs
    group = torch.arange(rows.shape[2]) // (span * taps)
    most = 2 ** (bits - 1) - 1
    mean = covariance = None
    if moments is not None:
        mean = moments.first / moments.count
        covariance = moments.second / moments.count
        if module.bias is not None:
            covariance = covariance - mean[:, :, None] * mean[:, None, :]
    importance = torch.ones_like(rows[:, 0]) if covariance is None else covariance.diagonal(dim1=1, dim2=2).float()
    scale_GOK = _scales(rows, importance, group, most, search=covariance is not None)
    if covariance is None:
        integers = (rows / scale_GOK[..., group]).round().clamp(-most, most)
    else:
        integers = _round_columns(rows, covariance, scale_GOK[..., group], most)
        if module.bias is not None and mean is not None:
            left = rows - integers * scale_GOK[..., group]
            module.bias += (left * mean[:, None].float()).sum(dim=2).flatten().to(module.bias)
    stored = _unrowed(module, integers).to(torch.int8)
    blocks = scale_GOK.shape[2]
    scale = scale_GOK.flatten(0, 1)  # (outputs, blocks of inputs)
    if isinstance(module, nn.ConvTranspose2d):
        scale = scale.T
    scale = scale.reshape(*scale.shape, *([1] * (weight.ndim - 2)))
    if bits == 8:
        return stored, scale, None
    repeat = [1] * weight.ndim
    repeat[0 if isinstance(module, nn.ConvTranspose2d) else 1] = span if blocks > 1 else 1
    return stored, scale, repeat


def _scales(rows: Tensor, importance_GN: Tensor, group_N: Tensor, most: int, search: bool) -> Tensor:
    """Scale (G, O, blocks) of each row's blocks of columns: of those tried the one with least weighted error."""
    blocks = int(group_N.max()) + 1
    index = group_N.expand(rows.shape)
    peak = rows.new_zeros(*rows.shape[:2], blocks).scatter_reduce_(2, index, rows.abs(), "amax")
    whole = _short(peak / most)
    if not search:
        return whole
    best, least = whole, torch.full_like(whole, torch.inf)
    for step in range(_SEARCH):
        scale = _short(peak / most * 2 ** (-step / 12))
        error = rows - (rows / scale[..., group_N]).round().clamp(-most, most) * scale[..., group_N]
        cost = torch.zeros_like(whole).scatter_add_(2, index, error.square() * importance_GN[:, None])
        best = torch.where(cost < least, scale, best)
        least = torch.minimum(least, cost)
    return best


def _short(scale: Tensor) -> Tensor:
    """Scales rounded up to four significant bits: times an integer of eight bits they are float16 numbers."""
    mantissa, exponent = torch.frexp(scale.clamp_min(_SMALLEST))
    return torch.ldexp((mantissa * 16).ceil() / 16, exponent)


def _inverse_root(covariance_GNN: Tensor) -> Tensor:
    """U, upper triangular, with U^T U the inverse of a covariance that is damped by as much as it takes."""
    damping = (_DAMPING * covariance_GNN.diagonal(dim1=1, dim2=2).mean(dim=1)).clamp_min(1e-6)
    for more in range(12):  # pictures much alike leave rounding errors alone of most directions
        damped = covariance_GNN + 10**more * damping[:, None, None] * torch.eye(covariance_GNN.shape[1]).double()
        root, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
            if not failed.any():
                return upper
    raise CodecError("the network's activations are not finite: it has learned nothing that could be stored")


def _round_columns(rows: Tensor, covariance_GNN: Tensor, scale: Tensor, most: int) -> Tensor:
    """Integers for ``rows`` (G, O, n), each column's error passed on to the later ones by the inputs' covariance."""
    upper = _inverse_root(covariance_GNN).float()
    rows, integers = rows.clone(), torch.empty_like(rows)
    for column in range(rows.shape[2]):
        step = scale[..., column]
        integers[..., column] = (rows[..., column] / step).round().clamp(-most, most)
        error = (rows[..., column] - integers[..., column] * step) / upper[:, column, column, None]
        rows[..., column:] -= error[..., None] * upper[:, None, column, column:]
    return integers

"""The codec of families V1 to V4: latents as FP32, FP16 or INT8, packed by gzip, LZMA, an entropy coder or not at all.

One quality: the network has no other. A packer's name is ``TYPE-PACKER``, such as ``int8-lzma``; the entropy coder
takes INT8 alone, under one frozen table a channel.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from compressor import packers
from compressor.artifact import Artifact
from compressor.codec import NETWORK_PIXELS, Encoded, check_encoded, check_packer, check_pictures, padded_pixels
from compressor.entropy import ENTROPY, Decoder, Encoder, Tables, frequencies
from compressor.errors import CodecError
from compressor.networks.autoencoders import Autoencoder
from compressor.networks.blocks import full_precision, pad_to_multiple
from compressor.quantization import LATENT_TYPES, LEVELS, calibrate, dequantize, quantize
from compressor.tensors import cropped, from_network, in_passes, load_state, state_arrays, to_network

_SMOOTHING = 0.5  # count given to a level never seen in calibration


def freeze_autoencoder(network: Autoencoder, pictures_NHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of an artifact: weights in FP32, and INT8 steps and tables chosen on ``pictures_NHWC`` (uint8)."""
    arrays = state_arrays(network, np.float32)
    columns: dict[int, list[np.ndarray]] = defaultdict(list)
    device = next(network.parameters()).device
    with torch.inference_mode():
        for chunk in np.array_split(pictures_NHWC, max(1, len(pictures_NHWC) // 32)):
            x_BCHW = pad_to_multiple(to_network(chunk, device), network.multiple)
            for index, latent in enumerate(network.encode(x_BCHW)):
                columns[index].append(latent.movedim(1, -1).flatten(0, -2).cpu().numpy())
    for index, parts in columns.items():
        latents_NC = np.concatenate(parts)
        step_C = calibrate(latents_NC)
        level_NC = np.clip(np.rint(latents_NC / step_C), 0, LEVELS).astype(np.int64)
        counts = [np.bincount(column, minlength=LEVELS + 1) for column in level_NC.T]
        arrays[f"step.{index}"] = step_C
        arrays[f"frequencies.{index}"] = frequencies(np.stack(counts) + _SMOOTHING)
    return arrays


class AutoencoderCodec:
    """Codec over a frozen :class:`~compressor.networks.autoencoders.Autoencoder`."""

    device = torch.device("cpu")
    qualities = range(0)
    packers = (*(f"{kind}-{packer}" for kind in LATENT_TYPES for packer in packers.PACKERS), f"int8-{ENTROPY}")

    def __init__(self, artifact: Artifact, network: Autoencoder) -> None:
        self.id = artifact.id
        self.description = f"{artifact.name} ({artifact.family}), {artifact.id[:12]}"
        self._network = load_state(network, artifact)
        crossing = len(network.narrow) + 1
        self._steps = [artifact.tensors[f"step.{index}"] for index in range(crossing)]
        self._frequencies = [artifact.tensors[f"frequencies.{index}"] for index in range(crossing)]
        for shape, step_C, frequencies_CN in zip(self._shapes(1, 1), self._steps, self._frequencies, strict=True):
            if step_C.shape != shape[:1] or not (np.isfinite(step_C).all() and (step_C > 0).all()):
                raise CodecError(f"codec {artifact.id} is damaged: its steps are not {shape[0]} numbers above 0")
            if frequencies_CN.shape != (shape[0], LEVELS + 1):
                raise CodecError(f"codec {artifact.id} is damaged: it has frequencies of {frequencies_CN.shape}")

    def __repr__(self) -> str:
        return f"AutoencoderCodec({self.description!r})"

    @cached_property
    def _tables(self) -> list[Tables]:
        return [Tables(frequency, 0) for frequency in self._frequencies]

    def suits(self, height: int, width: int) -> bool:
        """See :class:`compressor.codec.Codec`."""
        return padded_pixels(height, width) <= NETWORK_PIXELS

    @full_precision()
    def encode(self, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto") -> list[Encoded]:
        """See :class:`compressor.codec.Codec`; ``auto`` is the smallest of the INT8 packers; ``quality`` is unused."""
        check_pictures(pixels)
        names = self._packer_names(packer)

        def encode_pass(chunk: list[int]) -> list[Encoded]:
            pictures = np.stack([pixels[index] for index in chunk])
            with torch.inference_mode():
                x_BCHW = pad_to_multiple(to_network(pictures, self.device), self._network.multiple)
                latents = [latent.float().numpy() for latent in self._network.encode(x_BCHW)]
            encoded = []
            for parts in zip(*latents, strict=True):
                payload, name = min(((self._pack(parts, name), name) for name in names), key=lambda pair: len(pair[0]))
                encoded.append(Encoded(payload, pictures.shape[2], pictures.shape[1], 3, self.id, -1, name))
            return encoded

        return in_passes([picture.shape[:2] for picture in pixels], self.device, encode_pass)

    @full_precision()
    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """See :class:`compressor.codec.Codec`."""
        check_encoded(encoded)

        def decode_pass(chunk: list[int]) -> list[np.ndarray]:
            rows = [self._unpack(encoded[index]) for index in chunk]
            with torch.inference_mode():
                latents = [torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True)]
                pictures = from_network(self._network.decode(latents))
            return cropped(pictures, encoded[chunk[0]].height, encoded[chunk[0]].width)

        return in_passes([(one.height, one.width) for one in encoded], self.device, decode_pass)

    def symbols(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """What is stored of pictures of one size: each latent as (B, C, h, w), of the type its packer names."""
        rows = [self._stored(one) for one in encoded]
        return [np.stack(parts) for parts in zip(*rows, strict=True)]

    def coarser(self, factor: float) -> "AutoencoderCodec":
        """This codec with INT8 steps ``factor`` times as long; its entropy coder's tables no longer fit."""
        other = copy.copy(self)
        other._steps = [(step * factor).astype(np.float32) for step in self._steps]
        return other

    def _packer_names(self, packer: str) -> list[str]:
        if packer == "auto":
            return [f"int8-{ENTROPY}", "int8-lzma", "int8-gzip"]
        name = packer if "-" in packer else f"int8-{packer}"
        check_packer(self, name)
        return [name]

    def _pack(self, latents: Sequence[np.ndarray], name: str) -> bytes:
        kind, packer = name.split("-")
        stored = [quantize(latent, kind, step) for latent, step in zip(latents, self._steps, strict=True)]
        if packer != ENTROPY:
            return packers.pack(b"".join(part.tobytes() for part in stored), packer, LATENT_TYPES[kind].itemsize)
        coder = Encoder()
        for part, tables in zip(stored, self._tables, strict=True):
            coder.push(part.ravel().astype(np.int32), _channel_of(part.shape), tables)
        return coder.finish()

    def _unpack(self, encoded: Encoded) -> list[np.ndarray]:
        kind = encoded.packer.split("-")[0]
        stored = self._stored(encoded)
        latents = [dequantize(part, kind, step) for part, step in zip(stored, self._steps, strict=True)]
        if not all(np.isfinite(latent).all() for latent in latents):
            raise CodecError("the payload is damaged: it holds latents that are not finite")
        return latents

    def _stored(self, encoded: Encoded) -> list[np.ndarray]:
        if encoded.packer not in self.packers:
            raise CodecError(f"the payload names a packer this codec does not have: {encoded.packer!r}")
        kind, packer = encoded.packer.split("-")
        shapes = self._shapes(encoded.height, encoded.width)
        dtype = LATENT_TYPES[kind]
        stored: list[np.ndarray] = []
        if packer == ENTROPY:
            coder = Decoder(encoded.payload)
            for shape, tables in zip(shapes, self._tables, strict=True):
                stored.append(coder.pull(_channel_of(shape), tables).reshape(shape))
            coder.finish()
        else:
            sizes = [int(np.prod(shape)) for shape in shapes]
            data = packers.unpack(encoded.payload, packer, dtype.itemsize, sum(sizes) * dtype.itemsize)
            values = np.split(np.frombuffer(data, dtype), np.cumsum(sizes)[:-1])
            stored = [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]
        return stored

    def _shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Shape of every latent of a picture of this size."""
        multiple = self._network.multiple
        padded = (height + -height % multiple, width + -width % multiple)
        shapes: list[tuple[int, ...]] = []
        for layer, stride in enumerate(self._network.strides):
            padded = (padded[0] // stride, padded[1] // stride)
            if str(layer) in self._network.narrow:
                narrow: Any = self._network.narrow[str(layer)]
                shapes.append((narrow.out_channels, *padded))
        last: Any = self._network.down[-1]
        return [*shapes, (last.out_channels, *padded)]


def _channel_of(shape: tuple[int, ...]) -> np.ndarray:
    """Index of the channel of each item of a flattened (C, H, W) array."""
    return np.repeat(np.arange(shape[0]), int(np.prod(shape[1:])))

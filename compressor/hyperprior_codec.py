"""The codec of families V5 and V6: integers of a hyperprior network under its entropy coder, or packed by LZMA or gzip.

Reading takes two passes. The first turns bytes into integers and is integer arithmetic throughout, so that every
machine reads the same. The second turns integers into pixels in floating point.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from compressor import packers, predicting
from compressor.artifact import QUALITY_PARTS, Artifact
from compressor.codec import (
    NETWORK_PIXELS,
    Encoded,
    check_effort,
    check_encoded,
    check_packer,
    check_pictures,
    padded_pixels,
    per_picture,
)
from compressor.devices import has_fast_bf16, pick_device
from compressor.entropy import ENTROPY, Decoder, Encoder, Tables
from compressor.errors import CodecError
from compressor.metrics import is_flat
from compressor.networks.blocks import full_precision, pad_to_multiple
from compressor.networks.hyperlatents import HYPER_MAX
from compressor.networks.hyperprior import (
    RESIDUAL_MAX,
    SCALE_LEVELS,
    SKIP_LEVEL,
    FirstFeatures,
    Hyperprior,
)
from compressor.networks.qualities import QUALITY_STEPS
from compressor.networks.steps import STEPS, step_of_each
from compressor.refining import REFINED_PIXELS, cheaper, expected_gain, refine
from compressor.tensors import (
    cropped,
    from_network,
    in_passes,
    load_state,
    pass_chunks,
    to_network,
)

_MULTIPLE = Hyperprior.multiple
PARTS = 8  # of a quality step, one of which a payload names; QualityCurve.integers is exact at these
# In another batch sums round otherwise: with bfloat16 (emulated) PSNR of 64 portraits read one by one and together
# differed by 0.009 dB at most at 32.5 dB and 0.012 at 36, with AMX small pictures by what would be 0.011 at 34. This is
# at 34 dB; in fewer pixels each counts for more.
_SLACK, _SLACK_FLAT = 0.015, 0.15  # dB; the second for is_flat, where a rounding is the same all over and stays
# A reader whose processor multiplies bfloat16 does so in its synthesis. Of what was written in float32 it lost, of 128
# portraits, 0.024 dB at most at 31.5 dB, 0.035 at 33.7, 0.061 at 36 and 0.083 at 39.5. The other way round it gains.
_SLACK_ELSEWHERE, _SLACK_FLAT_ELSEWHERE = 0.045, 0.45
_SLACK_GROWTH = 0.08  # of its decimal logarithm for each dB
_SLACK_PIXELS = 128 * 128


@dataclass(frozen=True)
class _Symbols:
    """What is stored of one picture, int8 (C, H, W): hyperlatents, residuals, and the levels these are coded under.

    ``quality`` is in steps, and in parts of one where the codec stores these.
    """

    z: np.ndarray
    r: np.ndarray
    level: np.ndarray
    quality: float


class HyperpriorCodec:
    """Codec over a frozen :class:`~compressor.networks.hyperprior.Hyperprior`.

    Its qualities are whole steps. A search goes by parts of them: a row names the step, its payload the part.
    """

    qualities = range(QUALITY_STEPS)
    packers = (ENTROPY, "lzma", "gzip")

    def __init__(self, artifact: Artifact, network: Hyperprior, device: torch.device | None = None) -> None:
        self.id = artifact.id
        self.effort = 0
        self.description = f"{artifact.name} ({artifact.family}), {artifact.id[:12]}"
        self.device = device or pick_device()
        self._network = load_state(network, artifact).to(self.device)
        self._network.fix_weights()
        self._low_precision = has_fast_bf16(self.device)
        prior = network.hyper_prior
        shapes = {
            "frequencies.residual": (SCALE_LEVELS, 2 * RESIDUAL_MAX + 1),
            "frequencies.hyper": (prior.table_count, 2 * prior.symbol_max + 1),
        }
        if QUALITY_PARTS in artifact.tensors:
            shapes[QUALITY_PARTS] = (1, PARTS)
        for name, shape in shapes.items():
            if (found := artifact.tensors[name].shape) != shape:
                raise CodecError(
                    f"codec {artifact.id} has {name} of {found}, this version reads {shape}: freeze it again"
                )
        self._part_tables = Tables(artifact.tensors[QUALITY_PARTS], 0) if QUALITY_PARTS in artifact.tensors else None
        self.parts = PARTS if self._part_tables else 1
        self._residual_tables = Tables(artifact.tensors["frequencies.residual"], -RESIDUAL_MAX)
        self._hyper_tables = Tables(artifact.tensors["frequencies.hyper"], -prior.symbol_max)
        self._predictor = predicting.load(artifact, network.analysis.enter.out_channels, self.device)

    def __repr__(self) -> str:
        return f"HyperpriorCodec({self.description!r}, effort={self.effort})"

    def suits(self, height: int, width: int) -> bool:
        """See :class:`compressor.codec.Codec`."""
        return padded_pixels(height, width) <= NETWORK_PIXELS

    def with_effort(self, effort: int) -> "HyperpriorCodec":
        """See :class:`compressor.codec.Refinable`."""
        check_effort(effort)
        other = copy.copy(self)
        other.effort = effort
        return other

    def encode(self, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto") -> list[Encoded]:
        """See :class:`compressor.codec.Codec`."""
        check_pictures(pixels)
        check_packer(self, packer)
        qualities = per_picture(quality, len(pixels))
        if any(q not in self.qualities for q in qualities):
            raise CodecError(f"quality must be from 0 to {QUALITY_STEPS - 1}")

        def encode_pass(chunk: list[int]) -> list[Encoded]:
            pictures, chosen = [pixels[index] for index in chunk], [qualities[index] for index in chunk]
            with torch.inference_mode():
                first = self._first_features(self._input(pictures))
            symbols, _ = self._quantize(first, chosen, pictures if self.effort else None, guarded=True)
            return self._packed(symbols, pictures[0].shape, packer)

        return in_passes([picture.shape[:2] for picture in pixels], self.device, encode_pass)

    def trials(self, pixels: Sequence[np.ndarray], packer: str) -> "HyperpriorTrials":
        """See :class:`compressor.quality.Searchable`."""
        check_packer(self, packer)
        return HyperpriorTrials(self, pixels, packer)

    @torch.inference_mode()
    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """See :class:`compressor.codec.Codec`."""
        check_encoded(encoded)

        def decode_pass(chunk: list[int]) -> list[np.ndarray]:
            batch = [encoded[index] for index in chunk]
            z_BCHW, r_BCHW, qualities = self._read(batch)
            z, r = (torch.from_numpy(part).to(self.device, torch.float32) for part in (z_BCHW, r_BCHW))
            quality_B = self._on_device(qualities)
            pictures = self._pictures(self._network.latents_of(z, r, quality_B), quality_B)
            return cropped(pictures, batch[0].height, batch[0].width)

        return in_passes([(one.height, one.width) for one in encoded], self.device, decode_pass)

    @torch.inference_mode()
    def symbols(self, encoded: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
        """Hyperlatents and residuals of pictures of one size, int32 (B, Z, h, w) and (B, M, 2h, 2w).

        Integer arithmetic alone: the same on any device, at any batch size and thread count.
        """
        return self._read(encoded)[:2]

    def _read(self, encoded: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`symbols`, and the quality of each, float32 (B,)."""
        height, width = (-(-side // _MULTIPLE) for side in (encoded[0].height, encoded[0].width))
        z_shape = (self._network.hyper, height, width)
        r_shape = (self._network.latents, 2 * height, 2 * width)
        for one in encoded:
            if one.quality not in self.qualities or one.packer not in self.packers:
                raise CodecError(f"the row is damaged: quality {one.quality}, packer {one.packer!r}")
        if all(one.packer == ENTROPY for one in encoded):
            return self._decode_entropy(encoded, z_shape, r_shape)
        head = int(self.parts > 1)
        z_BCHW = np.empty((len(encoded), *z_shape), np.int32)
        r_BCHW = np.empty((len(encoded), *r_shape), np.int32)
        quality_B = np.empty(len(encoded), np.float32)
        for row, one in enumerate(encoded):
            if one.packer == ENTROPY:
                z, r, quality = self._decode_entropy([one], z_shape, r_shape)
                z_BCHW[row], r_BCHW[row], quality_B[row] = z[0], r[0], quality[0]
                continue
            size = head + z_BCHW[row].size + r_BCHW[row].size
            values = np.frombuffer(packers.unpack(one.payload, one.packer, 1, size), np.int8)
            z_BCHW[row] = values[head : head + z_BCHW[row].size].reshape(z_shape)
            r_BCHW[row] = values[head + z_BCHW[row].size :].reshape(r_shape)
            quality_B[row] = self._with_part(one, int(values[0]) if head else 0)
            if np.abs(z_BCHW[row]).max() > HYPER_MAX or r_BCHW[row].min() < -RESIDUAL_MAX:
                raise CodecError("the payload is damaged: it holds latents that no writer stores")
        return z_BCHW, r_BCHW, quality_B

    def _with_part(self, encoded: Encoded, part: int) -> float:
        """Quality of a row whose payload names this part of its step."""
        quality = encoded.quality + part / self.parts
        if not 0 <= part < self.parts or quality > QUALITY_STEPS - 1:
            raise CodecError("the payload is damaged: it names a quality that no writer stores")
        return quality

    def _decode_entropy(
        self, encoded: Sequence[Encoded], z_shape: tuple[int, ...], r_shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        coders = [Decoder(one.payload) for one in encoded]
        parts = [0] * len(coders)
        if self._part_tables:
            parts = [int(coder.pull(np.zeros(1, np.int32), self._part_tables)[0]) for coder in coders]
        qualities = np.array(list(map(self._with_part, encoded, parts)), np.float32)
        quality_B = self._on_device(qualities)
        z_BN = np.zeros((len(encoded), int(np.prod(z_shape))), np.int32)
        for step, index in enumerate(_step_indices(z_shape, self._network.hyper_prior.steps)):
            known = torch.from_numpy(z_BN).to(self.device, torch.float32).view(-1, *z_shape)
            tables = self._network.hyper_prior.tables(step, known, quality_B)
            table_BN, offset_BN = (_integers_at(part, index) for part in tables)
            for row, coder in enumerate(coders):
                z_BN[row, index] = coder.pull(table_BN[row], self._hyper_tables) + offset_BN[row]
            if np.abs(z_BN).max() > HYPER_MAX:
                raise CodecError("the payload is damaged: it holds hyperlatents that no writer stores")
        z_BCHW = z_BN.reshape(-1, *z_shape)
        features = self._network.scales.features(torch.from_numpy(z_BCHW).to(self.device, torch.float32), quality_B)
        r_BN = np.zeros((len(encoded), int(np.prod(r_shape))), np.int32)
        for step, index in enumerate(_step_indices(r_shape)):
            known = torch.from_numpy(r_BN).to(self.device, torch.float32).view(-1, *r_shape)
            levels = self._network.scales(step, features, known, quality_B)
            level_BN = levels.to(torch.int32).flatten(1).cpu().numpy()
            for row, (coder, level_N) in enumerate(zip(coders, level_BN, strict=True)):
                coded = level_N >= SKIP_LEVEL
                r_BN[row, index[coded]] = coder.pull(level_N[coded], self._residual_tables)
        for coder in coders:
            coder.finish()
        return z_BCHW, r_BN.reshape(-1, *r_shape), qualities

    def _quantize(
        self,
        first: FirstFeatures,
        qualities: Sequence[float],
        refined: Sequence[np.ndarray] | None = None,
        guarded: bool = False,
    ) -> tuple[list[_Symbols], torch.Tensor]:
        """Symbols of each picture, and the latents that a reader makes of them; with the pictures, refined for them.

        ``guarded``: where that is no gain a picture's latents stay as they were. A search finds that out by itself.
        """
        with torch.inference_mode():
            quality_B = self._on_device(qualities)
            y, z = self._network.unrounded(first, quality_B, self._low_precision)
        if refined is not None and padded_pixels(*refined[0].shape[:2]) <= REFINED_PIXELS:
            # A gradient does not pass through what inference mode has made, nor where the caller asks for none.
            with torch.inference_mode(False), torch.enable_grad(), full_precision():
                x_BCHW = to_network(np.stack(refined), self.device)
                y, z, quality_B = y.clone(), z.clone(), quality_B.clone()
                better = refine(self._network, x_BCHW, y, z, quality_B, self.effort, self._low_precision)
                rivals = (y, better)
                y = cheaper(self._network, x_BCHW, rivals, z, quality_B, self._low_precision) if guarded else better
        with torch.inference_mode():
            *integers, y_BCHW = self._network.rounded(y, z, quality_B)
            parts = [part.to(torch.int8).contiguous().cpu().numpy() for part in integers]
        return [_Symbols(*rows) for rows in zip(*parts, qualities, strict=True)], y_BCHW

    @torch.inference_mode()
    def _packed(self, symbols: Sequence[_Symbols], shape: tuple[int, ...], packer: str) -> list[Encoded]:
        """Pictures of (height, width, 3) as they are stored."""
        quality_B = self._on_device([one.quality for one in symbols])
        z_BCHW = torch.from_numpy(np.stack([one.z for one in symbols])).to(self.device, torch.float32)
        tables = self._network.hyper_prior.all_tables(z_BCHW, quality_B)
        table_BN, offset_BN = (part.to(torch.int32).flatten(1).cpu().numpy() for part in tables)
        return [
            self._packed_one(one, table_N, offset_N, shape, packer)
            for one, table_N, offset_N in zip(symbols, table_BN, offset_BN, strict=True)
        ]

    def _packed_one(
        self, symbols: _Symbols, table_N: np.ndarray, offset_N: np.ndarray, shape: tuple[int, ...], packer: str
    ) -> Encoded:
        """One of them; hyperlatents less ``offset_N`` are coded by ``table_N``."""
        z, r, level = symbols.z, symbols.r, symbols.level
        step, part = divmod(round(symbols.quality * self.parts), self.parts)
        candidates = []
        if packer in ("auto", ENTROPY):
            coder = Encoder()
            if self._part_tables:
                coder.push(np.array([part]), np.zeros(1, np.int32), self._part_tables)
            z_steps = _step_of_each(z.shape, self._network.hyper_prior.steps)
            coder.push(z.ravel() - offset_N, table_N, self._hyper_tables, z_steps)
            coded = level.ravel() >= SKIP_LEVEL
            r_N, level_N, step_N = r.ravel()[coded], level.ravel()[coded], _step_of_each(r.shape)[coded]
            coder.push(r_N, level_N, self._residual_tables, step_N)
            candidates.append((coder.finish(), ENTROPY))
        if packer != ENTROPY:
            data = bytes([part] if self.parts > 1 else []) + z.tobytes() + r.tobytes()
            names = [packer]
            if packer == "auto":
                # Either takes as long as a network: tried only where the fastest deflate comes near the entropy
                # coder, which on pictures like those it was trained on has not been seen.
                near = len(zlib.compress(data, 1)) < 1.5 * len(candidates[0][0])
                names = ["gzip", "lzma"] if near else []
            candidates += [(packers.pack(data, name, 1), name) for name in names]
        payload, name = min(candidates, key=lambda candidate: len(candidate[0]))
        return Encoded(payload, shape[1], shape[0], 3, self.id, step, name)

    def _pictures(self, y_BCHW: torch.Tensor, quality_B: torch.Tensor) -> np.ndarray:
        """uint8 (B, H, W, 3) of latents, sides still multiples of 32."""
        return from_network(self._network.reconstruct(y_BCHW, quality_B, self._low_precision))

    def _first_features(self, x_BCHW: torch.Tensor) -> FirstFeatures:
        return self._network.first_features(x_BCHW, self._low_precision)

    def _input(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        return pad_to_multiple(to_network(np.stack(pictures), self.device), _MULTIPLE)

    def _on_device(self, values: Sequence[float] | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


class HyperpriorTrials:
    """Tries of some pictures: the first features are computed once, and nothing is coded before the search is over.

    A try's pixels are a reader's second pass over the integers of the try. What is left to show is that the bytes read
    back as these integers, which a reader's first pass does.
    """

    def __init__(self, codec: HyperpriorCodec, pixels: Sequence[np.ndarray], packer: str) -> None:
        self._codec, self._pixels, self._packer = codec, pixels, packer
        self._first: list[tuple[torch.Tensor, ...]] = [()] * len(pixels)  # trunk and direct latents of each, (C, H, W)
        self.qualities = range((QUALITY_STEPS - 1) * codec.parts + 1)
        self.first_at_most = self.qualities[-1] * 3 // 4  # above, noise may be shown worse again
        quality_Q = np.array(self.qualities) / codec.parts
        self.curves = np.empty((len(pixels), len(self.qualities)))
        may_refine = np.array([padded_pixels(*picture.shape[:2]) <= REFINED_PIXELS for picture in pixels])
        self.gains = np.where(may_refine[:, None], expected_gain(codec.effort, quality_Q), 0.0)
        with torch.inference_mode():
            for chunk in pass_chunks([picture.shape[:2] for picture in pixels], self._codec.device):
                x_BCHW = codec._input([pixels[index] for index in chunk])
                first = codec._first_features(x_BCHW)
                curves = predicting.expected(codec._predictor, x_BCHW, first.trunk, pixels[chunk[0]].shape)
                for row, (index, at_centres) in enumerate(zip(chunk, curves, strict=True)):
                    self._first[index] = tuple(part[row] for part in first)
                    self.curves[index] = predicting.interpolated(at_centres, quality_Q)

    def slack(self, target: float) -> np.ndarray:
        """See :class:`compressor.quality.Trials`."""
        areas = np.array([picture.shape[0] * picture.shape[1] for picture in self._pixels])
        here = self._codec._low_precision
        at_34, more = (_SLACK, _SLACK_FLAT) if here else (_SLACK_ELSEWHERE, _SLACK_FLAT_ELSEWHERE)
        in_few_pixels = np.sqrt(_SLACK_PIXELS / np.minimum(areas, _SLACK_PIXELS))
        of_flat = more * np.array([is_flat(picture) for picture in self._pixels])
        return at_34 * 10 ** (_SLACK_GROWTH * (target - 34)) * in_few_pixels + of_flat

    def attempt(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[_Symbols, np.ndarray]]:
        """See :class:`compressor.quality.Trials`."""
        return self._tried(indices, qualities, refined=False)

    def refine(self, indices: Sequence[int], qualities: Sequence[int]) -> list[tuple[_Symbols, np.ndarray]]:
        """See :class:`compressor.quality.Trials`."""
        return self._tried(indices, qualities, refined=True)

    def _tried(
        self, indices: Sequence[int], qualities: Sequence[int], refined: bool
    ) -> list[tuple[_Symbols, np.ndarray]]:
        shapes = [self._pixels[index].shape[:2] for index in indices]

        def try_pass(chunk: list[int]) -> list[tuple[_Symbols, np.ndarray]]:
            chosen = [qualities[at] / self._codec.parts for at in chunk]
            pictures = [self._pixels[indices[at]] for at in chunk] if refined else None
            with torch.inference_mode(), full_precision():
                parts = zip(*(self._first[indices[at]] for at in chunk), strict=True)
                stacked = (torch.stack(part).contiguous(memory_format=torch.channels_last) for part in parts)
                first = FirstFeatures(*stacked)
            symbols, y_BCHW = self._codec._quantize(first, chosen, pictures)
            with torch.inference_mode():
                shown = self._codec._pictures(y_BCHW, self._codec._on_device(chosen))
            return list(zip(symbols, cropped(shown, *shapes[chunk[0]]), strict=True))

        return in_passes(shapes, self._codec.device, try_pass)

    @torch.inference_mode()
    def finish(self, indices: Sequence[int], attempts: Sequence[_Symbols]) -> list[Encoded | None]:
        """See :class:`compressor.quality.Trials`."""
        shapes = [self._pixels[index].shape for index in indices]

        def finish_pass(chunk: list[int]) -> list[Encoded | None]:
            symbols = [attempts[at] for at in chunk]
            batch = list(zip(self._codec._packed(symbols, shapes[chunk[0]], self._packer), symbols, strict=True))
            whole = self._read_back(batch)
            return [one[0] if whole or self._read_back([one]) else None for one in batch]

        return in_passes([shape[:2] for shape in shapes], self._codec.device, finish_pass)

    def _read_back(self, batch: Sequence[tuple[Encoded, _Symbols]]) -> bool:
        """Whether bytes of pictures of one size give the integers that they were made of."""
        try:
            read = self._codec._read([encoded for encoded, _ in batch])
        except CodecError:
            return False
        return all(
            np.array_equal(z_CHW, symbols.z) and np.array_equal(r_CHW, symbols.r) and quality == symbols.quality
            for z_CHW, r_CHW, quality, (_, symbols) in zip(*read, batch, strict=True)
        )


def _integers_at(values_BCHW: torch.Tensor, index: np.ndarray) -> np.ndarray:
    """int32 (B, len(index)): what stands at those places of flattened pictures."""
    chosen = values_BCHW.to(torch.int32).flatten(1)[:, torch.from_numpy(index).to(values_BCHW.device)]
    return chosen.cpu().numpy()


@lru_cache(maxsize=8)
def _step_of_each(shape: tuple[int, ...], steps: int = STEPS) -> np.ndarray:
    """Step that codes each position of a flattened (C, H, W) array, int32."""
    return step_of_each(shape, torch.device("cpu"), steps).flatten().to(torch.int32).numpy()


@lru_cache(maxsize=8)
def _step_indices(shape: tuple[int, ...], steps: int = STEPS) -> list[np.ndarray]:
    """Positions in a flattened (C, H, W) array that each step codes, in coding order."""
    return [np.flatnonzero(_step_of_each(shape, steps) == step).astype(np.int32) for step in range(steps)]

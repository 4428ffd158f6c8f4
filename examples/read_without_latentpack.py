"""Pictures out of an archive by docs/format.md alone: python examples/read_without_latentpack.py [ARCHIVE [FOLDER]]

Nothing of latentpack is imported, and no PyTorch: whoever has an archive and that page can read it. Short rather than
fast. Reads every codec that latentpack writes, from a local archive.
"""

import bisect
import hashlib
import json
import lzma
import sys
import zlib
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from safetensors.numpy import load

Row = dict[str, Any]

AV1 = """
00000020667479706176696600000000 617669666d6966316d6961664d413142 000000eb6d6574610000000000000021
68646c72000000000000000070696374 00000000000000000000000000000000 0e7069746d0000000000010000001e69
6c6f6300000000440000010001000000 0100000113 N 0000002869696e660000000000010000 001a696e666502000000000100006176
3031436f6c6f72000000006a69707270 0000004b6970636f0000001469737065 00000000 WIDTH HEIGHT
00000010706978690000000003080808 0000000c6176314381000c0000000013 636f6c726e636c780002000200068000
00001769706d61000000000000000100 010401028304 N+8 6d646174
"""
AV1_444 = (
    AV1.replace("4d413142", "4d413141")
    .replace("6176314381000c00", "6176314381200000")
    .replace("6e636c7800020002", "6e636c780001000d")
)
STANDARD: dict[str, Callable[[bytes], np.ndarray]] = {
    "jpeg": imagecodecs.jpeg8_decode,
    "webp": imagecodecs.webp_decode,
    "avif": imagecodecs.avif_decode,
    "avif-444": imagecodecs.avif_decode,
    "jpegxl": imagecodecs.jpegxl_decode,
    "lossless": imagecodecs.jpegxl_decode,
}


def container(template: str, row: Row) -> bytes:
    size = len(row["payload"])
    numbers = {"WIDTH": row["width"], "HEIGHT": row["height"], "N": size, "N+8": size + 8}
    return bytes.fromhex("".join(f"{numbers[word]:08x}" if word in numbers else word for word in template.split()))


class RangeDecoder:
    """A range-coded stream."""

    def __init__(self, stream: bytes) -> None:
        self.words = iter(np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").tolist())
        self.low, self.width = 0, 2**64 - 1
        self.point = next(self.words, 0) << 32 | next(self.words, 0)

    def symbol(self, bounds: list[int]) -> int:
        unit = self.width >> 24
        place = (self.point - self.low) % 2**64 // unit
        assert place < 2**24, "the payload is damaged"
        found = bisect.bisect_right(bounds, place) - 1
        self.low = (self.low + unit * bounds[found]) % 2**64
        self.width = unit * (bounds[found + 1] - bounds[found])
        if self.width < 2**32:
            self.low, self.width = self.low << 32 & 2**64 - 1, self.width << 32
            self.point = (self.point << 32 | next(self.words, 0)) & 2**64 - 1
        return found


def bounds_of(frequencies: np.ndarray) -> list[int]:
    before = np.concatenate([[0], np.cumsum(frequencies.astype(np.int64))])[:-1]
    size = len(frequencies)
    return [*(before * (2**24 - size) // 2**24 + np.arange(size)).tolist(), 2**24]


def unpacked(packer: str, data: bytes, dtype: str) -> np.ndarray:
    """Numbers of a type, as NumPy names it, that were packed by gzip or LZMA."""
    if packer == "gzip":
        data = zlib.decompress(data, -15)
    elif packer == "lzma":
        lp, pb = {1: (0, 0), 2: (1, 1), 4: (2, 2)}[np.dtype(dtype).itemsize]
        filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": lp, "pb": pb}]
        data = lzma.decompress(data, lzma.FORMAT_RAW, filters=filters)
    return np.frombuffer(data, dtype)


def steps_of(channels: int, height: int, width: int) -> np.ndarray:
    """The step, 0 to 3, that codes each place of (channels, height, width)."""
    parity = np.array([[0, 2], [3, 1]])[np.arange(height)[:, None] % 2, np.arange(width) % 2]
    return parity ^ (4 * np.arange(channels) // channels)[:, None, None]


def shuffled(x: np.ndarray, side: int) -> np.ndarray:
    """(C side^2, H, W) to (C, H side, W side)."""
    _, height, width = x.shape
    x = x.reshape(-1, side, side, height, width).transpose(0, 3, 1, 4, 2)
    return x.reshape(-1, height * side, width * side)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.float32(0.1) * x)


def activated(accumulator: np.ndarray, unit: int) -> np.ndarray:
    return np.clip(np.floor(accumulator * (16 / unit) + 0.5), 0, 127)


def to_samples(picture: np.ndarray, row: Row) -> np.ndarray:
    """Planes (3, H, W), nominally 0 to 1, to uint8 (height, width, 3) without what was padded."""
    samples = np.clip(np.floor(picture * 255 + 0.5), 0, 255).astype(np.uint8)
    return samples.transpose(1, 2, 0)[: row["height"], : row["width"]]


def codec_file(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays of a codec's file; of a compressed one, those of the file in it."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata, arrays = json.loads(header["__metadata__"]["latentpack"]), load(data)
    if metadata["format"] == 4:
        return codec_file(pa.decompress(arrays["zstd"].tobytes(), metadata["bytes"], codec="zstd", asbytes=True))
    return metadata, arrays


class Arrays:
    """A codec's file: the network's weights, and tables for the range coder."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest()[:32] == path.stem, "the codec is damaged"
        metadata, self.arrays = codec_file(data)
        self.family, self.options = metadata["family"], metadata["network"]
        self.packed = metadata.get("weights", {}).get("packed", {})
        self.tables: dict[tuple[str, int], list[int]] = {}

    def __contains__(self, name: str) -> bool:
        return f"network.{name}" in self.arrays or f"packed.{name}" in self.arrays

    def weight(self, name: str) -> np.ndarray:
        """An array of the network, integers multiplied by their scales."""
        scale = self.arrays.get(f"scale.{name}", np.ones(1))
        if name in self.packed:
            halves = self.arrays[f"packed.{name}"].reshape(-1, 1) >> np.array([0, 4], np.uint8) & 15
            shape = self.packed[name]["shape"]
            value = (halves.ravel()[: np.prod(shape)].astype(np.int8) ^ 8).reshape(shape) - np.int8(8)
            for axis, times in enumerate(self.packed[name]["repeat"]):
                scale = np.repeat(scale, times, axis)
            scale = scale[tuple(map(slice, shape))]
        else:
            value = self.arrays[f"network.{name}"]
        return value.astype(np.float32) * scale.astype(np.float32)

    def pulled(self, decoder: RangeDecoder, table: str, rows: np.ndarray, first: int) -> np.ndarray:
        """Symbols, each under its row of a table: row by row, and in order of place within one."""
        values = np.zeros(len(rows), int)
        for place in np.argsort(rows, kind="stable"):
            row = int(rows[place])
            if (table, row) not in self.tables:
                self.tables[table, row] = bounds_of(self.arrays[f"frequencies.{table}"][row])
            values[place] = decoder.symbol(self.tables[table, row]) + first
        return values


class Autoencoder(Arrays):
    """A codec of families v1 to v4, or autoencoder."""

    STRIDES = {"v1": (2, 2), "v2": (2, 2, 2), "v3": (2, 2, 2, 2, 1), "v4": (2, 2, 2, 2, 1)}

    @property
    def strides(self) -> list[int]:
        return list(self.options["strides"] if self.family == "autoencoder" else self.STRIDES[self.family])

    def shapes(self, row: Row) -> list[tuple[int, int, int]]:
        """Of the skips' latents from the shallowest, then of the deepest."""
        reductions = np.cumprod(self.strides).tolist()
        height, width = (-(-row[side] // reductions[-1]) for side in ("height", "width"))
        skips = [layer for layer in range(len(reductions)) if f"narrow.{layer}.weight" in self]
        channels = [self.weight(f"narrow.{layer}.weight").shape[0] for layer in skips]
        deepest = self.weight("up.0.weight").shape[0] - (channels[-1] if len(reductions) - 1 in skips else 0)
        at = [(channel, reductions[-1] // reductions[layer]) for channel, layer in zip(channels, skips, strict=True)]
        return [(channel, height * side, width * side) for channel, side in [*at, (deepest, 1)]]

    def latents(self, row: Row) -> list[np.ndarray]:
        kind, packer = row["packer"].split("-")
        shapes = self.shapes(row)
        if packer == "entropy":
            decoder = RangeDecoder(row["payload"])
            rows = [np.arange(shape[0]).repeat(shape[1] * shape[2]) for shape in shapes]
            parts = [self.pulled(decoder, str(number), rows[number], 0) for number in range(len(shapes))]
        else:
            values = unpacked(packer, row["payload"], {"fp32": "<f4", "fp16": "<f2", "int8": "u1"}[kind])
            parts = np.split(values, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
        steps = [self.arrays[f"step.{number}"] if kind == "int8" else np.ones(1) for number in range(len(shapes))]
        return [
            (part.reshape(shape) * step.reshape(-1, 1, 1)).astype(np.float32)
            for part, shape, step in zip(parts, shapes, steps, strict=True)
        ]

    def pixels(self, row: Row) -> np.ndarray:
        *skips, x = self.latents(row)
        strides = self.strides
        for number, stride in enumerate(reversed(strides)):
            if f"narrow.{len(strides) - 1 - number}.weight" in self:
                x = np.concatenate([x, skips.pop()])
            x = self.transposed_conv(f"up.{number}", x, stride)
            x = np.maximum(x, 0) if number < len(strides) - 1 else 1 / (1 + np.exp(-x))
        return to_samples(x, row)

    def transposed_conv(self, name: str, x: np.ndarray, stride: int) -> np.ndarray:
        weight = self.weight(f"{name}.weight")  # (in, out, 3, 3)
        height, width = (stride * side for side in x.shape[1:])
        y = np.zeros((weight.shape[1], height + 2, width + 2), np.float32)
        for i in range(3):
            for j in range(3):
                y[:, i : i + height : stride, j : j + width : stride] += np.tensordot(weight[:, :, i, j].T, x, 1)
        return y[:, 1:-1, 1:-1] + self.weight(f"{name}.bias")[:, None, None]


class Hyperprior(Arrays):
    """A codec of family v5 or v6."""

    # --- what the tables depend on: integers ---

    def integers(self, name: str, q: float, unit: int) -> np.ndarray:
        """A curve over the quality steps at q: (channels, 1, 1)."""
        anchors = np.rint(self.weight(f"{name}.values").astype(float) * unit)
        near = np.maximum(0, 63 - np.abs(8 * q - 63 * np.arange(9)))
        return np.floor((near @ anchors + 31) / 63)[:, None, None]

    def integer_conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = np.clip(np.rint(self.weight(f"{name}.weight") * 64), -127, 127).astype(float)
        margin = weight.shape[2] // 2
        x = np.pad(x.astype(float), ((0, 0), (margin, margin), (margin, margin)))
        height, width = x.shape[1] - 2 * margin, x.shape[2] - 2 * margin
        y = np.zeros((len(weight), height, width))
        for i in range(2 * margin + 1):
            for j in range(2 * margin + 1):
                y += np.tensordot(weight[:, :, i, j], x[:, i : i + height, j : j + width], 1)
        return y

    def latents(self, row: Row) -> tuple[float, np.ndarray, np.ndarray]:
        """Quality step, hyperlatents z and residuals r of a picture."""
        down, right = (-(-row[side] // 32) for side in ("height", "width"))
        z_shape = (self.weight("means.enter.weight").shape[1], down, right)
        r_shape = (self.weight("gain.values").shape[1], 2 * down, 2 * right)
        has_part = "frequencies.part" in self.arrays
        if row["packer"] != "entropy":
            values = unpacked(row["packer"], row["payload"], "i1").astype(int)
            part, values = (int(values[0]), values[1:]) if has_part else (0, values)
            z, r = np.split(values, [np.prod(z_shape)])
            return min(63, row["quality"] + part / 8), z.reshape(z_shape), r.reshape(r_shape)
        decoder = RangeDecoder(row["payload"])
        part = self.pulled(decoder, "part", np.zeros(1, int), 0)[0] if has_part else 0
        q = min(63, row["quality"] + part / 8)
        if self.options.get("prior_features"):
            z = self.hyperlatents(decoder, q, z_shape)
        else:
            rows = int(q // 8) * z_shape[0] + np.arange(z_shape[0]).repeat(down * right)
            z = self.pulled(decoder, "hyper", rows, -31).reshape(z_shape)
        return q, z, self.residuals(decoder, q, z, r_shape)

    def hyperlatents(self, decoder: RangeDecoder, q: float, shape: tuple[int, int, int]) -> np.ndarray:
        z = np.zeros(shape, int)
        for step in range(4):
            place = self.integers("hyper_prior.location", q, 1024)
            width = self.integers("hyper_prior.log_width", q, 1024)
            if step:
                name = f"hyper_prior.contexts.{step - 1}"
                x = self.integer_conv(f"{name}.enter", z) + self.integers(f"{name}.quality", q, 64)
                more = self.integer_conv(f"{name}.leave", activated(x, 64))
                place, width = place + more[0::2], width + more[1::2]
            p = np.clip(np.floor(place / 128 + 0.5), -248, 248).astype(int)
            level = np.clip(np.floor(width / 128) + 24, 0, 39).astype(int)
            whole = (p + 4) // 8
            here = steps_of(*shape) == step
            rows = np.broadcast_to(8 * level + p + 4 - 8 * whole, shape)[here]
            z[here] = self.pulled(decoder, "hyper", rows, -62) + np.broadcast_to(whole, shape)[here]
        return z

    def residuals(self, decoder: RangeDecoder, q: float, z: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        x = activated(self.integer_conv("scales.enter", z) + self.integers("scales.quality", q, 64), 64)
        x = activated(shuffled(self.integer_conv("scales.up", x), 2), 1024)
        r = np.zeros(shape, int)
        for step in range(4):
            a = self.integer_conv(f"scales.hyper.{step}", x)
            if step:
                a = a + 16 * self.integer_conv(f"scales.context.{step - 1}", np.minimum(np.abs(r), 31))
            a = self.integer_conv(f"scales.leave.{step}", activated(a, 1024))
            level = np.clip(np.floor((a + self.integers("scales.level", q, 1024)) / 128), 0, 63).astype(int)
            here = (steps_of(*shape) == step) & (level >= 4)
            r[here] = self.pulled(decoder, "residual", level[here], -127)
        return r

    # --- from there to pixels: floating point ---

    def gain(self, name: str, q: float) -> np.ndarray:
        values, at = self.weight(f"{name}.values"), q * 8 / 63
        left = min(int(at), 7)
        share = np.float32(at - left)
        return np.exp(values[left] * (1 - share) + values[left + 1] * share)[:, None, None]

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.weight(f"{name}.weight")
        y = np.tensordot(weight.reshape(weight.shape[:2]), x, 1)
        return y + self.weight(f"{name}.bias")[:, None, None] if f"{name}.bias" in self else y

    def block(self, name: str, x: np.ndarray) -> np.ndarray:
        if f"{name}.place" in self:
            x = x + self.conv(f"{name}.leave", self.attention(name, x))
        else:
            _, height, width = x.shape
            inside = leaky(self.conv(f"{name}.enter", x))
            padded = np.pad(inside, ((0, 0), (1, 1), (1, 1)))
            weight = self.weight(f"{name}.spatial.weight")[:, 0, :, :, None, None]
            spatial = self.weight(f"{name}.spatial.bias")[:, None, None] + sum(
                weight[:, i, j] * padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
            )
            x = x + self.conv(f"{name}.leave", spatial)
        return x + self.conv(f"{name}.contract", leaky(self.conv(f"{name}.expand", x)))

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        channels, height, width = x.shape
        heads = self.options.get("heads", 8)
        normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        normal = normal * self.weight(f"{name}.normalise.weight")[:, None, None]
        qkv = self.conv(f"{name}.enter", normal + self.weight(f"{name}.normalise.bias")[:, None, None])
        bias, out = self.weight(f"{name}.place"), np.zeros_like(x)
        for top in range(0, height, 8):
            for left in range(0, width, 8):
                window = qkv[:, top : top + 8, left : left + 8]
                down, right = (at.ravel() for at in np.indices(window.shape[1:]))
                relative = 15 * (down[:, None] - down + 7) + right[:, None] - right + 7
                query, key, value = window.reshape(3, heads, channels // heads, -1)
                score = query.transpose(0, 2, 1) @ key / np.sqrt(channels // heads) + bias[:, relative]
                score = np.exp(score - score.max(-1, keepdims=True))
                attended = value @ (score / score.sum(-1, keepdims=True)).transpose(0, 2, 1)
                out[:, top : top + 8, left : left + 8] = attended.reshape(channels, *window.shape[1:])
        return out

    def blocks(self, name: str, x: np.ndarray) -> np.ndarray:
        for number in count():
            if f"{name}.{number}.expand.weight" not in self:
                return x
            x = self.block(f"{name}.{number}", x)
        raise AssertionError

    def pixels(self, row: Row) -> np.ndarray:
        q, z, r = self.latents(row)
        features = self.conv("means.enter", z.astype(np.float32)) * self.gain("means.gain", q)
        features = shuffled(self.conv("means.up", self.block("means.coarse", features)), 2)
        features = self.block("means.fine", features)
        y = np.zeros(r.shape, np.float32)
        for step in range(4):
            name = f"means.steps.{step}"
            x = self.conv(f"{name}.0", np.concatenate([features, y]) if step else features)
            last = 1 + self.options.get("step_blocks", 1)
            for number in range(1, last):
                x = self.block(f"{name}.{number}", x)
            mean = self.conv(f"{name}.{last}", x)
            y = np.where(steps_of(*r.shape) == step, mean + r / self.gain("gain", q), y).astype(np.float32)
        x = self.conv("synthesis.up", self.blocks("synthesis.deep", self.conv("synthesis.enter", y)))
        x = self.blocks("synthesis.blocks", shuffled(x, 2) * self.gain("synthesis.gain", q))
        picture = shuffled(self.conv("synthesis.leave", x), 8) + 0.5
        if "synthesis.shortcut.weight" in self:
            picture = picture + shuffled(shuffled(self.conv("synthesis.shortcut", y), 2), 8)
        return to_samples(picture, row)


@cache
def network(path: Path) -> Autoencoder | Hyperprior:
    family = Arrays(path).family
    return Hyperprior(path) if family in ("v5", "v6") else Autoencoder(path)


def decoded(row: Row, archive: Path) -> np.ndarray:
    """A row's pixels, uint8 (height, width, 3)."""
    codec, payload = row["codec"], row["payload"]
    if codec in ("av1", "av1-444"):
        pixels = imagecodecs.avif_decode(container(AV1 if codec == "av1" else AV1_444, row) + payload)
    elif codec in STANDARD:
        pixels = STANDARD[codec](payload)
    else:
        pixels = network(archive / "codecs" / f"{codec}.safetensors").pixels(row)
    if row["channels"] == 1:
        grey = (2 * pixels.astype(int).sum(axis=2, keepdims=True) + 3) // 6
        pixels = np.broadcast_to(grey, pixels.shape).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def main(archive: str = "example-archive", folder: str = "example-pictures") -> None:
    marker = Path(archive, "latentpack.json")
    if not marker.is_file() or json.loads(marker.read_bytes())["format"] > 1:
        sys.exit(f"{archive}: there is no archive of format 1 in this folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    number = 0
    for file in DeltaTable(f"{archive}/images").file_uris():
        for row in pq.read_table(file).to_pylist():
            number += 1
            name = Path(folder, f"{number:06d}")
            if row["codec"] == "original":
                name.with_suffix(Path(row["key"]).suffix).write_bytes(row["payload"])
            else:
                cv2.imwrite(f"{name}.png", decoded(row, Path(archive))[:, :, ::-1])
            print(f"{name.name} {row['key']}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

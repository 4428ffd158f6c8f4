"""Mutated pictures, payloads, rows, codecs and tables, in a process with little memory: is each refused by name?"""

import io
import random
import time
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import crc32c
import imagecodecs
import numpy as np
import pyarrow as pa
from PIL import Image

from compressor import artifact, integrity
from compressor.archive import Archive
from compressor.codec import load_codec
from compressor.errors import ImageError, LatentpackError
from compressor.images import decode_picture
from compressor.limits import Limits
from compressor.parquet import IMAGES, RangeFile, Row, encode, from_table, read_groups, read_metadata, to_table
from compressor.quality import Searchable
from promises.common import Worker, elapsed, limit_memory, print_table
from tests.codecs import smooth_pictures, tiny_artifact, tried
from tests.rows import face_rows

MEGABYTES = 2048  # of address space beyond what the imported program takes: allocations that ask for more fail
SECONDS = 30.0  # after which an input is said to hang
PIXELS = 4_000_000  # largest picture that is decoded
SIDE = 48


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0)


def run(options: Namespace, scratch: Path) -> bool:
    """Feed each target mutated inputs for its share of the time. True where none crashed or hung."""
    started = time.monotonic()
    counts: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = defaultdict(float)
    seconds = options.minutes * 60 / len(TARGETS)
    for name in TARGETS:
        counts[name] = Counter()
        choose = random.Random(f"{options.seed} {name}")
        worker = Worker(_prepare, (name, str(scratch)), _try)
        worker.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seed = choose.getrandbits(60)
            asked = time.monotonic()
            outcome = worker.ask(seed, SECONDS)
            slowest[name] = max(slowest[name], time.monotonic() - asked)
            counts[name][outcome] += 1
            if outcome not in ("refused", "accepted"):
                print(f"{name}, seed {seed}: {outcome}", flush=True)
        worker.stop()
    total = sum(counts.values(), Counter())
    rows = []
    for name, found in [*counts.items(), ("**all**", total)]:
        bad = found.total() - found["refused"] - found["accepted"] - found["hang"]
        longest = slowest[name] if name in slowest else max(slowest.values())
        rows.append((name, found.total(), found["refused"], found["accepted"], bad, found["hang"], f"{longest:.1f} s"))
    print(f"{options.minutes:g} minutes, {MEGABYTES:,} MiB of memory, {elapsed(started)}\n")
    print_table(("what is read", "inputs", "refused by name", "read", "crashes", "hangs", "slowest"), rows)
    return total.total() == total["refused"] + total["accepted"]


def mutated(data: bytes, choose: random.Random) -> bytes:
    """Bits flipped, bytes set to telling values, pieces cut out, doubled, moved or overwritten; 1 to 8 of these."""
    out = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            return b""
        at = choose.randrange(len(out))
        length = min(choose.choice((1, 2, 4, 16, 200)), len(out) - at)
        match choose.randrange(8):
            case 0 | 1:
                out[at] ^= 1 << choose.randrange(8)
            case 2:
                out[at : at + length] = bytes(choose.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in range(length))
            case 3:
                out[at : at + length] = choose.randbytes(length)
            case 4:
                del out[at : at + length]
            case 5:
                out[at:at] = out[at : at + length]
            case 6:
                to = choose.randrange(len(out))
                out[to : to + length] = out[at : at + length]
            case 7:
                del out[at:]
    return bytes(out)


def _prepare(name: str, scratch: str) -> tuple[Callable[[random.Random, Any], None], Any]:
    """A target and its sound inputs, in a process of which little memory is left."""
    prepare, feed = TARGETS[name]
    sound = prepare(scratch)
    for seed in range(3):  # what is imported at the first call is imported now
        _try((feed, sound), seed)
    limit_memory(MEGABYTES)
    return feed, sound


def _try(state: tuple[Callable[[random.Random, Any], None], Any], seed: int) -> str:
    feed, sound = state
    try:
        feed(random.Random(seed), sound)
    except LatentpackError:
        return "refused"
    except BaseException as error:
        return f"crash: {type(error).__name__}: {str(error)[:200]}"
    return "accepted"


def _pictures(_: str) -> list[bytes]:
    """Files of every format and many kinds of each."""
    [pixels] = smooth_pictures(1, SIDE, SIDE)
    rgb = Image.fromarray(pixels)
    grey, translucent = rgb.convert("L"), rgb.convert("RGBA")
    translucent.putalpha(grey)
    deep = pixels.astype(np.uint16) * 257
    frames: dict[str, Any] = {"save_all": True, "append_images": [grey.convert("RGB"), rgb]}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "png", {}), (rgb.quantize(16), "png", {"transparency": 1}), (translucent, "png", {}),
        (rgb, "png", frames),
        (rgb, "jpeg", {}), (rgb, "jpeg", {"progressive": True}), (rgb.convert("CMYK"), "jpeg", {}), (grey, "jpeg", {}),
        (rgb, "webp", {"lossless": True}), (translucent, "webp", {}), (rgb, "webp", frames),
        (rgb, "avif", {}), (translucent, "avif", {}), (rgb, "avif", frames),
        (rgb, "jpeg2000", {}), (rgb, "bmp", {}), (grey.convert("1"), "bmp", {}), (rgb, "gif", frames),
        (rgb, "ppm", {}), (grey.convert("1"), "ppm", {}),
        (rgb, "tiff", frames), (grey.convert("1"), "tiff", {"compression": "group4"}),
    ]  # fmt: skip
    kinds += [
        (picture, "tiff", {"compression": compression})
        for picture in (rgb, rgb.convert("CMYK"), rgb.quantize(16), rgb.convert("LAB"))
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
    ]
    files = []
    for picture, format, settings in kinds:
        file = io.BytesIO()
        picture.save(file, format, **settings)
        files.append(file.getvalue())
    files += [
        imagecodecs.png_encode(deep),
        imagecodecs.tiff_encode(deep),
        imagecodecs.avif_encode(deep >> 6, bitspersample=10),
        imagecodecs.jpegxl_encode(pixels, level=90, lossless=False),
        imagecodecs.jpegxl_encode(np.asarray(translucent), lossless=True, usecontainer=True),
        imagecodecs.jpegxl_encode(np.stack([pixels, pixels[::-1]]), lossless=True),
    ]
    files += [imagecodecs.jpeg2k_encode(deep, level=0), imagecodecs.jpeg8_encode(deep >> 4, bitspersample=12)]
    return [bytes(file) for file in files]


def _feed_picture(choose: random.Random, files: list[bytes]) -> None:
    data = mutated(choose.choice(files), choose)
    try:
        decode_picture(data, Limits(max_pixels=PIXELS))
    except ImageError as error:
        if error.reason not in ("empty", "not_a_picture", "truncated", "unsupported", "too_large", "corrupt"):
            raise AssertionError(error.reason) from error
        raise


def _codecs(_: str) -> list[tuple[Any, Any]]:
    """Codecs with payloads of theirs, by every packer."""
    pictures = smooth_pictures(2, SIDE, SIDE)
    found: list[tuple[Any, Any]] = []
    for name in ("v1", "v4", "v5"):
        codec = load_codec(tiny_artifact(name))
        quality = codec.qualities.stop // 2 if len(codec.qualities) else -1
        for packer in codec.packers:
            found += [(codec, one) for one in codec.encode(pictures, quality, packer)]
            if isinstance(codec, Searchable):  # which also stores parts of steps
                found += [(codec, one) for one in tried(codec, pictures, [251, 254], packer)[0]]
    for name in ("jpeg", "webp", "avif", "jpegxl", "lossless"):
        codec = load_codec(name)
        found += [(codec, one) for one in codec.encode(pictures, 60)]
    return found


def _feed_payload(choose: random.Random, found: list[tuple[Any, Any]]) -> None:
    codec, encoded = choose.choice(found)
    pixels = codec.decode([replace(encoded, payload=mutated(encoded.payload, choose))])[0]
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8


def _archive(scratch: str) -> tuple[Archive, list[Row]]:
    """An archive with all codecs, and a row by each."""
    archive = Archive.create(f"{scratch}/rows-{random.getrandbits(40):x}")
    for name in ("v1", "v4", "v5"):
        archive.put_codec(tiny_artifact(name))
    rows = [
        replace(
            face_rows(1)[0], width=one.width, height=one.height, codec=one.codec, quality=one.quality,
            packer=one.packer, payload=one.payload, crc32c=0,
        )
        for _, one in _codecs(scratch)
    ]  # fmt: skip
    return archive, rows


def _feed_row(choose: random.Random, state: tuple[Archive, list[Row]]) -> None:
    """A row with a sound checksum and anything else in it: what a crafted archive may hold."""
    archive, rows = state
    row = choose.choice(rows)
    numbers = (-(2**31), -1, 0, 1, 2, 47, 49, 1000, 65_535, 2**20, 2**31 - 1)
    for _ in range(choose.randint(1, 3)):
        match choose.randrange(6):
            case 0:
                row = replace(row, width=choose.choice(numbers))
            case 1:
                row = replace(row, height=choose.choice(numbers))
            case 2:
                row = replace(row, quality=choose.choice((-(2**15), -1, 0, 1, 63, 64, 100, 2**15 - 1)))
            case 3:
                row = replace(
                    row, packer=choose.choice(("", "entropy", "lzma", "gzip", "fp16-lzma", "int8-none", "../x"))
                )
            case 4:
                row = replace(row, codec=choose.choice([*(other.codec for other in rows), "original", "", "../../x"]))
            case 5:
                row = replace(row, payload=mutated(row.payload, choose), channels=choose.choice((-1, 0, 1, 3, 4)))
    archive.decode([replace(row, crc32c=crc32c.crc32c(row.payload))])


def _feed_codec(choose: random.Random, state: tuple[Archive, list[Row]]) -> None:
    """Mutated anywhere, but half of the time in the header, where sizes, names and the configuration are."""
    archive, rows = state
    row = choose.choice(rows)
    data = _ARTIFACTS[row.codec]
    edge = 8 + int.from_bytes(data[:8], "little")
    if choose.random() < 0.5:
        data = mutated(data[:edge], choose) + data[edge:]
    elif choose.random() < 0.7:  # a header that fits its changed text
        text = mutated(data[8:edge], choose)
        data = len(text).to_bytes(8, "little") + text + data[edge:]
    else:
        data = mutated(data, choose)
    _read_with(archive, row, data)


def _learned(scratch: str) -> tuple[Archive, list[Row]]:
    """An archive, and rows by codecs of which other bytes may be put in."""
    _ARTIFACTS.update({load_codec(data).id: data for data in map(tiny_artifact, ("v1", "v4", "v5"))})
    archive, rows = _archive(scratch)
    return archive, [row for row in rows if row.codec in _ARTIFACTS]


_ARTIFACTS: dict[str, bytes] = {}


def _read_with(archive: Archive, row: Row, data: bytes) -> None:
    """Decode a sound payload by another artifact than the one that wrote it, under a name that fits."""
    id = artifact.identify(data)
    there = Path(archive.url) / "codecs" / f"{id}.safetensors"
    there.write_bytes(data)
    try:
        archive.decode([replace(row, codec=id, crc32c=crc32c.crc32c(row.payload))])
    finally:
        there.unlink()


def _feed_configuration(choose: random.Random, state: tuple[Archive, list[Row]]) -> None:
    """A well-made artifact that says anything of its network."""
    archive, rows = state
    row = choose.choice(rows)
    parsed = artifact.parse(_ARTIFACTS[row.codec])
    metadata = dict(parsed.metadata)
    network = dict(metadata.get("network") or {})
    strange = (None, -1, 0, 1, 7, 10**6, 10**12, 0.5, "x", [], {}, [1] * 50, True)
    match choose.randrange(4):
        case 0:
            metadata[choose.choice(("family", "name", "network", "card", "format"))] = choose.choice(strange)
        case 1:
            names = [*network, "latents", "hyper", "channels", "width", "device", "__class__"]
            metadata["network"] = network | {choose.choice(names): choose.choice(strange)}
        case 2:
            metadata["family"] = choose.choice(("v1", "v2", "v3", "v4", "v5", "v6", "", "os"))
        case 3:
            pass
    tensors = dict(parsed.tensors)
    name = choose.choice(list(tensors))
    match choose.randrange(5):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[name].reshape(-1)[: max(1, tensors[name].size // 2)]
        case 2:
            tensors[name] = np.full_like(tensors[name], choose.choice((0, 1, -1, 127)))
        case 3:
            tensors[name] = tensors[name].astype(choose.choice((np.float64, np.int8, np.int64, np.uint8)))
        case 4:
            pass
    _read_with(archive, row, artifact.dump(metadata, tensors))


def _parquet(_: str) -> list[tuple[str, bytes]]:
    files = [encode([to_table(face_rows(count), IMAGES)], IMAGES)[0] for count in (3, 60)]
    return [(integrity.part_name(data), data) for data in files]


def _feed_table(choose: random.Random, files: list[tuple[str, bytes]]) -> None:
    """Read as readers do, by the name that the file was written under."""
    name, data = choose.choice(files)
    footer = int.from_bytes(data[-8:-4], "little") + 8
    _read_table(
        name, data[:-footer] + mutated(data[-footer:], choose) if choose.random() < 0.2 else mutated(data, choose)
    )


def _feed_crafted_table(choose: random.Random, files: list[tuple[str, bytes]]) -> None:
    """The same with a footer that fits its name: pages, their headers and all else are hostile, the footer is sound."""
    _, data = choose.choice(files)
    footer = int.from_bytes(data[-8:-4], "little") + 8
    crafted = mutated(data[:-footer], choose) + data[-footer:]
    _read_table(integrity.part_name(crafted), crafted)


def _read_table(name: str, data: bytes) -> None:
    try:
        metadata = read_metadata(_open(data), name)
        for group in range(metadata.num_row_groups):
            from_table(read_groups(_open(data), metadata, [group], IMAGES.names, salvage=True), IMAGES)
    except (OSError, pa.ArrowException, ValueError, KeyError, MemoryError) as error:
        raise LatentpackError(str(error)) from error  # as the archive's methods turn them into


def _open(data: bytes) -> RangeFile:
    return RangeFile(lambda spans: [data[start:end] for start, end in spans], len(data))


TARGETS: dict[str, tuple[Callable[[str], Any], Callable[[random.Random, Any], None]]] = {
    "pictures": (_pictures, _feed_picture),
    "payloads": (_codecs, _feed_payload),
    "rows with sound checksums": (_archive, _feed_row),
    "codecs, any bytes": (_learned, _feed_codec),
    "codecs, well-made but lying": (_learned, _feed_configuration),
    "Parquet files, damaged": (_parquet, _feed_table),
    "Parquet files, crafted pages": (_parquet, _feed_crafted_table),
}

"""Bytes of an archive's Parquet files, all columns, per picture, beside the standard formats.

    python benchmarks/archive_size.py FOLDER [--codec faces] [--effort 0] [--limit 200] [--slow]

The first table is at equal mean PSNR: each codec runs through its qualities and its curve is read off at the given
PSNR; BD-rates are all taken over the one range of PSNR that all have. In the second every single picture reaches the
PSNR, by a search for each, and the archive's fallbacks take part. ``--slow`` adds AVIF and JPEG XL with all the time
that they can make use of.

Every figure is of files written in this run: the archive's parts, and one file a picture for the other formats
(``payload`` leaves out what every file of a format repeats, and of a JPEG its Huffman tables too). Pictures are taken
as they are, without those that cannot be read or whose own bytes an archive keeps. What follows a ± is half of the
95 % interval for other pictures of this kind, where it can be told (paired bootstrap).
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import StandardCodec
from compressor.bootstrap import half_width
from compressor.codec import artifact_bytes
from compressor.comparison import Curve, curves, drawn_curves
from compressor.containers import payload_size
from compressor.encoding import EncodeOptions, encode_batch
from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.metrics import psnr
from compressor.quality import encode_measured, encode_to_target
from compressor.report import SCHEMA
from compressor.sources import Source, SourceFile

ARCHIVE = "archive"
TARGETS = (30.0, 32.0, 34.0, 36.0)
QUALITIES = {
    "jpeg": range(10, 97, 6),
    "webp": range(2, 99, 8),
    "avif": range(14, 93, 6),
    "avif-444": range(8, 93, 6),
    "jpegxl": range(8, 96, 6),
}
SLOW = {"avif-444": 0, "jpegxl": 9}  # AVIF's slowest speed; above 9 JPEG XL takes minutes

Line = tuple[str, str, str]  # title, codec, and which bytes of it
Found = tuple[dict[str, Curve], list[dict[str, Curve]]]  # curves of the pictures, and of pictures drawn anew


def standard_rows(name: str, codec: StandardCodec, pictures: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Of each picture at each quality its PSNR, the bytes of its file, and those of its payload."""
    for quality in QUALITIES[codec.id]:
        for index, one in enumerate(encode_measured(codec, pictures, quality)):
            yield _row(name, quality, index, one.psnr, len(one.encoded.payload), payload_size(one.encoded.payload))


def archive_rows(
    source: Source, files: Sequence[SourceFile], pictures: Sequence[np.ndarray], codec: str, effort: int
) -> Iterator[dict[str, Any]]:
    """The same of archives at fixed quality steps, read back from disk; what all rows share is spread over them."""
    for quality in range(2, 64, 6):
        with tempfile.TemporaryDirectory() as folder:
            archive, size = written(source, files, folder, codec, quality=quality, effort=effort)
            found: dict[str, tuple[int, np.ndarray]] = {}
            for rows in archive.scan(batch_size=64):
                for row, pixels in zip(rows, archive.decode(rows), strict=True):
                    found[row.key] = len(row.payload), pixels
        shared = size - sum(payload for payload, _ in found.values())
        for index, (file, picture) in enumerate(zip(files, pictures, strict=True)):
            payload, pixels = found[file.key]
            share = shared * (index + 1) // len(files) - shared * index // len(files)
            yield _row(ARCHIVE, quality, index, psnr(picture, pixels), payload + share, payload)


def written(
    source: Source, files: Sequence[SourceFile], folder: str, codec: str, **options: Any
) -> tuple[Archive, int]:
    """An archive of these files, and the bytes of its Parquet files."""
    data = artifact_bytes(codec)
    archive = Archive.create(f"{folder}/archive")
    archive.put_codec(data)
    report = encode_batch(source, files, archive, EncodeOptions(identify(data), **options), "benchmark")
    if report.archived != len(files):
        raise SystemExit(f"only {report.archived} of {len(files)} pictures could be archived")
    archive.commit(report.parts)
    return archive, sum(part.size for part in report.parts)


def at_target(codec: StandardCodec, pictures: Sequence[np.ndarray], target: float) -> tuple[float, float] | None:
    """Mean bytes of files and of payloads where every picture reaches a PSNR; None where one does not."""
    stored = encode_to_target(codec, pictures, target)
    payloads = [one.encoded.payload for one in stored if one]
    if len(payloads) < len(pictures):
        return None
    return float(np.mean([len(one) for one in payloads])), float(np.mean([payload_size(one) for one in payloads]))


def _row(codec: str, quality: int, index: int, reached: float, size: int, payload: int) -> dict[str, Any]:
    if math.isinf(reached):
        raise SystemExit(f"{codec} at quality {quality} stores picture {index + 1} exactly: leave such pictures out")
    return {
        "codec": codec, "quality": quality, "key": f"{index:06d}", "psnr": reached, "bytes": size,
        "payload_bytes": payload,
    }  # fmt: skip


def readable(source: Source, files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, np.ndarray]]:
    """Files that every codec can be measured on, and their pixels, uint8 (H, W, 3)."""
    for file, content in zip(files, source.read([file.path for file in files]), strict=True):
        with suppress(ImageError):
            if not isinstance(content, Exception) and (picture := decode_picture(content)).keep is None:
                yield file, picture.pixels


def with_interval(found: Found, form: str, figure: Callable[..., float | None], *of: object) -> str:
    """A figure of the curves, and half of the interval that it spreads over where pictures are drawn anew."""
    value = figure(found[0], *of)
    if value is None:
        return "–"
    spread = half_width(figure(draw, *of) for draw in found[1])
    return f"{value:{form}}" + ("" if math.isnan(spread) else f" ± {spread:{form[-3:]}}")


def share(drawn: dict[str, Curve], name: str, rate: str, target: float) -> float | None:
    """The archive's bytes as a share of a codec's, at a mean PSNR."""
    own, other = drawn[ARCHIVE].at("psnr", target), drawn[name].at("psnr", target, rate)
    return None if own is None or other is None else own / other


def saved(drawn: dict[str, Curve], name: str, rate: str, within: tuple[float, float]) -> float:
    """BD-rate of the archive against a codec, in percent."""
    return drawn[name].over("psnr", rate).bd_rate(drawn[ARCHIVE].over("psnr"), within)


def print_equal_means(found: Found, lines: Sequence[Line], anchors: Sequence[Line]) -> None:
    """Bytes and BD-rates of ``lines``, and the archive's bytes as shares of ``anchors``."""
    ends = [curve.over("psnr") for curve in found[0].values()]
    within = max(one.low for one in ends), min(one.high for one in ends)
    print(f"At equal mean PSNR; BD-rate of the archive from {within[0]:.1f} to {within[1]:.1f} dB\n")
    print_heading("BD-rate")
    for title, name, rate in lines:
        cells = [found[0][name].at("psnr", target, rate) for target in TARGETS]
        rates = "" if name == ARCHIVE else with_interval(found, "+.1f", saved, name, rate, within) + " %"
        print(f"| {title} | {' | '.join('–' if cell is None else f'{cell:,.0f}' for cell in cells)} | {rates} |")
    for title, name, rate in anchors:
        shares = [with_interval(found, ".3f", share, name, rate, target) for target in TARGETS]
        print(f"archive / {title}: " + ", ".join(shares))


def print_heading(*more: str) -> None:
    columns = [*(f"{target:.0f} dB" for target in TARGETS), *more]
    print(f"| | {' | '.join(columns)} |\n| --- {'| ---: ' * len(columns)}|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--codec", default="faces")
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--slow", action="store_true", help="also AVIF and JPEG XL at their slowest settings")
    options = parser.parse_args()

    source = Source.open(options.folder)
    listed = list(islice(source.files(), options.limit))
    readable_ones = list(readable(source, listed))
    if not readable_ones:
        raise SystemExit(f"{options.folder} holds no picture that can be measured")
    if len(readable_ones) < len(listed):
        print(f"left out: {len(listed) - len(readable_ones)} that cannot be read, or whose own bytes an archive keeps")
    files, pictures = [file for file, _ in readable_ones], [pixels for _, pixels in readable_ones]
    standard = {name: StandardCodec(name) for name in QUALITIES}
    if options.slow:
        standard |= {f"{name}, slowest": StandardCodec(name, effort) for name, effort in SLOW.items()}

    rows = [row for name, codec in standard.items() for row in standard_rows(name, codec, pictures)]
    rows += archive_rows(source, files, pictures, options.codec, options.effort)
    table = pa.Table.from_pylist(rows, SCHEMA)
    kinds = {"file": "bytes", "payload": "payload_bytes"}
    lines = [(f"{name}, {kind}", name, rate) for name in standard for kind, rate in kinds.items()]
    lines += [("archive, all columns", ARCHIVE, "bytes"), ("archive, payload", ARCHIVE, "payload_bytes")]
    anchors = [line for line in lines if line[1] in ("jpeg", "avif", "avif-444")]
    print(f"{len(pictures)} pictures, bytes a picture\n")
    print_equal_means((curves(table), drawn_curves(table)), lines, anchors)

    print("\nEvery picture at the PSNR or above\n")
    print_heading()
    for name, codec in standard.items():
        reached = [at_target(codec, pictures, target) for target in TARGETS]
        for index, kind in enumerate(kinds):
            cells = ["–" if one is None else f"{one[index]:,.0f}" for one in reached]
            print(f"| {name}, {kind} | {' | '.join(cells)} |")
    sizes = []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            _, size = written(source, files, folder, options.codec, target_psnr=target, effort=options.effort)
        sizes.append(f"{size / len(files):,.0f}")
    print("| archive, all columns | " + " | ".join(sizes) + " |")


if __name__ == "__main__":
    main()

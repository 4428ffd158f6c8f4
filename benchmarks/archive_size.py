"""Bytes of an archive's Parquet files, all columns, per picture at equal mean PSNR, beside the standard formats.

    python benchmarks/archive_size.py FOLDER [--codec faces] [--effort 0] [--limit 200]

Every figure is of files written in this run: the archive's parts, and one file a picture for the other formats
(``payload`` leaves out what every file of a format repeats, and of a JPEG its Huffman tables too). Pictures are taken
as they are, without those that cannot be read or whose own bytes an archive keeps; each codec runs through its
qualities and its curve is read off at the given PSNR. BD-rates are all taken over the one range of PSNR that all have.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import numpy as np

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import STANDARD
from compressor.codec import artifact_bytes
from compressor.containers import payload_size
from compressor.encoding import EncodeOptions, encode_batch
from compressor.errors import ImageError
from compressor.images import decode_picture
from compressor.metrics import RateCurve, bd_rate, psnr
from compressor.quality import encode_measured
from compressor.sources import Source, SourceFile

TARGETS = (30.0, 32.0, 34.0, 36.0)
QUALITIES = {
    "jpeg": range(10, 97, 6),
    "webp": range(2, 99, 8),
    "avif": range(14, 93, 6),
    "avif-444": range(8, 93, 6),
    "jpegxl": range(8, 96, 6),
}


def standard_curve(name: str, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of (mean PSNR, bytes a file, bytes of payload)."""
    rows = []
    for quality in QUALITIES[name]:
        stored = encode_measured(STANDARD[name], pictures, quality)
        check_inexact(name, quality, [one.psnr for one in stored])
        payloads = [one.encoded.payload for one in stored]
        rows.append(
            (
                np.mean([one.psnr for one in stored]),
                np.mean([len(payload) for payload in payloads]),
                np.mean([payload_size(payload) for payload in payloads]),
            )
        )
    return np.array(rows)


def archive_curve(
    source: Source, files: Sequence[SourceFile], pictures: Sequence[np.ndarray], codec: str, effort: int = 0
) -> np.ndarray:
    """Rows of (mean PSNR, bytes of Parquet a picture, bytes of payload) at fixed quality steps, read back from disk."""
    data = artifact_bytes(codec)
    rows = []
    for quality in range(2, 64, 6):
        with tempfile.TemporaryDirectory() as folder:
            archive = Archive.create(f"{folder}/archive")
            archive.put_codec(data)
            report = encode_batch(
                source, files, archive, EncodeOptions(identify(data), quality=quality, effort=effort), "benchmark"
            )
            archive.commit(report.parts)
            read = [archive.read(file.key) for file in files]
            reached = [psnr(a, b) for a, b in zip(pictures, read, strict=True)]
            check_inexact("the archive", quality, reached)
            rows.append(
                (
                    np.mean(reached),
                    sum(part.size for part in report.parts) / len(files),
                    report.payload_bytes / len(files),
                )
            )
    return np.array(rows)


def check_inexact(name: str, quality: int, psnrs: Sequence[float]) -> None:
    """End where a picture comes back exact: it has no PSNR that a mean could hold."""
    exact = [index for index, value in enumerate(psnrs) if math.isinf(value)]
    if exact:
        raise SystemExit(f"{name} at quality {quality} stores picture {exact[0] + 1} exactly: leave such pictures out")


def readable(source: Source, files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, np.ndarray]]:
    """Files that every codec can be measured on, and their pixels, uint8 (H, W, 3)."""
    for file, content in zip(files, source.read([file.path for file in files]), strict=True):
        with suppress(ImageError):
            if not isinstance(content, Exception) and (picture := decode_picture(content)).keep is None:
                yield file, picture.pixels


def at(curve: np.ndarray, psnr: float, column: int) -> float:
    """Bytes on a curve at a PSNR, NaN outside it."""
    rate = RateCurve(curve[:, column], curve[:, 0]).rate_at(psnr)
    return math.nan if rate is None else rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--codec", default="faces")
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()

    source = Source.open(options.folder)
    listed = list(islice(source.files(), options.limit))
    found = list(readable(source, listed))
    if not found:
        raise SystemExit(f"{options.folder} holds no picture that can be measured")
    if len(found) < len(listed):
        print(f"left out: {len(listed) - len(found)} that cannot be read, or whose own bytes an archive keeps")
    files, pictures = [file for file, _ in found], [pixels for _, pixels in found]
    curves = {name: standard_curve(name, pictures) for name in QUALITIES}
    archive = archive_curve(source, files, pictures, options.codec, options.effort)

    ends = [(curve[:, 0].min(), curve[:, 0].max()) for curve in (*curves.values(), archive)]
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    print(f"{len(pictures)} pictures, bytes a picture at equal mean PSNR; BD-rate from {low:.1f} to {high:.1f} dB\n")
    print("| | " + " | ".join(f"{target:.0f} dB" for target in TARGETS) + " | BD-rate of the archive against it |")
    print("| --- | " + "--- | " * (len(TARGETS) + 1))
    lines = [
        (f"{name}, {kind}", curve, column)
        for name, curve in curves.items()
        for kind, column in (("file", 1), ("payload", 2))
    ]
    for title, curve, column in [*lines, ("archive, all columns", archive, 1), ("archive, payload", archive, 2)]:
        cells = " | ".join(f"{at(curve, target, column):.0f}" for target in TARGETS)
        saved = bd_rate(curve[:, column], curve[:, 0], archive[:, 1], archive[:, 0], (low, high))
        print(f"| {title} | {cells} | {saved:+.1f} % |")
    for name, column, title in (
        ("jpeg", 1, "JPEG's file"),
        ("avif", 1, "AVIF's file"),
        ("avif", 2, "AVIF's payload"),
        ("avif-444", 1, "the file of AVIF 4:4:4"),
        ("avif-444", 2, "the payload of AVIF 4:4:4"),
    ):
        ratios = [at(archive, target, 1) / at(curves[name], target, column) for target in TARGETS]
        print(f"archive / {title}: " + ", ".join(f"{ratio:.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()

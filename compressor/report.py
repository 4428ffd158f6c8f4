"""Benchmark: measures codecs on pictures, and writes the report as HTML, Markdown and Parquet.

What the figures mean is worked out in ``comparison.py``, drawn in ``plots.py`` and laid out in ``pages.py``;
pictures side by side come from ``strips.py``.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from compressor import pages, plots
from compressor.baselines import STANDARD, is_carried
from compressor.codec import Codec, spread_qualities
from compressor.comparison import (
    Curve,
    Headline,
    Table,
    bd_table,
    curves,
    drawn_curves,
    equal_psnr_tables,
    headline,
    points_table,
    speed_table,
    without_exact,
)
from compressor.defaults import TARGET_PSNR
from compressor.metrics import luma, ms_ssim, psnr, ssim, ssimulacra2
from compressor.strips import Strip, side_by_side, stored_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARCHIVE_ROW_BYTES = 32  # what a row costs beside its payload in parts of 150 pictures or more; a learned codec's header
STRIP_PICTURES = 4
STRIP_LEVEL = 32.0  # dB: where differences are seen without being grotesque
QUALITIES = {
    "jpeg": (5, 10, 15, 20, 28, 38, 50, 65, 78, 88, 94),
    "webp": (1, 10, 22, 35, 50, 65, 78, 86, 92),
    "avif": (14, 24, 34, 44, 54, 64, 74, 84),
    "avif-444": (8, 18, 29, 40, 51, 62, 73, 84),
    "jpegxl": (10, 20, 32, 45, 58, 70, 80, 88, 93),
}
"""Qualities measured by default, by codec id: spread so that curves from 28 to 40 dB need no extrapolation."""
_LEARNED_QUALITIES = 10
_NAMES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "avif-444": "AVIF 4:4:4", "jpegxl": "JPEG XL"}
_PACKAGES = (
    "latentpack", "numpy", "torch", "constriction", "imagecodecs", "pillow", "opencv-python-headless", "scikit-image",
    "ssimulacra2", "pyarrow",
)  # fmt: skip
_ANCHORS = (
    "avif",
    "avif-444",
    "webp",
    "jpegxl",
    "jpeg",
)  # codec ids in the order of what they are worth comparing with
_CODECS_KEY = b"latentpack.codecs"
SCHEMA = pa.schema(
    [
        ("codec", pa.string()),
        ("quality", pa.int16()),
        ("key", pa.string()),
        ("bytes", pa.int64()),
        ("payload_bytes", pa.int64()),
        ("psnr", pa.float64()),
        ("psnr_luma", pa.float64()),
        ("ssim", pa.float64()),
        ("ms_ssim", pa.float64()),
        ("ssimulacra2", pa.float64()),
        ("encode_s", pa.float64()),
        ("decode_s", pa.float64()),
        ("decoded_png_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Report:
    """Where a report lies, and what it says.

    ``summary`` is the headline, the curves and the tables as JSON-able values; ``artifact`` the Markdown text with its
    first plot inside, for a viewer that cannot follow links to files.
    """

    html: Path
    markdown: Path
    parquet: Path
    plots: dict[str, Path]
    summary: dict[str, Any]
    artifact: str


def standard_codecs() -> dict[str, Codec]:
    """JPEG, WebP, AVIF (as it is usually written, and tuned for PSNR) and JPEG XL by the names that reports use."""
    return {title: STANDARD[name] for name, title in _NAMES.items()}


def default_qualities(codec: Codec) -> list[int]:
    """Qualities worth measuring: of a standard format :data:`QUALITIES`, of another codec ten."""
    return list(QUALITIES.get(codec.id) or spread_qualities(codec, _LEARNED_QUALITIES))


def measure(
    pictures: Mapping[str, np.ndarray],
    codecs: Mapping[str, Codec],
    qualities: Mapping[str, Sequence[int]] | None = None,
    ssimulacra2_pictures: int | None = None,
    batch: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """Encode and decode every picture with every codec at each of its qualities, and measure what comes back.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3) by key.
    codecs
        By the name that the report gives them; one codec at two settings is two names.
    qualities
        By the same names; :func:`default_qualities` for those left out.
    ssimulacra2_pictures
        Measure SSIMULACRA 2, which takes some 15 ms at 128 x 128, on this many pictures only, spread evenly. None: all.
    batch
        Pictures handed to a codec at once. Seconds are the batch's, divided by its pictures.
    on_progress
        Told how many of how many encodings are done, after each batch.

    Returns
    -------
    pyarrow.Table
        ``SCHEMA``: a row for each codec, quality and picture. PSNR is infinite where nothing is lost; a metric that
        does not apply to a picture is null. The codecs' ids and descriptions are in the schema's metadata.

    Raises
    ------
    ValueError
        If there are no pictures or no codecs.
    CodecError
        If a codec refuses a picture.
    """
    if not pictures or not codecs:
        raise ValueError("a benchmark needs at least one picture and one codec")
    plan = {name: list((qualities or {}).get(name) or default_qualities(codec)) for name, codec in codecs.items()}
    keys = list(pictures)
    limit = len(keys) if ssimulacra2_pictures is None else min(ssimulacra2_pictures, len(keys))
    perceptual = {keys[int(i)] for i in np.linspace(0, len(keys) - 1, limit).round()}
    done, total = 0, sum(map(len, plan.values())) * len(keys)
    rows: list[dict[str, Any]] = []
    for name, codec in codecs.items():
        first = pictures[keys[0]]
        codec.decode(codec.encode([first], plan[name][0]))  # not timed: libraries load and threads start here
        for quality in plan[name]:
            for start in range(0, len(keys), batch):
                chunk = keys[start : start + batch]
                is_file = codec.id in STANDARD and STANDARD[codec.id].writes_files
                overhead = 0 if is_file else ARCHIVE_ROW_BYTES
                for row in _measure_batch(codec, quality, chunk, [pictures[key] for key in chunk], perceptual):
                    rows.append({"codec": name, **row, "bytes": row["bytes"] + overhead})
                done += len(chunk)
                if on_progress:
                    on_progress(done, total)
    about = {name: {"id": codec.id, "description": codec.description} for name, codec in codecs.items()}
    return pa.Table.from_pylist(rows, SCHEMA.with_metadata({_CODECS_KEY: json.dumps(about).encode()}))


def _measure_batch(
    codec: Codec, quality: int, keys: list[str], pixels: list[np.ndarray], perceptual: set[str]
) -> Iterator[dict[str, Any]]:
    started = perf_counter()
    encoded = codec.encode(pixels, quality)
    between = perf_counter()
    decoded = codec.decode(encoded)
    ended = perf_counter()
    for key, source, one, picture in zip(keys, pixels, encoded, decoded, strict=True):
        yield {
            "quality": quality,
            "key": key,
            "bytes": len(one.payload),
            "payload_bytes": stored_bytes(codec, one),
            "psnr": psnr(source, picture),
            "psnr_luma": psnr(luma(source), luma(picture)),
            "ssim": ssim(source, picture),
            "ms_ssim": ms_ssim(source, picture),
            "ssimulacra2": ssimulacra2(source, picture) if key in perceptual else None,
            "encode_s": (between - started) / len(keys),
            "decode_s": (ended - between) / len(keys),
            "decoded_png_bytes": len(cv2.imencode(".png", picture)[1]),
        }


def write_report(
    table: pa.Table,
    pictures: Mapping[str, np.ndarray],
    directory: str | Path,
    codecs: Mapping[str, Codec],
    ours: Sequence[str] | None = None,
    title: str = "A benchmark",
    notes: Sequence[str] = (),
) -> Report:
    """Write ``report.html`` (self-contained), ``report.md`` with its plots as PNG beside it, and ``report.parquet``.

    Parameters
    ----------
    table
        What :func:`measure` returned for these pictures and codecs.
    pictures, codecs
        As given to :func:`measure`; a few pictures are encoded again to be shown side by side. One that some codec
        stores exactly is left out of all means (see :func:`compressor.comparison.without_exact`).
    directory
        Made if need be; a report that lies there is overwritten.
    ours
        Names of the codecs to emphasise, the most important first. None: all that are not standard formats.
    notes
        Sentences that the figures are not to be read without.

    Raises
    ------
    LatentpackError
        If the folder cannot be made, or every picture is left out.
    """
    import pyarrow.parquet as pq

    directory = Path(directory)
    pages.make_folder(directory)
    if ours is None:
        ours = [name for name, codec in codecs.items() if codec.id not in STANDARD]
    kept, left_out = without_exact(table)
    found, drawn = curves(kept), drawn_curves(kept)
    anchors = [name for id_ in _ANCHORS for name, codec in codecs.items() if codec.id == id_ and name in found]
    shares_of = [name for name in anchors if codecs[name].id in ("avif", "jpeg")]
    if any(is_carried(codecs[name].id) for name in ours):
        notes = ["Decoders of learned codecs, which an archive carries once, are not counted.", *notes]
    head = headline(found, anchors, ours, len(set(kept["key"].to_pylist())), len(left_out), notes)
    tables = [
        *equal_psnr_tables(found, drawn, shares_of, ours),
        bd_table(found, drawn, anchors, ours or anchors[:1]),
        speed_table(found, ours),
    ]
    tables = [one for one in tables if one.rows]
    points, settings = points_table(found), _settings(table)

    shown = [*ours[:1], *(name for name in anchors if codecs[name].id != "avif-444")]  # as many as fit a page
    shown_pictures = {key: pixels for key, pixels in pictures.items() if key not in left_out}
    figures = _figures(found, ours)
    strips = _strips(found, shown_pictures, {name: codecs[name] for name in shown})
    images = {name: plots.png(figure) for name, figure in figures.items()}
    images |= {name: plots.png(plots.strips(several, ours)) for name, several in strips.items()}
    paths = {name: directory / f"{name}.png" for name in images}
    for name, image in images.items():
        paths[name].write_bytes(image)
    links = {name: path.name for name, path in paths.items()}
    first = {name: pages.data_uri(image, "png") for name, image in list(images.items())[:1]}
    palette = plots.colours(list(found), ours)
    report = Report(
        html=directory / "report.html",
        markdown=directory / "report.md",
        parquet=directory / "report.parquet",
        plots=paths,
        summary={**_summary(head, found, tables), "left_out": left_out},
        artifact=pages.markdown(title, head, tables, None, settings, first),
    )
    report.html.write_text(
        pages.html(title, head, tables, points, settings, figures, strips, palette, ours), encoding="utf-8"
    )
    report.markdown.write_text(pages.markdown(title, head, tables, points, settings, links), encoding="utf-8")
    pq.write_table(table, report.parquet, compression="zstd")
    return report


def _figures(found: dict[str, Curve], ours: Sequence[str]) -> "dict[str, Figure]":
    """Plots by name; those that there is nothing for are left out."""
    drawn = {
        "psnr": plots.rate_distortion(found, "psnr", "bytes", ours),
        "psnr_payload": plots.rate_distortion(found, "psnr", "payload_bytes", ours),
        "ssim": plots.rate_distortion(found, "ssim", "bytes", ours),
        "ssimulacra2": plots.rate_distortion(found, "ssimulacra2", "ssimulacra2_bytes", ours),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _strips(
    found: dict[str, Curve], pictures: Mapping[str, np.ndarray], compared: Mapping[str, Codec]
) -> dict[str, list[Strip]]:
    """Pictures side by side, by name; the first of ``compared`` is what the others are matched to."""
    if len(compared) < 2:
        return {}
    reference = next(iter(compared))
    curve = found[reference]
    quality = int(curve.quality[curve.nearest(STRIP_LEVEL)])
    keys = list(pictures)
    chosen = dict.fromkeys(keys[int(i)] for i in np.linspace(0, len(keys) - 1, STRIP_PICTURES).round())
    shown = {key: pictures[key] for key in chosen}
    equal_bytes, equal_quality = side_by_side(shown, compared, reference, quality)
    return {"equal_bytes": equal_bytes, "equal_quality": equal_quality}


def _settings(table: pa.Table) -> Table:
    """Codecs, versions and machine: what one needs to judge or repeat the figures."""
    about = json.loads((table.schema.metadata or {}).get(_CODECS_KEY, b"{}"))
    rows = [[name, entry["description"]] for name, entry in about.items()]
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    rows.append(["Python", platform.python_version()])
    rows.append(["packages", ", ".join(versions)])
    rows.append(["machine", machine()])
    rows.append(["written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"])
    note = (
        "Standard codecs run on one thread, learned ones on as many as PyTorch is given. Bytes of what is no file by "
        f"itself (learned codecs, av1, av1-444) include {ARCHIVE_ROW_BYTES} for its archive row. "
        "PSNR: of RGB; of luma: of BT.601's Y alone. SSIM: Gaussian window, sigma 1.5, mean of RGB."
    )
    return Table("Settings", note, ["", ""], rows)


def machine() -> str:
    """Processor, cores, system and PyTorch threads, for people."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    text = f"{model}, {os.cpu_count()} cores, {platform.system()}"
    if torch := sys.modules.get("torch"):
        text += f", {torch.get_num_threads()} PyTorch threads"
    return text


def _summary(head: Headline, found: dict[str, Curve], tables: list[Table]) -> dict[str, Any]:
    def plain(values: np.ndarray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in values]

    return {
        "headline": head.text,
        "detail": head.detail,
        "level_db": head.level if np.isfinite(head.level) else None,
        "bytes_at_level": dict(head.bars),
        "usual_level_db": TARGET_PSNR,
        "curves": {
            name: {key: plain(values) for key, values in vars(curve).items() if isinstance(values, np.ndarray)}
            for name, curve in found.items()
        },
        "tables": [{"title": one.title, "columns": one.columns, "rows": one.rows} for one in tables],
    }

"""A contact sheet: pictures of an archive as its reader sees them on one HTML page, beside their sources if asked."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np

from compressor.archive import Archive, Row
from compressor.baselines import STANDARD
from compressor.codec import ORIGINAL
from compressor.decoding import decoded_apart, decoded_together
from compressor.errors import ArchiveError, ImageError, told_of
from compressor.images import decode_picture
from compressor.keys import matcher
from compressor.known import FINGERPRINT_BYTES, content_fingerprint
from compressor.limits import Limits
from compressor.pages import data_uri, template
from compressor.picture_writing import encode_picture
from compressor.reading import read_contents, read_together
from compressor.sources import Source
from compressor.wording import legible, number, ratio, size

SIDE = 256  # pixels, to which larger pictures are reduced, and smaller ones enlarged by a whole number


@dataclass(frozen=True)
class Sheet:
    """A page, how many of the pictures whose keys match are on it, and what is wrong with some, by key.

    ``found``: how many of these have a file in the source, None where there is no source.
    """

    html: str
    pictures: int
    matching: int
    problems: list[tuple[str, str]]
    found: int | None = None


@dataclass(frozen=True)
class _Image:
    """A picture as it is shown, or why it is not; ``width`` in pixels of the page."""

    label: str
    source: str = ""
    width: int = SIDE
    problem: str = ""


def contact_sheet(
    archive: Archive,
    pattern: str | None = None,
    limit: int = 200,
    worst: bool = False,
    source: Source | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    keys: Sequence[str] | None = None,
) -> Sheet:
    """Decode some of an archive's pictures and lay them out.

    Parameters
    ----------
    pattern
        Only keys that match, as in a shell; None: all.
    limit
        Most pictures; of more that match, evenly spread ones in order of keys.
    worst
        Those of the lowest PSNR instead, the lowest first.
    source
        Where the pictures came from: each is shown beside its file there.
    on_progress
        Called with (pictures done, pictures in all).
    keys
        These pictures instead, in this order, the first ``limit`` that are archived. Any other is a problem.

    Raises
    ------
    ArchiveError
        No key matches, none of ``keys`` is archived, or the archive or one of its files cannot be read. A picture whose
        payload is damaged is no error: the page names it.
    """
    missing: list[str] = []
    if keys is None:
        chosen, matching = (_worst if worst else _spread)(archive, matcher(pattern), limit)
        nothing = f"no key matches {pattern!r}" if pattern else "it holds no picture"
    else:
        keys = list(dict.fromkeys(keys))
        there = set(keys).intersection(archive)
        chosen, matching = [key for key in keys if key in there][:limit], len(there)
        missing = [key for key in keys if key not in there]
        nothing = "it holds none of these pictures"
    if not chosen:
        raise ArchiveError(f"{archive.url}: {nothing}")
    rows: dict[str, Row] = {}
    captions: dict[str, str] = {}
    images: dict[str, list[_Image]] = {key: [] for key in chosen}
    for chunk in decoded_together(archive.read_rows(chosen)):
        for row, decoded in zip(chunk, decoded_apart(chunk, archive.codec), strict=True):
            captions[row.key] = _caption(row)
            rows[row.key] = replace(row, payload=b"")  # of all pictures, kept originals may be gigabytes
            images[row.key].append(_image("archive", row.key, decoded))
        if on_progress:
            on_progress(len(rows), len(chosen))
    if not rows:
        raise ArchiveError(f"{archive.url}: another run has taken these pictures out meanwhile; try again")
    problems = [(key, image.problem) for key, shown in images.items() for image in shown if image.problem]
    problems += [(key, "it is not in the archive") for key in missing]
    found = None
    if source:
        found = 0
        for key, image, is_there in _of_source(source, rows):
            images[key].insert(0, image)
            found += is_there
    cells: list[dict[str, Any]] = [
        {"key": legible(key), "images": images[key], "caption": captions[key]} for key in chosen if key in rows
    ]
    page = template("sheet.html.j2").render(
        archive=archive.url, headline=_headline([rows[key] for key in chosen if key in rows], matching, worst),
        pattern=pattern, drawn=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        lead=_lead(archive), cells=cells, source=source.shown if source else None, side=SIDE,
        widest=max(sum(image.width for image in cell["images"]) + 4 * len(cell["images"]) for cell in cells),
    )  # fmt: skip
    return Sheet(page, len(cells), matching, problems, found)


def _spread(archive: Archive, matches: Callable[[str], Any], limit: int) -> tuple[list[str], int]:
    matching = sum(1 for key in archive if matches(key))
    wanted = range(matching) if matching <= limit else {at * matching // limit for at in range(limit)}
    keys = (key for key in archive if matches(key))
    return sorted(key for at, key in enumerate(keys) if at in wanted), matching


def _worst(archive: Archive, matches: Callable[[str], Any], limit: int) -> tuple[list[str], int]:
    matching = 0

    def measured() -> Iterator[tuple[float, str]]:
        nonlocal matching
        for table in archive.batches(["key", "psnr"]):
            for key, psnr in zip(table["key"].to_pylist(), table["psnr"].to_pylist(), strict=True):
                if matches(key):
                    matching += 1
                    yield float("inf") if psnr is None else psnr, key

    return [key for _, key in heapq.nsmallest(limit, measured())], matching


def _of_source(source: Source, rows: dict[str, Row]) -> Iterator[tuple[str, _Image, bool]]:
    """The source's picture of each row, or why there is none to show, and whether there is a file."""
    limits = Limits()
    found = [file for file in source.files() if file.key in rows]
    for key in rows.keys() - {file.key for file in found}:
        yield key, _Image("source", problem="no longer there"), False
    for chunk in read_together(found):
        for file, content in zip(chunk, read_contents(source, chunk, limits), strict=True):
            archived = rows[file.key].fingerprint[:FINGERPRINT_BYTES]  # rows of earlier versions have more
            same = archived in (file.fingerprint, content_fingerprint(content) if isinstance(content, bytes) else b"")
            try:
                if isinstance(content, ImageError):
                    raise content
                pixels: np.ndarray | Exception = decode_picture(content, limits).pixels
            except (ImageError, MemoryError) as error:
                pixels = error
            yield file.key, _image("source" if same else "source, changed or copied since", file.key, pixels), True


def _image(label: str, key: str, pixels: np.ndarray | Exception) -> _Image:
    if isinstance(pixels, Exception):
        return _Image(label, problem=told_of(key, pixels))
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= SIDE:
        zoom = SIDE // longer
        return _Image(label, data_uri(encode_picture(pixels, 3, "webp"), "webp"), width * zoom)
    reduced = [max(1, round(side * SIDE / longer)) for side in (width, height)]
    small = cv2.resize(pixels, reduced, interpolation=cv2.INTER_AREA)
    return _Image(label, data_uri(encode_picture(small, 3, "jpeg", 0.0), "jpeg"), reduced[0])


def _caption(row: Row) -> str:
    quality = "exact" if row.psnr is None else f"{row.psnr:.2f} dB"
    by = f" · {row.codec}" if row.codec in STANDARD or row.codec == ORIGINAL else ""
    caption = f"{row.width} × {row.height} · {size(len(row.payload))} · {quality}{by}"
    return caption.replace(" dB", "\N{NO-BREAK SPACE}dB")


def _headline(rows: Sequence[Row], matching: int, worst: bool) -> str:
    levels = [row.psnr for row in rows if row.psnr is not None]
    ends = sorted({f"{level:.2f}" for level in (min(levels), max(levels))}, key=float) if levels else []
    span = f"{' to '.join(ends)} dB" if ends else "all of them exact" if len(rows) > 1 else "exact"
    if len(rows) == matching:
        return f"{number(matching, 'picture')}, {span}"
    if worst:
        return f"The {len(rows):,} of lowest PSNR of {number(matching, 'picture')}: {span}"
    return f"{len(rows):,} of {number(matching, 'picture')}, {span}"


def _lead(archive: Archive) -> str:
    info = archive.info()
    lead = (
        f"The archive: {number(info.pictures, 'picture')}, {size(info.source_bytes)} of files in "
        f"{size(info.table_bytes)}, {ratio(info.source_bytes, info.table_bytes)} without decoders."
    )
    if info.psnr_mean is None:
        return lead
    return f"{lead} PSNR is {info.psnr_mean:.2f} dB on average, {info.psnr_min:.2f} dB at the lowest."

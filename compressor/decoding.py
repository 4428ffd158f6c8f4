"""Rows of an archive to pixels. A crafted row may ask for any size and hold any bytes: it is refused by name.

Neither where rows and codecs come from (archive.py) nor what is done about a bad one (verifying.py, restoring.py).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import crc32c
import numpy as np
import pyarrow as pa

from compressor.chunks import bounded_chunks
from compressor.codec import ORIGINAL, Codec, Encoded, padded_pixels
from compressor.errors import ArchiveError, CodecError, ImageError, is_shortage
from compressor.images import decode_picture
from compressor.limits import DECODING_BYTES, Limits, memory_for
from compressor.parquet import IMAGES, Row, from_table

DECODED = ("key", "width", "height", "channels", "codec", "quality", "packer", "payload", "crc32c")  # columns
DECODED_ROWS, DECODED_PIXELS = 64, 2**22  # that are decoded together
MOST_LEARNED_PIXELS = 2**24  # padded, of a row by a network: four times what a run gives it, and 2 GB of memory
LEARNED_BYTES = 128  # of memory for a pixel of such a row
MOST_ORIGINAL_PIXELS = 2**28  # of a row that holds a file as it was, whatever limits it was archived under


@runtime_checkable
class ArrowStream(Protocol):
    """A table of pyarrow, of Polars, or a query of DuckDB: whatever hands its columns on as Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


def decode(rows: Iterable[Row] | ArrowStream, codec_of: Callable[[str], Codec]) -> list[np.ndarray]:
    """See :meth:`compressor.archive.Archive.decode`; ``codec_of`` gives the codec of an id."""
    if isinstance(rows, Row):
        raise TypeError("several rows are decoded together: decode([row])[0]")
    rows = from_table(pa.table(rows), IMAGES) if isinstance(rows, ArrowStream) else list(rows)
    pixels: dict[int, np.ndarray] = {}
    by_codec: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, Row):
            given = f"as read_rows and a batch of scan give them, or an Arrow table, not {type(row).__name__}"
            raise TypeError(f"rows are decoded, {given}")
        if unread := [name for name in DECODED if getattr(row, name) is None]:
            of = row.key or f"row {index}"
            raise ArchiveError(f"{of}: to decode a row takes its {', '.join(unread)} too: read those columns")
        check_crc(row)
        by_codec.setdefault(row.codec, []).append(index)
    for codec, indices in by_codec.items():
        chosen = [rows[index] for index in indices]
        decoded = [_decode_original(row) for row in chosen] if codec == ORIGINAL else _decode(codec_of(codec), chosen)
        for index, picture in zip(indices, decoded, strict=True):
            pixels[index] = grey_planes(picture) if rows[index].channels == 1 else picture
    return [pixels[index] for index in range(len(rows))]


def decoded_together(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in order, as many together as may be in memory once they are decoded."""
    return bounded_chunks(rows, lambda row: padded_pixels(row.height, row.width), DECODED_PIXELS, DECODED_ROWS)


def decoded_apart(rows: Sequence[Row], codec_of: Callable[[str], Codec]) -> Iterator[np.ndarray | Exception]:
    """Pixels of each row, uint8 (H, W, 3): decoded together, or one by one if something is not sound, or too much."""
    try:
        decoded = decode(rows, codec_of)
    except Exception as error:
        if not isinstance(error, (CodecError, ArchiveError)) and not is_shortage(error):
            raise
        if len(rows) == 1:
            yield error
            return
    else:
        yield from decoded
        return
    for row in rows:  # out here, where the error no longer holds what was decoded before it
        yield from decoded_apart([row], codec_of)


def check_crc(row: Row) -> None:
    """CodecError where a payload is not what was written."""
    computed, stored = crc32c.crc32c(row.payload), row.crc32c & 0xFFFFFFFF  # in a file the same bits have a sign
    if computed != stored:
        raise CodecError(f"{row.key}: stored crc32c {stored:#010x}, computed {computed:#010x}")


def grey_planes(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) with three equal planes, the rounded mean of what came in."""
    mean = (pixels.astype(np.uint16).sum(axis=2) * 2 + 3) // 6
    return np.repeat(mean[:, :, None].astype(np.uint8), 3, axis=2)


def _decode(codec: Codec, rows: Sequence[Row]) -> list[np.ndarray]:
    for row in rows:
        most = MOST_LEARNED_PIXELS if codec.packers else 2**63  # files tell their size before they are decoded
        if not (row.width > 0 and row.height > 0 and padded_pixels(row.height, row.width) <= most):
            raise CodecError(f"{row.key}: the row is damaged: {row.width} x {row.height} pixels")
    pixels = min(sum(row.width * row.height for row in rows), MOST_ORIGINAL_PIXELS)  # they may lie
    try:
        with memory_for(pixels, LEARNED_BYTES if codec.packers else DECODING_BYTES):
            return codec.decode([_encoded(row) for row in rows])
    except (CodecError, MemoryError):
        raise
    except Exception as error:  # networks and libraries raise anything on what no encoder wrote
        raise CodecError(f"{rows[0].key}: the payload does not decode: {type(error).__name__}: {error}") from error


def _encoded(row: Row) -> Encoded:
    return Encoded(row.payload, row.width, row.height, row.channels, row.codec, row.quality, row.packer)


def _decode_original(row: Row) -> np.ndarray:
    # Whatever limits it was archived under, and no more than the row says
    limits = Limits(len(row.payload), min(row.width * row.height, MOST_ORIGINAL_PIXELS))
    try:
        return decode_picture(row.payload, limits).pixels
    except (ImageError, ImportError) as error:
        raise CodecError(f"{row.key}: the original's bytes do not decode: {error}") from error

"""The archive's Parquet files: columns, encodings, and rows to bytes and back.

Not where files lie or which of them count (see ``delta_log.py``).
"""

import io
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compressor import integrity
from compressor.errors import ArchiveError
from compressor.known import FINGERPRINT_BYTES

GROUP_ROWS = 1024
FOOTER_GUESS = 65536  # bytes: what is fetched of a file's end before the length of its footer is known
GROUP_BYTES = 8 * 2**20  # of payloads: a row group is what reading one picture fetches, so originals end it early


@dataclass(frozen=True)
class Row:
    """One archived picture.

    ``fingerprint`` is 5 bytes (8 in rows of earlier versions), ``crc32c`` the payload's checksum as an unsigned number,
    ``psnr`` in dB, 99 at most, and ``ssim`` are None where nothing is lost on any machine, ``quality`` is -1 and
    ``packer`` empty where the codec has no choice of them. ``taken``, ``exif`` and ``xmp`` are what a run that keeps
    metadata found in the file (see :mod:`compressor.photo_metadata`). Of a scan of some columns, the fields of all
    others are None.
    """

    key: str
    fingerprint: bytes
    width: int
    height: int
    channels: int
    source_bytes: int
    codec: str
    quality: int
    packer: str
    payload: bytes
    crc32c: int
    psnr: float | None
    ssim: float | None
    taken: str | None = None
    exif: bytes | None = None
    xmp: bytes | None = None


@dataclass(frozen=True)
class QuarantineRow:
    """One picture that could not be archived: ``reason`` is a token, ``detail`` is for people, ``at`` is UTC."""

    key: str
    fingerprint: bytes
    reason: str
    detail: str
    run: str
    at: datetime

    @classmethod
    def now(cls, key: str, fingerprint: bytes, reason: str, detail: str, run: str) -> "QuarantineRow":
        """A row stamped with the present second."""
        return cls(key, fingerprint, reason, detail, run, datetime.now(UTC).replace(microsecond=0))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fingerprint": self.fingerprint.hex(), "at": self.at.isoformat()}


@dataclass(frozen=True)
class Part:
    """A Parquet file in a table's folder, committed or not: its name, bytes, rows, and Delta statistics as JSON."""

    path: str
    size: int
    rows: int
    stats: str

    @cached_property
    def key_range(self) -> tuple[str, str]:
        """Smallest and largest key."""
        stats = json.loads(self.stats)
        return stats["minValues"]["key"], stats["maxValues"]["key"]

    @cached_property
    def identity(self) -> tuple[str, int, int, str, str]:
        """All that the log says of it."""
        return self.path, self.size, self.rows, *self.key_range

    @cached_property
    def digest(self) -> int:
        """What it adds to the digest of a table's state."""
        return integrity.hash_of(self.identity)


@dataclass(frozen=True)
class Column:
    """One column and how its pages are written. ``encoding`` None means a dictionary.

    ``decimals`` are those that a row has of each value; None: all there are. A file may lack an ``optional`` column, of
    which its rows then have no value.
    """

    name: str
    type: pa.DataType
    encoding: str | None
    compression: str = "none"
    nullable: bool = False
    decimals: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """The columns of one table, in the order in which they lie in a row group."""

    columns: tuple[Column, ...]
    row: type[Row] | type[QuarantineRow]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type, column.nullable) for column in self.columns])

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


# Small columns first and the payload last: metadata alone, and all columns of a row group, are one range each.
IMAGES = Layout(
    (
        Column("key", pa.string(), "DELTA_BYTE_ARRAY", "zstd"),
        Column("fingerprint", pa.binary(), "DELTA_LENGTH_BYTE_ARRAY"),
        Column("width", pa.int32(), None),
        Column("height", pa.int32(), None),
        Column("channels", pa.int8(), None),
        Column("source_bytes", pa.int64(), "DELTA_BINARY_PACKED", "zstd"),
        Column("codec", pa.string(), None),
        Column("quality", pa.int16(), None, "zstd"),
        Column("packer", pa.string(), None),
        Column("psnr", pa.float32(), "BYTE_STREAM_SPLIT", "zstd", nullable=True, decimals=2),
        Column("ssim", pa.float32(), "BYTE_STREAM_SPLIT", "zstd", nullable=True, decimals=3),
        Column("crc32c", pa.int32(), "PLAIN"),
        Column("payload", pa.binary(), "DELTA_LENGTH_BYTE_ARRAY"),
        Column("taken", pa.string(), "DELTA_BYTE_ARRAY", "zstd", nullable=True, optional=True),
        Column("exif", pa.binary(), "DELTA_LENGTH_BYTE_ARRAY", "zstd", nullable=True, optional=True),
        Column("xmp", pa.binary(), "DELTA_LENGTH_BYTE_ARRAY", "zstd", nullable=True, optional=True),
    ),
    Row,
)
_OPTIONAL = {column.name: column.type for column in IMAGES.columns if column.optional}

QUARANTINE = Layout(
    (
        Column("key", pa.string(), "DELTA_BYTE_ARRAY", "zstd"),
        Column("fingerprint", pa.binary(), "DELTA_LENGTH_BYTE_ARRAY"),
        Column("reason", pa.string(), None),
        Column("detail", pa.string(), "DELTA_BYTE_ARRAY", "zstd"),
        Column("run", pa.string(), None),
        Column("at", pa.timestamp("us", "UTC"), "DELTA_BINARY_PACKED"),
    ),
    QuarantineRow,
)


def to_table(rows: Sequence[Row] | Sequence[QuarantineRow], layout: Layout) -> pa.Table:
    """Rows as an Arrow table, sorted by key, without optional columns that none has a value of.

    ArchiveError where a row cannot be stored.
    """
    ordered: list[Row | QuarantineRow] = sorted(rows, key=lambda row: row.key)
    needed = [column.name for column in layout.columns if not column.nullable]
    for row, following in zip(ordered, [*ordered[1:], None], strict=True):
        if missing := [name for name in needed if getattr(row, name) is None]:
            raise ArchiveError(f"{row.key!r}: it has no {', '.join(missing)}: was it scanned without?")
        if isinstance(row, Row) and not (row.width > 0 and row.height > 0):
            raise ArchiveError(f"{row.key!r}: no picture is {row.width} x {row.height} pixels")
        if len(row.fingerprint) < FINGERPRINT_BYTES:
            raise ArchiveError(
                f"{row.key!r}: its fingerprint has {len(row.fingerprint)} bytes, not {FINGERPRINT_BYTES}"
            )
        if following is not None and row.key == following.key:
            raise ArchiveError(f"{row.key!r} is there twice: rows of an archive are unique by key")
    columns = [
        column
        for column in layout.columns
        if not column.optional or any(getattr(row, column.name) is not None for row in ordered)
    ]
    try:
        arrays = [pa.chunked_array([_column(ordered, column)], column.type) for column in columns]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ArchiveError(f"rows from {ordered[0].key!r} to {ordered[-1].key!r} cannot be stored: {error}") from error
    return pa.Table.from_arrays(arrays, schema=pa.schema([layout.schema.field(column.name) for column in columns]))


def _column(rows: Sequence[Any], column: Column) -> pa.Array:
    values = [getattr(row, column.name) for row in rows]
    if column.name == "fingerprint":
        values = [value[:FINGERPRINT_BYTES] for value in values]  # rows of earlier versions had more
    if column.name == "crc32c":
        # Delta has no unsigned integers, and 64 bits would cost 4 bytes a row: the same 32 bits as a signed number.
        return pa.array(np.array(values, np.uint32).view(np.int32))
    if (digits := column.decimals) is not None:
        # To the decimals that are worth knowing, and on to a binary fraction, of which a byte and more are always zero.
        unit = 1 << (10**digits).bit_length()  # finer than the decimals, each of which comes back
        values = [None if value is None else round(round(float(value), digits) * unit) / unit for value in values]
    return pa.array(values, column.type)


def from_table(table: pa.Table, layout: Layout) -> list[Any]:
    """Rows of ``layout.row``; columns that were not read are None."""
    columns: dict[str, list[Any]] = {}
    decimals = {column.name: column.decimals for column in layout.columns}
    for field in fields(layout.row):
        if field.name not in table.column_names:
            columns[field.name] = [None] * table.num_rows
        elif field.name == "crc32c":
            given = table["crc32c"]
            columns[field.name] = (
                [None] * len(given) if given.null_count else given.to_numpy().astype(np.uint32).tolist()
            )
        elif (digits := decimals[field.name]) is not None:
            values = table[field.name].to_pylist()
            columns[field.name] = [None if value is None else round(value, digits) for value in values]
        else:
            columns[field.name] = table[field.name].to_pylist()
    return [layout.row(*values) for values in zip(*columns.values(), strict=True)]


def encode(tables: Iterable[pa.Table], layout: Layout) -> tuple[bytes, int, str]:
    """One Parquet file of ``tables``, which should be sorted by key, one after another, as its readers like it best.

    It has the columns of the first of them.

    Returns
    -------
    The file's bytes, its rows, and Delta's statistics as JSON. Without rows: ``b""``, 0 and ``""``.
    """
    sink = io.BytesIO()
    tables = iter(tables)
    first = next(tables, None)
    if first is None:
        return b"", 0, ""
    names = first.column_names
    columns = [column for column in layout.columns if column.name in names]
    writer = pq.ParquetWriter(
        sink,
        first.schema,
        compression={column.name: column.compression for column in columns},
        compression_level={column.name: 9 for column in columns if column.compression == "zstd"},
        use_dictionary=[column.name for column in columns if column.encoding is None],
        column_encoding={column.name: column.encoding for column in columns if column.encoding},
        write_statistics=["key"],
        write_page_checksum=True,
        store_schema=False,  # 1 KB in every file, and Delta's log has the schema
        data_page_size=GROUP_BYTES,
        data_page_version="1.0",
    )
    rows = payload_bytes = 0
    bounds: list[str] = []
    with writer:
        for group in _row_groups(itertools.chain([first], tables)):
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
            bounds += pc.min_max(group["key"]).as_py().values()  # rows that another program wrote are in any order
            if "payload" in names:
                payload_bytes += pc.sum(pc.binary_length(group["payload"])).as_py()
        if "payload" in names:
            writer.add_key_value_metadata({"payload_bytes": str(payload_bytes)})
    if not rows:
        return b"", 0, ""
    return sink.getvalue(), rows, statistics(rows, min(bounds), max(bounds))


def statistics(rows: int, smallest: str, largest: str) -> str:
    """Delta's statistics of a file: what lets a reader of one key skip it."""
    return json.dumps(
        {"numRecords": rows, "minValues": {"key": smallest}, "maxValues": {"key": largest}, "nullCount": {"key": 0}},
        separators=(",", ":"),
        ensure_ascii=False,
    )


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, cut where a row group is full."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        lengths = np.zeros(table.num_rows, np.int64)
        for name in _LARGE.intersection(table.column_names):
            lengths += pc.fill_null(pc.binary_length(table[name]), 0).to_numpy()
        start = 0
        for index, length in enumerate(lengths.tolist()):
            if rows == GROUP_ROWS or (rows and size + length > GROUP_BYTES):
                waiting.append(table.slice(start, index - start))
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, rows, size, start = [], 0, 0, index
            rows += 1
            size += length
        waiting.append(table.slice(start))
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


_LARGE = frozenset({"payload", "exif", "xmp"})


class RangeFile(io.RawIOBase):
    """A file for Arrow's reader that fetches byte ranges: those announced all at once, others one by one.

    Parameters
    ----------
    fetch
        ``fetch([(start, end), ...])`` gives the bytes of each range.
    size
        Bytes of the file, known from the log, so that nobody has to ask.
    """

    def __init__(self, fetch: Callable[[Sequence[tuple[int, int]]], Sequence[bytes]], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._ready: list[tuple[int, int, bytes]] = []

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ``ranges`` at once and serve later reads within them from memory."""
        self._ready = [(start, end, data) for (start, end), data in zip(ranges, self._fetch(ranges), strict=True)]

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        self._position = end
        for first, last, data in self._ready:
            if first <= start and end <= last:
                return data[start - first : end - first]
        return bytes(self._fetch([(start, end)])[0]) if end > start else b""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def read_metadata(file: RangeFile, name: str = "") -> pq.FileMetaData:
    """A file's footer: one range, or two where it is longer than 64 KB. ArchiveError where ``name`` is not its."""
    size = file.seek(0, io.SEEK_END)
    tail = _read_at(file, max(0, size - FOOTER_GUESS), size)
    length = int.from_bytes(tail[-integrity.FOOTER_TAIL : -4], "little") + integrity.FOOTER_TAIL
    if len(tail) < length <= size:
        tail = _read_at(file, size - length, size - len(tail)) + tail
    footer = integrity.footer_of(tail)
    integrity.check_footer(name, footer)
    return pq.read_metadata(pa.BufferReader(footer))


def _read_at(file: RangeFile, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


class Spans:
    """Ranges of keys, from a first to a last, both included."""

    def __init__(self, spans: Iterable[tuple[str, str]]) -> None:
        ordered = sorted(spans)
        self._firsts = [first for first, _ in ordered]
        self._lasts = list(itertools.accumulate((last for _, last in ordered), max))

    def meet(self, first: str, last: str) -> bool:
        """Whether a key from ``first`` to ``last`` lies in any of them."""
        at = bisect_right(self._firsts, last)
        return at > 0 and self._lasts[at - 1] >= first


def row_groups_with(metadata: pq.FileMetaData, spans: Spans) -> list[int]:
    """Row groups that may hold keys of ``spans``."""
    groups = []
    for index in range(metadata.num_row_groups):
        statistics = metadata.row_group(index).column(0).statistics
        if statistics is None or not statistics.has_min_max or spans.meet(statistics.min, statistics.max):
            groups.append(index)
    return groups


def column_names(metadata: pq.FileMetaData) -> list[str]:
    """The columns that a file has."""
    return [metadata.schema.column(index).path for index in range(metadata.num_columns)]


def read_groups(
    file: RangeFile, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], salvage: bool = False
) -> pa.Table:
    """Some columns of some row groups, in one round of requests. Page checksums are checked, and text to be UTF-8.

    Optional columns that the file lacks are null. ArchiveError where it lacks another.

    With ``salvage`` a damaged page of payloads is read all the same: each has a checksum of its own, which whoever
    decodes it checks, so that one flipped bit costs one picture and not its row group. But what was damaged on its way
    here, and is sound where it lies, is read again first.
    """
    paths = column_names(metadata)
    lacking = [name for name in columns if paths.count(name) != 1]
    if wrong := [name for name in lacking if name in paths or name not in _OPTIONAL]:
        raise ArchiveError(f"this is no file of this table: it has no one column {wrong[0]!r}")
    if lacking:
        there = read_groups(file, metadata, groups, [name for name in columns if name in paths], salvage)
        for name in lacking:
            there = there.append_column(pa.field(name, _OPTIONAL[name]), pa.nulls(len(there), _OPTIONAL[name]))
        return there.select(list(columns))
    positions = {path: index for index, path in enumerate(paths)}
    ranges: list[tuple[int, int]] = []
    for group in groups:
        chunks = [metadata.row_group(group).column(positions[name]) for name in columns]
        spans = sorted((_start(chunk), _start(chunk) + chunk.total_compressed_size) for chunk in chunks)
        for start, end in spans:
            # A gap of a few KB costs less than a request.
            if ranges and start - ranges[-1][1] <= 65536 and end - ranges[-1][0] <= 4 * GROUP_BYTES:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
    file.prefetch(ranges)
    try:
        return _read(file, metadata, groups, columns, verified=True)
    except OSError:
        if not salvage or "payload" not in columns:
            raise
    file.prefetch(ranges)
    with suppress(OSError):
        return _read(file, metadata, groups, columns, verified=True)
    table = _read(file, metadata, groups, [name for name in columns if name != "payload"], verified=True)
    payloads = _read(file, metadata, groups, ["payload"], verified=False)
    if len(payloads) != len(table):
        raise ArchiveError(f"{len(payloads)} payloads for {len(table)} pictures")
    return table.append_column(payloads.schema.field("payload"), payloads["payload"]).select(list(columns))


def _read(
    file: RangeFile, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str], verified: bool
) -> pa.Table:
    reader = pq.ParquetFile(
        pa.PythonFile(file, mode="r"), metadata=metadata, page_checksum_verification=verified, pre_buffer=False
    )
    table = reader.read_row_groups(list(groups), columns=list(columns), use_threads=False).select(list(columns))
    table.validate(full=True)
    return table


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    return chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset


def payload_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes of all payloads in a file, from its footer."""
    stored = (metadata.metadata or {}).get(b"payload_bytes")
    if stored is not None:
        return int(stored)
    at = column_names(metadata).index("payload")  # another writer's file: the column with its lengths is near enough
    return sum(metadata.row_group(group).column(at).total_compressed_size for group in range(metadata.num_row_groups))

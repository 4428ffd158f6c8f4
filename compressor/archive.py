"""An archive of pictures: open, append, read, scan, delete.

What a row is lies in ``parquet.py``, commits in ``delta_log.py``, rows to pixels in ``decoding.py``.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa

from compressor import decoding, maintenance, verifying
from compressor.carried import CarriedCodecs
from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.codec import Codec
from compressor.decoding import DECODED, ArrowStream
from compressor.defaults import CODEC, ORPHAN_HOURS, TARGET_PSNR
from compressor.errors import ACCEPTED, NO_FAULT, ArchiveError, NoPictureError, enough_memory
from compressor.keyed_table import KeyedTable
from compressor.keys import require_text, several, several_keys
from compressor.known import KnownKeys, hash_keys
from compressor.limits import Limits, would_fit
from compressor.marker import FORMAT, MARKER, check_marker, check_vacant, write_marker
from compressor.parquet import IMAGES, QUARANTINE, Part, QuarantineRow, Row, Spans, from_table, to_table
from compressor.scanning import to_the_end
from compressor.store import Store

if TYPE_CHECKING:
    import torch

    from compressor.appending import Appended
    from compressor.dataset import ArchiveDataset
    from compressor.restoring import Restored

__all__ = ["DECODED", "Archive", "KnownKeys", "Part", "QuarantineRow", "Row"]

P = ParamSpec("P")
T = TypeVar("T")


def _reopens(method: Callable[Concatenate["Archive", P], T]) -> Callable[Concatenate["Archive", P], T]:
    """Let a read see the newest version once where another run has vacuumed the files of the one it had open.

    And say what to do where it ends for good.
    """

    @wraps(method)
    def reading(self: "Archive", *args: P.args, **kwargs: P.kwargs) -> T:
        with self._store.errors("read it"), to_the_end(self._images):
            try:
                return method(self, *args, **kwargs)
            except FileNotFoundError:
                self.refresh()
                return method(self, *args, **kwargs)

    return reading


class Archive:
    """Pictures by key in one folder or bucket prefix; made by ``open``, ``create`` or ``open_or_create``.

    It sees the version that was there when it was opened, and its own commits; ``refresh`` shows those of others.
    Threads may read through it at once, and take turns to commit; with an archive of its own a thread need not wait.
    It can be pickled, as its address, which is opened at the first use.
    Processes that use it should be started by ``spawn`` or ``forkserver``: in a fork an archive that was open already
    can be read, and none can be opened, refreshed or written.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._images = KeyedTable(store, "images", IMAGES)
        self._quarantine = KeyedTable(store, "quarantine", QUARANTINE)
        self._codecs = CarriedCodecs(store)

    # --- opening ---

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: dict[str, str] | None = None) -> "Archive":
        """Open an archive.

        Parameters
        ----------
        url
            Local folder or ``s3://bucket/prefix``.
        storage_options
            ``AWS_*`` settings, such as ``AWS_ENDPOINT_URL``, that take precedence over the environment's.

        Raises
        ------
        ArchiveError
            There is none, its format is newer than this version reads, or its log is damaged.
        """
        store = Store(url, storage_options)
        with store.errors("open it"):
            check_marker(store)
            archive = cls(store)
            archive.refresh()
        return archive

    @classmethod
    def create(cls, url: str | os.PathLike[str], storage_options: dict[str, str] | None = None) -> "Archive":
        """Make an empty archive in a folder that is empty or does not exist. ArchiveError where it is neither."""
        store = Store(url, storage_options)
        with store.errors("create an archive here"):
            check_vacant(store)
            store.require_conditional_puts()
            archive = cls(store)
            archive._images.log.create()
            archive._quarantine.log.create()
            write_marker(store)
            archive.refresh()
        return archive

    @classmethod
    def open_or_create(cls, url: str | os.PathLike[str], storage_options: dict[str, str] | None = None) -> "Archive":
        """Open the archive at ``url``, or make it, unless another process does at this moment."""
        store = Store(url, storage_options)

        def there() -> bool:
            with store.errors("open it"):
                return store.exists(MARKER)

        if not there():
            try:
                return cls.create(url, storage_options)
            except ArchiveError:
                if not there():
                    raise
        return cls.open(url, storage_options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Opened when it is used: what fails then, as in a fork, ends a call, and not a pool's worker that receives it
        return _closed, (self.url, self._store.options)

    def __repr__(self) -> str:
        return f"Archive({self.url!r}, version {self.version}, {len(self)} pictures)"

    @property
    def url(self) -> str:
        """Absolute path or ``s3://`` address."""
        return self._store.url

    @property
    def tables(self) -> tuple[KeyedTable, KeyedTable]:
        """The tables of pictures and of quarantined files, for repair and restore."""
        return self._images, self._quarantine

    @property
    def version(self) -> int:
        """Version of the table of pictures: grows by one with each commit."""
        return self._images.log.version

    def refresh(self) -> None:
        """See what others have committed since this archive was opened."""
        self._images.log.refresh()
        self._quarantine.log.refresh()

    # --- writing ---

    def append(
        self,
        pictures: Mapping[str, np.ndarray | bytes | bytearray | memoryview],
        codec: str | bytes | os.PathLike[str] = CODEC,
        *,
        target_psnr: float | None = TARGET_PSNR,
        quality: int | None = None,
        effort: int = 0,
        limits: Limits | None = None,
        threads: int = 1,
        keep_metadata: bool = False,
    ) -> "Appended":
        """Archive pictures by key, arrays or the bytes of files, all in one commit; each is measured as in a run.

        Those that were archived under their keys are replaced. See :func:`compressor.appending.append`. NotAppended
        where pictures are refused; it names each, and none is archived.
        """
        from compressor.appending import append

        return append(self, pictures, codec, target_psnr, quality, effort, limits, threads, keep_metadata)

    def take_metadata(self) -> None:
        """Have its table know the columns of what ``keep_metadata`` keeps, which one of an earlier version lacks."""
        with self._store.errors("add columns to it"):
            self._images.log.add_columns()

    def write_part(self, rows: Sequence[Row]) -> Part:
        """Write rows as one Parquet file that is not visible until ``commit``. Keys must be unique in it.

        A part that is never committed is an orphan, which ``vacuum`` deletes an hour later.
        """
        if not rows:
            raise ArchiveError(f"{self.url}: a part needs rows")
        with self._store.errors("write a part"):
            part = self._images.write([to_table(rows, IMAGES)])
        assert part is not None
        return part

    def commit(self, parts: Sequence[Part], replaced: Iterable[str] = (), batch_id: str | None = None) -> int:
        """Make all rows of ``parts`` visible in one transaction.

        Rows stay unique by key, whoever commits at the same time: a key that is archived already gets its new row if it
        is in ``replaced``, otherwise the row that is there stays and the new one is dropped.

        Parameters
        ----------
        parts
            From ``write_part``, of this or another process.
        replaced
            Keys whose archived rows make way for those in ``parts``; keys that ``parts`` do not hold are left alone.
        batch_id
            Name of the work: a second commit under the same name does nothing.

        Returns
        -------
        Rows of ``parts`` that were dropped.
        """
        replaced = several_keys(replaced)
        with self._store.errors("commit"):
            return self._images.upsert(parts, replaced, batch_id)

    def quarantine(self, rows: Sequence[QuarantineRow]) -> None:
        """List pictures that could not be archived; a later entry for a key takes the place of an earlier one."""
        if not rows:
            return
        latest = {row.key: row for row in rows}
        with self._store.errors("write to its quarantine"):
            part = self._quarantine.write([to_table(list(latest.values()), QUARANTINE)])
            assert part is not None
            self._quarantine.upsert([part], latest.keys(), None)

    def accept_quarantined(self, keys: Iterable[str]) -> int:
        """Have pictures stay on the quarantine list without being told of or tried again until their files change.

        Returns
        -------
        How many were on it, and not accepted before.
        """
        chosen = set(several_keys(keys))
        rows = [row for row in self.quarantined() if row.key in chosen and row.reason != ACCEPTED]
        self.quarantine([replace(row, reason=ACCEPTED, detail=f"{row.reason}: {row.detail}") for row in rows])
        return len(rows)

    def clear_quarantine(self, keys: Iterable[str]) -> int:
        """Take pictures off the quarantine list. Returns how many were on it."""
        keys = several_keys(keys)
        with self._store.errors("write to its quarantine"):
            return self._quarantine.delete(keys)

    def delete(self, keys: Iterable[str], on_progress: Callable[[int, int], None] | None = None) -> int:
        """Erase pictures: rows and quarantine entries, then their bytes from all files and the log of their names.

        ``on_progress`` is told (files written again, of so many).

        Returns
        -------
        Number of pictures erased; keys that are not archived are no error, and what an earlier call that was killed
        left behind goes too.
        """
        keys = several_keys(keys)
        with self._store.errors("delete from it"):
            erased = self._images.delete(keys, on_progress)
            self._quarantine.delete(keys)
            for table in (self._images, self._quarantine):
                table.forget()
                # Orphans of killed runs may hold the picture too; younger ones may belong to a run in flight.
                table.vacuum(ORPHAN_HOURS)
        return erased

    def remove(self, keys: Iterable[str]) -> int:
        """Take pictures out in one commit. Their bytes stay in replaced files until ``vacuum``, for whoever reads them.

        Returns
        -------
        Number of pictures taken out; keys that are not archived are no error.
        """
        keys = several_keys(keys)
        with self._store.errors("delete from it"):
            return self._images.delete(keys)

    def compact(self, on_progress: Callable[[int, int], None] | None = None) -> int:
        """Merge small files into few large ones, rows sorted by key over all of them. Returns how many files fewer.

        ``on_progress`` is told (MB written, of so many).
        """
        with self._store.errors("compact"):
            fewer = maintenance.compact(self._images, on_progress=on_progress)
            return fewer + maintenance.compact(self._quarantine)

    def vacuum(self, hours: int = ORPHAN_HOURS) -> int:
        """Delete files that the newest version does not need: replaced ones, and orphans of killed runs.

        Parameters
        ----------
        hours
            How long ago a file must have been replaced (before that a reader may have it open) or, if it was never
            committed, written: an hour at least, since a run in flight may be about to commit it.

        Returns
        -------
        Number of files deleted.
        """
        if not isinstance(hours, Integral) or hours < 0:
            raise ArchiveError(f"{self.url}: files are kept for 0 whole hours or more, not {hours!r}")
        with self._store.errors("vacuum"):
            # At the top lies the marker, which nobody writes where an archive could be opened.
            kept = {"": hours, "codecs": max(hours, ORPHAN_HOURS)}
            unfinished = sum(self._store.delete_unfinished(folder, age * 3600) for folder, age in kept.items())
            return unfinished + self._images.vacuum(hours) + self._quarantine.vacuum(hours)

    # --- reading ---

    def __len__(self) -> int:
        """Pictures archived."""
        return self._images.rows

    def __bool__(self) -> bool:
        """True: there is an archive, even where it is empty. ``len`` tells whether it is."""
        return True

    @_reopens
    def __contains__(self, key: object) -> bool:
        """Whether a picture is archived: reads the keys of the row group that would hold it."""
        return isinstance(key, str) and any(table.num_rows for table in self._images.find([key], ["key"]))

    def __iter__(self) -> Iterator[str]:
        """See :meth:`keys`."""
        return self.keys()

    __reversed__ = None  # which Python would make of numbers

    def __getitem__(self, key: str) -> np.ndarray:
        """See :meth:`read`."""
        return self.read(key)

    @_reopens
    def known(self, limits: Limits = Limits()) -> KnownKeys:  # noqa: B008 - frozen
        """What is archived or quarantined, to compare a source with that is read within ``limits``."""
        hashes, fingerprints = self._quarantine.fingerprints()

        def again(row: QuarantineRow) -> bool:
            # What crashed a worker is tried again: the fault may have been the program's, and mended since. So is what
            # the source did not give: it may give it now. What was damaged here never was the file's fault.
            if row.reason == "too_large":
                return would_fit(row.detail, limits)
            return row.reason in NO_FAULT

        listed = list(self.quarantined())
        tried_again = hash_keys([row.key for row in listed if again(row)])
        accepted = hash_keys([row.key for row in listed if row.reason == ACCEPTED])
        return KnownKeys(self._images.fingerprints(), (hashes, fingerprints), tried_again, accepted)

    @_reopens
    def read_row(self, key: str) -> Row:
        """The row of one picture: reads the row group that holds it and no other.

        ArchiveError where there is none, which is a KeyError too.
        """
        if isinstance(key, Iterable) and not isinstance(key, (str, bytes)):
            raise TypeError(f"read and read_row take one key, not a {type(key).__name__}: see read_rows")
        require_text(key)
        for found in self._images.find([key], IMAGES.names):
            row: Row = from_table(found, IMAGES)[0]
            return row
        raise NoPictureError(f"{self.url}: there is no picture {key!r}")

    def read_rows(self, keys: Iterable[str]) -> Iterator[Row]:
        """The rows of those of ``keys`` that are archived, in the archive's order, each row group read once.

        For many pictures: ``read_row`` reads a row group for each.
        """
        keys = several_keys(keys)
        return self._to_the_end(
            lambda: (row for found in self._images.find(keys, IMAGES.names) for row in from_table(found, IMAGES))
        )

    def _to_the_end(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What ``read`` yields; from the newest version, as in ``_reopens``, where files are gone before the first.

        Later than that some rows would come twice, or never.
        """
        with to_the_end(self._images):
            items = read()
            try:
                first = list(islice(items, 1))
            except FileNotFoundError:
                self.refresh()
                first, items = [], read()
            if first:
                yield first.pop()  # held no longer than the others
            yield from items

    @_reopens
    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that are neither archived nor quarantined, in their order."""
        keys = several_keys(keys)
        there: set[str] = set()
        for table in self.tables:
            for found in table.find(keys, ["key"]):
                there.update(found["key"].to_pylist())
        return [key for key in keys if key not in there]

    def read(self, key: str) -> np.ndarray:
        """One picture's pixels: uint8 (H, W, 3). ArchiveError where there is none, CodecError where it is damaged.

        Of a file that keeps its own bytes they are what 8-bit sRGB holds of it: alpha on white, the first frame. The
        file itself is ``read_row(key).payload``, and what :meth:`restore` writes.

        Many pictures are read several times faster in batches, 64 at a time: ``decode(read_rows(keys))``. A learned
        codec's pixels may differ there by one level, as sums of floating point round otherwise in another batch.
        """
        return self.decode([self.read_row(key)])[0]

    def decode(self, rows: Iterable[Row] | ArrowStream) -> list[np.ndarray]:
        """Pixels of rows, in their order, uint8 (H, W, 3) each, every codec's in one call.

        Or of an Arrow table with their columns (``DECODED`` names those that it takes), from :meth:`batches`, a query
        of DuckDB or a DataFrame of Polars.

        All of them are in memory: decode a large collection 64 rows or so at a time. A learned codec's pixels may
        differ by one level from those that :meth:`read` gives, or another batch.

        CodecError where a payload is damaged; ArchiveError where rows were read without a column that it takes:
        ``DECODED`` names them.
        """
        return decoding.decode(rows, self.codec)

    def scan(self, columns: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[list[Row]]:
        """All rows in batches, in order of keys where the archive is compacted.

        Parameters
        ----------
        columns
            What to read. The fields of other columns are None, whatever their types say; so are ``psnr`` and ``ssim``,
            where None would mean that nothing is lost: read those before you ask. Without ``payload`` a scan reads
            some 20 bytes a row.
        batch_size
            Rows in a batch. There are fewer where their payloads would exceed 64 MiB.
        """
        if batch_size < 1:
            raise ArchiveError(f"a batch has at least 1 row, not {batch_size}")
        rows = (row for table in self.batches(columns) for row in from_table(table, IMAGES))
        return bounded_chunks(rows, lambda row: len(row.payload or b""), BYTES_AT_ONCE, batch_size)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The same as Arrow tables, one for each row group."""
        names = self._column_names(columns)  # refused here, and not at the first row
        images = self._images
        return self._to_the_end(
            lambda: (images.read(part, [group], names, salvage=True) for part, group in images.groups())
        )

    def keys(self) -> Iterator[str]:
        """All keys, one row group of them in memory at a time."""
        for table in self.batches(["key"]):
            yield from table["key"].to_pylist()

    def quarantined(self) -> Iterator[QuarantineRow]:
        """All entries of the quarantine list."""
        with self._store.errors("read its quarantine"):
            for part, group in self._quarantine.groups():
                yield from from_table(self._quarantine.read(part, [group], QUARANTINE.names), QUARANTINE)

    @_reopens
    def info(self) -> maintenance.ArchiveInfo:
        """Counts, bytes and quality of all that is archived; reads no payload."""
        return maintenance.info(*self.tables, FORMAT)

    def sizes(self) -> tuple[int, int]:
        """Bytes of the Parquet files that hold its pictures now, and of the codecs beside them."""
        with self._store.errors("read its sizes"):
            return maintenance.sizes(self._images)

    def verify(
        self, on_progress: Callable[[int, int], None] | None = None, workers: int = 1
    ) -> list[verifying.Problem]:
        """Check log, codecs and files against their checksums, and read and decode every picture.

        Parameters
        ----------
        on_progress
            Called with (rows checked, rows in all) after each row group.
        workers
            Processes that read and decode. A small archive is checked in this one, which starts faster.

        Returns
        -------
        What is wrong, one entry for each bad picture or damaged file; empty where all is well.

        Raises
        ------
        ArchiveError
            Something may be sound, and cannot be read: the storage refuses it, or memory does not suffice for it.
        """
        with self._store.errors("verify it"), enough_memory(self.url, "verify it"):
            return verifying.verify(self, on_progress, workers)

    def dataset(
        self,
        keys: Iterable[str] | None = None,
        *,
        transform: "Callable[[torch.Tensor], Any] | None" = None,
        target: Callable[[Row], Any] | None = None,
        resize: int | None = None,
    ) -> "ArchiveDataset":
        """The pictures as a ``torch.utils.data.Dataset``; see :class:`compressor.dataset.ArchiveDataset`."""
        from compressor.dataset import ArchiveDataset

        keys = None if keys is None else several_keys(keys)
        return ArchiveDataset(self, keys, transform, target, resize)

    def restore(
        self,
        destination: "str | os.PathLike[str]",
        keys: Iterable[str] | None = None,
        format: str = "png",
        *,
        workers: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
        overwrite: bool = False,
    ) -> "Restored":
        """Write pictures as files below ``destination``; see :func:`compressor.restoring.restore`."""
        from compressor.restoring import restore

        return restore(self, destination, keys, format, workers, on_progress, overwrite)

    def row_groups(self, spans: Spans | None = None) -> Iterator[tuple[Part, int, int, int]]:
        """Row groups: the file, the number there, and how many rows and bytes it has; in order of keys as ``scan`` is.

        Every one, or those that may hold keys of ``spans``.
        """

        def read() -> Iterator[tuple[Part, int, int, int]]:
            for part, group in self._images.groups(spans):
                metadata = self._images.footer(part).row_group(group)
                yield part, group, metadata.num_rows, metadata.total_byte_size

        return self._to_the_end(read)

    def row_group(self, part: Part, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns, or all, of one row group, whose damaged payloads are left to whoever decodes them."""
        with to_the_end(self._images):
            return self._images.read(part, [group], self._column_names(columns), salvage=True)

    def files(self) -> list[str]:
        """Addresses of the Parquet files that hold the pictures now, and no others: for DuckDB, Polars or pandas.

        Absolute paths, or ``s3://`` addresses. Until ``vacuum`` or ``delete``, what they hold stays as it is.
        """
        return [f"{self._store.table_url(self._images.folder)}/{part.path}" for part in self._images.parts]

    def _column_names(self, columns: Sequence[str] | None) -> list[str]:
        names = IMAGES.names if columns is None else list(dict.fromkeys(several(columns)))
        unknown = set(names).difference(IMAGES.names)
        if unknown:
            raise ArchiveError(f"no column {sorted(unknown)[0]!r}; there are {', '.join(IMAGES.names)}")
        return names

    # --- codecs ---

    def put_codec(self, data: bytes, replace: bool = False) -> str:
        """Store a codec's artifact, unless it is there: an archive carries all that reading it needs.

        Parameters
        ----------
        replace
            Write it in any case, over one that is damaged.

        Returns
        -------
        The codec's id, by which rows name it.

        Raises
        ------
        CodecError
            ``data`` are no artifact, or one of a newer format.
        """
        return self._codecs.put(data, replace)

    def codec(self, id: str) -> Codec:
        """A codec that rows name: a standard format's, or the artifact that the archive carries.

        Loaded once in each process: after a fork a network's threads, or its GPU, are the parent's.
        """
        return self._codecs.load(id)


def _closed(url: str, storage_options: dict[str, str]) -> Archive:
    return Archive(Store(url, storage_options))

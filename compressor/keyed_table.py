"""A Delta table whose rows are unique by key, whoever writes at the same time.

All Parquet files are written here, never by delta-rs, which cannot set compression per column. Which of them count says
the log (see ``delta_log.py``).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compressor import integrity, parquet
from compressor.defaults import ORPHAN_HOURS
from compressor.delta_log import Change, DeltaLog
from compressor.errors import ArchiveError
from compressor.known import among, fingerprint_numbers, hash_keys
from compressor.parquet import Layout, Part, RangeFile, Spans
from compressor.store import Store

THREADS = 8
FOOTER_BYTES = 2**27  # kept in memory: some 5,000 footers of small files, or 500 of 100,000 rows
_OF_ANY_FOOTER, _OF_A_GROUP = 20_000, 2_000  # bytes, measured


class KeyedTable:
    """One table of an archive, seen at one version until its ``log`` is refreshed.

    Parameters
    ----------
    store
        Where the archive lies.
    folder
        The table's folder in it.
    layout
        Its columns.
    """

    def __init__(self, store: Store, folder: str, layout: Layout) -> None:
        self.store = store
        self.folder = folder
        self.layout = layout
        self.log = DeltaLog(store, folder, layout.schema)
        self._footers: dict[str, pq.FileMetaData] = {}
        self._footer_bytes = 0
        self._hashes: dict[str, np.ndarray] = {}
        self._ordered: tuple[str, np.ndarray] = ("", np.zeros(0, np.uint64))
        self._lock = Lock()

    @property
    def parts(self) -> list[Part]:
        """The files that hold its rows, in order of their smallest key."""
        return self.log.parts

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    # --- reading ---

    def overlapping(self, first: str, last: str) -> list[Part]:
        """Files that may hold keys from ``first`` to ``last``, both included."""
        end = bisect_right(self.parts, last, key=lambda part: part.key_range[0])
        return [part for part in self.parts[:end] if part.key_range[1] >= first]

    def footer(self, part: Part) -> pq.FileMetaData:
        """A file's Parquet metadata, fetched once."""
        footer = self._footers.get(part.path)
        if footer is None:
            footer = parquet.read_metadata(self._file(part), part.path)
            with self._lock:
                if part.path not in self._footers:
                    self._footers[part.path] = footer
                    self._footer_bytes += _in_memory(footer)
                while self._footer_bytes > FOOTER_BYTES:
                    self._footer_bytes -= _in_memory(self._footers.pop(next(iter(self._footers))))
        return footer

    def columns(self, parts: Iterable[Part]) -> list[str]:
        """What rows of ``parts`` are written again with: all columns, but optional ones that none of them has."""
        there = {name for part in parts for name in parquet.column_names(self.footer(part))}
        return [column.name for column in self.layout.columns if column.name in there or not column.optional]

    def read(self, part: Part, groups: Sequence[int] | None, columns: Sequence[str], salvage: bool = False) -> pa.Table:
        """Some columns of row groups (None: of all); ``salvage`` as in :func:`compressor.parquet.read_groups`."""
        footer = self.footer(part)
        groups = range(footer.num_row_groups) if groups is None else groups
        table = parquet.read_groups(self._file(part), footer, groups, columns, salvage)
        schema = pa.schema([self.layout.schema.field(name) for name in columns])
        if table.schema.equals(schema):
            return table
        # Another program has written it, with the same columns in types of its own, such as Arrow's views of strings.
        arrays = [array.cast(type) for array, type in zip(table.columns, schema.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=schema)

    def find(self, keys: Collection[str], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``keys`` that are there: a table of each row group that holds some, none of which is read twice.

        Reads no other row group than those that can hold one, by their smallest and largest key.
        """
        ordered = sorted(_storable(keys))
        spans = Spans((key, key) for key in ordered)
        for part, group in self.groups(spans):
            keyed = self.read(part, [group], ["key"])
            there = keyed["key"]
            first, last = pc.min_max(there).as_py().values()
            wanted = ordered[bisect_left(ordered, first) : bisect_right(ordered, last)]
            found = pc.is_in(there, pa.array(wanted, pa.string()))
            if pc.any(found).as_py():
                rows = keyed if list(columns) == ["key"] else self.read(part, [group], columns, salvage=True)
                yield rows.filter(found)

    def groups(self, spans: Spans | None = None) -> Iterator[tuple[Part, int]]:
        """Row groups, all or those that may hold keys of ``spans``, in order of keys where files do not overlap."""
        for part in list(self.parts):
            if spans is None:
                yield from ((part, group) for group in range(self.footer(part).num_row_groups))
            elif spans.meet(*part.key_range):
                yield from ((part, group) for group in parquet.row_groups_with(self.footer(part), spans))

    def fingerprints(self) -> tuple[np.ndarray, np.ndarray]:
        """Key hashes and fingerprints of all rows: uint64 (N,) both."""

        def load(part: Part) -> tuple[np.ndarray, np.ndarray]:
            read = self.read(part, None, ["key", "fingerprint"])
            hashes = self._hashes[part.path] = hash_keys(read["key"].to_pylist())
            return hashes, fingerprint_numbers(read["fingerprint"].to_pylist())

        with ThreadPoolExecutor(THREADS) as pool:
            loaded = list(pool.map(load, self.parts))
        empty = np.zeros(0, np.uint64)
        return (
            np.concatenate([empty, *(hashes for hashes, _ in loaded)]),
            np.concatenate([empty, *(fingerprints for _, fingerprints in loaded)]),
        )

    def _file(self, part: Part) -> RangeFile:
        name = f"{self.folder}/{part.path}"
        return RangeFile(lambda spans: self.store.ranges(name, spans), part.size)

    def _keys(self, part: Part) -> list[str]:
        return self.read(part, None, ["key"])["key"].to_pylist()

    def _key_hashes(self, part: Part) -> np.ndarray:
        if part.path not in self._hashes:
            self._hashes[part.path] = hash_keys(self._keys(part))
        return self._hashes[part.path]

    def _sorted_hashes(self, part: Part) -> np.ndarray:
        """Of the part that was asked for last they are kept: one that arrives is held against many."""
        path, hashes = self._ordered
        if path != part.path:
            path, hashes = self._ordered = part.path, np.sort(self._key_hashes(part))
        return hashes

    def _forget_hashes_but_of(self, parts: Sequence[Part]) -> None:
        known = {part.path for part in parts}
        self._hashes = {path: hashes for path, hashes in self._hashes.items() if path in known}

    # --- writing ---

    def write(self, tables: Iterator[pa.Table] | Sequence[pa.Table]) -> Part | None:
        """Put one file of ``tables``, sorted by key; nobody sees it until it is committed. None without rows."""
        data, rows, stats = parquet.encode(tables, self.layout)
        if not rows:
            return None
        path = integrity.part_name(data)
        self.store.put(f"{self.folder}/{path}", data)
        return Part(path, len(data), rows, stats)

    def upsert(self, parts: Sequence[Part], replaced: Collection[str], batch_id: str | None) -> int:
        """Make the rows of ``parts`` visible in one commit. Returns how many of them were left out.

        A key that is there already is replaced if it is in ``replaced``, else the row that is there stays. The same
        ``batch_id`` again does nothing.
        """
        replaced = set(replaced)
        left_out = 0

        def plan() -> Change | None:
            nonlocal left_out
            left_out = 0
            if batch_id is not None and self.log.holds(batch_id):
                return None
            live = {part.path for part in self.parts}
            arriving = [part for part in dict.fromkeys(parts) if part.path not in live]
            if not arriving:
                return None
            change, left_out = self._plan_upsert(arriving, replaced)
            return change

        self.log.transact(plan, batch_id)
        return left_out

    def delete(self, keys: Collection[str], on_progress: Callable[[int, int], None] | None = None) -> int:
        """Take the rows of ``keys`` out, in one commit. Returns how many there were.

        ``on_progress`` is told (files written again, of so many).
        """
        removed = 0
        keys = sorted(_storable(keys))

        def plan() -> Change:
            nonlocal removed
            removed = 0
            self._forget_hashes_but_of(self.parts)
            drops: list[tuple[Part, set[str]]] = []
            wanted = set(keys)
            hashes = hash_keys(keys)
            for part in self.overlapping(keys[0], keys[-1]) if keys else []:
                if np.isin(hashes, self._key_hashes(part)).any():
                    there = wanted.intersection(self._keys(part))
                    if there:
                        drops.append((part, there))
                        removed += len(there)
            return self._without(drops, on_progress)

        self.log.transact(plan)
        return removed

    def check_there(self, parts: Sequence[Part]) -> None:
        """ArchiveError unless all of each file that is to be committed is there."""
        for part in parts:
            try:
                size = self.store.size(f"{self.folder}/{part.path}")
            except FileNotFoundError:
                size = -1
            if size != part.size:
                raise ArchiveError(
                    f"{self.store.url}: part {part.path} is gone or incomplete ({size} bytes, {part.size} written); "
                    "was it vacuumed as an orphan? Run the same again"
                )

    def _plan_upsert(self, arriving: Sequence[Part], replaced: set[str]) -> tuple[Change, int]:
        """What to commit, and how many arriving rows it leaves out."""
        self.check_there(arriving)
        self._forget_hashes_but_of([*self.parts, *arriving])
        drops: dict[str, set[str]] = {}
        earlier: list[Part] = []
        for part in arriving:
            first, last = part.key_range
            for other in self.overlapping(first, last):
                for key in self._common(part, other):
                    drops.setdefault((other if key in replaced else part).path, set()).add(key)
            for other in earlier:
                smallest, largest = other.key_range
                if smallest <= last and first <= largest:
                    drops.setdefault(part.path, set()).update(self._common(part, other))
            earlier.append(part)
        untouched = [part for part in arriving if part.path not in drops]
        rewritten = self._without([(part, drops[part.path]) for part in arriving if part.path in drops])
        shrunk = self._without([(part, drops[part.path]) for part in self.parts if part.path in drops])
        left_out = sum(len(drops[part.path]) for part in arriving if part.path in drops)
        return Change(add=[*untouched, *rewritten.add, *shrunk.add], remove=shrunk.remove), left_out

    def _common(self, part: Part, other: Part) -> set[str]:
        """Keys in both files; exact keys are compared only where hashes meet."""
        if not among(self._key_hashes(other), self._sorted_hashes(part)).any():
            return set()
        return set(self._keys(part)).intersection(self._keys(other))

    def _without(
        self, drops: Sequence[tuple[Part, set[str]]], on_progress: Callable[[int, int], None] | None = None
    ) -> Change:
        """Files written again without some of their rows."""
        add = []
        for number, (part, keys) in enumerate(drops, 1):
            unwanted = pa.array(sorted(keys), pa.string())

            def kept(part: Part = part, unwanted: pa.Array = unwanted) -> Iterator[pa.Table]:
                for group in range(self.footer(part).num_row_groups):
                    rows = self.read(part, [group], self.columns([part]), salvage=True)
                    yield rows.filter(pc.invert(pc.is_in(rows["key"], unwanted)))

            if (rest := self.write(kept())) is not None:
                add.append(rest)
            if on_progress:
                on_progress(number, len(drops))
        return Change(add=add, remove=[part for part, _ in drops])

    def vacuum(self, hours: int) -> int:
        """Delete files that were replaced ``hours`` ago, or written then and never committed. Returns how many.

        What was never committed stays for ``ORPHAN_HOURS`` in any case.
        """
        self.log.refresh(anew=True)
        replaced = self.log.unneeded(hours, full=False)
        return self._delete_unneeded({*replaced, *self.log.unneeded(max(hours, ORPHAN_HOURS), full=True)})

    def _delete_unneeded(self, names: Collection[str]) -> int:
        """Without the two commits that delta-rs writes of it: nothing that a reader sees has changed."""
        self.log.refresh(anew=True)  # a run may have committed one of them since they were listed
        found = sorted(set(names).difference(part.path for part in self.parts))
        self.store.delete([f"{self.folder}/{name}" for name in found])
        return len(found)

    def forget(self) -> None:
        """Delete the files of earlier versions, and from the log what it said of them (smallest and largest keys).

        The log starts anew from a checkpoint of the present version, which other writers pick up by themselves.
        """
        self.log.refresh(anew=True)
        self._delete_unneeded(self.log.unneeded(0, full=False))
        self.log.cut()


def _in_memory(footer: pq.FileMetaData) -> int:
    """About how many bytes a footer takes there."""
    return _OF_ANY_FOOTER + _OF_A_GROUP * footer.num_row_groups


def _storable(keys: Collection[str]) -> set[str]:
    """Without what no row can have: text that is not Unicode, such as a name in another encoding."""
    return {key for key in keys if key.encode(errors="replace").decode() == key}

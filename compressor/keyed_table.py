"""A Delta table whose rows are unique by key, whoever writes at the same time.

All Parquet files are written here, never by delta-rs, which cannot set compression per column; delta-rs keeps the log.
Every change is one commit against the version it was planned on (compare and swap); one that loses is planned anew.
"""

import random
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compressor import integrity, parquet
from compressor.errors import ArchiveError
from compressor.known import fingerprint_numbers, hash_keys
from compressor.parquet import Layout, Part, RangeFile, Spans
from compressor.retrying import is_transient, patiently
from compressor.store import TEMPORARY_NAME, Store

ATTEMPTS = 50  # a commit takes milliseconds, so this many lost races mean that something else is wrong
THREADS = 8
ORPHAN_HOURS = 1  # a run commits a part within minutes of writing it
FOOTERS = 512  # kept in memory; one of a 100,000 row file is some 200 KB
CONFIGURATION = {
    "delta.dataSkippingStatsColumns": "key",
    "delta.checkpointInterval": "20",
    "delta.logRetentionDuration": "interval 7 days",
    "delta.setTransactionRetentionDuration": "interval 30 days",  # how long a batch_id is remembered
}


ROWS, BYTES = "latentpack.rows", "latentpack.bytes"  # of the state that a commit leads to
OWN_FILE = re.compile(rf"part-[0-9a-f]{{16}}-?[0-9a-f]{{16}}\.parquet|{TEMPORARY_NAME}")  # or of an earlier version
LAST_CHECKPOINT = "_last_checkpoint"  # which delta-rs looks for first
_DIGEST = re.compile(rf'"{integrity.STATE}":"([0-9a-f]{{16}})"')
_CHANGES = re.compile(r'^\{"(add|remove)"', re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """What one commit does: files that appear and disappear together."""

    add: list[Part]
    remove: list[Part]
    moves_only: bool = False  # the same rows in other files


class KeyedTable:
    """One table of an archive, seen at one version until ``refresh``.

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
        self._delta: Any = None
        self.parts: list[Part] = []
        self._footers: dict[str, pq.FileMetaData] = {}
        self._hashes: dict[str, np.ndarray] = {}
        self._checked = -1  # the version whose state is known to be what its commit says
        self._lock = Lock()

    # --- the log ---

    def create(self) -> None:
        """Make an empty table, unless there is one."""
        from deltalake import DeltaTable

        patiently(
            lambda: DeltaTable.create(
                self.store.table_url(self.folder),
                pa.schema(self.layout.schema),
                mode="ignore",
                configuration=CONFIGURATION,
                storage_options=self.store.table_options,
            )
        )
        self._settle(0)

    def _settle(self, first: int) -> None:
        """Have the log from version ``first`` on outlive a power cut: delta-rs leaves that to the system."""
        self.store.settle(
            self._log, lambda name: name == LAST_CHECKPOINT or (name[:20].isdigit() and int(name[:20]) >= first)
        )

    @property
    def _log(self) -> str:
        return f"{self.folder}/_delta_log"

    def refresh(self, anew: bool = False) -> None:
        """See the newest version, ``anew`` without relying on what is known of earlier ones, whose log may be gone."""
        from deltalake import DeltaTable

        if anew:
            self._delta = None
        with self.store.errors(f"read the log of its table {self.folder!r}, which is missing or damaged"):
            if self._delta is None:
                url, options = self.store.table_url(self.folder), self.store.table_options
                self._delta = patiently(lambda: DeltaTable(url, storage_options=options))
            else:
                before = self._delta.version()
                patiently(self._delta.update_incremental)
                if self._delta.version() == before:
                    return
            actions = pa.table(self._delta.get_add_actions(flatten=True))
            features = self._delta.protocol().reader_features
        if features:
            raise ArchiveError(
                f"{self.store.url}: another program made the table {self.folder!r} use {', '.join(features)}, "
                "which latentpack does not read"
            )
        self.parts = sorted(map(_part, actions.to_pylist()), key=lambda part: part.key_range)
        live = {part.path for part in self.parts}
        self._footers = {path: footer for path, footer in self._footers.items() if path in live}
        self._hashes = {path: hashes for path, hashes in self._hashes.items() if path in live}

    def check_state(self) -> None:
        """ArchiveError where the log does not lead to the state that its newest commit was made with.

        One small file of the log, read once for each version that another process has committed.
        """
        if self._checked == self.version:
            return
        stored = self.stored_digest()
        if stored is not None and stored != (computed := self.digest(self.parts)):
            raise ArchiveError(
                f"{self.store.url}: the log of its table {self.folder!r} is damaged: version {self.version} was "
                f"committed with state {stored or 'unknown'}, its log says {computed}; run 'latentpack repair' on it"
            )
        self._checked = self.version

    def accept_state(self) -> None:
        """Take the present state for right, so that it can be mended by a commit."""
        self._checked = self.version

    def digest(self, parts: Sequence[Part]) -> str:
        """Of the state with these live files; see :func:`compressor.integrity.state_digest`."""
        metadata, protocol = self._delta.metadata(), self._delta.protocol()
        fields = [(field.name, str(field.type), field.nullable) for field in self._delta.schema().fields]
        versions = (protocol.min_reader_version, protocol.min_writer_version)
        about = (sorted(metadata.configuration.items()), list(metadata.partition_columns), fields, versions)
        return integrity.state_digest([part.identity for part in parts], about)

    def stored_digest(self) -> str | None:
        """What the newest commit that changed anything says; empty if that is nothing, None if nobody can know.

        Files of a version before latentpack named them by checksum were committed without a digest.
        """
        for version in range(self.version, -1, -1):
            try:
                text = self.store.get(f"{self._log}/{version:020}.json").decode(errors="replace")
            except FileNotFoundError:  # cut off behind a checkpoint
                return None
            if not text.strip():  # a file that a power cut left empty
                break
            if found := _DIGEST.search(text):
                return found[1]
            if _CHANGES.search(text):
                break
        return "" if any(integrity.has_checksums(part.path) for part in self.parts) else None

    def unneeded(self, hours: int, full: bool) -> list[str]:
        """Files that no row of the present version is in, of ``hours`` ago; ``full`` with those never committed.

        Never a file whose name is not one that latentpack gives: it is somebody else's.
        """
        found = self._delta.vacuum(hours, enforce_retention_duration=False, dry_run=True, full=full)
        return [name for name in found if OWN_FILE.fullmatch(name)]

    def history(self, limit: int) -> list[tuple[datetime, int, int]]:
        """When the latest commits were made, and the rows and bytes that they led to, oldest first.

        Only those that the log still has, and that were made by a version of latentpack that noted it.
        """
        commits = [commit for commit in reversed(self._delta.history(limit)) if ROWS in commit]
        return [
            (datetime.fromtimestamp(commit["timestamp"] / 1000, UTC), int(commit[ROWS]), int(commit[BYTES]))
            for commit in commits
        ]

    @property
    def version(self) -> int:
        """Version of the table that is seen."""
        return int(self._delta.version())

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
                while len(self._footers) >= FOOTERS:
                    self._footers.pop(next(iter(self._footers)))
                self._footers[part.path] = footer
        return footer

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
            there = self.read(part, [group], ["key"])["key"]
            first, last = (pc.min_max(there)[end].as_py() for end in ("min", "max"))
            wanted = ordered[bisect_left(ordered, first) : bisect_right(ordered, last)]
            found = pc.is_in(there, pa.array(wanted, pa.string()))
            if pc.any(found).as_py():
                yield self.read(part, [group], columns, salvage=True).filter(found)

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
            return hashes, fingerprint_numbers(read["fingerprint"])

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

    # --- writing ---

    def write(self, tables: Iterator[pa.Table] | Sequence[pa.Table]) -> Part | None:
        """Put one file of ``tables``, sorted by key; nobody sees it until it is committed. None without rows."""
        data, rows, stats = parquet.encode(tables, self.layout)
        if not rows:
            return None
        path = integrity.part_name(data)
        self.store.put(f"{self.folder}/{path}", data)
        return Part(path, len(data), rows, stats)

    def upsert(self, parts: Sequence[Part], replaced: Collection[str], batch_id: str | None) -> None:
        """Make the rows of ``parts`` visible in one commit.

        A key that is there already is replaced if it is in ``replaced``, else the row that is there stays. The same
        ``batch_id`` again does nothing.
        """
        replaced = set(replaced)

        def plan() -> Change | None:
            if batch_id is not None and self._delta.transaction_version(batch_id) is not None:
                return None
            live = {part.path for part in self.parts}
            arriving = [part for part in parts if part.path not in live]
            return self._plan_upsert(arriving, replaced) if arriving else None

        self.transact(plan, batch_id)

    def delete(self, keys: Collection[str]) -> int:
        """Take the rows of ``keys`` out, in one commit. Returns how many there were."""
        removed = 0
        keys = sorted(_storable(keys))

        def plan() -> Change | None:
            nonlocal removed
            removed = 0
            drops: list[tuple[Part, set[str]]] = []
            wanted = set(keys)
            hashes = hash_keys(keys)
            for part in self.overlapping(keys[0], keys[-1]) if keys else []:
                if np.isin(hashes, self._key_hashes(part)).any():
                    there = wanted.intersection(self._keys(part))
                    if there:
                        drops.append((part, there))
                        removed += len(there)
            return self._without(drops) if drops else None

        self.transact(plan)
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

    def _plan_upsert(self, arriving: Sequence[Part], replaced: set[str]) -> Change:
        self.check_there(arriving)
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
        return Change(add=[*untouched, *rewritten.add, *shrunk.add], remove=shrunk.remove)

    def _common(self, part: Part, other: Part) -> set[str]:
        """Keys in both files; exact keys are compared only where hashes meet."""
        if not np.isin(self._key_hashes(part), self._key_hashes(other)).any():
            return set()
        return set(self._keys(part)).intersection(self._keys(other))

    def _without(self, drops: Sequence[tuple[Part, set[str]]]) -> Change:
        """Files written again without some of their rows."""
        add = []
        for part, keys in drops:
            unwanted = pa.array(sorted(keys), pa.string())

            def kept(part: Part = part, unwanted: pa.Array = unwanted) -> Iterator[pa.Table]:
                for group in range(self.footer(part).num_row_groups):
                    rows = self.read(part, [group], self.layout.names, salvage=True)
                    yield rows.filter(pc.invert(pc.is_in(rows["key"], unwanted)))

            if (rest := self.write(kept())) is not None:
                add.append(rest)
        return Change(add=add, remove=[part for part, _ in drops])

    def transact(self, plan: Callable[[], Change | None], batch_id: str | None = None) -> None:
        """Plan on the newest version and commit on exactly that one, again and again until nobody was faster.

        Files of a plan that was not committed stay until they are vacuumed as orphans: nobody can be sure that the
        commit will not arrive after all.
        """
        from deltalake import CommitProperties, Transaction
        from deltalake.exceptions import DeltaError
        from deltalake.transaction import AddAction, RemoveAction

        self.store.require_conditional_puts()
        stuck = 0
        reason: Exception
        for attempt in range(ATTEMPTS):
            self.refresh(anew=attempt > 0)
            planned_on = self.version
            change = None
            self.check_state()
            try:
                change = plan()
                if change is None or not (change.add or change.remove):
                    return
                now = int(time.time() * 1000)
                different = not change.moves_only
                actions: list[Any] = [
                    AddAction(new.path, new.size, {}, now, different, new.stats) for new in change.add
                ]
                actions += [RemoveAction(old.path, different, now, old.size, {}) for old in change.remove]
                transactions = [Transaction(batch_id, 1, now)] if batch_id is not None else None
                gone = {part.path for part in [*change.remove, *change.add]}  # a file may be named anew
                after = [*(part for part in self.parts if part.path not in gone), *change.add]
                # Without retries of delta-rs's own, which would append whatever another run has committed meanwhile.
                self._delta.create_write_transaction(
                    actions,
                    "append",
                    self.layout.schema,
                    commit_properties=CommitProperties(
                        custom_metadata={
                            integrity.STATE: self.digest(after),
                            ROWS: str(sum(part.rows for part in after)),
                            BYTES: str(sum(part.size for part in after)),
                        },
                        max_commit_retries=0,
                        app_transactions=transactions,
                    ),
                )
            except Exception as error:  # lost the race, or files to rewrite went in it, or nobody knows
                if not isinstance(error, (DeltaError, FileNotFoundError)) and not is_transient(error):
                    raise
                reason = error
            else:
                self.refresh()
                self._settle(planned_on + 1)
                return
            self.refresh(anew=True)
            if change is not None:
                added = {part.path for part in change.add}
                if added and added <= {part.path for part in self.parts}:  # the answer was lost, not the race
                    self._settle(planned_on + 1)
                    return
            stuck += self.version == planned_on  # nobody was faster: the commit itself is refused
            if stuck == 3:
                break
            if attempt:
                time.sleep(random.uniform(0, 0.02 * min(attempt, 25)))
        raise ArchiveError(
            f"{self.store.url}: not committed after {attempt + 1} attempts; is it writable, are many runs at it? "
            f"Last answer: {' '.join(str(reason).split())}"
        ) from reason

    def vacuum(self, hours: int) -> int:
        """Delete files that were replaced ``hours`` ago, or written then and never committed. Returns how many.

        What was never committed stays for ``ORPHAN_HOURS`` in any case.
        """
        self.refresh(anew=True)
        replaced = self.unneeded(hours, full=False)
        return self._delete_unneeded({*replaced, *self.unneeded(max(hours, ORPHAN_HOURS), full=True)})

    def _delete_unneeded(self, names: Collection[str]) -> int:
        """Without the two commits that delta-rs writes of it: nothing that a reader sees has changed."""
        self.refresh(anew=True)  # a run may have committed one of them since they were listed
        found = sorted(set(names).difference(part.path for part in self.parts))
        self.store.delete([f"{self.folder}/{name}" for name in found])
        return len(found)

    def forget(self) -> None:
        """Delete the files of earlier versions, and from the log what it said of them (smallest and largest keys).

        The log starts anew from a checkpoint of the present version, which other writers pick up by themselves.
        """
        self.refresh(anew=True)
        self._delete_unneeded(self.unneeded(0, full=False))
        self._delta.create_checkpoint()
        version = self.version
        self._settle(version)
        past = [name for name in self.store.names(self._log) if name[:20].isdigit() and int(name[:20]) < version]
        self.store.delete([f"{self._log}/{name}" for name in past])
        self.refresh(anew=True)


def _storable(keys: Collection[str]) -> set[str]:
    """Without what no row can have: text that is not Unicode, such as a name in another encoding."""
    return {key for key in keys if key.encode(errors="replace").decode() == key}


def _part(action: dict[str, Any]) -> Part:
    """A live file, from the log."""
    rows, smallest, largest = (action.get(name) for name in ("num_records", "min.key", "max.key"))
    if rows is None or smallest is None or largest is None:
        raise ArchiveError(f"file {action['path']} has no statistics in the log: another program must have written it")
    return Part(action["path"], action["size_bytes"], rows, parquet.statistics(rows, smallest, largest))

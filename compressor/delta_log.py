"""The log of a Delta table: which files hold its rows, and the commits that change it. delta-rs keeps it, no rows.

Every change is one commit against the version it was planned on (compare and swap); one that loses is planned anew.
"""

import functools
import itertools
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyarrow as pa

from compressor import integrity, parquet
from compressor.errors import ArchiveError, NewerError
from compressor.parquet import Part
from compressor.retrying import is_transient, patiently
from compressor.store import TEMPORARY_NAME, Store

P = ParamSpec("P")
T = TypeVar("T")
READS = 5  # of a log that others may cut meanwhile
ATTEMPTS = 50  # a commit takes milliseconds, so this many lost races mean that something else is wrong
CONFIGURATION = {
    "delta.dataSkippingStatsColumns": "key",
    "delta.checkpointInterval": "20",
    "delta.logRetentionDuration": "interval 7 days",
    "delta.setTransactionRetentionDuration": "interval 30 days",  # how long a batch_id is remembered
}
ROWS, BYTES = "latentpack.rows", "latentpack.bytes"  # of the state that a commit leads to
WRITER = "latentpack.version"  # that made a commit
OWN_FILE = re.compile(rf"part-[0-9a-f]{{16}}-?[0-9a-f]{{16}}\.parquet|{TEMPORARY_NAME}")  # or of an earlier version
LOG = "_delta_log"  # the folder of entries and checkpoints, in a table's
LAST_CHECKPOINT = "_last_checkpoint"  # which delta-rs looks for first
# What says nothing of the log itself: rights, connections, a shortage of threads, files or memory
_REFUSED = re.compile(
    "permission denied|necessary privileges|401 Unauthorized|403 Forbidden|error sending request|worker thread|"
    "too many open files|cannot allocate memory",
    re.IGNORECASE,
)
_DIGEST = re.compile(rf'"{integrity.STATE}":"([0-9a-f]{{16}})"')
_CHANGES = re.compile(r'^\{"(add|remove)"', re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """What one commit does: files that appear and disappear together."""

    add: list[Part]
    remove: list[Part]
    moves_only: bool = False  # the same rows in other files


@functools.cache
def _writer() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latentpack")
    except PackageNotFoundError:
        return "not installed"


_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = min(2 * _CORES + 2, 32)  # about as many as delta-rs starts: workers, and some that may block
_opened_by = 0  # process in which delta-rs was used first; in a fork of it, it panics


def in_fork() -> bool:
    """Whether this process is a fork of one that has used delta-rs, which cannot be used here."""
    return _opened_by not in (0, os.getpid())


def _use_delta(store: Store) -> None:
    global _opened_by
    if in_fork():
        raise ArchiveError(
            f"{store.url}: this process is a fork of one that has opened an archive, so that no archive can be opened, "
            "refreshed or written in it: start processes by 'spawn' or 'forkserver', as in "
            "multiprocessing.get_context('spawn'). What was open before the fork can be read"
        )
    if not _opened_by and not _may_start(THREADS):
        raise ArchiveError(
            f"{store.url}: the system lets this process start no more threads: raise its limit of processes "
            "('ulimit -u', a container's pids limit) or of memory ('ulimit -v')"
        )
    _opened_by = os.getpid()


def _may_start(count: int) -> bool:
    """Whether so many threads can be. Where one of delta-rs's cannot, it waits for ever for what that one was to do."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    return True


def _in_turn(method: Callable[Concatenate["DeltaLog", P], T]) -> Callable[Concatenate["DeltaLog", P], T]:
    """Have one thread at a time: what one plans on, another would refresh away before it is committed."""

    @functools.wraps(method)
    def alone(self: "DeltaLog", *args: P.args, **kwargs: P.kwargs) -> T:
        _use_delta(self.store)  # before: in a fork nobody may be left to give the turn back
        with self.store.turn:
            return method(self, *args, **kwargs)

    return alone


class DeltaLog:
    """The log of one table of an archive, opened at its first use, and seen at one version until ``refresh``.

    Parameters
    ----------
    store
        Where the archive lies.
    folder
        The table's folder in it.
    schema
        The table's columns.
    """

    def __init__(self, store: Store, folder: str, schema: pa.Schema) -> None:
        self.store = store
        self.folder = folder
        self.schema = schema
        self._parts: list[Part] = []
        self._delta: Any = None
        self._listed = -1  # the version that ``parts`` are of
        self._checked = -1  # the version whose state is known to be what its commit says

    def create(self) -> None:
        """Make an empty table, unless there is one."""
        from deltalake import DeltaTable
        from deltalake.exceptions import CommitFailedError

        _use_delta(self.store)

        def make() -> None:
            DeltaTable.create(
                self.store.table_url(self.folder),
                self.schema,
                mode="ignore",
                configuration=CONFIGURATION,
                storage_options=self.store.table_options,
            )

        try:
            patiently(make)
        except CommitFailedError:  # another process was faster: now there is one
            patiently(make)
        self._settle(0)

    def _settle(self, first: int) -> None:
        """Have the log from version ``first`` on outlive a power cut: delta-rs leaves that to the system."""
        self.store.settle(
            self._entries, lambda name: name == LAST_CHECKPOINT or (name[:20].isdigit() and int(name[:20]) >= first)
        )

    @property
    def _entries(self) -> str:
        return f"{self.folder}/{LOG}"

    @_in_turn
    def refresh(self, anew: bool = False) -> None:
        """See the newest version, ``anew`` without relying on what is known of earlier ones, whose log may be gone."""
        doing = f"read the log of its table {self.folder!r}"
        with _with_advice(), self.store.errors(doing):
            for attempt in itertools.count():
                try:
                    delta = self._read(anew or attempt > 0)
                    break
                except Exception as error:  # of several kinds, and at times a bare one
                    # Between a look at what there is and its reading, an erasure may have cut the log
                    if attempt + 1 == READS or "not found" not in str(error).lower():
                        raise
                    time.sleep(0.05 * attempt)
            if delta is self._delta and delta.version() == self._listed:
                return
            actions = pa.table(delta.get_add_actions(flatten=True))
            features = delta.protocol().reader_features
        if features:
            raise NewerError(
                f"{self.store.url}: another program made the table {self.folder!r} use {', '.join(features)}, "
                "which latentpack does not read"
            )
        # Not before: what is refused is refused the next time too, and what cannot be read leaves what was seen
        known = {part.identity: part for part in self._parts}
        parts = (known.get(action) or _part(action) for action in _in_rows(actions))
        self._parts = sorted(parts, key=lambda part: part.key_range)
        self._delta, self._listed = delta, int(delta.version())

    def _read(self, anew: bool) -> Any:
        """delta-rs's table at the newest version."""
        from deltalake import DeltaTable

        if anew or self._delta is None:
            url, options = self.store.table_url(self.folder), self.store.table_options
            return patiently(lambda: DeltaTable(url, storage_options=options))
        patiently(self._delta.update_incremental)
        return self._delta

    def require_answers(self) -> None:
        """ArchiveError where delta-rs is not let into the store, which then says nothing of the log."""
        from deltalake import DeltaTable

        url, options = self.store.table_url(self.folder), self.store.table_options
        with self.store.errors(f"ask for the log of its table {self.folder!r}"):
            patiently(lambda: DeltaTable.is_deltatable(url, options))

    @property
    def parts(self) -> list[Part]:
        """The files that hold the table's rows, in order of their smallest key."""
        self._open()
        return self._parts

    def _open(self) -> None:
        """See some version, if none is seen yet."""
        if self._delta is None:
            self.refresh()

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

    def digest(self, parts: Sequence[Part], columns: Sequence[Any] = ()) -> str:
        """Of the state with these live files, and more ``columns``; see :func:`compressor.integrity.state_digest`."""
        metadata, protocol = self._delta.metadata(), self._delta.protocol()
        fields = [(field.name, str(field.type), field.nullable) for field in [*self._delta.schema().fields, *columns]]
        versions = (protocol.min_reader_version, protocol.min_writer_version)
        about = (sorted(metadata.configuration.items()), list(metadata.partition_columns), fields, versions)
        return integrity.state_digest([part.digest for part in parts], about)

    def stored_digest(self) -> str | None:
        """What the newest commit that changed anything says; empty if that is nothing, None if nobody can know.

        Files of a version before latentpack named them by checksum were committed without a digest.
        """
        for version in range(self.version, -1, -1):
            try:
                text = self.store.get(f"{self._entries}/{version:020}.json").decode(errors="replace")
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
        self._open()
        commits = [commit for commit in reversed(self._delta.history(limit)) if ROWS in commit]
        return [
            (datetime.fromtimestamp(commit["timestamp"] / 1000, UTC), int(commit[ROWS]), int(commit[BYTES]))
            for commit in commits
        ]

    @property
    def version(self) -> int:
        """Version of the table that is seen."""
        self._open()
        return self._listed

    def holds(self, batch_id: str) -> bool:
        """Whether something was committed under this name, as far as the log remembers."""
        return self._delta.transaction_version(batch_id) is not None

    @_in_turn
    def transact(self, plan: Callable[[], Change | None], batch_id: str | None = None) -> None:
        """Plan on the newest version and commit on exactly that one, again and again until nobody was faster.

        Files of a plan that was not committed stay until they are vacuumed as orphans: nobody can be sure that the
        commit will not arrive after all.
        """
        from deltalake.exceptions import DeltaError

        self.store.require_conditional_puts()
        stuck = 0
        for attempt in range(ATTEMPTS):
            self.refresh(anew=attempt > 0)
            self.check_state()
            planned_on = self.version
            change: Change | None = None
            failure: Exception | None = None
            name = batch_id
            try:
                change = plan()
                if change is None or not (change.add or change.remove):
                    return
                if not change.add and name is None:
                    name = uuid.uuid4().hex  # no file will show that it arrived: others remove files too
                self._commit(change, name)
            except Exception as error:  # lost the race, or files to rewrite went in it, or nobody knows
                if not isinstance(error, (DeltaError, FileNotFoundError)) and not is_transient(error):
                    raise
                failure = error
            self.refresh(anew=failure is not None)
            if failure is None or (change is not None and self._shows(change, name)):
                self._settle(planned_on + 1)
                return
            stuck += self.version == planned_on  # nobody was faster: the commit itself is refused
            if stuck == 3:
                break
            if attempt:
                time.sleep(random.uniform(0, 0.02 * min(attempt, 25)))
        raise ArchiveError(
            f"{self.store.url}: not committed after {attempt + 1} attempts; is it writable, are many runs at it? "
            f"Last answer: {' '.join(str(failure).split())}"
        ) from failure

    def _commit(self, change: Change, batch_id: str | None) -> None:
        """Commit on the version that is seen, or raise what delta-rs raises where another was faster."""
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction, RemoveAction

        now = int(time.time() * 1000)
        different = not change.moves_only
        gone = {part.path for part in [*change.remove, *change.add]}  # a file may be named anew
        after = [*(part for part in self.parts if part.path not in gone), *change.add]
        # Without retries of delta-rs's own, which would append whatever another run has committed meanwhile.
        self._delta.create_write_transaction(
            [
                *(AddAction(new.path, new.size, {}, now, different, new.stats) for new in change.add),
                *(RemoveAction(old.path, different, now, old.size, {}) for old in change.remove),
            ],
            "append",
            self.schema,
            commit_properties=CommitProperties(
                custom_metadata=self._about(after),
                max_commit_retries=0,
                app_transactions=[Transaction(batch_id, 1, now)] if batch_id is not None else None,
            ),
        )

    def _about(self, parts: Sequence[Part], columns: Sequence[Any] = ()) -> dict[str, str]:
        """What a commit says of the state that it leads to."""
        return {
            integrity.STATE: self.digest(parts, columns),
            ROWS: str(sum(part.rows for part in parts)),
            BYTES: str(sum(part.size for part in parts)),
            WRITER: _writer(),
        }

    @_in_turn
    def add_columns(self) -> None:
        """Have the table know all columns of ``schema``: one that an earlier version made may lack optional ones."""
        from deltalake import CommitProperties, Schema
        from deltalake.exceptions import DeltaError

        self.store.require_conditional_puts()
        failure: Exception | None = None
        for attempt in range(ATTEMPTS):
            self.refresh(anew=attempt > 0)
            self.check_state()
            known = {field.name for field in self._delta.schema().fields}
            lacking = [field for field in Schema.from_arrow(self.schema).fields if field.name not in known]
            if not lacking:
                self._settle(self.version)
                return
            about = CommitProperties(custom_metadata=self._about(self.parts, lacking), max_commit_retries=0)
            try:
                self._delta.alter.add_columns(lacking, commit_properties=about)
            except DeltaError as error:  # another writer was faster
                failure = error
        raise ArchiveError(
            f"{self.store.url}: columns could not be added to its table {self.folder!r}; are many runs at it? "
            f"Last answer: {' '.join(str(failure).split())}"
        ) from failure

    def _shows(self, change: Change, name: str | None) -> bool:
        """Whether the version that is seen has a change, committed as ``name``, whose answer was lost."""
        if not change.add:
            return name is not None and self.holds(name)
        return {part.path for part in change.add} <= {part.path for part in self.parts}

    def cut(self) -> None:
        """Have the log start anew from a checkpoint of the present version, and delete what it says of earlier ones.

        Other writers pick the checkpoint up by themselves.
        """
        self._delta.create_checkpoint()
        version = self.version
        self._settle(version)
        past = [name for name in self.store.names(self._entries) if name[:20].isdigit() and int(name[:20]) < version]
        self.store.delete([f"{self._entries}/{name}" for name in past])
        self.refresh(anew=True)


@contextmanager
def _with_advice() -> Iterator[None]:
    """Have an ArchiveError of a log say what helps."""
    try:
        yield
    except ArchiveError as error:
        if _REFUSED.search(str(error)):
            advice = "see that it may be read, and try again"
        else:
            advice = "it is missing or damaged: 'latentpack salvage' brings the pictures into a new archive"
        raise ArchiveError(f"{error}; {advice}") from error.__cause__


def _in_rows(actions: pa.Table) -> Iterator[tuple[Any, ...]]:
    """(path, bytes, rows, smallest key, largest key) of each live file, as :attr:`Part.identity` has them."""
    names = ("path", "size_bytes", "num_records", "min.key", "max.key")
    there = set(actions.column_names)
    return zip(*(actions[name].to_pylist() if name in there else [None] * len(actions) for name in names), strict=True)


def _part(action: tuple[Any, ...]) -> Part:
    """A live file, from the log."""
    path, size, rows, smallest, largest = action
    if rows is None or smallest is None or largest is None:
        raise ArchiveError(f"file {path} has no statistics in the log: another program must have written it")
    return Part(path, size, rows, parquet.statistics(rows, smallest, largest))

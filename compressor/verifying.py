"""What of an archive can be trusted: its log, its files, its codecs and every row. Finds damage, mends none."""

import errno
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import crc32c
import numpy as np
import pyarrow as pa

from compressor import integrity
from compressor.carried import codec_name, damaged_codecs
from compressor.codec import ORIGINAL
from compressor.decoding import check_crc, decoded_apart, decoded_together
from compressor.errors import ArchiveError, CodecError, causes, is_shortage, s3_status, told, told_of
from compressor.keyed_table import KeyedTable
from compressor.known import hash_keys
from compressor.parquet import IMAGES, Part, Row, Spans, from_table, row_groups_with
from compressor.processes import processes
from compressor.retrying import is_transient
from compressor.store import Store
from compressor.wording import number

if TYPE_CHECKING:
    from compressor.archive import Archive

PARALLEL_ROWS, PARALLEL_BYTES = 4096, 16 * 2**20  # of fewer of both, processes have not started before one is done
READ_BYTES = 16 * 2**20  # of a file at a time, for its checksum
# What reading a damaged file raises, and a sound one where it is refused
DAMAGE = (OSError, pa.ArrowException, ArchiveError, MemoryError)
# What says nothing of the file. A bad sector (EIO) is damage
_REFUSED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_GONE, _CUT_SHORT = 404, 416  # the answers of an S3 store that do tell of a file
_ADVICE = "run 'latentpack repair' (a codec that does not ship needs --codec and a copy), or put its file back"

Faults = dict[str, Exception | None]  # why codecs cannot be had, by id: one that fails is not read again for each row


@dataclass(frozen=True)
class Problem:
    """A picture that cannot be trusted, or a file of the archive, if what is wrong has no key (``key`` is its name).

    ``waiting`` is how many pictures cannot be read for want of this file, a codec, although their rows are sound,
    ``unread`` how many are in this file of pictures and cannot be read; ``is_file`` tells it from a picture.
    """

    key: str
    reason: str
    waiting: int = 0
    unread: int = 0
    is_file: bool = False


def in_figures(problems: Sequence[Problem]) -> dict[str, Any]:
    """JSON-able: ``problems`` as (key, reason), and ``waiting``, how many sound pictures lack each file of a codec.

    ``bad`` pictures are named in ``problems``, ``unread`` ones are not: their file is missing or damaged. Of
    ``damaged_files`` all pictures may be sound.
    """
    files = [problem for problem in problems if problem.is_file]
    return {
        "problems": [(problem.key, problem.reason) for problem in problems],
        "waiting": {problem.key: problem.waiting for problem in problems if problem.waiting},
        "bad": len(problems) - len(files),
        "unread": sum(problem.unread for problem in files),
        "damaged_files": sum(not problem.unread and not problem.waiting for problem in files),
    }


@dataclass
class Findings:
    """What reading one file of pictures gave.

    Parameters
    ----------
    part
        The file.
    bad
        Keys of rows that cannot be trusted, with reasons.
    unreadable
        Row groups, or the whole file, of which not even the keys can be read: how many pictures, by the reason.
    unread
        Keys of rows that cannot be read whole, out of ``bad``.
    mismatch
        Why the file as a whole is not what was written, although every row may be sound; else empty.
    keys
        Of all rows whose key can be read.
    codecs
        Codecs of those rows of ``bad`` that can be read whole, by key.
    waiting
        Sound rows by the id of a codec that cannot be had: nothing is wrong with them, nor can they be decoded.
    refused
        What to raise where not all of the file was given or could be decoded, so that nothing can be said of it.
    """

    part: Part
    bad: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    mismatch: str = ""
    keys: list[str] = field(default_factory=list)
    codecs: dict[str, str] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    refused: ArchiveError | None = None

    @property
    def is_sound(self) -> bool:
        return not (self.bad or self.unreadable or self.mismatch)

    def note(self, store: Store, name: str, error: Exception) -> None:
        """Of several errors the first that says nothing of what is stored is the one to raise."""
        self.refused = self.refused or refusal(store, name, error)

    def problems(self) -> list[Problem]:
        """As a user is told of them: keys where they are known."""
        found = [Problem(key, reason) for key, reason in self.bad.items()]
        found += [
            Problem(self.part.path, reason, unread=count, is_file=True) for reason, count in self.unreadable.items()
        ]
        if self.mismatch and not found:
            found.append(Problem(self.part.path, self.mismatch, is_file=True))
        return found


def verify(
    archive: "Archive", on_progress: Callable[[int, int], None] | None = None, workers: int = 1
) -> list[Problem]:
    """Log, codecs, every file's checksum, every row's, and that it decodes to a picture of the size that it says.

    In so many processes, if there is enough for them to be worth their start. ArchiveError where something cannot be
    read that may be sound.
    """
    if not isinstance(workers, Integral) or workers < 1:
        raise ArchiveError(f"workers are 1 or more, not {workers!r}")
    images, quarantine = archive.tables
    problems = _check_logs(images, quarantine)
    with looked_ahead(archive, workers) as ahead:
        examined = examine(archive, on_progress, ahead)
        found = {one.part: (one.problems(), hash_keys(one.keys), one.waiting) for one in examined}
    live = [found[part] for part in images.parts if part in found]  # others may have replaced files since
    problems += check_codecs(archive, sum((waiting for *_, waiting in live), Counter()))
    problems += [problem for some, *_ in live for problem in some]
    for part in quarantine.parts:
        try:
            quarantine.read(part, None, quarantine.layout.names)
            check_whole(quarantine, part)
        except DAMAGE as error:
            raise_if_refused(images.store, part.path, error)
            reason = f"a list of quarantined pictures is damaged: {error}"
            problems.append(Problem(part.path, reason, is_file=True))
    return problems + twice(images, [hashes for _, hashes, _ in live])


# Keys of a row group that is sound in every way; None where somebody should look at what is wrong with it
SoundKeys = Callable[[Part, int], list[str] | None]


@contextmanager
def looked_ahead(archive: "Archive", workers: int) -> Iterator[SoundKeys | None]:
    """What other processes know of row groups, which they read and decode in order."""
    images, _ = archive.tables
    small = images.rows < PARALLEL_ROWS and sum(part.size for part in images.parts) < PARALLEL_BYTES
    if workers == 1 or small:
        yield None
        return
    groups = ((part, group) for part in list(images.parts) for group, _ in row_groups(images, Findings(part)))
    running: deque[tuple[tuple[Part, int], Future[list[str] | None]]] = deque()
    with processes(workers, _start_worker, archive) as pool:

        def sound_keys(part: Part, group: int) -> list[str] | None:
            try:
                while len(running) < 2 * workers and (one := next(groups, None)) is not None:
                    running.append((one, pool.submit(_sound_keys, *one)))
                if not any(one == (part, group) for one, _ in running):  # its file is a new one
                    return None
                while running[0][0] != (part, group):
                    running.popleft()
                return running.popleft()[1].result()
            except BrokenProcessPool:  # killed, perhaps for memory: this process needs less
                return None

        yield sound_keys


_archive: "Archive"


def _start_worker(archive: "Archive") -> None:
    global _archive
    _archive = archive


def _sound_keys(part: Part, group: int) -> list[str] | None:
    """See ``SoundKeys``, in a process started by :func:`looked_ahead`."""
    found = Findings(part)
    try:
        _inspect_group(_archive, found, group, 0, {})
    except Exception:  # whoever looks at it again will tell
        return None
    return found.keys if found.is_sound and not (found.waiting or found.refused) else None


def examine(
    archive: "Archive", on_progress: Callable[[int, int], None] | None = None, ahead: SoundKeys | None = None
) -> Iterator[Findings]:
    """Findings of every file. One that another run has replaced meanwhile is none; the new one takes its place.

    ArchiveError where one cannot be read that may be sound.
    """
    images, _ = archive.tables
    examined: set[Part] = set()
    codecs: Faults = {}
    checked = 0
    while waiting := [part for part in images.parts if part not in examined]:
        for part in waiting:

            def advance(rows: int, before: int = checked) -> None:
                if on_progress:
                    on_progress(min(before + rows, images.rows), images.rows)

            examined.add(part)
            found = inspect(archive, part, codecs, advance, ahead)
            checked += part.rows
            if not found.is_sound:
                images.log.refresh(anew=True)
                if part not in images.parts:
                    break
            if found.refused:
                raise found.refused
            yield found


def _check_logs(*tables: KeyedTable) -> list[Problem]:
    problems = []
    for table in tables:
        try:
            table.log.check_state()
        except DAMAGE:
            try:  # it may have been cut by a run that erases while it was read
                table.log.refresh(anew=True)
                table.log.check_state()
            except DAMAGE as error:
                raise_if_refused(table.store, f"{table.folder}/_delta_log", error)
                problems.append(Problem(f"{table.folder}/_delta_log", str(error), is_file=True))
    return problems


def check_codecs(archive: "Archive", waiting: Counter[str]) -> list[Problem]:
    """Codecs that are damaged, and those that sound rows are ``waiting`` for, by id."""
    store = archive.tables[0].store
    faults = {
        id: f"the codec is damaged: stored as {id}, its bytes hash to {found}; {_ADVICE}"
        for id, found in damaged_codecs(store).items()
    }
    for id in waiting.keys() - faults.keys():
        if not store.exists(codec_name(id)):
            faults[id] = f"the codec is missing, or a format that only a newer latentpack knows; {_ADVICE}"
        elif error := _fault(archive, id):
            faults[id] = told(error)
    problems = []
    for id, reason in sorted(faults.items()):
        lost = f"{number(waiting[id], 'sound picture')} cannot be read without it: " if waiting[id] else ""
        problems.append(Problem(codec_name(id), lost + reason, waiting[id], is_file=True))
    return problems


def _fault(archive: "Archive", id: str) -> Exception | None:
    """Why a codec cannot be had; None where it can."""
    try:
        archive.codec(id)
    except (ArchiveError, CodecError, MemoryError) as error:
        return error
    return None


def check_whole(table: KeyedTable, part: Part) -> None:
    """ArchiveError where a file's bytes are not those that it was named for, OSError where they cannot be read."""
    name = f"{table.folder}/{part.path}"
    if table.store.size(name) != part.size:
        raise ArchiveError(f"{part.path} has {table.store.size(name)} bytes, the log says {part.size}")
    computed = 0
    for start in range(0, part.size, READ_BYTES):
        [data] = table.store.ranges(name, [(start, min(start + READ_BYTES, part.size))])
        computed = crc32c.crc32c(data, computed)
    integrity.check_file(part.path, computed)


def is_refusal(error: BaseException | None) -> bool:
    """Whether storage failed or said no, or memory ran out, so that what was to be read may be sound."""
    if is_shortage(error):
        return True
    for one in causes(error):
        # A library cannot be loaded where memory is short, which is no fault of what it was to read
        if is_transient(one) or isinstance(one, (PermissionError, ImportError)):
            return True
        if isinstance(one, OSError) and one.errno in _REFUSED:
            return True
        if 400 <= (s3_status(one) or 0) < 500 and s3_status(one) not in (_GONE, _CUT_SHORT):
            return True
    return False


def refusal(store: Store, name: str, error: Exception) -> ArchiveError | None:
    """What to raise where an error says nothing of what ``store`` holds as ``name``; None where it tells of damage."""
    if not is_refusal(error):
        return None
    advice = "try again later"
    if is_shortage(error):
        advice = "try again with more memory"
    elif any(isinstance(one, PermissionError) for one in causes(error)):
        advice = "see that it may be read, and try again"
    refused = ArchiveError(f"{store.url}: {name} cannot be read, and may be sound: {told(error)}; {advice}")
    refused.__cause__ = error
    return refused


def raise_if_refused(store: Store, name: str, error: Exception) -> None:
    """See :func:`refusal`."""
    if refused := refusal(store, name, error):
        raise refused


def inspect(
    archive: "Archive",
    part: Part,
    codecs: Faults,
    on_progress: Callable[[int], None] | None = None,
    ahead: SoundKeys | None = None,
) -> Findings:
    """Read and decode every row of a file. ``codecs`` are those met before; ``on_progress`` is told rows done.

    ``ahead`` tells of row groups that are known to be sound.
    """
    images, _ = archive.tables
    found = Findings(part)
    try:
        check_whole(images, part)
    except DAMAGE as error:
        found.mismatch = told(error)
        found.note(images.store, part.path, error)
    done = 0
    for group, count in row_groups(images, found):
        keys = ahead(part, group) if ahead else None
        if keys is None:
            _inspect_group(archive, found, group, count, codecs)
        else:
            found.keys += keys
        done += count
        if on_progress:
            on_progress(done)
    _check_statistics(found)
    return found


def _inspect_group(archive: "Archive", found: Findings, group: int, count: int, codecs: Faults) -> None:
    """Read and decode the ``count`` rows of a row group."""
    images, _ = archive.tables
    try:
        rows = from_table(images.read(found.part, [group], IMAGES.names, salvage=True), IMAGES)
    except DAMAGE as error:
        unreadable(images, group, count, error, found)
        return
    found.keys += [row.key for row in rows]
    for together in decoded_together(rows):
        _decode(archive, together, codecs, found)
    found.codecs |= {row.key: row.codec for row in rows if row.key in found.bad}


def row_groups(images: KeyedTable, found: Findings, spans: Spans | None = None) -> Iterator[tuple[int, int]]:
    """Row groups of a file, all or those that may hold keys of ``spans``, and how many rows each has.

    None, and an entry in ``found``, where nobody can tell.
    """
    part = found.part
    try:
        footer = images.footer(part)
    except DAMAGE as error:
        found.unreadable[f"file with {number(part.rows, 'picture')} is unreadable: {told(error)}"] = part.rows
        found.note(images.store, part.path, error)
        return
    for group in row_groups_with(footer, spans) if spans is not None else range(footer.num_row_groups):
        yield group, footer.row_group(group).num_rows


def unreadable(images: KeyedTable, group: int, count: int, error: Exception, found: Findings) -> None:
    """Enter into ``found`` a row group that cannot be read, by keys where these can."""
    found.note(images.store, found.part.path, error)
    reason = f"row group {group} of {found.part.path} is unreadable: {told(error)}"
    try:
        keys = images.read(found.part, [group], ["key"])["key"].to_pylist()
    except DAMAGE as again:
        found.note(images.store, found.part.path, again)
        found.unreadable[f"{reason} ({number(count, 'picture')})"] = count
        return
    found.keys += keys
    found.unread.update(keys)
    found.bad.update(dict.fromkeys(keys, reason))


def _decode(archive: "Archive", rows: Sequence[Row], codecs: Faults, found: Findings) -> None:
    store = archive.tables[0].store
    ready = []
    for row in rows:
        if row.codec != ORIGINAL and row.codec not in codecs:
            codecs[row.codec] = _fault(archive, row.codec)
        if fault := codecs.get(row.codec):
            found.note(store, codec_name(row.codec), fault)
            _wait(row, found)
        else:
            ready.append(row)
    for row, pixels in zip(ready, decoded_apart(ready, archive.codec), strict=True):
        if isinstance(pixels, Exception):
            found.bad[row.key] = told_of(row.key, pixels)
            found.note(store, repr(row.key), pixels)  # for memory
        elif pixels.shape != (row.height, row.width, 3):
            height, width = pixels.shape[:2]
            found.bad[row.key] = f"stored as {row.width}x{row.height}, decodes to {width}x{height}"


def _wait(row: Row, found: Findings) -> None:
    """Enter a row whose codec cannot be had: no row is bad for that, but by its own bytes."""
    try:
        check_crc(row)
    except CodecError as error:
        found.bad[row.key] = told_of(row.key, error)
    else:
        found.waiting[row.codec] += 1


def _check_statistics(found: Findings) -> None:
    """That the log says of a file what it holds: a reader finds pictures by it."""
    part = found.part
    if found.unreadable or found.mismatch:
        return
    smallest, largest = min(found.keys, default=""), max(found.keys, default="")
    said = (part.rows, *part.key_range)
    if not integrity.has_checksums(part.path) and part.key_range[0] <= smallest and largest <= part.key_range[1]:
        said = (part.rows, smallest, largest)  # another program's file: delta-rs shortens long keys to wider bounds
    if (len(found.keys), smallest, largest) != said:
        found.mismatch = (
            f"the log says that {part.path} holds {number(part.rows, 'picture')}, from {part.key_range[0]!r} to "
            f"{part.key_range[1]!r}; it holds {len(found.keys)}, from {smallest!r} to {largest!r}"
        )


def twice(images: KeyedTable, hashes: Sequence[np.ndarray]) -> list[Problem]:
    """Keys that are there more than once."""
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    double = values[counts > 1]
    if not len(double):
        return []
    keys: set[str] = set()
    for part in images.parts:
        try:
            there = images.read(part, None, ["key"])["key"].to_pylist()
        except DAMAGE as error:
            raise_if_refused(images.store, part.path, error)
            continue
        keys.update(there[index] for index in np.flatnonzero(np.isin(hash_keys(there), double)))
    return [Problem(key, "there is more than one row of this key: the log is damaged") for key in sorted(keys)]

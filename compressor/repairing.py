"""Damage in an archive mended: from the damaged file itself, from the source, or by taking out what cannot be read.

What is damaged is told by verifying.py. Nothing is deleted here: files that were replaced stay until ``vacuum``.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compressor import integrity, parquet
from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import is_carried
from compressor.carried import carried_ids, codec_name, damaged_codecs
from compressor.codec import Codec, artifact_bytes, released
from compressor.delta_log import Change
from compressor.encoding import EncodeOptions, encode_batch
from compressor.encoding_again import EXACT, AgainOptions, StoredRows
from compressor.errors import DAMAGED, ArchiveError, CodecError, enough_memory, told
from compressor.keyed_table import KeyedTable
from compressor.known import FINGERPRINT_BYTES, hash_keys
from compressor.parquet import Part, QuarantineRow
from compressor.sources import Source, SourceFile
from compressor.verifying import (
    DAMAGE,
    Findings,
    check_codecs,
    check_whole,
    examine,
    looked_ahead,
    raise_if_refused,
    row_groups,
    twice,
)
from compressor.wording import number

BATCH = 1000  # pictures encoded and written together
WAYS = "; put it back from a backup, give the source that its pictures came from, or take them out with --drop"


@dataclass
class Repaired:
    """What was mended and what was not.

    ``files`` were put right from what they hold, ``codecs`` from another copy, ``log`` says what was done about it;
    ``regained`` keys were encoded again from the source, by ``codec`` (its id; empty where none was needed) at
    ``floor`` dB or more (None: exactly, or at the one quality that it has or that was asked for); ``taken_out`` keys
    are no longer archived, and on the quarantine list until a run meets their files again; ``left`` are bad still.
    ``unnamed`` pictures are taken out, too, of files in which not even the keys can be read: a run archives them again.
    """

    files: list[str] = field(default_factory=list)
    codecs: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    regained: list[str] = field(default_factory=list)
    codec: str = ""
    floor: float | None = None
    taken_out: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    unnamed: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all that was damaged is as it was."""
        return not (self.taken_out or self.left or self.unnamed)


def repair(
    archive: Archive,
    source: Source | None = None,
    options: AgainOptions | None = None,
    drop: bool = False,
    at_hand: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> Repaired:
    """Mend what can be mended.

    Parameters
    ----------
    source
        Where the pictures came from. None: only what the archive can mend from itself, and nothing is taken out: what
        is missing may be back with a mount, or after a copy that has not ended.
    options
        How pictures are encoded again; its codec must be in the archive. None: as the archive's other rows are.
    drop
        Take out what cannot be regained, too. Otherwise bad rows stay, and verify goes on naming them; what cannot be
        read as a row is taken out where there is a ``source``, for a run ends where it has to read it. A sound row
        whose codec is damaged or missing stays as it is: it can be read again once that is back.
    at_hand
        Names or paths of codecs, besides those shipped, one of which may be a copy of a damaged or missing one.
    on_progress
        Told (rows checked, rows in all).
    workers
        Processes that check. What is encoded again is encoded in this one.

    Raises
    ------
    ArchiveError
        Something may be sound, and cannot be read: the storage refuses it, or memory does not suffice for it. Or
        pictures are to be encoded again, and it is not to be told how, or their codec cannot be had; none is taken out.
    """
    store = archive.tables[0].store
    with store.errors("repair it"), enough_memory(store.url, "repair it"):
        return _repair(archive, source, options or AgainOptions(), drop, at_hand, on_progress, workers)


def _repair(
    archive: Archive,
    source: Source | None,
    options: AgainOptions,
    drop: bool,
    at_hand: Sequence[str],
    on_progress: Callable[[int, int], None] | None,
    workers: int,
) -> Repaired:
    done = Repaired()
    images, quarantine = archive.tables
    for table in (images, quarantine):
        _mend_log(table, done)
    stored = _stored(images)
    _mend_codecs(archive, {codec for codec, _ in stored if is_carried(codec)}, at_hand, done)
    unsound = []
    readable: dict[Part, np.ndarray] = {}  # hashes of keys
    waiting: Counter[str] = Counter()
    with looked_ahead(archive, workers) as ahead:
        for one in examine(archive, on_progress, ahead):
            readable[one.part] = hash_keys(one.keys)
            waiting += one.waiting
            if not one.is_sound:
                unsound.append(one)
    damaged = [one for one in unsound if not _put_right(images, one, done)]
    _mend_quarantine(quarantine, done)
    live = [readable[part] for part in images.parts if part in readable]  # others may have replaced files since
    done.left += [(problem.key, problem.reason) for problem in check_codecs(archive, waiting) + twice(images, live)]
    if source is None and not drop:
        done.left += [problem for one in damaged for problem in _left(one)]
        return done
    if not damaged:
        return done
    hashes = np.concatenate(list(readable.values()))
    parts, regained, failed = _regain(archive, source, options, stored, damaged, hashes, done)
    keys = set(regained)
    # From here to the commit they are in no file: a kill in between leaves them on the list, for the next run to try.
    archive.quarantine([_damaged(key, "its row is being replaced") for key in regained])
    for one in damaged:
        one.bad |= {key: f"{one.bad[key]}; not encoded again: {failed[key]}" for key in one.bad.keys() & failed.keys()}
        _take_out(archive, images, one, keys, drop, done)
    archive.commit(parts)
    archive.clear_quarantine(regained)
    done.regained += sorted(regained)
    return done


def _mend_log(table: KeyedTable, done: Repaired) -> None:
    """Bring back the state that the newest commit was made with, as far as one file more, less or other explains it."""
    table.log.refresh(anew=True)
    stored, computed = table.log.stored_digest(), table.log.digest(table.parts)
    if stored is None or stored == computed:
        return
    missing = (int(stored or "0", 16) - int(computed, 16)) % 2**64
    add, remove = _explanation(table, missing)
    table.log.accept_state()
    what = f"the log of {table.folder!r}: "
    if add or remove:
        what += f"{number(len(add), 'file')} named again, {len(remove)} no longer"
    elif table.parts:
        what += "taken as it is; what it has lost is archived again by the next run"
        add = [table.parts[0]]
    else:
        done.left.append((f"{table.folder}/_delta_log", "the log names no file, and none explains why"))
        return

    def plan() -> Change | None:
        if table.log.stored_digest() == table.log.digest(table.parts):
            return None  # the answer to a commit was lost, not the commit
        return Change(add, [part for part in remove if part in table.parts], moves_only=True)

    table.log.transact(plan)
    done.log.append(what)


def _explanation(table: KeyedTable, missing: int) -> tuple[list[Part], list[Part]]:
    """A file to name and one no longer to name, that change the digest by ``missing``; either may do alone."""
    there: dict[int, Part | None] = {0: None}
    for name in [*(part.path for part in table.parts), *table.log.unneeded(0, full=True)]:
        try:
            part = _part_of(table, name)
        except DAMAGE as error:
            raise_if_refused(table.store, name, error)
            continue
        there[integrity.hash_of(part.identity)] = part
    for gone in [None, *table.parts]:
        wanted = (missing + (integrity.hash_of(gone.identity) if gone else 0)) % 2**64
        if wanted in there:
            add, remove = there[wanted], gone
            renewed = add is not None and remove is not None and add.path == remove.path
            return [add] if add else [], [remove] if remove and not renewed else []
    return [], []


def _part_of(table: KeyedTable, name: str) -> Part:
    """What the log should say of a file, from its content."""
    part = Part(name, table.store.size(f"{table.folder}/{name}"), 0, "")
    keys = table.read(part, None, ["key"])["key"].to_pylist()
    return Part(name, part.size, len(keys), parquet.statistics(len(keys), min(keys), max(keys)))


def _stored(images: KeyedTable) -> StoredRows:
    """By what rows are stored, as far as these can be read; the columns' own checksums vouch for that."""
    stored: StoredRows = Counter()
    for part in list(images.parts):
        found = Findings(part)
        for group, _ in row_groups(images, found):
            try:
                rows = images.read(part, [group], ["codec", "psnr"])
            except DAMAGE as error:
                raise_if_refused(images.store, part.path, error)
            else:
                psnr = (None if value is None else round(value, 2) for value in rows["psnr"].to_pylist())
                stored.update(zip(rows["codec"].to_pylist(), psnr, strict=True))
        if found.refused:
            raise found.refused
    return stored


def _mend_codecs(archive: Archive, named: set[str], at_hand: Sequence[str], done: Repaired) -> None:
    """Replace artifacts that are damaged, or ``named`` and missing, by shipped ones or by those at hand."""
    store = archive.tables[0].store
    wanted = damaged_codecs(store).keys() | named.difference(carried_ids(store))
    for copy in [*released(), *at_hand] if wanted else []:
        try:
            data = artifact_bytes(copy)
        except CodecError:
            continue
        if (id := identify(data)) in wanted:
            archive.put_codec(data, replace=True)
            done.codecs.append(codec_name(id))
            wanted.remove(id)


def _put_right(table: KeyedTable, found: Findings, done: Repaired) -> bool:
    """Write a file again whose rows are all sound, if that gives the very bytes that were written at first."""
    if found.bad or found.unreadable:
        return False
    part = found.part
    try:
        written = _as_written(table, part)
        right = part if written else _part_of(table, part.path)
    except DAMAGE as error:
        raise_if_refused(table.store, part.path, error)
        return False
    if written:
        table.store.put(f"{table.folder}/{part.path}", written)
        done.files.append(part.path)
        return True
    if integrity.has_checksums(part.path) or right.identity == part.identity:
        return False
    table.log.transact(lambda: Change([right], [], moves_only=True) if part in table.parts else None)
    done.log.append(f"what the log says of {part.path}")
    return True


def _as_written(table: KeyedTable, part: Part) -> bytes | None:
    """What a file's rows are encoded to, if the checksum in its name says that this is what it was."""
    groups = range(table.footer(part).num_row_groups)
    columns = table.columns([part])
    data, rows, _ = parquet.encode((table.read(part, [group], columns) for group in groups), table.layout)
    if rows != part.rows or not integrity.has_checksums(part.path):
        return None
    try:
        integrity.check_file(part.path, crc32c.crc32c(data))
    except ArchiveError:
        return None
    return data


def _mend_quarantine(table: KeyedTable, done: Repaired) -> None:
    """A list that cannot be put right is taken out: its pictures are tried again by the next run."""
    for part in list(table.parts):
        found = Findings(part)
        try:
            for group in range(table.footer(part).num_row_groups):
                found.keys += table.read(part, [group], table.layout.names)["key"].to_pylist()
            check_whole(table, part)
        except DAMAGE as error:
            raise_if_refused(table.store, part.path, error)
            found.mismatch = str(error)
            if not _put_right(table, found, done):
                _take_part_out(table, part)
                listed = number(part.rows, "quarantined picture")
                done.log.append(f"a list of {listed} taken out: they are tried again")


def _regain(
    archive: Archive,
    source: Source | None,
    again: AgainOptions,
    stored: StoredRows,
    damaged: Sequence[Findings],
    readable: np.ndarray,
    done: Repaired,
) -> tuple[list[Part], list[str], dict[str, str]]:
    """Encode anew what the source still has: parts that nobody sees yet, their keys, and why others failed.

    These are not quarantined: the next run, under its own limits, is to try them.
    """
    if source is None:
        return [], [], {}
    parts: list[Part] = []
    keys: list[str] = []
    failed: dict[str, str] = {}
    options: EncodeOptions | None = None
    wanted = _wanted(source, damaged, readable)
    had_metadata = _with_metadata(archive.tables[0], damaged)
    while files := list(itertools.islice(wanted, BATCH)):
        if options is None:  # not before there is need of it
            options = again.complete(stored, _codecs_of(damaged), archive.url)
            if again.keep_metadata:
                archive.take_metadata()
            floor = options.floor(_codec(archive, options.codec))
            done.codec, done.floor = options.codec, None if floor == EXACT else floor
        for kept in (True, False):
            some = [file for file in files if (again.keep_metadata or had_metadata(file.key)) is kept]
            if some:
                report = encode_batch(source, some, archive, replace(options, keep_metadata=kept), "repair")
                parts += report.parts
                failed |= {row.key: row.detail for row in report.quarantined}
        keys += [file.key for file in files if file.key not in failed]
    return parts, keys, failed


def _with_metadata(images: KeyedTable, damaged: Sequence[Findings]) -> Callable[[str], bool]:
    """Whether a picture's damaged file has columns of metadata; not where its footer cannot be read."""
    there: set[str] = set()
    spans: list[tuple[str, str]] = []
    named = {key for one in damaged for key in one.keys}
    for one in damaged:
        try:
            has_some = images.columns([one.part]) != images.columns([])
        except DAMAGE as error:
            raise_if_refused(images.store, one.part.path, error)
            continue
        if has_some:
            there.update(one.keys)
            spans.append(one.part.key_range)
    return lambda key: key in there or (key not in named and any(first <= key <= last for first, last in spans))


def _codecs_of(damaged: Sequence[Findings]) -> set[str]:
    """Codecs that bad rows name; none where it is not known of each."""
    if any(one.unreadable or not one.bad or one.bad.keys() - one.codecs.keys() for one in damaged):
        return set()
    return {codec for one in damaged for codec in one.codecs.values()}


def _codec(archive: Archive, id: str) -> Codec:
    """ArchiveError that says what else to do, where it cannot be had."""
    try:
        return archive.codec(id)
    except (ArchiveError, CodecError) as error:
        raise ArchiveError(
            f"{archive.url}: pictures cannot be encoded again by codec {id}: {told(error)}; "
            "put it back, or name another with --codec"
        ) from error


def _wanted(source: Source, damaged: Sequence[Findings], readable: np.ndarray) -> Iterator[SourceFile]:
    """Files of bad rows; where keys cannot be read, files between the smallest and largest that no sound row has."""
    # Where a file is not what was written and no row is to blame, every row of it is under suspicion.
    bad = {key for one in damaged for key in (one.bad or one.keys)}
    ranges = [one.part.key_range for one in damaged if one.unreadable]
    readable = np.sort(readable)

    def is_readable(key: str) -> bool:
        [hash] = hash_keys([key])
        at = np.searchsorted(readable, hash)
        return bool(at < len(readable) and readable[at] == hash)

    for file in source.files():
        between = any(first <= file.key <= last for first, last in ranges)
        if file.key in bad or (between and not is_readable(file.key)):
            yield file


def _left(found: Findings) -> list[tuple[str, str]]:
    """What is wrong with a file that stays as it is, and what to do about that which cannot be read."""
    left = [(key, reason + WAYS * (key in found.unread)) for key, reason in found.bad.items()]
    left += [(found.part.path, reason + WAYS) for reason in found.unreadable]
    return left or [(found.part.path, found.mismatch)]


def _take_out(
    archive: Archive, images: KeyedTable, found: Findings, regained: set[str], drop: bool, done: Repaired
) -> None:
    """Replace a damaged file by one of its rows that stay."""
    part = found.part
    if not found.bad and not found.unreadable:
        if not regained.issuperset(found.keys):
            done.left.append((part.path, found.mismatch))  # which row it is cannot be told
            return
        found.bad = dict.fromkeys(found.keys, found.mismatch)
    gone = [key for key in found.bad if key not in regained and (drop or key in found.unread)]
    leaving = (found.bad.keys() & regained).union(gone)
    done.left += [(key, reason) for key, reason in found.bad.items() if key not in leaving]
    if not leaving and not found.unreadable:
        return
    archive.quarantine([_damaged(key, found.bad[key]) for key in gone])
    rest = images.write(_rows(images, part, leaving))
    _take_part_out(images, part, [rest] if rest else [])
    done.taken_out += sorted(gone)
    if found.unreadable:
        between = sum(part.key_range[0] <= key <= part.key_range[1] for key in regained - set(found.bad))
        done.unnamed += max(0, part.rows - len(found.keys) - between)


def _take_part_out(table: KeyedTable, part: Part, instead: Sequence[Part] = ()) -> None:
    """Commit that a file makes way for others, unless another run has taken it out meanwhile."""

    def plan() -> Change | None:
        if part not in table.parts:
            return None
        table.check_there(instead)
        return Change(list(instead), [part])

    table.log.transact(plan)


def _rows(images: KeyedTable, part: Part, leaving: set[str]) -> Iterator[pa.Table]:
    """What can be read of a file, without some keys. ArchiveError where the storage refuses, and not the file."""
    unwanted = pa.array(sorted(leaving), pa.string())
    try:
        groups = range(images.footer(part).num_row_groups)
    except DAMAGE as error:
        raise_if_refused(images.store, part.path, error)
        return
    for group in groups:
        try:
            rows = images.read(part, [group], images.columns([part]), salvage=True)
        except DAMAGE as error:
            raise_if_refused(images.store, part.path, error)
            continue
        yield rows.filter(pc.invert(pc.is_in(rows["key"], unwanted)))


def _damaged(key: str, reason: str) -> QuarantineRow:
    return QuarantineRow.now(key, bytes(FINGERPRINT_BYTES), DAMAGED, f"damaged in the archive: {reason}", "repair")

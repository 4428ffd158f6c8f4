"""What is sound in an archive that can no longer be opened, brought into a new one. The old one is left as it is.

Which files count says a table's log. Where that is missing or damaged, all its files are read, newest first, but those
that a legible entry of it has taken out: of two rows of a picture the newer one stays.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median_low

import crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import is_carried
from compressor.carried import carried_ids, codec_name
from compressor.codec import artifact_bytes, released_ids
from compressor.delta_log import LOG, OWN_FILE
from compressor.errors import ArchiveError, NewerError, enough_memory, told
from compressor.keyed_table import KeyedTable
from compressor.parquet import IMAGES, Part
from compressor.store import Store
from compressor.verifying import DAMAGE, raise_if_refused
from compressor.wording import number

_CHECKPOINT = ".checkpoint.parquet"
# In an entry of a log, in milliseconds
_TIME = re.compile(rb'"(?:timestamp|modificationTime|deletionTimestamp|lastUpdated)":(\d{1,15})')


@dataclass
class Salvaged:
    """What came of it.

    ``pictures`` are in the new archive, from ``files``; ``older`` rows were left out, for a newer one of the same key
    is there. ``problems`` are keys, or files, of what could not be brought over, with reasons.
    """

    pictures: int = 0
    files: int = 0
    older: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def salvage(
    archive: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Archive, Salvaged]:
    """Bring all sound rows, and the codecs, of an archive that cannot be opened into a new one.

    What another run took out of the archive and no vacuum has deleted since may be in the new one. The quarantine list
    is left behind: the next run tries its files again. Where it is interrupted, the same call goes on.

    Parameters
    ----------
    archive, destination
        Local folder or ``s3://bucket/prefix``.
    on_progress
        Told (rows read, rows in all).

    Raises
    ------
    ArchiveError
        The archive can be opened, or there is none; it is of a newer format; the destination holds something else; or
        something cannot be read that may be sound.
    """
    store = Store(archive)
    table = KeyedTable(store, "images", IMAGES)
    _require_unopened(table)
    with store.errors("read it"), enough_memory(store.url, "salvage it"):
        parts = _parts(table)
        if not parts:
            raise ArchiveError(f"{store.url}: there is no archive, for no Parquet file is in its folder 'images'")
        new = Archive.open_or_create(_apart(store, destination))
        log = new.tables[0].log
        names = {part: f"salvage/{part.path}" for part in parts}
        if len(new) and not any(map(log.holds, names.values())):
            raise ArchiveError(f"{new.url}: there are other pictures here already; name a place of its own")
        done = Salvaged()
        _bring_codecs(store, new)
        rows = _Rows(table, parts, done, on_progress)
        for part in parts:
            sound = rows.sound(part)
            if log.holds(names[part]):  # by an earlier call: what is damaged is told again
                for _ in sound:
                    pass
                continue
            brought = new.tables[0].write(sound)
            if brought is not None:
                done.older += new.commit([brought], batch_id=names[part])
                done.files += 1
        _name_missing_codecs(new, rows.codecs, done)
        done.pictures = len(new)
    return new, done


def _require_unopened(table: KeyedTable) -> None:
    """ArchiveError where an archive can be opened, or a newer version or other settings could."""
    store = table.store
    try:
        Archive.open(store.url, store.options)
    except ArchiveError as error:
        if isinstance(error, NewerError):
            raise
        raise_if_refused(store, "it", error)
        table.log.require_answers()
    else:
        raise ArchiveError(
            f"{store.url}: it can be opened: 'latentpack verify' tells what is wrong, and 'latentpack repair' mends it"
        )


def _apart(store: Store, destination: str | os.PathLike[str]) -> str:
    """A destination's address. ArchiveError where it is the archive's own, or within it."""
    place = Store(destination)
    old, new = (one.url if one.is_s3 else os.path.realpath(one.root) for one in (store, place))
    if f"{new}/".startswith(f"{old}/"):
        raise ArchiveError(f"{place.url}: this is the archive itself, or in it; name a place of its own")
    return place.url


def _parts(table: KeyedTable) -> list[Part]:
    """The files to read: those that the log names, or all that may count, newest first."""
    try:
        return table.parts
    except NewerError:
        raise
    except ArchiveError as error:
        raise_if_refused(table.store, f"the log of {table.folder!r}", error)
    store, folder = table.store, table.folder
    added, removed = _legible(store, f"{folder}/{LOG}")
    found: list[tuple[tuple[float, float], Part]] = []
    there = {*store.names(folder)}
    for name in sorted((there | _gone(added, there | removed)) - removed):
        if not name.endswith(".parquet") or name.startswith(("tmp-", ".", "_")):
            continue
        path = f"{folder}/{name}"
        try:
            size = store.size(path)
            # A bucket's times are rounded down; and what no legible entry names came, if as late, after what one does.
            written = (added[name],) * 2 if name in added else ((at := store.modified(path)) // 1 + 1, at)
        except FileNotFoundError:  # as reading it will tell
            size, written = 1, (0.0, 0.0)
        found.append((written, Part(name, size, 0, "")))
    return [part for _, part in sorted(found, key=lambda one: one[0], reverse=True)]


def _gone(added: Iterable[str], known: set[str]) -> set[str]:
    """Files of ours that were added, and are not ``known``.

    A name of which a quarter is that of a known one is the same: in the log some of its digits are damaged.
    """

    def quarters(name: str) -> set[tuple[int, str]]:
        digits = name.removeprefix("part-").replace("-", "")
        return {(start, digits[start : start + 8]) for start in range(0, 32, 8)}

    there = set().union(*map(quarters, known))
    return {name for name in added if OWN_FILE.fullmatch(name) and there.isdisjoint(quarters(name))}


def _legible(store: Store, log: str) -> tuple[dict[str, float], set[str]]:
    """What can be read of a log: when files were added (s since 1970), and which were taken out and not added again."""
    added: dict[str, float] = {}
    removed: set[str] = set()
    for name in store.names(log):
        if not (name[:20].isdigit() and name.endswith((".json", _CHECKPOINT))):
            continue
        try:
            entry = store.get(f"{log}/{name}")
        except OSError as error:  # a bad sector
            raise_if_refused(store, f"{log}/{name}", error)
            continue
        if name.endswith(_CHECKPOINT):
            live, taken_out = _at_checkpoint(entry)
            removed = (removed | taken_out) - live
            continue
        # It names its time several times over: a digit that is damaged is outvoted.
        times = [int(digits) for digits in _TIME.findall(entry)]
        for line in entry.splitlines():
            with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):  # a damaged line
                [(kind, action)] = json.loads(line).items()
                if kind == "add":
                    added[str(action["path"])] = median_low(times) / 1000
                    removed.discard(str(action["path"]))
                elif kind == "remove":
                    removed.add(str(action["path"]))
    return added, removed


def _at_checkpoint(checkpoint: bytes) -> tuple[set[str], set[str]]:
    """Files that counted when a checkpoint was written, and those taken out before, of which entries may be gone.

    None of a damaged one. A file that is in both, as damage may have it, counts.
    """
    files: dict[str, set[str]] = {"add": set(), "remove": set()}
    try:
        # In portions: a few damaged bytes may ask for any number of rows.
        portions = pq.ParquetFile(pa.BufferReader(checkpoint)).iter_batches(columns=[f"{kind}.path" for kind in files])
        for portion in portions:
            for kind, paths in files.items():
                named = (action.get("path") for action in portion[kind].to_pylist() if isinstance(action, dict))
                paths.update(path for path in named if isinstance(path, str))
    except (*DAMAGE, ValueError, LookupError):
        return set(), set()
    return files["add"], files["remove"]


class _Rows:
    """The sound rows of files, counted as they are read."""

    def __init__(
        self, table: KeyedTable, parts: list[Part], done: Salvaged, on_progress: Callable[[int, int], None] | None
    ) -> None:
        self._table, self._done, self._on_progress = table, done, on_progress
        self._read = self._total = 0
        self.codecs: dict[str, int] = {}  # how many rows each has
        self._whole = {part for part in parts if self._has_footer(part)}

    def _has_footer(self, part: Part) -> bool:
        try:
            self._total += self._table.footer(part).num_rows
        except DAMAGE as error:
            raise_if_refused(self._table.store, part.path, error)
            self._done.problems.append((part.path, f"cannot be read: {told(error)}"))
            return False
        return True

    def sound(self, part: Part) -> Iterator[pa.Table]:
        """Those of one file; of what is damaged the keys, or the file, are told."""
        if part not in self._whole:
            return
        footer = self._table.footer(part)
        keys: set[str] = set()
        for group in range(footer.num_row_groups):
            count = footer.row_group(group).num_rows
            try:
                rows = self._table.read(part, [group], self._table.columns([part]), salvage=True)
                _require_values(rows)
            except DAMAGE as error:
                raise_if_refused(self._table.store, part.path, error)
                self._done.problems.append((part.path, f"{number(count, 'picture')} cannot be read: {told(error)}"))
            else:
                yield self._checked(rows, keys)
            self._read += count
            if self._on_progress:
                self._on_progress(self._read, self._total)

    def _checked(self, rows: pa.Table, keys: set[str]) -> pa.Table:
        """Without what is damaged, and what another row of the same file, of those ``keys``, is there for."""
        stored = rows["crc32c"].to_numpy().astype(np.uint32)
        sound = [crc32c.crc32c(payload.as_buffer()) for payload in rows["payload"]] == stored
        kept = np.zeros(len(rows), bool)
        for at, key in enumerate(rows["key"].to_pylist()):
            if not sound[at]:
                self._done.problems.append((key, "its payload is damaged"))
            elif key in keys:
                self._done.problems.append((key, "its file has more than one row of it: the first was brought"))
            else:
                keys.add(key)
                kept[at] = True
        brought = rows.filter(pa.array(kept))
        for codec in brought["codec"].to_pylist():
            self.codecs[codec] = self.codecs.get(codec, 0) + 1
        return brought


def _require_values(rows: pa.Table) -> None:
    """ArchiveError where a value is missing that every row has."""
    for column in IMAGES.columns:
        if not column.nullable and rows[column.name].null_count:
            raise ArchiveError(f"values of column {column.name!r} are missing")


def _bring_codecs(store: Store, new: Archive) -> None:
    """Put the codecs that are what their names say into an archive."""
    place = new.tables[0].store
    for id in carried_ids(store):
        try:
            data = store.get(codec_name(id))
        except OSError as error:  # a bad sector
            raise_if_refused(store, codec_name(id), error)
            continue
        if identify(data) == id and not place.exists(codec_name(id)):
            place.put(codec_name(id), data)  # as it is, also where only a newer version can load it


def _name_missing_codecs(new: Archive, rows: dict[str, int], done: Salvaged) -> None:
    """Put shipped codecs where those that rows name are missing or damaged, and tell of the others."""
    missing = {id for id in rows if is_carried(id)}.difference(carried_ids(new.tables[0].store))
    shipped = released_ids() if missing else {}
    for id in sorted(missing):
        if id in shipped:
            new.put_codec(artifact_bytes(shipped[id]))
        else:
            waiting = number(rows[id], "picture")
            done.problems.append(
                (codec_name(id), f"missing or damaged: {waiting} cannot be decoded until it is put there")
            )

"""Pictures of an archive as files, each at its key's path and never outside the place asked for."""

import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from compressor.archive import Archive
from compressor.baselines import is_carried
from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.codec import ORIGINAL
from compressor.decoding import check_crc, decoded_apart, decoded_together
from compressor.destinations import Destination, destination_at
from compressor.errors import ArchiveError, CodecError, ImageError, causes, enough_memory, is_shortage, told_of
from compressor.keys import several_keys
from compressor.known import hash_keys
from compressor.parquet import IMAGES, Part, Row, Spans, from_table
from compressor.picture_writing import encode_picture
from compressor.processes import processes
from compressor.retrying import is_transient
from compressor.scanning import READING, TAKEN_AWAY
from compressor.verifying import DAMAGE, Findings, row_groups, unreadable

MORE_MEMORY = "; try again with more memory"
BATCH = 256  # rows that one process is given at a time
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp", "avif": ".avif"}
_SAME = {"jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "tiff": (".tif", ".tiff"), "bmp": (".bmp", ".dib")}
_NAME_BYTES = 255  # what common file systems allow for one name
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_MARKED = re.compile("~[0-9a-f]{12}$")  # as _mark does
_DEVICES = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass
class Restored:
    """Counts, and what could not be restored, with reasons. ``renamed`` keys were no safe paths."""

    written: int = 0
    bytes: int = 0
    renamed: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: "Restored") -> None:
        """Count another's too."""
        self.written += other.written
        self.bytes += other.bytes
        self.renamed += other.renamed
        self.problems += other.problems


def safe_path(key: str) -> str:
    """A relative path for a key, with the same meaning wherever keys are ordinary.

    Empty, ``.`` and ``..`` parts, control characters, backslashes, drive letters, device names and names longer than
    file systems take are replaced; a part that was changed ends in ``~`` and a short hash of what it was, and so does
    one that ends like that already: two keys never share a path.

    >>> safe_path("00000/00042.png")
    '00000/00042.png'
    >>> safe_path("../etc/passwd")
    '_~1fec01955feb/etc/passwd'
    """
    parts = key.split("/")
    return "/".join(_safe_name(part) for part in parts)


def _safe_name(name: str) -> str:
    clean = _FORBIDDEN.sub("_", name).rstrip(". ")
    if _DEVICES.match(clean):
        clean = "_" + clean
    stem, extension = os.path.splitext(clean)
    if (
        clean == name
        and name
        and len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES - 16
        and not _MARKED.search(stem)
    ):
        return name
    mark = _mark(name)
    extension = extension if len(extension) <= 16 else ""
    room = _NAME_BYTES - 16 - len(mark) - len(extension.encode())
    stem = stem.encode()[:room].decode(errors="ignore")
    return (stem or "_") + mark + extension


def _mark(name: str) -> str:
    return "~" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


class Clashes(NamedTuple):
    """Hashes of the paths that more than one key would get, and of the folders that pictures lie in.

    ``folds``: of paths without their case and Unicode form, by which the disk does not tell them apart; ``alike`` are
    then the paths that keys as they are share.
    """

    names: frozenset[int] = frozenset()
    folders: frozenset[int] = frozenset()
    folds: bool = False
    alike: frozenset[int] = frozenset()


def file_name(key: str, format: str | None, clashes: Clashes | None = None) -> str:
    """Relative path of a picture's file: its key, with the format's extension where the key's is another's.

    ``format`` is None for a file as it came. Where a path is one of ``clashes``, keys whose extension is changed are
    told apart by a short hash, and so is any key whose path is another's folder, or that differs from another by what
    the disk folds.
    """
    stem, extension = os.path.splitext(safe_path(key))
    own = format is None or _is_of(extension, format)
    if format and not own:
        extension = EXTENSIONS[format]
    if clashes:
        paths = [_as_on_disk(one, clashes.folds) for one in (safe_path(key), stem + extension)]
        path, here = map(int, hash_keys(paths))
        if here in clashes.folders or path in clashes.alike or (here in clashes.names and not own):
            return stem + _mark(key) + extension
    return stem + extension


def _as_on_disk(path: str, folds: bool) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold()) if folds else path


def _is_of(extension: str, format: str) -> bool:
    return extension.lower() in _SAME.get(format, (EXTENSIONS[format],))


def find_clashes(keys: Iterable[str], format: str, folds: bool = False) -> tuple[Clashes, set[str]]:
    """Where the paths of ``keys`` meet, as those of ``a.png`` and ``a.jpg`` may, and the folders in those keys.

    ``folds``: those of ``a.png`` and ``A.png`` too.
    """
    keys = iter(keys)
    hashes, as_they_are = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    folders: set[str] = set()
    while chunk := list(itertools.islice(keys, 65_536)):
        hashes.append(hash_keys([_as_on_disk(file_name(key, format), folds) for key in chunk]))
        if folds:
            as_they_are.append(hash_keys([_as_on_disk(safe_path(key), folds) for key in chunk]))
        folders.update(key.rpartition("/")[0] for key in chunk)
    paths = {path for folder in folders for path in itertools.accumulate(safe_path(folder).split("/"), "{}/{}".format)}
    below = hash_keys([_as_on_disk(path, folds) for path in paths])
    return Clashes(_repeated(hashes), frozenset(below.tolist()), folds, _repeated(as_they_are)), folders


def _repeated(hashes: Sequence[np.ndarray]) -> frozenset[int]:
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return frozenset(values[counts > 1].tolist())


def restore_rows(
    archive: Archive,
    rows: Sequence[Row],
    destination: Destination,
    format: str = "png",
    clashes: Clashes | None = None,
    overwrite: bool = False,
) -> Restored:
    """Write the pictures of ``rows`` to ``destination``; originals as they came, byte for byte.

    Each file appears whole or not at all. One that is there as it would be written counts as written; another one is
    left alone, which is a problem, unless ``overwrite`` has it replaced.
    """
    done = Restored()

    def write(row: Row, data: bytes | Exception) -> int | str:
        """Bytes of the file, or why it is not written."""
        if isinstance(data, Exception):
            return told_of(row.key, data) + (MORE_MEMORY if is_shortage(data) else "")
        name = file_name(row.key, None if row.codec == ORIGINAL else format, clashes)
        if destination.lies_in(archive.url, name):
            return f"cannot write {name}: it would be in the archive itself; restore to another place"
        try:
            destination.write(name, data, overwrite, rounded=is_carried(row.codec))
        except UnicodeEncodeError:
            return f"cannot write {name}: not in this locale; set PYTHONUTF8=1"
        except OSError as error:
            return f"cannot write {name}: {error.strerror or error}"
        return len(data)

    with _threads(destination.threads) as in_order:
        for together in decoded_together(rows):
            files = _files(archive, together, format)
            for row, outcome in zip(together, in_order(write, together, files), strict=True):
                if isinstance(outcome, str):
                    done.problems.append((row.key, outcome))
                    continue
                done.written += 1
                done.bytes += outcome
                done.renamed += safe_path(row.key) != row.key
    return done


@contextmanager
def _threads(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A ``map`` that has so many calls under way at once."""
    if count == 1:
        yield map
        return
    with ThreadPoolExecutor(count) as pool:
        yield pool.map


def _files(archive: Archive, rows: Sequence[Row], format: str) -> Iterator[bytes | Exception]:
    """The bytes of each row's file, or why there are none."""
    decoded = decoded_apart([row for row in rows if row.codec != ORIGINAL], archive.codec)
    for row in rows:
        try:
            if row.codec == ORIGINAL:
                check_crc(row)
                yield row.payload
            elif isinstance(pixels := next(decoded), Exception):
                yield pixels
            else:
                yield encode_picture(pixels, row.channels, format, row.psnr, row.exif, row.xmp)
        except (CodecError, ImageError, OSError, ValueError, MemoryError) as error:
            yield error


def restore(
    archive: Archive,
    destination: str | os.PathLike[str],
    keys: Iterable[str] | None = None,
    format: str = "png",
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Restored:
    """Restore ``keys``, or all pictures where they are None, below ``destination``: a folder, which is created, or S3.

    What is damaged, or refused for good, or would replace another file, is among the problems and keeps nothing else
    from being restored. Files that are there as they would be written count as written: a restore may be repeated.

    Parameters
    ----------
    destination
        A local path, or ``s3://bucket/prefix``, for which credentials come from the environment.
    keys
        In any order; each is restored once. A picture's path does not depend on which others are asked for.
    format
        Of the files, one of ``EXTENSIONS``: ``jpeg`` and ``avif`` lose a little more, the others nothing. ``png``,
        ``jpeg`` and ``webp`` get back the metadata that were kept.
    workers
        Processes that decode and write. Small archives are restored in this process, which starts faster.
    on_progress
        Called with (pictures done, pictures in all).
    overwrite
        Replace files of the same names that have other bytes, be they originals.

    Raises
    ------
    ArchiveError
        There is no such format, ``destination`` cannot be created or written to, lies in the archive or is full,
        storage failed in a way that may pass, or another run has taken files away.
    """
    keys = None if keys is None else several_keys(keys)
    place = destination_at(destination)
    if format not in EXTENSIONS:
        raise ArchiveError(f"cannot restore pictures as {format!r}: choose one of {', '.join(EXTENSIONS)}")
    if not isinstance(workers, Integral) or workers < 1:
        raise ArchiveError(f"workers are 1 or more, not {workers!r}")
    if place.lies_in(archive.url):
        raise ArchiveError(f"{place} is in the archive itself, among its own files; name another place")
    place.create()
    with enough_memory(archive.url, "restore it"):
        return _restore(archive, place, keys, format, workers, on_progress, overwrite)


def _restore(
    archive: Archive,
    destination: Destination,
    keys: Collection[str] | None,
    format: str,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    overwrite: bool,
) -> Restored:
    done = Restored()
    folds = destination.folds()
    chosen = _Chosen(archive, keys, format, folds, done)
    clashes, folders = find_clashes(chosen.keys(), format, folds)
    destination.delete_leftovers(safe_path(folder) if folder else "" for folder in folders)
    total = len(archive) if keys is None else chosen.count
    rows = chosen.rows()
    batches = bounded_chunks(rows, lambda row: len(row.payload), BYTES_AT_ONCE, BATCH)
    finished = 0
    for count, one in _restore_batches(
        archive, batches, destination, format, clashes, overwrite, workers if total > 2 * BATCH else 1
    ):
        done.add(one)
        finished += count
        if on_progress:
            on_progress(finished, total)
    return done


def _restore_batches(
    archive: Archive,
    batches: Iterator[list[Row]],
    destination: Destination,
    format: str,
    clashes: Clashes,
    overwrite: bool,
    workers: int,
) -> Iterator[tuple[int, Restored]]:
    """(rows, outcome) of each batch as it is done; at most two batches wait for each process."""
    if workers == 1:
        for rows in batches:
            yield len(rows), restore_rows(archive, rows, destination, format, clashes, overwrite)
        return
    with processes(workers, _start_worker, archive, destination, format, clashes, overwrite) as pool:
        running: dict[Future[Restored], int] = {}
        try:
            while True:
                while len(running) < 2 * workers and (rows := next(batches, [])):
                    running[pool.submit(_restore_in_worker, rows)] = len(rows)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ArchiveError(
                "a process that restores pictures was killed, perhaps for memory, or could not start; try one worker"
            ) from error


_worker: tuple[Archive, Destination, str, Clashes, bool]


def _start_worker(archive: Archive, destination: Destination, format: str, clashes: Clashes, overwrite: bool) -> None:
    global _worker
    _worker = (archive, destination, format, clashes, overwrite)


def _restore_in_worker(rows: list[Row]) -> Restored:
    archive, destination, format, clashes, overwrite = _worker
    return restore_rows(archive, rows, destination, format, clashes, overwrite)


class _Chosen:
    """The pictures to restore: all, or those of some keys. Each row group is read for its keys, then for its rows.

    What cannot be read, and keys that are not there, are put among the problems of ``done``.
    """

    def __init__(
        self, archive: Archive, keys: Collection[str] | None, format: str, folds: bool, done: Restored
    ) -> None:
        self._archive, self._done = archive, done
        self._images = archive.tables[0]
        self._all, self._wanted = keys is None, frozenset(keys or ())
        # On a disk that folds names the keys that meet may lie anywhere
        self._spans = None if self._all or folds else Spans(_rivals(key, format) for key in self._wanted)
        self._groups: list[tuple[Part, int, int]] = []

    @property
    def count(self) -> int:
        """Pictures that are there, once all :meth:`keys` are known."""
        return sum(count for *_, count in self._groups)

    def keys(self) -> Iterator[str]:
        """Keys of what is to be restored, and all that may get the same paths."""
        missing = set(self._wanted)
        doubtful: list[Part] = []
        with self._images.store.errors(READING):
            for part in list(self._images.parts):
                if self._spans is not None and not self._spans.meet(*part.key_range):
                    continue
                found = Findings(part)
                for group, count in row_groups(self._images, found, self._spans):
                    try:
                        keys = self._images.read(part, [group], ["key"])["key"].to_pylist()
                    except DAMAGE as error:
                        unreadable(self._images, group, count, error, found)
                        continue
                    here = count if self._all else len(self._wanted.intersection(keys))
                    if here:
                        self._groups.append((part, group, here))
                    missing.difference_update(keys)
                    yield from keys
                missing.difference_update(found.keys)
                doubtful += [part] * bool(found.unreadable)
                self._enter(found)
        self._done.problems += [(key, self._why_missing(key, doubtful)) for key in sorted(missing)]

    def _why_missing(self, key: str, doubtful: Sequence[Part]) -> str:
        for part in doubtful:
            if part.key_range[0] <= key <= part.key_range[1]:
                return f"{self._archive.url}: {key!r} may be in {part.path}, which cannot be read"
        return f"{self._archive.url}: there is no picture {key!r}"

    def rows(self) -> Iterator[Row]:
        """Rows of those row groups of which :meth:`keys` has read the keys: of no other are the paths known."""
        with self._images.store.errors(READING):
            for part, group, count in self._groups:
                found = Findings(part)
                try:
                    rows = from_table(self._images.read(part, [group], IMAGES.names, salvage=True), IMAGES)
                except DAMAGE as error:
                    unreadable(self._images, group, count, error, found)
                    self._enter(found)
                else:
                    yield from (row for row in rows if self._all or row.key in self._wanted)

    def _enter(self, found: Findings) -> None:
        """Put what cannot be read among the problems. ArchiveError where it may be read later, or elsewhere."""
        problems = found.problems()
        if not problems:
            return
        if found.refused and any(map(is_transient, causes(found.refused))):
            raise found.refused
        self._images.log.refresh(anew=True)
        if found.part not in self._images.parts:
            raise ArchiveError(f"{self._images.store.url}: cannot {TAKEN_AWAY}")
        others = set() if self._all else set(found.bad) - self._wanted
        advice = MORE_MEMORY if is_shortage(found.refused) else ""
        self._done.problems += [(one.key, one.reason + advice) for one in problems if one.key not in others]


def _rivals(key: str, format: str) -> tuple[str, str]:
    """The range of keys in which all lie that :func:`file_name` may give the path of ``key``, or a path below it."""
    stem, extension = os.path.splitext(key)
    first = key if _is_of(extension, format) else stem
    return first, first + "0"  # the character that follows "/", behind which those lie whose folder has the path

"""Pictures of an archive as files, each at its key's path and never outside the folder asked for."""

import errno
import hashlib
import itertools
import multiprocessing
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np

from compressor.archive import Archive, several
from compressor.baselines import is_carried
from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.codec import ORIGINAL
from compressor.decoding import check_crc, decoded_apart, decoded_together
from compressor.errors import ArchiveError, CodecError, ImageError, causes, enough_memory, is_shortage, told
from compressor.files import UNFINISHED_S, delete_unfinished, in_place_of
from compressor.images import decode_picture
from compressor.known import hash_keys
from compressor.metrics import psnr
from compressor.parquet import IMAGES, Part, Row, Spans, from_table
from compressor.picture_writing import encode_picture
from compressor.retrying import is_transient
from compressor.scanning import READING, TAKEN_AWAY
from compressor.verifying import DAMAGE, Findings, row_groups, unreadable

MORE_MEMORY = "; try again with more memory"
BATCH = 256  # rows that one process is given at a time
ALIKE = 45.0  # dB between two restored files of one picture; rounding leaves 55 or more, JPEG makes 45 of it
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp", "avif": ".avif"}
_SAME = {"jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "tiff": (".tif", ".tiff"), "bmp": (".bmp", ".dib")}
_NAME_BYTES = 255  # what common file systems allow for one name
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
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
    """Hashes of the paths that more than one key would get, and of the folders that pictures lie in."""

    names: frozenset[int] = frozenset()
    folders: frozenset[int] = frozenset()


def file_name(key: str, format: str | None, clashes: Clashes | None = None) -> str:
    """Relative path of a picture's file: its key, with the format's extension where the key's is another's.

    ``format`` is None for a file as it came. Where a path is one of ``clashes``, keys whose extension is changed are
    told apart by a short hash, and so is any key whose path is another's folder.
    """
    stem, extension = os.path.splitext(safe_path(key))
    own = format is None or _is_of(extension, format)
    if format and not own:
        extension = EXTENSIONS[format]
    if clashes:
        here = int(hash_keys([stem + extension])[0])
        if here in clashes.folders or (here in clashes.names and not own):
            return stem + _mark(key) + extension
    return stem + extension


def _is_of(extension: str, format: str) -> bool:
    return extension.lower() in _SAME.get(format, (EXTENSIONS[format],))


def find_clashes(keys: Iterable[str], format: str) -> tuple[Clashes, set[str]]:
    """Where the paths of ``keys`` meet, as those of ``a.png`` and ``a.jpg`` may, and the folders in those keys."""
    keys = iter(keys)
    hashes = [np.zeros(0, np.uint64)]
    folders: set[str] = set()
    while chunk := list(itertools.islice(keys, 65_536)):
        hashes.append(hash_keys([file_name(key, format) for key in chunk]))
        folders.update(key.rpartition("/")[0] for key in chunk)
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    paths = {path for folder in folders for path in itertools.accumulate(safe_path(folder).split("/"), "{}/{}".format)}
    return Clashes(frozenset(values[counts > 1].tolist()), frozenset(hash_keys(list(paths)).tolist())), folders


def restore_rows(
    archive: Archive,
    rows: Sequence[Row],
    destination: Path,
    format: str = "png",
    clashes: Clashes | None = None,
    overwrite: bool = False,
) -> Restored:
    """Write the pictures of ``rows`` below ``destination``; originals as they came, byte for byte.

    Each file appears whole or not at all. One that is there as it would be written counts as written; another one is
    left alone, which is a problem, unless ``overwrite`` has it replaced.
    """
    done = Restored()
    for together in decoded_together(rows):
        for row, data in zip(together, _files(archive, together, format), strict=True):
            if isinstance(data, Exception):
                done.problems.append((row.key, _why(data)))
                continue
            name = file_name(row.key, None if row.codec == ORIGINAL else format, clashes)
            try:
                write_file(destination, name, data, overwrite, rounded=is_carried(row.codec))
            except UnicodeEncodeError:
                done.problems.append((row.key, f"cannot write {name}: not in this locale; set PYTHONUTF8=1"))
                continue
            except OSError as error:
                reason = f"cannot write {name}: {error.strerror or error}"
                if error.errno in _NO_ROOM:  # nor would any other be written
                    raise ArchiveError(
                        f"{destination}: {reason}; what is written stays: make room, then repeat the command"
                    ) from error
                done.problems.append((row.key, reason))
                continue
            done.written += 1
            done.bytes += len(data)
            done.renamed += safe_path(row.key) != row.key
    return done


def _why(error: Exception) -> str:
    return told(error) + (MORE_MEMORY if is_shortage(error) else "")


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
                yield encode_picture(pixels, row.channels, format, row.psnr)
        except (CodecError, ImageError, OSError, ValueError, MemoryError) as error:
            yield error


def write_file(destination: Path, name: str, data: bytes, overwrite: bool = False, rounded: bool = False) -> None:
    """Put ``data`` at ``destination / name``, following no link on the way there nor at its end.

    A file that is there stays if its bytes are the same, or, where pixels are ``rounded`` as batch and machine have it,
    if it shows the same picture.

    Raises
    ------
    FileExistsError
        Another file is there, or a link, whatever it leads to. With ``overwrite`` either is replaced itself.
    OSError
        Also where a folder on the way is a link, which might lead out of ``destination``.
    """
    folder = destination
    *folders, last = name.split("/")
    for part in folders:
        folder = folder / part
        if folder.is_symlink():
            raise OSError(f"{folder} is a link; it is not followed")
        folder.mkdir(exist_ok=True)
    path = folder / last
    if not overwrite and _is_there(path, data, rounded):
        return
    with in_place_of(path, lasting=False) as temporary:
        temporary.write_bytes(data)


def _is_there(path: Path, data: bytes, rounded: bool) -> bool:
    """Whether this file is at ``path``. FileExistsError where another is."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(there.st_mode):
        return False  # writing will say so: nothing replaces a folder
    if stat.S_ISREG(there.st_mode):
        if there.st_size == len(data) and path.read_bytes() == data:
            return True
        if rounded and there.st_size < 2 * len(data) + 1024 and _are_alike(path.read_bytes(), data):
            return True
    raise FileExistsError("another file of that name is there; --overwrite replaces it")


def _are_alike(one: bytes, other: bytes) -> bool:
    """Whether two picture files show the same but for how sums were rounded: by one level here and there."""
    try:
        a, b = (decode_picture(data).pixels for data in (one, other))
    except ImageError:
        return False
    return a.shape == b.shape and psnr(a, b) > ALIKE


def _delete_leftovers(destination: Path, folders: Iterable[str]) -> None:
    """Delete what killed restores left half-written in ``folders`` of keys, so long ago that no restore writes it."""
    for name in folders:
        parts = safe_path(name).split("/") if name else []
        folder, *below = itertools.accumulate(parts, Path.__truediv__, initial=destination)
        if not any(path.is_symlink() for path in below):
            with suppress(OSError):  # most are made only now, and what cannot be read here does no harm
                delete_unfinished([folder, *below][-1], UNFINISHED_S)


def restore(
    archive: Archive,
    destination: str | os.PathLike[str],
    keys: Collection[str] | None = None,
    format: str = "png",
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Restored:
    """Restore ``keys``, or all pictures where they are None, below ``destination``, which is created.

    What is damaged, or refused for good, or would replace another file, is among the problems and keeps nothing else
    from being restored. Files that are there as they would be written count as written: a restore may be repeated.

    Parameters
    ----------
    keys
        In any order; each is restored once. A picture's path does not depend on which others are asked for.
    format
        Of the files, one of ``EXTENSIONS``: ``jpeg`` and ``avif`` lose a little more, the others nothing.
    workers
        Processes that decode and write. Small archives are restored in this process, which starts faster.
    on_progress
        Called with (pictures done, pictures in all).
    overwrite
        Replace files of the same names that have other bytes, be they originals.

    Raises
    ------
    ArchiveError
        There is no such format, ``destination`` cannot be created, lies in the archive or is full, storage failed in a
        way that may pass, or another run has taken files away.
    """
    keys = None if keys is None else several(keys)
    destination = Path(destination)
    if format not in EXTENSIONS:
        raise ArchiveError(f"cannot restore pictures as {format!r}: choose one of {', '.join(EXTENSIONS)}")
    if not isinstance(workers, Integral) or workers < 1:
        raise ArchiveError(f"workers are 1 or more, not {workers!r}")
    if destination.resolve().is_relative_to(Path(archive.url).resolve()):  # a URL is no folder of this machine
        raise ArchiveError(f"{destination} is in the archive itself, among its own files; name another folder")
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"cannot create {destination}: {error.strerror or error}; name another folder") from error
    with enough_memory(archive.url, "restore it"):
        return _restore(archive, destination, keys, format, workers, on_progress, overwrite)


def _restore(
    archive: Archive,
    destination: Path,
    keys: Collection[str] | None,
    format: str,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    overwrite: bool,
) -> Restored:
    done = Restored()
    chosen = _Chosen(archive, keys, format, done)
    clashes, folders = find_clashes(chosen.keys(), format)
    _delete_leftovers(destination, folders)
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
    destination: Path,
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
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    arguments = (archive, destination, format, clashes, overwrite)
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
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
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: tuple[Archive, Path, str, Clashes, bool]


def _start_worker(archive: Archive, destination: Path, format: str, clashes: Clashes, overwrite: bool) -> None:
    global _worker
    import torch

    torch.set_num_threads(1)
    _worker = (archive, destination, format, clashes, overwrite)


def _restore_in_worker(rows: list[Row]) -> Restored:
    archive, destination, format, clashes, overwrite = _worker
    return restore_rows(archive, rows, destination, format, clashes, overwrite)


class _Chosen:
    """The pictures to restore: all, or those of some keys. Each row group is read for its keys, then for its rows.

    What cannot be read, and keys that are not there, are put among the problems of ``done``.
    """

    def __init__(self, archive: Archive, keys: Collection[str] | None, format: str, done: Restored) -> None:
        self._archive, self._done = archive, done
        self._images = archive.tables[0]
        self._wanted = frozenset(keys or ())
        self._spans = None if keys is None else Spans(_rivals(key, format) for key in self._wanted)
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
                    here = count if self._spans is None else len(self._wanted.intersection(keys))
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
                    yield from (row for row in rows if self._spans is None or row.key in self._wanted)

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
        others = set(found.bad) - self._wanted if self._spans is not None else set()
        advice = MORE_MEMORY if is_shortage(found.refused) else ""
        self._done.problems += [(one.key, one.reason + advice) for one in problems if one.key not in others]


def _rivals(key: str, format: str) -> tuple[str, str]:
    """The range of keys in which all lie that :func:`file_name` may give the path of ``key``, or a path below it."""
    stem, extension = os.path.splitext(key)
    first = key if _is_of(extension, format) else stem
    return first, first + "0"  # the character that follows "/", behind which those lie whose folder has the path

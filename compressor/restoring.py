"""Pictures of an archive as files, each at its key's path and never outside the folder asked for."""

import hashlib
import itertools
import multiprocessing
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.archive import READING, TAKEN_AWAY, Archive
from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.codec import ORIGINAL
from compressor.errors import ArchiveError, CodecError, ImageError, causes, enough_memory, is_shortage, told
from compressor.images import encode_picture
from compressor.keyed_table import KeyedTable
from compressor.known import hash_keys
from compressor.parquet import IMAGES, Part, Row, from_table
from compressor.retrying import is_transient
from compressor.verifying import (
    DAMAGE,
    Findings,
    check_crc,
    decoded_apart,
    decoded_together,
    row_groups,
    unreadable,
)

BATCH = 256  # rows that one process is given at a time
EXTENSIONS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff", "bmp": ".bmp", "avif": ".avif"}
_SAME = {"jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "tiff": (".tif", ".tiff"), "bmp": (".bmp", ".dib")}
_NAME_BYTES = 255  # what common file systems allow for one name
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def safe_path(key: str) -> str:
    """A relative path for a key, with the same meaning wherever keys are ordinary.

    Empty, ``.`` and ``..`` parts, control characters, backslashes, drive letters, device names and names longer than
    file systems take are replaced; a part that was changed ends in a short hash of what it was, so that two keys never
    share a path.

    >>> safe_path("00000/00042.png")
    '00000/00042.png'
    >>> safe_path("../etc/passwd")
    '_-1fec01955feb/etc/passwd'
    """
    parts = key.split("/")
    return "/".join(_safe_name(part) for part in parts)


def _safe_name(name: str) -> str:
    clean = _FORBIDDEN.sub("_", name).rstrip(". ")
    if _DEVICES.match(clean):
        clean = "_" + clean
    if clean == name and name and len(os.fsencode(name)) <= _NAME_BYTES - 16:
        return name
    mark = "-" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    stem, extension = os.path.splitext(clean)
    extension = extension if len(extension) <= 16 else ""
    room = _NAME_BYTES - 16 - len(mark) - len(extension.encode())
    stem = stem.encode()[:room].decode(errors="ignore")
    return (stem or "_") + mark + extension


def file_name(key: str, format: str, shared: Collection[int] = frozenset()) -> str:
    """Relative path of a picture's file: its key, with the format's extension where the key's is another's.

    ``shared`` are hashes of paths that more than one key would get (see :func:`shared_paths`): there, keys whose
    extension is changed are told apart by a short hash.
    """
    path = safe_path(key)
    stem, extension = os.path.splitext(path)
    if extension.lower() in _SAME.get(format, (EXTENSIONS[format],)):
        return path
    name = stem + EXTENSIONS[format]
    if shared and int(hash_keys([name])[0]) in shared:
        return f"{stem}-{hashlib.blake2b(key.encode(), digest_size=6).hexdigest()}{EXTENSIONS[format]}"
    return name


def shared_paths(keys: Iterable[str], format: str) -> frozenset[int]:
    """Hashes of paths that :func:`file_name` gives to more than one of ``keys``, such as ``a.png`` and ``a.jpg``."""
    keys = iter(keys)
    hashes = [np.zeros(0, np.uint64)]
    while chunk := list(itertools.islice(keys, 65_536)):
        hashes.append(hash_keys([file_name(key, format) for key in chunk]))
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return frozenset(values[counts > 1].tolist())


def restore_rows(
    archive: Archive, rows: Sequence[Row], destination: Path, format: str = "png", shared: Collection[int] = frozenset()
) -> Restored:
    """Write the pictures of ``rows`` below ``destination``; originals as they came, byte for byte.

    A file that is there already is replaced. Each appears whole or not at all.
    """
    done = Restored()
    for together in decoded_together(rows):
        for row, data in zip(together, _files(archive, together, format), strict=True):
            if isinstance(data, Exception):
                done.problems.append((row.key, _why(data)))
                continue
            name = safe_path(row.key) if row.codec == ORIGINAL else file_name(row.key, format, shared)
            try:
                write_file(destination, name, data)
            except OSError as error:
                done.problems.append((row.key, f"cannot write {name}: {error.strerror or error}"))
                continue
            done.written += 1
            done.bytes += len(data)
            done.renamed += safe_path(row.key) != row.key
    return done


def _why(error: Exception) -> str:
    return told(error) + ("; try again with more memory" if is_shortage(error) else "")


def _files(archive: Archive, rows: Sequence[Row], format: str) -> Iterator[bytes | Exception]:
    """The bytes of each row's file, or why there are none."""
    decoded = decoded_apart(archive, [row for row in rows if row.codec != ORIGINAL])
    for row in rows:
        try:
            if row.codec == ORIGINAL:
                check_crc(row)
                yield row.payload
            elif isinstance(pixels := next(decoded), Exception):
                yield pixels
            else:
                yield encode_picture(pixels, row.channels, format)
        except (CodecError, ImageError, OSError, ValueError, MemoryError) as error:
            yield error


def write_file(destination: Path, name: str, data: bytes) -> None:
    """Put ``data`` at ``destination / name``, following no link on the way there.

    Raises
    ------
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
    partial = folder / f".{last[:64]}.{os.getpid()}.partial"
    try:
        with open(partial, "xb") as file:
            file.write(data)
        os.replace(partial, folder / last)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def restore(
    archive: Archive,
    destination: Path,
    keys: Sequence[str] = (),
    format: str = "png",
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore ``keys``, or all pictures, below ``destination``, which is created.

    What is damaged, or refused for good, is among the problems and keeps nothing else from being restored.

    Parameters
    ----------
    workers
        Processes that decode and write. Small archives are restored in this process, which starts faster.
    on_progress
        Called with (pictures done, pictures in all).

    Raises
    ------
    ArchiveError
        ``destination`` cannot be created, storage failed in a way that may pass, or another run has taken files away.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"cannot create {destination}: {error.strerror or error}; name another folder") from error
    with enough_memory(archive.url, "restore it"):
        return _restore(archive, destination, keys, format, workers, on_progress)


def _restore(
    archive: Archive,
    destination: Path,
    keys: Sequence[str],
    format: str,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Restored:
    done = Restored()
    if keys:
        total = len(keys)
        rows = _rows_of(archive, keys, done)
        shared = shared_paths(keys, format)
    else:
        total = len(archive)
        groups: list[tuple[Part, int, int]] = []
        shared = shared_paths(_all_keys(archive, groups, done), format)
        rows = _all_rows(archive, groups, done)
    batches = bounded_chunks(rows, lambda row: len(row.payload), BYTES_AT_ONCE, BATCH)
    finished = 0
    for count, one in _restore_batches(
        archive, batches, destination, format, shared, workers if total > 2 * BATCH else 1
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
    shared: frozenset[int],
    workers: int,
) -> Iterator[tuple[int, Restored]]:
    """(rows, outcome) of each batch as it is done; at most two batches wait for each process."""
    if workers == 1:
        for rows in batches:
            yield len(rows), restore_rows(archive, rows, destination, format, shared)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    arguments = (archive.url, destination, format, shared)
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
                "a process that restores pictures was killed, perhaps for memory; try --workers 1"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: tuple[Archive, Path, str, frozenset[int]]


def _start_worker(url: str, destination: Path, format: str, shared: frozenset[int]) -> None:
    global _worker
    import torch

    torch.set_num_threads(1)
    _worker = (Archive.open(url), destination, format, shared)


def _restore_in_worker(rows: list[Row]) -> Restored:
    archive, destination, format, shared = _worker
    return restore_rows(archive, rows, destination, format, shared)


def _rows_of(archive: Archive, keys: Iterable[str], done: Restored) -> Iterator[Row]:
    """Rows of ``keys`` that are there; the others are among the problems."""
    for key in keys:
        try:
            yield archive.read_row(key)
        except (ArchiveError, MemoryError) as error:
            done.problems.append((key, _why(error)))


def _all_keys(archive: Archive, groups: list[tuple[Part, int, int]], done: Restored) -> Iterator[str]:
    """All keys that can be read; their row groups, with the number of rows, are added to ``groups``."""
    images = archive.tables[0]
    with images.store.errors(READING):
        for part in list(images.parts):
            found = Findings(part)
            for group, count in row_groups(images, found):
                try:
                    keys = images.read(part, [group], ["key"])["key"].to_pylist()
                except DAMAGE as error:
                    unreadable(images, group, count, error, found)
                else:
                    groups.append((part, group, count))
                    yield from keys
            _enter(images, found, done)


def _all_rows(archive: Archive, groups: Iterable[tuple[Part, int, int]], done: Restored) -> Iterator[Row]:
    """Rows of those row groups of which :func:`_all_keys` has read the keys: of no other are the paths known."""
    images = archive.tables[0]
    with images.store.errors(READING):
        for part, group, count in groups:
            found = Findings(part)
            try:
                rows = from_table(images.read(part, [group], IMAGES.names, salvage=True), IMAGES)
            except DAMAGE as error:
                unreadable(images, group, count, error, found)
                _enter(images, found, done)
            else:
                yield from rows


def _enter(images: KeyedTable, found: Findings, done: Restored) -> None:
    """Put what cannot be read among the problems. ArchiveError where it may be read later, or elsewhere."""
    problems = found.problems()
    if not problems:
        return
    if found.refused and any(map(is_transient, causes(found.refused))):
        raise found.refused
    images.refresh(anew=True)
    if found.part not in images.parts:
        raise ArchiveError(f"{images.store.url}: cannot {TAKEN_AWAY}")
    done.problems += [(problem.key, problem.reason) for problem in problems]

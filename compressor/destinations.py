"""Where files go that are no archive: a folder, or a bucket. Each is there whole or not at all."""

import errno
import itertools
import mimetypes
import os
import re
import socket
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from compressor.addresses import ADVICE, has_password, is_s3, shown
from compressor.errors import ArchiveError, ImageError, s3_status
from compressor.files import UNFINISHED_S, delete_unfinished, in_place_of, write_whole
from compressor.images import decode_picture
from compressor.metrics import psnr
from compressor.store import require_two_slashes, s3_filesystem, storage_errors

ALIKE = 45.0  # dB between two restored files of one picture; rounding leaves 55 or more, JPEG makes 45 of it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_KEY_BYTES = 1024  # of an object, by S3's rules
_ASTRAY = re.compile(r"[?#\x00-\x1f\x7f]|//|/\.{1,2}(?=/|$)")  # what some clients take for something else in a path


class Folder:
    """A local folder. No link in it is followed, neither on the way to a file nor at its end."""

    threads = 1  # that write at once: decoding takes longer

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def told(self, name: str = "") -> str:
        """Where a file is, for whoever is not at this machine."""
        return f"{(self.path / name).resolve()} on {socket.gethostname()}"

    def lies_in(self, archive: str, name: str = "") -> bool:
        """Whether this file, or all of them, would be among those of the archive at this address."""
        return (self.path.resolve() / name).is_relative_to(Path(archive).resolve())  # a URL is no folder here

    def create(self) -> None:
        """Make it, with those above it. ArchiveError where that cannot be."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise ArchiveError(f"cannot create {self}: {reason}; name another folder") from error

    def folds(self) -> bool:
        """Whether names that differ in case or Unicode form alone are one file's, as on exFAT, SMB and APFS."""
        try:
            with NamedTemporaryFile(prefix="latentpack-É-", dir=self.path) as probe:
                others = (probe.name.swapcase(), unicodedata.normalize("NFD", probe.name))
                names = [os.path.basename(other) for other in others]
                return any(os.path.lexists(self.path / name) for name in names)
        except (OSError, UnicodeError):  # nothing can be written here, which writing says
            return False

    def delete_leftovers(self, folders: Iterable[str]) -> None:
        """Delete what killed restores left half-written in ``folders``, so long ago that no restore writes it."""
        for name in folders:
            folder, *below = itertools.accumulate(name.split("/") if name else [], Path.__truediv__, initial=self.path)
            if not any(path.is_symlink() for path in below):
                with suppress(OSError):  # most are made only now, and what cannot be read here does no harm
                    delete_unfinished([folder, *below][-1], UNFINISHED_S)

    def write(self, name: str, data: bytes, overwrite: bool = False, rounded: bool = False) -> None:
        """Put ``data`` at the relative path ``name``.

        A file that is there stays if its bytes are the same, or, where pixels are ``rounded`` as batch and machine have
        it, if it shows the same picture.

        Raises
        ------
        FileExistsError
            Another file is there, or a link, whatever it leads to. With ``overwrite`` either is replaced itself.
        OSError
            Also where a folder on the way is a link, which might lead out of this one.
        ArchiveError
            There is no room for this file, nor for any other.
        """
        folder = self.path
        *folders, last = name.split("/")
        try:
            for part in folders:
                folder = folder / part
                if folder.is_symlink():
                    raise OSError(f"{folder} is a link; it is not followed")
                folder.mkdir(exist_ok=True)
            path = folder / last
            if overwrite or not _is_there(path, data, rounded):
                with in_place_of(path, lasting=False) as temporary:
                    temporary.write_bytes(data)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            reason = f"cannot write {name}: {error.strerror}"
            raise ArchiveError(
                f"{self}: {reason}; what is written stays: make room, then repeat the command"
            ) from error


def _is_there(path: Path, data: bytes, rounded: bool) -> bool:
    """Whether this file is at ``path``. FileExistsError where another is."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(there.st_mode):
        return False  # writing will say so: nothing replaces a folder
    regular = stat.S_ISREG(there.st_mode)
    if regular and _may_be(there.st_size, data, rounded) and _is_same(path.read_bytes(), data, rounded):
        return True
    raise _taken()


class Bucket:
    """An S3 bucket, or a prefix in one; credentials come from the environment.

    Parameters
    ----------
    url
        ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises
    ------
    ArchiveError
        The address names no bucket, or holds a password.
    """

    threads = 16  # that write at once: each waits for the store

    def __init__(self, url: str) -> None:
        if has_password(url):
            raise ArchiveError(f"{shown(url)}: {ADVICE}")
        root = url.partition("://")[2].rstrip("/")
        self._bucket, _, prefix = root.partition("/")
        if not self._bucket:
            raise ArchiveError(f"{url}: a bucket is missing; use s3://bucket/prefix")
        if astray := _ASTRAY.search(root):
            raise ArchiveError(f"{shown(url)}: a prefix holds no {astray[0]!r}, which not all programs take as it is")
        self._prefix = f"{prefix}/" if prefix else ""
        self._url = f"s3://{root}"

    def __str__(self) -> str:
        return self._url

    @cached_property
    def _fs(self) -> Any:
        return s3_filesystem()

    def told(self, name: str = "") -> str:
        """Where an object is."""
        return f"{self._url}/{name}" if name else self._url

    def lies_in(self, archive: str, name: str = "") -> bool:
        """Whether this object, or all of them, would be among those of the archive at this address."""
        return f"{self._url}/{name}".startswith(f"{archive}/")

    def create(self) -> None:
        """Make sure that there is such a bucket, which its owner makes. ArchiveError where there is none."""
        with storage_errors(self._url, "use it"):
            self._fs.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def folds(self) -> bool:
        """No: a store takes names as they are."""
        return False

    def delete_leftovers(self, folders: Iterable[str]) -> None:
        """Nothing: an object appears whole."""

    def write(self, name: str, data: bytes, overwrite: bool = False, rounded: bool = False) -> None:
        """As :meth:`Folder.write`; ArchiveError where the store refuses, or fails, as it would for any other file."""
        key = self._prefix + name
        if len(key.encode()) > _KEY_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with storage_errors(self._url, f"write {name}"):
            size = None if overwrite else self._size(key)
            if size is None:
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                self._fs.call_s3("put_object", Bucket=self._bucket, Key=key, Body=data, ContentType=kind)
                return
            found = self._fs.cat_file(f"{self._bucket}/{key}") if _may_be(size, data, rounded) else None
        if found is None or not _is_same(found, data, rounded):
            raise _taken()

    def reserve(self, name: str) -> None:
        """Write an empty object where there is none of this name.

        Before work that takes hours: that it cannot be written would else be known behind it.
        """
        self.create()
        if self.read(name, 1) is None:
            self.write(name, b"", overwrite=True)

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """An object, or its first ``most`` bytes; None where there is none.

        ArchiveError where there is no such bucket, or where the store refuses the object, or fails.
        """
        key = self._prefix + name
        with storage_errors(self._url, f"read {name}"):
            size = self._size(key)
            if size:
                return self._fs.cat_file(f"{self._bucket}/{key}", start=0, end=min(size, most or size))
        if size is None:
            self.create()
        return None if size is None else b""

    def _size(self, key: str) -> int | None:
        """Bytes of an object, None where there is none."""
        try:
            return int(self._fs.call_s3("head_object", Bucket=self._bucket, Key=key)["ContentLength"])
        except OSError as error:
            if s3_status(error) != HTTPStatus.NOT_FOUND:
                raise
            return None


Destination = Folder | Bucket


def destination_at(address: str | os.PathLike[str]) -> Destination:
    """What is at a local path, a ``file://`` or an ``s3://`` address. ArchiveError where it is none of these."""
    require_two_slashes(os.fspath(address))
    scheme, separator, rest = os.fspath(address).partition("://")
    if not rest and scheme in ("", "file"):  # a shell's variable that is not set: the present folder was never meant
        raise ArchiveError("the address to write to is empty: name a folder, or an s3:// address")
    if not separator:
        return Folder(address)
    if scheme == "file":
        return Folder(rest)
    if is_s3(os.fspath(address)):
        return Bucket(os.fspath(address))
    raise ArchiveError(f"{shown(str(address))}: files are written to a local folder or to s3://, not to {scheme}://")


def object_at(url: str) -> tuple[Bucket, str]:
    """The bucket, or the prefix in it, of an ``s3://`` address, and the object's name there. ArchiveError as there."""
    folder, _, name = url.rpartition("/")
    if folder.endswith("/") or not name:
        raise ArchiveError(f"{shown(url)}: an object's name is missing; use s3://bucket/prefix/name")
    return Bucket(folder), name


def write_file(address: str, data: bytes) -> None:
    """Write one file, at a local path or an ``s3://`` address, over one that is there.

    OSError or ArchiveError where it cannot be.
    """
    if "://" in address:
        bucket, name = object_at(address)
        bucket.write(name, data, overwrite=True)
    else:
        write_whole(Path(address), data)


def file_lies_in(address: str, archive: str) -> bool:
    """Whether such a file would be among those of the archive at this address."""
    if "://" in address:
        bucket, name = object_at(address)
        return bucket.lies_in(archive, name)
    path = Path(address).resolve()  # a link leads to what is written
    return Folder(path.parent).lies_in(archive, path.name)


@contextmanager
def filled(place: Destination, first: str) -> Iterator[Path]:
    """A folder for files that lie at ``place`` in the end, in place of those of their names that are there.

    ``first`` is one of them: in a bucket it is written at once, empty, so that one that cannot be written is told now.
    """
    if isinstance(place, Folder):
        yield place.path
        return
    place.reserve(first)
    with TemporaryDirectory(prefix="latentpack-") as folder:
        yield Path(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                place.write(path.relative_to(folder).as_posix(), path.read_bytes(), overwrite=True)


def _may_be(size: int, data: bytes, rounded: bool) -> bool:
    """Whether a file of this size may be the one to write."""
    return size == len(data) or (rounded and size < 2 * len(data) + 1024)


def _is_same(one: bytes, other: bytes, rounded: bool) -> bool:
    """Whether two picture files are one; where ``rounded``, also if sums were: by one level here and there."""
    if one == other:
        return True
    if not rounded:
        return False
    try:
        a, b = (decode_picture(data).pixels for data in (one, other))
    except ImageError:
        return False
    return a.shape == b.shape and psnr(a, b) > ALIKE


def _taken() -> FileExistsError:
    return FileExistsError("another file of that name is there; --overwrite replaces it")

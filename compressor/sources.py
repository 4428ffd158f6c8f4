"""Where pictures come from: a folder, bucket prefix, glob or single file at any fsspec URL, listed and read.

Not here: decoding (images.py), and what is done about a file that cannot be read (encoding.py). Credentials come from
the environment and never appear in a message.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from fsspec.archive import AbstractArchiveFileSystem

from compressor.addresses import ADVICE, has_password, is_s3, shown, without_secrets
from compressor.errors import SourceError, told
from compressor.listing import (
    HIDDEN,
    Info,
    fingerprint,
    is_like_picture,
    is_picture,
    list_bucket,
    list_folders,
    list_local,
    local_info,
    size_of,
    tells_versions,
)
from compressor.retrying import ATTEMPTS, back_off, is_transient, patiently

T = TypeVar("T")

IGNORED_NAMES = 100  # that are kept as examples
EXTENSIONS = 100  # that are counted one by one
LONGEST_EXTENSION = 20
OTHERS, LIKE_PICTURES = "others", ".png_..."
CONCURRENT_REQUESTS = 64  # s3fs's own 10 connections cap at 81 objects a second under 50 ms of latency
LOCAL_THREADS = 8  # hide the latency of network file systems
INFOS_AT_ONCE = 256
ONE_BY_ONE = {"tar", "libarchive", "ftp", "sftp", "ssh", "git"}  # one connection, or one place in one file


@dataclass(frozen=True)
class SourceFile:
    """One listed picture file.

    Attributes
    ----------
    key
        Path below the source's root, with forward slashes. Unique within the source.
    path
        What :meth:`Source.read` takes.
    size
        Bytes.
    fingerprint
        5 bytes that change when the file does: BLAKE2b of size and ETag, else of size and checksum or time of change.
    """

    key: str
    path: str
    size: int
    fingerprint: bytes


class Skipped(NamedTuple):
    """A name that may be a picture's but cannot be archived, or a folder that cannot be entered."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Place:
    """What a URL means: the files below ``root`` that begin with ``prefix`` and match ``pattern``, or one file."""

    root: str
    prefix: str = ""
    pattern: re.Pattern[str] | None = None
    depth: float = float("inf")
    single: SourceFile | None = None

    def may_hold(self, name: str) -> bool:
        """Whether a file of that name, or one in a folder of that name, may be asked for."""
        if self.pattern is None or os.path.isabs(name):  # the root itself
            return True
        if is_picture(name):
            return bool(self.pattern.match(name))
        begins = name.startswith(self.prefix) or self.prefix.startswith(name.rstrip("/") + "/")
        return begins and name.rstrip("/").count("/") + 1 < self.depth


class Source:
    """Pictures at a URL. Make one with :meth:`open`; it pickles as its URL, a local path made absolute, and options.

    Attributes
    ----------
    url
        As given.
    skipped
        What the last :meth:`files` passed over although it may be a picture, with reasons.
    ignored, ignored_count
        Hidden names, and links to what is listed anyway, with reasons: the first of them, and how many there are.
    unlisted
        How many files have no picture's extension, by extension; ``others`` beyond the first hundred.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        self.url = os.fspath(url)
        if not self.url:  # a shell's variable that is not set, where the present folder was never meant
            raise SourceError("the source's address is empty: name a folder, a file or a URL")
        self.storage_options = dict(storage_options or {})
        self.skipped: list[Skipped] = []
        self.ignored: list[Skipped] = []
        self.ignored_count = 0
        self.unlisted: Counter[str] = Counter()

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> Source:
        """Check that ``url`` can be listed, and return its source.

        A glob knows ``*``, ``?``, ``[...]`` and ``**`` for any number of folders. ``storage_options`` go to the
        fsspec file system, for example ``{"anon": True}`` for a public bucket.

        Raises
        ------
        SourceError
            There is nothing at ``url``, or it cannot be reached or listed. A folder without pictures is no error.
        """
        source = cls(url, storage_options)
        source._place  # noqa: B018 - looks it up, and raises what a user must know now
        return source

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker of a cluster may have another working directory, and another home.
        *outer, last = self.url.split("::")
        read_from = Source(last)
        url = "::".join([*outer, read_from._local_path if read_from._is_local else last])
        return Source, (url, self.storage_options)

    def __repr__(self) -> str:
        return f"Source({self.shown!r})"

    @property
    def shown(self) -> str:
        """The URL without user, password and query."""
        return shown(self.url)

    @property
    def address(self) -> str:
        """Where it is, however that was written, with no password in it: for keys of what is remembered of it.

        A local path is absolute and follows links, which may lead elsewhere the next time. A bucket is the same at
        every endpoint: its ETags tell contents apart.
        """
        if self._is_local:
            return "file://" + os.path.realpath(self._local_path)
        *outer, last = map(without_secrets, self.url.split("::"))
        if "://" not in last or last.startswith(("file://", "local://")):  # what zip:// and the like are read from
            last = Source(last).address
        return "::".join([*outer, re.sub("^s3a://", "s3://", last).rstrip("/")])

    @property
    def is_whole(self) -> bool:
        """Whether it is a folder or prefix with all that is below, and not a file or some of the names."""
        return not (self._place.single or self._place.pattern)

    def files(self) -> Iterator[SourceFile]:
        """Stream the picture files, sorted by key.

        Files are chosen by extension, and the others counted (see :attr:`unlisted`); names that begin with a dot are
        left out (see :attr:`ignored`). Links to files are followed, links to folders are not (they are in
        :attr:`skipped`, unless they lead to what is listed anyway).
        Memory holds one page of a bucket, or up to 32,768 names of a local folder (of millions in one, 80 kB for each
        32,768 more; they wait in a temporary file); of a ZIP or tar all names (some 2 kB each).
        Listing takes about 20 us a file locally, 100 us in a bucket.

        Raises
        ------
        SourceError
            The listing fails for good.
        """
        self.skipped, self.ignored, self.ignored_count, self.unlisted = [], [], 0, Counter()
        place = self._place
        if place.single:
            yield place.single
            return
        for key, path, info in self._with_marks(self._wanted(place)):
            yield _source_file(key, path, info)

    def address_of(self, file: SourceFile) -> str:
        """Where a listed file lies, links followed: the same from every source that lists it."""
        if self._is_local:
            return os.path.realpath(file.path)
        _, chained, container = self.url.partition("::")  # as of a zip file: its address is a part of the file's
        return f"{self._remote[0].unstrip_protocol(file.path)}{chained}{container}"

    def read(self, paths: Sequence[str]) -> list[bytes | Exception]:
        """Read whole files concurrently; all of them are in memory at the end.

        Transient failures (connections, timeouts, 5xx, SlowDown) are tried again, 5 times in all, with exponential
        back-off and full jitter; others are not.

        Returns
        -------
        list
            For each path its bytes, or the :class:`SourceError` that says why there are none.
        """
        results: dict[str, bytes | Exception] = {}
        waiting = list(dict.fromkeys(paths))
        for attempt in range(ATTEMPTS):
            results.update(zip(waiting, self._read_once(waiting), strict=True))
            waiting = [path for path in waiting if is_transient(results[path])]
            if not waiting:
                break
            if attempt + 1 < ATTEMPTS:
                back_off(attempt)
        for path, result in results.items():
            if isinstance(result, Exception):
                results[path] = error = self._error(f"cannot read {shown(path)}", result)
                error.__cause__ = result
        return [results[path] for path in paths]

    @cached_property
    def _is_local(self) -> bool:
        scheme, found, _ = self.url.partition("://")
        return "::" not in self.url and (not found or scheme in ("file", "local"))

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The fsspec file system of a source that is not local, and the path in it."""
        import fsspec

        options = dict(self.storage_options)
        in_a_bucket = is_s3(self.url)
        if in_a_bucket and has_password(self.url):  # s3fs would take it for a part of the bucket's name
            raise SourceError(f"{self.shown}: {ADVICE}")
        try:
            filesystem, path = fsspec.core.url_to_fs(self.url, **(_s3_options(options) if in_a_bucket else options))
        except Exception as error:  # the back end may be unknown, not installed or misconfigured
            raise self._error(f"cannot open {self.shown}", error) from error
        if in_a_bucket:
            filesystem.retries = 1  # ours would multiply with these
        return filesystem, path.rstrip("/") or path[:1]

    @cached_property
    def _place(self) -> _Place:
        return self._local_place() if self._is_local else self._remote_place()

    @property
    def _local_path(self) -> str:
        return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", self.url)))

    def _local_place(self) -> _Place:
        path = self._local_path
        if problem := name_problem(path):
            raise SourceError(f"cannot open {_printable(path)}: {problem}; rename it")
        try:
            if os.path.isdir(path):
                os.scandir(path).close()
                return _Place(path)
            if os.path.exists(path):
                status = os.stat(path)
                if not stat.S_ISREG(status.st_mode):
                    raise SourceError(f"{self.shown} is not a regular file or folder")
                if (kind := os.path.splitext(path)[1].lower()) in (".zip", ".tar"):
                    raise SourceError(
                        f"{self.shown} is no picture; the pictures inside of it are {kind[1:]}://::{self.shown}"
                    )
                return _Place(path, single=_source_file(os.path.basename(path), path, local_info(status)))
        except OSError as error:
            raise self._error(f"cannot open {self.shown}", error) from error
        place = _glob(path)
        if not place or not os.path.isdir(place.root):
            raise self._missing()
        return place

    def _remote_place(self) -> _Place:
        filesystem, path = self._remote
        literal = not re.search(r"[*?]", path)  # brackets may be part of a name
        if is_picture(path) and literal:
            info = self._retrying(lambda: _info_or_none(filesystem, path))
            if info:
                return _Place(path, single=_source_file(path.rpartition("/")[2], path, info))
        for place in (_Place(path) if literal else None, _glob(path)):
            if place and self._is_there(place.root):
                return place
        raise self._missing()

    def _is_there(self, root: str) -> bool:
        filesystem, _ = self._remote
        if hasattr(filesystem, "call_s3"):
            # An empty bucket is an empty source; a prefix is only there through its keys
            return any(True for _ in list_bucket(self._call_s3, root, "", float("inf"))) or "/" not in root
        return bool(self._retrying(lambda: filesystem.isdir(root)))

    def _list(self, place: _Place) -> Iterator[tuple[str, str, Info]]:
        if self._is_local:
            return list_local(place.root, place.depth, self._skip, self._ignore, self._leave, place.may_hold)
        filesystem, _ = self._remote
        if hasattr(filesystem, "call_s3"):
            return list_bucket(self._call_s3, place.root, place.prefix, place.depth)
        if isinstance(filesystem, AbstractArchiveFileSystem):
            return list_folders(self._retrying(lambda: _folders(filesystem, self._skip)), place.root, place.depth)
        return list_folders(
            lambda path: self._retrying(lambda: filesystem.ls(path, detail=True)), place.root, place.depth
        )

    def _wanted(self, place: _Place) -> Iterator[tuple[str, str, Info]]:
        last = ""
        for key, path, info in self._list(place):
            if not is_picture(key):
                self._leave(key)
                continue
            if place.pattern and not place.pattern.match(key):
                continue
            if key == last:
                self._skip(key, "the name is there twice, once behind ./")
            elif key.startswith(".") or "/." in key:
                self._ignore(key, HIDDEN)
            elif problem := name_problem(key):
                self._skip(key, problem)
            else:
                yield key, path, info
            last = key

    def _with_marks(self, listed: Iterator[tuple[str, str, Info]]) -> Iterator[tuple[str, str, Info]]:
        """Where a listing does not tell versions of files, as on the web, with what is told of each file alone.

        Not where that tells no more.
        """
        asks = not self._is_local

        def told_alone(entry: tuple[str, str, Info]) -> tuple[str, str, Info]:
            key, path, info = entry
            if tells_versions(info):
                return entry
            try:
                return key, path, self._retrying(lambda: self._remote[0].info(path))
            except SourceError:  # who reads it will be told
                return entry

        with ThreadPoolExecutor(self._threads) as pool:
            while asks and (chunk := list(itertools.islice(listed, INFOS_AT_ONCE))):
                bare = next((entry for entry in chunk if not tells_versions(entry[2])), None)
                asks = bare is None or tells_versions(told_alone(bare)[2])
                yield from pool.map(told_alone, chunk) if asks and bare else chunk
        yield from listed

    def _call_s3(self, method: str, **request: Any) -> Any:
        return self._retrying(lambda: self._remote[0].call_s3(method, **request))

    def _skip(self, name: str, reason: str) -> None:
        if self._place.may_hold(name):
            self.skipped.append(Skipped(_printable(name), reason))

    def _ignore(self, name: str, reason: str) -> None:
        if not self._place.may_hold(name):
            return
        self.ignored_count += 1
        if len(self.ignored) < IGNORED_NAMES:
            self.ignored.append(Skipped(_printable(name), reason))

    def _leave(self, name: str) -> None:
        pattern = self._place.pattern
        is_folder = not name or name.endswith("/")  # as consoles leave one in a bucket, for the prefix itself too
        if is_folder or (pattern and not pattern.match(name)):
            return
        extension = _printable(os.path.splitext(name)[1].lower()) or "none"
        if len(extension) > LONGEST_EXTENSION or (extension not in self.unlisted and len(self.unlisted) >= EXTENSIONS):
            # One name for all that are like a picture's, since they tell more than others
            extension = LIKE_PICTURES if is_like_picture(extension) else OTHERS
        self.unlisted[extension] += 1

    def _read_once(self, paths: list[str]) -> list[bytes | Exception]:
        read: Callable[[str], bytes] = _read_local
        if not self._is_local:
            filesystem, _ = self._remote
            if getattr(filesystem, "async_impl", False):
                # cat() would take names with brackets for globs; cat_ranges() takes them as they are
                return filesystem.cat_ranges(paths, None, None, on_error="return", batch_size=CONCURRENT_REQUESTS)
            read = filesystem.cat_file

        def attempt(path: str) -> bytes | Exception:
            try:
                return read(path)
            except Exception as error:  # one file's failure is its own
                return error

        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(attempt, paths))

    @property
    def _threads(self) -> int:
        """How many files may be asked for at the same time."""
        filesystem = None if self._is_local else self._remote[0]
        while filesystem is not None:
            protocol = filesystem.protocol
            if not ONE_BY_ONE.isdisjoint([protocol] if isinstance(protocol, str) else protocol):
                return 1
            filesystem = getattr(filesystem, "fs", None)  # what a cache lies before
        return LOCAL_THREADS

    def _retrying(self, call: Callable[[], T]) -> T:
        try:
            return patiently(call)
        except Exception as error:  # back ends raise what they like; a user gets one kind
            raise self._error(f"cannot list {self.shown}", error) from error

    def _missing(self) -> SourceError:
        return SourceError(f"no source at {self.shown}: there is no such folder, prefix or file; check the spelling")

    def _error(self, what: str, error: Exception) -> SourceError:
        """A SourceError that tells what to do, with no secret in it."""
        user = re.match(r"[\w+.-]+://([^/@]*@)", self.url)
        reason = shown(told(error).replace(user[1], "") if user else told(error))
        if isinstance(error, FileNotFoundError):
            reason = f"it does not exist ({reason})"
        elif type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            reason += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the option anon for a public bucket"
        elif isinstance(error, PermissionError):
            reason += f"; check {'' if self._is_local else 'the credentials in the environment and '}the permissions"
        elif is_transient(error):
            reason += f" (tried {ATTEMPTS} times); check the network and the endpoint, then run again"
        return SourceError(f"{what}: {reason}")


def _glob(path: str) -> _Place | None:
    """The place that a path with wildcards means; None for one without."""
    from fsspec.utils import glob_translate

    magic = re.search(r"[*?\[]", path)
    if not magic:
        return None
    root, _, prefix = path[: magic.start()].rpartition("/")
    pattern = path[len(root) :].lstrip("/")
    depth = float("inf") if "**" in pattern else pattern.count("/") + 1
    try:
        matching = re.compile(glob_translate(pattern))
    except ValueError as error:
        raise SourceError(f"{shown(path)}: {error}") from error
    return _Place(root or path[:1].strip("*?["), prefix, matching, depth)


def name_problem(key: str) -> str:
    """Why a name cannot be a key of the archive, which are UTF-8 strings that can name files again."""
    if "\0" in key:
        return "the name contains a NUL character"
    try:
        key.encode()
    except UnicodeEncodeError:
        return "the name is not valid UTF-8"
    return ""


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _source_file(key: str, path: str, info: Info) -> SourceFile:
    return SourceFile(key, path, size_of(info), fingerprint(info))


def _s3_options(options: dict[str, Any]) -> dict[str, Any]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = {
        "max_pool_connections": CONCURRENT_REQUESTS,
        "retries": {"mode": "adaptive", "total_max_attempts": 1},  # slows down when told to; tries again are ours
    } | options.pop("config_kwargs", {})
    # One request per object: with more than one allowed, s3fs asks for the size first
    defaults = {"use_listings_cache": False, "max_concurrency": 1, "config_kwargs": config}
    return defaults | ({"endpoint_url": endpoint} if endpoint else {}) | options


def _info_or_none(filesystem: Any, path: str) -> Info | None:
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        return None
    return info if info["type"] == "file" else None


def _read_local(path: str) -> bytes:
    """OSError where it has become a pipe or a device since it was listed, whose end may never come."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path}: no regular file any more")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _folders(filesystem: Any, skip: Callable[[str, str], None]) -> Callable[[str], list[Info]]:
    """``ls`` of a zip or tar file, whose own goes through all of its names for each folder.

    ``skip(name, reason)`` is told of pictures that fsspec cannot read by their names.
    """
    filesystem.ls("")
    below: dict[str, dict[str, Info]] = {}
    for name, info in filesystem.dir_cache.items():
        name = name.rstrip("/")
        if name.startswith("/") or "//" in name:
            if is_picture(name):
                skip(name, "an absolute name, or an empty one between two slashes, in an archive file: pack it anew")
            continue
        below.setdefault(name.rpartition("/")[0], {})[name] = info
    for folder in [*below]:
        while folder:
            parent = folder.rpartition("/")[0]
            there = below.setdefault(parent, {})
            if folder in there:
                break
            there[folder] = {"name": folder, "size": 0, "type": "directory"}
            folder = parent
    return lambda path: [*below.get(path.rstrip("/"), {}).values()]

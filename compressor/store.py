"""Files of an archive on a local disk or in an S3 bucket: whole puts, ranged gets, listing. Knows nothing of tables."""

import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec

from compressor.addresses import ADVICE, has_password, is_s3, shown
from compressor.errors import ArchiveError, LatentpackError, s3_status, told
from compressor.files import delete_unfinished, in_place_of
from compressor.listing import s3_pages

# delta-rs's names, which are also the environment's, to s3fs's.
S3FS_OPTIONS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "AWS_ENDPOINT_URL": "endpoint_url",
}
_OF_S3_ALONE = "AWS_ENDPOINT_URL_S3"  # and before the one of all services
# More of delta-rs's names, which s3fs's half would not see: its files would lie elsewhere than the log.
_SAME_OPTIONS = {
    "AWS_ENDPOINT": "AWS_ENDPOINT_URL",
    "AWS_TOKEN": "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION": "AWS_REGION",
}
TEMPORARY = "tmp-"  # how files that are being written begin
_AFTER_TEMPORARY = "[a-z0-9_]+"  # earlier versions had names by tempfile
TEMPORARY_NAME = TEMPORARY + _AFTER_TEMPORARY
DELETES = 16  # objects deleted at once, for each takes a request
POOL = 64  # connections: s3fs's own 10 cap a scan at 200 ranges a second
# Where delta-rs takes a path for another one, and would lay a table's log elsewhere than its files: escapes of URLs,
# what they leave out, and what is no UTF-8.
_ASTRAY = r"%[0-9A-Fa-f]{2}|[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_ASTRAY_LOCALLY = re.compile(rf"{_ASTRAY}|\\")
_ASTRAY_ON_S3 = re.compile(rf"{_ASTRAY}|[#?]|/\.{{0,2}}/|/\.{{1,2}}$")
_ONE_SLASH = re.compile("s3a?:/(?!/)")


class Store:
    """The folder of an archive.

    Parameters
    ----------
    url
        A local path, ``file://`` or ``s3://bucket/prefix``.
    options
        ``AWS_*`` names, in lower case too, that take precedence over the environment's. Better none: they travel with
        pickles.
    """

    def __init__(self, url: str | os.PathLike[str], options: dict[str, str] | None = None) -> None:
        url = os.fspath(url)
        self.options = _checked(options or {})
        self.turn = threading.RLock()  # of the threads that commit by it
        self._conditional_puts = False
        self._fs: tuple[int, Any] | None = None  # by the process that it was made in
        if not url:  # a shell's variable that is not set, where the present folder was never meant
            raise ArchiveError("the archive's address is empty: name its folder or its s3:// address")
        if has_password(url):
            raise ArchiveError(f"{shown(url)}: {ADVICE}")
        require_two_slashes(url)
        scheme, separator, rest = url.partition("://")
        self.is_s3 = is_s3(url)
        if self.is_s3:
            self.root = rest.rstrip("/")
            self.url = f"s3://{self.root}"
            if not self.root:
                raise ArchiveError(f"{url}: a bucket is missing; use s3://bucket/prefix")
        elif not separator or scheme == "file":
            self.root = str(Path(os.path.expanduser(rest if separator else url)).absolute())
            self.url = self.root
        else:
            raise ArchiveError(f"{shown(url)}: archives lie in a local folder or in s3://, not in {scheme}://")
        if self.is_s3:
            astray = _ASTRAY_ON_S3.search(self.root)
        else:  # delta-rs follows links first
            astray = _ASTRAY_LOCALLY.search(self.root) or _ASTRAY_LOCALLY.search(os.path.realpath(self.root))
        if astray:
            others = "#, ?, //, /./, /../" if self.is_s3 else "backslashes"
            raise ArchiveError(
                f"{shown(self.url)!r}: an archive's path holds no {astray[0]!r}: its log would lie elsewhere than its "
                f"files; name one in UTF-8, without control characters, {others} and escapes such as %20"
            )

    @property
    def table_options(self) -> dict[str, str]:
        """What delta-rs has to be told; the environment it reads by itself."""
        if not self.is_s3:
            return {}
        options = dict(self.options)
        endpoint = options.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3")
        if endpoint:
            options["AWS_ENDPOINT_URL"] = endpoint
        if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
            options.setdefault("AWS_REGION", "us-east-1")
        return options

    @property
    def fs(self) -> Any:
        """The fsspec filesystem; an instance of its own in each process, for one from before a fork hangs."""
        process = os.getpid()
        if self._fs is None or self._fs[0] != process:
            self._fs = process, self._connected()
        return self._fs[1]

    def _connected(self) -> Any:
        if not self.is_s3:
            return fsspec.filesystem("file")
        return s3_filesystem(self.options)

    def path(self, name: str) -> str:
        """A file's full path, ``name`` being relative to the archive."""
        return f"{self.root}/{name}"

    def table_url(self, folder: str) -> str:
        """A Delta table's address."""
        return f"{self.url}/{folder}"

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Byte ranges of a file, all at once. FileNotFoundError where it is gone."""
        path = self.path(name)
        if not self.is_s3:
            with open(path, "rb") as file:
                return [os.pread(file.fileno(), end - start, start) for start, end in spans]
        if len(spans) == 1:
            return [self.fs.cat_file(path, start=spans[0][0], end=spans[0][1])]
        return self.fs.cat_ranges(
            [path] * len(spans),
            [start for start, _ in spans],
            [end for _, end in spans],
            max_gap=None,
            on_error="raise",
        )

    def get(self, name: str) -> bytes:
        """A whole file. FileNotFoundError where there is none."""
        return self.fs.cat_file(self.path(name))

    def put(self, name: str, data: bytes) -> None:
        """Write a file that appears whole or not at all, and outlives a power cut."""
        if self.is_s3:
            self.fs.pipe_file(self.path(name), data)
            return
        path = Path(self.path(name))
        _make_folder(path.parent)
        with in_place_of(path, TEMPORARY) as temporary:
            temporary.write_bytes(data)
        _sync_folder(path.parent)

    def settle(self, folder: str, wanted: Callable[[str], bool]) -> None:
        """Have the files in ``folder`` of ``wanted`` names, which another library wrote, outlive a power cut."""
        if self.is_s3:
            return  # an object that was answered for is safe
        for name in filter(wanted, self.names(folder)):
            with suppress(FileNotFoundError), open(self.path(f"{folder}/{name}"), "rb") as file:
                os.fsync(file.fileno())
        where = Path(self.path(folder))
        for path in (where, where.parent):
            _sync_folder(path)

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes of a file. FileNotFoundError where there is none."""
        return int(self.fs.info(self.path(name))["size"])

    def modified(self, name: str) -> float:
        """When a file was written: seconds since 1970, whole ones in a bucket. FileNotFoundError: there is none."""
        return float(self.fs.modified(self.path(name)).timestamp())

    def names(self, folder: str = "") -> list[str]:
        """What lies directly in ``folder``; empty where it does not exist."""
        return sorted(self.entries(folder))

    def entries(self, folder: str = "") -> Iterator[str]:
        """The same in any order, as it is found: of a bucket one page at a time."""
        path = self.path(folder) if folder else self.root
        with suppress(FileNotFoundError):
            if self.is_s3:
                yield from self._objects(path)
                return
            if os.path.isfile(path):
                raise ArchiveError(f"{path}: a file, where an archive's folder should be")
            yield from os.listdir(path)

    def _objects(self, path: str) -> Iterator[str]:
        bucket, _, prefix = f"{path}/".partition("/")
        for page in s3_pages(self.fs.call_s3, ArchiveError, Bucket=bucket, Prefix=prefix, Delimiter="/"):
            found = [entry["Key"] for entry in page.get("Contents", ())]
            found += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
            # The folder itself is there where an S3 console made it.
            yield from (name for key in found if (name := key[len(prefix) :].rstrip("/")))

    def delete_unfinished(self, folder: str, older_than: float) -> int:
        """Delete what killed processes left half-written in a local ``folder``, if it is ``older_than`` seconds."""
        if self.is_s3:
            return 0  # an object appears whole
        where = Path(self.path(folder) if folder else self.root)
        return delete_unfinished(where, older_than, TEMPORARY, _AFTER_TEMPORARY) if where.is_dir() else 0

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; those that are gone already are no error."""
        paths = [self.path(name) for name in names]
        if self.is_s3:
            with ThreadPoolExecutor(DELETES) as pool:
                list(pool.map(self.fs.rm_file, paths))
            return
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def require_conditional_puts(self) -> None:
        """Make sure, once, that two writers cannot overwrite each other's commit. ArchiveError where they could.

        Delta's log needs a put that fails where the object exists. Some S3 servers (rclone's) ignore the condition and
        answer that all went well: two runs would lose each other's rows without a word.
        """
        if not self.is_s3 or self._conditional_puts:
            return
        probe = self.path(f".latentpack-probe-{uuid.uuid4().hex}")
        try:
            try:
                self.fs.pipe_file(probe, b"1", mode="create")
                self.fs.pipe_file(probe, b"2", mode="create")
            finally:
                with suppress(OSError):  # it may not be there; and what went wrong before is what counts
                    self.fs.rm_file(probe)
        except OSError as error:
            # Not the error's type, which s3fs derives from a word that AWS alone uses.
            status = s3_status(error)
            if status == HTTPStatus.PRECONDITION_FAILED:
                self._conditional_puts = True
                return
            if status != HTTPStatus.NOT_IMPLEMENTED:
                raise
        raise ArchiveError(
            f"{self.url}: this S3 store ignores conditional puts (If-None-Match), without which two runs would lose "
            "each other's rows; use a store that honours them (AWS S3, MinIO, Ceph, R2)"
        )

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Turn what disks, buckets, Arrow and delta-rs raise into ArchiveError."""
        return storage_errors(self.url, doing)


def require_two_slashes(url: str) -> None:
    """ArchiveError where an address in a bucket would be taken for a folder named ``s3:``."""
    if _ONE_SLASH.match(url):
        raise ArchiveError("an address in a bucket begins with s3://: give it as text, for a Path drops a slash")


def s3_filesystem(options: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A filesystem of S3 that shares nothing with others; ``options`` are as those of :class:`Store`."""
    region = options.get("AWS_REGION")
    return fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        use_listings_cache=False,
        client_kwargs={"region_name": region} if region else {},
        config_kwargs={"max_pool_connections": POOL, "retries": {"mode": "adaptive", "max_attempts": 8}},
        **{S3FS_OPTIONS[name]: value for name, value in options.items() if name in S3FS_OPTIONS},
    )


def _checked(options: Mapping[str, str]) -> dict[str, str]:
    """Options by the names that both s3fs and delta-rs are told by. ArchiveError where one of them would not be."""
    checked = {}
    for given, value in options.items():
        name = str(given).upper()
        if not name.startswith("AWS_"):
            raise ArchiveError(
                f"there is no storage option {given!r}: they have the names of the environment's variables, as in "
                "{'AWS_ENDPOINT_URL': 'https://...', 'AWS_ACCESS_KEY_ID': '...', 'AWS_SECRET_ACCESS_KEY': '...'}"
            )
        if not isinstance(value, str):  # which may be a secret, and is not shown
            kind = type(value).__name__
            raise ArchiveError(f"storage option {given} is text, not {kind}: give {{'{name}': '...'}}, or leave it out")
        checked[name] = value
    if _OF_S3_ALONE in checked:
        checked["AWS_ENDPOINT_URL"] = checked.pop(_OF_S3_ALONE)
    for other in _SAME_OPTIONS.keys() & checked.keys():
        checked.setdefault(_SAME_OPTIONS[other], checked.pop(other))
    return checked


@contextmanager
def storage_errors(url: str, doing: str) -> Iterator[None]:
    """Turn what disks, buckets, Arrow and delta-rs raise into ArchiveError, of what lies at ``url``."""
    try:
        yield
    except LatentpackError:
        raise
    except BaseException as error:  # a panic of delta-rs, met where a checkpoint is damaged, is no Exception
        if not _is_foreign(error):
            raise
        # delta-rs colours its messages and spreads them over lines.
        reason = re.sub(r"\x1b\[[0-9;]*m", "", told(error))
        if system := re.search(r"Os \{ code: (\d+)", reason):  # as delta-rs prints what the system refused
            reason = os.strerror(int(system[1])).lower()
        elif "URL scheme is not allowed" in reason:
            reason = "the endpoint has no TLS; use https://, or set AWS_ALLOW_HTTP=true where you trust the network"
        elif 'failed to parse ""' in reason:
            reason += "; a variable of the environment that begins with AWS_ is empty: unset it"
        elif "Unable to locate credentials" in reason:
            reason += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif url.startswith("s3://") and isinstance(error, PermissionError):
            reason += "; check the credentials in the environment and the permissions"
        raise ArchiveError(f"{url}: cannot {doing}: {reason}") from error


def _is_foreign(error: BaseException) -> bool:
    """Whether an error came from storage or a file's content, not from a mistake in this program."""
    if isinstance(error, OSError):
        return True
    if type(error).__name__ == "PanicException":
        return True
    package = type(error).__module__.partition(".")[0]
    if package in ("pyarrow", "deltalake", "_internal", "botocore", "aiobotocore", "aiohttp"):
        return True
    # delta-rs raises bare Exception for what its kernel finds wrong.
    return type(error) is Exception and "deltalake" in sys.modules


def _make_folder(folder: Path) -> None:
    """With those above it, so that they outlive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Have what a folder lists outlive a power cut, where the system knows such a thing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

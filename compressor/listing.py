"""Streamed listings of folders and buckets, sorted by whole key: the same order wherever the same files lie.

Not here: which of the files are wanted (sources.py). fsspec's own walk and find hold a whole listing in memory.
"""

import errno
import heapq
import itertools
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

from compressor.errors import LatentpackError, SourceError
from compressor.known import FINGERPRINT_BYTES

READ_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".jps", ".insp"}  # JPEG by many names
    | {".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".avif", ".avifs", ".gif", ".jxl"}
    | {".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
RAW_EXTENSIONS = frozenset(  # of cameras; most are TIFF, whose first picture is a thumbnail
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos"}
    | {".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
# These are listed although nothing here decodes them: quarantine names them, silence would lose them
UNREAD_EXTENSIONS = RAW_EXTENSIONS | frozenset(
    {".jxr", ".hdp", ".wdp", ".jls", ".jph", ".psd", ".psb", ".tga", ".pam", ".pfm", ".ico", ".exr", ".hdr", ".dpx"}
    | {".pcx", ".sgi", ".dds", ".xcf", ".qoi", ".bpg", ".flif"}
)
PICTURE_EXTENSIONS = READ_EXTENSIONS | UNREAD_EXTENSIONS
NAMES_HELD = 32_768  # of one local directory at a time, about 8 MB
HIDDEN = "a hidden name: rename it, or give it as a source"
KEYS_A_PAGE = 1_000  # the most that S3 gives

Info = dict[str, Any]
Skip = Callable[[str, str], None]
Leave = Callable[[str], None]


def is_picture(key: str) -> bool:
    """Whether the extension is a picture's."""
    return _extension(key) in PICTURE_EXTENSIONS


def is_raw(key: str) -> bool:
    """Whether the extension is that of a camera's raw file."""
    return _extension(key) in RAW_EXTENSIONS


def _extension(key: str) -> str:
    return os.path.splitext("_" + os.path.basename(key))[1].lower()  # also of .png, which is nothing else


def is_like_picture(extension: str) -> bool:
    """Whether it is a picture's extension with something behind it, such as ``.jpg_large`` or ``.png~``."""
    return re.split(r"[^.a-z0-9]", extension)[0] in PICTURE_EXTENSIONS


def list_local(
    root: str, depth: float, skip: Skip, ignore: Skip, leave: Leave, may_hold: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, str, Info]]:
    """(key, path, info) of the regular files with a picture's extension, at most ``depth`` levels below ``root``.

    ``skip(name, reason)`` is told of broken links, pipes, links to folders elsewhere and folders that cannot be listed;
    ``ignore(name, reason)`` of hidden names, and of links to what is listed anyway or to themselves; ``leave(name)`` of
    regular files with another extension. ``may_hold(folder)``: whether what lies in it may be asked for.
    """
    whole = os.path.realpath(root)
    below = [_directory(root, "", skip, ignore, leave)]
    while below:
        entry = next(below[-1], None)
        if entry is None:
            below.pop()
            continue
        key, path, kind = entry
        if kind == "link":
            target = os.path.realpath(path)
            if os.path.commonpath([whole, target]) == whole and _is_listed(os.path.relpath(target, whole), may_hold):
                ignore(key, "a link to a folder that is listed anyway")
            else:
                skip(key, "a link to a folder is not followed: give its target as a source")
        elif kind == "folder":
            if len(below) < depth:
                below.append(_directory(path, key + "/", skip, ignore, leave))
        else:
            try:
                status = os.stat(path)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    ignore(key, "a link that leads to itself")
                else:
                    skip(key, f"the file cannot be looked at: {error.strerror}")
                continue
            if stat.S_ISREG(status.st_mode):
                yield key, path, local_info(status)
            else:  # a pipe would block its reader for ever
                skip(key, "not a regular file")


def _is_listed(folder: str, may_hold: Callable[[str], bool]) -> bool:
    """Whether a folder below the root, or the root itself, is listed without a link to it."""
    hidden = any(part.startswith(".") and part != "." for part in folder.split("/"))
    return folder == "." or (not hidden and may_hold(folder + "/"))


def _directory(directory: str, prefix: str, skip: Skip, ignore: Skip, leave: Leave) -> Iterator[tuple[str, str, str]]:
    """(key, path, kind) of one directory's entries."""
    try:
        for name, kind in _in_order(_entries(directory, prefix, ignore, leave)):
            bare = name.rstrip("/")
            yield prefix + bare, f"{directory.rstrip('/')}/{bare}", kind
    except OSError as error:
        skip(prefix or directory, f"the folder cannot be listed: {error.strerror}")


def _in_order(entries: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The same sorted; of more than ``NAMES_HELD`` the others wait in a temporary file, so that memory stays flat."""
    held = sorted(itertools.islice(entries, NAMES_HELD))
    if len(held) < NAMES_HELD:
        yield from held
        return
    with tempfile.TemporaryFile() as file:
        ends = [0]
        while held:
            file.write(b"".join(os.fsencode(f"{name}\0{kind}\n\0") for name, kind in held))
            ends.append(file.tell())
            held = sorted(itertools.islice(entries, NAMES_HELD))
        file.flush()
        yield from heapq.merge(*(_kept(file.fileno(), start, end) for start, end in itertools.pairwise(ends)))


def _kept(file: int, start: int, end: int) -> Iterator[tuple[str, str]]:
    rest = b""
    while start < end:
        data = os.pread(file, min(65_536, end - start), start)
        start += len(data)
        *whole, rest = (rest + data).split(b"\n\0")
        for one in whole:
            name, _, kind = os.fsdecode(one).partition("\0")
            yield name, kind


def _entries(directory: str, prefix: str, ignore: Skip, leave: Leave) -> Iterator[tuple[str, str]]:
    """Names with their kinds, in any order; a folder's ends in a slash, as it sorts in whole keys."""
    with os.scandir(directory) as scan:
        for entry in scan:
            name = entry.name
            try:
                folder = entry.is_dir()
            except OSError:  # a link to itself
                folder = False
            if folder:
                name += "/"
            if not (folder or is_picture(name)):
                if _is_regular(entry):
                    leave(prefix + name)
                continue
            if name.startswith("."):
                ignore(prefix + name, HIDDEN)
            else:
                yield name, "file" if not folder else "link" if entry.is_symlink() else "folder"


def _is_regular(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def list_bucket(call_s3: Callable[..., Any], root: str, prefix: str, depth: float) -> Iterator[tuple[str, str, Info]]:
    """(key, path, info) of the objects below ``root`` (``bucket/folder``) whose key begins with ``prefix``.

    ``call_s3("list_objects_v2", ...)`` is asked for one page at a time.
    """
    bucket, _, folder = root.partition("/")
    folder = folder and folder + "/"
    delimiter = {"Delimiter": "/"} if depth == 1 else {}
    for page in s3_pages(call_s3, SourceError, Bucket=bucket, Prefix=folder + prefix, **delimiter):
        for item in page.get("Contents", ()):
            yield item["Key"][len(folder) :], f"{bucket}/{item['Key']}", item


def s3_pages(call_s3: Callable[..., Any], error: type[LatentpackError], **request: Any) -> Iterator[dict[str, Any]]:
    """Pages of ``list_objects_v2``. ``error`` where a page does not say how to go on, or says the same again."""
    token = None
    while True:
        page = call_s3("list_objects_v2", MaxKeys=KEYS_A_PAGE, **request)
        yield page
        if not page.get("IsTruncated"):
            return
        before, token = token, page.get("NextContinuationToken")
        if not token or token == before:
            raise error(
                f"s3://{request['Bucket']}/{request['Prefix']}: the S3 store says that more keys follow, but not where "
                "to go on, so that none of its listings is sure to be whole"
            )
        request["ContinuationToken"] = token


def list_folders(ls: Callable[[str], list[Info]], root: str, depth: float) -> Iterator[tuple[str, str, Info]]:
    """(key, path, info) of the files below ``root`` of any file system, folder by folder through its ``ls``."""
    entries = ls(root)
    streams = [_walk(ls, root, [entry for entry in entries if entry["name"] != "."], depth)]
    if any(entry["name"] == "." for entry in entries):  # a tar of ".": the dot is no part of its keys
        streams.append(_walk(ls, ".", ls("."), depth))
    yield from heapq.merge(*streams, key=lambda found: found[0])


def _walk(
    ls: Callable[[str], list[Info]], root: str, entries: list[Info], depth: float
) -> Iterator[tuple[str, str, Info]]:
    """The files in and below ``entries`` of ``root``."""

    def ordered(entries: list[Info]) -> Iterator[Info]:
        return iter(sorted(entries, key=lambda e: e["name"].rstrip("/") + "/" * (e["type"] == "directory")))

    start = len(root.rstrip("/")) + 1 if root else 0
    below = [ordered(entries)]
    while below:
        entry = next(below[-1], None)
        if entry is None:
            below.pop()
            continue
        name = entry["name"].rstrip("/")
        if entry["type"] != "directory":
            yield name[start:], name, entry
        elif len(below) < depth and name.rstrip("/") != root.rstrip("/"):
            below.append(ordered(ls(name)))


def local_info(status: os.stat_result) -> Info:
    """What fsspec would say of a local file, with the time in nanoseconds."""
    return {"size": status.st_size, "mtime": status.st_mtime_ns}


def size_of(info: Info) -> int:
    """Bytes, by any file system's name for them."""
    return int(info.get("size", info.get("Size")) or 0)


# By worth: what changes with the content comes before what changes with a copy
_MARKS = (
    "ETag", "etag", "checksum", "md5Hash", "content_md5", "Content-MD5", "Digest", "CRC", "sha",
    "blob_id", "oid",
    "mtime", "LastModified", "Last-Modified", "last_modified", "modificationTime", "modify", "last_write_time",
    "updated", "created",
)  # fmt: skip


def _mark(info: Info) -> Any:
    return next((info[name] for name in _MARKS if info.get(name) is not None), "")


def tells_versions(info: Info) -> bool:
    """Whether a listing's entry changes when its file does."""
    return _mark(info) != ""


def fingerprint(info: Info) -> bytes:
    """5 bytes of the BLAKE2b of the best mark of a file's version that its file system gives, and its size."""
    mark = _mark(info)
    if isinstance(mark, str):
        mark = mark.strip('"')  # servers differ in whether an ETag is quoted
    return blake2b(f"{mark}|{size_of(info)}".encode(), digest_size=8).digest()[:FINGERPRINT_BYTES]

"""Files that are there whole or not at all."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED_S = 3600  # after which a file that is still being written is a killed process's: it takes minutes at most
TEMPORARY = ".latentpack-"  # how names of files that are being written begin: hidden, as no picture is listed


@contextmanager
def in_place_of(path: Path, prefix: str = TEMPORARY, lasting: bool = True) -> Iterator[Path]:
    """Where to write what is named ``path`` at the end: a reader, and a kill, leave the old file or the new one.

    The folder is there; a link at ``path`` is replaced itself. After an error ``path`` is as it was and nothing lies
    beside it; a kill may leave a file named ``prefix`` and 32 hexadecimal digits, see :func:`delete_unfinished`.

    Parameters
    ----------
    prefix
        Of a name that no other process has: not of its number, which in containers all of them share.
    lasting
        Whether the content is to outlive a power cut, which takes a few milliseconds.
    """
    temporary = path.parent / f"{prefix}{uuid.uuid4().hex}"
    try:
        yield temporary
        if lasting:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # before it has the name: after a power cut that would be of an empty file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # of a disk that is read-only, even where there is none
            temporary.unlink()
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Like :func:`in_place_of`, but folders are made if need be, and a link stays and leads to the new file."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        delete_unfinished(path.parent, UNFINISHED_S)
    with in_place_of(path) as temporary:
        yield temporary


def write_whole(path: Path, data: bytes) -> None:
    """Write a file by :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def delete_unfinished(folder: Path, older_than: float, prefix: str = TEMPORARY, rest: str = "[0-9a-f]{32}") -> int:
    """Delete what killed processes left half-written in ``folder`` at least ``older_than`` seconds ago; how many.

    ``rest`` is the pattern of what follows ``prefix`` in their names.
    """
    before = time.time() - older_than
    own = re.compile(re.escape(prefix) + rest)
    deleted = 0
    for entry in os.scandir(folder):
        if own.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # whoever was writing it has given it its name meanwhile
                if entry.stat().st_mtime <= before:
                    os.unlink(entry.path)
                    deleted += 1
    return deleted

"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of ``path`` at the end: a reader, and a kill, leave one or the other.

    Folders are made if need be; a link stays and leads to the new file. After an error ``path`` is as it was and
    nothing lies beside it.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # before it has the name: after a power cut that would be of an empty file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file by :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(data)

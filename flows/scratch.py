"""A folder for what a process needs only while it works. What a killed one left is removed by the next command.

A folder is locked while its process lives, and the system ends the lock with the process: ids of processes are given
again, and differ between containers that share a folder.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "latentpack-"
LOCKED = "locked"  # a file that is made once the folder is: one without it may be of a process that is about to lock it


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder among the temporary ones, which is gone in the end.

    OSError where none can be made.
    """
    _clear()
    lock = None
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with suppress(OSError):  # some file systems know no locks: this folder stays, should its process be killed
                lock = _lock(folder)
            if lock is not None:
                (folder / LOCKED).touch()
            yield folder
        finally:
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int:
    """A file descriptor that holds the lock until it is closed. OSError where another process holds it."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened


def _clear() -> None:
    """Remove what processes of this user left that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or another was faster
            if folder.lstat().st_uid != os.getuid() or not (folder / LOCKED).exists():
                continue
            lock = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

"""Restore and verify: an archive's pictures back as files, and every row read again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import task

from compressor.archive import Archive
from compressor.restoring import restore
from tasks.report import publish_problems
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# Both may run again from the start: files are replaced whole, and reading changes nothing.
@task(
    name="restore",
    retries=2,
    **IF_TRANSIENT,
    **NOT_KEPT,
)
def restore_pictures(
    archive_url: str,
    destination: Path,
    keys: Sequence[str] | None,
    format: str,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Restore ``keys``, or all pictures. Returns :class:`compressor.restoring.Restored` as JSON."""
    archive = Archive.open(archive_url)
    done = restore(archive, destination, keys, format, workers, on_progress)
    publish_problems(done.problems, "restore", f"of {archive.url} that could not be restored")
    return done.to_dict()


@task(
    name="verify",
    retries=2,
    **IF_TRANSIENT,
    **NOT_KEPT,
)
def verify_archive(archive_url: str, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Check every row. Returns the number of pictures and the problems found, as (key, reason)."""
    archive = Archive.open(archive_url)
    problems = [(problem.key, problem.reason) for problem in archive.verify(on_progress)]
    publish_problems(problems, "verify", f"of {archive.url} that cannot be trusted")
    return {"archive": archive.url, "pictures": len(archive), "problems": problems}

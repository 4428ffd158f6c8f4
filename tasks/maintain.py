"""Maintain: small files merged into large ones, and files deleted that no row needs any more."""

from prefect import task

from compressor.archive import Archive
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# Both may run again from the start: what the first try committed or deleted is not there to do again.
@task(name="compact", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def compact(archive_url: str) -> int:
    """Merge small files. Returns how many files fewer there are."""
    return Archive.open(archive_url).compact()


@task(name="vacuum", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def vacuum(archive_url: str, hours: int) -> int:
    """Delete files that nobody has needed for ``hours``. Returns how many."""
    return Archive.open(archive_url).vacuum(hours)

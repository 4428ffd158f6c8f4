"""Maintain: small files merged into large ones, and files deleted that no row needs any more."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from compressor.archive import Archive
from tasks.retries import retry_if_transient


# Both may run again from the start: what the first try committed or deleted is not there to do again.
@task(
    name="compact",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=retry_if_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def compact(archive_url: str) -> int:
    """Merge small files. Returns how many files fewer there are."""
    return Archive.open(archive_url).compact()


@task(
    name="vacuum",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=retry_if_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def vacuum(archive_url: str, hours: int) -> int:
    """Delete files that nobody has needed for ``hours``. Returns how many."""
    return Archive.open(archive_url).vacuum(hours)

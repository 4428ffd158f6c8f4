"""Mirror: pictures that are gone from the source are deleted from the archive, where that was asked for."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from compressor.mirroring import Mirror
from tasks.retries import retry_if_transient


# May run again from the start: what the first try deleted is not there to delete again.
@task(
    name="mirror",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=retry_if_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def delete_gone(mirror: Mirror) -> int:
    """Delete what the listing did not name. Returns how many pictures there were."""
    return mirror.delete()

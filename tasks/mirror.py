"""Mirror: pictures that are gone from the source are deleted from the archive, where that was asked for."""

from prefect import task

from compressor.mirroring import Mirror
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# May run again from the start: what the first try deleted is not there to delete again.
@task(name="mirror", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def delete_gone(mirror: Mirror) -> int:
    """Delete what the listing did not name. Returns how many pictures there were."""
    return mirror.delete()

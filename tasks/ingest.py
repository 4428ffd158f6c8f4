"""Ingest: what of a source is not in the archive yet."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from compressor.archive import Archive
from compressor.planning import Plan, plan
from compressor.sources import Source
from tasks.retries import retry_if_transient


# Listing again is cheap beside what follows, and a stale plan is worse than none: never cached.
@task(
    name="plan",
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=retry_if_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def plan_run(source: Source, archive: Archive, folder: Path, batch_size: int, limit: int | None) -> Plan:
    """List the source, subtract what the archive knows, and keep the rest in ``folder``."""
    archive.refresh()
    return plan(source, archive.known(), folder / "plan.arrow", batch_size, limit)

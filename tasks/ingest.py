"""Ingest: what of a source is not in the archive yet."""

from collections.abc import Sequence
from pathlib import Path

from prefect import task

from compressor.archive import Archive, KnownKeys
from compressor.limits import Limits
from compressor.planning import Listing, Plan, plan
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# Listing again is cheap beside what follows, and a stale plan is worse than none: never cached.
@task(name="plan", retries=3, **IF_TRANSIENT, **NOT_KEPT)
def plan_run(listing: Listing, known: KnownKeys, folder: Path, limit: int | None, wave: int) -> Plan:
    """List the next wave, subtract what the archive knows, and keep the rest in ``folder``."""
    return plan(listing, known, folder / "plan.arrow", limit, wave)


# Once a run: its waves are told apart by their keys, so what it adds itself it never lists again.
@task(name="known", retries=3, **IF_TRANSIENT, **NOT_KEPT)
def known_keys(archive: Archive, limits: Limits) -> KnownKeys:
    """What the archive holds now."""
    archive.refresh()
    return archive.known(limits)


@task(name="heal", retries=3, **IF_TRANSIENT, **NOT_KEPT)
def take_off_list(archive: Archive, keys: Sequence[str]) -> None:
    """Take pictures off the quarantine list that a listing found to be archived as they are."""
    archive.clear_quarantine(keys)

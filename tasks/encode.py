"""Encode: one batch of files into one Parquet part, and the commit that makes it visible."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from prefect import task
from prefect.tasks import exponential_backoff

from compressor.appending import commit_batch
from compressor.archive import Archive
from compressor.encoding import BatchReport, EncodeOptions, encode_batch
from compressor.planning import Batch
from compressor.sources import Source, SourceFile
from tasks.retries import IF_TRANSIENT, NOT_KEPT
from tasks.threads import pin_threads


@lru_cache(maxsize=2)
def _archive(url: str) -> Archive:
    """Opened once in a process: its codecs stay loaded. Parts are written without looking at the table."""
    return Archive.open(url)


# The archive is the checkpoint: a batch that is in it is never planned again, so there is nothing to cache. No timeout:
# it could not interrupt a worker's thread, and every request that may hang has its own.
@task(
    name="encode",
    task_run_name="encode-{name}",
    retries=2,
    **IF_TRANSIENT,
    tags={"latentpack-encode"},
    **NOT_KEPT,
)
def encode(
    name: str,
    source: Source,
    files: Sequence[SourceFile],
    archive_url: str,
    options: EncodeOptions,
    run: str,
    threads: int,
    on_progress: Callable[[int], None] | None = None,
) -> BatchReport:
    """Encode ``files`` into a part that is not visible yet."""
    pin_threads(threads)
    return encode_batch(source, files, _archive(archive_url), options, run, on_progress, threads)


# The name of the batch makes the commit idempotent: a retry whose first try did arrive changes nothing.
@task(
    name="commit",
    task_run_name="commit-{batch.name}",
    retries=3,
    **{**IF_TRANSIENT, "retry_delay_seconds": exponential_backoff(backoff_factor=1)},
    tags={"latentpack-commit"},
    **NOT_KEPT,
)
def commit(
    archive: Archive, batch: Batch, report: BatchReport, run: str, once_quarantined: frozenset[str]
) -> tuple[int, int]:
    """Make a finished batch visible, and list what failed. Returns how many rows were replaced, and how many dropped.

    ``once_quarantined`` are keys on the quarantine list; those that are archived now leave it.
    """
    keys = [file.key for file in batch.files]
    return commit_batch(archive, report, keys, batch.changed, once_quarantined, f"{run}/{batch.name}")

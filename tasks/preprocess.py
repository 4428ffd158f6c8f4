"""Preprocess for training: a batch of files into a shard of equal-sized pictures, remembered by content."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from compressor.planning import Batch
from compressor.shards import ShardConfig, prepare_shard
from compressor.sources import Source
from tasks.caching import stage_key
from tasks.retries import IF_TRANSIENT
from tasks.threads import pin_threads

VERSION = 1  # raise it when the same files and configuration give another shard


def _key(context: TaskRunContext, arguments: dict[str, Any]) -> str:
    config: ShardConfig = arguments["config"]
    return stage_key("shard", VERSION, config.digest(arguments["source"], arguments["batch"].files), {})


@task(
    name="prepare-shard",
    task_run_name="shard-{batch.name}",
    retries=3,
    **IF_TRANSIENT,
    cache_key_fn=_key,
)
def prepare(source: Source, batch: Batch, config: ShardConfig, folder: Path, threads: int) -> dict[str, Any]:
    """Prepare one shard in ``folder``. Returns a :class:`ShardRecord` as JSON."""
    pin_threads(threads)
    return asdict(prepare_shard(source, batch.files, config, folder))

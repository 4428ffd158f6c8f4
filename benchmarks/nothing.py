"""A flow of tasks that do nothing, in a module of its own since Dask's workers import it. See ``pipeline.py modes``."""

import time

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.dispatch import pool


@task(cache_policy=NO_CACHE, persist_result=False, retries=2)
def nothing(number: int) -> dict[str, int]:
    """A batch without any work."""
    return {"number": number}


@flow(persist_result=False)
def tasks_of_nothing(scheduler: str | None, workers: int, count: int) -> list[float]:
    """When each result came: seconds since 1970."""
    numbers = iter(range(count))
    with pool(scheduler, workers, count) as found:
        times = []
        for _, result in found.run(nothing, lambda: next(numbers, None), lambda number: {"number": number}):
            if isinstance(result, Exception):
                raise result
            times.append(time.time())
        return times

"""How tasks are tried again: what storage or the network caused, and nothing else; and what of them is kept."""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from compressor.errors import LatentpackError, causes
from compressor.retrying import is_transient


def caused_by_storage(error: BaseException | None) -> bool:
    """Whether ``error`` or what it was raised from may be gone at the next try."""
    return any(map(is_transient, causes(error)))


def retry_if_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A ``retry_condition_fn``: a damaged picture or a missing codec would fail again, so it is not retried."""
    try:
        state.result()
    except Exception as error:
        return caused_by_storage(error)
    return False


def retry_unless_told(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A ``retry_condition_fn``: what a person is told to mend would fail again, but for storage that may recover."""
    try:
        state.result()
    except Exception as error:
        return caused_by_storage(error) or not isinstance(error, LatentpackError)
    return False


def body_with_retries(task: Task[..., Any]) -> Callable[..., Any]:
    """The body of ``task``, which tries again as Prefect would have it: for where no server of it can be reached."""
    delays = task.retry_delay_seconds
    each = list(delays) if isinstance(delays, Sequence) else [float(delays or 0)] * (task.retries or 0)
    return partial(_try_again, task.fn, each, task.retry_jitter_factor or 0.0, task.retry_condition_fn)


def _try_again(
    body: Callable[..., Any],
    delays: Sequence[float],
    jitter: float,
    condition: Callable[..., Any] | None,
    **arguments: Any,
) -> Any:
    for delay in delays:
        try:
            return body(**arguments)
        except Exception as error:
            if condition and not condition(None, None, Failed(data=error)):
                raise
        time.sleep(delay * random.uniform(1, 1 + jitter))
    return body(**arguments)


def is_of_prefect(error: BaseException | None) -> bool:
    """Whether an error is Prefect's own, or comes from one: its server is gone, or did not let a task start."""
    kinds = [kind for one in causes(error) for kind in type(one).__mro__]
    return any(kind.__module__.startswith(("httpx", "httpcore", "prefect.concurrency")) for kind in kinds) or any(
        str(one).startswith("Failed to reach API") for one in causes(error)
    )


# Options of ``task``, beside the number of ``retries``.
IF_TRANSIENT: dict[str, Any] = {
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": retry_if_transient,
}
NOT_KEPT: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

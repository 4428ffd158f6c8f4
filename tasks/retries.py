"""Which failed task runs are worth another try: those that storage or the network caused, and nothing else."""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from compressor.retrying import is_transient


def caused_by_storage(error: BaseException | None) -> bool:
    """Whether ``error`` or what it was raised from may be gone at the next try."""
    while error is not None:
        if is_transient(error):
            return True
        error = error.__cause__
    return False


def retry_if_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A ``retry_condition_fn``: a damaged picture or a missing codec would fail again, so it is not retried."""
    try:
        state.result()
    except Exception as error:
        return caused_by_storage(error)
    return False

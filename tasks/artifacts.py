"""What several stages show in Prefect alike: keys of artifacts, and how far something is. None of it may end a run."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from compressor.wording import duration

if TYPE_CHECKING:
    from compressor.training import TrainingState

KEY_LENGTH = 90


def slug(name: str) -> str:
    """A name as artifact keys want it: lower case and dashes, the end of a long one."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-KEY_LENGTH:]


def address_slug(url: str) -> str:
    """The same for what holds an address, with a digest: others may differ in what a key cannot hold."""
    return f"{slug(url)}-{hashlib.blake2b(url.encode(), digest_size=3).hexdigest()}".strip("-")


@contextmanager
def not_vital(what: str) -> Iterator[None]:
    """Log what fails: the work that is shown is done all the same."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s cannot be shown: %s: %s", what, type(error).__name__, error)


def progress_artifact(key: str, description: str) -> Callable[[float, str], None]:
    """An artifact that shows progress, and what tells it percent and a description from then on."""
    artifact: UUID | None = None
    with not_vital("progress"):
        # A coroutine is only what a caller in an event loop would get.
        artifact = cast(UUID, create_progress_artifact(0.0, key=key, description=description))

    def show(percent: float, description: str) -> None:
        nonlocal artifact
        shown, artifact = artifact, None  # one that has failed, or was deleted by a person, is not asked again
        if shown is not None:
            with not_vital("progress"):
                update_progress_artifact(shown, percent, description)
                artifact = shown

    return show


def training_progress(
    name: str, also: "Callable[[TrainingState, float], None] | None" = None
) -> "Callable[[TrainingState, float], None] | None":
    """Shows how far a training is as an artifact, and tells ``also``; no artifact where Prefect does not watch."""
    if not TaskRunContext.get():
        return also
    tell = progress_artifact(f"training-{address_slug(name)}", f"training {name}")
    started = time.monotonic()

    def show(state: "TrainingState", done: float) -> None:
        last = state.history[-1] if state.history else {}
        told = [
            f"training {name}: step {state.step:,}",
            *(f"{measure} {last[measure]:.5g}" for measure in last if measure != "step"),
        ]
        left = f"{duration((time.monotonic() - started) * (1 - done) / done)} left" if 0 < done < 1 else ""
        tell(round(100 * done, 1), ", ".join(filter(None, [*told, left])))
        if also:
            also(state, done)

    return show

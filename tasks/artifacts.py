"""What several stages show in Prefect alike: keys of artifacts, and how far a training is."""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from compressor.wording import duration

if TYPE_CHECKING:
    from compressor.training import TrainingState

KEY_LENGTH = 100


def slug(name: str) -> str:
    """A name or address as artifact keys want it: lower case and dashes, the end of a long one."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-KEY_LENGTH:]


def training_progress(name: str) -> "Callable[[TrainingState, float], None]":
    """Shows how far a training is as an artifact; nowhere, where a worker runs it that Prefect does not watch."""
    if not TaskRunContext.get():
        return lambda state, done: None
    artifact = create_progress_artifact(0.0, key=f"training-{slug(name)}", description=f"training {name}")
    started = time.monotonic()

    def show(state: "TrainingState", done: float) -> None:
        last = state.history[-1] if state.history else {}
        told = [
            f"training {name}: step {state.step:,}",
            *(f"{measure} {last[measure]:.5g}" for measure in last if measure != "step"),
        ]
        left = f"{duration((time.monotonic() - started) * (1 - done) / done)} left" if 0 < done < 1 else ""
        update_progress_artifact(artifact, round(100 * done, 1), ", ".join(filter(None, [*told, left])))

    return show

"""How far a worker of a Dask cluster is with a task, told to whoever gave it the task."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass

TOPIC = "latentpack-progress"  # one for all runs: a scheduler keeps so many events of each for as long as it runs
EVERY_S = 1.0


@dataclass
class Teller:
    """Given to a task as its callback: it tells the scheduler how much of ``item`` is done, once a second at most.

    A worker that cannot tell works on all the same.
    """

    item: str
    _told: float = -math.inf  # before any clock, on whatever machine this comes to be called

    def __call__(self, done: int) -> None:
        from distributed import get_worker

        if time.monotonic() - self._told < EVERY_S:
            return
        self._told = time.monotonic()
        with suppress(Exception):
            get_worker().log_event(TOPIC, {"item": self.item, "done": done})

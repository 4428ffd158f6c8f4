"""Where the time of a run or a batch goes."""

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager


class Clock:
    """Adds up seconds by stage.

    Parameters
    ----------
    seconds
        What they are added to; a dictionary of its own where None.
    """

    def __init__(self, seconds: MutableMapping[str, float] | None = None) -> None:
        self.seconds = {} if seconds is None else seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

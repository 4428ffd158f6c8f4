"""Processes that take a part of one call's work, such as decoding: a thread of PyTorch's each."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def processes(workers: int, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool in each process of which ``start`` is called first. What has not begun at the end is not done any more."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, context, _start, (start, *arguments)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(start: Callable[..., None], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    start(*arguments)

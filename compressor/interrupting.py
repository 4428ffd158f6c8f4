"""Ctrl-C held back while something must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """``heard`` once there was one: end soon."""

    heard: bool = False


@contextmanager
def interrupt_held() -> Iterator[Interrupt]:
    """Have the first Ctrl-C wait: KeyboardInterrupt comes at the end of the block, and it should end early.

    What a second one does is up to whoever handles them: Python raises at once. Outside the main thread nothing
    changes, since no Ctrl-C comes there.
    """
    found = Interrupt()
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield found
        return

    def hear(*arguments: object) -> None:
        try:
            handler(*arguments)  # type: ignore[arg-type] # as it came
        except KeyboardInterrupt:
            if found.heard:
                raise
            found.heard = True

    signal.signal(signal.SIGINT, hear)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, handler)
    if found.heard:
        raise KeyboardInterrupt

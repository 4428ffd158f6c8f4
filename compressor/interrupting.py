"""Ctrl-C, and SIGTERM where it is taken for one, held back while something must not be left half done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Interrupt:
    """``heard`` once there was one: end soon."""

    heard: bool = False


@contextmanager
def interrupt_held() -> Iterator[Interrupt]:
    """Have the first one wait: KeyboardInterrupt comes at the end of the block, and it should end early.

    What a second one does is up to whoever handles them: Python raises at once. Outside the main thread nothing
    changes, since no signal comes there.
    """
    found = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def held(handler: Callable[..., Any]) -> Callable[..., None]:
        def hear(*arguments: object) -> None:
            try:
                handler(*arguments)
            except KeyboardInterrupt:
                if found.heard:
                    raise
                found.heard = True

        return hear

    before = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))
    }
    for number, handler in before.items():
        signal.signal(number, held(handler))
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if found.heard:
        raise KeyboardInterrupt

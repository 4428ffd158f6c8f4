"""Ctrl-C, or what is taken for one, held back while something must not be left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Interrupt:
    """``heard`` once there was one: end soon."""

    heard: bool = False
    raised: BaseException | None = None


@contextmanager
def interrupt_held() -> Iterator[Interrupt]:
    """Have the first interrupt wait: what its handler raises comes at the end of the block, which should end early.

    What a second one does is up to whoever handles them: Python raises at once. Outside the main thread nothing
    changes, since no signal comes there. A signal that nobody handles ends the process as ever.
    """
    found = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}

    def hear(number: int, frame: FrameType | None) -> None:
        try:
            held[signal.Signals(number)](number, frame)
        except BaseException as error:  # of SIGTERM within a flow it is an exception of Prefect's
            if found.heard:
                raise
            found.heard, found.raised = True, error

    for number in held:
        signal.signal(number, hear)
    try:
        yield found
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if found.raised:
        raise found.raised

"""Ctrl-C, SIGTERM of whoever ends a job, or SIGHUP of a terminal that closes: once, it has a command end in order.

The next would break that off.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from compressor.interrupting import ENDING
from flows.exit_codes import INTERRUPTED

PATIENCE_S = 10.0  # for which a command may end in order, whoever goes on pressing
TOLD = "\ninterrupted; what is done is kept: repeat the command to go on from there"

_heard: list[float] = []  # when


def interrupt_once() -> None:
    """Have them do so in this process, unless they are ignored: as a shell has jobs in the background do of Ctrl-C, and
    ``nohup`` of SIGHUP.
    """
    for number in ENDING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _interrupt)


def interrupted() -> bool:
    """Whether there was one: some libraries, such as pydantic, raise an error of their own in its place."""
    return bool(_heard)


@contextmanager
def heeded() -> Iterator[None]:
    """Have an error that a library raised in place of KeyboardInterrupt be that again."""
    try:
        yield
    except Exception as error:
        if interrupted():
            raise KeyboardInterrupt from error
        raise


def _interrupt(*_: object) -> None:
    _heard.append(time.monotonic())
    if len(_heard) == 1:
        raise KeyboardInterrupt
    if _heard[-1] - _heard[0] > PATIENCE_S:  # the end hangs; a kill loses a batch, or a minute of training
        _say(TOLD)
        os._exit(INTERRUPTED)
    if len(_heard) == 2:
        _say(f"\nending; should that hang, Ctrl-C after {PATIENCE_S:g} seconds ends it at once")


def _say(text: str) -> None:
    """On stderr, past its buffer, which the signal may have come in the midst of."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())

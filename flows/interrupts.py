"""Ctrl-C, SIGTERM of whoever ends a job, or SIGHUP of a terminal that closes: once, it has a command end in order.

The next would break that off.
"""

import os
import signal
import threading
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
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not ours
    threading.Thread(target=_end_what_hangs, args=(heard,), daemon=True).start()


def _end_what_hangs(heard: int) -> None:
    """End the process by the same rule where Python does not get to :func:`_interrupt`.

    That takes the main thread, which may wait for minutes in a library, such as delta-rs for a store that is silent.
    """
    first = None
    while numbers := os.read(heard, 1):
        if numbers[0] not in ENDING or signal.getsignal(numbers[0]) is not _interrupt:
            continue
        now = time.monotonic()
        first = first or now
        if now - first > PATIENCE_S:
            time.sleep(1)  # in which the main thread does it, if it can
            _say(TOLD)
            os._exit(INTERRUPTED)


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

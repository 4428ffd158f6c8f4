"""Which failures of storage are worth another try, and how long to wait before it."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from compressor.errors import s3_status

ATTEMPTS = 5
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0

TRANSIENT_CODES = {
    errno.EBUSY, errno.EAGAIN, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT,
    errno.ENETUNREACH, errno.EHOSTUNREACH, getattr(errno, "EREMOTEIO", errno.EIO), errno.ESTALE,
}  # fmt: skip
# By name, so that no cloud library is imported to find out that it was not used
TRANSIENT_NAMES = {
    "HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead",
    "ResponseParserError", "TimeoutError", "FSTimeoutError",
}  # fmt: skip


# delta-rs tells of its connections in words alone, and does not ask again where an answer's body breaks off
TRANSIENT_WORDS = ("request or response body error", "error sending request", "end of file before message length")

T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T:
    """What ``call`` returns, tried again after transient failures."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        back_off(attempt)
    return call()


def is_transient(error: object) -> bool:
    """Whether the same request may succeed later; of what is no exception, False."""
    if not isinstance(error, BaseException):
        return False
    if any(words in str(error) for words in TRANSIENT_WORDS):
        return True
    if any(kind.__name__ in TRANSIENT_NAMES for kind in type(error).__mro__):
        return True
    status = s3_status(error) or getattr(error, "status", None)
    if isinstance(status, int) and (status >= 500 and status != 501 or status in (408, 429)):
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT_CODES


def back_off(attempt: int) -> None:
    """Sleep after the failed ``attempt`` (0, 1, ...): exponential with full jitter, so that workers spread out."""
    time.sleep(random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)))

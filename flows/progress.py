"""Where flows tell how far they are: whoever starts one may listen, and nobody has to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Listener:
    """Shows progress to a person; this one to nobody."""

    def stage(self, name: str, total: int | None = None, unit: str = "pictures") -> None:
        """A new stage begins; ``total`` None where it is not known how much there is to do."""

    def advance(self, done: int, note: str = "") -> None:
        """``done`` of the stage's total are done."""


_listener: ContextVar[Listener] = ContextVar("listener", default=Listener())  # noqa: B039 - it has no state


def listener() -> Listener:
    """Who listens."""
    return _listener.get()


@contextmanager
def listening(to: Listener) -> Iterator[None]:
    """Have flows started within tell ``to``."""
    token = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(token)


def on_progress(stage: str, unit: str = "pictures") -> Callable[[int, int], None]:
    """A callback (done, total) for compressor's long calls, that tells the listener."""
    heard = listener()
    started: list[int] = []

    def tell(done: int, total: int) -> None:
        if not started:
            heard.stage(stage, total, unit)
            started.append(total)
        heard.advance(done)

    return tell

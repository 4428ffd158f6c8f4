"""What a person at a terminal sees: a progress bar with the time left, and tables. All but results goes to stderr."""

import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from compressor.errors import LatentpackError
from compressor.wording import duration, legible, pace
from flows.progress import Listener, listening

LINE_EVERY_S = 30.0
_WIDEST = 10_000  # characters of a line
_BAR = 40  # characters at most, and a quarter of a line: figures count for more
SAID_ELSEWHERE = "said_elsewhere"  # attribute of log records of what the command line says by itself


class Terminal(Listener):
    """A listener that draws a bar on a terminal, and writes a line now and then elsewhere. Use as a context."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._progress: Any = None
        self._task: Any = None
        self._name, self._unit, self._note = "", "", ""
        self._total: int | None = None
        self._done = 0
        self._started = self._told = time.monotonic()

    def __enter__(self) -> "Terminal":
        if self.console.is_terminal and not self.console.is_dumb_terminal:  # which draws nothing
            from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
            from rich.text import Text

            bar, width, figures = min(_BAR, self.console.width // 4), self.console.width, self._figures

            class Figures(ProgressColumn):
                """Those that fit beside the name and the bar: a figure that is cut is a wrong one."""

                def render(self, task: Task) -> Text:
                    return Text(fitting(figures(task.elapsed), width - len(task.description) - bar - 3), no_wrap=True)

            columns = TextColumn("{task.description}"), BarColumn(bar), Figures()
            self._progress = Progress(*columns, console=self.console, transient=True, redirect_stdout=False)
            self._progress.start()
        return self

    def __exit__(self, *args: object) -> None:
        if self._progress:
            self._progress.stop()

    def stage(self, name: str, total: int | None = None, unit: str = "pictures") -> None:
        """See :class:`flows.progress.Listener`."""
        now = time.monotonic()
        if self._name and not self._progress and now - self._started >= LINE_EVERY_S:  # this may be as long
            warn(f"{name} ...")
        self._name, self._total, self._unit, self._done, self._note = name, total, unit, 0, ""
        self._started = self._told = now
        if self._progress:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=total)

    def advance(self, done: int, note: str = "") -> None:
        """See :class:`flows.progress.Listener`."""
        self._done, self._note = done, note
        now = time.monotonic()
        if self._progress:
            self._progress.update(self._task, completed=done)
        elif now - self._told >= LINE_EVERY_S:
            self._told = now
            warn(f"{self._name}: {', '.join(filter(None, self._figures(None)))}")

    def _figures(self, elapsed: float | None) -> list[str]:
        """How far the stage is, the most important first; what is empty is not known."""
        of = f" of {self._total:,}" if self._total and self._unit != "%" else ""
        unit = f" {self._unit}" if self._unit == "%" or not self._progress else ""
        rate = self._done / max(1e-9, time.monotonic() - self._started)
        left = f"{duration((self._total - self._done) / rate)} left" if self._total and rate else ""
        speed = pace(rate) if rate and self._unit != "%" else ""
        return [f"{self._done:,}{of}{unit}", left, self._note, speed, "" if elapsed is None else duration(elapsed)]


def fitting(parts: Iterable[str], room: int) -> str:
    """As many of the parts as there is room for, the first ones first.

    >>> fitting(["12 of 345", "", "9 min left", "3 quarantined", "7/s"], 26)
    '12 of 345, 9 min left, 7/s'
    """
    line = ""
    for part in filter(None, parts):
        longer = f"{line}, {part}" if line else part
        if len(longer) <= room:
            line = longer
    return line


_CONNECTIONS = ("prefect.events", "prefect._internal", "EventsWorker")


class _ForPeople(logging.Filter):
    """Passes what a person can use: errors come with a traceback, and the command line says them in its own words."""

    def filter(self, record: logging.LogRecord) -> bool:
        """False for errors, for what Prefect says of its own connections, and for what is said in other words."""
        if hasattr(record, SAID_ELSEWHERE):
            return False
        return record.levelno < logging.ERROR and not record.name.startswith(_CONNECTIONS)


def quieten() -> None:
    """Keep Prefect's tracebacks off the console, though not from its server. Call once it is imported."""
    from prefect.logging.handlers import PrefectConsoleHandler

    logging.getLogger("prefect._internal.concurrency").setLevel(logging.CRITICAL)
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.addFilter(_ForPeople())


def warn(text: str) -> None:
    """A line for people, beside whatever stdout carries. What becomes of it changes nothing of what is done."""
    try:
        if sys.stderr:  # or print would take stdout
            print(legible(text), file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def out(text: str) -> None:
    """A result's line or lines, on stdout. LatentpackError where it cannot be written."""
    with _written():
        print(text)


def out_each(texts: Iterable[str]) -> None:
    """Results as they come, each on a line of its own, while somebody reads them. Errors as of :func:`out`."""
    with _written():
        for text in texts:
            print(text)


def flush() -> None:
    """Write what stdout still holds. Errors as of :func:`out`."""
    with _written():
        if sys.stdout:
            sys.stdout.flush()


@contextmanager
def _written() -> Iterator[None]:
    """A reader who has seen enough, such as ``head``, is no error: the rest is dropped."""
    try:
        yield
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as error:
        _drop(sys.stdout)
        raise LatentpackError(
            f"cannot write the result to standard output: {error.strerror or error}; what is done is kept"
        ) from error


def _drop(stream: TextIO) -> None:
    """Have ``stream`` lead nowhere, or the interpreter would try again at its end, and fail."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # it may be no file
        os.dup2(nowhere.fileno(), stream.fileno())


def tell(*columns: str) -> None:
    """A line on stdout, a tab between columns."""
    out("\t".join(map(legible, columns)))


def print_rows(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and values under a title, in two columns, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    there = Console()
    # Nothing is folded where no terminal limits the width.
    width = there.width if there.is_terminal else _WIDEST
    text = io.StringIO()
    console = Console(highlight=False, markup=False, width=width, file=text, force_terminal=there.is_terminal)
    console.print(table)
    out("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


@contextmanager
def watching(quiet: bool) -> Iterator[None]:
    """Show the progress of flows run within, unless ``quiet``."""
    if quiet:
        yield
        return
    with Terminal() as terminal, listening(terminal):
        yield

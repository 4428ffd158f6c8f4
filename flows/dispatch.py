"""Batches to where they are worked on: this process, processes of this machine, or a Dask cluster by address.

A bounded window of batches is under way at any time, so that neither futures nor batches pile up in the driver.
"""

import json
import os
import queue
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import psutil
from prefect import Task, get_run_logger
from prefect.settings import get_current_settings

from compressor.errors import LatentpackError, told
from compressor.wording import duration
from flows.progress import listener
from flows.worker_progress import TOPIC, Teller
from tasks.home import is_watched
from tasks.retries import body_with_retries

if TYPE_CHECKING:
    from distributed import Client
    from prefect_dask import DaskTaskRunner

T = TypeVar("T")
Hear = Callable[[T, int], None]  # what was taken, and how much of it is done
AHEAD = 2  # batches under way for each worker: one in work, one that it finds waiting
CONNECT_S = 30
FIRST_WORKER_S = 120  # an adaptive cluster may have to start a machine first
LOOK_S = 30.0  # without news, before one looks whether there are workers
WITHOUT_WORKER_S = 900.0  # machines that are cheap are taken away and given again
KEPT_BYTES = 2**28  # of freed memory that a worker keeps for itself


class UndeclaredError(LatentpackError):
    """No worker of a cluster declares what is asked for."""


class Pool(Protocol):
    """A place to run tasks."""

    @property
    def workers(self) -> int:
        """How many tasks run at the same time."""

    def run(
        self,
        task: Task[..., Any],
        take: Callable[[], T | None],
        arguments: Callable[[T], dict[str, Any]],
        hear: Hear[T] | None = None,
    ) -> Iterator[tuple[T, Any]]:
        """Run ``task`` on what ``take`` gives until it gives None, and yield each with its result or its exception.

        ``take`` is asked again after each result, so a caller may put back what has failed. A task that is to be
        heard of has a parameter ``on_progress``, a callable of how much is done: ``hear`` is called with the same.
        """


class ThisProcess:
    """One batch after another, here: no start-up."""

    workers = 1

    def run(
        self,
        task: Task[..., Any],
        take: Callable[[], T | None],
        arguments: Callable[[T], dict[str, Any]],
        hear: Hear[T] | None = None,
    ) -> Iterator[tuple[T, Any]]:
        """See :class:`Pool`."""
        while (item := take()) is not None:
            telling = {"on_progress": partial(hear, item)} if hear else {}
            try:
                result: Any = task(**arguments(item), **telling)
            except Exception as error:  # the caller knows which end the run and which only the batch
                result = error
            yield item, result


class DaskPool:
    """A Dask cluster, through Prefect's task runner.

    Parameters
    ----------
    runner
        A started ``DaskTaskRunner``.
    workers
        Threads that work; None: as many as the cluster has at the time, which grows where it adapts to work that waits.
    tracked
        Whether workers can reach the Prefect server, and will later. If not, they run the tasks' bodies alone, with the
        same retries.
    resources
        What a worker must declare (``dask worker --resources``) to be given a task, and how much of it one takes.
    """

    def __init__(
        self, runner: Any, workers: int | None, tracked: bool, resources: dict[str, float] | None = None
    ) -> None:
        self._runner = runner
        self._workers = workers
        self._tracked = tracked
        self._resources = resources or {}

    @property
    def workers(self) -> int:
        """Threads that work now. LatentpackError where a cluster's scheduler is gone."""
        with _scheduler_there():
            return self._workers or max(1, sum(self._runner.client.nthreads().values()))

    def _submit(self, task: Task[..., Any], arguments: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
        """The Dask future, and what gives its result or raises."""
        import dask

        with dask.annotate(**({"resources": self._resources} if self._resources else {})):
            if not self._tracked:
                future = self._runner.client.submit(body_with_retries(task), **arguments, pure=False)
                return future, future.result
            tracked = self._runner.submit(task, arguments)
            return tracked.wrapped_future, tracked.result

    def run(
        self,
        task: Task[..., Any],
        take: Callable[[], T | None],
        arguments: Callable[[T], dict[str, Any]],
        hear: Hear[T] | None = None,
    ) -> Iterator[tuple[T, Any]]:
        """See :class:`Pool`."""
        # What is under way, with how much is done of it, None at its end: threads of Dask's put it in.
        news: queue.Queue[tuple[str, int | None]] = queue.Queue()
        running: dict[str, tuple[T, Any, Callable[[], Any]]] = {}
        if hear:
            self._runner.client.subscribe_topic(TOPIC, lambda event: news.put((event[1]["item"], event[1]["done"])))
        try:
            while True:
                window = AHEAD * self.workers
                while len(running) < window and (item := take()) is not None:
                    name = uuid.uuid4().hex
                    telling = {"on_progress": Teller(name)} if hear else {}
                    future, result_of = self._submit(task, arguments(item) | telling)
                    running[name] = item, future, result_of
                    future.add_done_callback(lambda _, name=name: news.put((name, None)))
                if not running:
                    return
                name, done = self._next(news)
                if done is not None:
                    if hear and name in running:  # not of another run on the cluster
                        hear(running[name][0], done)
                    continue
                item, _, result_of = running.pop(name)
                try:
                    result = result_of()
                except Exception as error:  # of the task, or of Dask where a worker is lost
                    result = error
                yield item, result
        finally:
            if running:
                self._runner.client.cancel([future for _, future, _ in running.values()], force=True)

    def _next(self, news: "queue.Queue[T]") -> T:
        """The next of ``news``. LatentpackError where for too long no worker has been left that could bring any."""
        alone = 0.0  # since when
        while True:
            try:
                return news.get(timeout=LOOK_S)
            except queue.Empty:
                pass
            with _scheduler_there():
                served = declared(self._runner.client, self._resources)
            if served:
                alone = 0.0
            elif not alone:
                alone = time.monotonic()
                get_run_logger().warning(
                    "the Dask cluster has no worker left for this work; waiting %s for one", duration(WITHOUT_WORKER_S)
                )
            elif time.monotonic() - alone > WITHOUT_WORKER_S:
                raise LatentpackError(
                    f"the Dask cluster has had no worker for this work for {duration(WITHOUT_WORKER_S)}: start some, "
                    "then repeat the command; what is archived stays"
                )


@contextmanager
def _scheduler_there() -> Iterator[None]:
    """LatentpackError where a cluster's scheduler is gone."""
    try:
        yield
    except Exception as error:  # OSError, or what a client raises that has given up
        raise LatentpackError(
            f"the Dask scheduler is gone ({told(error)}): start it and its workers again, then repeat the command; "
            "what is archived stays"
        ) from error


@contextmanager
def dask_pool(scheduler: str | None, workers: int, resources: dict[str, float] | None = None) -> Iterator[DaskPool]:
    """Workers of the cluster at ``scheduler``, or ``workers`` processes of one thread each on this machine.

    LatentpackError where no worker can be reached, UndeclaredError where none of the cluster's declares ``resources``:
    Dask would wait for one for ever.
    """
    import dask
    from distributed import Security
    from prefect_dask import DaskTaskRunner

    settings = {
        "distributed.scheduler.allowed-failures": 0,  # the flow looks for the culprit itself
        "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
        "distributed.worker.daemon": True,
        # Pages that name what is at work, to whoever asks
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        # A worker that is missing 15 seconds after a loss, for it was lost once more, would never be started again.
        "distributed.deploy.lost-worker-timeout": "1000h",
        # A profile of what threads do, a hundred times a second, and a clock that ticks fifty times: with batches of
        # seconds nobody looks at them, and they took a tenth of the time.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        # Dask has workers give memory back at once. A network asks for the same megabytes again and again, and the
        # page faults cost more than its arithmetic: three times as long for two workers as for one without them.
        "distributed.nanny.pre-spawn-environ": {
            **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
            "MALLOC_ARENA_MAX": 1,
            "MALLOC_MMAP_THRESHOLD_": KEPT_BYTES,
            "MALLOC_TRIM_THRESHOLD_": KEPT_BYTES,
        },
    }
    if scheduler:
        options: dict[str, Any] = {"address": scheduler}
    else:
        cluster = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "dashboard_address": "127.0.0.1:0",
            "scheduler_kwargs": {"dashboard": False},
            "silence_logs": "ERROR",
            "env": _worker_environment(),
            "security": Security.temporary(),  # a worker runs what it is sent, and other users reach its port
        }
        options = {"cluster_class": "distributed.LocalCluster", "cluster_kwargs": cluster}
    if scheduler:
        listener().stage(f"waiting for a worker of {scheduler}")
    where = scheduler or "this machine"
    with dask.config.set(settings), ExitStack() as stack:
        try:
            with _deaf_to_interrupts():
                runner = stack.enter_context(DaskTaskRunner(**options))
                client = _client(runner)  # starts the cluster
            # Work that waits, unlike waiting for a worker, has an adaptive cluster start one.
            first = client.submit(int, pure=False)
            try:
                first.result(timeout=FIRST_WORKER_S)
            except TimeoutError as error:
                raise LatentpackError(
                    f"the Dask scheduler at {where} answers, but no worker was free in {FIRST_WORKER_S} s: start one "
                    f"with 'dask worker {where}'"
                ) from error
        except (OSError, TimeoutError, ValueError) as error:  # the last of an address that is none
            raise LatentpackError(
                f"no Dask worker can be reached at {where} ({error}); check --scheduler, such as tcp://10.0.0.5:8786"
            ) from error
        if resources and not declared(client, resources):
            asked = ",".join(f"{name}={amount:g}" for name, amount in resources.items())
            raise UndeclaredError(
                f"no worker of the Dask cluster at {scheduler} declares {asked}; start one with: "
                f"dask worker {scheduler} --nthreads 1 --resources {asked}"
            )
        # A private server is gone with its command, and a worker that knows it would look for it ever after.
        reached = is_watched() and (_is_local(scheduler or "") or not _is_local(get_current_settings().api.url or ""))
        yield DaskPool(runner, None if scheduler else workers, not scheduler or reached, resources)


def _client(runner: "DaskTaskRunner") -> "Client":
    """The client of a pool, asked for twice: distributed gives the thread of its event loop 10 s to start.

    LatentpackError where it takes longer, which distributed tells by an AssertionError without a word.
    """
    with suppress(AssertionError):
        return runner.client
    try:
        return runner.client
    except AssertionError as error:
        raise LatentpackError(
            "this machine is too busy, or short of memory, to start a thread within 10 s: free some of it, then "
            "repeat the command"
        ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Threads and processes that start within never hear Ctrl-C: a terminal tells all, this process ends the others."""
    resource_tracker.ensure_running()  # which would let the signal through again where it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def declared(client: Any, resources: dict[str, float]) -> bool:
    """Whether a worker of a cluster declares at least these resources; with none, whether there is a worker."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return any(
        all(worker.get("resources", {}).get(name, 0) >= amount for name, amount in resources.items())
        for worker in workers
    )


def _worker_environment() -> dict[str, str]:
    """Without a server that takes their logs, workers leave it to the flow to say what went wrong."""
    return {} if get_current_settings().logging.to_api.enabled else {"PREFECT_LOGGING_LEVEL": "CRITICAL"}


def _is_local(url: str) -> bool:
    """Whether only this machine can reach a URL."""
    return urlsplit(url).hostname in (None, "localhost", "127.0.0.1", "::1")


@contextmanager
def pool(
    scheduler: str | None, workers: int, batches: int, apart: bool = False, mark: Path | None = None
) -> Iterator[Pool]:
    """The pool that suits: a cluster where one is named or there is work for several processes.

    Parameters
    ----------
    apart
        Work in no case in this process: a picture is known, or feared, to end the process that decodes it.
    mark
        A file that is there while this process works, and stays where that is killed: see :func:`was_killed`.
    """
    if scheduler is None and not apart and (workers == 1 or batches <= 1):
        with _leaving(mark):
            yield ThisProcess()
    else:
        with dask_pool(scheduler, min(workers, batches)) as found:
            yield found
        if mark:  # whoever was killed before, this run got through
            with suppress(OSError):
                mark.unlink()


def was_killed(mark: Path) -> bool:
    """Whether a process that left ``mark`` (see :func:`pool`) was killed while it worked."""
    try:
        left = json.loads(mark.read_text())
        return psutil.Process(left["pid"]).create_time() != left["started"]  # pids are given again
    except psutil.NoSuchProcess:
        return True
    except (OSError, ValueError, LookupError, TypeError, psutil.Error):  # no mark, or none that tells anything
        return False


@contextmanager
def _leaving(mark: Path | None) -> Iterator[None]:
    if mark:
        with suppress(OSError):  # a run goes on without
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time()}))
    try:
        yield
    finally:
        if mark:
            with suppress(OSError):
                mark.unlink()

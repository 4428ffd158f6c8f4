"""Where batches are worked on: processes and Dask clusters, whose losses lose no picture and blame none."""

import http.client
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from compressor.archive import Archive
from compressor.artifact import parse
from compressor.errors import CRASHED, CodecError, LatentpackError
from compressor.parquet import QuarantineRow
from compressor.planning import Batch
from flows.parameters import TrainParameters
from tasks.home import UNWATCHED
from tests.runs import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.mark.parametrize(("limit", "batches"), [(2**24, 1), (100, 2)])
def test_few_pictures_of_many_bytes_are_work_for_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, batches: int
) -> None:
    import flows.pipeline

    asked: list[int] = []

    def pool(scheduler: str | None, workers: int, batches: int, *rest: Any) -> Any:
        asked.append(batches)
        return real(scheduler, 1, 1)

    real = flows.pipeline.pool
    monkeypatch.setattr(flows.pipeline, "pool", pool)
    monkeypatch.setattr(flows.pipeline, "SMALL_BYTES", limit)
    assert archive_it(write_pictures(tmp_path / "in", 4), tmp_path / "archive", workers=2)["archived"] == 4
    assert asked == [batches]


def held_signals() -> set[int]:
    return {int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def listening() -> set[int]:
    """Ports of this process and of all that it has started."""
    here = psutil.Process()
    found = [one for process in (here, *here.children(True)) for one in process.net_connections("tcp")]
    return {one.laddr.port for one in found if one.status == "LISTEN"}


def test_processes_leave_ctrl_c_to_the_command_and_other_users_out() -> None:
    """A terminal sends it to all, and theirs would end in tracebacks. Every user of a machine reaches its ports."""
    from distributed import Client

    from flows.dispatch import dask_pool

    before = listening()
    with dask_pool(None, 1) as pool:
        client = pool._runner.client
        assert signal.SIGINT in client.submit(held_signals, pure=False).result()
        assert signal.SIGINT not in held_signals()
        about = client.scheduler_info()
        ((worker, told),) = about["workers"].items()
        for address in (about["address"], worker):
            with pytest.raises((OSError, TypeError)):
                Client(address.replace("tls://", "tcp://"), timeout=1)
        ports, answers = listening() - before, []
        for port, page in itertools.product(ports, ("info/main/workers.html", "metrics", "status")):
            with suppress(OSError, http.client.HTTPException):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5)
                answers.append((port, page))
        assert len(ports) >= 4 and not answers


def test_a_lost_dask_worker_loses_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.pipeline

    monkeypatch.setattr(flows.pipeline, "SMALL", 0)
    folder, archive = write_pictures(tmp_path / "in", 40), tmp_path / "archive"
    real, killed = flows.pipeline.commit, []

    def kill_a_worker_first(*arguments: Any) -> int:
        if not killed:
            workers = [
                child
                for child in psutil.Process(os.getpid()).children(True)
                if "spawn_main" in " ".join(child.cmdline())
            ]
            killed.append(workers[0].pid)
            workers[0].kill()
        return real(*arguments)

    monkeypatch.setattr(flows.pipeline, "commit", kill_a_worker_first)
    done = archive_it(folder, archive, workers=2, batch_size=5)
    assert killed and done["workers"] == 2
    assert (done["archived"], done["quarantined"]) == (40, 0)
    assert sorted(Archive.open(str(archive)).keys()) == [f"{number:03d}.png" for number in range(40)]


def test_an_adaptive_cluster_starts_workers_for_the_run(tmp_path: Path) -> None:
    from distributed import LocalCluster

    folder, archive = write_pictures(tmp_path / "in", 6), tmp_path / "archive"
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms")
        summary = archive_it(folder, archive, batch_size=1, scheduler=cluster.scheduler_address)
    assert summary["archived"] == 6 and len(Archive.open(str(archive))) == 6


def test_a_cluster_serves_one_command_after_another_each_with_a_private_server(tmp_path: Path) -> None:
    from distributed import LocalCluster

    folder = write_pictures(tmp_path / "in", 2)
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", UNWATCHED)}
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        for number in range(2):
            command = ["run", str(folder), str(tmp_path / f"{number}"), "--scheduler", cluster.scheduler_address]
            command += ["--codec", "webp"]
            done = subprocess.run(
                [sys.executable, "-m", "flows.cli", *command],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr


def test_a_cluster_trains_on_a_worker_that_declares_a_gpu_or_not_at_all(tmp_path: Path) -> None:
    from distributed import LocalCluster

    from compressor.codec import load_codec
    from flows.train import train_flow

    folder, out = write_pictures(tmp_path / "in", 6), tmp_path / "v2.safetensors"
    given = {"source": str(folder), "family": "v2", "out": str(out), "steps": 3, "batch": 2, "side": 32, "seed": 5}
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with (
        LocalCluster(**settings, processes=False, protocol="tcp") as cluster,
        pytest.raises(LatentpackError, match="start one with: dask worker tcp://.* --resources GPU=1"),
    ):
        train_flow(TrainParameters(**given, scheduler=cluster.scheduler_address))
    away = tmp_path / "away"
    with LocalCluster(**settings, env={"LATENTPACK_HOME": str(away)}, resources={"GPU": 1}) as cluster:
        record = train_flow(TrainParameters(**given, scheduler=cluster.scheduler_address))
        assert record["steps"] == 3 and record["pictures"] == 5
        (there,) = (away / "training").glob("*.safetensors")
        assert out.read_bytes() == there.read_bytes() and load_codec(str(out)).id == record["id"]
        on = TrainParameters(**{**given, "family": None}, start=str(out), scheduler=cluster.scheduler_address)
        assert train_flow(on)["id"] != record["id"]
        assert parse(out.read_bytes()).metadata["card"]["start"]["id"] == record["id"]


TRIED: list[str] = []


def failing(kind: str) -> str:
    TRIED.append(kind)
    if kind == "storage" and len(TRIED) == 3:
        return "done"
    raise ConnectionResetError("reset") if kind == "storage" else CodecError("no such codec")


@pytest.mark.parametrize(("kind", "tries"), [("storage", 3), ("codec", 1)])
def test_workers_without_a_server_try_again_what_storage_caused_and_nothing_else(kind: str, tries: int) -> None:
    from distributed import LocalCluster
    from prefect import task

    from flows.dispatch import DaskPool
    from tasks.retries import IF_TRANSIENT

    TRIED.clear()
    body = task(**IF_TRANSIENT | {"retry_delay_seconds": [0.05, 0.1]}, retries=2)(failing)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as cluster,
        cluster.get_client() as client,
    ):
        waiting, started = [kind], time.monotonic()
        pool = DaskPool(SimpleNamespace(client=client), 1, tracked=False)
        [(_, result)] = pool.run(body, lambda: waiting.pop() if waiting else None, lambda kind: {"kind": kind})
    assert len(TRIED) == tries
    assert result == "done" if kind == "storage" else isinstance(result, CodecError)
    assert time.monotonic() - started > (0.15 if kind == "storage" else 0)


KILLING = """
import os, signal
from compressor import encoding

decode = encoding.decode_picture

def killing(data, *rest):
    if data.endswith(b"killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, *rest)

encoding.decode_picture = killing  # in Dask's workers too, which import this file

if __name__ == "__main__":
    from flows.cli import main
    main()
"""


def test_a_picture_that_kills_its_process_stops_one_run_and_no_more(tmp_path: Path, prefect_api: str) -> None:
    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    with open(folder / "000.png", "ab") as file:
        file.write(b"killer")
    (tmp_path / "killing.py").write_text(KILLING)
    command = [sys.executable, tmp_path / "killing.py", "run", folder, archive, "--codec", "webp"]
    environment = os.environ | {"LATENTPACK_HOME": str(tmp_path / "home"), "PREFECT_API_URL": prefect_api}
    environment |= {"PREFECT_LOGGING_TO_API_ENABLED": "false", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    environment |= {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "100ms"}  # at 15 s the run would hang by chance

    def run() -> tuple[int, str]:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        return ended.returncode, ended.stderr

    code, err = run()
    assert code == -signal.SIGKILL and len(Archive.open(str(archive))) == 0, err
    assert len(list((tmp_path / "tmp").glob("latentpack-*"))) == 1
    code, err = run()
    assert code == 1, err
    assert "'000.png' was lost and goes to the quarantine: its process was killed, perhaps for memory" in err
    assert not list((tmp_path / "tmp").glob("latentpack-*"))
    opened = Archive.open(str(archive))
    assert list(opened.keys()) == ["001.png"]
    assert [(row.key, row.reason) for row in opened.quarantined()] == [("000.png", "crashed")]
    assert not list((tmp_path / "home" / "encoding").iterdir())


def test_a_picture_that_kills_what_prepares_it_ends_a_training_by_name(tmp_path: Path, prefect_api: str) -> None:
    folder = write_pictures(tmp_path / "in", 8)
    with open(folder / "002.png", "ab") as file:
        file.write(b"killer")
    (tmp_path / "killing.py").write_text(KILLING.replace("encoding", "reading"))
    command = [sys.executable, tmp_path / "killing.py", "train", folder, "--out", tmp_path / "out.safetensors"]
    command += ["--family", "v1", "--steps", "2", "--side", "32", "--batch-size", "2", "--workers", "2"]
    environment = os.environ | {"LATENTPACK_HOME": str(tmp_path / "home"), "PREFECT_API_URL": prefect_api}
    environment |= {"PREFECT_LOGGING_TO_API_ENABLED": "false"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 2, ended.stderr
    assert "the 2 pictures from '002.png' to '003.png' is killed, perhaps for memory" in ended.stderr


def test_what_is_lost_beside_another_batch_is_prepared_alone() -> None:
    from distributed import KilledWorker

    from flows.train import _prepared

    given: list[str] = []

    class Losing:
        """Loses batch 1, and 2 which waits behind it, the first time."""

        workers = 1

        def run(self, task: Any, take: Any, arguments: Any) -> Any:
            while (batch := take()) is not None:
                given.append(batch.name)
                lost = batch.name in ("1", "2") and given.count(batch.name) == 1
                if batch.name == "1" and lost:
                    waiting = take()
                    given.append(waiting.name)
                    yield waiting, KilledWorker(waiting.name, SimpleNamespace(address="tcp://a:1"), 1)
                yield batch, KilledWorker(batch.name, SimpleNamespace(address="tcp://a:1"), 1) if lost else {}

    batches = iter([Batch(str(number), ()) for number in range(5)])
    done = [int(batch.name) for batch, _ in _prepared(Losing(), batches, lambda batch: {})]
    assert (done, given) == ([0, 2, 1, 3, 4], list("0122134"))


def test_a_picture_that_has_crashed_is_tried_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.pipeline

    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    apart: list[bool] = []

    def pool(scheduler: str | None, workers: int, batches: int, *rest: Any) -> Any:
        apart.append(rest[0])
        return real(scheduler, workers, batches)

    real = flows.pipeline.pool
    monkeypatch.setattr(flows.pipeline, "pool", pool)
    for reason in ("corrupt", CRASHED):
        opened = Archive.open_or_create(str(archive))
        opened.quarantine([QuarantineRow.now("001.png", bytes(8), reason, "", "an earlier run")])
        archive_it(folder, archive)
        Archive.open(str(archive)).delete(["000.png", "001.png"])
    assert apart == [False, True]


def test_a_run_tells_that_the_process_of_an_earlier_one_is_gone(tmp_path: Path) -> None:
    from flows.dispatch import ThisProcess, pool, was_killed

    mark = tmp_path / "home" / "mark"
    with pool(None, 1, 1, mark=mark) as found:
        assert isinstance(found, ThisProcess) and mark.exists() and not was_killed(mark)
        left = mark.read_text()
    assert not mark.exists() and not was_killed(mark)
    with pytest.raises(ZeroDivisionError), pool(None, 1, 1, mark=mark):
        raise ZeroDivisionError
    assert not mark.exists(), "the process lives"
    mark.write_text(left.replace('"started": ', '"started": 1'))  # by another process of the same id
    assert was_killed(mark)
    mark.write_text(left[:9])  # as a power cut may leave it
    assert not was_killed(mark)
    with pool(None, 1, 1, mark=Path("/dev/null/mark")) as found:
        assert isinstance(found, ThisProcess), "where no mark can be left, the run goes on"


def test_a_scheduler_that_is_gone_is_told_and_no_picture_is_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    import flows.dispatch
    import flows.pipeline

    monkeypatch.setattr(flows.dispatch, "CONNECT_S", 1)
    folder, archive = write_pictures(tmp_path / "in", 6), tmp_path / "archive"
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    real = flows.pipeline.commit
    with LocalCluster(**settings, processes=False, protocol="tcp") as cluster:

        def close_the_cluster(*arguments: Any) -> int:
            cluster.close()
            return real(*arguments)

        monkeypatch.setattr(flows.pipeline, "commit", close_the_cluster)
        with pytest.raises(LatentpackError, match="the Dask scheduler is gone .* what is archived stays"):
            archive_it(folder, archive, batch_size=1, scheduler=cluster.scheduler_address)
    opened = Archive.open(str(archive))
    assert len(opened) == 1 and not list(opened.quarantined())


def test_a_cluster_without_a_worker_left_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from distributed import LocalCluster

    import flows.dispatch
    import flows.pipeline

    monkeypatch.setattr(flows.dispatch, "LOOK_S", 0.1)
    folder, archive = write_pictures(tmp_path / "in", 6), tmp_path / "archive"
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    real, returns = flows.pipeline.commit, [True, False]
    with LocalCluster(**settings, processes=False, protocol="tcp") as cluster:

        def lose_the_worker(*arguments: Any) -> int:
            if returns:
                comes_back = returns.pop(0)
                monkeypatch.setattr(flows.dispatch, "WITHOUT_WORKER_S", 60.0 if comes_back else 0.3)
                cluster.scale(0)
                if comes_back:
                    threading.Timer(1.0, cluster.scale, [1]).start()
            return real(*arguments)

        monkeypatch.setattr(flows.pipeline, "commit", lose_the_worker)
        with pytest.raises(LatentpackError, match="had no worker for this work for .* what is archived stays"):
            archive_it(folder, archive, batch_size=1, scheduler=cluster.scheduler_address)
    assert caplog.text.count("no worker left for this work") == 2
    opened = Archive.open(str(archive))
    assert len(opened) >= 2 and not list(opened.quarantined())


@pytest.mark.parametrize("scheduler", ["foo", "nonsense://host:1"])
def test_an_address_that_is_none_is_told(tmp_path: Path, scheduler: str) -> None:
    with pytest.raises(LatentpackError, match=f"no Dask worker can be reached at {scheduler} .* tcp://"):
        archive_it(write_pictures(tmp_path / "in", 1), tmp_path / "archive", scheduler=scheduler)


def test_a_scheduler_without_workers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    import flows.dispatch

    monkeypatch.setattr(flows.dispatch, "FIRST_WORKER_S", 1)
    with LocalCluster(n_workers=0, dashboard_address=None, processes=False, protocol="tcp") as cluster:
        address = cluster.scheduler_address
        told = f"scheduler at {address} answers, but no worker .* in 1 s: start one with 'dask worker {address}'"
        with pytest.raises(LatentpackError, match=told):
            archive_it(write_pictures(tmp_path / "in", 1), tmp_path / "archive", scheduler=address)


@pytest.mark.parametrize("failures", [1, 2])
def test_a_machine_too_busy_to_start_a_thread_is_asked_twice(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster

    left, real = [AssertionError()] * failures, Client.start

    def start(client: Client, **options: Any) -> Any:
        if left:
            raise left.pop()
        return real(client, **options)

    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    folder, archive = write_pictures(tmp_path / "in", 1), tmp_path / "archive"
    with LocalCluster(**settings, processes=False, protocol="tcp") as cluster:
        monkeypatch.setattr(Client, "start", start)
        told = pytest.raises(LatentpackError, match="too busy, or short of memory, to start a thread within 10 s")
        with told if failures == 2 else nullcontext():
            archive_it(folder, archive, scheduler=cluster.scheduler_address)
    assert not left and (failures == 2 or len(Archive.open(str(archive))) == 1)


def telling(on_progress: Any) -> str:
    for done in (3, 7):
        on_progress(done)
        time.sleep(1.1)
    return "done"


def test_a_worker_is_heard_while_it_works() -> None:
    from prefect import task

    from flows.dispatch import dask_pool

    waiting, heard = ["a", "b"], []
    with dask_pool(None, 2) as pool:
        for item, result in pool.run(
            task(telling), lambda: waiting.pop() if waiting else None, lambda _: {}, lambda *news: heard.append(news)
        ):
            assert result == "done"
            assert [done for name, done in heard if name == item] == [3, 7]
    assert sorted(heard) == [("a", 3), ("a", 7), ("b", 3), ("b", 7)]

"""Whole flows on small pictures: what is new is archived once, what fails is listed, lost workers lose nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import tasks.train
from compressor.archive import CRASHED, Archive
from compressor.artifact import Artifact, parse
from compressor.errors import CodecError, EndedUnwell, LatentpackError, SourceError
from compressor.images import encode_picture
from compressor.parquet import QuarantineRow
from compressor.shards import ShardRecord
from compressor.sources import Source, SourceFile
from compressor.training import TrainingConfig
from flows.parameters import (
    BenchmarkParameters,
    ExperimentsParameters,
    PipelineParameters,
    TrainingParameters,
    TrainParameters,
)
from tasks.home import UNWATCHED
from tests.codecs import smooth_pictures, tiny_artifact

pytestmark = pytest.mark.usefixtures("prefect_api")


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(smooth_pictures(count, seed=seed)):
        (folder / f"{number:03d}.png").write_bytes(encode_picture(pixels, 3))
    return folder


def archive_it(folder: Path, archive: Path, **options: Any) -> dict[str, Any]:
    from flows.pipeline import pipeline

    given = {"source": str(folder), "archive": str(archive), "codec": "webp", "workers": 1, **options}
    return pipeline(PipelineParameters(**given))


def test_what_is_new_or_changed_is_archived_once(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 6), tmp_path / "archive"
    first = archive_it(folder, archive, batch_size=4)
    assert (first["listed"], first["archived"], first["quarantined"]) == (6, 6, 0)
    assert first["psnr_min"] >= 34 and first["ratio"] > 0
    again = archive_it(folder, archive)
    assert (again["archived"], again["already_there"], again["batches"]) == (0, 6, 0)
    before = Archive.open(str(archive)).read("003.png")
    (folder / "003.png").write_bytes(encode_picture(smooth_pictures(1, seed=9)[0], 3))
    changed = archive_it(folder, archive)
    assert (changed["archived"], changed["replaced"], changed["already_there"]) == (1, 1, 5)
    opened = Archive.open(str(archive))
    assert len(opened) == 6 and not np.array_equal(opened.read("003.png"), before)


def test_failures_are_listed_and_tried_again_when_they_change(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    (folder / "bad.png").write_text("not a picture")
    (folder / "empty.jpg").touch()
    first = archive_it(folder, archive)
    assert first["errors"] == {"not_a_picture": 1, "empty": 1}
    assert {row.key: row.reason for row in Archive.open(str(archive)).quarantined()} == {
        "bad.png": "not_a_picture",
        "empty.jpg": "empty",
    }
    again = archive_it(folder, archive)
    assert (again["quarantined"], again["still_quarantined"], again["already_there"]) == (0, 2, 3)
    (folder / "bad.png").write_bytes((folder / "000.png").read_bytes())
    healed = archive_it(folder, archive)
    assert (healed["archived"], healed["still_quarantined"]) == (1, 1)
    assert [row.key for row in Archive.open(str(archive)).quarantined()] == ["empty.jpg"]


def test_a_run_that_fails_too_often_stops_and_can_be_continued(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 4), tmp_path / "archive"
    for number in range(4):
        (folder / f"00{number}a.png").write_text("not a picture")
    with pytest.raises(EndedUnwell, match="2 of 4 pictures failed") as given_up:
        archive_it(folder, archive, batch_size=2, max_failures="1")
    stopped = given_up.value.result
    assert stopped["stopped"] and stopped["not_reached"] == 4
    assert (stopped["archived"], stopped["quarantined"]) == (2, 2)
    done = archive_it(folder, archive)
    assert (done["archived"], done["already_there"], done["quarantined"], done["still_quarantined"]) == (2, 2, 2, 2)


@pytest.mark.parametrize("budget, good", [("5%", 0), ("2", 0), ("30%", 4)])
def test_a_run_that_fails_too_often_in_its_last_batch_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str, good: int
) -> None:
    import flows.pipeline

    announced: list[str] = []
    monkeypatch.setattr(flows.pipeline, "announce", lambda event, *_: announced.append(event))
    folder, archive = write_pictures(tmp_path / "in", good), tmp_path / "archive"
    for number in range(3):
        (folder / f"bad{number}.png").write_text("not a picture")
    with pytest.raises(EndedUnwell, match=rf"3 of {3 + good} pictures failed, .*; none was left to try\. ") as given_up:
        archive_it(folder, archive, max_failures=budget)
    summary = given_up.value.result
    assert (summary["archived"], summary["quarantined"], summary["not_reached"]) == (good, 3, 0)
    assert "run.stopped" in announced and "run.finished" not in announced
    opened = Archive.open(str(archive))
    assert (len(opened), len(list(opened.quarantined()))) == (good, 3)


def test_a_limit_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 5), tmp_path / "archive"
    assert archive_it(folder, archive, limit=2)["left"] == 3
    assert archive_it(folder, archive, limit=2)["archived"] == 2
    assert archive_it(folder, archive)["archived"] == 1


def test_a_picture_that_fails_as_nothing_foresaw_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.encode

    folder, archive = write_pictures(tmp_path / "in", 9), tmp_path / "archive"
    real = tasks.encode.encode_batch

    def fails(source: Any, files: Any, *rest: Any) -> Any:
        if any(file.key == "004.png" for file in files):
            raise RuntimeError("no code foresaw this picture")
        return real(source, files, *rest)

    monkeypatch.setattr(tasks.encode, "encode_batch", fails)
    done = archive_it(folder, archive)
    assert (done["archived"], done["errors"]) == (8, {"crashed": 1})
    assert [row.key for row in Archive.open(str(archive)).quarantined()] == ["004.png"]


def test_a_failure_of_everything_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.pipeline
    import tasks.encode

    folder = write_pictures(tmp_path / "in", 9)

    def fails(*_: Any) -> Any:
        raise RuntimeError("whatever the picture")

    monkeypatch.setattr(tasks.encode, "encode_batch", fails)
    monkeypatch.setattr(flows.pipeline, "MOST_LOST", 6)
    with pytest.raises(LatentpackError, match="lost one after another"):
        archive_it(folder, tmp_path / "archive")


def test_a_library_that_is_missing_is_no_picture_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.encode

    def fails(*_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'simplejpeg'")

    monkeypatch.setattr(tasks.encode, "encode_batch", fails)
    with pytest.raises(ModuleNotFoundError, match="simplejpeg"):
        archive_it(write_pictures(tmp_path / "in", 3), tmp_path / "archive")
    assert not list(Archive.open(str(tmp_path / "archive")).quarantined())


def test_an_error_that_came_of_ctrl_c_is_no_lost_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect raises one of its own where it is interrupted while it makes a task run."""
    import tasks.encode
    from flows import interrupts

    def fails(*_: Any) -> Any:
        monkeypatch.setattr(interrupts, "_heard", [1.0])
        raise ValueError("Task run is not set")

    monkeypatch.setattr(tasks.encode, "encode_batch", fails)
    with pytest.raises(KeyboardInterrupt):
        archive_it(write_pictures(tmp_path / "in", 3), tmp_path / "archive")


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


def test_processes_leave_ctrl_c_to_the_command_that_started_them() -> None:
    """A terminal sends it to all, and theirs would end in tracebacks."""
    from flows.dispatch import dask_pool

    with dask_pool(None, 1) as pool:
        assert signal.SIGINT in pool._runner.client.submit(held_signals, pure=False).result()
        assert signal.SIGINT not in held_signals()


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


def test_a_codec_trained_in_the_run_is_used_and_remembered(tmp_path: Path) -> None:
    from flows.train import train_flow

    folder, archive = write_pictures(tmp_path / "in", 12), tmp_path / "archive"
    training = {"steps": 4, "batch": 2, "side": 32}
    done = archive_it(folder, archive, codec="faces", train="v2", min_psnr=1, training=TrainingParameters(**training))
    assert done["archived"] == 12 and "v2" in done["codec"]
    out = tmp_path / "v2.safetensors"
    repeated = train_flow(TrainParameters(source=str(folder), family="v2", out=str(out), workers=1, **training))
    assert repeated["id"] in done["codecs"], "the same training was not found in the cache"
    assert out.stat().st_size > 100_000


@pytest.mark.parametrize("family", ["v2", "v6"])
def test_a_training_goes_on_from_a_codec(tmp_path: Path, family: str) -> None:
    from compressor.families import FAMILIES
    from flows.train import train_flow

    folder, out = write_pictures(tmp_path / "in", 12), tmp_path / "out.safetensors"
    start = tmp_path / "start.safetensors"
    start.write_bytes(tiny_artifact(family, "int8"))
    given = {"source": str(folder), "start": str(start), "out": str(out), "batch": 2, "side": 32, "workers": 1}
    gentle = train_flow(TrainParameters(**given, steps=1, learning_rate=1e-12))
    before, after = parse(start.read_bytes()), parse(out.read_bytes())
    assert gentle["family"] == family and after.metadata["network"] == before.metadata["network"]
    assert after.metadata["card"]["start"]["id"] == before.id

    def values(artifact: Artifact) -> np.ndarray:
        return np.concatenate([p.numpy().ravel() for p in FAMILIES[family].network(artifact).parameters()])

    np.testing.assert_array_equal(values(after), values(before))
    train_flow(TrainParameters(**given, steps=20))
    assert parse(out.read_bytes()).metadata["card"]["training"]["learning_rate"] == 1e-3
    assert (values(parse(out.read_bytes())) != values(before)).mean() > 0.5


@pytest.mark.parametrize(
    ("start", "family", "message"),
    [
        ("avif", None, "avif is a standard format, it learns nothing: start from faces or a file"),
        ("faces", "v3", "faces is of family v5, not v3: leave --family out"),
        ("missing.safetensors", None, "there is no codec 'missing.safetensors'"),
    ],
)
def test_what_a_training_cannot_start_from(tmp_path: Path, start: str, family: str | None, message: str) -> None:
    from flows.train import train_flow

    folder = write_pictures(tmp_path / "in", 2)
    with pytest.raises(CodecError, match=message):
        train_flow(TrainParameters(source=str(folder), start=start, family=family, out=str(tmp_path / "out"), steps=1))


def test_a_benchmark_shows_what_effort_gives(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from flows.benchmark import benchmark

    folder, codec = write_pictures(tmp_path / "in", 2), tmp_path / "mine.safetensors"
    codec.write_bytes(tiny_artifact("v5", "int8"))
    (folder / "long.png").write_bytes(encode_picture(np.zeros((1, 140_000, 3), np.uint8), 3))  # its middle is measured
    given = {"source": str(folder), "codec": [str(codec)], "effort": 2, "report": str(tmp_path / "report")}
    table = pq.read_table(benchmark(BenchmarkParameters(**given, workers=1))["parquet"])

    def stored(name: str) -> list[tuple[int, float]]:
        return [(row["bytes"], row["psnr"]) for row in table.to_pylist() if row["codec"] == name]

    assert {"mine", "mine, effort 2", "JPEG"} <= set(table["codec"].to_pylist())
    decoded = {row["key"]: row["decoded_png_bytes"] for row in table.to_pylist()}
    assert decoded.keys() == {"000.png", "001.png", "long.png"} and decoded["long.png"] < 200
    assert len(stored("mine")) == len(stored("mine, effort 2")) and stored("mine") != stored("mine, effort 2")


def test_a_codec_with_the_name_of_a_standard_format_is_not_measured_as_that(tmp_path: Path) -> None:
    from flows.benchmark import benchmark

    folder, codec = write_pictures(tmp_path / "in", 2), tmp_path / "AVIF.safetensors"
    codec.write_bytes(tiny_artifact("v3"))
    with pytest.raises(CodecError, match="the name of a standard format, AVIF"):
        benchmark(BenchmarkParameters(source=str(folder), codec=[str(codec)], report=str(tmp_path / "report")))


def test_experiments_are_repeated_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.experiments import cells, measuring
    from flows.experiments import experiments

    folder = write_pictures(tmp_path / "in", 10)
    (folder / "zz.png").write_bytes(b"no picture")
    values = {"source": str(folder), "report": str(tmp_path / "report"), "family": ["v2"], "parts": ["ladder"]}
    values |= {"steps": 4, "batch": 2, "side": 32, "held_out": 2, "codec": [], "workers": 1}
    result = experiments(ExperimentsParameters(**values, ladder="3,30,all"))
    text = Path(result["markdown"]).read_text()
    assert "| V2 | 3 |" in text and "| V2 | 7 (all) |" in text and "13.1 KB" in text
    assert "left out of the ladder: 30" in text and "left out: 1 file: 1 not_a_picture; " in text
    assert "after 4 steps each: V2" in text and "after equal times" not in text

    trained: list[int | None] = []
    train = cells.train_cell
    monkeypatch.setattr(cells, "train_cell", lambda cell, *rest: trained.append(cell.pictures) or train(cell, *rest))
    monkeypatch.setattr(measuring, "measure_standards", lambda *_: pytest.fail("measured again"))
    again = experiments(ExperimentsParameters(**values, ladder="3,5,all"))
    assert trained == [5], "a new row costs that row"
    assert "| V2 | 5 |" in Path(again["markdown"]).read_text()
    assert "| V2 | 7 |" in Path(experiments(ExperimentsParameters(**values, ladder="7"))["markdown"]).read_text()
    with pytest.raises(SourceError, match="there are 7 pictures to train on"):
        experiments(ExperimentsParameters(**values, ladder="8,30"))


def test_a_report_says_how_long_each_cell_was_trained() -> None:
    from flows.experiments import _length

    assert _length(TrainingConfig(steps=2000)) == "2,000 steps"
    assert _length(TrainingConfig(0, minutes=1)) == "1 minute"
    assert _length(TrainingConfig(steps=2000, minutes=0.5)) == "2,000 steps or 0.5 minutes"
    assert (
        _length(TrainingConfig(0, minutes=2, patience=3)) == "2 minutes at most, or 3 validations without improvement,"
    )


@pytest.mark.parametrize("where", ["", "sub", "link"])
def test_experiments_train_on_nothing_that_they_measure_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from flows import experiments as flow

    folder = write_pictures(tmp_path / "in", 6)
    write_pictures(folder / "sub", 4)
    (tmp_path / "link").symlink_to(folder / "sub")
    monkeypatch.setattr(flow, "pin_threads", lambda _: None)
    batches: list[list[Path]] = []

    def prepare(source: Source, files: Iterator[SourceFile], *_: Any) -> list[ShardRecord]:
        batches.append([Path(file.path).resolve() for file in files])
        return [ShardRecord("", "", len(batches[-1]), {})]

    monkeypatch.setattr(flow, "prepare_shards", prepare)
    evaluation = tmp_path / "link" if where == "link" else folder / where
    values = {"source": str(folder), "evaluation": str(evaluation), "steps": 4}
    flow._prepare(ExperimentsParameters(**values, held_out=3))
    learned, measured = batches
    assert len(learned) == 7 and len(measured) == 3 and not set(learned) & set(measured)
    if not where:
        with pytest.raises(SourceError, match="no picture is left to train on, beside the 10 pictures"):
            flow._prepare(ExperimentsParameters(**values, held_out=100))


@pytest.mark.parametrize(
    ("total", "count", "share", "expected"),
    [
        (199, 100, 1, 100),
        (200, 150, 1, 150),
        (200, 100, 5, 40),
        (200, 10, 5, 10),
        (10, 100, 1, 10),
        (7, 4, 5, 2),
        (2, 9, 5, 1),
    ],
)
def test_pictures_are_spread_evenly_whatever_their_number(
    tmp_path: Path, total: int, count: int, share: int, expected: int
) -> None:
    from flows.experiments import _spread

    for number in range(total + 5):
        (tmp_path / f"{number:03d}.png").write_bytes(b"")
    chosen = [int(file.key[:3]) for file in _spread(Source.open(str(tmp_path)), total, count, share)]
    assert len(chosen) == len(set(chosen)) == expected and chosen == sorted(chosen)
    gaps = np.diff([*chosen, total + chosen[0]])
    assert gaps.max() - gaps.min() <= 1, "as even as whole numbers are"


def test_a_flow_restores_and_verifies(tmp_path: Path) -> None:
    from flows.archive import restore, verify
    from flows.parameters import RestoreParameters, VerifyParameters

    (tmp_path / "codec.safetensors").write_bytes(tiny_artifact("v2"))
    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    archive_it(folder, archive, codec=str(tmp_path / "codec.safetensors"), min_psnr=1)
    back = restore(RestoreParameters(archive=str(archive), destination=str(tmp_path / "out")))
    assert back["written"] == 3 and not back["problems"]
    checked = verify(VerifyParameters(archive=str(archive)))
    assert checked["pictures"] == 3 and checked["problems"] == []


def test_who_watches_a_restore_is_told_where_files_lie_and_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.artifacts import Artifact

    from flows.archive import restore
    from flows.parameters import RestoreParameters

    folder, archive, out = write_pictures(tmp_path / "in", 1), tmp_path / "archive", tmp_path / "out"
    archive_it(folder, archive)
    with caplog.at_level("INFO", logger="prefect.flow_runs"), pytest.raises(EndedUnwell) as found:
        restore(RestoreParameters(archive=str(archive), destination=str(out), key=["missing.png"]))
    assert f"0 pictures written to {out} on " in caplog.text
    assert "1 picture not restored, such as missing.png: " in str(found.value)
    assert found.value.result["written"] == 0
    artifact = Artifact.get("restore")
    assert artifact and "missing.png" in str(artifact.data)


def test_a_repair_on_a_server_is_a_failed_run_until_nothing_is_missing(tmp_path: Path) -> None:
    from prefect.artifacts import Artifact

    from flows.archive import repair, verify
    from flows.parameters import RepairParameters, VerifyParameters

    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    archive_it(folder, archive)
    opened = Archive.open(str(archive))
    part = archive / "images" / opened.tables[0].parts[0].path
    data = bytearray(part.read_bytes())
    data[data.index(opened.read_row("001.png").payload) + 9] ^= 1
    part.write_bytes(data)
    with pytest.raises(EndedUnwell, match="1 picture cannot be trusted, such as 001.png: .*; run repair"):
        verify(VerifyParameters(archive=str(archive)))
    with pytest.raises(EndedUnwell, match="1 picture not mended, such as 001.png: "):
        repair(RepairParameters(archive=str(archive)))
    artifact = Artifact.get("repair")
    assert artifact and "001.png" in str(artifact.data)
    assert repair(RepairParameters(archive=str(archive), source=str(folder)))["regained"] == ["001.png"]
    assert verify(VerifyParameters(archive=str(archive)))["problems"] == []


def test_a_repair_that_storage_breaks_off_is_not_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try would find sound what the first took out rows of, and the run would be a success."""
    from flows import unwatched
    from flows.archive import repair
    from flows.parameters import RepairParameters

    tries = []

    def breaks_off(parameters: RepairParameters) -> None:
        tries.append(parameters)
        raise ConnectionResetError("storage")

    monkeypatch.setattr(unwatched, "repair", breaks_off)
    with pytest.raises(ConnectionResetError):
        repair(RepairParameters(archive=str(tmp_path)))
    assert len(tries) == 1


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


def test_a_run_that_loses_a_picture_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.encode

    whole = tasks.encode.encode_batch
    monkeypatch.setattr(tasks.encode, "encode_batch", lambda source, files, *rest: whole(source, files[:-1], *rest))
    with pytest.raises(AssertionError, match="do not reconcile"):
        archive_it(write_pictures(tmp_path / "in", 3), tmp_path / "archive")


def test_a_raw_file_is_refused_and_not_taken_for_its_thumbnail(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    thumbnail = encode_picture(smooth_pictures(1)[0], 3, "tiff")
    for name in ("a.dng", "b.NEF", "c.tif"):
        (folder / name).write_bytes(thumbnail)
    first = archive_it(folder, archive)
    assert (first["archived"], first["errors"]) == (3, {"unsupported": 2})
    assert {row.key for row in Archive.open(str(archive)).quarantined()} == {"a.dng", "b.NEF"}
    assert archive_it(folder, archive)["still_quarantined"] == 2


def test_a_run_tells_the_files_that_it_does_not_list(tmp_path: Path) -> None:
    from compressor.wording import describe

    folder = write_pictures(tmp_path / "in", 9)
    for name in ("a.txt", "b.txt", "c", "d.jpg_large", "e.png "):
        (folder / name).touch()
    done = archive_it(folder, tmp_path / "archive", wave=3, batch_size=3)
    assert done["unlisted"] == {".txt": 2, "none": 1, ".jpg_large": 1, ".png ": 1}
    told = dict(describe(done))["not listed"]
    assert told == "5 files with other extensions: .jpg_large 1, '.png ' 1, .txt 2, none 1"
    assert "not listed" not in dict(describe({**done, "unlisted": {}}))


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
    assert not list((tmp_path / "tmp").glob("latentpack-*"))
    opened = Archive.open(str(archive))
    assert list(opened.keys()) == ["001.png"]
    assert [(row.key, row.reason) for row in opened.quarantined()] == [("000.png", "crashed")]
    assert not list((tmp_path / "home" / "encoding").iterdir())


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


@pytest.mark.parametrize("scheduler", ["foo", "nonsense://host:1"])
def test_an_address_that_is_none_is_told(tmp_path: Path, scheduler: str) -> None:
    with pytest.raises(LatentpackError, match=f"no Dask worker can be reached at {scheduler} .* tcp://"):
        archive_it(write_pictures(tmp_path / "in", 1), tmp_path / "archive", scheduler=scheduler)


def test_what_prefect_does_not_let_start_is_no_fault_of_a_picture(tmp_path: Path) -> None:
    """An operator holds work by a limit of 0; a server that is gone ends in the same error."""
    from prefect.client.orchestration import get_client
    from prefect.concurrency.services import _no_limits_cache

    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    _no_limits_cache.clear()  # Prefect takes it for five seconds that tags of an earlier test's run have no limit
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("latentpack-encode", 0)
        try:
            with pytest.raises(LatentpackError, match="does not let a batch start .*concurrency limits"):
                archive_it(folder, archive)
        finally:
            client.delete_concurrency_limit_by_tag("latentpack-encode")
    opened = Archive.open(str(archive))
    assert not len(opened) and not list(opened.quarantined())
    assert archive_it(folder, archive)["archived"] == 3


@pytest.mark.parametrize("broken", ["create_progress_artifact", "update_progress_artifact"])
def test_progress_that_cannot_be_shown_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A person may delete the artifact of a run that goes on."""

    asked: list[str] = []

    def gone(*_: Any, **__: Any) -> None:
        asked.append(broken)
        raise RuntimeError("404: Artifact not found")

    monkeypatch.setattr(f"tasks.artifacts.{broken}", gone)
    monkeypatch.setattr("flows.pipeline.ARTIFACT_EVERY_S", 0.0)
    folder = write_pictures(tmp_path / "in", 4)
    assert archive_it(folder, tmp_path / "archive", batch_size=1)["archived"] == 4
    assert asked == [broken], "it is asked once, and not again"


def test_a_summary_that_cannot_be_shown_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("500")

    monkeypatch.setattr("flows.pipeline.publish", gone)
    assert archive_it(write_pictures(tmp_path / "in", 2), tmp_path / "archive")["archived"] == 2


def test_a_runs_log_says_how_it_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_pictures(tmp_path / "in", 2)
    (folder / "bad.png").write_text("no picture")
    (folder / "b.jpg_large").write_text("no picture")
    (tmp_path / "empty").mkdir()
    with caplog.at_level("INFO", logger="prefect.flow_runs"):
        archive_it(folder, tmp_path / "archive")
        archive_it(tmp_path / "empty", tmp_path / "archive")
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "listed 3 pictures, archived 2, 1 quarantined") in told
    warnings = [text for level, text in told if level == "WARNING"]
    for words in ("1 picture quarantined; see with", "1 file not listed, for extensions such as '.jpg_large'"):
        assert any(text.startswith(words) for text in warnings), words
    assert any(text.startswith("there is no picture in ") for text in warnings)


def test_a_training_that_a_person_has_to_mend_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train_flow

    tries: list[int] = []
    real = tasks.train.load_shards

    def counting(*arguments: Any) -> Any:
        tries.append(1)
        return real(*arguments)

    monkeypatch.setattr("tasks.train.load_shards", counting)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    parameters = TrainParameters(source=str(tmp_path), family="v1", steps=1, out=str(tmp_path / "c"), workers=1)
    with pytest.raises(SourceError, match="no picture to train on"):
        train_flow(parameters)
    assert len(tries) == 1

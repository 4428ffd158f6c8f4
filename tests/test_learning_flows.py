"""Flows that train and measure: codecs trained in a run, benchmarks, experiments."""

import errno
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import tasks.benchmark
import tasks.train
from compressor.artifact import Artifact, dump, parse
from compressor.destinations import Bucket
from compressor.errors import ArchiveError, CodecError, LatentpackError, SourceError
from compressor.picture_writing import encode_picture
from compressor.shards import ShardRecord
from compressor.sources import Source, SourceFile
from compressor.store import s3_filesystem
from compressor.training import TrainingConfig
from flows.parameters import BenchmarkParameters, CodecTrainingParameters, ExperimentsParameters, TrainParameters
from tasks.artifacts import slug
from tasks.train import codec_folder
from tests.codecs import tiny_artifact
from tests.runs import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_a_codec_trained_in_the_run_is_used_and_remembered(tmp_path: Path) -> None:
    from flows.train import train_flow

    folder, archive = write_pictures(tmp_path / "in", 12), tmp_path / "archive"
    training = {"steps": 4, "batch": 2, "side": 32}
    done = archive_it(
        folder, archive, codec="faces", train="v2", min_psnr=1, training=CodecTrainingParameters(**training)
    )
    assert done["archived"] == 12 and "v2" in done["codec"]
    out = tmp_path / "v2.safetensors"
    repeated = train_flow(TrainParameters(source=str(folder), family="v2", out=str(out), workers=1, **training))
    assert repeated["id"] in done["codecs"], "the same training was not found in the cache"
    assert out.stat().st_size > 100_000


def refused(*_: Any, **__: Any) -> None:
    raise ArchiveError("no right")


def test_codec_and_report_may_lie_in_a_bucket(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.train
    from compressor import report
    from flows.benchmark import benchmark
    from flows.cli import run
    from flows.train import train_flow

    folder, out = write_pictures(tmp_path / "in", 6), f"{bucket}/codecs/mine.safetensors"
    given = {"source": str(folder), "family": "v2", "steps": 2, "batch": 2, "side": 32, "workers": 1}
    for _ in range(2):  # a codec there is replaced
        record = train_flow(TrainParameters(**given, out=out))
    assert record["path"] == out
    done = archive_it(folder, f"{bucket}/archive", codec=out, min_psnr=1)
    assert done["archived"] == 6 and record["id"] in done["codecs"]
    measured = benchmark(BenchmarkParameters(source=str(folder), codec=[out], report=f"{bucket}/report/", limit=2))
    assert "mine" in measured["headline"] and measured["html"] == f"{bucket}/report/report.html"
    fs = s3_filesystem()
    assert b"<html" in fs.cat_file(measured["html"]) and fs.exists(measured["parquet"])
    assert [path.rpartition(".")[2] for path in fs.find(f"{bucket}/report") if path.endswith(".png")]
    fs.pipe_file(f"{bucket}/other", b"no codec")
    for place, why in [
        (f"{bucket}/other", "a file of that name is there, and is no codec"),
        ("s3://no-such-bucket-at-all/c.safetensors", "cannot use it"),
        (bucket, "an object's name is missing"),
    ]:
        with pytest.raises(LatentpackError, match=why):
            train_flow(TrainParameters(**given, out=place))
    train_flow(TrainParameters(**given, out=f"{bucket}/new.safetensors"))
    assert run(["codecs", f"{bucket}/new.safetensors"]) == 0
    monkeypatch.setattr(Bucket, "write", refused)
    monkeypatch.setattr(flows.train, "train_codec", lambda *_: pytest.fail("it was trained first"))
    monkeypatch.setattr(report, "measure", lambda *_, **__: pytest.fail("it was measured first"))
    with pytest.raises(ArchiveError, match="no right"):
        train_flow(TrainParameters(**given, out=f"{bucket}/unwritable.safetensors"))
    with pytest.raises(ArchiveError, match="no right"):
        benchmark(BenchmarkParameters(source=str(folder), report=f"{bucket}/unwritable", limit=2))
    for place, why in [
        (f"{bucket}/none", "there is no codec at s3://"),
        (f"{bucket}/other", "not a latentpack codec"),
        ("s3://no-such-bucket-at-all/none", "cannot use it"),
    ]:
        with pytest.raises(CodecError, match=why):
            archive_it(folder, tmp_path / "archive", codec=place)


def test_a_codec_is_trained_and_stored_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.train import train_flow

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    folder = write_pictures(tmp_path / "in", 12)
    artifacts = []
    for asked in ({}, {"weights": "int8"}, {"weights": "fp16", "compile": True}):
        given = {"family": "v2", "out": str(tmp_path / "out"), "steps": 4, "batch": 2, "side": 32, "workers": 1}
        train_flow(TrainParameters(source=str(folder), **given, **asked))
        artifacts.append((tmp_path / "out").read_bytes())
    unasked, int8, fp16 = artifacts
    assert unasked == int8 and 1.7 * len(int8) < len(fp16)
    assert parse(int8).metadata["weights"]["kind"] == "int8"
    assert [parse(data).metadata["card"]["training"]["compile"] for data in (int8, fp16)] == [False, True]


@pytest.mark.parametrize("family", ["v2", "v6"])
def test_a_training_goes_on_from_a_codec(tmp_path: Path, family: str) -> None:
    from compressor.families import FAMILIES
    from flows.train import configure, train_flow

    folder, out = write_pictures(tmp_path / "in", 12), tmp_path / "out.safetensors"
    start = tmp_path / "start.safetensors"
    start.write_bytes(tiny_artifact(family, "int8"))
    given = {"source": str(folder), "start": str(start), "out": str(out), "batch": 2, "side": 32, "workers": 1}
    given["weights"] = "fp16"  # rounding to INT8 again might choose other scales
    gentle = train_flow(TrainParameters(**given, steps=1, learning_rate=1e-12))
    before, after = parse(start.read_bytes()), parse(out.read_bytes())
    assert gentle["family"] == family and after.metadata["network"] == before.metadata["network"]

    def values(artifact: Artifact) -> np.ndarray:
        return np.concatenate([p.numpy().ravel() for p in FAMILIES[family].network(artifact).parameters()])

    np.testing.assert_array_equal(values(after), values(before))
    train_flow(TrainParameters(**given, steps=20, learning_rate=1e-3))
    learned = parse(out.read_bytes())
    assert learned.metadata["card"]["start"]["id"] == before.id
    assert configure(TrainParameters(**given), learned=True).learning_rate == 2e-4
    assert (values(learned) != values(before)).mean() > 0.5


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
    artifact = parse(tiny_artifact("v5", "int8"))
    codec.write_bytes(dump({**artifact.metadata, "card": {"source": str(folder)}}, artifact.tensors))
    (folder / "long.png").write_bytes(encode_picture(np.zeros((1, 140_000, 3), np.uint8), 3))  # its middle is measured
    given = {"source": str(folder), "codec": [str(codec)], "effort": 2, "report": str(tmp_path / "report")}
    Image.new("RGBA", (40, 40), (0, 0, 0, 128)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    done = benchmark(BenchmarkParameters(**given, limit=4, workers=1))
    assert (done["pictures"], done["refused"]) == (3, {"alpha": 1, "truncated": 1})
    assert "mine was trained on pictures of this source" in done["notes"][0] in Path(done["markdown"]).read_text()
    assert "which an archive carries once, are not counted" in Path(done["html"]).read_text()
    table = pq.read_table(done["parquet"])

    def stored(name: str) -> list[tuple[int, float]]:
        return [(row["bytes"], row["psnr"]) for row in table.to_pylist() if row["codec"] == name]

    assert {"mine", "mine, effort 2", "JPEG"} <= set(table["codec"].to_pylist())
    decoded = {row["key"]: row["decoded_png_bytes"] for row in table.to_pylist()}
    assert decoded.keys() == {"000.png", "001.png", "long.png"} and decoded["long.png"] < 200
    assert len(stored("mine")) == len(stored("mine, effort 2")) and stored("mine") != stored("mine, effort 2")


def test_what_cannot_be_written_is_told_before_a_benchmark_and_after_a_training_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.train
    from compressor import report
    from flows.benchmark import benchmark

    folder, file = write_pictures(tmp_path / "in", 12), tmp_path / "file"
    file.touch()
    monkeypatch.setattr(report, "measure", lambda *_, **__: pytest.fail("it was measured first"))
    with pytest.raises(LatentpackError, match="a report cannot be written to"):
        benchmark(BenchmarkParameters(source=str(folder), report=str(file)))

    def full(address: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(flows.train, "write_file", full)
    given = {"family": "v2", "steps": 2, "batch": 2, "side": 32, "workers": 1, "out": str(tmp_path / "out")}
    with pytest.raises(CodecError, match="No space left on device; the codec is trained, and lies at ") as told:
        flows.train.train_flow(TrainParameters(source=str(folder), **given))
    assert parse(Path(str(told.value).rpartition(" ")[2]).read_bytes()).family == "v2"


def test_a_source_without_pictures_makes_no_report(tmp_path: Path) -> None:
    from flows.benchmark import benchmark

    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match="there is no picture here that can be measured"):
        benchmark(BenchmarkParameters(source=str(tmp_path / "in"), report=str(tmp_path / "report")))
    assert not (tmp_path / "report").exists()


def test_what_a_benchmark_measures_is_drawn_from_all_that_there_is(tmp_path: Path) -> None:
    from tasks.benchmark import load_pictures

    for folder in ("2019", "2024", "2025"):
        write_pictures(tmp_path / folder, 8)
    source = Source.open(str(tmp_path))
    some, _ = load_pictures(source, 9, [])
    assert len(some) == 9 and list(some) == sorted(some)
    assert {key.partition("/")[0] for key in some} == {"2019", "2024", "2025"}
    assert list(load_pictures(source, 9, [])[0]) == list(some)
    assert len(load_pictures(source, 100, [])[0]) == 24


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


def test_a_server_that_shows_nothing_ends_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.benchmark import benchmark
    from flows.train import train_flow

    tries: list[tuple[str, int]] = []

    def checkpoints() -> int:
        return len(list(codec_folder().glob("*.ckpt")))

    def refuse(*_: Any, key: str, **__: Any) -> None:
        tries.append((key, checkpoints() - before))
        raise httpx.ConnectError("no server")

    for module in (tasks.train, tasks.benchmark):
        monkeypatch.setattr(module, "create_markdown_artifact", refuse)
    folder, out = write_pictures(tmp_path / "in", 12), tmp_path / "out.safetensors"
    before = checkpoints()
    given = {"source": str(folder), "workers": 1}
    train_flow(TrainParameters(**given, family="v2", out=str(out), steps=4, batch=2, side=32))
    assert out.exists() and checkpoints() == before
    benchmark(BenchmarkParameters(**given, codec=[str(out)], limit=2, report=str(tmp_path / "measured")))
    assert list((tmp_path / "measured").iterdir())
    where = slug(str(folder))
    assert [(key.partition(where)[0], left) for key, left in tries] == [
        ("training-history-v2-on-", 1),
        ("benchmark-", 0),
    ]


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

"""Stages alone: planning, commits that run twice, retries, cache keys, choice of codec and packer."""

import errno
import itertools
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import KilledWorker
from prefect.states import Failed

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.choosing import check_codec, find_codec, packer_for, put_codec
from compressor.codec import artifact_bytes, load_codec
from compressor.errors import UNREADABLE, CodecError, SourceError
from compressor.images import resize_picture
from compressor.known import FINGERPRINT_BYTES
from compressor.learning import held_out
from compressor.parquet import QuarantineRow
from compressor.picture_writing import encode_picture
from compressor.planning import BATCH_BYTES, Batch, Listing, Plan, most_bytes, plan
from compressor.reading import FORBIDDEN
from compressor.samples import write_samples
from compressor.shards import ShardConfig, ShardRecord, drawn, load_shards, native_side, prepare_shard
from compressor.sources import Source, SourceFile
from compressor.summary import RunSummary, too_many
from compressor.wording import size
from tasks.caching import stage_key
from tasks.encode import commit, encode
from tasks.experiments import CellRecord, MeasurementRecord
from tasks.preprocess import prepare
from tasks.retries import caused_by_storage, is_of_prefect, retry_unless_told
from tasks.train import TrainingRecord
from tests.codecs import smooth_pictures, tiny_artifact, tiny_codec


def folder_of(path: Path, count: int, seed: int = 0) -> Source:
    """A source of small PNG files named 000.png and so on."""
    path.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(smooth_pictures(count, seed=seed)):
        (path / f"{number:03d}.png").write_bytes(encode_picture(pixels, 3))
    return Source.open(str(path))


def encoded(source: Source, archive: Archive, files: list[SourceFile], codec: str = "jpeg"):
    """The report of a batch, as the task gives it."""
    from compressor.encoding import EncodeOptions

    return encode.fn("0", source, files, archive.url, EncodeOptions(codec=codec), "run", 1)


def test_a_plan_counts_every_file_once(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 10)
    archive = Archive.create(str(tmp_path / "archive"))
    files = list(source.files())
    commit.fn(
        archive, Batch("0", tuple(files[:3]), frozenset()), encoded(source, archive, files[:3]), "run", frozenset()
    )
    archive.quarantine([QuarantineRow.now(files[3].key, files[3].fingerprint, "corrupt", "", "run")])
    found = plan(Listing(source), archive.known(), tmp_path / "plan.arrow", limit=5)
    counts = (found.listed, found.already_there, found.quarantined, found.pending, found.left)
    assert counts == (10, 3, 1, 5, 1)
    assert [len(batch.files) for batch in found.batches(4)] == [4, 1]
    assert [file for batch in found.batches(4) for file in batch.files] == files[4:9]


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([10, 10, 10, 10, 10], [3, 2]),
        ([11, 10, 10, 10, 10], [2, 3]),
        ([31, 1, 31, 10], [1, 1, 1, 1]),  # what is too large by itself is alone
        ([-1, 30, -1, 1], [3, 1]),  # some stores do not tell
        ([1] * 9, [4, 4, 1]),
        ([], []),
    ],
)
def test_a_batch_ends_before_its_files_have_too_many_bytes(
    tmp_path: Path, sizes: list[int], expected: list[int]
) -> None:
    class Sized(Source):
        def files(self):
            return iter(
                [
                    SourceFile(f"{number}", f"{number}", size, bytes(FINGERPRINT_BYTES))
                    for number, size in enumerate(sizes)
                ]
            )

    archive = Archive.create(str(tmp_path / "archive"))
    found = plan(Listing(Sized(str(tmp_path))), archive.known(), tmp_path / "plan.arrow")
    batches = list(found.batches(4, 30, itertools.count(7)))
    assert [len(batch.files) for batch in batches] == expected
    assert [file.key for batch in batches for file in batch.files] == [f"{number}" for number in range(len(sizes))]
    assert [batch.name for batch in batches] == [f"{7 + number}" for number in range(len(batches))]


@pytest.mark.parametrize(
    "pending, size, workers, expected",
    [
        (10, 0, 2, 5),  # less than a batch for each worker: even shares
        (1000, 24_661, 1, 1000),  # exactly one batch, of portraits
        (2001, 24_661, 2, 501),  # two rounds of equal batches, and none left over for a third
        (100_000, 24_661, 2, 1000),  # many rounds: as planned
        (300, 3_000_000, 2, 22),  # photographs: seven rounds
    ],
)
def test_small_plans_are_shared_evenly(pending: int, size: int, workers: int, expected: int) -> None:
    assert Plan("", pending, pending, 0, 0, 0, bytes=pending * size).even_batches(workers, 1000) == expected


def test_a_larger_batch_that_is_asked_for_may_have_more_bytes() -> None:
    assert most_bytes(50) == most_bytes(1000) == BATCH_BYTES and most_bytes(10_000) == 10_000 * 2**16


def test_halves_of_a_batch_are_the_batch() -> None:
    files = tuple(SourceFile(f"{number}", "", 1, bytes(8)) for number in range(5))
    first, second = Batch("7", files, frozenset({"0", "4"})).halves()
    assert first.files + second.files == files
    assert (first.changed, second.changed) == ({"0"}, {"4"})
    assert {first.name, second.name} == {"7a", "7b"}


def test_a_commit_that_is_repeated_changes_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 3)
    archive = Archive.create(str(tmp_path / "archive"))
    batch = Batch("0", tuple(source.files()), frozenset())
    report = encoded(source, archive, list(batch.files))
    for _ in range(2):
        commit.fn(archive, batch, report, "run", frozenset())
    assert sorted(Archive.open(archive.url).keys()) == ["000.png", "001.png", "002.png"]
    assert archive.version == 1


def test_a_picture_that_is_archived_leaves_the_quarantine(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    archive = Archive.create(str(tmp_path / "archive"))
    files = list(source.files())
    archive.quarantine([QuarantineRow.now(file.key, bytes(8), "truncated", "", "earlier") for file in files])
    batch = Batch("0", tuple(files[:1]), frozenset())
    commit.fn(archive, batch, encoded(source, archive, files[:1]), "run", frozenset(file.key for file in files))
    assert [row.key for row in archive.quarantined()] == [files[1].key]


def test_only_storage_failures_are_retried() -> None:
    hidden = SourceError("cannot list")
    hidden.__cause__ = ConnectionResetError(104, "reset")
    assert caused_by_storage(hidden)
    assert caused_by_storage(TimeoutError())
    assert not caused_by_storage(SourceError("no such bucket"))
    assert not caused_by_storage(FileNotFoundError(2, "gone"))
    assert not caused_by_storage(ValueError("damaged"))


def test_cache_keys_differ_in_all_that_a_result_depends_on() -> None:
    keys = {
        stage_key(stage, version, content, configuration)
        for stage in ("shard", "train")
        for version in (1, 2)
        for content in ("a", "b")
        for configuration in ({"side": 64}, {"side": 128})
    }
    assert len(keys) == 16
    assert stage_key("shard", 1, "a", {"x": 1, "y": 2}) == stage_key("shard", 1, "a", {"y": 2, "x": 1})


def test_what_is_remembered_is_only_as_good_as_its_file(tmp_path: Path) -> None:
    """A power cut, or a full disk, may have left half of it."""
    data = tiny_artifact("v1")
    codec, measured = tmp_path / "codec", tmp_path / "measured.json"
    codec.write_bytes(data)
    measured.write_text('{"rows": []}')
    trained = TrainingRecord(str(codec), identify(data), "v1", 1, 1, 1.0, "cpu", {}, [])
    cell, measurement = CellRecord(str(codec), identify(data), None), MeasurementRecord(str(measured))
    assert trained.exists() and cell.exists() and measurement.exists()
    codec.write_bytes(data[:1000])
    for text in ("[1]", '{"rows": ['):
        measured.write_text(text)
        assert not measurement.exists()
    assert not trained.exists() and not cell.exists() and not measurement.exists()
    codec.unlink()
    measured.unlink()
    assert not trained.exists() and not cell.exists() and not measurement.exists()


def test_a_training_is_tried_again_unless_a_person_has_to_mend_something() -> None:
    def tried(error: Exception, cause: Exception | None = None) -> bool:
        error.__cause__ = cause
        return retry_unless_told(prepare, None, Failed(data=error))  # type: ignore[arg-type]

    assert tried(RuntimeError("the device was lost")) and tried(MemoryError())
    assert tried(SourceError("cannot be listed"), ConnectionResetError(errno.ECONNRESET, "reset"))
    assert not tried(SourceError("there is no picture")) and not tried(CodecError("no such family"))


def test_prefects_own_errors_are_told_from_those_of_pictures() -> None:
    import httpx
    from prefect.concurrency.v1.asyncio import ConcurrencySlotAcquisitionError
    from prefect.exceptions import PrefectHTTPStatusError

    of_prefect = [
        httpx.ConnectError("refused"),
        ConcurrencySlotAcquisitionError("limits"),
        PrefectHTTPStatusError("500", request=None, response=None),  # type: ignore[arg-type]
        RuntimeError("Failed to reach API at http://127.0.0.1:4200/api/"),
    ]
    assert all(map(is_of_prefect, of_prefect))
    for error in (
        RuntimeError("a"),
        KilledWorker("encode", SimpleNamespace(address="tcp://a:1"), 1),
        ConnectionError("refused"),
        CodecError("a"),
    ):
        assert not is_of_prefect(error)


def shard_arguments(source: Source, folder: Path) -> dict[str, Any]:

    batch = Batch("0", tuple(source.files()), frozenset())
    return {"source": source, "batch": batch, "config": ShardConfig(side=32), "folder": folder, "threads": 1}


def test_a_shard_that_has_vanished_is_made_again(tmp_path: Path, prefect_api: str) -> None:
    from tasks.caching import fresh

    source = folder_of(tmp_path / "in", 4)
    arguments = shard_arguments(source, tmp_path / "shards")
    first = fresh(prepare, ShardRecord, **arguments)
    written = Path(first.path).stat().st_mtime_ns
    assert fresh(prepare, ShardRecord, **arguments) == first
    assert Path(first.path).stat().st_mtime_ns == written, "the second call was no cache hit"
    Path(first.path).unlink()
    assert load_shards([fresh(prepare, ShardRecord, **arguments)]).shape == (4, 32, 32, 3)
    (tmp_path / "in" / "000.png").write_bytes(b"changed")
    assert fresh(prepare, ShardRecord, **shard_arguments(source, tmp_path / "shards")).count == 3


def test_another_source_with_the_same_names_sizes_and_times_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    """As two zips leave them, or tar with --mtime."""
    from compressor.experiments.cells import Cell
    from compressor.training import TrainingConfig
    from tasks.caching import fresh
    from tasks.experiments import _train_key
    from tasks.train import training_key

    for seed, name in enumerate(["one", "other"]):
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(smooth_pictures(3, seed=seed)):
            path = tmp_path / name / f"{number}.bmp"
            path.write_bytes(encode_picture(pixels, 3, "bmp"))
            os.utime(path, (0, 0))
    one, other = (
        fresh(prepare, ShardRecord, **shard_arguments(Source.open(str(tmp_path / name)), tmp_path / "shards"))
        for name in ["one", "other"]
    )
    assert not np.array_equal(load_shards([one]), load_shards([other]))
    config = TrainingConfig()
    assert training_key("v3", [one], config, "int8") != training_key("v3", [other], config, "int8")
    keys = {_train_key(None, {"cell": Cell("v3"), "config": config, "shards": [shard]}) for shard in (one, other)}
    assert len(keys) == 2
    monkeypatch.chdir(tmp_path)
    for same in ("one/", "./one", "other/../one", f"file://{tmp_path}/one"):
        assert prepare_shard(Source.open(same), list(Source.open(same).files()), ShardConfig(side=32), tmp_path) == (
            replace(one, path=str(tmp_path / Path(one.path).name))
        )


def test_a_shard_is_written_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_of(tmp_path / "in", 8)
    (tmp_path / "in" / "003.png").write_bytes(b"no picture")
    files, config = list(source.files()), ShardConfig(side=32)
    whole = prepare_shard(source, files, config, tmp_path / "whole")
    held: list[weakref.ref[np.ndarray]] = []
    most = 0

    def resize(*arguments: Any) -> np.ndarray:
        nonlocal most
        held.append(weakref.ref(picture := resize_picture(*arguments)))
        most = max(most, sum(one() is not None for one in held))
        return picture

    monkeypatch.setattr("compressor.shards.resize_picture", resize)
    monkeypatch.setattr("compressor.shards.BYTES_AT_ONCE", 2 * 32 * 32 * 3)
    portions = prepare_shard(source, files, config, tmp_path / "portions")
    assert most <= 5, "two that are being written, two that wait, and the newest"
    assert (portions.digest, portions.count, portions.refused) == (whole.digest, 7, {"not_a_picture": 1})
    assert portions.exists() and (load_shards([portions]) == load_shards([whole])).all()


def test_squares_are_cut_from_pictures_at_their_own_size(tmp_path: Path) -> None:
    sizes = {"even.png": (64, 64), "large.png": (70, 200), "small.png": (20, 40)}
    (tmp_path / "in").mkdir()
    pictures = {}
    for name, (height, width) in sizes.items():
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        pictures[name] = np.stack([y, x, np.full_like(x, height)], axis=2)
        (tmp_path / "in" / name).write_bytes(encode_picture(pictures[name], 3))
    source = Source.open(str(tmp_path / "in"))
    files = list(source.files())
    record = prepare_shard(source, files, ShardConfig(side=32, crops=6), tmp_path)
    squares = load_shards([record])
    assert len(squares) == 4 + 6 + 1 and record.native_side == 64
    assert len(np.unique(squares.reshape(11, -1), axis=0)) == 11
    for square, name in zip(squares[:10], [*["even.png"] * 4, *["large.png"] * 6], strict=True):
        top, left, _ = square[0, 0].tolist()
        assert np.array_equal(square, pictures[name][top : top + 32, left : left + 32])
    assert np.array_equal(squares[10], resize_picture(pictures["small.png"], 32))
    assert np.array_equal(
        load_shards([prepare_shard(source, files, ShardConfig(32, crops=6), tmp_path / "b")]), squares
    )
    whole = prepare_shard(source, files, ShardConfig(side=32), tmp_path)
    assert whole.digest != record.digest and whole.count == 3 and native_side([whole, record]) == 64
    assert native_side([ShardRecord("", "", 1, {})]) == 0, "remembered from before"
    as_before = ShardConfig(32).digest(SimpleNamespace(address="/in"), [SourceFile("a.png", "/a.png", 1, b"12345")])
    assert as_before == "0be497304eef2b6296c987560a072add", "shards of an earlier version are found again"


@pytest.mark.parametrize(
    ("total", "together", "held", "runs"),
    [
        (100, 1, 5, 5),
        (1000, 8, 48, 6),
        (803, 8, 40, 5),
        (100_000, 8, 512, 64),
        (9, 8, 1, 1),
        (1025, 1024, 51, 1),
        (5000, 1024, 250, 1),
        (1, 0, 1, 1),
    ],
)
def test_squares_of_a_picture_are_held_out_side_by_side(total: int, together: int, held: int, runs: int) -> None:
    chosen = held_out(total, 512, together)
    assert chosen.shape == (total,) and chosen.sum() == held
    assert np.count_nonzero(np.diff(chosen.astype(int), prepend=0) == 1) == runs


def test_half_a_shard_is_made_again(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", 2)
    record = prepare_shard(source, list(source.files()), ShardConfig(side=32), tmp_path / "shards")
    assert record.exists()
    os.truncate(record.path, Path(record.path).stat().st_size // 2)
    assert not record.exists()
    os.truncate(record.path, 2)
    assert not record.exists()


def test_pictures_are_drawn_from_all_of_a_listing_and_stay_in_order() -> None:

    files = [SourceFile(f"{number:04d}", f"{number:04d}", 1, b"") for number in range(1000)]
    assert drawn(iter(files), 1000, 1) == files
    some = drawn(iter(files), 100, 1)
    assert some == drawn(iter(files), 100, 1) == sorted(set(some), key=lambda file: file.key)
    thirds = np.bincount([int(file.key) * 3 // 1000 for file in some])
    assert len(some) == 100 and thirds.min() > 20
    assert some != drawn(iter(files), 100, 2)


def test_chosen_pictures_of_shards_are_loaded_alone(tmp_path: Path) -> None:

    source = folder_of(tmp_path / "in", 5)
    files = list(source.files())
    halves = [prepare_shard(source, half, ShardConfig(side=32), tmp_path) for half in (files[:2], [], files[2:])]
    whole = load_shards(halves)
    chosen = np.array([False, True, True, False, True])
    assert whole.shape == (5, 32, 32, 3) and len(np.unique(whole.reshape(5, -1), axis=0)) == 5
    assert (load_shards(halves, chosen) == whole[chosen]).all()
    with pytest.raises(SourceError, match="no picture to train on"):
        load_shards(halves[1:2])


def test_a_shard_lacks_what_the_source_did_not_give_only_until_the_next_time(tmp_path: Path, prefect_api: str) -> None:
    from compressor.training import TrainingConfig
    from tasks.caching import fresh
    from tasks.train import training_key

    arguments = shard_arguments(folder_of(tmp_path / "in", 4), tmp_path / "shards")
    (tmp_path / "in").rename(tmp_path / "away")
    with_gaps = fresh(prepare, ShardRecord, **arguments)
    assert (with_gaps.count, with_gaps.refused) == (0, {UNREADABLE: 4})
    (tmp_path / "away").rename(tmp_path / "in")
    whole = fresh(prepare, ShardRecord, **arguments)
    assert whole.count == 4
    keys = [training_key("v3", [record], TrainingConfig(), "int8") for record in (with_gaps, whole)]
    assert keys[0] != keys[1], "what was learned with gaps is no answer once there are none"


def test_a_file_that_may_not_be_read_is_not_asked_for_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor import sources

    source = folder_of(tmp_path / "in", 3)
    read = sources._read_local

    def forbid(path: str) -> bytes:
        if path.endswith("001.png"):
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    monkeypatch.setattr(sources, "_read_local", forbid)
    record = prepare_shard(source, list(source.files()), ShardConfig(side=32), tmp_path)
    assert (record.count, record.refused) == (2, {FORBIDDEN: 1}) and record.exists()


def test_an_archive_carries_the_codec_of_a_run(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    (tmp_path / "own.safetensors").write_bytes(tiny_artifact("v2"))
    name, codec = put_codec(archive, str(tmp_path / "own.safetensors"))
    (tmp_path / "own.safetensors").unlink()
    check_codec(name, archive.url)
    assert put_codec(archive, name)[0] == codec.id == name
    assert put_codec(archive, "avif")[0] == "avif"
    for use in (check_codec, find_codec, lambda name, url: put_codec(Archive.open(url), name)):
        with pytest.raises(CodecError, match="there is no codec 'nope'"):
            use("nope", archive.url)


def test_a_codec_is_named_by_the_beginning_of_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive, nowhere = Archive.create("archive"), str(tmp_path / "nowhere")
    id, shipped = archive.put_codec(tiny_artifact("v2")), identify(artifact_bytes("faces"))
    for name in (id, id[:12], id[:8]):
        check_codec(name, archive.url)
        assert find_codec(name, archive.url).id == put_codec(archive, name)[0] == id
    assert find_codec(shipped[:12], nowhere).id == put_codec(archive, shipped[:8])[0] == shipped
    for name, url in [(id[:7], archive.url), (id[:8], nowhere), ("0" * 32, archive.url)]:
        with pytest.raises(CodecError, match=f"there is no codec '{name}': .* 8 or more of the first"):
            check_codec(name, url)
    other = Path("archive/codecs") / f"{id[:10]}{'0' * 22}.safetensors"
    other.touch()
    with pytest.raises(CodecError, match=f"2 codecs have an id that begins with {id[:9]}: name one, {id[:10]}.* or "):
        check_codec(id[:9], archive.url)
    Path(id[:9]).write_bytes(tiny_artifact("v3"))  # a file of that name is meant
    assert find_codec(id[:9], archive.url).id == identify(tiny_artifact("v3"))


def test_a_file_that_is_no_codec_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no artifact at all")
    archive, name = Archive.create(str(tmp_path / "archive")), str(tmp_path / "bad.safetensors")
    for use in (load_codec, lambda name: find_codec(name, archive.url), lambda name: put_codec(archive, name)):
        with pytest.raises(CodecError, match=f"^{name}: not a latentpack codec: its header"):
            use(name)


@pytest.mark.parametrize(
    "family, packer, latents, expected",
    [
        ("v2", "auto", "int8", "auto"),
        ("v2", "lzma", "int8", "int8-lzma"),
        ("v2", "auto", "fp16", "fp16-lzma"),
        ("v2", "gzip", "fp32", "fp32-gzip"),
        ("v2", "entropy", "fp16", None),  # floats have no table
        ("v5", "entropy", "int8", "entropy"),
        ("v5", "auto", "fp16", None),  # its latents are integers
    ],
)
def test_packers_and_types_of_latents(family: str, packer: str, latents: str, expected: str | None) -> None:
    codec = tiny_codec(family)
    if expected is None:
        with pytest.raises(CodecError, match=f"has no packer|--latents {latents} is for families v1 to v4"):
            packer_for(codec, packer, latents)
    else:
        assert packer_for(codec, packer, latents) == expected


@pytest.mark.parametrize(
    "budget, failed, tried, finished, stop",
    [
        (None, 50, 50, True, False),
        ("3", 3, 10, False, False),
        ("3", 4, 10, False, True),
        ("10%", 5, 20, False, False),  # too few to tell
        ("10%", 5, 20, True, True),
        ("10%", 20, 150, False, True),
        ("0%", 1, 100, False, True),
    ],
)
def test_failure_budget(budget: str | None, failed: int, tried: int, finished: bool, stop: bool) -> None:
    assert too_many(failed, tried, budget, finished) is stop


def test_counts_that_do_not_reconcile_are_an_error() -> None:
    summary = RunSummary("run", "in", "out", "codec", listed=3, archived=1, already_there=1)
    with pytest.raises(AssertionError, match="3 listed"):
        summary.reconcile()
    summary.quarantined = 1
    summary.reconcile()


def test_sizes_for_people() -> None:
    assert [size(count) for count in (0, 999, 1500, 2_500_000, 3e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3000.0 TB",
    ]


def test_samples_are_the_same_each_time(tmp_path: Path) -> None:
    first = write_samples(tmp_path / "a")
    assert first == write_samples(tmp_path / "b") > 100
    one, other = (sorted((tmp_path / name).rglob("*.png")) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]

"""Whole flows on small pictures: what is new is archived once, what fails is listed, what is missing is told."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compressor.archive import Archive
from compressor.codec import released
from compressor.errors import CRASHED, LatentpackError
from compressor.parquet import QuarantineRow
from compressor.picture_writing import encode_picture
from compressor.wording import describe, remarks, unchanged
from flows.dispatch import ThisProcess
from flows.errors import EndedUnwell
from flows.options import build_parser
from flows.parameters import PipelineParameters
from tasks.artifacts import address_slug
from tests.codecs import smooth_pictures, tiny_artifact
from tests.rows import picture_row
from tests.runs import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


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


def test_metadata_is_kept_of_what_a_run_that_asks_for_it_archives(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    exif = Image.Exif()
    exif[306] = "2026:11:28 12:00:00"
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(smooth_pictures(1)[0]).save(folder / name, exif=exif.tobytes())
    first = archive_it(folder, archive, keep_metadata=True)
    assert (first["archived"], first["dropped"]) == (4, {})
    Image.fromarray(smooth_pictures(1)[0]).save(folder / "c.jpg", exif=exif.tobytes())
    transparent = Image.fromarray(np.dstack([smooth_pictures(1)[0], np.full((32, 32), 9, np.uint8)]))
    transparent.save(folder / "d.png", exif=exif.tobytes())
    transparent.save(folder / "e.png")
    second = archive_it(folder, archive)
    assert second["dropped"] == {"EXIF": 1} and any("--keep-metadata stores EXIF" in text for text in remarks(second))
    assert second["kept"] == {"alpha": 2} and any("came along with 1 file archived" in text for text in remarks(second))
    rows = {row.key: row for rows in Archive.open(str(archive)).scan() for row in rows}
    taken = {key for key, row in rows.items() if row.taken == "2026-11-28T12:00:00"}
    assert taken == {key for key, row in rows.items() if row.exif} == {"a.jpg", "b.jpg"}
    transparent.save(folder / "f.png", exif=exif.tobytes())
    third = archive_it(folder, archive, keep_metadata=True)
    assert not any("came along" in text for text in remarks(third))
    assert third["archived"] == 1 and "--keep-metadata may say" in unchanged(third)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "webp", "quality": 0}, "quality must be from 1 to 100 for WebP.*, not 0"),
        ({"codec": "webp", "packer": "lzma"}, "WebP.* has no packer 'lzma': choose from auto"),
        ({"codec": "webp", "latents": "fp16"}, "--latents fp16 is for families v1 to v4, which WebP.* is not of"),
        ({"latents": "fp16"}, r"v1 to v4, which .* \(v5\), .* is not of: leave it out"),
        ({"codec": "webp", "effort": 1}, "WebP.* knows no effort but 0"),
        ({"quality": 90}, "quality must be from 0 to 63 for .*, not 90"),
    ],
)
def test_what_the_codec_does_not_know_is_told_before_anything_is_made(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "own.safetensors").write_bytes(tiny_artifact("v5"))
    codec = {"codec": str(tmp_path / "own.safetensors")}
    with pytest.raises(LatentpackError, match=message):
        archive_it(write_pictures(tmp_path / "in", 1), tmp_path / "archive", **codec | options)
    assert not (tmp_path / "archive").exists()


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


def test_what_is_archived_as_it_is_leaves_the_list_of_failures(tmp_path: Path) -> None:
    """A run that is killed after a commit has not taken its pictures off yet; and a file may be put back as it was."""
    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    archive_it(folder, archive)
    failed = {"000.png": "corrupt", "001.png": CRASHED, "gone.png": CRASHED}
    entries = [QuarantineRow.now(key, b"12345678", reason, "", "run") for key, reason in failed.items()]
    Archive.open(str(archive)).quarantine(entries)
    assert archive_it(folder, archive)["already_there"] == 3
    assert [row.key for row in Archive.open(str(archive)).quarantined()] == ["gone.png"]


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


class AheadOfItself(ThisProcess):
    """Takes three batches before it gives the first back, as workers do."""

    def run(self, task: Any, take: Any, arguments: Any, hear: Any = None) -> Iterator[tuple[Any, Any]]:
        under_way = [item for _ in range(3) if (item := take())]
        while under_way:
            item = under_way.pop(0)
            yield item, task(**arguments(item))
            under_way += filter(None, [take()])


def test_what_is_under_way_when_a_run_stops_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.pipeline

    monkeypatch.setattr(flows.pipeline, "pool", lambda *_: nullcontext(AheadOfItself()))
    folder, archive = write_pictures(tmp_path / "in", 8), tmp_path / "archive"
    (folder / "000a.png").write_text("not a picture")
    with pytest.raises(EndedUnwell, match="1 of 6 pictures failed, .*not archived: 3 pictures") as given_up:
        archive_it(folder, archive, batch_size=2, max_failures="0")
    stopped = given_up.value.result
    assert (stopped["archived"], stopped["quarantined"], stopped["not_reached"]) == (5, 1, 3)
    assert len(Archive.open(str(archive))) == 5


def test_a_run_that_was_to_stop_and_got_through_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compressor.summary
    import flows.pipeline

    monkeypatch.setattr(flows.pipeline, "pool", lambda *_: nullcontext(AheadOfItself()))
    monkeypatch.setattr(compressor.summary, "BUDGET_FROM", 2)
    folder = write_pictures(tmp_path / "in", 5)
    (folder / "000a.png").write_text("not a picture")
    done = archive_it(folder, tmp_path / "archive", batch_size=2, max_failures="20%")  # half of the first two
    assert (done["archived"], done["quarantined"], done["not_reached"], done["stopped"]) == (5, 1, 0, None)


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


def test_what_another_run_archived_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.pipeline

    folder, archive = write_pictures(tmp_path / "in", 4), tmp_path / "archive"
    commit = flows.pipeline.commit

    def overtaken(to: Archive, *rest: Any) -> Any:
        other = Archive.open(str(archive))
        other.commit([other.write_part([picture_row("001.png"), picture_row("003.png"), picture_row("else.png")])])
        return commit(to, *rest)

    monkeypatch.setattr(flows.pipeline, "commit", overtaken)
    done = archive_it(folder, archive)
    assert (done["listed"], done["archived"], done["overtaken"], done["replaced"]) == (4, 4, 2, 0)
    assert dict(describe(done))["archived"] == "4, 2 of them also by another run, whose rows stay"
    assert any("2 pictures of those archived are there as another run stored them" in text for text in remarks(done))
    opened = Archive.open(str(archive))
    assert len(opened) == 5 and opened.read_row("003.png").codec == "jpeg" and opened.verify() == []


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
    asked = {"archive": str(archive), "destination": str(out)}
    with caplog.at_level("INFO", logger="prefect.flow_runs"), pytest.raises(EndedUnwell) as found:
        restore(RestoreParameters(**asked, key=["missing.png"]))
    assert "1 picture not restored, such as missing.png: " in str(found.value)
    assert f"; 0 pictures at {out} on " in str(found.value) and str(found.value) in caplog.text
    assert "Traceback" not in caplog.text, "what a person may do wrong is no bug"
    assert found.value.result["written"] == 0
    artifact = Artifact.get(f"restore-{address_slug(str(archive))}")
    assert artifact and "missing.png" in str(artifact.data)
    state = restore(RestoreParameters(**asked), return_state=True)
    assert state.is_completed() and f"1 picture at {out} on " in str(state.message)


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
    with pytest.raises(EndedUnwell, match="3 pictures verified, 1 of them bad, such as 001.png: stored .*; run repair"):
        verify(VerifyParameters(archive=str(archive)))
    with pytest.raises(
        EndedUnwell, match="0 pictures encoded again, 0 taken out, 1 left as they are, such as 001.png: "
    ):
        repair(RepairParameters(archive=str(archive)))
    shown = {stage: f"{stage}-{address_slug(str(archive))}" for stage in ("verify", "repair")}
    for key in shown.values():
        artifact = Artifact.get(key)
        assert artifact and "001.png" in str(artifact.data)
    done = repair(RepairParameters(archive=str(archive), source=str(folder)))
    assert (done["regained"], done["codec"]) == (["001.png"], opened.read_row("000.png").codec)
    assert verify(VerifyParameters(archive=str(archive)))["problems"] == []
    told = {stage: Artifact.get(key) for stage, key in shown.items()}
    assert told["verify"] and told["verify"].data == "[]", "what is mended is no longer shown"
    assert told["repair"] and json.loads(str(told["repair"].data)) == [{"key": "001.png", "reason": "encoded again"}]


def test_pictures_whose_names_are_lost_are_counted_by_a_repair_on_a_server(tmp_path: Path) -> None:
    from prefect.artifacts import Artifact

    from flows.archive import repair, verify
    from flows.parameters import RepairParameters, VerifyParameters

    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    archive_it(folder, archive)
    (part,) = (archive / "images").glob("*.parquet")
    part.unlink()
    with pytest.raises(EndedUnwell, match="0 pictures verified, 0 of them bad, 3 cannot be read, such as part-"):
        verify(VerifyParameters(archive=str(archive)))
    with pytest.raises(EndedUnwell, match="3 taken out .*such as 3 pictures: taken out: of files that name them no"):
        repair(RepairParameters(archive=str(archive), drop=True))
    artifact = Artifact.get(f"repair-{address_slug(str(archive))}")
    assert artifact and "3 taken out" in str(artifact.description) and "3 pictures" in str(artifact.data)


def test_a_flow_that_is_to_be_retried_is_and_each_has_a_version_of_its_own(tmp_path: Path) -> None:
    from flows.archive import restore
    from flows.parameters import RestoreParameters
    from flows.pipeline import pipeline

    archive = Archive.create(str(tmp_path / "archive"))
    missing = RestoreParameters(archive=archive.url, destination=str(tmp_path / "out"), key=["missing.png"])
    with pytest.raises(EndedUnwell, match="1 picture not restored"):
        restore.with_options(retries=1, retry_delay_seconds=0)(missing)
    state = restore.with_options(retries=1, retry_delay_seconds=0)(missing, return_state=True)
    assert state.is_failed() and "1 picture not restored" in str(state.message)
    assert pipeline.version and restore.version and pipeline.version != restore.version


def test_what_is_quarantined_is_shown_as_long_as_it_is_and_a_run_says_what_needs_a_look(tmp_path: Path) -> None:
    from prefect.artifacts import Artifact

    from flows.parameters import PipelineParameters
    from flows.pipeline import pipeline

    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    (folder / "bad.png").write_text("not a picture")
    for night in range(2):
        state = pipeline(PipelineParameters(source=str(folder), archive=str(archive)), return_state=True)
        assert state.is_completed() and "1 picture quarantined; see with: latentpack" in str(state.message), night
        artifact = Artifact.get(f"quarantine-{address_slug(str(archive))}")
        assert artifact and [row["key"] for row in json.loads(str(artifact.data))] == ["bad.png"]
        assert f"1 picture quarantined in {archive}, {1 - night} by run" in str(artifact.description)
        summary = Artifact.get(f"run-summary-{address_slug(str(archive))}")
        assert summary and "Needs a look" in str(summary.data)


def test_progress_ends_where_the_run_did(tmp_path: Path) -> None:
    from prefect.artifacts import Artifact

    folder, archive = write_pictures(tmp_path / "in", 2), tmp_path / "archive"
    for number in range(4):
        (folder / f"00{number}a.png").write_text("not a picture")
    with pytest.raises(EndedUnwell):
        archive_it(folder, archive, batch_size=2, max_failures="0")
    artifact = Artifact.get(f"run-progress-{address_slug(str(archive))}")
    assert artifact and artifact.description == "ended at 2 of 6 pictures"


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
    assert any(level == "INFO" and "listed 3 pictures, archived 2, 1 quarantined" in text for level, text in told)
    warnings = [text for level, text in told if level == "WARNING"]
    for words in ("1 picture quarantined; see with", "1 file not listed, for extensions such as '.jpg_large'"):
        assert any(text.startswith(words) for text in warnings), words
    assert any(text.startswith("there is no picture in ") for text in warnings)


def test_a_codec_of_one_quality_is_told_to_hold_no_target_unless_a_floor_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(tiny_artifact("v1"))
    folder = write_pictures(tmp_path / "in", 2)

    def told(codec: str, **options: Any) -> bool:
        run = archive_it(folder, tmp_path / f"archive-{codec}-{len(options)}", codec=str(tmp_path / codec), **options)
        return any("has one quality, so no target holds" in text for text in remarks(run))

    (tmp_path / "other.safetensors").write_bytes(tiny_artifact("v5"))
    assert told("own.safetensors")
    assert not told("own.safetensors", min_psnr=1)
    assert not told("other.safetensors")


def test_a_choice_that_changes_nothing_of_pictures_already_there_is_told(tmp_path: Path) -> None:
    from flows.pipeline import pipeline

    write_pictures(tmp_path / "in", 2)

    def told(**options: Any) -> list[str]:
        given = PipelineParameters(source=str(tmp_path / "in"), archive=str(tmp_path / "archive"), workers=1, **options)
        return unchanged(pipeline(given))

    assert not told(codec="webp")  # nothing was there
    assert not told()
    (remark,) = told(target_psnr=40, min_psnr=41)
    assert "2 pictures already there" in remark and "--target-psnr, --min-psnr" in remark


def test_what_the_demo_recommends_are_commands_and_keep_the_promise(tmp_path: Path) -> None:
    from flows.demo import _next

    lines = [line.split() for line in _next(tmp_path).splitlines() if line.startswith("  latentpack")]
    commands = [build_parser().parse_known_args(words[1:])[0] for words in lines]
    assert [given.command for given in commands] == ["run", "info", "sheet", "restore", "train"]
    assert commands[-1].start in released()  # of a family with a choice of qualities

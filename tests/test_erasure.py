"""What is deleted is nowhere; what another run or program may need stays."""

import os
import time
from pathlib import Path

import pytest

from compressor.archive import Archive
from compressor.delta_log import DeltaLog
from compressor.parquet import QuarantineRow
from tests.codecs import tiny_artifact
from tests.rows import add, age, contents, files_of, picture_row


def test_deleted_pictures_are_in_no_file(archive):
    secret = picture_row("secret/person.png", 77)
    add(archive, [picture_row("a", 1), secret, picture_row("z", 2)])
    add(archive, [picture_row("b", 3)])
    archive.compact()
    archive.quarantine([QuarantineRow.now("secret/person.png", b"12345678", "corrupt", "no", "run")])
    assert archive.delete(["secret/person.png", "not there"]) == 1
    for folder, _, names in os.walk(archive.url):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            assert secret.payload not in data, name
            assert b"secret" not in data, name
    assert list(contents(archive)) == ["a", "b", "z"]
    assert list(Archive.open(archive.url).quarantined()) == []


def test_a_deletion_killed_before_its_bytes_were_gone_is_finished_by_the_next(archive):
    secret = picture_row("secret.png", 77)
    add(archive, [picture_row("a", 1), secret])
    archive._images.delete([secret.key])
    assert len(files_of(archive)) == 2
    assert archive.delete([secret.key]) == 0
    assert len(files_of(archive)) == 1


def test_others_go_on_after_a_deletion_has_cut_the_log(archive):
    add(archive, [picture_row(key, 1) for key in "abc"])
    reader, writer = Archive.open(archive.url), Archive.open(archive.url)
    for seed in range(3):
        add(archive, [picture_row(f"d{seed}")])
    archive.delete(["b"])
    assert reader.read_row("a").key == "a"  # its file is gone: it looks again
    add(writer, [picture_row("x")], batch_id="x")
    writer.compact()
    writer.vacuum()
    assert sorted(contents(archive)) == ["a", "c", "d0", "d1", "d2", "x"]


def test_deleting_takes_orphans_that_hold_the_picture(archive):
    secret = picture_row("secret.png", 77)
    add(archive, [picture_row("a", 1), secret])
    orphan = Path(archive.url, "images", archive.write_part([secret]).path)  # of a run that was killed
    os.utime(orphan, (time.time() - 3700,) * 2)
    assert archive.delete(["secret.png"]) == 1 and not orphan.exists()


@pytest.mark.parametrize("hours", [0, 1])
def test_vacuum_leaves_runs_in_flight_alone(archive, hours):
    add(archive, [picture_row("a")])
    codec = archive.put_codec(tiny_artifact("v5"))
    Path(archive.url, "codecs", "tmp-killed01").touch()
    orphan = archive.write_part([picture_row("c")])
    age(archive)
    Path(archive.url, "codecs", "tmp-arriving").touch()
    waiting = archive.write_part([picture_row("b")])
    assert archive.vacuum(hours) == 2
    assert sorted(os.listdir(f"{archive.url}/codecs")) == sorted(["tmp-arriving", f"{codec}.safetensors"])
    assert orphan.path not in files_of(archive)
    archive.commit([waiting])
    assert sorted(contents(archive)) == ["a", "b"]


@pytest.mark.parametrize("hours", [0, 1])
def test_the_age_that_vacuum_is_given_is_that_of_replaced_files(archive, hours):
    add(archive, [picture_row("a", 1)])
    add(archive, [picture_row("a", 2)], replaced=["a"])
    age(archive)
    assert archive.vacuum(hours) == (hours == 0)
    assert [row.fingerprint[0] for row in contents(archive).values()] == [2]


@pytest.mark.parametrize("erasing", [False, True])
def test_what_is_committed_while_vacuum_lists_orphans_stays(archive, monkeypatch, erasing):
    add(archive, [picture_row("a")])
    late = archive.write_part([picture_row("late")])
    age(archive)
    unneeded, waiting = DeltaLog.unneeded, [late]

    def commit_meanwhile(log: DeltaLog, hours: int, full: bool) -> list[str]:
        found = unneeded(log, hours, full)
        if late.path in found and waiting:
            Archive.open(archive.url).commit([waiting.pop()])
        return found

    monkeypatch.setattr(DeltaLog, "unneeded", commit_meanwhile)
    assert (archive.delete(["nothing"]) if erasing else archive.vacuum()) == 0
    assert not waiting and sorted(contents(archive)) == ["a", "late"]


def test_no_file_is_deleted_that_latentpack_did_not_write(archive):
    """However it came there: ``create`` of earlier versions took a folder that held only ``images``."""
    theirs = [
        "images/a.png", "images/tmp-a.png", "images/2024/part-793e49c8a0e6475dafc813ddefa86370.parquet",
        "images/part-00000-1.snappy.parquet", "quarantine/list.csv", "codecs/tmp-notes.txt", "codecs/tmp-old/x",
        "tmp-a.png",
    ]  # fmt: skip
    for name in theirs:
        Path(archive.url, name).parent.mkdir(exist_ok=True)
        Path(archive.url, name).write_bytes(b"theirs")
    ours = ["images/part-793e49c8a0e6475dafc813ddefa86370.parquet", "images/tmp-abcdefgh", "codecs/tmp-a0b1c2_d"]
    for name in ours:
        Path(archive.url, name).write_bytes(b"ours")
    add(archive, [picture_row("a"), picture_row("b")])
    assert archive.delete(["a"]) == 1
    age(archive)
    archive.vacuum(0)
    assert archive.delete(["b"]) == 1
    assert {name: Path(archive.url, name).read_bytes() for name in theirs} == dict.fromkeys(theirs, b"theirs")
    assert not any(Path(archive.url, name).exists() for name in ours)
    assert archive.verify() == [] and archive.info().files == 0

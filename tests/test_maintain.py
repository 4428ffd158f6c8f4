"""The weekly care of an archive: small files become few, and damage stops it before anything is deleted."""

from pathlib import Path

import pytest

from compressor.archive import Archive
from compressor.errors import ArchiveError
from flows.cli import run
from flows.parameters import MaintainParameters
from tests.runs import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_many_small_files_become_one_and_every_picture_stays(tmp_path: Path) -> None:
    from flows.archive import maintain

    folder, archive = tmp_path / "in", tmp_path / "archive"
    for night in range(3):
        write_pictures(folder / str(night), 2, seed=night)
        archive_it(folder, archive)
    before = Archive.open(str(archive))
    assert len(before.tables[0].parts) == 3
    pixels = before.read("1/000.png")
    done = maintain(MaintainParameters(archive=str(archive)))
    after = Archive.open(str(archive))
    assert (done["pictures"], done["files_fewer"], done["deleted"]) == (6, 2, 0), "replaced files stay for a day"
    assert len(after) == 6 and len(after.tables[0].parts) == 1
    assert (after.read("1/000.png") == pixels).all() and (before.read("1/000.png") == pixels).all()


@pytest.mark.parametrize(("hours", "code"), [("87600", 0), ("87601", 2), ("9" * 20, 2), ("-1", 2)])
def test_the_age_that_vacuum_is_given_is_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hours: str, code: int
) -> None:
    Archive.create(str(tmp_path))
    assert run(["vacuum", str(tmp_path), f"--older-than={hours}"]) == code
    told = capsys.readouterr().err
    assert "internal error" not in told and ("a whole number from 0 to 87600" in told) == (code == 2)


def test_damage_stops_it_before_anything_changes(tmp_path: Path) -> None:
    from flows.archive import maintain

    folder, archive = tmp_path / "in", tmp_path / "archive"
    for night in range(2):
        write_pictures(folder / str(night), 2, seed=night)
        archive_it(folder, archive)
    parts = sorted((archive / "images").glob("*.parquet"))
    data = bytearray(parts[0].read_bytes())
    data[len(data) // 4] ^= 0xFF
    parts[0].write_bytes(data)
    with pytest.raises(ArchiveError, match="run repair on it"):
        maintain(MaintainParameters(archive=str(archive)))
    assert sorted((archive / "images").glob("*.parquet")) == parts
    assert len(Archive.open(str(archive)).tables[0].parts) == 2

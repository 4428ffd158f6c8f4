"""--mirror: what is gone from the source is deleted, and nothing where the listing may not tell the whole truth."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from compressor.archive import Archive
from flows.cli import run
from flows.parameters import PipelineParameters
from tests.test_flows import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def archived(tmp_path: Path) -> tuple[Path, Path]:
    """A source of six pictures and a broken one, and its archive."""
    folder, archive = write_pictures(tmp_path / "in", 6), tmp_path / "archive"
    (folder / "bad.png").write_text("not a picture")
    archive_it(folder, archive)
    return folder, archive


def keys(archive: Path) -> list[str]:
    return sorted(Archive.open(str(archive)).keys())


def test_what_is_gone_is_deleted_and_only_where_asked(archived: tuple[Path, Path]) -> None:
    folder, archive = archived
    (folder / "002.png").unlink()
    (folder / "bad.png").unlink()
    assert archive_it(folder, archive)["deleted"] == 0 and len(keys(archive)) == 6
    write_pictures(folder / "new", 1, seed=5)
    done = archive_it(folder, archive, mirror=True, mirror_limit="1")
    assert (done["archived"], done["deleted"], done["not_mirrored"]) == (1, 1, None)
    assert keys(archive) == ["000.png", "001.png", "003.png", "004.png", "005.png", "new/000.png"]
    assert not list(Archive.open(str(archive)).quarantined())
    assert archive_it(folder, archive, mirror=True)["deleted"] == 0


def test_more_than_the_limit_is_refused_but_new_pictures_are_archived(archived: tuple[Path, Path]) -> None:
    folder, archive = archived
    (folder / "002.png").unlink()
    write_pictures(folder / "new", 1, seed=5)
    done = archive_it(folder, archive, mirror=True)
    assert (done["archived"], done["deleted"], len(keys(archive))) == (1, 0, 7)
    assert "10%" in done["not_mirrored"] and "--mirror-limit" in done["not_mirrored"]


@pytest.mark.parametrize("how", ["empty", "glob", "skipped", "stopped"])
def test_a_listing_that_may_lack_pictures_deletes_nothing(archived: tuple[Path, Path], how: str) -> None:
    folder, archive = archived
    source, options = str(folder), {}
    (folder / "000.png").unlink()
    if how == "empty":
        for file in folder.iterdir():
            file.unlink()
    elif how == "glob":
        source = f"{folder}/00*.png"
    elif how == "skipped":
        open(os.fsencode(folder) + b"/\xff.png", "wb").close()
    else:
        (folder / "worse.png").write_text("not a picture either")
        options = {"max_failures": "0"}
    done = archive_it(Path(source), archive, mirror=True, mirror_limit="100%", **options)
    assert done["not_mirrored"] and done["deleted"] == 0 and len(keys(archive)) == 6


def test_it_does_not_go_with_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError, match="--limit"):
        PipelineParameters(source="a", archive="b", limit=3, mirror=True)
    assert run(["run", "a", "b", "--limit", "3", "--mirror"]) == 2
    assert "--mirror: it needs the whole listing" in capsys.readouterr().err

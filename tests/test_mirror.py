"""--mirror: what is gone from the source is deleted, and nothing where the listing may not tell the whole truth."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from compressor.archive import Archive
from compressor.mirroring import Mirror
from compressor.sources import Source
from flows.cli import run
from flows.errors import EndedUnwell
from flows.parameters import PipelineParameters
from tests.runs import archive_it, write_pictures

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
    try:
        done = archive_it(Path(source), archive, mirror=True, mirror_limit="100%", **options)
    except EndedUnwell as stop:
        done = stop.result
    assert done["not_mirrored"] and done["deleted"] == 0 and len(keys(archive)) == 6


def test_it_does_not_go_with_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError, match="--limit"):
        PipelineParameters(source="a", archive="b", limit=3, mirror=True)
    assert run(["run", "a", "b", "--limit", "3", "--mirror"]) == 2
    assert "--mirror: it needs the whole listing" in capsys.readouterr().err


class ManyKeys:
    """As much of an archive as a mirror asks for: 100,000 keys in row groups, made as they are read."""

    reads = 0
    removed: list[str] = []

    def __len__(self) -> int:
        return 100_000

    def batches(self, _: Any) -> Iterator[pa.Table]:
        self.reads += 1
        for first in range(0, 100_000, 1_000):
            yield pa.table({"key": [f"{number:06d}.png" for number in range(first, first + 1_000)]})

    def quarantined(self) -> Iterator[Any]:
        return iter(())

    def clear_quarantine(self, _: Any) -> None:
        pass

    def remove(self, keys: list[str]) -> int:
        self.removed = keys
        return len(keys)


@pytest.mark.parametrize("gone", [{"000000.png", "050000.png"}, None], ids=["two gone", "all gone"])
def test_keys_are_in_memory_a_row_group_at_a_time(tmp_path: Path, gone: set[str] | None) -> None:
    archive: Any = ManyKeys()
    mirror = Mirror(archive)
    for table in archive.batches(["key"]) if gone else ():
        mirror.see([SimpleNamespace(key=key, fingerprint=b"") for key in table["key"].to_pylist() if key not in gone])
    archive.reads = 0
    tracemalloc.start()
    try:
        refused = mirror.refusal(Source(str(tmp_path)), 1, [], "10")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000, "100,000 keys take 10 times that"
    assert (refused is None) == bool(gone)
    if gone:
        assert mirror.delete() == 2 and set(archive.removed) == gone
    assert archive.reads == 1

"""A source in waves: all of it once, however it is cut, and a listing that fails goes back to the start of its wave."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor import encoding, planning
from compressor.archive import Archive
from compressor.known import KnownKeys
from compressor.planning import Listing, plan
from compressor.sources import Source, SourceFile
from flows.errors import EndedUnwell
from flows.progress import Listener, listening
from tests.runs import archive_it, write_pictures


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CHUNK", 2)


def nothing_known(tmp_path: Path) -> KnownKeys:
    return Archive.create(str(tmp_path / "empty")).known()


def planned(listing: Listing, known: KnownKeys, folder: Path, limit: int | None = None) -> tuple[list[str], bool, int]:
    found = plan(listing, known, folder / "plan.arrow", limit, wave=3)
    return [file.key for batch in found.batches(100) for file in batch.files], found.more, found.left


def test_waves_are_the_listing_cut_into_pieces(tmp_path: Path) -> None:
    listing = Listing(Source.open(str(write_pictures(tmp_path / "in", 9))))
    known = nothing_known(tmp_path)
    waves = [planned(listing, known, tmp_path) for _ in range(3)]
    assert [len(keys) for keys, _, _ in waves] == [4, 4, 1]
    assert [more for _, more, _ in waves] == [True, True, False]
    assert sum((keys for keys, _, _ in waves), []) == [f"{number:03d}.png" for number in range(9)]


def test_a_limit_reached_in_a_wave_ends_the_listing_there(tmp_path: Path) -> None:
    told: list[str] = []
    source = Source.open(str(write_pictures(tmp_path / "in", 9)))
    listing = Listing(source, lambda files: told.extend(file.key for file in files))
    known = nothing_known(tmp_path)
    assert planned(listing, known, tmp_path, 5)[1:] == (True, 0)
    told.clear()
    keys, more, left = planned(listing, known, tmp_path, 1)
    assert (keys, more, left) == (["004.png"], False, 1) and told == ["004.png", "005.png"]


@pytest.mark.parametrize(("limit", "listed", "limited"), [(3, 4, True), (4, 4, True), (8, 8, True), (9, 9, False)])
def test_a_limit_ends_the_listing_and_says_whether_there_is_more(
    tmp_path: Path, limit: int, listed: int, limited: bool
) -> None:
    listing = Listing(Source.open(str(write_pictures(tmp_path / "in", 9))))
    found = plan(listing, nothing_known(tmp_path), tmp_path / "plan.arrow", limit)
    assert (found.listed, found.pending, found.limited, found.more) == (listed, limit, limited, False)


def test_a_wave_whose_listing_fails_is_listed_again_from_its_start(tmp_path: Path) -> None:
    class Failing(Source):
        failures = 1

        def files(self) -> Iterator[SourceFile]:
            for number, file in enumerate(super().files()):
                if number == 6 and Failing.failures:
                    Failing.failures -= 1
                    raise OSError("the connection broke")
                yield file

    told: list[str] = []
    source = Failing(str(write_pictures(tmp_path / "in", 9)))
    listing = Listing(source, lambda files: told.extend(file.key for file in files))
    known = nothing_known(tmp_path)
    first, _, _ = planned(listing, known, tmp_path)
    with pytest.raises(OSError):
        planned(listing, known, tmp_path)
    second, _, _ = planned(listing, known, tmp_path)
    third, more, _ = planned(listing, known, tmp_path)
    assert first + second + third == sorted(set(told)) == [f"{number:03d}.png" for number in range(9)]
    assert not more


@pytest.mark.usefixtures("prefect_api")
def test_a_run_in_waves_archives_all_once_and_counts_all(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 9), tmp_path / "archive"
    (folder / "003a.png").write_text("not a picture")
    done = archive_it(folder, archive, wave=3, batch_size=3)
    assert (done["listed"], done["archived"], done["quarantined"], done["waves"]) == (10, 9, 1, 3)
    assert sorted(Archive.open(str(archive)).keys()) == [f"{number:03d}.png" for number in range(9)]
    (folder / "007.png").unlink()
    again = archive_it(folder, archive, wave=1, mirror=True, mirror_limit="1")
    assert (again["already_there"], again["still_quarantined"], again["deleted"], again["waves"]) == (8, 1, 1, 0)


@pytest.mark.usefixtures("prefect_api")
def test_batches_that_end_at_their_bytes_are_all_archived_in_any_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, archive = write_pictures(tmp_path / "in", 9), tmp_path / "archive"
    monkeypatch.setattr(planning, "BATCH_BYTES", 1)
    monkeypatch.setattr(planning, "PICTURE_BYTES", 0)
    done = archive_it(folder, archive, wave=5)
    assert (done["archived"], done["batches"], done["waves"]) == (9, 9, 2)
    assert sorted(Archive.open(str(archive)).keys()) == [f"{number:03d}.png" for number in range(9)]
    assert archive_it(folder, archive, wave=5)["batches"] == 0


@pytest.mark.usefixtures("prefect_api")
def test_a_run_that_its_limit_ends_says_that_there_is_more(tmp_path: Path) -> None:
    from compressor.wording import describe, outcome

    folder, archive = write_pictures(tmp_path / "in", 9), tmp_path / "archive"
    done = archive_it(folder, archive, limit=3, wave=2)
    assert (done["listed"], done["archived"], done["left"], done["limited"]) == (4, 3, 1, True)
    assert dict(describe(done))["listed"] == "4 pictures, the rest not, for --limit was reached"
    assert outcome(done).endswith("1 left by --limit; the rest not, for --limit was reached")
    done = archive_it(folder, archive, limit=6)
    assert (done["archived"], done["left"], done["limited"]) == (6, 0, False)
    assert dict(describe(done))["listed"] == "9 pictures"


@pytest.mark.usefixtures("prefect_api")
def test_a_run_that_fails_too_often_lists_no_further_wave(tmp_path: Path) -> None:
    folder, archive = write_pictures(tmp_path / "in", 9), tmp_path / "archive"
    (folder / "001a.png").write_text("not a picture")
    with pytest.raises(EndedUnwell, match="not archived: what was not listed yet") as given_up:
        archive_it(folder, archive, wave=3, max_failures="0", mirror=True)
    done = given_up.value.result
    assert done["stopped"] and done["listed"] == 4 and done["not_mirrored"] == "the run was stopped"
    assert archive_it(folder, archive, wave=3)["archived"] == 6


def test_a_run_tells_how_far_it_is_within_batches_and_after_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard(Listener):
        def stage(self, name: str, total: int | None = None, unit: str = "pictures") -> None:
            stages.append((name, told := []))
            self.told = told

        def advance(self, done: int, note: str = "") -> None:
            self.told.append(done)

    stages: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(encoding, "PIXELS_AT_ONCE", 0)
    with listening(Heard()):
        archive_it(write_pictures(tmp_path / "in", 5), tmp_path / "archive", workers=1, batch_size=3)
    (_, listed), (_, told) = ((name, told) for name, told in stages if told)
    assert listed == sorted(listed) and listed[-1] == 5
    assert told[-1] == 5 and told == sorted(told) and set(told) == {1, 2, 3, 4, 5}

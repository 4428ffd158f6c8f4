"""Damage of every kind: verify names it, repair mends it from the archive or the source, or says that it cannot."""

import errno
import itertools
import os
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import StandardCodec
from compressor.codec import artifact_bytes
from compressor.defaults import CODEC, MOST_PSNR
from compressor.delta_log import Change
from compressor.encoding import EncodeOptions, encode_batch
from compressor.encoding_again import AgainOptions
from compressor.errors import DAMAGED, ArchiveError, CodecError, LatentpackError
from compressor.known import FINGERPRINT_BYTES
from compressor.limits import Limits
from compressor.parquet import IMAGES, QuarantineRow, _start
from compressor.picture_writing import encode_picture
from compressor.repairing import Repaired, repair
from compressor.restoring import restore
from compressor.sources import Source
from compressor.store import Store
from tasks.retries import caused_by_storage
from tests.codecs import smooth_pictures, tiny_artifact, tiny_codec
from tests.rows import at_first_commit, lose_the_answer, original_row, picture_row

OPTIONS = EncodeOptions("webp", target_psnr=30)
AGAIN = AgainOptions("webp", target_psnr=30)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, pixels in enumerate(smooth_pictures(6, 24, 32)):
        (folder / f"{number}.png").write_bytes(encode_picture(pixels, 3))
    return Source.open(str(folder))


@pytest.fixture
def archive(tmp_path: Path, source: Source) -> Archive:
    """Two files of three pictures each, and a list of one that failed."""
    archive = Archive.create(str(tmp_path / "archive"))
    files = list(source.files())
    for batch in (files[::2], files[1::2]):
        archive.commit(encode_batch(source, batch, archive, OPTIONS, "run").parts)
    archive.quarantine([QuarantineRow.now("bad.png", b"12345678", "corrupt", "no picture", "run")])
    assert archive.verify() == []
    return archive


def pictures(archive: Archive) -> dict[str, bytes]:
    return {row.key: row.payload for rows in Archive.open(archive.url).scan() for row in rows}


def files_of(archive: Archive, pattern: str = "images/*.parquet") -> list[Path]:
    live = {part.path for table in Archive.open(archive.url).tables for part in table.parts}
    return [path for path in Path(archive.url).glob(pattern) if path.suffix != ".parquet" or path.name in live]


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def flip_payload(archive: Archive, key: str) -> Path:
    """Damage one picture. Returns the file that it is in."""
    payload = archive.read_row(key).payload
    [path] = [path for path in files_of(archive) if payload in path.read_bytes()]
    flip(path, path.read_bytes().index(payload) + len(payload) // 2)
    return path


def mended(archive: Archive, source: Source | None = None, **how: Any) -> Repaired:
    return repair(Archive.open(archive.url), source, AGAIN, **how)


@pytest.mark.parametrize("fate", ["whole", "damaged", "killed"])
def test_several_processes_find_what_one_does(archive: Archive, monkeypatch: pytest.MonkeyPatch, fate: str) -> None:
    from compressor import verifying

    archive.append({"learned": smooth_pictures(1)[0]}, tiny_artifact("v2"), target_psnr=None)
    if fate == "damaged":
        flip_payload(archive, "2.png")
        [path] = [path for path in files_of(archive) if archive.read_row("3.png").payload in path.read_bytes()]
        path.unlink()
    alone = Archive.open(archive.url).verify()
    assert len(alone) == {"damaged": 2}.get(fate, 0)
    monkeypatch.setattr(verifying, "PARALLEL_ROWS", 1)
    looked: list[int] = []
    here = verifying._inspect_group
    monkeypatch.setattr(verifying, "_inspect_group", lambda *found: looked.append(1) or here(*found))
    if fate == "killed":
        monkeypatch.setattr(verifying, "_start_worker", os.abort)
    told: list[tuple[int, int]] = []
    opened = Archive.open(archive.url)
    assert opened.verify(lambda *done: told.append(done), workers=2) == alone
    assert told[-1] == (7, 7)
    with pytest.raises(ArchiveError, match="workers are 1 or more, not 0"):
        opened.verify(workers=0)
    assert len(looked) == {"whole": 0, "damaged": 1, "killed": 3}[fate], "what is sound is not looked at twice"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_picture_is_encoded_again_and_is_as_it_was(
    archive: Archive, source: Source, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    from compressor import verifying

    before = pictures(archive)
    flip_payload(archive, "2.png")
    opened = Archive.open(archive.url)
    assert [problem.key for problem in opened.verify()] == ["2.png"]
    assert opened.read("0.png").shape == (24, 32, 3), "its neighbours in the page are read all the same"
    monkeypatch.setattr(verifying, "PARALLEL_ROWS", 1)
    here = verifying._inspect_group
    monkeypatch.setattr(verifying, "_inspect_group", lambda *found: looked.append(1) or here(*found))
    looked: list[int] = []
    done = mended(archive, source, workers=workers)
    assert len(looked) == {1: len(opened.tables[0].parts), 2: 1}[workers], "what is sound is looked at elsewhere"
    assert (done.regained, done.is_whole) == (["2.png"], True)
    assert pictures(archive) == before and Archive.open(archive.url).verify() == []


def test_without_the_source_a_bad_row_stays_named_until_it_is_dropped(archive: Archive, source: Source) -> None:
    flip_payload(archive, "2.png")
    done = mended(archive)
    assert [key for key, _ in done.left] == ["2.png"] and not done.is_whole
    assert [problem.key for problem in Archive.open(archive.url).verify()] == ["2.png"]
    os.unlink(f"{source.url}/2.png")
    version = Archive.open(archive.url).version
    assert mended(archive, source).left, "the source does not have it either"
    assert Archive.open(archive.url).version == version, "what stays is not written anew"
    assert mended(archive, source, drop=True).taken_out == ["2.png"]
    opened = Archive.open(archive.url)
    assert opened.verify() == [] and sorted(opened.keys()) == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert {(row.key, row.reason) for row in opened.quarantined()} == {("bad.png", "corrupt"), ("2.png", DAMAGED)}
    assert mended(archive, source).is_whole


@pytest.mark.parametrize("damage", ["footer", "truncated", "gone", "keys"])
def test_an_unreadable_file_is_replaced_from_the_source(archive: Archive, source: Source, damage: str) -> None:
    before = pictures(archive)
    path = files_of(archive)[0]
    if damage == "footer":
        flip(path, -40)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "gone":
        path.unlink()
    else:
        flip(path, 60)  # in the page of the keys
    assert any(path.name in problem.key for problem in Archive.open(archive.url).verify())
    done = mended(archive, source)
    assert len(done.regained) == 3 and done.is_whole
    assert pictures(archive) == before and Archive.open(archive.url).verify() == []


@pytest.mark.parametrize("damage", ["gone", "footer", "key", "width"])
def test_without_the_source_what_cannot_be_read_stays_named_and_may_be_put_back(archive: Archive, damage: str) -> None:
    before, version = pictures(archive), archive.version
    path = files_of(archive)[0]
    whole = path.read_bytes()
    lost = sorted(key for key, payload in before.items() if payload in whole)
    if damage == "gone":
        path.unlink()
    elif damage == "footer":
        flip(path, -40)
    else:
        flip_column(archive, path, damage)
    done = mended(archive)
    assert [name for name, _ in done.left] == (lost if damage == "width" else [path.name])
    assert all("put it back from a backup, give the source" in reason for _, reason in done.left)
    assert done == Repaired(left=done.left) and not done.is_whole and Archive.open(archive.url).version == version
    path.write_bytes(whole)
    assert Archive.open(archive.url).verify() == [] and pictures(archive) == before


def test_an_unreadable_file_that_is_dropped_no_longer_stands_in_the_way(archive: Archive, source: Source) -> None:
    before = pictures(archive)
    files_of(archive)[0].unlink()
    with pytest.raises(LatentpackError):
        Archive.open(archive.url).known()
    done = mended(archive, drop=True)
    assert done == Repaired(unnamed=3) and not done.is_whole
    opened = Archive.open(archive.url)
    states = opened.known().state(list(source.files()))
    assert sorted(states) == ["new"] * 3 + ["same"] * 3
    missing = [file for file, state in zip(source.files(), states, strict=True) if state == "new"]
    opened.commit(encode_batch(source, missing, opened, OPTIONS, "next").parts)
    assert pictures(archive) == before and opened.verify() == []


def test_a_file_whose_rows_are_sound_is_put_right_from_itself(archive: Archive) -> None:
    path = files_of(archive)[0]
    whole = path.read_bytes()
    flip(path, 0)  # Parquet's magic number, which nothing reads
    assert [problem.key for problem in Archive.open(archive.url).verify()] == [path.name]
    assert mended(archive).files == [path.name]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["lost", "renamed", "resurrected", "statistics"])
def test_the_log_is_mended(archive: Archive, damage: str) -> None:
    before = pictures(archive)
    if damage == "resurrected":
        archive.commit([archive.write_part([archive.read_row("3.png")])], ["3.png"])
    before = pictures(archive)
    log = sorted(Path(archive.url, "images", "_delta_log").glob("*.json"))[-1]
    text = log.read_text()
    change = {
        "lost": ('{"add"', '{"aed"'),
        "renamed": ('"path":"part', '"path":"qart'),
        "resurrected": ('{"remove"', '{"remnve"'),
        "statistics": ('\\"minValues\\":{\\"key\\":\\"1', '\\"minValues\\":{\\"key\\":\\"3'),
    }[damage]
    assert change[0] in text
    log.write_text(text.replace(*change, 1))
    opened = Archive.open(archive.url)
    assert any("log" in problem.key or "log" in problem.reason for problem in opened.verify())
    with pytest.raises(ArchiveError, match="repair"):
        opened.delete(["5.png"])
    done = mended(archive)
    assert done.log and done.is_whole
    assert pictures(archive) == before and Archive.open(archive.url).verify() == []


def test_a_shipped_or_given_codec_is_put_back(archive: Archive, source: Source, tmp_path: Path) -> None:
    codec, copy = tiny_codec("v5"), tmp_path / "copy.safetensors"
    copy.write_bytes(tiny_artifact("v5"))
    archive.put_codec(copy.read_bytes())
    path = Path(archive.url, "codecs", f"{codec.id}.safetensors")
    flip(path, 5000)
    [problem] = Archive.open(archive.url).verify()
    assert codec.id in problem.key and "damaged" in problem.reason
    assert not mended(archive).is_whole
    assert repair(Archive.open(archive.url), at_hand=[str(copy)]).codecs == [f"codecs/{path.name}"]
    assert Archive.open(archive.url).verify() == []


def test_a_damaged_quarantine_list_is_put_right_or_taken_out(archive: Archive) -> None:
    [path] = files_of(archive, "quarantine/*.parquet")
    whole = path.read_bytes()
    flip(path, 0)
    assert mended(archive).files == [path.name] and path.read_bytes() == whole
    path.write_bytes(whole[:50])
    assert [problem.key for problem in Archive.open(archive.url).verify()] == [path.name]
    assert "tried again" in mended(archive).log[0]
    opened = Archive.open(archive.url)
    assert opened.verify() == [] and list(opened.quarantined()) == []


def test_a_sound_archive_is_left_alone(archive: Archive, source: Source) -> None:
    version = Archive.open(archive.url).version
    done = mended(archive, source)
    assert done == Repaired() and Archive.open(archive.url).version == version


def test_any_flipped_bit_is_found_or_changes_nothing(archive: Archive) -> None:
    """A fast one of ``benchmarks/promise.py flips``."""
    choose = random.Random(1)
    truth = {key: archive.read(key).tobytes() for key in sorted(archive.keys())}
    paths = [path for path in Path(archive.url).rglob("*") if path.is_file()]
    for _ in range(150):
        path = choose.choice(paths)
        offset, bit = choose.randrange(path.stat().st_size), choose.randrange(8)
        flip(path, offset, bit)
        what = f"bit {bit} of byte {offset} of {path.name}"
        try:
            opened = Archive.open(archive.url)
            if not opened.verify():
                assert {key: opened.read(key).tobytes() for key in sorted(opened.keys())} == truth, what
        except LatentpackError:
            pass
        finally:
            flip(path, offset, bit)
    assert Archive.open(archive.url).verify() == []


@pytest.mark.parametrize("call", [2, 3, 4])
def test_a_storage_that_fails_for_a_moment_costs_nothing(
    archive: Archive, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls, ranges = pictures(archive), itertools.count(1), Store.ranges

    def busy(store: Store, *arguments: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.EBUSY, "slow down")
        return ranges(store, *arguments)

    monkeypatch.setattr(Store, "ranges", busy)
    with pytest.raises(ArchiveError, match="may be sound.*try again"):
        repair(Archive.open(archive.url), drop=True)
    monkeypatch.undo()
    assert pictures(archive) == before
    assert Archive.open(archive.url).verify() == []


@pytest.mark.parametrize("drop", [False, True])
def test_sound_pictures_stay_where_a_repair_loses_the_race(archive: Archive, source: Source, drop: bool) -> None:
    before = pictures(archive)
    path = files_of(archive)[0]
    payload = Archive.open(archive.url).read_row("0.png").payload
    path = next(path for path in files_of(archive) if payload in path.read_bytes())
    flip(path, path.read_bytes().index(payload) + len(payload) // 2)

    def append() -> None:
        other = Archive.open(archive.url)
        other.commit([other.write_part([picture_row("zzz")])])

    with at_first_commit(before=append):
        done = repair(Archive.open(archive.url), None if drop else source, AGAIN, drop=drop)
    assert done.left == [] and done.taken_out == (["0.png"] if drop else [])
    after = pictures(archive)
    assert after.keys() - {"zzz"} == before.keys() - (set(done.taken_out))
    assert all(after[key] == before[key] for key in before.keys() - {"0.png"})
    assert Archive.open(archive.url).verify() == []


def lose_what_was_added(archive: Archive) -> None:
    """Damage the newest entry of the log, which then names no file."""
    newest = max(Path(archive.url).glob("images/_delta_log/*.json"))
    newest.write_text(newest.read_text().replace('{"add"', '{"aed"'))


def test_a_log_is_mended_though_the_first_try_meets_a_lost_connection(archive: Archive) -> None:
    before = pictures(archive)
    lose_what_was_added(archive)
    with at_first_commit(before=lose_the_answer):
        done = repair(Archive.open(archive.url))
    assert len(done.log) == 1 and pictures(archive) == before
    assert Archive.open(archive.url).verify() == []


def test_a_log_that_another_repair_mends_meanwhile_is_left_as_it_is_then(archive: Archive) -> None:
    before = pictures(archive)
    lose_what_was_added(archive)

    def meanwhile() -> None:
        repair(Archive.open(archive.url))
        assert Archive.open(archive.url).compact()  # the file that was lost is not to be there again

    with at_first_commit(before=meanwhile):
        repair(Archive.open(archive.url))
    assert pictures(archive) == before and Archive.open(archive.url).verify() == []


def refuse(monkeypatch: pytest.MonkeyPatch, names: str, error: Exception) -> None:
    """Have the storage answer for files whose names match with an error."""
    ranges = Store.ranges

    def answer(store: Store, name: str, *spans: Any) -> Any:
        if re.search(names, name):
            raise error
        return ranges(store, name, *spans)

    monkeypatch.setattr(Store, "ranges", answer)


def test_what_s3_forbids_to_read_is_not_damaged(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects in cold storage, keys that are not ours, tokens that end: s3fs tells them without a number."""
    before = pictures(archive)
    cold: Any = {"Error": {"Code": "InvalidObjectState"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    refuse(monkeypatch, r"\.parquet$", translate_boto_error(ClientError(cold, "GetObject")))
    with pytest.raises(ArchiveError, match="may be sound"):
        repair(Archive.open(archive.url), drop=True)
    monkeypatch.undo()
    assert pictures(archive) == before


def test_a_picture_with_a_flipped_bit_stands_in_the_way_of_nothing(archive: Archive) -> None:
    before = pictures(archive)
    payload = before["2.png"]
    path = next(path for path in files_of(archive) if payload in path.read_bytes())
    flip(path, path.read_bytes().index(payload) + len(payload) // 2)
    assert [key for key, _ in repair(Archive.open(archive.url)).left] == ["2.png"], "it stays, and is told"
    opened = Archive.open(archive.url)
    data = opened.dataset()
    assert sum(data.row(index).payload in before.values() for index in range(len(data))) == 5
    assert opened.delete(["0.png"]) == 1
    opened.commit([opened.write_part([picture_row("4.png")])], replaced=["4.png"])
    opened.compact()
    assert [problem.key for problem in Archive.open(archive.url).verify()] == ["2.png"]
    assert Archive.open(archive.url).delete(["2.png"]) == 1
    assert Archive.open(archive.url).verify() == [] and len(pictures(archive)) == 4


@pytest.mark.parametrize("erased", [False, True])
@pytest.mark.parametrize("reads", ["verify", "repair"])
def test_what_another_run_takes_away_meanwhile_is_not_damaged(archive: Archive, reads: str, erased: bool) -> None:
    before, done = pictures(archive), []

    def take_away(*_: int) -> None:
        if done:
            return
        other = Archive.open(archive.url)
        done.append(other.delete(["0.png", "1.png"]) if erased else other.compact())
        other.vacuum(0)

    if reads == "verify":
        assert Archive.open(archive.url).verify(take_away) == []
    else:
        repaired = repair(Archive.open(archive.url), drop=True, on_progress=take_away)
        assert repaired.is_whole and not repaired.log and not repaired.unnamed
    assert done
    assert pictures(archive) == {
        key: payload for key, payload in before.items() if not erased or key not in ("0.png", "1.png")
    }


def test_a_quarantine_list_that_the_storage_refuses_stays(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(archive.quarantined())
    refuse(monkeypatch, "^quarantine/", OSError(errno.EBUSY, "slow down"))
    with pytest.raises(ArchiveError, match="may be sound"):
        repair(Archive.open(archive.url))
    monkeypatch.undo()
    assert before and list(Archive.open(archive.url).quarantined()) == before


@pytest.fixture
def learned(tmp_path: Path, source: Source) -> Archive:
    """Six pictures by a codec that is not shipped."""
    archive = Archive.create(str(tmp_path / "learned"))
    codec = archive.put_codec(tiny_artifact("v5"))
    archive.commit(encode_batch(source, list(source.files()), archive, EncodeOptions(codec, quality=40), "run").parts)
    assert {row.codec for rows in archive.scan() for row in rows} == {codec}
    return archive


def codec_file(archive: Archive) -> Path:
    [path] = Path(archive.url, "codecs").iterdir()
    return path


@pytest.mark.parametrize("damage", ["flipped", "missing", "newer"])
def test_sound_rows_stay_until_their_codec_is_put_back(learned: Archive, source: Source, damage: str) -> None:
    before, path = pictures(learned), codec_file(learned)
    whole = path.read_bytes()
    if damage == "flipped":
        flip(path, 5000)
    elif damage == "missing":
        path.unlink()
    else:  # its name is right, and no reader of this version knows what it is
        path.unlink()
        id = identify(b"newer")
        path.with_name(f"{id}.safetensors").write_bytes(b"newer")
        rows = [replace(learned.read_row(key), codec=id) for key in before]
        learned.commit([learned.write_part(rows)], list(before))
        path = codec_file(learned)
        whole = path.read_bytes()
    [problem] = Archive.open(learned.url).verify()
    assert (problem.key, problem.waiting) == (f"codecs/{path.name}", 6)
    assert "6 sound pictures cannot be read without it" in problem.reason
    assert ("put its file back" in problem.reason) == (damage != "newer")
    for done in (mended(learned, drop=True), mended(learned, source, drop=True)):
        assert done == Repaired(left=[(problem.key, problem.reason)])
    assert pictures(learned) == before
    if damage != "newer":
        path.write_bytes(whole)
        assert Archive.open(learned.url).verify() == []


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_of_rows_without_their_codec_those_are_taken_out_that_are_bad_themselves(
    learned: Archive, source: Source, damage: str
) -> None:
    before, path = pictures(learned), codec_file(learned)
    whole = path.read_bytes()
    for key in ("2.png", "4.png"):
        flip_payload(learned, key)
    if damage == "flipped":
        flip(path, 5000)
    else:
        path.unlink()
    problems = Archive.open(learned.url).verify()
    assert [(problem.key, problem.waiting) for problem in problems] == [
        (f"codecs/{path.name}", 4),
        ("2.png", 0),
        ("4.png", 0),
    ]
    os.unlink(f"{source.url}/4.png")
    done = mended(learned, source, drop=True)
    assert (done.regained, done.taken_out) == (["2.png"], ["4.png"])
    assert [name for name, _ in done.left] == [f"codecs/{path.name}"]
    path.write_bytes(whole)
    assert Archive.open(learned.url).verify() == []
    after = pictures(learned)
    assert after.keys() == before.keys() - {"4.png"}
    assert all(after[key] == before[key] for key in after.keys() - {"2.png"})


@pytest.mark.parametrize("copy", ["shipped", "given"])
def test_a_missing_codec_is_put_back(
    learned: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    path = codec_file(learned)
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    path.rename(shipped / "tiny.safetensors")
    if copy == "shipped":
        monkeypatch.setattr("compressor.codec.RELEASED", shipped)
        done = mended(learned)
    else:
        done = repair(Archive.open(learned.url), at_hand=[str(shipped / "tiny.safetensors")])
    assert done == Repaired(codecs=[f"codecs/{path.name}"]) and done.is_whole
    assert Archive.open(learned.url).verify() == []


def archive_of(tmp_path: Path, source: Source, options: EncodeOptions) -> Archive:
    archive = Archive.create(str(tmp_path / "other"))
    archive.commit(encode_batch(source, list(source.files()), archive, options, "run").parts)
    return archive


def test_pictures_are_encoded_again_as_the_others_are(archive: Archive, source: Source) -> None:
    before = pictures(archive)
    lowest = min(archive.read_row(key).psnr or 0 for key in before)
    flip_payload(archive, "2.png")
    done = repair(Archive.open(archive.url), source)
    assert (done.codec, done.floor, done.regained) == ("webp", lowest, ["2.png"])
    row = Archive.open(archive.url).read_row("2.png")
    assert row.codec == "webp" and row.psnr and row.psnr >= lowest >= 30
    assert not Path(archive.url, "codecs").exists()


@pytest.mark.parametrize("whole", [False, True])
def test_where_all_are_exact_so_are_pictures_that_are_encoded_again(
    tmp_path: Path, source: Source, whole: bool
) -> None:
    archive = archive_of(tmp_path, source, EncodeOptions("lossless"))
    before = pictures(archive)
    if whole:  # the file names the keys of none
        flip(files_of(archive)[0], 60)
        content = (Path(source.url) / "0.png").read_bytes()
        archive.commit([archive.write_part([original_row("o.png", content, 32, 24)])])
    else:
        flip_payload(archive, "2.png")
    done = repair(Archive.open(archive.url), source)
    assert (done.codec, done.floor) == ("lossless", None) and "2.png" in done.regained
    assert {key: payload for key, payload in pictures(archive).items() if key != "o.png"} == before
    flip_payload(Archive.open(archive.url), "4.png")
    with pytest.raises(ArchiveError, match="exact, and by webp others need not be: name --target-psnr"):
        repair(Archive.open(archive.url), source, AgainOptions("webp"), drop=True)


def test_what_a_learned_codec_lost_nothing_of_tells_no_floor() -> None:
    own = "0" * 32
    rows = Counter({(own, MOST_PSNR): 1, ("av1-444", 34.1): 999})
    again = AgainOptions().complete(rows, [], "an archive")
    assert (again.codec, again.target_psnr) == (own, 34.1)
    assert AgainOptions().complete(Counter({(own, MOST_PSNR): 3}), [], "an archive").codec == "lossless"


def test_a_learned_codec_is_taken_before_what_pictures_fell_back_to(learned: Archive, source: Source) -> None:
    codec = codec_file(learned).stem
    fallen = [file for file in source.files() if file.key not in ("0.png", "1.png")]
    learned.commit(encode_batch(source, fallen, learned, OPTIONS, "run").parts, [file.key for file in fallen])
    lowest = min(learned.read_row(key).psnr or 0 for key in ("0.png", "1.png"))
    flip_payload(learned, "2.png")
    done = repair(Archive.open(learned.url), source)
    assert (done.codec, done.floor, done.is_whole) == (codec, lowest, True)
    assert (Archive.open(learned.url).read_row("2.png").psnr or 0) >= lowest
    assert Archive.open(learned.url).verify() == []


@pytest.mark.parametrize("damage", ["its own", "both", "keys"])
def test_of_several_learned_codecs_a_picture_is_encoded_again_by_its_own(
    learned: Archive, source: Source, damage: str
) -> None:
    one = codec_file(learned).stem
    other = learned.put_codec(tiny_artifact("shortcuts"))
    for codec, keys in ((other, ["2.png", "3.png"]), (one, ["1.png"])):
        files = [file for file in source.files() if file.key in keys]
        learned.commit(encode_batch(source, files, learned, EncodeOptions(codec, quality=40), "run").parts, keys)
    before = pictures(learned)
    if damage == "keys":
        [path] = [path for path in files_of(learned) if before["1.png"] in path.read_bytes()]
        flip_column(learned, path, "key")
    else:
        flip_payload(learned, "2.png")
    if damage == "both":
        flip_payload(learned, "0.png")
    if damage == "its own":
        assert repair(Archive.open(learned.url), source).codec == other
    else:
        with pytest.raises(ArchiveError, match=f"by several codecs .*{other}.*: name one with --codec"):
            repair(Archive.open(learned.url), source, drop=True)
        assert repair(Archive.open(learned.url), source, AgainOptions(other)).codec == other
    assert Archive.open(learned.url).verify() == [] and pictures(learned).keys() == before.keys()


def test_nothing_is_taken_out_where_it_cannot_be_told_how_pictures_are_encoded_again(
    archive: Archive, learned: Archive, source: Source
) -> None:
    for path in files_of(archive):
        flip(path, -40)
    version = archive.version
    with pytest.raises(ArchiveError, match="name --codec and --target-psnr of the run"):
        repair(Archive.open(archive.url), source, drop=True)
    assert Archive.open(archive.url).version == version
    assert mended(archive, source).is_whole

    flip_payload(learned, "2.png")
    codec_file(learned).unlink()
    with pytest.raises(ArchiveError, match="cannot be encoded again by codec .*; put it back, or name another"):
        repair(Archive.open(learned.url), source, drop=True)
    assert len(pictures(learned)) == 6


def test_a_codec_that_the_storage_refuses_for_a_moment_costs_no_picture(
    learned: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures(learned)

    def refuse(archive: Archive, id: str) -> None:
        raise ArchiveError(f"cannot read codec {id}") from PermissionError(errno.EACCES, "permission denied")

    monkeypatch.setattr(Archive, "codec", refuse)
    with pytest.raises(ArchiveError, match="may be sound"):
        repair(Archive.open(learned.url), drop=True)
    monkeypatch.undo()
    assert pictures(learned) == before


def test_a_log_entry_that_a_power_cut_left_empty_is_noticed(archive: Archive) -> None:
    last = max(Path(archive.url).glob("images/_delta_log/*.json"))
    last.write_bytes(b"")
    problems = Archive.open(archive.url).verify()
    assert problems and problems[0].key.startswith("images")


def flip_column(archive: Archive, path: Path, column: str) -> None:
    """Damage the last page of a column."""
    images = Archive.open(archive.url).tables[0]
    part = next(part for part in images.parts if part.path == path.name)
    chunk = images.footer(part).row_group(0).column(IMAGES.names.index(column))
    flip(path, _start(chunk) + chunk.total_compressed_size - 1)


def refused_with(archive: Archive, message: str) -> None:
    """Neither verify nor repair takes anything for damaged."""
    for read in (lambda opened: opened.verify(), lambda opened: repair(opened, drop=True)):
        with pytest.raises(ArchiveError, match=message):
            read(Archive.open(archive.url))


SHORTAGES = [
    MemoryError(),
    pa.ArrowMemoryError("malloc of size 8388608 failed"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
]  # fmt: skip


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_what_memory_does_not_suffice_to_decode_is_not_damaged(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before = pictures(archive)

    def short(*_: Any) -> None:
        raise error

    monkeypatch.setattr(StandardCodec, "decode", short)
    refused_with(archive, "'0.png' cannot be read, and may be sound: not enough memory.*with more memory")
    monkeypatch.undo()
    assert pictures(archive) == before and Archive.open(archive.url).verify() == []


@pytest.mark.parametrize("error", SHORTAGES[:2], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["compressor.store.Store.ranges", "compressor.parquet._read"])
def test_what_memory_does_not_suffice_to_read_is_not_damaged(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    before = pictures(archive), list(archive.quarantined())

    def short(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, short)
    refused_with(archive, "part-.* cannot be read, and may be sound.*with more memory")
    monkeypatch.undo()
    assert (pictures(archive), list(Archive.open(archive.url).quarantined())) == before


def test_a_decoder_that_speaks_of_damage_where_there_is_no_memory_is_not_believed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise CodecError("not a webp file that can be read") from OSError("broken data stream")

    monkeypatch.setattr(StandardCodec, "_decode", broken)
    assert len(Archive.open(archive.url).verify()) == 6
    monkeypatch.setattr("compressor.limits._can_have", lambda size: False)
    refused_with(archive, "not enough memory to decode it, up to 0.0 MB for 768 pixels: not a webp file")


def test_one_picture_that_is_too_much_is_told_from_its_neighbours(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are decoded one by one then."""
    decode = StandardCodec.decode

    def short(codec: StandardCodec, encoded: Any) -> Any:
        if len(encoded) > 1 or encoded[0].payload == heavy:
            raise MemoryError
        return decode(codec, encoded)

    heavy = pictures(archive)["2.png"]
    monkeypatch.setattr(StandardCodec, "decode", short)
    refused_with(archive, "'2.png' cannot be read")
    done = restore(Archive.open(archive.url), tmp_path / "out")
    assert done.written == 5 and [key for key, _ in done.problems] == ["2.png"]
    assert "not enough memory" in done.problems[0][1]


def test_what_is_refused_is_told_whatever_is_damaged_behind_it(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = StandardCodec.decode

    def short(codec: StandardCodec, encoded: Any) -> Any:
        if encoded[0].payload == heavy:
            raise MemoryError
        return decode(codec, encoded)

    heavy = pictures(archive)["0.png"]
    flip_payload(archive, "2.png")
    monkeypatch.setattr(StandardCodec, "decode", short)
    refused_with(archive, "'0.png' cannot be read")


@pytest.mark.parametrize("folder", ["images", "quarantine"])
def test_what_may_not_be_read_is_not_damaged(archive: Archive, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, rf"^{folder}/.*\.parquet", PermissionError(errno.EACCES, "Permission denied"))
    refused_with(archive, "may be sound.*Permission denied; see that it may be read, and try again")


def test_what_is_put_behind_the_end_of_a_quarantine_file_is_mended(archive: Archive) -> None:
    archive.quarantine([QuarantineRow.now("bad.png", bytes(FINGERPRINT_BYTES), "corrupt", "", "run")])
    [path] = files_of(archive, "quarantine/*.parquet")
    path.write_bytes(path.read_bytes() + b"garbage")
    assert Archive.open(archive.url).verify()
    assert repair(Archive.open(archive.url)).left == []
    opened = Archive.open(archive.url)
    assert opened.verify() == [] and [row.key for row in opened.quarantined()] == ["bad.png"]


def test_nothing_is_encoded_again_where_memory_runs_out(
    archive: Archive, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_payload(archive, "2.png")

    def short(*_: Any) -> None:
        raise MemoryError("not enough memory to decode it")

    monkeypatch.setattr("compressor.encoding.decode_picture", short)
    with pytest.raises(ArchiveError, match="not enough memory to repair it: .*; try again with more"):
        mended(archive, source, drop=True)
    monkeypatch.undo()
    assert mended(archive, source).regained == ["2.png"]


@pytest.mark.parametrize("damage", ["width", "key", "payload"])
def test_what_is_taken_out_and_not_encoded_again_is_tried_by_the_next_run(
    archive: Archive, source: Source, damage: str
) -> None:
    before = pictures(archive)
    path = flip_payload(archive, "2.png")
    if damage != "payload":
        flip_column(archive, path, damage)
    small = AgainOptions("webp", target_psnr=30, limits=Limits(max_pixels=24 * 32 - 1))
    done = repair(Archive.open(archive.url), source, small, drop=True)
    assert not done.regained and len(done.taken_out) + done.unnamed == (1 if damage == "payload" else 3)
    opened = Archive.open(archive.url)
    listed = {row.key: row for row in opened.quarantined() if row.key in done.taken_out}
    assert all(row.reason == DAMAGED and "not encoded again: 32 x 24 pixels" in row.detail for row in listed.values())
    files = list(source.files())
    states = opened.known().state(files)
    missing = [file for file, state in zip(files, states, strict=True) if state == "new"]
    assert {file.key for file in missing} == before.keys() - pictures(archive).keys()
    opened.commit(encode_batch(source, missing, opened, OPTIONS, "next").parts)
    assert pictures(archive) == before


@pytest.mark.parametrize("damage", ["key", "payload"])
def test_a_repair_that_is_killed_before_it_commits_loses_no_picture(
    archive: Archive, source: Source, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures(archive)
    path = flip_payload(archive, "2.png")
    if damage == "key":
        flip_column(archive, path, damage)

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "commit", kill)
        with pytest.raises(KeyboardInterrupt):
            mended(archive, source)
    opened = Archive.open(archive.url)
    lost = before.keys() - pictures(archive).keys()
    assert len(lost) == (1 if damage == "payload" else 3)
    assert {row.key for row in opened.quarantined() if row.reason == DAMAGED} == lost
    files = list(source.files())
    states = opened.known().state(files)
    missing = [file for file, state in zip(files, states, strict=True) if state == "new"]
    assert {file.key for file in missing} == lost, "the next run tries them again"
    assert mended(archive, source) == Repaired(), "what is left can be read"
    opened.commit(encode_batch(source, missing, opened, OPTIONS, "next").parts)
    assert pictures(archive) == before


def test_why_a_picture_was_not_encoded_again_is_told(archive: Archive, source: Source) -> None:
    flip_payload(archive, "2.png")
    (Path(source.url) / "2.png").write_bytes(b"no picture")
    [(key, reason)] = mended(archive, source).left
    assert key == "2.png" and "crc32c" in reason and "not encoded again: no known picture format" in reason
    assert [row.key for row in Archive.open(archive.url).quarantined()] == ["bad.png"]


@pytest.mark.parametrize("damage", ["footer", "gone", "key", "width", "psnr"])
def test_a_restore_goes_on_past_what_cannot_be_read(archive: Archive, tmp_path: Path, damage: str) -> None:
    path = files_of(archive)[0]
    lost = sorted(key for key, payload in pictures(archive).items() if payload in path.read_bytes())
    if damage == "footer":
        flip(path, -40)
    elif damage == "gone":
        path.unlink()
    else:
        flip_column(archive, path, damage)
    done = restore(Archive.open(archive.url), tmp_path / "out")
    assert done.written == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{number}.png" for number in range(6)} - {*lost}
    assert [key for key, _ in done.problems] == (lost if damage in ("width", "psnr") else [path.name])
    assert all("unreadable" in reason for _, reason in done.problems)


def test_a_restore_ends_where_storage_may_give_later_what_it_does_not_give_now(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow's task is then tried again."""
    name = files_of(archive)[0].name
    refuse(monkeypatch, name, OSError(errno.EBUSY, "slow down"))
    with pytest.raises(ArchiveError, match="slow down; try again later") as told:
        restore(Archive.open(archive.url), tmp_path / "out")
    assert caused_by_storage(told.value)
    monkeypatch.undo()
    refuse(monkeypatch, name, PermissionError(errno.EACCES, "Permission denied"))
    done = restore(Archive.open(archive.url), tmp_path / "out")
    assert done.written == 3 and [key for key, _ in done.problems] == [name]


def test_a_restore_ends_where_another_run_has_taken_files_away(archive: Archive, tmp_path: Path) -> None:
    reader = Archive.open(archive.url)
    archive.delete(["0.png"])
    with pytest.raises(
        ArchiveError, match="another run has compacted or vacuumed it, or deleted from it; open it again"
    ):
        restore(reader, tmp_path / "out")
    assert restore(Archive.open(archive.url), tmp_path / "out").written == 5


@pytest.mark.parametrize("pattern", ["images/*.parquet", "quarantine/*.parquet"])
def test_a_file_is_put_right_later_where_memory_does_not_suffice_now(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    path = files_of(archive, pattern)[0]
    whole = path.read_bytes()
    flip(path, 0)

    def short(*_: Any) -> None:
        raise pa.ArrowMemoryError("malloc of size 8388608 failed")

    monkeypatch.setattr("compressor.parquet.encode", short)
    with pytest.raises(ArchiveError, match=f"{path.name} cannot be read, and may be sound"):
        repair(Archive.open(archive.url), drop=True)
    monkeypatch.undo()
    assert mended(archive).files == [path.name] and path.read_bytes() == whole


def test_a_repair_that_may_not_write_says_so(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(files_of(archive)[0], 0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(ArchiveError, match="cannot repair it: .*No space left on device"):
        mended(archive)


def test_a_log_is_not_taken_as_it_is_while_what_explains_it_may_not_be_read(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures(archive)
    lose_what_was_added(archive)
    refuse(monkeypatch, r"^images/.*\.parquet", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(ArchiveError, match="may be sound"):
        repair(Archive.open(archive.url))
    monkeypatch.undo()
    assert mended(archive).is_whole and pictures(archive) == before


def test_a_log_that_may_not_be_read_is_not_damaged(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Archive.open(archive.url)

    def forbidden(store: Store, name: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Store, "get", forbidden)
    with pytest.raises(ArchiveError, match="images/_delta_log cannot be read, and may be sound"):
        opened.verify()


def test_keys_that_are_there_twice_are_not_passed_over_where_they_may_not_be_read(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.commit([archive.write_part([archive.read_row("3.png")])], ["3.png"])
    newest = max(Path(archive.url).glob("images/_delta_log/*.json"))
    newest.write_text(newest.read_text().replace('{"remove"', '{"remnve"'))

    def forbid(rows: int, of: int) -> None:
        if rows == of:
            refuse(monkeypatch, "^images/part", PermissionError(errno.EACCES, "Permission denied"))

    opened = Archive.open(archive.url)
    assert "3.png" in [problem.key for problem in opened.verify()]
    with pytest.raises(ArchiveError, match="may be sound"):
        opened.verify(forbid)


def test_keys_that_are_there_twice_are_left_by_a_repair(archive: Archive) -> None:
    part = archive.write_part([archive.read_row("3.png")])
    archive.tables[0].log.transact(lambda: Change([part], []))
    repaired = repair(Archive.open(archive.url))
    assert [key for key, _ in repaired.left] == ["3.png"] and not repaired.is_whole
    assert [problem.key for problem in Archive.open(archive.url).verify()] == ["3.png"]


@pytest.mark.parametrize("what", ["compressor.restoring.encode_picture", "compressor.restoring.from_table"])
def test_a_restore_goes_on_past_what_memory_does_not_suffice_for(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def short(*_: Any) -> None:
        raise MemoryError

    keys = ["0.png", "1.png"]
    monkeypatch.setattr(what, short)
    problems = restore(Archive.open(archive.url), tmp_path / "out", keys).problems
    assert [key for key, _ in problems] == keys
    assert all(reason.endswith("MemoryError; try again with more memory") for _, reason in problems)


@pytest.mark.parametrize("what", ["compressor.baselines.StandardCodec.decode", "compressor.images._png"])
def test_what_there_is_no_library_to_decode_with_is_not_damaged(
    archive: Archive, source: Source, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """So it is where memory is short before the first picture."""
    content = (Path(source.url) / "0.png").read_bytes()
    archive.commit([archive.write_part([original_row("o.png", content, 32, 24)])])

    def unloaded(*_: Any) -> None:
        raise ImportError("cv2.abi3.so: failed to map segment from shared object")

    monkeypatch.setattr(what, unloaded)
    refused_with(archive, "may be sound: .*failed to map segment from shared object")
    monkeypatch.undo()
    assert len(pictures(archive)) == 7


def test_options_that_leave_a_codec_open_take_the_one_that_ships_of_several() -> None:
    shipped = identify(artifact_bytes(CODEC))
    rows = Counter({("0" * 32, 34.2): 5, (shipped, 34.1): 2, ("av1-444", 34.0): 9})
    assert AgainOptions().complete(rows, set(), "archive").codec == shipped
    assert AgainOptions().complete(rows, {"0" * 32}, "archive").codec == "0" * 32
    with pytest.raises(ArchiveError, match="several codecs"):
        AgainOptions().complete(Counter({("0" * 32, 34.2): 5, ("1" * 32, 34.1): 2}), set(), "archive")


def test_a_floor_that_is_named_holds_for_a_codec_of_one_quality_too() -> None:
    options = AgainOptions("v1", target_psnr=40.0).complete(Counter({("v1", 30.0): 1}), set(), "archive")
    assert options.min_psnr == 40.0
    assert AgainOptions("v1", quality=9).complete(Counter({("v1", 30.0): 1}), set(), "archive").min_psnr is None

"""An archive made, opened and asked: what is none is refused, and so is what makes no sense."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import delta_log, parquet
from compressor.archive import Archive
from compressor.baselines import STANDARD
from compressor.errors import CRASHED, UNREADABLE, ArchiveError, CodecError
from compressor.growth import growth
from compressor.known import FINGERPRINT_BYTES
from compressor.parquet import QuarantineRow, Row
from compressor.sources import SourceFile
from compressor.store import Store
from tests.codecs import smooth_pictures, tiny_artifact
from tests.rows import add, contents, face_key, face_rows, picture_row, source_file

# --- opening ---


def test_created_filled_and_opened_again(archive):
    rows = [picture_row(f"{name}.png", seed) for seed, name in enumerate("cab")]
    add(archive, rows)
    again = Archive.open(archive.url)
    assert len(again) == 3
    assert list(again.keys()) == ["a.png", "b.png", "c.png"]
    assert again.read_row("c.png") == rows[0]
    assert again.read("c.png").shape == (24, 32, 3) and np.array_equal(again["c.png"], again.read("c.png"))
    with pytest.raises(ArchiveError, match=r"no picture 'd\.png'"):
        again.read("d.png")


def test_a_picture_that_is_not_there_is_a_key_error_in_plain_words(archive):
    for read in (archive.read, archive.read_row, archive.__getitem__):
        with pytest.raises(KeyError) as told:
            read("a")
        assert isinstance(told.value, ArchiveError)
        assert (
            str(told.value) == str(pickle.loads(pickle.dumps(told.value))) == f"{archive.url}: there is no picture 'a'"
        )


def test_open_or_create(tmp_path):
    url = str(tmp_path / "new" / "an archive with % and #")
    add(Archive.open_or_create(url), [picture_row("a")])
    assert len(Archive.open_or_create(url)) == 1
    assert len(pickle.loads(pickle.dumps(Archive.open(url)))) == 1


def test_of_two_that_create_it_one_opens_what_the_other_made(tmp_path, monkeypatch):
    url = str(tmp_path / "archive")
    add(Archive.create(url), [picture_row("a")])
    exists, asked = Store.exists, []

    def late(store: Store, name: str) -> bool:  # the other one finishes just after the first look
        asked.append(name)
        return len(asked) > 1 and exists(store, name)

    monkeypatch.setattr(Store, "exists", late)
    assert len(Archive.open_or_create(url)) == 1


IN_A_FORK = """
import multiprocessing, sys
import torch
from compressor.archive import Archive

torch.set_num_threads(2)
archive = Archive.open(sys.argv[1])
archive.read("learned"), archive.read("a")
context = multiprocessing.get_context("fork")

def told(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return type(error).__name__ + ": " + str(error).partition("archive: ")[2]

def work(answers):
    answers.put(archive.read("learned").shape)
    for call, *arguments in ((Archive.open, archive.url), (archive.refresh,), (archive.delete, ["a"])):
        answers.put(told(call, *arguments))

answers = context.SimpleQueue()
child = context.Process(target=work, args=[answers])
child.start()
for _ in range(4):
    print(answers.get())
child.join()
with context.Pool(1) as pool:  # receives the archive as a pickle
    print(told(pool.map, archive.read, ["a"]))
"""


def test_a_fork_reads_what_was_open_and_is_told_what_it_cannot_do(archive, tmp_path):
    (tmp_path / "codec.safetensors").write_bytes(tiny_artifact("v5"))
    archive.append({"learned": smooth_pictures(1, 64, 64)[0]}, tmp_path / "codec.safetensors", quality=30)
    assert archive.read_row("learned").codec not in STANDARD
    add(archive, [picture_row("a")])
    # In a process of its own: a fork of this one would have what is left of other tests' threads.
    (tmp_path / "fork.py").write_text(IN_A_FORK)
    command = [sys.executable, tmp_path / "fork.py", archive.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    shape, *refusals = ended.stdout.splitlines()
    assert shape == "(64, 64, 3)" and len(refusals) == 4, ended.stderr
    assert all("start processes by 'spawn' or 'forkserver'" in refusal for refusal in refusals), refusals
    assert len(Archive.open(archive.url)) == 2


def test_several_keys_may_come_from_an_iterator(archive, tmp_path):
    add(archive, [picture_row(key) for key in "abc"])
    archive.quarantine([QuarantineRow.now(key, bytes(5), "corrupt", "", "run") for key in "xyz"])
    other = Archive.create(str(tmp_path / "other"))
    assert other.missing(archive.keys()) == ["a", "b", "c"]
    assert [row.key for row in archive.read_rows(iter("ba"))] == ["a", "b"]
    assert archive.remove(iter("c")) == 1 and archive.clear_quarantine(iter("z")) == 1
    assert archive.delete(iter("ax")) == 1
    assert list(archive.keys()) == ["b"] and [row.key for row in archive.quarantined()] == ["y"]
    assert len(archive.dataset(iter("b"))) == 1


def test_what_is_refused_of_a_pickled_archive_is_refused_each_time(archive, monkeypatch):
    add(archive, [picture_row("a")])
    unpickled = pickle.loads(pickle.dumps(archive))
    assert [one.pictures for one in growth(unpickled)] == [1]

    def refuse(action: dict[str, Any]) -> None:
        raise ArchiveError("no statistics")

    unpickled = pickle.loads(pickle.dumps(archive))
    with monkeypatch.context() as patch:
        patch.setattr(delta_log, "_part", refuse)
        for _ in range(2):
            with pytest.raises(ArchiveError, match="no statistics"):
                len(unpickled)
    assert len(unpickled) == 1


def test_a_part_that_is_gone_is_told_with_what_to_do(archive):
    add(archive, [picture_row("a")])
    (part,) = Path(archive.url, "images").glob("*.parquet")
    part.unlink()
    opened = Archive.open(archive.url)
    for read in (opened.known, lambda: opened.read_row("a"), lambda: opened.missing(["a"]), lambda: "a" in opened):
        with pytest.raises(ArchiveError, match="is missing; see 'latentpack verify' and 'latentpack repair'"):
            read()


def test_an_unfinished_creation_is_finished(tmp_path):
    archive = Archive.create(str(tmp_path / "archive"))
    (tmp_path / "archive" / "latentpack.json").unlink()
    with pytest.raises(ArchiveError, match="no archive"):
        Archive.open(archive.url)
    assert len(Archive.create(archive.url)) == 0


@pytest.mark.parametrize(
    "name", ["images/a.png", "images/2024/a.png", "images/part-00000-1.snappy.parquet", "quarantine/tmp-list.csv",
             "codecs/readme", "tmp-photos.zip"]
)  # fmt: skip
def test_a_folder_of_somebody_elses_is_not_taken_for_an_unfinished_creation(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ArchiveError, match=rf"not empty \(it holds '{'/'.join(name.split('/')[:2])}'\); name a folder"):
        Archive.open_or_create(str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("release", ["format-1", "format-1-parts"])
def test_all_that_an_archive_of_any_release_holds_may_be_left_of_a_creation(tmp_path, release):
    archive = shutil.copytree(Path(__file__).parent / "fixtures" / release / "archive", tmp_path / "archive")
    (archive / "latentpack.json").unlink()
    for name in ("images/tmp-x1_y", "codecs/tmp-abcdefgh", "tmp-a0b1c2d3", ".DS_Store", "images/.DS_Store"):
        (archive / name).write_bytes(b"x")
    assert len(Archive.create(str(archive))) > 0


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for url in ("missing", "pictures", "file", "file/below"):
        with pytest.raises(ArchiveError, match="no archive here"):
            Archive.open(str(tmp_path / url))
    with pytest.raises(ArchiveError, match=r"not empty \(it holds 'a.png'\)"):
        Archive.create(str(tmp_path / "pictures"))
    with pytest.raises(ArchiveError, match="a file, where"):
        Archive.create(str(tmp_path / "file"))
    with pytest.raises(ArchiveError, match="cannot create an archive here"):
        Archive.create(str(tmp_path / "file" / "below"))
    with pytest.raises(ArchiveError, match="not in ftp://"):
        Archive.open("ftp://host/archive")


def test_a_newer_format_is_refused(archive):
    with open(f"{archive.url}/latentpack.json", "w") as marker:
        json.dump({"format": 99}, marker)
    with pytest.raises(ArchiveError, match="format is 99.*upgrade"):
        Archive.open(archive.url)


@pytest.mark.parametrize("damage", ["empty", "missing", "garbage"])
def test_a_damaged_log_is_refused(archive, damage):
    add(archive, [picture_row("a")])
    log = f"{archive.url}/images/_delta_log"
    for name in os.listdir(log):
        if damage == "missing":
            os.unlink(f"{log}/{name}")
        else:
            with open(f"{log}/{name}", "wb") as file:
                file.write(b"" if damage == "empty" else b"{garbage")
    with pytest.raises(ArchiveError, match="missing or damaged"):
        Archive.open_or_create(archive.url)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_archive_reads_but_does_not_write(archive):
    add(archive, [picture_row("a")])
    os.chmod(f"{archive.url}/images", 0o500)
    reader = Archive.open(archive.url)
    assert reader.read_row("a").key == "a"
    with pytest.raises(ArchiveError, match="cannot write a part"):
        reader.write_part([picture_row("b")])


# --- arguments ---


def test_one_key_is_not_taken_for_its_letters(archive):
    add(archive, [picture_row(key) for key in ("1", "2", "12")])
    calls = (archive.remove, archive.delete, archive.clear_quarantine, archive.scan, archive.dataset, archive.read_rows)
    for call in (*calls, archive.missing):
        with pytest.raises(TypeError, match="a list is needed"):
            call("12")
    with pytest.raises(TypeError, match="a list is needed"):
        archive.commit([], replaced="12")
    assert archive.remove(["12"]) == 1 and sorted(archive.keys()) == ["1", "2"]


@pytest.mark.parametrize("key", [b"a", 7, Path("a"), None, ("a",)])
def test_a_key_that_is_no_text_is_told(archive, tmp_path, key):
    add(archive, [picture_row("a")])
    told = f"a key is text, not {type(key).__name__}: "
    one = "take one key, not a tuple: see read_rows" if key == ("a",) else told
    for call in (archive.read, archive.read_row):
        with pytest.raises(TypeError, match=one):
            call(key)
    calls = (archive.read_rows, archive.remove, archive.delete, archive.missing, archive.clear_quarantine)
    for call in (*calls, archive.dataset, lambda keys: archive.restore(tmp_path / "out", keys)):
        with pytest.raises(TypeError, match=told):
            call(["a", key])
    with pytest.raises(TypeError, match=told):
        archive.commit([], replaced=[key])
    assert key not in archive and len(archive) == 1
    for call in calls if key != ("a",) else ():
        with pytest.raises(TypeError, match=f"a list is needed, not {type(key).__name__}: "):
            call(key)


def test_an_archive_is_asked_as_a_collection_of_keys(archive):
    assert archive and not len(archive) and list(archive) == []
    keys = [face_key(number) for number in range(2000)]
    add(archive, face_rows(2000))
    add(archive, [picture_row("own.png")])
    assert list(archive) == [*keys, "own.png"]
    assert all(key in archive for key in (keys[0], keys[1999], "own.png"))
    archive.remove(["own.png"])
    for other in ("own.png", "", "00000/00000", "zzz", "a\ud800", 7, None):
        assert other not in archive


def test_a_codec_is_stored_under_the_name_that_its_bytes_have(archive):
    id = archive.put_codec(tiny_artifact("v5"))
    assert archive.codec(id).id == id and archive.verify() == []
    with pytest.raises(CodecError, match="not a latentpack codec"):
        archive.put_codec(b"no artifact")
    assert os.listdir(f"{archive.url}/codecs") == [f"{id}.safetensors"]


def test_what_makes_no_sense_is_refused_in_words(archive):
    add(archive, [picture_row("a")])
    [[row]] = archive.scan(["key", "width", "key"])
    assert (row.key, row.width, row.payload) == ("a", 32, None)
    with pytest.raises(ArchiveError, match="a: to decode a row takes its height, channels, codec"):
        archive.decode([row])
    [[row]] = archive.scan([name for name in Row.__dataclass_fields__ if name != "crc32c"])
    with pytest.raises(ArchiveError, match="takes its crc32c too"):
        archive.decode([row])
    with pytest.raises(TypeError, match=r"several rows are decoded together: decode\(\[row\]\)"):
        archive.decode(row)
    with pytest.raises(TypeError, match="rows are decoded, .*, not list"):
        archive.decode(archive.scan())
    with pytest.raises(ArchiveError, match="at least 1 row, not 0"):
        archive.scan(batch_size=0)
    for call in (archive.scan, archive.batches):
        with pytest.raises(ArchiveError, match="no column 'nope'"):
            call(["nope"])
    with pytest.raises(ArchiveError, match="there is no picture"):
        archive.read("b\udcff")  # a name in another encoding, which no key can be
    assert archive.remove(["a\udcff"]) == 0 and list(archive.read_rows(["\udcff"])) == []
    with pytest.raises(ArchiveError, match="not -5"):
        archive.vacuum(-5)
    for wrong in ({"psnr": float("nan")}, {"psnr": float("inf")}, {"width": -1}, {"height": 0}):
        with pytest.raises(ArchiveError, match="'b'"):
            archive.write_part([replace(picture_row("b"), **wrong)])


# --- what is known ---


def test_known_tells_new_changed_same_and_quarantined(archive):
    rows = face_rows(50)
    add(archive, rows[:30])
    add(archive, rows[30:40])
    archive.quarantine(
        [
            QuarantineRow.now("bad.png", b"12345", "corrupt", "no", "run"),
            QuarantineRow.now(rows[1].key, b"54321", "corrupt", "the new version does not decode", "run"),
        ]
    )
    files = [
        source_file(rows[0]),
        source_file(rows[35]),
        source_file(rows[45]),
        source_file(rows[0], fingerprint=b"00000"),
        source_file(rows[0], key="bad.png", fingerprint=b"12345"),
        source_file(rows[0], key="bad.png", fingerprint=b"mende"),
        source_file(rows[1], fingerprint=b"54321"),
    ]
    known = Archive.open(archive.url).known()
    assert known.state(files) == ["same", "same", "new", "changed", "quarantined", "new", "quarantined"]
    assert known.healed([row.key for row in rows[:3]]) == [rows[1].key] and known.healed([]) == []
    assert Archive.create(archive.url + "-empty").known().state(files[:2]) == ["new", "new"]


def test_an_archive_of_an_earlier_version_knows_its_pictures(archive, monkeypatch):
    rows = [replace(row, fingerprint=row.fingerprint + b"old") for row in face_rows(3)]
    with monkeypatch.context() as earlier:
        earlier.setattr(parquet, "FINGERPRINT_BYTES", 8)
        add(archive, rows[:2])
        archive.quarantine([QuarantineRow.now(rows[2].key, rows[2].fingerprint, "corrupt", "no", "run")])
    files = [source_file(row, fingerprint=row.fingerprint[:FINGERPRINT_BYTES]) for row in rows]
    add(archive, face_rows(1, start=3))
    archive.compact()

    assert {len(row.fingerprint) for row in contents(archive).values()} == {5, 8}
    files.append(source_file(rows[0], fingerprint=b"other"))
    assert archive.known().state(files) == ["same", "same", "quarantined", "changed"]


def test_what_crashed_a_worker_or_was_not_given_is_tried_again(archive):
    reasons = {"a": CRASHED, "b": "corrupt", "c": UNREADABLE}
    archive.quarantine([QuarantineRow.now(key, bytes(5), reason, "", "run") for key, reason in reasons.items()])
    files = [SourceFile(key, key, 1, bytes(5)) for key in reasons]
    assert archive.known().state(files) == ["new", "quarantined", "new"]


def test_quarantine_keeps_the_latest_entry_until_it_is_cleared(archive):
    def entry(key, reason):
        return QuarantineRow.now(key, b"12345", reason, "ends early", "run-1")

    archive.quarantine([entry("a", "truncated"), entry("b", "corrupt")])
    archive.quarantine([entry("a", "corrupt")])
    assert [(row.key, row.reason) for row in archive.quarantined()] == [("a", "corrupt"), ("b", "corrupt")]
    assert archive.info().quarantine_reasons == {"corrupt": 2}
    assert archive.clear_quarantine(["a", "c"]) == 1
    assert [row.key for row in Archive.open(archive.url).quarantined()] == ["b"]


def test_info_counts_everything(archive):
    rows = face_rows(500)
    add(archive, rows)
    info = archive.info()
    assert (info.pictures, info.quarantined, info.exact) == (500, 0, 0)
    assert info.source_bytes == sum(row.source_bytes for row in rows)
    assert info.payload_bytes == sum(len(row.payload) for row in rows)
    assert info.codecs == {"a3f09b12c45d6e78": 500}
    assert info.sizes == {"128x128": 500}
    assert info.psnr_mean == pytest.approx(np.mean([row.psnr for row in rows]), abs=1e-3)
    assert info.psnr_min == min(row.psnr for row in rows)
    assert info.psnr_percentiles["50"] == pytest.approx(np.median([row.psnr for row in rows]), abs=0.02)
    assert sum(info.psnr_histogram.values()) == 500
    assert info.metadata_bytes_per_picture < 24
    json.dumps(dataclasses.asdict(info))
    json.dumps(dataclasses.asdict(Archive.create(archive.url + "-empty").info()))


@pytest.mark.parametrize("read", [Archive.info, Archive.known, lambda opened: opened.read_row("b")])
def test_a_read_sees_the_newest_version_where_another_run_has_vacuumed_the_one_it_had_open(archive, read):
    for key in "ab":
        add(archive, [picture_row(key)])
        archive.quarantine([QuarantineRow.now(f"bad-{key}", bytes(8), "corrupt", "", "run")])
    fresh, used = Archive.open(archive.url), Archive.open(archive.url)
    used.info()  # has read the footers
    assert archive.compact() == 2
    archive.vacuum(0)
    for opened in (fresh, used):
        read(opened)
        assert opened.version == archive.version


def test_figures_of_an_archive_that_lacks_a_file_name_the_damage(archive):
    add(archive, [picture_row("a")])
    Path(archive.files()[0]).unlink()
    with pytest.raises(ArchiveError, match="a file that its log names is missing; see 'latentpack verify'"):
        Archive.open(archive.url).info()

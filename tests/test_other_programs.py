"""The tables as other programs read them, and what these have written."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from deltalake import DeltaTable

from compressor.archive import Archive, Row
from compressor.errors import ArchiveError, CodecError
from compressor.repairing import repair
from tests.rows import add, contents, face_key, face_rows, picture_row


def test_others_read_the_table(archive):
    add(archive, face_rows(100))
    add(archive, face_rows(1, start=5, seed=9), replaced=[face_key(5)])
    images = DeltaTable(f"{archive.url}/images").to_pyarrow_table()
    assert images.num_rows == 100
    assert duckdb.sql("select count(distinct key), sum(octet_length(payload)) from images").fetchall() == [
        (100, archive.info().payload_bytes)
    ]


def test_other_programs_are_told_which_files_hold_the_pictures(tmp_path):
    archive = Archive.create(str(tmp_path / "a folder, ünï {100 %}"))
    add(archive, [picture_row(key, seed) for seed, key in enumerate("abc")])
    add(archive, [picture_row("b", 7)], replaced=["b"])
    seen = duckdb.read_parquet(archive.files())
    assert sorted(key for (key,) in seen.project("key").fetchall()) == ["a", "b", "c"]


def test_what_a_query_gives_is_decoded_in_its_order(archive):
    rows = [replace(picture_row(key, at), psnr=30.0 + (at * 3 + 5) % 10) for at, key in enumerate("abcdefghij")]
    add(archive, rows)
    assert any(row.crc32c >= 2**31 for row in rows), "they lie in files with a sign"
    found = duckdb.read_parquet(archive.files()).query("images", "select *, 1 as one from images order by psnr limit 4")
    keys = [row.key for row in sorted(rows, key=lambda row: row.psnr)[:4]]
    wanted = [archive.read(key) for key in keys]
    assert keys != sorted(keys)
    for given in (
        found,
        found.to_arrow_table(),
        [Row(**row) for row in found.project("* exclude one").to_arrow_table().to_pylist()],
    ):
        assert all(map(np.array_equal, archive.decode(given), wanted)), type(given)
    [table] = archive.batches()
    for kind in ("int", "bigint"):
        whole = duckdb.from_arrow(table).project(f"* replace (crc32c::{kind} as crc32c)")
        assert len(archive.decode(whole)) == len(rows)
    with pytest.raises(ArchiveError, match=f"{min(keys)}: to decode a row takes its crc32c too"):
        archive.decode(found.union(found).project("* replace (null::int as crc32c)").order("key"))
    with pytest.raises(ArchiveError, match="row 0: to decode a row takes its key, .*, crc32c too"):
        archive.decode(found.project("payload"))
    damaged = found.project("* replace ((crc32c + 1)::int as crc32c)")
    with pytest.raises(CodecError, match=f"{keys[0]}: stored crc32c 0x"):
        archive.decode(damaged)


def test_the_digest_of_a_state_is_what_the_format_says(archive):
    """From the log's own text alone, as a reader in another language would have it."""
    add(archive, [picture_row(name, seed) for seed, name in enumerate("abc")])
    add(archive, [picture_row(name, seed) for seed, name in enumerate("bd")], replaced=["b"])
    log = sorted(Path(archive.url, "images", "_delta_log").glob("*.json"))
    entries = [json.loads(line) for path in log for line in path.read_text().splitlines()]
    of_kind = {
        kind: [one[kind] for one in entries if kind in one] for kind in ("add", "remove", "protocol", "metaData")
    }
    gone = {one["path"] for one in of_kind["remove"]}
    [protocol], [about] = of_kind["protocol"], of_kind["metaData"]
    columns = json.loads(about["schemaString"])["fields"]
    hashed = [
        (
            sorted(about["configuration"].items()),
            about["partitionColumns"],
            [(one["name"], f'PrimitiveType("{one["type"]}")', one["nullable"]) for one in columns],
            (protocol["minReaderVersion"], protocol["minWriterVersion"]),
        )
    ]
    for one in of_kind["add"]:
        if one["path"] not in gone:
            stats = json.loads(one["stats"])
            bounds = (stats["minValues"]["key"], stats["maxValues"]["key"])
            hashed.append((one["path"], one["size"], stats["numRecords"], *bounds))
    assert len(hashed) == 3, "two live files"
    sums = (int.from_bytes(hashlib.blake2b(repr(one).encode(), digest_size=8).digest(), "little") for one in hashed)
    stored = [
        one["commitInfo"]["latentpack.state"] for one in entries if "latentpack.state" in one.get("commitInfo", {})
    ]
    assert stored[-1] == f"{sum(sums) % 2**64:016x}"


@pytest.mark.parametrize("folder", ["", "long" * 20 + "/"])
@pytest.mark.parametrize("how", ["delete", "compact", "z_order"])
def test_what_another_program_has_written_is_read_and_written_on(archive, how, folder):
    """delta-rs writes strings as Arrow's views, rows in any order, and bounds of long keys shortened."""
    a, b, c, d, e, f, z = (f"{folder}{name}.png" for name in "abcdefz")
    add(archive, [picture_row(key, seed) for seed, key in enumerate((a, b, c))])
    add(archive, [picture_row(key, seed) for seed, key in enumerate((d, e, f))])
    table = DeltaTable(f"{archive.url}/images")
    if how == "delete":
        table.delete(f"key = '{b}'")
    else:
        table.optimize.compact() if how == "compact" else table.optimize.z_order(["key"])
    opened = Archive.open(archive.url)
    assert not [problem for problem in opened.verify() if "_delta_log" not in problem.key]
    assert opened.read(c).shape == (24, 32, 3)
    assert sorted(row.key for row in opened.read_rows([a, d, z])) == [a, d]
    repair(opened)  # takes the log, in whose last commit no latentpack had a part, for right
    assert opened.read(c).shape == opened.read(f).shape == (24, 32, 3)
    assert opened.remove([a, d]) == 2
    add(opened, [picture_row(c, 9)], replaced=[c])
    assert contents(opened).keys() == {b, c, e, f} - ({b} if how == "delete" else set())
    assert not opened.verify()


def test_what_the_log_says_wrongly_of_another_programs_file_is_mended(archive):
    for key in ("a", "b"):
        add(archive, [picture_row(key)])
    DeltaTable(f"{archive.url}/images").optimize.compact()
    newest = max(Path(archive.url).glob("images/_delta_log/*.json"))
    text = newest.read_text()
    wrong = text.replace('\\"maxValues\\":{\\"key\\":\\"b\\"', '\\"maxValues\\":{\\"key\\":\\"a\\"')
    assert wrong != text
    newest.write_text(wrong)
    [file] = [part.path for part in Archive.open(archive.url)._images.parts]
    assert file in {problem.key for problem in Archive.open(archive.url).verify()}
    done = repair(Archive.open(archive.url))
    assert done.is_whole and f"what the log says of {file}" in done.log
    opened = Archive.open(archive.url)
    assert opened.verify() == [] and opened.read("b").shape == (24, 32, 3)
    assert not repair(opened).log

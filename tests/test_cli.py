"""The command line: exit codes, messages without tracebacks, commands on a small archive."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compressor import learning
from compressor.archive import Archive
from compressor.codec import load_codec
from compressor.defaults import FAMILY
from compressor.entropy import ENTROPY
from compressor.errors import NO_FAULT
from compressor.families import FAMILIES
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.packers import PACKERS
from compressor.parquet import QuarantineRow
from compressor.picture_writing import encode_picture
from compressor.quantization import LATENT_TYPES
from compressor.restoring import EXTENSIONS
from flows import parameters
from flows.cli import run
from tests.codecs import smooth_pictures, tiny_artifact
from tests.commands import archive as archive
from tests.commands import pictures as pictures
from tests.commands import said
from tests.rows import add, picture_row


def test_choices_are_what_the_library_has() -> None:
    assert {*get_args(parameters.Family)} == FAMILIES.keys() - {"autoencoder"}
    assert FAMILY in get_args(parameters.Family)
    assert all((FAMILIES[name].wrap is HyperpriorCodec) == (name in parameters.HYPERPRIORS) for name in FAMILIES)
    assert {*get_args(parameters.Packer)} == {"auto", *HyperpriorCodec.packers}
    assert {*get_args(parameters.Packer)} - {"auto", ENTROPY} == {*PACKERS} - {"none"}
    assert {*get_args(parameters.Latents)} == LATENT_TYPES.keys()
    assert {*get_args(parameters.PictureFormat)} == EXTENSIONS.keys()


def test_too_many_failures_end_with_1_and_are_told(
    tmp_path: Path, prefect_api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_text("text")
    code, out, err = said(capsys, "run", tmp_path / "in", tmp_path / "archive", "--max-failures", "5%", "--json")
    assert code == 1 and json.loads(out)["stopped"] == "1 of 1 picture failed"
    assert "more failed than --max-failures allows: 1 of 1 picture failed; what is archived stays" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "{missing}", "{new}"], "no source at"),
        (["run", "{in}", "{new}", "--codec", "nope"], "there is no codec 'nope'"),
        (["run", "{in}", "{new}", "--target-psnr", "500"], "--target-psnr"),
        (["run", "{in}", "{new}", "--target-psnr", "34,5"], "--target-psnr: write a number such as 34.5"),
        (["run", "{in}", "{new}", "--batch-size", "1.000"], "--batch-size: write a whole number, without separators"),
        (["run", "{in}", "{new}", "--train", "v3", "--steps", "1.000"], "--steps: write a whole number"),
        (["run", "{in}", "{new}", "--packer", "zip"], "invalid choice"),
        (["run", "{in}", "{new}", "--codec", "avif", "--effort", "3"], "knows no effort but 0"),
        (["run", "{in}", "{new}", "--effort", "-1"], "--effort"),
        (["run", "{in}", "{new}", "--max-failures", "many"], "--max-failures"),
        (["run", "{in}", "{in}"], "not an archive, and not empty"),
        (["run", "{in}"], "required"),
        (["run", "a.png", "b.png", "c.png", "{new}"], "more names than it takes: c.png /"),
        (["run", *["a.png"] * 999], "a.... (several pictures are one glob in quotes: 'photos/*.jpg')\n"),
        (["run", "{in}", "{new}", "--fast"], "unrecognized arguments: --fast\n"),
        (["frobnicate"], "invalid choice"),
        (["info", "{in}"], "no archive here"),
        (["restore", "{missing}", "{new}"], "no archive here"),
        (["train", "{in}", "--family", "v9"], "invalid choice"),
        (["train", "{in}", "--out", "{missing}/x.safetensors"], "create it first"),
        (["train", "{in}", "--out", "{in}"], "it is a folder"),
        (["train", "{in}", "--out", "/dev/null"], "no ordinary file"),
        (["train", "{in}", "--out", "{in}/a.png"], "is no codec of latentpack; choose another name, or delete it\n"),
        (["train", "{in}", "--side", "100"], "multiple of 32"),
        (["run", "{in}", "{new}", "--codec", "avif", "--train", "v3"], "does not go with --codec"),
        (["run", "{in}", "{new}", "--codec", "faces", "--train", "v3"], "--train does not go with --codec"),
        (["train", "{in}", "--start", "{in}/a.png"], "a.png: not a latentpack codec"),
        (["restore", "{in}", "gs://bucket/restored"], "must be a local path or an s3:// address"),
        (["run", "{in}", "{new}", "--steps", "10"], "--steps is for --train alone"),
        (["run", "{in}", "{new}", "--train", "v3", "--steps", "-1"], "latentpack: --steps: "),
        (["run", "{in}", "{new}", "--mirror-limit", "5%"], "is for --mirror alone"),
        (["run", "{in}", "{new}", "--quality", "9", "--target-psnr", "40"], "--target-psnr does not go with --quality"),
        (["run", "{in}", "{new}", "--workers", "2", "--scheduler", "tcp://x:1"], "does not go with --scheduler"),
        (["run", "{in}", "{new}", "--codec", "webp", "--packer", "lzma"], "has no packer 'lzma': choose from auto\n"),
        (["run", "{in}", "{new}", "--train", "v3", "--effort", "5"], "knows no effort but 0"),
        (["run", "{in}", "{new}", "--train", "v5", "--latents", "fp16"], "stores int8 alone"),
        (["experiments", "{in}", "--codec", "facs"], "there is no codec 'facs'"),
        (["experiments", "{in}", "--other", "{missing}"], "no source at"),
        (["experiments", "{in}", "--ladder", "0"], "--ladder: write it like 30,300,all, not '0'"),
        (["run", "{in}", "{new}", "--max-failures", "1.5"], "--max-failures: write it like 1% or 100, not '1.5'"),
        (["restore", "{in}", "--key", "a.png", "{new}"], "takes all names behind it: write those first"),
        (["run", "{in}", "{new}", "--max-failures", "200%"], "--max-failures: write it like 1% or 100, not '200%'"),
        (["run", "{in}", "{new}", "--price-per-tb", "inf"], "--price-per-tb: "),
        (["run", "{in}", ""], "latentpack: ARCHIVE: it is empty\n"),
        (["run", "{in}", "{new}", "--mirror", "--limit", "3"], "it does not go with --limit\n"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    arguments: list[str],
    message: str,
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"missing": tmp_path / "missing", "new": tmp_path / "new", "in": pictures}
    code, out, err = said(capsys, *(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message.format(**places) in err and not out


def test_usage_is_told_once_in_colours_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, _, err = said(capsys, "restore", "archive")
    assert code == 2 and err.count("usage: ") == 1 and "arguments are required" in err


def test_an_empty_folder_is_no_error_but_is_said(
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    code, _, err = said(capsys, "run", tmp_path / "in", tmp_path / "archive")
    assert code == 0 and "no picture in" in err
    add(Archive.open(str(tmp_path / "archive")), [picture_row("a.png")])
    code, _, err = said(capsys, "run", tmp_path / "in", tmp_path / "archive")
    assert code == 1 and "in lists no picture, and the archive holds some: is this the place, is it mounted?" in err


def test_a_restore_into_the_archive_itself_is_refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(archive.rglob("*"))
    for destination in (archive, archive / "images", f"{archive}/../archive/new"):
        code, _, err = said(capsys, "restore", archive, destination)
        assert code == 2 and "is in the archive itself" in err
    assert sorted(archive.rglob("*")) == before


def test_restore_and_verify(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "restore", archive, tmp_path / "out")
    assert code == 0 and "3 pictures" in out
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["a.png", "sub/b.png", "sub/c.png"]
    code, _, err = said(capsys, "restore", archive, tmp_path / "one", "--key", "a.png", "nothing.png")
    assert code == 1 and "nothing.png" in err and (tmp_path / "one" / "a.png").exists()
    assert said(capsys, "verify", archive)[0] == 0


def test_a_restore_into_the_source_harms_no_original(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in pictures.rglob("*.*")}
    code, out, err = said(capsys, "restore", archive, pictures)
    assert code == 1 and ", 1 problem\n" in out
    assert "a.png: cannot write a.png: another file of that name is there; --overwrite replaces it" in err
    assert all(path.read_bytes() == content for path, content in before.items())
    assert said(capsys, "run", pictures, archive, "--codec", "webp", "--json")[0] == 0
    assert said(capsys, "restore", archive, pictures, "--key", "a.png", "--overwrite")[0] == 0
    assert (pictures / "a.png").read_bytes() != before[pictures / "a.png"]


def test_a_repair_says_that_there_is_no_such_codec_even_where_it_needs_none(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said(capsys, "repair", archive, "--codec", "copy-of-faces")
    assert code == 2 and "there is no codec 'copy-of-faces'" in err


def test_verify_names_what_is_damaged(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = archive.glob("images/*.parquet")
    payload = Archive.open(str(archive)).read_row("sub/b.jpg").payload
    data = bytearray(part.read_bytes())
    middle = data.index(payload) + len(payload) // 2
    data[middle] ^= 1
    part.write_bytes(data)
    code, out, _ = said(capsys, "verify", archive, "--json")
    assert code == 1
    found = json.loads(out)
    assert "sub/b.jpg" in {key for key, _ in found["problems"]}
    assert (found["bad"], found["unread"], found["damaged_files"]) == (1, 0, 0)
    data[middle] ^= 1
    data[0] ^= 1  # Parquet's magic number, which nothing reads
    part.write_bytes(data)
    assert "3 pictures verified, 0 of them bad, 1 file damaged\n" in said(capsys, "verify", archive)[2]


def test_info_delete_compact_vacuum(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "info", archive, "--json")
    assert json.loads(out)["pictures"] == 3
    assert "ratio" in said(capsys, "info", archive)[1]
    assert said(capsys, "delete", archive, "--key", "a.png") == (0, "1 picture erased\n", "")
    assert json.loads(said(capsys, "info", archive, "--json")[1])["pictures"] == 2
    assert said(capsys, "compact", archive)[0] == 0
    assert said(capsys, "vacuum", archive, "--older-than", "0")[0] == 0
    assert said(capsys, "verify", archive)[0] == 0


def test_keys_to_erase_that_are_not_there_are_named(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As restore names them: somebody believes that these pictures are erased now."""
    (pictures / "bad.png").write_text("text")
    assert said(capsys, "run", pictures, archive, "--codec", "webp")[0] == 1
    code, out, err = said(capsys, "delete", archive, "--key", "none.png", "a.png", "nor.png")
    assert code == 1 and out == "1 picture erased, 2 keys not archived\n"
    assert [line.split(":")[0] for line in err.splitlines()] == ["none.png", "nor.png"]
    code, out, _ = said(capsys, "delete", archive, "--key", "a.png", "sub/b.jpg", "--json")
    done = json.loads(out)
    assert (code, done["erased"], [key for key, _ in done["problems"]]) == (1, 1, ["a.png"])
    erased = said(capsys, "delete", archive, "--key", "bad.png")
    assert erased == (0, "0 pictures erased, 1 key taken off the quarantine list\n", "")
    assert said(capsys, "quarantine", "list", archive)[1] == ""


def test_keys_are_taken_from_files(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, empty, binary = tmp_path / "listed", tmp_path / "empty", tmp_path / "binary"
    listed.write_text("sub/b.jpg\r\n\nsub/c.webp\nsub/b.jpg", newline="")
    empty.write_text("\n")
    binary.write_bytes(b"\xff")
    _, out, _ = said(capsys, "restore", archive, tmp_path / "out", "--key", "a.png", "--keys-from", listed)
    assert "3 pictures" in out
    for wrong, reason in ((empty, "there is no key in it"), (binary, "not text in UTF-8"), (tmp_path, "a directory")):
        for command in (("restore", archive, tmp_path / "all"), ("delete", archive), ("quarantine", "retry", archive)):
            code, _, err = said(capsys, *command, "--keys-from", wrong)
            assert code == 2 and reason in err, (command, err)
    assert not (tmp_path / "all").exists() and len(Archive.open(str(archive))) == 3
    assert said(capsys, "delete", archive)[0] == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a.png\nsub/c.webp\n")))
    assert "2 pictures erased" in said(capsys, "delete", archive, "--keys-from", "-")[1]


def test_keys_are_taken_from_what_a_query_writes(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query, other, broken = tmp_path / "query.parquet", tmp_path / "other.parquet", tmp_path / "broken.parquet"
    select = f"select key from read_parquet({Archive.open(str(archive)).files()}) where key like 'sub/%'"
    duckdb.sql(f"copy ({select} union all select 'no \"such,\n key') to '{query}'")
    duckdb.sql(f"copy (select 1 as picture) to '{other}'")
    broken.write_bytes(query.read_bytes()[:-9])
    twice, text = pa.array(["a.png"]), pa.array([b"\xff"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table([twice, twice], ["key", "key"]), tmp_path / "twice.parquet")
    pq.write_table(pa.table({"key": text}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"key": pa.array([None], pa.string())}), tmp_path / "empty.parquet")
    pq.write_table(pa.table({"key": pa.array(["sub/b.jpg", None]).dictionary_encode()}), tmp_path / "GOOD.PARQUET")
    assert (
        "1 picture w" in said(capsys, "restore", archive, tmp_path / "one", "--keys-from", tmp_path / "GOOD.PARQUET")[1]
    )
    code, out, err = said(capsys, "restore", archive, tmp_path / "out", "--keys-from", query)
    assert code == 1 and out.startswith("2 pictures written") and 'no "such' in err
    for wrong, reason in (
        (other, "no columns named key"),
        (broken, "keys cannot be read"),
        (tmp_path / "none.parquet", "No such"),
        (tmp_path / "twice.parquet", "2 columns named key"),
        (tmp_path / "text.parquet", "keys cannot be read"),
        (tmp_path / "empty.parquet", "there is no key in it"),
    ):
        code, _, err = said(capsys, "restore", archive, tmp_path / "all", "--keys-from", wrong)
        assert code == 2 and reason in err and str(wrong) in err and len(err.splitlines()) == 1
    assert not (tmp_path / "all").exists()
    assert "No such file" in said(capsys, "delete", archive, "--keys-from", "s3://bucket/keys.parquet")[2]


@pytest.mark.parametrize("watched", [True, False])
def test_keys_to_restore_are_taken_from_a_pipe(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    import flows.commands

    monkeypatch.setattr(flows.commands, "api_is_configured", lambda: watched)
    for text, code, written in ((b"a.png\nsub/c.webp\n", 0, 3), (b"nothing.png\n", 1, 1), (b"", 2, 0)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        out = tmp_path / f"out{code}"
        ended, _, err = said(capsys, "restore", archive, out, "--key", "sub/b.jpg", "--keys-from", "-")
        assert ended == code and len(list(out.rglob("*.png"))) == written, err
    assert "standard input: there is no key in it" in err
    assert "or - for standard input" in " ".join(said(capsys, "restore", "--help")[1].split())


def test_help_tells_ranges_and_what_each_action_does(capsys: pytest.CaptureFixture[str]) -> None:
    def help_of(command: str) -> str:
        return " ".join(said(capsys, command, "--help")[1].split())

    run = help_of("run")
    for told in ("reaches, from 10 to 60", "0 to 63 for families v5", "higher is better", "v6, from 0 to 100: fewer"):
        assert told in run
    assert "with, from 1 to 4096" in run and "in one commit" in run
    assert "commit" not in help_of("train")
    assert "list: show" in help_of("quarantine")


def test_a_picture_that_was_too_large_is_tried_once_the_limits_allow_it(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(list(pictures.iterdir()))
    Image.new("RGB", (100, 100)).save(pictures / "wide.png")
    Image.new("RGB", (200, 200)).save(pictures / "long.bmp")
    limits = ("--max-pixels", 9_999, "--max-bytes", 99_999)
    assert said(capsys, "run", pictures, archive, "--codec", "webp", *limits)[0] == 1
    listed = said(capsys, "quarantine", "list", archive)[1]
    assert "120,054 bytes, the limit is 99,999 (--max-bytes)" in listed
    assert "100 x 100 pixels, the limit is 9,999 in all (--max-pixels)" in listed
    code, out, _ = said(capsys, "run", pictures, archive, "--codec", "webp", "--max-pixels", 10_000)
    assert code == 1 and re.search(rf"already there +{count}\n", out) and re.search(r"archived +1\n", out)
    assert "200 x 200 pixels" in said(capsys, "quarantine", "list", archive)[1], "and why it is refused now"
    assert said(capsys, "run", pictures, archive, "--codec", "webp")[0] == 0
    assert said(capsys, "quarantine", "list", archive)[1] == ""


def test_quarantine_is_listed_and_retried(pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bad.png").write_text("text")
    assert said(capsys, "run", pictures, archive, "--codec", "webp")[0] == 1
    assert said(capsys, "quarantine", "list", archive)[1].startswith("bad.png\tnot_a_picture\t")
    _, out, err = said(capsys, "quarantine", "retry", archive, "--reason", "unsupported")
    assert "0 pictures will" in out and "reasons there are: not_a_picture" in err
    assert "1 picture will" in said(capsys, "quarantine", "retry", archive, "--reason", "not_a_picture")[1]
    code, out, _ = said(capsys, "run", pictures, archive, "--codec", "webp", "--json")
    assert code == 1 and json.loads(out)["quarantined"] == 1


def test_what_is_accepted_in_the_quarantine_is_no_failure_until_it_changes(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> tuple[int, dict[str, Any], str]:
        code, out, err = said(capsys, "run", pictures, archive, "--codec", "webp", "--json", *options)
        return code, json.loads(out), err

    (pictures / "bad.png").write_text("text")
    (pictures / "large.png").write_bytes(encode_picture(smooth_pictures(1, 60, 60)[0], 3))
    assert run("--max-pixels", "3599")[1]["quarantined"] == 2
    assert "1 picture accepted" in said(capsys, "quarantine", "accept", archive, "--key", "bad.png")[1]
    code, again, err = run("--max-pixels", "3599")
    assert (code, again["still_quarantined"], again["accepted"]) == (1, 1, 1) and "1 picture quarantined" in err
    assert "1 picture accepted" in said(capsys, "quarantine", "accept", archive)[1], "the other"
    assert said(capsys, "quarantine", "list", archive)[1].startswith(
        "bad.png	accepted	not_a_picture: no known picture"
    )
    code, again, err = run()
    assert (code, again["archived"], again["accepted"]) == (0, 0, 2), "also where the limits would allow it now"
    assert "quarantined" not in err and "accepted in the quarantine" in said(capsys, "run", pictures, archive)[1]
    (pictures / "bad.png").write_text("another text")
    code, again, _ = run()
    assert (code, again["quarantined"], again["accepted"]) == (1, 1, 1)
    assert said(capsys, "quarantine", "list", archive)[1].startswith("bad.png	not_a_picture	")
    assert "1 picture will" in said(capsys, "quarantine", "retry", archive, "--reason", "accepted")[1]
    assert run()[1]["archived"] == 1


def test_what_is_no_fault_of_a_file_is_accepted_by_name_alone(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "run", pictures, archive, "--codec", "webp")
    rows = [QuarantineRow.now(f"{reason}.png", b"12345", reason, "why", "run") for reason in (*NO_FAULT, "corrupt")]
    Archive.open(archive).quarantine(rows)
    code, out, err = said(capsys, "quarantine", "accept", archive)
    assert code == 0 and "1 picture accepted" in out and "3 pictures left, whose files" in err
    code, out, err = said(capsys, "quarantine", "accept", archive, "--key", "crashed.png", "--key", "nor.png")
    assert code == 1 and "1 picture accepted" in out and "not on the list: nor.png" in err
    code, out, err = said(capsys, "quarantine", "accept", archive, "--reason", "damaged")
    assert (code, err) == (0, "") and "1 picture accepted" in out
    assert {row.key for row in Archive.open(archive).quarantined() if row.reason == "unreadable"} == {"unreadable.png"}
    assert said(capsys, "quarantine", "accept", archive, "--reason", "accepted")[1].startswith("0 pictures accepted")


def test_codecs(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "codecs", archive, "--json")
    found = json.loads(out)
    assert code == 0 and {"faces", "avif", "jpegxl"} <= set(found["codecs"]) and sum(found["used"].values()) == 3


def test_a_codec_tells_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "codecs", "faces", "--json")
    told = json.loads(out)
    assert code == 0 and told["id"] == load_codec("faces").id and told["card"]["pictures_seen"] > 10**6
    assert "research" in told["terms"]
    (tmp_path / "mine.safetensors").write_bytes(data := tiny_artifact("v1"))
    code, out, _ = said(capsys, "codecs", tmp_path / "mine.safetensors")
    assert code == 0 and re.search(rf"^family +v1$(.|\n)*^bytes +{len(data)}$", out, re.M)
    (tmp_path / "other.png").write_bytes(b"no codec")
    code, _, err = said(capsys, "codecs", tmp_path / "other.png")
    assert code == 2 and "other.png: not a latentpack codec" in err


def test_repair_encodes_again_what_verify_names(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = archive.glob("images/*.parquet")
    payload = Archive.open(str(archive)).read_row("sub/b.jpg").payload
    data = bytearray(part.read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 1
    part.write_bytes(data)
    code, out, _ = said(capsys, "repair", archive)
    assert code == 1 and "sub/b.jpg\t" in out
    code, _, err = said(capsys, "repair", archive, pictures)
    assert code == 0 and re.search(r"1 picture encoded again by webp at 3[4-9]\.\d\d dB or more, 0 taken out", err), err
    assert not (archive / "codecs").exists(), "no decoder that no row needs"
    assert said(capsys, "verify", archive)[0] == 0
    assert json.loads(said(capsys, "repair", archive, "--json")[1])["whole"] is True


def test_all_that_needs_a_look_ends_with_1(pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["run", str(pictures), str(archive), "--codec", "webp"]
    assert said(capsys, *again)[0] == 0
    (pictures / "broken.png").symlink_to(pictures / "gone")
    assert said(capsys, *again)[0] == 1, "passed over"
    (pictures / "broken.png").unlink()
    (pictures / "bad.png").write_text("text")
    assert [said(capsys, *again)[0] for _ in range(2)] == [1, 1], "quarantined now, and earlier"
    (pictures / "bad.png").unlink()
    (pictures / "a.png").unlink()
    assert run([*again, "--mirror"]) == 1, "a third is gone"  # not said(): Prefect's logger holds a closed stream here


def test_files_of_other_extensions_are_told_and_nearly_a_picture_s_need_a_look(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["run", pictures, archive, "--codec", "webp"]
    code, out, err = said(capsys, *again)
    assert code == 0 and "1 file with other extensions: .txt 1" in out and "rename" not in err
    (pictures / "d.jpg_large").touch()
    code, _, err = said(capsys, *again)
    assert code == 1 and "1 file not listed, for extensions such as '.jpg_large': rename" in err


@pytest.mark.parametrize("command", ["run {in} {bad}", "info {bad}", "delete {in} --key {bad}"])
def test_a_name_that_is_no_utf8_is_refused_by_name(
    command: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(**{"in": pictures, "bad": os.fsdecode(b"caf\xe9")}) for part in command.split()]
    code, _, err = said(capsys, *arguments)
    assert code == 2 and err.startswith("latentpack: caf\\udce9: the name is not valid UTF-8")


def test_a_training_says_that_a_run_takes_pictures_at_another_size(
    tmp_path: Path, prefect_api: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, pixels in enumerate(smooth_pictures(4, 64, 80)):
        (tmp_path / f"b{number}.png").write_bytes(encode_picture(pixels, 3))
    (tmp_path / "start.safetensors").write_bytes(tiny_artifact("v2"))
    short = ["--start", tmp_path / "start.safetensors", "--steps", 1, "--batch", 2, "--side", 32, "--workers", 1]
    short += ["--out", tmp_path / "codec"]
    code, out, err = said(capsys, "train", tmp_path / "*.png", *short)
    assert code == 0 and "have 64 pixels on their shorter side (the median), and were learned shrunk to 32" in err
    assert "--crops 8" in err and "--resize 32" in err and re.search("^loss before +[0-9]", out, re.MULTILINE)
    together: list[int] = []
    real = learning.held_out
    monkeypatch.setattr(learning, "held_out", lambda *given: together.append(given[2]) or real(*given))
    code, out, err = said(capsys, "train", tmp_path / "*.png", *short, "--crops", 2)
    assert together == [2]
    assert code == 0 and "shrunk" not in err and re.search("^trained on +7 pictures", out, re.MULTILINE)


def test_a_training_says_what_it_left_out(tmp_path: Path, prefect_api: str, capsys: pytest.CaptureFixture[str]) -> None:
    transparent, plain = tmp_path / "transparent", tmp_path / "plain"
    for folder in (transparent, plain):
        folder.mkdir()
        for number in range(3):
            Image.new("RGBA", (40, 40), (0, 0, number, 128)).save(folder / f"a{number}.png")
        (folder / "cut.png").write_bytes((folder / "a0.png").read_bytes()[:60])
    for number, pixels in enumerate(smooth_pictures(4)):
        (plain / f"b{number}.png").write_bytes(encode_picture(pixels, 3))
    short = ["--family", "v2", "--steps", 1, "--batch", 2, "--side", 32, "--workers", 1, "--out", tmp_path / "codec"]
    code, out, _ = said(capsys, "train", plain, *short)
    assert code == 0 and re.search(r"^left out +4 files: 3 alpha, 1 truncated *$", out, re.MULTILINE)
    result = json.loads(said(capsys, "train", plain, *short, "--json")[1])
    assert (result["pictures"], result["refused"]) == (3, {"alpha": 3, "truncated": 1})
    code, _, err = said(capsys, "train", transparent, *short)
    assert code == 2 and "no picture to train on among 4 files: 3 alpha, 1 truncated" in err
    (tmp_path / "empty").mkdir()
    code, _, err = said(capsys, "train", tmp_path / "empty", *short)
    assert code == 2 and "no picture to train on: the source is empty" in err


def flip_middle_of(archive: Path, key: str) -> None:
    """Damage one picture's payload."""
    (part,) = archive.glob("images/*.parquet")
    payload = Archive.open(str(archive)).read_row(key).payload
    data = bytearray(part.read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 1
    part.write_bytes(data)


def test_verify_tells_sound_pictures_that_lack_their_codec_from_bad_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, lacking = Archive.create(str(tmp_path / "archive")), "0" * 32
    rows = [picture_row("a"), replace(picture_row("b"), codec=lacking), replace(picture_row("c"), codec=lacking)]
    archive.commit([archive.write_part(rows)])
    code, out, err = said(capsys, "verify", archive.url)
    assert code == 1 and out.startswith(f"codecs/{lacking}.safetensors\t2 sound pictures cannot be read without it: ")
    assert "3 pictures verified, 0 of them bad, 2 not decoded for want of their codec\n" in err


def test_repair_takes_the_limits_of_the_run(pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_middle_of(archive, "sub/b.jpg")
    for option, limit, told in (("--max-pixels", 1000, "1,000 in all"), ("--max-bytes", 100, "100")):
        code, out, _ = said(capsys, "repair", archive, pictures, "--codec", "webp", option, limit)
        assert code == 1 and out.startswith("sub/b.jpg\t") and f"the limit is {told} ({option})\n" in out
    assert said(capsys, "repair", archive, pictures, "--codec", "webp", "--max-pixels", "4000")[0] == 0


def test_a_missing_file_stays_named_until_its_pictures_are_dropped(
    pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = archive.glob("images/*.parquet")
    part.unlink()
    code, _, err = said(capsys, "verify", archive)
    assert code == 1 and err.endswith("0 pictures verified, 0 of them bad, 3 cannot be read\n")
    code, _, err = said(capsys, "info", archive)
    assert code == 2 and "a file that its log names is missing; see 'latentpack verify'" in err
    assert "another run" not in err
    code, out, err = said(capsys, "repair", archive)
    assert code == 1 and out.startswith(f"{part.name}\tfile with 3 pictures is unreadable: ")
    assert "0 pictures encoded again, 0 taken out, 1 left as they are\n" in err
    code, out, err = said(capsys, "repair", archive, "--drop")
    assert (code, out) == (1, "")
    assert "0 pictures encoded again, 3 taken out (3 of files that name them no more; a run archives again" in err
    assert said(capsys, "run", pictures, archive, "--codec", "webp")[0] == 0
    assert said(capsys, "verify", archive)[0] == 0


def test_restore_gives_back_what_is_sound(
    pictures: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Archive.open(str(archive))
    opened.commit([opened.write_part([picture_row("zzz.png")])])
    (damaged,) = [part for part in Archive.open(str(archive)).tables[0].parts if part.rows == 3]
    (archive / "images" / damaged.path).write_bytes(b"")
    code, out, err = said(capsys, "restore", archive, tmp_path / "out")
    assert code == 1 and "1 picture written" in out
    assert f"{damaged.path}: file with 3 pictures is unreadable" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["zzz.png"]


def test_a_codec_that_no_picture_uses_is_told_and_can_go(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    id = Archive.open(str(archive)).put_codec(tiny_artifact("v5"))
    assert f"{id}: no picture uses it" in said(capsys, "info", archive)[1]
    assert re.search(f"{id} +no picture uses it", said(capsys, "codecs", archive)[1])
    assert json.loads(said(capsys, "codecs", archive, "--json")[1])["unused"] == [id]
    assert said(capsys, "vacuum", archive, "--older-than", "0")[0] == 0
    (archive / "codecs" / f"{id}.safetensors").unlink()  # as docs/operations.md says
    assert json.loads(said(capsys, "info", archive, "--json")[1])["unused_codecs"] == []
    assert said(capsys, "verify", archive)[0] == 0


def test_experiments_end_with_what_they_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = {"claim": "deeper is slower", "verdict": "confirmed", "sentence": "V1 457, V2 262."}
    done = {"findings": [finding], "headline": "Of 1 claims: 1 confirmed", "table": "| a |", "report": "there.html"}
    monkeypatch.setattr("flows.commands._run_flow", lambda *_: done)
    code, out, _ = said(capsys, "experiments", tmp_path)
    assert code == 0 and [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        "deeper is slower",
        "in all",
        "| a |",
        "report: there.html",
    ]
    assert "confirmed. V1 457, V2 262." in out and "Of 1 claims: 1 confirmed" in out
    assert json.loads(said(capsys, "experiments", tmp_path, "--json")[1]) == done

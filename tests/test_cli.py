"""The command line: exit codes, messages without tracebacks, one JSON object, commands on a small archive."""

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compressor.archive import CRASHED, Archive, QuarantineRow
from compressor.images import decode_picture
from compressor.picture_writing import encode_picture
from flows.cli import run
from flows.options import print_json
from tests.codecs import smooth_pictures
from tests.rows import original_row, picture_row

LATENTPACK = [sys.executable, "-m", "flows.cli"]


def said(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; no traceback in either."""
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures of mixed kinds and sizes."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    first, second = smooth_pictures(1, 20, 33)[0], smooth_pictures(1, 64, 48)[0]
    (folder / "a.png").write_bytes(encode_picture(first, 3))
    (folder / "sub" / "b.jpg").write_bytes(encode_picture(second, 3, "jpeg"))
    (folder / "sub" / "c.webp").write_bytes(encode_picture(first[:, :, :1].repeat(3, 2), 1, "webp"))
    (folder / "notes.txt").write_text("not listed")
    return folder


@pytest.fixture
def archive(pictures: Path, tmp_path: Path, prefect_api: str, capsys: pytest.CaptureFixture[str]) -> Path:
    """An archive of ``pictures``."""
    assert run(["run", str(pictures), str(tmp_path / "archive"), "--codec", "webp", "--workers", "1"]) == 0
    capsys.readouterr()
    return tmp_path / "archive"


def test_json_is_one_object_and_nothing_else(
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (pictures / "bad.png").write_text("text")
    code, out, err = said(capsys, "run", pictures, tmp_path / "archive", "--codec", "jpeg", "--json")
    summary = json.loads(out)
    assert code == 1
    assert (summary["listed"], summary["archived"], summary["quarantined"]) == (4, 3, 1)
    assert "1 picture quarantined" in err


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"history": [{"loss": float("nan"), "step": 1}], "best": float("inf"), "share": 0.5})
    expected = {"history": [{"loss": None, "step": 1}], "best": None, "share": 0.5}
    assert json.loads(capsys.readouterr().out) == expected


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
        (["run", "{in}", "{new}", "--packer", "zip"], "invalid choice"),
        (["run", "{in}", "{new}", "--codec", "avif", "--effort", "3"], "knows no effort but 0"),
        (["run", "{in}", "{new}", "--effort", "-1"], "--effort"),
        (["run", "{in}", "{new}", "--max-failures", "many"], "--max-failures"),
        (["run", "{in}", "{in}"], "not an archive, and not empty"),
        (["run", "{in}"], "required"),
        (["frobnicate"], "invalid choice"),
        (["info", "{in}"], "no archive here"),
        (["restore", "{missing}", "{new}"], "no archive here"),
        (["train", "{in}", "--family", "v9"], "invalid choice"),
        (["train", "{in}", "--out", "{missing}/x.safetensors"], "create it first"),
        (["train", "{in}", "--out", "{in}"], "it is a folder"),
        (["train", "{in}", "--out", "/dev/null"], "no ordinary file"),
        (["train", "{in}", "--side", "100"], "multiple of 32"),
        (["run", "{in}", "{new}", "--codec", "avif", "--train", "v3"], "does not go with --codec"),
        (["restore", "{in}", "s3://bucket/restored"], "must be a local path"),
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
    assert message in err and not out


def test_an_empty_folder_is_no_error_but_is_said(
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    code, _, err = said(capsys, "run", tmp_path / "in", tmp_path / "archive")
    assert code == 0 and "no picture in" in err


def test_a_restore_into_the_archive_itself_is_refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(archive.rglob("*"))
    for destination in (archive, archive / "images", f"{archive}/../archive/new"):
        code, _, err = said(capsys, "restore", archive, destination)
        assert code == 2 and "is in the archive itself" in err
    assert sorted(archive.rglob("*")) == before


def ended(*arguments: Any, **streams: Any) -> tuple[int, str]:
    """Exit code and stderr of a command in a process of its own."""
    done = subprocess.run([*LATENTPACK, *map(str, arguments)], text=True, timeout=60, **streams)
    return done.returncode, done.stderr or ""


def test_a_reader_who_has_seen_enough_changes_neither_warnings_nor_the_exit_code(archive: Path) -> None:
    for command, code in ((("info", archive), 0), (("delete", archive, "--key", "a.png", "none.png", "--json"), 1)):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as gone:
            found, err = ended(*command, stdout=gone, stderr=subprocess.PIPE)
        assert found == code, err
        assert "Traceback" not in err and ("there is no picture 'none.png'" in err) == (code == 1)


def test_results_and_warnings_that_cannot_be_written(archive: Path) -> None:
    with open("/dev/full", "wb") as full:
        for more in ([], ["--json"]):
            code, err = ended("info", archive, *more, stdout=full, stderr=subprocess.PIPE)
            assert code == 2 and err.count("\n") == 1
            assert "cannot write the result to standard output: No space left on device; what is done is kept" in err
        assert ended("verify", archive, stdout=subprocess.PIPE, stderr=full)[0] == 0
    code, err = ended("info", archive, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (code, err) == (0, "")
    done = subprocess.run(
        [*LATENTPACK, "info", "none"], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2), timeout=60
    )
    assert (done.returncode, done.stdout) == (2, b"")
    for unbuffered in ("", "1"):
        for command in (["--version"], ["run", "--help"]):
            with open("/dev/full", "wb") as full:
                env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
                code, err = ended(*command, stdout=full, stderr=subprocess.PIPE, env=env)
            assert "Exception" not in err and "internal error" not in err and code in (0, 2)
    keys = ("delete", archive, "--keys-from", "-")
    code, err = ended(*keys, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(0))
    assert code == 2 and "standard input is closed: name a file of keys instead of -" in err


def test_letters_that_a_locale_lacks(archive: Path) -> None:
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*LATENTPACK, "delete", archive, "--key", "nö", "--json"], capture_output=True, text=True, env=plain, timeout=60
    )
    assert done.returncode == 1 and json.loads(done.stdout)["problems"][0][0] == "nö"
    assert "n\\xf6" in done.stderr and "Traceback" not in done.stderr


def test_nothing_is_cut_off_in_a_file(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = tmp_path / ("long" * 50)
    archive.rename(long)
    code, out, _ = said(capsys, "info", long)
    assert code == 0 and f"{long}, format 1" in out and all(line == line.rstrip() for line in out.splitlines())


def test_restore_and_verify(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "restore", archive, tmp_path / "out")
    assert code == 0 and "3 pictures" in out
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == ["a.png", "sub/b.png", "sub/c.png"]
    code, _, err = said(capsys, "restore", archive, tmp_path / "one", "--key", "a.png", "nothing.png")
    assert code == 1 and "nothing.png" in err and (tmp_path / "one" / "a.png").exists()
    assert said(capsys, "verify", archive)[0] == 0


def test_verify_names_what_is_damaged(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (part,) = archive.glob("images/*.parquet")
    payload = Archive.open(str(archive)).read_row("sub/b.jpg").payload
    data = bytearray(part.read_bytes())
    data[data.index(payload) + len(payload) // 2] ^= 1
    part.write_bytes(data)
    code, out, _ = said(capsys, "verify", archive, "--json")
    assert code == 1
    assert "sub/b.jpg" in {key for key, _ in json.loads(out)["problems"]}


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
    code, _, err = said(capsys, "delete", archive, "--key", "bad.png")
    assert (code, err) == (0, ""), "it was quarantined"
    assert said(capsys, "quarantine", "list", archive)[1] == ""


def test_a_prefect_server_that_is_gone_is_told(
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import httpx

    import flows.pipeline

    def gone(*_: object) -> None:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(flows.pipeline, "pipeline", gone)
    code, _, err = said(capsys, "run", pictures, tmp_path / "archive")
    assert (
        code == 2 and "the Prefect server no longer answers, or refuses ([Errno 111]" in err and "internal" not in err
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_is_told(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr(Archive, "info", short)
    code, _, err = said(capsys, "info", archive)
    assert code == 2 and err.startswith("latentpack: not enough memory (") and "internal" not in err


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


def test_quarantine_is_listed_and_retried(pictures: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bad.png").write_text("text")
    assert said(capsys, "run", pictures, archive, "--codec", "webp")[0] == 1
    assert said(capsys, "quarantine", "list", archive)[1].startswith("bad.png\tnot_a_picture\t")
    _, out, err = said(capsys, "quarantine", "retry", archive, "--reason", "unsupported")
    assert "0 pictures will" in out and "reasons there are: not_a_picture" in err
    assert "1 picture will" in said(capsys, "quarantine", "retry", archive, "--reason", "not_a_picture")[1]
    code, out, _ = said(capsys, "run", pictures, archive, "--codec", "webp", "--json")
    assert code == 1 and json.loads(out)["quarantined"] == 1


def test_a_name_gives_the_terminal_no_orders(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Archive.open(str(archive))
    key = "red\x1b[31m\nsecond\t.png"
    opened.quarantine([QuarantineRow.now(key, bytes(8), "not_a_picture", "it is none", "run")])
    shown = r"red\x1b[31m\nsecond\t.png"
    assert said(capsys, "quarantine", "list", archive)[1] == f"{shown}\tnot_a_picture\tit is none\n"
    [entry] = json.loads(said(capsys, "quarantine", "list", archive, "--json")[1])["quarantined"]
    assert entry["key"] == key
    code, _, err = said(capsys, "delete", archive, "--key", "no\x1b[31m.png")
    assert code == 1 and r"no\x1b[31m.png" in err and "\x1b" not in err
    code, _, err = said(capsys, "info", "no\x1b[31m-archive")
    assert code == 2 and r"no\x1b[31m-archive" in err and "\x1b" not in err


def test_codecs(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "codecs", archive, "--json")
    found = json.loads(out)
    assert code == 0 and {"faces", "avif", "jpegxl"} <= set(found["codecs"]) and sum(found["used"].values()) == 3


def test_an_internal_error_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import compressor.archive

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(compressor.archive.Archive, "open", broken)
    code, _, err = said(capsys, "info", "anything")
    assert code == 2 and "ZeroDivisionError" in err and "--debug" in err
    with pytest.raises(ZeroDivisionError):
        run(["info", "anything", "--debug"])


@pytest.mark.parametrize(
    ("library", "command"),
    [("pydantic", "info {0}"), ("pyarrow", "info {0}"), ("prefect", "run {0} {0}-archive"), ("torch", "codecs")],
)
def test_a_library_that_is_missing_is_told(library: str, command: str, tmp_path: Path) -> None:
    tmp_path.joinpath("a.png").write_bytes(encode_picture(smooth_pictures(1)[0], 3))
    code = f"import sys; sys.modules[{library!r}] = None; from flows.cli import main; main()"
    environment = os.environ | {"LATENTPACK_HOME": f"{tmp_path}-home"}
    arguments = [sys.executable, "-c", code, *command.format(tmp_path).split()]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    told = f"latentpack: a library is missing, or does not load: [^\n]*{library}[^\n]* 'make setup' [^\n]*\n"
    assert ended.returncode == 2 and re.fullmatch(told, ended.stderr), ended.stderr


def test_a_run_without_a_server_that_is_interrupted_is_continued(tmp_path: Path) -> None:
    """The command as a user has it: its own server, Ctrl-C in the middle, the same command again."""
    folder, archive = tmp_path / "in", tmp_path / "archive"
    folder.mkdir()
    for number, pixels in enumerate(smooth_pictures(24, 96, 96)):
        (folder / f"{number:03d}.png").write_bytes(encode_picture(pixels, 3))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"LATENTPACK_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    # A codec and batches that take seconds in all: enough for Ctrl-C to come in the middle on a busy machine.
    command = [*LATENTPACK, "run", str(folder), str(archive), "--codec", "avif", "--batch-size", "1", "--workers", "1"]
    # A shell has the jobs that it starts in the background, and all that these start, ignore Ctrl-C.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    end = time.monotonic() + 60
    while len(list(archive.glob("images/_delta_log/*.json"))) < 3 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "\ninterrupted; what is done is kept: repeat the command" in err and "Traceback" not in err
    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=120)
    summary = json.loads(again.stdout)
    assert again.returncode == 0, again.stderr
    assert summary["listed"] == summary["archived"] + summary["already_there"] == 24
    assert 0 < summary["already_there"] < 24
    assert len(Archive.open(str(archive))) == 24


def test_a_killed_command_leaves_no_server_behind(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from flows.environment import PrivateServer;"
    code += "s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait(); print(s.url, flush=True); time.sleep(60)"
    command = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert command.stdout
    url = command.stdout.readline().strip()
    command.kill()
    command.wait()
    end = time.monotonic() + 10
    with pytest.raises(OSError):
        while time.monotonic() < end:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            time.sleep(0.1)


def test_commands_that_start_together_share_no_database(tmp_path: Path) -> None:
    """They have a home that is new to all; the next starts from what they leave there."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    code = "import sys; from pathlib import Path; from flows.environment import PrivateServer;"
    code += "s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait(); print('ready', flush=True); input(); s.stop()"
    environment = os.environ | {"TMPDIR": str(temporary)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(home)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    together = [start() for _ in range(2)]
    for command in together:
        assert command.stdout and command.stdout.readline() == "ready\n", command.communicate("\n")[1]
    assert len({path.parent for path in temporary.glob("latentpack-*/prefect.db")}) == 2
    (empty,) = home.iterdir()
    with sqlite3.connect(f"file:{empty}?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)
    made = empty.stat().st_mtime_ns
    later = start()
    assert later.stdout and later.stdout.readline() == "ready\n"
    for command in [*together, later]:
        command.communicate("\n", timeout=60)
        assert command.returncode == 0
    assert [path.stat().st_mtime_ns for path in home.iterdir()] == [made] and not list(temporary.iterdir())


def test_an_error_in_a_flow_is_one_line_from_start_to_end_of_the_process(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", str(pictures), str(pictures)]
    environment = os.environ | {"LATENTPACK_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch("latentpack: .* not an archive, and not empty .*\n", ended.stderr), ended.stderr


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "minio.internal"}, "minio.internal,127.0.0.1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1"),
        ({"NO_PROXY": "*"}, None),
        ({"no_proxy": "localhost, 127.0.0.1"}, None),
    ],
)
def test_what_is_not_behind_a_proxy_stays_so(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.environment import _bypass_proxies

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _bypass_proxies("127.0.0.1")
    after = {name: value for name, value in os.environ.items() if name in ("no_proxy", "NO_PROXY")}
    assert after == (given if expected is None else {"no_proxy": expected, "NO_PROXY": expected})


def test_the_private_server_is_not_looked_for_behind_a_proxy(tmp_path: Path) -> None:
    """A proxy that answers nobody: whatever goes to it fails."""
    code = "import sys; from pathlib import Path; from flows.environment import PrivateServer, set_defaults;"
    code += "set_defaults(); s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait();"
    code += "from prefect.client.orchestration import get_client;"
    code += "print(get_client(sync_client=True).api_healthcheck()); s.stop()"
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "internal"}
    for name in ("PREFECT_API_URL", "no_proxy"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "None", done.stderr


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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"PREFECT_API_URL": "http://user:hush@127.0.0.1:9/api"},
            r"latentpack: no Prefect server answers at http://127.0.0.1:9/api/? \(.*\): start it, or unset .*\n",
        ),
        (
            {"PREFECT_API_URL": "", "LATENTPACK_HOME": "/dev/null/x"},
            r"latentpack: /dev/null/x/prefect: .* Not a directory; set LATENTPACK_HOME to a folder .*\n",
        ),
    ],
)
def test_a_server_that_is_down_and_a_home_that_is_none_are_told(
    variables: dict[str, str], message: str, pictures: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"LATENTPACK_HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")} | variables
    command = [*LATENTPACK, "run", str(pictures), str(tmp_path / "archive")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and re.fullmatch(message, ended.stderr), ended.stderr


@pytest.mark.parametrize("command", ["run {in} {bad}", "info {bad}", "delete {in} --key {bad}"])
def test_a_name_that_is_no_utf8_is_refused_by_name(
    command: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(**{"in": pictures, "bad": os.fsdecode(b"caf\xe9")}) for part in command.split()]
    code, _, err = said(capsys, *arguments)
    assert code == 2 and err.startswith("latentpack: caf\\udce9: the name is not valid UTF-8")


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from flows.cli import run
archive, *small = sys.argv[1:]
for command in ("verify", "repair"):
    run([command, *small])  # what it loads and the threads that it starts take most of what a command takes
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 32 * 2**20, resource.RLIM_INFINITY))
print(run(["verify", archive]), run(["repair", archive, "--drop"]), run(["restore", archive, f"{archive}-out"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process has of memory")
def test_no_sound_picture_is_taken_out_where_memory_runs_out(tmp_path: Path) -> None:
    archive, small = (Archive.create(str(tmp_path / name)) for name in ("archive", "small"))
    for one, side in ((archive, 6000), (small, 10)):
        row = original_row("large.png", encode_picture(np.zeros((side, side, 3), np.uint8), 3), side, side)
        one.commit([one.write_part([row, picture_row("a.png")])])
    environment = {**os.environ, "LATENTPACK_HOME": str(tmp_path / "home"), "MALLOC_ARENA_MAX": "1"}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, archive.url, small.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "2 2 0", done.stderr  # an original needs no decoder to be restored
    assert "Traceback" not in done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("latentpack: ")]
    told = f"latentpack: {archive.url}: 'large.png' cannot be read, and may be sound: not enough memory to decode it"
    assert len(refused) == 2 and all(line.startswith(told) and "with more memory" in line for line in refused)
    assert sorted(Archive.open(archive.url).keys()) == ["a.png", "large.png"]


def test_a_picture_that_memory_did_not_suffice_for_is_tried_again(
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heavy, command = (pictures / "a.png").read_bytes(), ["run", pictures, tmp_path / "archive", "--codec", "webp"]

    def short(data: bytes, *limits: Any) -> Any:
        if data == heavy:
            raise MemoryError("not enough memory to decode it")
        return decode_picture(data, *limits)

    with monkeypatch.context() as patch:
        patch.setattr("compressor.encoding.decode_picture", short)
        code, out, _ = said(capsys, *command, "--workers", "1", "--json")
    assert code == 1 and json.loads(out)["archived"] == 2
    listed = said(capsys, "quarantine", "list", tmp_path / "archive")[1]
    assert listed == f"a.png\t{CRASHED}\tMemoryError: not enough memory to decode it\n"
    code, out, _ = said(capsys, *command, "--workers", "1", "--json")
    assert code == 0 and json.loads(out)["archived"] == 1


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
    for option, limit, told in (("--max-pixels", 1000, "1000 in all"), ("--max-bytes", 100, "100")):
        code, out, _ = said(capsys, "repair", archive, pictures, "--codec", "webp", option, limit)
        assert code == 1 and out.startswith("sub/b.jpg\t") and f"the limit is {told}\n" in out
    assert said(capsys, "repair", archive, pictures, "--codec", "webp", "--max-pixels", "4000")[0] == 0


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

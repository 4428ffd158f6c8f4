"""What the command line writes, and where: results and warnings apart, whole, legible, whoever reads them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.archive import Archive, QuarantineRow
from flows.cli import run
from flows.options import print_json
from tests.commands import LATENTPACK, ended, said
from tests.commands import archive as archive
from tests.commands import pictures as pictures


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


def test_an_error_in_a_flow_is_one_line_from_start_to_end_of_the_process(
    pictures: Path, own_server: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", str(pictures), str(pictures)]
    ended = subprocess.run(command, env=own_server, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch("latentpack: .* not an archive, and not empty .*\n", ended.stderr), ended.stderr


def test_a_folder_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ended = subprocess.run([sys.executable, "-m", "flows.cli", "list", "archive"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "latentpack: the current folder is gone: change to one that is there\n",
    )

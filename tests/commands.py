"""Commands as a person gives them, and a small archive to give them of."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.picture_writing import encode_picture
from flows.cli import run
from tests.codecs import smooth_pictures

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


def ended(*arguments: Any, **streams: Any) -> tuple[int, str]:
    """Exit code and stderr of a command in a process of its own."""
    done = subprocess.run([*LATENTPACK, *map(str, arguments)], text=True, timeout=60, **streams)
    return done.returncode, done.stderr or ""

"""Folders for the time of a process: gone in the end; after a kill removed by whoever comes next, and not before."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import scratch as module
from flows.scratch import scratch

HOLD = "import time; from flows.scratch import scratch; c = scratch(); print(c.__enter__(), flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """One that works in a folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_folder_is_gone_in_the_end(temporary: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch() as folder:
        (folder / "a").write_text("a")
        assert folder.parent == temporary
        raise ZeroDivisionError
    assert not list(temporary.iterdir())


def test_what_a_killed_process_left_is_removed_and_nothing_in_use(temporary: Path) -> None:
    with another_process() as (_, used), another_process() as (killed, left), scratch() as mine:
        (left / "plan.arrow").write_text("a plan")
        with scratch():
            assert used.is_dir() and left.is_dir() and mine.is_dir()
        killed.kill()
        killed.wait()
        with scratch():
            assert used.is_dir() and not left.exists() and mine.is_dir()


def test_what_is_not_known_to_be_left_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not locked yet, one of an earlier version, a link, and those of other users."""
    (temporary / "latentpack-new").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / module.LOCKED).touch()
    (temporary / "latentpack-link").symlink_to(elsewhere)
    with scratch():
        pass
    assert (temporary / "latentpack-new").is_dir() and (elsewhere / module.LOCKED).exists()
    other = temporary / "latentpack-other"
    other.mkdir()
    (other / module.LOCKED).touch()
    uid = module.os.getuid()
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "getuid", lambda: uid + 1)
        with scratch():
            assert other.is_dir()
    with scratch():
        assert not other.exists()


def test_without_locks_nothing_is_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    left = temporary / "latentpack-left"
    left.mkdir()
    (left / module.LOCKED).touch()
    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with scratch() as folder:
        assert folder.is_dir() and left.is_dir()
    assert not folder.exists()

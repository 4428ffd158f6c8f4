"""A file is replaced whole or stays as it was."""

import os
import time
from pathlib import Path

import pytest

from compressor.files import delete_unfinished, replacing, write_whole


def test_a_file_and_its_folders_are_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_leads_to_the_new_file(tmp_path: Path) -> None:
    link, path = tmp_path / "link.bin", tmp_path / "b.bin"
    path.write_bytes(b"old")
    link.symlink_to(path)
    write_whole(link, b"new")
    assert link.is_symlink() and path.read_bytes() == b"new"


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as partial:
        partial.write_bytes(b"half of the n")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_of_one_number_write_beside_each_other(tmp_path: Path) -> None:
    """As in two containers, where each is process 1."""
    path = tmp_path / "b.bin"
    with replacing(path) as one, replacing(path) as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_leaves_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    def half_written(age: float) -> Path:
        with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "b.bin") as partial:
            raise KeyboardInterrupt
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - age,) * 2)
        return partial

    young, old = half_written(0), half_written(100)
    others = [tmp_path / ".latentpack-notes", tmp_path / f".latentpack-{'0' * 32}"]
    others[0].touch()
    os.utime(others[0], (0, 0))
    others[1].mkdir()
    assert delete_unfinished(tmp_path, 50) == 1
    assert sorted(tmp_path.iterdir()) == sorted([young, *others]) and not old.exists()


def test_a_file_that_gets_its_name_while_others_are_deleted_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, old = (tmp_path / f".latentpack-{digit * 32}" for digit in "12")
    for path in (written, old):
        path.touch()
        os.utime(path, (0, 0))
    there = sorted(os.scandir(tmp_path), key=lambda entry: entry.name)

    def scan(folder: Path) -> list[os.DirEntry[str]]:
        written.rename(tmp_path / "whole")
        return there

    monkeypatch.setattr(os, "scandir", scan)
    assert delete_unfinished(tmp_path, 50) == 1
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]

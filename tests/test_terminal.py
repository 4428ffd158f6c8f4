"""What a person at a terminal sees of long work: a bar that leaves room for its figures, or lines now and then."""

import re

import pytest

import flows.terminal
from flows.terminal import Terminal


@pytest.mark.parametrize("note", ["", "3 quarantined"])
@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_no_figure_beside_a_bar_is_cut(
    columns: str, note: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": columns}.items():
        monkeypatch.setenv(name, value)
    with Terminal() as terminal:
        terminal.stage("encoding, wave 3", 1_200_000)
        terminal.advance(12_345, note)
    shown = capsys.readouterr().err
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.split("\x1b[2K")[-2]).rstrip()
    assert last.startswith("encoding, wave 3") and len(last) <= int(columns)
    parts = last.split("\N{BOX DRAWINGS HEAVY HORIZONTAL}")[-1].strip().split(", ")
    whole = r"12,345 of 1,200,000|.* left|3 quarantined|[\d,]+/s|\d+ s|"
    assert all(re.fullmatch(whole, part) for part in parts), parts
    assert columns == "40" or parts[0] == "12,345 of 1,200,000"
    assert columns != "200" or len(parts) == 4 + bool(note)


@pytest.mark.parametrize(("compatible", "term"), [("1", "dumb"), ("0", "xterm")])
def test_where_no_bar_can_be_drawn_lines_tell_how_far_work_is(
    compatible: str, term: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", compatible)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(flows.terminal, "LINE_EVERY_S", 0)
    with Terminal() as terminal:
        terminal.stage("listing")
        terminal.advance(7)
        terminal.stage("encoding", 1_200_000)
        terminal.advance(12_345, "3 quarantined")
    first, between, last = capsys.readouterr().err.splitlines()
    assert first.startswith("listing: 7 pictures, ") and between == "encoding ..."
    assert last.startswith("encoding: 12,345 of 1,200,000 pictures, ") and " left, 3 quarantined, " in last

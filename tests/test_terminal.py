"""What a person at a terminal sees of long work: a bar that leaves room for its figures, or lines now and then."""

import pytest

import flows.terminal
from flows.terminal import Terminal


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_figures_beside_a_bar_are_whole(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": columns}.items():
        monkeypatch.setenv(name, value)
    with Terminal() as terminal:
        terminal.stage("encoding", 1_200_000)
        terminal.advance(12_345, "3 quarantined" if columns == "200" else "")
    shown = capsys.readouterr().err
    assert "encoding" in shown and "12,345 of 1,200,000" in shown and "…" not in shown
    assert ("3 quarantined" in shown) == (columns == "200")


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
    assert last.startswith("encoding: 12,345 of 1,200,000 pictures, ") and last.endswith(" left, 3 quarantined")

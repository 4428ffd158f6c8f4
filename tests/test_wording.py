"""Runs and archives in words: what is said has a meaning, and is the same wherever it is said."""

from compressor.summary import RunSummary
from compressor.wording import describe


def summary(**figures: int) -> RunSummary:
    """A run that encoded for two seconds."""
    return RunSummary("run", "in", "archive", "webp", seconds={"encode": 2.0}, **figures)


def test_only_a_run_that_archived_has_a_speed() -> None:
    archived = dict(describe(summary(listed=4, archived=4, source_bytes=9, stored_bytes=3).to_dict()))
    assert archived["speed"].startswith("2.0 pictures/s")
    assert "speed" not in dict(describe(summary(listed=5, already_there=4, quarantined=1).to_dict()))

"""Runs and archives in words: what is said has a meaning, and is the same wherever it is said."""

import doctest
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compressor import wording
from compressor.archive import Archive
from compressor.artifact import identify
from compressor.codec import artifact_bytes
from compressor.summary import RunSummary
from compressor.wording import describe, describe_archive, pace, remarks


def summary(**figures: int) -> RunSummary:
    """A run that encoded for two seconds."""
    return RunSummary("run", "in", "archive", "webp", seconds={"encode": 2.0}, **figures)


def test_only_a_run_that_archived_has_a_speed() -> None:
    archived = dict(describe(summary(listed=4, archived=4, source_bytes=9, stored_bytes=3).to_dict()))
    assert archived["speed"] == "2.0 pictures/s, 1 worker, 2.0 s without start-up"
    assert "speed" not in dict(describe(summary(listed=5, already_there=4, quarantined=1).to_dict()))


def test_a_pace_below_one_a_second_is_told_as_the_time_of_one() -> None:
    slow = replace(summary(listed=1, archived=1, source_bytes=9, stored_bytes=3), seconds={"encode": 8.0})
    assert dict(describe(slow.to_dict()))["speed"].startswith("8.3 s a picture, ")  # 0.12/s, as it is rounded
    assert (pace(0.1), pace(1.0), pace(1234.5)) == ("10.0 s each", "1/s", "1,234/s")


def test_pictures_that_mostly_go_to_a_standard_format_are_told_where_the_codec_was_a_learned_one() -> None:
    def told(learned: bool, *codecs: str, chosen: Sequence[str] = ()) -> list[str]:
        run = replace(summary(archived=len(codecs), table_bytes=1, codec_bytes=2), codecs=Counter(codecs))
        run = replace(run, chosen=list(chosen))
        return [text for text in remarks(replace(run, learned=learned).to_dict()) if "standard format" in text]

    own = "0" * 32
    [text] = told(True, own, "av1-444", "jpegxl", "av1-444", "original")
    assert text.startswith("3 of 5 pictures went to a standard format") and text.endswith("--codec av1-444")
    assert "--packer" not in text and "leave out --packer" in told(True, own, "jpegxl", "avif", chosen=["packer"])[0]
    assert not told(True, own, own, "av1-444", "av1-444", "original")
    assert not told(False, "av1-444", "av1-444")


def test_a_run_says_which_codecs_its_pictures_went_to() -> None:
    run = replace(summary(archived=3), codec="faces (v5), 0123456789ab", codecs=Counter({"0" * 32: 2, "av1-444": 1}))
    assert dict(describe(run.to_dict()))["stored as"] == "2 faces (v5), 1 av1-444"
    assert "stored as" not in dict(describe(replace(run, codecs=Counter({"0" * 32: 3})).to_dict()))


def test_a_run_and_its_archive_have_the_same_ratio(tmp_path: Path) -> None:
    """It lies where rounding twice gives another figure than rounding once."""
    empty = Archive.create(str(tmp_path / "archive")).info()
    run = summary(listed=1, archived=1, source_bytes=14_951, stored_bytes=1000)
    info = replace(empty, pictures=1, source_bytes=14_951, table_bytes=1000, codec_bytes=2000)
    assert dict(describe(run.to_dict()))["ratio"] == "15.0 to 1"
    own = {identify(artifact_bytes("faces")): 2, "1" * 32: 1, "jpegxl": 1}
    named = f"2 faces ({identify(artifact_bytes('faces'))[:12]}), 1 {'1' * 12}, 1 jpegxl"
    assert dict(describe_archive(replace(info, codecs=own)))["codecs"] == named
    assert dict(describe_archive(info))["ratio"] == "15.0 to 1, 5.0 to 1 with the codecs it carries"


def test_a_decoder_that_outweighs_its_pictures_is_told_where_some_were_archived_by_it() -> None:
    def told(table_bytes: int, codec_bytes: int, *codecs: str) -> bool:
        run = replace(summary(table_bytes=table_bytes, codec_bytes=codec_bytes), codecs=Counter(codecs))
        return any("start a new archive with --codec av1-444" in text for text in remarks(run.to_dict()))

    learned = "0" * 32
    assert told(1000, 2000, learned, "avif", "original")
    assert not told(2000, 1000, learned)
    assert not told(1000, 2000)
    assert not told(1000, 2000, "avif", "original")


def test_what_the_words_give_as_examples_holds() -> None:
    assert not doctest.testmod(wording).failed

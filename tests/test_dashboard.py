"""The archive's state as an artifact: right figures, pictures that a browser shows, and never the end of a run."""

import base64
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compressor.archive import Archive
from compressor.errors import ArchiveError
from compressor.growth import Growth, by_run, growth
from flows.parameters import MaintainParameters
from tasks.artifacts import address_slug
from tasks.dashboard import publish_state, state_markdown
from tasks.home import UNWATCHED
from tests.runs import archive_it, write_pictures

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, prefect_api: str) -> Path:
    """Four pictures by two runs."""
    base = tmp_path_factory.mktemp("dashboard")
    for run in range(2):
        write_pictures(base / "in" / str(run), 2, seed=run)
        archive_it(base / "in", base / "archive")
    return base / "archive"


def published(url: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"archive-state-{address_slug(url)}"]))
        return client.read_artifacts(artifact_filter=wanted)


def test_the_state_has_the_archives_figures_and_plots(archive: Path) -> None:
    opened = Archive.open(str(archive))
    info = opened.info()
    text = state_markdown(opened, info, price_per_tb=1e15)
    kept = info.source_bytes - info.table_bytes - info.codec_bytes
    assert kept > 0 and f"{kept * 1000:,.2f} USD a month" in text
    assert "| pictures | 4 |" in text and f"lowest {info.psnr_min:.2f} dB" in text
    images = re.findall(r"!\[[^]]*\]\(data:image/png;base64,([^)]+)\)", text)
    assert len(images) == 2 and len(text) < 500_000
    for image in images:
        shown = Image.open(io.BytesIO(base64.b64decode(image)))
        assert shown.width > 500 and len(set(shown.convert("L").tobytes())) > 10, "not blank"


def test_archives_of_other_addresses_have_states_of_their_own() -> None:
    urls = [
        "s3://b/a-b",
        "s3://b/a/b",
        "/data/Photos",
        "/data/photos",
        "/写真/保存",
        "/фото",
        "/" + "x" * 300,
        "/y" + "x" * 300,
    ]
    slugs = {address_slug(url) for url in urls}
    assert len(slugs) == len(urls) and all(re.fullmatch(r"[a-z0-9][a-z0-9-]{3,100}[a-z0-9]", slug) for slug in slugs)


def test_growth_is_what_each_commit_led_to(archive: Path) -> None:
    opened = Archive.open(str(archive))
    history = growth(opened)
    assert [one.pictures for one in history] == [2, 4]
    assert history[-1].bytes == opened.info().table_bytes
    start = datetime(2026, 1, 1, tzinfo=UTC)
    commits = [Growth(start + timedelta(minutes=m), m, m) for m in (0, 5, 9, 30, 31)]
    assert [one.pictures for one in by_run(commits)] == [9, 31]
    assert by_run([]) == []


def test_it_is_published_where_somebody_may_watch(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not published(str(archive)), "the runs above had a server of their own"
    monkeypatch.delenv(UNWATCHED)
    archive_it(archive.parent / "in", archive)
    (one,) = published(str(archive))
    assert "| pictures | 4 |" in one.data


def test_a_large_archive_is_not_read_through_and_a_broken_one_fails_no_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Archive.open(str(archive))
    text = state_markdown(opened, None, 23.0)
    assert "| pictures | 4 |" in text and "## Growth" in text and "## Quality" not in text
    monkeypatch.delenv(UNWATCHED)
    publish_state(str(tmp_path / "nothing here"), 23.0)
    assert not published(str(tmp_path / "nothing here"))


def test_training_shows_curves_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.training import TrainingState
    from tasks.train import _history

    rows = [{"step": s, "train_loss": 1 / s, "loss": 1.1 / s, "psnr": 20.0 + s} for s in (1, 2, 3)]
    assert "data:" not in _history("v3", TrainingState(history=rows), {}), "nobody watches"
    monkeypatch.delenv(UNWATCHED)
    assert "data:" not in _history("v3", TrainingState(history=rows[:1]), {})
    text = _history("v3", TrainingState(history=rows), {})
    (image,) = re.findall(r"base64,([^)]+)\)", text)
    assert Image.open(io.BytesIO(base64.b64decode(image))).format == "PNG" and "| 3 | " in text
    without = [{name: value for name, value in row.items() if name != "psnr"} for row in rows]
    assert "data:image/png" in _history("v3", TrainingState(history=without), {})
    assert "Left out: 17 files: 16 alpha, 1 truncated" in _history("v3", TrainingState(), {"alpha": 16, "truncated": 1})


def test_what_automations_wait_for_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.archive import maintain

    heard: list[str] = []
    monkeypatch.delenv(UNWATCHED)
    monkeypatch.setattr("tasks.dashboard.emit_event", lambda event, **_: heard.append(event))
    folder, archive = write_pictures(tmp_path / "in", 3), tmp_path / "archive"
    (folder / "bad.png").write_text("no picture")
    archive_it(folder, archive)
    (folder / "000.png").unlink()
    archive_it(folder, archive, mirror=True)
    (part,) = (archive / "images").glob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 4] ^= 0xFF
    part.write_bytes(data)
    with pytest.raises(ArchiveError):
        maintain(MaintainParameters(archive=str(archive)))
    (folder / "a.jpg_large").write_text("no picture")
    archive_it(folder, tmp_path / "other")
    (tmp_path / "empty").mkdir()
    archive_it(tmp_path / "empty", tmp_path / "other")
    told = {"run.finished", "pictures.quarantined", "mirror.refused", "archive.damaged", "source.empty"}
    told.add("names.passed-over")
    assert {f"latentpack.{name}" for name in told} <= set(heard)

"""What a person opens daily: the state of an archive as an artifact, and events that automations can act on."""

import re
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from compressor import plots
from compressor.archive import Archive
from compressor.growth import growth
from compressor.pages import data_uri
from compressor.summary import describe_archive, size
from tasks.report import table

RUNS_SHOWN = 30


def slug(archive_url: str) -> str:
    """An archive's address as artifact keys want it: lower case and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", archive_url.lower()).strip("-")[-100:]


def announce(event: str, archive_url: str, payload: dict[str, Any]) -> None:
    """Emit ``latentpack.EVENT`` about an archive; ``payload`` is small and holds no credentials."""
    emit_event(
        f"latentpack.{event}",
        resource={"prefect.resource.id": f"latentpack.archive.{slug(archive_url)}", "archive": archive_url},
        payload=payload,
    )


@task(name="dashboard", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=2)
def publish_state(archive_url: str, price_per_tb: float) -> None:
    """Publish what an archive holds, how it grew and what it saves, under the key ``archive-state-...``."""
    archive = Archive.open(archive_url)
    info, history = archive.info(), growth(archive)
    rows = describe_archive(info)
    if info.pictures:
        saved = (info.source_bytes - info.table_bytes - info.codec_bytes) / 1e12 * price_per_tb
        rows.append(("saved a month", f"{saved:,.4f} USD, at {price_per_tb:g} USD for a TB and month"))
    lines = [f"# {archive.url}", "", *table(("", ""), rows), ""]
    if info.psnr_histogram:
        lines += ["## Quality", "", _picture("PSNR of the pictures", plots.quality(info.psnr_histogram)), ""]
    if history:
        at, pictures, stored = zip(*((one.at, one.pictures, one.bytes) for one in history), strict=True)
        latest = [(f"{one.at:%Y-%m-%d %H:%M}", f"{one.pictures:,}, {size(one.bytes)}") for one in history[-RUNS_SHOWN:]]
        lines += ["## Growth", "", _picture("growth", plots.growth(at, pictures, stored)), ""]
        lines += table(("commit", "held"), latest[::-1])
    create_markdown_artifact("\n".join(lines), key=f"archive-state-{slug(archive_url)}", description=archive.url)


def _picture(title: str, figure: Any) -> str:
    """As Markdown that the Prefect UI shows: it renders data URIs, but no raw SVG."""
    return f"![{title}]({data_uri(plots.png(figure), 'png')})"

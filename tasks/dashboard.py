"""What a person opens daily: the state of an archive as an artifact, and events that automations can act on."""

from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from compressor import plots
from compressor.archive import Archive
from compressor.growth import by_run, growth
from compressor.maintenance import ArchiveInfo
from compressor.pages import data_uri, markdown_table
from compressor.wording import describe_archive, number, size
from tasks.artifacts import address_slug, not_vital
from tasks.home import is_watched
from tasks.retries import NOT_KEPT

RUNS_SHOWN = 30
MOST_READ = 2_000_000  # rows, some 20 bytes of each: a few seconds from a disk


def announce(event: str, archive_url: str, payload: dict[str, Any]) -> None:
    """Emit ``latentpack.EVENT`` about an archive; ``payload`` is small and holds no credentials."""
    if not is_watched():
        return
    emit_event(
        f"latentpack.{event}",
        resource={"prefect.resource.id": f"latentpack.archive.{address_slug(archive_url)}", "archive": archive_url},
        payload=payload,
    )


@task(name="dashboard", **NOT_KEPT)
def publish_state(archive_url: str, price_per_tb: float, most_read: int = MOST_READ) -> None:
    """Publish what an archive holds, how it grew and what it saves, under the key ``archive-state-...``.

    Quality and savings take a look at each row, without its payload: not where there are more than ``most_read``. What
    fails here is logged: the work that it tells of is done, and must not count as failed.
    """
    if not is_watched():
        return
    with not_vital("the archive's state"):
        archive = Archive.open(archive_url)
        text = state_markdown(archive, archive.info() if len(archive) <= most_read else None, price_per_tb)
        held = f"{number(len(archive), 'picture')} in {size(sum(part.size for part in archive.tables[0].parts))}"
        create_markdown_artifact(text, key=f"archive-state-{address_slug(archive_url)}", description=held)


def state_markdown(archive: Archive, info: ArchiveInfo | None, price_per_tb: float) -> str:
    """An archive's state as Markdown with its plots inside; without ``info`` only what the log says."""
    lines = [f"# {archive.url}", ""]
    if info is None:
        parts = archive.tables[0].parts
        held = [("pictures", f"{len(archive):,}"), ("bytes stored", f"{size(sum(part.size for part in parts))}")]
        lines += [
            markdown_table(("figure", "value"), held),
            "",
            "Quality and savings are in the state that maintenance published.",
            "",
        ]
    else:
        rows = describe_archive(info)
        kept = info.source_bytes - info.table_bytes - info.codec_bytes
        if kept > 0:  # a small archive may be outweighed by the codecs that it carries
            cost = f"{kept / 1e12 * price_per_tb:,.2f} USD a month ({size(kept)} less), assuming {price_per_tb:g} USD"
            rows.append(("saves", f"{cost} for a terabyte and month"))
        lines += [markdown_table(("figure", "value"), rows), ""]
        if info.psnr_histogram:
            title = f"PSNR: {info.psnr_min:.2f} dB at the lowest, {info.psnr_mean:.2f} dB on average"
            lines += ["## Quality", "", _picture(title, plots.quality(info.psnr_histogram)), ""]
    if history := growth(archive):
        at, pictures, stored = zip(*((one.at, one.pictures, one.bytes) for one in history), strict=True)
        runs = [(f"{one.at:%Y-%m-%d %H:%M}", f"{one.pictures:,} in {size(one.bytes)}") for one in by_run(history)]
        lines += ["## Growth", ""]
        if len(history) > 1:
            title = f"growth from {number(pictures[0], 'picture')} to {pictures[-1]:,} in {size(stored[-1])}"
            lines += [_picture(title, plots.growth(at, pictures, stored)), ""]
        lines.append(markdown_table(("with the commits up to (UTC)", "pictures"), runs[: -RUNS_SHOWN - 1 : -1]))
    return "\n".join(lines)


def _picture(title: str, figure: Any) -> str:
    """As Markdown that the Prefect UI shows: it renders data URIs, but no raw SVG."""
    return f"![{title}]({data_uri(plots.png(figure), 'png')})"

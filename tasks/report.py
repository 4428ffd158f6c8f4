"""Report: what a run did, as artifacts that a person opens in the Prefect UI."""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from compressor.pages import markdown_table
from compressor.parquet import QuarantineRow
from compressor.summary import RunSummary
from compressor.wording import describe, number
from tasks.artifacts import archive_slug, not_vital
from tasks.retries import NOT_KEPT

TABLE_ROWS = 500  # an artifact stays under 2 MB; the archive's quarantine table has them all


@task(name="report", retries=2, retry_delay_seconds=2, **NOT_KEPT)
def publish(summary: RunSummary, quarantined: Sequence[QuarantineRow]) -> None:
    """Publish a run's summary, and what it quarantined; also that it was nothing, over what an earlier run did."""
    archive = archive_slug(summary.archive)
    create_markdown_artifact(summary_markdown(summary), key=f"run-summary-{archive}", description=f"run {summary.run}")
    create_table_artifact(
        [_flat(row) for row in quarantined[:TABLE_ROWS]],
        key=f"quarantine-{archive}",
        description=f"{number(summary.quarantined, 'picture')} of run {summary.run} that could not be archived",
    )


def publish_problems(problems: Sequence[tuple[str, str]], stage: str, archive: str, what: str) -> None:
    """Show what is wrong with pictures of an archive, each a key and a reason; also that nothing is, any more."""
    with not_vital("the list of problems"):
        create_table_artifact(
            [{"key": key, "reason": reason} for key, reason in problems[:TABLE_ROWS]],
            key=f"{stage}-{archive_slug(archive)}",
            description=f"{number(len(problems), 'picture')} {what}",
        )


def _flat(row: QuarantineRow) -> dict[str, Any]:
    return {"key": row.key, "reason": row.reason, "detail": row.detail, "at": row.at.isoformat()}


def summary_markdown(summary: RunSummary) -> str:
    """A run's figures, codecs and quality distribution as Markdown."""
    lines = ["# Archive run", ""]
    lines.append(markdown_table(("", ""), describe(summary.to_dict())))
    if summary.codecs:
        lines += ["", "## Stored as", "", markdown_table(("codec", "pictures"), summary.codecs.most_common())]
    if summary.measured:
        lines += ["", "## Quality", "", markdown_table(("PSNR, dB", "pictures"), summary.histogram())]
    if summary.worker_seconds:
        spent = [(stage, f"{seconds:.1f}") for stage, seconds in summary.worker_seconds.most_common()]
        lines += ["", "## Where the time went", "", markdown_table(("stage", "seconds over all workers"), spent)]
    return "\n".join(lines)

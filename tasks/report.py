"""Report: what a run did, as artifacts that a person opens in the Prefect UI."""

import heapq
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from compressor.archive import Archive
from compressor.pages import markdown_table, markdown_text
from compressor.parquet import QuarantineRow
from compressor.summary import RunSummary
from compressor.wording import describe, needing_a_look, number, outcome
from tasks.artifacts import address_slug, not_vital
from tasks.retries import NOT_KEPT

TABLE_ROWS = 500  # an artifact stays under 2 MB; the archive's quarantine table has them all


@task(name="report", retries=2, retry_delay_seconds=2, **NOT_KEPT)
def publish(summary: RunSummary, archive: Archive) -> None:
    """Publish a run's summary, and what is quarantined in the archive after it: first what the run put there."""
    name = address_slug(summary.archive)
    told = outcome(summary.to_dict())
    create_markdown_artifact(summary_markdown(summary), key=f"run-summary-{name}", description=told)
    shown = heapq.nsmallest(TABLE_ROWS, archive.quarantined(), key=lambda row: (row.run != summary.run, row.key))
    listed = number(archive.tables[1].rows, "picture")
    create_table_artifact(
        [_flat(row) for row in shown],
        key=f"quarantine-{name}",
        description=f"{listed} quarantined in {summary.archive}, {summary.quarantined:,} by run {summary.run}",
    )


def publish_problems(stage: str, archive: str, description: str, problems: Sequence[tuple[str, str]]) -> None:
    """Show what is, or was, wrong with pictures of an archive, each a key and a reason; also that nothing is."""
    with not_vital("the list of problems"):
        create_table_artifact(
            [{"key": key, "reason": reason} for key, reason in problems[:TABLE_ROWS]],
            key=f"{stage}-{address_slug(archive)}",
            description=description,
        )


def _flat(row: QuarantineRow) -> dict[str, Any]:
    return {"key": row.key, "reason": row.reason, "detail": row.detail, "run": row.run, "at": row.at.isoformat()}


def summary_markdown(summary: RunSummary) -> str:
    """A run's figures, codecs and quality distribution as Markdown."""
    run = summary.to_dict()
    lines = ["# Archive run", ""]
    if wrong := needing_a_look(run):
        lines += ["**Needs a look:**", "", *(f"- {markdown_text(text)}" for text in wrong), ""]
    lines.append(markdown_table(("figure", "value"), describe(run)))
    if summary.measured:
        lines += ["", "## Quality", "", markdown_table(("PSNR, dB", "pictures"), summary.histogram(), {1})]
    if summary.worker_seconds:
        spent = [(stage, f"{seconds:.1f}") for stage, seconds in summary.worker_seconds.most_common()]
        lines += ["", "## Where the time went", "", markdown_table(("stage", "seconds over all workers"), spent, {1})]
    return "\n".join(lines)

"""The chain: plan what is new, (train,) encode in batches, commit each, report. The archive is the checkpoint."""

import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from compressor.archive import CRASHED, Archive
from compressor.baselines import STANDARD
from compressor.bulk import PSNR_BINS, BatchReport, EncodeOptions
from compressor.errors import LatentpackError
from compressor.images import Limits
from compressor.planning import Batch, Plan
from compressor.sources import Source
from compressor.summary import FailureBudget, RunSummary
from compressor.table import QuarantineRow
from flows.dispatch import ThisProcess, pool
from flows.parameters import PipelineParameters
from flows.progress import listener
from tasks.codecs import check_codec, packer_for, put_codec
from tasks.dashboard import announce, publish_state
from tasks.encode import commit, encode
from tasks.ingest import plan_run
from tasks.report import TABLE_ROWS, publish
from tasks.retries import caused_by_storage
from tasks.threads import cores

MOST_LOST = 64  # batches lost in a row: no picture is to blame any more
SMALL = 400  # pictures for one process and one file: a second would add 10 bytes a picture of metadata
ARTIFACT_EVERY_S = 5.0


@flow(name="pipeline", flow_run_name="archive {parameters.source}", persist_result=False)
def pipeline(parameters: PipelineParameters) -> dict[str, Any]:
    """Archive a source: every picture in it that the archive does not hold as it is.

    Returns
    -------
    The run's :class:`compressor.summary.RunSummary` as JSON.

    Raises
    ------
    LatentpackError
        The source or the archive cannot be used, or workers keep being lost. What was committed before stays.
    """
    run = uuid.uuid4().hex[:12]
    source = Source.open(parameters.source)
    check_codec(parameters.codec, parameters.archive)
    archive = Archive.open_or_create(parameters.archive)
    summary = RunSummary(run, source.shown, archive.url, parameters.codec)
    quarantined: list[QuarantineRow] = []

    with tempfile.TemporaryDirectory(prefix="latentpack-") as folder:
        with _timed(summary, "plan"):
            listener().stage("listing")
            plan = plan_run(source, archive, Path(folder), parameters.batch_size, parameters.limit)
            summary.start(plan)
        if plan.pending:
            codec = parameters.codec
            if parameters.train:
                from flows.train import train_codec  # torch, which a run with nothing new has no use for

                with _timed(summary, "train"):
                    codec = train_codec(source, parameters.train, parameters.training, parameters).path
            with _timed(summary, "prepare"):
                codec_id, chosen = put_codec(archive, codec)
                packer = packer_for(chosen, parameters.packer, parameters.latents)
            summary.codec = chosen.description
            options = _options(parameters, codec_id, packer)
            _encode_all(plan, source, archive, options, parameters, summary, quarantined)

    summary.reconcile()
    publish(summary, quarantined)
    publish_state(archive.url, parameters.price_per_tb)
    _announce(summary)
    return summary.to_dict()


def _announce(summary: RunSummary) -> None:
    """Events that automations act on: see infra/automations.yaml."""
    announce("run.finished", summary.archive, {"run": summary.run, "archived": summary.archived})
    if summary.quarantined:
        announce("pictures.quarantined", summary.archive, {"run": summary.run, "pictures": summary.quarantined})
    fallen = sum(count for codec, count in summary.codecs.items() if codec in STANDARD)
    if fallen and summary.codec not in STANDARD:
        announce("floor.missed", summary.archive, {"run": summary.run, "pictures": fallen})


def _options(parameters: PipelineParameters, codec: str, packer: str) -> EncodeOptions:
    return EncodeOptions(
        codec=codec,
        target_psnr=parameters.target_psnr,
        quality=parameters.quality,
        min_psnr=parameters.min_psnr,
        packer=packer,
        resize=parameters.resize,
        limits=Limits(parameters.max_bytes, parameters.max_pixels),
    )


def _encode_all(
    plan: Plan,
    source: Source,
    archive: Archive,
    options: EncodeOptions,
    parameters: PipelineParameters,
    summary: RunSummary,
    quarantined: list[QuarantineRow],
) -> None:
    """Encode all batches of ``plan`` and commit each as it is done."""
    workers = parameters.workers or cores()
    size = parameters.batch_size
    if not parameters.scheduler:
        size = plan.even_batches(workers) if plan.pending > SMALL else size
    batches = plan.batches(size)
    again: deque[Batch] = deque()
    once_quarantined = frozenset(row.key for row in archive.quarantined())
    budget = FailureBudget.parse(parameters.max_failures)
    lost_in_a_row = 0
    progress = _Progress(plan.pending)

    def take() -> Batch | None:
        return again.popleft() if again else next(batches, None)

    with pool(parameters.scheduler, workers, -(-plan.pending // size)) as found, _timed(summary, "encode"):
        summary.workers = found.workers

        def arguments(batch: Batch) -> dict[str, Any]:
            return {
                "name": batch.name,
                "source": source,
                "files": batch.files,
                "archive_url": archive.url,
                "options": options.to_dict(),
                "run": summary.run,
                "threads": 1,
                # In this process a batch can tell how far it is; from a worker only its end is heard of.
                "on_progress": progress.within(summary) if isinstance(found, ThisProcess) else None,
            }

        for batch, result in found.run(encode, take, arguments):
            if isinstance(result, Exception):
                lost_in_a_row += 1
                _raise_unless_lost(result, lost_in_a_row)
                summary.lost_batches += 1
                if len(batch.files) > 1:
                    again.extend(batch.halves())
                    continue
                report = _crashed(batch, result, summary.run)
            else:
                lost_in_a_row = 0
                report = BatchReport.from_dict(result)
            summary.add(report, commit(archive, batch, report, summary.run, once_quarantined))
            quarantined += report.quarantined[: TABLE_ROWS - len(quarantined)]
            progress.show(summary)
            if budget.exceeded(summary.quarantined, summary.tried, summary.tried == plan.pending):
                summary.not_reached = plan.pending - summary.tried
                summary.stopped = f"{summary.quarantined} of {summary.tried} pictures failed"
                get_run_logger().error("stopped: %s, more than %s", summary.stopped, parameters.max_failures)
                return


def _raise_unless_lost(error: Exception, lost_in_a_row: int) -> None:
    """Raise what ends the run. What remains is a lost worker, or a picture that no code foresaw."""
    if isinstance(error, LatentpackError) or caused_by_storage(error):
        raise error
    get_run_logger().warning("a batch was lost and is tried again in halves: %s: %s", type(error).__name__, error)
    if lost_in_a_row >= MOST_LOST:
        raise LatentpackError(
            f"{lost_in_a_row} batches were lost one after another, the last to {type(error).__name__}: {error}; "
            "see the workers' logs. What is archived stays, and the same command goes on from there"
        ) from error


def _crashed(batch: Batch, error: Exception, run: str) -> BatchReport:
    """The report of a batch of one picture that ended its worker, or that failed as nothing foresaw."""
    (file,) = batch.files
    detail = f"{type(error).__name__}: {error}"
    row = QuarantineRow.now(file.key, file.fingerprint, CRASHED, detail, run)
    return BatchReport(
        parts=[],
        archived=0,
        quarantined=[row],
        source_bytes=0,
        payload_bytes=0,
        pixels=0,
        codecs={},
        errors={row.reason: 1},
        psnr_sum=0.0,
        psnr_min=float("inf"),
        psnr_counts=[0] * (len(PSNR_BINS) - 1),
        seconds={},
    )


class _Progress:
    """Tells the listener, and Prefect every few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = time.monotonic()
        self._artifact = create_progress_artifact(0.0, key="run-progress", description=f"{total} pictures to archive")
        listener().stage("encoding", total)

    def within(self, summary: RunSummary) -> Callable[[int], None]:
        """A callback for the batch that is under way: pictures of it that are done."""
        heard, before = listener(), summary.tried
        return lambda done: heard.advance(before + done)

    def show(self, summary: RunSummary) -> None:
        """Show how far a run is."""
        listener().advance(summary.tried, f"{summary.quarantined} quarantined" if summary.quarantined else "")
        now = time.monotonic()
        if now - self._shown >= ARTIFACT_EVERY_S or summary.tried == self._total:
            self._shown = now
            update_progress_artifact(self._artifact, round(100 * summary.tried / self._total, 1))


@contextmanager
def _timed(summary: RunSummary, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        summary.seconds[stage] = time.perf_counter() - started

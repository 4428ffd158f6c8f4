"""The chain: plan what is new, (train,) encode in batches, commit each, report. The archive is the checkpoint.

A large source goes through it in waves: so many pictures are listed, then archived, and then the listing goes on.
"""

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any

from prefect import get_run_logger

from compressor.archive import Archive
from compressor.baselines import STANDARD, is_carried
from compressor.choosing import check_codec, find_codec, packer_for, put_codec
from compressor.clock import Clock
from compressor.codec import Codec, check_quality, with_effort
from compressor.encoding import BatchReport, EncodeOptions
from compressor.errors import CRASHED, LatentpackError, told
from compressor.limits import Limits
from compressor.listing import is_like_picture
from compressor.mirroring import Mirror
from compressor.parquet import QuarantineRow
from compressor.planning import Batch, Listing, Plan, most_bytes
from compressor.sources import Source, SourceFile
from compressor.summary import RunSummary, too_many
from compressor.wording import duration, needing_a_look, number, outcome, remarks, unchanged
from flows.dispatch import Pool, ThisProcess, pool, was_killed
from flows.errors import EndedUnwell
from flows.interrupts import interrupted
from flows.machine import worker_count
from flows.parameters import PipelineParameters
from flows.progress import listener
from flows.scratch import scratch
from flows.terminal import SAID_ELSEWHERE
from flows.worded import worded_flow
from tasks.artifacts import address_slug, not_vital, progress_artifact
from tasks.dashboard import announce, publish_state
from tasks.encode import commit, encode
from tasks.home import home
from tasks.ingest import known_keys, plan_run, take_off_list
from tasks.mirror import delete_gone
from tasks.report import publish
from tasks.retries import caused_by_storage, is_of_prefect

# Parameters of how pictures are stored, which say nothing to those that are.
OF_STORING = (
    "codec",
    "train",
    "target_psnr",
    "quality",
    "min_psnr",
    "packer",
    "effort",
    "latents",
    "resize",
    "keep_metadata",
)
MOST_LOST = 64  # batches lost in a row: no picture is to blame any more
# Pictures, and bytes of their files, for one process and one file: another would have started when these are done, and
# would add 10 bytes a picture of metadata.
SMALL, SMALL_BYTES = 400, 16 * 2**20
ARTIFACT_EVERY_S = 5.0


@worded_flow("pipeline", "archive {parameters.subject}")
def pipeline(parameters: PipelineParameters) -> tuple[dict[str, Any], str]:
    """Archive a source: every picture in it that the archive does not hold as it is.

    Returns
    -------
    The run's :class:`compressor.summary.RunSummary` as JSON.

    Raises
    ------
    LatentpackError
        The source or the archive cannot be used, or workers keep being lost. What was committed before stays.
    EndedUnwell
        More pictures failed than ``max_failures`` allows. Those after them are not archived.
    """
    run = uuid.uuid4().hex[:12]
    source = Source.open(parameters.source)
    check_codec(parameters.codec, parameters.archive)
    if not parameters.train and _asks_of_codec(parameters):
        _check_use(find_codec(parameters.codec, parameters.archive), parameters)
    archive = Archive.open_or_create(parameters.archive)
    summary = RunSummary(run, source.shown, archive.url, parameters.codec)
    summary.chosen = [name for name in OF_STORING if name in parameters.model_fields_set]
    clock = Clock(summary.seconds)
    mirror = Mirror(archive) if parameters.mirror else None
    listed = 0

    def see(files: Sequence[SourceFile]) -> None:
        nonlocal listed
        listed += len(files)
        listener().advance(listed)
        if mirror:
            mirror.see(files)

    listing = Listing(source, see)
    encoding: _Encoding | None = None
    more = True

    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        with clock("plan"):
            known = known_keys(archive, _limits(parameters))
        while more and not summary.stopped:
            with clock("plan"):
                listed = 0
                listener().stage("listing", unit="files")
                rest = None if parameters.limit is None else parameters.limit - summary.tried
                plan = plan_run(listing, known, folder, rest, parameters.wave)
                if plan.healed:
                    take_off_list(archive, plan.healed)
                summary.start(plan)
                summary.unlisted = source.unlisted
            if plan.pending:
                encoding = encoding or _Encoding(plan, source, archive, parameters, summary, stack)
                with clock("encode"):
                    encoding.wave(plan)
            more = plan.more

    summary.reconcile()
    summary.table_bytes, summary.codec_bytes = archive.sizes()
    if mirror:
        _mirror(mirror, source, parameters.mirror_limit, summary)
    with not_vital("the run's summary"):
        publish(summary, archive)
    publish_state(archive.url, parameters.price_per_tb)
    result = summary.to_dict()
    _log(result)
    _announce(summary)
    if summary.stopped:
        missed = ["what was not listed yet"] * more
        if summary.not_reached:
            missed.insert(0, number(summary.not_reached, "picture"))
        untried = f"not archived: {' and '.join(missed)}" if missed else "none was left to try"
        raise EndedUnwell(
            f"stopped: {summary.stopped}, and max_failures is {parameters.max_failures}; {untried}. "
            f"What is archived stays. See: latentpack quarantine list {archive.url}",
            result,
        )
    return result, ". ".join([outcome(result), *needing_a_look(result)])


def _log(run: dict[str, Any]) -> None:
    """Have the run's log say what the command line says in lines of its own; the flow's state tells how it ended."""
    logger = get_run_logger()
    for text in unchanged(run):  # no warning: of a job that names its options it is true each night
        logger.info(text, extra={SAID_ELSEWHERE: True})
    for text in [*remarks(run), *needing_a_look(run)]:
        logger.warning(text, extra={SAID_ELSEWHERE: True})


def _announce(summary: RunSummary) -> None:
    """Events that automations act on: see infra/automations.yaml and infra/notifications.yaml."""
    ended = "run.stopped" if summary.stopped else "run.finished"
    announce(ended, summary.archive, {"run": summary.run, "archived": summary.archived})
    if summary.quarantined:
        announce("pictures.quarantined", summary.archive, {"run": summary.run, "pictures": summary.quarantined})
    fallen = sum(count for codec, count in summary.codecs.items() if codec in STANDARD)
    if fallen and summary.learned:
        announce("floor.missed", summary.archive, {"run": summary.run, "pictures": fallen})
    if not summary.listed:
        announce("source.empty", summary.archive, {"run": summary.run, "source": summary.source})
    passed_over = len(summary.skipped) + sum(n for name, n in summary.unlisted.items() if is_like_picture(name))
    if passed_over:
        announce("names.passed-over", summary.archive, {"run": summary.run, "names": passed_over})
    if summary.not_mirrored:
        announce("mirror.refused", summary.archive, {"run": summary.run, "reason": summary.not_mirrored})


def _asks_of_codec(given: PipelineParameters) -> bool:
    """Whether the codec may not know what is asked for. If not, a run with nothing new need not load it."""
    return given.quality is not None or given.packer != "auto" or given.latents != "int8" or given.effort > 0


def _check_use(codec: Codec, given: PipelineParameters) -> str:
    """The codec's own name for the packer. CodecError where it does not know what is asked for."""
    with_effort(codec, given.effort)
    if given.quality is not None:
        check_quality(codec, given.quality)
    return packer_for(codec, given.packer, given.latents)


def _options(parameters: PipelineParameters, codec: str, packer: str) -> EncodeOptions:
    return EncodeOptions(
        codec=codec,
        target_psnr=parameters.target_psnr,
        quality=parameters.quality,
        min_psnr=parameters.min_psnr,
        packer=packer,
        effort=parameters.effort,
        resize=parameters.resize,
        limits=_limits(parameters),
        keep_metadata=parameters.keep_metadata,
    )


def _limits(parameters: PipelineParameters) -> Limits:
    return Limits(parameters.max_bytes, parameters.max_pixels)


def _mirror(mirror: Mirror, source: Source, limit: str, summary: RunSummary) -> None:
    """Delete what is gone from the source, unless the run cannot be sure that it is."""
    if summary.stopped:
        refused: str | None = "the run was stopped"
    else:
        refused = mirror.refusal(source, summary.listed, summary.skipped, limit)
    if refused:
        summary.not_mirrored = refused
    else:
        summary.deleted = delete_gone(mirror)


class _Encoding:
    """Encodes the waves of a run in one pool of workers, and commits each batch as it is done.

    Parameters
    ----------
    first
        The plan of the first wave, by which codec and pool are chosen.
    stack
        Ends the pool with the run.
    """

    def __init__(
        self,
        first: Plan,
        source: Source,
        archive: Archive,
        parameters: PipelineParameters,
        summary: RunSummary,
        stack: ExitStack,
    ) -> None:
        self._source, self._archive, self._parameters, self._summary = source, archive, parameters, summary
        self._clock = Clock(summary.seconds)
        self._options = self._prepare()
        reasons = {row.key: row.reason for row in archive.quarantined()}
        self._once_quarantined = frozenset(reasons)
        self._workers = parameters.workers or worker_count()
        self._most_bytes = most_bytes(parameters.batch_size)
        mark = home() / "encoding" / blake2b(f"{source.url}\n{archive.url}".encode(), digest_size=8).hexdigest()
        killed = was_killed(mark)
        if killed:
            get_run_logger().warning("the last run was killed while it encoded: this one does so in another process")
        batches = -(-first.pending // self._size(first))
        apart = killed or CRASHED in reasons.values()  # which is tried again in every run
        self._pool: Pool = stack.enter_context(pool(parameters.scheduler, self._workers, batches, apart, mark))
        summary.workers = self._pool.workers
        self._numbers = itertools.count()  # of batches, unique in a run
        self._planned = self._lost_in_a_row = 0

    def _prepare(self) -> EncodeOptions:
        """Train where that is asked for, put the codec into the archive, and say how it is used."""
        codec, given = self._parameters.codec, self._parameters
        if given.train:
            from flows.train import train_codec  # torch, which a run with nothing new has no use for

            with self._clock("train"):
                codec = train_codec(self._source, given.train, given.training, given).path
        with self._clock("prepare"):
            packer = _check_use(find_codec(codec, self._archive.url), given)  # here, not in every batch
            codec_id, chosen = put_codec(self._archive, codec)
            if given.keep_metadata:
                self._archive.take_metadata()
        self._summary.codec = chosen.description
        self._summary.learned = is_carried(codec_id)
        self._summary.one_quality = not len(chosen.qualities) and given.min_psnr is None
        return _options(given, codec_id, packer)

    def _size(self, plan: Plan) -> int:
        """Most pictures in a batch."""
        if self._parameters.scheduler or (plan.pending <= SMALL and plan.bytes <= SMALL_BYTES):
            return self._parameters.batch_size
        return plan.even_batches(self._workers, self._parameters.batch_size, self._most_bytes)

    def wave(self, plan: Plan) -> None:
        """Encode all of ``plan``, or stop where too many pictures fail: what is under way then is committed too."""
        summary = self._summary
        progress = _Progress(plan, summary.waves, self._planned, summary.archive)
        self._planned += plan.pending
        with progress:
            for batch, report in self._reports(plan, progress):
                summary.add(report, *commit(self._archive, batch, report, summary.run, self._once_quarantined))
                summary.workers = max(summary.workers, self._pool.workers)  # a cluster may adapt to the work
                progress.show(summary)
                last = summary.tried == self._planned and not plan.more
                if self._fails(last):
                    if not summary.stopped:
                        get_run_logger().warning(
                            "too many pictures failed: no more are begun, those under way are finished"
                        )
                    summary.stopped = f"{summary.quarantined:,} of {number(summary.tried, 'picture')} failed"
        if summary.stopped:
            summary.not_reached = self._planned - summary.tried
            every_one = not (summary.not_reached or plan.more)
            if every_one and not self._fails(finished=True):
                summary.stopped = None  # a share, and what was under way was all that was left

    def _fails(self, finished: bool) -> bool:
        """Whether more pictures failed than may."""
        return too_many(self._summary.quarantined, self._summary.tried, self._parameters.max_failures, finished)

    def _reports(self, plan: Plan, progress: "_Progress") -> Iterator[tuple[Batch, BatchReport]]:
        """Each batch of ``plan`` as it is done. A lost one is tried again in halves, down to one picture.

        Such a picture may have been lost with a worker that another ended: at last it is tried with nothing beside it.
        """
        batches = plan.batches(self._size(plan), self._most_bytes, self._numbers)
        again: deque[Batch] = deque()
        suspects: list[Batch] = []

        def take() -> Batch | None:
            if self._summary.stopped:
                return None
            return again.popleft() if again else next(batches, None)

        for batch, result in self._run(take, progress):
            if isinstance(result, BatchReport):
                self._lost_in_a_row = 0
                yield batch, result
                continue
            self._lost_in_a_row += 1
            if self._summary.stopped:
                self._lose(batch, result, "is not tried again, for the run stops")
            elif len(batch.files) > 1:
                self._lose(batch, result, "is tried again in halves")
                again.extend(batch.halves())
            else:
                self._lose(batch, result, "is tried again at the end, with nothing beside it")
                suspects.append(batch)
        for batch in suspects:
            if self._summary.stopped:
                return
            again.append(batch)
            [(_, result)] = self._run(take, progress)
            if isinstance(result, Exception):
                self._lose(batch, result, "goes to the quarantine")
                result = _crashed(batch, result, self._summary.run)
            else:
                self._lost_in_a_row = 0
            yield batch, result

    def _run(
        self, take: Callable[[], Batch | None], progress: "_Progress"
    ) -> Iterator[tuple[Batch, BatchReport | Exception]]:
        """What the pool makes of batches, as they are done."""
        threads = self._workers if isinstance(self._pool, ThisProcess) else 1

        def arguments(batch: Batch) -> dict[str, Any]:
            return {
                "name": batch.name,
                "source": self._source,
                "files": batch.files,
                "archive_url": self._archive.url,
                "options": self._options,
                "run": self._summary.run,
                "threads": threads,
            }

        for batch, result in self._pool.run(encode, take, arguments, progress.within):
            progress.ended(batch)
            yield batch, result

    def _lose(self, batch: Batch, error: Exception, then: str) -> None:
        """Count a batch that was lost, and tell it, or raise what ends the run."""
        _raise_unless_lost(error, self._lost_in_a_row)
        self._summary.lost_batches += 1
        what = f"a batch of {len(batch.files):,} pictures" if len(batch.files) > 1 else repr(batch.files[0].key)
        get_run_logger().warning("%s was lost and %s: %s", what, then, _why(error))


def _raise_unless_lost(error: Exception, lost_in_a_row: int) -> None:
    """Raise what ends the run. What remains is a lost worker, or a picture that no code foresaw."""
    if interrupted():  # while Prefect made a task run, in place of which it raises an error of its own
        raise KeyboardInterrupt from error
    # A library that is missing is no picture's fault, and would be missing again.
    if isinstance(error, (LatentpackError, ModuleNotFoundError)) or caused_by_storage(error):
        raise error
    if is_of_prefect(error):
        raise LatentpackError(
            f"Prefect's server is gone, or does not let a batch start ({told(error)}): see to it, and to its "
            "concurrency limits, then repeat the command; what is archived stays"
        ) from error
    if lost_in_a_row >= MOST_LOST:
        raise LatentpackError(
            f"{lost_in_a_row} batches were lost one after another. The last: {_why(error)}. "
            "See the workers' logs; what is archived stays, and the same command goes on from there"
        ) from error


def _why(error: Exception) -> str:
    """Why a batch was lost."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return f"its process was killed, perhaps for memory ({error.last_worker.address})"
    return f"{type(error).__name__}: {error}"


def _crashed(batch: Batch, error: Exception, run: str) -> BatchReport:
    """The report of a batch of one picture that ended its worker, or that failed as nothing foresaw."""
    (file,) = batch.files
    row = QuarantineRow.now(file.key, file.fingerprint, CRASHED, _why(error), run)
    return BatchReport(quarantined=[row])


class _Progress:
    """Tells the listener, and Prefect every few seconds, how far a wave is and how long the rest of it will take.

    Parameters
    ----------
    before
        Pictures of earlier waves.
    """

    def __init__(self, plan: Plan, wave: int, before: int, archive: str) -> None:
        self._total, self._before = plan.pending, before
        self._done, self._quarantined = 0, ""
        self._under_way: dict[str, int] = {}  # pictures that are done of batches that are not
        in_waves = f", wave {wave}" if plan.more or wave > 1 else ""
        self._what = f"{number(plan.pending, 'picture')}{in_waves}"
        self._more = ", then the listing goes on" if plan.more else ""
        self._started = self._shown = time.monotonic()
        key = f"run-progress-{address_slug(archive)}"
        self._tell = progress_artifact(key, f"0 of {self._what}")
        listener().stage(f"encoding{in_waves}", plan.pending)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        """Show where it ended, if before its end: the artifact would else promise for ever how long the rest takes."""
        if self._done < self._total:
            self._tell(self._percent(self._done), f"ended at {self._done:,} of {self._what}")

    def within(self, batch: Batch, done: int) -> None:
        """Show that so many pictures are done of a batch that is under way."""
        self._under_way[batch.name] = done
        self._show()

    def ended(self, batch: Batch) -> None:
        """Forget how far a batch was, for it is done or is lost."""
        self._under_way.pop(batch.name, None)

    def show(self, summary: RunSummary) -> None:
        """Show how far a run is."""
        self._done = summary.tried - self._before
        self._quarantined = f"{summary.quarantined:,} quarantined" if summary.quarantined else ""
        self._show()

    def _show(self) -> None:
        done, quarantined = self._done + sum(self._under_way.values()), self._quarantined
        listener().advance(done, quarantined)
        now = time.monotonic()
        if now - self._shown >= ARTIFACT_EVERY_S or done == self._total:
            self._shown = now
            rate = done / max(now - self._started, 1e-9)
            told = [f"{done:,} of {self._what}", f"{rate:,.1f} a second", quarantined]
            left = f"{duration((self._total - done) / rate)} left{self._more}" if 0 < done < self._total else ""
            self._tell(self._percent(done), "; ".join(filter(None, [*told, left])))

    def _percent(self, done: int) -> float:
        return round(100 * done / self._total, 1)

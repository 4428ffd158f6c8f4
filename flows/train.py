"""Training: list, prepare shards in parallel, fit, freeze, write the codec's file."""

import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from compressor.artifact import ARTIFACT_BEGINS, is_artifact, parse
from compressor.codec import naming
from compressor.defaults import FAMILY
from compressor.destinations import Folder, object_at, write_file
from compressor.errors import ArchiveError, CodecError, LatentpackError
from compressor.families import family as family_named
from compressor.files import write_whole
from compressor.learning import origin
from compressor.limits import Limits
from compressor.planning import Batch
from compressor.shards import ShardConfig, ShardRecord, drawn
from compressor.sources import Source, SourceFile
from compressor.training import TrainingConfig, TrainingState
from compressor.wording import by_reason, learned_shrunk, number, short
from flows.dispatch import Pool, UndeclaredError, dask_pool
from flows.machine import cores, worker_count
from flows.parameters import CodecTrainingParameters, PipelineParameters, TrainingParameters, TrainParameters
from flows.progress import listener
from flows.terminal import SAID_ELSEWHERE
from flows.worded import worded_flow
from tasks.caching import cached, fresh
from tasks.home import home
from tasks.preprocess import prepare
from tasks.threads import pin_threads
from tasks.train import TrainingRecord, codec_folder, train, train_there

MINUTES = 15.0  # where neither steps nor minutes are given
RATE, RATE_ONWARD = 3e-3, 2e-4  # of learning, from nothing and from a codec
VALIDATIONS = 40  # in a run of a given number of steps
VALIDATE_EVERY = 200  # steps, where only minutes are given
PARALLEL_FROM = 4  # shards: starting processes takes as long as preparing a few


@worded_flow("train", "train {parameters.what} on {parameters.subject}")
def train_flow(parameters: TrainParameters) -> tuple[dict[str, Any], str]:
    """Train a codec on a source and write its file. Returns a :class:`tasks.train.TrainingRecord` as JSON."""
    out = parameters.out
    source = Source.open(parameters.source)
    start = origin(parameters.start) if parameters.start else None
    family = _family(parameters, start)
    _check_out(out)  # last: it leaves an empty object in a bucket
    record = train_codec(source, family, parameters, parameters, start)
    try:
        write_file(out, Path(record.path).read_bytes())
    except (OSError, ArchiveError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise CodecError(f"cannot write {out}: {reason}; the codec is trained, and lies at {record.path}") from error
    on = f"{number(record.pictures, 'picture')}, {number(record.steps, 'step')}"
    place = out if "://" in out else Folder(Path(out).parent).told(Path(out).name)
    as_it_was = "" if record.validation.get("step", 1) else " and no better for it, so as it was"
    return {**vars(record), "path": out}, f"codec {short(record.id)}, trained on {on}{as_it_was}: {place}"


def _check_out(out: str) -> None:
    """CodecError where a codec cannot be written there, or what is no codec would be lost."""
    if "://" in out:
        bucket, name = object_at(out)
        bucket.reserve(name)
        found = bucket.read(name, ARTIFACT_BEGINS)
        lost = bool(found) and not is_artifact(io.BytesIO(found or b""))
    else:
        path = Path(out)
        if not path.parent.is_dir():
            raise CodecError(f"cannot write {out}: there is no folder {path.parent}; create it first")
        if path.is_dir():
            example = path / "codec.safetensors"
            raise CodecError(f"cannot write {out}: it is a folder; name a file in it, such as {example}")
        if path.exists() and not path.is_file():  # a device, which would be replaced
            raise CodecError(f"cannot write {out}: it is no ordinary file; name one, such as codec.safetensors")
        lost = path.exists() and not _is_codec(path)
    if lost:
        raise CodecError(
            f"cannot write {out}: a file of that name is there, and is no codec of latentpack; choose another name, or "
            "delete it"
        )


def _is_codec(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_artifact(file)
    except OSError:
        return False


def _family(parameters: TrainParameters, start: bytes | None) -> str:
    """The family asked for, which has to be that of the codec to start from; CodecError where it is not."""
    if start is None:
        return parameters.family or FAMILY
    with naming(str(parameters.start)):
        there = parse(start).family
    if parameters.family not in (None, there):
        raise CodecError(f"{parameters.start} is of family {there}, not {parameters.family}: leave --family out")
    return family_named(there).name


def train_codec(
    source: Source,
    family: str,
    training: CodecTrainingParameters,
    work: TrainParameters | PipelineParameters,
    start: bytes | None = None,
) -> TrainingRecord:
    """Train a codec of ``family`` on a source, or find that it has been: shards and training are remembered.

    It goes on from the artifact ``start`` where one is given.

    With a scheduler a worker of that cluster with a GPU does all of it, and remembers nothing but its checkpoint. Where
    there is none, a run that was to archive too trains here, and one that was only to train ends with UndeclaredError.
    """
    record: TrainingRecord | None = None
    if work.scheduler:
        try:
            record = _train_there(work.scheduler, source, family, training, work, start)
        except UndeclaredError as error:
            if isinstance(work, TrainParameters):
                raise
            get_run_logger().warning("training on this machine: %s", error)
    if record is None:
        files = drawn(itertools.islice(source.files(), work.limit), _most(training), training.seed)
        workers = work.workers or worker_count()
        record = train_on(source, iter(files), family, training, work.batch_size, workers, start)
    if record.refused:
        get_run_logger().warning("training left out %s", by_reason(record.refused), extra=_said(work))
    shrunk = learned_shrunk(record.native_side, training.side, training.crops)
    if shrunk and getattr(work, "resize", None) is None:
        get_run_logger().warning(shrunk, extra=_said(work))
    return record


def _said(work: TrainParameters | PipelineParameters) -> dict[str, bool]:
    """That `train` says it in words of its own; a run that was to archive too has no place for it."""
    return {SAID_ELSEWHERE: True} if isinstance(work, TrainParameters) else {}


def _shards_of(training: CodecTrainingParameters) -> ShardConfig:
    """How pictures are prepared for it."""
    return ShardConfig(training.side, Limits(), training.crops)


def _most(training: CodecTrainingParameters) -> int:
    """Pictures that it draws: all squares of them are in memory at once."""
    return max(2, training.max_pictures // max(1, training.crops))


def _card(source: Source, training: CodecTrainingParameters) -> dict[str, Any]:
    return {"source": source.shown, "side": training.side, **({"crops": training.crops} if training.crops else {})}


def _train_there(
    scheduler: str,
    source: Source,
    family: str,
    training: CodecTrainingParameters,
    work: TrainParameters | PipelineParameters,
    start: bytes | None,
) -> TrainingRecord:
    with dask_pool(scheduler, 1, {"GPU": 1}) as pool:
        listener().stage(f"training {family} on a worker of {scheduler}")
        arguments = {
            "source": source,
            "limit": work.limit,
            "most": _most(training),
            "batch_size": work.batch_size,
            "shards": _shards_of(training),
            "family": family,
            "config": configure(training, start is not None),
            "card": _card(source, training),
            "weights": training.weights,
            "threads": cores,
            "start": start,
        }
        waiting = [arguments]
        ((_, result),) = pool.run(train_there, lambda: waiting.pop() if waiting else None, lambda given: given)
    if isinstance(result, LatentpackError):
        raise result
    if isinstance(result, Exception):
        raise LatentpackError(
            f"the training on a worker of {scheduler} failed: {type(result).__name__}: {result}; see the worker's log"
        ) from result
    record, data = result
    path = codec_folder() / Path(record["path"]).name
    write_whole(path, data)
    return TrainingRecord(**{**record, "path": str(path)})


def train_on(
    source: Source,
    files: Iterator[SourceFile],
    family: str,
    training: CodecTrainingParameters,
    batch_size: int,
    workers: int,
    start: bytes | None = None,
) -> TrainingRecord:
    """Train a codec of ``family`` on some files of a source, from the artifact ``start`` where one is given."""
    shards = prepare_shards(source, files, _shards_of(training), batch_size, workers)
    pin_threads(workers)
    config = configure(training, start is not None)
    listener().stage(f"training {family}", 100, "%")

    def tell(state: TrainingState, done: float) -> None:
        last = state.history[-1]
        note = f"step {state.step:,}, loss {last['loss']:.5f}" + (f", {last['psnr']:.2f} dB" if "psnr" in last else "")
        listener().advance(round(100 * done), note)
        if done >= 1:  # tables and predictor of a large network take minutes
            listener().stage(f"freezing {family}")

    arguments = {
        "family": family,
        "records": shards,
        "config": config,
        "card": _card(source, training),
        "weights": training.weights,
        "start": start,
    }
    return fresh(train, TrainingRecord, **arguments, on_progress=tell)


def configure(training: TrainingParameters, learned: bool) -> TrainingConfig:
    """How to train, from what was asked for. ``learned``: it goes on from a codec, which larger steps would undo."""
    minutes = training.minutes if training.minutes is not None else 0.0 if training.steps else MINUTES
    return TrainingConfig(
        steps=training.steps,
        minutes=minutes,
        patience=training.patience,
        batch=training.batch,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate or (RATE_ONWARD if learned else RATE),
        warmup=max(1, min(200, training.steps // 10 or 200)),
        validate_every=max(1, training.steps // VALIDATIONS) if training.steps else VALIDATE_EVERY,
        seed=training.seed,
        compile=training.compile,
    )


def prepare_shards(
    source: Source, files: Iterator[SourceFile], config: ShardConfig, batch_size: int, workers: int
) -> list[ShardRecord]:
    """Shards of ``files``, in order; those that are there already are not made again."""
    listener().stage("preparing shards")
    folder = home() / "shards"
    batches = _batches(files, batch_size)
    ahead = list(itertools.islice(batches, PARALLEL_FROM))
    records: dict[str, ShardRecord] = {}
    everything = itertools.chain(ahead, batches)

    def keep(batch: Batch, values: dict[str, Any]) -> None:
        records[batch.name] = ShardRecord(**values)
        listener().advance(sum(record.count for record in records.values()))

    def arguments(batch: Batch, threads: int) -> dict[str, Any]:
        return {"source": source, "batch": batch, "config": config, "folder": folder, "threads": threads}

    if workers == 1 or len(ahead) < PARALLEL_FROM:
        for batch in everything:
            keep(batch, vars(fresh(prepare, ShardRecord, **arguments(batch, workers))))
    else:
        lost: list[Batch] = []
        with dask_pool(None, workers) as pool:
            for batch, values in _prepared(pool, everything, lambda batch: arguments(batch, 1)):
                keep(batch, values)
                if not records[batch.name].exists():
                    lost.append(batch)
        for batch in lost:
            keep(batch, vars(fresh(prepare, ShardRecord, **arguments(batch, workers))))
    return [records[name] for name in sorted(records, key=int)]


def _prepared(
    pool: Pool, batches: Iterator[Batch], arguments: Callable[[Batch], dict[str, Any]]
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Each batch with its shard's record. LatentpackError, naming its pictures, for one that ends its worker."""
    from distributed import KilledWorker

    task = cached(prepare)
    suspects: deque[Batch] = deque()  # lost with a worker, on which they may only have waited for another to be done

    def run(some: Iterator[Batch], alone: bool) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for batch, result in pool.run(task, lambda: next(some, None), arguments):
            if isinstance(result, KilledWorker) and alone:
                raise LatentpackError(_killing(batch)) from result
            if isinstance(result, KilledWorker):
                suspects.append(batch)
            elif isinstance(result, Exception):
                raise result
            else:
                yield batch, result

    def until_lost() -> Iterator[Batch]:
        while not suspects and (batch := next(batches, None)) is not None:
            yield batch

    more = True
    while more:
        yield from run(until_lost(), alone=False)
        more = bool(suspects)
        while suspects:
            yield from run(iter([suspects.popleft()]), alone=True)


def _killing(batch: Batch) -> str:
    first, last = batch.files[0].key, batch.files[-1].key
    return (
        f"each process that prepares the {number(len(batch.files), 'picture')} from {first!r} to {last!r} is killed, "
        "perhaps for memory: try fewer --workers. If that does not help, one of them ends what decodes it: find it by "
        "a smaller --batch-size, and take it out of the source. What is prepared is kept"
    )


def _batches(files: Iterator[SourceFile], size: int) -> Iterator[Batch]:
    for index in itertools.count():
        chunk = tuple(itertools.islice(files, size))
        if not chunk:
            return
        yield Batch(str(index), chunk)

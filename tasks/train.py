"""Train: prepared shards to one frozen codec file. A retry resumes from the checkpoint, a repetition is a cache hit."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import TaskRunContext

from compressor.artifact import identify, parse
from compressor.devices import pick_device
from compressor.files import write_whole
from compressor.pages import data_uri, markdown_table
from compressor.shards import (
    ShardConfig,
    ShardRecord,
    content_of,
    drawn,
    load_shards,
    native_side,
    prepare_shard,
    refused_of,
)
from compressor.sources import Source
from compressor.training import TrainingConfig, TrainingState
from compressor.wording import by_reason, duration, number
from tasks.artifacts import address_slug, not_vital, training_progress
from tasks.caching import is_artifact, stage_key
from tasks.home import home, is_watched
from tasks.retries import NOT_KEPT, retry_unless_told
from tasks.threads import pin_threads

VERSION = 6  # raise it when the same shards and configuration give another codec
VALIDATION = 512  # pictures at most that training is validated on


@dataclass(frozen=True)
class TrainingRecord:
    """A trained codec: where its file lies, its id, and how training went. JSON both ways.

    ``validation`` is of the weights that were kept, which need not be the last. ``refused`` counts the files that it
    could not learn from, by reason; ``native_side`` is the median of the others' shorter sides as they came,
    ``loss_before`` the validation of the codec that it went on from.
    """

    path: str
    id: str
    family: str
    pictures: int
    steps: int
    seconds: float
    device: str
    validation: dict[str, float]
    history: list[dict[str, float]]
    refused: dict[str, int] = field(default_factory=dict)
    native_side: int = 0
    loss_before: float | None = None

    def exists(self) -> bool:
        """Whether the file is there, and whole."""
        return is_artifact(self.path, self.id)


def codec_folder() -> Path:
    """Where trained codecs and checkpoints are kept."""
    return home() / "training"


def training_key(
    family: str, records: Sequence[ShardRecord], config: TrainingConfig, weights: str, start: bytes | None = None
) -> str:
    """Name of a training: what is learned from what, how, and how it is stored."""
    origin = {"start": hashlib.sha256(start).hexdigest()} if start else {}
    return stage_key(
        "train", VERSION, content_of(records), {"family": family, "weights": weights, **asdict(config), **origin}
    )


def _key(context: TaskRunContext, arguments: dict[str, Any]) -> str:
    return training_key(*(arguments[name] for name in ("family", "records", "config", "weights", "start")))


# No timeout: a blocking call cannot be interrupted, and --minutes bounds it. One training at a time where a limit on
# the tag says so. Lack of memory or a lost device may be over at the second try; the checkpoint keeps what was learned.
@task(
    name="train",
    task_run_name="train-{family}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=retry_unless_told,
    cache_key_fn=_key,
    tags={"latentpack-training"},
)
def train(
    family: str,
    records: Sequence[ShardRecord],
    config: TrainingConfig,
    card: dict[str, Any],
    weights: str,
    start: bytes | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
) -> dict[str, Any]:
    """Train a codec on the shards and freeze it, from the weights of the codec ``start`` where one is given.

    Returns a :class:`TrainingRecord` as JSON.
    """
    from compressor.learning import held_out, learn

    held = held_out(sum(record.count for record in records), VALIDATION, card.get("crops", 0))
    learned = load_shards(records, held if len(held) == 1 else ~held)  # a single picture is both
    what = f"{family} on {card['source']}"
    key = training_key(family, records, config, weights, start)
    checkpoint = codec_folder() / f"{key}.ckpt"
    if TaskRunContext.get():
        get_run_logger().info("training %s on %d pictures on %s", family, len(learned), pick_device().type)
    origin = parse(start) if start else None
    trained = learn(
        family,
        learned,
        load_shards(records, held),
        config,
        start=origin,
        card=card,
        checkpoint=checkpoint,
        on_progress=training_progress(what, on_progress),
        weights=weights,
    )
    data, state, refused = trained.data, trained.state, refused_of(records)
    path = codec_folder() / f"{key}.safetensors"
    write_whole(path, data)
    if TaskRunContext.get():
        with not_vital("how training went"):
            create_markdown_artifact(
                _history(what, state, refused),
                key=f"training-history-{address_slug(what)}",
                description=f"validation of {what}",
            )
    record = TrainingRecord(
        path=str(path),
        id=identify(data),
        family=family,
        pictures=trained.pictures,
        steps=state.step,
        seconds=state.seconds,
        device=trained.device,
        validation=state.kept,
        history=state.history,
        refused=refused,
        native_side=native_side(records),
        loss_before=state.loss_before,
    )
    checkpoint.unlink(missing_ok=True)  # last: without it a retry begins at step 0
    return asdict(record)


# As `train`, but self-contained: a worker of a cluster shares no folder with the flow. Its checkpoint lies with it, so
# that a retry on the same machine goes on from there. Bytes travel, since they are the result and small.
@task(
    name="train-there",
    task_run_name="train-{family}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=retry_unless_told,
    **NOT_KEPT,
    tags={"latentpack-training"},
)
def train_there(
    source: Source,
    limit: int | None,
    most: int,
    batch_size: int,
    shards: ShardConfig,
    family: str,
    config: TrainingConfig,
    card: dict[str, Any],
    weights: str,
    threads: Callable[[], int],
    start: bytes | None = None,
) -> tuple[dict[str, Any], bytes]:
    """List, prepare and train where this runs, on as many ``threads`` as it says there.

    Returns a :class:`TrainingRecord` as JSON, and the codec's file.
    """
    pin_threads(threads())
    files = drawn(itertools.islice(source.files(), limit), most, config.seed)
    batches = [files[at : at + batch_size] for at in range(0, len(files), batch_size)]
    records = [prepare_shard(source, batch, shards, home() / "shards") for batch in batches]
    trained = train.fn(family, records, config, card, weights, start)
    return trained, Path(trained["path"]).read_bytes()


def _history(what: str, state: TrainingState, refused: dict[str, int]) -> str:
    """The validation history as Markdown: curves, and a table; what could not be learned from."""
    rows = state.history
    names = list(rows[0]) if rows else []
    lines = [f"# Training {what}", "", f"{number(state.step, 'step')} in {duration(state.seconds)}", ""]
    if len(rows) > 1 and is_watched():  # one point is no curve
        from compressor import plots

        lines += [f"![loss and PSNR by step]({data_uri(plots.png(plots.training(rows)), 'png')})", ""]
    lines.append(
        markdown_table(names, [[f"{float(row[name]):.5g}" for name in names] for row in rows], {*range(len(names))})
    )
    if refused:
        lines += ["", f"Left out: {by_reason(refused)}"]
    return "\n".join(lines)

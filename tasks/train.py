"""Train: prepared shards to one frozen codec file. A retry resumes from the checkpoint, a repetition is a cache hit."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from compressor.devices import pick_device
from compressor.files import write_whole
from compressor.shards import ShardConfig, ShardRecord, drawn, load_shards, prepare_shard
from compressor.sources import Source
from compressor.training import TrainingConfig, TrainingState
from compressor.wording import duration
from tasks.caching import stage_key
from tasks.home import home, is_watched
from tasks.retries import NOT_KEPT
from tasks.threads import cores, pin_threads

VERSION = 3  # raise it when the same shards and configuration give another codec
HELD_OUT = 0.05  # share of the pictures that training is validated on
HELD_OUT_MOST = 512


@dataclass(frozen=True)
class TrainingRecord:
    """A trained codec: where its file lies, its id, and how training went. JSON both ways."""

    path: str
    id: str
    family: str
    pictures: int
    steps: int
    seconds: float
    device: str
    validation: dict[str, float]
    history: list[dict[str, float]]

    def exists(self) -> bool:
        """Whether the file is there."""
        return Path(self.path).is_file()


def codec_folder() -> Path:
    """Where trained codecs and checkpoints are kept."""
    return home() / "training"


def _content(records: Sequence[ShardRecord]) -> str:
    return hashlib.blake2b("".join(record.content for record in records).encode(), digest_size=16).hexdigest()


def training_key(
    family: str, records: Sequence[ShardRecord], config: TrainingConfig, start: bytes | None = None
) -> str:
    """Name of a training: what is learned from what, and how."""
    origin = {"start": hashlib.sha256(start).hexdigest()} if start else {}
    return stage_key("train", VERSION, _content(records), {"family": family, **asdict(config), **origin})


def _key(context: TaskRunContext, arguments: dict[str, Any]) -> str:
    return training_key(arguments["family"], arguments["records"], arguments["config"], arguments["start"])


# No timeout: a blocking call cannot be interrupted, and --minutes bounds it. One training at a time where a limit on
# the tag says so. Lack of memory or a lost device may be over at the second try; the checkpoint keeps what was learned.
@task(
    name="train",
    task_run_name="train-{family}",
    retries=2,
    retry_delay_seconds=10,
    cache_key_fn=_key,
    tags={"latentpack-training"},
)
def train(
    family: str,
    records: Sequence[ShardRecord],
    config: TrainingConfig,
    card: dict[str, Any],
    start: bytes | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
) -> dict[str, Any]:
    """Train a codec on the shards and freeze it, from the weights of the codec ``start`` where one is given.

    Returns a :class:`TrainingRecord` as JSON.
    """
    from compressor.artifact import identify, parse
    from compressor.learning import learn

    held = _held_out(sum(record.count for record in records))
    learned = load_shards(records, held if len(held) == 1 else ~held)  # a single picture is both
    key = training_key(family, records, config, start)
    checkpoint = codec_folder() / f"{key}.ckpt"
    show = _shown(family)
    started = time.monotonic()

    def tell(state: TrainingState, done: float) -> None:
        show(state, done, time.monotonic() - started)
        if on_progress:
            on_progress(state, done)

    if TaskRunContext.get():
        get_run_logger().info("training %s on %d pictures on %s", family, len(learned), pick_device().type)
    origin = parse(start) if start else None
    trained = learn(
        family, learned, load_shards(records, held), config, None, origin, card, checkpoint=checkpoint, on_progress=tell
    )
    data, state = trained.data, trained.state
    path = codec_folder() / f"{key}.safetensors"
    write_whole(path, data)
    checkpoint.unlink(missing_ok=True)
    if TaskRunContext.get():
        create_markdown_artifact(
            _history(family, state), key=f"training-history-{family}", description="validation by step"
        )
    return asdict(
        TrainingRecord(
            path=str(path),
            id=identify(data),
            family=family,
            pictures=trained.pictures,
            steps=state.step,
            seconds=state.seconds,
            device=trained.device,
            validation=state.history[-1] if state.history else {},
            history=state.history,
        )
    )


# As `train`, but self-contained: a worker of a cluster shares no folder with the flow. Its checkpoint lies with it, so
# that a retry on the same machine goes on from there. Bytes travel, since they are the result and small.
@task(
    name="train-there",
    task_run_name="train-{family}",
    retries=2,
    retry_delay_seconds=10,
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
    start: bytes | None = None,
) -> tuple[dict[str, Any], bytes]:
    """List, prepare and train where this runs. Returns a :class:`TrainingRecord` as JSON, and the codec's file."""
    pin_threads(cores())
    files = drawn(itertools.islice(source.files(), limit), most, config.seed)
    batches = [files[at : at + batch_size] for at in range(0, len(files), batch_size)]
    records = [prepare_shard(source, batch, shards, home() / "shards") for batch in batches]
    trained = train.fn(family, records, config, card, start)
    return trained, Path(trained["path"]).read_bytes()


def _shown(family: str) -> Callable[[TrainingState, float, float], None]:
    """Shows how far a training is as an artifact; nowhere, where a worker runs it that Prefect does not watch."""
    if not TaskRunContext.get():
        return lambda state, done, seconds: None
    artifact = create_progress_artifact(0.0, key=f"training-{family}", description=f"training {family}")

    def show(state: TrainingState, done: float, seconds: float) -> None:
        last = state.history[-1] if state.history else {}
        told = [
            f"training {family}: step {state.step:,}",
            *(f"{name} {last[name]:.5g}" for name in last if name != "step"),
        ]
        left = f"{duration(seconds * (1 - done) / done)} left" if 0 < done < 1 else ""
        update_progress_artifact(artifact, round(100 * done, 1), ", ".join(filter(None, [*told, left])))

    return show


def _held_out(count: int) -> np.ndarray:
    """Which pictures, bool (N,), training is validated on: every n-th one."""
    held = np.zeros(count, bool)
    if count:
        held[np.linspace(0, count - 1, max(1, min(HELD_OUT_MOST, int(HELD_OUT * count)))).astype(int)] = True
    return held


def _history(family: str, state: TrainingState) -> str:
    """The validation history as Markdown: curves, and a table."""
    rows = state.history
    names = list(rows[0]) if rows else []
    lines = [f"# Training {family}", ""]
    if len(rows) > 1 and is_watched():  # one point is no curve
        from compressor import plots
        from compressor.pages import data_uri

        lines += [f"![loss and PSNR by step]({data_uri(plots.png(plots.training(rows)), 'png')})", ""]
    lines += ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(f"{float(row[name]):.5g}" for name in names) + " |" for row in rows]
    return "\n".join([*lines, "", f"`{json.dumps({'steps': state.step, 'seconds': round(state.seconds, 1)})}`"])

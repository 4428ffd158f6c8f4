"""Train: prepared shards to one frozen codec file. A retry resumes from the checkpoint, a repetition is a cache hit."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from compressor.shards import ShardRecord, load_shards
from compressor.training import TrainingConfig, TrainingState
from tasks.caching import stage_key
from tasks.home import home, is_watched

VERSION = 1  # raise it when the same shards and configuration give another codec
HELD_OUT = 0.05  # share of the pictures that training is validated on
HELD_OUT_MOST = 512
CALIBRATION = 1024  # training pictures that steps and tables are chosen on


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
    return hashlib.blake2b("".join(record.digest for record in records).encode(), digest_size=16).hexdigest()


def training_key(family: str, records: Sequence[ShardRecord], config: TrainingConfig) -> str:
    """Name of a training: what is learned from what, and how."""
    return stage_key("train", VERSION, _content(records), {"family": family, **asdict(config)})


def _key(context: TaskRunContext, arguments: dict[str, Any]) -> str:
    return training_key(arguments["family"], arguments["records"], arguments["config"])


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
    on_progress: Callable[[TrainingState, float], None] | None = None,
) -> dict[str, Any]:
    """Train a codec on the shards and freeze it. Returns a :class:`TrainingRecord` as JSON."""
    import torch

    from compressor.artifact import identify
    from compressor.families import family as family_named
    from compressor.families import freeze
    from compressor.training import fit, pick_device

    pictures_NHWC = load_shards(records)
    learned, held_out = _split(pictures_NHWC)
    key = training_key(family, records, config)
    checkpoint = codec_folder() / f"{key}.ckpt"
    torch.manual_seed(config.seed)
    network = family_named(family).build()
    artifact_id = create_progress_artifact(0.0, key=f"training-{family}", description=f"training {family}")

    def tell(state: TrainingState, done: float) -> None:
        update_progress_artifact(artifact_id, round(100 * done, 1))
        if on_progress:
            on_progress(state, done)

    device = pick_device()
    get_run_logger().info("training %s on %d pictures on %s", family, len(learned), device.type)
    network, state = fit(
        network, np.moveaxis(learned, -1, 1), np.moveaxis(held_out, -1, 1), config, checkpoint, tell, device
    )
    validation = state.history[-1] if state.history else {}
    full_card = card | {
        "training": asdict(config),
        "pictures": len(learned),
        "pictures_seen": state.pictures,
        "seconds": round(state.seconds, 1),
        "device": device.type,
        "validation": validation,
    }
    chosen = np.random.default_rng(config.seed).permutation(len(learned))[:CALIBRATION]
    data = freeze(family, network.cpu().eval(), learned[np.sort(chosen)], title=family, card=full_card)
    path = codec_folder() / f"{key}.safetensors"
    write_whole(path, data)
    checkpoint.unlink(missing_ok=True)
    create_markdown_artifact(
        _history(family, state), key=f"training-history-{family}", description="validation by step"
    )
    return asdict(
        TrainingRecord(
            path=str(path),
            id=identify(data),
            family=family,
            pictures=len(learned),
            steps=state.step,
            seconds=state.seconds,
            device=device.type,
            validation=validation,
            history=state.history,
        )
    )


def _split(pictures_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation pictures: every n-th one is held out; a single picture is both."""
    count = len(pictures_NHWC)
    if count < 2:
        return pictures_NHWC, pictures_NHWC
    held = np.zeros(count, bool)
    held[np.linspace(0, count - 1, max(1, min(HELD_OUT_MOST, int(HELD_OUT * count)))).astype(int)] = True
    return pictures_NHWC[~held], pictures_NHWC[held]


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


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

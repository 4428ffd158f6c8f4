"""One cell of the experiments: a network, a number of pictures, a loss, and perhaps a codec to go on from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifact import parse
from compressor.errors import SourceError
from compressor.experiments.losses import OWN, WithLoss
from compressor.learning import Learned, held_out, learn, spread
from compressor.training import TrainingConfig, TrainingState

VALIDATION = 64  # pictures, the same for every number of pictures trained on; at most a twentieth of them


@dataclass(frozen=True)
class Cell:
    """What is trained, on how many pictures, how.

    Parameters
    ----------
    family, network
        Family of codecs, and the options its network is built with.
    pictures
        How many pictures, spread evenly over those there are; None: all of them.
    loss
        ``OWN`` or one of ``LOSSES`` of :mod:`compressor.experiments.losses`.
    start
        Id of the codec that is trained further; empty: from the beginning.
    """

    family: str
    pictures: int | None = None
    loss: str = OWN
    network: dict[str, Any] = field(default_factory=dict)
    start: str = ""


def train_cell(
    cell: Cell,
    pictures_NHWC: np.ndarray,
    config: TrainingConfig,
    start: bytes | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
) -> Learned:
    """Train a cell on pictures, uint8 (N, H, W, 3), and freeze it.

    ``start`` is the artifact of ``cell.start``. SourceError where there are fewer pictures than the cell asks for.
    """
    learned, validated = split(pictures_NHWC, cell.pictures)
    return learn(
        cell.family,
        learned,
        validated,
        config,
        cell.network,
        parse(start, cell.start or None) if start is not None else None,
        {"cell": asdict(cell)},
        checkpoint,
        on_progress,
        None if cell.loss == OWN else lambda network: WithLoss(network, cell.loss),
    )


def split(pictures_NHWC: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures to learn from and some to validate on, whichever ``count`` is: a single picture is both."""
    total = len(pictures_NHWC)
    if total < 2:
        return pictures_NHWC, pictures_NHWC
    held = held_out(total, VALIDATION)
    rest = np.flatnonzero(~held)
    if count is not None and count > len(rest):
        raise SourceError(f"the ladder asks for {count:,} pictures to train on, there are {len(rest):,}: leave it out")
    chosen = rest if count is None else rest[spread(len(rest), count)]
    return pictures_NHWC[chosen], pictures_NHWC[held]


def weight_bytes(data: bytes) -> tuple[int, int]:
    """Bytes of an artifact's weights as they are stored, scales included, and what they would be as FP32."""
    artifact = parse(data)
    stored = sum(
        array.nbytes for name, array in artifact.tensors.items() if name.split(".")[0] in ("network", "scale", "packed")
    )
    return stored, 4 * sum(array.size for array in artifact.state().values())

"""One cell of the experiments: a network, a number of pictures, a loss, and perhaps a codec to go on from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.artifact import parse
from compressor.errors import SourceError
from compressor.experiments.losses import OWN, WithLoss
from compressor.families import family, freeze
from compressor.training import TrainingConfig, TrainingState, fit, pick_device

VALIDATION = 64  # pictures, the same for every number of pictures trained on; at most a twentieth of them
CALIBRATION = 1024  # of the pictures trained on: what steps and tables are chosen on


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
        One of :data:`compressor.experiments.losses.LOSSES`.
    start
        Id of the codec that is trained further; empty: from the beginning.
    """

    family: str
    pictures: int | None = None
    loss: str = OWN
    network: dict[str, Any] = field(default_factory=dict)
    start: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Learned:
    """A trained cell: the artifact's bytes, the number of pictures it was trained on, how it went."""

    data: bytes
    pictures: int
    state: TrainingState
    device: str


def train_cell(
    cell: Cell,
    pictures_NHWC: np.ndarray,
    config: TrainingConfig,
    start: bytes | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
    card: dict[str, Any] | None = None,
) -> Learned:
    """Train a cell on pictures, uint8 (N, H, W, 3), and freeze it.

    ``start`` is the artifact of ``cell.start``. SourceError where there are fewer pictures than the cell asks for.
    """
    learned, validated = split(pictures_NHWC, cell.pictures)
    torch.manual_seed(config.seed)
    origin = parse(start, cell.start or None) if start is not None else None
    options = origin.options if origin else cell.network
    chosen_family = family(cell.family)
    network = chosen_family.network(origin).requires_grad_(True) if origin else chosen_family.build(**options)
    trained: Any = network if cell.loss == OWN else WithLoss(network, cell.loss)
    device = pick_device()
    trained, state = fit(
        trained,
        np.moveaxis(learned, -1, 1),
        np.moveaxis(validated, -1, 1),
        config,
        checkpoint,
        on_progress,
        device,
        trained=start is not None,
    )
    network = trained if cell.loss == OWN else trained.network
    chosen = _spread(len(learned), min(CALIBRATION, len(learned)))
    full_card = {
        "cell": cell.to_dict(),
        "training": asdict(config),
        "pictures": len(learned),
        "pictures_seen": state.pictures,
        "seconds": round(state.seconds, 1),
        "device": device.type,
        **(card or {}),
    }
    data = freeze(cell.family, network.cpu().eval(), learned[chosen], options, card=full_card)
    return Learned(data, len(learned), state, device.type)


def split(pictures_NHWC: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures to learn from and some to validate on, whichever ``count`` is: a single picture is both."""
    total = len(pictures_NHWC)
    if total < 2:
        return pictures_NHWC, pictures_NHWC
    held = np.zeros(total, bool)
    held[_spread(total, max(1, min(VALIDATION, total // 20)))] = True
    rest = np.flatnonzero(~held)
    if count is not None and count > len(rest):
        raise SourceError(f"the ladder asks for {count:,} pictures to train on, there are {len(rest):,}: leave it out")
    chosen = rest if count is None else rest[_spread(len(rest), count)]
    return pictures_NHWC[chosen], pictures_NHWC[held]


def _spread(total: int, count: int) -> np.ndarray:
    """``count`` of ``total`` indices, evenly, in order."""
    return (np.arange(count) * total // count).astype(int)


def weight_bytes(data: bytes) -> tuple[int, int]:
    """Bytes of an artifact's weights as they are stored, scales included, and what they would be as FP32."""
    artifact = parse(data)
    stored = sum(
        array.nbytes for name, array in artifact.tensors.items() if name.split(".")[0] in ("network", "scale", "packed")
    )
    return stored, 4 * sum(array.size for array in artifact.state().values())

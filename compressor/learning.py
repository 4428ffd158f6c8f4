"""A codec from pictures: a network of a family trained and frozen into an artifact."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.artifact import Artifact
from compressor.devices import pick_device
from compressor.families import family as family_named
from compressor.families import freeze
from compressor.training import TrainingConfig, TrainingState, fit

HELD_OUT = 20  # one picture in so many is held out, to validate on
CALIBRATION = 1024  # training pictures that steps and tables are chosen on


@dataclass(frozen=True)
class Learned:
    """A trained codec: the artifact's bytes, the number of pictures it was trained on, how it went, on what."""

    data: bytes
    pictures: int
    state: TrainingState
    device: str


def learn(
    family: str,
    pictures_NHWC: np.ndarray,
    validation_NHWC: np.ndarray,
    config: TrainingConfig,
    options: dict[str, Any] | None = None,
    start: Artifact | None = None,
    card: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
    loss: Callable[[Any], nn.Module] | None = None,
    weights: str | None = None,
) -> Learned:
    """Train a codec and freeze it.

    Parameters
    ----------
    pictures_NHWC, validation_NHWC
        uint8 pictures to learn from and to validate on.
    options
        Of a new network; the family's own where None. Not looked at with ``start``.
    start
        Codec whose network is trained further.
    card
        For the model card, beside what is known here.
    checkpoint, on_progress
        See :func:`compressor.training.fit`.
    loss
        Makes of a network what is trained instead, which has it as ``network``.
    weights
        Type that they are stored in, see :func:`compressor.families.freeze`.

    Raises
    ------
    CodecError
        There is no such family, or ``start`` does not fit it.
    ValueError
        The checkpoint is of another network or configuration.
    LatentpackError
        The training diverged before anything was learned.
    """
    torch.manual_seed(config.seed)
    chosen = family_named(family)
    network = chosen.network(start).requires_grad_(True) if start else chosen.build(**(options or {}))
    options = start.options if start else options or {}
    device = pick_device()
    trained: Any
    trained, state = fit(
        loss(network) if loss else network,
        np.moveaxis(pictures_NHWC, -1, 1),
        np.moveaxis(validation_NHWC, -1, 1),
        config,
        checkpoint,
        on_progress,
        device,
        trained=start is not None,
    )
    count = len(pictures_NHWC)
    full_card = {
        **(card or {}),
        "training": asdict(config),
        "pictures": count,
        "pictures_seen": state.pictures,
        "seconds": round(state.seconds, 1),
        "device": device.type,
        "validation": state.kept,
    }
    if start:
        before = dict(start.metadata.get("card", {}))
        before.pop("start", None)  # it has its own in its own card
        full_card["start"] = {"id": start.id, "name": start.name, "card": before}
    network = (trained.network if loss else trained).cpu().eval()
    calibration_NHWC = pictures_NHWC[spread(count, min(CALIBRATION, count))]
    data = freeze(family, network, calibration_NHWC, options, card=full_card, weights=weights)
    return Learned(data, count, state, device.type)


def held_out(total: int, most: int) -> np.ndarray:
    """Which of ``total`` pictures training is validated on, bool (N,): a twentieth, at most ``most``, one at least."""
    held = np.zeros(total, bool)
    held[spread(total, min(total, max(1, min(most, total // HELD_OUT))))] = True
    return held


def spread(total: int, count: int) -> np.ndarray:
    """``count`` of ``total`` indices, evenly, in order."""
    return (np.arange(count) * total // count).astype(int)

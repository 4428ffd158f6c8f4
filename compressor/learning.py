"""A codec from pictures: a network of a family trained and frozen into an artifact."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.artifact import Artifact, dump, parse
from compressor.baselines import STANDARD
from compressor.codec import artifact_bytes, naming, released
from compressor.devices import pick_device
from compressor.errors import CodecError
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
    start: Artifact | bytes | str | os.PathLike[str] | None = None,
    card: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
    loss: Callable[[Any], nn.Module] | None = None,
    weights: str | None = None,
) -> Learned:
    """Train a codec and freeze it. One that goes on from another is that other where no validation found it better.

    Parameters
    ----------
    pictures_NHWC, validation_NHWC
        uint8 pictures (N, H, W, 3) to learn from and to validate on, sides multiples of 32 (of v1 to v4 fewer).
    options
        Of a new network; the family's own where None. Not looked at with ``start``.
    start
        Codec whose network is trained further: its name, path or ``s3://`` address, its bytes or artifact.
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
        There is no such family, ``start`` does not fit it, or the pictures are of another shape or type of numbers.
    CheckpointError
        The checkpoint is of another network or configuration.
    LatentpackError
        The training diverged before anything was learned.
    """
    torch.manual_seed(config.seed)
    chosen = family_named(family)
    before = None if start is None else _artifact(start)
    network = chosen.network(before).requires_grad_(True) if before else chosen.build(**(options or {}))
    _check("pictures_NHWC", pictures_NHWC, network.multiple)
    _check("validation_NHWC", validation_NHWC, network.multiple)
    options = before.options if before else options or {}
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
        trained=before is not None,
    )
    count = len(pictures_NHWC)
    if before and not state.kept["step"]:
        return Learned(dump(before.metadata, before.tensors), count, state, device.type)
    full_card = {
        **(card or {}),
        "training": asdict(config),
        "pictures": count,
        "pictures_seen": state.pictures,
        "seconds": round(state.seconds, 1),
        "device": device.type,
        "validation": state.kept,
    }
    if before:
        its_card = dict(before.metadata.get("card", {}))
        its_card.pop("start", None)  # it has its own in its own card
        full_card["start"] = {"id": before.id, "name": before.name, "card": its_card}
    network = (trained.network if loss else trained).cpu().eval()
    calibration_NHWC = pictures_NHWC[spread(count, min(CALIBRATION, count))]
    data = freeze(family, network, calibration_NHWC, options, card=full_card, weights=weights)
    return Learned(data, count, state, device.type)


def held_out(total: int, most: int, together: int = 1) -> np.ndarray:
    """Which of ``total`` pictures training is validated on, bool (N,): a twentieth, at most ``most``, one at least.

    Up to ``together``, such as squares of one picture, are held out side by side.
    """
    together = max(1, min(together, most, total // HELD_OUT))
    groups = -(-total // together)
    held = np.zeros(groups, bool)
    held[spread(groups, min(groups, max(1, min(most // together, groups // HELD_OUT))))] = True
    return np.repeat(held, together)[:total]


def spread(total: int, count: int) -> np.ndarray:
    """``count`` of ``total`` indices, evenly, in order."""
    return (np.arange(count) * total // count).astype(int)


def origin(name: str) -> bytes:
    """The artifact of a codec to go on from, by name, path or ``s3://`` address. CodecError where there is none."""
    if name in STANDARD:
        raise CodecError(
            f"{name} is a standard format, it learns nothing: start from {', '.join(released())} or a file"
        )
    return artifact_bytes(name)


def _artifact(start: Artifact | bytes | str | os.PathLike[str]) -> Artifact:
    if isinstance(start, Artifact):
        return start
    if isinstance(start, bytes):
        return parse(start)
    if not isinstance(start, (str, os.PathLike)):
        kind = type(start).__name__
        raise TypeError(f"start is a codec's name, path or bytes, or what compressor.artifact.parse gives, not {kind}")
    name = os.fspath(start)
    data = origin(name)
    with naming(name):
        return parse(data)


def _check(name: str, pictures: np.ndarray, multiple: int) -> None:
    """CodecError, before hours are spent on it, where something is no set of pictures that a network can learn from.

    Floats from 0 to 1 would train without a word, and on nearly nothing.
    """
    wanted = f"{name} is to be a NumPy array of uint8, (pictures, height, width, 3), of a picture or more"
    if not isinstance(pictures, np.ndarray):
        raise CodecError(f"{wanted}, not {type(pictures).__name__}; see numpy.stack")
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not pictures.size:
        raise CodecError(f"{wanted}, not of {pictures.dtype} and shape {pictures.shape}")
    height, width = pictures.shape[1:3]
    if height % multiple or width % multiple:
        raise CodecError(
            f"{name} has pictures of {width} x {height}; of this network sides are multiples of {multiple}"
        )

"""A larger network of a trained one, which starts where that one ended, for training to go on from.

What is new changes nothing at first (Chen et al., Net2Net, 2016): blocks are the identity, and nothing reads new
channels. New latents are linear: the directions of 16x16 patches in which a linear transform of a picture tells most of
what the codec loses. Not training itself (see ``training.py``), nor freezing.
"""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.networks.blocks import ResidualBlock
from compressor.networks.hyperprior import LEVELS_PER_UNIT, SCALE_LEVELS, SCALE_MAX, SCALE_MIN, Hyperprior
from compressor.networks.qualities import evening, quality_to_lambda
from compressor.networks.steps import STEPS

_QUALITY = 44.0  # where losses are looked at: high enough that most of them are what the transform does not carry
_CODED = 1e-5  # share of nonzero residuals from which on a latent counts as coded
_BATCH = 64
_RIDGE = 1e-4  # of the mean variance of a pixel


class RateAlone(nn.Module):
    """Trains what codes latents, and leaves latents and the pictures made of them as they are.

    New latents have neither means nor scales yet. Trained with all the rest at once, a rate that is not learned
    yet would put an end to them.
    """

    def __init__(self, network: Hyperprior) -> None:
        super().__init__()
        self.network = network
        for part in (network.analysis, network.synthesis, network.gain):
            part.requires_grad_(False)

    def compile_repeated(self) -> None:
        """See :class:`compressor.training.Trainable`."""
        self.network.compile_repeated()

    def draw(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`compressor.training.Trainable`."""
        return self.network.draw(x_BCHW, generator)

    def training_loss(self, x_BCHW: Tensor, quality_B: Tensor, z_noise: Tensor, y_noise: Tensor) -> Tensor:
        """See :class:`compressor.training.Trainable`."""
        _, bits_B = self.network.coded(x_BCHW, quality_B, (z_noise, y_noise))
        return (evening(quality_to_lambda(quality_B)) * bits_B).mean() / x_BCHW[0, 0].numel()

    def validation(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """See :class:`compressor.training.Trainable`."""
        return self.network.validation(x_BCHW)


@torch.no_grad()
def grow(old: Hyperprior, settings: dict[str, Any], pictures_NCHW: Tensor) -> Hyperprior:
    """A network of more blocks or channels that gives the latents and pictures of ``old``, and has more latents to use.

    Latents that ``old`` never codes are left out; their place, and what more there is, goes to new ones.

    Parameters
    ----------
    old
        Trained V5.
    settings
        Options of the new network: nothing may be smaller but ``latents``, and ``shortcut`` must be set.
    pictures_NCHW
        uint8 pictures of the training, a few thousand: what is coded of them and what is lost is looked at.

    Raises
    ------
    ValueError
        The new network is smaller, or has no shortcut.
    """
    old.eval()
    new = Hyperprior(**settings).eval()
    if new.analysis.shortcut is None or new.synthesis.shortcut is None:
        raise ValueError("new latents need a network with a shortcut")
    coded_M, patches_NP, lost_NP = _looked_at(old, pictures_NCHW)
    kept, places, fresh = _arranged(coded_M, new.latents)
    for name, module in new.named_modules():
        if isinstance(module, ResidualBlock) and f"{name}.leave.weight" not in old.state_dict():
            _make_identity(module)
    for shortcut in (new.analysis.shortcut, new.synthesis.shortcut):
        shortcut.weight.zero_()
    _copy(old, new, kept, places)

    transform_KP, basis_PK = _directions(patches_NP, lost_NP, len(fresh))
    # In no order, so that every step of the context has strong and weak ones.
    fresh = fresh[torch.randperm(len(fresh), generator=torch.Generator().manual_seed(0))]
    new.analysis.shortcut.weight[fresh, :, 0, 0] = transform_KP
    new.synthesis.shortcut.weight[:, fresh, 0, 0] = basis_PK
    scale_QK = (patches_NP @ transform_KP.T).std(dim=0) * new.gain.values[:, fresh].exp()
    level_QK = (SCALE_LEVELS - 1) * (scale_QK / SCALE_MIN).log() / math.log(SCALE_MAX / SCALE_MIN)
    new.scales.level.values[:, fresh] = level_QK.clamp(2, SCALE_LEVELS - 8) / LEVELS_PER_UNIT
    return new


@torch.no_grad()
def deepen(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the weights of a network with fewer residual blocks: those that they lack are the identity.

    Raises
    ------
    ValueError
        The weights are of a network that differs in more than that.
    """
    try:
        lacking, unknown = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    for name, module in network.named_modules():
        if isinstance(module, ResidualBlock) and f"{name}.leave.weight" in lacking:
            _make_identity(module)
            lacking = [key for key in lacking if not key.startswith(f"{name}.")]
    if lacking or unknown:
        raise ValueError(f"weights do not fit: {', '.join((*lacking, *unknown))}")


def _make_identity(block: ResidualBlock) -> None:
    for parameter in (*block.leave.parameters(), *block.contract.parameters()):
        parameter.zero_()


def _looked_at(network: Hyperprior, pictures_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which latents are coded, bool (M,); and 16x16 patches of pictures and of what is lost of them, (N, 768) each."""
    used, patches, lost = [], [], []
    for part_BCHW in pictures_NCHW.split(_BATCH):
        x_BCHW = part_BCHW.float() / 255
        quality_B = torch.full((len(x_BCHW),), _QUALITY)
        _, r, _, y = network.quantize(network.first_features(x_BCHW, False), quality_B, False)
        used.append((r != 0).float().mean(dim=(0, 2, 3)))
        patches.append(_patches(x_BCHW - 0.5))
        lost.append(_patches(x_BCHW - network.synthesis(y, quality_B)))
    return torch.stack(used).mean(dim=0) > _CODED, torch.cat(patches), torch.cat(lost)


def _patches(x_BCHW: Tensor) -> Tensor:
    """(N, 768), in the order of the shortcuts' weights."""
    return F.pixel_unshuffle(F.pixel_unshuffle(x_BCHW, 8), 2).permute(0, 2, 3, 1).flatten(0, 2)


def _arranged(coded_M: Tensor, latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of coded latents, where they go among ``latents``, and those of new ones: each stays in its quarter."""
    before, after = (torch.arange(count) * STEPS // count for count in (len(coded_M), latents))
    kept, places, fresh = [], [], []
    for quarter in range(STEPS):
        coded = torch.nonzero(coded_M & (before == quarter)).flatten()
        room = torch.nonzero(after == quarter).flatten()
        if len(coded) > len(room):
            raise ValueError(f"{latents} latents are too few: {len(coded)} of quarter {quarter} are in use")
        kept.append(coded)
        places.append(room[: len(coded)])
        fresh.append(room[len(coded) :])
    return torch.cat(kept), torch.cat(places), torch.cat(fresh)


def _copy(old: Hyperprior, new: Hyperprior, kept: Tensor, places: Tensor) -> None:
    """Put ``old``'s weights in their places in ``new``: latents ``kept`` at ``places``, all else at the same index."""
    before, after = old.state_dict(), new.state_dict()
    last_before, last = old.means.step_blocks + 1, new.means.step_blocks + 1
    for name, target in after.items():
        step, leaves_step = re.match(r"means\.steps\.(\d)\.(\d)\.(.*)", name), False
        source = before.get(name)
        if step:
            leaves_step = int(step[2]) == last
            index = last_before if leaves_step else int(step[2])
            is_new = not leaves_step and index >= last_before
            source = None if is_new else before[f"means.steps.{step[1]}.{index}.{step[3]}"]
        if source is None:
            continue
        from_, to = ([torch.arange(size) for size in source.shape] for _ in range(2))
        if leaves_step or name.startswith(("analysis.leave", "analysis.shortcut", "scales.leave")):
            from_[0], to[0] = kept, places
            target.zero_()  # of new latents nothing is known yet
        reads_latents = name.startswith(
            ("synthesis.enter", "synthesis.shortcut", "hyper_analysis.enter", "scales.context")
        )
        if name in ("scales.level.values", "gain.values") or (reads_latents and target.ndim == 4):
            from_[1], to[1] = kept, places
        if step and name.endswith(".0.weight") and step[1] != "0":
            features = torch.arange(source.shape[1] - old.latents)
            from_[1] = torch.cat((features, len(features) + kept))
            to[1] = torch.cat((features, len(features) + places))
        if any(len(index) and int(index.max()) >= size for index, size in zip(to, target.shape, strict=True)):
            raise ValueError(f"{name} would shrink from {tuple(source.shape)} to {tuple(target.shape)}")
        if target.ndim == 4:
            target[to[0]] = 0  # what is old reads nothing that is new
        target[torch.meshgrid(*to, indexing="ij")] = source[torch.meshgrid(*from_, indexing="ij")]
    new.load_state_dict(after)


def _directions(patches_NP: Tensor, lost_NP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Transform (count, P) to coefficients and basis (P, count) back, by reduced-rank regression of what is lost."""
    patches, lost = patches_NP.double(), lost_NP.double()
    covariance = patches.T @ patches
    ridge = _RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    slope_PP = torch.linalg.solve(covariance + ridge, patches.T @ lost)
    _, vectors = torch.linalg.eigh(slope_PP.T @ covariance @ slope_PP)
    basis = vectors.flip(1)[:, :count]
    return (slope_PP @ basis).T.float(), basis.float()

"""What hyperlatents are expected to be: the tables that code them, and the density that training takes.

Quality alone says it (:class:`HyperlatentPrior`), or the hyperlatents that are known already say more
(:class:`ContextPrior`).
"""

import torch
from torch import Tensor, nn

from compressor.networks.blocks import floor_ste
from compressor.networks.integer import ACTIVATION_MAX, OVER_ACTIVATIONS, OVER_INTEGERS, IntegerConv, activate
from compressor.networks.logistic import unit_interval
from compressor.networks.qualities import QUALITY_STEPS, QualityCurve
from compressor.networks.steps import STEPS, step_masks

HYPER_MAX = 31
QUALITY_GROUP = 8  # quality steps that share tables of hyperlatents without a context
WIDTH_LEVELS = 40
WIDTHS_PER_UNIT = 8  # of the logarithm of a logistic's width
WIDTH_ZERO = 24  # the level whose widths start at 1
PLACES = 8  # to which a logistic's place is told, of the distance between two integers


class HyperlatentPrior(nn.Module):
    """Distribution of the hyperlatents: a logistic for each channel, its place and width moving with the quality."""

    steps = 1
    symbol_max = HYPER_MAX

    def __init__(self, hyper: int) -> None:
        super().__init__()
        self.table_count = QUALITY_STEPS // QUALITY_GROUP * hyper
        self.hyper = hyper
        self.location = QualityCurve(hyper)
        self.log_width = QualityCurve(hyper)

    def forward(self, value_BCHW: Tensor, z_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """Mass of the unit interval around ``value_BCHW``, where ``z_BCHW`` are the hyperlatents that a reader has."""
        return unit_interval(value_BCHW - self.location(quality_B), self.log_width(quality_B).exp())

    def tables(self, step: int, known_BCHW: Tensor, quality_B: Tensor) -> tuple[Tensor, Tensor]:
        """Table of each hyperlatent, and what it is coded less: integers of the shape of ``known_BCHW``.

        ``known_BCHW`` holds the hyperlatents of earlier steps and 0 elsewhere.
        """
        row_B = torch.div(quality_B, QUALITY_GROUP, rounding_mode="floor") * self.hyper
        channel = torch.arange(self.hyper, device=known_BCHW.device, dtype=known_BCHW.dtype)
        table = row_B[:, None, None, None] + channel[:, None, None]
        return table.expand_as(known_BCHW), torch.zeros_like(known_BCHW)

    def densities(self) -> Tensor:
        """What the tables hold by the trained density: (tables, 2 * symbol_max + 1)."""
        device = self.location.values.device
        quality_G = torch.arange(QUALITY_GROUP // 2, QUALITY_STEPS, QUALITY_GROUP, device=device)
        value_N = torch.arange(-HYPER_MAX, HYPER_MAX + 1, dtype=torch.float32, device=device)
        mass_GZ1N = HyperlatentPrior.forward(self, value_N, value_N, quality_G)
        return mass_GZ1N.flatten(0, 2)

    def all_tables(self, z_BCHW: Tensor, quality_B: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`tables` of every hyperlatent, at the step that codes it."""
        known, table, offset = (torch.zeros_like(z_BCHW) for _ in range(3))
        for step, mask in enumerate(step_masks(z_BCHW.shape[1:], z_BCHW.device, self.steps)):
            table_of, offset_of = self.tables(step, known, quality_B)
            table, offset = torch.where(mask, table_of, table), torch.where(mask, offset_of, offset)
            known = torch.where(mask, z_BCHW, known)
        return table, offset


class ContextStep(nn.Module):
    """What hyperlatents that are known tell of others: by how much places and widths move. Integers."""

    def __init__(self, hyper: int, features: int) -> None:
        super().__init__()
        self.enter = IntegerConv(hyper, features, 3, HYPER_MAX)
        self.quality = QualityCurve(features, 1.0, 1.0)
        self.leave = IntegerConv(features, 2 * hyper, 1, ACTIVATION_MAX)
        nn.init.zeros_(self.leave.weight)

    def forward(self, known_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """(B, Z, 2, H, W), in the units of the accumulator."""
        bias = self.quality.integers(quality_B, OVER_INTEGERS)
        x = activate(self.enter(known_BCHW) + bias, OVER_INTEGERS).to(known_BCHW.dtype)
        return self.leave(x).unflatten(1, (-1, 2))


class ContextPrior(HyperlatentPrior):
    """The same in four steps, each of which moves places and widths by what the steps before it have told.

    In integers, as :class:`ScaleNetwork`. Steps are those of the latents. There is a table for each width and place
    within a unit; whole units are taken off before coding.
    """

    steps = STEPS
    symbol_max = 2 * HYPER_MAX

    def __init__(self, hyper: int, features: int) -> None:
        super().__init__(hyper)
        self.table_count = WIDTH_LEVELS * PLACES
        self.contexts = nn.ModuleList(ContextStep(hyper, features) for _ in range(STEPS - 1))

    def forward(self, value_BCHW: Tensor, z_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        known, probability = torch.zeros_like(z_BCHW), torch.zeros_like(z_BCHW)
        for step, mask in enumerate(step_masks(z_BCHW.shape[1:], z_BCHW.device, self.steps)):
            place, level = self._place_and_level(step, known, quality_B)
            mass = unit_interval(value_BCHW - place / PLACES, level_to_width(level))
            probability = torch.where(mask, mass, probability)
            known = torch.where(mask, z_BCHW, known)
        return probability

    def tables(self, step: int, known_BCHW: Tensor, quality_B: Tensor) -> tuple[Tensor, Tensor]:
        place, level = self._place_and_level(step, known_BCHW, quality_B)
        offset = torch.div(place + PLACES // 2, PLACES, rounding_mode="floor")
        table = level * PLACES + place + PLACES // 2 - offset * PLACES
        return table.expand_as(known_BCHW), offset.expand_as(known_BCHW)

    def densities(self) -> Tensor:
        value_N = torch.arange(-self.symbol_max, self.symbol_max + 1, dtype=torch.float64)
        place_P1 = torch.arange(PLACES, dtype=torch.float64)[:, None] - PLACES // 2
        width_L11 = level_to_width(torch.arange(WIDTH_LEVELS, dtype=torch.float64))[:, None, None]
        return unit_interval(value_N - place_P1 / PLACES, width_L11).flatten(0, 1)

    def _place_and_level(self, step: int, known_BCHW: Tensor, quality_B: Tensor) -> tuple[Tensor, Tensor]:
        """Place in parts of 1/``PLACES`` and level of the width, integers (B, Z, H, W) or (B, Z, 1, 1)."""
        place = self.location.integers(quality_B, OVER_ACTIVATIONS)
        width = self.log_width.integers(quality_B, OVER_ACTIVATIONS)
        if step:
            more = self.contexts[step - 1](known_BCHW, quality_B)
            place, width = place + more[:, :, 0], width + more[:, :, 1]
        place = floor_ste(place * (PLACES / OVER_ACTIVATIONS) + 0.5).clamp(-PLACES * HYPER_MAX, PLACES * HYPER_MAX)
        level = floor_ste(width * (WIDTHS_PER_UNIT / OVER_ACTIVATIONS)) + WIDTH_ZERO
        return place.to(known_BCHW.dtype), level.clamp(0, WIDTH_LEVELS - 1).to(known_BCHW.dtype)


def level_to_width(level: Tensor) -> Tensor:
    """Width (a logistic's parameter s) in the middle of those that come under ``level``."""
    return ((level - WIDTH_ZERO + 0.5) / WIDTHS_PER_UNIT).exp()

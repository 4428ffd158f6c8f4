"""V5: an autoencoder at low resolution with a hyperprior, a four-step context and one set of weights for all rates.

    x -> analysis -> y (1/16)          y is coded as r = round((y - mean) * gain), mean known to the decoder
    y -> hyper-analysis -> z (1/32)    z is coded first and tells the decoder what to expect of y
    z, r so far -> scales, in integers -> which frequency table codes each r
    z, y so far -> means, in floating point -> never reach a table

Means and gains follow Minnen et al. (2018) and Cui et al. (2021), the four steps Li et al. (DCVC-DC, 2023), the
low-resolution trunk of depthwise blocks Jia et al. (DCVC-RT, 2025). The scales are an integer network, so that a reader
on any machine picks the same tables (Ballé, Johnston and Minnen, 2019).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from compressor.networks.blocks import (
    ResidualBlock,
    ShuffledConv,
    UnshuffledConv,
    as_multiplied,
    floor_ste,
    full_precision,
    round_ste,
    to_bytes,
)
from compressor.networks.hyperlatents import HYPER_MAX, ContextPrior, HyperlatentPrior
from compressor.networks.integer import ACTIVATION_MAX, OVER_ACTIVATIONS, OVER_INTEGERS, IntegerConv, activate
from compressor.networks.logistic import bits, unit_interval
from compressor.networks.qualities import (
    LAMBDA_MAX,
    LAMBDA_MIN,
    QualityCurve,
    draw_qualities,
    evening,
    quality_to_lambda,
)
from compressor.networks.steps import STEPS, beside_step, of_step, with_step

SCALE_LEVELS = 64
SCALE_MIN, SCALE_MAX = 0.11, 32.0
LEVELS_PER_UNIT = 8  # of the scale network's output
SKIP_LEVEL = 4  # symbols under this level (a scale of about 0.15) are zero by definition and not coded
RESIDUAL_MAX = 127
CONTEXT_MAX = 31  # what the scale network sees of a residual's magnitude


def level_to_scale(level: Tensor) -> Tensor:
    """Standard deviation of the residuals coded under a scale level 0..63."""
    return SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (level / (SCALE_LEVELS - 1))


Block = Callable[[int], nn.Module]


class FirstFeatures(NamedTuple):
    """What the analysis makes of a picture whatever the quality."""

    trunk: Tensor  # (B, trunk, H/8, W/8)
    direct: Tensor  # (B, M, H/16, W/16): latents by the shortcut, of no channels without one


class Analysis(nn.Module):
    """Picture (B, 3, H, W) in [0, 1] -> latents (B, M, H/16, W/16)."""

    def __init__(
        self, trunk: int, deep: int, latents: int, deep_blocks: int, blocks: int, deep_block: Block, shortcut: bool
    ) -> None:
        super().__init__()
        self.enter = UnshuffledConv(3, trunk, 8)
        self.first = ResidualBlock(trunk)
        self.gain = QualityCurve(trunk)
        self.rest = nn.Sequential(*(ResidualBlock(trunk) for _ in range(blocks - 1)))
        self.down = UnshuffledConv(trunk, deep, 2)
        self.deep = deep_block(deep)  # apart from those behind it, as in artifacts that have one alone
        self.deeper = nn.Sequential(*(deep_block(deep) for _ in range(deep_blocks - 1)))
        self.leave = nn.Conv2d(deep, latents, 1)
        self.shortcut = UnshuffledConv(3, latents, 8, 2, bias=False) if shortcut else None

    def first_features(self, x_BCHW: Tensor) -> FirstFeatures:
        """What is the same for every quality."""
        x_BCHW = as_multiplied(x_BCHW - 0.5)
        trunk = self.first(self.enter(x_BCHW))
        direct = self.shortcut(x_BCHW) if self.shortcut else trunk[:, :0, ::2, ::2]
        return FirstFeatures(trunk, direct)

    def forward(self, x_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        return self.latents(self.first_features(x_BCHW), quality_B)

    def latents(self, first: FirstFeatures, quality_B: Tensor) -> Tensor:
        """Latents from what :meth:`first_features` gave."""
        x = self.rest(self.gain.scaled(first.trunk, quality_B))
        y = self.leave(self.deeper(self.deep(self.down(x))))
        return y + first.direct if self.shortcut else y


class Synthesis(nn.Module):
    """Latents (B, M, H/16, W/16) -> picture (B, 3, H, W), float32, nominally in [0, 1]."""

    def __init__(
        self, trunk: int, deep: int, latents: int, deep_blocks: int, blocks: int, deep_block: Block, shortcut: bool
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(latents, deep, 1)
        self.deep = nn.Sequential(*(deep_block(deep) for _ in range(deep_blocks)))
        self.up = nn.Conv2d(deep, 4 * trunk, 1)
        self.gain = QualityCurve(trunk)
        self.blocks = nn.Sequential(*(ResidualBlock(trunk) for _ in range(blocks)))
        self.leave = ShuffledConv(trunk, 3, 8)
        self.shortcut = ShuffledConv(latents, 3, 8, 2, bias=False) if shortcut else None

    def forward(self, y_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        x = self.up(self.deep(self.enter(y_BCHW)))
        x = self.gain.scaled(F.pixel_shuffle(x, 2), quality_B)
        # In bfloat16 a sum above 0.5 would have steps of 1/256, as coarse as a pixel's.
        picture = self.leave(self.blocks(x)).float().add_(0.5)
        return picture.add_(self.shortcut(y_BCHW)) if self.shortcut else picture


class HyperAnalysis(nn.Module):
    """Latents (B, M, H, W) -> hyperlatents (B, Z, H/2, W/2), before rounding."""

    def __init__(self, latents: int, hyper: int, features: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(latents, features, 1)
        self.gain = QualityCurve(features, -0.7, 0.7)
        self.block = ResidualBlock(features)
        self.leave = UnshuffledConv(features, hyper, 2)

    def forward(self, y_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        return self.leave(self.block(self.gain.scaled(self.enter(y_BCHW), quality_B)))


class MeanNetwork(nn.Module):
    """What to expect of the latents, from the hyperlatents and the latents known so far. Floating point."""

    def __init__(self, latents: int, hyper: int, features: int, step_blocks: int) -> None:
        super().__init__()
        self.step_blocks = step_blocks
        self.enter = nn.Conv2d(hyper, features, 1)
        self.gain = QualityCurve(features)
        self.coarse = ResidualBlock(features)
        self.up = nn.Conv2d(features, 4 * features, 1)
        self.fine = ResidualBlock(features)
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(features + (latents if step else 0), features, 1),
                *(ResidualBlock(features) for _ in range(step_blocks)),
                nn.Conv2d(STEPS * features, latents, 1, groups=STEPS),
            )
            for step in range(STEPS)
        )

    def features(self, z_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        x = self.coarse(self.gain.scaled(self.enter(z_BCHW), quality_B))
        return self.fine(F.pixel_shuffle(self.up(x), 2))

    def forward(self, step: int, features_BCHW: Tensor, known_BCHW: Tensor) -> Tensor:
        """Means (B, M, H/2, W/2) of one step's latents; ``known_BCHW`` holds those decoded so far and 0 elsewhere."""
        x = torch.cat((features_BCHW, known_BCHW), dim=1) if step else features_BCHW
        *layers, leave = self.steps[step].children()
        for layer in layers:
            x = layer(x)
        return leave(beside_step(x, step))


class ScaleNetwork(nn.Module):
    """Table index of every residual, from integers alone: the hyperlatents and the residuals known so far."""

    def __init__(self, latents: int, hyper: int, features: int) -> None:
        super().__init__()
        self.enter = IntegerConv(hyper, features, 3, HYPER_MAX)
        self.quality = QualityCurve(features, -1.0, 1.0)
        self.up = IntegerConv(features, 4 * features, 1, ACTIVATION_MAX)
        self.hyper = nn.ModuleList(IntegerConv(features, features, 1, ACTIVATION_MAX) for _ in range(STEPS))
        self.context = nn.ModuleList(IntegerConv(latents, features, 3, CONTEXT_MAX) for _ in range(STEPS - 1))
        self.leave = nn.ModuleList(
            IntegerConv(STEPS * features, latents, 1, ACTIVATION_MAX, groups=STEPS) for _ in range(STEPS)
        )
        self.level = QualityCurve(latents, 1.0, 4.0)

    def features(self, z_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """Integer activations (B, F, 2H, 2W) from integer hyperlatents (B, Z, H, W)."""
        accumulator = self.enter(z_BCHW)
        bias = self.quality.integers(quality_B, OVER_INTEGERS).to(accumulator.dtype)
        x = activate(accumulator + bias, OVER_INTEGERS).to(z_BCHW.dtype)
        return activate(F.pixel_shuffle(self.up(x), 2), OVER_ACTIVATIONS).to(z_BCHW.dtype)

    def forward(self, step: int, features_BCHW: Tensor, known_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """Levels 0..63 of one step's residuals (B, M, H/2, W/2), integers in a float tensor.

        ``known_BCHW`` holds those decoded so far and 0 elsewhere.
        """
        accumulator = self.hyper[step](features_BCHW)
        if step:
            magnitude = known_BCHW.abs().clamp(max=CONTEXT_MAX)
            context = self.context[step - 1](magnitude)
            accumulator = accumulator + context * (OVER_ACTIVATIONS // OVER_INTEGERS)
        activations = activate(accumulator, OVER_ACTIVATIONS).to(features_BCHW.dtype)
        accumulator = self.leave[step](beside_step(activations, step))
        bias = self.level.integers(quality_B, OVER_ACTIVATIONS).to(accumulator.dtype)
        level = floor_ste((accumulator + bias) * (LEVELS_PER_UNIT / OVER_ACTIVATIONS))
        return level.clamp(0, SCALE_LEVELS - 1).to(features_BCHW.dtype)


def residual_probability(residual: Tensor, scale: Tensor) -> Tensor:
    """Mass that a logistic of mean 0 and standard deviation ``scale`` puts on the unit interval around ``residual``.

    Of residuals under one level some are wider than others: a Gaussian took 0.5 to 1.9 % more bits than counted tables,
    this 0.2 % more to 0.2 % fewer.
    """
    return unit_interval(residual, scale * (math.sqrt(3) / math.pi))


class CodedStep(nn.Module):
    """Residuals of latents that are ``off_BChw`` from their means, rounded, and their bits (B,)."""

    def forward(
        self, off_BChw: Tensor, level: Tensor, gain: Tensor, noise_BChw: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        residual = off_BChw * gain
        coded = level >= SKIP_LEVEL
        rounded = round_ste(residual.clamp(-RESIDUAL_MAX, RESIDUAL_MAX)) * coded
        noisy = rounded if noise_BChw is None else residual + noise_BChw
        cost = bits(residual_probability(noisy, level_to_scale(level)))
        return rounded, (cost * coded if noise_BChw is None else cost).sum(dim=(1, 2, 3))


class Hyperprior(nn.Module):
    """The network of V5, and of V6 by another ``deep_block``.

    Parameters
    ----------
    trunk, deep
        Channels of the trunk at 1/8 and at 1/16 of the picture's resolution.
    latents, hyper
        Channels of y (1/16), a multiple of four, and of z (1/32).
    features, scale_features
        Channels inside the mean network and inside the integer scale network.
    deep_blocks, blocks
        Blocks of the synthesis at 1/16 and at 1/8.
    analysis_deep_blocks, analysis_blocks
        The same of the analysis; 1 or more.
    hyper_features
        Channels inside the hyper-analysis; as many as latents where None.
    step_blocks
        Blocks of the mean network for each of the four steps.
    prior_features
        Channels inside the integer network that tells what to expect of hyperlatents from those known so far; 0: each
        channel has one distribution.
    shortcut
        Add a linear transform of 16x16 patches to the analysis and one to the synthesis: detail that the narrow trunk
        does not carry.
    deep_block
        What the blocks at 1/16 are, made from a number of channels.
    """

    multiple = 32

    def __init__(
        self,
        trunk: int = 128,
        deep: int = 256,
        latents: int = 128,
        hyper: int = 64,
        features: int = 128,
        scale_features: int = 64,
        deep_blocks: int = 3,
        blocks: int = 4,
        analysis_deep_blocks: int = 1,
        analysis_blocks: int = 3,
        hyper_features: int | None = None,
        step_blocks: int = 1,
        prior_features: int = 0,
        shortcut: bool = False,
        deep_block: Block = ResidualBlock,
    ) -> None:
        super().__init__()
        if latents % STEPS:
            raise ValueError(f"{latents} latents cannot be coded in {STEPS} steps: it takes a multiple of {STEPS}")
        self.latents, self.hyper = latents, hyper
        self.analysis = Analysis(trunk, deep, latents, analysis_deep_blocks, analysis_blocks, deep_block, shortcut)
        self.synthesis = Synthesis(trunk, deep, latents, deep_blocks, blocks, deep_block, shortcut)
        self.hyper_analysis = HyperAnalysis(latents, hyper, hyper_features or latents)
        self.hyper_prior = ContextPrior(hyper, prior_features) if prior_features else HyperlatentPrior(hyper)
        self.means = MeanNetwork(latents, hyper, features, step_blocks)
        self.scales = ScaleNetwork(latents, hyper, scale_features)
        self.gain = QualityCurve(latents, 0.0, math.log(LAMBDA_MAX / LAMBDA_MIN) / 2)
        self.coded_step = CodedStep()

    def compile_repeated(self) -> None:
        """See :class:`compressor.training.Trainable`."""
        for module in self.modules():
            if isinstance(module, (ResidualBlock, CodedStep, type(self.analysis.deep))):
                module.compile(dynamic=False)

    def fix_weights(self) -> None:
        """They stay as they are from here on, for use: what is made of them is made once."""
        for module in self.modules():
            if isinstance(module, (ResidualBlock, IntegerConv)):
                module.fix_weights()

    def draw(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """For the loss of a batch: random quality steps (B,), and noise in the shapes of z and of y."""
        batch, height, width = len(x_BCHW), x_BCHW.shape[2] // 16, x_BCHW.shape[3] // 16
        shapes = ((batch, self.hyper, height // 2, width // 2), (batch, self.latents, height, width))
        z_noise, y_noise = (torch.rand(shape, generator=generator, device=x_BCHW.device) - 0.5 for shape in shapes)
        return draw_qualities(batch, generator), z_noise, y_noise

    def training_loss(self, x_BCHW: Tensor, quality_B: Tensor, z_noise: Tensor, y_noise: Tensor) -> Tensor:
        """Rate plus distortion of a batch at quality steps, differentiable, with what :meth:`draw` gave.

        ``x_BCHW`` holds pictures in [0, 1] with sides that are multiples of 32.
        """
        mse_B, bits_B = self.rate_distortion(x_BCHW, quality_B, (z_noise, y_noise))
        trade_off_B = quality_to_lambda(quality_B)
        loss_B = trade_off_B * mse_B + bits_B / x_BCHW[0, 0].numel()
        return (evening(trade_off_B) * loss_B).mean()

    @torch.no_grad()
    def validation(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Sums over a batch, rounding as the codec does: ``loss`` to compare by, ``psnr`` and ``bytes`` by step."""
        result = {"loss": torch.zeros((), device=x_BCHW.device)}
        for quality in (16, 28, 40, 52):
            quality_B = torch.full((len(x_BCHW),), float(quality), device=x_BCHW.device)
            mse_B, bits_B = self.rate_distortion(x_BCHW, quality_B)
            trade_off = quality_to_lambda(quality_B)
            result["loss"] += ((trade_off * mse_B + bits_B / x_BCHW[0, 0].numel()) * trade_off**-0.4).sum()
            result[f"psnr{quality}"] = (10 * torch.log10(255**2 / mse_B)).sum()
            result[f"bytes{quality}"] = bits_B.sum() / 8
        return result

    def rate_distortion(
        self, x_BCHW: Tensor, quality_B: Tensor, noise: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error (0..255 scale) and bits of each picture, both (B,).

        The rate is that of symbols with ``noise`` where it is given, of z and of y (differentiable), of rounded symbols
        otherwise (what the entropy coder will spend).
        """
        y_hat, bits_B = self.coded(x_BCHW, quality_B, noise)
        error = F.mse_loss(self.synthesis(y_hat, quality_B), x_BCHW, reduction="none")
        return error.mean(dim=(1, 2, 3)) * 255**2, bits_B

    def coded(
        self, x_BCHW: Tensor, quality_B: Tensor, noise: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents that a reader makes (B, M, H/16, W/16), and bits (B,), as of :meth:`rate_distortion`."""
        y = self.analysis(x_BCHW, quality_B)
        z = self.hyper_analysis(y, quality_B).float()
        y = y.float()
        gain = self.gain(quality_B).exp()
        z_hat = round_ste(z.clamp(-HYPER_MAX, HYPER_MAX))
        z_bits = self._hyper_bits(z_hat, quality_B, None if noise is None else z + noise[0])
        mean_features = self.means.features(z_hat, quality_B)
        scale_features = self._integers(self.scales.features, z_hat, quality_B)
        y_hat, r_hat, bits_B = torch.zeros_like(y), torch.zeros_like(y), z_bits.sum(dim=(1, 2, 3))
        for step in range(STEPS):
            mean = self.means(step, mean_features, y_hat).float()
            level = self._integers(self.scales, step, scale_features, r_hat, quality_B)
            step_noise = None if noise is None else of_step(noise[1], step)
            rounded, step_bits_B = self.coded_step(of_step(y, step) - mean, level, gain, step_noise)
            bits_B = bits_B + step_bits_B
            r_hat = with_step(r_hat, rounded, step)
            y_hat = with_step(y_hat, mean + rounded / gain, step)
        return y_hat, bits_B

    def first_features(self, x_BCHW: Tensor, low_precision: bool) -> FirstFeatures:
        """What :meth:`quantize` starts from, the same for every quality."""
        with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=low_precision):
            return self.analysis.first_features(x_BCHW)

    def quantize(
        self, first: FirstFeatures, quality_B: Tensor, low_precision: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is stored of pictures: see :meth:`unrounded`, and :meth:`rounded` for what is returned."""
        return self.rounded(*self.unrounded(first, quality_B, low_precision), quality_B)

    def unrounded(self, first: FirstFeatures, quality_B: Tensor, low_precision: bool) -> tuple[Tensor, Tensor]:
        """Latents y as the analysis gives them, in bfloat16 if ``low_precision``, and hyperlatents z as integers."""
        with torch.autocast(quality_B.device.type, torch.bfloat16, enabled=low_precision):
            y = self.analysis.latents(first, quality_B)
            z = self.hyper_analysis(y, quality_B)
        return y.float(), z.float().clamp(-HYPER_MAX, HYPER_MAX).round()

    @full_precision()
    def rounded(self, y: Tensor, z: Tensor, quality_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is stored of latents: z, residuals r and the levels r is coded under, all integers.

        And the latents that a reader makes of them. The means are never bfloat16: a reader must find them again to
        within rounding noise, or its latents drift from the writer's.
        """
        gain = self.gain(quality_B).exp()
        mean_features = self.means.features(z, quality_B)
        scale_features = self.scales.features(z, quality_B)
        y_hat, r_hat, levels = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
        for step in range(STEPS):
            mean = self.means(step, mean_features, y_hat)
            level = self.scales(step, scale_features, r_hat, quality_B)
            residual = ((of_step(y, step) - mean) * gain).clamp(-RESIDUAL_MAX, RESIDUAL_MAX)
            rounded = residual.round() * (level >= SKIP_LEVEL)
            r_hat = with_step(r_hat, rounded, step)
            levels = with_step(levels, level, step)
            y_hat = with_step(y_hat, mean + rounded / gain, step)
        return z, r_hat, levels, y_hat

    @full_precision()
    def latents_of(self, z_BCHW: Tensor, r_BCHW: Tensor, quality_B: Tensor) -> Tensor:
        """The latents that :meth:`quantize` gave, from its integers."""
        gain = self.gain(quality_B).exp()
        mean_features = self.means.features(z_BCHW, quality_B)
        r_BCHW = r_BCHW.contiguous(memory_format=torch.channels_last)  # in which steps are found fast
        y_hat = torch.zeros_like(r_BCHW)
        for step in range(STEPS):
            mean = self.means(step, mean_features, y_hat)
            y_hat = with_step(y_hat, mean + of_step(r_BCHW, step) / gain, step)
        return y_hat

    def reconstruct(self, y_BCHW: Tensor, quality_B: Tensor, low_precision: bool) -> Tensor:
        """Pictures from latents, uint8 (B, 3, H, W)."""
        with torch.autocast(y_BCHW.device.type, torch.bfloat16, enabled=low_precision):
            return to_bytes(self.synthesis(y_BCHW, quality_B))

    def _hyper_bits(self, z_BCHW: Tensor, quality_B: Tensor, noisy_BCHW: Tensor | None) -> Tensor:
        """What each of the rounded hyperlatents costs, or each of the ``noisy_BCHW`` where there are some.

        A prior with a context learns from whole numbers, for which sharp distributions pay that noise would blur: what
        noisy ones cost is then a gradient for the hyperlatents alone.
        """
        if noisy_BCHW is None:
            return bits(self._integers(self.hyper_prior, z_BCHW, z_BCHW, quality_B))
        if self.hyper_prior.steps == 1:
            return bits(self._integers(self.hyper_prior, noisy_BCHW, z_BCHW, quality_B))
        fixed = {name: parameter.detach() for name, parameter in self.hyper_prior.named_parameters()}
        cost = bits(self._integers(functional_call, self.hyper_prior, fixed, (noisy_BCHW, z_BCHW, quality_B)))
        learned = bits(self._integers(self.hyper_prior, z_BCHW.detach(), z_BCHW, quality_B))
        return cost + learned - learned.detach()

    @staticmethod
    def _integers(network: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Run a part of the integer network, as it will run in use."""
        with full_precision():
            return network(*arguments)

"""Training of every family: seeded, resumable after a kill, with EMA, early stopping and a history.

Pictures stay on the device as uint8; there is no loader. A network brings its own loss (``training_loss``) and its
own measure (``validation``), so nothing here knows what is being trained. Freezing the result into an artifact is the
family's part.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from compressor.checkpoints import Checkpoint
from compressor.compiling import Captured, compiled_loss, compiled_no_longer
from compressor.devices import has_fast_bf16, pick_device
from compressor.errors import LatentpackError
from compressor.interrupting import interrupt_held
from compressor.optimizers import OPTIMIZERS
from compressor.wording import number

CHECKPOINT_S = 60.0  # between validations, which may be an hour apart
# Share of the peak rate of learning that is left, by the share of the run that is done.
FALLS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
}


class Trainable(Protocol):
    """What a network must offer to be trained here; networks are also ``nn.Module``.

    A large one has also a method ``compile_repeated``, which has its parts compiled that a step runs many times: one
    graph of everything would take minutes.
    """

    def draw(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """All that is random in the loss of a batch: apart from it, for no compiler sees through a generator."""

    def training_loss(self, x_BCHW: Tensor, *drawn: Tensor) -> Tensor:
        """Scalar loss of pictures in [0, 1] with what :meth:`draw` gave.

        Compiled on a GPU it is recorded once and replayed: nothing in it may depend on a state of Python's or wait for
        the device.
        """

    def validation(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Sums over the batch; ``loss`` among them, lower is better."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The end is the first of ``steps``, ``minutes`` and ``patience`` that is reached.

    Parameters
    ----------
    steps, minutes
        Length of the run; the learning rate falls over whichever is nearer its end. 0: no such limit.
    patience
        Stop after this many validations without improvement; 0: never.
    batch, learning_rate, warmup, weight_decay, clip
        Pictures a step, peak rate, steps of linear warm-up, decay (not on vectors), gradient norm.
    fall
        Of the learning rate from its peak: ``cosine``, or ``linear``. Of :data:`FALLS`.
    optimizer
        ``adamw``, or ``muon`` for the matrices of convolutions with AdamW for the rest.
    ema
        Decay of the exponential moving average of the weights, which is what is validated and kept.
    validate_every
        Steps between validations.
    flip, shift
        Augmentation: mirror at random; move by up to this many pixels, edges repeated.
    seed
        Of initialisation and of every random draw.
    compile
        Compile the network, and record a step as one graph where it runs on a GPU. On two cores compiling measured
        slower.
    """

    steps: int = 2000
    minutes: float = 0.0
    patience: int = 0
    batch: int = 16
    learning_rate: float = 2e-3
    fall: str = "cosine"
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    validate_every: int = 500
    flip: bool = True
    shift: int = 0
    seed: int = 1
    optimizer: str = "adamw"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.steps <= 0 and self.minutes <= 0:
            raise ValueError("training needs an end: give steps or minutes above 0")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"there is no optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        if self.fall not in FALLS:
            raise ValueError(f"the rate of learning does not fall {self.fall!r}: choose one of {', '.join(FALLS)}")
        if self.batch <= 0:
            raise ValueError(f"batch must be at least 1, not {self.batch}")


@dataclass
class TrainingState:
    """Where a training stands: what a checkpoint holds beside the weights.

    ``kept`` is the validation of the weights that are kept, as in ``history``; one of ``step`` 0 is of those that it
    began with, whose loss is ``loss_before`` (None where they had not learned anything).
    """

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0
    best: float = math.inf
    stale: int = 0
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)
    loss_before: float | None = None

    def enter(self, row: dict[str, float], train_loss: float) -> bool:
        """Enter a validation into the history. Returns whether it is the best so far."""
        reached = {"step": self.step, "pictures": self.pictures, "seconds": self.seconds, "train_loss": train_loss}
        self.history.append(reached | row)
        if not row["loss"] < self.best:
            self.stale += 1
            return False
        self.best, self.stale = row["loss"], 0
        self.kept = {name: value for name, value in self.history[-1].items() if math.isfinite(value)}
        return True

    def is_stuck(self, patience: int) -> bool:
        """Whether nothing better is to be expected: the patience is at its end, or an average is no number."""
        return 0 < patience <= self.stale or any(not math.isfinite(row["loss"]) for row in self.history[-1:])


def fit(
    network: nn.Module,
    pictures_NCHW: np.ndarray | Tensor,
    validation_NCHW: np.ndarray | Tensor,
    config: TrainingConfig,
    checkpoint: Path | None = None,
    on_progress: Callable[[TrainingState, float], None] | None = None,
    device: torch.device | None = None,
    trained: bool = False,
) -> tuple[nn.Module, TrainingState]:
    """Train ``network`` and return its moving average with the best validation loss, and the final state.

    Parameters
    ----------
    pictures_NCHW, validation_NCHW
        uint8 pictures, disjoint sets, all of one size.
    checkpoint
        File that is written at every validation, each minute between them and at Ctrl-C, and resumed from if it
        exists. A checkpoint made with another configuration or network is refused with ``CheckpointError``.
    on_progress
        Called after every validation with the state and the share of the run that is done, 0 to 1.
    trained
        The network has learned before: it is returned as it was where no validation finds it better.

    Raises
    ------
    LatentpackError
        The training diverged before anything was learned.
    """
    device = device or pick_device()
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval().requires_grad_(False)
    best = copy.deepcopy(average.state_dict())
    optimizer = OPTIMIZERS[config.optimizer](network, config.learning_rate, config.weight_decay)
    state = TrainingState()
    kept = Checkpoint(checkpoint, _lasting(config), network, average, optimizer, generator) if checkpoint else None
    if kept and (found := kept.resume()):
        state, best = TrainingState(**found[0]), found[1]

    pictures = torch.as_tensor(pictures_NCHW).to(device)
    held_out = torch.as_tensor(validation_NCHW).to(device)
    if trained and not state.step:
        state.kept = {"step": 0, "pictures": 0, "seconds": 0.0, **validate(average, held_out, config.batch)}
        state.best = state.loss_before = state.kept["loss"]
    loss_of: Any = network.training_loss
    draw: Any = network.draw
    precision = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))
    network.train()
    if config.compile:  # with draws of its own, so that a run draws the same with and without a compiler
        loss_of = compiled_loss(network, _draw(pictures, config, torch.Generator(device)), precision)

    step = _Step(loss_of, list(network.parameters()), optimizer, config, precision, device)
    started = time.monotonic() - state.seconds
    done = 1.0 if state.is_stuck(config.patience) else _share(state, config)  # as a checkpoint may say
    kept_at, kept_step = time.monotonic(), state.step

    def keep() -> None:  # reads from the device, and so waits for it
        nonlocal kept_at, kept_step
        state.skipped += step.take_skipped()
        if kept:
            kept.save(asdict(state), best)
        kept_at, kept_step = time.monotonic(), state.step

    # Whole steps alone are kept, for half of one cannot be gone on from.
    with compiled_no_longer(network), interrupt_held() as interrupt:
        while done < 1 and not interrupt.heard:
            batch = _draw(pictures, config, generator)
            loss = step(_learning_rate(state.step, done, config), batch, *draw(batch, generator))
            state.step += 1
            state.pictures += len(batch)
            _update_average(average, network, min(config.ema, (1 + state.step) / (10 + state.step)))
            state.seconds = time.monotonic() - started
            done = _share(state, config)
            if state.step % config.validate_every and done < 1:
                if kept and time.monotonic() - kept_at >= CHECKPOINT_S:
                    keep()
                continue

            if state.enter(validate(average, held_out, config.batch), loss.item()):
                best = copy.deepcopy(average.state_dict())
            if state.is_stuck(config.patience):
                done = 1.0
            keep()
            if on_progress:
                on_progress(state, done)
        if interrupt.heard and state.step != kept_step:
            keep()

    if state.history and not state.kept:
        steps, last = number(state.step, "step"), state.history[-1]["loss"]
        raise LatentpackError(f"the training diverged: after {steps} its loss is {last}; lower the learning rate")
    average.load_state_dict(best)
    return average, state


class _Step:
    """One step: the loss of a batch, its gradient, and what the optimizer makes of that.

    Where it is compiled on a GPU it is recorded as a graph. Nothing in it waits for the device.
    """

    def __init__(
        self,
        loss_of: Callable[..., Tensor],
        parameters: list[nn.Parameter],
        optimizer: Any,
        config: TrainingConfig,
        precision: Any,
        device: torch.device,
    ) -> None:
        self._loss_of, self._parameters, self._optimizer = loss_of, parameters, optimizer
        self._clip, self._precision = config.clip, precision
        self._skipped = torch.zeros((), dtype=torch.long, device=device)
        captured = config.compile and device.type == "cuda"
        self._run: Callable[..., Tensor] = Captured(self._learn, device) if captured else self._learn
        self._shared_rate = torch.zeros((), device=device) if captured else None  # which a recorded step reads
        for group in optimizer.param_groups if captured else ():
            group["lr"] = self._shared_rate
            if "capturable" in group:
                group["capturable"] = True

    def __call__(self, learning_rate: float, x_BCHW: Tensor, *drawn: Tensor) -> Tensor:
        """Learn from pictures in [0, 1], with what the network drew for them. Returns the loss."""
        if self._shared_rate is not None:
            self._shared_rate.fill_(learning_rate)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
        return self._run(x_BCHW, *drawn)

    def take_skipped(self) -> int:
        """Steps since the last call whose gradient was not finite. Waits for the device."""
        skipped = int(self._skipped)
        self._skipped.zero_()
        return skipped

    def _learn(self, x_BCHW: Tensor, *drawn: Tensor) -> Tensor:
        with self._precision:
            loss = self._loss_of(x_BCHW, *drawn)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # An `if` would wait for the device: where the norm is not finite, clipping left nothing but zeros and NaN.
        self._skipped.add_(~torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, self._clip)))
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0)
        self._optimizer.step()
        return loss.detach()


@torch.no_grad()
def validate(network: nn.Module, pictures_NCHW: Tensor, batch: int) -> dict[str, float]:
    """Means over ``pictures_NCHW`` of what the network's ``validation`` sums."""
    totals: dict[str, float] = {}
    measure: Any = network.validation
    for part in pictures_NCHW.split(batch):
        for name, value in measure(part.float() / 255).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: total / len(pictures_NCHW) for name, total in totals.items()}


def _draw(pictures_NCHW: Tensor, config: TrainingConfig, generator: torch.Generator) -> Tensor:
    """A random batch in [0, 1], augmented."""
    device = pictures_NCHW.device
    chosen = torch.randint(len(pictures_NCHW), (config.batch,), generator=generator, device=device)
    x_BCHW = pictures_NCHW[chosen]
    if config.flip:
        mirrored = torch.rand(config.batch, generator=generator, device=device) < 0.5
        x_BCHW = torch.where(mirrored[:, None, None, None], x_BCHW.flip(-1), x_BCHW)
    if config.shift:
        down, right = torch.randint(
            -config.shift, config.shift + 1, (2, config.batch), generator=generator, device=device
        )
        height, width = x_BCHW.shape[-2:]
        rows = (torch.arange(height, device=device) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width, device=device) + right[:, None]).clamp(0, width - 1)
        index = torch.arange(config.batch, device=device)[:, None, None]
        x_BCHW = x_BCHW.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return (x_BCHW.float() / 255).contiguous(memory_format=torch.channels_last)


def _lasting(config: TrainingConfig) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption; the length of the run may."""
    return {k: v for k, v in asdict(config).items() if k not in ("steps", "minutes", "patience", "compile")}


def _share(state: TrainingState, config: TrainingConfig) -> float:
    by_steps = state.step / config.steps if config.steps > 0 else 0.0
    by_time = state.seconds / (60 * config.minutes) if config.minutes > 0 else 0.0
    return min(1.0, max(by_steps, by_time))


def _learning_rate(step: int, done: float, config: TrainingConfig) -> float:
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * max(1e-3, FALLS[config.fall](done))


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)

"""Training: learns, repeats exactly from a seed, and goes on after a kill as if nothing had happened."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor import training
from compressor.artifact import parse
from compressor.devices import has_fast_bf16, pick_device
from compressor.errors import CheckpointError, CodecError, LatentpackError
from compressor.families import FAMILIES
from compressor.learning import learn
from compressor.networks.autoencoders import Autoencoder
from compressor.networks.blocks import ResidualBlock
from compressor.networks.hyperprior import Hyperprior
from compressor.optimizers import OPTIMIZERS, BatchedMuon
from compressor.training import TrainingConfig, TrainingState, fit
from tests.codecs import TINY_HYPERPRIOR, smooth_pictures, tiny_artifact

CONFIG = TrainingConfig(steps=20, batch=4, validate_every=5, warmup=2, learning_rate=1e-3)


class Killed(Exception):
    """Stands for a SIGKILL at an awkward moment."""


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder((8, 4), (2, 2), {0: 1})


def hyperprior() -> Hyperprior:
    torch.manual_seed(0)
    return Hyperprior(**TINY_HYPERPRIOR)


def gradients(count: int, side: int = 32) -> np.ndarray:
    """Smooth random pictures, uint8 (N, 3, side, side)."""
    random = np.random.default_rng(count)
    corners = torch.from_numpy(random.uniform(0, 255, (count, 3, 3, 3)))
    return torch.nn.functional.interpolate(corners, (side, side), mode="bilinear").numpy().astype(np.uint8)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.flatten() for p in network.parameters()])


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize(("build", "steps"), [(autoencoder, 120), (hyperprior, 80)])
def test_loss_falls(build: Callable[[], torch.nn.Module], steps: int, optimizer: str) -> None:
    config = replace(CONFIG, steps=steps, batch=8, validate_every=20, learning_rate=5e-3, ema=0.9, shift=2)
    config = replace(config, optimizer=optimizer)
    _, state = fit(build(), gradients(32), gradients(8), config)
    assert state.history[-1]["loss"] < 0.8 * state.history[0]["loss"]
    assert state.pictures == 8 * steps


@pytest.mark.parametrize(("fall", "after_a_quarter"), [("cosine", 0.8536), ("linear", 0.75)])
def test_rates_fall_from_their_peak_to_nothing(
    monkeypatch: pytest.MonkeyPatch, fall: str, after_a_quarter: float
) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda network, rate, decay: Watched(network.parameters(), rate))
    config = replace(CONFIG, steps=40, learning_rate=0.5, warmup=1, validate_every=40, fall=fall)
    fit(autoencoder(), gradients(8), gradients(2), config)
    assert rates[0] == 0.5 and rates[10] == pytest.approx(0.5 * after_a_quarter, rel=1e-3)
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02


def test_the_same_seed_gives_the_same_weights() -> None:
    first, _ = fit(autoencoder(), gradients(16), gradients(4), CONFIG)
    second, _ = fit(autoencoder(), gradients(16), gradients(4), CONFIG)
    assert torch.equal(weights(first), weights(second))


def test_what_has_learned_is_returned_as_it_was_where_training_makes_it_no_better() -> None:
    config = replace(CONFIG, steps=60, batch=8, learning_rate=5e-3, ema=0.9)
    learned, before = fit(autoencoder(), gradients(32), gradients(8), config)
    kept = weights(learned).clone()
    ruinous = replace(config, steps=10, learning_rate=1.0)
    same, after = fit(learned.requires_grad_(True), gradients(32), gradients(8), ruinous, trained=True)
    assert min(row["loss"] for row in after.history) > before.best, "the training was to do harm"
    assert after.best == pytest.approx(before.best) and torch.equal(weights(same), kept)
    assert before.kept in before.history and (after.kept["step"], after.kept["loss"]) == (0, after.best)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_killed_training_resumes_to_the_same_result(tmp_path: Path, optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    whole, _ = fit(autoencoder(), gradients(16), gradients(4), config)

    def kill_at_ten(state: TrainingState, done: float) -> None:
        if state.step == 10:
            raise Killed

    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises(Killed):
        fit(autoencoder(), gradients(16), gradients(4), config, checkpoint, kill_at_ten)
    steps = []
    resumed, state = fit(
        autoencoder(), gradients(16), gradients(4), config, checkpoint, lambda state, done: steps.append(state.step)
    )
    assert steps == [15, 20]
    assert [row["step"] for row in state.history] == [5, 10, 15, 20]
    assert torch.allclose(weights(resumed), weights(whole), atol=1e-6)


class Breaking(torch.nn.Module):
    """A network that does something in one of its steps; the loss of others is now and then not a number."""

    def __init__(self, step: int = 0, act: Callable[[], Any] = lambda: None, wrong: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.network, self.step, self.act, self.wrong = autoencoder(), step, act, wrong
        self.validation, self.draw = self.network.validation, self.network.draw
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def training_loss(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.step:
            self.act()
        return self.network.training_loss(x_BCHW) * (float("nan") if self.calls in self.wrong else 1.0)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


class Terminated(BaseException):
    """As Prefect raises within a flow."""


def terminated(*_: object) -> None:
    raise Terminated


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("end, lost", [(ctrl_c, 0), (sigterm, 0), (killed, 1)])
def test_a_training_that_ends_between_validations_resumes_to_the_same_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    end: Callable[[], None],
    lost: int,
    optimizer: str,
) -> None:
    """Ctrl-C and SIGTERM lose no step, and a kill no more than since the last checkpoint."""
    before = signal.signal(signal.SIGTERM, terminated)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    config, wrong = replace(CONFIG, steps=24, validate_every=10, optimizer=optimizer), (3, 12, 13)
    whole, expected = fit(Breaking(wrong=wrong), gradients(16), gradients(4), config)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0 if end is killed else 1e9)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.raises((Killed, KeyboardInterrupt, Terminated)):
        fit(Breaking(14, end, wrong), gradients(16), gradients(4), config, checkpoint)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is terminated
    kept = torch.load(checkpoint, weights_only=True)["state"]
    assert (kept["step"], kept["skipped"]) == (14 - lost, 3)
    resumed, state = fit(Breaking(wrong=wrong), gradients(16), gradients(4), config, checkpoint)
    assert torch.allclose(weights(resumed), weights(whole), atol=1e-6)
    assert (state.step, state.skipped, state.stale) == (24, 3, expected.stale)
    assert state.best == pytest.approx(expected.best)
    without = [{name: value for name, value in row.items() if name != "seconds"} for row in expected.history]
    for row, there in zip(state.history, without, strict=True):
        assert {name: row[name] for name in there} == pytest.approx(there)


def test_a_training_without_a_checkpoint_ends_at_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Breaking(3, ctrl_c), gradients(16), gradients(4), CONFIG)

    def pressed_twice() -> None:
        ctrl_c()
        ctrl_c()

    network = Breaking(3, pressed_twice)
    with pytest.raises(KeyboardInterrupt):
        fit(network, gradients(16), gradients(4), CONFIG)
    assert network.calls == 3


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.ckpt"
    fit(autoencoder(), gradients(16), gradients(4), CONFIG, checkpoint)
    other = TrainingConfig(steps=20, batch=4, validate_every=5, seed=2)
    with pytest.raises(CheckpointError, match="another network or configuration"):
        fit(autoencoder(), gradients(16), gradients(4), other, checkpoint)


def test_training_stops_when_it_no_longer_improves() -> None:
    config = TrainingConfig(steps=10_000, batch=4, validate_every=2, patience=3, learning_rate=0.0)
    _, state = fit(autoencoder(), gradients(16), gradients(4), config)
    assert state.step < 30


def test_an_endless_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="steps or minutes"):
        TrainingConfig(steps=0, minutes=0)


@pytest.mark.parametrize("family", ["v2", "v5", "v6", "context"])
def test_a_compiler_sees_through_what_it_is_given(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks a graph costs a GPU most of what compiling gives, or ends the training."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    options = {"v2": {}, "context": {**TINY_HYPERPRIOR, "prior_features": 8}}.get(family, TINY_HYPERPRIOR)
    network = FAMILIES[{"context": "v5"}.get(family, family)].build(**options).train()
    x_BCHW = torch.from_numpy(gradients(2)).float() / 255
    drawn = network.draw(x_BCHW, torch.Generator())

    def learned(loss_of: Callable[..., torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        network.zero_grad()
        loss = loss_of(x_BCHW, *drawn)
        loss.backward()
        return loss.item(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    loss, gradients_of = learned(network.training_loss)
    if hasattr(network, "compile_repeated"):
        network.compile_repeated()
        assert all(module._compiled_call_impl for module in network.modules() if isinstance(module, ResidualBlock))
        compiled = learned(network.training_loss)
    else:
        compiled = learned(torch.compile(network.training_loss))
    assert compiled[0] == pytest.approx(loss, rel=1e-4)
    for here, there in zip(compiled[1], gradients_of, strict=True):
        assert torch.allclose(here, there, rtol=1e-3, atol=1e-4 * float(there.abs().max()))


@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_what_cannot_be_compiled_is_told_and_left_as_it_was() -> None:
    from torch._inductor.config import patch

    network = hyperprior()
    with (
        patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(LatentpackError, match="cannot be compiled here: .*no-such-compiler"),
    ):
        fit(network, gradients(16), gradients(4), replace(CONFIG, compile=True), device=torch.device("cpu"))
    assert not any(module._compiled_call_impl for module in network.modules())


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_compiled_training_is_the_same_training(device: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it is recorded as well, and replayed from the fourth step on."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(CONFIG, steps=8, optimizer=optimizer)
    network = hyperprior()
    plain = fit(hyperprior(), gradients(16), gradients(4), config, device=torch.device(device))
    compiled = fit(network, gradients(16), gradients(4), replace(config, compile=True), device=torch.device(device))
    assert not any(module._compiled_call_impl for module in network.modules())
    difference = (weights(plain[0]) - weights(compiled[0])).abs()
    if has_fast_bf16(torch.device(device)):  # steps of a rounding's sign
        assert difference.mean() < 1e-4
    else:
        assert difference.max() < 1e-5
    assert plain[1].history[-1]["loss"] == pytest.approx(compiled[1].history[-1]["loss"], rel=1e-3)


class Stumbling(torch.nn.Module):
    """A network whose loss is now and then not a number, or has no bound."""

    def __init__(self, wrong: dict[int, float]) -> None:
        super().__init__()
        self.network, self.wrong, self.calls = autoencoder(), wrong, 0
        self.validation, self.draw = self.network.validation, self.network.draw

    def training_loss(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.network.training_loss(x_BCHW) * self.wrong.get(self.calls, 1.0)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(factor: float, optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    trained, state = fit(Stumbling({3: factor, 12: factor}), gradients(16), gradients(4), config)
    assert torch.isfinite(weights(trained)).all()
    assert (state.step, state.skipped) == (20, 2)
    assert all(np.isfinite(row["loss"]) for row in state.history)


class Diverging(Stumbling):
    """One whose validation is no number from some call on."""

    def __init__(self, first: int) -> None:
        super().__init__({})
        self.first, self.validations = first, 0
        self.validation = self.measured

    def measured(self, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        self.validations += 1
        found = self.network.validation(x_BCHW)
        return {**found, "loss": found["loss"] * (float("nan") if self.validations >= self.first else 1.0)}


def test_a_training_that_diverges_ends_and_keeps_what_was_learned_before() -> None:
    trained, state = fit(Diverging(3), gradients(16), gradients(4), CONFIG)
    assert (state.step, [np.isfinite(row["loss"]) for row in state.history]) == (15, [True, True, False])
    assert state.kept == min(state.history[:2], key=lambda row: row["loss"])
    with pytest.raises(LatentpackError, match="diverged: after 5 steps its loss is nan; lower the learning rate"):
        fit(Diverging(1), gradients(16), gradients(4), CONFIG)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_nothing_is_read_from_the_device_between_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    reads: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        read = getattr(torch.Tensor, name)

        def reading(self: torch.Tensor, *rest: Any) -> Any:
            # PyTorch's optimizers count their steps in tensors that stay with the host unless they are fused.
            if "torch/optim" not in sys._getframe(1).f_code.co_filename:
                reads.append(name)
            return read(self, *rest)

        return reading

    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, watched(name))
    counts = []
    for steps in (5, 15):
        reads.clear()
        config = replace(CONFIG, steps=steps, validate_every=99, optimizer=optimizer)
        fit(Hyperprior(**TINY_HYPERPRIOR), gradients(16), gradients(4), config, tmp_path / f"{steps}.ckpt")
        counts.append(len(reads))
    assert counts[0] == counts[1]


def test_a_training_that_lost_patience_does_not_go_on_where_it_is_resumed(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=400, patience=2, learning_rate=0.5, validate_every=2)  # nothing gets better so
    pictures, checkpoint = gradients(24), tmp_path / "training.ckpt"
    first, ended = fit(autoencoder(), pictures[:16], pictures[16:], config, checkpoint)
    again, resumed = fit(autoencoder(), pictures[:16], pictures[16:], config, checkpoint)
    assert ended.step < 400 and resumed.step == ended.step
    assert torch.equal(weights(first), weights(again))
    _, further = fit(autoencoder(), pictures[:16], pictures[16:], replace(config, patience=4), checkpoint)
    assert further.step > ended.step


def test_a_fork_of_a_process_that_uses_the_gpu_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA cannot be used in it: a DataLoader's worker would fail at its first picture."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert pick_device().type == "cpu"


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_muon_in_batches_is_pytorchs_muon(rate: float | torch.Tensor) -> None:
    """Tall, wide and square matrices, one without a gradient; PyTorch's own works in bfloat16."""
    shapes = [(8, 24), (24, 8), (16, 16), (8, 24), (16, 16)]
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in enumerate(shapes)]
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    batched = BatchedMuon(ours, lr=0.1, weight_decay=0.1)
    for group in batched.param_groups:
        group["lr"] = rate
    single = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for index, (mine, other) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
            generator = torch.Generator().manual_seed(100 * step + index)
            mine.grad = other.grad = torch.randn(mine.shape, generator=generator)
        batched.step()
        single.step()
    for before, mine, other in zip(start[:-1], ours[:-1], theirs[:-1], strict=True):
        assert (mine - other).norm() < 0.02 * (other - before).norm()
    assert torch.equal(ours[-1], start[-1])
    assert batched.state_dict()["state"].keys() == single.state_dict()["state"].keys(), "checkpoints of either resume"


@pytest.mark.parametrize("options", [None, [1, 2], {"latents": -1}])
def test_a_codec_that_lies_of_its_network_is_no_start(options: Any) -> None:
    artifact = parse(tiny_artifact("v5"))
    lying = replace(artifact, metadata={**artifact.metadata, "network": options})
    pictures = np.stack(smooth_pictures(4))
    with pytest.raises(CodecError, match="codec"):
        learn("v5", pictures, pictures, TrainingConfig(steps=1), start=lying)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (np.zeros((4, 32, 32, 3), np.float32), "uint8.*, not of float32 and shape"),
        (list(np.zeros((4, 32, 32, 3), np.uint8)), "not list; see numpy.stack"),
        (torch.zeros((4, 32, 32, 3), dtype=torch.uint8), "not Tensor"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"shape \(4, 3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.uint8), r"shape \(32, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"shape \(0, 32, 32, 3\)"),
        (np.zeros((4, 32, 40, 3), np.uint8), "pictures of 40 x 32; .* sides are multiples of 32"),
    ],
)
def test_what_no_network_can_learn_from_is_refused_before_the_first_step(wrong: Any, told: str) -> None:
    pictures = np.stack(smooth_pictures(4))
    for name, given in (("pictures_NHWC", (wrong, pictures)), ("validation_NHWC", (pictures, wrong))):
        with pytest.raises(CodecError, match=f"^{name} .*{told}"):
            learn("v5", *given, TrainingConfig(steps=1), TINY_HYPERPRIOR, on_progress=pytest.fail)


def test_a_start_is_given_by_path_by_its_bytes_or_parsed(tmp_path: Path) -> None:
    data, pictures = tiny_artifact("v1"), np.stack(smooth_pictures(4, 36, 36))
    (tmp_path / "start").write_bytes(data)
    path = tmp_path / "start"
    for start in (path, str(path), data, parse(data)):
        learned = learn("v1", pictures, pictures, replace(CONFIG, steps=1), start=start)
        assert parse(learned.data).metadata["card"]["start"]["id"] == parse(data).id
    path.write_bytes(b"no codec")
    for start, error, told in (
        (7, TypeError, "not int"),
        ("nope", CodecError, "there is no codec 'nope'"),
        ("avif", CodecError, "avif is a standard format, it learns nothing: start from faces or a file"),
        (path, CodecError, f"^{path}: not a latentpack codec"),
    ):
        with pytest.raises(error, match=told):
            learn("v1", pictures, pictures, CONFIG, start=start)

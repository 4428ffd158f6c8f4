"""Shorter ways to what a plain layer or a mask gives."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from benchmarks.floor import multiply_adds
from compressor.families import FAMILIES
from compressor.networks import fused
from compressor.networks.blocks import ResidualBlock, ShuffledConv, UnshuffledConv
from compressor.networks.hyperprior import Hyperprior
from compressor.networks.integer import OVER_ACTIVATIONS, OVER_INTEGERS
from compressor.networks.qualities import QUALITY_STEPS, QualityCurve
from compressor.networks.steps import STEPS, beside_step, of_step, step_masks, with_step
from tests.codecs import TINY_HYPERPRIOR

each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
each_side = pytest.mark.parametrize("sides", [(8,), (2,), (8, 2), (2, 4)])


def unshuffled(x_BCHW: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    for side in sides:
        x_BCHW = F.pixel_unshuffle(x_BCHW, side)
    return x_BCHW


@each_layout
@each_side
@torch.no_grad()
def test_patches_are_convolved_as_if_unshuffled(sides: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x_BCHW = torch.randn(2, 3, 32, 48).contiguous(memory_format=layout)
    layer = UnshuffledConv(3, 5, *sides)
    expected = F.conv2d(unshuffled(x_BCHW, sides), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x_BCHW), expected)


@each_layout
@each_side
@torch.no_grad()
def test_patches_are_put_in_place_as_if_shuffled(sides: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x_BCHW = torch.randn(2, 5, 4, 6).contiguous(memory_format=layout)
    layer = ShuffledConv(5, 3, *sides)
    torch.testing.assert_close(unshuffled(layer(x_BCHW), sides), F.conv2d(x_BCHW, layer.weight, layer.bias))


@each_layout
@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (6, 10)])
def test_steps_hold_what_their_masks_show(height: int, width: int, layout: torch.memory_format) -> None:
    x_BCHW = torch.randn(3, 8, height, width).contiguous(memory_format=layout)
    built = torch.zeros_like(x_BCHW)
    for step, mask in enumerate(step_masks(x_BCHW.shape[1:], x_BCHW.device)):
        part = of_step(x_BCHW, step)
        # By channel, row and column: the order in which a stream holds them.
        assert torch.equal(part.flatten(1), x_BCHW[:, mask])
        assert torch.equal(with_step(x_BCHW, torch.zeros_like(part), step), torch.where(mask, 0.0, x_BCHW))
        built = with_step(built, part, step)
    assert torch.equal(built, x_BCHW)


@torch.no_grad()
def test_features_beside_a_step_give_its_outputs_alone() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(STEPS * 5, 12, 1, groups=STEPS)
    x_BCHW = torch.randn(2, 5, 6, 4).contiguous(memory_format=torch.channels_last)
    for step in range(STEPS):
        whole = F.conv2d(x_BCHW, layer.weight, layer.bias)
        torch.testing.assert_close(layer(beside_step(x_BCHW, step)), of_step(whole, step))


def test_places_found_while_encoding_serve_training() -> None:
    with torch.inference_mode():
        of_step(torch.randn(1, 4, 14, 14), 0)
    x_BCHW = torch.randn(1, 4, 14, 14, requires_grad=True)
    with_step(x_BCHW, of_step(x_BCHW, 0) * 2, 0).sum().backward()
    assert x_BCHW.grad is not None


def test_latents_that_four_steps_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="10 latents"):
        Hyperprior(latents=10)


@pytest.mark.parametrize("unit", [None, OVER_INTEGERS, OVER_ACTIVATIONS])
def test_curves_are_the_same_in_training_as_in_use(unit: int | None) -> None:
    torch.manual_seed(0)
    curve = QualityCurve(5, -1.0, 1.0)
    curve.values.data += 0.3 * torch.randn_like(curve.values)
    eighths_B = torch.arange(8 * (QUALITY_STEPS - 1) + 1) / 8

    def values() -> torch.Tensor:
        return curve(eighths_B) if unit is None else curve.integers(eighths_B, unit)

    in_training, in_use = values(), (curve.eval(), values())[1]
    assert torch.allclose(in_training, in_use, atol=1e-6) if unit is None else torch.equal(in_training, in_use)


@pytest.fixture
def with_fused_layers():
    """Tried anew, and again by the next one."""
    fused.can_fuse.cache_clear()
    yield
    fused.can_fuse.cache_clear()


@each_layout
@pytest.mark.usefixtures("with_fused_layers")
@pytest.mark.parametrize("shape", [(2, 32, 8, 6), (1, 32, 1, 1), (3, 32, 1, 5)])
def test_a_block_in_fewer_passes_gives_what_its_layers_do(layout: torch.memory_format, shape: tuple[int, ...]) -> None:
    if not fused.can_fuse():
        pytest.skip("this torch or this processor has no such layers")
    generator = torch.Generator().manual_seed(0)
    block = ResidualBlock(32).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for layer in (block.leave, block.contract):
        layer.weight.mul_(10)  # so that each branch tells
    x_BCHW = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    before = x_BCHW.clone()
    with torch.no_grad():
        exact = block(x_BCHW)
        block.fix_weights()
        assert torch.equal(block(x_BCHW), exact), "in float32 nothing changes"
        with torch.autocast("cpu", torch.bfloat16):
            for x in (x_BCHW, x_BCHW.bfloat16()):
                found = block(x)
                assert found.dtype == torch.bfloat16
                torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.05)
    assert torch.equal(x_BCHW, before)


@pytest.mark.usefixtures("with_fused_layers")
def test_a_gradient_passes_a_block_whose_weights_are_fixed() -> None:
    block = ResidualBlock(16).eval().requires_grad_(False)
    block.fix_weights()
    x_BCHW = torch.randn(1, 16, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        block(x_BCHW).sum().backward()
    assert x_BCHW.grad is not None and bool(x_BCHW.grad.any())


@pytest.mark.usefixtures("with_fused_layers")
@pytest.mark.parametrize("wrong", ["gone", "other numbers"])
def test_layers_that_torch_lacks_or_computes_wrongly_are_not_used(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(layer: fused.FusedConv, x_BCHW: torch.Tensor, *_) -> torch.Tensor:
        if wrong == "gone":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")
        return torch.zeros(2, layer._bias.numel(), 6, 4)

    monkeypatch.setattr(fused.FusedConv, "_apply", apply)
    assert not fused.can_fuse()
    block = ResidualBlock(16).eval().requires_grad_(False)
    x_BCHW = torch.randn(1, 16, 4, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = block(x_BCHW)
        block.fix_weights()
        assert torch.equal(block(x_BCHW), expected)


def test_multiply_adds_are_counted_whether_layers_are_fused_or_not() -> None:
    network = FAMILIES["v5"].build(**TINY_HYPERPRIOR).eval().requires_grad_(False)
    x_BCHW = torch.rand(2, 3, 64, 64)

    def counted(low_precision: bool) -> float:
        with torch.inference_mode():
            return multiply_adds(network, lambda: network.first_features(x_BCHW, low_precision))

    plain = counted(False)
    network.fix_weights()
    for _ in range(2):
        with torch.inference_mode():
            network.first_features(x_BCHW, True)
        assert counted(True) == plain > 0

"""Integer convolutions give the same integers whatever multiplies them."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from compressor.networks import integer
from compressor.networks.integer import WEIGHT_MAX, IntegerConv, has_exact_bytes


@pytest.fixture(autouse=True)
def found_out_anew() -> Iterator[None]:
    has_exact_bytes.cache_clear()
    yield
    has_exact_bytes.cache_clear()


def convolution(channels: int, outputs: int, kernel: int, extreme: bool) -> IntegerConv:
    torch.manual_seed(0)
    layer = IntegerConv(channels, outputs, kernel, 127).eval()
    if extreme:
        torch.nn.init.constant_(layer.weight, 2.0)
        assert int(layer.integer_weight().max()) == WEIGHT_MAX
    return layer


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "outputs"), [(3, 5), (64, 8), (192, 96)])
@torch.no_grad()
def test_bytes_and_floats_give_the_sums_of_integers(
    channels: int,
    outputs: int,
    kernel: int,
    extreme: bool,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = convolution(channels, outputs, kernel, extreme)
    x_BCHW = torch.randint(-127, 128, (2, channels, 5, 3)).float().contiguous(memory_format=layout)
    if extreme:
        x_BCHW = torch.full_like(x_BCHW, 127.0)
    expected = F.conv2d(x_BCHW.long(), layer.integer_weight().long(), padding=kernel // 2)
    for available in {has_exact_bytes(), False}:
        monkeypatch.setattr(integer, "has_exact_bytes", lambda available=available: available)
        assert torch.equal(layer(x_BCHW).long(), expected)
    assert torch.equal(layer._by_matrix(x_BCHW, layer._floats).long(), expected)  # as on a GPU


@torch.no_grad()
def test_a_weight_that_changed_is_used() -> None:
    layer = convolution(8, 8, 1, False)
    x_BCHW = torch.ones(1, 8, 2, 2)
    before = layer(x_BCHW)
    layer.weight.add_(1.0)  # as a moving average does, without a word to the layer
    assert not torch.equal(layer(x_BCHW), before)


def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What processors without VNNI do: bytes made unsigned by adding 128, and pairs of products added in 16 bits."""
    pairs = ((a.int() + 128)[:, :, None] * b[None].int()).view(len(a), -1, 2, b.shape[1]).sum(dim=2)
    return (pairs.clamp(-(2**15), 2**15 - 1).sum(dim=1) - 128 * b.int().sum(dim=0)).int()


@pytest.mark.skipif(not hasattr(torch, "_int_mm"), reason="this torch has no products of int8 matrices")
def test_products_that_saturate_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.double() @ b.double()).int())
    assert has_exact_bytes()
    has_exact_bytes.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not has_exact_bytes()
    monkeypatch.delattr(torch, "_int_mm")
    has_exact_bytes.cache_clear()
    assert not has_exact_bytes()

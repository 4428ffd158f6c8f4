"""Raw streams: whatever goes in comes back, no container around it, damage refused."""

import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import CodecError
from compressor.packers import PACKERS, pack, unpack
from compressor.quantization import LATENT_TYPES, calibrate, dequantize, quantize

packers = pytest.mark.parametrize("packer", PACKERS)


@packers
@given(data=st.binary(max_size=2000), item=st.sampled_from([1, 2, 4]))
def test_round_trip(packer: str, data: bytes, item: int) -> None:
    assert unpack(pack(data, packer, item), packer, item, len(data)) == data


@packers
@given(data=st.binary(min_size=1, max_size=300), size=st.integers(0, 400))
def test_random_bytes_give_the_size_asked_for_or_an_error(packer: str, data: bytes, size: int) -> None:
    try:
        assert len(unpack(data, packer, 1, size)) == size
    except CodecError as error:
        assert "damaged" in str(error)


def test_lzma_has_no_container() -> None:
    latents = np.random.default_rng(1).poisson(2, 3072).astype(np.uint8).tobytes()
    assert len(pack(latents, "lzma", 1)) <= len(lzma.compress(latents)) - 50


def test_a_bomb_is_not_unpacked() -> None:
    bomb = pack(bytes(50_000_000), "lzma", 1)
    with pytest.raises(CodecError, match="1001 bytes unpacked, 1000 expected"):
        unpack(bomb, "lzma", 1, 1000)


@pytest.mark.parametrize("packer", ["gzip", "lzma"])
def test_a_stream_ends_where_its_bytes_do(packer: str) -> None:
    data = bytes(range(50)) * 4
    packed = pack(data, packer, 1)
    for damaged in (packed + b"\0", packed + b"more", packed[:-1]):
        with pytest.raises(CodecError, match="damaged"):
            unpack(damaged, packer, 1, len(data))


def test_unknown_packer_names_the_known() -> None:
    with pytest.raises(CodecError, match="none, gzip, lzma"):
        pack(b"", "zip", 1)


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 0), ("fp16", 2e-3), ("int8", 0.02)])
def test_latents_survive_their_type(kind: str, tolerance: float) -> None:
    latents_CHW = np.maximum(np.random.default_rng(2).normal(0, 1, (6, 8, 8)), 0).astype(np.float32)
    step_C = calibrate(latents_CHW.reshape(6, -1).T)
    stored = quantize(latents_CHW, kind, step_C)
    assert stored.dtype == LATENT_TYPES[kind]
    assert np.abs(dequantize(stored, kind, step_C) - latents_CHW).max() <= tolerance


def test_a_channel_that_is_always_zero_can_be_stored() -> None:
    step_C = calibrate(np.zeros((10, 2), np.float32))
    assert (step_C > 0).all()
    assert quantize(np.zeros((2, 1, 1), np.float32), "int8", step_C).sum() == 0

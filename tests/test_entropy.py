"""Streams decode to what was coded, cost what theory says, and damage is refused."""

import bisect

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compressor.entropy import TOTAL, Decoder, Encoder, Tables, frequencies
from compressor.errors import CodecError

SCALES = 0.11 * (32 / 0.11) ** (np.arange(64) / 63)
VALUES = np.arange(-127, 128)
FREQUENCIES = frequencies(np.exp(-0.5 * (VALUES / SCALES[:, None]) ** 2))
TABLES = Tables(FREQUENCIES, -127)

symbols = st.lists(st.tuples(st.integers(-127, 127), st.integers(0, 63)), max_size=300)


def coded(values: np.ndarray, index: np.ndarray) -> bytes:
    encoder = Encoder()
    encoder.push(values, index, TABLES)
    return encoder.finish()


def natural(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    index = random.integers(0, 64, count)
    return np.clip(np.rint(random.normal(size=count) * SCALES[index]), -127, 127).astype(np.int64), index


@given(st.lists(symbols, max_size=4))
def test_any_symbols_come_back_in_any_number_of_pushes(pushes: list[list[tuple[int, int]]]) -> None:
    arrays = [np.array(push, np.int64).reshape(-1, 2) for push in pushes]
    encoder = Encoder()
    for array in arrays:
        encoder.push(array[:, 0], array[:, 1], TABLES)
    decoder = Decoder(encoder.finish())
    for array in arrays:
        assert (decoder.pull(array[:, 1], TABLES) == array[:, 0]).all()
    decoder.finish()


@pytest.mark.parametrize("count", [0, 1, 50, 500, 12288])
def test_size_is_within_three_bytes_and_half_a_percent_of_the_ideal(count: int) -> None:
    values, index = natural(count, count)
    ideal = -np.log2(FREQUENCIES[index, values + 127] / TOTAL).sum() / 8
    assert len(coded(values, index)) <= 1.005 * ideal + 3


def edges(row: np.ndarray) -> list[int]:
    """Where the interval of each symbol begins, and the last one ends, by docs/format.md."""
    sums = np.cumsum(row, dtype=object)
    left = [before * (2**24 - len(row)) // 2**24 + place for place, before in enumerate([0, *sums[:-1]])]
    return [*left, 2**24]


def read_by_the_format(stream: bytes, index: np.ndarray, tables: np.ndarray, first: int) -> list[int]:
    """A range decoder written from docs/format.md alone."""
    words = iter(int.from_bytes((stream + bytes(3))[at : at + 4]) for at in range(0, len(stream), 4))
    low, width = 0, 2**64 - 1
    point = next(words, 0) << 32 | next(words, 0)
    values = [0] * len(index)
    for place in sorted(range(len(index)), key=lambda place: index[place]):
        left = edges(tables[index[place]])
        unit = width >> 24
        symbol = bisect.bisect_right(left, (point - low) % 2**64 // unit) - 1
        low, width = (low + unit * left[symbol]) % 2**64, unit * (left[symbol + 1] - left[symbol])
        if width < 2**32:
            low, width, point = (low << 32) % 2**64, width << 32, (point << 32 | next(words, 0)) % 2**64
        values[place] = symbol + first
    return values


@given(st.integers(0, 2**31), st.integers(1, 120))
def test_the_format_says_enough_to_read_a_stream(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    skewed = frequencies(random.dirichlet(np.full(200, 0.02), 6) + 1e-12)
    index = random.integers(0, 6, count)
    values = np.array([random.choice(200, p=skewed[row] / TOTAL) for row in index]) - 100
    encoder = Encoder()
    encoder.push(values, index, Tables(skewed, -100))
    assert read_by_the_format(encoder.finish(), index, skewed, -100) == values.tolist()


@given(st.integers(0, 2**31), st.integers(9, 16))
@example(1556, 9)  # what follows is read as the end of the last symbol, and is none
def test_bytes_after_the_end_are_refused(seed: int, extra: int) -> None:
    values, index = natural(60, seed)
    decoder = Decoder(coded(values, index) + b"\x55" * extra)
    with pytest.raises(CodecError, match="does not end|is invalid"):
        decoder.pull(index, TABLES)
        decoder.finish()


@given(st.integers(0, 2**31), st.binary(max_size=80))
def test_random_bytes_give_symbols_or_an_error_and_never_more(seed: int, stream: bytes) -> None:
    _, index = natural(100, seed)
    decoder = Decoder(stream)
    try:
        values = decoder.pull(index, TABLES)
        decoder.finish()
    except CodecError:
        return
    assert coded(values, index) == stream


def test_frequencies_are_whole_positive_and_sum_to_the_total() -> None:
    table = frequencies(np.array([[1.0, 0, 0], [1, 1, 1], [1e-30, 1, 1e9]]))
    assert table.min() >= 1
    assert (table.sum(axis=1) == TOTAL).all()


def test_damaged_tables_are_refused() -> None:
    with pytest.raises(CodecError, match="damaged"):
        Tables(FREQUENCIES + 1, -127)

"""Entropy coding of integers under frozen tables of integer frequencies; one independent stream for each picture.

The range coder itself is the `constriction` library. Tables are made once, when a codec is frozen, and stored in
its artifact: nothing is rebuilt when reading.
"""

import constriction
import numpy as np

from compressor.errors import CodecError

ENTROPY = "entropy"  # what rows call its streams, beside the packers of packers.py
PRECISION = 24  # bits: every table of frequencies sums to 2**24
TOTAL = 1 << PRECISION
_STATE_BITS = 64  # of the range coder's interval, two words of 32


def frequencies(probabilities: np.ndarray) -> np.ndarray:
    """Integer tables from probabilities.

    Parameters
    ----------
    probabilities
        float (tables, symbols), not negative; each row is normalised.

    Returns
    -------
    int32 of the same shape, every entry at least 1, every row summing to 2**24.
    """
    p = np.asarray(probabilities, np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    symbols = p.shape[1]
    table = 1 + np.floor(p * (TOTAL - symbols)).astype(np.int64)
    table[np.arange(len(table)), p.argmax(axis=1)] += TOTAL - table.sum(axis=1)
    return table.astype(np.int32)


class Tables:
    """A set of frequency tables over one alphabet, ready for the coder.

    Parameters
    ----------
    frequencies
        int32 (tables, symbols), rows summing to 2**24.
    first
        The integer that column 0 stands for.
    """

    def __init__(self, frequencies: np.ndarray, first: int) -> None:
        table = np.asarray(frequencies)
        if table.dtype != np.int32 or table.ndim != 2 or (table < 1).any() or (table.sum(axis=1) != TOTAL).any():
            raise CodecError("the codec's frequency tables are damaged: they are no int32 rows that sum to 2**24")
        self.first = first
        self.symbols = table.shape[1]
        # Quotients by a power of two are exact in float64, so that what the coder makes of them (docs/format.md) is the
        # same everywhere. It makes room for every symbol, although they have it: an entry may be one more or less.
        self.models = [
            constriction.stream.model.Categorical(row.astype(np.float64) / TOTAL, perfect=False) for row in table
        ]


def _runs(index: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Stable order by table, and each table in use with where its run starts and ends in that order."""
    counts = np.bincount(index)
    used = np.flatnonzero(counts)
    stops = np.cumsum(counts[used])
    # NumPy sorts short integers by radix, in a third of the time.
    order = np.argsort(index.astype(np.min_scalar_type(len(counts))), kind="stable")
    return order, list(zip(used.tolist(), [0, *stops.tolist()], stops.tolist(), strict=False))


class Encoder:
    """Codes one picture's integers; what is pushed first is pulled first."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def push(self, values: np.ndarray, index: np.ndarray, tables: Tables, turns: np.ndarray | int = 0) -> None:
        """Code ``values`` (any integers, n) each under its table ``index`` (int, n); grouped by table for speed.

        A reader can only pull at once what has one number in ``turns`` (int32, n): lower ones come first.
        """
        order, runs = _runs(index + len(tables.models) * turns)
        self._push_runs(values[order].astype(np.int32) - tables.first, runs, tables)

    def _push_runs(self, symbols: np.ndarray, runs: list[tuple[int, int, int]], tables: Tables) -> None:
        numbers = symbols.tolist()
        for turned, start, stop in runs:
            table = turned % len(tables.models)
            # The library takes a number four times as fast as an array of one.
            run = numbers[start] if stop == start + 1 else symbols[start:stop]
            self._coder.encode(run, tables.models[table])

    def finish(self) -> bytes:
        """The stream, in as few bytes as name a point of the coder's final interval; little-endian words."""
        if self._coder.is_empty():
            return b""
        words, (lower, width) = self._coder.pos()
        compressed = self._coder.get_compressed()
        for count in range(_STATE_BITS // 8 + 1):
            unit = 1 << (_STATE_BITS - 8 * count)
            point = -(-lower // unit) * unit
            # A point past 2**64 would carry into words already out: leave such ends, one in twenty, to the library.
            if point < min(lower + width, 1 << _STATE_BITS) and lower + width <= 1 << _STATE_BITS:
                tail = point.to_bytes(8, "big")
                words_out = np.frombuffer(tail, ">u4").astype(np.uint32)
                compressed = np.concatenate((compressed[:words], words_out))
                break
        return _trimmed(compressed)


class Decoder:
    """Reads back what an :class:`Encoder` wrote."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        words = np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._mirror = Encoder()

    def pull(self, index: np.ndarray, tables: Tables) -> np.ndarray:
        """Integers (int32, n) coded under tables ``index`` (int, n). CodecError if the stream cannot be theirs."""
        order, runs = _runs(index)
        symbols, values = np.empty(len(index), np.int32), np.empty(len(index), np.int32)
        try:
            for table, start, stop in runs:
                count = () if stop == start + 1 else (stop - start,)
                symbols[start:stop] = self._coder.decode(tables.models[table], *count)
        except AssertionError as error:  # how the library reports a stream that its model cannot have written
            raise CodecError("the payload is damaged: its entropy-coded stream is invalid") from error
        self._mirror._push_runs(symbols, runs, tables)
        values[order] = symbols + tables.first
        return values

    def finish(self) -> None:
        """Raise CodecError unless coding again what was read gives the same bytes: none are missing or left over."""
        if self._mirror.finish() != self._stream:
            raise CodecError("the payload is damaged: it does not end where its last symbol does")


def _trimmed(words: np.ndarray) -> bytes:
    """Bytes of 32-bit words without the zeros at the end, which a reader supplies.

    A word's bytes go out highest first, so that the zeros of a partly used last word stand at the end.
    """
    return words.astype(">u4").tobytes().rstrip(b"\0")

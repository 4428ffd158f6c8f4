"""An archive's pictures for training with PyTorch. Decodes; does not batch, nor shuffle but by its sampler."""

import operator
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from compressor.chunks import BYTES_AT_ONCE, bounded_chunks
from compressor.decoding import decoded_together
from compressor.errors import NoPictureError
from compressor.images import resize_picture
from compressor.parquet import IMAGES, Part, Row, Spans, from_table

if TYPE_CHECKING:
    from compressor.archive import Archive

GROUPS_KEPT = 16  # row groups in memory, about 1 MB each, but never more than BYTES_AT_ONCE


class ArchiveDataset(Dataset[Any]):
    """Pictures by number, in the archive's order: uint8 tensors (3, H, W), or pairs of one and its target.

    A negative number counts from the end.

    Reading one fetches its row group, so shuffle with ``sampler``, which takes row groups in turn, and leave batching
    to ``DataLoader``: it asks for all pictures of a batch at once, and they are decoded together.

    Parameters
    ----------
    archive
        Read as it is now; what others commit later is not seen, and what they erase or vacuum ends the reading with
        ArchiveError.
    keys
        Pictures to take, in the archive's order whatever theirs, each once; None: all.
    transform
        Applied to each picture, after ``resize``.
    target
        Makes of a picture's row (its key, size, quality) what a model is to learn of it, such as a label.
    resize
        Side that the square in the middle of each picture is resized to, as ``run --resize`` does: a batch takes
        pictures of one size. None: each has its own.

    >>> loader = DataLoader(dataset, batch_size=64, sampler=dataset.sampler(seed=0))  # doctest: +SKIP
    """

    def __init__(
        self,
        archive: "Archive",
        keys: Iterable[str] | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
        target: Callable[[Row], Any] | None = None,
        resize: int | None = None,
    ) -> None:
        if resize is not None and not isinstance(resize, Integral):
            raise TypeError(f"resize is the side of a square, one whole number, not {resize!r}")
        if resize is not None and resize < 1:
            raise ValueError(f"resize must be at least 1, not {resize}")
        self._archive, self._transform, self._target, self._resize = archive, transform, target, resize
        self._groups: list[tuple[Part, int, int, int]] = []
        self._places: list[np.ndarray] = []
        if keys is None:
            self._groups = list(archive.row_groups())
            self._places = [np.arange(count) for _, _, count, _ in self._groups]
        else:
            self._choose(set(keys))
        self._starts = np.concatenate([[0], np.cumsum([len(places) for places in self._places])]).astype(int).tolist()
        self._kept: OrderedDict[int, list[Row]] = OrderedDict()

    def _choose(self, keys: set[str]) -> None:
        """Keep the places of ``keys`` alone. ArchiveError where one is not there."""
        chosen: list[tuple[tuple[Part, int, int, int], np.ndarray]] = []
        spans = Spans((key, key) for key in keys)
        for group in self._archive.row_groups(spans):
            there = self._archive.row_group(*group[:2], ["key"])["key"].to_pylist()
            if places := [place for place, key in enumerate(there) if key in keys]:
                chosen.append((group, np.array(places)))
                keys.difference_update(there)
        if keys:
            raise NoPictureError(f"{self._archive.url}: there is no picture {min(keys)!r}")
        self._groups, self._places = [group for group, _ in chosen], [places for _, places in chosen]

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not a fork: it opens the archive anew and numbers the pictures as here."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many pictures, decoded together."""
        rows = [self.row(index) for index in indices]
        decoded: list[np.ndarray] = []
        for together in decoded_together(rows):  # a batch of photographs, at full size, would be gigabytes
            for pixels in self._archive.decode(together):
                decoded.append(pixels if self._resize is None else resize_picture(pixels, self._resize))
        pictures: list[Any] = [torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))) for pixels in decoded]
        if self._transform is not None:
            pictures = [self._transform(picture) for picture in pictures]
        if self._target is not None:
            return [(picture, self._target(row)) for picture, row in zip(pictures, rows, strict=True)]
        return pictures

    def row(self, index: int) -> Row:
        """Key, sizes, quality and payload of one picture."""
        try:
            index = operator.index(index)
        except TypeError:
            several = "__getitems__ takes several, torch.utils.data.Subset is a part"
            raise TypeError(f"a picture is taken by its number, not by {type(index).__name__}: {several}") from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        number = bisect_right(self._starts, index) - 1
        if number not in self._kept:
            rows = from_table(self._archive.row_group(*self._groups[number][:2]), IMAGES)
            held = sum(map(_weight, self._kept.values())) + _weight(rows)
            while self._kept and (len(self._kept) >= GROUPS_KEPT or held > BYTES_AT_ONCE):
                held -= _weight(self._kept.popitem(last=False)[1])
            self._kept[number] = rows
        self._kept.move_to_end(number)
        return self._kept[number][self._places[number][index - self._starts[number]]]

    def sampler(self, seed: int, rank: int = 0, ranks: int = 1) -> Sampler[int]:
        """All numbers once: row groups in random order, and the rows of as many as are kept in memory mixed.

        With several ``ranks``, as in distributed training, every one of them gets its share of that order, as many as
        each other; a few of the first are given twice where they cannot be shared evenly.
        """
        if ranks < 1:
            raise ValueError(f"ranks must be at least 1, not {ranks}")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be from 0 to {ranks - 1}, not {rank}")
        return _GroupSampler(self._starts, [size for *_, size in self._groups], seed, rank, ranks)


def _weight(rows: Sequence[Row]) -> int:
    return sum(len(row.payload) for row in rows)


class _GroupSampler(Sampler[int]):
    def __init__(self, starts: Sequence[int], sizes: Sequence[int], seed: int, rank: int, ranks: int) -> None:
        self._starts, self._sizes = starts, sizes
        self._seed = seed
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        return -(-int(self._starts[-1]) // self._ranks)

    def __iter__(self) -> Iterator[int]:
        numbers = self._order()
        self._seed += 1  # another order in the next epoch
        shared = np.resize(numbers, len(self) * self._ranks)
        yield from shared[self._rank :: self._ranks].tolist()

    def _order(self) -> np.ndarray:
        random = np.random.default_rng(self._seed)
        order = random.permutation(len(self._sizes)).tolist()
        mixed: list[np.ndarray] = [np.zeros(0, int)]
        # More than are kept would be read again and again
        for groups in bounded_chunks(order, self._sizes.__getitem__, BYTES_AT_ONCE, GROUPS_KEPT):
            numbers = [np.arange(self._starts[group], self._starts[group + 1]) for group in groups]
            mixed.append(random.permutation(np.concatenate(numbers)))
        return np.concatenate(mixed)

"""An archive's pictures for training with PyTorch. Decodes; does not transform, batch or shuffle."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from compressor.parquet import IMAGES, Row, from_table

if TYPE_CHECKING:
    from compressor.archive import Archive

GROUPS_KEPT = 16  # row groups in memory, about 1 MB each


class ArchiveDataset(Dataset[torch.Tensor]):
    """Pictures by number, in the archive's order: uint8 tensors (3, H, W).

    Reading one fetches its row group, so shuffle with ``sampler``, which takes row groups in turn, and leave batching
    to ``DataLoader``: it asks for all pictures of a batch at once, and they are decoded together.

    >>> loader = DataLoader(dataset, batch_size=64, sampler=dataset.sampler(seed=0))  # doctest: +SKIP
    """

    def __init__(self, archive: "Archive") -> None:
        self._archive = archive
        self._process = os.getpid()
        self._images = archive._images
        self._groups = list(self._images.groups())
        sizes = [self._images.footer(part).row_group(group).num_rows for part, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        self._kept: OrderedDict[int, list[Row]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is not a fork: it opens the archive anew and numbers the pictures as here."""
        return {name: getattr(self, name) for name in ("_archive", "_groups", "_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()
        self._images = self._archive._images
        self._kept = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Many pictures, decoded together."""
        if os.getpid() != self._process:
            # A DataLoader's worker: connections and codecs from before the fork must not be used in it.
            self._archive._after_fork()
            self._process = os.getpid()
        pictures = self._archive.decode([self.row(index) for index in indices])
        return [torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))) for pixels in pictures]

    def row(self, index: int) -> Row:
        """Key, sizes, quality and payload of one picture."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        if number not in self._kept:
            part, group = self._groups[number]
            while len(self._kept) >= GROUPS_KEPT:
                self._kept.popitem(last=False)
            self._kept[number] = from_table(self._images.read(part, [group], IMAGES.names, salvage=True), IMAGES)
        self._kept.move_to_end(number)
        return self._kept[number][index - self._starts[number]]

    def sampler(self, seed: int) -> Sampler[int]:
        """All numbers once: row groups in random order, and the rows of ``GROUPS_KEPT`` of them mixed."""
        return _GroupSampler(self._starts, seed)


class _GroupSampler(Sampler[int]):
    def __init__(self, starts: Sequence[int], seed: int) -> None:
        self._starts = starts
        self._seed = seed

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(self._seed)
        self._seed += 1  # another order in the next epoch
        order = random.permutation(len(self._starts) - 1)
        for first in range(0, len(order), GROUPS_KEPT):
            mixed = order[first : first + GROUPS_KEPT]
            numbers = np.concatenate([np.arange(self._starts[group], self._starts[group + 1]) for group in mixed])
            yield from random.permutation(numbers).tolist()

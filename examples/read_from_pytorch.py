"""An archive as a training set: python examples/read_from_pytorch.py [ARCHIVE]

With no argument, the archive that archive_a_folder.py made.
"""

import itertools
import sys

from torch.utils.data import DataLoader

from compressor import Archive


def main(url: str = "example-archive") -> None:
    # Pictures of any size, decoded a batch at a time: several times as fast as one by one, with batch_size=None
    loader = DataLoader(Archive.open(url).dataset(), batch_size=32, collate_fn=list)
    for picture_CHW in itertools.islice(itertools.chain.from_iterable(loader), 5):
        print(tuple(picture_CHW.shape), picture_CHW.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:2])

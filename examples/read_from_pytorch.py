"""An archive as a training set: python examples/read_from_pytorch.py [ARCHIVE]

With no argument, the archive that archive_a_folder.py made.
"""

import sys

from torch.utils.data import DataLoader

from compressor import Archive


def main(url: str = "example-archive") -> None:
    loader = DataLoader(Archive.open(url).dataset(), batch_size=None)
    for count, picture_CHW in enumerate(loader, 1):
        print(tuple(picture_CHW.shape), picture_CHW.dtype)
        if count == 5:
            break


if __name__ == "__main__":
    main(*sys.argv[1:2])

"""Draws README's strip: a face by every codec, in no more bytes than ours takes at the default target.

    python benchmarks/side_by_side.py docs/pictures/equal_bytes.png

The face is NASA's portrait of an astronaut, in the public domain, from scikit-image's photographs, at 128x128.
"""

import argparse
from pathlib import Path

from compressor import plots
from compressor.codec import load_codec
from compressor.defaults import CODEC, TARGET_PSNR
from compressor.images import decode_picture, resize_picture
from compressor.metrics import psnr
from compressor.report import standard_codecs
from compressor.samples import photograph
from compressor.strips import side_by_side

TOP, LEFT, SIDE = 20, 140, 180  # of the face in the photograph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    whole = decode_picture(photograph("astronaut.png")).pixels
    face = resize_picture(whole[TOP : TOP + SIDE, LEFT : LEFT + SIDE], 128)
    ours = load_codec(CODEC)
    encoded = (ours.encode([face], quality)[0] for quality in ours.qualities)
    reached = next(one.quality for one in encoded if psnr(face, ours.decode([one])[0]) >= TARGET_PSNR)
    [strip], _ = side_by_side({"astronaut": face}, {CODEC: ours, **standard_codecs()}, CODEC, reached)
    for cell in strip.cells:
        print(f"{cell.codec}: {cell.caption}")
    out.write_bytes(plots.png(plots.strips([strip], [CODEC])))


if __name__ == "__main__":
    main()

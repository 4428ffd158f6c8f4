"""When a standard format takes the learned codec's place, and which (see ``quality.py`` for the search)."""

from collections.abc import Callable
from dataclasses import replace

from compressor.baselines import LOSSLESS, STANDARD, StandardCodec
from compressor.codec import Codec
from compressor.errors import CodecError
from compressor.images import Picture
from compressor.metrics import is_flat
from compressor.quality import Stored, as_grey, encode_to_target, smallest

SLOW_PIXELS = 2**20  # above, the fallback is AVIF alone
AVIF_SPEED = 6  # 6 % larger than speed 4 on what falls back, in a fifth of the time
PATIENT_AVIF_SPEED = 4  # where refinement takes as long:
PATIENT_EFFORT = 5  # rounds of it, or more
COSTLY_SHARE = 0.37  # of a JPEG file as good; a learned codec that needs more is tried against the fallback,
COSTLY_BITS = 0.35  # a pixel; but not one that needs less for a picture
FEW_PIXELS = 2**15  # no larger than this, whose JPEG is mostly tables, at a quality above the lowest
JPEGXL_SHARE = 0.62  # of a JPEG file as good; JPEG XL is tried where AVIF takes more, and was hardly ever smaller below


def is_costly(stored: Stored, picture: Picture, goal: float) -> bool:
    """Whether a standard format may well be smaller: a learned codec spent much, or there is hardly a thing to tell."""
    size, pixels = len(stored.encoded.payload), picture.pixels[:, :, 0].size
    if stored.encoded.codec in STANDARD:
        return False
    if is_flat(picture.pixels):
        return True
    if pixels <= FEW_PIXELS and stored.encoded.quality > 0 and 8 * size <= COSTLY_BITS * pixels:
        return False
    return size > COSTLY_SHARE * _jpeg_size(picture, goal)


def fall_back(
    picture: Picture, goal: float, patient: bool = False, on_tries: Callable[[int], None] | None = None
) -> Stored | None:
    """What a standard format needs to reach ``goal`` dB: the smallest, as far as a look at JPEG's size tells.

    Without loss where none reaches it. None where no format takes a picture of this size. ``patient``: take the time
    that much refinement takes. ``on_tries`` as in :func:`compressor.quality.encode_to_target`.
    """
    avif = StandardCodec("avif-444", effort=PATIENT_AVIF_SPEED if patient else AVIF_SPEED)
    one = _reaching(avif, picture, goal, on_tries)
    if one is None:
        one = _reaching(STANDARD[LOSSLESS], picture, goal)
    else:
        one = replace(one, encoded=STANDARD["av1-444"].bare(one.encoded) or one.encoded)
    small = picture.pixels[:, :, 0].size <= SLOW_PIXELS
    if small and (one is None or len(one.encoded.payload) > JPEGXL_SHARE * _jpeg_size(picture, goal)):
        one = smallest(one, _reaching(STANDARD["jpegxl"], picture, goal))
    return one


def _reaching(
    codec: Codec, picture: Picture, goal: float, on_tries: Callable[[int], None] | None = None
) -> Stored | None:
    """A picture by one codec at ``goal`` dB; None where it does not reach that, or is longer than the format's side."""
    try:
        (stored,) = encode_to_target(codec, [picture.pixels], goal, on_tries=on_tries)
    except CodecError:
        return None
    if stored is not None and picture.channels == 1:
        stored = as_grey(stored, picture.pixels)
    # The mean of three planes is rounded, and may be worse than they were.
    return stored if stored is not None and stored.psnr >= goal else None


def _jpeg_size(picture: Picture, goal: float) -> float:
    """Bytes of a JPEG as good, which tells in a millisecond how hard a picture is; 0 where none is as good."""
    jpeg = _reaching(STANDARD["jpeg"], picture, goal)
    return 0 if jpeg is None else len(jpeg.encoded.payload)

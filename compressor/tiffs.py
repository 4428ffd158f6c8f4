"""TIFF (TIFF 6.0): what its first directory tells, what 8 bits lose of it, and samples that Pillow does not read.

Pillow reads the others (images.py).
"""

import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from compressor import picture_files
from compressor.errors import ImageError
from compressor.limits import DECODING_BYTES, Limits, within
from compressor.picture_files import Header


def read_directory(data: bytes) -> dict[int, int]:
    """The largest value of each tag of a TIFF's first directory that decoders need (TIFF 6.0, section 2).

    Refused where the directory, or what it points at, or a strip or tile, lies beyond the file's end.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, count, entry, link = ("Q", "Q", "HHQQ", 8) if big else ("I", "H", "HHII", 4)
    tags: dict[int, int] = {}
    places: dict[int, np.ndarray] = {}
    try:
        (at,) = struct.unpack_from(order + offset, data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + count, data, at)
        at += struct.calcsize(order + count)
        for _ in range(entries):
            tag, kind, length, value = struct.unpack_from(order + entry, data, at)
            size = length * _SIZES.get(kind, 0)
            at += struct.calcsize(order + entry)
            if tag not in _NEEDED:
                continue
            if size > link and value + size > len(data):
                raise picture_files.truncated("its TIFF directory does")
            if kind not in _INTEGERS or not length:
                continue
            first = value if size > link else at - link
            values = np.frombuffer(data, np.dtype(order + _INTEGERS[kind]), length, first)
            if tag in _PLACES:
                places[tag] = values  # there may be millions
            elif length <= _MOST_VALUES:
                tags[tag] = int(values.max())
    except struct.error:
        raise picture_files.truncated("its TIFF directory does") from None
    for offsets, counts in ((273, 279), (324, 325)):
        if offsets in places and counts in places:
            shared = min(len(places[offsets]), len(places[counts]))
            starts, sizes = (places[tag][:shared].astype(np.uint64) for tag in (offsets, counts))
            if max(starts.max(), sizes.max(), (starts + sizes).max()) > len(data):  # the sum alone may wrap around
                raise picture_files.truncated("its TIFF data do")
    return tags


_PLACES = frozenset({273, 279, 324, 325})  # offsets of strips and tiles, and their bytes
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_VALUES = 64
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_NEEDED = frozenset({256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 320, 322, 323, 324, 325, 339, 347})


_stderr = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Have what libtiff writes of damage, past Python, go nowhere: an ImageError says it."""
    with _stderr:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def why_kept(picture: Any) -> str | None:
    """What Pillow's samples would lose: layers, other pictures, what it rounds off or takes for unsigned."""
    tags = picture.tag_v2
    if isinstance(photoshop := tags.get(37724), bytes) and _LAYERS.search(photoshop):
        return "layers"
    kind = tags.get(254, 0)
    if 330 in tags or (
        isinstance(kind, int) and kind & 1
    ):  # pictures beside the first, or that is said to be a preview
        return "multi-page"
    if picture.mode == "F":
        return "float"
    if max(tags.get(258, (1,))) > 8:
        return "16-bit"
    return next((_SAMPLE_FORMATS.get(one, "untyped") for one in tags.get(339, ()) if one != 1), None)


_LAYERS = re.compile(rb"8BIM(Layr|Lr16|Lr32)|MIB8(ryaL|61rL|23rL)")  # flattened files have the tag too
_SAMPLE_FORMATS = {2: "signed", 3: "float"}  # TIFF 6.0, section 19; 1 is unsigned integers


def plain_samples(picture: Any, data: bytes) -> np.ndarray | None:
    """Samples of the ordinary kinds of TIFF; Pillow's libtiff would write of damage to the terminal."""
    import imagecodecs

    tags = picture.tag_v2
    photometric = tags.get(262)
    ordinary = (picture.mode, photometric) in (("1", 0), ("1", 1), ("L", 1), ("RGB", 2), ("RGBA", 2))
    # Turned pictures are Pillow's: libtiff turns some (JPEG in YCbCr) half by itself
    # Samples of two and four bits would come as they are: Pillow makes 0 to 255 of them.
    bits = set(tags.get(258, (1,)))
    if not ordinary or tags.get(274, 1) != 1 or bits != ({1} if picture.mode == "1" else {8}):
        return None
    samples = imagecodecs.tiff_decode(data)
    if samples.shape[:2] != picture.size[::-1] or samples.dtype not in (np.bool_, np.uint8):
        return None
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8) * 255
    return 255 - samples if photometric == 0 else samples


def other_samples(data: bytes, tags: dict[int, int], limits: Limits) -> tuple[np.ndarray, Header]:
    """Samples of a TIFF that Pillow has no mode for, and of which the file itself is kept: deep colour, CIELAB.

    ImageError where 8 bits would do, or nothing here decodes it.
    """
    import imagecodecs
    from PIL.TiffImagePlugin import COMPRESSION_INFO

    compression, width, height = (tags.get(tag, least) for tag, least in ((259, 1), (256, 0), (257, 0)))
    planes, bits, kind = (tags.get(tag, 1) for tag in (277, 258, 339))
    if compression not in COMPRESSION_INFO:
        advice = "save it with LZW or Deflate first"
        raise ImageError("unsupported", f"TIFF's compression {compression} is not read here: {advice}")
    keep = "lab" if tags.get(262) in _LAB else _SAMPLE_FORMATS.get(kind) or ("16-bit" if bits > 8 else None)
    if keep is None or planes * bits > 8 * DECODING_BYTES:
        told = f"{planes} channels of {bits} bits, photometric interpretation {tags.get(262)}"
        raise ImageError("unsupported", f"a TIFF of {told} is not read here: convert it to RGB first")
    with within(width, height, limits):
        samples = imagecodecs.tiff_decode(data)
        if planes > 1 and tags.get(284) == 2:
            samples = np.moveaxis(samples, 0, 2)
        if samples.shape[:2] != (height, width) or samples.dtype.kind not in "uif":
            raise ImageError("unsupported", f"a TIFF of {samples.dtype} is not read here: convert it to RGB first")
    if samples.ndim == 3:  # of CIELAB the lightness alone
        samples = samples[..., : 1 if keep == "lab" else 4 if planes == 4 else 3 if planes > 2 else planes]
    return samples, Header("tiff", width, height, keep=keep, depth=bits, orientation=tags.get(274, 1))


_LAB = (8, 9, 10)  # photometric interpretations: CIELAB, ICCLAB, ITULAB


_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 33432)  # what it shows, camera, software, time, artist, rights
_DIRECTORIES = (34665, 34853)  # of the camera's tags, and of where it was
_ELSEWHERE = (37500, 40965)  # makers' notes and DCF's directory, which point to places of the file
TOLD = frozenset({271, 272, 315, 33432, *_DIRECTORIES})  # whichever of these is there, there is EXIF


def exif_block(picture: Any, data: bytes) -> bytes | None:
    """What the tags of an opened TIFF say of its picture, as an EXIF block of its own, without makers' notes.

    None where they say nothing, are broken, or so long that nobody would keep them: each is then a Python object.
    """
    from PIL import Image

    exif = Image.Exif()
    try:
        if not _is_brief(picture, data):
            return None
        exif.update({tag: picture.tag_v2[tag] for tag in _DESCRIPTIVE if tag in picture.tag_v2})
        for directory in _DIRECTORIES:
            tags = picture.getexif().get_ifd(directory)
            if kept := {tag: value for tag, value in tags.items() if tag not in _ELSEWHERE}:
                exif.get_ifd(directory).update(kept)
        return exif.tobytes() if exif else None
    except Exception:  # Pillow raises anything on them
        return None


def _is_brief(picture: Any, data: bytes) -> bool:
    """Whether the tags that would be read declare no more bytes than are kept. struct.error where they lie nowhere."""
    order = "<" if data[:2] == b"II" else ">"
    starts = [*struct.unpack_from(order + "I", data, 4), *(picture.tag_v2.get(tag) for tag in _DIRECTORIES)]
    declared = 0
    for start in starts:
        if start is None:
            continue
        for number in range(*struct.unpack_from(order + "H", data, start)):
            tag, kind, length = struct.unpack_from(order + "HHI", data, start + 2 + 12 * number)
            if start is not starts[0] or tag in _DESCRIPTIVE:
                declared += length * _SIZES.get(kind, 1)
    return data[2:4] in (b"*\0", b"\0*") and declared <= picture_files.LONGEST_BLOCK

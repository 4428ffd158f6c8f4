"""What a photograph's file says beside its pixels: EXIF and XMP, as they are kept, asked for by time, and given back.

EXIF is a small TIFF file (CIPA DC-008), XMP is XML (ISO 16684-1). Both are kept to the byte, but for what is no longer
true of an upright picture in sRGB: how to turn it, its colours, the thumbnail. Where they lie in a file is told by
picture_files.py.
"""

import re
import struct
import zlib
from contextlib import suppress
from datetime import datetime

from compressor.picture_files import LONGEST_BLOCK, XMP_KEYWORD, XMP_SIGN

MOST_BYTES = LONGEST_BLOCK
_ORIENTATION = 0x0112
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_DIRECTORY, _INTEROPERABILITY = 0x8769, 0xA005  # where a camera's tags are, and in these where DCF's
_COLOUR_SPACE, _INDEX = 0xA001, 0x0001
_SHORT = 3
# When the picture was taken, was digitized, or its file was changed; and how far from UTC the clock was
_TIMES = ((36867, 36881), (36868, 36882), (306, 36880))
_TURNED_XMP = re.compile(rb"""(tiff:Orientation(?:>|\s*=\s*["']))\s*[2-8]\s*(?=[<"'])""")


def kept_exif(block: bytes) -> bytes | None:
    """An EXIF block as it is kept: of an upright picture in sRGB, which it is now.

    Its thumbnail is forgotten, its bytes are zero, so that all others stay where makers' notes look for them. What is
    broken stays so. None where the block is longer than ``MOST_BYTES``, or no EXIF.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) > MOST_BYTES:
        return None
    kept = bytearray(block)
    try:
        tags, after = _entries(block, order, 4)
    except struct.error:  # it ends early
        return None
    if at := tags.get(_ORIENTATION):
        struct.pack_into(order + "HHIHH", kept, at, _ORIENTATION, _SHORT, 1, 1, 0)
    with suppress(struct.error):
        _forget_thumbnail(kept, block, order, after)
    with suppress(struct.error):
        _say_srgb(kept, block, order, tags)
    return bytes(kept)


def _entries(block: bytes, order: str, pointer: int) -> tuple[dict[int, int], int]:
    """Where each tag of a directory lies that ``pointer`` leads to, and what points to the next. struct.error."""
    (start,) = struct.unpack_from(order + "I", block, pointer)
    (count,) = struct.unpack_from(order + "H", block, start)
    places = [start + 2 + 12 * number for number in range(count)]
    tags = {struct.unpack_from(order + "HHII", block, at)[0]: at for at in reversed(places)}
    return tags, start + 2 + 12 * count


def _forget_thumbnail(kept: bytearray, block: bytes, order: str, pointer: int) -> None:
    if not struct.unpack_from(order + "I", block, pointer)[0]:
        return
    struct.pack_into(order + "I", kept, pointer, 0)
    tags, _ = _entries(block, order, pointer)
    if _THUMBNAIL in tags and _THUMBNAIL_BYTES in tags:
        start, length = (
            struct.unpack_from(order + "I", block, tags[tag] + 8)[0] for tag in (_THUMBNAIL, _THUMBNAIL_BYTES)
        )
        if block[start : start + 2] == b"\xff\xd8" and start + length <= len(block):
            kept[start : start + length] = bytes(length)


def _say_srgb(kept: bytearray, block: bytes, order: str, tags: dict[int, int]) -> None:
    """Pixels are converted: whoever reads Adobe RGB (DCF's R03), or no colour space it knows, would convert again."""
    if _DIRECTORY not in tags:
        return
    own, _ = _entries(block, order, tags[_DIRECTORY] + 8)
    if at := own.get(_COLOUR_SPACE):
        struct.pack_into(order + "HHIHH", kept, at, _COLOUR_SPACE, _SHORT, 1, 1, 0)
    if _INTEROPERABILITY in own:
        index, _ = _entries(block, order, own[_INTEROPERABILITY] + 8)
        if (at := index.get(_INDEX)) and block[at + 8 : at + 11] == b"R03":
            kept[at + 8 : at + 11] = b"R98"


def kept_xmp(packet: bytes) -> bytes | None:
    """An XMP packet as it is kept: of an upright picture. None where it is longer than ``MOST_BYTES``, or empty."""
    packet = packet.strip(b"\0 \r\n\t")
    if not packet or len(packet) > MOST_BYTES:
        return None
    return _TURNED_XMP.sub(rb"\g<1>1", packet)


def taken(block: bytes) -> str | None:
    """When a picture was taken, by its EXIF: ``2026-11-28T14:03:21``, by the camera's clock, and ``+01:00`` if it says.

    None where it does not say, or no such day, or is longer than ``MOST_BYTES``.
    """
    from PIL import Image

    if len(block) > MOST_BYTES:
        return None
    exif = Image.Exif()
    try:
        exif.load(block)
        own = exif.get_ifd(_DIRECTORY)
        told = [[_text(own.get(tag, exif.get(tag))) for tag in pair] for pair in _TIMES]
    except Exception:  # Pillow raises anything on a broken block
        return None
    for time, zone in told:
        with suppress(ValueError):
            at = datetime.strptime(time[:19].replace("T", " "), "%Y:%m:%d %H:%M:%S")
            with suppress(ValueError):
                at = at.replace(tzinfo=datetime.strptime(zone.strip(), "%z").tzinfo)
            return at.isoformat()
    return None


def _text(value: object) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return text.strip("\0 ")


def with_metadata(file: bytes, format: str, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A PNG or JPEG ``file``, written without metadata, with those that are no longer than ``MOST_BYTES``."""
    exif, xmp = (block if block and len(block) <= MOST_BYTES else None for block in (exif, xmp))
    if format == "jpeg":
        segments = [(b"Exif\0\0", exif), (XMP_SIGN, xmp)]
        parts = [
            b"\xff\xe1" + struct.pack(">H", 2 + len(sign) + len(data)) + sign + data for sign, data in segments if data
        ]
        at = 4 + struct.unpack_from(">H", file, 4)[0] if file[2:4] == b"\xff\xe0" else 2  # JFIF's segment is the first
        return file[:at] + b"".join(parts) + file[at:]
    chunks = [(b"eXIf", exif), (b"iTXt", xmp and XMP_KEYWORD + bytes(5) + xmp)]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
        if data
    ]
    return file[:33] + b"".join(parts) + file[33:]  # behind the header

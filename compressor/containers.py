"""What files of standard formats hold around a coded picture: how much is the picture, and what AVIF puts before it.

Codecs of these formats are in ``baselines.py``; what a source's file tells of itself is read by ``picture_files.py``.
"""

import re
import struct
from collections.abc import Iterator

from compressor import picture_files

# Within a JPEG's scan 0xFF is followed by a stuffed zero or a restart marker; anything else ends it.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
_AVIF_CONTAINER = 275  # bytes


def payload_size(data: bytes) -> int:
    """Bytes of a JPEG, WebP, AVIF or JPEG XL file without what a container repeats in each file.

    JPEG: the entropy-coded data of all scans, without tables and headers. WebP: the coded chunks without RIFF and chunk
    headers. AVIF and boxed JPEG XL: what the boxes of coded data hold. Anything else counts whole.
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_scan_bytes(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return sum(size for kind, size in _riff_chunks(data) if kind in (b"VP8 ", b"VP8L", b"ALPH"))
    if data[4:8] in (b"ftyp", b"JXL "):
        return sum(size for kind, _, size in picture_files.boxes(data) if kind in (b"mdat", b"jxlc", b"jxlp"))
    return len(data)


def _jpeg_scan_bytes(data: bytes) -> int:
    position, total = 2, 0
    while position + 4 <= len(data):
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xD9:
            break
        position += 2 + length
        if marker == 0xDA:
            end = _SCAN_END.search(data, position)
            start, position = position, end.start() if end else len(data)
            total += max(0, position - start)
    return total


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        yield kind, size
        position += 8 + size + size % 2


def avif_container(brand: bytes, av1: bytes, colour: bytes, width: int, height: int, size: int) -> bytes:
    """What libavif writes before ``size`` bytes of one 8-bit picture of AV1's level 2.0 (ISO 23000-22)."""
    return b"".join(
        (
            b"\0\0\0 ftypavif\0\0\0\0avifmif1miaf" + brand,
            b"\0\0\0\xebmeta\0\0\0\0",
            b"\0\0\0!hdlr" + bytes(8) + b"pict" + bytes(13),
            b"\0\0\0\x0epitm\0\0\0\0\0\1",
            b"\0\0\0\x1eiloc\0\0\0\0D\0\0\1\0\1\0\0\0\1",
            struct.pack(">II", _AVIF_CONTAINER, size),
            b"\0\0\0(iinf\0\0\0\0\0\1\0\0\0\x1ainfe\2\0\0\0\0\1\0\0av01Color\0",
            b"\0\0\0jiprp\0\0\0Kipco",
            b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", width, height),
            b"\0\0\0\x10pixi\0\0\0\0\3\x08\x08\x08",
            b"\0\0\0\x0cav1C\x81" + av1,
            b"\0\0\0\x13colrnclx" + colour + b"\0\6\x80",
            b"\0\0\0\x17ipma\0\0\0\0\0\0\0\1\0\1\4\1\2\x83\4",
            struct.pack(">I4s", 8 + size, b"mdat"),
        )
    )


def av1_size(file: bytes) -> tuple[int, int]:
    """Width and height in the reduced sequence header (AV1, 5.5.1) of the still picture behind a container.

    libavif scales what it finds to the size that the container tells. A second header would count instead.
    """
    data = file[_AVIF_CONTAINER:]
    if _av1_units(data) != [2, 1, 6] or data[:3] != b"\x12\0\x0a":
        raise ValueError("it is not a temporal delimiter, a sequence header and a frame")
    bits = "".join(f"{byte:08b}" for byte in data[4:16])
    if bits[3:5] != "11":
        raise ValueError("it is not a still picture with a reduced header")
    width_bits, height_bits = int(bits[10:14], 2) + 1, int(bits[14:18], 2) + 1
    width, height = bits[18 : 18 + width_bits], bits[18 + width_bits : 18 + width_bits + height_bits]
    return int(width, 2) + 1, int(height, 2) + 1


def _av1_units(data: bytes) -> list[int]:
    """Types of the units of a stream, each of which tells its size (AV1, 5.3)."""
    kinds, at = [], 0
    while at < len(data):
        kinds.append(data[at] >> 3 & 15)
        size = shift = 0
        while shift < 35:
            at += 1
            if at >= len(data):
                raise ValueError("its last unit is cut short")
            size |= (data[at] & 127) << shift
            shift += 7
            if data[at] < 128:
                break
        at += 1 + size
    if at != len(data):
        raise ValueError("its last unit is cut short")
    return kinds

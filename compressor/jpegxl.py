"""What a JPEG XL says of itself before anything is decoded (ISO/IEC 18181-1, annex D; its container is 18181-2).

Not here: decoding (images.py, baselines.py).
"""

from compressor.errors import ImageError
from compressor.picture_files import EXIF, JPEGXL, JPEGXL_BOXES, OTHER, XMP, Header, boxes, check_boxes

_HEADERS = 2**16  # bytes of a codestream in which its headers end; all but names of channels take fewer than 100
_MOST_CHANNELS = 4  # beside the colours, as in 18181-1's level 5: each takes memory for all pixels
_EXTRAS = {b"Exif": EXIF, b"xml ": XMP, b"jhgm": OTHER}  # the last is a gain map
_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))

# How many bits follow a choice of two, and what is added to them (18181-1, B.2.2)
_Choices = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
_SIDE: _Choices = ((9, 1), (13, 1), (18, 1), (30, 1))
_ENUM: _Choices = ((0, 0), (0, 1), (4, 2), (6, 18))
_INTEGER_BITS: _Choices = ((0, 8), (0, 10), (0, 12), (6, 1))
_FLOAT_BITS: _Choices = ((0, 32), (0, 16), (0, 24), (6, 1))
_CHANNELS: _Choices = ((0, 0), (0, 1), (4, 2), (12, 1))
_SHIFT: _Choices = ((0, 0), (0, 3), (0, 4), (3, 1))
_NAME: _Choices = ((0, 0), (4, 0), (5, 16), (10, 48))
_FILTER: _Choices = ((0, 1), (2, 0), (4, 3), (8, 19))
_COORDINATE: _Choices = ((19, 0), (19, 2**19), (20, 2**20), (21, 2**21))
_PREVIEW_8: _Choices = ((0, 16), (0, 32), (5, 1), (9, 33))
_PREVIEW: _Choices = ((6, 1), (8, 65), (10, 321), (12, 1345))
_TICKS: _Choices = ((0, 100), (0, 1000), (10, 1), (30, 1))
_TICKS_UNDER: _Choices = ((0, 1), (0, 1001), (8, 1), (10, 1))
_LOOPS: _Choices = ((0, 0), (3, 0), (16, 0), (32, 0))

_ALPHA, _SPOT_COLOUR, _BLACK, _COLOUR_FILTER = 0, 2, 4, 5  # kinds of channels
_GREY, _XYB = 1, 2  # colour spaces
_CUSTOM, _D65 = 2, 1  # white points; custom primaries have the same number


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height of what is coded, in a container or without one.

    ImageError where it is no JPEG XL.
    """
    return _size(_Bits(_codestream(data)))


def read_header(data: bytes) -> Header:
    """All that the headers tell; ``width`` and ``height`` are those before the picture is turned, as decoders do.

    Colours by an ICC profile are not known to be sRGB's: the profile is coded, and libjxl hands out no other than
    its own.

    Raises
    ------
    ImageError
        It is no JPEG XL, or has so many channels that no limit on pixels would bound the memory for them.
    """
    extras = frozenset[str]()
    if data.startswith(JPEGXL_BOXES):
        check_boxes(data)
        kinds_of_boxes = (data[at : at + 4] if kind == b"brob" else kind for kind, at, _ in boxes(data))
        extras = frozenset(_EXTRAS[kind] for kind in kinds_of_boxes if kind in _EXTRAS)
    bits = _Bits(_codestream(data))
    width, height = _size(bits)
    if bits.flag():  # everything is as usual: 8 bits, sRGB
        return Header("jpegxl", width, height, extras=extras)
    keep = None
    if bits.flag():
        bits.take(3)  # orientation
        if bits.flag():
            _size(bits)  # at which to show it
        if bits.flag():
            _preview(bits)
        if bits.flag():
            keep = "animated"
            for choices in (_TICKS, _TICKS_UNDER, _LOOPS):
                bits.choose(choices)
            bits.flag()
    is_float, depth = _depth(bits)
    bits.flag()  # whether 16 bits do for decoding
    channels = bits.choose(_CHANNELS)
    if channels > _MOST_CHANNELS:
        raise ImageError("unsupported", f"a JPEG XL of {channels} channels beside its colours is not read here")
    kinds = [_channel(bits) for _ in range(channels)]
    bits.flag()  # whether it is coded as XYB
    faithful = _is_srgb(bits)
    if bits.past_end:
        raise ImageError("truncated", "the file ends before its JPEG XL headers do: copy or download it again")
    if _BLACK in kinds:
        keep = keep or "cmyk"
    elif any(kind != _ALPHA for kind in kinds) or len(kinds) > 1:
        keep = keep or "alpha"
    if is_float:
        keep = keep or "float"
    if depth > 8:
        keep = keep or "16-bit"
    keep = keep or (None if faithful else "wide-gamut")
    return Header("jpegxl", width, height, keep=keep, depth=depth, extras=extras)


class _Bits:
    """Fields of a header, from the lowest bit of the first byte on; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 8 * len(JPEGXL)

    @property
    def past_end(self) -> bool:
        return self._at > 8 * len(self._data)

    def take(self, count: int) -> int:
        first, skipped = divmod(self._at, 8)
        self._at += count
        return int.from_bytes(self._data[first : first + 6], "little") >> skipped & (1 << count) - 1

    def flag(self) -> bool:
        return bool(self.take(1))

    def choose(self, choices: _Choices) -> int:
        count, more = choices[self.take(2)]
        return self.take(count) + more

    def skip(self, count: int) -> None:
        self._at += count


def _codestream(data: bytes) -> bytes:
    """The first bytes of what is coded, which in a container may be in numbered parts."""
    if data.startswith(JPEGXL_BOXES):
        parts, held = [], 0
        for kind, at, size in boxes(data):
            if kind in (b"jxlc", b"jxlp") and held < _HEADERS:
                number = 4 * (kind == b"jxlp")
                parts.append(data[at + number : at + min(size, _HEADERS)])
                held += len(parts[-1])
        data = b"".join(parts)
    if data[:2] != JPEGXL or len(data) < 12:
        raise ImageError("corrupt", "it is no JPEG XL codestream")
    return data[:_HEADERS]


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else bits.choose(_SIDE)

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    over, under = _RATIOS[ratio - 1]
    return height * over // under, height


def _preview(bits: _Bits) -> None:
    choices = _PREVIEW_8 if bits.flag() else _PREVIEW
    bits.choose(choices)
    if not bits.take(3):
        bits.choose(choices)


def _depth(bits: _Bits) -> tuple[bool, int]:
    """Whether samples are floats, and their bits."""
    is_float = bits.flag()
    depth = bits.choose(_FLOAT_BITS if is_float else _INTEGER_BITS)
    if is_float:
        bits.take(4)  # of the exponent
    return is_float, depth


def _channel(bits: _Bits) -> int:
    """The kind of a channel beside the colours."""
    if bits.flag():
        return _ALPHA
    kind = bits.choose(_ENUM)
    _depth(bits)
    bits.choose(_SHIFT)
    bits.skip(8 * bits.choose(_NAME))
    if kind == _ALPHA:
        bits.flag()  # whether colours are multiplied by it
    elif kind == _SPOT_COLOUR:
        bits.skip(4 * 16)
    elif kind == _COLOUR_FILTER:
        bits.choose(_FILTER)
    return kind


def _is_srgb(bits: _Bits) -> bool:
    """Whether colours are said to be sRGB's, in numbers (ITU-T H.273)."""
    if bits.flag():
        return True
    by_profile, space = bits.flag(), bits.choose(_ENUM)
    if by_profile or space == _XYB:
        return False
    white = bits.choose(_ENUM)
    if white == _CUSTOM:
        _skip_points(bits, 1)
    primaries = 1 if space == _GREY else bits.choose(_ENUM)
    if primaries == _CUSTOM:
        _skip_points(bits, 3)
    if bits.flag():  # a gamma
        bits.take(24)
        return False
    transfer = bits.choose(_ENUM)
    bits.choose(_ENUM)  # rendering intent
    return (white, primaries, transfer) == (_D65, 1, 13)


def _skip_points(bits: _Bits, count: int) -> None:
    for _ in range(2 * count):
        bits.choose(_COORDINATE)

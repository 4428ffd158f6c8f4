"""What a picture file's first bytes and structure tell before anything is decoded: format, size, orientation, colour.

Not here: decoding (images.py). Each reader refuses a file that stops early, which decoders fill with grey in silence.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from compressor.errors import ImageError


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    ``icc`` is its colour profile unless what it says otherwise counts before that, ``exif`` its TIFF-like block, by
    which the picture is still to be turned unless it is ``upright``, ``xmp`` its packet, ``keep`` and ``extras`` as in
    :class:`compressor.images.Picture` as far as the header tells, ``depth`` the bits of a sample in what decodes to
    more than 8, ``orientation`` as in EXIF, where the decoder does not turn and EXIF does not tell.
    """

    format: str
    width: int
    height: int
    icc: bytes | None = None
    exif: bytes | None = None
    keep: str | None = None
    depth: int = 16
    orientation: int = 1
    extras: frozenset[str] = frozenset()
    xmp: bytes | None = None
    upright: bool = False


EXIF, XMP, IPTC, TEXT, OTHER = "EXIF", "XMP", "IPTC", "text", "other data"


def sniff(data: bytes) -> str | None:
    """The format by the file's first bytes, whatever its name; None for what is no known picture."""
    for magic, name in (*UNREAD.items(), *_MAGIC.items()):
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & {b"heic", b"heix", b"mif1", *_SEQUENCES}:
            return "heic"
    if re.match(rb"P[1-6][\s#]", data):
        return "pnm"
    # Two letters are common at the start of a text: what follows must be a bitmap's header too
    if data[:2] == b"BM" and len(data) >= 18 and struct.unpack_from("<I", data, 14)[0] in _BMP_HEADERS:
        return "bmp"
    return None


def _brands(data: bytes) -> set[bytes]:
    """What a file of the ISO base media format says to be (ISO/IEC 14496-12, section 4.3)."""
    (size,) = struct.unpack_from(">I", data)
    return {data[i : i + 4] for i in (8, *range(16, min(size, 256), 4))}


_SEQUENCES = frozenset({b"hevc", b"hevx", b"msf1"})  # HEIF's brands of several pictures in time
# Pictures that nothing here reads: they are refused as such, and not for what they are not
UNREAD = {
    b"II\xbc": "JPEG XR",
    b"8BPS": "Photoshop's PSD",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"P7\n": "PAM",
    b"PF\n": "PFM",
    b"Pf\n": "PFM",
    b"SDPX": "DPX",
    b"XPDS": "DPX",
    b"DDS ": "DDS",
    b"gimp xcf": "GIMP's XCF",
    b"qoif": "QOI",
    b"BPG\xfb": "BPG",
    b"FLIF": "FLIF",
}
JPEGXL, JPEGXL_BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg2000",
    b"\xff\x4f\xff\x51": "jpeg2000",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    JPEGXL: "jpegxl",
    JPEGXL_BOXES: "jpegxl",
}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_LONGEST_PROFILE = 8 * 2**20
LONGEST_BLOCK = 65_000  # of EXIF or XMP that is kept: what one segment of a JPEG holds, into which a restore may put it


def unread(name: str) -> ImageError:
    return ImageError("unsupported", f"{name} is not read here: convert it to PNG, TIFF or JPEG first")


def truncated(what: str) -> ImageError:
    return ImageError("truncated", f"the file ends before {what}: copy or download it again")


# PNG: signature, then chunks of length, type, content, CRC-32 (W3C PNG, third edition)


def read_png(data: bytes) -> Header:
    """Walk all chunks up to IEND, checking their CRCs."""
    if len(data) < 33:
        raise truncated("its PNG header does")
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    keep = "16-bit" if depth == 16 else None
    icc = exif = xmp = other = None
    said_srgb = said_cicp = has_pixels = False
    extras = set()
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise truncated("its PNG data do")
        length, kind = struct.unpack_from(">I4s", data, at)
        content = memoryview(data)[at + 8 : at + 8 + length]
        at += 12 + length
        if at > len(data):
            raise truncated("its PNG data do")
        (stored,) = struct.unpack_from(">I", data, at - 4)
        if (computed := zlib.crc32(content, zlib.crc32(kind))) != stored:
            raise ImageError("corrupt", f"PNG chunk {kind!r}: stored crc32 {stored:#010x}, computed {computed:#010x}")
        if kind == b"acTL":
            keep = "animated"
        elif kind == b"IDAT":
            has_pixels = True
        elif kind == b"eXIf":
            exif = bytes(content)
            extras.add(EXIF)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, text = bytes(content[:200]).partition(b"\0")
            is_own = _KEYWORDS.match(keyword.lower()) or (kind == b"tEXt" and not is_remark(text))
            if not is_own:  # text of the other kinds is compressed, or has more fields first
                extras.add(_TEXTS.get(keyword.lower(), TEXT))
            if kind == b"iTXt" and keyword == XMP_KEYWORD and length <= LONGEST_BLOCK:
                xmp = xmp or _png_text(bytes(content[len(keyword) + 1 :]))
        elif kind == b"sRGB":
            said_srgb = True
        elif kind == b"iCCP":
            icc = _png_profile(bytes(content))
        elif kind == b"cICP" and length == 4 and 2 not in content[:2]:  # which says nothing
            said_cicp = True
            primaries, transfer, _, full_range = content
            keep = keep if full_range and is_srgb_like(primaries, transfer) else keep or "wide-gamut"
        elif kind == b"gAMA" and length == 4 and not _is_srgb_gamma(*struct.unpack(">I", content)):
            other = "gamma"
        elif (
            kind == b"cHRM" and length == 32 and data[25] & 2 and not _is_srgb_primaries(struct.unpack(">8I", content))
        ):
            other = other or "wide-gamut"  # of a grey picture primaries say nothing
    if not has_pixels:
        raise ImageError("corrupt", "the PNG holds no picture")
    if other and not (said_cicp or icc or said_srgb):  # which count before it, in that order, wherever they stand
        keep = keep or other
    return Header("png", width, height, None if said_cicp else icc, exif, keep, extras=frozenset(extras), xmp=xmp)


XMP_KEYWORD = b"XML:com.adobe.xmp"
_TEXTS = {
    XMP_KEYWORD.lower(): XMP,
    b"raw profile type xmp": XMP,
    b"raw profile type exif": EXIF,
    b"raw profile type app1": EXIF,
    b"raw profile type iptc": IPTC,
}
# What programs write into a PNG for themselves
_KEYWORDS = re.compile(rb"software|date:|creation time|raw profile type ic|png:|thumb::|signature")


def is_remark(text: bytes) -> bool:
    """Whether a comment may be a person's: programs and cameras write which they are."""
    return bool(text.strip(b"\0 \r\n")) and not _PROGRAMS.match(text)


_PROGRAMS = re.compile(
    rb"\s*(creator|created (with|by|using)|file (written|source)|lavc|lead tech|handmade|process|optimi[sz]|compress|"
    rb"ffmpeg|intel|applemark|olympus digital|samsung|minolta|jpeg|gif|made with|edited|resized|cs=|\*|ascii)",
    re.IGNORECASE,
)


def _png_profile(content: bytes) -> bytes | None:
    _, _, packed = content.partition(b"\0")
    return _inflated(packed[1:], _LONGEST_PROFILE)


def _png_text(fields: bytes) -> bytes | None:
    """What an iTXt says behind its keyword: whether it is compressed, and how, two languages, the text."""
    *_, text = fields[2:].split(b"\0", 2)
    return _inflated(text, LONGEST_BLOCK + 1) if fields[:1] == b"\1" else text


def _inflated(packed: bytes, most: int) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return None  # as browsers do: a broken profile is no profile


def _is_srgb_gamma(gamma: int) -> bool:
    """Near enough to 1/2.2 to move samples by one level of 255 at most, as is 0.45, which some write; 0 is no gamma."""
    return not gamma or abs(gamma - _SRGB_GAMMA) <= 500


def _is_srgb_primaries(points: tuple[int, ...]) -> bool:
    """White, red, green and blue, x and y each, as sRGB's but for what writers round."""
    return all(abs(here - there) <= 100 for here, there in zip(points, _SRGB_PRIMARIES, strict=True))


_SRGB_GAMMA = 45_455  # hundred-thousandths, as all of these
_SRGB_PRIMARIES = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)


def is_srgb_like(primaries: int, transfer: int) -> bool:
    """ITU-T H.273 codes: BT.709 or unsaid primaries, and a transfer function not for HDR, cinemas or linear light."""
    return primaries in (1, 2) and transfer not in (8, 16, 17, 18)


# JPEG: markers, entropy-coded scans between them (ITU-T T.81 annex B)

XMP_SIGN = b"http://ns.adobe.com/xap/1.0/\0"
_NEXT_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_jpeg(data: bytes) -> Header:
    """Walk all markers, through all scans, up to the end of the first picture (what follows is a preview or depth)."""
    profile: dict[int, bytes] = {}
    exif = xmp = frame = None
    several = False
    extras = set()
    at = 2
    while True:
        found = _NEXT_MARKER.search(data, at)
        if not found:
            raise truncated("the end-of-image marker of its JPEG")
        at, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):
            continue
        if at + 2 > len(data):
            raise truncated("its JPEG segments do")
        end = at + struct.unpack_from(">H", data, at)[0]
        if end > len(data):
            raise truncated("its JPEG segments do")
        content = data[at + 2 : end]
        at = end
        if marker == 0xF7 and frame is None:
            raise unread("JPEG-LS")
        if marker in _FRAMES and frame is None:
            if len(content) < 6:
                raise ImageError("corrupt", "the JPEG frame header is too short")
            frame = struct.unpack_from(">BHHB", content)
        elif marker == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = exif or content[6:]
            extras.add(EXIF)
        elif marker == 0xE1 and content.startswith(XMP_SIGN):
            xmp = xmp or content[len(XMP_SIGN) :]
            extras.add(XMP)
        elif marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xmp/extension/"):
            extras.add(OTHER)  # what the packet has no room for, such as depth
        elif marker == 0xED and b"8BIM\4\4" in content:
            extras.add(IPTC)
        elif marker == 0xFE and is_remark(content):
            extras.add(TEXT)
        elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
            profile[content[12]] = content[14:]
        elif marker == 0xE2 and content.startswith(b"MPF\0"):
            several = several or _has_views(content[4:])
    if frame is None:
        raise ImageError("corrupt", "the JPEG holds no picture")
    if len(data) > at and data[at:].strip(b"\0\r\n \xff"):
        extras.add(OTHER)
    precision, height, width, components = frame
    keep = "cmyk" if components == 4 else "16-bit" if precision > 8 else "multi-page" if several else None
    icc = b"".join(profile[i] for i in sorted(profile)) or None
    return Header("jpeg", width, height, icc, exif, keep, max(precision, 9), extras=frozenset(extras), xmp=xmp)


def _has_views(index: bytes) -> bool:
    """Whether a JPEG's index of pictures (CIPA DC-007) lists parts of a panorama, a stereo pair or other views.

    Not previews, nor what has no kind, such as a gain map.
    """
    order = "<" if index[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(order + "I", index, 4)
        (entries,) = struct.unpack_from(order + "H", index, at)
        for entry in range(entries):
            tag, _, size, first = struct.unpack_from(order + "HHII", index, at + 2 + 12 * entry)
            if tag == 0xB002:
                kinds = (struct.unpack_from(order + "I", index, first + 16 * one)[0] for one in range(size // 16))
                return any(kind & 0xFF0000 == 0x020000 for kind in kinds)
    except struct.error:  # a broken index is as good as none
        pass
    return False


# The others: Pillow reads their headers; here is what it does not tell or check


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP (RFC 9649); Pillow allocates whole canvases before it tells them."""
    (size,) = struct.unpack_from("<I", data, 4)
    if 8 + size > len(data) or len(data) < 30:
        raise truncated("its WebP data do")
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def read_avif_size(data: bytes) -> tuple[int, int]:
    """Width and height that the container of an AVIF tells, to which its decoder scales what it holds."""
    at = data.find(b"ispe")  # ISO/IEC 23008-12, section 6.5.3
    if at < 0 or at + 16 > len(data):
        raise ImageError("corrupt", "the AVIF says no size")
    width, height = struct.unpack_from(">II", data, at + 8)
    return width, height


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type of each outermost box, where its content begins, and how many bytes that has (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1 and at + 16 <= len(data):
            header, size = 16, struct.unpack_from(">Q", data, at + 8)[0]
        elif size == 0:
            size = len(data) - at
        if size < header:
            return
        yield kind, at + header, size - header
        at += size


def check_boxes(data: bytes) -> None:
    """Refuse an ISO base media file (AVIF, HEIC, JPEG 2000, JPEG XL) whose outermost boxes reach beyond its end."""
    end = 0
    for _, content, size in boxes(data):
        end = content + size
    if end + 8 <= len(data):
        raise ImageError("corrupt", f"the box at byte {end} is smaller than its own header")
    if end > len(data):
        raise truncated("its boxes do")


def read_extras(data: bytes) -> frozenset[str]:
    """What lies beside the picture in an AVIF or HEIC, by the types of its items (ISO/IEC 14496-12, 8.11.6)."""
    found = {_KINDS[item[1]] for item in _ITEMS.finditer(data)}
    return frozenset(found | {OTHER} if _OTHERS.search(data) else found)


def count_items(data: bytes) -> int:
    """How many items of EXIF and the like an AVIF or HEIC has."""
    return sum(1 for _ in _ITEMS.finditer(data))


_KINDS = {b"Exif": EXIF, b"mime": XMP, b"tmap": OTHER}  # the last is a gain map's (ISO 21496-1)
_ITEMS = re.compile(rb"infe.{8}(Exif|mime|tmap)", re.DOTALL)
_OTHERS = re.compile(
    rb"auxC.{4}urn:[\x21-\x7e]*?:(hdrgainmap|depth|disparity|portraiteffectsmatte|semantic|auxid:2\0)", re.DOTALL
)


def read_avif_keep(data: bytes) -> str | None:
    """Why an AVIF's 8-bit sRGB pixels would not be faithful, which its decoder does not tell."""
    at = data.find(b"av1C")  # AV1-ISOBMFF 2.3.3: seq_profile, then a byte with high_bitdepth as its second bit
    if 0 < at < len(data) - 7 and data[at + 6] & 0x40:
        return "16-bit"
    at = data.find(b"colrnclx")
    if 0 < at < len(data) - 12 and not is_srgb_like(*struct.unpack_from(">HH", data, at + 8)):
        return "wide-gamut"
    return None


def read_bmp_colours(data: bytes) -> tuple[str | None, bytes | None]:
    """Why a BMP's pixels are not faithful, and the profile that it holds: Pillow reads none."""
    (size,) = struct.unpack_from("<I", data, 14)
    space = data[70:74] if size >= 124 else b""
    if space == b"KNIL":
        return "wide-gamut", None  # the profile is another file
    if space != b"DEBM":
        return None, None
    at, length = struct.unpack_from("<II", data, 126)
    return None, data[14 + at : 14 + at + length]


def read_heic_keep(data: bytes) -> str | None:
    """Whether a HEIC says to hold a sequence, of which its decoder gives the cover."""
    return "animated" if _brands(data) & _SEQUENCES else None


def read_jpeg2000_keep(data: bytes) -> str | None:
    """Check that a JPEG 2000 codestream ends (ITU-T T.800 annex A); whether it is deeper than 8 bits or has a profile.

    Pillow does not read profiles (annex I.5.3.3), so that colours by one are not known to be sRGB's.
    """
    if data[:4] != b"\xff\x4f\xff\x51":
        check_boxes(data)
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 43 > len(data) or data.find(b"\xff\xd9", at) < 0:
        raise truncated("its JPEG 2000 codestream does")
    (components,) = struct.unpack_from(">H", data, at + 40)
    depths = [(byte & 0x7F) + 1 for byte in data[at + 42 : at + 42 + 3 * components : 3]]
    if max(depths, default=8) > 8:
        return "16-bit"
    box = data.find(b"colr", 0, at)
    return "wide-gamut" if box >= 0 and data[box + 4] in (2, 3) else None


def read_pnm(data: bytes) -> tuple[bytes, str | None]:
    """A PBM, PGM or PPM without remarks, over which Pillow takes long, and why its first picture is not all of it.

    Where samples are text, the end of the first picture is not looked for.
    """
    header = _BITMAP.match(data) or _PIXMAP.match(data)
    if not header:
        raise ImageError("corrupt", "what follows P and a number is no header of a PBM, PGM or PPM")
    kind, numbers = header[1], [int(number) for number in header.groups()[1:]]
    width, height, *most = numbers
    deep = most > [255]
    keep = "16-bit" if deep else None
    rest = data[header.end() :]
    if kind in b"456":
        samples = width * (3 if kind == b"6" else 1) * (2 if deep else 1)
        end = height * (-(-width // 8) if kind == b"4" else samples)
        if end > len(rest):
            raise truncated("its samples do")
        keep = "multi-page" if rest[end : end + 1] == b"P" else keep
    else:
        rest = b"".join(re.sub(rb"#[^\r\n]*+", b"", lines) for lines in _portions(rest))
    return b"P%s %s\n%s" % (kind, b" ".join(b"%d" % number for number in numbers), rest), keep


def _portions(text: bytes) -> Iterator[bytes]:
    """Whole lines of about 64 KiB together: what replaces remarks takes fifty times the memory of the text."""
    at = 0
    while at < len(text):
        end = text.find(b"\n", at + 2**16) + 1 or len(text)
        yield text[at:end]
        at = end


def _pnm(kinds: bytes, numbers: int) -> re.Pattern[bytes]:
    gap = rb"(?:[ \t\n\v\f\r]++|#[^\r\n]*+[\r\n])++"  # possessive: what is tried again is held in memory
    return re.compile(rb"P([" + kinds + rb"])" + numbers * (gap + rb"(\d{1,10})") + rb"(?:#[^\r\n]*+)?\s")


_BITMAP, _PIXMAP = _pnm(b"14", 2), _pnm(b"2356", 3)

"""A picture file's bytes to upright 8-bit sRGB pixels, or a named refusal; and pixels to another size.

Not here: where the bytes come from (sources.py), the structure of the files (picture_files.py), profiles (colours.py),
files that are written (picture_writing.py).
imagecodecs decodes PNG and ordinary TIFF (it is quiet, and faster than OpenCV and Pillow) and JPEG XL, simplejpeg JPEG
(it tells what libjpeg remarks on, with the same pixels), pillow-heif HEIC, Pillow the rest.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compressor import colours, jpegxl, picture_files, tiffs
from compressor.errors import ImageError
from compressor.limits import Limits, check_size, file_too_large, within
from compressor.picture_files import Header

# A remark on one picture among millions helps nobody; what matters is an ImageError.
logging.getLogger("imagecodecs").setLevel(logging.ERROR)
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes
    ----------
    pixels
        uint8 (H, W, 3), contiguous RGB, upright (EXIF orientation applied), in sRGB (ICC profile applied).
    channels
        1 grey (the three planes are equal), 3 colour.
    format
        As :func:`compressor.picture_files.sniff` names it, such as ``jpeg``.
    keep
        None if ``pixels`` are all there is to the picture. Otherwise why only its bytes are faithful: ``alpha``,
        ``16-bit`` (any depth over 8), ``float``, ``signed`` and ``untyped`` (samples of a TIFF that are no unsigned
        integers), ``animated``, ``multi-page`` (a preview of a raw file, or one of several views, too), ``layers`` (of
        Photoshop), ``cmyk``, ``lab``, ``wide-gamut`` (colours that sRGB does not have, or by primaries that a file
        gives as numbers, or by a profile that is not read, or not from 0 to 255), ``gamma`` (a PNG's, where it is not
        sRGB's),
        ``irregular`` (bytes in a JPEG that its decoder passes over); ``pixels`` are then a preview: composed on white,
        rounded to 8 bits, the first frame. An alpha channel that is opaque everywhere is dropped and no reason.
    extras
        What the file holds beside its picture, in words: EXIF, XMP, IPTC, text
        (comments), other data (behind a JPEG's picture; gain maps and depth).
    exif, xmp
        If they were asked for, the file's own blocks of these, as they are there (EXIF may tell to turn what is upright
        here), or made of a TIFF's tags. Those of JPEG XL, JPEG 2000 and GIF are not read.
    """

    pixels: np.ndarray
    channels: int
    format: str
    keep: str | None
    extras: frozenset[str] = frozenset()
    exif: bytes | None = None
    xmp: bytes | None = None


def decode_picture(data: bytes, limits: Limits = Limits(), metadata: bool = False) -> Picture:  # noqa: B008 - frozen
    """Decode a picture file; its format is told from its bytes, not its name.

    Sizes are checked against ``limits`` before any pixel is decoded. Files that stop early are refused. A JPEG's scans
    have no checksum: damage in them is told where the decoder runs out of data or meets a code that is none.

    With ``metadata`` its EXIF and XMP are told too, each up to 65,000 bytes.

    A 128 x 128 portrait takes about 0.4 ms as PNG and 0.15 ms as JPEG, on one core.

    Raises
    ------
    ImageError
        With ``reason`` ``empty``, ``not_a_picture``, ``truncated``, ``unsupported``, ``too_large`` or ``corrupt``.
    MemoryError
        Memory ran out: the file may be sound.
    """
    picture = _decode(data, limits, metadata)
    exif, xmp = (block if metadata and _is_short(block) else None for block in (picture.exif, picture.xmp))
    return replace(picture, exif=exif, xmp=xmp)


def _is_short(block: object) -> bool:
    """Whether it is one that is kept: Pillow takes a TIFF's for what its type says, such as a number."""
    return isinstance(block, bytes) and len(block) <= picture_files.LONGEST_BLOCK


def _decode(data: bytes, limits: Limits, metadata: bool) -> Picture:
    if not data:
        raise ImageError("empty", "the file has no bytes")
    name = picture_files.sniff(data)
    if name is None:
        raise ImageError("not_a_picture", f"no known picture format begins with {bytes(data[:8])!r}")
    if name in picture_files.UNREAD.values():
        raise picture_files.unread(name)
    if len(data) > limits.max_bytes:
        raise file_too_large(len(data), limits)
    try:
        if name == "png":
            header = picture_files.read_png(data)
            with within(header.width, header.height, limits):
                return _finish(_png(data), header)
        if name == "jpeg":
            header = picture_files.read_jpeg(data)
            if header.keep != "cmyk":
                with within(header.width, header.height, limits):
                    samples, why = _jpeg(data, header)
                    return _finish(samples, replace(header, keep=header.keep or why))
        if name == "heic":
            return _heic(data, limits, metadata)
        if name == "jpegxl":
            header = jpegxl.read_header(data)
            with within(header.width, header.height, limits):
                return _finish(_jpegxl(data, header), header)
        return _decode_by_pillow(data, name, limits, metadata)
    except (ImageError, MemoryError, ImportError):  # a library that is not loaded says nothing of a file
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; all of it means the same to a user
        raise _refusal(name, error) from error


def resize_picture(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut uint8 (H, W, 3) ``pixels`` to the square in their middle and resample it to ``side`` x ``side``.

    Shrinking takes the mean over areas (no aliasing), enlarging is cubic.
    """
    import cv2

    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = pixels[top : top + edge, left : left + edge]
    if edge == side:
        return np.ascontiguousarray(square)
    method = cv2.INTER_AREA if edge > side else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(square), (side, side), interpolation=method)


def _png(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.png_decode(data)


def _jpeg(data: bytes, header: Header) -> tuple[np.ndarray, str | None]:
    """Samples, and why they may be less than the file. ImageError where libjpeg had to make some of them up."""
    import imagecodecs
    import simplejpeg

    why = None
    if header.keep in (None, "multi-page"):
        try:
            grey = simplejpeg.decode_jpeg_header(data)[2] == "Gray"
            return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", strict=True), None
        except ValueError as error:
            if _MADE_UP.search(str(error)):
                raise ImageError("corrupt", f"the jpeg file is damaged ({error}): copy or download it again") from error
            # Some cameras leave bytes between segments, and what TurboJPEG does not take other decoders do
            why = "irregular" if "extraneous bytes" in str(error) else None
    return imagecodecs.jpeg8_decode(data), why


_MADE_UP = re.compile("premature end|bad huffman|bad arithmetic|inconsistent progression", re.IGNORECASE)


def _jpegxl(data: bytes, header: Header) -> np.ndarray:
    """Samples of the first picture, upright."""
    import imagecodecs

    samples = imagecodecs.jpegxl_decode(data, index=0, numthreads=1)
    if samples.ndim == 3 and not _is_of(samples, header):  # grey with more channels than alpha comes in planes
        samples = np.moveaxis(samples, 0, 2)
    most = (1 << header.depth) - 1  # libjxl hands out those of few bits as they are
    return samples if most >= 255 else ((samples.astype(np.uint16) * 255 + most // 2) // most).astype(np.uint8)


def _heic(data: bytes, limits: Limits, metadata: bool) -> Picture:
    """The primary picture of a HEIC, turned as the file says; EXIF has no say in that.

    By the parts of pillow-heif: its opener copies EXIF and profiles of each picture before anything can be checked, and
    there may be a thousand that share one of a megabyte.
    """
    try:
        import _pillow_heif
        from pillow_heif.heif import BaseImage
    except ModuleNotFoundError:  # left out by who wants nothing under the GPL
        raise ImageError("unsupported", "a HEIC is read by pillow-heif, which is not installed") from None

    picture_files.check_boxes(data)
    keep = picture_files.read_heic_keep(data)
    found, _ = _pillow_heif.load_file(data, 1, True, False, True, True, "", False)  # one thread, to 8 bits, as RGB
    pictures = [one for one in found if one is not None]
    primary = next((one for one in pictures if one.primary), None)
    if primary is None:
        raise ImageError("corrupt", "the HEIC has no primary picture")
    if len(pictures) > 1:
        keep = keep or "multi-page"
    if primary.bit_depth > 8:
        keep = keep or "16-bit"
    icc, profile = None, primary.color_profile
    if profile.get("type") in ("rICC", "prof"):
        icc = bytes(profile["data"])
    elif profile and not picture_files.is_srgb_like(
        profile["data"]["color_primaries"], profile["data"]["transfer_characteristics"]
    ):
        keep = keep or "wide-gamut"
    opened = BaseImage(primary)
    width, height = opened.size
    with within(width, height, limits):
        samples, why = _samples(opened.to_pillow(), icc)
    # Of many they may all be the same bytes, as large as the file, of which libheif makes as many copies
    few = metadata and picture_files.count_items(data) <= _HEIC_ITEMS
    exif, xmp = _heic_blocks(primary.metadata) if few else (None, None)
    extras = picture_files.read_extras(data)
    return _finish(samples, Header("heic", width, height, icc, exif, keep or why, extras=extras, xmp=xmp, upright=True))


_HEIC_ITEMS = 8  # of EXIF and XMP; cameras write one of each


def _heic_blocks(items: list[dict[str, Any]]) -> tuple[bytes | None, bytes | None]:
    """EXIF, in front of which is how far away it begins (ISO/IEC 23008-12, A.2.1), and XMP of a picture's items."""
    exif = next((bytes(one["data"]) for one in items if one["type"] == "Exif"), None)
    xmp = next((bytes(one["data"]) for one in items if one["content_type"] == "application/rdf+xml"), None)
    return exif and exif[4 + int.from_bytes(exif[:4], "big") :], xmp


_EARLY_ENDS = ("truncated", "too small", "not enough image data", "need_more_input")  # Pillow's and libjxl's words


def _refusal(name: str, error: Exception) -> ImageError:
    text = str(error) or type(error).__name__
    lower = text.lower()
    if "decompression bomb" in lower:
        return ImageError("too_large", text)
    if any(word in lower for word in _EARLY_ENDS):
        return ImageError("truncated", f"the {name} file ends early ({text}): copy or download it again")
    if (
        "unknown pixel mode" in lower
        or "unsupported" in lower
        or "not supported" in lower
        or "not been built in" in lower
    ):
        return ImageError("unsupported", f"a kind of {name} that is not read here ({text})")
    return ImageError("corrupt", f"the {name} file is damaged ({text})")


def _finish(samples: np.ndarray, header: Header) -> Picture:
    """Samples (H, W) or (H, W, C), grey or RGB with or without alpha and more, any depth, to a Picture."""
    keep = header.keep
    if samples.ndim == 2:
        samples = samples[..., None]
    if not _is_of(samples, header):
        told = f"{samples.shape[1]} x {samples.shape[0]} instead of {header.width} x {header.height} pixels"
        raise ImageError("corrupt", f"the {header.format} file decodes to {told}")
    if samples.dtype != np.uint8:
        keep = keep or "16-bit"
        samples = _to_8_bits(samples, header.depth)
    if samples.shape[2] > 4:  # of a TIFF: more than one channel beside the colours
        keep = keep or "alpha"
        samples = samples[..., :3]
    if samples.shape[2] in (2, 4):
        colour, alpha = samples[..., :-1], samples[..., -1:]
        if alpha.min() < 255:
            keep = keep or "alpha"
            weight = alpha.astype(np.uint16)
            colour = ((colour * weight + (255 - weight) * 255 + 127) // 255).astype(np.uint8)
        samples = colour
    icc, orientation = header.icc, header.orientation
    if header.exif and not header.upright:
        exif = _exif(header.exif)
        orientation = exif.get(274, 1)
        if header.format == "jpeg" and not icc and b"R03" in header.exif and _is_adobe_rgb(exif):
            icc = colours.adobe_rgb()
    samples = _TURNS.get(orientation, lambda x: x)(samples)
    channels = samples.shape[2]
    if icc:
        samples, all_there = colours.to_srgb(samples, icc)
        keep = keep or (None if all_there else "wide-gamut")
    if samples.shape[2] == 1:
        samples = np.repeat(samples, 3, axis=2)
    upright = np.ascontiguousarray(samples)
    return Picture(upright, channels, header.format, keep, header.extras, header.exif, header.xmp)


def _is_of(samples: np.ndarray, header: Header) -> bool:
    """Whether they have the size that the header tells, turned or not."""
    return samples.shape[:2] in ((header.height, header.width), (header.width, header.height))


def _to_8_bits(samples: np.ndarray, depth: int) -> np.ndarray:
    if samples.dtype == np.uint16:
        most = (1 << depth) - 1
        return ((samples.astype(np.uint32) * 255 + most // 2) // most).clip(0, 255).astype(np.uint8)
    with np.errstate(all="ignore"):  # some may be infinite, or no numbers
        low, high = float(np.fmin.reduce(samples, axis=None)), float(np.fmax.reduce(samples, axis=None))
        scaled = (samples.astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-30))
    np.nan_to_num(scaled, copy=False, posinf=255, neginf=0)
    return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)


# EXIF orientations 2 to 8 (CIPA DC-008, tag 274) as what makes them upright
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


def _exif(block: bytes) -> Any:
    """A broken EXIF block is as good as none."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block)
    except Exception:
        return Image.Exif()
    return exif


def _is_adobe_rgb(exif: Any) -> bool:
    """Whether a camera says so, which writes no profile (CIPA DC-010, 4.3): R03, and no colour space of its own."""
    try:
        named = str(exif.get_ifd(0xA005).get(1, "")).startswith("R03")
        return named and exif.get_ifd(0x8769).get(0xA001) in (65535, 2)  # the latter some write for Adobe RGB
    except Exception:
        return False


# Pillow speaks of odd metadata through warnings, which are nothing a user could act on
warnings.filterwarnings("ignore", module=r"PIL\.")

_TILE = 2**24  # pixels that one may have whatever the limit
_PLUGINS = {
    "jpeg": "JpegImagePlugin.JpegImageFile",
    "webp": "WebPImagePlugin.WebPImageFile",
    "tiff": "TiffImagePlugin.TiffImageFile",
    "bmp": "BmpImagePlugin.BmpImageFile",
    "avif": "AvifImagePlugin.AvifImageFile",
    "jpeg2000": "Jpeg2KImagePlugin.Jpeg2KImageFile",
    "gif": "GifImagePlugin.GifImageFile",
    "pnm": "PpmImagePlugin.PpmImageFile",
}


def _decode_by_pillow(data: bytes, name: str, limits: Limits, metadata: bool) -> Picture:
    import importlib

    keep = icc = None
    tags: dict[int, int] = {}
    opening: AbstractContextManager[None] = nullcontext()
    if name == "webp":
        opening = within(*picture_files.read_webp_size(data), limits)  # libwebp decodes some of it at once
    elif name == "avif":
        picture_files.check_boxes(data)
        keep = picture_files.read_avif_keep(data)
    elif name == "jpeg2000":
        keep = picture_files.read_jpeg2000_keep(data)
    elif name == "tiff":
        tags = tiffs.read_directory(data)
        if 322 in tags:  # tiles, of which one may be larger than the picture
            check_size(tags[322], tags.get(323, 1), replace(limits, max_pixels=max(limits.max_pixels, _TILE)))
    elif name == "bmp":
        keep, icc = picture_files.read_bmp_colours(data)
    elif name == "pnm":
        data, keep = picture_files.read_pnm(data)
    # The class itself rather than Image.open, whose own limit on pixels would come before ours
    module, _, plugin = _PLUGINS[name].partition(".")
    try:
        with opening:
            picture = getattr(importlib.import_module(f"PIL.{module}"), plugin)(io.BytesIO(data))
    except (SyntaxError, KeyError):  # of a TIFF: samples, or a compression, that Pillow does not know
        if name != "tiff":
            raise
        return _finish(*tiffs.other_samples(data, tags, limits))
    if picture.mode == "LAB":
        return _finish(*tiffs.other_samples(data, tags, limits))
    width, height = picture.size
    with within(width, height, limits):
        if icc:
            picture.info["icc_profile"] = icc
        return _decode_opened(picture, data, name, keep, metadata)


def _decode_opened(picture: Any, data: bytes, name: str, keep: str | None, metadata: bool) -> Picture:
    from PIL import ImageOps

    width, height = picture.size
    if name == "tiff":
        keep = tiffs.why_kept(picture)
    if getattr(picture, "n_frames", 1) > 1:
        keep = "multi-page" if name == "tiff" else "animated"
    extras = _extras(picture, data)
    exif, xmp = (picture.info.get(kind) if kind.upper() in extras else None for kind in ("exif", "xmp"))
    if name == "tiff" and metadata:
        exif = tiffs.exif_block(picture, data)
    icc = picture.info.get("icc_profile")
    header = Header(name, width, height, icc, exif, keep, extras=extras, xmp=xmp, upright=True)
    samples, why = tiffs.plain_samples(picture, data) if name == "tiff" else None, None
    if samples is None:
        with tiffs.quiet() if name == "tiff" else nullcontext():
            for xmp in ("xmp", "XML:com.adobe.xmp"):  # Pillow would turn by it, of some formats, where EXIF does not
                picture.info.pop(xmp, None)
            with suppress(Exception):  # a broken EXIF block is as good as none, which Pillow takes it for from now on
                picture.getexif()
            picture = ImageOps.exif_transpose(picture)
            samples, why = _samples(picture, header.icc)
    if picture.mode == "CMYK":
        header = replace(header, icc=None)  # used already
    return _finish(samples, replace(header, keep=header.keep or why))


def _extras(picture: Any, data: bytes) -> frozenset[str]:
    """See :class:`Picture`."""
    if picture.format == "AVIF":  # Pillow makes EXIF of its own where the picture is turned
        return picture_files.read_extras(data)
    tags = getattr(picture, "tag_v2", ())
    found = {
        picture_files.EXIF: bool(picture.info.get("exif")) or not tiffs.TOLD.isdisjoint(tags),
        picture_files.XMP: bool(picture.info.get("xmp")),
        picture_files.IPTC: 33723 in tags,
        picture_files.TEXT: picture_files.is_remark(_remark(picture)),
    }
    return frozenset(name for name, there in found.items() if there)


def _remark(picture: Any) -> bytes:
    told = picture.info.get("comment") or getattr(picture, "tag_v2", {}).get(270)  # of GIF and JPEG 2000; of TIFF
    return told.encode(errors="replace") if isinstance(told, str) else told if isinstance(told, bytes) else b""


def _samples(picture: Any, icc: bytes | None) -> tuple[np.ndarray, str | None]:
    """A Pillow picture's samples as ``_finish`` takes them, and why they are less than the picture."""
    mode = picture.mode
    if mode in ("L", "LA", "RGB", "RGBA"):
        if mode in ("L", "RGB") and "transparency" in picture.info:
            picture = picture.convert(mode + "A")
        return np.asarray(picture), None
    if mode == "1":
        return np.asarray(picture.convert("L")), None
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16), "16-bit"
    if mode in ("I", "F"):
        return np.asarray(picture), "16-bit" if mode == "I" else "float"
    if mode == "CMYK":
        transform = colours.transform_of(icc, "CMYK") if icc else None
        return np.asarray(transform.apply(picture) if transform else picture.convert("RGB")), "cmyk"
    if mode in ("P", "PA", "RGBa", "La", "RGBX", "YCbCr"):
        return np.asarray(picture.convert("RGBA" if picture.has_transparency_data else "RGB")), None
    raise ImageError("unsupported", f"pictures in Pillow's mode {mode} are not read here: convert it to RGB first")

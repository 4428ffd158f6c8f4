"""Every kind of picture file in, what is stored of it, and how what comes out differs from what a viewer shows."""

import io
import struct
import zlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import tifffile
from PIL import Image, ImageCms
from skimage import data as samples

from compressor.archive import Archive
from compressor.codec import ORIGINAL
from compressor.colours import with_primaries
from compressor.metrics import psnr
from compressor.restoring import restore
from promises.common import archive_files, listed, print_table

FLOOR = 33.0  # dB, 1 under the default target


def add_options(parser: ArgumentParser) -> None:
    """None."""


def run(options: Namespace, scratch: Path) -> bool:
    """Archive a file of each kind, restore it, and compare. True where all look the same or are refused by name."""
    folder, out = scratch / "in", scratch / "out"
    folder.mkdir()
    files = _files()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    source, found = listed(folder)
    archive = archive_files(str(scratch / "archive"), source, found)
    restore(archive, out)
    refused = {row.key: row.reason for row in archive.quarantined()}
    rows, sound = [], True
    for name, (data, expected) in files.items():
        text, fine = (
            _outcome(archive, out, name, data, expected) if name not in refused else (f"refused: {refused[name]}", True)
        )
        stored = "–" if name in refused else _stored(archive, name)
        rows.append((name.rpartition(".")[0], _size(data), stored, text))
        sound &= fine
    print_table(("in", "bytes", "stored as", "what comes out"), rows)
    return sound


def _size(data: bytes) -> str:
    return f"{len(data):,}"


def _stored(archive: Archive, name: str) -> str:
    row = archive.read_row(name)
    kind = "grey" if row.channels == 1 else "colour"
    return (
        "its own bytes" if row.codec == ORIGINAL else f"{row.codec if len(row.codec) < 20 else 'learned codec'}, {kind}"
    )


def _outcome(archive: Archive, out: Path, name: str, data: bytes, expected: np.ndarray | None) -> tuple[str, bool]:
    """In words, and whether it is as promised."""
    row = archive.read_row(name)
    if row.codec == ORIGINAL:
        same = (out / name).read_bytes() == data
        return ("the same file" if same else "ANOTHER FILE"), same
    assert expected is not None
    shown = archive.read(name)
    if shown.shape != expected.shape:
        return f"ANOTHER SIZE: {shown.shape}", False
    if (shown == expected).all():
        return "the same pixels", True
    value = psnr(expected, shown)
    return f"{value:.1f} dB", value >= FLOOR


def _shown(picture: Image.Image) -> np.ndarray:
    """What a viewer that honours orientation and profile shows, by Pillow alone."""
    from PIL import ImageOps

    icc = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if icc and picture.mode in ("RGB", "L"):
        picture = ImageCms.profileToProfile(
            picture, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    return np.asarray(picture.convert("RGB"))


def _files() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Name to bytes, and what a viewer shows (None where only the bytes will do)."""
    pixels = np.ascontiguousarray(samples.astronaut()[40:168, 160:288])
    rgb = Image.fromarray(pixels)
    grey, deep = rgb.convert("L"), pixels.astype(np.uint16) * 257
    translucent, opaque = rgb.convert("RGBA"), rgb.convert("RGBA")
    translucent.putalpha(grey)
    pillow_heif.register_heif_opener()
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_90)]}
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    p3 = with_primaries(srgb, ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)))
    adobe = with_primaries(srgb, ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)))
    muted, vivid = Image.fromarray(pixels // 2 + 60), Image.fromarray(np.where(pixels > 110, 255, 0).astype(np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    files: dict[str, tuple[bytes, np.ndarray | None]] = {}

    def add(name: str, picture: Image.Image, format: str, keeps: bool = False, **settings: Any) -> None:
        file = io.BytesIO()
        picture.save(file, {"jp2": "jpeg2000", "heic": "heif"}.get(format, format), **settings)
        file.seek(0)
        files[f"{name}.{format}"] = file.getvalue(), None if keeps else _shown(Image.open(file))

    add("RGB PNG", rgb, "png")
    add("grey PNG", grey, "png")
    add("1-bit PNG", grey.convert("1"), "png")
    add("palette PNG", rgb.quantize(64), "png")
    add("palette PNG with transparency", rgb.quantize(64), "png", True, transparency=3)
    add("RGBA PNG", translucent, "png", True)
    add("RGBA PNG, opaque everywhere", opaque, "png")
    files["16-bit RGB PNG.png"] = imagecodecs.png_encode(deep), None
    files["16-bit grey PNG.png"] = imagecodecs.png_encode(np.ascontiguousarray(deep[..., 0])), None
    add("PNG, Display P3, muted colours", muted, "png", icc_profile=p3)
    add("PNG, Display P3, colours that sRGB lacks", vivid, "png", True, icc_profile=p3)
    add("PNG, AdobeRGB, muted colours", muted, "png", icc_profile=adobe)
    add("PNG, AdobeRGB, colours that sRGB lacks", vivid, "png", True, icc_profile=adobe)
    add("PNG, sRGB profile", rgb, "png", icc_profile=srgb)
    files["PNG, BT.2020 PQ (cICP).png"] = _with_chunk(files["RGB PNG.png"][0], b"cICP", bytes([9, 16, 0, 1])), None
    plain = files["RGB PNG.png"]
    for name, gamma, same in (("PNG, sRGB's gamma (gAMA)", 45_455, True), ("PNG, linear light (gAMA)", 100_000, False)):
        files[f"{name}.png"] = _with_chunk(plain[0], b"gAMA", struct.pack(">I", gamma)), plain[1] if same else None
    primaries = struct.pack(">8I", 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000)
    files["PNG, primaries of Display P3 (cHRM).png"] = _with_chunk(plain[0], b"cHRM", primaries), None
    add("animated PNG", rgb, "png", True, **frames)
    add("JPEG", rgb, "jpeg", quality=95)
    add("JPEG, progressive", rgb, "jpeg", quality=95, progressive=True)
    add("JPEG, grey", grey, "jpeg", quality=95)
    add("JPEG, CMYK", rgb.convert("CMYK"), "jpeg", True)
    add("JPEG, turned by EXIF", rgb, "jpeg", quality=95, exif=turned.tobytes())
    add("JPEG, Display P3, muted colours", muted, "jpeg", quality=95, icc_profile=p3)
    files["JPEG, 12-bit.jpeg"] = imagecodecs.jpeg8_encode(deep >> 4, bitspersample=12), None
    add("GIF", rgb.quantize(64), "gif")
    add("GIF, animated", rgb, "gif", True, **frames)
    add("WebP, lossy", rgb, "webp", quality=90)
    add("WebP with alpha", translucent, "webp", True, lossless=True)
    add("WebP, animated", rgb, "webp", True, **frames)
    add("AVIF", rgb, "avif", quality=95)
    files["AVIF, 10-bit.avif"] = imagecodecs.avif_encode(deep >> 6, bitspersample=10), None
    add("HEIC", rgb, "heic", quality=90)
    add("HEIC, turned", rgb, "heic", quality=90, exif=turned.tobytes())
    add("HEIC, Display P3, muted colours", muted, "heic", quality=90, icc_profile=p3)
    add("HEIC with alpha", translucent, "heic", True)
    ten_bits = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", rgb.size, deep.tobytes()).save(ten_bits, quality=90)
    files["HEIC, 10-bit.heic"] = ten_bits.getvalue(), None
    add("TIFF, LZW", rgb, "tiff", compression="tiff_lzw")
    add("TIFF, bilevel fax", grey.convert("1"), "tiff", compression="group4")
    add("TIFF, several pages", rgb, "tiff", True, **frames)
    add("TIFF, CMYK", rgb.convert("CMYK"), "tiff", True)
    add("TIFF, float", Image.fromarray(pixels[..., 0] / np.float32(255)), "tiff", True)
    files["TIFF, 16-bit.tiff"] = imagecodecs.tiff_encode(deep), None
    files["TIFF, RGB float.tiff"] = imagecodecs.tiff_encode(pixels / np.float32(255)), None
    preview = io.BytesIO()
    with tifffile.TiffWriter(preview) as tiff:
        tiff.write(pixels[::4, ::4].copy(), photometric="rgb", subifds=1)
        tiff.write(deep[..., 1].copy(), photometric="minisblack")
    files["TIFF, a preview before a raw picture.tiff"] = preview.getvalue(), None
    layers = b"Adobe Photoshop Document Data Block\x008BIMLayr" + bytes(8)
    add("TIFF with layers", rgb, "tiff", True, tiffinfo={37724: layers})
    files["TIFF, signed.tiff"] = imagecodecs.tiff_encode((pixels // 2).astype(np.int8)), None
    add("JPEG 2000", rgb, "jp2")
    jxl = imagecodecs.jpegxl_encode(pixels, level=95, lossless=False)
    files["JPEG XL.jxl"] = jxl, imagecodecs.jpegxl_decode(jxl)
    files["JPEG XL, 16-bit.jxl"] = imagecodecs.jpegxl_encode(deep, lossless=True), None
    files["JPEG XL, animated.jxl"] = imagecodecs.jpegxl_encode(np.stack([pixels, pixels[::-1]]), lossless=True), None
    files["JPEG XL with alpha.jxl"] = imagecodecs.jpegxl_encode(np.asarray(translucent), lossless=True), None
    add("PPM", rgb, "ppm")
    add("BMP", rgb, "bmp")
    add("PNG, 1 x 1", rgb.resize((1, 1)), "png")
    add("PNG, 3 x 2000", rgb.resize((3, 2000)), "png")
    add("JPEG, 12 megapixels", rgb.resize((4000, 3000), Image.Resampling.BICUBIC), "jpeg", quality=95)
    add("PNG, 144 megapixels", Image.new("RGB", (12_000, 12_000), "teal"), "png")
    files["empty file.png"] = b"", None
    files["text named .png.png"] = b"no picture at all", None
    return files


def _with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]

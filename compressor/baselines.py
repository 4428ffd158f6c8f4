"""JPEG, WebP, AVIF and JPEG XL behind the interface of :class:`compressor.codec.Codec`.

They are what the learned codec is compared with, and what it falls back on. Source files are read by ``images.py``.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from compressor import jpegxl, picture_files
from compressor.codec import ORIGINAL, Encoded, check_encoded, check_packer, check_pictures, per_picture
from compressor.containers import av1_size, avif_container
from compressor.errors import CodecError, is_shortage

LOSSLESS = "lossless"
_PROGRESSIVE_PIXELS = 2**17  # below, the extra scan headers of a progressive JPEG cost more than it saves


@dataclass(frozen=True)
class _Format:
    """What tells one format from another. ``encode`` takes pixels, quality and effort."""

    title: str
    encode: Callable[[np.ndarray, int, int], bytes]
    decode: Callable[[bytes], np.ndarray]
    effort: int  # the format's own scale: WebP's method, AVIF's speed, JPEG XL's effort; not used by JPEG
    size: tuple[int, int]  # width and height at most
    library: Callable[[], str]
    read_size: Callable[[bytes], tuple[int, int]]  # width and height that a file tells before it is decoded
    draft: int | None = None  # the fastest effort, where the usual one takes so long that it pays to ask there first
    draft_loss: float = 0.0  # dB that it loses on average at the same quality
    # What a file begins with and a payload leaves out, from width, height and the bytes that follow.
    container: Callable[[int, int, int], bytes] = lambda width, height, size: b""
    pixels: int | None = None  # at most, where that is less than the sides allow
    qualities: range = range(1, 101)


class StandardCodec:
    """A standard image format with its best ordinary settings, on one thread.

    - ``jpeg``: 4:2:0, optimised Huffman tables, progressive from 131,072 pixels on (smaller there, larger below).
    - ``webp``: lossy, method 6.
    - ``avif``: 4:2:0, libaom at speed 4, tuned as libavif does by itself, for what people see.
    - ``avif-444``: 4:4:4, libaom at speed 4, tuned for PSNR. Where red, green and blue are measured it takes 5 % fewer
      bytes than ``avif`` on portraits and 16 % fewer on tiles of photographs.
    - ``av1``, ``av1-444``: the same without their containers, 275 bytes in which only sizes differ; up to 2048 x 1152
      and 147,456 pixels.
    - ``jpegxl``: VarDCT, effort 7.
    - ``lossless``: JPEG XL without loss, effort 7. On 128 x 128 portraits it took 14.8 kB and on tiles of photographs
      19.6 kB, where WebP without loss took 16.7 and 20.5 kB and forty times as long, and PNG 29.7 and 27.9 kB.

    A payload is a whole file of its format, but for ``av1`` and ``av1-444``; :func:`compressor.containers.payload_size`
    leaves out what every file repeats.

    Parameters
    ----------
    name
        One of the names above.
    effort
        Another WebP method, AVIF speed or JPEG XL effort than the usual one, for benchmarks.

    Raises
    ------
    CodecError
        If there is no such format.

    Examples
    --------
    >>> picture = np.full((16, 24, 3), 200, np.uint8)
    >>> codec = StandardCodec("webp")
    >>> [encoded] = codec.encode([picture], 80)
    >>> codec.decode([encoded])[0].shape
    (16, 24, 3)
    """

    packers: tuple[str, ...] = ()

    def __init__(self, name: str, effort: int | None = None) -> None:
        if name not in _FORMATS:
            raise CodecError(f"there is no standard format {name!r}; choose one of {', '.join(_FORMATS)}")
        self.id = name
        self._format = _FORMATS[name]
        self.qualities = self._format.qualities
        self._effort = self._format.effort if effort is None else effort
        self.draft_loss = self._format.draft_loss
        fast = self._format.draft
        self.draft = None if fast is None or fast == self._effort else StandardCodec(name, fast)

    def __repr__(self) -> str:
        return f"StandardCodec({self.id!r}, effort={self._effort})"

    @property
    def description(self) -> str:
        """Settings and the versions of the libraries that do the work."""
        return f"{self._format.title.format(effort=self._effort)}, one thread ({self._format.library()})"

    @property
    def writes_files(self) -> bool:
        """Whether a payload is a file by itself, and not what only an archive's row makes one of."""
        return not self._format.container(0, 0, 0)

    def suits(self, height: int, width: int) -> bool:
        """See :class:`compressor.codec.Codec`: here whether the format can hold it."""
        widest, highest = self._format.size
        return width <= widest and height <= highest and width * height <= (self._format.pixels or width * height)

    def encode(self, pixels: Sequence[np.ndarray], quality: int | Sequence[int], packer: str = "auto") -> list[Encoded]:
        """See :class:`compressor.codec.Codec`. ``quality`` is 1 to 100 (``av1`` and 4:4:4: 99), not used without loss.

        Raises
        ------
        CodecError
            If a quality is out of range, or the format cannot hold a picture of that size.
        """
        check_pictures(pixels)
        check_packer(self, packer)
        return [self._encode(one, q) for one, q in zip(pixels, per_picture(quality, len(pixels)), strict=True)]

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """See :class:`compressor.codec.Codec`."""
        check_encoded(encoded)
        return [self._decode(one) for one in encoded]

    def _encode(self, picture: np.ndarray, quality: int) -> Encoded:
        if not self.qualities:
            quality = -1
        elif quality not in self.qualities:
            raise CodecError(f"quality {quality} is outside {self.qualities[0]} to {self.qualities[-1]} of {self.id}")
        height, width = picture.shape[:2]
        if not self.suits(height, width):
            widest, highest = self._format.size
            limit = f"{widest} x {highest}" + (f" and {self._format.pixels:,}" if self._format.pixels else "")
            raise CodecError(f"{self.id} holds up to {limit} pixels, the picture has {width} x {height}")
        try:
            file = self._format.encode(np.ascontiguousarray(picture), quality, self._effort)
        except Exception as error:  # each library has its own errors, down to bare RuntimeError
            if _is_no_fault_of_the_picture(error):
                raise
            raise CodecError(f"{self.id} cannot encode a picture of {width} x {height} pixels: {error}") from error
        encoded = self.bare(Encoded(file, width, height, 3, self.id, quality, ""))
        if encoded is None:
            raise CodecError(f"{self.id} cannot hold a picture of {width} x {height} pixels: its container is another")
        return encoded

    def bare(self, file: Encoded) -> Encoded | None:
        """A file's payload, ready for this codec to decode; None where its container is not the one it leaves out."""
        size = len(file.payload) - len(self._format.container(0, 0, 0))
        container = self._format.container(file.width, file.height, max(size, 0))
        if not file.payload.startswith(container):
            return None
        return replace(file, payload=file.payload[len(container) :], codec=self.id)

    def _decode(self, encoded: Encoded) -> np.ndarray:
        file = self._format.container(encoded.width, encoded.height, len(encoded.payload)) + encoded.payload
        self._check_size(file, encoded)
        try:
            picture = self._format.decode(file)
        except Exception as error:
            if _is_no_fault_of_the_picture(error):
                raise
            raise CodecError(f"the payload is not a {self.id} file that can be read: {error}") from error
        if picture.shape != (encoded.height, encoded.width, 3) or picture.dtype != np.uint8:
            raise CodecError(
                f"the {self.id} payload holds {picture.dtype} {picture.shape}, "
                f"its row says {encoded.width} x {encoded.height} pixels"
            )
        return np.ascontiguousarray(picture)

    def _check_size(self, file: bytes, encoded: Encoded) -> None:
        """Before memory is taken for it; without a cause, which might be taken for a lack of that."""
        try:
            width, height = self._format.read_size(file)
        except Exception as error:  # such as struct's
            raise CodecError(f"the payload is not a {self.id} file that can be read: {error}") from None
        if (width, height) != (encoded.width, encoded.height):
            row = f"{encoded.width} x {encoded.height}"
            raise CodecError(f"the {self.id} payload holds {width} x {height} pixels, its row says {row}")


def _is_no_fault_of_the_picture(error: Exception) -> bool:
    """Whether memory ran out, or a library is missing, which another picture or format would meet too."""
    return is_shortage(error) or isinstance(error, ImportError)


def _jpeg_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    import imagecodecs
    from PIL import Image

    if pixels.shape[0] * pixels.shape[1] >= _PROGRESSIVE_PIXELS:
        file, settings = io.BytesIO(), {"quality": quality, "optimize": True, "progressive": True}
        with suppress(OSError):  # larger than the buffer that Pillow gives it, as noise is
            Image.fromarray(pixels).save(file, "JPEG", subsampling="4:2:0", **settings)
            return file.getvalue()
    return bytes(imagecodecs.jpeg8_encode(pixels, level=quality, subsampling="420", optimize=True))


def _jpeg_decode(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as picture:
        return np.asarray(picture.convert("RGB"))


def _webp_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.webp_encode(pixels, level=quality, lossless=False, method=effort, numthreads=1))


def _webp_decode(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.webp_decode(data, hasalpha=False)


def _avif_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    import imagecodecs

    return bytes(
        imagecodecs.avif_encode(pixels, level=quality, speed=effort, pixelformat="420", codec="aom", numthreads=1)
    )


def _avif_444_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "AVIF",
        quality=quality,
        subsampling="4:4:4",
        speed=effort,
        codec="aom",
        max_threads=1,
        autotiling=False,
        advanced={"tune": "psnr"},
    )
    return file.getvalue()


def _avif_decode(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.avif_decode(data, numthreads=1)


def _jpeg_size(file: bytes) -> tuple[int, int]:
    header = picture_files.read_jpeg(file)
    return header.width, header.height


def _jpegxl_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, level=quality, effort=effort, lossless=False, numthreads=1))


def _lossless_encode(pixels: np.ndarray, quality: int, effort: int) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(pixels, effort=effort, lossless=True, numthreads=1))


def _jpegxl_decode(data: bytes) -> np.ndarray:
    import imagecodecs

    return imagecodecs.jpegxl_decode(data, numthreads=1)


def _jpeg_libraries() -> str:
    import imagecodecs
    from PIL import __version__, features

    version = features.version("libjpeg_turbo")
    return f"libjpeg-turbo {version}, Pillow {__version__}, imagecodecs {imagecodecs.__version__}"


def _pillow_libavif() -> str:
    from PIL import __version__, features

    return f"libavif {features.version('avif')}, Pillow {__version__}"


def _imagecodecs(library: str) -> Callable[[], str]:
    def version() -> str:
        import imagecodecs

        versions = dict(part.rsplit("-", 1) for part in imagecodecs.version().split(", ") if "-" in part)
        return f"{library} {versions.get(library, 'unknown')}, imagecodecs {imagecodecs.__version__}"

    return version


def _without_container(avif: _Format, brand: bytes, av1: bytes, colour: bytes) -> _Format:
    """AV1's level 2.0, and not the highest quality, at which libavif keeps RGB instead of YCbCr."""
    return replace(
        avif,
        title=avif.title.replace(", speed", " without its container, speed"),
        read_size=av1_size,
        container=partial(avif_container, brand, av1, colour),
        size=(2048, 1152),
        pixels=147_456,
        qualities=range(1, 100),
    )


# As the libraries have it: some stop short of what the formats could hold.
_JPEG_SIZE = (65_500, 65_500)
_WEBP_SIZE = (16_382, 16_382)
_AVIF_SIZE = (32_768, 32_768)
_JPEGXL_SIZE = (2**30 - 1, 2**30 - 1)
_AVIF = _Format(
    "AVIF 4:2:0, speed {effort}",
    _avif_encode,
    _avif_decode,
    effort=4,
    size=_AVIF_SIZE,
    library=_imagecodecs("libavif"),
    read_size=picture_files.read_avif_size,
    draft=9,
    draft_loss=0.55,
)
_JPEGXL = _Format(
    "JPEG XL, effort {effort}",
    _jpegxl_encode,
    _jpegxl_decode,
    effort=7,
    size=_JPEGXL_SIZE,
    library=_imagecodecs("libjxl"),
    read_size=jpegxl.read_size,
)
# Its fastest speed loses 0.6 to 1 dB to speed 6, which is what falls back.
_AVIF_444 = _Format(
    "AVIF 4:4:4 tuned for PSNR, speed {effort}",
    _avif_444_encode,
    _avif_decode,
    effort=4,
    size=_AVIF_SIZE,
    library=_pillow_libavif,
    read_size=picture_files.read_avif_size,
    draft=9,
    draft_loss=0.85,
    qualities=range(1, 100),
)
_FORMATS = {
    "jpeg": _Format(
        "JPEG 4:2:0, optimised",
        _jpeg_encode,
        _jpeg_decode,
        effort=0,
        size=_JPEG_SIZE,
        library=_jpeg_libraries,
        read_size=_jpeg_size,
    ),
    "webp": _Format(
        "WebP, method {effort}",
        _webp_encode,
        _webp_decode,
        effort=6,
        size=_WEBP_SIZE,
        library=_imagecodecs("libwebp"),
        read_size=picture_files.read_webp_size,
    ),
    "avif": _AVIF,
    "avif-444": _AVIF_444,
    "av1": _without_container(_AVIF, b"MA1B", b"\0\x0c\0", b"\0\2\0\2"),
    "av1-444": _without_container(_AVIF_444, b"MA1A", b"\x20\0\0", b"\0\1\0\x0d"),
    "jpegxl": _JPEGXL,
    LOSSLESS: replace(
        _JPEGXL, title="JPEG XL without loss, effort {effort}", encode=_lossless_encode, qualities=range(0)
    ),
}

STANDARD: dict[str, StandardCodec] = {name: StandardCodec(name) for name in _FORMATS}
"""Every standard format by name, with its usual settings; the libraries are imported when one is first used."""


def is_carried(codec: str) -> bool:
    """Whether what rows call this codec is one that an archive carries: no standard format, and no file as it came."""
    return codec not in STANDARD and codec != ORIGINAL

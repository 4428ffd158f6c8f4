"""Sample pictures without a download: tiles of the photographs in scikit-image's wheel, in FFHQ's layout."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compressor.errors import SourceError
from compressor.images import decode_picture
from compressor.picture_writing import encode_picture

TILE = 128  # pixels
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png", "camera.png",
    "hubble_deep_field.jpg",
)  # fmt: skip
TEXTURES = ("brick.png", "grass.png", "gravel.png")
WHOLE = ("astronaut.png", "chelsea.png", "rocket.jpg")  # also kept in one piece: pictures of other sizes
TILES_EACH = 24


def write_samples(folder: Path) -> int:
    """Write ``tiles/00000/00000.png`` and so on, and whole photographs below ``photographs``. Returns how many.

    Files are the same at every call, but for the time they were written at: those that are there already stay.

    Raises
    ------
    SourceError
        scikit-image does not carry its photographs, or the folder cannot be written.
    """
    count = number = 0
    try:
        for name in PHOTOGRAPHS:
            picture = decode_picture(photograph(name))
            for tile in tiles(picture.pixels)[:TILES_EACH]:
                path = folder / "tiles" / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
                number += 1
                count += _write(path, encode_picture(tile, picture.channels, "png"))
        for name in WHOLE:
            count += _write(folder / "photographs" / name, photograph(name))
    except OSError as error:
        raise SourceError(
            f"cannot write samples to {folder}: {error.strerror or error}; name another folder"
        ) from error
    return count


def tiles(pixels: np.ndarray) -> list[np.ndarray]:
    """All whole tiles of a picture, uint8 (128, 128, 3) each, row by row."""
    height, width = pixels.shape[:2]
    return [
        np.ascontiguousarray(pixels[top : top + TILE, left : left + TILE])
        for top in range(0, height - TILE + 1, TILE)
        for left in range(0, width - TILE + 1, TILE)
    ]


def write_tiles(folder: Path, names: Sequence[str]) -> int:
    """Write up to 24 tiles of each of scikit-image's pictures ``names`` as PNG files. Returns how many."""
    count = 0
    for name in names:
        picture = decode_picture(photograph(name))
        for number, tile in enumerate(tiles(picture.pixels)[:TILES_EACH]):
            count += _write(
                folder / f"{Path(name).stem}-{number:02d}.png", encode_picture(tile, picture.channels, "png")
            )
    return count


def photograph(name: str) -> bytes:
    """The file of one of scikit-image's pictures. SourceError where its wheel does not carry it."""
    path = _photographs() / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path}: scikit-image's photograph cannot be read: {error.strerror or error}; install scikit-image anew"
        ) from error


def _photographs() -> Path:
    """scikit-image's data folder, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("scikit-image is not installed: its wheel carries the demonstration's photographs")
    return Path(spec.submodule_search_locations[0]) / "data"


def _write(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size != len(data):
        path.write_bytes(data)
    return 1

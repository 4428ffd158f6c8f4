"""What the experiments reported, on 128x128 Flickr faces: figures to put beside what is measured here."""

from dataclasses import dataclass

FEW, MANY = 30, 52_000  # pictures they were trained on
FINAL_MSE = 0.0039  # reported for V3 and, unchanged, for V4
FINAL_MINUTES = 250  # that V3 took to it


@dataclass(frozen=True)
class Reported:
    """One version trained on one number of pictures. KB a picture; minutes of training."""

    encoded: float
    decoded: float
    minutes: float


REPORTED: dict[tuple[str, int], Reported] = {
    ("v1", FEW): Reported(100, 26.4, 1),
    ("v1", MANY): Reported(100, 30, 170),
    ("v2", FEW): Reported(12.6, 31.6, 0.5),
    ("v2", MANY): Reported(13.1, 26.9, 121),
    ("v3", FEW): Reported(4.62, 29, 1),
    ("v3", MANY): Reported(5.8, 25, 250),
}
PACKED: dict[tuple[str, str], float] = {  # KB a picture of V3, which number of pictures it had seen is not said
    ("v3", "fp16-gzip"): 5.89,
    ("v3", "fp16-lzma"): 5.58,
    ("v3", "int8-lzma"): 2.9,
}


def reported(family: str, pictures: int, everything: bool) -> Reported | None:
    """What was reported for as many pictures, or for all 52,000 beside all that there are here."""
    return REPORTED.get((family, MANY if everything else pictures))

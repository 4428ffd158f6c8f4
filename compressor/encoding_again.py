"""How pictures that were archived before are encoded again: as is said, and else as the archive's other rows are.

Which pictures these are is told by repairing.py.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from compressor.baselines import LOSSLESS, is_carried
from compressor.codec import ORIGINAL, released_ids
from compressor.defaults import MOST_PSNR
from compressor.encoding import EncodeOptions
from compressor.errors import ArchiveError
from compressor.limits import Limits

EXACT = 200.0  # dB: whatever has as many is exact
# How many rows are stored by a codec at a PSNR in dB (None: exactly)
StoredRows = Counter[tuple[str, float | None]]


@dataclass(frozen=True)
class AgainOptions:
    """As :class:`compressor.encoding.EncodeOptions`; what is None is as the archive's other rows are.

    The codec is then the learned one that rows name: standard formats beside it are what pictures fell back to. Of
    several it is the damaged pictures' own, or else one that ships. Where there is none, it is the format of most rows.
    The floor is the lowest PSNR that a row by the codec has, or else any row. Where all rows are exact, so are pictures
    that are encoded again. Metadata are kept of pictures whose file of the archive shows that they were, or of all.
    """

    codec: str | None = None
    target_psnr: float | None = None
    quality: int | None = None
    resize: int | None = None
    limits: Limits = field(default_factory=Limits)
    keep_metadata: bool = False

    def complete(self, rows: StoredRows, damaged: Collection[str], url: str) -> EncodeOptions:
        """Options that leave nothing open.

        Parameters
        ----------
        rows
            What can be read of the archive's rows.
        damaged
            Codecs that the rows to encode again name; none where not all of them can be read.
        url
            The archive's, for messages.

        Raises
        ------
        ArchiveError
            The rows do not tell what is open.
        """
        open_floor = self.target_psnr is None and self.quality is None
        if not rows and (open_floor or self.codec is None):
            raise ArchiveError(
                f"{url}: no row can be read that says how its pictures were encoded: "
                "name --codec and --target-psnr of the run"
            )
        if open_floor and all(_is_exact(psnr) for _, psnr in rows):
            if self.codec not in (None, LOSSLESS):
                raise ArchiveError(
                    f"{url}: its pictures are exact, and by {self.codec} others need not be: "
                    f"name --target-psnr, or --codec {LOSSLESS}"
                )
            codec = LOSSLESS
        else:
            codec = self.codec or _usual_codec(rows, damaged, url)
        floor = _lowest(rows, codec) if self.target_psnr is None else self.target_psnr
        return EncodeOptions(
            codec,
            floor,
            self.quality,
            min_psnr=floor if self.quality is None else None,  # of a codec that has one quality, too
            resize=self.resize,
            limits=self.limits,
            keep_metadata=self.keep_metadata,
        )


def _usual_codec(rows: StoredRows, damaged: Collection[str], url: str) -> str:
    counts: Counter[str] = Counter()
    for (codec, _), count in rows.items():
        counts[codec] += count
    del counts[ORIGINAL]
    learned = set(filter(is_carried, counts))
    if len(learned) > 1:
        learned = learned & set(damaged) or learned & released_ids().keys()
        if len(learned) != 1:
            named = ", ".join(sorted(filter(is_carried, counts)))
            raise ArchiveError(f"{url}: its pictures are by several codecs ({named}): name one with --codec")
    if learned:
        return learned.pop()
    return max(counts, key=lambda codec: counts[codec], default=LOSSLESS)


def _is_exact(psnr: float | None) -> bool:
    """Whether nothing was lost where a picture was written, if perhaps elsewhere."""
    return psnr is None or psnr >= MOST_PSNR


def _lowest(rows: StoredRows, codec: str) -> float:
    """dB of the worst row by ``codec``, or of all where none of those has a PSNR; ``EXACT`` where no row has."""
    lossy = [(name, psnr) for name, psnr in rows if psnr is not None and not _is_exact(psnr)]
    own = [psnr for name, psnr in lossy if name == codec]
    return min(own or [psnr for _, psnr in lossy], default=EXACT)

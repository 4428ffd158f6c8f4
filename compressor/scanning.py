"""What ends the reading of many rows, and what to do about it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from compressor.delta_log import in_fork
from compressor.keyed_table import KeyedTable
from compressor.parquet import Part
from compressor.verifying import DAMAGE, is_refusal

READING = "read it to the end"
SEE_REPAIR = "see 'latentpack verify' and 'latentpack repair'"
TAKEN_AWAY = (
    f"{READING}, for another run has compacted or vacuumed it, or deleted from it; open it again (in Python: refresh() "
    "it), and if that does not help, see 'latentpack verify'"
)


@contextmanager
def to_the_end(table: KeyedTable) -> Iterator[None]:
    """Turn what ends the reading of a table into ArchiveError that says what to do."""
    parts = table.parts  # as they are now: another reading may refresh the table meanwhile
    try:
        yield
    except Exception as error:
        with table.store.errors(_ended(table, parts, error)):
            raise


def _ended(table: KeyedTable, parts: Sequence[Part], error: Exception) -> str:
    """What cannot be done, where an error ends a scan of these files, and what to do about it."""
    if isinstance(error, FileNotFoundError):
        if in_fork():
            return TAKEN_AWAY  # most likely: the log, which would tell, cannot be read here
        newest = KeyedTable(table.store, table.folder, table.layout)  # the one that was read goes on seeing its version
        with table.store.errors(READING):
            newest.log.refresh(anew=True)
        if set(parts) - set(newest.parts):
            return TAKEN_AWAY
        return f"{READING}, for a file that its log names is missing; {SEE_REPAIR}"
    if isinstance(error, DAMAGE) and not is_refusal(error):
        return f"{READING}, for it is damaged; {SEE_REPAIR}"
    return READING

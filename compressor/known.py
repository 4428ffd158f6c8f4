"""Which pictures an archive already holds, in 16 bytes each. Says nothing about what is stored of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np

FINGERPRINT_BYTES = 5  # rows of earlier versions have three more, which say nothing new here
State = Literal["new", "changed", "same", "quarantined", "accepted"]


class Listed(Protocol):
    """A source file, as far as it matters here."""

    @property
    def key(self) -> str: ...
    @property
    def fingerprint(self) -> bytes: ...


def hash_keys(keys: Sequence[str]) -> np.ndarray:
    """uint64 (N,): BLAKE2b of each key."""
    return np.frombuffer(b"".join([blake2b(key.encode(), digest_size=8).digest() for key in keys]), np.uint64)


def content_fingerprint(content: bytes) -> bytes:
    """The fingerprint of what comes from memory, and not from a source that tells size and time."""
    return blake2b(content, digest_size=FINGERPRINT_BYTES).digest()


def fingerprint_numbers(fingerprints: Sequence[bytes]) -> np.ndarray:
    """uint64 (N,): the first :data:`FINGERPRINT_BYTES` of each fingerprint, which none has fewer of."""
    joined = b"".join([fingerprint[:FINGERPRINT_BYTES] for fingerprint in fingerprints])
    numbers = np.zeros((len(fingerprints), 8), np.uint8)
    numbers[:, :FINGERPRINT_BYTES] = np.frombuffer(joined, np.uint8).reshape(-1, FINGERPRINT_BYTES)
    return numbers.view(np.uint64)[:, 0]


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of ``values`` are in ``ordered``, bool: as np.isin, which would sort both again each time."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    return ordered[_places(values, ordered)] == values


def _places(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Where in ``ordered`` each of ``values`` is, if it is there."""
    return np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)


@dataclass(frozen=True)
class _Lookup:
    """Key hashes in order, and the fingerprint of each: uint64 (N,) both."""

    hashes: np.ndarray
    fingerprints: np.ndarray

    @classmethod
    def of(cls, hashes: np.ndarray, fingerprints: np.ndarray) -> "_Lookup":
        order = np.argsort(hashes)
        return cls(hashes[order], fingerprints[order])

    def find(self, hashes: np.ndarray, fingerprints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool (M,) each: the key is there; it is there with this fingerprint."""
        if not len(self.hashes):
            nothing = np.zeros(len(hashes), bool)
            return nothing, nothing
        at = _places(hashes, self.hashes)
        there = self.hashes[at] == hashes
        return there, there & (self.fingerprints[at] == fingerprints)


class KnownKeys:
    """Answers what is to be done with a source's files; a million keys take 16 MB.

    A key is known by a 64-bit hash. ``same`` needs the fingerprint to agree too, so that 104 bits decide that a picture
    is left out; a collision of the hash alone at worst has a new picture encoded as a changed one.

    Parameters
    ----------
    archived, quarantined
        Key hashes and fingerprints.
    again
        Hashes of those keys on the quarantine list that are tried again, changed or not.
    accepted
        Hashes of those on it that a person accepts as they are.
    """

    def __init__(
        self,
        archived: tuple[np.ndarray, np.ndarray],
        quarantined: tuple[np.ndarray, np.ndarray],
        again: np.ndarray,
        accepted: np.ndarray,
    ) -> None:
        self._archived = _Lookup.of(*archived)
        self._quarantined = _Lookup.of(*quarantined)
        self._again, self._accepted = np.sort(again), np.sort(accepted)

    def state(self, files: Sequence[Listed]) -> list[State]:
        """For each file: ``same``, ``quarantined`` and ``accepted`` (it failed as it is), ``changed`` or ``new``."""
        if not files:
            return []
        hashes = hash_keys([file.key for file in files])
        fingerprints = fingerprint_numbers([file.fingerprint for file in files])
        there, same = self._archived.find(hashes, fingerprints)
        _, failed = self._quarantined.find(hashes, fingerprints)
        failed &= ~among(hashes, self._again)
        accepted = failed & among(hashes, self._accepted)
        states = ["same", "accepted", "quarantined", "changed"]
        return np.select([same, accepted, failed, there], states, "new").tolist()

    def healed(self, keys: Sequence[str]) -> list[str]:
        """Those of ``keys`` that are on the quarantine list.

        Of files that are archived as they are: whoever archived them was killed before it took them off the list, or
        the file is again what it was before it failed.
        """
        if not keys or not len(self._quarantined.hashes):
            return []
        listed = among(hash_keys(keys), self._quarantined.hashes)
        return [key for key, there in zip(keys, listed, strict=True) if there]

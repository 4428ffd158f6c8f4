"""What an archive is, whatever is done to it in whatever order: two dicts, of pictures and of what failed.

Hypothesis makes up histories of runs, appends, erasures, kills, damage and repairs, and does the same to an archive on
disk and to two dicts. After each step the archive holds what the dicts hold, and is sound.
"""

import io
import itertools
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from compressor.appending import commit_batch
from compressor.archive import Archive
from compressor.encoding import EncodeOptions, encode_batch
from compressor.encoding_again import AgainOptions
from compressor.errors import CRASHED, DAMAGED, UNREADABLE, ArchiveError, NoPictureError
from compressor.growth import growth
from compressor.images import decode_picture
from compressor.known import FINGERPRINT_BYTES
from compressor.mirroring import Mirror
from compressor.parquet import Part, QuarantineRow, Row
from compressor.planning import Listing, plan
from compressor.repairing import repair
from compressor.sources import Source, SourceFile
from compressor.store import Store
from tests.rows import age, original_row

KEYS = ["a.png", "b/1.png", "b/2.png", "c.png", "é f.png"]
SOME_KEYS = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)
BROKEN = 5  # the version of a file that is no picture
HANDLES = st.integers(0, 2)
STORAGE = [(Store, name) for name in ("put", "delete", "ranges", "get", "settle", "names", "size")]
STORAGE += [(DeltaTable, name) for name in ("create_write_transaction", "create_checkpoint", "update_incremental")]


@cache
def content(version: int) -> bytes:
    """A file's bytes; a translucent picture, which an archive keeps as they are."""
    if version == BROKEN:
        return b"not a picture"
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (version * 20, 7, 9, 100)).save(file, "png")
    return file.getvalue()


def fingerprint(version: int) -> bytes:
    """Of a picture that comes from no source."""
    return blake2b(content(version), digest_size=FINGERPRINT_BYTES).digest()


@dataclass
class Model:
    """What an archive holds: fingerprint and bytes of each picture; fingerprint and reason of each that failed."""

    rows: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    listed: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def state(self, file: SourceFile) -> str:
        """What a run does with a file."""
        there, failed = self.rows.get(file.key), self.listed.get(file.key)
        if there and there[0] == file.fingerprint:
            return "same"
        if failed and failed[0] == file.fingerprint and failed[1] not in (CRASHED, UNREADABLE, DAMAGED):
            return "quarantined"
        return "changed" if there else "new"


Step = Callable[[Model], None]  # what one commit does


def committed(rows: dict[str, tuple[bytes, bytes]], replaced: Sequence[str]) -> Step:
    def step(model: Model) -> None:
        model.rows |= {key: row for key, row in rows.items() if key not in model.rows or key in replaced}

    return step


def removed(keys: Sequence[str]) -> Step:
    return lambda model: [model.rows.pop(key, None) for key in keys] and None


def listed(entries: dict[str, tuple[bytes, str]]) -> Step:
    return lambda model: model.listed.update(entries)


def unlisted(keys: Sequence[str]) -> Step:
    return lambda model: [model.listed.pop(key, None) for key in keys] and None


class Killed(BaseException):
    """The end of a process."""


@contextmanager
def killed_at(call: int | None) -> Iterator[None]:
    """End what is done meanwhile with so many calls of the storage before it; None: not at all."""
    calls = itertools.count()
    saved = [(owner, name, getattr(owner, name)) for owner, name in STORAGE]

    def ending(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise Killed
            return function(*arguments, **options)

        return called

    for owner, name, function in saved:
        setattr(owner, name, ending(function))
    try:
        yield
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)


class ArchiveMachine(RuleBasedStateMachine):
    """One archive, one source, two handles that others opened some time ago."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="latentpack-model-"))
        self.url = str(self.folder / "archive")
        self.model = Model()
        self.past = [self.model]  # all that the archive ever was, as far as one look after each step shows
        self.held: list[tuple[Archive, int]] = []  # and from when on they may see it
        self.files_went = 0  # when files that a handle may need were last deleted
        self.damaged = 0  # when a file that a handle may need was last damaged
        self.parts: list[tuple[Part, dict[str, tuple[bytes, bytes]]]] = []  # written; committed or not
        self.versions: dict[str, int] = {}  # of the source's files
        self.count = itertools.count(1)

    @initialize(keys=SOME_KEYS, version=st.integers(0, BROKEN))
    def begin(self, keys: list[str], version: int) -> None:
        Archive.create(self.url)
        (self.folder / "in").mkdir()
        self.change_the_source(keys, version)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # --- what machine and archive are asked ---

    def opened(self, handle: int = 0) -> Archive:
        """One of those that were opened earlier, if there is one; else anew."""
        return self.held[handle - 1][0] if 0 < handle <= len(self.held) else Archive.open(self.url)

    def source(self) -> Source:
        return Source.open(str(self.folder / "in"))

    def files(self) -> dict[str, SourceFile]:
        return {file.key: file for file in self.source().files()}

    def found(self) -> Model:
        """What the archive holds; no key twice."""
        archive = self.opened()
        rows = [row for batch in archive.scan() for row in batch]
        entries = list(archive.quarantined())
        for keys in ([row.key for row in rows], [entry.key for entry in entries]):
            assert len(set(keys)) == len(keys)
        return Model(
            {row.key: (row.fingerprint, row.payload) for row in rows},
            {entry.key: (entry.fingerprint, entry.reason) for entry in entries},
        )

    def become(self, model: Model) -> None:
        self.model = model
        self.past.append(model)

    def do(self, action: Callable[[], Any], steps: Sequence[Step], call: int | None) -> Any:
        """Do it: all ``steps`` are done then or, where it is killed, the first few."""
        possible = [deepcopy(self.model)]
        for step in steps:
            possible.append(deepcopy(possible[-1]))
            step(possible[-1])
        try:
            with killed_at(call):
                result = action()
        except Killed:
            found = self.found()
            assert found in possible
            self.become(found)
            return None
        self.become(possible[-1])
        return result

    # --- what users do ---

    killed = st.none() | st.none() | st.integers(0, 30)

    @rule(keys=SOME_KEYS, version=st.integers(0, BROKEN))
    def change_the_source(self, keys: list[str], version: int) -> None:
        for key in keys:
            path = self.folder / "in" / key
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(version))
            os.utime(path, (next(self.count),) * 2)
            self.versions[key] = version

    @rule(keys=SOME_KEYS)
    def delete_from_the_source(self, keys: list[str]) -> None:
        for key in keys:
            (self.folder / "in" / key).unlink(missing_ok=True)
            self.versions.pop(key, None)

    @rule(size=st.integers(1, 3), call=killed)
    def run(self, size: int, call: int | None) -> None:
        """A run archives what is new or changed, and nothing else; killed and repeated, it ends the same."""
        archive, files, source = self.opened(), self.files(), self.source()
        states = {key: self.model.state(file) for key, file in files.items()}
        planned = plan(Listing(source), archive.known(), self.folder / "plan")
        batches = list(planned.batches(size))
        counts = Counter(states.values())
        assert (planned.already_there, planned.quarantined) == (counts["same"], counts["quarantined"])
        assert {file.key for batch in batches for file in batch.files} == {
            key for key, state in states.items() if state in ("new", "changed")
        }
        assert {key for batch in batches for key in batch.changed} == {k for k in states if states[k] == "changed"}
        assert set(planned.healed) == {k for k in states if states[k] == "same" and k in self.model.listed}

        name, failed_before = f"run-{next(self.count)}", set(self.model.listed)
        steps = [unlisted(planned.healed)]
        for batch in batches:
            good = [file for file in batch.files if self.versions[file.key] != BROKEN]
            bad = [file for file in batch.files if self.versions[file.key] == BROKEN]
            steps += [
                committed({f.key: (f.fingerprint, content(self.versions[f.key])) for f in good}, list(batch.changed)),
                listed({file.key: (file.fingerprint, "not_a_picture") for file in bad}),
                unlisted([file.key for file in good]),
            ]

        def go() -> None:
            archive.clear_quarantine(planned.healed)
            for batch in batches:
                report = encode_batch(source, batch.files, archive, EncodeOptions("webp", 30), name)
                keys = [file.key for file in batch.files]
                commit_batch(archive, report, keys, batch.changed, failed_before, f"{name}/{batch.name}")

        self.do(go, steps, call)
        if call is None:
            for key, file in files.items():
                if self.versions[key] == BROKEN:
                    assert self.model.listed[key][0] == file.fingerprint
                else:
                    assert self.model.rows[key] == (file.fingerprint, content(self.versions[key]))
                    assert key not in self.model.listed

    @rule(keys=SOME_KEYS, version=st.integers(0, BROKEN - 1), handle=HANDLES, call=killed)
    def append(self, keys: list[str], version: int, handle: int, call: int | None) -> None:
        rows = dict.fromkeys(keys, (fingerprint(version), content(version)))
        pictures = dict.fromkeys(keys, content(version))
        self.do(
            lambda: self.opened(handle).append(pictures, codec="webp"), [committed(rows, keys), unlisted(keys)], call
        )

    @rule(keys=SOME_KEYS, version=st.integers(0, BROKEN - 1), handle=HANDLES)
    def write_a_part(self, keys: list[str], version: int, handle: int) -> None:
        row: Row = replace(original_row("", content(version), 3, 2), fingerprint=fingerprint(version))
        part = self.opened(handle).write_part([replace(row, key=key) for key in keys])
        self.parts.append((part, dict.fromkeys(keys, (fingerprint(version), content(version)))))

    @precondition(lambda self: self.parts)
    @rule(replaced=SOME_KEYS, name=st.sampled_from(["first", "second"]), handle=HANDLES, call=killed)
    def commit_a_part(self, replaced: list[str], name: str, handle: int, call: int | None) -> None:
        """Under a name that was committed before it does nothing, and so it does while the part is there."""
        part, rows = self.parts[-1]
        archive = self.opened()
        done = archive.tables[0].log.holds(name) or part in archive.tables[0].parts
        steps = [] if done else [committed(rows, replaced)]
        self.do(lambda: self.opened(handle).commit([part], replaced, name), steps, call)

    @rule(keys=SOME_KEYS, reason=st.sampled_from(["corrupt", CRASHED]), handle=HANDLES, call=killed)
    def quarantine(self, keys: list[str], reason: str, handle: int, call: int | None) -> None:
        entries = [QuarantineRow.now(key, fingerprint(0), reason, "", "run") for key in keys]
        step = listed(dict.fromkeys(keys, (fingerprint(0), reason)))
        self.do(lambda: self.opened(handle).quarantine(entries), [step], call)

    @rule(keys=SOME_KEYS, handle=HANDLES, call=killed)
    def erase(self, keys: list[str], handle: int, call: int | None) -> None:
        there = len(self.model.rows.keys() & set(keys))
        erased = self.do(lambda: self.opened(handle).delete(keys), [removed(keys), unlisted(keys)], call)
        assert erased in (there, None)
        self.let_files_go()

    @rule(handle=HANDLES, call=killed)
    def compact(self, handle: int, call: int | None) -> None:
        self.do(lambda: self.opened(handle).compact(), [], call)
        if call is None:
            assert len(self.opened().files()) <= 1 and list(self.opened().keys()) == sorted(self.model.rows)

    @rule(hours=st.sampled_from([0, 2]), an_hour_later=st.booleans(), handle=HANDLES, call=killed)
    def vacuum(self, hours: int, an_hour_later: bool, handle: int, call: int | None) -> None:
        if an_hour_later:
            age(self.opened())
        self.do(lambda: self.opened(handle).vacuum(hours), [], call)
        self.let_files_go()
        if an_hour_later and not hours and call is None:
            for table in self.opened().tables:
                there = {path.name for path in Path(self.url, table.folder).glob("*.parquet")}
                assert there == {part.path for part in table.parts}, "no orphan is left"

    def let_files_go(self) -> None:
        """What a part of nobody's becomes after an hour, and what others may no longer read."""
        self.parts = [(part, rows) for part, rows in self.parts if Path(self.url, "images", part.path).exists()]
        self.files_went = len(self.past)

    @rule(limit=st.sampled_from(["1", "50%", "100%"]), call=killed)
    def mirror(self, limit: str, call: int | None) -> None:
        mirror, files, rows = Mirror(self.opened()), self.files(), self.model.rows
        mirror.see(list(files.values()))
        gone = [key for key in rows if key not in files]
        most = float(limit[:-1]) / 100 * len(rows) if limit.endswith("%") else int(limit)
        refused = mirror.refusal(self.source(), len(files), [], limit)
        assert bool(refused) == (not files or len(gone) > most)
        if not refused:
            failed = [key for key in self.model.listed if key not in files]
            self.do(mirror.delete, [unlisted(failed), removed(gone)], call)

    @rule(keys=SOME_KEYS)
    def restore(self, keys: list[str]) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        self.opened().restore(self.folder / "out", keys)
        restored = {key: (self.folder / "out" / key) for key in keys}
        assert {key: path.read_bytes() for key, path in restored.items() if path.exists()} == {
            key: self.model.rows[key][1] for key in keys if key in self.model.rows
        }

    # --- what others see who opened it earlier ---

    @rule()
    def hold_a_handle(self) -> None:
        archive = self.opened()
        assert len(archive) == len(self.model.rows)
        self.held = [*self.held, (archive, len(self.past) - 1)][-2:]

    @precondition(lambda self: self.held)
    @rule(key=st.sampled_from(KEYS))
    def read_what_was(self, key: str) -> None:
        """A handle reads a picture as it was at some time since, or did not find it, or says that it is damaged."""
        archive, since = self.held[0]
        try:
            row = archive.read_row(key)
            found = (row.fingerprint, row.payload)
        except NoPictureError:
            found = None
        except ArchiveError as error:  # mending writes another file, and this handle knows the damaged one
            assert "damaged" in str(error) and self.damaged >= since
            return
        assert found in [model.rows.get(key) for model in self.past[since:]]

    @precondition(lambda self: self.held)
    @rule()
    def scan_what_was(self) -> None:
        """A handle scans one state, never a mixture; or says that its files are gone."""
        archive, since = self.held[0]
        try:
            found = {row.key: (row.fingerprint, row.payload) for batch in archive.scan() for row in batch}
        except ArchiveError as error:
            told = "open it again" in str(error) and self.files_went >= since
            assert told or ("damaged" in str(error) and self.damaged >= since)
        else:
            assert found in [model.rows for model in self.past[since:]]

    # --- damage ---

    @precondition(lambda self: self.model.rows)
    @rule(
        at=st.floats(0, 1, exclude_max=True),
        which=st.integers(0, 9),
        how=st.sampled_from(["flipped", "cut", "gone"]),
        mended=st.sampled_from(["put back", "from itself", "from the source"]),
    )
    def damage_a_file(self, at: float, which: int, how: str, mended: str) -> None:
        """It is found, other files stay as they are, and what the source has or the file itself tells comes back."""
        images, _ = self.opened().tables
        part = images.parts[which % len(images.parts)]
        inside = set(pq.read_table(f"{self.url}/images/{part.path}", columns=["key"])["key"].to_pylist())
        path = Path(self.url, "images", part.path)
        whole = path.read_bytes()
        place = int(at * len(whole))
        path.write_bytes(whole[:place] + (bytes([whole[place] ^ 4]) + whole[place + 1 :]) * (how == "flipped"))
        if how == "gone":
            path.unlink()
        named = {problem.key for problem in self.opened().verify()}
        assert named and named <= {part.path, *inside}

        source = self.source() if mended == "from the source" else None
        if mended != "put back":
            done = repair(self.opened(), source, AgainOptions("webp", 30))
            assert {problem.key for problem in self.opened().verify()} == {key for key, _ in done.left}
        if source is None:
            path.write_bytes(whole)
            return
        done = repair(self.opened(), source, AgainOptions("webp", 30), drop=True)
        if done.left:  # every row can be read, and which one is not as it was cannot be told
            path.write_bytes(whole)
        elif not path.exists() or path.read_bytes() != whole:  # who holds on to it can no longer commit it
            self.parts = [(held, rows) for held, rows in self.parts if held.path != part.path]
        found, files = self.found(), self.files()
        for key in KEYS:
            before, after, fresh = self.model.rows.get(key), found.rows.get(key), None
            if self.versions.get(key, BROKEN) != BROKEN:
                fresh = (files[key].fingerprint, content(self.versions[key]))
            if key in inside:
                assert after in (before, fresh) if fresh else after in (before, None)
            elif part.key_range[0] <= key <= part.key_range[1] and before is None:
                assert after in (None, fresh)  # it might have been in the file, whose keys cannot be read
            else:
                assert after == before
        self.become(found)
        self.files_went = self.damaged = len(self.past)

    # --- what holds after each step ---

    @invariant()
    def the_archive_is_the_model(self) -> None:
        archive, rows = self.opened(), self.model.rows
        assert self.found() == self.model
        assert archive.verify() == []
        assert len(archive) == len(rows) and sorted(archive.keys()) == sorted(rows)
        assert sorted(pq.read_table(archive.files(), columns=["key"])["key"].to_pylist() if rows else []) == sorted(
            rows
        )
        assert archive.missing(KEYS) == [key for key in KEYS if key not in rows and key not in self.model.listed]
        for key, (_, data) in list(rows.items())[:1]:
            assert np.array_equal(archive.read(key), decode_picture(data).pixels)
        commits = growth(archive)
        if commits:
            newest = commits[-1]
            assert (newest.pictures, newest.bytes) == (len(rows), archive.sizes()[0])


TestArchive = ArchiveMachine.TestCase
TestArchive.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)

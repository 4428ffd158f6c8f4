"""An archive as a data set: every picture once, in workers too, and clear words where others take files away."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from compressor import dataset as datasets
from compressor.archive import Archive
from compressor.errors import ArchiveError
from compressor.picture_writing import encode_picture
from tests.rows import add, original_row, picture_row


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return filled(str(tmp_path / "archive"))


def filled(url: str) -> Archive:
    """Forty pictures, in row groups of eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.parquet.GROUP_ROWS", 8)
        archive = Archive.create(url)
        archive.commit([archive.write_part([picture_row(f"{seed:03d}", seed) for seed in range(40)])])
    return archive


def test_every_picture_is_there_once(archive: Archive) -> None:
    dataset = archive.dataset()
    assert len(dataset) == 40
    assert torch.equal(dataset[7], torch.from_numpy(archive.read("007").transpose(2, 0, 1).copy()))
    assert dataset.row(7).key == "007"
    sampler = dataset.sampler(seed=1)
    assert sorted(sampler) == list(range(40)) and list(sampler) != list(sampler)


def test_a_picture_is_taken_by_a_number_that_may_count_from_the_end(archive: Archive) -> None:
    dataset = archive.dataset()
    assert torch.equal(dataset[-1], dataset[39]) and dataset.row(-40).key == "000"
    assert dataset.row(np.int64(3)).key == dataset.row(torch.tensor(3)).key == "003"  # type: ignore[arg-type]
    for index in (40, -41):
        with pytest.raises(IndexError, match=f"picture {index} of 40"):
            dataset[index]
    with pytest.raises(IndexError, match="of 0"):
        archive.dataset([])[-1]
    with pytest.raises(TypeError, match="by its number, not by slice: .*Subset"):
        dataset[:3]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"resize is the side of a square, one whole number, not \(64, 64\)"):
        archive.dataset(resize=(64, 64))  # type: ignore[arg-type]


def test_some_pictures_with_what_is_to_be_learned_of_them(archive: Archive) -> None:
    keys = {"039", "000", "017", "016"}
    dataset = archive.dataset(keys, transform=lambda picture: picture.shape, target=lambda row: int(row.key))
    assert [dataset[index] for index in range(len(dataset))] == [((3, 24, 32), label) for label in (0, 16, 17, 39)]
    assert sorted(dataset.sampler(seed=0)) == [0, 1, 2, 3]
    with pytest.raises(ArchiveError, match="no picture 'none'"):
        archive.dataset(["000", "none"])
    with pytest.raises(TypeError, match="a list is needed"):
        archive.dataset("000")


def test_pictures_of_several_sizes_come_in_batches(tmp_path: Path) -> None:
    """A run with ``--resize`` leaves some too: what keeps its bytes keeps its size."""
    archive = Archive.create(str(tmp_path / "archive"))
    tall = np.zeros((50, 40, 3), np.uint8)
    tall[:5] = tall[-5:] = 255
    originals = [original_row("tall.png", encode_picture(tall, 3), 40, 50)]
    archive.commit([archive.write_part([picture_row("a.png"), *originals])])
    with pytest.raises(RuntimeError, match="equal size"):
        list(DataLoader(archive.dataset(), batch_size=2))
    dataset = archive.dataset(resize=16, transform=lambda picture: picture.float() / 255)
    (batch,) = DataLoader(dataset, batch_size=2, sampler=dataset.sampler(seed=0))
    assert batch.shape == (2, 3, 16, 16) and batch.dtype == torch.float32
    assert not dataset[1].any(), "the square in the middle"
    with pytest.raises(ValueError, match="resize must be at least 1, not 0"):
        archive.dataset(resize=0)


def test_the_example_takes_batches_of_any_sizes(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    archive, together, decode = Archive.create(str(tmp_path / "archive")), [], Archive.decode
    add(archive, [picture_row(key, height=height) for key, height in (("a", 8), ("b", 9), ("c", 10))])
    monkeypatch.setattr(Archive, "decode", lambda self, rows: (together.append(len(rows)), decode(self, rows))[1])
    example = Path(__file__).parent.parent / "examples" / "read_from_pytorch.py"
    runpy.run_path(str(example))["main"](archive.url)
    assert capsys.readouterr().out.splitlines() == [f"(3, {height}, 32) torch.uint8" for height in (8, 9, 10)]
    assert together == [3]


def test_ranks_share_an_order_and_have_as_many_each(archive: Archive) -> None:
    dataset = archive.dataset()
    shares = [list(dataset.sampler(3, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [14, 14, 14] == [len(dataset.sampler(3, rank, 3)) for rank in range(3)]
    given = sum(shares, [])
    assert set(given) == set(range(40)) and len(given) - len(set(given)) == 2
    with pytest.raises(ValueError, match="rank must be from 0 to 1"):
        dataset.sampler(3, 2, 2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        dataset.sampler(3, 0, 0)
    assert list(archive.dataset([]).sampler(3)) == []


def test_few_bytes_are_kept_however_heavy_row_groups_are(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sum(len(row.payload) for row in archive.read_rows([f"{number:03d}" for number in range(8)]))
    monkeypatch.setattr(datasets, "BYTES_AT_ONCE", 2.5 * weight)
    dataset = archive.dataset()
    for index in range(0, 40, 8):
        assert dataset.row(index).key == f"{index:03d}"
    assert len(dataset._kept) == 2
    monkeypatch.setattr(datasets, "BYTES_AT_ONCE", 1)
    assert dataset.row(0).key == "000" and len(dataset._kept) == 1


def test_shuffling_reads_each_row_group_once_however_heavy(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    heaviest = max(size for *_, size in archive.row_groups())
    monkeypatch.setattr(datasets, "BYTES_AT_ONCE", 2.5 * heaviest)
    dataset = archive.dataset()
    read: list[int] = []
    monkeypatch.setattr(
        archive, "row_group", lambda part, group: read.append(group) or Archive.row_group(archive, part, group)
    )
    pictures = list(DataLoader(dataset, batch_size=8, sampler=dataset.sampler(seed=0)))
    assert len(pictures) == 5 and sorted(read) == [0, 1, 2, 3, 4]


def test_what_another_run_takes_away_ends_the_reading_in_words(archive: Archive) -> None:
    dataset = Archive.open(archive.url).dataset()
    archive.delete(["000"])
    with pytest.raises(ArchiveError, match="another run has compacted or vacuumed it"):
        dataset[5]


def test_no_more_of_a_batch_is_in_memory_at_full_size_than_is_decoded_together(archive: Archive, monkeypatch) -> None:
    dataset, decode, together = archive.dataset(resize=8), Archive.decode, []

    def noting(self: Archive, rows: list[Any]) -> list[np.ndarray]:
        together.append(len(rows))
        return decode(self, rows)

    at_once = dataset.__getitems__([3, 1, 4, 0, 5])
    monkeypatch.setattr(Archive, "decode", noting)
    monkeypatch.setattr("compressor.decoding.DECODED_PIXELS", 32 * 32 * 2)
    assert all(map(torch.equal, at_once, dataset.__getitems__([3, 1, 4, 0, 5]))) and together == [2, 2, 1]


@pytest.mark.parametrize("start", ["fork", "forkserver"])
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_workers_of_a_dataloader_are_fed(request: pytest.FixtureRequest, tmp_path: Path, place: str, start: str):
    url = request.getfixturevalue("bucket") + "/a" if place == "bucket" else str(tmp_path / "archive")
    filled(url)
    code = f"""
from torch.utils.data import DataLoader
from compressor.archive import Archive

class Own:  # what users wrap an archive in
    def __init__(self, dataset):
        self.dataset, self.archive = dataset, Archive.open({url!r})
        self.archive.read("000"), dataset[0]  # opens what a worker must not share
    def __len__(self):
        return len(self.dataset)
    def __getitem__(self, index):
        return self.archive.read(self.dataset.row(index).key)

if __name__ == "__main__":
    dataset = Archive.open({url!r}).dataset()
    for one in (Own(dataset), dataset):
        loader = DataLoader(
            one, batch_size=16, sampler=dataset.sampler(seed=1), num_workers=1, multiprocessing_context={start!r}
        )
        print([tuple(batch.shape) for batch in loader])
"""
    # In a process of its own: a fork of this one would have what is left of other tests' threads.
    (tmp_path / "feed.py").write_text(code)
    ended = subprocess.run([sys.executable, tmp_path / "feed.py"], capture_output=True, text=True, timeout=300)
    own, pictures = (
        "[(16, 24, 32, 3), (16, 24, 32, 3), (8, 24, 32, 3)]",
        "[(16, 3, 24, 32), (16, 3, 24, 32), (8, 3, 24, 32)]",
    )
    assert ended.stdout.splitlines() == [own, pictures], ended.stderr

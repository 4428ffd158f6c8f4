"""Sources as users have them: the same files, addresses and fingerprints wherever they lie."""

import io
import os
import pickle
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from compressor.errors import SourceError
from compressor.known import FINGERPRINT_BYTES
from compressor.limits import Limits
from compressor.reading import read_contents
from compressor.sources import Source
from tests.trees import NAMES, keys
from tests.trees import anywhere as anywhere
from tests.trees import bucket as bucket
from tests.trees import tree as tree


def test_an_address_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    def addresses(*urls):
        return {Source(url).address for url in urls}

    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ["in", "in/", "./in", "~/in", "link", f"{tmp_path}/in", "file://in", f"file://{tmp_path}/in/"]
    assert addresses(*ways) == {f"file://{tmp_path}/in"}
    assert addresses("zip://a::b.zip", f"zip://a::{tmp_path}/b.zip") == {f"zip://a::file://{tmp_path}/b.zip"}
    assert addresses("s3://bucket/in", "s3://bucket/in/", "s3a://bucket/in") == {"s3://bucket/in"}
    with_passwords = ["ftp://me:secret@host/in", "ftp://me:other@host/in/", "ftp://me@host/in?token=secret"]
    assert addresses(*with_passwords) == {"ftp://me@host/in"}
    chained = ["simplecache::sftp://me:secret@host/in", "simplecache::sftp://me@host/in"]
    assert addresses(*chained) == {"simplecache::sftp://me@host/in"}
    others = ["in", "other", "s3://in", "gs://in", "abfs://in@account/a", "abfs://out@account/a", "sftp://host:22/in"]
    assert len(addresses(*others, "sftp://host/in")) == len(others) + 1


def test_the_same_listing_and_bytes_everywhere(anywhere):
    source = Source.open(anywhere)
    files = list(source.files())
    assert [file.key for file in files] == sorted(NAMES)
    assert all(file.size == len(file.key.encode()) and len(file.fingerprint) == FINGERPRINT_BYTES for file in files)
    assert source.read([file.path for file in files]) == [file.key.encode() for file in files]
    again = pickle.loads(pickle.dumps(source))
    assert list(again.files()) == files and source.skipped == []


@pytest.mark.parametrize("url", ["pictures", "zip://*::pictures.zip", "zip://*::file://pictures.zip"])
def test_a_relative_source_stays_the_same_for_a_worker_with_another_working_directory(tmp_path, monkeypatch, url):
    for folder, name in (("driver", "a.png"), ("worker", "b.png")):
        (tmp_path / folder / "pictures").mkdir(parents=True)
        (tmp_path / folder / "pictures" / name).write_bytes(b"")
        shutil.make_archive(tmp_path / folder / "pictures", "zip", tmp_path / folder / "pictures")
    monkeypatch.chdir(tmp_path / "driver")
    travelling = pickle.dumps(Source.open(url))
    monkeypatch.chdir(tmp_path / "worker")
    assert [file.key for file in pickle.loads(travelling).files()] == ["a.png"]


def test_many_files_of_one_tar_are_each_themselves(tmp_path):
    """fsspec reads a tar through one file, which threads would move under each other."""
    random = np.random.default_rng(0)
    content = {f"{number:03d}.png": random.bytes(int(random.integers(1, 30_000))) for number in range(200)}
    with tarfile.open(tmp_path / "all.tar", "w") as file:
        for name, data in content.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    source = Source.open(f"tar://::{tmp_path}/all.tar")
    files = list(source.files())
    for _ in range(3):
        read = source.read([file.path for file in files])
        assert dict(zip((file.key for file in files), read, strict=True)) == content


def test_a_file_on_the_web_that_has_changed_is_seen_to_have(tree):
    """Listings of web servers tell neither size nor time."""
    os.symlink(tree / "gone", tree / "00000" / "dead.png")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tree))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/00000"
        before = {file.key: file for file in Source.open(url).files()}
        assert {key: file.size for key, file in before.items()} == {"00000.png": 15, "00001.PNG": 15, "dead.png": 0}
        good, dead = Source.open(url).read([before[name].path for name in ("00000.png", "dead.png")])
        assert good == b"00000/00000.png" and isinstance(dead, SourceError), "one dead link ends no listing"
        os.utime(tree / "00000" / "00000.png", (1e9, 1e9))
        after = {file.key: file for file in Source.open(url).files()}
        assert [key for key in before if before[key] != after[key]] == ["00000.png"]
    finally:
        server.shutdown()
        server.server_close()


def test_a_storage_that_tells_no_versions_is_asked_once(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    for number in range(20):
        memory.pipe(f"/plain/{number:02d}.png", b"content")
    asked = []
    bare = [{"name": f"/plain/{number:02d}.png", "size": 7, "type": "file"} for number in range(20)]
    monkeypatch.setattr(type(memory), "ls", lambda *_, **__: bare)
    monkeypatch.setattr(type(memory), "info", lambda _, path, **__: asked.append(path) or {"size": 7, "type": "file"})
    monkeypatch.setattr(type(memory), "isdir", lambda *_: True)
    assert [file.size for file in Source.open("memory://plain").files()] == [7] * 20
    assert len(asked) == 1


def test_single_file_everywhere(anywhere):
    if "::" in anywhere:
        pytest.skip("the name comes first in a chained URL")
    source = Source.open(anywhere + "/01000/x[1].webp")
    (file,) = source.files()
    assert file.key == "x[1].webp"
    assert source.read([file.path]) == [b"01000/x[1].webp"]


def test_missing_and_empty_everywhere(anywhere):
    if "::" not in anywhere:
        for missing in ("/absent", "/absent.png", "/absent/*.png"):
            with pytest.raises(SourceError, match="no source at .*absent"):
                Source.open(anywhere + missing)
    source = Source.open(anywhere)
    path = next(source.files()).path
    good, bad = source.read([path, path + ".gone.png"])
    assert good == sorted(NAMES)[0].encode()
    assert isinstance(bad, SourceError) and "does not exist" in str(bad)


def test_empty_is_no_error(tmp_path, bucket):
    assert keys(str(tmp_path)) == []
    assert keys("s3://hollow") == []
    assert keys("s3://pictures/documents/") == []
    assert keys("s3://pictures") == ["ffhq/" + name for name in sorted(NAMES)]


def test_fingerprint_changes_with_the_file(tree, bucket):
    def prints(url):
        return {file.key: file.fingerprint for file in Source.open(url).files()}

    for url, change in (
        (str(tree), lambda: (tree / "00000.png").write_bytes(b"changed!!")),
        ("s3://pictures/ffhq", lambda: bucket.put_object(Bucket="pictures", Key="ffhq/00000.png", Body=b"changed!!")),
    ):
        before = prints(url)
        assert prints(url) == before
        change()
        after = prints(url)
        assert {key for key in before if before[key] != after[key]} == {"00000.png"}
    bucket.put_object(Bucket="pictures", Key="ffhq/00000.png", Body=b"00000.png")


def test_pipe_and_text_as_source(tree):
    os.mkfifo(tree / "pipe.png")
    with pytest.raises(SourceError, match="not a regular file"):
        Source.open(str(tree / "pipe.png"))
    assert keys(str(tree / "readme.txt")) == ["readme.txt"]  # asked for by name: the decoder says what it is


def test_raw_files_are_not_fetched_wherever_pictures_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.dng", "b.png", "c.NEF", "d.png"):
        (tmp_path / name).write_bytes(name.encode())
    source = Source.open(str(tmp_path))
    fetched: list[str] = []
    read = source.read
    monkeypatch.setattr(source, "read", lambda paths: read([*paths, *(fetched.extend(paths) or [])]))
    found = read_contents(source, list(source.files()), Limits())
    assert [one if isinstance(one, bytes) else one.reason for one in found] == [
        "unsupported", b"b.png", "unsupported", b"d.png"
    ]  # fmt: skip
    assert [Path(path).name for path in fetched] == ["b.png", "d.png"]


def test_a_file_has_one_address_whichever_source_lists_it(tmp_path):
    import zipfile

    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/addresses/a/1.png", b"")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as one, zipfile.ZipFile(tmp_path / "q.zip", "w") as other:
        one.writestr("a/1.png", b"")
        other.writestr("a/1.png", b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")

    def address(url):
        source = Source.open(url)
        [file] = source.files()
        return source.address_of(file)

    for above, below in (
        ("memory://addresses", "memory://addresses/a/*.png"),
        (f"{tmp_path}", f"file://{tmp_path}/a"),
        (f"zip://::{tmp_path}/p.zip", f"zip://a::{tmp_path}/p.zip"),
    ):
        assert address(above) == address(below)
    assert address(f"zip://::{tmp_path}/p.zip") != address(f"zip://::{tmp_path}/q.zip")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_of_files_is_refused_with_the_address_of_the_pictures_in_it(tmp_path, kind):
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    picture.write_bytes(b"1")
    file = shutil.make_archive(str(tmp_path / "photos"), kind, picture.parent)
    with pytest.raises(SourceError, match=f"is no picture; .* {kind}://::{file}$") as refused:
        Source.open(file)
    (listed,) = Source.open(str(refused.value).split()[-1]).files()
    assert os.path.basename(listed.key) == "a.png"


def test_names_in_a_zip_that_cannot_be_read_are_passed_over(tmp_path):
    import zipfile

    names = ["a//b.png", "//r.png", "/abs/c.png", "a/d.png", "a/./e.png", "/abs/notes.txt"]
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as file:
        for name in names:
            file.writestr(name, b"1")
    source = Source.open(f"zip://::{tmp_path}/odd.zip")
    found = list(source.files())
    assert {skipped.name for skipped in source.skipped} == {"a//b.png", "//r.png", "/abs/c.png"}
    assert "a/d.png" in {file.key for file in found} and source.read([file.path for file in found])[0] == b"1"

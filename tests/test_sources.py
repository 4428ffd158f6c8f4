"""Sources as users have them: messy folders, buckets, globs, single files, and storage that fails."""

import io
import itertools
import os
import pickle
import re
import shutil
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from compressor import listing, retrying
from compressor.errors import ArchiveError, SourceError, told
from compressor.images import Limits
from compressor.reading import read_contents
from compressor.sources import Source
from compressor.store import Store

NAMES = ["00000/00000.png", "00000/00001.PNG", "00000-b.jpeg", "00000.png", "01000/x[1].webp", "01000/deep/y z.tif"]
NAMES.append("é.jpg")
OTHERS = ["readme.txt", ".hidden.png", ".cache/z.png", "00000/.DS_Store", "Thumbs.db"]


@pytest.fixture
def tree(tmp_path):
    for name in NAMES + OTHERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture(scope="module")
def bucket(s3_server):
    client = boto3.client("s3")
    client.create_bucket(Bucket="pictures")
    client.create_bucket(Bucket="hollow")
    for name in NAMES + OTHERS:
        client.put_object(Bucket="pictures", Key="ffhq/" + name, Body=name.encode())
    client.put_object(Bucket="pictures", Key="ffhq/00000/", Body=b"")  # what consoles leave for a folder
    client.put_object(Bucket="pictures", Key="documents/a.txt", Body=b"text")
    return client


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


@pytest.fixture(params=["local", "file", "s3", "memory", "zip", "tar"])
def anywhere(request, tmp_path):
    """The same files in every kind of storage, as a URL without a slash at its end."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return "s3://pictures/ffhq"
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        for name in NAMES + OTHERS:
            memory.pipe(f"/ffhq/{name}", name.encode())
        return "memory://ffhq"
    tree = request.getfixturevalue("tree")
    if request.param == "zip":
        import zipfile

        with zipfile.ZipFile(tree / "all.zip", "w") as file:
            for name in NAMES + OTHERS:
                file.writestr("ffhq/" + name, name)
        return f"zip://ffhq::{tree}/all.zip"
    if request.param == "tar":
        with tarfile.open(tree / "all.tar", "w") as file:
            for name in NAMES + OTHERS:
                file.add(tree / name, "ffhq/" + name)
        return f"tar://ffhq::{tree}/all.tar"
    return str(tree) if request.param == "local" else f"file://{tree}"


def keys(url):
    return [file.key for file in Source.open(url).files()]


def test_the_same_listing_and_bytes_everywhere(anywhere):
    source = Source.open(anywhere)
    files = list(source.files())
    assert [file.key for file in files] == sorted(NAMES)
    assert all(file.size == len(file.key.encode()) and len(file.fingerprint) == 8 for file in files)
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


def test_what_became_a_pipe_or_a_device_since_it_was_listed_is_not_read_for_ever(tmp_path):
    for name in ("device.png", "pipe.png", "sound.png"):
        (tmp_path / name).write_bytes(b"1")
    source = Source.open(str(tmp_path))
    paths = [file.path for file in source.files()]
    for path in paths[:2]:
        os.remove(path)
    os.symlink("/dev/zero", paths[0])
    os.mkfifo(paths[1])
    device, pipe, sound = source.read(paths)
    assert "no regular file any more" in str(device) and "no regular file any more" in str(pipe) and sound == b"1"


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


def test_a_glob_is_told_only_of_names_that_it_asks_for(tree):
    os.symlink(tree / "gone", tree / "broken.png")
    os.symlink("/", tree / "elsewhere")
    for pattern, passed_over in (("0*.png", []), ("*.png", ["broken.png"]), ("e*/*.png", ["elsewhere"])):
        source = Source.open(f"{tree}/{pattern}")
        list(source.files())
        assert [skipped.name for skipped in source.skipped] == passed_over, pattern


def test_a_folder_whose_name_is_no_utf8_is_refused_by_name(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with pytest.raises(SourceError, match=r"caf.*not valid UTF-8"):
        Source.open(os.fsdecode(folder))


def test_globs_everywhere(anywhere):
    if "::" in anywhere:
        pytest.skip("a glob inside a chained URL is spelled otherwise")
    assert keys(anywhere + "/**/*.png") == ["00000.png", "00000/00000.png"]
    assert keys(anywhere + "/*.png") == ["00000.png"]
    assert keys(anywhere + "/0*/*") == ["00000/00000.png", "00000/00001.PNG", "01000/x[1].webp"]
    assert keys(anywhere + "/00000/0000[01].*") == ["00000.png", "00001.PNG"]
    assert keys(anywhere + "/nothing-*.png") == []


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


def test_nothing_is_lost_silently(tree):
    os.symlink(tree, tree / "00000" / "loop")
    os.symlink("/", tree / "away")
    (tree / ".hidden.png").write_bytes(b"hidden")
    (tree / ".thumbnails").mkdir(exist_ok=True)
    os.symlink(tree / "00000.png", tree / "link.png")
    os.symlink(tree / "gone", tree / "broken.png")
    os.symlink(tree / "itself.png", tree / "itself.png")
    os.mkfifo(tree / "pipe.png")
    (Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.png"))).write_bytes(b"latin-1")
    (tree / "two\nlines.png").write_bytes(b"newline")
    source = Source.open(str(tree))
    files = {file.key: file.path for file in source.files()}
    assert sorted(files) == sorted([*NAMES, "link.png", "two\nlines.png"])
    assert source.read([files["two\nlines.png"]]) == [b"newline"]
    reasons = dict(source.skipped)
    assert set(reasons) == {"away", "broken.png", "pipe.png", "caf\\udce9.png"}
    assert "UTF-8" in reasons["caf\\udce9.png"] and "link to a folder" in reasons["away"]
    ignored = dict(source.ignored)
    assert {"00000/loop", "itself.png", ".hidden.png", ".thumbnails/"} <= set(ignored)
    assert len(ignored) == source.ignored_count and "hidden" in ignored[".hidden.png"]


def test_pipe_and_text_as_source(tree):
    os.mkfifo(tree / "pipe.png")
    with pytest.raises(SourceError, match="not a regular file"):
        Source.open(str(tree / "pipe.png"))
    assert keys(str(tree / "readme.txt")) == ["readme.txt"]  # asked for by name: the decoder says what it is


def test_folder_names_with_wildcards(tmp_path):
    (tmp_path / "a[1]*").mkdir()
    (tmp_path / "a[1]*" / "b.png").write_bytes(b"x")
    assert keys(str(tmp_path / "a[1]*")) == ["b.png"]


@given(st.sets(st.text("ab-./é", min_size=1, max_size=6), max_size=12), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_local_order_is_the_order_of_whole_keys(tmp_path_factory, names, held):
    root = tmp_path_factory.mktemp("order")
    for name in names:
        name = "/".join("x" + part.strip(".") for part in name.split("/")) + "z.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "NAMES_HELD", held)  # many passes over each directory
        found = keys(str(root))
    assert found == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))


def test_bucket_of_several_pages(bucket, monkeypatch):
    monkeypatch.setattr(listing, "KEYS_A_PAGE", 3)
    assert keys("s3://pictures/ffhq") == sorted(NAMES)
    files = Source.open("s3://pictures/ffhq").files()
    assert [file.key for file in itertools.islice(files, 2)] == sorted(NAMES)[:2]


@pytest.mark.parametrize("token", [{}, {"NextContinuationToken": "again"}])
def test_a_bucket_that_does_not_say_where_its_listing_goes_on_is_not_listed_for_ever(bucket, monkeypatch, token):
    page = {"Contents": [{"Key": "ffhq/a.png", "Size": 1, "ETag": '"1"'}], "IsTruncated": True, **token}
    monkeypatch.setattr(S3FileSystem, "call_s3", lambda fs, method, **request: page)
    with pytest.raises(SourceError, match="s3://pictures/ffhq/: .* not where to go on"):
        keys("s3://pictures/ffhq")
    with pytest.raises(ArchiveError, match="not where to go on"):
        Store("s3://pictures/ffhq").names()


class Storage(BaseHTTPRequestHandler):
    """Half of an S3 server: objects that answer with the failures their names ask for."""

    asked: dict[str, int] = {}

    def do_GET(self):
        name = self.path.rsplit("/", 1)[1]
        count = self.asked[name] = self.asked.get(name, 0) + 1
        status, code = 200, ""
        if name.startswith("flaky") and count <= 3:
            status, code = 503, "SlowDown"
        elif name.startswith("down"):
            status, code = 500, "InternalError"
        elif name.startswith("secret"):
            status, code = 403, "AccessDenied"
        elif name.startswith("reset") and count <= 2:
            self.connection.close()
            return
        body = f"<Error><Code>{code}</Code><Message>{code}!</Message></Error>".encode() if code else b"picture"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch):
    from compressor import retrying

    monkeypatch.setattr(retrying, "back_off", lambda attempt: None)
    broken = OSError("Generic S3 error: HTTP error: request or response body error: end of file before message length")
    answers = [broken, broken, "whole"]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retrying.patiently(ask) == "whole"
    answers[:] = [OSError("Generic S3 error: access denied"), "never asked for"]
    with pytest.raises(OSError, match="denied"):
        retrying.patiently(ask)


def test_retries_only_what_may_pass(monkeypatch):
    waits = []
    plainly = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}  # no slowing down either
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retrying.random, "uniform", lambda low, high: waits.append(high) or high)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        names = ["good.png", "flaky.png", "reset.png", "down.png", "secret.png"]
        good, flaky, reset, down, secret = Source("s3://b", plainly).read([f"b/{name}" for name in names])
    finally:
        server.shutdown()
        server.server_close()
    assert good == flaky == reset == b"picture"
    assert isinstance(down, SourceError) and "tried 5 times" in str(down)
    assert isinstance(secret, SourceError) and "check the credentials" in str(secret) and "hush" not in str(secret)
    assert Storage.asked["good.png"] == Storage.asked["secret.png"] == 1
    assert waits == [0.001, 0.002, 0.004, 0.008]  # doubling bounds, drawn below them


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nowhere://bucket/x", "cannot open"),
        ("s3://no-such-bucket/x", "does not exist|no source"),
        ("/no/such/folder", "no source at /no/such/folder"),
    ],
)
def test_sources_that_cannot_be_opened(s3_server, url, message):
    with pytest.raises(SourceError, match=message):
        Source.open(url)


def test_unreachable_endpoint_is_told(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    with pytest.raises(SourceError, match="check the network") as caught:
        Source.open("s3://bucket/prefix")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("response", [None, object(), {}, {"Error": {"Message": "why"}}])
def test_errors_of_any_client_are_told(response):
    cause = OSError()
    cause.response = response  # a dictionary in botocore, an object or None in clients of other stores
    error = OSError("it\nbroke")
    error.__cause__ = cause
    assert told(error) == "it broke"


def test_no_credentials_in_messages(s3_server, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.001)
    for url in ("s3://me:hush@bucket/x", "http://me:hush@127.0.0.1:9/x/?Signature=hush"):
        with pytest.raises(SourceError) as caught:
            Source.open(url)
        assert "hush" not in str(caught.value) and "hush" not in repr(Source(url))


def test_brackets_may_be_part_of_a_remote_folder_s_name():
    import fsspec

    fsspec.filesystem("memory").pipe("/brackets/photos [2020]/a.png", b"a")
    assert keys("memory://brackets/photos [2020]") == ["a.png"]


def test_files_of_other_extensions_are_counted_everywhere(anywhere):
    source = Source.open(anywhere)
    for _ in range(2):
        list(source.files())
    assert source.unlisted == {".txt": 1, ".db": 1, "none": 1}


def test_a_web_server_s_other_files_are_counted_too(tree):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tree)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = Source.open(f"http://127.0.0.1:{server.server_port}")
        assert "00000.png" in [file.key for file in source.files()]
        assert source.unlisted == {".txt": 1, ".db": 1, "none": 1}
    finally:
        server.shutdown()
        server.server_close()


def test_every_file_is_counted_once_and_no_more_extensions_than_memory_has_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "NAMES_HELD", 2)  # many passes over the directory
    names = [f"{number}.x{number}" for number in range(150)] + [f"{number}.jpg_{number}" for number in range(150)]
    listed = [f"{number}.png" for number in range(7)]
    for name in [*names, "b.png ", "c", f"d.{'e' * 50}", *listed]:
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.x1")
    source = Source.open(str(tmp_path))
    assert [file.key for file in source.files()] == listed
    assert source.unlisted.total() == 303 and len(source.unlisted) <= 102
    assert sum(count for name, count in source.unlisted.items() if listing.is_like_picture(name)) == 151
    source = Source.open(f"{tmp_path}/*.x1")
    assert list(source.files()) == [] and source.unlisted == {".x1": 1}


@pytest.mark.parametrize(
    ("extension", "like"),
    [(".jpg_large", True), (".png ", True), (".tif~", True), (".dng!", True), (".jpgs", False), (".txt", False)],
)
def test_extensions_that_are_nearly_a_picture_s(extension, like):
    assert listing.is_like_picture(extension) is like and not listing.is_picture("a" + extension)


def test_pictures_that_are_not_read_are_listed_and_the_documentation_says_which(tmp_path):
    wanted = sorted(f"a{extension}" for extension in listing.PICTURE_EXTENSIONS)
    assert {"a.dng", "a.cr2", "a.psd", "a.tga", "a.ppm", "a.ico", "a.heic", "a.jxl"} <= set(wanted)
    for name in wanted:
        (tmp_path / name).write_bytes(b"")
    assert keys(str(tmp_path)) == wanted
    told = re.findall(r"\.[a-z0-9]+", (Path(__file__).parents[1] / "docs" / "operations.md").read_text())
    assert set(told) >= listing.PICTURE_EXTENSIONS


def test_a_tar_of_the_folder_itself_is_listed_as_the_folder(tmp_path):
    for name in ("b.png", "a/c.png", "-.png", ".hidden.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    with tarfile.open(tmp_path / "dot.tar", "w") as file:
        file.add(tmp_path / "in", ".")
    source = Source.open(f"tar://::{tmp_path}/dot.tar")
    files = list(source.files())
    assert [file.key for file in files] == ["-.png", "a/c.png", "b.png"]
    assert source.read([file.path for file in files]) == [b"-.png", b"a/c.png", b"b.png"]
    assert [name for name, _ in source.ignored] == [".hidden.png"] and source.unlisted == {".txt": 1}
    assert [file.key for file in Source.open(f"tar://*.png::{tmp_path}/dot.tar").files()] == ["-.png", "b.png"]


def test_a_tar_that_names_some_files_from_the_dot_is_in_order_and_names_each_once(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "mixed.tar", "w") as file:
        for name in ("./a.png", "b.png", "./c.png", "d/e.png", "./d/f.png", "./b.png"):
            file.add(tmp_path / "x.png", name)
    source = Source.open(f"tar://::{tmp_path}/mixed.tar")
    assert [file.key for file in source.files()] == ["a.png", "b.png", "c.png", "d/e.png", "d/f.png"]
    assert [name for name, _ in source.skipped] == ["b.png"]


def test_the_globs_advised_for_the_last_of_many_folders_keep_its_name(bucket):
    bucket.create_bucket(Bucket="dated")
    for month in ("2026-10", "2026-11", "2026/11", "2027/11"):
        bucket.put_object(Bucket="dated", Key=f"{month}/0001.png", Body=b"x")
    text = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    advised = re.findall("`'s3://bucket/(2026[^']*)'`", text)
    assert len(advised) == 2
    found = [keys(f"s3://dated/{glob}") for glob in advised]
    assert found == [["2026-11/0001.png"], ["2026/11/0001.png"]]
    assert keys("s3://dated/2026-11/") == ["0001.png"], "which is why"


def test_a_pattern_that_is_none_is_told(tmp_path):
    with pytest.raises(SourceError, match="entire path component"):
        Source.open(f"{tmp_path}/a**")


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

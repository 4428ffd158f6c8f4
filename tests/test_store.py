"""Where an archive may lie: paths that delta-rs takes for others, buckets, and S3 servers of other ways."""

import http.client
import http.server
import os
import pickle
import re
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from compressor.archive import Archive
from compressor.errors import ArchiveError, SourceError
from compressor.sources import Source
from compressor.store import Store
from tests.rows import add, contents, face_key, face_rows, picture_row, source_file


# Each would have its log elsewhere than its files: another folder's rows are lost, and this one's never seen.
def test_an_empty_address_is_not_the_present_folder(tmp_path, monkeypatch):
    add(Archive.create(str(tmp_path)), face_rows(1))
    monkeypatch.chdir(tmp_path)
    assert len(Archive.open(".")) == 1
    with pytest.raises(ArchiveError, match="address is empty"):
        Archive.open("")


def test_a_path_is_an_address_but_not_one_of_a_bucket(tmp_path):
    add(Archive.open_or_create(tmp_path / "archive"), face_rows(1))
    assert len(Archive.open(tmp_path / "archive")) == 1 == len(Archive.open_or_create(tmp_path / "archive"))
    assert Archive.create(tmp_path / "other").url == str(tmp_path / "other")
    for call in (Archive.open, Archive.create, Archive.open_or_create):
        with pytest.raises(ArchiveError, match="begins with s3://: give it as text"):
            call(Path("s3://bucket/archive"))


def test_a_folder_whose_name_begins_as_a_home_that_is_nobodys_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Archive.create("~nobody-of-that-name/archive")
    assert (tmp_path / "~nobody-of-that-name/archive/latentpack.json").is_file()


@pytest.mark.parametrize("name", ["p%20c", "p%2fc", "%FF", "p\\c", "p\tc", "p\nc", "\x7f", "\0", "\udcff"])
@pytest.mark.parametrize("made", [False, True])
def test_a_path_that_delta_rs_takes_for_another_is_refused(tmp_path, name, made):
    for other in ("p c", "p/c") if made else ():
        (tmp_path / other).mkdir(parents=True)
    for url in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}/below"):
        with pytest.raises(ArchiveError, match="its log would lie elsewhere than its files; name one in UTF-8") as told:
            Archive.open_or_create(url)
        str(told.value).encode()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_link_to_such_a_path_is_refused(tmp_path):
    (tmp_path / "p%20c").mkdir()
    (tmp_path / "link").symlink_to("p%20c")
    with pytest.raises(ArchiveError, match="holds no '%20': its log would lie elsewhere"):
        Archive.create(str(tmp_path / "link"))


@pytest.mark.parametrize("name", ["p%20c", "p\tc", "\udcff", "a#b", "a?b", "a//b", "a/./b", "a/../b", "a/.."])
def test_a_key_that_delta_rs_takes_for_another_is_refused(name):
    with pytest.raises(ArchiveError, match="its log would lie elsewhere"):
        Store(f"s3://bucket/{name}")


def test_a_key_that_delta_rs_takes_as_it_is_stays(bucket):
    archive = Archive.create(f"{bucket}/100% of ..x\\ [a]/.b")
    add(archive, [picture_row("a")])
    assert list(contents(archive)) == ["a"]
    stored = Store(bucket).fs.find(bucket)
    assert all(path.startswith(archive.url[5:] + "/") for path in stored)


def test_the_same_on_s3(bucket):
    archive = Archive.create(f"{bucket}/some/archive")
    add(archive, face_rows(300), batch_id="1")
    add(archive, face_rows(100, start=250, seed=1), replaced=[face_key(250)], batch_id="2")
    reader = Archive.open(archive.url)
    assert sorted(reader.keys()) == [face_key(number) for number in range(350)]
    spans = []
    ranges = reader._store.ranges
    reader._store.ranges = lambda name, wanted: (spans.extend(wanted), ranges(name, wanted))[1]
    assert reader.read_row(face_key(250)) == face_rows(100, start=250, seed=1)[0]
    assert len(spans) < 5
    assert archive.delete([face_key(0)]) == 1
    archive.compact()
    archive.vacuum(0)
    assert reader.read_row(face_key(1)) == face_rows(300)[1]
    assert len(pickle.loads(pickle.dumps(archive))) == 349
    assert archive.known().state([source_file(row) for row in face_rows(2)]) == ["new", "same"]


def test_options_reach_both_who_write_files_and_the_log_whatever_their_case(bucket, monkeypatch):
    names = {"AWS_ENDPOINT_URL": "aws_endpoint", "AWS_ACCESS_KEY_ID": "aws_access_key_id"}
    names |= {"AWS_SECRET_ACCESS_KEY": "Aws_Secret_Access_Key"}
    options = {given: os.environ[name] for name, given in names.items()}
    for name in names:
        monkeypatch.delenv(name)
    archive = Archive.create(f"{bucket}/archive", options | {"aws_default_region": "us-east-1"})
    add(archive, face_rows(1))
    assert archive._store.table_options.keys() == {*names, "AWS_REGION"}
    assert len(pickle.loads(pickle.dumps(archive))) == 1


@pytest.mark.parametrize("place", ["s3://bucket/archive", "archive"])
def test_options_that_nobody_would_look_at_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, told in (
        (
            {"key": "a", "secret": "b"},
            "no storage option 'key': .*{'AWS_ENDPOINT_URL': 'https://...', 'AWS_ACCESS_KEY_ID'",
        ),
        ({"client_kwargs": {"endpoint_url": "http://localhost"}}, "no storage option 'client_kwargs'"),
        ({7: "a"}, "no storage option 7"),
        ({"AWS_ALLOW_HTTP": True}, "storage option AWS_ALLOW_HTTP is text, not bool: give {'AWS_ALLOW_HTTP': '...'}"),
        ({"aws_session_token": None}, "aws_session_token is text, not NoneType: give {'AWS_SESSION_TOKEN': "),
    ):
        for call in (Archive.open, Archive.create, Archive.open_or_create):
            with pytest.raises(ArchiveError, match=told):
                call(place, options)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_of_somebody_elses_is_refused_at_the_first_page(bucket, monkeypatch):
    import boto3

    client = boto3.client("s3")
    for number in range(9):
        client.put_object(Bucket=bucket[5:], Key=f"images/{number}.png", Body=b"x")
        client.put_object(Bucket=bucket[5:], Key=f".other/flat/{number}.png", Body=b"x")
    monkeypatch.setattr("compressor.listing.KEYS_A_PAGE", 2)
    listed: list[str] = []
    call_s3 = S3FileSystem.call_s3

    def noting(fs: S3FileSystem, method: str, **request):
        listed.append(request["Prefix"])
        return call_s3(fs, method, **request)

    monkeypatch.setattr(S3FileSystem, "call_s3", noting)
    for prefix, found in ((".other/flat/", "0.png"), ("", "images/0.png")):
        with pytest.raises(ArchiveError, match=rf"not empty \(it holds '{found}'\)"):
            Archive.create(f"{bucket}/{prefix}")
    assert [listed.count(prefix) for prefix in (".other/flat/", "", "images/")] == [1, 1, 1]
    assert len(client.list_objects_v2(Bucket=bucket[5:])["Contents"]) == 18


def test_a_folder_that_an_s3_console_made_is_empty(bucket):
    import boto3

    boto3.client("s3").put_object(Bucket=bucket[5:], Key="made/by/console/", Body=b"")
    boto3.client("s3").put_object(Bucket=bucket[5:], Key="made/by/console/images/", Body=b"")
    archive = Archive.open_or_create(f"{bucket}/made/by/console")
    add(archive, [picture_row("a")])
    assert list(contents(archive)) == ["a"]


def test_s3_errors_are_told_plainly(bucket, monkeypatch):
    with pytest.raises(ArchiveError, match="no archive here"):
        Archive.open(f"{bucket}/none")
    with pytest.raises(ArchiveError, match="bucket does not exist"):
        Archive.create("s3://there-is-no-such-bucket/archive")
    with pytest.raises(ArchiveError, match="there is no such bucket"):
        Archive.open("s3://there-is-no-such-bucket/archive")
    with monkeypatch.context() as patch, pytest.raises(ArchiveError, match="begins with AWS_ is empty: unset it"):
        patch.setenv("AWS_ALLOW_HTTP", "")
        Archive.create(f"{bucket}/archive")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ArchiveError, match="no TLS; .* set AWS_ALLOW_HTTP=true"):
        Archive.create(f"{bucket}/archive")


class OtherStore(http.server.BaseHTTPRequestHandler):
    """An S3 server in front of another that does as some do: it may drop conditions, refuse them, or say less."""

    behind = ""
    conditions = "honoured"  # or "ignored", or "refused"
    tells_codes_alone = False
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        left_out = {"expect"} | ({"if-none-match"} if self.conditions == "ignored" else set())
        if self.conditions == "refused" and "If-None-Match" in self.headers:
            self.answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            return
        connection = http.client.HTTPConnection(self.behind)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 400 and self.tells_codes_alone:
            content = re.sub(rb"<Condition>.*?</Condition>", b"", content)
            content = re.sub(rb"<Message>.*?</Message>", b"<Message></Message>", content)
            del answer.headers["Content-Length"]
        self.answer(answer.status, dict(answer.getheaders()), content)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        if self.command == "HEAD" or status != 204:
            self.send_header("Content-Length", headers.get("Content-Length", str(len(content))))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815

    def log_message(self, *args) -> None:
        pass


@contextmanager
def other_store(s3_server, **ways):
    """Options of a store of other ways."""
    handler = type("Handler", (OtherStore,), {"behind": s3_server.removeprefix("http://"), **ways})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_store_without_conditional_puts_is_refused_before_the_first_write(bucket, s3_server, conditions):
    import boto3

    sound = Archive.create(f"{bucket}/sound")
    with other_store(s3_server, conditions=conditions) as options:
        with pytest.raises(ArchiveError, match="ignores conditional puts"):
            Archive.create(f"{bucket}/archive", options)
        moved = Archive.open(sound.url, options)
        with pytest.raises(ArchiveError, match="ignores conditional puts"):
            add(moved, [picture_row("a")])
    objects = boto3.client("s3").list_objects_v2(Bucket=bucket[5:])["Contents"]
    assert all(entry["Key"].startswith("sound/") and "probe" not in entry["Key"] for entry in objects)
    assert len(Archive.open(sound.url)) == 0


def test_a_store_that_tells_codes_alone_as_ceph_does_is_written_to_and_understood(bucket, s3_server):
    with other_store(s3_server, tells_codes_alone=True) as options:
        archive = Archive.create(f"{bucket}/archive", options)
        add(archive, [picture_row("a")])
        assert list(Archive.open(archive.url, options).keys()) == ["a"]
        with pytest.raises(ArchiveError, match="cannot create an archive here: NoSuchBucket"):
            Archive.create("s3://there-is-no-such-bucket/archive", options)
        settings = {"endpoint_url": options["AWS_ENDPOINT_URL"]}
        with pytest.raises(SourceError, match="NoSuchBucket"):
            list(Source.open("s3://there-is-no-such-bucket/pictures", settings).files())


@pytest.mark.parametrize("turned", [False, True])
def test_an_options_other_name_counts_where_its_own_is_not_given(turned):
    def kept(**options):
        return Store("s3://bucket/a", dict(reversed(options.items())) if turned else options).options

    assert kept(AWS_REGION="eu-west-1", AWS_DEFAULT_REGION="us-east-1") == {"AWS_REGION": "eu-west-1"}
    endpoints = {"AWS_ENDPOINT": "http://c", "AWS_ENDPOINT_URL": "http://b"}
    assert kept(**endpoints) == {"AWS_ENDPOINT_URL": "http://b"}
    assert kept(**endpoints, AWS_ENDPOINT_URL_S3="http://a") == {"AWS_ENDPOINT_URL": "http://a"}

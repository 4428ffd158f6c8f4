"""Sources that cannot be opened or read, and answers that break off: asked again where that may help, else told."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from s3fs import S3FileSystem

from compressor import retrying
from compressor.errors import ArchiveError, SourceError, told
from compressor.sources import Source
from compressor.store import Store
from tests.trees import bucket as bucket
from tests.trees import keys


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


def test_what_delta_rs_says_is_told_without_its_backtrace():
    panic = Exception(
        "Json error: non-UTF-8 data 0: <unknown>   1: <unknown> 12: start_thread at ./nptl/create.c:442:8"
    )
    assert told(panic) == "Json error: non-UTF-8 data"


def test_an_empty_address_is_not_the_present_folder():
    with pytest.raises(SourceError, match="the source's address is empty"):
        Source.open("")


def test_a_folder_whose_name_is_no_utf8_is_refused_by_name(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with pytest.raises(SourceError, match=r"caf.*not valid UTF-8"):
        Source.open(os.fsdecode(folder))


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


def test_a_pattern_that_is_none_is_told(tmp_path):
    with pytest.raises(SourceError, match="entire path component"):
        Source.open(f"{tmp_path}/a**")

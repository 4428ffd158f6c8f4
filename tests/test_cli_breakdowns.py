"""Commands whose process, server, memory or libraries fail them: told in a line, and nothing is lost or left behind."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.archive import Archive
from compressor.errors import CRASHED
from compressor.images import decode_picture
from compressor.picture_writing import encode_picture
from tests.codecs import smooth_pictures
from tests.commands import LATENTPACK, said
from tests.commands import archive as archive
from tests.commands import pictures as pictures
from tests.rows import original_row, picture_row


def test_a_prefect_server_that_is_gone_is_told(
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import httpx

    import flows.pipeline

    def gone(*_: object) -> None:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(flows.pipeline, "pipeline", gone)
    code, _, err = said(capsys, "run", pictures, tmp_path / "archive")
    assert (
        code == 2 and "the Prefect server no longer answers, or refuses ([Errno 111]" in err and "internal" not in err
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_is_told(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr(Archive, "info", short)
    code, _, err = said(capsys, "info", archive)
    assert code == 2 and err.startswith("latentpack: not enough memory (") and "internal" not in err


@pytest.mark.parametrize(
    ("library", "command"),
    [("pydantic", "info {0}"), ("pyarrow", "info {0}"), ("prefect", "run {0} {0}-archive"), ("torch", "codecs")],
)
def test_a_library_that_is_missing_is_told(library: str, command: str, tmp_path: Path) -> None:
    tmp_path.joinpath("a.png").write_bytes(encode_picture(smooth_pictures(1)[0], 3))
    code = f"import sys; sys.modules[{library!r}] = None; from flows.cli import main; main()"
    environment = os.environ | {"LATENTPACK_HOME": f"{tmp_path}-home"}
    arguments = [sys.executable, "-c", code, *command.format(tmp_path).split()]
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    told = f"latentpack: a library is missing, or does not load: [^\n]*{library}[^\n]* 'make setup' [^\n]*\n"
    assert ended.returncode == 2 and re.fullmatch(told, ended.stderr), ended.stderr


def test_a_run_without_a_server_that_is_interrupted_is_continued(tmp_path: Path, own_server: dict[str, str]) -> None:
    """The command as a user has it: its own server, Ctrl-C in the middle, the same command again."""
    folder, archive = tmp_path / "in", tmp_path / "archive"
    folder.mkdir()
    for number, pixels in enumerate(smooth_pictures(24, 96, 96)):
        (folder / f"{number:03d}.png").write_bytes(encode_picture(pixels, 3))
    # A codec and batches that take seconds in all: enough for Ctrl-C to come in the middle on a busy machine.
    command = [*LATENTPACK, "run", str(folder), str(archive), "--codec", "avif", "--batch-size", "1", "--workers", "1"]
    # A shell has the jobs that it starts in the background, and all that these start, ignore Ctrl-C.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    first = subprocess.Popen(
        command, env=own_server, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    )
    end = time.monotonic() + 60
    while len(list(archive.glob("images/_delta_log/*.json"))) < 3 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "\ninterrupted; what is done is kept: repeat the command" in err and "Traceback" not in err
    again = subprocess.run([*command, "--json"], env=own_server, capture_output=True, text=True, timeout=120)
    summary = json.loads(again.stdout)
    assert again.returncode == 0, again.stderr
    assert summary["listed"] == summary["archived"] + summary["already_there"] == 24
    assert 0 < summary["already_there"] < 24
    assert len(Archive.open(str(archive))) == 24


def test_a_private_server_answers_its_own_command_alone(prefect_api: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{prefect_api}/admin/settings", timeout=5)


def test_a_killed_command_leaves_no_server_behind(own_server: dict[str, str]) -> None:
    code = "import sys, time; from pathlib import Path; from flows.environment import PrivateServer;"
    code += "s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait(); print(s.url, flush=True); time.sleep(60)"
    arguments = [sys.executable, "-c", code, f"{own_server['LATENTPACK_HOME']}/prefect"]
    command = subprocess.Popen(arguments, env=own_server, stdout=subprocess.PIPE, text=True)
    assert command.stdout
    url = command.stdout.readline().strip()
    command.kill()
    command.wait()
    end = time.monotonic() + 10
    with pytest.raises(OSError):
        while time.monotonic() < end:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            time.sleep(0.1)


def test_commands_that_start_together_share_no_database(tmp_path: Path) -> None:
    """They have a home that is new to all; the next starts from what they leave there."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    code = "import sys; from pathlib import Path; from flows.environment import PrivateServer;"
    code += "s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait(); print('ready', flush=True); input(); s.stop()"
    environment = os.environ | {"TMPDIR": str(temporary)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(home)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    together = [start() for _ in range(2)]
    for command in together:
        assert command.stdout and command.stdout.readline() == "ready\n", command.communicate("\n")[1]
    assert len({path.parent for path in temporary.glob("latentpack-*/prefect.db")}) == 2
    (empty,) = home.iterdir()
    with sqlite3.connect(f"file:{empty}?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)
    made = empty.stat().st_mtime_ns
    later = start()
    assert later.stdout and later.stdout.readline() == "ready\n"
    for command in [*together, later]:
        command.communicate("\n", timeout=60)
        assert command.returncode == 0
    assert [path.stat().st_mtime_ns for path in home.iterdir()] == [made] and not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"NO_PROXY": "minio.internal"}, "minio.internal,127.0.0.1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1"),
        ({"NO_PROXY": "*"}, None),
        ({"no_proxy": "localhost, 127.0.0.1"}, None),
    ],
)
def test_what_is_not_behind_a_proxy_stays_so(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.environment import _bypass_proxies

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _bypass_proxies("127.0.0.1")
    after = {name: value for name, value in os.environ.items() if name in ("no_proxy", "NO_PROXY")}
    assert after == (given if expected is None else {"no_proxy": expected, "NO_PROXY": expected})


def test_the_private_server_is_not_looked_for_behind_a_proxy(own_server: dict[str, str]) -> None:
    """A proxy that answers nobody: whatever goes to it fails."""
    code = "import sys; from pathlib import Path; from flows.environment import PrivateServer, set_defaults;"
    code += "set_defaults(); s = PrivateServer(Path(sys.argv[1])); s.start(); s.wait();"
    code += "from prefect.client.orchestration import get_client;"
    code += "print(get_client(sync_client=True).api_healthcheck()); s.stop()"
    environment = {**own_server, "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "internal"}
    environment.pop("no_proxy", None)
    arguments = [sys.executable, "-c", code, f"{own_server['LATENTPACK_HOME']}/prefect"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "None", done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"PREFECT_API_URL": "http://user:hush@127.0.0.1:9/api"},
            r"latentpack: no Prefect server answers at http://127.0.0.1:9/api/? \(.*\): start it, or unset .*\n",
        ),
        (
            {"PREFECT_API_URL": "", "LATENTPACK_HOME": "/dev/null/x"},
            r"latentpack: /dev/null/x/prefect: .* Not a directory; set LATENTPACK_HOME to a folder .*\n",
        ),
    ],
)
def test_a_server_that_is_down_and_a_home_that_is_none_are_told(
    variables: dict[str, str], message: str, pictures: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"LATENTPACK_HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path / "prefect")} | variables
    command = [*LATENTPACK, "run", str(pictures), str(tmp_path / "archive")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and re.fullmatch(message, ended.stderr), ended.stderr


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from flows.cli import run
archive, *small = sys.argv[1:]
for command in ("verify", "repair"):
    run([command, *small])  # what it loads and the threads that it starts take most of what a command takes
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 32 * 2**20, resource.RLIM_INFINITY))
print(run(["verify", archive]), run(["repair", archive, "--drop"]), run(["restore", archive, f"{archive}-out"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what a process has of memory")
def test_no_sound_picture_is_taken_out_where_memory_runs_out(tmp_path: Path) -> None:
    archive, small = (Archive.create(str(tmp_path / name)) for name in ("archive", "small"))
    for one, side in ((archive, 6000), (small, 10)):
        row = original_row("large.png", encode_picture(np.zeros((side, side, 3), np.uint8), 3), side, side)
        one.commit([one.write_part([row, picture_row("a.png")])])
    environment = {**os.environ, "LATENTPACK_HOME": str(tmp_path / "home"), "MALLOC_ARENA_MAX": "1"}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", SHORT_OF_MEMORY, archive.url, small.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "2 2 0", done.stderr  # an original needs no decoder to be restored
    assert "Traceback" not in done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("latentpack: ")]
    told = f"latentpack: {archive.url}: 'large.png' cannot be read, and may be sound: not enough memory to decode it"
    assert len(refused) == 2 and all(line.startswith(told) and "with more memory" in line for line in refused)
    assert sorted(Archive.open(archive.url).keys()) == ["a.png", "large.png"]


def test_a_picture_that_memory_did_not_suffice_for_is_tried_again(
    pictures: Path,
    tmp_path: Path,
    prefect_api: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heavy, command = (pictures / "a.png").read_bytes(), ["run", pictures, tmp_path / "archive", "--codec", "webp"]

    def short(data: bytes, *limits: Any) -> Any:
        if data == heavy:
            raise MemoryError("not enough memory to decode it")
        return decode_picture(data, *limits)

    with monkeypatch.context() as patch:
        patch.setattr("compressor.encoding.decode_picture", short)
        code, out, _ = said(capsys, *command, "--workers", "1", "--json")
    assert code == 1 and json.loads(out)["archived"] == 2
    listed = said(capsys, "quarantine", "list", tmp_path / "archive")[1]
    assert listed == f"a.png\t{CRASHED}\tMemoryError: not enough memory to decode it\n"
    code, out, _ = said(capsys, *command, "--workers", "1", "--json")
    assert code == 0 and json.loads(out)["archived"] == 1

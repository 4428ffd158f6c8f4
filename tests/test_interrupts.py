"""Ctrl-C, SIGTERM or SIGHUP, as often as it comes: a command ends in order, with one line and no
traceback, and never hangs.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runs import write_pictures

COMMAND = """
import ctypes, sys, time
from compressor.errors import LatentpackError
from flows import cli, commands, interrupts

def info(options):
    try:
        print("at work", flush=True)
        if sys.argv[1] == "deaf":
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        time.sleep(float(sys.argv[1]))
    except KeyboardInterrupt:
        if sys.argv[4:]:
            raise eval(sys.argv[4])("in its place, as pydantic does") from None
        raise
    finally:
        time.sleep(float(sys.argv[2]))
        print("in order", flush=True)
    return 0

commands.info, interrupts.PATIENCE_S = info, float(sys.argv[3])
cli.main(["info", "archive"])
"""


IMPORTING = """
import signal, sys
from flows import cli

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "prefect._internal.analytics":
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("as pydantic does") from None

sys.meta_path.insert(0, Interrupting())
cli.main(["run", *sys.argv[1:], "--codec", "webp"])
"""


@contextmanager
def at_work(
    *arguments: Any, sent: signal.Signals = signal.SIGINT, action: Any = signal.SIG_DFL
) -> Iterator[subprocess.Popen[str]]:
    """A command that works and ends for so many seconds, started where ``sent`` is left at ``action``."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    heard = partial(signal.signal, sent, action)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, preexec_fn=heard, **pipes) as process:
        try:
            assert process.stdout and process.stdout.readline() == "at work\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wrapped", [[], ["RuntimeError"]])
def test_however_often_it_is_asked_to_a_command_ends_in_order(wrapped: list[str], sent: signal.Signals) -> None:
    with at_work(60, 1, 30, *wrapped, sent=sent) as process:
        for _ in range(4):
            process.send_signal(sent)
            time.sleep(0.1)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "in order\n")
    assert "Traceback" not in err and err.endswith("repeat the command to go on from there\n")


def test_an_end_that_hangs_is_ended() -> None:
    with at_work(60, 60, 0.2) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "repeat the command" in err


def test_what_hangs_where_python_hears_nothing_is_ended() -> None:
    """As delta-rs may, which waits three minutes for a store that is silent; here a mutex that is never free."""
    with at_work("deaf", 60, 0.2) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "repeat the command" in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_where_it_is_ignored_it_stays_so(sent: signal.Signals) -> None:
    with at_work(0.5, 0, 30, sent=sent, action=signal.SIG_IGN) as process:
        process.send_signal(sent)
        assert process.communicate(timeout=30) == ("in order\n", "") and process.returncode == 0


def test_prefect_cannot_catch_it_while_it_is_imported(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    command = [sys.executable, "-c", IMPORTING, tmp_path / "in", tmp_path / "archive"]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (130, "") and not (tmp_path / "archive").exists()
    assert "Traceback" not in done.stderr and done.stderr.endswith("repeat the command to go on from there\n")


@pytest.mark.parametrize("error", ["ImportError", "LatentpackError"])
def test_no_error_in_its_place_hides_it(error: str) -> None:
    with at_work(60, 0, 30, error) as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130

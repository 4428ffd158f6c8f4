"""The command line: options from the parameter models, exit codes, no traceback unless asked for.

0 done; 1 finished, but something needs a look; 2 wrong usage, or a source or archive that cannot be
used; 130 interrupted. Nothing heavy is imported before a command is known.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from compressor.errors import LatentpackError, is_shortage, told
from flows.exit_codes import INTERRUPTED, UNUSABLE
from flows.interrupts import TOLD, heeded, interrupt_once
from flows.terminal import flush, warn

_NO_MEMORY = "not enough memory ({}): try fewer --workers, or more memory; what is done is kept"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``latentpack``."""
    interrupt_once()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in a locale that lacks a letter of a key
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    code = _run(arguments)
    try:
        flush()
    except LatentpackError as error:
        _say(str(error))
        return UNUSABLE
    return code


def _run(arguments: Sequence[str] | None) -> int:
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument.encode(errors="replace").decode() != argument:
            named = argument.encode(errors="backslashreplace").decode()
            _say(
                f"{named}: the name is not valid UTF-8, and neither archives nor Prefect can hold it: rename it, or "
                "set PYTHONUTF8=1 where it is only the locale that is not UTF-8"
            )
            return UNUSABLE
    debug = False
    try:
        os.getcwd()
    except FileNotFoundError:
        _say("the current folder is gone: change to one that is there")
        return UNUSABLE
    try:
        with heeded():
            from pydantic import ValidationError

            from flows.options import build_parser, in_words

            try:
                options = build_parser().parse_args(arguments)
            except SystemExit as usage:  # argparse has said what is wrong
                return int(usage.code or 0)
            debug = options.debug
            from flows import commands

            return int(getattr(commands, options.command.replace("-", "_"))(options))
    except KeyboardInterrupt:
        return _end_interrupted()
    except ImportError as error:
        if debug:
            raise
        if "failed to map segment" in str(error) and "not permitted" not in str(error):  # nor is it a noexec mount
            _say(_NO_MEMORY.format(told(error)))
            return UNUSABLE
        _say(
            f"a library is missing, or does not load: {told(error)}; install latentpack anew, with all that it needs: "
            "'make setup' or 'pip install .' in its folder (--debug shows where)"
        )
        return UNUSABLE
    except ValidationError as error:
        for problem in error.errors():
            _say(in_words(error.title, problem))
        return UNUSABLE
    except LatentpackError as error:
        if debug:
            raise
        _say(str(error))
        return UNUSABLE
    except Exception as error:
        if debug:
            raise
        if is_shortage(error):
            _say(_NO_MEMORY.format(told(error)))
            return UNUSABLE
        _say(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        return UNUSABLE


def _end_interrupted() -> int:
    for line in TOLD.split("\n"):
        warn(line)
    return INTERRUPTED


def _say(text: str) -> None:
    for number, line in enumerate(text.split("\n")):  # a server's log has several
        warn(line if number else f"latentpack: {line}")


if __name__ == "__main__":
    main()

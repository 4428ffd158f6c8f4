"""The command line's words: commands and options made from the parameter models, JSON output."""

import argparse
import json
import math
import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from compressor.addresses import shown
from compressor.defaults import ORPHAN_HOURS
from compressor.errors import LatentpackError
from flows import parameters
from flows.parameters import (
    KEYS_FILE,
    BenchmarkParameters,
    DemoParameters,
    ExperimentsParameters,
    PipelineParameters,
    RepairParameters,
    RestoreParameters,
    SheetParameters,
    TrainParameters,
    VerifyParameters,
)
from flows.terminal import out

MOST_HOURS = 87_600  # ten years, which every date can be counted back by


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="latentpack",
        description="Folders and buckets of pictures into a queryable archive a fraction of the size.",
        epilog="Start with: latentpack run ~/Pictures archive (latentpack COMMAND --help tells a command's options)",
    )
    parser.add_argument("--version", action=_Version, help="show the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _from_model(commands, "run", PipelineParameters, ("source", "archive"), nested="training")
    _from_model(commands, "restore", RestoreParameters, ("archive", "destination"))
    _from_model(commands, "verify", VerifyParameters, ("archive",))
    _from_model(commands, "repair", RepairParameters, ("archive", "source"))
    salvage = _plain(
        commands, "salvage", "Bring the sound pictures of an archive that can no longer be opened into a new one."
    )
    salvage.add_argument("destination", metavar="NEW", help="folder or URL of the new archive; the old one stays")
    _plain(commands, "info", "Counts, bytes, ratio, quality and codecs of an archive.")
    keys = _plain(
        commands, "list", "Keys of an archive's pictures, one on a line, as --keys-from takes them.",
        result="each picture as one JSON object on a line, with its size, codec, PSNR and bytes,",
    )  # fmt: skip
    keys.add_argument("pattern", nargs="?", metavar="PATTERN", help=SheetParameters.model_fields["pattern"].description)
    _from_model(commands, "sheet", SheetParameters, ("archive", "pattern"))
    delete = _plain(commands, "delete", "Erase pictures: rows, and their bytes from all files.")
    _add_keys(delete, "to erase")
    quarantine = _plain(
        commands, "quarantine", "Pictures that could not be archived: list, accept, or retry them.", False
    )
    quarantine.add_argument(
        "action",
        choices=("list", "accept", "retry"),
        help="list: show keys and reasons; accept: until their files change runs say no more of them, and end with 0; "
        "retry: the next run tries them again",
    )
    quarantine.add_argument("archive", metavar="ARCHIVE", help="folder or URL of the archive")
    _add_keys(quarantine, "(default: all)")
    quarantine.add_argument("--reason", help="only pictures listed for this reason, such as unsupported")
    _plain(commands, "compact", "Merge an archive's small files into few large ones.")
    vacuum = _plain(commands, "vacuum", "Delete Parquet files that no row needs any more; codecs stay.")
    vacuum.add_argument(
        "--older-than", type=_hours, default=ORPHAN_HOURS, metavar="HOURS",
        help="delete files replaced longer ago (default: %(default)s); "
        "uncommitted ones stay at least an hour",
    )  # fmt: skip
    codecs = _plain(
        commands,
        "codecs",
        "Codecs at hand: shipped ones, standard formats, and those of an archive; or one's card.",
        False,
    )
    codecs.add_argument(
        "archive", nargs="?", metavar="ARCHIVE",
        help="also list the codecs of this archive; or tell how the codec of this file or name was trained",
    )  # fmt: skip
    _from_model(commands, "train", TrainParameters, ("source",))
    _from_model(commands, "benchmark", BenchmarkParameters, ("source",))
    _from_model(commands, "experiments", ExperimentsParameters, ("source",))
    _from_model(commands, "demo", DemoParameters, ())
    return parser


class _Parser(argparse.ArgumentParser):
    """Takes names and options in any order, and says of more names than a command takes what to do about them.

    A shell may have made them of a glob.
    """

    _mixed = _took_several = False

    def print_help(self, file: Any = None) -> None:
        """As results are written: Python 3.11.2 lets through what a full disk raises, later ones say nothing of it."""
        if file is None:
            out(self.format_help().rstrip("\n"))
        else:
            super().print_help(file)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, which takes a name that may be left out for left out where an option comes before it."""
        if self._subparsers or self._mixed:
            return super().parse_known_args(args, namespace)
        self._mixed, usage = True, self.usage
        greedy = {name for action in self._actions if action.nargs == "+" for name in action.option_strings}
        self._took_several = not greedy.isdisjoint(args or ())
        if sys.version_info < (3, 14):  # some of which make it themselves, and then take a % in it for a format
            self.usage = usage or self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixed, self.usage = False, usage

    def error(self, message: str) -> NoReturn:
        _, found, names = message.partition("unrecognized arguments: ")
        if found and not names.startswith("-"):
            shown = names if len(names) <= 80 else f"{names[:80]}..."
            message = f"more names than it takes: {shown} (several pictures are one glob in quotes: 'photos/*.jpg')"
        elif "arguments are required" in message and self._took_several:
            message += " (an option that takes several values takes all names behind it: write those first)"
        super().error(message)


class _Version(argparse.Action):
    """Looks the version up only when asked: reading the distribution's metadata takes longer than all other options."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            out(f"latentpack {version('latentpack')}")
        except PackageNotFoundError:
            out("latentpack, not installed")
        parser.exit()


_ONE_OBJECT = "the result as one JSON object"


def _plain(
    commands: Any, name: str, description: str, archive: bool = True, result: str = _ONE_OBJECT
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=description, description=description)
    if archive:
        parser.add_argument("archive", metavar="ARCHIVE", help="folder or URL of the archive")
    _common(parser, result)
    return parser


def _add_keys(parser: argparse.ArgumentParser, which: str) -> None:
    parser.add_argument("--key", nargs="+", action="extend", default=[], metavar="KEY", help=f"keys {which}")
    parser.add_argument("--keys-from", metavar="FILE", help=f"file of more keys, {KEYS_FILE}, or - for standard input")


def _common(parser: argparse.ArgumentParser, result: str = _ONE_OBJECT) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help=f"print {result} on stdout, nothing else")
    output.add_argument("--verbose", action="store_true", help="show Prefect's and Dask's own messages")
    output.add_argument("--debug", action="store_true", help="show where an error came from")


_METAVARS = {
    "archive": "ARCHIVE", "key": "KEY", "source": "SRC", "destination": "DEST", "report": "DIR", "out": "FILE",
    "folder": "DIR", "scheduler": "ADDRESS", "codec": "NAME|PATH", "target_psnr": "DB",
    "start": "NAME|PATH", "min_psnr": "DB", "max_failures": "N|P%", "mirror_limit": "N|P%",
    "evaluation": "SRC", "other": "SRC", "keys_from": "FILE", "ladder": "N,N,all",
    "pattern": "PATTERN", "beside": "SRC",
}  # fmt: skip
_POSITIONAL = frozenset({"archive", "source", "destination", "pattern"})
_HERE_ALONE = {"keys_from": ", or - for standard input"}  # what a form does not offer


def _from_model(commands: Any, name: str, model: Any, positional: Sequence[str], nested: str | None = None) -> None:
    """A command whose options are the fields of a pydantic model; values are checked by the model, not here."""
    description = (model.__doc__ or "").strip()
    parser = commands.add_parser(name, help=description, description=description)
    _add_fields(parser, model, positional, nested)
    if nested:
        inner = model.model_fields[nested].annotation
        taken = set(model.model_fields)
        group = parser.add_argument_group("training, with --train")
        _add_fields(group, inner, (), None, taken)
    _common(parser)


def _add_fields(
    parser: Any, model: Any, positional: Sequence[str], nested: str | None, taken: Collection[str] = ()
) -> None:
    fields = model.model_fields
    for field in [*positional, *(name for name in fields if name not in positional)]:
        if field == nested or field in taken:
            continue
        about = fields[field]
        text = (about.description or "") + _HERE_ALONE.get(field, "")
        metavar = _METAVARS.get(field, "N")
        if field in positional:
            optional: dict[str, Any] = {} if about.is_required() else {"nargs": "?"}
            parser.add_argument(field, metavar=metavar, help=_literally(text), **optional)
            continue
        if about.annotation is bool:
            parser.add_argument(_option(field), action="store_true", default=argparse.SUPPRESS, help=_literally(text))
            continue
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": metavar}
        choices = _choices(about.annotation)
        if choices:
            settings |= {"choices": choices, "metavar": "|".join(choices)}
        if isinstance(about.default, list):
            settings |= {"nargs": "+", "action": "extend"}
        if about.default not in (None, []) and not about.is_required():
            default = " ".join(about.default) if isinstance(about.default, list) else about.default
            text += f" (default: {default})"
        parser.add_argument(_option(field), help=_literally(text), **settings)


def _hours(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_HOURS:
        raise argparse.ArgumentTypeError(f"hours are a whole number from 0 to {MOST_HOURS}, not {text!r}")
    return int(text)


def _literally(text: str) -> str:
    """As argparse wants it: it formats every help text."""
    return text.replace("%", "%%")


def _choices(annotation: Any) -> list[str]:
    """Values of a Literal, alone, optional or in a list."""
    kinds = [annotation, *get_args(annotation)]
    return [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


# Of two options that do not go together, what the second makes of the first.
_EXCLUDED = (
    ("target_psnr", "quality", "is what pictures are stored at, whatever their PSNR"),
    ("train", "codec", "`latentpack train --start` would go on from"),
    ("workers", "scheduler", "names a cluster, whose own workers are used"),
)


def parameters_of(model: Any, options: argparse.Namespace, nested: str | None = None) -> Any:
    """The model's instance from parsed options. ValidationError where a value is out of its range.

    LatentpackError where an option was given for nothing: one that another makes meaningless.
    """
    given = {name: value for name, value in vars(options).items() if name in model.model_fields}
    _check_separators(model, given)
    for name, other, why in _EXCLUDED:
        training_here = name == "workers" and "train" in given  # where the cluster has no GPU
        if name in given and other in given and not training_here:
            raise LatentpackError(f"{_option(name)} does not go with {_option(other)}, which {why}: leave one out")
    if "mirror_limit" in given and not given.get("mirror"):
        raise LatentpackError("--mirror-limit is for --mirror alone, which deletes: add that, or leave this out")
    if nested:
        inner = model.model_fields[nested].annotation
        given[nested] = {
            name: value for name, value in vars(options).items() if name in inner.model_fields and name not in given
        }
        _check_separators(inner, given[nested])
        if given[nested] and "train" not in given:
            raise LatentpackError(
                f"{_option(next(iter(given[nested])))} is for --train alone: add that, or leave this out"
            )
    return model(**given)


def _check_separators(model: Any, given: dict[str, Any]) -> None:
    """LatentpackError for a 1.000, in many countries a thousand, which pydantic takes for one."""
    for name, value in given.items():
        if model.model_fields[name].annotation in (int, int | None) and "." in str(value):
            raise LatentpackError(f"{_option(name)}: {_PLAIN['int_parsing']}, not {value!r}")


_PLAIN = {
    "float_parsing": "write a number such as 34.5, with a point and without separators",
    "int_parsing": "write a whole number, without separators",
}


def in_words(model: str, problem: Any) -> str:
    """What is wrong with a value given to a model of that name, from one of the errors of its ValidationError."""
    field = next((part for part in reversed(problem["loc"]) if isinstance(part, str)), "options")
    named = _METAVARS[field] if field in _POSITIONAL else _option(field)
    about = getattr(getattr(parameters, model, None), "model_fields", {}).get(field)
    given = problem["input"]
    if given == "":
        return f"{named}: it is empty"
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch" and about and about.examples:
        text = f"write it like {' or '.join(about.examples)}"
    elif problem["type"] in _PLAIN:
        text = _PLAIN[problem["type"]]
    otherwise = "" if isinstance(given, bool) else f", not {shown(repr(given))}"
    return f"{named}: {text[:1].lower()}{text[1:]}{otherwise}"


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def print_json(values: dict[str, Any]) -> None:
    """The one JSON object of ``--json``, whole or not at all."""
    out(in_json(values))


def in_json(values: dict[str, Any]) -> str:
    """A JSON object for stdout, on one line. JSON has no word for what is no number but null."""
    utf8 = "utf" in (getattr(sys.stdout, "encoding", None) or "utf").lower()
    return json.dumps(_without_nan(values), ensure_ascii=not utf8, default=str, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

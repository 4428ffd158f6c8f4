"""What each command does: parameters in, a flow or an archive's own method, results out. Parsing is in cli.py."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

from compressor.addresses import is_s3, shown
from compressor.errors import NO_FAULT, LatentpackError, enough_memory, told
from compressor.wording import (
    NOT_USED,
    TAKEN_OUT,
    by_reason,
    damage,
    describe,
    describe_archive,
    learned_shrunk,
    legible,
    needing_a_look,
    number,
    remarks,
    repaired,
    unchanged,
)
from flows.environment import PrivateServer, api_is_configured, set_defaults
from flows.errors import EndedUnwell
from flows.exit_codes import DONE, UNWELL
from flows.interrupts import interrupted
from flows.keys import in_a_file, named
from flows.options import in_json, parameters_of, print_json
from flows.parameters import (
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
from flows.progress import listener, on_progress
from flows.terminal import out, out_each, print_rows, quieten, tell, warn, watching
from tasks.home import home, user_home

if TYPE_CHECKING:
    from compressor.archive import Archive

LISTED = ("key", "width", "height", "codec", "quality", "psnr")  # what `list --json` says of a picture, and its bytes
EVENTS_S = 5  # at most, for events that nobody watches


@contextmanager
def prefect_api(options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """A Prefect server to run flows with: the user's, or a private one. Call what is given once flows are imported."""
    user_home()  # without one Prefect cannot be imported
    set_defaults(options.verbose)
    server = None if api_is_configured() else PrivateServer(home() / "prefect")

    def ready() -> None:
        if not options.verbose:
            quieten()
        if server:
            server.wait()
        else:
            _check_api()

    if server:
        server.start()
    try:
        yield ready
    finally:
        if server:
            _send_events()
            server.stop()


def _check_api() -> None:
    """LatentpackError where the Prefect server that the user named does not answer."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        url = shown(str(client.api_url))
    if error:
        raise LatentpackError(
            f"no Prefect server answers at {url} ({told(error)}): start it, or unset PREFECT_API_URL (or change the "
            "Prefect profile that names it), and the command starts one of its own"
        )


def _send_events() -> None:
    """Have Prefect send what it holds: it would otherwise look in the end, for seconds, for a server that is gone."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker

        EventsWorker.drain_all(timeout=EVENTS_S, at_exit=False)


def _run_flow(options: argparse.Namespace, module: str, name: str, parameters: Any) -> dict[str, Any]:
    """Run a flow, imported while its server starts, and show how far it is."""
    with watching(options.json), prefect_api(options) as ready:
        listener().stage("starting Prefect")
        flow = getattr(import_module(f"flows.{module}"), name)
        ready()
        if interrupted():  # and Prefect, while it was imported, caught what pydantic made of it
            raise KeyboardInterrupt
        try:
            result: dict[str, Any] = flow(parameters)
        except Exception as error:
            from tasks.retries import is_of_prefect

            if isinstance(error, LatentpackError) or not is_of_prefect(error):
                raise
            raise LatentpackError(
                f"the Prefect server no longer answers, or refuses ({told(error)}): see to it, then repeat the "
                "command; what is archived stays"
            ) from error
    return result


def _answer(options: argparse.Namespace, values: dict[str, Any], *lines: str) -> None:
    """What a command found or did: one JSON object where that is asked for, else lines for people."""
    if options.json:
        print_json(values)
    else:
        out("\n".join(lines))


def _check_source(url: str) -> None:
    """SourceError at once, and not after Prefect has started."""
    from compressor.sources import Source

    Source.open(url)


def run(options: argparse.Namespace) -> int:
    """``latentpack run``"""
    from compressor.choosing import check_codec

    parameters = parameters_of(PipelineParameters, options, "training")
    _check_source(parameters.source)
    check_codec(parameters.codec, parameters.archive)
    try:
        summary = _run_flow(options, "pipeline", "pipeline", parameters)
    except EndedUnwell as stop:
        summary = stop.result
    return _finish_run(options, summary)


def _finish_run(options: argparse.Namespace, summary: dict[str, Any]) -> int:
    if options.json:
        print_json(summary)
    else:
        print_rows("run", describe(summary))
    wrong = needing_a_look(summary)
    for text in [*remarks(summary), *unchanged(summary), *wrong]:
        warn(text)
    return UNWELL if wrong else DONE


@contextmanager
def _keys_in_a_file(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The options, with keys that standard input lists in a file, which parameters can name."""
    with in_a_file(getattr(options, "keys_from", None)) as keys_from:
        yield argparse.Namespace(**vars(options) | ({"keys_from": keys_from} if keys_from else {}))


def restore(options: argparse.Namespace) -> int:
    """``latentpack restore``"""
    with _keys_in_a_file(options) as given:
        parameters = parameters_of(RestoreParameters, given)
        result = _read_back(options, "restore", parameters)
    for key, reason in result["problems"]:
        warn(f"{key}: {reason}")
    renamed = f", {result['renamed']:,} of them renamed to safe names" if result["renamed"] else ""
    bad = f", {number(len(result['problems']), 'problem')}" if result["problems"] else ""
    written = f"{number(result['written'], 'picture')} written to {parameters.destination}"
    _answer(options, result, f"{written}{renamed}{bad}")
    return UNWELL if result["problems"] else DONE


def verify(options: argparse.Namespace) -> int:
    """``latentpack verify``"""
    result = _read_back(options, "verify", parameters_of(VerifyParameters, options))
    if options.json:
        print_json(result)
    else:
        for key, reason in result["problems"]:
            tell(key, reason)
        warn(damage(result))
    return UNWELL if result["problems"] else DONE


def repair(options: argparse.Namespace) -> int:
    """``latentpack repair``"""
    result = _read_back(options, "repair", parameters_of(RepairParameters, options))
    if options.json:
        print_json(result)
        return DONE if result["whole"] else UNWELL
    for name, reason in result["left"]:
        tell(name, reason)
    for key in result["taken_out"]:
        tell(key, TAKEN_OUT)
    mended = [
        *(f"file {name} put right" for name in result["files"]),
        *(f"{name} put back" for name in result["codecs"]),
        *result["log"],
    ]
    for text in mended:
        warn(text)
    warn(repaired(result))
    return DONE if result["whole"] else UNWELL


def salvage(options: argparse.Namespace) -> int:
    """``latentpack salvage``"""
    from compressor.salvaging import salvage

    with watching(options.json):
        new, done = salvage(options.archive, options.destination, on_progress("salvaging"))
    if options.json:
        print_json({"archive": new.url, **asdict(done)})
    else:
        for name, reason in done.problems:
            tell(name, reason)
        older = f"; {number(done.older, 'older row')} of theirs left out" if done.older else ""
        bad = f"; {number(len(done.problems), 'problem')}" if done.problems else ""
        warn(f"{number(done.pictures, 'picture')} in {new.url}{older}{bad}; check it: latentpack verify {new.url}")
    return UNWELL if done.problems else DONE


def _read_back(options: argparse.Namespace, name: str, parameters: Any) -> dict[str, Any]:
    """Run a flow where somebody may watch it, else only its work: a private server would take longer than that."""
    if api_is_configured():
        try:
            return _run_flow(options, "archive", name, parameters)
        except EndedUnwell as found:
            return found.result
    set_defaults(options.verbose)
    from flows import unwatched

    with watching(options.json):
        return dict(getattr(unwatched, name)(parameters))


def info(options: argparse.Namespace) -> int:
    """``latentpack info``"""
    from compressor.archive import Archive

    found = Archive.open(options.archive).info()
    if options.json:
        print_json(asdict(found))
    else:
        print_rows("archive", describe_archive(found))
    return DONE


def list(options: argparse.Namespace) -> int:
    """``latentpack list``"""
    from compressor.archive import Archive

    out_each(_listed(Archive.open(options.archive), options))
    return DONE


def _listed(archive: "Archive", options: argparse.Namespace) -> Iterator[str]:
    """A line for each picture whose key matches. Payloads, which alone tell their bytes, are read only for JSON."""
    from compressor.keys import matcher
    from compressor.parquet import IMAGES, from_table

    matches = matcher(options.pattern)
    seen = sys.stdout is not None and sys.stdout.isatty()
    found = False
    for part, group, *_ in archive.row_groups():
        keys = [key for key in archive.row_group(part, group, ["key"])["key"].to_pylist() if matches(key)]
        found = found or bool(keys)
        if keys and options.json:
            wanted = set(keys)
            rows = from_table(archive.row_group(part, group, [*LISTED, "payload"]), IMAGES)
            for row in rows:
                if row.key in wanted:
                    yield in_json({name: getattr(row, name) for name in LISTED} | {"bytes": len(row.payload)})
        else:
            # As they are where a command reads them; but one with a line's end in it would be read as two others.
            yield from (legible(key) if seen or "\n" in key or key.endswith("\r") else key for key in keys)
    if options.pattern and not found:
        warn(f"no key matches {options.pattern!r}")


def sheet(options: argparse.Namespace) -> int:
    """``latentpack sheet``"""
    from compressor.archive import Archive
    from compressor.contact_sheet import contact_sheet
    from compressor.destinations import file_lies_in, write_file
    from compressor.sources import Source

    with _keys_in_a_file(options) as given:
        parameters = parameters_of(SheetParameters, given)
        keys = named([], parameters.keys_from) if parameters.keys_from else None
    source = Source.open(parameters.beside) if parameters.beside else None
    archive = Archive.open(parameters.archive)
    if file_lies_in(parameters.out, archive.url):
        raise LatentpackError(f"{parameters.out} is in the archive itself, among its own files; name another place")
    with enough_memory(archive.url, "draw the page"), watching(options.json):
        drawn = contact_sheet(
            archive, parameters.pattern, parameters.limit, parameters.worst, source, on_progress("decoding"), keys
        )
    try:
        write_file(parameters.out, drawn.html.encode())
    except OSError as error:
        raise LatentpackError(f"cannot write {parameters.out}: {error.strerror or error}; name another file") from error
    for key, reason in drawn.problems:
        warn(f"{key}: {reason}")
    if source and not drawn.found:
        warn(f"{source.shown} has no file of these pictures: name the source as it was given to run")
    of = f" of {drawn.matching:,}" if drawn.matching > drawn.pictures else ""
    values = {"sheet": parameters.out, "pictures": drawn.pictures, "matching": drawn.matching}
    _answer(
        options, values | {"problems": drawn.problems}, f"{number(drawn.pictures, 'picture')}{of}: {parameters.out}"
    )
    return UNWELL if drawn.problems else DONE


def delete(options: argparse.Namespace) -> int:
    """``latentpack delete``"""
    from compressor.archive import Archive

    keys = named(options.key, options.keys_from)
    if not keys:
        raise LatentpackError("name the pictures to erase with --key, or a file that lists them with --keys-from")
    archive = Archive.open(options.archive)
    problems = [(key, f"{archive.url}: there is no picture {key!r}") for key in archive.missing(keys)]
    with watching(options.json):
        erased = archive.delete(keys, on_progress("erasing", "files"))
    missing = len(keys) - erased
    listed = missing - len(problems)  # quarantined alone
    for key, reason in problems:
        warn(f"{key}: {reason}")
    off = f", {number(listed, 'key')} taken off the quarantine list" if listed else ""
    none = f", {number(len(problems), 'key')} not archived" if problems else ""
    values = {"erased": erased, "missing": missing, "problems": problems}
    _answer(options, values, f"{number(erased, 'picture')} erased{off}{none}")
    return UNWELL if problems else DONE


def quarantine(options: argparse.Namespace) -> int:
    """``latentpack quarantine list|accept|retry``"""
    from compressor.archive import Archive

    keys = set(named(options.key, options.keys_from))
    archive = Archive.open(options.archive)
    listed = [row for row in archive.quarantined() if not keys or row.key in keys]
    rows = [row for row in listed if options.reason in (None, row.reason)]
    if options.reason and not rows:
        reasons = sorted({row.reason for row in listed})
        warn(f"no picture is listed for {options.reason!r}; reasons there are: {', '.join(reasons) or 'none'}")
    if options.action == "accept":
        named_ones = bool(keys or options.reason)
        chosen = [row.key for row in rows if named_ones or row.reason not in NO_FAULT]
        accepted = archive.accept_quarantined(chosen)
        if left := len(rows) - len(chosen):
            warn(f"{number(left, 'picture')} left, whose files are not to blame: name them by --key or --reason")
        if unknown := sorted(keys.difference(row.key for row in listed)):
            warn(f"not on the list: {', '.join(unknown[:3])}{' and others' if len(unknown) > 3 else ''}")
        what = f"{number(accepted, 'picture')} accepted" + (": runs say no more of them" if accepted else "")
        _answer(options, {"accepted": accepted}, what)
        return UNWELL if unknown else DONE
    if options.action == "retry":
        cleared = archive.clear_quarantine([row.key for row in rows])
        _answer(options, {"cleared": cleared}, f"{number(cleared, 'picture')} will be tried again by the next run")
        return DONE
    if options.json:
        print_json({"quarantined": [row.to_dict() for row in rows]})
    else:
        for row in rows:
            tell(row.key, row.reason, row.detail)
    return DONE


def compact(options: argparse.Namespace) -> int:
    """``latentpack compact``"""
    from compressor.archive import Archive

    with watching(options.json):
        fewer = Archive.open(options.archive).compact(on_progress("compacting", "MB"))
    _answer(options, {"files_fewer": fewer}, f"{number(fewer, 'file')} fewer")
    return DONE


def vacuum(options: argparse.Namespace) -> int:
    """``latentpack vacuum``"""
    from compressor.archive import Archive

    deleted = Archive.open(options.archive).vacuum(options.older_than)
    _answer(options, {"deleted": deleted}, f"{number(deleted, 'file')} deleted")
    return DONE


def codecs(options: argparse.Namespace) -> int:
    """``latentpack codecs``"""
    from compressor.archive import Archive
    from compressor.baselines import STANDARD
    from compressor.codec import load_codec, released

    asked = options.archive
    in_a_bucket = asked and is_s3(asked) and asked.endswith(".safetensors")
    if asked and (in_a_bucket or os.path.isfile(asked) or (asked in released() and not os.path.isdir(asked))):
        return _card(options, asked)
    names = [*released(), *STANDARD]
    if asked and "://" not in asked and not os.path.exists(asked):
        raise LatentpackError(f"{asked}: no archive, no codec's file, and none of the codecs {', '.join(names)}")
    rows = [(name, load_codec(name).description) for name in names]
    found = Archive.open(asked).info() if asked else None
    used, unused = (found.codecs, found.unused_codecs) if found else ({}, [])
    if options.json:
        print_json({"codecs": dict(rows), "used": used, "unused": unused})
        return DONE
    print_rows("codecs", rows)
    if asked:
        counts = [(id, number(count, "picture")) for id, count in used.items()]
        print_rows("of the archive", counts + [(id, NOT_USED) for id in unused])
    return DONE


def _card(options: argparse.Namespace, name: str) -> int:
    """What one learned codec says of itself."""
    from compressor.artifact import parse
    from compressor.codec import artifact_bytes, naming, released

    data = artifact_bytes(name)
    with naming(name):
        artifact = parse(data)
    about = {"name": artifact.name, "family": artifact.family, "id": artifact.id, "bytes": len(data)}
    if name in released():
        about["terms"] = f"for research use: compressor/weights/{name}.md"
    card = artifact.metadata.get("card")
    if options.json:
        print_json({**about, "card": card})
        return DONE
    card = card if isinstance(card, dict) else {}
    print_rows("codec", [*_flat(about), *_flat({name: value for name, value in card.items() if name not in about})])
    return DONE


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested JSON, each name with those above it."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            if isinstance(value, float):
                value = f"{value:.3f}" if abs(value) >= 1 else f"{value:.6g}"
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


_OF_BEST = {"step": "best after step", "pictures": "samples until then", "seconds": "seconds until then"}


def train(options: argparse.Namespace) -> int:
    """``latentpack train``"""
    parameters = parameters_of(TrainParameters, options)
    _check_source(parameters.source)
    result = _run_flow(options, "train", "train_flow", parameters)
    if options.json:
        print_json(result)
    else:
        pictures, steps = number(result["pictures"], "picture"), number(result["steps"], "step")
        rows = [
            ("codec", result["path"]),
            ("id", result["id"]),
            ("trained on", f"{pictures}, {steps}, {result['seconds']:,.0f} s"),
            *([("left out", by_reason(result["refused"]))] if result["refused"] else []),
            *((_OF_BEST.get(name, name), f"{value:.5g}") for name, value in result["validation"].items()),
            *([("loss before", f"{result['loss_before']:.5g}")] if result["loss_before"] is not None else []),
        ]
        print_rows("trained", rows)
        if not result["validation"].get("step", 1):
            warn("of pictures held out none was shown better by what it learned: the codec is the one it started from")
        if shrunk := learned_shrunk(result["native_side"], parameters.side, parameters.crops):
            warn(shrunk)
    return DONE


def benchmark(options: argparse.Namespace) -> int:
    """``latentpack benchmark``"""
    parameters = parameters_of(BenchmarkParameters, options)
    _check_source(parameters.source)
    result = _run_flow(options, "benchmark", "benchmark", parameters)
    refused = [f"left out: {by_reason(result['refused'])}"] if result["refused"] else []
    _answer(options, result, result["headline"], *refused, *result["notes"], f"report: {result['html']}")
    return DONE


def experiments(options: argparse.Namespace) -> int:
    """``latentpack experiments``"""
    parameters = parameters_of(ExperimentsParameters, options)
    _check_source(parameters.source)
    result = _run_flow(options, "experiments", "experiments", parameters)
    if not options.json:
        found = [(one["claim"], f"{one['verdict']}. {one['sentence']}") for one in result["findings"]]
        print_rows("experiments", [*found, ("in all", result["headline"])])
    _answer(options, result, result["table"], f"report: {result['report']}")
    return DONE


def demo(options: argparse.Namespace) -> int:
    """``latentpack demo``"""
    parameters = parameters_of(DemoParameters, options)
    result = _run_flow(options, "demo", "demo", parameters)
    if options.json:
        print_json(result)
    else:
        print_rows("demo", [(name, str(value)) for name, value in result["shown"]])
        out("\n" + result["next"])
    return DONE

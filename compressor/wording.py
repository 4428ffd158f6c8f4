"""Figures in words for people: bytes, times, a run, an archive. What they are is counted elsewhere."""

import re
from typing import TYPE_CHECKING, Any

from compressor.listing import is_like_picture

if TYPE_CHECKING:
    from compressor.maintenance import ArchiveInfo

EXTENSIONS_SHOWN = 10
TAKEN_OUT = "taken out: it cannot be read, and was not encoded again"  # of a row that is damaged
UNNAMED = "taken out: of files that name them no more; a run archives again those that its source still has"
NOT_USED = "no picture uses it"  # a codec that an archive carries
NO_FURTHER = "the rest not, for --limit was reached"  # of what was listed
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHERS = {
    "still_quarantined": "failed before, unchanged",
    "accepted": "accepted in the quarantine",
    "left": "left by --limit",
    "not_reached": "not reached",
    "deleted": "deleted, gone from the source",
}


def number(count: int, noun: str) -> str:
    """So many of something.

    >>> number(1, "picture"), number(1234, "picture")
    ('1 picture', '1,234 pictures')
    """
    return f"{count:,} {noun}" + "s" * (count != 1)


def legible(text: str) -> str:
    """Text, which may hold a file's name, on one line: control characters, which a terminal obeys, as Python has them.

    >>> legible("new\\nline, red\\x1b[31m")
    'new\\\\nline, red\\\\x1b[31m'
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(812), size(1234), size(34_500_000)
    ('812 B', '1.2 kB', '34.5 MB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if abs(count) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """A time for people, as exact as an estimate deserves.

    >>> duration(42.3), duration(750), duration(9000), duration(500_000)
    ('42 s', '12 min', '2 h 30 min', '5 d 18 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def ratio(before: int, after: int) -> str:
    """How many times fewer bytes.

    >>> ratio(14_951, 1000), ratio(396, 10_200), ratio(0, 0)
    ('15.0 to 1', '0.039 to 1', '0 to 1')
    """
    times = before / max(1, after)
    return f"{times:{',.1f' if times >= 0.1 else '.2g'}} to 1"


def by_reason(counts: dict[str, int]) -> str:
    """Files that could not be taken, and why.

    >>> by_reason({"alpha": 1600, "truncated": 1})
    '1,601 files: 1,600 alpha, 1 truncated'
    """
    return f"{number(sum(counts.values()), 'file')}: {_each(counts)}"


def _each(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def describe(run: dict[str, Any]) -> list[tuple[str, str]]:
    """A run (:meth:`RunSummary.to_dict`) as names and values for people."""
    from compressor.baselines import is_carried

    reasons = f": {_each(run['errors'])}" if run["errors"] else ""
    replaced = f", {run['replaced']:,} of them in place of older pictures of their names" if run["replaced"] else ""
    overtaken = f", {run['overtaken']:,} of them also by another run, whose rows stay" if run["overtaken"] else ""
    own = run["codec"].split(",")[0]  # without its id
    by_codec = {own if is_carried(name) else name: count for name, count in run["codecs"].items()}
    rows = [
        ("source", run["source"]),
        ("archive", run["archive"]),
        ("codec", run["codec"]),
        ("listed", number(run["listed"], "picture") + (f", {NO_FURTHER}" if run["limited"] else "")),
        ("archived", f"{run['archived']:,}{replaced}{overtaken}"),
        *([("stored as", _each(by_codec))] if len(by_codec) > 1 else []),
        *([("as they came", by_reason(run["kept"]))] if run["kept"] else []),
        ("already there", f"{run['already_there']:,}"),
        ("quarantined", f"{run['quarantined']:,}{reasons}"),
    ]
    rows += [(label, f"{run[name]:,}") for name, label in _OTHERS.items() if run[name]]
    if run["unlisted"]:
        rows.append(("not listed", _unlisted(run["unlisted"])))
    if run["archived"]:
        each = run["stored_bytes"] / run["archived"]
        rows += [
            ("bytes in", size(run["source_bytes"])),
            ("bytes stored", f"{size(run['stored_bytes'])}, {each:,.0f} bytes a picture with all columns"),
            ("ratio", ratio(run["source_bytes"], run["stored_bytes"])),
        ]
    if run["psnr_mean"] is not None:
        rows.append(("PSNR", f"mean {run['psnr_mean']:.2f} dB, lowest {run['psnr_min']:.2f} dB"))
    if run["archived"] and run["pictures_per_second"]:  # of pictures that failed it would say nothing
        workers, total = number(run["workers"], "worker"), sum(run["seconds"].values())
        speed = pace(run["pictures_per_second"], "picture")
        rows.append(("speed", f"{speed}, {workers}, {total:.1f} s without start-up"))
    return rows


def pace(rate: float, what: str = "") -> str:
    """``rate`` a second: ``12/s``, ``2.5 pictures/s``, or where it is below one ``7.5 s a picture``, ``7.5 s each``."""
    if rate < 1:
        return f"{1 / rate:,.1f} s {f'a {what}' if what else 'each'}"
    return f"{rate:,.1f} {what}s/s" if what else f"{rate:,.0f}/s"


def outcome(run: dict[str, Any]) -> str:
    """A run in one line: what became of what it listed."""
    parts = [f"listed {number(run['listed'], 'picture')}", f"archived {run['archived']:,}"]
    others = {"already_there": "already there", "quarantined": "quarantined", **_OTHERS}
    parts += [f"{run[name]:,} {label}" for name, label in others.items() if run[name]]
    return ", ".join(parts) + (f"; {NO_FURTHER}" if run["limited"] else "")


def unchanged(run: dict[str, Any]) -> list[str]:
    """That what was there keeps the quality it has, where the run was told one."""
    if not run["already_there"] or not run["chosen"]:
        return []
    options = ", ".join("--" + name.replace("_", "-") for name in run["chosen"])
    return [
        f"{number(run['already_there'], 'picture')} already there, stored as they were whatever {options} may say: "
        "for another choice start a new archive"
    ]


def remarks(run: dict[str, Any]) -> list[str]:
    """What a person should know of a run, and may be meant to be so."""
    from compressor.baselines import STANDARD, is_carried

    told = [] if run["listed"] else [f"there is no picture in {run['source']}"]
    if run["ignored"]:
        name, reason = run["ignored_names"][0]
        told.append(f"{number(run['ignored'], 'name')} left out, such as {name!r}: {reason}")
    if run["not_resized"]:
        told.append(
            f"{number(run['not_resized'], 'picture')} not resized: what is more than plain 8-bit colour, such as "
            "transparency, keeps its own bytes and size"
        )
    if run["dropped"]:
        held = [f"{kind} of {count:,}" for kind, count in run["dropped"].items()]
        told.append(f"pictures are archived, not what their files hold beside them: {', '.join(held)}{_may_keep(run)}")
    if run["kept_metadata"] and "keep_metadata" not in run["chosen"]:
        told.append(
            f"EXIF or XMP, such as places and names, came along with {number(run['kept_metadata'], 'file')} "
            "archived as they came: their codec is 'original'"
        )
    if run["one_quality"] and run["psnr_min"] is not None:
        told.append(
            f"{run['codec']} has one quality, so no target holds: the lowest picture is at {run['psnr_min']:.2f} dB; "
            "--min-psnr DB gives a floor"
        )
    if run["overtaken"]:
        told.append(
            f"{number(run['overtaken'], 'picture')} of those archived are there as another run stored them, which was "
            "faster at the same time: run one at a time on an archive"
        )
    fallen = {name: count for name, count in run["codecs"].items() if name in STANDARD}
    learned = sum(count for name, count in run["codecs"].items() if is_carried(name))
    if run["learned"] and learned < sum(fallen.values()):
        usual = max(fallen, key=lambda name: fallen[name])
        packed = "leave out --packer, which may be why; otherwise " if "packer" in run["chosen"] else ""
        told.append(
            f"{sum(fallen.values()):,} of {number(run['archived'], 'picture')} went to a standard format, as smaller "
            f"there or too large for the codec: {packed}pictures like these are archived faster with --codec {usual}"
        )
    elif run["codec_bytes"] > run["table_bytes"] and learned:
        told.append(
            f"the decoder that the archive carries ({size(run['codec_bytes'])}) is larger than its pictures so far "
            f"({size(run['table_bytes'])}): if they stay so few, start a new archive with --codec av1-444, "
            "which needs none"
        )
    return told


def _may_keep(run: dict[str, Any]) -> str:
    could = {"EXIF", "XMP"} & run["dropped"].keys() and "keep_metadata" not in run["chosen"]
    return "; --keep-metadata stores EXIF and XMP too, in a new archive" if could else ""


def learned_shrunk(native_side: int, side: int, crops: int) -> str | None:
    """That a training saw pictures at another scale than a run archives them at, unless that resizes them too."""
    if crops or native_side < 1.5 * side:
        return None
    return (
        f"pictures have {native_side:,} pixels on their shorter side (the median), and were learned shrunk to {side}: "
        "a codec for pictures at their own size learns from squares of them, --crops 8; "
        f"else archive with --resize {side}"
    )


def needing_a_look(run: dict[str, Any]) -> list[str]:
    """What a person has to see to after a run; nothing where all is well."""
    told = []
    if failed := run["quarantined"] + run["still_quarantined"]:
        told.append(f"{number(failed, 'picture')} quarantined; see with: latentpack quarantine list {run['archive']}")
    if run["skipped"]:
        name, reason = run["skipped"][0]
        told.append(f"{number(len(run['skipped']), 'name')} passed over, such as {name!r}: {reason}")
    if doubtful := {name: count for name, count in run["unlisted"].items() if is_like_picture(name)}:
        count, like = number(sum(doubtful.values()), "file"), next(iter(doubtful))
        told.append(f"{count} not listed, for extensions such as {like!r}: rename what is a picture")
    if run["stopped"]:
        told.append(f"more failed than --max-failures allows: {run['stopped']}; what is archived stays")
    if not run["listed"] and run["table_bytes"] and not run["not_mirrored"]:
        told.append(f"{run['source']} lists no picture, and the archive holds some: is this the place, is it mounted?")
    if run["not_mirrored"]:
        told.append(f"nothing was deleted from the archive: {run['not_mirrored']}")
    return told


def _unlisted(counts: dict[str, int]) -> str:
    """Extensions that are like a picture's first, then those of most files."""
    ordered = sorted(counts, key=lambda name: (not is_like_picture(name), -counts[name], name))
    plain = {name: name if re.fullmatch(r"[!-~]+", name) else repr(name) for name in ordered[:EXTENSIONS_SHOWN]}
    shown = [f"{told} {counts[name]:,}" for name, told in plain.items()]
    more = ["..."] * (len(ordered) > EXTENSIONS_SHOWN)
    return f"{number(sum(counts.values()), 'file')} with other extensions: {', '.join([*shown, *more])}"


def damage(found: dict[str, Any]) -> str:
    """What a verification found (:func:`compressor.verifying.in_figures`, and how many ``pictures`` there are).

    >>> damage({"pictures": 64, "bad": 1, "unread": 4, "damaged_files": 0, "waiting": {}})
    '60 pictures verified, 1 of them bad, 4 cannot be read'
    """
    lacking, unread, files = sum(found["waiting"].values()), found["unread"], found["damaged_files"]
    told = [f"{number(found['pictures'] - unread, 'picture')} verified", f"{found['bad']:,} of them bad"]
    told += [f"{unread:,} cannot be read"] * bool(unread)
    told += [f"{lacking:,} not decoded for want of their codec"] * bool(lacking)
    told += [f"{number(files, 'file')} damaged"] * bool(files)
    return ", ".join(told)


def short(codec: str) -> str:
    """A codec's id as people are shown it: enough of it to name the codec by.

    >>> short("cec48df8da13781dce2509d62e6d93ec"), short("av1-444")
    ('cec48df8da13', 'av1-444')
    """
    return codec[:12] if re.fullmatch("[0-9a-f]{32}", codec) else codec


def encoded_again(repaired: dict[str, Any]) -> str:
    """What a repair (:class:`compressor.repairing.Repaired` as JSON) encoded again, and how.

    >>> encoded_again({"regained": ["a.png"], "codec": "webp", "floor": 34.05})
    '1 picture encoded again by webp at 34.05 dB or more'
    """
    floor = "" if repaired["floor"] is None else f" at {repaired['floor']:.2f} dB or more"
    how = f" by {short(repaired['codec'])}{floor}" if repaired["codec"] else ""
    return f"{number(len(repaired['regained']), 'picture')} encoded again{how}"


def taken_out(repaired: dict[str, Any]) -> str:
    """What a repair (:class:`compressor.repairing.Repaired` as JSON) took out.

    >>> taken_out({"taken_out": ["a.png"], "unnamed": 120})
    '121 taken out (120 of files that name them no more; a run archives again those that its source still has)'
    """
    unnamed = repaired["unnamed"]
    lost = f" ({unnamed:,} {UNNAMED.partition(': ')[2]})"
    return f"{len(repaired['taken_out']) + unnamed:,} taken out" + (lost if unnamed else "")


def repaired(done: dict[str, Any]) -> str:
    """What a repair (:class:`compressor.repairing.Repaired` as JSON) did."""
    return f"{encoded_again(done)}, {taken_out(done)}, {len(done['left']):,} left as they are"


def describe_archive(info: "ArchiveInfo") -> list[tuple[str, str]]:
    """An archive's figures as names and values for people."""
    from compressor.codec import released_ids

    names = released_ids()
    by_codec = {f"{names[id]} ({short(id)})" if id in names else short(id): count for id, count in info.codecs.items()}
    rows = [
        ("archive", f"{info.url}, format {info.format}, version {info.version}"),
        ("pictures", f"{info.pictures:,}"),
        ("quarantined", ": ".join(filter(None, (f"{info.quarantined:,}", _each(info.quarantine_reasons))))),
        ("bytes in", size(info.source_bytes)),
        (
            "bytes stored",
            f"{size(info.table_bytes)} in {number(info.files, 'file')}, and {size(info.codec_bytes)} of codecs",
        ),
    ]
    if info.pictures:
        each = info.table_bytes / info.pictures
        carrying = ratio(info.source_bytes, info.table_bytes + info.codec_bytes)
        rows += [
            ("bytes a picture", f"{each:,.0f}, {info.metadata_bytes_per_picture:.1f} of them metadata"),
            ("ratio", f"{ratio(info.source_bytes, info.table_bytes)}, {carrying} with the codecs it carries"),
            ("codecs", _each(by_codec)),
            ("packers", _each({name or "(none)": count for name, count in info.packers.items()})),
            ("exact", number(info.exact, "picture")),
        ]
    rows += [("codec", f"{id}: {NOT_USED}") for id in info.unused_codecs]
    if info.psnr_mean is not None:
        percentiles = ", ".join(f"{name} %: {value:.2f}" for name, value in info.psnr_percentiles.items())
        rows += [
            ("PSNR", f"mean {info.psnr_mean:.2f} dB, lowest {info.psnr_min:.2f} dB"),
            ("PSNR percentiles", percentiles),
        ]
    if info.ssim_mean is not None:
        rows.append(("SSIM", f"mean {info.ssim_mean:.4f}"))
    return rows

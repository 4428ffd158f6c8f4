"""An archive read back: restore its pictures as files, verify every row; its weekly care, and its repair."""

from collections.abc import Sequence
from typing import Any

from prefect import task

from compressor.destinations import destination_at
from compressor.errors import ArchiveError
from compressor.wording import TAKEN_OUT, UNNAMED, damage, number, repaired
from flows import unwatched
from flows.errors import EndedUnwell
from flows.parameters import MaintainParameters, RepairParameters, RestoreParameters, VerifyParameters
from flows.worded import worded_flow
from tasks.dashboard import announce, publish_state
from tasks.maintain import compact, vacuum
from tasks.report import publish_problems
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# Restoring and verifying may begin again: a file that is there as it should be is written, and reading changes nothing.
@task(name="restore", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def _restored(parameters: RestoreParameters) -> dict[str, Any]:
    done = unwatched.restore(parameters)
    missing = number(len(done["problems"]), "picture")
    publish_problems(
        "restore", done["archive"], f"{missing} of {done['archive']} that could not be restored", done["problems"]
    )
    return done


@task(name="verify", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def _verified(parameters: VerifyParameters) -> dict[str, Any]:
    found = unwatched.verify(parameters)
    publish_problems("verify", found["archive"], f"{found['archive']}: {damage(found)}", found["problems"])
    return found


@worded_flow("restore", "restore {parameters.subject}")
def restore(parameters: RestoreParameters) -> tuple[dict[str, Any], str]:
    """Restore pictures as files. Returns :class:`compressor.restoring.Restored` as JSON, and which ``archive``.

    Raises
    ------
    EndedUnwell
        Some of them could not be restored.
    """
    done = _restored(parameters)
    there = f"{number(done['written'], 'picture')} at {destination_at(parameters.destination).told()}"
    _raise_if_any(done["problems"], f"{number(len(done['problems']), 'picture')} not restored", done, f"; {there}")
    return done, there


@worded_flow("verify", "verify {parameters.subject}")
def verify(parameters: VerifyParameters) -> tuple[dict[str, Any], str]:
    """Check every row. Returns the number of ``pictures``, ``problems``, each a key and a reason, and ``waiting``.

    Raises
    ------
    EndedUnwell
        There are problems.
    """
    found = _checked(parameters)
    _raise_if_any(found["problems"], damage(found), found, "; run repair")
    return found, damage(found)


@task(name="repair", **NOT_KEPT)
def _mended(parameters: RepairParameters) -> dict[str, Any]:
    """Without retries: what the first try took out, the next would find sound, and nobody would be told."""
    return unwatched.repair(parameters)


@worded_flow("repair", "repair {parameters.subject}")
def repair(parameters: RepairParameters) -> tuple[dict[str, Any], str]:
    """Mend what is damaged: a writer, so no other run may write at the same time.

    Returns
    -------
    :class:`compressor.repairing.Repaired` as JSON, and ``whole``.

    Raises
    ------
    EndedUnwell
        Something is missing or bad still.
    """
    done = _mended(parameters)
    lost = [*done["left"], *((key, TAKEN_OUT) for key in done["taken_out"])]
    if done["unnamed"]:
        lost.append((number(done["unnamed"], "picture"), UNNAMED))
    words = repaired(done)
    mended = [(key, "encoded again") for key in done["regained"]]
    publish_problems("repair", done["archive"], f"{done['archive']}: {words}", [*lost, *mended])
    if not done["left"]:
        publish_problems("verify", done["archive"], f"{done['archive']}: nothing is wrong after a repair", [])
    _raise_if_any(lost, words, done)
    return done, f"{words}; if maintenance paused the writers' queue, resume it"


@worded_flow("maintain", "maintain {parameters.subject}")
def maintain(parameters: MaintainParameters) -> tuple[dict[str, Any], str]:
    """Verify, compact and vacuum: a writer, so no other run may write at the same time.

    Returns
    -------
    ``pictures`` verified, ``files_fewer`` after compaction, files ``deleted`` by vacuum.

    Raises
    ------
    ArchiveError
        Something is damaged. Nothing is merged or deleted then: old files may be what repair needs.
    """
    checked = _checked(VerifyParameters(archive=parameters.archive))
    if checked["problems"]:
        raise ArchiveError(
            f"{checked['archive']}: {damage(checked)}, such as {_named(*checked['problems'][0])}. Nothing was "
            "compacted or deleted; run repair on it"
        )
    fewer = compact(parameters.archive)
    deleted = vacuum(parameters.archive, parameters.older_than)
    publish_state(parameters.archive, parameters.price_per_tb, checked["pictures"])
    done = {"archive": checked["archive"], "pictures": checked["pictures"], "files_fewer": fewer, "deleted": deleted}
    return done, f"{damage(checked)}; {number(fewer, 'file')} fewer, {number(deleted, 'old file')} deleted"


def _checked(parameters: VerifyParameters) -> dict[str, Any]:
    found = _verified(parameters)
    if found["problems"]:
        announce("archive.damaged", found["archive"], {"problems": len(found["problems"])})
    return found


def _raise_if_any(problems: Sequence[tuple[str, str]], what: str, result: dict[str, Any], then: str = "") -> None:
    """EndedUnwell that names one of them; an artifact has them all."""
    if problems:
        raise EndedUnwell(f"{what}, such as {_named(*problems[0])}{then}", result)


def _named(key: str, reason: str) -> str:
    return reason if reason.startswith(f"{key}: ") else f"{key}: {reason}"

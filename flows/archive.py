"""An archive read back: restore its pictures as files, verify every row; its weekly care, and its repair."""

from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger, task

from compressor.destinations import destination_at
from compressor.errors import ArchiveError
from compressor.wording import TAKEN_OUT, encoded_again, number, taken_out
from flows import unwatched
from flows.errors import EndedUnwell
from flows.parameters import MaintainParameters, RepairParameters, RestoreParameters, VerifyParameters
from tasks.dashboard import announce, publish_state
from tasks.maintain import compact, vacuum
from tasks.report import publish_problems
from tasks.retries import IF_TRANSIENT, NOT_KEPT


# Restoring and verifying may begin again: a file that is there as it should be is written, and reading changes nothing.
@task(name="restore", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def _restored(parameters: RestoreParameters) -> dict[str, Any]:
    done = unwatched.restore(parameters)
    publish_problems(done["problems"], "restore", done["archive"], f"of {done['archive']} that could not be restored")
    return done


@task(name="verify", retries=2, **IF_TRANSIENT, **NOT_KEPT)
def _verified(parameters: VerifyParameters) -> dict[str, Any]:
    found = unwatched.verify(parameters)
    publish_problems(found["problems"], "verify", found["archive"], f"of {found['archive']} that cannot be trusted")
    return found


@flow(name="restore", flow_run_name="restore {parameters.subject}", persist_result=False)
def restore(parameters: RestoreParameters) -> dict[str, Any]:
    """Restore pictures as files. Returns :class:`compressor.restoring.Restored` as JSON, and which ``archive``.

    Raises
    ------
    EndedUnwell
        Some of them could not be restored.
    """
    done = _restored(parameters)
    written, place = number(done["written"], "picture"), destination_at(parameters.destination)
    get_run_logger().info("%s written to %s", written, place.told())
    _raise_if_any(done["problems"], "not restored", done)
    return done


@flow(name="verify", flow_run_name="verify {parameters.subject}", persist_result=False)
def verify(parameters: VerifyParameters) -> dict[str, Any]:
    """Check every row. Returns the number of ``pictures``, ``problems``, each a key and a reason, and ``waiting``.

    Raises
    ------
    EndedUnwell
        There are problems.
    """
    found = _checked(parameters.archive)
    _raise_if_any(found["problems"], "cannot be trusted", found, "; run repair")
    return found


@task(name="repair", **NOT_KEPT)
def _mended(parameters: RepairParameters) -> dict[str, Any]:
    """Without retries: what the first try took out, the next would find sound, and nobody would be told."""
    return unwatched.repair(parameters)


@flow(name="repair", flow_run_name="repair {parameters.subject}", persist_result=False)
def repair(parameters: RepairParameters) -> dict[str, Any]:
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
    get_run_logger().info("%s, %s", encoded_again(done), taken_out(done))
    lost = [*done["left"], *((key, TAKEN_OUT) for key in done["taken_out"])]
    publish_problems(lost, "repair", done["archive"], f"of {done['archive']} that could not be mended")
    _raise_if_any(lost, "not mended", done)
    if not done["whole"]:
        raise EndedUnwell(f"pictures are missing: {taken_out(done)}", done)
    return done


@flow(name="maintain", flow_run_name="maintain {parameters.subject}", persist_result=False)
def maintain(parameters: MaintainParameters) -> dict[str, Any]:
    """Verify, compact and vacuum: a writer, so no other run may write at the same time.

    Returns
    -------
    ``pictures`` verified, ``files_fewer`` after compaction, files ``deleted`` by vacuum.

    Raises
    ------
    ArchiveError
        Something is damaged. Nothing is merged or deleted then: old files may be what repair needs.
    """
    checked = _checked(parameters.archive)
    if checked["problems"]:
        key, reason = checked["problems"][0]
        count = number(len(checked["problems"]), "problem")
        raise ArchiveError(
            f"{checked['archive']}: {count}, such as {key}: {reason}. Nothing was "
            "compacted or deleted; run 'latentpack repair' on it"
        )
    fewer = compact(parameters.archive)
    deleted = vacuum(parameters.archive, parameters.older_than)
    publish_state(parameters.archive, parameters.price_per_tb, checked["pictures"])
    return {"archive": checked["archive"], "pictures": checked["pictures"], "files_fewer": fewer, "deleted": deleted}


def _checked(archive: str) -> dict[str, Any]:
    found = _verified(VerifyParameters(archive=archive))
    if found["problems"]:
        announce("archive.damaged", found["archive"], {"problems": len(found["problems"])})
    return found


def _raise_if_any(problems: Sequence[tuple[str, str]], what: str, result: dict[str, Any], then: str = "") -> None:
    """EndedUnwell that names one of them; an artifact has them all."""
    if problems:
        key, reason = problems[0]
        raise EndedUnwell(f"{number(len(problems), 'picture')} {what}, such as {key}: {reason}{then}", result)

"""How many processes a machine is good for: its cores, as far as its memory goes."""

import pytest

from flows.machine import WORKER_MEMORY, cores, worker_count


@pytest.mark.parametrize(
    ("cpus", "memory", "expected"),
    [(4, 64 * WORKER_MEMORY, 4), (64, 4 * WORKER_MEMORY, 4), (8, WORKER_MEMORY // 2, 1)],
)
def test_each_worker_has_a_core_and_its_memory(
    cpus: int, memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: cpus)
    monkeypatch.setattr("distributed.system.memory_limit", lambda: memory)
    assert worker_count() == expected


def test_a_containers_quota_of_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads as of workers: they have one answer."""
    monkeypatch.setattr("dask.system.cpu_count", lambda: 1)
    assert cores() == 1

"""How many threads and processes this machine is good for."""

WORKER_MEMORY = 2**30  # bytes; one with torch and the codec loaded takes 420 MiB before its first picture


def cores() -> int:
    """Cores that this process may use; a container's quota counts."""
    from dask.system import cpu_count

    return int(cpu_count())


def worker_count() -> int:
    """One for each core, as far as there is memory for them; a container's limits on both count."""
    from distributed.system import memory_limit

    return max(1, min(cores(), memory_limit() // WORKER_MEMORY))

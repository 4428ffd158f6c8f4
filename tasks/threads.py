"""How many threads and processes this machine is good for: one thread in a worker, since workers share the cores."""

import os

WORKER_MEMORY = 2**30  # bytes; one with torch and the codec loaded takes 420 MiB before its first picture


def pin_threads(count: int) -> None:
    """Hold torch and OpenCV to ``count`` threads; BLAS and OpenMP too, where they are not loaded yet."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    import cv2
    import torch

    cv2.setNumThreads(count)
    torch.set_num_threads(count)


def cores() -> int:
    """Cores that this process may use, as far as there is memory for a worker on each; a container's limits count."""
    from dask.system import cpu_count
    from distributed.system import memory_limit

    return max(1, min(cpu_count(), memory_limit() // WORKER_MEMORY))

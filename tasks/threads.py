"""How many threads numeric libraries use in this process: one in a worker, since workers share the cores."""

import os


def pin_threads(count: int) -> None:
    """Hold torch and OpenCV to ``count`` threads; BLAS and OpenMP too, where they are not loaded yet."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    import cv2
    import torch

    cv2.setNumThreads(count)
    torch.set_num_threads(count)

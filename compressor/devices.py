"""Where networks run: the device, and what it is good at."""

import torch


def pick_device() -> torch.device:
    """The GPU, if there is one and this process is no fork of one that uses it."""
    usable = torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()
    return torch.device("cuda" if usable else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware there: emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())

"""Pictures a second of a training, beside the floor of its multiply-adds, on the device that training takes.

    python benchmarks/training.py PICTURES [--family v5] [--batch 16] [--steps 40] [--optimizer muon] [--compile]

PICTURES is a Parquet file with a column ``image`` of encoded 128x128 pictures. The floor is three times the forward
pass's multiply-adds (one forward, two backward) at the rate of large matrix products measured in the same run.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from floor import multiply_adds
from train_release import NETWORKS, load, split

from compressor.devices import has_fast_bf16, pick_device
from compressor.networks import autoencoders
from compressor.training import TrainingConfig, fit

FAMILIES = {**NETWORKS, **{name: getattr(autoencoders, name) for name in ("v1", "v2", "v3", "v4")}}
MATRIX = 2048
WARM = 0.25  # of the steps, which are left out: compilers and allocators are still at work


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds a second of a large matrix product, the best of five."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    repeats = 100 if device.type == "cuda" else 1
    return repeats * MATRIX**3 / min(seconds(lambda: [a @ a for _ in range(repeats)], device) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--family", choices=(*FAMILIES,), default="v5")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()

    device = pick_device()
    pictures, held_out = split(load(options.pictures))
    network = FAMILIES[options.family]()
    x_BCHW = torch.as_tensor(pictures[: options.batch]).float() / 255
    with torch.no_grad():
        drawn = network.draw(x_BCHW, torch.Generator())
        forward = multiply_adds(network, lambda: network.training_loss(x_BCHW, *drawn)) / options.batch

    seen: list[tuple[int, float]] = []  # pictures and seconds, once a validation has waited for the device
    config = TrainingConfig(
        steps=options.steps,
        batch=options.batch,
        validate_every=max(1, int(WARM * options.steps)),
        shift=4,
        optimizer=options.optimizer,
        compile=options.compile,
    )
    # One held-out picture: validating is no part of a step.
    fit(
        network,
        pictures,
        held_out[:1],
        config,
        on_progress=lambda state, _: seen.append((state.pictures, time.monotonic())),
        device=device,
    )
    rate = (seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1])
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    products = matrix_rate(dtype, device)
    floor = 3 * forward / products
    print(f"{device}, {torch.get_num_threads()} threads; {products / 1e9:,.0f} billion multiply-adds/s in {dtype}\n")
    print("| family | million multiply-adds forward | pictures/s | floor, ms | ms a picture | times the floor |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    cells = f"{forward / 1e6:,.0f} | {rate:,.0f} | {1e3 * floor:.3f} | {1e3 / rate:.3f} | {1 / rate / floor:.1f}"
    print(f"| {options.family} | {cells} |")


if __name__ == "__main__":
    main()

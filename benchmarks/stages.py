"""CPU time of every stage of a picture's way, its floor where one can be computed, and peers doing the same work.

    python benchmarks/stages.py PICTURES [--codec faces] [--count 64] [--target-psnr 34]

One thread, CPU seconds of this process, the fastest of three passes; at the end wall time with one process and with
two. A network's floor is its multiply-adds at the rate this machine multiplies large matrices in the same type; a
copy's floor is its bytes at the rate of copying.
CompressAI joins where it is installed: pip install --no-deps compressai einops pytorch-msssim tqdm
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from floor import multiply_adds

from compressor.archive import Archive
from compressor.artifact import identify
from compressor.baselines import StandardCodec
from compressor.codec import Codec, artifact_bytes, load_codec
from compressor.encoding import EncodeOptions, encode_batch
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.images import decode_picture, resize_picture
from compressor.limits import Limits
from compressor.metrics import psnr, ssim
from compressor.networks.integer import has_exact_bytes
from compressor.quality import encode_measured, encode_to_target
from compressor.reading import read_contents
from compressor.sources import Source
from compressor.tensors import from_network, to_network

PASSES = 3
PEERS = (("avif", 4), ("avif", 6), ("jpegxl", 3), ("jpegxl", 7), ("webp", 6), ("jpeg", 0))
MATRICES = (256, 512, 1024)
SUSTAINED_S = 3.0


def cpu_seconds(work: Callable[[], Any]) -> float:
    """The least CPU time of a few passes, after one that warms up."""
    work()
    passes = []
    for _ in range(PASSES):
        started = time.process_time()
        work()
        passes.append(time.process_time() - started)
    return min(passes)


def matrix_rate(dtype: torch.dtype) -> float:
    """Multiply-adds a second of a matrix product: the best of some sizes and of two libraries."""
    rates = []
    for size in MATRICES:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        image, kernels = a.T.reshape(1, size, size // 16, 16), b[:, :, None, None]
        image = image.contiguous(memory_format=torch.channels_last)
        repeats = (MATRICES[-1] // size) ** 3
        with torch.inference_mode():
            for work in (lambda: a @ b, lambda: F.conv2d(image, kernels)):  # noqa: B023 - called at once
                rates.append(repeats * size**3 / cpu_seconds(lambda: [work() for _ in range(repeats)]))  # noqa: B023
    return max(rates)


def byte_matrix_rate() -> float:
    """Multiply-adds a second of products of int8 matrices, the best of some sizes."""
    rates = []
    for size in MATRICES:
        a, b = (torch.randint(-127, 128, (size, size)).to(torch.int8) for _ in range(2))
        rates.append(size**3 / cpu_seconds(lambda: torch._int_mm(a, b)))  # noqa: B023 - called at once
    return max(rates)


def copy_rate() -> float:
    """Bytes a second."""
    block = np.zeros(2**26, np.uint8)
    return block.size / cpu_seconds(block.copy)


class Table:
    """Rows of one stage each, printed as Markdown."""

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        print(
            "| stage | ms a picture | pictures/s | floor, ms | times the floor |\n| --- | ---: | ---: | ---: | ---: |"
        )

    def add(self, name: str, work: Callable[[], Any], floor_s: float | None = None) -> None:
        each = cpu_seconds(work) / self._pictures
        floor = "" if floor_s is None else f"{1e3 * floor_s / self._pictures:.3f}"
        ratio = "" if floor_s is None else f"{each * self._pictures / floor_s:.1f}"
        print(f"| {name} | {1e3 * each:.2f} | {1 / each:,.0f} | {floor} | {ratio} |", flush=True)


def stages(source: Source, codec: HyperpriorCodec, options: argparse.Namespace) -> tuple[list[np.ndarray], int]:
    """Print the table of stages; return the source pictures and the quality step that the target takes."""
    files = list(islice(source.files(), options.count))
    contents = [bytes(content) for content in source.read([file.path for file in files])]
    pictures = [decode_picture(content).pixels for content in contents]
    target, copying = options.target_psnr, copy_rate()
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rates[torch.int8] = byte_matrix_rate() if has_exact_bytes() else rates[torch.float32]
    shown = ", ".join(f"{rate / 1e9:.0f} ({str(dtype).removeprefix('torch.')})" for dtype, rate in rates.items())
    print(
        f"{len(pictures)} pictures, one thread; matrices {shown} billion multiply-adds/s, "
        f"copying {copying / 1e9:.1f} GB/s\n"
    )
    raw = sum(picture.nbytes for picture in pictures)
    table = Table(len(pictures))
    table.add("read", lambda: read_contents(source, files, Limits()), sum(map(len, contents)) / copying)
    table.add("decode picture", lambda: [decode_picture(content) for content in contents], raw / copying)
    table.add("(OpenCV's decoder alone)", lambda: [cv2.imdecode(np.frombuffer(c, np.uint8), 1) for c in contents])
    table.add("resize, where asked for", lambda: [resize_picture(picture, 128) for picture in pictures])

    network, fast = codec._network, codec._low_precision
    trunk = rates[torch.bfloat16 if fast else torch.float32]
    x_BCHW = to_network(np.stack(pictures), codec.device)
    chosen = [one.encoded.quality for one in encode_to_target(codec, pictures, target) if one is not None]
    quality = int(np.median(chosen))
    quality_B = torch.full((len(pictures),), float(quality))

    def analyse() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            y = network.analysis(x_BCHW, quality_B)
            return y.float(), network.hyper_analysis(y, quality_B).float().round()

    def synthesise() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            return network.synthesis(y, quality_B)

    with torch.inference_mode():
        y, z = analyse()
        r = y.round()
        mean_features, scale_features = network.means.features(z, quality_B), network.scales.features(z, quality_B)

        def means() -> None:
            network.means.features(z, quality_B)
            for step in range(4):
                network.means(step, mean_features, y)

        def scales() -> None:
            network.scales.features(z, quality_B)
            for step in range(4):
                network.scales(step, scale_features, r, quality_B)

        for name, work, rate in (
            ("analysis", analyse, trunk),
            ("means", means, rates[torch.float32]),
            ("scales, in integers", scales, rates[torch.int8]),
            ("synthesis", synthesise, trunk),
        ):
            table.add(name, work, multiply_adds(network, work) / rate)
        output = synthesise()
        table.add("to pixels", lambda: from_network(output), raw / copying)
    table.add("first features, and PSNR predicted", lambda: codec.trials(pictures, "auto"))
    table.add(f"encode, step {quality}", lambda: codec.encode(pictures, quality))
    encoded = codec.encode(pictures, quality)
    table.add("decode to symbols", lambda: codec.symbols(encoded))
    table.add("decode", lambda: codec.decode(encoded))
    decoded = codec.decode(encoded)
    table.add("PSNR", lambda: [psnr(a, b) for a, b in zip(pictures, decoded, strict=True)])
    table.add("SSIM", lambda: [ssim(a, b) for a, b in zip(pictures, decoded, strict=True)])
    table.add(f"encode, step {quality}, and check", lambda: encode_measured(codec, pictures, quality))
    tries: list[int] = []
    table.add(f"encode to {target:g} dB", lambda: encode_to_target(codec, pictures, target, on_tries=tries.append))
    _chain(table, source, files, options)
    print(f"\n{sum(tries) / (PASSES + 1) / len(pictures):.2f} tries a picture")
    return pictures, quality


def _chain(table: Table, source: Source, files: Sequence[Any], options: argparse.Namespace) -> None:
    """A batch through all stages, its commit, and the way back."""
    data = artifact_bytes(options.codec)
    encoding = EncodeOptions(identify(data), target_psnr=options.target_psnr)
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive.create(f"{folder}/archive")
        archive.put_codec(data)
        table.add("whole batch, to Parquet", lambda: encode_batch(source, files, archive, encoding, "benchmark"))
        archive.commit(encode_batch(source, files, archive, encoding, "benchmark").parts)
        keys = [file.key for file in files]
        table.add("scan rows", lambda: list(archive.scan()))
        rows = [archive.read_row(key) for key in keys]
        table.add("whole way back, to pixels", lambda: archive.decode(rows))


def peers(pictures: Sequence[np.ndarray], target: float) -> dict[tuple[str, int], int]:
    """Standard formats on the same pictures, at the median of the qualities that reach the target; those qualities."""
    qualities = {}
    print(
        "\n| peer | quality | encode/s | decode/s | to target/s | bytes |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, effort in PEERS:
        codec: Codec = StandardCodec(name, effort)
        stored = [one for one in encode_to_target(codec, pictures, target) if one is not None]
        quality = int(np.median([one.encoded.quality for one in stored]))
        qualities[name, effort] = quality
        encoded = codec.encode(pictures, quality)
        writing = cpu_seconds(lambda: codec.encode(pictures, quality))  # noqa: B023 - called at once
        reading = cpu_seconds(lambda: codec.decode(encoded))  # noqa: B023
        searching = cpu_seconds(lambda: encode_to_target(codec, pictures, target))  # noqa: B023
        size = np.mean([len(one.encoded.payload) for one in stored])
        rates = " | ".join(f"{len(pictures) / seconds:,.0f}" for seconds in (writing, reading, searching))
        print(f"| {codec.description.partition(', one')[0]} | {quality} | {rates} | {size:,.0f} |", flush=True)
    if importlib.util.find_spec("compressai"):
        _compressai(pictures)
    return qualities


def _compressai(pictures: Sequence[np.ndarray]) -> None:
    # The package imports readers of data sets and of point clouds, and with them torchvision: no part of coding.
    for module in ("compressai.datasets", "compressai.transforms", "torchvision", "torchvision.transforms"):
        sys.modules[module] = MagicMock()
    from compressai.models import MeanScaleHyperprior

    network = MeanScaleHyperprior(128, 192).eval()
    network.update()
    x_BCHW = to_network(np.stack(pictures), torch.device("cpu"))
    with torch.inference_mode():
        written = network.compress(x_BCHW)
        writing = cpu_seconds(lambda: network.compress(x_BCHW))
        reading = cpu_seconds(lambda: network.decompress(written["strings"], written["shape"]))
    rates = " | ".join(f"{len(pictures) / seconds:,.0f}" for seconds in (writing, reading))
    print(f"| CompressAI, mean-scale hyperprior, random weights | | {rates} | | |", flush=True)


def _rates(codec_name: str, effort: int, path: str, quality: int) -> tuple[float, float]:
    """Pictures encoded and decoded a second of wall time, by one thread, over some seconds."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    codec = StandardCodec(codec_name, effort) if effort >= 0 else load_codec(codec_name)
    pictures = list(np.load(path))
    encoded = codec.encode(pictures, quality)
    rates = []
    for work in (lambda: codec.encode(pictures, quality), lambda: codec.decode(encoded)):
        work()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < SUSTAINED_S:
            work()
            done += len(pictures)
        rates.append(done / (time.perf_counter() - started))
    return rates[0], rates[1]


def cores(codec_name: str, pictures: Sequence[np.ndarray], qualities: dict[tuple[str, int], int]) -> None:
    """Sums of what one process and two at the same time get done."""
    print("\n| codec | processes | encode/s | decode/s |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/pictures.npy"
        np.save(path, np.stack(pictures))
        for (name, effort), quality in qualities.items():
            for count in (1, 2):
                with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
                    found = [pool.submit(_rates, name, effort, path, quality) for _ in range(count)]
                    encode, decode = (sum(column) for column in zip(*(one.result() for one in found), strict=True))
                title = codec_name if effort < 0 else f"{name}, {effort}"
                print(f"| {title} | {count} | {encode:,.0f} | {decode:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--codec", default="faces")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--target-psnr", type=float, default=34.0)
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is measured is the time of cores
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    codec = load_codec(options.codec)
    if not isinstance(codec, HyperpriorCodec):
        sys.exit(f"{options.codec} is not of family v5 or v6: its networks have no such stages")
    pictures, quality = stages(Source.open(str(options.pictures)), codec, options)
    qualities = peers(pictures, options.target_psnr)
    chosen = {peer: qualities[peer] for peer in (("avif", 4), ("jpegxl", 7))}
    cores(options.codec, pictures, {(options.codec, -1): quality, **chosen})


if __name__ == "__main__":
    main()

"""One battery that the codecs of every family pass: round trip, any size, every packer, damage, names."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from skimage.data import astronaut

from compressor import packers
from compressor.archive import Archive
from compressor.artifact import QUALITY_PARTS, dump, identify, parse
from compressor.baselines import STANDARD
from compressor.codec import Codec, _from_artifact, artifact_bytes, load_codec, titles, with_effort
from compressor.defaults import CODEC as DEFAULT
from compressor.errors import CodecError
from compressor.families import FAMILIES
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.quality import encode_to_target
from compressor.tensors import to_network
from tests.codecs import smooth_pictures, tiny_artifact, tiny_codec, tried

LOW = 8.0  # dB, which a network without training reaches
families = pytest.mark.parametrize("family", [*FAMILIES, "context"])


def quality_of(codec: Codec) -> int:
    return codec.qualities[len(codec.qualities) // 2] if codec.qualities else -1


@families
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33), (32, 32), (50, 7)])
def test_every_size_and_packer_comes_back_the_same(family: str, size: tuple[int, int]) -> None:
    codec = tiny_codec(family)
    (picture,) = smooth_pictures(1, *size)
    decoded = {}
    for packer in ("auto", *codec.packers):
        (encoded,) = codec.encode([picture], quality_of(codec), packer)
        (pixels,) = codec.decode([encoded])
        assert pixels.shape == picture.shape
        assert pixels.dtype == np.uint8
        decoded[encoded.packer] = pixels
    kinds = {name.split("-")[0] if "-" in name else "integers" for name in decoded}
    for kind in kinds:  # packing is lossless: what differs is the type of the latents alone
        same = [pixels for name, pixels in decoded.items() if name.startswith(kind) or kind == "integers"]
        assert all(np.array_equal(pixels, same[0]) for pixels in same)


@pytest.mark.parametrize("family", ["v1", "v5"])
def test_a_codec_shows_what_it_is(family: str) -> None:
    codec = tiny_codec(family)
    assert codec.id[:12] in repr(codec) and f"{family} ({family})" in repr(codec)


@families
def test_a_batch_of_mixed_sizes_is_the_same_as_one_at_a_time(family: str) -> None:
    codec = tiny_codec(family)
    pictures = smooth_pictures(3) + smooth_pictures(2, 20, 44) + smooth_pictures(2, seed=5)
    together = codec.encode(pictures, quality_of(codec))
    alone = [codec.encode([picture], quality_of(codec))[0] for picture in pictures]
    for one, other, a, b in zip(together, alone, codec.decode(together), codec.decode(alone), strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        # Writing is floating point: another batch size may round a latent the other way, which either reads back.
        assert np.abs(a.astype(int) - b).mean() < 2


@families
def test_auto_is_never_larger_than_what_it_chooses_from(family: str) -> None:
    codec = tiny_codec(family)
    pictures = smooth_pictures(4)
    auto = codec.encode(pictures, quality_of(codec))
    entropy = codec.encode(pictures, quality_of(codec), "entropy")
    assert all(len(a.payload) <= len(e.payload) for a, e in zip(auto, entropy, strict=True))


@families
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_payloads_are_errors_or_pictures(family: str, data: st.DataObject) -> None:
    codec = tiny_codec(family)
    (encoded,) = codec.encode(smooth_pictures(1), quality_of(codec))
    payload = bytearray(encoded.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(payload)))
    try:
        (pixels,) = codec.decode([dataclasses.replace(encoded, payload=bytes(payload[:cut]))])
        assert pixels.shape == (32, 32, 3)
    except CodecError as error:
        assert str(error)


@families
def test_a_row_with_a_foreign_packer_is_refused(family: str) -> None:
    codec = tiny_codec(family)
    (encoded,) = codec.encode(smooth_pictures(1), quality_of(codec))
    with pytest.raises(CodecError):
        codec.decode([dataclasses.replace(encoded, packer="zip")])
    with pytest.raises(CodecError, match="choose from auto"):
        codec.encode(smooth_pictures(1), quality_of(codec), "zip")


@families
def test_an_artifact_is_the_same_codec_from_bytes_and_from_a_path(family: str, tmp_path: Path) -> None:
    data = tiny_artifact(family)
    path = tmp_path / "codec.safetensors"
    path.write_bytes(data)
    assert load_codec(path).id == load_codec(data).id == identify(data)


hyperpriors = pytest.mark.parametrize("family", ["v5", "v6", "shortcuts", "context"])


def hyperprior_codec(family: str) -> HyperpriorCodec:
    """One of its own for each test."""
    codec = _from_artifact.__wrapped__(artifact_bytes(DEFAULT) if family == DEFAULT else tiny_artifact(family))
    assert isinstance(codec, HyperpriorCodec)
    return codec


@pytest.mark.parametrize("family", ["v5", "v6", "shortcuts", "context", DEFAULT])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_symbols_are_the_same_at_any_batch_size_thread_count_and_layout(
    family: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = hyperprior_codec(family)
    encoded, _ = tried(codec, smooth_pictures(64), range(300, 364))
    alone = [codec.symbols([one]) for one in encoded]
    codec._network.to(memory_format=layout)  # type: ignore[call-overload]
    scales = codec._network.scales
    plain = scales.features
    monkeypatch.setattr(scales, "features", lambda z, q: plain(z.contiguous(memory_format=layout), q))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (1, 7, 64):
                got = [codec.symbols(encoded[start : start + size]) for start in range(0, 64, size)]
                for part in (0, 1):
                    expected = np.concatenate([symbols[part] for symbols in alone])
                    assert np.array_equal(np.concatenate([symbols[part] for symbols in got]), expected)
    finally:
        torch.set_num_threads(threads)


@hyperpriors
@pytest.mark.parametrize("packer", ["entropy", "lzma", "gzip"])
def test_what_a_search_ends_at_is_read_at_that_part_of_a_step(family: str, packer: str) -> None:
    codec = hyperprior_codec(family)
    qualities = [0, 7, 8, 241, 246, 503, 504]
    encoded, measured = tried(codec, smooth_pictures(7), qualities, packer)
    assert [one.quality for one in encoded] == [quality // 8 for quality in qualities]
    for read, pixels in zip(codec.decode(encoded), measured, strict=True):
        assert np.array_equal(read, pixels)
    whole = codec.encode(smooth_pictures(7), [quality // 8 for quality in qualities], packer)
    same = [one.payload == other.payload for one, other in zip(encoded, whole, strict=True)]
    assert same == [quality % 8 == 0 for quality in qualities]


@pytest.mark.parametrize("packer", ["entropy", "lzma", "gzip"])
def test_a_part_beyond_the_last_step_is_damage(packer: str) -> None:
    codec = hyperprior_codec("v5")
    ([encoded], _) = tried(codec, smooth_pictures(1), [497], packer)
    assert encoded.quality == 62
    with pytest.raises(CodecError, match="damaged"):
        codec.decode([dataclasses.replace(encoded, quality=63)])


@pytest.mark.parametrize("packer", ["lzma", "gzip"])
@pytest.mark.parametrize("part", [8, 255])
def test_a_part_that_no_step_has_is_damage(packer: str, part: int) -> None:
    codec = hyperprior_codec("v5")
    ([encoded], _) = tried(codec, smooth_pictures(1), [241], packer)
    size = 1 + sum(symbols[0].size for symbols in codec.symbols([encoded]))
    stored = packers.unpack(encoded.payload, packer, 1, size)
    assert stored[0] == 1
    damaged = packers.pack(bytes([part]) + stored[1:], packer, 1)
    with pytest.raises(CodecError, match="damaged"):
        codec.decode([dataclasses.replace(encoded, payload=damaged)])


def compressed(size: Any, **arrays: np.ndarray) -> bytes:
    """An artifact of format 4 that says to hold so many bytes."""
    return save(arrays, {"latentpack": json.dumps({"format": 4, "bytes": size})})


def test_an_artifact_says_truly_what_is_compressed_in_it() -> None:
    whole = tiny_artifact("v1")
    zstd = load(whole)["zstd"]
    length = int.from_bytes(whole[:8], "little")
    size = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"]["latentpack"])["bytes"]
    assert parse(compressed(size, zstd=zstd)).metadata == parse(whole).metadata
    twice = np.frombuffer(pa.compress(whole, codec="zstd", asbytes=True), np.uint8)
    lies = [compressed(lie, zstd=zstd) for lie in (size - 1, size + 1, 0, -1, 2**26 + 1, 2**62)]
    lies += [compressed(size, zstd=zstd[:-9]), compressed(size, zstd=zstd[9:]), compressed(size, other=zstd)]
    lies += [compressed(lie, zstd=zstd) for lie in (math.inf, math.nan, "x", None)]
    lies += [compressed(size), compressed(len(whole), zstd=twice), compressed(size, zstd=zstd[:0])]
    for lie in lies:
        with pytest.raises(CodecError, match="not a latentpack codec, or a damaged one"):
            parse(lie)


def test_codecs_of_earlier_releases_store_whole_steps() -> None:
    artifact = parse(tiny_artifact("v5"))
    metadata = {key: value for key, value in artifact.metadata.items() if key != "format"}
    earlier = dump(metadata, {name: array for name, array in artifact.tensors.items() if name != QUALITY_PARTS})
    assert (parse(earlier).metadata["format"], artifact.metadata["format"]) == (1, 3)
    codec = load_codec(earlier)
    encoded, measured = tried(codec, smooth_pictures(3), [0, 30, 63])
    assert [one.quality for one in encoded] == [0, 30, 63]
    assert all(map(np.array_equal, codec.decode(encoded), measured))
    assert encoded == codec.encode(smooth_pictures(3), [0, 30, 63], "entropy")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@hyperpriors
def test_symbols_are_the_same_on_a_gpu(family: str) -> None:
    on_cpu = hyperprior_codec(family)
    artifact = parse(tiny_artifact(family))
    network = FAMILIES[family].build(**artifact.metadata["network"])
    cpu = HyperpriorCodec(artifact, network, torch.device("cpu"))
    encoded, _ = tried(on_cpu, smooth_pictures(64), range(300, 364))
    for here, there in zip(cpu.symbols(encoded), on_cpu.symbols(encoded), strict=True):
        assert np.array_equal(here, there)


@pytest.mark.parametrize("quality", [12, 36, 60])
def test_files_are_as_long_as_training_estimates(quality: int) -> None:
    codec = load_codec(DEFAULT)
    assert isinstance(codec, HyperpriorCodec)
    pictures = [astronaut()[y : y + 128, x : x + 128] for y in range(0, 512, 128) for x in range(0, 512, 128)]
    written = np.array([len(one.payload) for one in codec.encode(pictures, quality, "entropy")])
    x_BCHW = to_network(np.stack(pictures), codec.device)
    # As codec and training go about it: in bfloat16 latents are others, of a flat picture 3 % more bytes at step 60.
    precision = torch.autocast(codec.device.type, torch.bfloat16, enabled=codec._low_precision)
    with torch.inference_mode(), precision:
        _, bits_B = codec._network.rate_distortion(
            x_BCHW, torch.full((len(pictures),), float(quality)).to(x_BCHW.device)
        )
    estimated = bits_B.float().cpu().numpy() / 8
    assert abs(written.mean() - estimated.mean()) <= 0.01 * estimated.mean() + 8
    # Counted tables know rare large residuals that the density does not: one picture may be shorter, none longer.
    assert (written <= 1.01 * estimated + 8).all()


@pytest.mark.parametrize("family", ["v5", "v6", "shortcuts", "context", DEFAULT])
def test_means_never_reach_a_table(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = hyperprior_codec(family)
    encoded = codec.encode(smooth_pictures(8), 40, "entropy")
    symbols, pictures = codec.symbols(encoded), codec.decode(encoded)
    means = codec._network.means.forward
    for shift in (1e-3, -1e-3, 1.0):
        monkeypatch.setattr(codec._network.means, "forward", lambda *inputs, shift=shift: means(*inputs) + shift)
        for ours, theirs in zip(symbols, codec.symbols(encoded), strict=True):
            assert np.array_equal(ours, theirs)
    assert not np.array_equal(np.stack(codec.decode(encoded)), np.stack(pictures)), "the last reaches pictures"


def test_a_higher_quality_costs_more() -> None:
    codec = tiny_codec("v5")
    sizes = [sum(len(e.payload) for e in codec.encode(smooth_pictures(8), q)) for q in (0, 20, 40, 63)]
    assert sizes == sorted(sizes)


def test_unknown_codecs_and_families_say_what_there_is() -> None:
    with pytest.raises(CodecError, match="avif.*latentpack train"):
        load_codec("no-such-codec")
    with pytest.raises(CodecError, match="upgrade latentpack"):
        load_codec(dump({"family": "v99"}, {}))


@pytest.mark.parametrize("family", ["v5", "context"])
@pytest.mark.parametrize("name", ["frequencies.residual", "frequencies.hyper", QUALITY_PARTS])
def test_artifacts_with_too_few_tables_are_refused(family: str, name: str) -> None:
    artifact = parse(tiny_artifact(family))
    metadata = {key: value for key, value in artifact.metadata.items() if key != "format"}
    with pytest.raises(CodecError, match=f"has {name} of .* reads"):
        load_codec(dump(metadata, {**artifact.tensors, name: artifact.tensors[name][:-1]}))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "newer", "nan", "missing", "shape"])
def test_damaged_artifacts_are_refused(damage: str) -> None:
    data = bytearray(tiny_artifact("v1"))
    artifact = parse(bytes(data))
    tensors = dict(artifact.tensors)
    metadata = {key: value for key, value in artifact.metadata.items() if key != "format"}
    if damage == "flip":
        data[-1] ^= 1
        with pytest.raises(CodecError, match="damaged"):
            parse(bytes(data), artifact.id)
        return
    weight = next(name for name in tensors if name.endswith("weight"))
    changed = {
        "cut": lambda: bytes(data[: len(data) // 2]),
        "empty": lambda: b"",
        "text": lambda: b"not a codec at all",
        "newer": lambda: dump({**metadata, "format": 99}, tensors),
        "nan": lambda: dump(metadata, {**tensors, weight: np.full_like(tensors[weight], np.nan)}),
        "missing": lambda: dump(metadata, {k: v for k, v in tensors.items() if k != weight}),
        "shape": lambda: dump(metadata, {**tensors, weight: tensors[weight][:1]}),
    }[damage]()
    with pytest.raises(CodecError, match="format 99.*upgrade" if damage == "newer" else None):
        load_codec(changed)


def test_codecs_of_one_file_name_are_told_apart() -> None:
    assert titles(["faces", "a/b.safetensors", "faces"]) == {"faces": "faces", "b": "a/b.safetensors"}
    same = ["a/codec.safetensors", "b/codec.safetensors"]
    assert titles(same) == dict(zip(same, same, strict=True))


@pytest.mark.parametrize("family", ["v3", "v5", "context", "v6"])
def test_autocast_of_the_caller_changes_nothing_that_is_stored(family: str) -> None:
    codec, pictures = tiny_codec(family), smooth_pictures(3, 64, 48)
    quality = 40 if len(codec.qualities) else -1
    plain = codec.encode(pictures, quality)
    with torch.autocast("cpu", torch.bfloat16):
        under = codec.encode(pictures, quality)
        read = codec.decode(plain)
    assert [one.payload for one in under] == [one.payload for one in plain]
    assert all((one == other).all() for one, other in zip(read, codec.decode(plain), strict=True))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.float16)])
@pytest.mark.parametrize("family", ["v5", "v6"])
def test_what_a_caller_has_torch_do_changes_nothing_that_is_refined_or_searched_for(family: str, around: Any) -> None:
    pictures = smooth_pictures(2)
    plain = with_effort(tiny_codec(family), 1)
    expected = plain.encode(pictures, 40), encode_to_target(plain, pictures, LOW)
    with around():
        codec = with_effort(_from_artifact.__wrapped__(tiny_artifact(family)), 1)
        found = codec.encode(pictures, 40), encode_to_target(codec, pictures, LOW)
    assert [one.payload for one in found[0]] == [one.payload for one in expected[0]]
    for one, other in zip(found[1], expected[1], strict=True):
        assert one is not None and other is not None and one.encoded.payload == other.encoded.payload


def test_another_type_of_numbers_by_default_changes_nothing_that_is_stored(tmp_path: Path) -> None:
    """As programs set it that hold language models: tables rounded to it would be others."""
    codec, pictures = tiny_codec("v5"), smooth_pictures(2)
    (tmp_path / "v5.safetensors").write_bytes(tiny_artifact("v5"))
    np.save(tmp_path / "pictures.npy", np.stack(pictures))
    code = "import sys, torch, numpy; torch.set_default_dtype(torch.bfloat16);"
    code += "from compressor.codec import load_codec; from compressor.quality import encode_to_target;"
    code += "codec = load_codec('v5.safetensors'); pictures = list(numpy.load('pictures.npy'));"
    code += f"print(*(one.encoded.payload.hex() for one in encode_to_target(codec, pictures, {LOW})))"
    there = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert there.returncode == 0, there.stderr
    here = encode_to_target(codec, pictures, LOW)
    assert there.stdout.split() == [one.encoded.payload.hex() for one in here if one]


def test_areas_of_one_colour_are_aimed_higher_than_portraits() -> None:
    """A rounding is the same all over them: a reader of other arithmetic would find up to 0.4 dB less."""
    codec, noisy = load_codec(DEFAULT), smooth_pictures(1, 128, 128)[0]
    assert isinstance(codec, HyperpriorCodec)
    flat, odd = np.full((128, 128, 3), (200, 30, 90), np.uint8), np.zeros((3, 13, 3), np.uint8)
    half = np.concatenate([flat, noisy])
    flat[5, 5] = 0  # one cell of 256 is not
    dithered = flat + np.random.default_rng(0).integers(0, 3, (128, 128, 1), np.uint8)
    ramp = np.repeat(np.arange(64, dtype=np.uint8).repeat(2)[:, None, None] + flat[:1, :1], 128, axis=1)
    low, mixed, *of_flat, small = codec.trials([noisy, half, flat, dithered, ramp, odd], "auto").slack(34.0)
    assert low == mixed < 0.05 and min(of_flat) > low + 0.1 and small > max(of_flat)


@pytest.mark.parametrize("name", ["a" * 300, "x" * 300, "no\0name", "/proc/self/mem"])
def test_a_name_that_no_file_can_have_and_a_file_that_cannot_be_read_are_no_codecs(name: str, archive: Archive) -> None:
    with pytest.raises(CodecError, match="there is no codec|cannot be read"):
        load_codec(name)
    with pytest.raises(CodecError, match="there is no codec|cannot be read"):
        archive.append({"a": smooth_pictures(1)[0]}, name)


PICTURE = np.full((8, 9, 3), 77, np.uint8)


@pytest.mark.parametrize("family", ["v3", "v5", "jpeg", "av1-444", "lossless"])
@pytest.mark.parametrize(
    "pixels",
    [
        [PICTURE / 255],
        [PICTURE.astype(np.uint16)],
        [PICTURE > 9],
        [PICTURE[:, :, 0]],
        [PICTURE[:, :, :1]],
        [np.dstack([PICTURE, PICTURE[:, :, 0]])],
        [PICTURE.transpose(2, 0, 1)],
        [PICTURE[:0]],
        PICTURE,
        ["a.png"],
    ],
)
def test_what_is_no_8_bit_colour_picture_is_refused(family: str, pixels: Any) -> None:
    codec = STANDARD[family] if family in STANDARD else tiny_codec(family)
    with pytest.raises(CodecError, match=r"uint8 pictures \(height, width, 3\)|no array"):
        codec.encode(pixels, 40)


@pytest.mark.parametrize("codec", ["v5", "jpeg"])
@pytest.mark.parametrize("quality", ["40", [40.7], 40.7, float("nan"), True, [40, 41], [], None])
def test_what_is_no_quality_is_refused(codec: str, quality: Any) -> None:
    with pytest.raises(CodecError, match="quality is a whole number"):
        (STANDARD[codec] if codec in STANDARD else tiny_codec(codec)).encode([PICTURE], quality)


def test_a_standard_format_knows_no_packer() -> None:
    with pytest.raises(CodecError, match="no packer 'zip'"):
        STANDARD["jpeg"].encode([PICTURE], 40, "zip")


@pytest.mark.parametrize("name", ["v1", "v5", "jpeg", "av1-444"])
@pytest.mark.parametrize("size", [{"width": 0}, {"height": 0}, {"width": -32}])
def test_what_says_that_it_has_no_pixels_is_refused(name: str, size: dict[str, int]) -> None:
    codec = STANDARD[name] if name in STANDARD else tiny_codec(name)
    encoded = codec.encode([PICTURE] * 2, 40)
    with pytest.raises(CodecError, match=r"the row is damaged: -?\d+ x \d+ pixels"):
        codec.decode([encoded[0], dataclasses.replace(encoded[1], **size)])

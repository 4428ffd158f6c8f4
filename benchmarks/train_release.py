"""Trains the codec that ships, on one GPU or on a CPU, evaluates it and prints a table; then freezes it.

    python benchmarks/train_release.py train PICTURES --eval PICTURES --out DIR --minutes 20 --batch 256 --compile
    python benchmarks/train_release.py grow CODEC PICTURES --out DIR --network '{"blocks": 6, ...}'
    python benchmarks/train_release.py freeze DIR PICTURES --out compressor/weights/faces.safetensors
    python benchmarks/train_release.py predict CODEC PICTURES --out compressor/weights/faces.safetensors

PICTURES is a Parquet file with a column ``image`` of encoded 128x128 pictures. ``train`` needs torch, NumPy, pyarrow
and OpenCV alone, keeps everything on the device, and goes on from DIR/training.ckpt where there is one. ``grow`` makes
a larger network of a codec and trains what codes its new latents: ``train --start DIR/weights.pt`` does the rest.
``predict`` gives a codec a predictor of PSNR that has learned from all pictures; what is stored by it stays the same.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from enlarging import RateAlone, deepen, grow

from compressor.devices import pick_device
from compressor.networks.hyperprior import Hyperprior
from compressor.networks.qualities import QUALITY_STEPS, QualityCurve
from compressor.networks.transformer import transformer_hyperprior
from compressor.training import FALLS, TrainingConfig, TrainingState, fit, validate

NETWORKS = {"v5": Hyperprior, "v6": transformer_hyperprior}
HELD_OUT = 128
CALIBRATION = 3072
LOOKED_AT = 2048


def load(path: str) -> np.ndarray:
    """uint8 (N, 3, H, W) of a Parquet file of encoded pictures."""
    encoded = pq.read_table(path)["image"].to_pylist()
    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(decoded, encoded)))


def decoded(data: bytes) -> np.ndarray:
    """uint8 (3, H, W) of an encoded picture."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return picture[:, :, ::-1].transpose(2, 0, 1)


def split(pictures_NCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training pictures and a fixed random part that is held out."""
    order = np.random.default_rng(0).permutation(len(pictures_NCHW))
    return pictures_NCHW[order[HELD_OUT:]], pictures_NCHW[order[:HELD_OUT]]


def show(state: TrainingState, done: float) -> None:
    row = state.history[-1]
    rate = row["pictures"] / row["seconds"]
    points = " ".join(f"{row[f'psnr{q}']:.2f} dB/{row[f'bytes{q}']:.0f} B" for q in (16, 28, 40, 52))
    print(f"{done:6.1%} step {row['step']:.0f} {rate:.0f}/s loss {row['loss']:.4f} {points}", flush=True)


@torch.no_grad()
def evaluate(network: Hyperprior, pictures_NCHW: np.ndarray, device: torch.device) -> None:
    """Print PSNR and estimated bytes at every eighth step: what the entropy coder will spend to within a percent."""
    print("| step | PSNR | bytes |\n| --- | --- | --- |")
    for quality in range(4, QUALITY_STEPS, 8):
        psnr, size = [], []
        for start in range(0, len(pictures_NCHW), 50):
            x_BCHW = torch.as_tensor(pictures_NCHW[start : start + 50]).to(device).float() / 255
            mse_B, bits_B = network.rate_distortion(x_BCHW, torch.full((len(x_BCHW),), float(quality), device=device))
            psnr.append(10 * torch.log10(255**2 / mse_B))
            size.append(bits_B / 8)
        print(f"| {quality} | {torch.cat(psnr).mean():.2f} dB | {torch.cat(size).mean():.0f} |", flush=True)


def starting_network(path: str | None, family: str, settings: dict | None) -> tuple[Hyperprior, dict]:
    """A network to train and its options: new, with a training's weights.pt, or a frozen codec with its own options.

    It may have more residual blocks than what it starts from.
    """
    if path and path.endswith(".safetensors"):
        from compressor.artifact import parse
        from compressor.families import FAMILIES

        artifact = parse(Path(path).read_bytes())
        settings = artifact.options if settings is None else settings
        weights = FAMILIES[artifact.family].network(artifact).state_dict()
    else:
        weights = torch.load(path, weights_only=True, map_location="cpu") if path else None
    settings = settings or {}
    try:
        network = NETWORKS[family](**settings)
        if weights:
            deepen(network, weights)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"{path or family} is no network of the options {settings}: {error}") from error
    return network, settings


def train(options: argparse.Namespace) -> None:
    device = pick_device()
    pictures, held_out = split(load(options.pictures))
    config = TrainingConfig(
        steps=0,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=options.learning_rate,
        fall=options.fall,
        warmup=300,
        shift=4,
        optimizer=options.optimizer,
        validate_every=options.validate_every,
        compile=options.compile,
    )
    out = Path(options.out)
    start, settings = starting_network(options.start, options.family, options.network)
    network, state = fit(start, pictures, held_out, config, out / "training.ckpt", show, device, bool(options.start))
    torch.save(network.state_dict(), out / "weights.pt")
    history = {
        "family": options.family,
        "network": settings,
        "device": str(device),
        "history": state.history,
        "pictures_seen": state.pictures,
        "validation": validate(network, torch.as_tensor(held_out).to(device), options.batch),
    }
    (out / "history.json").write_text(json.dumps(history))
    evaluate(network, load(options.eval) if options.eval else held_out, device)


def enlarge(options: argparse.Namespace) -> None:
    old, _ = starting_network(options.codec, "v5", None)
    pictures, held_out = split(load(options.pictures))
    try:
        network = grow(old, options.network, torch.as_tensor(pictures[:LOOKED_AT]))
    except (TypeError, ValueError) as error:
        raise SystemExit(f"{options.codec} cannot grow to {options.network}: {error}") from error
    config = TrainingConfig(
        steps=0,
        minutes=options.minutes,
        batch=options.batch,
        learning_rate=2e-3,
        warmup=50,
        shift=4,
        ema=0.99,
        optimizer="muon",
        validate_every=200,
    )
    trained, _ = fit(RateAlone(network), pictures, held_out, config, on_progress=show)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.save(trained.network.state_dict(), out / "weights.pt")


@torch.no_grad()
def bring_ahead(curve: QualityCurve, steps: float) -> None:
    """Have a network's curve over the quality steps say at each what it said so many steps further on."""
    anchors_Q = torch.linspace(0, QUALITY_STEPS - 1, curve.anchors)
    curve.values.copy_(curve((anchors_Q + steps).clamp(0, QUALITY_STEPS - 1))[:, :, 0, 0])


def freeze(options: argparse.Namespace) -> None:
    from compressor.families import freeze as freeze_codec

    folder = Path(options.folder)
    training = json.loads((folder / "history.json").read_text())
    network = NETWORKS[training["family"]](**training["network"])
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True, map_location="cpu"))
    bring_ahead(network.eval().analysis.gain, options.analysis_ahead)
    bring_ahead(network.synthesis.gain, options.synthesis_ahead)
    pictures_NCHW, _ = split(load(options.pictures))
    pictures_NHWC = np.ascontiguousarray(np.moveaxis(pictures_NCHW[:CALIBRATION], 1, -1))
    card = {name: training[name] for name in ("pictures_seen", "device", "validation")} | {"terms": "for research use"}
    settings = training["network"]
    data = freeze_codec(training["family"], network, pictures_NHWC, settings, options.title, card, options.weights)
    Path(options.out).write_bytes(data)
    print(f"{options.out}: {len(data):,} bytes")


def predict(options: argparse.Namespace) -> None:
    from compressor import predicting
    from compressor.artifact import dump, parse
    from compressor.codec import artifact_bytes
    from compressor.families import family
    from compressor.hyperprior_freezing import fit_predictor

    artifact = parse(artifact_bytes(options.codec))
    network = family(artifact.family).network(artifact)
    pictures_NCHW, _ = split(load(options.pictures))
    predictor = fit_predictor(network, np.ascontiguousarray(np.moveaxis(pictures_NCHW, 1, -1)))
    others = {name: value for name, value in artifact.tensors.items() if not name.startswith("predictor")}
    metadata = {name: value for name, value in artifact.metadata.items() if name != "format"}
    data = dump(metadata, others | predicting.arrays(predictor))
    Path(options.out).write_bytes(data)
    print(f"{options.out}: {len(data):,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("pictures")
    training.add_argument("--eval")
    training.add_argument("--out", required=True)
    training.add_argument("--start", metavar="FILE", help="go on from a training's weights.pt or a codec")
    training.add_argument("--minutes", type=float, default=20)
    training.add_argument("--batch", type=int, default=16)
    training.add_argument("--family", choices=NETWORKS, default="v5")
    training.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    training.add_argument("--learning-rate", type=float, default=3e-3)
    training.add_argument("--fall", choices=FALLS, default="cosine", help="of the learning rate")
    training.add_argument("--validate-every", type=int, default=1000)
    training.add_argument(
        "--network", type=json.loads, help="options of the network as JSON; left out, those of a codec given as --start"
    )
    training.add_argument("--compile", action="store_true")
    training.set_defaults(run=train)
    growing = commands.add_parser("grow")
    growing.add_argument("codec")
    growing.add_argument("pictures")
    growing.add_argument("--out", required=True)
    growing.add_argument("--network", type=json.loads, required=True, help="options of the larger network as JSON")
    growing.add_argument("--minutes", type=float, default=5)
    growing.add_argument("--batch", type=int, default=32)
    growing.set_defaults(run=enlarge)
    freezing = commands.add_parser("freeze")
    freezing.add_argument("folder")
    freezing.add_argument("pictures")
    freezing.add_argument("--out", required=True)
    freezing.add_argument("--title", default="faces")
    freezing.add_argument("--weights", choices=("int8", "fp16"), default="int8")
    for part in ("analysis", "synthesis"):
        freezing.add_argument(
            f"--{part}-ahead", type=float, default=0.0, metavar="STEPS", help="quality steps that it is brought ahead"
        )
    freezing.set_defaults(run=freeze)
    predicting = commands.add_parser("predict")
    predicting.add_argument("codec")
    predicting.add_argument("pictures")
    predicting.add_argument("--out", required=True)
    predicting.set_defaults(run=predict)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

"""The families of learned codecs: what each is, how its network is made, frozen and used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from compressor.artifact import Artifact, dump
from compressor.autoencoder_codec import AutoencoderCodec, freeze_autoencoder
from compressor.codec import Codec
from compressor.errors import CodecError
from compressor.hyperprior_codec import HyperpriorCodec, freeze_hyperprior
from compressor.networks import autoencoders
from compressor.networks.hyperprior import Hyperprior


@dataclass(frozen=True)
class Family:
    """One design of codec.

    Parameters
    ----------
    name, description
        As the command line shows them.
    build
        Network from its options.
    freeze
        Arrays of an artifact from a trained network and calibration pictures, uint8 (N, H, W, 3).
    wrap
        Codec from an artifact and an untrained network of the same options.
    """

    name: str
    description: str
    build: Callable[..., Any]
    freeze: Callable[[Any, np.ndarray], dict[str, np.ndarray]]
    wrap: Callable[[Artifact, Any], Codec]

    def codec(self, artifact: Artifact) -> Codec:
        """The codec frozen in ``artifact``. CodecError where it does not fit this family."""
        try:
            network = self.build(**artifact.metadata.get("network", {}))
            return self.wrap(artifact, network)
        except (KeyError, TypeError, ValueError) as error:
            raise CodecError(f"codec {artifact.id} is not a sound {self.name} codec: {error}") from error


def _autoencoder(name: str, description: str, build: Callable[..., Any]) -> Family:
    return Family(name, description, build, freeze_autoencoder, AutoencoderCodec)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _autoencoder("v1", "two layers, 0.1 MB of weights", autoencoders.v1),
        _autoencoder("v2", "three layers, 0.4 MB of weights", autoencoders.v2),
        _autoencoder("v3", "five layers, 4 MB of weights", autoencoders.v3),
        _autoencoder("v4", "v3 with U-Net style skips", autoencoders.v4),
        Family("v5", "hyperprior, all rates in one", Hyperprior, freeze_hyperprior, HyperpriorCodec),
    )
}


def family(name: str) -> Family:
    """The family of that name. CodecError, naming the others, where there is none."""
    if name not in FAMILIES:
        raise CodecError(f"there is no family {name!r}: choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def freeze(
    name: str,
    network: nn.Module,
    pictures_NHWC: np.ndarray,
    options: dict[str, Any] | None = None,
    title: str | None = None,
    card: dict[str, Any] | None = None,
) -> bytes:
    """Artifact bytes of a trained network.

    Parameters
    ----------
    name
        Family.
    pictures_NHWC
        uint8 calibration pictures: of the training data, never of what is reported on.
    options
        What the network was built with.
    title
        Name for people; the family's if not given.
    card
        Model card: JSON about data, terms, configuration, history, measured figures.
    """
    metadata = {"family": name, "name": title or name, "network": options or {}, "card": card or {}}
    return dump(metadata, family(name).freeze(network, pictures_NHWC))

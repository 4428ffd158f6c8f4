"""The families of learned codecs: what each is, how its network is made, frozen and used."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from compressor.artifact import Artifact, dump, parse
from compressor.autoencoder_codec import AutoencoderCodec, freeze_autoencoder
from compressor.codec import Codec
from compressor.errors import CodecError
from compressor.hyperprior_codec import HyperpriorCodec
from compressor.hyperprior_freezing import freeze_hyperprior
from compressor.networks import autoencoders
from compressor.networks.hyperprior import Hyperprior
from compressor.networks.transformer import transformer_hyperprior
from compressor.refitting import SHORTCUT, refit_shortcut
from compressor.tensors import load_state
from compressor.weight_quantization import quantize_weights

ARRAYS_OF_A_BLOCK = 8  # at least


@dataclass(frozen=True)
class Family:
    """One design of codec.

    Parameters
    ----------
    name
        As artifacts and the command line have it.
    build
        Network from its options.
    freeze
        Arrays of an artifact from a trained network and calibration pictures, uint8 (N, H, W, 3).
    wrap
        Codec from an artifact and an untrained network of the same options.
    """

    name: str
    build: Callable[..., Any]
    freeze: Callable[[Any, np.ndarray], dict[str, np.ndarray]]
    wrap: Callable[[Artifact, Any], Codec]

    def network(self, artifact: Artifact) -> Any:
        """The network frozen in ``artifact``, weights as stored. CodecError where it does not fit this family."""
        return self._filled(artifact, lambda network: load_state(network, artifact))

    def codec(self, artifact: Artifact) -> Codec:
        """The codec frozen in ``artifact``. CodecError where it does not fit this family."""
        return self._filled(artifact, lambda network: self.wrap(artifact, network))

    def _filled(self, artifact: Artifact, fill: Callable[[Any], Any]) -> Any:
        try:
            options = artifact.metadata.get("network", {})
            _check_options(artifact, options)
            with torch.device("meta"):  # takes neither time nor memory, whatever the options say
                shapes = {name: value.shape for name, value in self.build(**options).state_dict().items()}
            if shapes != {name: value.shape for name, value in artifact.state().items()}:
                raise ValueError("its arrays are not those of a network of its options")
            return fill(self.build(**options))
        except CodecError:
            raise
        except Exception as error:  # networks raise anything on options that no writer stores
            raise CodecError(
                f"codec {artifact.id} is not a sound {self.name} codec, or needs a newer latentpack: "
                f"{type(error).__name__}: {error}"
            ) from error


def _check_options(artifact: Artifact, options: Any) -> None:
    """CodecError for more blocks or layers than there are arrays for, or more channels than the longest of them.

    To build such a network before its arrays are found not to fit could take hours.
    """
    longest = max([0, *(side for array in artifact.tensors.values() if array.size for side in array.shape)])
    blocks = 0.0
    for name, value in _numbers(options):
        most = longest
        if name.endswith("length"):
            most = len(artifact.tensors)
        elif name.endswith("blocks"):
            value = blocks = blocks + max(0, value)  # all together, whatever their places
            most = len(artifact.tensors) // ARRAYS_OF_A_BLOCK
        if value > most:
            raise CodecError(f"codec {artifact.id} is damaged: its {name} is {value}, its arrays allow {most}")


def _numbers(options: Any, name: str = "options") -> Iterator[tuple[str, float]]:
    """All numbers among nested options, and the lengths of lists, by name."""
    if isinstance(options, dict | list):
        yield f"{name} length", len(options)
        for key, value in options.items() if isinstance(options, dict) else ((name, one) for one in options):
            yield from _numbers(value, str(key))
    elif isinstance(options, int | float):
        yield name, options


def _autoencoder(name: str, build: Callable[..., Any]) -> Family:
    return Family(name, build, freeze_autoencoder, AutoencoderCodec)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _autoencoder("v1", autoencoders.v1),
        _autoencoder("v2", autoencoders.v2),
        _autoencoder("v3", autoencoders.v3),
        _autoencoder("v4", autoencoders.v4),
        _autoencoder("autoencoder", autoencoders.Autoencoder),  # any layers, given as options: for ablations
        Family("v5", Hyperprior, freeze_hyperprior, HyperpriorCodec),
        Family("v6", transformer_hyperprior, freeze_hyperprior, HyperpriorCodec),
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
    weights: str | None = None,
    method: str = "calibrated",
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
    weights, method
        Type that weights are stored in and how they get there, see :mod:`compressor.weight_quantization`; None: the
        family's own floating-point type. With calibration a shortcut is fitted to the rounding of all else, see
        :mod:`compressor.refitting`. Steps, tables and predictors are made with the weights that are stored.
    """
    metadata = {"family": name, "name": title or name, "network": options or {}, "card": card or {}}
    if weights is None:
        return dump(metadata, family(name).freeze(network, pictures_NHWC))
    network = copy.deepcopy(network).cpu()
    refits = method == "calibrated" and isinstance(network, Hyperprior) and network.synthesis.shortcut is not None
    stored = quantize_weights(network, pictures_NHWC, weights, method, {SHORTCUT} if refits else ())
    if refits and stored.replaced:
        refit_shortcut(cast(Hyperprior, network), torch.from_numpy(np.moveaxis(pictures_NHWC, -1, 1)))
    arrays = {
        key: value.astype(np.float16) if key.startswith("network.") and value.dtype.kind == "f" else value
        for key, value in family(name).freeze(network, pictures_NHWC).items()
        if key not in stored.replaced
    }
    if stored.replaced:
        metadata["weights"] = stored.metadata
    return dump(metadata, arrays | stored.arrays)


def refreeze(data: bytes, pictures_NHWC: np.ndarray, weights: str, method: str = "calibrated") -> bytes:
    """An artifact's codec with its weights stored as ``weights``: another codec, with tables and an id of its own."""
    artifact = parse(data)
    network = family(artifact.family).network(artifact)
    card = {**artifact.metadata.get("card", {}), "weights": {"kind": weights, "method": method, "of": artifact.id}}
    return freeze(artifact.family, network, pictures_NHWC, artifact.options, artifact.name, card, weights, method)

"""A training in a file, from which a later process goes on as if nothing had been."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import CheckpointError
from compressor.files import replacing


class Checkpoint:
    """All that a training changes as it goes. Loaded without pickle's code.

    Parameters
    ----------
    path
        Of the file, which is replaced whole at each :meth:`save`.
    settings
        JSON of how it is trained: a file of other settings, or of another network, is not gone on from.
    network, average, optimizer, generator
        Whose state is saved, and put back.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        network: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        shapes = {name: list(p.shape) for name, p in network.named_parameters()}
        self._fingerprint = json.dumps([settings, shapes], sort_keys=True)
        self._path, self._generator = path, generator
        self._parts: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer}

    def save(self, state: dict[str, Any], best: dict[str, Tensor]) -> None:
        """Keep these two beside the rest: where the training stands, and its best weights."""
        saved = {
            "fingerprint": self._fingerprint,
            "state": state,
            "best": best,
            "generator": self._generator.get_state(),
            "global_generator": torch.get_rng_state(),
            **{name: part.state_dict() for name, part in self._parts.items()},
        }
        with replacing(self._path) as partial, open(partial, "wb") as file:  # by its path torch takes no hidden one
            torch.save(saved, file)

    def resume(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Put everything back, and return what :meth:`save` was given; None where there is no file.

        CheckpointError where it belongs to another network or configuration.
        """
        if not self._path.exists():
            return None
        # Networks and optimizers copy what belongs on the device. The counts of steps that PyTorch's optimizers keep do
        # only where these are fused: else each step would wait for the device twice for every parameter.
        saved = torch.load(self._path, map_location="cpu", weights_only=True)
        if saved["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"the checkpoint {self._path} belongs to another network or configuration, or an earlier version's; "
                "remove it to train anew, or restore the old settings"
            )
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        try:
            self._generator.set_state(saved["generator"].cpu())
        except RuntimeError:  # another kind of device draws otherwise
            self._generator.manual_seed(self._generator.initial_seed() + saved["state"]["step"])
        torch.set_rng_state(saved["global_generator"].cpu())
        return saved["state"], saved["best"]

"""What every objective answers to."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rsbackbones.models.backbone import Backbone
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.objectives.decoder import Decoder


class Objective(nn.Module):
    """A backbone with all that is trained around it: decoder, projections.

    Modules that are to be sharded, checkpointed or compiled one by one stand in lists called ``blocks``.
    Parameters have at least one dimension (``fully_shard`` takes no scalars). There is no randomness in
    ``forward`` but ``batch.draws``. Parts of the objective that a batch has no data for are left out.
    ``options`` are those that it was built from, an :class:`ObjectiveConfig`.
    """

    backbone: Backbone
    options: Any

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar to be minimised, and its parts, detached scalars, by name.

        Averaged over processes, the loss is that of the global batch; so are the gradients.
        """
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that activation checkpointing, compilation and FSDP treat one by one."""
        decoders = [m for m in self.modules() if isinstance(m, Decoder)]
        return [*self.backbone.units(), *(block for decoder in decoders for block in decoder.blocks)]

    def encoder(self) -> Backbone:
        """Return the backbone that users get: without what only pretraining needs."""
        return self.backbone

    def advice(self) -> str:
        """Return what users should know of how the encoder was trained; empty where it is as they use it."""
        return ""

    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return for pictures, by modality: (image, what the encoder saw, prediction), each [B, C, H, W].

        Where nothing was seen the middle one is NaN. Empty for an objective without reconstruction.
        """
        return {}


class ObjectiveConfig(Protocol):
    """The options of an objective: a frozen dataclass, with a field ``method`` of one value that names it."""

    @property
    def seasons(self) -> int | None:
        """How many dates of a place make a sample: ``None``: one, and every date is a sample of its own.

        1: the first date of every place that a sensor has. More: a series of so many, [T, C, H, W] for every
        sensor.
        """
        ...

    @property
    def overrides(self) -> dict[str, Any]:
        """The fields of the backbone's configuration that these options decide."""
        ...

    def draw(
        self, generator: torch.Generator, modalities: tuple[str, ...], num_patches: int
    ) -> dict[str, Tensor]:
        """Return the random numbers of a sample, by name, whose images have ``num_patches`` patches."""
        ...

    def build(self, backbone: Backbone) -> Objective:
        """Build the objective around ``backbone``; what of it these options do not train is frozen.

        Raises:
            ValueError: they do not go together.
        """
        ...

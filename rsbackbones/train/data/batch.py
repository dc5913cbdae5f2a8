"""What an objective is given."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised samples of one source. All tensors have B in front.

    Attributes:
        images: by modality [B, C, H, W] float32 in [0, 1], or series [B, T, C, H, W], all sensors on one
            grid; a source may lack a sensor of the model.
        bands: the names of the channels of ``images``, by modality: all of the model's or some.
        draws: the random numbers of every sample, made by the objective's ``draw`` from the sample's own
            generator, so that they are the same for any number of processes.
        valid: by modality [B, T], False where an image of a series is missing (it is then zeros); a
            modality that is not named has all.
        names: what a person finds each sample by.
    """

    images: dict[str, Tensor]
    bands: dict[str, tuple[str, ...]]
    draws: dict[str, Tensor]
    valid: dict[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        return replace(
            self,
            images={m: x.to(device, non_blocking=True) for m, x in self.images.items()},
            draws={name: x.to(device, non_blocking=True) for name, x in self.draws.items()},
            valid={m: x.to(device, non_blocking=True) for m, x in self.valid.items()},
        )

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which copies to a GPU run beside computation."""
        return replace(
            self,
            images={m: x.pin_memory() for m, x in self.images.items()},
            draws={name: x.pin_memory() for name, x in self.draws.items()},
            valid={m: x.pin_memory() for m, x in self.valid.items()},
        )

    def content(self) -> dict[str, Any]:
        """Return what is saved of a batch that a person should look at."""
        bands = {m: list(names) for m, names in self.bands.items()}
        return {"images": self.images, "draws": self.draws, "valid": self.valid, "names": list(self.names),
                "bands": bands}  # fmt: skip

    def __len__(self) -> int:
        return next(iter(self.images.values())).shape[0]

"""What a run's module is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalized samples of one source. All tensors have B in front.

    Attributes:
        images: by modality [B, C, H, W] float32, or series [B, T, C, H, W], all sensors on one grid; a
            source may lack a sensor of the model. Empty where there are ``views``.
        bands: the names of the channels, by modality: all of the model's or some.
        noise: the random numbers of every sample, made by the objective's ``sample_noise`` from the sample's
            own generator, so that they are the same for any number of processes.
        views: ``{view: images}``: independently augmented images of the same samples, for objectives whose
            options name ``views``.
        valid: by modality [B, T], False where an image of a series is missing (it is then zeros); a modality
            that is not named has all.
        task: what the samples are for; "" where a run has one task.
        names: what a person finds each sample by.
        skipped: (name, reason) of samples that could not be used; others are in their places.
    """

    images: dict[str, Tensor]
    bands: dict[str, tuple[str, ...]]
    noise: dict[str, Tensor]
    views: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    task: str = ""
    names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        return self._mapped(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which copies to a GPU run beside computation."""
        return self._mapped(lambda x: x.pin_memory())

    def content(self) -> dict[str, Any]:
        """Return what is saved of a batch that a person should look at."""
        bands = {m: list(names) for m, names in self.bands.items()}
        return {"images": self.images, "views": self.views, "noise": self.noise, "valid": self.valid,
                "task": self.task, "names": list(self.names), "bands": bands}  # fmt: skip

    def __len__(self) -> int:
        images = self.images or next(iter(self.views.values()))
        return next(iter(images.values())).shape[0]

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> Self:
        def each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: move(x) for name, x in tensors.items()}

        return replace(
            self,
            images=each(self.images),
            noise=each(self.noise),
            views={view: each(images) for view, images in self.views.items()},
            valid=each(self.valid),
        )

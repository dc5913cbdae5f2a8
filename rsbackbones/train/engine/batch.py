"""The batch that a training module receives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalized samples of one source. All tensors have B in front.

    Attributes:
        images: by modality [B, C, H, W] float32, or series [B, T, C, H, W], all modalities on one grid. A
            source may lack a modality of the model. Empty if there are ``views``. Series shorter than the
            longest of the batch are padded with zeros, which ``valid`` masks.
        bands: by modality, the names of the channels: all bands of the model, or some.
        noise: the random numbers of every sample, from the objective's ``sample_noise`` with the sample's
            own generator. They do not depend on the number of processes.
        views: ``{view: images}``: independently augmented images of the same samples, if the objective's
            options name ``views``.
        dates: by modality [B, T], days since 1970-01-01 of the images of a series, where the source knows
            them and images of several samples are not mixed. The date of a missing image is arbitrary.
        valid: by modality, booleans: [B, T], False for missing images of a series (which are zeros); or
            pixel masks, [B, H, W] or [B, T, H, W]. Modalities that are not in the mapping are complete.
        task: the task of the samples; "" if the run has one task.
        names: of every sample, a name that identifies it to a person.
        skipped: (name, reason) of samples that could not be used and were replaced.
        prepared: of every sample, what :meth:`TrainModule.before_step` computed.

    Raises:
        ValueError: ``dates`` or ``valid`` do not fit the images.
    """

    images: dict[str, Tensor]
    bands: dict[str, tuple[str, ...]]
    noise: dict[str, Tensor]
    views: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    dates: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    task: str = ""
    names: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = field(default=())
    prepared: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for images in self.views.values() if self.views else [self.images]:
            _check_dates(images, self.dates)
            _check_masks(images, self.valid)

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        return self._mapped(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which copies to a GPU overlap with computation."""
        return self._mapped(lambda x: x.pin_memory())

    def content(self) -> dict[str, Any]:
        """Return the content that is saved if a batch needs inspection."""
        bands = {m: list(names) for m, names in self.bands.items()}
        return {"images": self.images, "views": self.views, "noise": self.noise,
                "dates": self.dates, "valid": self.valid,
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
            dates=each(self.dates),
            valid=each(self.valid),
            prepared=each(self.prepared),
        )


def _check_dates(images: Mapping[str, Tensor], dates: Mapping[str, Tensor]) -> None:
    for m, days in dates.items():
        shape = images[m].shape if m in images else ()
        whole = not days.is_floating_point() and days.dtype != torch.bool
        if len(shape) != 5 or days.shape != shape[:2] or not whole:
            raise ValueError(
                f"dates[{m!r}] must be whole days since 1970-01-01, [B, T], of a series [B, T, C, H, W], got "
                f"{days.dtype} {list(days.shape)} for {_shapes(images)}"
            )


def _check_masks(images: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> None:
    for m, mask in valid.items():
        shape = images[m].shape if m in images else ()
        forms = {"[B, H, W]": (*shape[:1], *shape[-2:])}
        if len(shape) == 5:
            forms |= {"[B, T]": shape[:2], "[B, T, H, W]": (*shape[:2], *shape[-2:])}
        if not shape or mask.dtype != torch.bool or tuple(mask.shape) not in map(tuple, forms.values()):
            raise ValueError(
                f"valid[{m!r}] must be booleans {' or '.join(forms)} of a modality of the batch (a series "
                f"has a T), got {mask.dtype} {list(mask.shape)} for {_shapes(images)}"
            )


def _shapes(images: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{m} {list(x.shape)}" for m, x in images.items()) or "no images"

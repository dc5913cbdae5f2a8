"""Change detection: a dense head on the difference of the features of two dates.

Source: SeaMo, section 4.2.4 (OSCD): one backbone encodes both dates, and UPerNet takes the difference of
their features; the loss is the negative log-likelihood. The paper leaves open whether the difference is
signed. Here it is (the later date minus the earlier), as in the published code of SpectralGPT, which the
paper follows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rsbackbones.heads.dense import DenseModel
from rsbackbones.models.backbone import Images
from rsbackbones.models.series_arguments import Dates, Masks, masks_by_modality
from rsbackbones.models.validity import Validity


class ChangeModel(DenseModel):
    """Predicts change between two dates, per pixel. Created by ``dense_model(task="change")``."""

    def forward(
        self,
        x: Images,
        later: Images | None = None,
        *,
        dates: Dates | None = None,
        valid: Masks | None = None,
    ) -> Tensor:
        """Return log-probabilities [B, K, H * scale, W * scale], for a negative log-likelihood.

        Args:
            x: normalized images [B, 2, C, H, W] by modality, the earlier date first; or the images of the
                earlier date, [B, C, H, W].
            later: in the second case, the images of the later date.
            dates: not supported: their order is that of the images.
            valid: by modality, pixel masks of both dates, [B, 2, H, W]. The result is NaN in cells of the
                finest map of which less than half the pixels are valid at both dates. Both images must be
                there.

        Raises:
            ValueError: not two dates, two series, ``dates``, masks of images, or images that the backbone
                cannot serve.
        """
        return self._hidden(*self._log_probabilities(x, later, dates, valid))

    def _logits(self, x: Images, dates: Dates | None, valid: Masks | None) -> tuple[Tensor, Validity]:
        return self._log_probabilities(x, None, dates, valid)

    def _log_probabilities(
        self, x: Images, later: Images | None, dates: Dates | None, valid: Masks | None
    ) -> tuple[Tensor, Validity]:
        modalities = tuple(x) if isinstance(x, Mapping) else getattr(self.backbone, "modalities", ("x",))
        masks = masks_by_modality(valid, modalities)
        if dates is not None or any(mask.ndim != 4 or mask.shape[1] != 2 for mask in masks.values()):
            raise ValueError(
                "change detection takes two complete images in the order of their dates: leave out dates and "
                "valid, and samples with a missing image; pixel masks are [B, 2, H, W]"
            )
        both = _both_dates(x, later)
        # Each [2B, D, h, w], all earlier dates first.
        features, counted = self._encoded(
            both, None, {m: mask.transpose(0, 1).flatten(0, 1) for m, mask in masks.items()}
        )
        differences = [second - first for first, second in (f.chunk(2) for f in features)]
        image = next(iter(both.values())) if isinstance(both, Mapping) else both
        logits = self._to_pixels(self.head(differences), (image.shape[-2], image.shape[-1]))
        if counted.pixels is not None:
            counted = Validity(pixels=torch.stack(counted.pixels.chunk(2)).all(dim=0))
        return logits.log_softmax(dim=1), counted


def _both_dates(x: Images, later: Images | None) -> Images:
    """Convert [B, 2, C, H, W], or two of [B, C, H, W], to [2B, C, H, W]: earlier dates, then later ones."""
    if isinstance(x, Tensor):
        if later is not None and not isinstance(later, Tensor):
            raise ValueError(
                "the earlier date is a bare tensor and the later one is not; pass both in the same form"
            )
        return _stacked("images", x, later)
    if later is not None and (isinstance(later, Tensor) or later.keys() != x.keys()):
        given = "a bare tensor" if isinstance(later, Tensor) else ", ".join(later)
        raise ValueError(f"both dates must have the same modalities, got {', '.join(x)} and {given}")
    return {m: _stacked(m, image, None if later is None else later[m]) for m, image in x.items()}


def _stacked(modality: str, x: Tensor, later: Tensor | None) -> Tensor:
    if later is not None:
        if x.ndim == 5 and later.ndim == 5:
            raise ValueError(
                f"{modality}: change between two series, {list(x.shape)} and {list(later.shape)}, is not "
                "supported: pass one image for each date, [B, C, H, W]; or classify the pixels of one series "
                'over both periods, dense_model(..., task="pixels")'
            )
        if x.ndim != 4 or x.shape != later.shape:
            raise ValueError(
                f"{modality}: two dates must have one shape [B, C, H, W], got {list(x.shape)} and "
                f"{list(later.shape)}"
            )
        return torch.cat((x, later))
    if x.ndim != 5 or x.shape[1] != 2:
        raise ValueError(
            f"{modality}: two dates must be [B, 2, C, H, W], the earlier first, or model(earlier, later), "
            f"got {list(x.shape)}"
        )
    return x.transpose(0, 1).flatten(0, 1)

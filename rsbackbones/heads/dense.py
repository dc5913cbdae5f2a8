"""A backbone with a dense head: logits per pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead, SeriesHead
from rsbackbones.models.backbone import Backbone, Images
from rsbackbones.models.input_validation import validate_inputs
from rsbackbones.models.series_arguments import Dates, Masks, dates_by_modality, masks_by_modality
from rsbackbones.models.unused import freeze_unused
from rsbackbones.models.validity import Validity


class DenseModel(nn.Module):
    """Predicts logits per pixel. Created by :func:`rsbackbones.heads.dense_model`.

    Attributes:
        backbone: outputs the maps.
        head: converts them to logits.
        num_classes: K.
        scale: pixels of the result per image pixel, along each side.
        stream, indices: the stream and stages of a :class:`Backbone`; ``None`` for other modules.
        frozen: the backbone has no gradients and stays in ``eval()`` mode.
        options: the arguments of ``dense_model`` that made it, as JSON values, for ``save_model``.
        build_head: returns another such head, newly initialized.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: DenseHead,
        *,
        num_classes: int,
        stream: str | None,
        indices: tuple[int, ...] | None,
        norm: bool,
        scale: int,
        frozen: bool,
        options: Mapping[str, Any],
        build_head: Callable[[], DenseHead],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.stream = stream
        self.indices = indices
        self.norm = norm
        self.scale = scale
        self.frozen = frozen
        self.options = dict(options)
        self.build_head = build_head
        if frozen:
            backbone.requires_grad_(False)
        elif isinstance(backbone, Backbone):
            freeze_unused(backbone, self._maps)
        self.train(backbone.training)

    @property
    def consumes(self) -> Literal["image", "series"]:
        """Whether the model takes series: its backbone or its head does."""
        return "series" if self.head.over_time else getattr(self.backbone, "consumes", "image")

    def train(self, mode: bool = True) -> "DenseModel":
        """Set the mode. A frozen backbone stays in ``eval()`` mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def maps(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> list[Tensor]:
        """Return the maps that the head receives, [B, D_i, h_i, w_i], without NaN. See :meth:`forward`.

        A :class:`~rsbackbones.heads.head.SeriesHead` receives those of every date, [B, t, D_i, h_i, w_i].
        """
        return self._encoded(x, dates, valid)[0]

    def forward(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> Tensor:
        """Return logits [B, K, H * scale, W * scale].

        Args:
            x: normalized images [B, C, H, W] by modality; for a backbone or a head that consumes series also
                [B, T, C, H, W].
            dates, valid: as for :meth:`Backbone.forward_features`: dates and missing images of a series, and
                pixel masks. The logits of a series of which all images are missing are NaN, and so are those
                in cells of the finest map of which less than half the pixels are valid. (:meth:`logits` has
                finite ones there.)

        Raises:
            ValueError: the backbone does not accept the images, such as a series if it consumes images.
        """
        logits, counted = self._logits(x, dates, valid)
        return self._hidden(logits, counted)

    def logits(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> Tensor:
        """As :meth:`forward`, for a loss: logits of cells that do not count are not set to NaN."""
        return self._logits(x, dates, valid)[0]

    def _logits(self, x: Images, dates: Dates | None, valid: Masks | None) -> tuple[Tensor, Validity]:
        maps, counted = self._encoded(x, dates, valid)
        if not isinstance(self.head, SeriesHead):
            return self.decode(maps, x), counted
        days = next(iter(dates_by_modality(dates, _by_modality(x)).values()), None)
        return self._to_pixels(self._over_time(maps, counted.by_date, days), _size(x)), counted

    def decode(self, maps: Sequence[Tensor], x: Images) -> Tensor:
        """Return the logits of images from their :meth:`maps`, as :meth:`logits`."""
        return self._to_pixels(self.head(maps), _size(x))

    def _over_time(self, maps: Sequence[Tensor], valid: Tensor | None, days: Tensor | None) -> Tensor:
        """Apply the head to maps [B, t, D_i, h_i, w_i], whose dates after the first T are not there."""
        assert valid is not None  # every encoding for such a head states its dates
        surplus = maps[0].shape[1] - valid.shape[1]
        days = None if days is None else F.pad(days, (0, surplus))
        logits: Tensor = self.head(maps, F.pad(valid, (0, surplus)), days)
        return logits

    def _hidden(self, logits: Tensor, counted: Validity) -> Tensor:
        """Set logits [B, K, H * scale, W * scale] of cells that do not count to NaN."""
        if counted.pixels is None:
            if counted.present is None:
                return logits
            return logits.masked_fill(~counted.present[:, None, None, None], float("nan"))
        assert isinstance(self.backbone, Backbone)
        stages = self.backbone.stages(self.stream or self.backbone.default_stream)
        finest = min(stages[i].stride for i in self.indices or (-1,))
        cells = counted.cells(finest)
        assert cells is not None
        side = finest * self.scale
        keep = cells.repeat_interleave(side, dim=-2).repeat_interleave(side, dim=-1)
        keep = keep[:, : logits.shape[-2], : logits.shape[-1]]
        return logits.masked_fill(~keep[:, None], float("nan"))

    def _encoded(self, x: Images, dates: Dates | None, valid: Masks | None) -> tuple[list[Tensor], Validity]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._encode(x, dates=dates, valid=valid)

    def _maps(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> list[Tensor]:
        return self._encode(x, dates=dates, valid=valid)[0]

    def _encode(
        self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None
    ) -> tuple[list[Tensor], Validity]:
        """Return the maps that the head receives, and what counts in them."""
        over_time = self.head.over_time
        of_series = isinstance(self.backbone, Backbone) and self.backbone.consumes == "series"
        if over_time and not of_series:
            return self._encode_dates(x, dates, valid)
        if not of_series:
            _check_single_images(self.backbone, x)
        if not isinstance(self.backbone, Backbone):
            if dates is not None or not _is_empty(valid):
                raise ValueError(
                    f"dates and valid are for models of create_model; {type(self.backbone).__name__} takes "
                    "single images: leave them out, or put the head on such a model"
                )
            maps: list[Tensor] = list(self.backbone(x))
            return maps, Validity()
        _, staged, counted = self.backbone.encode_stages(
            x, self.indices, stream=self.stream, norm=self.norm, dates=dates, valid=valid, by_date=over_time
        )
        if over_time and counted.by_date is None:
            counted = replace(counted, by_date=_all_dates(x))
        return [x for _, x in staged], counted

    def _encode_dates(
        self, x: Images, dates: Dates | None, valid: Masks | None
    ) -> tuple[list[Tensor], Validity]:
        """Return the maps of every date, [B, T, D_i, h_i, w_i], zeros where an image is missing.

        A backbone of single images encodes those that are there, and no other: missing ones take no time, and
        are no part of BatchNorm's statistics.
        """
        if isinstance(self.backbone, Backbone):
            given, masks, _ = validate_inputs(self.backbone, x, dates, valid)
            stream = self.backbone.choose_stream(self.stream, given)
            given = {m: given[m] for m in self.backbone.stream_inputs[stream]}
            masks = {m: mask for m, mask in masks.items() if m in given}
        else:
            given = dict(_by_modality(x))
            masks = masks_by_modality(valid, tuple(given), next(iter(given.values())).device)
        there = _all_dates(given)
        for mask in masks.values():
            of_images = mask if mask.shape == there.shape else mask.flatten(-2).any(dim=-1)
            there = there & of_images.view_as(there)
        images = {m: (image if image.ndim == 5 else image[:, None])[there] for m, image in given.items()}
        pixels = {
            m: mask.view(*there.shape, *mask.shape[-2:])[there]
            for m, mask in masks.items()
            if mask.shape != there.shape
        }
        counted = Validity()
        if isinstance(self.backbone, Backbone):
            _, staged, counted = self.backbone.encode_stages(
                images, self.indices, stream=self.stream, norm=self.norm, valid=pixels
            )
            flat = [maps for _, maps in staged]
        else:
            if pixels:
                raise ValueError(
                    f"masks of pixels are for models of create_model; {type(self.backbone).__name__} takes "
                    "masks of whole images, [B, T]"
                )
            flat = list(self.backbone(images if isinstance(x, Mapping) else images["x"]))
        seen = None if counted.pixels is None else _unfold(counted.pixels, there).any(dim=1)
        present = there.any(dim=1) if masks else None
        return [_unfold(maps, there) for maps in flat], Validity(present=present, by_date=there, pixels=seen)

    def _to_pixels(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize [B, K, h, w] to [B, K, H * scale, W * scale], and crop the padding of the backbone."""
        pixels = self.head.reduction * self.scale
        full = [round(side * pixels) for side in logits.shape[-2:]]
        if full != list(logits.shape[-2:]):
            logits = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
        return logits[..., : size[0] * self.scale, : size[1] * self.scale]


def _by_modality(x: Images) -> Mapping[str, Tensor]:
    return x if isinstance(x, Mapping) else {"x": x}


def _all_dates(x: Images) -> Tensor:
    """Return a mask [B, T] of all dates of a series, [B, 1] of single images."""
    image = next(iter(x.values())) if isinstance(x, Mapping) else x
    return image.new_ones(image.shape[:2] if image.ndim == 5 else (len(image), 1), dtype=torch.bool)


def _unfold(x: Tensor, there: Tensor) -> Tensor:
    """Put the images that are there, [M, ...], to their dates, [B, T, ...], and zeros elsewhere."""
    full = x.new_zeros(*there.shape, *x.shape[1:])
    full[there] = x
    return full


def _is_empty(valid: Masks | None) -> bool:
    return valid is None or (isinstance(valid, Mapping) and not valid)


def _check_single_images(backbone: nn.Module, x: Images) -> None:
    images = x.values() if isinstance(x, Mapping) else [x]
    if any(isinstance(image, Tensor) and image.ndim == 5 for image in images):
        name = getattr(backbone, "architecture", type(backbone).__name__)
        raise ValueError(
            f"{name} encodes single images, and a dense head takes one map per sample: pass [B, C, H, W] "
            "(the dates of a series as x.flatten(0, 1)), choose head='temporal', or put the head on a model "
            'that consumes series (model.consumes == "series")'
        )


def _size(x: Images) -> tuple[int, int]:
    image = next(iter(x.values())) if isinstance(x, Mapping) else x
    return image.shape[-2], image.shape[-1]

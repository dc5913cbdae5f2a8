"""A backbone with a dense head: logits per pixel."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead
from rsbackbones.models.backbone import Backbone, Images
from rsbackbones.models.series_arguments import Dates, Masks
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

    def train(self, mode: bool = True) -> "DenseModel":
        """Set the mode. A frozen backbone stays in ``eval()`` mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def maps(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> list[Tensor]:
        """Return the maps that the head receives, [B, D_i, h_i, w_i], without NaN. See :meth:`forward`."""
        return self._encoded(x, dates, valid)[0]

    def forward(self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None) -> Tensor:
        """Return logits [B, K, H * scale, W * scale].

        Args:
            x: normalized images [B, C, H, W] by modality; for a backbone that
                consumes series also [B, T, C, H, W].
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
        return self.decode(maps, x), counted

    def decode(self, maps: Sequence[Tensor], x: Images) -> Tensor:
        """Return the logits of images from their :meth:`maps`, as :meth:`logits`."""
        return self._to_pixels(self.head(maps), _size(x))

    def _hidden(self, logits: Tensor, counted: Validity) -> Tensor:
        """Set logits [B, K, H * scale, W * scale] of cells that do not count to NaN."""
        if counted.present is None and counted.pixels is None:
            return logits
        assert isinstance(self.backbone, Backbone)
        stages = self.backbone.stages(self.stream or self.backbone.default_stream)
        finest = min(stages[i].stride for i in self.indices or (-1,))
        cells = counted.cells(finest)
        assert cells is not None
        keep = cells if counted.pixels is not None else cells[:, None, None]
        if counted.pixels is not None:
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
        if not (isinstance(self.backbone, Backbone) and self.backbone.consumes == "series"):
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
            x, self.indices, stream=self.stream, norm=self.norm, dates=dates, valid=valid
        )
        return [x for _, x in staged], counted

    def _to_pixels(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize [B, K, h, w] to [B, K, H * scale, W * scale], and crop the padding of the backbone."""
        pixels = self.head.reduction * self.scale
        full = [round(side * pixels) for side in logits.shape[-2:]]
        if full != list(logits.shape[-2:]):
            logits = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
        return logits[..., : size[0] * self.scale, : size[1] * self.scale]


def _is_empty(valid: Masks | None) -> bool:
    return valid is None or (isinstance(valid, Mapping) and not valid)


def _check_single_images(backbone: nn.Module, x: Images) -> None:
    images = x.values() if isinstance(x, Mapping) else [x]
    if any(isinstance(image, Tensor) and image.ndim == 5 for image in images):
        name = getattr(backbone, "architecture", type(backbone).__name__)
        raise ValueError(
            f"{name} encodes single images, and a dense head takes one map per sample: pass [B, C, H, W] "
            "(the dates of a series as x.flatten(0, 1)), or put the head on a model that consumes series "
            '(model.consumes == "series")'
        )


def _size(x: Images) -> tuple[int, int]:
    image = next(iter(x.values())) if isinstance(x, Mapping) else x
    return image.shape[-2], image.shape[-1]

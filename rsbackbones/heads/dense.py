"""A backbone with a head that gives every pixel its classes."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead
from rsbackbones.models.backbone import Backbone, Images
from rsbackbones.models.unused import freeze_unused


class DenseModel(nn.Module):
    """Images to logits of every pixel. Made by :func:`rsbackbones.heads.dense_model`.

    Attributes:
        backbone: what gives the maps.
        head: what turns them into logits.
        num_classes: K.
        scale: pixels of the result per pixel of the images, along each side.
        stream, indices: which stages of which stream of the backbone; ``None`` where it decides itself.
        frozen: whether the backbone stays as it is: no gradients, always in ``eval()`` mode.
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
        if frozen:
            backbone.requires_grad_(False)
        elif isinstance(backbone, Backbone):
            freeze_unused(backbone, self._maps)
        self.train(backbone.training)

    def train(self, mode: bool = True) -> "DenseModel":
        """Set the mode, of a frozen backbone never to training."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def maps(self, x: Images) -> list[Tensor]:
        """Return what the head sees, each [B, D_i, h_i, w_i]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._maps(x)

    def forward(self, x: Images) -> Tensor:
        """Return logits [B, K, H * scale, W * scale].

        Args:
            x: normalized images [B, C, H, W] by modality (``rsbackbones.eval.transform``), as the backbone
                takes them.

        Raises:
            ValueError: images that the backbone cannot serve.
        """
        return self._to_pixels(self.head(self.maps(x)), _size(x))

    def _maps(self, x: Images) -> list[Tensor]:
        if not isinstance(self.backbone, Backbone):
            maps: list[Tensor] = list(self.backbone(x))
            return maps
        return self.backbone.forward_intermediates(x, self.indices, stream=self.stream, norm=self.norm)

    def _to_pixels(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, K, h, w] to [B, K, H * scale, W * scale], without what the backbone padded."""
        pixels = self.head.reduction * self.scale
        full = [round(side * pixels) for side in logits.shape[-2:]]
        if full != list(logits.shape[-2:]):
            logits = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
        return logits[..., : size[0] * self.scale, : size[1] * self.scale]


def _size(x: Images) -> tuple[int, int]:
    image = next(iter(x.values())) if isinstance(x, Mapping) else x
    return image.shape[-2], image.shape[-1]

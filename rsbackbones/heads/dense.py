"""A backbone with a head that gives every pixel its classes."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.backbone import Backbone, Images
from rsbackbones.heads.head import DenseHead


class DenseModel(nn.Module):
    """Images to logits of every pixel. Made by :func:`rsbackbones.heads.dense_model`.

    Attributes:
        backbone: what gives the maps.
        head: what turns them into logits.
        num_classes: K.
        scale: pixels of the result per pixel of the images, along each side.
        stream, indices: which blocks of which stream of the backbone; ``None`` where it decides itself.
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
            self._leave_out_unreached(backbone)
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
            x: normalised images [B, C, H, W] by modality (``rsbackbones.eval.inputs``), as the backbone takes
                them.

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

    def _leave_out_unreached(self, backbone: Backbone) -> None:
        """Take the gradients from what the maps do not depend on: other streams, the pooling, the last norm.

        Data parallelism refuses parameters that a loss never reaches.
        """
        example = next(backbone.parameters())
        side = 2 * backbone.patch_size
        images = {
            m: torch.zeros(1, len(bands), side, side, device=example.device, dtype=example.dtype)
            for m, bands in backbone.bands.items()
        }
        trained = [p for p in backbone.parameters() if p.requires_grad]
        was_training = backbone.training
        backbone.eval()  # what is normalised over batches must not learn from zeros
        with torch.inference_mode(False), torch.enable_grad():
            total = torch.stack([x.float().sum() for x in self._maps(images)]).sum()
            if trained and total.requires_grad:
                gradients = torch.autograd.grad(total, trained, allow_unused=True)
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
        backbone.train(was_training)


def _size(x: Images) -> tuple[int, int]:
    image = next(iter(x.values())) if isinstance(x, Mapping) else x
    return image.shape[-2], image.shape[-1]

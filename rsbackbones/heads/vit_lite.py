"""ViT-Lite: a small transformer over the cells of a map, then transposed convolutions to finer resolutions.

Source: AuxMAE and MixMAE, section 4.2. For segmentation they add ViT-Lite, with about 21M parameters, and a
segmentation head to the encoder; the labels of one task are four times as fine as its images. The papers
leave the rest open. Our choices:

- 6 blocks of width 512 with 16 heads. This is the width of MAE's decoder; a decoder from 768-wide tokens to
  13 bands x 16 x 16 pixels then has 21.0M parameters. As in MAE's decoder: fixed sine-cosine positions and
  Xavier-uniform linear layers.
- The segmentation head doubles the resolution twice by transposed convolutions, and once more for every
  doubling of super-resolution. It halves the channels each time, to no fewer than 32. A linear layer outputs
  the classes. The finest features thus have a quarter of the map's stride, divided by the scale; bilinear
  interpolation resizes the logits to pixels.
"""

from collections.abc import Sequence

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead
from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.block import Block
from rsbackbones.layers.sincos import sincos_embedding

# The width of an attention head, as in MAE's decoder.
_HEAD_WIDTH = 32
_FEWEST_CHANNELS = 32


class ViTLite(nn.Module):
    """A few transformer blocks over all cells of a map: [B, D, h, w] to [B, W, h, w].

    Raises:
        ValueError: ``width`` is not a multiple of 4 or of the number of heads (one per 32 channels), or
            ``depth`` is less than 1.
    """

    def __init__(self, channels: int, *, width: int = 512, depth: int = 6) -> None:
        super().__init__()
        if width % 4 or depth < 1:
            raise ValueError(
                f"ViT-Lite's width must be a multiple of 4 and its depth at least 1, got {width} and {depth}"
            )
        self.width = width
        self.embed = nn.Linear(channels, width)
        heads = max(1, width // _HEAD_WIDTH)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=4, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, h, w] to [B, W, h, w]."""
        h, w = features.shape[-2:]
        x = self.embed(features.flatten(2).transpose(1, 2))  # [B, N, W]
        positions = grid_positions(h, w, device=features.device)
        x = x + sincos_embedding(positions, self.width).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x).transpose(1, 2).unflatten(-1, (h, w))
        return out


class ViTLiteHead(DenseHead):
    """ViT-Lite and a segmentation head: [B, D, h, w] to logits [B, K, 4sh, 4sw] for a scale s.

    Raises:
        ValueError: ``scale`` is not a power of two, or as :class:`ViTLite`.
    """

    def __init__(
        self,
        channels: int,
        reduction: float,
        num_classes: int,
        *,
        scale: int = 1,
        width: int = 512,
        depth: int = 6,
    ) -> None:
        super().__init__()
        if scale & (scale - 1):
            raise ValueError(f"ViT-Lite doubles the resolution: scale must be a power of two, got {scale}")
        self.decoder = ViTLite(channels, width=width, depth=depth)
        layers: list[nn.Module] = []
        for _ in range(1 + scale.bit_length()):  # two, and log2(scale)
            narrower = max(width // 2, min(width, _FEWEST_CHANNELS))
            layers += [nn.ConvTranspose2d(width, narrower, 2, stride=2), LayerNorm2d(narrower), nn.GELU()]
            width = narrower
        self.upsample = nn.Sequential(*layers)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)
        self.reduction = reduction / (4 * scale)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map [B, D, h, w] to logits [B, K, 4sh, 4sw]."""
        (features,) = maps
        logits: Tensor = self.classify(self.upsample(self.decoder(features)))
        return logits

    def units(self) -> list[nn.Module]:
        """See :meth:`DenseHead.units`."""
        return list(self.decoder.blocks)

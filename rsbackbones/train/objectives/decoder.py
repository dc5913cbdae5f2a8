"""The MAE decoder: reconstructs the pixels of all patches from the tokens of kept patches.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, section 3; CROMA, section 2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.block import Block
from rsbackbones.layers.sincos import sincos_embedding


class Decoder(nn.Module):
    """Transformer blocks over tokens and mask tokens in image order, with sine-cosine positions.

    ``patch_size`` is that of the target. ``masked=False``: a decoder of all patches, without mask token.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_bands: int,
        patch_size: int,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.num_bands = num_bands
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token: nn.Parameter | None = None
        if masked:
            self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
            nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio=4.0, qkv_bias=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, num_bands * patch_size**2)

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        return list(self.blocks)

    def no_weight_decay(self) -> set[str]:
        """See :mod:`rsbackbones.layers.weight_decay`."""
        return {"mask_token"} if self.mask_token is not None else set()

    def forward(
        self,
        tokens: Tensor,
        restore: Tensor | None,
        grid: tuple[int, int],
        channels: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the predicted pixels of every patch, [B, N, C * p * p], laid out (band, row, column).

        Args:
            tokens: tokens of the kept patches, [B, K, D].
            restore: for every patch its index in the sequence of kept, then masked patches, [B, N];
                ``None`` if all patches are kept, in order.
            grid: (h, w) in patches.
            channels: the bands to predict, in order; by default all.
        """
        x = self.embed(tokens)
        if restore is not None:
            assert self.mask_token is not None, "a decoder of masked=False takes all patches"
            hidden = restore.shape[1] - x.shape[1]
            x = torch.cat((x, self.mask_token.to(x.dtype).expand(len(x), hidden, -1)), dim=1)
            x = torch.take_along_dim(x, restore[..., None], dim=1)
        positions = grid_positions(*grid, device=x.device)
        x = x + sincos_embedding(positions, x.shape[-1]).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if channels is None:
            pixels: Tensor = self.output(x)
            return pixels
        weight, bias = (p.unflatten(0, (self.num_bands, -1))[list(channels)].flatten(0, 1)
                        for p in (self.output.weight, self.output.bias))  # fmt: skip
        return F.linear(x, weight, bias)

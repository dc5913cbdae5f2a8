"""UPerNet: pooled context at the coarsest scale, merged top-down with all finer ones.

Source: Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018. The decoder is that of
segmentation_models_pytorch: 256 channels, BatchNorm, and a LayerNorm on every input map, which the paper does
not have. The input is the pyramid of a CNN, or four depths of a ViT (:mod:`rsbackbones.heads.pyramid`).

Requires the extra ``heads`` (segmentation-models-pytorch).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead
from rsbackbones.heads.pyramid import SCALES, Pyramid


class UPerNet(DenseHead):
    """Merges maps of several depths into logits at the finest scale.

    Args:
        channels: the channels of every map, from the first stage to the last.
        reductions: the strides of the maps: four equal ones (a ViT), or at least two that increase (a CNN).
        num_classes: K.
        width: the channels of the decoder.

    Raises:
        ValueError: the strides are neither equal nor increasing, or equal but not four.
    """

    def __init__(
        self, channels: Sequence[int], reductions: Sequence[float], num_classes: int, *, width: int = 256
    ) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError as error:
            raise ImportError(
                "UPerNet requires segmentation-models-pytorch: pip install 'rsbackbones[heads]'"
            ) from error
        steps = list(pairwise(reductions))
        self.pyramid: Pyramid | None = None
        self.reduction = float(reductions[0])
        if all(a == b for a, b in steps):
            self.pyramid = Pyramid(channels)
            self.reduction /= SCALES[0]
        elif not all(a < b for a, b in steps):
            raise ValueError(
                "UPerNet requires equal or increasing strides, got "
                f"{list(reductions)}; pass indices= in increasing order, with one stage per stride"
            )
        # The decoder ignores the first two maps of an encoder.
        self.decoder = UPerNetDecoder((0, 0, *channels), len(channels) + 1, decoder_channels=width)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)
        initialize_decoder(self.decoder)
        initialize_head(self.classify)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, D_i, h_i, w_i] to logits [B, K, h, w], at the finest scale.

        Raises:
            ValueError: a batch of one image in training, where BatchNorm has no statistics.
        """
        levels = self.pyramid(maps) if self.pyramid is not None else list(maps)
        if self.training and len(levels[0]) == 1 and not self._synchronized():
            raise ValueError(
                "UPerNet has BatchNorm and cannot train on a batch of one image; use batches of 2 or "
                "more, and drop a last batch of one"
            )
        logits: Tensor = self.classify(self.decoder([levels[0], levels[0], *levels]))
        return logits

    def _synchronized(self) -> bool:
        """Return whether BatchNorm is synchronized across processes."""
        return any(isinstance(m, nn.SyncBatchNorm) for m in self.decoder.modules())

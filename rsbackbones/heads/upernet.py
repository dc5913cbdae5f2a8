"""UPerNet: pooled context at the coarsest scale, merged top-down with all finer ones.

Xiao et al., Unified Perceptual Parsing for Scene Understanding, ECCV 2018. The decoder is that of
segmentation_models_pytorch (256 channels, batch normalization, a LayerNorm on every map it is given, which
the paper has not). The maps are a ResNet's, or a ViT's at four depths (:mod:`rsbackbones.heads.pyramid`).

Needs the extra ``heads`` (segmentation-models-pytorch).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from rsbackbones.heads.head import DenseHead
from rsbackbones.heads.pyramid import SCALES, Pyramid


class UPerNet(DenseHead):
    """Maps of several depths to logits at the scale of the finest.

    Args:
        channels: of every map, the earliest first.
        reductions: pixels of the image per pixel of every map: all the same (a ViT, four maps), or each
            larger than the one before (a ResNet, two maps or more).
        num_classes: K.
        width: channels of the decoder.

    Raises:
        ValueError: maps that are neither of one scale nor a pyramid, or of one scale but not four.
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
                "UPerNet needs segmentation-models-pytorch: pip install 'rsbackbones[heads]'"
            ) from error
        steps = list(pairwise(reductions))
        self.pyramid: Pyramid | None = None
        self.reduction = float(reductions[0])
        if all(a == b for a, b in steps):
            self.pyramid = Pyramid(channels)
            self.reduction /= SCALES[0]
        elif not all(a < b for a, b in steps):
            raise ValueError(
                "UPerNet takes maps of one scale or of ever coarser ones, got pixels of "
                f"{list(reductions)}; give indices= in rising order, and leave out one of two "
                "stages of the same scale"
            )
        # The decoder expects an encoder's two finest maps before those that it uses.
        self.decoder = UPerNetDecoder((0, 0, *channels), len(channels) + 1, decoder_channels=width)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)
        initialize_decoder(self.decoder)
        initialize_head(self.classify)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [B, D_i, h_i, w_i] to logits [B, K, h, w], at the finest scale.

        Raises:
            ValueError: in training, a batch of one: its normalization is over the batch.
        """
        levels = self.pyramid(maps) if self.pyramid is not None else list(maps)
        if self.training and len(levels[0]) == 1 and not self._synchronized():
            raise ValueError(
                "UPerNet normalizes over the batch and cannot train on one image alone; use batches of 2 or "
                "more, and drop a last batch of one"
            )
        logits: Tensor = self.classify(self.decoder([levels[0], levels[0], *levels]))
        return logits

    def _synchronized(self) -> bool:
        """Whether batches are normalized across processes."""
        return any(isinstance(m, nn.SyncBatchNorm) for m in self.decoder.modules())

"""A tokenizer that identifies bands by their wavelengths, so that one set of weights works for any bands.

The input bands are mixed into ``VIRTUAL_BANDS`` virtual bands, which a linear tokenizer projects. The mixing
weights are the softmax, over the input bands, of scores that a small network computes from wavelength and
width. A hypernetwork thus generates the kernel [D, C, p, p] for the C input bands, as in DOFA (Xiong et al.,
"Neural Plasticity-Inspired Multimodal Foundation Model for Earth Observation", arXiv 2403.15356), with two
differences:

- It is factorized and therefore small: a kernel [D, R, p, p] for R virtual bands times mixing weights
  [R, C]. Only the mixing weights depend on wavelengths.
- DOFA relates bands to each other in a transformer, this tokenizer in the softmax. The softmax also sets the
  scale: a virtual band is a weighted mean of the input bands. An image with equal values in all bands
  therefore has the same tokens for any choice and number of input bands.

Optical sensors only: the polarizations of a radar have one wavelength and could not be told apart.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.layers.tokenizer import LinearTokenizer

VIRTUAL_BANDS = 16
# Reflected sunlight, in nm.
SHORTEST, LONGEST = 350.0, 2600.0
_WIDEST = 1000.0
# The finest half-waves are 6 % of a wavelength, and a factor of 5.6 in width.
_HARMONICS, _WIDTH_HARMONICS = 32, 4
_FEATURES = 2 * (_HARMONICS + _WIDTH_HARMONICS)


def fourier_features(wavelengths: Sequence[float], widths: Sequence[float]) -> Tensor:
    """Return sines and cosines of the logarithms of wavelengths and widths, [C, F], float32.

    Args:
        wavelengths: the centers of C bands in nm, from 350 to 2600.
        widths: their full widths at half maximum in nm, clamped to 1 to 1000.

    Raises:
        ValueError: a wavelength out of this range, a width that is not positive, or not one for each.
    """
    if len(wavelengths) != len(widths) or not len(wavelengths):
        raise ValueError(
            f"each band needs a wavelength and a width, got {len(wavelengths)} wavelengths and "
            f"{len(widths)} widths"
        )
    for wavelength, width in zip(wavelengths, widths, strict=True):
        if not SHORTEST <= wavelength <= LONGEST:
            raise ValueError(
                f"a wavelength tokenizer accepts optical bands from {SHORTEST:g} to {LONGEST:g} nm "
                f"(nanometers, 1000 to the micrometer), got one at {wavelength:g}; leave it out of bands=. "
                "The polarizations of a radar share one wavelength and need a linear tokenizer"
            )
        if not 0 < width < math.inf:
            raise ValueError(f"the width of a band must be positive, in nm, got {width} at {wavelength:g} nm")
    # On the CPU even if the model is built on the meta device: they are not stored in files.
    center, width = torch.tensor([[*wavelengths], [*widths]], dtype=torch.float64, device="cpu")
    place = torch.log(center / SHORTEST) / math.log(LONGEST / SHORTEST)  # 0 to 1
    spread = torch.log(width.clamp(1, _WIDEST)) / math.log(_WIDEST)  # 0 to 1
    harmonics = [
        math.pi * x[:, None] * torch.arange(1, count + 1, device="cpu")
        for x, count in ((place, _HARMONICS), (spread, _WIDTH_HARMONICS))
    ]
    angles = torch.cat(harmonics, dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class WavelengthTokenizer(LinearTokenizer):
    """Mix bands into virtual bands by their wavelengths, then project patches of these linearly.

    ``wavelengths`` and ``widths``, in nm, describe the input bands, in order. They are not in the state dict.
    ``proj`` projects the virtual bands, as in a :class:`LinearTokenizer`.

    Raises:
        ValueError: as :func:`fourier_features`.
    """

    features: Tensor

    def __init__(
        self, wavelengths: Sequence[float], widths: Sequence[float], dim: int, patch_size: int
    ) -> None:
        super().__init__(VIRTUAL_BANDS, dim, patch_size)
        self.register_buffer("features", fourier_features(wavelengths, widths), persistent=False)
        last = nn.Linear(64, VIRTUAL_BANDS)
        self.scores = nn.Sequential(nn.Linear(_FEATURES, 64), nn.GELU(), last)
        with torch.no_grad():
            # With torch's default, all virtual bands would start as nearly the same mean.
            last.weight.mul_(5)

    def take_bands(self, wavelengths: Sequence[float], widths: Sequence[float]) -> None:
        """Set the bands of the input. The weights do not change.

        Raises:
            ValueError: as :func:`fourier_features`.
        """
        self.features = fourier_features(wavelengths, widths).to(self.proj.weight)

    def mixing(self, channels: Sequence[int] | None = None) -> Tensor:
        """Return the mixing weights [R, C] of the input bands in each virtual band. Rows sum to 1.

        ``channels`` are the indices of the input bands, in order; by default all.
        """
        features = self.features if channels is None else self.features[list(channels)]
        # Not in half precision: the error of a score becomes a relative error of the weights.
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = self.scores(features)  # [C, R]
            return scores.softmax(dim=0).T

    def forward(
        self, images: Tensor, *, kept: Tensor | None = None, channels: Sequence[int] | None = None
    ) -> Tensor:
        """[B, C, H, W] to [B, N, D]; see :meth:`LinearTokenizer.forward`."""
        virtual = F.conv2d(images, self.mixing(channels)[..., None, None])  # [B, R, H, W]
        return super().forward(virtual, kept=kept)

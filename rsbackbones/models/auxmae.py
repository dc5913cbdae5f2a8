"""AuxMAE: a masked autoencoder of optical images that also learned to predict the radar image.

Linial et al. (Google Research), "Enhancing Remote Sensing Representations Through Mixed-Modality Masked
Autoencoding", section 3.2. No weights were published.

The encoder is that of :mod:`rsbackbones.models.mixmae`, with one tokenizer: it takes Sentinel-2 alone, at the
top of the atmosphere (L1C, 13 bands). Sentinel-1 is a target of the pretraining
(:mod:`rsbackbones.train.objectives.auxmae`), never an input. (``overrides.modalities`` of a recipe names
other sources, for tasks of your own.) The paper's Sentinel-2 baseline is the same model, trained by the task
of reconstruction alone. What the paper leaves open is listed in :mod:`rsbackbones.models.mixmae`.

L2A images lack band B10: name the bands that they have (``bands=``). The paper's table 1 gives BigEarthNet,
which is L2A, 13 bands: a slip.

``auxmae_vit_tiny`` is our own, for two CPU cores.
"""

from dataclasses import dataclass

from rsbackbones.models.mixmae import INPUTS, SMALL, Mixmae, MixmaeConfig

__all__ = ["CONFIGS", "INPUTS", "SMALL", "Auxmae", "AuxmaeConfig", "build"]


@dataclass(frozen=True, kw_only=True)
class AuxmaeConfig(MixmaeConfig):
    """The configuration of an AuxMAE model."""

    modalities: tuple[str, ...] = ("s2",)


class Auxmae(Mixmae):
    """The encoder of AuxMAE."""

    config: AuxmaeConfig


CONFIGS = {
    "auxmae_vit_tiny": AuxmaeConfig(dim=96, depth=4, num_heads=4, patch_size=8, image_size=64),
    "auxmae_vit_b": AuxmaeConfig(dim=768, depth=12, num_heads=12),
}


def build(config: AuxmaeConfig, *, num_classes: int = 0) -> Auxmae:
    """Build an AuxMAE model, randomly initialized."""
    return Auxmae(config, num_classes=num_classes)

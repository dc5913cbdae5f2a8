"""What objectives check of their options and of a batch, and the masks that they make of its noise."""

from torch import Tensor

from rsbackbones.models.backbone import Backbone
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.sensors import get_sensor
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.masking import Mask, random_mask


def check_decoder(dim: int, heads: int) -> None:
    """Refuse a size that no decoder can have.

    Raises:
        ValueError: the width is not a multiple of 4 and of the number of heads.
    """
    if dim % 4 or dim % heads:
        raise ValueError(
            f"decoder_dim must be a multiple of 4 and of decoder_heads, got {dim} and {heads} heads"
        )


def check_no_head(backbone: Backbone) -> None:
    """Refuse a backbone with a classifier.

    Raises:
        ValueError: it has one.
    """
    if backbone.num_classes:
        raise ValueError(
            f"the backbone has a head of {backbone.num_classes} classes, which pretraining does not train; "
            "build it with num_classes=0"
        )


def batch_channels(backbone: ViTBackbone, batch: Batch) -> dict[str, list[int]]:
    """Return for every sensor of a batch which of the backbone's bands its channels are.

    In the order of the backbone's sensors.

    Raises:
        ValueError: sensors, bands or sizes that the backbone cannot serve.
    """
    if unknown := [m for m in batch.images if m not in backbone.modalities]:
        raise ValueError(
            f"the batch has {', '.join(unknown)}; the backbone was built for "
            f"{', '.join(backbone.modalities)}: leave it out of the source, or build it with that sensor"
        )
    if len({(*x.shape[:-3], *x.shape[-2:]) for x in batch.images.values()}) != 1:
        raise ValueError(
            "a batch needs one sensor or more, with equally many images of one size, got "
            + (", ".join(f"{m} {list(x.shape)}" for m, x in batch.images.items()) or "none")
        )
    channels = {}
    for m in (m for m in backbone.modalities if m in batch.images):
        p, shape = backbone.patch_size, batch.images[m].shape
        channels[m] = band_positions(m, backbone.bands[m], batch, backbone.config.sensors[m])
        count = len(channels[m])
        if len(shape) not in (4, 5) or shape[-3] != count or shape[-2] % p or shape[-1] % p:
            raise ValueError(
                f"{m}: expected [B, {count}, H, W] for the bands {', '.join(batch.bands[m])} (a series has a "
                f"T after B), with H and W multiples of the patch size {p}, got {list(shape)}"
            )
    return channels


def band_positions(modality: str, own: tuple[str, ...], batch: Batch, sensor: str) -> list[int]:
    """Return which of a network's ``own`` bands of a modality the channels of a batch are.

    Raises:
        ValueError: the batch has other bands.
    """
    bands = get_sensor(sensor).canonical(batch.bands.get(modality, ()))
    if lacking := [band for band in bands if band not in own]:
        raise ValueError(
            f"{modality}: the batch has band {', '.join(lacking)}, which the backbone lacks; its bands are "
            f"{', '.join(own)}. Leave it out of the source's bands, or build the backbone with it"
        )
    return [own.index(band) for band in bands]


def select_channels(backbone: Backbone, channels: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the channels of the sensors whose batch does not hold all of the backbone's bands."""
    return {m: c for m, c in channels.items() if c != list(range(len(backbone.bands[m])))}


def batch_grid(backbone: ViTBackbone, batch: Batch) -> tuple[int, int]:
    """Return the patches (h, w) of a batch's images."""
    height, width = next(iter(batch.images.values())).shape[-2:]
    return height // backbone.patch_size, width // backbone.patch_size


def noise_of(batch: Batch, name: str) -> Tensor:
    """Return random numbers that a batch came with.

    Raises:
        ValueError: it has none of that name.
    """
    if name not in batch.noise:
        raise ValueError(
            f"batch.noise has no {name!r} (it has {', '.join(batch.noise) or 'none'}): samples need the "
            "noise of this very objective"
        )
    return batch.noise[name]


def mask_of(batch: Batch, name: str, shape: tuple[int, ...], ratio: float) -> Mask:
    """Return the masks that come from a batch's noise, whose ``shape`` is [..., N]; as many rows.

    Raises:
        ValueError: there is no such noise, or it is of another shape.
    """
    noise = noise_of(batch, name)
    if noise.shape != shape:
        raise ValueError(
            f"noise[{name!r}] must be {'[B, N]' if len(shape) == 2 else '[B, T, N]'} = {list(shape)}, got "
            f"{list(noise.shape)}: sample_noise() needs the grid of patches"
        )
    return random_mask(noise.flatten(0, -2), ratio)

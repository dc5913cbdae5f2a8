"""The tokenizer that a configuration asks for."""

from rsbackbones.config import ViTConfig
from rsbackbones.layers.tokenizer import LinearTokenizer
from rsbackbones.layers.wavelength_tokenizer import WavelengthTokenizer
from rsbackbones.sensors import get_sensor


def tokenizer_of(config: ViTConfig, modality: str) -> LinearTokenizer:
    """Return a new tokenizer for the bands of a modality: linear, or by wavelength."""
    names = config.bands[modality]
    if not config.takes_wavelengths(modality):
        return LinearTokenizer(len(names), config.dim, config.patch_size)
    bands = [get_sensor(config.sensors[modality]).band(name) for name in names]
    wavelengths, widths = [band.wavelength for band in bands], [band.width for band in bands]
    return WavelengthTokenizer(wavelengths, widths, config.dim, config.patch_size)

"""The pixel size that weights were trained on, against that of images."""

import math

from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import get_sensor

# Pixels whose sides differ by a smaller factor are of the same size.
_SAME_SIZE = 1.5


def trained_pixel_size(model: Backbone, modality: str) -> float | None:
    """Return the side of the pixels that the weights were trained on, in meters, or ``None``: not known."""
    tables = model.adaptation.bands if model.adaptation else ()
    other = next((t.weights_sensor for t in tables if t.modality == modality), None)
    name = other or model.config.sensors[modality]
    if name == "rgb":  # pictures of any resolution
        return None
    return min(band.gsd for band in get_sensor(name).bands if "pan" not in band.aliases)


def pixel_size_notes(model: Backbone, pixel: float | None) -> list[str]:
    """Return what to say of pixels of another size than those that the weights were trained on."""
    notes = []
    for m in model.modalities:
        trained = trained_pixel_size(model, m)
        if pixel and trained and not math.isnan(pixel) and not 1 / _SAME_SIZE < pixel / trained < _SAME_SIZE:
            notes.append(
                f"{m}: the pixels are {pixel:.3g} m wide, and the weights were trained on {trained:.3g} m; "
                "features may be worse, resample the images to compare"
            )
    return notes

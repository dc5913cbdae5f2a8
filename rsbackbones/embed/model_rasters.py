"""The rasters that a model is run on: its bands, of the sensors that it takes them of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rsbackbones.data.rasters import RasterStack
from rsbackbones.models.backbone import Backbone


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor that the model's bands are of."""
    return {m: model.config.sensors[m] for m in model.modalities}


def open_for(
    model: Backbone,
    paths: Sequence[Path],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    Raises:
        ValueError: a modality has no raster, or as :class:`RasterStack`.
    """
    sensors = sensors_of(model)
    stack = RasterStack(paths, sensors, wanted=model.bands, names=names, nodata=nodata, units=units)
    if missing := [m for m in model.modalities if m not in stack.bands]:
        stack.close()
        text = "; ".join(f"{m} (of {sensors[m]}: {', '.join(model.bands[m])})" for m in missing)
        raise ValueError(
            f"{', '.join(map(str, paths))}: no raster holds bands of {text}, which the model takes"
        )
    return stack

"""Rasters opened for the bands of a model, and the job under which unfinished work is kept."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.data.rasters import RasterStack
from rsbackbones.models.backbone import Backbone
from rsbackbones.value_check import zero_is_missing
from rsbackbones.zoo.fingerprint import weights_digest
from rsbackbones.zoo.pixel_size import pixel_size_notes


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor of the model's bands."""
    return {m: model.config.sensors[m] for m in model.modalities}


def embedding_job(
    model: Backbone, paths: Sequence[Path], *, units: Mapping[str, str] | None, nodata: float | None
) -> dict[str, Any]:
    """Return what the features of files depend on, as JSON takes it."""
    return {
        "model": model.architecture,
        "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
        "parameters_sha256": weights_digest(model),
        "sensors": sensors_of(model),
        "bands": {m: list(b) for m, b in model.bands.items()},
        "pad": model.pad,
        "input": [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths],
        "units": units,
        "nodata": nodata,
    }


def unfinished(output: Path) -> Path:
    """Return the folder in which the unfinished work for ``output`` is kept."""
    return output.with_name(output.name + ".partial")


def open_model_rasters(
    model: Backbone,
    paths: Sequence[Path],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    Pixels that hold zero in all bands have no data, where the unit of the values allows no such measurement.

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
    known = {m: spec.unit for m, spec in model.inputs.items()} | stack.stated_units | dict(units or {})
    stack.zero_missing = frozenset(m for m in stack.bands if zero_is_missing(known.get(m)))
    return stack


def all_units(stack: RasterStack, units: Mapping[str, str] | None) -> dict[str, str]:
    """Return the units that the files state, and those that the user names, which count first."""
    return stack.stated_units | dict(units or {})


def warn_of_pixel_sizes(model: Backbone, pixels: Mapping[str, float | None]) -> None:
    """Warn of files, by name, whose pixels have another size than those of training; once for all alike."""
    alike: dict[str, list[str]] = {}
    for name, pixel in pixels.items():
        for note in pixel_size_notes(model, pixel):
            alike.setdefault(note, []).append(name)
    for note, (first, *others) in alike.items():
        rest = f" and {len(others)} more" if others else ""
        warnings.warn(f"{first}{rest}: {note}", stacklevel=3)

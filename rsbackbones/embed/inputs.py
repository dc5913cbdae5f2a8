"""Rasters opened for the bands of a model, and the job under which unfinished work is kept."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.data.raster_path import RasterPath, archive_of
from rsbackbones.data.rasters import RasterStack, not_understood, open_raster, reading
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.preprocess import Preprocess, create_preprocess
from rsbackbones.zoo.fingerprint import weights_digest


def check_backbone(model: Any) -> None:
    """Refuse what gives lists of maps.

    Raises:
        ValueError: the model was built with ``features_only=True``.
    """
    if isinstance(model, FeatureMaps):
        raise ValueError(
            "the model gives a list of maps; build it without features_only=True to embed rasters"
        )


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor of the model's bands."""
    return {m: model.config.sensors[m] for m in model.modalities}


def embedding_job(
    model: Backbone, paths: Sequence[RasterPath], *, units: Mapping[str, str] | None, nodata: float | None
) -> dict[str, Any]:
    """Return what the features of files depend on, as JSON takes it."""
    return {
        "model": model.architecture,
        "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
        "parameters_sha256": weights_digest(model),
        "sensors": sensors_of(model),
        "bands": {m: list(b) for m, b in model.bands.items()},
        "pad": model.pad,
        "input": [_state(path) for path in paths],
        "units": units,
        "nodata": nodata,
    }


def _state(path: RasterPath) -> str:
    """Return what changes when a raster changes: size and time of its file, or a sample of a remote one."""
    if file := archive_of(path):
        name = path.name if isinstance(path, Path) else path
        try:
            return f"{name} {file.stat().st_size} {file.stat().st_mtime_ns}"
        except OSError:
            return f"{name} unreadable"
    from rasterio.windows import Window

    with open_raster(path) as raster, reading(raster):
        digest = zlib.crc32(repr((raster.profile, raster.tags())).encode())
        height, width = (min(64, side) for side in raster.shape)
        for part in (0, 0.5, 1):
            corner = int((raster.width - width) * part), int((raster.height - height) * part)
            digest = zlib.crc32(raster.read(window=Window(*corner, width, height)).tobytes(), digest)
    return f"{path} {digest}"


def unfinished(output: Path) -> Path:
    """Return the folder in which the unfinished work for ``output`` is kept."""
    return output.with_name(output.name + ".partial")


def open_model_rasters(
    model: Backbone,
    paths: Sequence[RasterPath],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
    resample: str | None = None,
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    Raises:
        ValueError: a modality has no raster, or as :class:`RasterStack`.
    """
    sensors = sensors_of(model)
    stack = RasterStack(
        paths, sensors, wanted=model.bands, names=names, nodata=nodata, units=units, resample=resample
    )
    if missing := [m for m in model.modalities if m not in stack.bands]:
        stack.close()
        text = "; ".join(f"{m} (of {sensors[m]}: {', '.join(model.bands[m])})" for m in missing)
        raise ValueError(
            f"{', '.join(map(str, paths))}: no raster holds bands of {text}, which the model takes"
            f"{not_understood(stack.ignored)}"
        )
    return stack


def create_preprocess_of(model: Backbone, stack: RasterStack, units: Mapping[str, str] | None) -> Preprocess:
    """Return the preprocessing of a stack's bands; an error about bands names what was not understood."""
    try:
        return create_preprocess(model, bands=stack.bands, units=units)
    except ValueError as error:
        lacking = any({*needed} - {*stack.bands[m]} for m, needed in model.bands.items())
        raise ValueError(f"{error}{not_understood(stack.ignored) if lacking else ''}") from error

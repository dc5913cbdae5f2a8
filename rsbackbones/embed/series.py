"""The feature map of a location of a folder of series (:mod:`rsbackbones.data.series_folder`)."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.series_set import SET_FILE
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import MAPS, check_output, sensors_of
from rsbackbones.embed.map_file import write_map
from rsbackbones.embed.preview import ColorBasis, preview_path, write_preview
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.preprocess import create_preprocess
from rsbackbones.zoo.fingerprint import weights_digest


def is_location(path: Path) -> bool:
    """Tell whether a folder is a location of a folder of series."""
    return path.is_dir() and (path.resolve().parent / SET_FILE).is_file()


def open_location(path: Path, units: Mapping[str, str] | None = None) -> tuple[SeriesFolder, int]:
    """Return the set of a location, and its place in it.

    Raises:
        ValueError: it is none, or the set cannot be used.
    """
    if not is_location(path):
        raise ValueError(f"{path} is no location of a folder of series: there is no {path.parent / SET_FILE}")
    source = SeriesFolder(path.resolve().parent, units=units)
    return source, source.locations.index(path.resolve().name)


def embed_series(
    model: nn.Module,
    location: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    units: Mapping[str, str] | None = None,
    stream: str | None = None,
    device: str | torch.device | None = None,
    colors_from: Path | None = None,
) -> Path:
    """Write the feature map of a series as a GeoTIFF, and its PCA preview as a PNG beside it.

    All dates of the sensors of ``stream`` are encoded at once, and the map has no time. A pixel of the result
    is a cell of the model's final map, in float32; its transform is the location's, scaled by the model's
    stride. A location without coordinates gives a map without.

    Args:
        model: one that consumes series.
        location: a folder in a folder of series.
        output: a path ending in ``.tif``.
        units: as in ``create_preprocess``; also of GeoTIFFs, which then are read as they are.
        stream: by default the model's default stream.
        device: the model is moved there. Default: where it is.
        colors_from: a feature map written before, of the same model, whose colors the preview gets.

    Raises:
        ValueError: the model takes single images, the location lacks a sensor, a band or a usable image, or
            its size does not fit the model.
    """
    model, output = unwrap_model(model), Path(output).expanduser()
    if output.suffix.lower() not in MAPS:
        raise ValueError(f"a feature map is a .tif, got {output}")
    if model.consumes != "series":
        raise ValueError(
            f"{model.architecture} encodes single images, and {location} is a series: choose a model of "
            "series such as s4_unet3d, or embed the files of one date"
        )
    if device is not None:
        model.to(choose_device(device))
    check_output(output)
    basis = None if colors_from is None else ColorBasis.of_map(colors_from)
    source, place = open_location(Path(location), units)
    stream = model.choose_stream(stream)
    sensors = {m: s for m, s in sensors_of(model).items() if m in model.stream_inputs[stream]}
    sample = source.read(place)
    if lacking := [m for m, sensor in sensors.items() if sensor not in sample.images]:
        raise ValueError(
            f"{location} has images of {', '.join(sample.images)}, not of {', '.join(lacking)}, which "
            f"{stream} takes"
        )
    bands = {m: source.bands[sensors.get(m, m)] if m in sensors else b for m, b in model.bands.items()}
    preprocess = create_preprocess(model, bands=bands, units=dict(units or {}) or None)
    held = {m: sample.valid.get(s, np.ones(len(sample.images[s]), bool)) for m, s in sensors.items()}
    usable = model.as_input(preprocess({m: sample.images[s][held[m]] for m, s in sensors.items()}))
    images = {m: x.new_zeros(len(held[m]), *x.shape[1:]) for m, x in usable.items()}
    for m, x in usable.items():
        images[m][torch.from_numpy(held[m])] = x
    days = {m: torch.from_numpy(sample.dates[sensor])[None] for m, sensor in sensors.items()}
    valid = {m: torch.from_numpy(mask)[None] for m, mask in held.items()}
    with torch.inference_mode():
        features = model.forward_features({m: x[None] for m, x in images.items()}, dates=days, valid=valid)
    found = features.maps(stream)[0].permute(1, 2, 0).float().cpu().numpy()
    grid = source.grid(place) or _nowhere(next(iter(sample.images.values())).shape[-2:])
    tags: dict[str, Any] = {
        "model": model.architecture,
        "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
        "parameters_sha256": weights_digest(model),
        "bands": {m: list(model.bands[m]) for m in sensors},
        "stream": stream,
        "location": source.locations[place],
        "dates": {m: np.unique(sample.dates[s]).astype("datetime64[D]").astype(str).tolist()
                  for m, s in sensors.items()},
        "stride": model.stride,
    }  # fmt: skip
    with warnings.catch_warnings():
        if not grid.placed:
            warnings.filterwarnings("ignore", message=".*has no geotransform")
        write_map(output, found, grid, model.stride, tags)
        write_preview(preview_path(output), found, basis, within=output.parent)
    return output


def _nowhere(size: tuple[int, ...]) -> Grid:
    from rasterio import Affine

    return Grid(size[0], size[1], None, Affine.identity())

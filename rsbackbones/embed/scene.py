"""The feature map of one scene, by overlapping windows, in bounded memory."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rsbackbones.data.class_masks import ClassMasks, mask_files
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_path import raster_name, raster_paths
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import (
    MAPS,
    check_output,
    create_preprocess_of,
    embedding_job,
    require_images,
    unfinished,
    units_from,
    warn_of_pixel_sizes,
    writing,
)
from rsbackbones.embed.lattice import Blend, Block, Lattice, batches, map_shape, window_sides
from rsbackbones.embed.map_file import write_map
from rsbackbones.embed.preview import ColorBasis, preview_path, write_preview
from rsbackbones.embed.raster_scene import open_raster_scene
from rsbackbones.embed.scene_checks import check_scene, refuse_constant
from rsbackbones.embed.window_encoder import WindowEncoder
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore, check_space
from rsbackbones.models.backbone import unwrap_model


def embed_scene(
    model: nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    bands: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    stream: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    resample: str | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
    colors_from: Path | None = None,
) -> Path:
    """Write the feature map of a scene as a GeoTIFF, and its PCA preview as a PNG beside it.

    A pixel of the result is one cell of the model's final map, of a ViT one patch, in float32 (also from a
    model in half precision); its transform is the input's, scaled by ``model.stride``, so the two line up; so
    do ground control points. The scene is read in overlapping windows, and features are blended where they
    overlap, so that no seams show. A cell with a pixel without data is NaN, and so is one of whose pixels
    less than half count by ``mask``; the tag ``valid_share`` is then the share of pixels that have data and
    count. Where the size is no multiple of what the model needs, the last few pixels at the right and at the
    bottom are not covered; a model that pads (``create_model(..., pad=True)``) covers them with cells that
    reach beyond the scene. The tag ``units`` says in which unit the values were taken, ``units_from`` who
    stated it: the ``user``, the ``files``, or nobody (``assumed``).

    The preview's colors are the principal components of this map, so colors of two maps cannot be compared,
    unless the second is written with ``colors_from`` the first.

    Memory is bounded by one row of windows. Finished rows are kept in ``OUTPUT.partial`` until the end, so
    that the same call resumes a killed run, unless a file that GDAL reads for the rasters has changed
    (:class:`rsbackbones.data.input_files.InputFiles`). Disk space is checked before the first window.

    Args:
        model: for the sensors that the rasters hold: bands are looked up among those of
            ``model.config.sensors``.
        paths: rasters on one grid, or one, together holding all bands of the model; strings may be names for
            GDAL (``/vsizip/...``, ``https://...``, ``NETCDF:...``).
        output: a path ending in ``.tif``.
        bands: the bands of each raster, in order, if its descriptions do not name them.
        units: as in ``create_preprocess``.
        nodata: the value without data, where the files do not state it.
        mask: by a band of the rasters, or the path of a raster, the classes of pixels that do not count:
            ``{"SCL": (3, 8, 9, 10)}``; see :class:`rsbackbones.data.class_masks.ClassMaskReader`.
        stream: by default the model's default stream.
        window: side of a window in pixels; default the size the model was trained on (of a network of
            large cells, four of them at least).
        overlap: by how many pixels windows overlap; default two fifths of the window.
        resample: ``nearest``, ``bilinear`` or ``cubic``: rasters of larger pixels are resampled onto the
            finest grid, and the tag ``resampling`` of the result says which. Default: they are refused.
        batch_size: windows encoded at a time.
        device: the model is moved there, see :func:`rsbackbones.device.choose_device`. Default: where it is.
        progress: show a progress bar.
        colors_from: a feature map written before, of the same model: the preview gets its colors, as for two
            dates of a place.

    Raises:
        ValueError: a model of series; rasters, bands, sizes or an unfinished run that do not fit; a full
            disk; rasters that change meanwhile; another process that writes the same output; or a picture
            that is no preview where the preview goes.
    """
    model, paths, output = unwrap_model(model), raster_paths(paths), Path(output).expanduser()
    require_images(model)
    if device is not None:
        model.to(choose_device(device))
    cell = model.stride
    if output.suffix.lower() not in MAPS:
        raise ValueError(f"a feature map is a .tif, got {output}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    basis = None if colors_from is None else ColorBasis.of_map(colors_from)
    if basis is not None and len(basis.mean) != model.num_features:
        raise ValueError(
            f"{colors_from} has {len(basis.mean)} features and the model {model.num_features}: colors_from "
            "(--colors-from) takes a map of the same model"
        )
    read = [*paths, *mask_files(mask)]
    for written in (output, preview_path(output)):
        if same := [p for p in read if isinstance(p, Path) and p.resolve() == written.resolve()]:
            raise ValueError(f"the output {written} is the input {same[0]}; choose another name")
    check_output(output)
    files = InputFiles(read)
    rasters: dict[str, Any] = {
        "names": bands, "units": units, "nodata": nodata, "resample": resample, "mask": mask,
    }  # fmt: skip
    with open_raster_scene(model, paths, **rasters) as scene:
        sides = (scene.grid.height, scene.grid.width)
        grid = map_shape(model, *sides)
        if left := [n - cells * cell for n, cells in zip(sides, grid, strict=True) if n > cells * cell]:
            warnings.warn(
                f"{raster_name(scene.name)}: the map does not cover the last {max(left)} pixels of a "
                "side; a model that pads does (create_model(..., pad=True), --pad)",
                stacklevel=2,
            )
        side, shared = window_sides(model, window, overlap)
        preprocess = create_preprocess_of(model, scene, units)
        preprocess.check = not check_scene(scene, preprocess)
        warn_of_pixel_sizes(model, {raster_name(scene.name): scene.grid.pixel_in_meters})
        stream = model.choose_stream(stream)
        job = embedding_job(model, [files], units=preprocess.units, nodata=nodata, mask=mask) | {
            "stream": stream,
            "given": {m: list(b) for m, b in scene.bands.items()},
            "window": side,
            "overlap": shared,
            "stride": cell,
            "resampling": scene.resampling or "none",
            "units_from": units_from(scene, units),
            "pixel_m": scene.grid.pixel_in_meters,
        }
        share = [("valid_share", "<f4", (grid[1],))] if mask else []
        row = np.dtype([("features", "<f4", (grid[1], model.num_features)), *share])
        folder = unfinished(output)
        with RowStore(folder, job, grid[0], layout=row) as store:
            check_space(output.parent, row.itemsize * grid[0], f"the map {output.name}")
            lattice = Lattice(*grid, side // cell, shared // cell)
            encoder = WindowEncoder(model, scene, preprocess, stream, lattice)
            _fill(store, files, encoder, lattice, model.num_features, batch_size, bool(mask), progress)
            table = store.read()
            features = table["features"]
            if mask:
                job["valid_share"] = f"{float(table['valid_share'].mean()):.6f}"
            refuse_constant(features, scene, masked=bool(mask))
            with writing(output, folder):
                write_map(output, features, scene.grid, cell, job, within=folder,
                          check=partial(files.check, again=True))  # fmt: skip
            picture = preview_path(output)
            with writing(picture, folder):
                write_preview(picture, features, basis, within=folder)
            del table, features  # an open map of the file: it could not be deleted on every system
            store.discard()
    return output


def _fill(
    store: RowStore,
    files: InputFiles,
    encoder: WindowEncoder,
    lattice: Lattice,
    dim: int,
    batch_size: int,
    masked: bool,
    progress: bool,
) -> None:
    """Compute the rows of the feature map that are not done, one row of windows after the other."""
    height, width = lattice.rows, lattice.columns
    reach, tops, lefts = lattice.size[0], lattice.tops, lattice.lefts
    # After a kill the rows in progress need the earlier windows that reach into them once more.
    whole = height if store.done.all() else int(store.done.argmin())
    done = max(top for top in (*tops, height) if top <= whole)
    strips = [i for i, top in enumerate(tops) if top + reach > done]
    if not strips:
        return
    total, left = len(tops) * len(lefts), len(strips) * len(lefts)
    first = tops[strips[0]]
    blend = Blend(lattice, Block(first, 0, first + reach, width), dim)
    rows = [batches([[(tops[i], column) for column in lefts]], batch_size) for i in strips]
    with (
        progress_bar(total, total - left, enabled=progress) as bar,
        closing(encoder.encode([batch for row in rows for batch in row])) as encoded,
    ):
        for i, row in zip(strips, rows, strict=True):
            for batch in islice(encoded, len(row)):
                for place, *window in batch:
                    blend.add(*place, *window)
                bar.update(len(batch))
            # Rows above the next window are final; the others wait for it.
            bottom = tops[i + 1] if i + 1 < len(tops) else height
            features, counts = blend.take(bottom - tops[i])
            if bottom > done:
                files.check()
                kept = {"features": features} | ({"valid_share": counts} if masked else {})
                store.write(range(tops[i], bottom), kept)

"""The feature map of one scene, by overlapping windows, in bounded memory."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rsbackbones.data.class_masks import ClassMaskReader, ClassMasks, mask_files
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_path import raster_name, raster_paths
from rsbackbones.data.rasters import Array, RasterStack
from rsbackbones.data.windows import blend_weights, window_starts
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import (
    MAPS,
    check_output,
    create_preprocess_of,
    embedding_job,
    open_model_rasters,
    sensors_of,
    unfinished,
    units_from,
    warn_of_pixel_sizes,
    writing,
)
from rsbackbones.embed.preview import ROUNDING, ColorBasis, preview_path, write_preview
from rsbackbones.files.atomic import atomic_path
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore, check_space
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.preprocess import Preprocess

# Rows of the feature map are handed to the GeoTIFF in strips of about this many bytes.
_STRIP_BYTES = 64 * 2**20
# The values of a large scene are checked on this many samples along each side, of this many pixels.
_SAMPLES, _SAMPLE_SIDE = 8, 64


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
        ValueError: rasters, bands, sizes or an unfinished run that do not fit; a full disk; rasters that
            change meanwhile; another process that writes the same output; or a picture that is no preview
            where the preview goes.
    """
    model, paths, output = unwrap_model(model), raster_paths(paths), Path(output).expanduser()
    if device is not None:
        model.to(choose_device(device))
    cell, unit = model.stride, _unit(model)
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
    with (
        open_model_rasters(model, paths, **rasters) as scene,
        ClassMaskReader(scene, mask or {}, sensors_of(model), names=bands) as masks,
    ):
        sides = (scene.height, scene.width)
        rows, columns = (-(-n // cell) if model.pad else n // unit * unit // cell for n in sides)
        grid = (rows, columns)
        if not all(grid):
            raise ValueError(
                f"the scene has {scene.height} x {scene.width} pixels, and the model needs {unit} or more; "
                "have it padded: create_model(..., pad=True) (--pad)"
            )
        if left := [n - cells * cell for n, cells in zip(sides, grid, strict=True) if n > cells * cell]:
            warnings.warn(
                f"{raster_name(scene.paths[0])}: the map does not cover the last {max(left)} pixels of a "
                "side; a model that pads does (create_model(..., pad=True), --pad)",
                stacklevel=2,
            )
        side, shared = _window(model, window, overlap)
        preprocess = create_preprocess_of(model, scene, units)
        preprocess.check = not _check_values(scene, masks, preprocess)
        warn_of_pixel_sizes(model, {raster_name(scene.paths[0]): scene.grid.pixel_in_meters})
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
            _fill(
                store,
                grid,
                files,
                scene,
                masks,
                model,
                preprocess,
                stream,
                side // cell,
                shared // cell,
                batch_size,
                progress,
            )
            table = store.read()
            features = table["features"]
            if mask:
                job["valid_share"] = f"{float(table['valid_share'].mean()):.6f}"
            _refuse_constant(features, scene, masks)
            with writing(output, folder):
                _write_map(output, features, scene, cell, job, files, folder)
            picture = preview_path(output)
            with writing(picture, folder):
                write_preview(picture, features, basis, within=folder)
            del table, features  # an open map of the file: it could not be deleted on every system
            store.discard()
    return output


def _unit(model: Backbone) -> int:
    """Return the unit of window sides in pixels: whole cells, and sizes that the model takes."""
    return math.lcm(model.stride, model.size_multiple)


def _window(model: Backbone, window: int | None, overlap: int | None) -> tuple[int, int]:
    unit = _unit(model)
    side = window
    if side is None:  # where cells are large, four of them at least, so that windows can overlap
        side = max(min(model.config.image_sides) // unit, 1 if unit == model.size_multiple else 4) * unit
    fewest = int(window is None and side > unit)
    shared = max(side * 2 // 5 // unit, fewest) * unit if overlap is None else overlap
    if side < unit or side % unit or shared % model.stride or not 0 <= shared < side:
        raise ValueError(
            f"window and overlap must be multiples of {unit} pixels, the overlap smaller than the window; "
            f"got window {side}, overlap {shared}"
        )
    return side, shared


def _check_values(scene: RasterStack, masks: ClassMaskReader, preprocess: Preprocess) -> bool:
    """Check the values of the whole scene at once, as a single window may be too uniform.

    Pixels that do not count by a mask are not checked.
    Of a large scene samples at full resolution are read: overviews may be averages, or out of date.

    Returns:
        Whether there were values to check.
    """
    whole = scene.height * scene.width <= (_SAMPLES * _SAMPLE_SIDE) ** 2
    sides = (scene.height, scene.width) if whole else (_SAMPLE_SIDE,) * 2
    corners = [
        np.unique(np.linspace(0, max(n - side, 0), 1 if whole else _SAMPLES).astype(int)).tolist()
        for n, side in zip((scene.height, scene.width), sides, strict=True)
    ]
    found: dict[str, list[Array]] = {}
    has_data = False
    for row in corners[0]:
        for column in corners[1]:
            size = (min(sides[0], scene.height - row), min(sides[1], scene.width - column))
            arrays, valid = scene.read((row, column, *size))
            has_data |= bool(valid.any())
            for counts in masks.read((row, column, *size)).values():
                valid &= counts
            for m, x in arrays.items():
                found.setdefault(m, []).append(x[:, valid])
    values = {m: np.concatenate(samples, axis=1) for m, samples in found.items()}
    if not all(x.shape[1] for x in values.values()):
        if whole and has_data:
            raise ValueError(_none_counts(scene))
        if whole:
            raise ValueError(_no_data(scene))
        return False  # the windows are checked one by one
    made = preprocess({m: x[:, None] for m, x in values.items()})
    if all(float(x.max()) == float(x.min()) for x in made.values()) and any(
        np.ptp(x, axis=1).any() for x in values.values()
    ):
        raise ValueError(_clipped(scene))
    return True


def _clipped(scene: RasterStack) -> str:
    return (
        f"{scene.paths[0]}: the values differ, and what the model gets of them is the same everywhere, as "
        "normalization clips them: they are in another unit, likely (--units, units=), or hold no scene"
    )


def _no_data(scene: RasterStack) -> str:
    return f"{scene.paths[0]}: no pixel has data in all bands that the model takes"


def _none_counts(scene: RasterStack) -> str:
    return f"{scene.paths[0]}: no pixel with data counts by the mask: are its classes right?"


def _refuse_constant(features: Array, scene: RasterStack, masks: ClassMaskReader) -> None:
    """Refuse a map that is the same everywhere although the scene is not."""
    rows = features.reshape(-1, features.shape[-1])
    rows = rows[:: max(1, len(rows) // 20_000)]
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) < 2:
        if not np.isfinite(features[..., 0]).any():
            raise ValueError(f"{_no_data(scene)}, and counts by the mask" if masks else _no_data(scene))
        return
    if np.ptp(rows, axis=0).max() > ROUNDING * np.abs(rows).max():
        return
    side = min(scene.height, scene.width, _SAMPLES * _SAMPLE_SIDE)
    middle = ((scene.height - side) // 2, (scene.width - side) // 2, side, side)
    arrays, valid = scene.read(middle)
    for counts in masks.read(middle).values():
        valid &= counts
    if any(np.ptp(x[:, valid], axis=1).any() for x in arrays.values() if valid.any()):
        raise ValueError(
            f"{scene.paths[0]}: the features are the same everywhere, and the values are not: the weights do "
            "not fit these values, or the values are in another unit (--units, units=)"
        )


def _fill(
    store: RowStore,
    grid: tuple[int, int],
    files: InputFiles,
    scene: RasterStack,
    masks: ClassMaskReader,
    model: Backbone,
    preprocess: Preprocess,
    stream: str,
    window: int,
    overlap: int,
    batch_size: int,
    progress: bool,
) -> None:
    """Compute the rows of the feature map that are not done, one row of windows after the other."""
    (height, width), dim = grid, model.num_features
    size = (min(window, height), min(window, width))
    tops, lefts = (window_starts(n, window, overlap) for n in (height, width))
    weights = blend_weights(size[0], overlap)[:, None] * blend_weights(size[1], overlap)  # [h, w]
    # After a kill the rows in progress need the earlier windows that reach into them once more.
    whole = height if store.done.all() else int(store.done.argmin())
    done = max(top for top in (*tops, height) if top <= whole)
    strips = [i for i, top in enumerate(tops) if top + size[0] > done]
    total, left = len(tops) * len(lefts), len(strips) * len(lefts)
    total_sum = np.zeros((size[0], width, dim), np.float32)
    total_weight = np.zeros((size[0], width, 1), np.float32)
    complete = np.ones((size[0], width), bool)
    share = np.ones((size[0], width), np.float32)
    with progress_bar(total, total - left, enabled=progress) as bar:
        for i in strips:
            for start in range(0, len(lefts), batch_size):
                batch = lefts[start : start + batch_size]
                maps, shares = _encode_windows(model, scene, masks, preprocess, stream, tops[i], batch, size)
                for column, values, (has_data, counts) in zip(batch, maps, shares, strict=True):
                    columns = slice(column, column + size[1])
                    total_sum[:, columns] += values * weights[..., None]
                    total_weight[:, columns] += weights[..., None]
                    complete[:, columns], share[:, columns] = has_data == 1, counts
                bar.update(len(batch))
            # Rows above the next window are final; the others wait for it.
            final = (tops[i + 1] if i + 1 < len(tops) else height) - tops[i]
            if tops[i] + final > done:
                rows = total_sum[:final] / total_weight[:final]
                rows[~complete[:final]] = np.nan
                files.check()
                kept = {"features": rows} | ({"valid_share": share[:final]} if masks else {})
                store.write(range(tops[i], tops[i] + final), kept)
            total_sum, total_weight, complete, share = (
                np.concatenate((x[final:], np.full_like(x[:final], rest)))
                for x, rest in ((total_sum, 0), (total_weight, 0), (complete, 1), (share, 1))
            )


def _encode_windows(
    model: Backbone,
    scene: RasterStack,
    masks: ClassMaskReader,
    preprocess: Preprocess,
    stream: str,
    top: int,
    lefts: Sequence[int],
    size: tuple[int, int],
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Encode windows of one row; return maps [B, h, w, D], and for each the shares of a cell's pixels that
    have data, and of those that count in the stream as well, [h, w].
    """
    p, unit = model.stride, _unit(model)
    whole = [-(-side * p // unit) * unit for side in size]  # pixels of a window
    images: dict[str, list[Array]] = {m: [] for m in model.modalities}
    counted: dict[str, list[Array]] = {}
    shares: list[tuple[Array, Array]] = []
    height = min(whole[0], scene.height - top * p)
    for left in lefts:
        width = min(whole[1], scene.width - left * p)
        window = (top * p, left * p, height, width)
        arrays, valid = scene.read(window)
        counts = masks.read(window)
        # As the model pads a single window (``Backbone.pad``).
        beyond = ((0, whole[0] - height), (0, whole[1] - width))
        for modality, x in arrays.items():
            if not valid.all():
                # Fill gaps with typical values: they reach the neighbors through attention.
                seen = valid & counts.get(modality, True)
                typical = x[:, seen].mean(axis=1) if seen.any() else np.ones(len(x), np.float32)
                x = np.where(valid, x, typical[:, None, None])
            images[modality].append(np.pad(x, ((0, 0), *beyond), mode="edge"))
        for modality, mask in counts.items():
            counted.setdefault(modality, []).append(np.pad(mask, beyond, mode="edge"))
        clear = valid.copy()
        for modality in model.stream_inputs[stream]:
            clear &= counts.get(modality, True)
        has_data, counts_too = (
            np.pad(x, beyond, mode="edge").reshape(whole[0] // p, p, whole[1] // p, p).mean((1, 3))
            for x in (valid, clear)
        )
        shares.append((has_data[: size[0], : size[1]], counts_too[: size[0], : size[1]]))
    device, _ = model.device_and_dtype()
    batch = preprocess({m: torch.from_numpy(np.stack(x)).to(device) for m, x in images.items()})
    batch = model.as_input(batch)
    clouds = {m: torch.from_numpy(np.stack(x)) for m, x in counted.items()}
    with torch.inference_mode():
        features = model.forward_features(batch, valid=clouds)
    maps = features.maps(stream)[..., : size[0], : size[1]]  # [B, D, h, w]
    return maps.permute(0, 2, 3, 1).float().cpu().numpy(), shares


def _write_map(
    output: Path,
    features: Array,
    scene: RasterStack,
    stride: int,
    job: Mapping[str, Any],
    files: InputFiles,
    folder: Path,
) -> None:
    import rasterio
    from rasterio.windows import Window

    from rsbackbones import __version__

    rows, columns, dim = features.shape
    profile = scene.grid.profile(stride, rows, columns) | {
        "driver": "GTiff", "dtype": "float32", "count": dim,
        "nodata": float("nan"), "compress": "deflate", "predictor": 3, "zlevel": 1,
        "blockysize": 16, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    strip = max(16, _STRIP_BYTES // (columns * dim * 4) // 16 * 16)
    with atomic_path(output, within=folder) as part:
        with rasterio.open(part, "w", **profile) as raster:
            raster.update_tags(rsbackbones=__version__, **{k: str(v) for k, v in job.items()})
            raster.descriptions = tuple(f"{job['stream']}_{i:04d}" for i in range(dim))
            for row in range(0, rows, strip):
                block = np.moveaxis(features[row : row + strip], -1, 0)
                raster.write(block, window=Window(0, row, columns, block.shape[1]))
        files.check(again=True)

"""The feature map of one scene, by overlapping windows, in bounded memory."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsbackbones.data.class_masks import ClassMaskReader, ClassMasks
from rsbackbones.data.rasters import Array, RasterStack
from rsbackbones.data.windows import blend_weights, window_starts
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import embedding_job, open_model_rasters, sensors_of, unfinished
from rsbackbones.embed.preview import write_preview
from rsbackbones.files.atomic import atomic_path
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import Preprocess, create_preprocess

# Rows of the feature map are handed to the GeoTIFF in strips of about this many bytes.
_STRIP_BYTES = 64 * 2**20


def embed_scene(
    model: Backbone,
    paths: Sequence[Path],
    output: Path,
    *,
    bands: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    stream: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Path:
    """Write the feature map of a scene as a GeoTIFF, and its PCA preview as a PNG beside it.

    A pixel of the result is one cell of the model's final map, of a ViT one patch; its transform is the
    input's, scaled by ``model.stride``, so the two line up. The scene is read in overlapping windows, and
    features are blended where they overlap, so that no seams show. A cell with a pixel without data is NaN,
    and so is one of whose pixels less than half count by ``mask``; the tag ``valid_share`` is then the share
    of pixels that have data and count. Where the size is no multiple of what the model needs, the last few
    pixels at the right and at the bottom are not covered; a model that pads (``create_model(..., pad=True)``)
    covers them with cells that reach beyond the scene.

    Memory is bounded by one row of windows. Finished rows are kept in ``OUTPUT.partial`` until the end, so
    that the same call resumes a killed run.

    Args:
        model: for the sensors that the rasters hold: bands are looked up among those of
            ``model.config.sensors``.
        paths: rasters on one grid, together holding all bands of the model.
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
        batch_size: windows encoded at a time.
        device: the model is moved there, see :func:`rsbackbones.device.choose_device`. Default: where it is.
        progress: show a progress bar.

    Raises:
        ValueError: rasters, bands, sizes or an unfinished run that do not fit.
    """
    if device is not None:
        model.to(choose_device(device))
    cell, unit = model.stride, _unit(model)
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"a feature map is a .tif, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for written in (output, output.with_suffix(".png")):
        if same := [path for path in paths if path.resolve() == written.resolve()]:
            raise ValueError(f"the output {written} is the input {same[0]}; choose another name")
    with (
        open_model_rasters(model, paths, names=bands, units=units, nodata=nodata, mask=mask) as scene,
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
                f"{scene.paths[0].name}: the map does not cover the last {max(left)} pixels of a side; a "
                "model that pads does (create_model(..., pad=True), --pad)",
                stacklevel=2,
            )
        side, shared = _window(model, window, overlap)
        preprocess = create_preprocess(model, bands=scene.bands, units=units)
        _check_values(scene, masks, preprocess)
        preprocess.check = False
        stream = model.choose_stream(stream)
        job = embedding_job(model, paths, units=preprocess.units, nodata=nodata, mask=mask) | {
            "stream": stream,
            "given": {m: list(b) for m, b in scene.bands.items()},
            "window": side,
            "overlap": shared,
            "stride": cell,
        }
        share = [("valid_share", "<f4", (grid[1],))] if mask else []
        row = np.dtype([("features", "<f4", (grid[1], model.num_features)), *share])
        with RowStore(unfinished(output), job, grid[0], layout=row) as store:
            _fill(
                store,
                grid,
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
            rows = store.read()
            features = rows["features"]
            counted = {"valid_share": f"{float(rows['valid_share'].mean()):.6f}"} if mask else {}
            _write_map(output, features, scene, cell, job | counted)
            write_preview(output.with_suffix(".png"), features)
            del rows, features  # an open map of the file: it could not be deleted on every system
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


def _check_values(scene: RasterStack, masks: ClassMaskReader, preprocess: Preprocess) -> None:
    """Check the unit on the whole scene, decimated: a single window may be too uniform."""
    shape = (min(scene.height, 512), min(scene.width, 512))
    arrays, valid = scene.read(out_shape=shape)
    if not valid.any():
        raise ValueError(f"{scene.paths[0]}: no pixel has data in all bands that the model takes")
    for mask in masks.read(out_shape=shape).values():
        valid = valid & mask
    if not valid.any():
        raise ValueError(f"{scene.paths[0]}: no pixel with data counts by the mask: are its classes right?")
    preprocess({m: x[:, valid][:, None] for m, x in arrays.items()})


def _fill(
    store: RowStore,
    grid: tuple[int, int],
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
    device = next(model.parameters()).device
    batch = preprocess({m: torch.from_numpy(np.stack(x)).to(device) for m, x in images.items()})
    clouds = {m: torch.from_numpy(np.stack(x)) for m, x in counted.items()}
    with torch.inference_mode():
        features = model.forward_features(batch, valid=clouds)
    maps = features.maps(stream)[..., : size[0], : size[1]]  # [B, D, h, w]
    return maps.permute(0, 2, 3, 1).float().cpu().numpy(), shares


def _write_map(
    output: Path, features: Array, scene: RasterStack, stride: int, job: Mapping[str, Any]
) -> None:
    import rasterio
    from rasterio.windows import Window

    from rsbackbones import __version__

    rows, columns, dim = features.shape
    t, p = scene.transform, stride
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": dim, "height": rows, "width": columns,
        "crs": scene.crs, "transform": rasterio.Affine(t.a * p, t.b * p, t.c, t.d * p, t.e * p, t.f),
        "nodata": float("nan"), "compress": "deflate", "predictor": 3, "zlevel": 1,
        "blockysize": 16, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    strip = max(16, _STRIP_BYTES // (columns * dim * 4) // 16 * 16)
    with atomic_path(output) as part, rasterio.open(part, "w", **profile) as raster:
        raster.update_tags(rsbackbones=__version__, **{k: str(v) for k, v in job.items()})
        raster.descriptions = tuple(f"{job['stream']}_{i:04d}" for i in range(dim))
        for row in range(0, rows, strip):
            block = np.moveaxis(features[row : row + strip], -1, 0)
            raster.write(block, window=Window(0, row, columns, block.shape[1]))

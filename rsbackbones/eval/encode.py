"""Frozen features of every image, computed once and cached on disk.

Without augmentation and gradients, in ``eval()`` mode. CROMA (Fuller et al., NeurIPS 2023, appendix A.4.2)
encodes so for its probes, kNN and K-means.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.crops import Size, pair
from rsbackbones.data.labelled.dataset import Array, LabelledDataset, Task
from rsbackbones.data.patch_tiles import PatchTiles
from rsbackbones.device import choose_device
from rsbackbones.eval.batches import BatchReader, frozen_eval
from rsbackbones.eval.feature_table import FeatureTable, Granularity, build_table, count_pixels
from rsbackbones.eval.fingerprint import fingerprint
from rsbackbones.eval.transform import Transform, check_single_images, make_transform, shown_pixels
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.preprocess import resize

# Part of the cache key: raise it when a change alters features.
VERSION = 1
_SMALLEST_POWER = 1e-10


def encode(
    model: nn.Module,
    data: LabelledDataset,
    *,
    size: int | Size | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    streams: Sequence[str] | None = None,
    level: Granularity = "image",
    pool: Literal["pooled", "mean"] = "pooled",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> FeatureTable:
    """Encode the images of a set that are in a split.

    Images of two dates (task ``change``) are encoded date by date, and their features are the absolute
    difference of the two. Pixels that do not count (``data.masked``) are hidden from the model, and patches
    of whose pixels less than half count are in no embedding.

    Args:
        model: from ``create_model``, for bands that the set has.
        data: the set.
        size: resize images to so many pixels, or (height, width), after they are normalized: bilinear, with
            antialiasing; label maps by nearest neighbor. CROMA enlarges images to the size of the
            pretraining. Default: as they are, which must then be of one size.
        tile: encode patches by tiles of that many pixels, and take the mean where tiles overlap
            (:mod:`rsbackbones.data.patch_tiles`), of sets of label maps; images may then be of any sizes.
        overlap: of the tiles, in pixels; default half of a tile, in whole patches.
        streams: those to encode; default all. Each sees its own sensors only.
        level: an embedding for each image, or for each patch.
        pool: of images: the model's own embedding, or the mean of a stream's tokens.
        batch_size: images, or tiles, at a time.
        device: the model is moved there, see :func:`rsbackbones.device.choose_device`. Default: where it is.
        cache: a folder for features, in subfolders named by a digest of weights, preprocessing and data.
            Cached images are not encoded again; a killed run resumes after its last batch.
        progress: show a bar.

    Raises:
        ValueError: the set lacks a band, images differ in size or are no multiple of the patch, NaN in a set
            that is not ``masked``, an image of a masked one of which too few pixels count, values
            that cannot be in their unit, an unknown stream, a file that cannot be read or changed since the
            set was opened (the message names the sample, and nothing is cached), or another process that
            fills the same cache.
    """
    backbone = unwrap_model(model)
    if level not in ("image", "patch") or pool not in ("pooled", "mean"):
        raise ValueError(f"level must be image or patch and pool pooled or mean, got {level!r} and {pool!r}")
    known = tuple(backbone.stream_inputs)
    wanted = known if streams is None else tuple(streams)
    if not wanted or any(s not in known for s in wanted):
        raise ValueError(f"unknown or no streams, {list(wanted)}: this model has {', '.join(known)}")
    target = None if size is None else pair(size)
    transform = make_transform(backbone, data, size=target, hides=True)
    if device is not None:
        backbone.to(choose_device(device))
    tiles = _tiles(backbone.stride, tile, overlap, level, data)
    # A patch is a cell of the final map.
    multiple = (
        backbone.size_multiple if level == "image" else math.lcm(backbone.size_multiple, backbone.stride)
    )
    if tiles is None and not backbone.pad:
        _check_size(target, multiple, "size=")

    def prepare(raw: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        images = transform(raw)
        first = next(iter(images.values()))
        if tiles is None and not backbone.pad:
            _check_size((first.shape[-2], first.shape[-1]), multiple, "images of")
        return images

    mean = torch.nanmean if data.masked else torch.mean

    def features(images: dict[str, Tensor]) -> dict[str, Tensor]:
        valid = shown_pixels(images) if data.masked else None
        found = backbone.forward_streams(backbone.as_input(images), wanted, valid=valid)
        if level == "patch":
            return {s: found[s].tokens[s] for s in wanted}
        return {s: found[s].pooled[s] if pool == "pooled" else mean(found[s].tokens[s], 1) for s in wanted}

    job = {
        "what": "features",
        **fingerprint(backbone),
        "streams": wanted,
        "pool": pool if level == "image" else None,
    }
    with frozen_eval(backbone):
        return _collect(
            prepare, features, job, data, backbone.modalities, level=level, patch_size=backbone.stride,
            size=target, tiles=tiles, batch_size=batch_size, cache=cache, progress=progress,
        )  # fmt: skip


def statistics_features(
    data: LabelledDataset,
    *,
    channels: Mapping[str, Sequence[int]] | None = None,
    level: Granularity = "image",
    patch_size: int = 8,
    size: int | Size | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = False,
) -> FeatureTable:
    """Return mean and standard deviation of every band, of images or patches: the baseline for features.

    One stream, ``bands``: the means of all bands, then their deviations. Values are raw, but for radar in
    linear power, which becomes dB; scale and offset of the others do not matter to a probe that standardizes.

    Args:
        data, level, tile, overlap, batch_size, cache, progress: as for :func:`encode`.
        channels: by sensor the bands to use, by number; default all.
        patch_size: of patches, in pixels.
        size: resize the images first, as :func:`encode` does, so that patches cover the same ground.

    Raises:
        ValueError: as :func:`encode`.
    """
    check_single_images(data)
    target = None if size is None else pair(size)
    used = {m: list(range(len(b))) for m, b in data.bands.items()}
    used = used if channels is None else {m: list(c) for m, c in channels.items()}
    tiles = _tiles(patch_size, tile, overlap, level, data)

    def prepare(raw: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        images = {}
        for m, numbers in used.items():
            x = torch.from_numpy(np.asarray(raw[m])[..., numbers, :, :].astype(np.float64))
            x = 10 * x.clamp(min=_SMALLEST_POWER).log10() if data.units.get(m) == "linear" else x
            images[m] = x = resize(x, target)
            ragged = x.shape[-2] % patch_size or x.shape[-1] % patch_size
            if level == "patch" and tiles is None and ragged:
                raise ValueError(_no_multiple("images of", (x.shape[-2], x.shape[-1]), patch_size))
        return images

    def features(images: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.cat(list(images.values()), dim=1)
        if level == "patch":
            x = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # [B, C, h, w, p, p]
            x = x.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # [B, n, C, p, p]
        x = x.flatten(-2)
        if data.masked:
            mean = x.nanmean(-1)
            return {"bands": torch.cat([mean, (x - mean[..., None]).square().nanmean(-1).sqrt()], dim=-1)}
        return {"bands": torch.cat([x.mean(-1), x.std(-1, correction=0)], dim=-1)}

    return _collect(
        prepare, features, {"what": "statistics", "patch": patch_size, "channels": used}, data, tuple(used),
        level=level, patch_size=patch_size, size=target, tiles=tiles, batch_size=batch_size, cache=cache,
        progress=progress,
    )  # fmt: skip


def _collect(
    prepare: Transform,
    features: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    job: Mapping[str, Any],
    data: LabelledDataset,
    modalities: Sequence[str],
    *,
    level: Granularity,
    patch_size: int,
    size: Size | None,
    tiles: PatchTiles | None,
    batch_size: int,
    cache: str | Path | None,
    progress: bool,
) -> FeatureTable:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    job = {"version": VERSION, **job, "data": data.digest, "level": level, "size": size}
    if tiles is not None:
        job |= {"tiles": [tiles.tile, tiles.overlap]}
    key = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    images = np.unique(np.concatenate(list(data.splits.values()))).astype(np.int64)
    folder = None if cache is None else Path(cache).expanduser() / key[:32]
    with RowStore(folder, job, len(data), rows=images) as store:
        todo = images[~store.done[images]].tolist()
        warned = ImageWarnings(None if folder is None else folder.with_name(f"{folder.name}.warnings"))
        read = BatchReader(
            data, modalities, prepare, size, same_size=tiles is None, warned=warned, hides=data.masked
        )
        at_once = batch_size if tiles is None else 1
        # All rows have one size: rows of smaller images end with patches without labels.
        patches = 0 if tiles is None or not todo else _most_patches(tiles, data, images.tolist(), size)
        with progress_bar(len(images), len(images) - len(todo), enabled=progress, unit="image") as bar:
            for start in range(0, len(todo), at_once):
                indices = todo[start : start + at_once]
                try:
                    batch, maps = read(indices)
                    of_images = features if tiles is None else tiles.encoder(features, batch_size)
                    found = _of_dates(of_images, batch, data.task)
                    _refuse_hidden(data, indices, found)
                except ValueError:
                    store.discard()
                    warned.discard()
                    raise
                made = {s: x.float().cpu().numpy() for s, x in found.items()}
                if maps is not None and level == "patch":
                    made["pixels"] = count_pixels(maps, patch_size, len(data.classes))
                if tiles is not None:
                    made = {
                        s: np.pad(x, ((0, 0), (0, patches - x.shape[1]), (0, 0))) for s, x in made.items()
                    }
                store.write(indices, made)
                bar.update(len(indices))
        warned.warn(data.name, images.tolist())
        table = build_table(store.read(images), images, data, level, key)
        return replace(table, warnings=warned.counts(images.tolist()))


def _tiles(
    patch_size: int, tile: int | None, overlap: int | None, level: Granularity, data: LabelledDataset
) -> PatchTiles | None:
    if tile is None:
        if overlap is not None:
            raise ValueError("overlap is that of tiles; name their size with tile= (--tile)")
        return None
    if level != "patch" or data.task not in ("pixels", "change"):
        raise ValueError(
            f"tiles need a label for every pixel; {data.name} has {data.task}, and its images are encoded "
            "whole: leave out tile= (--tile)"
        )
    half = tile // 2 // patch_size * patch_size
    return PatchTiles(patch_size, tile, half if overlap is None else overlap)


def _most_patches(tiles: PatchTiles, data: LabelledDataset, images: Sequence[int], size: Size | None) -> int:
    """Return the patches of the largest image; all are read for their sizes, where they may differ."""
    if size is not None:
        return math.prod(tiles.grid(*size))
    samples = (data.read(image) for image in images)
    return max(math.prod(tiles.grid(*next(iter(s.values())).shape[-2:])) for s in samples)


def _of_dates(
    features: Callable[[dict[str, Tensor]], dict[str, Tensor]], batch: dict[str, Tensor], task: Task
) -> dict[str, Tensor]:
    if task != "change":
        return features(batch)
    before, after = (features({m: x[:, date] for m, x in batch.items()}) for date in (0, 1))
    return {s: (after[s] - before[s]).abs() for s in before}


def _refuse_hidden(data: LabelledDataset, indices: Sequence[int], found: Mapping[str, Tensor]) -> None:
    """Refuse images of a masked set that have no features, as too few of their pixels count."""
    if not data.masked:
        return
    empty = torch.stack([x.isnan().flatten(1).any(1) for x in found.values()]).any(0).tolist()
    if any(empty):
        raise ValueError(
            f"{data.name}: {data.ids[indices[empty.index(True)]]}: no patch has data in half of its pixels, "
            "so that the image has no features; leave it out (ids=, --ids)"
        )


def _check_size(size: Size | None, multiple: int, what: str) -> None:
    if size is not None and any(side < 1 or side % multiple for side in size):
        raise ValueError(_no_multiple(what, size, multiple))


def _no_multiple(what: str, size: Size, patch: int) -> str:
    fitting = tuple(max(patch, -(-side // patch) * patch) for side in size)
    near = fitting[0] if fitting[0] == fitting[1] else fitting
    return (
        f"{what} {size[0]} x {size[1]} pixels are no multiple of {patch}, the side of a patch; resize them, "
        f"size={near} (--size), or encode label maps by tiles, tile= (--tile)"
    )

"""What a search takes and gives as files: an example image, hits as GeoParquet, similarities as a COG."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsbackbones.data.rasters import Array
from rsbackbones.embed.geoparquet import require_geopandas, write_geoparquet
from rsbackbones.embed.inputs import create_preprocess_of
from rsbackbones.embed.patches import MAX_PATCH_SIDE
from rsbackbones.embed.raster_scene import open_raster_scene
from rsbackbones.embed.search.layer import Layer
from rsbackbones.embed.search.search import Hits, Searched
from rsbackbones.files.atomic import atomic_path, atomic_write
from rsbackbones.zoo.fingerprint import weights_digest

# Of the map of similarities.
_PROFILE = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}


def encode_example(path: Path, provenance: Mapping[str, Any], checkpoint: Path | None = None) -> Array:
    """Return the vector [D] of an image: the mean of its cells, by the model that a store records.

    Raises:
        ValueError: the record is of a table, the model cannot be built or has other weights, or the image is
            larger than a patch.
    """
    from rsbackbones.zoo.factory import create_model

    facts = provenance.get("model")
    if not isinstance(facts, Mapping):
        raise ValueError(
            "an example image is for a store (.zarr), which records its model; for a table use --at"
        )
    if checkpoint is None and facts["weights"] is None:
        raise ValueError(
            f"the store was made with weights of {facts['architecture']} that are not published; name their "
            "file: --checkpoint"
        )
    options = {"modalities": tuple(facts["bands"]), "bands": facts["bands"], "pad": True}
    if checkpoint is None:
        model = create_model(facts["weights"], pretrained=True, sensors=facts["sensors"], **options)
    else:
        model = create_model(facts["architecture"], checkpoint=checkpoint, **options)
    model = model.to(getattr(torch, facts["own_dtype"]))
    if weights_digest(model) != facts["parameters_sha256"]:
        raise ValueError(
            f"the weights of {checkpoint or facts['weights']} are not those of the store (parameters_sha256 "
            f"{facts['parameters_sha256'][:12]}...): vectors of other weights cannot be compared"
        )
    source = provenance["source"]
    with open_raster_scene(
        model, [path], names=None, units=source["units"], nodata=source["nodata"], resample=None, mask=None
    ) as scene:
        if max(scene.grid.height, scene.grid.width) > MAX_PATCH_SIDE:
            raise ValueError(f"{path} is larger than {MAX_PATCH_SIDE} pixels; cut out what you look for")
        arrays, valid, _ = scene.read((0, 0, scene.grid.height, scene.grid.width))
        if not valid.all():
            raise ValueError(f"{path}: {int((~valid).sum())} pixels have no data; cut out what you look for")
        preprocess = create_preprocess_of(model, scene, source["units"])
        images: Any = preprocess({m: torch.from_numpy(x[None]) for m, x in arrays.items()})
        with torch.inference_mode():
            maps = model.forward_features(model.as_input(images)).maps(provenance["stream"])
    vector: Array = maps[0].float().mean(dim=(1, 2)).numpy()
    return vector


def write_hits(path: Path, searched: Searched, hits: Hits) -> None:
    """Write hits as GeoParquet in EPSG:4326: rank, similarity, the outline of the cell, and which cell it is:
    row, column, where the store has them group and date. Of a table: the geometry, row, id, date and source.
    """
    require_geopandas()
    columns = {
        "rank": np.arange(1, len(hits.similarity) + 1),
        "similarity": hits.similarity,
        **searched.describe(hits),
        "lon": hits.lon,
        "lat": hits.lat,
    }
    with atomic_write(path) as file:
        write_geoparquet(
            file, columns, searched.outlines(hits), lambda _: {}, {b"search": json.dumps(hits.facts).encode()}
        )


def write_similarity(path: Path, searched: Searched, hits: Hits) -> list[Path]:
    """Write the similarity of all cells as a COG; of several maps one each, named by group and date
    (``MAP_utm32_2024-06-01.tif``).

    Returns:
        the paths.

    Raises:
        ValueError: the result has no map: of a table, or by an index.
    """
    if hits.similarities is None:
        raise ValueError("a map of similarities is of a store (.zarr) searched without an index")
    paths = []
    for layer, similarity in zip(searched.layers, hits.similarities, strict=True):
        names = [part for part in (layer.group, layer.date) if part] if len(searched.layers) > 1 else []
        paths.append(path.with_stem("_".join([path.stem, *names])))
        _write_cog(paths[-1], layer, similarity, hits.facts)
    return paths


def _write_cog(path: Path, layer: Layer, similarity: Array, facts: Mapping[str, Any]) -> None:
    import rasterio
    from rio_cogeo.cogeo import cog_translate

    box = layer.geobox
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": 1, "height": box.height, "width": box.width,
        "crs": box.crs.to_wkt(), "transform": rasterio.Affine(*box.affine[:6]), "nodata": float("nan"),
    }  # fmt: skip
    stated = dict(facts) | {"group": layer.group, "date": layer.date}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(similarity, 1)
            raster.descriptions = ("similarity",)
            raster.update_tags(search=json.dumps(stated))
        with memory.open() as raster, atomic_path(path) as part:
            cog_translate(raster, part, dict(_PROFILE), in_memory=True, quiet=True,
                          forward_band_tags=True, overview_resampling="average")  # fmt: skip

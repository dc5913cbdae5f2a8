"""A Zarr store that holds an array of bands, as what a job reads."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rsbackbones.arrays import is_dataset
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.sources.arrays import ArraySource, band_names
from rsbackbones.embed.sources.source import ReadOptions, Window
from rsbackbones.files.objects import Objects
from rsbackbones.models.backbone import Backbone


class ZarrSource:
    """A DataArray or Dataset in a Zarr store, opened where it is read."""

    layers = 1

    def __init__(self, place: str, model: Backbone, options: ReadOptions, *, variable: str | None) -> None:
        self._objects, self._options = Objects(place), options
        data = _open_zarr(self._objects)
        names = sorted(str(v) for v in data.data_vars)  # a store lists them in any order
        stacked = [n for n in names if data[n].ndim == 3]
        if variable is not None and variable not in names:
            raise ValueError(f"{place} has no variable {variable!r}; it has {', '.join(names)}")
        if variable is None and len(stacked) > 1:
            raise ValueError(
                f"{place} has several arrays of bands: {', '.join(stacked)}; name one: "
                f"variable={stacked[0]!r} (--variable {stacked[0]})"
            )
        self._variable = variable or (stacked[0] if stacked else None)
        metadata = [self._objects.get("zarr.json"), self._objects.get(".zattrs")]
        for name in [self._variable] if self._variable else names:
            metadata += [self._objects.get(f"{name}/zarr.json"), self._objects.get(f"{name}/.zarray")]
        digest = hashlib.sha256(b"\0".join(part or b"" for part in metadata)).hexdigest()
        self._facts = {"kind": "zarr", "place": self._objects.place, "variable": self._variable,
                       "metadata_sha256": digest, "chunks_sha256": self._chunks(names)}  # fmt: skip
        self.grid = self._array(data, model).grid

    def _chunks(self, names: list[str]) -> str | None:
        """Return a hash of the sizes and times of the arrays' objects; ``None``: a web server lists none."""
        if self._objects.place.startswith(("http://", "https://")):
            return None
        arrays = [self._variable] if self._variable else names
        listed = sorted(stamp for name in arrays for stamp in self._objects.stamps(name))
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`rsbackbones.embed.sources.source.Source`: a store is known by its metadata, and by
        sizes and times of its chunks.
        """
        return {**self._facts, **self._options.facts}

    @property
    def links(self) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        local = self._objects.local
        return [self._objects.place if local is None else local.as_uri()]

    def names(self, window: Window) -> list[str]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        return self.links

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`rsbackbones.embed.sources.source.Source`."""
        with _open_zarr(self._objects) as data, self._array(data, model).open(model, window) as scene:
            yield scene

    def _array(self, data: Any, model: Backbone) -> ArraySource:
        chosen = data[self._variable] if self._variable else data
        if not is_dataset(chosen) and "spatial_ref" in data and "spatial_ref" not in chosen.coords:
            chosen = chosen.assign_coords(spatial_ref=data["spatial_ref"])
        return ArraySource(chosen, model, self._options, facts=self._facts)


def names_in_store(place: str, variable: str | None) -> list[str]:
    """Return the names of the bands that an array in a Zarr store states."""
    data, chosen = _open_zarr(Objects(place)), variable
    if chosen is None:
        chosen = next((str(n) for n in data.data_vars if data[n].ndim == 3), None)
    return [str(n) for n in data.data_vars] if chosen is None else band_names(data[chosen])


def _open_zarr(objects: Objects) -> Any:
    import xarray
    from zarr.storage import ObjectStore

    if not any(objects.get(name) for name in ("zarr.json", ".zgroup", ".zmetadata")):
        raise ValueError(f"there is no Zarr group at {objects.place}")
    # chunks=None: without dask, whose own scheduler would run inside the task.
    return xarray.open_zarr(
        ObjectStore(objects.store, read_only=True), chunks=None, consolidated=False, mask_and_scale=False
    )

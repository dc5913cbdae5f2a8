"""Windows of a series to features: all dates of a window are encoded together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rsbackbones.data.rasters import Array
from rsbackbones.embed.lattice import Lattice, window_unit
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.window_encoder import EncodedWindow, WindowEncoder, fill_gaps
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import Preprocess


class SeriesEncoder(WindowEncoder):
    """Encodes windows of a series.

    The series of a window is of the dates at which it has data. A model that consumes series gives one map,
    one that fuses dates (``temporal=True``) a map of each date: windows have ``values`` [T, h, w, D] and
    ``has_data`` [T, h, w], where T is 1 or the number of days.

    Args:
        model, scene, preprocess, stream, lattice: as for :class:`WindowEncoder`; the scene is of a series.
        days: by modality those of the scene, ``2024-06-01``.
    """

    def __init__(
        self, model: Backbone, scene: Scene, preprocess: Preprocess, stream: str, lattice: Lattice, *,
        days: Mapping[str, Sequence[str]],
    ) -> None:  # fmt: skip
        super().__init__(model, scene, preprocess, stream, lattice)
        self._fuses = model.consumes == "image"
        self._days = {m: np.array(d, "datetime64[D]").astype(np.int64) for m, d in days.items()}

    def _read(self, batch: Sequence[tuple[int, int]], skip_empty: bool) -> "_Series":  # type: ignore[override]
        p, unit, size = self._model.stride, window_unit(self._model), self._lattice.size
        whole, grid = [-(-side * p // unit) * unit for side in size], self._scene.grid
        read = _Series([], [], [], [])
        for top, left in batch:
            height, width = min(whole[0], grid.height - top * p), min(whole[1], grid.width - left * p)
            arrays, valid, counts = self._scene.read((top * p, left * p, height, width))
            if skip_empty and not valid.any():
                continue
            beyond = ((0, whole[0] - height), (0, whole[1] - width))
            read.places.append((top, left))
            read.kept.append({m: there.any(axis=(1, 2)) for m, there in counts.items()})
            read.images.append({m: _filled(x, counts[m], beyond) for m, x in arrays.items()})
            has_data = next(iter(counts.values())) if self._fuses else valid[None]
            shares = np.pad(has_data, ((0, 0), *beyond), mode="edge")
            shares = shares.reshape(-1, whole[0] // p, p, whole[1] // p, p).mean((2, 4))
            read.shares.append(shares[:, : size[0], : size[1]])
        return read

    def _encode(self, read: "_Series") -> list[EncodedWindow]:  # type: ignore[override]
        """Encode windows of as many dates together."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, images in enumerate(read.images):
            alike.setdefault(tuple(len(x) for x in images.values()), []).append(i)
        values: dict[int, Array] = {}
        for places in alike.values():
            maps = self._maps(
                {m: np.stack([read.images[i][m] for i in places]) for m in read.images[0]},
                {m: np.stack([days[read.kept[i][m]] for i in places]) for m, days in self._days.items()},
            )
            for i, made in zip(places, maps, strict=True):
                values[i] = made
                if self._fuses:
                    kept = next(iter(read.kept[i].values()))
                    values[i] = np.zeros((len(kept), *made.shape[1:]), np.float32)
                    values[i][kept] = made
        return [
            EncodedWindow(place, values[i], read.shares[i], read.shares[i])
            for i, place in enumerate(read.places)
        ]

    def _maps(self, images: dict[str, Array], days: dict[str, npt.NDArray[np.int64]]) -> Array:
        """Return the maps [B, T, h, w, D] of series [B, T, C, H, W]; T is 1 of a model of series."""
        model, size = self._model, self._lattice.size
        device, _ = model.device_and_dtype()
        x = self._preprocess({m: torch.from_numpy(x).to(device) for m, x in images.items()})
        dates = {m: torch.from_numpy(d) for m, d in days.items()}
        with torch.inference_mode():
            features = model.forward_features(
                model.as_input(x), dates=next(iter(dates.values())) if self._fuses else dates,
                temporal=self._fuses,
            )  # fmt: skip
        maps = features.maps(self._stream)[..., : size[0], : size[1]]
        maps = maps if self._fuses else maps[:, None]
        found: Array = maps.permute(0, 1, 3, 4, 2).float().cpu().numpy()
        return found


def _filled(x: Array, there: Array, beyond: tuple[tuple[int, int], ...]) -> Array:
    """Return the dates [T, C, H, W] of a window that have data, without gaps, padded to a whole window."""
    dates = np.flatnonzero(there.any(axis=(1, 2)))
    images = [fill_gaps(x[t], there[t], there[t]) for t in dates]
    return np.pad(np.stack(images), ((0, 0), (0, 0), *beyond), mode="edge")


class _Series(NamedTuple):
    """What is read for a batch: by window and modality its images [T, C, H, W], the days that it has, and
    the share of each cell's pixels that have data.
    """

    places: list[tuple[int, int]]
    images: list[dict[str, Array]]
    kept: list[dict[str, Any]]
    shares: list[Array]

"""Windows of a scene to features. The next windows are read while the model runs."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from rsbackbones.data.rasters import Array
from rsbackbones.embed.lattice import Lattice, window_unit
from rsbackbones.embed.pixels import Scene
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import Preprocess

# So many batches are read ahead of the model.
_AHEAD = 2


class EncodedWindow(NamedTuple):
    """Features of a window.

    Attributes:
        place: its (top, left) in cells.
        values: [h, w, D].
        has_data: the share of each cell's pixels that have data, [h, w].
        counts: the share that has data and counts in the sensors of the stream, [h, w].
    """

    place: tuple[int, int]
    values: Array
    has_data: Array
    counts: Array


class WindowEncoder:
    """Encodes windows of a scene.

    Args:
        model: in ``eval()`` mode, on its device.
        scene: read in another thread, and by nothing else meanwhile.
        preprocess: of the scene's bands.
        stream: the features to return.
        lattice: of the windows.

    Attributes:
        seconds: how long :meth:`encode` took so far.
        waited: how long the model had to wait for pixels.
    """

    def __init__(
        self, model: Backbone, scene: Scene, preprocess: Preprocess, stream: str, lattice: Lattice
    ) -> None:
        self._model, self._scene, self._preprocess = model, scene, preprocess
        self._stream, self._lattice = stream, lattice
        self.seconds = self.waited = 0.0

    def encode(
        self, batches: Sequence[Sequence[tuple[int, int]]], *, skip_empty: bool = False
    ) -> Generator[list[EncodedWindow], None, None]:
        """Yield the features of each batch of windows, given by their (top, left) in cells.

        With ``skip_empty`` windows without data are left out, and the model does not run for them.
        """
        pending: deque[Future[_Batch]] = deque()
        todo = iter(batches)
        with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as reader:
            try:
                for _ in batches:
                    begin = time.perf_counter()
                    while len(pending) < _AHEAD and (following := next(todo, None)) is not None:
                        pending.append(reader.submit(self._read, following, skip_empty))
                    read = pending.popleft().result()
                    self.waited += time.perf_counter() - begin
                    encoded = self._encode(read) if read.places else []
                    self.seconds += time.perf_counter() - begin
                    yield encoded
            finally:
                for future in pending:
                    future.cancel()

    def _read(self, batch: Sequence[tuple[int, int]], skip_empty: bool) -> "_Batch":
        model, p, unit = self._model, self._model.stride, window_unit(self._model)
        size, grid = self._lattice.size, self._scene.grid
        whole = [-(-side * p // unit) * unit for side in size]  # pixels of a window
        read = _Batch([], {m: [] for m in model.modalities}, {}, [])
        for top, left in batch:
            height, width = min(whole[0], grid.height - top * p), min(whole[1], grid.width - left * p)
            arrays, valid, counts = self._scene.read((top * p, left * p, height, width))
            if skip_empty and not valid.any():
                continue
            read.places.append((top, left))
            # As the model pads a single window (``Backbone.pad``).
            beyond = ((0, whole[0] - height), (0, whole[1] - width))
            for modality, x in arrays.items():
                x = fill_gaps(x, valid, valid & counts.get(modality, True))
                read.images[modality].append(np.pad(x, ((0, 0), *beyond), mode="edge"))
            for modality, mask in counts.items():
                read.counts.setdefault(modality, []).append(np.pad(mask, beyond, mode="edge"))
            clear = valid.copy()
            for modality in model.stream_inputs[self._stream]:
                clear &= counts.get(modality, True)
            has_data, counts_too = (
                np.pad(x, beyond, mode="edge").reshape(whole[0] // p, p, whole[1] // p, p).mean((1, 3))
                for x in (valid, clear)
            )
            read.shares.append((has_data[: size[0], : size[1]], counts_too[: size[0], : size[1]]))
        return read

    def _encode(self, read: "_Batch") -> list[EncodedWindow]:
        model, size = self._model, self._lattice.size
        device, _ = model.device_and_dtype()
        images: Any = self._preprocess(
            {m: torch.from_numpy(np.stack(x)).to(device) for m, x in read.images.items()}
        )
        valid = {m: torch.from_numpy(np.stack(x)) for m, x in read.counts.items()}
        with torch.inference_mode():
            features = model.forward_features(model.as_input(images), valid=valid)
        maps = features.maps(self._stream)[..., : size[0], : size[1]]  # [B, D, h, w]
        values = maps.permute(0, 2, 3, 1).float().cpu().numpy()
        return [
            EncodedWindow(place, value, *shares)
            for place, value, shares in zip(read.places, values, read.shares, strict=True)
        ]


def fill_gaps(x: Array, valid: Array, seen: Array) -> Array:
    """Return an image [C, h, w] with typical values, the mean of ``seen`` pixels, where it has no data.

    They reach the neighbors through attention.
    """
    if valid.all():
        return x
    typical = x[:, seen].mean(axis=1) if seen.any() else np.ones(len(x), np.float32)
    return np.where(valid, x, typical[:, None, None])


class _Batch(NamedTuple):
    """What is read for a batch: images and masks by modality, and the shares of :class:`EncodedWindow`."""

    places: list[tuple[int, int]]
    images: dict[str, list[Array]]
    counts: dict[str, list[Array]]
    shares: list[tuple[Array, Array]]

"""Every image encoded once: frozen features, kept on disk.

Without augmentation and gradients, in ``eval()`` mode. CROMA (Fuller et al., NeurIPS 2023, appendix A.4.2)
encodes so for its probes, kNN and K-means.

Patches. The paper's segmentation probes are linear on patch encodings, and only of its pictures does it say
what the label of a patch is: the most frequent class in it (appendix A.6). That is what a patch's label is
here, among the pixels that have one; of equally frequent classes the first. Patches without any label are
left out, so that sparsely labelled sets (MARIDA) train on what is labelled only. A probe that predicts one
class for a patch is still scored by pixels, exactly: ``pixels`` holds how many pixels of each class a patch
has.
"""

import dataclasses
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.backbone import Backbone, unwrapped
from rsbackbones.config import as_json
from rsbackbones.embed.progress import progress_bar
from rsbackbones.eval.batches import frozen
from rsbackbones.eval.cache import RowStore
from rsbackbones.eval.inputs import model_inputs
from rsbackbones.eval.labelled import IGNORED, Array, LabelledSet, Task, label_scale
from rsbackbones.eval.samples import Samples
from rsbackbones.layers.sincos import interpolated_from
from rsbackbones.preprocess import OffsetWarning

Level = Literal["image", "patch"]
Size = tuple[int, int]
# Goes into the key of what is kept: to be raised when features become others.
VERSION = 1
_SMALLEST_POWER = 1e-10


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features of the samples of a set.

    Attributes:
        features: by stream [n, D] float32. Images: of all N samples of the set, NaN of those in no split.
            Patches: of the images in a split, row by row, image after image.
        labels: of images those of the set; of patches [n] int64, or [n, K] bool where the set is multi-label.
            ``None`` for images whose labels are maps.
        groups: [n] int64, the index of the image.
        pixels: of patches with label maps [n, K] int64: how many of its pixels are of each class.
        level: what a row is of.
        key: changes with the weights, the preprocessing and the data.
    """

    features: Mapping[str, Array]
    labels: Array | None
    groups: npt.NDArray[np.int64]
    pixels: Array | None
    level: Level
    key: str

    def stream(self, name: str) -> Array:
        """Return the features of a stream, or of several beside each other (``s1+s2+joint``), [n, D].

        Raises:
            ValueError: there is no such stream.
        """
        names = name.split("+")
        if unknown := [n for n in names if n not in self.features]:
            raise ValueError(
                f"there is no stream {', '.join(unknown)}; these features have {', '.join(self.features)}"
            )
        if len(names) == 1:
            return self.features[name]
        return np.concatenate([self.features[n] for n in names], axis=1)

    def rows(self, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of some images of the set, given by index."""
        if self.level == "image":
            return np.asarray(images, np.int64)
        return np.flatnonzero(np.isin(self.groups, images))

    def samples(self, features: Array, images: npt.NDArray[np.int64]) -> Samples:
        """Return the features, of :meth:`stream`, of some images beside their labels.

        Raises:
            ValueError: the labels are maps, and the features are of whole images.
        """
        if self.labels is None:
            raise ValueError("the labels of this set are maps: encode it with level='patch'")
        rows = self.rows(images)
        groups = self.groups[rows] if self.level == "patch" else None
        return Samples(
            features[rows], self.labels[rows], groups, None if self.pixels is None else self.pixels[rows]
        )


def encode(
    model: nn.Module,
    data: LabelledSet,
    *,
    size: int | Size | None = None,
    streams: Sequence[str] | None = None,
    level: Level = "image",
    pool: Literal["pooled", "mean"] = "pooled",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> Encoded:
    """Encode the images of a set that are in a split.

    Images of two dates (task ``change``) are encoded date by date, and their features are the absolute
    difference of the two.

    Args:
        model: from ``create_model``, for bands that the set has.
        data: the set.
        size: resize images to so many pixels, or (height, width), after they are normalised: bilinear, with
            antialiasing; label maps by nearest neighbour. CROMA enlarges images to the size of the
            pretraining. Default: as they are, which must then be of one size.
        streams: those to keep; default all. Each is of its own sensors alone.
        level: an embedding for each image, or for each patch.
        pool: of images: the model's own embedding, or the mean of a stream's tokens.
        batch_size: images at a time.
        device: the model is moved there. Default: where it is.
        cache: a folder to keep features in, below a name made of the hashes of weights, preprocessing and
            data. What is there is not encoded again; a killed run goes on after its last batch.
        progress: show a bar.

    Raises:
        ValueError: the set lacks a band, images differ in size or are no multiple of the patch, NaN, values
            that cannot be in their unit, an unknown stream, or a file that cannot be read; the sample is
            named. Nothing is then kept.
    """
    backbone = unwrapped(model)
    if level not in ("image", "patch") or pool not in ("pooled", "mean"):
        raise ValueError(f"level must be image or patch and pool pooled or mean, got {level!r} and {pool!r}")
    known = tuple(backbone.stream_inputs)
    wanted = known if streams is None else tuple(streams)
    if not wanted or any(s not in known for s in wanted):
        raise ValueError(f"unknown or no streams, {list(wanted)}: this model has {', '.join(known)}")
    inputs = model_inputs(backbone, data)
    if device is not None:
        backbone.to(device)
    place = next(backbone.parameters()).device
    target = (size, size) if isinstance(size, int) else size
    _check_size(target, backbone, "size=")

    def prepare(raw: Mapping[str, Array]) -> dict[str, Tensor]:
        images = {m: _resized(x, target) for m, x in inputs(raw).items()}
        first = next(iter(images.values()))
        _check_size((first.shape[-2], first.shape[-1]), backbone, "images of")
        return images

    def features(images: dict[str, Tensor]) -> dict[str, Tensor]:
        found = backbone.forward_streams({m: x.to(place) for m, x in images.items()}, wanted)
        if level == "patch":
            return {s: found[s].tokens[s] for s in wanted}
        return {s: found[s].pooled[s] if pool == "pooled" else found[s].tokens[s].mean(1) for s in wanted}

    job = {
        "what": "features",
        **identity(backbone),
        "streams": wanted,
        "pool": pool if level == "image" else None,
    }
    with frozen(backbone):
        return _collect(
            prepare, features, job, data, backbone.modalities, level=level, patch_size=backbone.patch_size,
            size=target, batch_size=batch_size, cache=cache, progress=progress,
        )  # fmt: skip


def statistics_features(
    data: LabelledSet,
    *,
    channels: Mapping[str, Sequence[int]] | None = None,
    level: Level = "image",
    patch_size: int = 8,
    size: int | Size | None = None,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: bool = False,
) -> Encoded:
    """Return mean and standard deviation of every band, of images or patches: what features must beat.

    One stream, ``bands``: the means of all bands, then their deviations. Values are raw, but for radar in
    linear power, which becomes dB; scale and offset of the others do not matter to a probe that standardises.

    Args:
        data, level, batch_size, cache, progress: as for :func:`encode`.
        channels: by sensor the bands to use, by number; default all.
        patch_size: of patches, in pixels.
        size: resize the images first, as :func:`encode` does, so that patches cover the same ground.

    Raises:
        ValueError: as :func:`encode`.
    """
    target = (size, size) if isinstance(size, int) else size
    used = {m: list(range(len(b))) for m, b in data.bands.items()}
    used = used if channels is None else {m: list(c) for m, c in channels.items()}

    def prepare(raw: Mapping[str, Array]) -> dict[str, Tensor]:
        images = {}
        for m, numbers in used.items():
            x = torch.from_numpy(raw[m][..., numbers, :, :].astype(np.float64))
            x = 10 * x.clamp(min=_SMALLEST_POWER).log10() if data.units.get(m) == "linear" else x
            images[m] = x = _resized(x, target)
            if level == "patch" and (x.shape[-2] % patch_size or x.shape[-1] % patch_size):
                raise ValueError(_no_multiple("images of", (x.shape[-2], x.shape[-1]), patch_size))
        return images

    def features(images: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.cat(list(images.values()), dim=1)
        if level == "patch":
            x = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # [B, C, h, w, p, p]
            x = x.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # [B, n, C, p, p]
        x = x.flatten(-2)
        return {"bands": torch.cat([x.mean(-1), x.std(-1, correction=0)], dim=-1)}

    return _collect(
        prepare, features, {"what": "statistics", "patch": patch_size, "channels": used}, data, tuple(used),
        level=level, patch_size=patch_size, size=target, batch_size=batch_size, cache=cache,
        progress=progress,
    )  # fmt: skip


def identity(model: nn.Module) -> dict[str, Any]:
    """Return what decides what a model makes of an image, as JSON takes it: the key of what is kept of it."""
    backbone = unwrapped(model)
    return {
        "weights": weights_digest(backbone),
        "architecture": backbone.architecture,
        "config": as_json(backbone.config),
        "inputs": {
            m: dataclasses.asdict(backbone.inputs[m]) for m in backbone.modalities if m in backbone.inputs
        },
        "pad": backbone.pad,
        "positions": interpolated_from(backbone),
        "torch": torch.__version__,
    }


def weights_digest(model: Backbone) -> str:
    """Return the sha256 of a model's weights as they are now, without its head.

    That of the file does not do: bands adapt weights, and training changes them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _collect(
    prepare: Callable[[Mapping[str, Array]], dict[str, Tensor]],
    features: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    job: Mapping[str, Any],
    data: LabelledSet,
    modalities: Sequence[str],
    *,
    level: Level,
    patch_size: int,
    size: Size | None,
    batch_size: int,
    cache: Path | None,
    progress: bool,
) -> Encoded:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    job = {"version": VERSION, **job, "data": data.digest, "level": level, "size": size}
    key = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    images = np.unique(np.concatenate(list(data.splits.values()))).astype(np.int64)
    store = RowStore(None if cache is None else cache / key[:32], job, len(data))
    todo = images[~store.done[images]].tolist()
    read = _Reader(data, modalities, size, prepare)
    with progress_bar(len(images), len(images) - len(todo), enabled=progress, unit="image") as bar:
        for start in range(0, len(todo), batch_size):
            indices = todo[start : start + batch_size]
            try:
                batch, maps = read(indices)
                made = {s: x.float().cpu().numpy() for s, x in _of_dates(features, batch, data.task).items()}
            except ValueError:
                store.discard()
                raise
            if maps is not None and level == "patch":
                made["pixels"] = _count(maps, patch_size, len(data.classes))
            store.write(indices, _as_rows(made))
            bar.update(len(indices))
    read.warn_of_offsets(len(todo))
    return _encoded(store.read(images), images, data, level, key)


@dataclass
class _Reader:
    """Reads batches, and checks that their images are alike."""

    data: LabelledSet
    modalities: Sequence[str]
    size: Size | None
    prepare: Callable[[Mapping[str, Array]], dict[str, Tensor]]
    seen: Size | None = None
    bright: Counter[str] = field(default_factory=Counter)

    def __call__(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Array | None]:
        """Return by sensor [B, C, H, W], or [B, 2, C, H, W] of two dates, and [B, H, W] of label maps."""
        images: dict[str, list[Tensor]] = {m: [] for m in self.modalities}
        maps = []
        for index in indices:
            try:
                sample = self.data.read(index)
                self._check(sample)
                # One by one: what an image becomes does not depend on its neighbours.
                for m, x in self._prepared(sample).items():
                    images[m].append(x)
            except ValueError as error:
                name = self.data.ids[index]
                said = str(error).removeprefix(f"{name}: ")
                raise ValueError(f"{self.data.name}: {name}: {said}") from error
            if "label" in sample:
                label_scale(sample)
                height, width = sample[self.modalities[0]].shape[-2:]
                maps.append(_nearest(sample["label"], self.size or (height, width)))
        return {m: torch.stack(held) for m, held in images.items()}, np.stack(maps) if maps else None

    def _prepared(self, sample: Mapping[str, Array]) -> dict[str, Tensor]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", OffsetWarning)
            made = self.prepare(sample)
        for one in caught:
            if one.category is OffsetWarning:
                self.bright[str(one.message)] += 1
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return made

    def warn_of_offsets(self, count: int) -> None:
        """Warn where none of ``count`` images has a dark pixel: that a single one has none says nothing."""
        for said, many in self.bright.items():
            if many == count:
                warnings.warn(
                    f"{self.data.name}, all images: {said}; in the command --units",
                    OffsetWarning,
                    stacklevel=2,
                )

    def _check(self, sample: Mapping[str, Array]) -> None:
        for m in self.modalities:
            image = sample[m]
            if image.dtype.kind == "f" and not np.isfinite(image).all():
                bad = ~np.isfinite(image).all(axis=tuple(range(image.ndim - 2)))
                raise ValueError(
                    f"{m} has NaN or infinity in {int(bad.sum())} of {bad.size} pixels; fill them, or leave "
                    "the sample out"
                )
            shape = (image.shape[-2], image.shape[-1])
            self.seen = self.seen or shape
            if shape != self.seen and self.size is None:
                raise ValueError(
                    f"{m} has {shape[0]} x {shape[1]} pixels, others of the set have {self.seen[0]} x "
                    f"{self.seen[1]}; name one size for all, size= (--size)"
                )


def _of_dates(
    features: Callable[[dict[str, Tensor]], dict[str, Tensor]], batch: dict[str, Tensor], task: Task
) -> dict[str, Tensor]:
    if task != "change":
        return features(batch)
    before, after = (features({m: x[:, date] for m, x in batch.items()}) for date in (0, 1))
    return {s: (after[s] - before[s]).abs() for s in before}


def _as_rows(made: Mapping[str, Array]) -> Array:
    count = len(next(iter(made.values())))
    rows = np.zeros(count, [(name, x.dtype.newbyteorder("<"), x.shape[1:]) for name, x in made.items()])
    for name, x in made.items():
        rows[name] = x
    return rows


def _encoded(
    rows: Array, images: npt.NDArray[np.int64], data: LabelledSet, level: Level, key: str
) -> Encoded:
    streams = [name for name in rows.dtype.names or () if name != "pixels"]
    if level == "image":
        features = {}
        for s in streams:
            features[s] = np.full((len(data), *rows.dtype[s].shape), np.nan, np.float32)
            features[s][images] = rows[s]
        groups = np.arange(len(data))
        return Encoded(
            features=features, labels=data.labels, groups=groups, pixels=None, level=level, key=key
        )
    patches = rows.dtype[streams[0]].shape[0]
    groups = np.repeat(images, patches)
    features = {s: rows[s].reshape(len(groups), -1) for s in streams}
    if "pixels" not in (rows.dtype.names or ()):
        labels = None if data.labels is None else data.labels[groups]
        return Encoded(features=features, labels=labels, groups=groups, pixels=None, level=level, key=key)
    pixels = rows["pixels"].reshape(len(groups), -1).astype(np.int64)
    labelled = pixels.any(axis=1)
    pixels = pixels[labelled]
    return Encoded(
        features={s: x[labelled] for s, x in features.items()},
        labels=pixels.argmax(axis=1).astype(np.int64),
        groups=groups[labelled],
        pixels=pixels,
        level=level,
        key=key,
    )


def _resized(x: Tensor, size: Size | None) -> Tensor:
    """[..., C, H, W] to a size."""
    if size is None or x.shape[-2:] == size:
        return x
    flat = x.reshape(-1, *x.shape[-3:])
    fine: Tensor = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return fine.reshape(*x.shape[:-2], *size)


def _nearest(labels: Array, size: Size) -> Array:
    """A label map to a size: the label under the centre of every new pixel."""
    if labels.shape == size:
        return labels
    height, width = labels.shape
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    resized: Array = labels[rows[:, None], columns]
    return resized


def _count(maps: Array, patch: int, classes: int) -> Array:
    """Count the pixels of every class in every patch: [B, H, W] to [B, n, K] int32."""
    below, right = (-side % patch for side in maps.shape[1:])
    maps = np.pad(maps, ((0, 0), (0, below), (0, right)), constant_values=IGNORED)
    images, height, width = maps.shape
    cells = maps.reshape(images, height // patch, patch, width // patch, patch).swapaxes(2, 3)
    cells = cells.reshape(images, -1, patch * patch)
    return np.stack([(cells == number).sum(-1) for number in range(classes)], axis=-1).astype(np.int32)


def _check_size(size: Size | None, model: Backbone, what: str) -> None:
    if size is not None and not model.pad and any(side < 1 or side % model.patch_size for side in size):
        raise ValueError(_no_multiple(what, size, model.patch_size))


def _no_multiple(what: str, size: Size, patch: int) -> str:
    fitting = tuple(max(patch, -(-side // patch) * patch) for side in size)
    near = fitting[0] if fitting[0] == fitting[1] else fitting
    return (
        f"{what} {size[0]} x {size[1]} pixels are no multiple of the patch size {patch}; resize them, "
        f"size={near} (--size)"
    )

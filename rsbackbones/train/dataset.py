"""From sources to batches: read, cut, normalize, turn, mix, and draw the objective's random numbers.

A sample is a function of (seed, epoch, source, index). A sample that cannot be used is replaced by another of
its source and named in the batch; the loop decides when these are too many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rsbackbones.data.augment import (
    CropRange,
    Flips,
    Region,
    View,
    crop_sides,
    cut,
    draw_mixup,
    draw_views,
    mix,
    resize_and_turn,
)
from rsbackbones.data.source import BadSample, Sample, Source
from rsbackbones.preprocess import Preprocess
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.sampler import Key

SampleNoise = Callable[[torch.Generator, tuple[str, ...], int], dict[str, Tensor]]

# After so many unusable samples in a row a source is taken to be broken as a whole.
_MOST_IN_A_ROW = 64


@dataclass(frozen=True, kw_only=True)
class Views:
    """How samples are cut and mixed; see :mod:`rsbackbones.data.augment`.

    ``crop``: smallest and largest side in pixels of the source; ``size``: side of what the model gets.
    ``region``: how the crops of the seasons of a place lie to each other. ``mixup`` 0 is none.
    """

    crop: CropRange
    size: int
    flips: Flips = True
    rot90: bool = True
    region: Region = "same"
    mixup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataStream:
    """A source in use: what is normalized how, and how it is viewed. ``repeat``: times per epoch.

    ``seasons``: the dates that make a sample; see :attr:`ObjectiveConfig.seasons`. ``task``: what samples
        are for.

    Raises:
        ValueError: the source has fewer dates.
    """

    source: Source
    preprocess: Preprocess
    views: Views
    repeat: int = 1
    seasons: int | None = None
    task: str = ""

    def __post_init__(self) -> None:
        if self.seasons is not None and self.source.frames < self.seasons:
            raise ValueError(
                f"{self.source.name} has {self.source.frames} date(s) for each place, and samples are series "
                f"of {self.seasons}: leave it out, or train on fewer (objective.length=; 1 with stages=[])"
            )

    @property
    def frames(self) -> int:
        """How many samples a place is."""
        return self.source.frames if self.seasons is None else 1

    def __len__(self) -> int:
        return len(self.source) * self.frames

    def check_size(self, height: int, width: int) -> None:
        """Check that the views fit into an image.

        Raises:
            BadSample: the image is too small for them.
        """
        side, (low, high) = min(height, width), crop_sides(self.views.crop, min(height, width))
        if high < low:
            raise BadSample(f"{side} pixels are less than the smallest crop, {low}")
        try:
            self.draw_views(torch.Generator(), height, width)
        except ValueError as error:
            raise BadSample(str(error)) from error

    def draw_views(self, generator: torch.Generator, height: int, width: int) -> list[View]:
        """Draw the views of a sample: one, or one for each of its seasons."""
        views = self.views
        return draw_views(
            generator, height, width, self.seasons or 1, region=views.region, crop=views.crop,
            flips=views.flips, rot90=views.rot90,
        )  # fmt: skip


def sample_generator(seed: int, key: Key) -> torch.Generator:
    """Return the generator that everything random about a sample comes from."""
    state = np.random.SeedSequence((seed, *key)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class TrainingSet(Dataset[Batch]):
    """Batches of keys to batches of samples.

    Args:
        streams: the sources.
        stride: pixels per cell of the model's final map, of a ViT the patch size.
        sample_noise: makes the objective's random numbers of a sample.
        views: names of the augmented views of a sample, each drawn for itself; by default one without a name.
        seed: of the run.
    """

    def __init__(
        self,
        streams: Sequence[DataStream],
        *,
        stride: int,
        sample_noise: SampleNoise,
        views: Sequence[str] = (),
        seed: int,
    ) -> None:
        self.streams = tuple(streams)
        self.stride = stride
        self.sample_noise = sample_noise
        self.views = tuple(views)
        self.seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Make the batch of these keys; all are of one source.

        Raises:
            BadSample: so many samples in a row cannot be used that the source must be broken.
        """
        stream = self.streams[keys[0][1]]
        modalities = tuple(stream.preprocess.specs)
        views = self.views or ("",)
        images: dict[str, dict[str, list[Tensor]]] = {view: {m: [] for m in modalities} for view in views}
        valid: dict[str, list[Tensor]] = {m: [] for m in modalities}
        noise: dict[str, list[Tensor]] = {}
        names: list[str] = []
        skipped: dict[str, str] = {}
        for key in keys:
            generator = sample_generator(self.seed, key)
            # The objective's numbers first: they must not depend on what a sample's views need.
            patches = (-(-stream.views.size // self.stride)) ** 2
            for name, value in self.sample_noise(generator, modalities, patches).items():
                noise.setdefault(name, []).append(value)
            sample, place = self._take(stream, key[2], skipped, generator)
            seen, held = [_view(stream, sample, generator) for _ in views], _held(stream, sample)
            if stream.views.mixup:
                index, share = draw_mixup(generator, stream.views.mixup, len(stream))
                partner, _ = self._take(stream, index, skipped, generator)
                seen = [mix(one, _view(stream, partner, generator), share) for one in seen]
                held = {m: present & _held(stream, partner)[m] for m, present in held.items()}
            for m, present in held.items():
                for one in seen:
                    one[m][~present] = 0  # normalized, what is missing would be some value
                valid[m].append(present)
            for view, one in zip(views, seen, strict=True):
                for m in modalities:
                    images[view][m].append(one[m])
            names.append(place)
        stacked = {view: {m: torch.stack(x) for m, x in each.items()} for view, each in images.items()}
        return Batch(
            images={} if self.views else stacked[""],
            views=stacked if self.views else {},
            bands={m: stream.preprocess.specs[m].bands for m in modalities},
            noise={name: torch.stack(x) for name, x in noise.items()},
            valid={m: torch.stack(x) for m, x in valid.items() if x and not all(row.all() for row in x)},
            task=stream.task,
            names=tuple(names),
            skipped=tuple(skipped.items()),
        )

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def _take(
        self, stream: DataStream, index: int, skipped: dict[str, str], generator: torch.Generator
    ) -> tuple[Sample, str]:
        """Read a sample; of a place with more dates than are used, some."""
        sample, name = self._read(stream, index, skipped)
        if stream.seasons is not None and stream.seasons > 1:
            sample = _some_seasons(sample, stream.seasons, stream.source.frames, generator)
        return sample, name

    def _read(self, stream: DataStream, index: int, skipped: dict[str, str]) -> tuple[Sample, str]:
        """Read a sample, or the next one (in the next file); note those that were not usable."""
        source = stream.source
        in_file = source.block * stream.frames
        stride = in_file + (in_file > 1)
        for attempt in range(min(_MOST_IN_A_ROW, len(stream))):
            place, frame = divmod((index + attempt * stride) % len(stream), stream.frames)
            name = f"{source.name}: {source.describe(place)}"
            try:
                sample = source.read(place, frame) if stream.seasons is None else _dates_of(stream, place)
                used = stream.preprocess.specs
                sample = replace(
                    sample,
                    images={m: sample.images[m] for m in used},
                    valid={m: held for m, held in sample.valid.items() if m in used},
                )
                stream.check_size(*next(iter(sample.images.values())).shape[-2:])
                return sample, name
            except BadSample as problem:
                skipped[name] = str(problem)
        raise BadSample(
            f"{source.name}: {min(_MOST_IN_A_ROW, len(stream))} samples in a row cannot be used, the last: "
            f"{name}: {skipped[name]}"
        )


def _held(stream: DataStream, sample: Sample) -> dict[str, Tensor]:
    """Return by sensor at which dates of a sample it has an image, [T]; nothing where dates are samples."""
    if stream.seasons is None:
        return {}
    every = np.ones(stream.seasons, bool)
    return {m: torch.from_numpy(sample.valid.get(m, every)) for m in sample.images}


def _dates_of(stream: DataStream, place: int) -> Sample:
    """Read all dates of a place; or, for samples of one season, the first that a sensor in use has.

    Another sensor may be missing at it, and is marked.

    Raises:
        BadSample: it cannot be used.
    """
    if stream.seasons != 1:
        return stream.source.read(place)
    try:
        return stream.source.read(place, 0)
    except BadSample:
        whole = stream.source.read(place)  # here what is missing is marked
        every = np.ones(stream.source.frames, bool)
        held = np.stack([whole.valid.get(m, every) for m in stream.preprocess.specs]).any(axis=0)
        if not held.any():
            raise
        t = int(held.argmax())
        return replace(
            whole,
            images={m: x[t] for m, x in whole.images.items()},
            dates={m: x[t : t + 1] for m, x in whole.dates.items()},
            valid={m: x[t : t + 1] for m, x in whole.valid.items()},
        )


def _some_seasons(sample: Sample, seasons: int, frames: int, generator: torch.Generator) -> Sample:
    """Take ``seasons`` of all dates of a place, evenly apart, from a random one on: in order of time."""
    step = frames // seasons
    first = int(torch.randint(frames - step * (seasons - 1), (1,), generator=generator))
    taken = slice(first, first + step * (seasons - 1) + 1, step)
    return replace(
        sample,
        images={m: x[taken] for m, x in sample.images.items()},
        dates={m: x[taken] for m, x in sample.dates.items()},
        valid={m: x[taken] for m, x in sample.valid.items()},
    )


def _view(stream: DataStream, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
    """Cut, normalize and turn: [C, H, W] to [C, size, size]; with seasons [T, C, H, W] to as many."""
    height, width = next(iter(sample.images.values())).shape[-2:]
    drawn = stream.draw_views(generator, height, width)
    of_seasons = []
    for t, view in enumerate(drawn):
        of_season = {m: x if x.ndim == 3 else x[t] for m, x in sample.images.items()}
        # Cut before normalizing: the same values, from less of them.
        squares = stream.preprocess({m: cut(view, image) for m, image in of_season.items()})
        of_seasons.append({m: resize_and_turn(view, x, stream.views.size) for m, x in squares.items()})
    if stream.seasons is None:
        return of_seasons[0]
    return {m: torch.stack([season[m] for season in of_seasons]) for m in of_seasons[0]}

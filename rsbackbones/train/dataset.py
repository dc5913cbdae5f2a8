"""From sources to batches: read, crop, normalize, augment, mix, and draw the objective's random numbers.

A sample is a function of (seed, epoch, source, index). A sample that cannot be used is replaced by another
sample of its source and listed in the batch. The trainer stops a run with too many of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

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
from rsbackbones.data.series import stack_padded
from rsbackbones.data.source import BadSample, Sample, Source
from rsbackbones.data.two_views import draw_look, geometry, picture
from rsbackbones.preprocess import Preprocess
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.sampler import Key

SampleNoise = Callable[[torch.Generator, tuple[str, ...], tuple[int, int]], dict[str, Tensor]]

# After this many unusable samples in a row the whole source is considered broken.
_MOST_IN_A_ROW = 64


@dataclass(frozen=True, kw_only=True)
class Views:
    """How samples are cropped and mixed; see :mod:`rsbackbones.data.augment`.

    Attributes:
        crop: the smallest and largest side of a crop, in pixels of the source.
        size: the side of the model's input.
        flips, turns: random flips and quarter turns.
        region: the relative position of the crops of a location's dates.
        mixup: the parameter of the beta distribution; 0 disables it.
        looks: draw MoCo-v2's views instead (:mod:`rsbackbones.data.two_views`), whose crops are shares of the
            area, within ``crop``.
    """

    crop: CropRange
    size: int
    flips: Flips = True
    rot90: bool = True
    region: Region = "same"
    mixup: float = 0.0
    looks: bool = False


@dataclass(frozen=True, kw_only=True)
class DataStream:
    """A source with the normalization and augmentation of its samples.

    Attributes:
        source: where samples are read.
        preprocess: normalizes the bands that are used.
        views: how samples are cropped and mixed.
        repeat: how often an epoch goes over the source.
        seasons: the dates that make a sample; see :attr:`ObjectiveConfig.seasons`.
        task: the task of its samples.
        scales: by modality, how many times as many pixels along each side its images have as ``views.size``;
            by default 1.

    Raises:
        ValueError: the source has fewer dates, or the views do not apply to series of all dates.
    """

    source: Source
    preprocess: Preprocess
    views: Views
    repeat: int = 1
    seasons: int | Literal["all"] | None = None
    task: str = ""
    scales: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source.frames is None:
            raise ValueError(
                f"the sensors of {self.source.name} have series of their own lengths, and this method does "
                "not align them; objective.method=s4 does"
            )
        if self.seasons == "all":
            if self.views.mixup or self.views.region != "same":
                raise ValueError(
                    "samples of all dates of a place have one crop and cannot be mixed with another place, "
                    f"whose dates differ: data.region=same data.mixup=0, got {self.views.region} and "
                    f"{self.views.mixup}"
                )
        elif self.seasons is not None and self.dates < self.seasons:
            raise ValueError(
                f"{self.source.name} has {self.dates} date(s) for each place, and samples are series "
                f"of {self.seasons}: leave it out, or train on fewer (objective.length=; 1 with stages=[])"
            )

    @property
    def frames(self) -> int:
        """The number of samples per location."""
        return self.dates if self.seasons is None else 1

    @property
    def dates(self) -> int:
        """The number of dates per location."""
        assert self.source.frames is not None
        return self.source.frames

    def __len__(self) -> int:
        return len(self.source) * self.frames

    def check_size(self, height: int, width: int) -> None:
        """Check that an image is large enough for the crops.

        Raises:
            BadSample: it is too small.
        """
        side, (low, high) = min(height, width), crop_sides(self.views.crop, min(height, width))
        if high < low:
            raise BadSample(
                f"{side} pixels are less than the smallest crop, {low}: data.crop={side},{side} (of a part, "
                "data.parts.N.crop)"
            )
        try:
            self.draw_views(torch.Generator(), height, width)
        except ValueError as error:
            raise BadSample(str(error)) from error

    def draw_views(self, generator: torch.Generator, height: int, width: int) -> list[View]:
        """Draw one view per date of a sample; a single one for series of all dates."""
        views = self.views
        count = 1 if self.seasons is None or self.seasons == "all" else self.seasons
        return draw_views(
            generator, height, width, count, region=views.region, crop=views.crop,
            flips=views.flips, rot90=views.rot90,
        )  # fmt: skip


def sample_generator(seed: int, key: Key) -> torch.Generator:
    """Return the generator of all random numbers of a sample."""
    state = np.random.SeedSequence((seed, *key)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class TrainingSet(Dataset[Batch]):
    """A dataset of batches: maps lists of keys to :class:`Batch`.

    Args:
        streams: the sources.
        stride: pixels per cell of the model's final map (the patch size of a ViT).
        sample_noise: draws the objective's random numbers of a sample.
        views: names of independently augmented views of a sample; by default a single unnamed one.
        seed: the seed of the run.
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
        """Return the batch of these keys, which all belong to one source.

        Raises:
            BadSample: too many samples in a row cannot be used.
        """
        stream = self.streams[keys[0][1]]
        modalities = tuple(stream.preprocess.specs)
        views = self.views or ("",)
        images: dict[str, dict[str, list[Tensor]]] = {view: {} for view in views}
        dates: dict[str, list[Tensor]] = {}
        valid: dict[str, list[Tensor]] = {m: [] for m in modalities}
        noise: dict[str, list[Tensor]] = {}
        names: list[str] = []
        skipped: dict[str, str] = {}
        for key in keys:
            generator = sample_generator(self.seed, key)
            # First, so that the numbers do not depend on how many the views need.
            side = -(-stream.views.size // self.stride)
            for name, value in self.sample_noise(generator, modalities, (side, side)).items():
                noise.setdefault(name, []).append(value)
            sample, place = self._take(stream, key[2], skipped, generator)
            seen, held = _views(stream, sample, generator, len(views)), _held(stream, sample)
            if stream.views.mixup:
                index, share = draw_mixup(generator, stream.views.mixup, len(stream))
                partner, _ = self._take(stream, index, skipped, generator)
                others = _views(stream, partner, generator, len(views))
                seen = [mix(one, other, share) for one, other in zip(seen, others, strict=True)]
                held = {m: present & _held(stream, partner)[m] for m, present in held.items()}
            elif stream.seasons is not None:
                for m, days in sample.dates.items():
                    dates.setdefault(m, []).append(torch.from_numpy(days.astype(np.int64)))
            for m, present in held.items():
                for one in seen:
                    one[m][~present] = 0  # after normalization: zeros are not mapped to zeros by it
                valid[m].append(present)
            for view, one in zip(views, seen, strict=True):
                for m, image in one.items():
                    images[view].setdefault(m, []).append(image)
            names.append(place)
        # Series of unequal length end with zeros, which are not valid.
        stacked = {view: {m: stack_padded(x) for m, x in each.items()} for view, each in images.items()}
        masks = {m: stack_padded(x) for m, x in valid.items() if x}
        return Batch(
            images={} if self.views else stacked[""],
            views=stacked if self.views else {},
            bands={m: stream.preprocess.specs[m].bands for m in modalities},
            noise={name: torch.stack(x) for name, x in noise.items()},
            dates={m: stack_padded(x) for m, x in dates.items()},
            valid={m: mask for m, mask in masks.items() if not mask.all()},
            task=stream.task,
            names=tuple(names),
            skipped=tuple(skipped.items()),
        )

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def _take(
        self, stream: DataStream, index: int, skipped: dict[str, str], generator: torch.Generator
    ) -> tuple[Sample, str]:
        """Read a sample. If its location has more dates than a sample, draw some of them."""
        sample, name = self._read(stream, index, skipped)
        if isinstance(stream.seasons, int) and stream.seasons > 1:
            sample = _some_seasons(sample, stream.seasons, stream.dates, generator)
        return sample, name

    def _read(self, stream: DataStream, index: int, skipped: dict[str, str]) -> tuple[Sample, str]:
        """Read a sample; if it cannot be used, record it and read another one (from the next file)."""
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
                    dates={m: days for m, days in sample.dates.items() if m in used},
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
    """Return masks [T] of the valid images of a series, by modality; empty if every date is a sample."""
    if stream.seasons is None:
        return {}
    lengths = {m: 1 if x.ndim == 3 else len(x) for m, x in sample.images.items()}
    return {m: torch.from_numpy(sample.valid.get(m, np.ones(n, bool))) for m, n in lengths.items()}


def _dates_of(stream: DataStream, place: int) -> Sample:
    """Read all dates of a location; for samples of one date, the first with an image of any used sensor.

    Other sensors may be missing at that date; ``valid`` marks them.

    Raises:
        BadSample: the location cannot be used.
    """
    if stream.seasons != 1:
        return stream.source.read(place)
    try:
        return stream.source.read(place, 0)
    except BadSample:
        whole = stream.source.read(place)  # marks missing images instead of raising
        every = np.ones(stream.dates, bool)
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
    """Select ``seasons`` evenly spaced dates of a location with a random offset, in order of time."""
    step = frames // seasons
    first = int(torch.randint(frames - step * (seasons - 1), (1,), generator=generator))
    taken = slice(first, first + step * (seasons - 1) + 1, step)
    return replace(
        sample,
        images={m: x[taken] for m, x in sample.images.items()},
        dates={m: x[taken] for m, x in sample.dates.items()},
        valid={m: x[taken] for m, x in sample.valid.items()},
    )


def _views(
    stream: DataStream, sample: Sample, generator: torch.Generator, count: int
) -> list[dict[str, Tensor]]:
    """Return independently augmented views of a sample."""
    if not stream.views.looks:
        return [_view(stream, sample, generator) for _ in range(count)]
    seen = stream.preprocess(sample.images)
    picture, *targets = stream.preprocess.specs
    views = [{picture: seen[picture]} for _ in range(count)]
    views[0] |= {m: seen[m] for m in targets}
    return [_look(stream, images, generator) for images in views]


def _look(stream: DataStream, images: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Take a look at normalized images [C, H, W]: a picture, then targets, which keep their values."""
    (first, whole), *others = images.items()
    size, spec = stream.views.size, stream.preprocess.specs[first]
    look = draw_look(generator, *whole.shape[-2:], area=stream.views.crop)
    # Colors are changed between 0 and 1, so the normalization is undone.
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    seen = (picture(look, (whole * std + mean).clamp(0, 1), size) - mean) / std
    return {first: seen, **{m: geometry(look, x, size) for m, x in others}}


def _view(stream: DataStream, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
    """Crop, normalize and augment: [C, H, W] to [C, size, size]; a series [T, C, H, W] date by date."""
    height, width = next(iter(sample.images.values())).shape[-2:]
    drawn = stream.draw_views(generator, height, width)
    sides = {m: stream.views.size * stream.scales.get(m, 1) for m in sample.images}
    if stream.seasons == "all":
        view = drawn[0]
        series = stream.preprocess({m: cut(view, x) for m, x in sample.images.items()})
        return {
            m: torch.stack([resize_and_turn(view, one, sides[m]) for one in x]) for m, x in series.items()
        }
    of_seasons = []
    for t, view in enumerate(drawn):
        of_season = {m: x if x.ndim == 3 else x[t] for m, x in sample.images.items()}
        # Cropped before normalization, which gives the same values at less cost.
        squares = stream.preprocess({m: cut(view, image) for m, image in of_season.items()})
        of_seasons.append({m: resize_and_turn(view, x, sides[m]) for m, x in squares.items()})
    if stream.seasons is None:
        return of_seasons[0]
    return {m: torch.stack([season[m] for season in of_seasons]) for m in of_seasons[0]}

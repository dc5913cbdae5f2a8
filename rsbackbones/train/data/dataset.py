"""From sources to batches: read, cut, normalise, turn, mix, and draw the objective's random numbers.

A sample is a function of (seed, epoch, source, index). A sample that cannot be used is replaced by another of
its source and named in the batch; the loop decides when these are too many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rsbackbones.preprocess import Preprocess
from rsbackbones.train.data.augment import (
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
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.data.sampler import Key
from rsbackbones.train.data.source import BadSample, Sample, Source

Draw = Callable[[torch.Generator, tuple[str, ...], int], dict[str, Tensor]]

# After so many unusable samples in a row a source is taken to be broken as a whole.
_MOST_IN_A_ROW = 64


@dataclass(frozen=True, kw_only=True)
class Views:
    """How samples are cut and mixed; see :mod:`rsbackbones.train.data.augment`.

    ``crop``: smallest and largest side in pixels of the source; ``size``: side of what the model gets.
    ``region``: how the crops of the seasons of a place lie to each other. ``mixup`` 0 is none.
    """

    crop: CropRange
    size: int
    flips: Flips = True
    turns: bool = True
    region: Region = "same"
    mixup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Use:
    """A source in use: what is normalised how, and how it is viewed. ``repeat``: times per epoch.

    ``seasons``: the dates that make a sample; see :attr:`ObjectiveConfig.seasons`.

    Raises:
        ValueError: the source has fewer dates.
    """

    source: Source
    preprocess: Preprocess
    views: Views
    repeat: int = 1
    seasons: int | None = None

    def __post_init__(self) -> None:
        if self.seasons is not None and self.source.frames < self.seasons:
            raise ValueError(
                f"{self.source.name} has {self.source.frames} date(s) for each place, and samples are series "
                f"of {self.seasons}: leave it out, or train on fewer (objective.length=; 1 with first={{}})"
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
            flips=views.flips, turns=views.turns,
        )  # fmt: skip


def sample_generator(seed: int, key: Key) -> torch.Generator:
    """Return the generator that everything random about a sample comes from."""
    state = np.random.SeedSequence((seed, *key)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class TrainingSet(Dataset[Batch]):
    """Batches of keys to batches of samples; ``draw`` makes the objective's random numbers of a sample."""

    def __init__(self, uses: Sequence[Use], *, patch_size: int, draw: Draw, seed: int) -> None:
        self.uses = tuple(uses)
        self.patch_size = patch_size
        self.draw = draw
        self.seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Make the batch of these keys; all are of one source.

        Raises:
            BadSample: so many samples in a row cannot be used that the source must be broken.
        """
        use = self.uses[keys[0][1]]
        modalities = tuple(use.preprocess.specs)
        images: dict[str, list[Tensor]] = {m: [] for m in modalities}
        valid: dict[str, list[Tensor]] = {m: [] for m in modalities}
        draws: dict[str, list[Tensor]] = {}
        names: list[str] = []
        skipped: dict[str, str] = {}
        for key in keys:
            generator = sample_generator(self.seed, key)
            # The objective's numbers first: they must not depend on what a sample's views need.
            for name, value in self.draw(
                generator, modalities, (use.views.size // self.patch_size) ** 2
            ).items():
                draws.setdefault(name, []).append(value)
            sample, place = self._take(use, key[2], skipped, generator)
            view, held = _view(use, sample, generator), _held(use, sample)
            if use.views.mixup:
                index, share = draw_mixup(generator, use.views.mixup, len(use))
                partner, _ = self._take(use, index, skipped, generator)
                view = mix(view, _view(use, partner, generator), share)
                held = {m: present & _held(use, partner)[m] for m, present in held.items()}
            for m, present in held.items():
                view[m][~present] = 0  # normalised, what is missing would be some value
                valid[m].append(present)
            for m in modalities:
                images[m].append(view[m])
            names.append(place)
        return Batch(
            images={m: torch.stack(x) for m, x in images.items()},
            bands={m: use.preprocess.specs[m].bands for m in modalities},
            draws={name: torch.stack(x) for name, x in draws.items()},
            valid={m: torch.stack(x) for m, x in valid.items() if x and not all(row.all() for row in x)},
            names=tuple(names),
            skipped=tuple(skipped.items()),
        )

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def _take(
        self, use: Use, index: int, skipped: dict[str, str], generator: torch.Generator
    ) -> tuple[Sample, str]:
        """Read a sample; of a place with more dates than are used, some."""
        sample, name = self._read(use, index, skipped)
        if use.seasons is not None and use.seasons > 1:
            sample = _some_seasons(sample, use.seasons, use.source.frames, generator)
        return sample, name

    def _read(self, use: Use, index: int, skipped: dict[str, str]) -> tuple[Sample, str]:
        """Read a sample, or the next one (in the next file); note those that were not usable."""
        source = use.source
        in_file = source.block * use.frames
        stride = in_file + (in_file > 1)
        for attempt in range(min(_MOST_IN_A_ROW, len(use))):
            place, frame = divmod((index + attempt * stride) % len(use), use.frames)
            name = f"{source.name}: {source.describe(place)}"
            try:
                sample = source.read(place, frame) if use.seasons is None else _dates_of(use, place)
                used = use.preprocess.specs
                sample = replace(
                    sample,
                    images={m: sample.images[m] for m in used},
                    valid={m: held for m, held in sample.valid.items() if m in used},
                )
                use.check_size(*next(iter(sample.images.values())).shape[-2:])
                return sample, name
            except BadSample as problem:
                skipped[name] = str(problem)
        raise BadSample(
            f"{source.name}: {min(_MOST_IN_A_ROW, len(use))} samples in a row cannot be used, the last: "
            f"{name}: {skipped[name]}"
        )


def _held(use: Use, sample: Sample) -> dict[str, Tensor]:
    """Return by sensor at which dates of a sample it has an image, [T]; nothing where dates are samples."""
    if use.seasons is None:
        return {}
    every = np.ones(use.seasons, bool)
    return {m: torch.from_numpy(sample.valid.get(m, every)) for m in sample.images}


def _dates_of(use: Use, place: int) -> Sample:
    """Read all dates of a place; or, for samples of one season, the first that a sensor in use has.

    Another sensor may be missing at it, and is marked.

    Raises:
        BadSample: it cannot be used.
    """
    if use.seasons != 1:
        return use.source.read(place)
    try:
        return use.source.read(place, 0)
    except BadSample:
        whole = use.source.read(place)  # here what is missing is marked
        every = np.ones(use.source.frames, bool)
        held = np.stack([whole.valid.get(m, every) for m in use.preprocess.specs]).any(axis=0)
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


def _view(use: Use, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
    """Cut, normalise and turn: [C, H, W] to [C, size, size]; with seasons [T, C, H, W] to as many."""
    height, width = next(iter(sample.images.values())).shape[-2:]
    drawn = use.draw_views(generator, height, width)
    of_seasons = []
    for t, view in enumerate(drawn):
        of_season = {m: x if x.ndim == 3 else x[t] for m, x in sample.images.items()}
        # Cut before normalising: the same values, from less of them.
        squares = use.preprocess({m: cut(view, image) for m, image in of_season.items()})
        of_seasons.append({m: resize_and_turn(view, x, use.views.size) for m, x in squares.items()})
    if use.seasons is None:
        return of_seasons[0]
    return {m: torch.stack([season[m] for season in of_seasons]) for m in of_seasons[0]}

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
from rsbackbones.train.data.augment import cut, draw_mixup, draw_view, mix, resize_and_turn
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
    ``mixup`` 0 is none.
    """

    crop: tuple[int, int]
    size: int
    flips: bool = True
    turns: bool = True
    mixup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Use:
    """A source in use: what is normalised how, and how it is viewed. ``repeat``: times per epoch."""

    source: Source
    preprocess: Preprocess
    views: Views
    repeat: int = 1

    def __len__(self) -> int:
        return len(self.source) * self.source.frames


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
            sample, place = self._read(use, key[2], skipped)
            view = _view(use, sample, generator)
            if use.views.mixup:
                index, share = draw_mixup(generator, use.views.mixup, len(use))
                partner, _ = self._read(use, index, skipped)
                view = mix(view, _view(use, partner, generator), share)
            for m in modalities:
                images[m].append(view[m])
            names.append(place)
        return Batch(
            images={m: torch.stack(x) for m, x in images.items()},
            bands={m: use.preprocess.specs[m].bands for m in modalities},
            draws={name: torch.stack(x) for name, x in draws.items()},
            names=tuple(names),
            skipped=tuple(skipped.items()),
        )

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def _read(self, use: Use, index: int, skipped: dict[str, str]) -> tuple[Sample, str]:
        """Read a sample, or the next one (in the next file); note those that were not usable."""
        source = use.source
        in_file = source.block * source.frames
        stride = in_file + (in_file > 1)
        for attempt in range(min(_MOST_IN_A_ROW, len(use))):
            place, frame = divmod((index + attempt * stride) % len(use), source.frames)
            name = f"{source.name}: {source.describe(place)}"
            try:
                sample = source.read(place, frame)
                sample = replace(sample, images={m: sample.images[m] for m in use.preprocess.specs})
                side = min(min(image.shape[-2:]) for image in sample.images.values())
                if side < use.views.crop[0]:
                    raise BadSample(f"{side} pixels are less than the smallest crop, {use.views.crop[0]}")
                return sample, name
            except BadSample as problem:
                skipped[name] = str(problem)
        raise BadSample(
            f"{source.name}: {min(_MOST_IN_A_ROW, len(use))} samples in a row cannot be used, the last: "
            f"{name}: {skipped[name]}"
        )


def _view(use: Use, sample: Sample, generator: torch.Generator) -> dict[str, Tensor]:
    height, width = next(iter(sample.images.values())).shape[-2:]
    views = use.views
    view = draw_view(generator, height, width, crop=views.crop, flips=views.flips, turns=views.turns)
    # Cut before normalising: the same values, from less of them.
    squares = use.preprocess({m: cut(view, image) for m, image in sample.images.items()})
    return {m: resize_and_turn(view, square, views.size) for m, square in squares.items()}

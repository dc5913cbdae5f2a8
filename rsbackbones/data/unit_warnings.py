"""Warnings about the units of many images, given once for all: a single one may be dark or bright.

Of the real series that :mod:`rsbackbones.value_check` is measured on, up to a quarter of the dates look as if
they had the offset, where clouds cover almost all; of other sets one image in a hundred does.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rsbackbones.value_check import MissingPixelsWarning, OffsetWarning, UnitWarning

# The share of the images that must raise a doubt for it to count.
_MOST, _SOME = 0.5, 0.25


class UnitWarnings:
    """Collects the warnings of ``create_preprocess`` about units and missing pixels, image by image."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[type[Warning], str]] = Counter()

    @contextmanager
    def of_image(self) -> Iterator[None]:
        """Keep the warnings of one image; others are given as usual."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UnitWarning)
            warnings.simplefilter("always", MissingPixelsWarning)
            yield
        kept = set()
        for one in caught:
            if issubclass(one.category, (UnitWarning, MissingPixelsWarning)):
                kept.add((one.category, str(one.message)))
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        self._counts.update(kept)

    def texts(self, images: int) -> list[tuple[type[Warning], str]]:
        """Return what holds for the set of this many images, with the number of images.

        A doubt about the unit counts where more than half of the images raise it; one about the offset where
        more than a quarter do, as sets hold products of before and after 2022. Missing pixels always count.
        """
        return [
            (category, f"{many} of {images} images: {text}" if many < images else f"all images: {text}")
            for (category, text), many in self._counts.items()
            if not issubclass(category, UnitWarning)
            or many > images * (_SOME if category is OffsetWarning else _MOST)
        ]

    def warn(self, name: str, images: int) -> None:
        """Give the warnings for a set of this many images."""
        for category, text in self.texts(images):
            warnings.warn(f"{name}, {text}", category, stacklevel=3)

"""Warnings about the units of many images, given once for all: a single one may be dark or bright."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rsbackbones.value_check import MissingPixelsWarning, UnitWarning


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

        A doubt about the unit counts where all images raise it.
        """
        return [
            (category, f"{many} of {images} images: {text}" if many < images else f"all images: {text}")
            for (category, text), many in self._counts.items()
            if many >= images or not issubclass(category, UnitWarning)
        ]

    def warn(self, name: str, images: int) -> None:
        """Give the warnings for a set of this many images."""
        for category, text in self.texts(images):
            warnings.warn(f"{name}, {text}", category, stacklevel=3)

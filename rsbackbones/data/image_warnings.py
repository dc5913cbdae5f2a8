"""The warnings that images of a set earn: counted, kept beside cached features, and given once for all.

A single image may be dark or bright: of the real series that :mod:`rsbackbones.value_check` is measured on,
up to a quarter of the dates look as if they had the offset, where clouds cover almost all; of other sets one
image in a hundred does. So a doubt about the unit counts where many images raise it. A series counts by the
share of its dates that do.
"""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rsbackbones.value_check import MissingPixelsWarning, OffsetWarning, ProductWarning, UnitWarning

# The share of the images that must raise a doubt for it to count.
_HALF, _QUARTER = 0.5, 0.25
# Of warnings that differ in their numbers, so many are shown.
_MOST_SHOWN = 5
_KINDS: dict[str, type[Warning]] = {
    kind.__name__: kind
    for kind in (UserWarning, UnitWarning, OffsetWarning, ProductWarning, MissingPixelsWarning)
}


@dataclass
class ImageWarnings:
    """The images that earned each warning, by its category and text, and which share of each (of its dates).

    ``file`` keeps them as JSON lines, written before the features of their batch: cached features come
    without their images. ``None``: they are kept in memory only.
    """

    file: Path | None = None
    earned: dict[tuple[type[Warning], str], dict[int, float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.file is None or not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                image, text, kind, share = (*json.loads(line), 1.0)[:4]
            except ValueError:  # the last line of a killed run, whose features were not kept either
                continue
            self.earned.setdefault((_KINDS.get(kind, UserWarning), text), {})[image] = share

    @contextmanager
    def of_image(self, image: int) -> Iterator[None]:
        """Record the warnings of one image, by its number.

        Those about units, products and missing pixels wait for :meth:`warn`; others are given at the first.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        for one in caught:
            kind = next((k for k in reversed(_KINDS.values()) if issubclass(one.category, k)), None)
            text, share = str(one.message), 1.0
            if isinstance(one.message, UnitWarning):
                text, share = one.message.finding, one.message.share
            new = kind is None or not self.earned.get((kind, text))
            if kind is not None:
                self.add(image, text, kind, share)
            if new and kind in (None, UserWarning):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

    def add(self, image: int, text: str, kind: type[Warning] = UserWarning, share: float = 1.0) -> None:
        """Record that an image, or a share of its dates, earned a warning."""
        images = self.earned.setdefault((kind, text), {})
        if image in images:
            return
        images[image] = share
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps([image, text, kind.__name__, share])}")

    def counts(self, images: Collection[int]) -> dict[str, int]:
        """Return by text how many of ``images`` earned it."""
        of = set(images)
        return {text: many for (_, text), held in self.earned.items() if (many := len(held.keys() & of))}

    def of_set(self, images: Collection[int]) -> list[tuple[type[Warning], str]]:
        """Return what holds for the set of these images, with the number that earned it.

        A doubt about the unit counts where more than half of the images raise it; one about the offset where
        more than a quarter do, as sets hold products of before and after 2022. Missing pixels and what files
        state always count.
        """
        of = set(images)
        found = []
        for (kind, text), held in self.earned.items():
            many, least = len(held.keys() & of), len(of) * (_QUARTER if kind is OffsetWarning else _HALF)
            enough = sum(held[image] for image in held.keys() & of) > least
            if many and kind is not UserWarning and (not issubclass(kind, UnitWarning) or enough):
                share = f"{many} of {len(of)} images" if many < len(of) else "all images"
                found.append((kind, f"{share}: {text}"))
        return found

    def warn(self, name: str, images: Collection[int]) -> None:
        """Give the warnings for a set of these images."""
        for category, text in self.of_set(images):
            warnings.warn(f"{name}, {text}", category, stacklevel=3)

    def discard(self) -> None:
        """Forget them."""
        self.earned.clear()
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def warning_notes(counts: Mapping[str, int], images: int) -> list[str]:
    """Return notes about the warnings of ``images`` images for the reader of a result."""
    ordered = sorted(counts, key=lambda text: -counts[text])
    notes = [f"warning at {counts[text]} of {images} images: {text}" for text in ordered[:_MOST_SHOWN]]
    if more := ordered[_MOST_SHOWN:]:
        notes.append(
            f"warnings at other images: {len(more)} more texts, {sum(counts[t] for t in more)} times"
        )
    return notes

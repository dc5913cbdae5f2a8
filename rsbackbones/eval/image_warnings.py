"""The warnings that images of a data set earn while they are encoded: counted, and kept beside the features.

Cached features come without their images, so the warnings are kept too: in a file of JSON lines, written
before the features of their batch.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Of warnings that differ in their numbers, so many are shown.
_MOST_SHOWN = 5


@dataclass
class ImageWarnings:
    """The images that earned each warning, by its text. ``file`` keeps them; ``None``: in memory only."""

    file: Path | None = None
    earned: dict[str, set[int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.file is None or not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                image, text = json.loads(line)
            except ValueError:  # the last line of a killed run, whose features were not kept either
                continue
            self.earned.setdefault(text, set()).add(image)

    def add(self, image: int, text: str) -> None:
        """Record that an image, by its index in the data set, earned a warning."""
        images = self.earned.setdefault(text, set())
        if image in images:
            return
        images.add(image)
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps([image, text])}")

    def counts(self, images: Collection[int]) -> dict[str, int]:
        """Return by text how many of ``images`` earned it."""
        of = set(images)
        return {text: many for text, held in self.earned.items() if (many := len(held & of))}

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

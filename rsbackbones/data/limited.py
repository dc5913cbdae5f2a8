"""A number of places of a source, chosen by their names."""

import hashlib

from rsbackbones.data.source import Sample, Source


def limit_source(source: Source, limit: int | None, seed: int) -> Source:
    """Return at most ``limit`` places of a source, drawn by a hash of their names; ``None``: the source.

    The choice depends on the names and the seed alone, and a smaller number is a part of a larger one.
    """
    return source if limit is None or len(source) <= limit else LimitedSource(source, limit, seed)


class LimitedSource:
    """``limit`` places of a source, in its order."""

    block = 1

    def __init__(self, source: Source, limit: int, seed: int) -> None:
        self.source = source
        self.name, self.frames, self.bands = source.name, source.frames, source.bands
        ranks = sorted(
            range(len(source)), key=lambda place: (_hash(f"{seed}:{source.describe(place)}"), place)
        )
        self._places = sorted(ranks[:limit])
        self.notes = (*source.notes, f"{limit} of {len(source)} samples, drawn by their names")

    def __len__(self) -> int:
        return len(self._places)

    def read(self, place: int, frame: int | None = None) -> Sample:
        """See :meth:`Source.read`."""
        return self.source.read(self._places[place], frame)

    def describe(self, place: int) -> str:
        """See :meth:`Source.describe`."""
        return self.source.describe(self._places[place])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

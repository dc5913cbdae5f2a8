"""Images that cannot be read, left out of an evaluation and named in its notes."""

from dataclasses import dataclass, field, replace

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.files.progress import progress_bar

# So many are named in the notes.
_MOST_NAMED = 5


@dataclass
class Readable:
    """Leaves out the images that cannot be read: those that are absent or damaged, or no images at all.

    Every image of a split is read once, so that all protocols, seeds and sources see the same ones.

    Attributes:
        progress: show a bar.
        left_out: why, by id.
    """

    progress: bool = False
    left_out: dict[str, str] = field(default_factory=dict, init=False)
    _read: set[str] = field(default_factory=set, init=False)

    def of(self, data: LabelledDataset) -> LabelledDataset:
        """Return the data set without the images that cannot be read.

        Raises:
            ValueError: none of a split can, or an image has another fault.
        """
        new = sorted(
            {int(i) for images in data.splits.values() for i in images if data.ids[i] not in self._read}
        )
        with progress_bar(len(new), 0, enabled=self.progress, unit="image") as bar:
            for index in new:
                try:
                    data.read(index)
                except ValueError as error:
                    if not _is_unreadable(error):
                        raise
                    self.left_out[data.ids[index]] = str(error)
                self._read.add(data.ids[index])
                bar.update()
        kept = {
            name: images[[data.ids[i] not in self.left_out for i in images]]
            for name, images in data.splits.items()
        }
        if empty := [name for name, images in kept.items() if len(data.splits[name]) and not len(images)]:
            raise ValueError(
                f"{data.name}: no image of the split {' and '.join(empty)} can be read; the first: "
                f"{next(iter(self.left_out.values()))}"
            )
        return replace(data, splits=kept)

    @property
    def notes(self) -> list[str]:
        """Notes on what was left out for the reader of a result."""
        named = [f"left out, not readable: {reason}" for reason in list(self.left_out.values())[:_MOST_NAMED]]
        if more := len(self.left_out) - len(named):
            named.append(f"left out, not readable: {more} more images")
        return named


def _is_unreadable(error: BaseException | None) -> bool:
    """Return whether an error comes from a file that cannot be read; other faults are no reason to skip."""
    while error is not None and not isinstance(error, UnreadableRaster):
        error = error.__cause__
    return error is not None

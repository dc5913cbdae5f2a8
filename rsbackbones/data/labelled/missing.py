"""Which pixels of a labelled data set do not count, as its user names them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsbackbones.data.class_masks import ClassMasks, mask_files
from rsbackbones.data.input_files import InputFiles
from rsbackbones.value_check import format_value


@dataclass(frozen=True)
class Missing:
    """Pixels that hold ``nodata`` in any band of a sensor, and those of the classes of a mask.

    ``mask`` is as for :func:`rsbackbones.embed.embed_patches`: ``{"SCL": (3, 8, 9, 10)}``.
    """

    nodata: float | None = None
    mask: ClassMasks = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.nodata is not None or bool(self.mask)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the pixels depend on, as JSON takes it."""
        files = InputFiles(mask_files(self.mask)).facts
        return {"nodata": self.nodata, "mask": {k: sorted(c) for k, c in self.mask.items()}, "files": files}

    def __str__(self) -> str:
        named = [f"{name} {', '.join(map(str, sorted(classes)))}" for name, classes in self.mask.items()]
        return "; ".join(
            [*([] if self.nodata is None else [f"those of {format_value(self.nodata)}"]), *named]
        )


NOTHING = Missing()

"""The finding about values, in words, and the quantiles that it rests on."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rsbackbones.input_spec import RGB8

# Quantiles are those of at most this many values of all bands, or of one, evenly spaced.
MOST, MOST_OF_BAND = 2**18, 2**16
_IN_WORDS = {
    "dn": "digital numbers (reflectance x 10000)",
    "dn_baseline_0400": "digital numbers with an offset of 1000",
    "reflectance": "reflectances (0 to 1)",
    "percent": "reflectances in percent",
    "landsat_c2": "Landsat Collection 2 numbers",
    "db": "decibels",
    "db_x100": "decibels x 100",
    "linear": "linear power",
    RGB8: "an 8-bit picture (0 to 255)",
}


class UnitWarning(UserWarning):
    """The values may be in another unit than the stated one; they do not tell.

    Attributes:
        finding: the text, without numbers of one batch or series: warnings of a set are counted by it.
        share: of the images of the batch or series that raise it.
    """

    def __init__(self, text: str, finding: str | None = None, share: float = 1.0) -> None:
        super().__init__(text)
        self.finding, self.share = finding or text, share


class OffsetWarning(UnitWarning):
    """Hardly a value is below 1000: the values may include the radiometric offset of Sentinel-2 products."""


class ProductWarning(UserWarning):
    """A file states that its product has the offset, and not whether it has been subtracted since."""


class MissingPixelsWarning(UserWarning):
    """Pixels hold zero in all bands or in one, as those without data do, and nobody says so."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`rsbackbones.value_check.judge` finds.

    Attributes:
        kind: ``right``; ``other_unit``: likely another one; ``suspect``: right, or another unit, which the
            values do not tell; or ``impossible``.
        text: the finding in words, to follow the name of the sensor. What is suspected of many images is
            counted by its text, so it has no numbers of one image.
        unit: the other unit, by the name that ``create_preprocess`` knows it by.
        nodata: the value that marks pixels without data.
        warning: the category of a warning of what is suspected.
    """

    kind: Literal["right", "other_unit", "suspect", "impossible"] = "right"
    text: str = ""
    unit: str | None = None
    nodata: float | None = None
    warning: type[UnitWarning] = UnitWarning


RIGHT = Verdict()


def format_value(value: float) -> str:
    """Return a number so that it reads back as the same one."""
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else repr(value)


class Values:
    """Quantiles and shares of some values.

    Args:
        x: of any shape.
        most: so many of them, evenly spaced, are looked at.
    """

    def __init__(self, x: Tensor, most: int = MOST) -> None:
        x = x.detach().flatten()
        step = -(-len(x) // most)
        while step > 1 and any(step % factor == 0 for factor in (2, 3, 5)):  # not the columns of an image
            step += 1
        self._sorted = x[::step].to("cpu", copy=True).numpy()  # which sorts faster than torch
        self._sorted.sort()
        self.smallest, self.largest = float(x.min()), float(x.max())
        self.low, self.median, self.high = (self.quantile(q) for q in (0.001, 0.5, 0.999))
        self.whole = bool((self._sorted % 1 == 0).all())

    def quantile(self, share: float, *, above: float | None = None) -> float:
        """Return a quantile of all values, or of those above a limit."""
        first = 0 if above is None else self._count(above, "right")
        return float(self._sorted[first + round(share * (len(self._sorted) - 1 - first))])

    def share_above(self, value: float) -> float:
        return 1 - self._count(value, "right") / len(self._sorted)

    def share_below(self, value: float) -> float:
        return self._count(value, "left") / len(self._sorted)

    def _count(self, value: float, side: Literal["left", "right"]) -> int:
        return int(self._sorted.searchsorted(value, side))

    @property
    def range(self) -> str:
        return f"values from {self.smallest:.4g} to {self.largest:.4g} (median {self.median:.4g})"

    def like(self, other: str, unit: str, *, sure: bool = True) -> Verdict:
        kind: Literal["other_unit", "suspect"] = "other_unit" if sure else "suspect"
        text = f"{self.range} look like" if sure else "the values may be"
        return Verdict(kind, f"{text} {_IN_WORDS[other]}, not {unit!r}", unit=other)

    def impossible(self, unit: str, why: str, fix: str = "") -> Verdict:
        return Verdict("impossible", f"{self.range} {why}, not {unit!r}{fix and ': '}{fix}")

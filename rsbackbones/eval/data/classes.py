"""From the labels that files hold (names, codes, lists of names) to classes 0 ... K - 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsbackbones.eval.labelled import IGNORED, Array

# Names, in the order of their numbers; or the codes (or names) of the labels that make up each class.
Classes = Sequence[str] | Mapping[str, Sequence[int | str]]
Label = int | str


@dataclass(frozen=True)
class LabelCodes:
    """The classes, and which labels of the files are which.

    Attributes:
        names: of the K classes.
        codes: label -> class, where labels are grouped; a label of no group is ignored. ``None``: labels are
            the classes' own numbers, or names.
        ignored: numbers that stand for no label.
    """

    names: tuple[str, ...]
    codes: Mapping[Label, int] | None = None
    ignored: tuple[int, ...] = ()

    @staticmethod
    def of(classes: Classes, ignored: Sequence[int] = ()) -> "LabelCodes":
        """Read what a user or a file says.

        Raises:
            ValueError: fewer than two classes, a name twice, or a code in two classes.
        """
        if isinstance(classes, str) or not isinstance(classes, (Sequence, Mapping)):
            raise ValueError(f"classes must be names, or codes by name, got {classes!r}")
        names = tuple(str(name) for name in classes)
        if len(set(names)) < len(names):
            raise ValueError(f"classes must be different names, got {classes!r}")
        if len(names) < 2:
            raise ValueError(f"{len(names)} classes ({', '.join(names)}): at least two are needed")
        if not isinstance(classes, Mapping):
            return LabelCodes(names, ignored=tuple(ignored))
        codes: dict[Label, int] = {}
        for number, (name, members) in enumerate(classes.items()):
            for code in [members] if isinstance(members, (int, str)) else members:
                if code in codes:
                    raise ValueError(f"code {code!r} is in the classes {names[codes[code]]!r} and {name!r}")
                codes[code] = number
        return LabelCodes(names, codes, tuple(ignored))

    def number(self, label: Label) -> int:
        """Return the class of a label, -1 where it is ignored.

        Raises:
            ValueError: it is none of the classes.
        """
        if self.codes is not None:
            return self.codes.get(label, IGNORED)
        if isinstance(label, str):
            if label not in self.names:
                raise ValueError(
                    f"the label {label!r} is none of the {len(self.names)} classes {self._known}"
                )
            return self.names.index(label)
        if label in self.ignored:
            return IGNORED
        if not 0 <= label < len(self.names):
            raise ValueError(
                f"the label {label} is out of range: with {len(self.names)} classes ({self._known}) they go "
                f"from 0 to {len(self.names) - 1}"
            )
        return int(label)

    def map(self, labels: Array) -> npt.NDArray[np.int64]:
        """Return the classes [H, W] of a map of labels, -1 where a pixel is ignored.

        Raises:
            ValueError: a label is no integer, or none of the classes.
        """
        if labels.dtype.kind not in "iub":
            if not (labels.dtype.kind == "f" and (labels == np.trunc(labels)).all()):
                raise ValueError(f"label maps hold integers, got {labels.dtype}")
            labels = labels.astype(np.int64)
        result = np.full(labels.shape, IGNORED, np.int64)
        if self.codes is not None:
            for code, number in self.codes.items():
                result[labels == code] = number
            return result
        counts = ~np.isin(labels, (IGNORED, *self.ignored))
        found = labels[counts]
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < len(self.names):
            wrong = sorted(set(np.unique(found).tolist()) - set(range(len(self.names))))
            raise ValueError(
                f"the label map holds {', '.join(map(str, wrong[:5]))}, out of range: with {len(self.names)} "
                f"classes ({self._known}) labels go from 0 to {len(self.names) - 1}; {IGNORED} is ignored. "
                "Say which codes make up which class (classes=), or which to ignore (ignore=)"
            )
        result[counts] = found
        return result

    @property
    def _known(self) -> str:
        return ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")


def found_classes(labels: Sequence[Label], ignored: Sequence[int] = ()) -> Classes:
    """Return the classes that nobody named: the names or the numbers that occur, sorted."""
    if all(isinstance(label, int) for label in labels):
        return {str(number): [number] for number in sorted({*map(int, labels)} - {IGNORED, *ignored})}
    return tuple(sorted({str(label) for label in labels}))


def found_pixel_classes(numbers: Sequence[int], ignored: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the classes 0 ... K - 1 of label maps that nobody named, where all of these occur.

    Raises:
        ValueError: there are gaps: a number such as 255 often stands for no label.
    """
    found = sorted({*map(int, numbers)} - {IGNORED, *ignored})
    if found != list(range(len(found))):
        shown = ", ".join(map(str, found[:12])) + ", ..." * (len(found) > 12)
        raise ValueError(
            f"the label maps hold {shown}: not 0, 1, ... without a gap, and nobody named the classes. Name "
            "them (classes=, --classes), and what stands for no label (ignore=, --ignore)"
        )
    return tuple(map(str, found))

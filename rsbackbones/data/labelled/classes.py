"""From the labels that files hold (names, codes, lists of names) to classes 0 ... K - 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import IGNORED, Array

# Names, in the order of their numbers; or the codes (or names) of the labels that make up each class.
Classes = Sequence[str] | Mapping[str, Sequence[int | str]]
Label = int | str


@dataclass(frozen=True)
class LabelCodes:
    """The classes, and which labels of the files are which.

    Attributes:
        names: of the K classes.
        codes: label -> class, where labels are grouped; a label of no group is ignored. ``None``: labels are
            numbers, or names.
        numbers: of every class, without ``codes``: 0, 1, ... but for those that are ignored.
        ignored: numbers that stand for no label.
    """

    names: tuple[str, ...]
    codes: Mapping[Label, int] | None = None
    numbers: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()

    @staticmethod
    def of(classes: Classes, ignored: Sequence[int] = ()) -> "LabelCodes":
        """Return the classes as a user or a file states them. Ignored codes are no class, even with a name.

        Raises:
            ValueError: fewer than two classes, a name twice, or a code in two classes.
        """
        if isinstance(classes, str) or not isinstance(classes, (Sequence, Mapping)):
            raise ValueError(f"classes must be names, or codes by name, got {classes!r}")
        names = tuple(str(name) for name in classes)
        if len(set(names)) < len(names):
            raise ValueError(f"classes must be different names, got {classes!r}")
        if not isinstance(classes, Mapping):
            numbers = tuple(n for n in range(len(names)) if n not in ignored)
            return LabelCodes(_two([names[n] for n in numbers]), None, numbers, tuple(ignored))
        codes: dict[Label, int] = {}
        kept: list[str] = []
        for name, members in zip(names, classes.values(), strict=True):
            held = [members] if isinstance(members, (int, str)) else members
            if not (counted := [code for code in held if code not in ignored]) and held:
                continue
            for code in counted:
                if code in codes:
                    raise ValueError(f"code {code!r} is in the classes {kept[codes[code]]!r} and {name!r}")
                codes[code] = len(kept)
            kept.append(name)
        return LabelCodes(_two(kept), codes, ignored=tuple(ignored))

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
        if label not in self.numbers:
            raise ValueError(f"the label {label} is out of range: {self._numbered}")
        return self.numbers.index(label)

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
        found = np.unique(labels[counts])
        if wrong := sorted({*found.tolist()} - {*self.numbers}):
            raise ValueError(
                f"the label map holds {', '.join(map(str, wrong[:5]))}, out of range: {self._numbered}"
            )
        for number in found.tolist():
            result[labels == number] = self.numbers.index(number)
        return result

    @property
    def _numbered(self) -> str:
        return (
            f"with {len(self.names)} classes ({self._known}) labels are {_shown(self.numbers)}; {IGNORED} is "
            "ignored. Say which codes make up which class (classes={'NAME': [CODE]}, --classes "
            "NAME=CODE,...), or which to ignore (ignore=, --ignore)"
        )

    @property
    def _known(self) -> str:
        return ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")


def _two(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) < 2:
        raise ValueError(
            f"{len(names)} classes ({', '.join(names)}) that are not ignored: at least two are needed"
        )
    return tuple(names)


def _shown(numbers: Sequence[int]) -> str:
    gaps = list(numbers) != list(range(numbers[0], numbers[-1] + 1))
    return ", ".join(map(str, numbers)) if gaps else f"from {numbers[0]} to {numbers[-1]}"


def found_classes(labels: Sequence[Label], ignored: Sequence[int] = ()) -> Classes:
    """Return the classes where none are named: the names or numbers that occur, sorted."""
    if all(isinstance(label, int) for label in labels):
        return {str(number): [number] for number in sorted({*map(int, labels)} - {IGNORED, *ignored})}
    return tuple(sorted({str(label) for label in labels}))


def found_pixel_classes(numbers: Sequence[int], ignored: Sequence[int] = ()) -> tuple[str, ...]:
    """Return the classes 0 ... K - 1 of label maps where none are named, if all of these occur.

    Raises:
        ValueError: there are gaps: a number such as 255 often stands for no label.
    """
    found = sorted({*map(int, numbers)} - {IGNORED, *ignored})
    if found != list(range(len(found))):
        shown = ", ".join(map(str, found[:12])) + ", ..." * (len(found) > 12)
        raise ValueError(
            f"the label maps hold {shown}: not 0, 1, ... without a gap, and no classes are named. Name "
            "them (classes={'NAME': [CODE]}, --classes NAME=CODE,...), and what stands for no label "
            "(ignore=, --ignore)"
        )
    return tuple(map(str, found))

"""Robustness to clouds: the mean IoU of two models by the cloudy share of a series.

Shenoy et al., S4, Remote Sensing 2024, section 6.10 and figure 9: series are grouped by their share of cloudy
pixels, over all images; the difference of two models is that of their mean IoU over the counts of a group.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.data.pictures import new_figure, save_png
from rsbackbones.eval.metrics import summary
from rsbackbones.files.markdown import markdown_table

# The paper's figure goes to 25 % and above.
EDGES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 1.0)
# Cloud shadows, clouds of medium and high probability, and cirrus of Sentinel-2's scene classification (SCL).
SCL_CLOUDS = (3, 8, 9, 10)
# What s2cloudless looks at, as reflectance.
_S2CLOUDLESS = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12")

# A sample of the set, and its id, to its mask [T, H, W], True where it is cloudy.
CloudMask = Callable[[dict[str, Any], str], npt.NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class CloudBin:
    """The series whose cloudy share is in [``low``, ``high``); the last bin includes its upper edge.

    Attributes:
        series: how many they are.
        miou, against: mean IoU of the two models over their pixels; NaN where there are none.
    """

    low: float
    high: float
    series: int
    miou: float
    against: float

    @property
    def difference(self) -> float:
        """By how much the first model is better."""
        return self.miou - self.against


def own_mask(sample: dict[str, Any], name: str) -> npt.NDArray[np.bool_]:
    """Return the mask that the set has.

    Raises:
        ValueError: it has none.
    """
    if "cloud" not in sample:
        raise ValueError(
            f"{name} has no cloud mask: write one beside the images (rsbackbones.data.series_folder), name a "
            "folder of masks (--masks DIR), or --s2cloudless"
        )
    mask: npt.NDArray[np.bool_] = sample["cloud"]
    return mask


@dataclass(frozen=True)
class StoredMasks:
    """Masks in files ``ID.npy`` [T, H, W] of a folder.

    Attributes:
        folder: of the files.
        classes: the values that are cloudy, such as :data:`SCL_CLOUDS`; empty: all but 0.
    """

    folder: Path
    classes: tuple[int, ...] = ()

    def __call__(self, sample: dict[str, Any], name: str) -> npt.NDArray[np.bool_]:
        """Return the mask of a sample.

        Raises:
            ValueError: it cannot be read, or is not of the sample's optical images.
        """
        path = self.folder / f"{name}.npy"
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the cloud mask {path}: {error}") from error
        images = sample["s2"]
        if values.shape != (expected := (len(images), *images.shape[-2:])) or values.dtype.kind not in "biu":
            raise ValueError(
                f"{path}: expected booleans or integers {list(expected)}, got {values.dtype} "
                f"{list(values.shape)}"
            )
        return np.isin(values, self.classes) if self.classes else values != 0


def s2cloudless_mask(data: LabelledDataset) -> CloudMask:
    """Return masks by s2cloudless, from digital numbers.

    Raises:
        ImportError: s2cloudless is not installed.
        ValueError: the set lacks a band that it looks at.
    """
    bands = data.bands.get("s2", ())
    if lacking := [band for band in _S2CLOUDLESS if band not in bands]:
        raise ValueError(
            f"s2cloudless looks at {', '.join(_S2CLOUDLESS)}, and {data.name} has no {', '.join(lacking)}"
        )
    if data.units.get("s2", "dn") != "dn":
        raise ValueError(f"s2cloudless takes digital numbers, and {data.name} has {data.units['s2']}")
    try:
        from s2cloudless import S2PixelCloudDetector  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(f"--s2cloudless needs s2cloudless ({error}): pip install s2cloudless") from error
    detector = S2PixelCloudDetector()
    channels = [bands.index(band) for band in _S2CLOUDLESS]

    def mask(sample: dict[str, Any], name: str) -> npt.NDArray[np.bool_]:
        reflectance = sample["s2"][:, channels].astype(np.float32) / 10_000
        found: npt.NDArray[np.bool_] = detector.get_cloud_masks(np.moveaxis(reflectance, 1, -1)) != 0
        return found

    return mask


def cloud_shares(data: LabelledDataset, split: str, mask: CloudMask = own_mask) -> npt.NDArray[np.float64]:
    """Return the cloudy share of every series of a split, over all of its images, [n].

    Raises:
        ValueError: the set holds no optical series, or a mask is missing or does not fit; it is named.
    """
    if not data.series or "s2" not in data.bands:
        raise ValueError(f"{data.name} holds no optical series, whose clouds could be counted")
    if split not in data.splits:
        raise ValueError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}")
    return np.array([mask(data.read(int(i)), data.ids[int(i)]).mean() for i in data.splits[split]])


def bin_by_clouds(
    shares: Array, counts: Array, against: Array, edges: Sequence[float] = EDGES
) -> list[CloudBin]:
    """Group series by their cloudy share.

    Args:
        shares: of every series, [n].
        counts, against: the confusion counts of two models, [n, K, K]
            (:func:`rsbackbones.eval.dense.predict`).
        edges: of the bins, from low to high.

    Raises:
        ValueError: edges that do not increase from 0 on, or counts of other series.
    """
    if len(edges) < 2 or not all(a < b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must increase, such as 0,0.1,0.25,1, got {list(edges)}")
    if not len(shares) == len(counts) == len(against):
        raise ValueError(f"{len(shares)} shares, and counts of {len(counts)} and {len(against)} series")
    bins = []
    for low, high in itertools.pairwise(edges):
        inside = (shares >= low) & ((shares < high) | ((high == edges[-1]) & (shares == high)))
        both = (float(summary(c[inside].sum(axis=0))["miou"]) for c in (counts, against))
        first, second = both
        bins.append(CloudBin(low=low, high=high, series=int(inside.sum()), miou=first, against=second))
    return bins


def cloud_table(bins: Sequence[CloudBin], names: tuple[str, str]) -> str:
    """Return the bins as a Markdown table, in percent."""

    def percent(value: float) -> str:
        return "-" if np.isnan(value) else f"{100 * value:.1f}"

    rows = [
        (f"{100 * b.low:g} to {100 * b.high:g} %", f"{b.series}", percent(b.miou), percent(b.against),
         "-" if np.isnan(b.difference) else f"{100 * b.difference:+.1f}")
        for b in bins
    ]  # fmt: skip
    return markdown_table(("cloudy pixels", "series", *names, "difference"), rows, "lrrrr", spaced=True)


def draw_clouds(bins: Sequence[CloudBin], names: tuple[str, str], path: Path) -> None:
    """Draw the difference of the two models in every bin, with its number of series.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(1.5 + len(bins), 3.5)
    axes = figure.subplots()
    places, differences = range(len(bins)), [100 * b.difference for b in bins]
    axes.bar(places, np.nan_to_num(differences))
    axes.axhline(0, color="black", linewidth=0.8)
    labels = [f"{100 * b.low:g} to {100 * b.high:g} %\n{b.series} series" for b in bins]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_xlabel("cloudy pixels of a series")
    axes.set_ylabel(f"mIoU of {names[0]} minus {names[1]}, points", fontsize=8)
    save_png(figure, path)

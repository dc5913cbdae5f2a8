"""Image time series as model inputs: images with their dates and masks, one by one and in batches."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rsbackbones.data.check import find_fault, stack_valid
from rsbackbones.data.date_alignment import nearest_dates

if TYPE_CHECKING:
    import numpy.typing as npt

    from rsbackbones.data.source import Array

_ISO = re.compile(r"\d{4}-\d{2}-\d{2}")
# From 1970-01-01 to the year 2243: 20190503 is a date in other words, not a number of days.
_MOST_DAYS = 100_000


@dataclass(frozen=True, kw_only=True)
class DatedImages:
    """Normalized images of one sample, by modality; in a batch every tensor has B in front.

    Attributes:
        images: [C, H, W], or a series [T, C, H, W].
        dates: [T], days since 1970-01-01 of a series, where they are known. Those of missing images are
            arbitrary.
        valid: [T] booleans of a series, False for missing images, which are zeros. Modalities that are not in
            the mapping are complete.
    """

    images: dict[str, Tensor]
    dates: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Self:
        """Return them on ``device``."""
        moved = (
            {m: x.to(device, non_blocking=True) for m, x in tensors.items()}
            for tensors in (self.images, self.dates, self.valid)
        )
        images, dates, valid = moved
        return type(self)(images=images, dates=dates, valid=valid)


def read_series(
    sample: Mapping[str, Any], modality: str
) -> "tuple[Array, Array | None, npt.NDArray[np.bool_]]":
    """Return the series of one modality of a labelled sample (see :class:`LabelledDataset`).

    Returns:
        The images [T, C, H, W], zeros where they are missing; the dates [T] as days, if there are any; and
        which images are valid, [T]. An image is missing where the sample says so, where it holds NaN or
        infinity, and where it is zero everywhere.

    Raises:
        ValueError: all images are missing, an image has no date while others have, or arrays do not fit.
    """
    images = sample[modality]
    length = len(images)
    stated = sample.get("valid", {}).get(modality, np.ones(length, bool))
    if images.ndim != 4 or stated.shape != (length,) or stated.dtype != np.bool_:
        raise ValueError(
            f"{modality}: a series is [T, C, H, W], and its valid booleans [T], got "
            f"{list(images.shape)} and {stated.dtype} {list(stated.shape)}"
        )
    stack, valid = stack_valid(modality, [x if ok else None for x, ok in zip(images, stated, strict=True)])
    if (given := sample.get("dates", {}).get(modality)) is None:
        return stack, None, valid
    days = given.astype("datetime64[D]").astype(np.int64) if given.dtype.kind == "M" else given
    unknown = np.isnat(given) if given.dtype.kind == "M" else given != given
    if days.shape != (length,) or days.dtype.kind not in "iuf" or (days[~unknown] % 1 != 0).any():
        raise ValueError(
            f"{modality}: dates must be one date for each of {length} images, datetime64 or whole days since "
            f"1970-01-01, got {given.dtype} {list(given.shape)}"
        )
    if (undated := unknown & valid).any():
        raise ValueError(
            f"{modality}: image {int(undated.argmax())} has no date and others have; give it one, or mark "
            "it as missing in valid"
        )
    return stack, np.where(unknown, 0, days).astype(np.int64), valid


def order_series(
    images: "Mapping[str, Array]",
    dates: Mapping[str, "npt.ArrayLike"],
    cloud: "Array | None" = None,
) -> dict[str, Any]:
    """Return a sample of series in order of time, as ``LabelledDataset.read`` does: its images and dates.

    Images of one day stay in their order.

    Args:
        images: by modality [T, C, H, W]; T may differ between modalities.
        dates: by modality, of all or of none, datetime64 or days since 1970-01-01.
        cloud: [T, H, W], True for cloudy pixels of ``s2``.

    Raises:
        ValueError: a series has another number of dates than images, a date is missing, no image is usable,
            or images of the modalities or the cloud mask differ in size. The modality is named.
    """
    ordered: dict[str, Any] = {}
    days: dict[str, Any] = {}
    if len({image.shape[-2:] for image in images.values()}) > 1:
        sizes = ", ".join(f"{m} {image.shape[-2]} x {image.shape[-1]}" for m, image in images.items())
        raise ValueError(f"the sensors' images differ in size: {sizes} pixels; resample them onto one grid")
    if cloud is not None and ("s2" not in images or cloud.shape != _without_bands(images["s2"])):
        expected = list(_without_bands(images["s2"])) if "s2" in images else "none, without s2"
        raise ValueError(f"the cloud mask is {list(cloud.shape)}, expected {expected}")
    for m, image in images.items():
        if all(find_fault(each) for each in image):
            first = f"; the first {find_fault(image[0])}" if len(image) else ""
            raise ValueError(f"{m} has no usable image at any of {len(image)} dates{first}")
        ordered[m] = image
        if not dates:
            continue
        times = parse_dates(dates[m], m)
        if len(times) != len(image):
            raise ValueError(f"{m} has {len(times)} dates and {len(image)} images")
        order = np.argsort(times, kind="stable")
        if (order[1:] < order[:-1]).any():
            ordered[m] = image[order]
            cloud = cloud[order] if m == "s2" and cloud is not None else cloud
        days[m] = times[order].astype("datetime64[D]").astype(np.int64)
    return ordered | ({"dates": days} if days else {}) | ({} if cloud is None else {"cloud": cloud})


def apart_in_time(dates: Mapping[str, "npt.NDArray[Any]"]) -> bool:
    """Return whether series of a place share no day: one ends before the other begins."""
    return bool(max(days.min() for days in dates.values()) > min(days.max() for days in dates.values()))


def warn_apart(name: str, apart: Sequence[str], count: int) -> list[str]:
    """Warn of the samples whose sensors have no day in common; return the note for the data set.

    Args:
        name: of the data set.
        apart: the samples.
        count: how many there are in all.
    """
    if not apart:
        return []
    note = f"{len(apart)} of {count} samples have sensors whose series share no day"
    shown = ", ".join(apart[:5]) + ", ..." * (len(apart) > 5)
    warnings.warn(f"{name}: {note}: {shown}", stacklevel=4)
    return [note]


def stack_dated(samples: Sequence[DatedImages]) -> DatedImages:
    """Stack samples into a batch. Series shorter than the longest are padded with missing images.

    Raises:
        ValueError: the samples have different modalities, image sizes or numbers of axes, only some of them
            have dates, or the modalities of a sample have different numbers of timesteps.
    """
    first = samples[0]
    for what in ("images", "dates"):
        if len({tuple(sorted(getattr(sample, what))) for sample in samples}) > 1:
            raise ValueError(
                f"samples of one batch must all have the {what} of the same modalities, got "
                + "; ".join(", ".join(getattr(sample, what)) or "none" for sample in samples)
            )
    for m in first.images:
        if len({(x.ndim, *x.shape[-3:]) for x in (sample.images[m] for sample in samples)}) > 1:
            raise ValueError(
                f"samples of one batch must have {m} images of one size, got "
                + ", ".join(str(list(sample.images[m].shape)) for sample in samples)
            )
    series = [m for m, x in first.images.items() if x.ndim == 4]
    for sample in samples:  # padded, they could be of equal length, and paired wrongly
        if len({len(sample.images[m]) for m in series}) > 1:
            raise ValueError(
                "the series of a sample must have the same timesteps in all modalities, with missing images "
                "marked, got " + ", ".join(f"{m} {list(sample.images[m].shape)}" for m in series)
            )
    masks = {m: stack_padded([_mask(sample, m) for sample in samples]) for m in series}
    return DatedImages(
        images={m: stack_padded([sample.images[m] for sample in samples]) for m in first.images},
        dates={m: stack_padded([sample.dates[m] for sample in samples]) for m in first.dates},
        valid={m: mask for m, mask in masks.items() if not mask.all()},
    )


def stack_padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors [T_i, ...] to [B, T, ...], with zeros (``False``) after the shorter ones."""
    if all(x.shape == tensors[0].shape for x in tensors):
        return torch.stack(list(tensors))  # more than twice as fast
    return pad_sequence(list(tensors), batch_first=True)


def model_arguments(
    dates: Mapping[str, Tensor], valid: Mapping[str, Tensor], modalities: Iterable[str]
) -> dict[str, Any]:
    """Return ``dates`` and ``valid`` as the arguments of a model's forward; those that are known.

    A model takes one date per timestep: that of the first of its modalities whose dates are known and whose
    image is there. (The timesteps of a sample are the dates of its first sensor; images of others are paired
    with them.)
    """
    arguments: dict[str, Any] = {}
    known = [m for m in modalities if m in dates]
    if known:
        days = dates[known[0]]
        for m in reversed(known):  # the date of a missing image is arbitrary
            mask = valid.get(m)
            days = dates[m] if mask is None or mask.ndim != 2 else torch.where(mask, dates[m], days)
        arguments["dates"] = days
    if valid:
        arguments["valid"] = dict(valid)
    return arguments


def align_series(
    days_s1: "npt.ArrayLike", days_s2: "npt.ArrayLike"
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """Align two series of a place: the shorter stays, each of its images gets the other's nearest in time.

    Shenoy et al. (S4), section 5, "Time Series Interpolation". Of equal lengths Sentinel-1 stays. Images may
    repeat, at any distance in time; of two equally near the earlier is taken, of two of one day the first.

    Args:
        days_s1, days_s2: the dates in any order, as :func:`parse_dates` takes them.

    Returns:
        Indices into the dates of each sensor, as given, in order of time; both of the shorter length.

    Raises:
        ValueError: a series has no dates, or one that is missing (NaT or NaN).
    """
    times = [parse_dates(days, sensor) for days, sensor in ((days_s1, "s1"), (days_s2, "s2"))]
    orders = [np.argsort(each, kind="stable") for each in times]
    sorted_s1, sorted_s2 = (each[order] for each, order in zip(times, orders, strict=True))
    if len(sorted_s1) <= len(sorted_s2):
        return orders[0], orders[1][nearest_dates(sorted_s1, sorted_s2)]
    return orders[0][nearest_dates(sorted_s2, sorted_s1)], orders[1]


def parse_dates(days: "npt.ArrayLike", sensor: str) -> "npt.NDArray[Any]":
    """Return the dates of a series as datetime64, [T], in the order given.

    Args:
        days: datetime64, ISO dates (``2019-05-03``), ``datetime.date``, timestamps, or whole days since
            1970-01-01.
        sensor: for errors.

    Raises:
        ValueError: there are none, one is missing (NaT or NaN), or one is no date.
    """
    given = np.asarray(days)
    if given.ndim != 1 or not len(given):
        raise ValueError(f"{sensor}: a series needs a date for every image, [T], got shape {given.shape}")
    if given.dtype.kind == "M":
        readable = ~np.isnat(given)
    elif given.dtype.kind in "iuf":
        readable = (given == np.floor(given)) & (abs(given) <= _MOST_DAYS)
    else:
        readable = np.array([_is_date(one) for one in given])
    if not readable.all():
        wrong = int(readable.argmin())
        raise ValueError(
            f"{sensor}: date {wrong} of {len(given)} is {given[wrong]!s}; expected datetime64, ISO "
            "dates such as 2019-05-03, or whole days since 1970-01-01, none missing"
        )
    return given.astype(np.int64).astype("datetime64[D]") if given.dtype.kind in "iuf" else given.astype("M8")


def _is_date(given: Any) -> bool:
    """Return whether numpy reads one date; of text only ISO dates, since it takes 20190503 as a year."""
    if isinstance(given, str) and not _ISO.match(given):
        return False
    try:
        return isinstance(given, (str, date)) and not np.isnat(np.datetime64(given))
    except ValueError:
        return False


def _without_bands(image: "Array") -> tuple[int, ...]:
    return (image.shape[0], *image.shape[2:])


def percentile_length(lengths: Sequence[int], percent: float = 90) -> int:
    """Return the smallest length that at least ``percent`` of the series do not exceed (S4, section 6.3).

    Raises:
        ValueError: there are no lengths, or ``percent`` is not in [0, 100].
    """
    if not len(lengths) or not 0 <= percent <= 100:
        raise ValueError(f"expected lengths and a percentage in [0, 100], got {list(lengths)} and {percent}")
    return int(np.percentile(lengths, percent, method="inverted_cdf"))


def fix_length(count: int, length: int) -> "npt.NDArray[np.int64]":
    """Return the indices [length] of a series of ``count`` images: the last repeats, or the last ones go.

    S4, section 6.3.

    Raises:
        ValueError: a number is below 1.
    """
    if count < 1 or length < 1:
        raise ValueError(f"a series has at least one image, got {count} images and a length of {length}")
    return np.minimum(np.arange(length), count - 1)


def _mask(sample: DatedImages, modality: str) -> Tensor:
    images = sample.images[modality]
    return sample.valid.get(modality, images.new_ones(len(images), dtype=torch.bool))

"""Fitting weights to the user's bands, patches and sizes. Pure functions; what they do is in a table.

*Which weights a band gets.* On one sensor the user's channels meet the weights' bands by name. Between two
sensors names mean nothing: a band of the user's whose centre lies within half the width of a band of the
weights counts as that band (of several as the nearest), by wavelength; the name of a radar's band is its
polarisation, and has to agree as well. What any other band gets, ``missing`` says:

- ``error``: nothing, it is refused;
- ``nearest``: the weights of the band nearest in wavelength, at most a factor of 3 away. The farthest pairs
  that this lets through are sunlight reflected at 0.8 and at 2.2 um; thermal infrared (10.9 um) and short
  waves (2.2 um), or L-band and C-band radar, are a factor of more than 4 apart and show other things;
- ``mean``: the mean of the weights of all bands;
- ``zero``: zeros, so that the band is not looked at;
- ``new``: random weights as torch initialises them, to be trained.

``all_new`` gives such weights to every band, those too that the weights know: a new tokenizer over trained
blocks (SeaMo, section 4.5.6), for the sensors whose bands the user gives, or for all. Bands keep the
statistics of their input where the weights have them.

Optical and radar bands never stand in for each other. Bands of the weights that serve none are left out.

*Which scale.* A token is the sum of what its bands contribute. A band of the weights that serves k bands of
the user's gives each 1/k of its kernel, whatever the rule (the mean of all counts as one more such source):
200 narrow bands are worth the few that they share. Where only n of the weights' N bands are sources, the
sum lacks terms, and ``scale`` says what all kernels are multiplied by to make up for it: ``count`` N/n, as
if bands were alike and their terms added up; ``sqrt`` the root of that, as if they were independent and
their variances did; ``none`` 1. Under ``count``, an image that is the same in all bands has the same token
whichever bands are given, provided that the weights treat all bands alike. ``zero`` and ``new`` bands are no
part of this: they get no more and no less than the rule says.

A tokenizer by wavelength (:mod:`rsbackbones.layers.wavelength_tokenizer`) makes its kernels itself, for any
band: nothing here concerns them. A band takes only the statistics of its input from a band of the weights.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rsbackbones.sensors import Band, InputSpec, get_sensor

MISSING_RULES = ("error", "nearest", "mean", "zero", "new", "all_new")
SCALE_RULES = ("count", "sqrt", "none")
# The ratio of wavelengths up to which ``nearest`` lets a band stand in for another.
_FARTHEST = 3.0


@dataclass(frozen=True)
class Change:
    """One thing that loading changed: ``part`` of the model, what was done, and to what."""

    part: str
    action: str
    detail: str


@dataclass(frozen=True)
class BandSource:
    """Where the weights of one of the user's bands come from: a band of the weights, or a rule.

    ``factor`` is what the source's kernel is multiplied by; under the rule ``new`` a source is that of the
    statistics alone. Wavelengths are in nm.
    """

    band: str
    wavelength: float
    source: str | None
    source_wavelength: float | None
    rule: str
    factor: float


@dataclass(frozen=True)
class BandTable:
    """Where the weights of all the user's bands come from, for one sensor of the model (``modality``).

    ``sensor`` is what the user's bands are of, ``weights_sensor`` what the weights' bands are of. Falsy
    where the user's bands are the weights' own. ``made``: the weights are made from the user's wavelengths,
    and the sources are of the statistics of the input only. ``ignored`` are bands of the weights whose
    kernels are zeros, from the rule ``zero``.
    """

    modality: str
    sensor: str
    weights_sensor: str
    weights_bands: tuple[str, ...]
    rows: tuple[BandSource, ...]
    made: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The bands of the weights that serve none of the user's."""
        used = {row.source for row in self.rows if row.rule != "new"}
        return tuple(band for band in self.weights_bands if band not in used and band not in self.ignored)

    def __bool__(self) -> bool:
        mine = tuple(row.band for row in self.rows)
        new = any(row.rule == "new" for row in self.rows)
        return self.sensor != self.weights_sensor or mine != self.weights_bands or new

    def __str__(self) -> str:
        if not self:
            return f"{self.modality}: the weights' own bands, as they are"
        cells = [("band", "at", "statistics of" if self.made else "weights from", "at", "rule", "factor")]
        for row in self.rows:
            source, at = row.source or "-", "-"
            if row.rule == "new" and not self.made:
                source = "-"
            elif row.source_wavelength is not None:
                at = _length(row.source_wavelength)
            cells.append((row.band, _length(row.wavelength), source, at, row.rule, f"{row.factor:.4g}"))
        widths = [max(len(line[i]) for line in cells) for i in range(5)]
        lines = [f"{self.modality}: your bands of {self.sensor}, weights for bands of {self.weights_sensor}"]
        for line in cells:
            padded = [f"{cell:<{width}}" for cell, width in zip(line[:-1], widths, strict=True)]
            lines.append("  " + "  ".join([*padded, line[-1]]))
        if self.left_out and not self.made:
            lines.append(f"  left out of the weights: {', '.join(self.left_out)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Adaptation:
    """All that loading changed, as a table a person can read. Falsy where nothing was changed.

    ``bands`` has a table for every sensor whose bands are not the weights' own, ``changes`` all the rest.
    """

    changes: tuple[Change, ...] = ()
    bands: tuple[BandTable, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.bands)

    def __str__(self) -> str:
        if not self:
            return "nothing changed: the weights are used as the file holds them"
        lines = [str(table) for table in self.bands]
        if self.changes:
            rows = [("part", "action", "detail")] + [(c.part, c.action, c.detail) for c in self.changes]
            widths = [max(len(row[i]) for row in rows) for i in range(2)]
            lines += [
                f"{part:<{widths[0]}}  {action:<{widths[1]}}  {detail}" for part, action, detail in rows
            ]
        return "\n".join(lines)


def check_rules(missing: str, scale: str) -> None:
    """Raise a ValueError unless these are rules for missing bands and for the scale."""
    if missing not in MISSING_RULES:
        raise ValueError(f"bands_missing must be one of {', '.join(MISSING_RULES)}, got {missing!r}")
    if scale not in SCALE_RULES:
        raise ValueError(f"bands_scale must be one of {', '.join(SCALE_RULES)}, got {scale!r}")


def match_bands(
    modality: str,
    mine: Sequence[str],
    theirs: Sequence[str],
    *,
    sensor: str | None = None,
    weights_sensor: str | None = None,
    missing: str = "error",
    scale: str = "count",
    ignored: Sequence[str] = (),
) -> BandTable:
    """Find for each of the user's bands (``mine``) its source among the weights' bands (``theirs``).

    Args:
        modality: the sensor as the model calls it.
        mine: the user's bands, in order.
        theirs: the bands of the weights, in order.
        sensor: what the user's bands are of; default ``modality`` itself.
        weights_sensor: what the weights' bands are of; default ``modality`` itself.
        missing, scale: see the top of this file.
        ignored: bands of the weights that are zeros. They serve no other band, and stay zeros themselves but
            under ``all_new``.

    Raises:
        ValueError: an unknown rule, sensor or band, sensors of different kinds, a band without weights
            under the rule ``error``, or with none near enough under ``nearest``.
    """
    check_rules(missing, scale)
    my_sensor, their_sensor = get_sensor(sensor or modality), get_sensor(weights_sensor or modality)
    if my_sensor.kind != their_sensor.kind:
        raise ValueError(
            f"{modality}: {my_sensor.name} is {my_sensor.kind} and the weights are for {their_sensor.name}, "
            f"which is {their_sensor.kind}; they cannot stand in for each other"
        )
    bands = [my_sensor.band(name) for name in my_sensor.canonical(mine)]
    known = [their_sensor.band(name) for name in their_sensor.canonical(theirs)]
    seeing = [band for band in known if band.name not in ignored]
    rows: list[BandSource] = []
    lacking = []
    for band in bands:
        if my_sensor.name == their_sensor.name:
            rule, candidates = "by name", [other for other in seeing if other.name == band.name]
        else:
            rule = "by wavelength"
            candidates = [other for other in seeing if _counts_as(band, other, my_sensor.kind == "radar")]
        if my_sensor is their_sensor and band.name in ignored:
            rule = "zero"
        elif not candidates:
            lacking.append(band.name)
            rule, candidates = missing, seeing if missing == "nearest" else []
        if missing == "all_new":
            rule = "new"
        source = min(candidates, key=lambda other: _distance(band, other)) if candidates else None
        if rule == "nearest" and source is not None:
            _check_near(modality, band, source)
        at = source.wavelength if source else None
        rows.append(BandSource(band.name, band.wavelength, source.name if source else None, at, rule, 1.0))
    if lacking and missing == "error":
        them = "it" if len(lacking) == 1 else "them"
        other = "" if my_sensor is their_sensor else f" (of {their_sensor.name}) near enough in wavelength to"
        raise ValueError(
            f"{modality}: the weights have no band{other} {', '.join(lacking)}; they have "
            f"{', '.join(band.name for band in seeing)}. Leave {them} out of your tensor and of bands=, or "
            "choose what such a band gets: bands_missing='nearest', 'mean', 'zero' or 'new' ('all_new': all; "
            "in a command --missing)"
        )
    return BandTable(
        modality,
        my_sensor.name,
        their_sensor.name,
        tuple(band.name for band in known),
        _scaled(rows, len(seeing), scale),
        ignored=tuple(band.name for band in known if band not in seeing),
    )


def _scaled(rows: Sequence[BandSource], total: int, scale: str) -> tuple[BandSource, ...]:
    """The rows with their factors, for weights of ``total`` bands; see the top of this file."""
    own = {"zero": 0.0, "new": 1.0}
    shared = Counter(row.source for row in rows if row.rule not in own)  # None: the mean of all
    lost = total / len(shared) if shared else 1.0
    whole = {"count": lost, "sqrt": math.sqrt(lost), "none": 1.0}[scale]
    return tuple(
        replace(row, factor=own[row.rule] if row.rule in own else whole / shared[row.source]) for row in rows
    )


def made_from_wavelengths(table: BandTable) -> BandTable:
    """Return the table of a tokenizer that makes the kernels of any bands from their wavelengths.

    The rule of its rows is ``made``, or ``extrapolated`` for wavelengths beyond those of the weights' bands.
    """
    known = [get_sensor(table.weights_sensor).band(name) for name in table.weights_bands]
    low = min(band.wavelength - band.width / 2 for band in known)
    high = max(band.wavelength + band.width / 2 for band in known)
    rows = tuple(
        replace(row, rule="made" if low <= row.wavelength <= high else "extrapolated", factor=1.0)
        for row in table.rows
    )
    return replace(table, rows=rows, made=True)


def _counts_as(band: Band, other: Band, radar: bool) -> bool:
    near = abs(band.wavelength - other.wavelength) <= other.width / 2
    return near and (band.name == other.name or not radar)


def _distance(band: Band, other: Band) -> tuple[float, bool, bool]:
    # At one wavelength (a radar's polarisations) the same name comes first, then one that is alike or crossed
    # as well: HV is more like VH than like VV.
    crossed = [len(set(each.name)) > 1 for each in (band, other)]
    return abs(band.wavelength - other.wavelength), band.name != other.name, crossed[0] != crossed[1]


def _check_near(modality: str, band: Band, source: Band) -> None:
    ratio = band.wavelength / source.wavelength
    if not 1 / _FARTHEST <= ratio <= _FARTHEST:
        raise ValueError(
            f"{modality}: {band.name} at {_length(band.wavelength)} is too far from every band of the "
            f"weights (the nearest is {source.name} at {_length(source.wavelength)}, and 'nearest' goes up "
            f"to a factor of {_FARTHEST:g}); leave it out, or choose bands_missing='mean', 'zero' or 'new' "
            "(--missing)"
        )


def _length(nanometres: float) -> str:
    return f"{nanometres:.1f} nm" if nanometres < 1e6 else f"{nanometres / 1e7:.2f} cm"


def adapt_bands(kernel: Tensor, table: BandTable, fresh: Tensor) -> Tensor:
    """Return the kernel of a stem for the user's bands.

    Args:
        kernel: [D, C, ...] for the bands ``table.weights_bands``: [D, C, p, p] of patches, [D, C, kh, kw] or
            [D, C, kt, kh, kw] of convolutions.
        table: from :func:`match_bands`.
        fresh: a randomly initialized kernel for the user's bands, [D, C', ...] with C' =
            ``len(table.rows)``; the source of ``new`` bands.

    Raises:
        ValueError: the kernels are not for these bands.
    """
    theirs, expected = table.weights_bands, (kernel.shape[0], len(table.rows), *kernel.shape[2:])
    if kernel.ndim < 2 or kernel.shape[1] != len(theirs) or tuple(fresh.shape) != expected:
        raise ValueError(
            f"{table.modality}: expected kernels [D, {len(theirs)}, ...] of the weights and "
            f"[D, {len(table.rows)}, ...] of new ones, got {list(kernel.shape)} and {list(fresh.shape)}"
        )
    columns = []
    for i, row in enumerate(table.rows):
        if row.source is not None and row.rule != "new":
            column = kernel[:, theirs.index(row.source)]
        elif row.rule == "mean":
            column = kernel[:, [n for n, band in enumerate(theirs) if band not in table.ignored]].mean(dim=1)
        else:  # new, or zero, whose factor is 0
            column = fresh[:, i]
        columns.append(column * row.factor)
    return torch.stack(columns, dim=1)


def adapt_contract(spec: InputSpec, table: BandTable) -> InputSpec:
    """Return the input contract for the user's bands.

    A band takes the statistics of its source, ``mean`` the mean of all bands' means and of their standard
    deviations. ``zero`` and ``new`` bands have none, and are not among the bands of the result; those that
    are not looked at are its ``ignored``.
    """
    if not table:
        return spec
    known = {b: (m, s) for b, m, s in zip(spec.bands, spec.mean, spec.std, strict=True)}
    every = [known[band] for band in table.weights_bands if band in known]
    found, ignored = {}, []
    for row in table.rows:
        if row.rule == "zero" or (row.source in spec.ignored and row.rule != "new" and not table.made):
            ignored.append(row.band)
        elif row.source in known:
            found[row.band] = known[row.source]
        elif row.rule == "mean" and every:
            found[row.band] = (sum(m for m, _ in every) / len(every), sum(s for _, s in every) / len(every))
    return replace(
        spec,
        bands=tuple(found),
        mean=tuple(m for m, _ in found.values()),
        std=tuple(s for _, s in found.values()),
        ignored=tuple(ignored),
    )


def resize_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    """Return a tokenizer's kernel [D, C, p, p] for another patch size, [D, C, q, q].

    The pseudo-inverse resize of FlexiViT (Beyer et al., CVPR 2023, section 3.4): if R resizes a patch
    bilinearly, the new kernel is the least-squares solution of <R x, new> = <x, old> for all patches x. For
    a larger patch it solves it exactly: patches that are resized one by one give the old tokens.
    """
    old, new = kernel.shape[-1], patch_size
    if old == new:
        return kernel
    basis = torch.eye(old * old, dtype=torch.float64, device=kernel.device).view(-1, 1, old, old)
    # [p * p, q * q]: every pixel of a patch, resized. With antialias, as images are made smaller.
    resize = F.interpolate(basis, (new, new), mode="bilinear", antialias=True).flatten(1)
    solved: Tensor = kernel.flatten(2).double() @ torch.linalg.pinv(resize).T
    resized: Tensor = solved.to(kernel.dtype).unflatten(2, (new, new))
    return resized

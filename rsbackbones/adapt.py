"""Fitting weights to the user's bands. Pure functions; each returns what it changed.

The user's channels meet the weights' bands by name. For a band that the weights lack, ``missing`` says
what it gets: ``error`` (nothing: refused), ``nearest`` (the weights of the band nearest in wavelength,
of the same kind of sensor), ``mean`` (the mean of all bands' weights), ``zero``, or ``new`` (random, to
be trained, as SeaMo does). Bands of the weights that the user lacks are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsbackbones.sensors import Sensor, get_sensor

MISSING_RULES = ("error", "nearest", "mean", "zero", "new")


@dataclass(frozen=True)
class Change:
    """One thing that loading changed: ``part`` of the model, what was done, and to what."""

    part: str
    action: str
    detail: str


@dataclass(frozen=True)
class Adaptation:
    """All that loading changed, as a table a person can read. Falsy where nothing was changed."""

    changes: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return "nothing changed: the weights are used as the file holds them"
        rows = [("part", "action", "detail")] + [(c.part, c.action, c.detail) for c in self.changes]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(
            f"{part:<{widths[0]}}  {action:<{widths[1]}}  {detail}" for part, action, detail in rows
        )


@dataclass(frozen=True)
class BandSource:
    """Where the weights of one of the user's bands come from: a band of the weights, or a rule."""

    band: str
    source: str | None
    rule: str


def match_bands(
    modality: str, mine: Sequence[str], theirs: Sequence[str], missing: str = "error"
) -> tuple[BandSource, ...]:
    """Find for each of the user's bands (``mine``) its source among the weights' bands (``theirs``).

    Raises:
        ValueError: an unknown rule or band, or a band without weights under the rule ``error``.
    """
    if missing not in MISSING_RULES:
        raise ValueError(f"bands_missing must be one of {', '.join(MISSING_RULES)}, got {missing!r}")
    sensor = get_sensor(modality)
    mine, theirs = sensor.canonical(mine), sensor.canonical(theirs)
    lacking = [band for band in mine if band not in theirs]
    if lacking and missing == "error":
        raise ValueError(
            f"{modality}: the weights have no band {', '.join(lacking)}; they have {', '.join(theirs)}. "
            f"Leave {'it' if len(lacking) == 1 else 'them'} out of your tensor and of bands=, or choose "
            "what such a band gets: bands_missing='nearest', 'mean', 'zero' or 'new'"
        )
    return tuple(
        BandSource(band, band, "by name")
        if band in theirs
        else BandSource(band, _nearest(sensor, band, theirs) if missing == "nearest" else None, missing)
        for band in mine
    )


def _nearest(sensor: Sensor, band: str, theirs: Sequence[str]) -> str:
    wavelength = sensor.band(band).wavelength
    return min(theirs, key=lambda name: abs(sensor.band(name).wavelength - wavelength))


def adapt_linear_tokenizer(
    weight: Tensor, sources: Sequence[BandSource], theirs: Sequence[str], fresh: Tensor
) -> Tensor:
    """Return the tokenizer weight for the user's bands.

    Args:
        weight: [D, C * p * p] in (band, row, column) order, for the bands ``theirs``.
        sources: one per band of the user's, from :func:`match_bands`.
        fresh: a randomly initialised weight for the user's bands, [D, len(sources) * p * p]; the
            source of ``new`` bands.
    """
    old = weight.unflatten(1, (len(theirs), -1))  # [D, C, p * p]
    new = fresh.unflatten(1, (len(sources), -1))
    columns = []
    for i, band in enumerate(sources):
        if band.source is not None:
            columns.append(old[:, list(theirs).index(band.source)])
        elif band.rule == "mean":
            columns.append(old.mean(dim=1))
        elif band.rule == "zero":
            columns.append(torch.zeros_like(old[:, 0]))
        else:
            columns.append(new[:, i])
    return torch.stack(columns, dim=1).flatten(1)


def describe_bands(modality: str, sources: Sequence[BandSource], theirs: Sequence[str]) -> tuple[Change, ...]:
    """Say what :func:`match_bands` decided; nothing where the user's bands are the weights' own."""
    mine = [band.band for band in sources]
    if mine == list(theirs):
        return ()
    part = f"{modality} tokenizer"
    changes = [Change(part, "gathered", ", ".join(b.band for b in sources if b.rule == "by name"))]
    for band in sources:
        if band.rule != "by name":
            detail = f"{band.band} <- {band.source}" if band.source else band.band
            changes.append(Change(part, f"filled: {band.rule}", detail))
    if left_out := [band for band in theirs if band not in mine]:
        changes.append(Change(part, "left out", ", ".join(left_out)))
    return tuple(change for change in changes if change.detail)

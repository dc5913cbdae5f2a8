"""Adapt pretrained weights to the user's bands and patch size. Pure functions that report what they did.

*Matching.* Requested bands are matched to pretrained bands: by name within one sensor, by wavelength across
sensors. Across sensors the center of the requested band must lie inside the pretrained band (within half of
its width), and the closest one wins; radar bands must share the polarization as well. ``missing_bands`` is
the policy for bands without a match:

- ``error``: raise an error.
- ``nearest``: take the kernel of the pretrained band nearest in wavelength, up to a factor of 3 away. That
  factor lets 0.8 um stand in for 2.2 um, both of which are reflected sunlight. It keeps apart thermal
  infrared (10.9 um) and shortwave infrared (2.2 um), and L-band and C-band radar, which differ by a factor of
  more than 4 and measure different things.
- ``mean``: take the mean of all pretrained kernels.
- ``zero``: take zeros, so that the model does not use the band.
- ``reinit``: take random weights, as torch initializes them, to be trained.

``reinit_all`` re-initializes the kernel of every band, matched or not: a new stem under trained blocks
(SeaMo, section 4.5.6). It applies to the sensors whose bands the user passes, or to all sensors. Bands keep
the input statistics of the pretrained band that they match.

Optical and radar bands are never matched to each other. Pretrained bands without a match are dropped.

*Scaling.* A token is the sum of the contributions of its bands. Where k requested bands share one pretrained
kernel, each gets 1/k of it under every rule (the mean of all kernels counts as one more source), so 200
narrow bands weigh as much as the few that they share. Where only n of the N pretrained bands are sources,
terms of the sum are missing, and ``kernel_scale`` is the rule for the factor that makes up for them:

- ``count``: N/n, as if bands were alike and their contributions added up.
- ``sqrt``: the square root of N/n, as if bands were independent and their variances added up.
- ``none``: 1.

Under ``count``, an image that is the same in all bands keeps its token whichever bands are passed, if the
weights treat all bands alike. Bands under ``zero`` and ``reinit`` are not scaled.

A wavelength tokenizer (:mod:`rsbackbones.layers.wavelength_tokenizer`) generates the kernels of any bands.
None of the above applies to it, except that a band takes its input statistics from the pretrained band that
it matches.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rsbackbones.input_spec import BandNumbers, InputSpec
from rsbackbones.sensors import Band, get_sensor

MISSING_RULES = ("error", "nearest", "mean", "zero", "reinit", "reinit_all")
SCALE_RULES = ("count", "sqrt", "none")
# ``nearest`` takes a pretrained band whose wavelength differs by at most this factor.
MAX_WAVELENGTH_RATIO = 3.0


@dataclass(frozen=True)
class AdaptationStep:
    """One change made while loading: the ``part`` of the model, the ``action``, and its ``detail``."""

    part: str
    action: str
    detail: str


@dataclass(frozen=True)
class BandMatch:
    """The source of one requested band's kernel: a pretrained band, or a rule.

    ``factor`` multiplies the source's kernel. Under the rule ``reinit`` the source gives only the input
    statistics. Wavelengths are in nm.
    """

    band: str
    wavelength: float
    source: str | None
    source_wavelength: float | None
    rule: str
    factor: float


@dataclass(frozen=True)
class BandMapping:
    """The sources of all requested bands of one modality. Falsy if they are the pretrained bands themselves.

    ``sensor`` is the sensor of the requested bands, ``weights_sensor`` that of the pretrained bands.
    ``generated``: the kernels are generated from wavelengths, and the sources give only input statistics.
    ``unused_bands``: pretrained bands whose kernels are zeros (from the rule ``zero``).
    """

    modality: str
    sensor: str
    weights_sensor: str
    weights_bands: tuple[str, ...]
    matches: tuple[BandMatch, ...]
    generated: bool = False
    unused_bands: tuple[str, ...] = ()

    @property
    def dropped_bands(self) -> tuple[str, ...]:
        """The pretrained bands that are the source of no requested band."""
        used = {match.source for match in self.matches if match.rule != "reinit"}
        return tuple(
            band for band in self.weights_bands if band not in used and band not in self.unused_bands
        )

    def __bool__(self) -> bool:
        requested = tuple(match.band for match in self.matches)
        reinit = any(match.rule == "reinit" for match in self.matches)
        return self.sensor != self.weights_sensor or requested != self.weights_bands or reinit

    def __str__(self) -> str:
        if not self:
            return f"{self.modality}: the pretrained bands, unchanged"
        source_title = "statistics from" if self.generated else "weights from"
        cells = [("band", "at", source_title, "at", "rule", "factor")]
        for match in self.matches:
            source, at = match.source or "-", "-"
            if match.rule == "reinit" and not self.generated:
                source = "-"
            elif match.source_wavelength is not None:
                at = _format_wavelength(match.source_wavelength)
            cells.append(
                (
                    match.band,
                    _format_wavelength(match.wavelength),
                    source,
                    at,
                    match.rule,
                    f"{match.factor:.4g}",
                )
            )
        widths = [max(len(line[i]) for line in cells) for i in range(5)]
        lines = [f"{self.modality}: your bands of {self.sensor}, weights for bands of {self.weights_sensor}"]
        for line in cells:
            padded = [f"{cell:<{width}}" for cell, width in zip(line[:-1], widths, strict=True)]
            lines.append("  " + "  ".join([*padded, line[-1]]))
        if self.dropped_bands and not self.generated:
            lines.append(f"  dropped pretrained bands: {', '.join(self.dropped_bands)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Adaptation:
    """Everything that loading changed, printed as a table. Falsy if nothing was changed.

    ``bands`` has a mapping for every modality whose bands differ from the pretrained ones. ``steps`` has all
    other changes.
    """

    steps: tuple[AdaptationStep, ...] = ()
    bands: tuple[BandMapping, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps or self.bands)

    def __str__(self) -> str:
        if not self:
            return "nothing changed: the weights are used as they are stored"
        lines = [str(mapping) for mapping in self.bands]
        if self.steps:
            rows = [("part", "action", "detail")] + [(s.part, s.action, s.detail) for s in self.steps]
            widths = [max(len(row[i]) for row in rows) for i in range(2)]
            lines += [
                f"{part:<{widths[0]}}  {action:<{widths[1]}}  {detail}" for part, action, detail in rows
            ]
        return "\n".join(lines)


def check_rules(missing_bands: str, kernel_scale: str) -> None:
    """Check the names of the two rules.

    Raises:
        ValueError: a rule is unknown.
    """
    if missing_bands not in MISSING_RULES:
        raise ValueError(f"missing_bands must be one of {', '.join(MISSING_RULES)}, got {missing_bands!r}")
    if kernel_scale not in SCALE_RULES:
        raise ValueError(f"kernel_scale must be one of {', '.join(SCALE_RULES)}, got {kernel_scale!r}")


def match_bands(
    modality: str,
    target_bands: Sequence[str],
    source_bands: Sequence[str],
    *,
    sensor: str | None = None,
    weights_sensor: str | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
    unused_bands: Sequence[str] = (),
) -> BandMapping:
    """Match requested bands to pretrained bands.

    Args:
        modality: the model's name for the input.
        target_bands: the requested bands, in order.
        source_bands: the pretrained bands, in order.
        sensor: the sensor of the requested bands; default ``modality`` itself.
        weights_sensor: the sensor of the pretrained bands; default ``modality`` itself.
        missing_bands, kernel_scale: rules, see the top of this file.
        unused_bands: pretrained bands whose kernels are zeros. No other band is matched to them, and they
            stay zeros unless the rule is ``reinit_all``.

    Raises:
        ValueError: a rule, sensor or band is unknown, the sensors are of different kinds, a band has no match
            under the rule ``error``, or no pretrained band is close enough under ``nearest``.
    """
    check_rules(missing_bands, kernel_scale)
    target_sensor, source_sensor = get_sensor(sensor or modality), get_sensor(weights_sensor or modality)
    if target_sensor.kind != source_sensor.kind:
        raise ValueError(
            f"{modality}: {target_sensor.name} is {target_sensor.kind}, but the weights are for "
            f"{source_sensor.name}, which is {source_sensor.kind}; optical and radar bands cannot be matched"
        )
    targets = [target_sensor.band(name) for name in target_sensor.canonical(target_bands)]
    sources = [source_sensor.band(name) for name in source_sensor.canonical(source_bands)]
    used = [band for band in sources if band.name not in unused_bands]
    matches: list[BandMatch] = []
    unmatched = []
    for band in targets:
        if target_sensor.name == source_sensor.name:
            rule, candidates = "by name", [source for source in used if source.name == band.name]
        else:
            rule = "by wavelength"
            candidates = [source for source in used if _is_same_band(band, source, target_sensor.kind)]
        if target_sensor is source_sensor and band.name in unused_bands:
            rule = "zero"
        elif not candidates:
            unmatched.append(band.name)
            rule, candidates = missing_bands, _measured(modality, band, used, missing_bands)
        if missing_bands == "reinit_all":
            rule = "reinit"
        best = min(candidates, key=lambda source: _distance(band, source)) if candidates else None
        if rule == "nearest" and best is not None:
            _check_wavelength_ratio(modality, band, best)
        at = best.wavelength if best else None
        matches.append(BandMatch(band.name, band.wavelength, best.name if best else None, at, rule, 1.0))
    if unmatched and missing_bands == "error":
        them = "it" if len(unmatched) == 1 else "them"
        close = "" if target_sensor is source_sensor else f" (of {source_sensor.name}) close in wavelength to"
        raise ValueError(
            f"{modality}: the weights have no band{close} {', '.join(unmatched)}; they have "
            f"{', '.join(band.name for band in used)}. Remove {them} from your tensor and from bands=, or "
            "choose a rule for bands without a match: missing_bands='nearest', 'mean', 'zero', 'reinit' or "
            "'reinit_all' (command line: --missing-bands)"
        )
    return BandMapping(
        modality,
        target_sensor.name,
        source_sensor.name,
        tuple(band.name for band in sources),
        _scaled(matches, len(used), kernel_scale),
        unused_bands=tuple(band.name for band in sources if band not in used),
    )


def _scaled(matches: Sequence[BandMatch], total: int, kernel_scale: str) -> tuple[BandMatch, ...]:
    """Set the factors of the matches, for weights of ``total`` bands; see the top of this file."""
    fixed = {"zero": 0.0, "reinit": 1.0}
    shared = Counter(match.source for match in matches if match.rule not in fixed)  # None: the mean of all
    ratio = total / len(shared) if shared else 1.0
    scale = {"count": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[kernel_scale]
    return tuple(
        replace(match, factor=fixed[match.rule] if match.rule in fixed else scale / shared[match.source])
        for match in matches
    )


def from_wavelengths(mapping: BandMapping) -> BandMapping:
    """Return the mapping for a wavelength tokenizer, which generates the kernels of any bands.

    The rule of a match becomes ``generated``, or ``extrapolated`` outside the range of the pretrained bands.
    """
    sources = [get_sensor(mapping.weights_sensor).band(name) for name in mapping.weights_bands]
    low = min(band.wavelength - band.width / 2 for band in sources)
    high = max(band.wavelength + band.width / 2 for band in sources)
    matches = tuple(
        replace(match, rule="generated" if low <= match.wavelength <= high else "extrapolated", factor=1.0)
        for match in mapping.matches
    )
    return replace(mapping, matches=matches, generated=True)


def _measured(modality: str, band: Band, sources: Sequence[Band], missing_bands: str) -> list[Band]:
    """Return the bands that ``nearest`` may choose from; none under another rule."""
    if missing_bands != "nearest":
        return []
    if band.index:
        raise ValueError(
            f"{modality}: {band.name} is computed from {' and '.join(band.index)} and has no nearest band; "
            "leave it out, or choose missing_bands='mean', 'zero' or 'reinit' (--missing-bands)"
        )
    return [source for source in sources if not source.index]


def _is_same_band(band: Band, source: Band, kind: str) -> bool:
    if band.index or source.index:
        return band.name == source.name
    inside = abs(band.wavelength - source.wavelength) <= source.width / 2
    return inside and (band.name == source.name or kind != "radar")


def _distance(band: Band, source: Band) -> tuple[float, bool, bool]:
    # At equal wavelength (the polarizations of a radar) prefer the same name, then a band that is also co- or
    # cross-polarized: HV is closer to VH than to VV.
    crossed = [len(set(each.name)) > 1 for each in (band, source)]
    return abs(band.wavelength - source.wavelength), band.name != source.name, crossed[0] != crossed[1]


def _check_wavelength_ratio(modality: str, band: Band, source: Band) -> None:
    ratio = band.wavelength / source.wavelength
    if not 1 / MAX_WAVELENGTH_RATIO <= ratio <= MAX_WAVELENGTH_RATIO:
        raise ValueError(
            f"{modality}: {band.name} at {_format_wavelength(band.wavelength)} is too far from every "
            f"pretrained band. The nearest is {source.name} at {_format_wavelength(source.wavelength)}, and "
            f"'nearest' allows a factor of {MAX_WAVELENGTH_RATIO:g}. Leave the band out, or choose "
            "missing_bands='mean', 'zero' or 'reinit' (--missing-bands)"
        )


def _format_wavelength(nanometers: float) -> str:
    return f"{nanometers:.1f} nm" if nanometers < 1e6 else f"{nanometers / 1e7:.2f} cm"


def adapt_kernel(kernel: Tensor, mapping: BandMapping, fresh: Tensor) -> Tensor:
    """Return a stem's kernel for the requested bands.

    Args:
        kernel: [D, C, ...] for the pretrained bands: [D, C, p, p] of patches, [D, C, kh, kw] or
            [D, C, kt, kh, kw] of convolutions.
        mapping: from :func:`match_bands`.
        fresh: a randomly initialized kernel for the requested bands, [D, C', ...] with C' =
            ``len(mapping.matches)``; bands under ``reinit`` take theirs from it.

    Raises:
        ValueError: the kernels have other shapes.
    """
    source_bands, expected = (
        mapping.weights_bands,
        (kernel.shape[0], len(mapping.matches), *kernel.shape[2:]),
    )
    if kernel.ndim < 2 or kernel.shape[1] != len(source_bands) or tuple(fresh.shape) != expected:
        raise ValueError(
            f"{mapping.modality}: expected a pretrained kernel [D, {len(source_bands)}, ...] and a fresh "
            f"kernel [D, {len(mapping.matches)}, ...], got {list(kernel.shape)} and {list(fresh.shape)}"
        )
    columns = []
    for i, match in enumerate(mapping.matches):
        if match.source is not None and match.rule != "reinit":
            column = kernel[:, source_bands.index(match.source)]
        elif match.rule == "mean":
            used = [n for n, band in enumerate(source_bands) if band not in mapping.unused_bands]
            column = kernel[:, used].mean(dim=1)
        else:  # reinit, or zero, whose factor is 0
            column = fresh[:, i]
        columns.append(column * match.factor)
    return torch.stack(columns, dim=1)


def adapt_input_spec(spec: InputSpec, mapping: BandMapping) -> InputSpec:
    """Return the input contract for the requested bands.

    A band takes the statistics of its source. Under ``mean`` it takes the mean of all means and the mean of
    all standard deviations. Bands under ``zero`` and ``reinit`` have no statistics and are not among the
    result's ``bands``, unless the contract is of more bands than the network and has theirs. Bands whose
    kernels are zeros are its ``unused_bands``.
    """
    if not mapping:
        return spec.of([match.band for match in mapping.matches])
    known = spec.rows
    every = [known[band] for band in mapping.weights_bands if band in known]
    found, unused = {}, []
    for match in mapping.matches:
        source_unused = match.source in spec.unused_bands and match.rule != "reinit"
        if match.rule == "zero" or (source_unused and not mapping.generated):
            unused.append(match.band)
        elif match.source in known:
            found[match.band] = known[match.source]
        elif mapping.sensor == mapping.weights_sensor and match.band in known:
            found[match.band] = known[match.band]
        elif match.rule == "mean" and every:
            found[match.band] = _mean_numbers(every)
    return spec.with_rows(found, unused)


def _mean_numbers(rows: Sequence[BandNumbers]) -> BandNumbers:
    def mean(pairs: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
        known = [pair for pair in pairs if pair is not None]
        low, high = (sum(side) / len(known) for side in zip(*known, strict=True)) if known else (0.0, 0.0)
        return (low, high) if len(known) == len(rows) else None

    return BandNumbers(
        sum(row.mean for row in rows) / len(rows),
        sum(row.std for row in rows) / len(rows),
        mean([row.stored_range for row in rows]),
        mean([row.stretch for row in rows]),
    )


def resize_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    """Resize a patch embedding kernel [D, C, p, p] to another patch size, [D, C, q, q].

    A kernel over dates as well, [D, C, t, p, p], is resized date by date.

    This is the pseudo-inverse resize of FlexiViT (Beyer et al., CVPR 2023, section 3.4). Let R resize a patch
    bilinearly. The new kernel is the least-squares solution of <R x, new> = <x, old> for all patches x. For
    larger patches the solution is exact: a resized patch has the token of the original patch.

    Raises:
        ValueError: the kernel is not square.
    """
    old, new = kernel.shape[-1], patch_size
    if kernel.ndim < 4 or kernel.shape[-2] != old:
        raise ValueError(
            f"only square kernels [D, C, p, p] or [D, C, t, p, p] are resized, got {list(kernel.shape)}; "
            "leave out patch_size="
        )
    if old == new:
        return kernel
    basis = torch.eye(old * old, dtype=torch.float64, device=kernel.device).view(-1, 1, old, old)
    # [p * p, q * q]: every pixel of a patch, resized. With antialias, as images are made smaller.
    resize = F.interpolate(basis, (new, new), mode="bilinear", antialias=True).flatten(1)
    solved: Tensor = kernel.flatten(-2).double() @ torch.linalg.pinv(resize).T
    resized: Tensor = solved.to(kernel.dtype).unflatten(-1, (new, new))
    return resized

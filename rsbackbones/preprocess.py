"""Preprocessing: convert raw sensor values to the model's input, by the rule of the weights' input contract.

====================  ========================================================================================
rule (``normalize``)  the model's input
====================  ========================================================================================
``clip_2sd``          clipped to mean +- 2 standard deviations, which become 0 and 1
``scale``             x / s, one s per band; with ``clip`` clipped to [0, 1]
``standard``          (x - mean) / standard deviation
``imagenet``          an 8-bit picture as [0, 1] (after a ``stretch``, if any), then (x - mean) / std
``none``              x
====================  ========================================================================================

Some weights were trained on values that were stored in 8 bits (the units ``uint8`` and ``tci_dn``). Where the
contract states how those were made, physical values are converted to them first, so that a user with
reflectance passes what the network saw: value = 255 (x - low) / (high - low), clipped and rounded down.

The rule ``clip_2sd`` clips every band to its mean +- 2 standard deviations and scales that range to [0, 1].
By default the result is truncated to 8 bits, as in the CROMA authors' code. The statistics are those of the
*dataset* that the weights were trained on. The authors' script uses the mean and standard deviation of each
*batch* instead, so that the features of an image depend on the other images of its batch; that rule is
``statistics="batch"``.

8-bit RGB images are not physical measurements, so the statistics do not apply to them. For their unit
``uint8_rgb`` the model's input is value / 255, and under the rule ``imagenet``, which is one for pictures,
that with ImageNet's mean and standard deviation.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from rsbackbones.arrays import is_dataset, to_mask, to_tensor
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.sensors import UINT8_RGB, BandNumbers, InputSpec, Sensor, get_sensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Raw = Tensor | npt.NDArray[np.generic]
    Mask = Tensor | npt.NDArray[np.generic] | Sequence[Any]
    Masks = Mask | Mapping[str, Mask]

_PICTURE = "8-bit RGB images, 0 to 255: the model's input is value / 255, without statistics"
_OPTICAL = {
    "dn": "reflectance x 10000",
    "dn_baseline_0400": "reflectance x 10000 + 1000: Sentinel-2 since processing baseline 04.00 (2022)",
    "reflectance": "reflectance, 0 to 1",
    "landsat_c2": "Landsat Collection 2, Level 2: reflectance = value x 0.0000275 - 0.2",
}
_RADAR = {"db": "decibel", "linear": "linear power (sigma nought, gamma nought)"}
# The unit of the input contract -> the units that values may have. Thermal bands are in kelvin in all of them
# but landsat_c2.
UNITS = {
    "dn": {**_OPTICAL, UINT8_RGB: _PICTURE},
    "db": {**_RADAR, UINT8_RGB: _PICTURE},
    "uint8": {"uint8": "the 8-bit values of the training set", **_OPTICAL, UINT8_RGB: _PICTURE},
    "tci_dn": {
        "tci_dn": "Sentinel-2's 8-bit true color image for B04, B03 and B02, dn for other bands",
        **_OPTICAL,
        UINT8_RGB: _PICTURE,
    },
}
RULES = ("clip_2sd", "scale", "standard", "imagenet", "none")
# Lower bound for the logarithm: -100 dB is far below every clipping range.
_SMALLEST_POWER = 1e-10
# USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide: scale and offset of surface reflectance.
_LANDSAT_C2_SCALE, _LANDSAT_C2_OFFSET = 0.0000275, -0.2
_LANDSAT_C2_KELVIN_SCALE, _LANDSAT_C2_KELVIN_OFFSET = 0.00341802, 149.0
# Keeps the normalized difference of two zeros finite, as in SSL4Eco's code.
_SMALLEST_SUM = 1e-5
_DIGITAL_NUMBERS = ("dn", "dn_baseline_0400", "landsat_c2")


class OffsetWarning(UserWarning):
    """Every value is 1000 or more: the values may include the radiometric offset of Sentinel-2 products."""


class Preprocess:
    """Converts raw sensor values to the model's input. Made by :func:`create_preprocess`.

    Inputs are never modified in place.
    """

    def __init__(
        self,
        specs: Mapping[str, InputSpec],
        given: Mapping[str, tuple[str, ...]],
        units: Mapping[str, str],
        sensors: Mapping[str, Sensor],
        *,
        batch_statistics: bool,
        check: bool,
    ) -> None:
        self.specs = dict(specs)
        self.given = dict(given)
        self.units = dict(units)
        self.sensors = dict(sensors)
        self.batch_statistics = batch_statistics
        self.check = check

    @overload
    def __call__(self, x: "Raw", valid: "Masks | None" = None) -> Tensor: ...
    @overload
    def __call__(self, x: "Mapping[str, Raw]", valid: "Masks | None" = None) -> dict[str, Tensor]: ...

    def __call__(
        self, x: "Raw | Mapping[str, Raw]", valid: "Masks | None" = None
    ) -> Tensor | dict[str, Tensor]:
        """Normalize raw values.

        Args:
            x: arrays or tensors by modality, [..., C, H, W], integers or floats, with channels in the order
                of ``bands``. A bare array is accepted if there is one modality. The dimensions and bands of
                an xarray DataArray or Dataset are taken by their names
                (:func:`rsbackbones.arrays.to_tensor`).
            valid: by modality booleans, False for what does not count: pixels [..., H, W], or missing images
                [B, T] of series [B, T, C, H, W]. Their values are ignored and replaced by zeros. Pass the
                same mask to the model. :meth:`valid_pixels` finds the pixels that arrays themselves lack.

        Returns:
            float32 tensors of the same shape, with the model's channels; a mapping if ``x`` is one.

        Raises:
            ValueError: a modality is unknown, the number of channels is wrong, values are NaN, infinite or
                masked, or they are impossible in the stated unit.
        """
        images, single = self._by_modality(x)
        masks = valid if isinstance(valid, Mapping) else {} if valid is None else dict.fromkeys(images, valid)
        if unknown := [m for m in masks if m not in images]:
            raise ValueError(f"valid has {', '.join(unknown)}; the images are {', '.join(images)}")
        if len(images) > 1 and valid is not None and not isinstance(valid, Mapping):
            raise ValueError(f"valid must be a mapping by modality, got {type(valid).__name__}")
        made = {m: self._apply(m, values, masks.get(m)) for m, values in images.items()}
        return made[single] if single else made

    def valid_pixels(self, x: "Raw | Mapping[str, Raw]") -> dict[str, Tensor]:
        """Return which pixels of raw values have data in all bands that the model takes.

        A pixel has none where a band is NaN or infinite, masked (a numpy masked array), or has the value that
        an xarray object states for it (``_FillValue``)::

            valid = preprocess.valid_pixels(x)
            features = model.forward_features(preprocess(x, valid=valid), valid=valid)

        Args:
            x: as for calling the preprocessing.

        Returns:
            By modality, booleans [..., H, W]. Combine them with masks of your own by ``&``.
        """
        found = {}
        for m, values in self._by_modality(x)[0].items():
            tensor, held = self._tensor(m, values)
            sources = [self.given[m].index(band) for band in self._source_bands(m)]
            there = torch.stack([tensor[..., i, :, :].isfinite() for i in sources]).all(dim=0)
            found[m] = there if held is None else there & held
        return found

    def _by_modality(self, x: "Raw | Mapping[str, Raw]") -> tuple[Mapping[str, Any], str | None]:
        """Return raw values by modality, and the modality of a bare array."""
        if not isinstance(x, Mapping) or is_dataset(x):
            if len(self.specs) > 1:
                raise ValueError(
                    f"pass a mapping by modality, {{name: values}}, with the names {', '.join(self.specs)}"
                )
            (modality,) = self.specs
            return {modality: x}, modality
        if unknown := [m for m in x if m not in self.specs]:
            raise ValueError(f"unknown modality {unknown}; known here: {', '.join(self.specs)}")
        return x, None

    def _tensor(self, modality: str, raw: "Raw") -> tuple[Tensor, Tensor | None]:
        """Return raw values [..., C, H, W] and which pixels they have, [..., H, W], ``None`` for all."""

        def find_band(name: str) -> str | None:
            try:
                return self.sensors[modality].band(name).name
            except ValueError:
                return None

        return to_tensor(raw, self.given[modality], find_band, modality)

    def _apply(self, modality: str, raw: "Raw", valid: Any) -> Tensor:
        x, held = self._tensor(modality, raw)
        if valid is None:
            return self._apply_images(modality, x, held)
        mask, pixels = to_mask(valid, f"valid[{modality!r}]").to(x.device), (*x.shape[:-3], *x.shape[-2:])
        if x.ndim == 5 and mask.shape == x.shape[:2]:
            mask = mask[..., None, None].expand(pixels)
        if mask.shape != pixels:
            raise ValueError(
                f"{modality}: valid must be booleans {list(pixels)}, True for pixels that count, or [B, T] "
                f"for a series [B, T, C, H, W], got {list(mask.shape)} for {list(x.shape)}"
            )
        if mask.all():
            return self._apply_images(modality, x, held)
        made = torch.zeros(*x.shape[:-3], len(self.specs[modality].bands), *x.shape[-2:], device=x.device)
        if mask.any():
            values = x.movedim(-3, 0)[:, mask][:, None]  # [C, 1, pixels]
            inside = None if held is None else held[mask][None]
            made.movedim(-3, 0)[:, mask] = self._apply_images(modality, values, inside)[:, 0]
        return made

    def _apply_images(self, modality: str, x: Tensor, held: Tensor | None) -> Tensor:
        given = self.given[modality]
        in_numbers = self.units[modality] in _DIGITAL_NUMBERS or (
            self.units[modality] == "tci_dn" and None in self.specs[modality].stored_range
        )
        if self.check and x.dtype in (torch.uint8, torch.int8) and in_numbers:
            raise ValueError(
                f"{modality}: 8-bit values are a picture, not digital numbers ({self.units[modality]!r}); "
                f"pass the original product, or units={{'{modality}': '{UINT8_RGB}'}} for value / 255 as "
                "the model's input (check=False skips this check)"
            )
        x = x.to(torch.float32)  # a copy, or left as it is from here on
        if held is not None:
            x = x.masked_fill(~held.to(x.device).unsqueeze(-3), float("nan"))
        sources = self._source_bands(modality)
        if given != sources:
            x = x[..., [given.index(band) for band in sources], :, :]
        if self.check:
            self._check_values(modality, sources, x)
        x = self._to_contract_unit(modality, sources, x)
        return self._normalize(modality, x)

    def _source_bands(self, modality: str) -> tuple[str, ...]:
        """Return the bands to take from the user's: the model's, or the sources of an index."""
        given, sensor = self.given[modality], self.sensors[modality]
        needed = self.specs[modality].bands
        return tuple(
            dict.fromkeys(
                name for band in needed for name in ((band,) if band in given else sensor.band(band).index)
            )
        )

    def _check_values(self, modality: str, bands: tuple[str, ...], x: Tensor) -> None:
        bad = ~x.isfinite()
        if bad.any():
            counts = bad.movedim(-3, 0).flatten(1).sum(1).tolist()
            where = ", ".join(f"{b}: {n}" for b, n in zip(bands, counts, strict=True) if n)
            raise ValueError(
                f"{modality}: NaN or infinity in the input, or masked pixels (pixels per band: {where}); "
                "fill them, or mark them as missing: valid = preprocess.valid_pixels(x), then preprocess(x, "
                "valid=valid) and model(..., valid=valid)"
            )
        if not x.numel():
            raise ValueError(f"{modality}: no values in an input of shape {list(x.shape)}")
        indices = [i for i, band in enumerate(bands) if self.sensors[modality].band(band).index]
        if indices and 0 < float(x[..., indices, :, :].abs().max()) <= 1:
            raise ValueError(
                f"{modality}: {', '.join(bands[i] for i in indices)} goes to 1 at most, but these weights "
                "take it times 10000; leave it out of your bands, and create_preprocess computes it"
            )
        reflective = [not self.sensors[modality].band(band).is_thermal for band in bands]
        if not any(reflective):
            return
        if not all(reflective):
            x = x[..., torch.tensor(reflective, device=x.device), :, :]
        unit, low, high = self.units[modality], float(x.min()), float(x.max())
        if unit in (UINT8_RGB, "uint8"):
            self._check_bytes(modality, x)
            return
        if unit == "tci_dn":
            rows = self.specs[modality].rows
            if stored := [i for i, band in enumerate(bands) if rows[band].stored_range]:
                self._check_bytes(modality, x[..., stored, :, :])
            return
        hint = None
        if high < 0 and unit not in ("db", "linear"):
            raise ValueError(
                f"{modality}: no value is above zero, the values go from {low:.4g} to {high:.4g}; fill or "
                "leave out pixels without data first"
            )
        below_zero = unit == "landsat_c2" and 0 < high < -_LANDSAT_C2_OFFSET / _LANDSAT_C2_SCALE
        if unit in _DIGITAL_NUMBERS and 0 < high <= 2:
            hint = ("reflectance", "reflectances (0 to 1)")
        elif below_zero or (unit == "reflectance" and high > 20):
            hint = ("dn", "digital numbers (reflectance x 10000)")
        elif unit == "db" and low >= 0 and high > 0:
            hint = ("linear", "linear power")
        elif unit == "dn" and _lowest_above_zero(x) >= 1000:  # zero is what pixels without data hold
            warnings.warn(
                f"{modality}: no value is below 1000. Sentinel-2 products since 2022 have a radiometric "
                f"offset of 1000. If yours do, pass create_preprocess(model, units={{'{modality}': "
                "'dn_baseline_0400'}) (Landsat Collection 2: 'landsat_c2')",
                OffsetWarning,
                stacklevel=4,
            )
        elif unit == "linear" and low < 0:
            hint = ("db", "decibels")
        if hint:
            raise ValueError(
                f"{modality}: values from {low:.4g} to {high:.4g} look like {hint[1]}, not {unit!r}; pass "
                f"create_preprocess(model, units={{'{modality}': '{hint[0]}'}}), or check=False to skip "
                f"checks (rsbackbones embed: --units {modality}={hint[0]})"
            )

    def _check_bytes(self, modality: str, x: Tensor) -> None:
        """Check values that are stored in 8 bits."""
        low, high = float(x.min()), float(x.max())
        divided = 0 < high <= 2 and bool((x % 1 != 0).any())  # a cloud's reflectance exceeds 1
        if low >= 0 and high <= 255 and not divided:
            return
        unit, measured = self.units[modality], "reflectance" in _known_units(self.specs[modality])
        fix = "multiply them by 255" if divided else "pass 8-bit values"
        if measured and divided:
            fix = f"reflectances have units={{'{modality}': 'reflectance'}}; {fix} if it is a divided picture"
        elif measured:
            fix = f"digital numbers have units={{'{modality}': 'dn'}}"
        raise ValueError(
            f"{modality}: values of the unit {unit!r} range from 0 to 255"
            + (" in the bands of the true color image" if unit == "tci_dn" else "")
            + f", got {low:.4g} to {high:.4g}; {fix} (command line: --units)"
        )

    def _to_contract_unit(self, modality: str, bands: tuple[str, ...], x: Tensor) -> Tensor:
        """Convert the source ``bands`` [..., C, H, W] to the model's bands in the unit of the contract."""
        spec, unit, sensor = self.specs[modality], self.units[modality], self.sensors[modality]
        if unit == spec.unit or spec.unit is None:
            return self._with_indices(modality, bands, x)
        if unit == "linear":
            return 10 * x.clamp(min=_SMALLEST_POWER).log10()
        if unit in _OPTICAL:
            each = [sensor.band(band) for band in bands]
            to_dn = torch.tensor(
                [_DN_OF_THERMAL[unit] if b.is_thermal else (1, 0) if b.index else _DN_OF[unit] for b in each],
                device=x.device,
            )  # [C, 2]
            x = x * to_dn[:, :1, None] + to_dn[:, 1:, None]
        x = self._with_indices(modality, bands, x)
        return x if unit in _RADAR or unit == UINT8_RGB else _stored(x, spec)

    def _with_indices(self, modality: str, bands: tuple[str, ...], x: Tensor) -> Tensor:
        """Return the model's bands [..., C, H, W]; an index that was not given is computed, as dn."""
        needed = self.specs[modality].bands
        if needed == bands:
            return x
        place = {band: i for i, band in enumerate(bands)}
        columns = []
        for band in needed:
            if band in place:
                columns.append(x[..., place[band], :, :])
            else:
                one, other = (x[..., place[name], :, :] for name in self.sensors[modality].band(band).index)
                index = (one - other) / (one + other + _SMALLEST_SUM)
                columns.append((index.clamp(min=0) * 10000).floor())
        return torch.stack(columns, dim=-3)

    def _normalize(self, modality: str, x: Tensor) -> Tensor:
        spec = self.specs[modality]
        if spec.normalize == UINT8_RGB:
            return x / 255
        if spec.normalize == "none":
            return x
        if spec.normalize != "clip_2sd":
            mean, std = (torch.tensor(n, device=x.device).view(-1, 1, 1) for n in (spec.mean, spec.std))
            if spec.normalize == "imagenet":
                x = self._picture(spec, x)
            x = (x - mean) / std
            return x.clamp(0, 1) if spec.clip else x
        if self.batch_statistics:
            flat = x.movedim(-3, 0).flatten(1)
            mean, std = flat.mean(1), flat.std(1)
            if flat.shape[1] < 2 or bool((std == 0).any()):
                constant = [b for b, s in zip(spec.bands, std.tolist(), strict=True) if not s > 0]
                raise ValueError(
                    f"{modality}: band {', '.join(constant)} is constant, so it has no batch statistics; "
                    "use statistics='dataset'"
                )
        else:
            mean = torch.tensor(spec.mean, device=x.device)
            std = torch.tensor(spec.std, device=x.device)
        mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        low, high = mean - 2 * std, mean + 2 * std
        x = (x - low) / (high - low)
        if spec.eight_bit:
            return (x * 255).clamp(0, 255).to(torch.uint8).to(torch.float32) / 255
        return x.clamp(0, 1)

    def _picture(self, spec: InputSpec, x: Tensor) -> Tensor:
        """Return 8-bit values as [0, 1], stretched where the contract has a stretch."""
        if not spec.stretch:
            return x / 255
        low, high = (
            torch.tensor(side, device=x.device).view(-1, 1, 1) for side in zip(*spec.stretch, strict=True)
        )
        x = ((x - low) / (high - low)).clamp(0, 1)
        return (x * 255).floor() / 255 if spec.eight_bit else x

    def __repr__(self) -> str:
        lines = []
        for modality, spec in self.specs.items():
            if spec.normalize == UINT8_RGB:
                given = ", ".join(self.given[modality])
                lines.append(f"  {modality}: {given} in {UINT8_RGB} -> {', '.join(spec.bands)}, value / 255")
                continue
            source = "each batch" if self.batch_statistics else spec.statistics or "the weights' entry"
            lines.append(
                f"  {modality}: {', '.join(self.given[modality])} in {self.units[modality]} -> "
                f"{', '.join(spec.bands)}, {spec.product}, {spec.normalize} of {source}"
                + (
                    ", through 8 bits"
                    if spec.eight_bit or (self.units[modality] != spec.unit and spec.stored_range)
                    else ""
                )
            )
        return "Preprocess(\n" + "\n".join(lines) + "\n)"


# Scale and offset from a unit to dn, and from the thermal bands of that unit to kelvin.
_DN_OF = {
    "dn": (1.0, 0.0),
    "dn_baseline_0400": (1.0, -1000.0),
    "reflectance": (10000.0, 0.0),
    "landsat_c2": (_LANDSAT_C2_SCALE * 10000, _LANDSAT_C2_OFFSET * 10000),
}
_DN_OF_THERMAL = {
    **dict.fromkeys(_DN_OF, (1.0, 0.0)),
    "landsat_c2": (_LANDSAT_C2_KELVIN_SCALE, _LANDSAT_C2_KELVIN_OFFSET),
}


def _stored(x: Tensor, spec: InputSpec) -> Tensor:
    """Return dn [..., C, H, W] as the 8-bit values of the training set, for the bands that it stores so."""
    if not spec.stored_range:
        return x
    stored = torch.tensor([pair is not None for pair in spec.stored_range], device=x.device).view(-1, 1, 1)
    low, high = (
        torch.tensor(side, device=x.device).view(-1, 1, 1)
        for side in zip(*(pair or (0.0, 255.0) for pair in spec.stored_range), strict=True)
    )
    eight_bit = (255 * ((x - low) / (high - low))).clamp(0, 255).floor()
    return torch.where(stored, eight_bit, x)


def _lowest_above_zero(x: Tensor) -> float:
    return float(x.masked_fill(x <= 0, float("inf")).min())


def create_preprocess(
    model: nn.Module,
    *,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    statistics: Literal["dataset", "batch"] | Mapping[str, Mapping[str, tuple[float, float]]] = "dataset",
    eight_bit: bool | None = None,
    check: bool = True,
) -> Preprocess:
    """Return the preprocessing that converts raw values to this model's input.

    The input contract comes from the manifest entry of the weights or from the file written by
    ``save_model``. A model without either uses the default contract of its architecture (for CROMA:
    SSL4EO-S12 statistics, Sentinel-2 L2A in DN, Sentinel-1 GRD in dB).

    Args:
        model: from ``create_model``; wrappers of torch.compile, data parallelism or timm are removed.
        bands: the channels of *your* arrays, in order, by modality. The model's bands are selected by name,
            other channels (B10, for example) are dropped. Default: the model's bands.
        units: the unit of your values by sensor, where it is not the contract's: for Sentinel-2 ``dn``,
            ``dn_baseline_0400`` (products since 2022 that still carry the offset) or ``reflectance``, for
            Landsat also ``landsat_c2``; for Sentinel-1 ``db`` or ``linear``; ``uint8`` (or ``tci_dn``) for
            the 8-bit values that some weights were trained on. ``uint8_rgb`` is that of 8-bit pictures:
            value / 255 is the input, and statistics have no part in it. For weights whose unit nobody states,
            it must be passed; the values are then passed on as they are.
        statistics: ``dataset``; ``batch`` (mean and deviation of each batch, the CROMA authors' script);
            or ``{sensor: {band: (mean, std)}}`` of your own, in the contract's unit, for some bands.
        eight_bit: truncate to 8 bits; default as in the contract.
        check: raise an error for NaN, infinity and values that are impossible in the stated unit.

    Raises:
        ValueError: a modality, unit or band is unknown, a band of the model is missing from ``bands``, a band
            has no statistics, statistics are passed for the unit ``uint8_rgb``, or nobody states the unit of
            the weights' input and ``units`` does not name it.
    """
    backbone = unwrap_model(model)
    return preprocess_for(
        backbone.inputs, backbone.bands, sensors=backbone.config.sensors, bands=bands, units=units,
        statistics=statistics, eight_bit=eight_bit, check=check,
    )  # fmt: skip


def preprocess_for(
    contract: Mapping[str, InputSpec],
    model_bands: Mapping[str, Sequence[str]],
    *,
    sensors: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    statistics: Literal["dataset", "batch"] | Mapping[str, Mapping[str, tuple[float, float]]] = "dataset",
    eight_bit: bool | None = None,
    check: bool = True,
) -> Preprocess:
    """As :func:`create_preprocess`, from an input contract and the ``model_bands`` of each modality.

    ``sensors`` maps a modality to the sensor of its bands, if that is not the modality's own.
    """
    own = {} if isinstance(statistics, str) else statistics
    if isinstance(statistics, str) and statistics not in ("dataset", "batch"):
        raise ValueError(f"statistics must be 'dataset', 'batch' or your own, got {statistics!r}")
    for argument, keys in (("bands", bands), ("units", units), ("statistics", own)):
        if unknown := [m for m in keys or {} if m not in model_bands]:
            raise ValueError(f"{argument} has {', '.join(unknown)}; this model has {', '.join(model_bands)}")
    specs, given, known_sensors = {}, {}, {}
    for modality, needed in model_bands.items():
        sensor = get_sensor((sensors or {}).get(modality, modality))
        known_sensors[modality] = sensor
        spec, pictures = contract.get(modality), (units or {}).get(modality) == UINT8_RGB
        if pictures and not (spec and spec.normalize == "imagenet"):
            if modality in own or statistics == "batch":
                raise ValueError(
                    f"{modality}: the unit {UINT8_RGB!r} is value / 255 and has no statistics; leave out "
                    "statistics=, or pass the unit of your statistics"
                )
            specs[modality] = _of_pictures(tuple(needed))
        elif spec is None:
            raise ValueError(f"{modality}: the weights have no input contract for this modality")
        else:
            if pictures:  # that is what the network saw; only how it made them is left out
                spec = replace(spec, stretch=())
            specs[modality] = _for_bands(
                modality, sensor, spec, tuple(needed), own.get(modality, {}), eight_bit,
                statistics == "batch",
            )  # fmt: skip
        yours = (bands or {}).get(modality)
        measured = dict.fromkeys(name for b in needed for name in sensor.band(b).index or (b,))
        given[modality] = tuple(measured) if yours is None else sensor.canonical(yours)
        if lacking := [b for b in needed if not _can_have(sensor, b, given[modality])]:
            raise ValueError(
                f"{modality}: your bands lack {', '.join(lacking)}, which the model takes. Build the model "
                f"for your bands: create_model(..., bands={{'{modality}': {given[modality]}}})"
            )
    chosen = {m: _chosen_unit(m, spec, known_sensors[m], (units or {}).get(m)) for m, spec in specs.items()}
    return Preprocess(
        specs, given, chosen, known_sensors, batch_statistics=statistics == "batch", check=check
    )


def _can_have(sensor: Sensor, band: str, given: tuple[str, ...]) -> bool:
    """Return whether a band is given, or is an index of given ones."""
    index = sensor.band(band).index
    return band in given or (bool(index) and {*index} <= {*given})


def _known_units(spec: InputSpec) -> Mapping[str, str]:
    """Return the units that values may have for a contract that states its own."""
    assert spec.unit is not None
    known = UNITS.get(spec.unit, {spec.unit: "", UINT8_RGB: _PICTURE})
    if spec.unit in ("uint8", "tci_dn") and not spec.stored_range:
        return {name: text for name, text in known.items() if name in (spec.unit, UINT8_RGB)}
    return known


def _chosen_unit(modality: str, spec: InputSpec, sensor: Sensor, asked: str | None) -> str:
    """Return the unit of the user's values, the contract's by default."""
    if spec.unit is None:
        known: Mapping[str, str] = _RADAR if sensor.kind == "radar" else _OPTICAL
        if asked is None:
            raise ValueError(
                f"{modality}: nobody states the unit of these weights' input. {spec.notes} Your values are "
                f"passed on as they are once you say what they are: units={{'{modality}': ...}}, one of "
                f"{', '.join(known)} (command line: --units)"
            )
    else:
        known = _known_units(spec)
    unit = spec.unit if asked is None else asked
    assert unit is not None
    if unit not in known:
        raise ValueError(f"{modality}: unit must be one of {', '.join(known)}, got {unit!r}")
    return unit


def _of_pictures(bands: tuple[str, ...]) -> InputSpec:
    return InputSpec(
        bands=bands, product="", unit=UINT8_RGB, normalize=UINT8_RGB, mean=(), std=(), eight_bit=True
    )


def _for_bands(
    modality: str,
    sensor: Sensor,
    spec: InputSpec,
    bands: tuple[str, ...],
    own: Mapping[str, tuple[float, float]],
    eight_bit: bool | None,
    batch: bool,
) -> InputSpec:
    """Return the contract for the model's bands, with the user's statistics if passed."""
    if spec.normalize not in RULES:
        raise ValueError(
            f"{modality}: unknown normalization rule {spec.normalize!r}; known: {', '.join(RULES)}"
        )
    if batch and spec.normalize != "clip_2sd":
        raise ValueError(
            f"{modality}: statistics='batch' is for the rule clip_2sd; these weights have {spec.normalize}"
        )
    known = spec.rows
    for name, (mean, std) in own.items():
        band = sensor.band(name).name
        if band not in bands or not std > 0:
            raise ValueError(
                f"{modality}: statistics of {band}: ({mean}, {std}); expected a band of the model "
                f"({', '.join(bands)}) and a positive standard deviation"
            )
        known[band] = replace(known[band], mean=mean, std=std) if band in known else BandNumbers(mean, std)
    known = dict.fromkeys(spec.unused_bands, BandNumbers(0.0, 1.0)) | known  # their weights are zero
    if (lacking := [b for b in bands if b not in known]) and not batch and spec.normalize != "none":
        raise ValueError(
            f"{modality}: no statistics for {', '.join(lacking)}; pass them, measured on your data: "
            f"statistics={{'{modality}': {{'{lacking[0]}': (mean, std)}}}}"
        )
    chosen = spec.with_rows({band: known.get(band, BandNumbers(0.0, 1.0)) for band in bands})
    return replace(chosen, eight_bit=spec.eight_bit if eight_bit is None else eight_bit)

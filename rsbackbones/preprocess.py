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

8-bit pictures of reflectance (the unit ``rgb8``) are converted to it: 255 stands for a reflectance of 0.275,
2,750 dn, as in the pictures of EuroSAT beside their originals (B02, B03, B04: 2,780, 2,742, 2,735).
``rgb8:DN`` names another one: ESA's true color images of L1C (TCI) saturate at 3,558, ``rgb8:3558``.
Under the rule ``imagenet``, which is one for pictures, ``rgb8`` is the picture itself.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from rsbackbones.arrays import is_dataset, to_tensor, undecoded_offset
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.models.series_arguments import Masks, masks_by_modality
from rsbackbones.sensors import RGB8, BandNumbers, InputSpec, Sensor, get_sensor
from rsbackbones.value_check import (
    MissingPixelsWarning,
    OffsetWarning,
    Verdict,
    bands_with_holes,
    format_value,
    judge,
    missing_pixels,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Raw = Tensor | npt.NDArray[np.generic]

# The dn that 255 of an 8-bit picture stands for, where the unit does not name another (``rgb8:3558``).
PICTURE_DN = 2750.0
_PICTURE = (
    f"8-bit pictures: reflectance x 10000 = value / 255 x {PICTURE_DN:.0f}; {RGB8}:DN for another DN of 255"
)
_OPTICAL = {
    "dn": "reflectance x 10000",
    "dn_baseline_0400": "reflectance x 10000 + 1000: Sentinel-2 since processing baseline 04.00 (2022)",
    "reflectance": "reflectance, 0 to 1",
    "percent": "reflectance in percent",
    "landsat_c2": "Landsat Collection 2, Level 2: reflectance = value x 0.0000275 - 0.2",
}
_RADAR = {
    "db": "decibel",
    "linear": "linear power (sigma nought, gamma nought)",
    "db_x100": "decibel x 100, as integers hold them",
}
# The unit of the input contract -> the units that values may have. Thermal bands are in kelvin in all of them
# but landsat_c2.
UNITS = {
    "dn": {**_OPTICAL, RGB8: _PICTURE},
    "db": _RADAR,
    "uint8": {"uint8": "the 8-bit values of the training set", **_OPTICAL, RGB8: _PICTURE},
    "tci_dn": {
        "tci_dn": "Sentinel-2's 8-bit true color image for B04, B03 and B02, dn for other bands",
        **_OPTICAL,
        RGB8: _PICTURE,
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
# So many images of a batch or a series are judged one by one too, evenly spaced.
_JUDGED = 64
_OFFSET_UNITS = ("dn_baseline_0400", "landsat_c2")  # of stored numbers that an offset makes reflectances
_DIGITAL_NUMBERS = ("dn", "dn_baseline_0400", "landsat_c2")


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
        size: tuple[int, int] | None = None,
        nodata: float | None = None,
    ) -> None:
        self.specs = dict(specs)
        self.given = dict(given)
        self.units = dict(units)
        self.sensors = dict(sensors)
        self.batch_statistics = batch_statistics
        self.check = check
        self.size = size
        self.nodata = nodata

    @overload
    def __call__(self, x: "Raw", valid: Masks | None = None) -> Tensor: ...
    @overload
    def __call__(self, x: "Mapping[str, Raw]", valid: Masks | None = None) -> dict[str, Tensor]: ...

    def __call__(
        self, x: "Raw | Mapping[str, Raw]", valid: Masks | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Normalize raw values.

        Args:
            x: arrays or tensors by modality, [..., C, H, W], integers or floats, with channels in the order
                of ``bands``. A bare array is accepted if there is one modality. The dimensions and bands of
                an xarray DataArray or Dataset are taken by their names
                (:func:`rsbackbones.arrays.to_tensor`).
            valid: by modality booleans, False for what does not count: pixels [..., H, W], or missing images
                [B, T] of series [B, T, C, H, W]. Their values are ignored, and are NaN in the result: the
                model needs the same mask, and refuses them without it. :meth:`valid_pixels` finds the pixels
                that arrays themselves lack. Tensors, arrays or lists; a bare one if there is one modality.
                Masks are of the size of ``x``, also where the result has another (``size``).

        Returns:
            float32 tensors of the same shape, with the model's channels; a mapping if ``x`` is one. Pixels
            that hold ``nodata`` in any band get the mean of their band over the other pixels of the image.
            For a fine-tuned classifier images are resized to the size that it was scored at (``size``).

        Raises:
            ValueError: a modality is unknown, the number of channels is wrong, values are NaN, infinite or
                masked, or they are impossible in the stated unit.
        """
        images, single = self._by_modality(x)
        masks = masks_by_modality(valid, tuple(images))
        if unknown := [m for m in masks if m not in images]:
            raise ValueError(f"valid has {', '.join(unknown)}; the images are {', '.join(images)}")
        made = {m: self._apply(m, values, masks.get(m)) for m, values in images.items()}
        return made[single] if single else made

    def valid_pixels(self, x: "Raw | Mapping[str, Raw]") -> dict[str, Tensor]:
        """Return which pixels of raw values have data in all bands that the model takes.

        A pixel has none where a band is NaN or infinite, masked (a numpy masked array), or holds ``nodata``
        or the value that an xarray object states for it (``_FillValue``); and where all bands hold zero, if
        the unit allows no such measurement (:func:`rsbackbones.value_check.missing_pixels`)::

            valid = preprocess.valid_pixels(x)
            features = model.forward_features(preprocess(x, valid=valid), valid=valid)

        Args:
            x: as for calling the preprocessing.

        Returns:
            By modality, booleans [..., H, W] of the size of ``x``. Combine them with masks of your own by
            ``&``. Where the preprocessing resizes images (``size``), bring them to that size for the model,
            by nearest neighbor.
        """
        found = {}
        for m, values in self._by_modality(x)[0].items():
            tensor, held = self._tensor(m, values)
            given = self.given[m]
            read = tensor[..., [given.index(band) for band in self._source_bands(m)], :, :].float()
            there = read.isfinite().all(-3) & ~missing_pixels(read, self.units[m], self.nodata)
            found[m] = there if held is None else there & held.to(there.device)
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

        unit = self.units[modality]
        if unit not in _OFFSET_UNITS and (offset := undecoded_offset(raw)):
            raise ValueError(
                f"{modality}: the attribute add_offset = {offset:g} has not been applied, so the values are "
                f"not {unit!r}: read them with mask_and_scale=True (xarray.open_dataset, "
                f"rioxarray.open_rasterio) and pass units={{'{modality}': 'reflectance'}}; or name the unit "
                "of the stored numbers: "
                f"{', '.join(_OFFSET_UNITS)}"
            )
        return to_tensor(raw, self.given[modality], find_band, modality)

    def _apply(self, modality: str, raw: "Raw", mask: Tensor | None) -> Tensor:
        x, held = self._tensor(modality, raw)
        if held is not None:
            held = held.to(x.device)
        if mask is None:
            return resize(self._apply_images(modality, x, held, None), self.size)
        mask, pixels = mask.to(x.device), (*x.shape[:-3], *x.shape[-2:])
        if x.ndim == 5 and mask.shape == x.shape[:2]:
            mask = mask[..., None, None].expand(pixels)
        if mask.shape != pixels:
            raise ValueError(
                f"{modality}: valid must be booleans {list(pixels)}, True for pixels that count, or [B, T] "
                f"for a series [B, T, C, H, W], got {list(mask.shape)} for {list(x.shape)}"
            )
        sides = self.size or (x.shape[-2], x.shape[-1])
        shape = (*x.shape[:-3], len(self.specs[modality].bands), *sides)
        made = torch.full(shape, float("nan"), device=x.device)
        there = mask.flatten(-2).any(-1)  # images with a pixel that counts
        if there.any():
            keep = mask[there]
            images = self._apply_images(modality, x[there], None if held is None else held[there], keep)
            kept = nn.functional.interpolate(keep[:, None].float(), size=sides, mode="nearest-exact") > 0
            made[there] = resize(images, self.size).masked_fill(~kept, float("nan"))
        return made

    def _apply_images(self, modality: str, x: Tensor, held: Tensor | None, keep: Tensor | None) -> Tensor:
        """Normalize images [..., C, H, W].

        Args:
            modality, x: of which.
            held: [..., H, W], False for pixels that the array lacks.
            keep: [..., H, W], False for pixels that the user masks. They get the mean of their band, as those
                of ``nodata`` do, and count neither in the checks nor in batch statistics.
        """
        given = self.given[modality]
        if self.check and x.dtype in (torch.uint8, torch.int8) and self._in_numbers(modality):
            raise ValueError(
                f"{modality}: 8-bit values are a picture, not digital numbers ({self.units[modality]!r}); "
                f"pass the original product, or units={{'{modality}': '{RGB8}'}} (--units {modality}={RGB8}) "
                f"for a picture whose 255 is a reflectance of {PICTURE_DN / 10000:g} (check=False skips this "
                "check)"
            )
        x = x.to(torch.float32)  # a copy, or left as it is from here on
        sources = self._source_bands(modality)
        cirrus = None
        if "B10" in given and self.sensors[modality].name in ("s2", "s2_ndvi"):
            cirrus = x[..., given.index("B10"), :, :]  # it tells the offset, also where the model lacks it
        if given != sources:
            x = x[..., [given.index(band) for band in sources], :, :]
        missing = None if keep is None or keep.all() else ~keep
        if self.nodata is not None:
            marked = missing_pixels(x, None, self.nodata)
            missing = marked if missing is None else marked | missing
        if held is not None:  # of these, the pixels that hold nodata are filled
            x = x.masked_fill(~held.unsqueeze(-3), float("nan"))
        if missing is not None:
            x = _fill(x, missing, modality)
        counted = None if missing is None else ~missing
        if self.check:
            self._check_values(modality, x, counted, cirrus)
        x = self._to_contract_unit(modality, sources, x)
        return self._normalize(modality, x, counted)

    def _in_numbers(self, modality: str) -> bool:
        unit = self.units[modality]
        return unit in _DIGITAL_NUMBERS or (unit == "tci_dn" and None in self.specs[modality].stored_range)

    def _source_bands(self, modality: str) -> tuple[str, ...]:
        """Return the bands to take from the user's: the model's, or the sources of an index."""
        given, sensor = self.given[modality], self.sensors[modality]
        needed = self.specs[modality].bands
        return tuple(
            dict.fromkeys(
                name for band in needed for name in ((band,) if band in given else sensor.band(band).index)
            )
        )

    def _check_values(self, modality: str, x: Tensor, counted: Tensor | None, cirrus: Tensor | None) -> None:
        """Check values [..., C, H, W] of the bands that the model takes, or the sources of its indices.

        ``counted`` is False, [..., H, W], for pixels that were filled. ``cirrus`` [..., H, W] is Sentinel-2's
        band B10, if it is there.

        Raises:
            ValueError: they are NaN or infinite, or cannot be in the stated unit
                (:mod:`rsbackbones.value_check`).
        """
        bands, sensor, unit = self._source_bands(modality), self.sensors[modality], self.units[modality]
        bad = ~x.isfinite()
        if counted is not None:
            bad &= counted.unsqueeze(-3)
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
        indices = [i for i, band in enumerate(bands) if sensor.band(band).index]
        optical = sensor.kind == "optical"
        if indices and optical and 0 < float(x[..., indices, :, :].abs().max()) <= 1:
            raise ValueError(
                f"{modality}: {', '.join(bands[i] for i in indices)} goes to 1 at most, but these weights "
                "take it times 10000; leave it out of your bands, and create_preprocess computes it"
            )
        measured = [
            i for i, band in enumerate(bands) if not sensor.band(band).is_thermal and i not in indices
        ]
        if not measured:
            return
        if len(measured) < len(bands):
            x = x[..., measured, :, :]
        if unit.partition(":")[0] in (RGB8, "uint8"):
            self._check_bytes(modality, x)
        elif unit == "tci_dn":
            rows = self.specs[modality].rows
            if stored := [k for k, i in enumerate(measured) if rows[bands[i]].stored_range]:
                self._check_bytes(modality, x[..., stored, :, :])
        else:
            missing = missing_pixels(x, unit)
            if counted is not None:
                missing &= counted
            if self.nodata != 0 and missing.any():
                warnings.warn(
                    f"{modality}: pixels hold zero in all bands, as those without data do, and are taken as "
                    "measured; create_preprocess(model, nodata=0) fills them",
                    MissingPixelsWarning,
                    stacklevel=4,
                )
            if counted is not None:
                missing |= ~counted
            self._judge(modality, [bands[i] for i in measured], x, ~missing, cirrus)

    def _judge(
        self, modality: str, bands: Sequence[str], x: Tensor, held: Tensor, cirrus: Tensor | None
    ) -> None:
        """Judge values [..., C, H, W] where they are held, [..., H, W]: all, and image by image."""
        unit, sensor = self.units[modality], self.sensors[modality]
        every = judge(
            x.movedim(-3, 0)[:, held], unit, sensor, bands, cirrus=None if cirrus is None else cirrus[held]
        )
        self._act_on(modality, every)
        images, pixels = x.reshape(-1, *x.shape[-3:]), held.reshape(-1, *x.shape[-2:])
        high = None if cirrus is None else cirrus.reshape(-1, *x.shape[-2:])
        judged = range(0, len(images), -(-len(images) // _JUDGED))
        doubts: dict[Verdict, list[int]] = {}
        for i in judged:
            values = images[i][:, pixels[i]]
            if self.nodata != 0 and (holes := bands_with_holes(values, unit)):
                named = ", ".join(bands[k] for k in holes)
                warnings.warn(
                    f"{modality}: {named} holds zero in many pixels where other bands have values, as pixels "
                    "without data do, and they are taken as measured; create_preprocess(model, nodata=0) "
                    "fills them (--nodata 0)",
                    MissingPixelsWarning,
                    stacklevel=5,
                )
            if len(images) == 1:
                break
            found = judge(
                values, unit, sensor, bands, cirrus=None if high is None else high[i][pixels[i]], alone=False
            )
            if found.kind != "suspect":
                self._act_on(modality, replace(found, text=f"image {i + 1} of {len(images)}: {found.text}"))
            elif found.unit != every.unit:
                doubts.setdefault(found, []).append(i)
        for found, numbers in doubts.items():
            # A single image may be dark; the offset is seen in one.
            if found.warning is OffsetWarning or 2 * len(numbers) > len(judged):
                first = f"{len(numbers)} of {len(judged)} images (first number {numbers[0] + 1})"
                self._act_on(modality, replace(found, text=f"{first}: {found.text}"))

    def _act_on(self, modality: str, found: Verdict) -> None:
        """Raise an error or warn as a verdict requires, with the option that helps."""
        if found.kind == "right":
            return
        fix = ""
        if found.nodata is not None:
            value = format_value(found.nodata)
            fix = (
                f"; declare it: create_preprocess(model, nodata={value}) (embed: --nodata {value}; in a "
                f"GeoTIFF for any command: gdal_edit.py -a_nodata {value} FILE; an array: fill or leave out)"
            )
        elif found.unit in _known_units(self.specs[modality]):
            fix = (
                f"; pass create_preprocess(model, units={{'{modality}': '{found.unit}'}}) (--units "
                f"{modality}={found.unit})"
            )
        if found.kind == "suspect":
            warnings.warn(
                f"{modality}: {found.text}{fix and f'; if so{fix[1:]}'}", found.warning, stacklevel=6
            )
        else:
            raise ValueError(f"{modality}: {found.text}{fix}; check=False skips the checks")

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
            return self._with_indices(modality, bands, 10 * x.clamp(min=_SMALLEST_POWER).log10())
        if unit == "db_x100":
            return self._with_indices(modality, bands, x / 100)
        if unit in _DN_OF or not _is_picture_contract(spec):
            each = [sensor.band(band) for band in bands]
            of_dn = _DN_OF.get(unit) or (_picture_dn(unit) / 255, 0.0)
            to_dn = torch.tensor(
                [
                    _DN_OF_THERMAL.get(unit, (1, 0)) if b.is_thermal else (1, 0) if b.index else of_dn
                    for b in each
                ],
                device=x.device,
            )  # [C, 2]
            x = x * to_dn[:, :1, None] + to_dn[:, 1:, None]
            return _stored(self._with_indices(modality, bands, x), spec)
        return self._with_indices(modality, bands, x)

    def _with_indices(self, modality: str, bands: tuple[str, ...], x: Tensor) -> Tensor:
        """Return the model's bands [..., C, H, W]; an index that was not given is computed, as dn or dB."""
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
                if self.sensors[modality].kind == "radar":
                    columns.append(one - other)
                    continue
                index = (one - other) / (one + other + _SMALLEST_SUM)
                columns.append((index.clamp(min=0) * 10000).floor())
        return torch.stack(columns, dim=-3)

    def _normalize(self, modality: str, x: Tensor, counted: Tensor | None) -> Tensor:
        spec = self.specs[modality]
        if spec.normalize == "none":
            return x
        if spec.normalize != "clip_2sd":
            mean, std = (torch.tensor(n, device=x.device).view(-1, 1, 1) for n in (spec.mean, spec.std))
            if spec.normalize == "imagenet":
                x = self._picture(spec, x)
            x = (x - mean) / std
            return x.clamp(0, 1) if spec.clip else x
        if self.batch_statistics:
            flat = x.movedim(-3, 0)
            flat = flat.flatten(1) if counted is None else flat[:, counted]
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
        if self.size:
            lines.append(f"  resized to {self.size[0]} x {self.size[1]} pixels, the size of fine-tuning")
        return "Preprocess(\n" + "\n".join(lines) + "\n)"


def resize(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return [..., C, H, W] at a size, (height, width): bilinear, with antialiasing."""
    if size is None or x.shape[-2:] == size:
        return x
    flat = x.reshape(-1, *x.shape[-3:])
    fine: Tensor = nn.functional.interpolate(
        flat, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return fine.reshape(*x.shape[:-2], *size)


# Scale and offset from a unit to dn, and from the thermal bands of that unit to kelvin.
_DN_OF = {
    "dn": (1.0, 0.0),
    "dn_baseline_0400": (1.0, -1000.0),
    "reflectance": (10000.0, 0.0),
    "percent": (100.0, 0.0),
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


def _fill(x: Tensor, missing: Tensor, modality: str) -> Tensor:
    """Fill missing pixels [..., H, W] of [..., C, H, W] with the mean of their band over their image."""
    if not missing.any():
        return x
    held = (~missing)[..., None, :, :]
    count = held.sum((-2, -1), keepdim=True)
    if not count.all():
        raise ValueError(f"{modality}: an image has no pixel with data; leave it out")
    mean = torch.where(held, x, 0).double().sum((-2, -1), keepdim=True) / count
    return torch.where(held, x, mean.float())


def picture_note(spec: InputSpec, unit: str) -> str | None:
    """Return how 8-bit pictures become the input of weights, where ``unit`` is theirs."""
    if unit.partition(":")[0] != RGB8:
        return None
    if _is_picture_contract(spec):
        return "8-bit pictures, as the weights were trained on"
    dn = _picture_dn(unit)
    return (
        f"8-bit pictures (unit {unit}): 255 is taken as a reflectance of {dn / 10000:g} ({dn:g} dn); for "
        f"pictures made otherwise name their own, units {RGB8}:DN"
    )


def _is_picture_contract(spec: InputSpec) -> bool:
    """Whether the network saw pictures, or 8-bit values that nobody states the reflectance of."""
    return spec.normalize == "imagenet" or (spec.unit in ("uint8", "tci_dn") and not spec.stored_range)


def _picture_dn(unit: str) -> float:
    """Return the dn that 255 stands for: of ``rgb8`` 2750, of ``rgb8:3558`` 3558.

    Raises:
        ValueError: it is no positive number.
    """
    _, colon, text = unit.partition(":")
    try:
        value = float(text) if colon else PICTURE_DN
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"the unit {RGB8}:DN names the digital number that 255 stands for, got {unit!r}")
    return value


def create_preprocess(
    model: nn.Module,
    *,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    statistics: Literal["dataset", "batch"] | Mapping[str, Mapping[str, tuple[float, float]]] = "dataset",
    eight_bit: bool | None = None,
    check: bool = True,
    nodata: float | None = None,
) -> Preprocess:
    """Return the preprocessing that converts raw values to this model's input.

    The input contract comes from the manifest entry of the weights or from the file written by
    ``save_model``. A model without either uses the default contract of its architecture (for CROMA:
    SSL4EO-S12 statistics, Sentinel-2 L2A in DN, Sentinel-1 GRD in dB).

    For a fine-tuned classifier, images are also resized to the size that it was trained and scored at
    (``model.input_size``; set that to ``None`` to keep their own).

    Args:
        model: from ``create_model``; wrappers of torch.compile, data parallelism or timm are removed.
        bands: the channels of *your* arrays, in order, by modality. The model's bands are selected by name,
            other channels (B10, for example) are dropped. Default: the model's bands.
        units: the unit of your values by sensor, where it is not the contract's: for Sentinel-2 ``dn``,
            ``dn_baseline_0400`` (products since 2022 that still carry the offset) or ``reflectance``, for
            Landsat also ``landsat_c2``; or ``percent``; for Sentinel-1 ``db``, ``linear`` or ``db_x100``;
            ``uint8`` (or ``tci_dn``) for the 8-bit values that some weights were trained on. ``rgb8`` is that
            of 8-bit pictures, whose 255 is 2750 dn; ``rgb8:3558`` names another DN, here that of ESA's true
            color images. For weights whose unit nobody states, it must be passed; the values are then passed
            on as they are.
        statistics: ``dataset``; ``batch`` (mean and deviation of each batch, the CROMA authors' script);
            or ``{sensor: {band: (mean, std)}}`` of your own, in the contract's unit, for some bands.
        eight_bit: truncate to 8 bits; default as in the contract.
        check: raise an error for NaN, infinity and values that are impossible in the stated unit, and warn of
            those that may be in another (:class:`rsbackbones.value_check.UnitWarning`).
        nodata: the value of pixels without data. Those that hold it in any band of a sensor do not count in
            the check, and get the mean of their band over the other pixels of their image.

    Raises:
        ValueError: a modality, unit or band is unknown, a band of the model is missing from ``bands``, a band
            has no statistics, or nobody states the unit of the weights' input and ``units`` does not name it.
    """
    backbone = unwrap_model(model)
    result = preprocess_for(
        backbone.inputs, backbone.bands, sensors=backbone.config.sensors, bands=bands, units=units,
        statistics=statistics, eight_bit=eight_bit, check=check, nodata=nodata,
    )  # fmt: skip
    result.size = backbone.input_size
    return result


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
    nodata: float | None = None,
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
        spec = contract.get(modality)
        if spec is None:
            raise ValueError(f"{modality}: the weights have no input contract for this modality")
        if (units or {}).get(modality) == RGB8 and spec.normalize == "imagenet":
            spec = replace(spec, stretch=())  # the network saw pictures; only how it made them is left out
        specs[modality] = _for_bands(
            modality, sensor, spec, tuple(needed), own.get(modality, {}), eight_bit, statistics == "batch"
        )
        yours = (bands or {}).get(modality)
        measured = dict.fromkeys(name for b in needed for name in sensor.band(b).index or (b,))
        given[modality] = tuple(measured) if yours is None else sensor.canonical(yours)
        if lacking := [b for b in needed if not can_have(sensor, b, given[modality])]:
            raise ValueError(
                f"{modality}: your bands lack {', '.join(lacking)}, which the model takes. Build the model "
                f"for your bands: create_model(..., bands={{'{modality}': {given[modality]}}})"
            )
    chosen = {m: _chosen_unit(m, spec, known_sensors[m], (units or {}).get(m)) for m, spec in specs.items()}
    return Preprocess(
        specs, given, chosen, known_sensors, batch_statistics=statistics == "batch", check=check,
        nodata=nodata,
    )  # fmt: skip


def can_have(sensor: Sensor, band: str, given: tuple[str, ...]) -> bool:
    """Return whether a band is given, or is an index of given ones."""
    index = sensor.band(band).index
    return band in given or (bool(index) and {*index} <= {*given})


def _known_units(spec: InputSpec) -> Mapping[str, str]:
    """Return the units that values may have for a contract that states its own."""
    if spec.unit is None:
        return {}
    known = UNITS.get(spec.unit, {spec.unit: "", RGB8: _PICTURE})
    if spec.normalize == "imagenet":  # of radar, too
        known = {**known, RGB8: "8-bit pictures"}
    if spec.unit in ("uint8", "tci_dn") and not spec.stored_range:
        return {name: text for name, text in known.items() if name in (spec.unit, RGB8)}
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
    if unit.partition(":")[0] == RGB8 != unit and RGB8 in known and not _is_picture_contract(spec):
        _picture_dn(unit)
    elif unit not in known:
        raise ValueError(f"{modality}: unit must be one of {', '.join(known)}, got {unit!r}")
    return unit


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

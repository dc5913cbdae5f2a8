"""The judgement of raw values before they are normalized: errors and warnings that name the option."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rsbackbones.arrays import stated_scale
from rsbackbones.input_spec import RGB8, InputSpec
from rsbackbones.preprocess.conversion import dn_factors
from rsbackbones.preprocess.units import PICTURE_DN, known_units
from rsbackbones.sensors import Sensor
from rsbackbones.value_check import (
    MissingPixelsWarning,
    OffsetWarning,
    Verdict,
    bands_with_holes,
    format_value,
    judge,
    missing_pixels,
)

# So many images of a batch or a series are judged one by one too, evenly spaced.
_JUDGED = 64
_DIGITAL_NUMBERS = ("dn", "dn_baseline_0400", "landsat_c2")

# Scale and offset that make reflectances, decibels and the like of the numbers of a unit: attributes that
# state them are true of values as they are.
_STORED_AS: dict[str, tuple[tuple[float, float], ...]] = {
    "dn": ((1e-4, 0.0),),
    "dn_baseline_0400": ((1e-4, -0.1), (1.0, -1000.0)),
    "landsat_c2": ((0.0000275, -0.2), (0.00341802, 149.0)),
    "percent": ((0.01, 0.0),),
    "db_x100": ((0.01, 0.0),),
    **dict.fromkeys(("reflectance", "db", "linear"), ()),
}
_NUMBERS = [unit for unit, stored in _STORED_AS.items() if stored]
# What temperatures lie between, in kelvin, but for this share; the clouds of a storm are at 180 K. Numbers of
# Collection 2 begin at 149 K: temperatures that are taken for such numbers are near it.
_KELVIN, _ODD_TEMPERATURES = (170, 400), 0.01


def check_scale_is_applied(raw: Any, x: Tensor, unit: str, modality: str) -> None:
    """Refuse an xarray object whose attributes state a scale or offset that its unit lacks.

    Integers, and floats that are whole, are as the file stores them (``rioxarray.open_rasterio(masked=True)``
    applies no scale). Of other floats the attributes may be left over, as recent versions of xarray keep them
    in arithmetic; where these are digital numbers, they would be reflectances if the scale was applied.

    Raises:
        ValueError: the values are not in the unit that they are said to be in.
    """
    stated = stated_scale(raw)
    own = ((1.0, 0.0), *_STORED_AS.get(unit, ()))
    if unit not in _STORED_AS or any(
        all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(stated, one, strict=True)) for one in own
    ):
        return
    stored = not x.is_floating_point() or bool((x[x.isfinite()] % 1 == 0).all())
    if not stored and unit not in _DIGITAL_NUMBERS:
        return
    raise ValueError(
        f"{modality}: the attributes scale_factor = {stated[0]:g}, add_offset = {stated[1]:g} have not been "
        f"applied, so the values are not {unit!r}: read them with mask_and_scale=True (xarray.open_dataset, "
        f"rioxarray.open_rasterio) and pass units={{'{modality}': 'reflectance'}}; or name the unit of the "
        f"stored numbers: {', '.join(_NUMBERS)}. If they have been applied, delete them: del "
        "x.attrs['scale_factor'], x.attrs['add_offset']"
    )


@dataclass(frozen=True)
class ValueCheck:
    """Checks raw values of one modality.

    Attributes:
        modality, spec, sensor, unit: of the values.
        bands: the user's, that the model takes, and the sources of its indices.
        nodata: the value that the user declared.
    """

    modality: str
    spec: InputSpec
    sensor: Sensor
    unit: str
    bands: tuple[str, ...]
    nodata: float | None

    def check_type(self, dtype: torch.dtype) -> None:
        """Refuse 8-bit values that are said to be digital numbers."""
        in_numbers = self.unit in _DIGITAL_NUMBERS or (
            self.unit == "tci_dn" and None in self.spec.stored_range
        )
        if dtype in (torch.uint8, torch.int8) and in_numbers:
            m = self.modality
            raise ValueError(
                f"{m}: 8-bit values are a picture, not digital numbers ({self.unit!r}); pass the original "
                f"product, or units={{'{m}': '{RGB8}'}} (--units {m}={RGB8}) for a picture whose 255 is a "
                f"reflectance of {PICTURE_DN / 10000:g} (check=False skips this check)"
            )

    def __call__(self, x: Tensor, counted: Tensor | None, cirrus: Tensor | None) -> None:
        """Check values [..., C, H, W] of the bands that the model takes, or the sources of its indices.

        ``counted`` is False, [..., H, W], for pixels that were filled. ``cirrus`` [..., H, W] is Sentinel-2's
        band B10, if it is there.

        Raises:
            ValueError: they are NaN or infinite, or cannot be in the stated unit
                (:mod:`rsbackbones.value_check`).
        """
        modality, bands, sensor, unit = self.modality, self.bands, self.sensor, self.unit
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
        if sensor.kind == "optical" and indices and 0 < float(x[..., indices, :, :].abs().max()) <= 1:
            raise ValueError(
                f"{modality}: {', '.join(bands[i] for i in indices)} goes to 1 at most, but these weights "
                "take it times 10000; leave it out of your bands, and create_preprocess computes it"
            )
        thermal = [i for i, band in enumerate(bands) if unit != "uint8" and sensor.band(band).is_thermal]
        if thermal:
            self._check_kelvin(x, thermal, counted)
        measured = [i for i in range(len(bands)) if i not in indices and i not in thermal]
        if not measured:
            return
        if len(measured) < len(bands):
            x = x[..., measured, :, :]
        if unit.partition(":")[0] in (RGB8, "uint8"):
            self._check_bytes(x)
        elif unit == "tci_dn":
            rows = self.spec.rows
            if stored := [k for k, i in enumerate(measured) if rows[bands[i]].stored_range]:
                self._check_bytes(x[..., stored, :, :])
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
            self._judge([bands[i] for i in measured], x, ~missing, cirrus)

    def _check_kelvin(self, x: Tensor, thermal: Sequence[int], counted: Tensor | None) -> None:
        """Refuse images of [..., C, H, W] whose thermal bands are no temperatures in their unit."""
        images = x.reshape(-1, *x.shape[-3:])
        held = (images != 0).any(-3)
        if counted is not None:
            held &= counted.reshape(held.shape)
        names = [self.bands[i] for i in thermal]
        as_read = "number x 0.00341802 + 149 kelvin" if self.unit == "landsat_c2" else "kelvin"
        for image, pixels in islice(zip(images, held, strict=True), 0, None, -(-len(images) // _JUDGED)):
            for i, band, (scale, offset) in zip(thermal, names, self._kelvin_of(names), strict=True):
                values = image[i][pixels]
                kelvin = values * scale + offset
                odd = values[(kelvin < _KELVIN[0]) | (kelvin > _KELVIN[1])]
                if len(odd) <= _ODD_TEMPERATURES * len(values):
                    continue
                one = float(odd.median())
                is_one = len(odd) < len(values) and bool((odd == one).float().mean() > 0.5)
                text = (
                    f"{len(odd) / len(values):.2%} of the thermal band {band} are no temperatures, "
                    f"such as {format_value(one)}; with the unit {self.unit!r} they are {as_read}"
                )
                if not is_one:
                    text += " (degrees Celsius + 273.15; of Collection 2 number x 0.00341802 + 149)"
                self._act_on(Verdict("impossible", text, nodata=one if is_one else None))

    def _kelvin_of(self, bands: Sequence[str]) -> list[tuple[float, float]]:
        """Return the scale and offset that make kelvin of thermal bands; beside pictures they are kelvin."""
        if self.unit.partition(":")[0] == RGB8:
            return [(1.0, 0.0)] * len(bands)
        return dn_factors(bands, self.unit, self.sensor)

    def _judge(self, bands: Sequence[str], x: Tensor, held: Tensor, cirrus: Tensor | None) -> None:
        """Judge values [..., C, H, W] where they are held, [..., H, W]: all, and image by image."""
        modality, unit, sensor = self.modality, self.unit, self.sensor
        every = judge(
            x.movedim(-3, 0)[:, held], unit, sensor, bands, cirrus=None if cirrus is None else cirrus[held]
        )
        self._act_on(every)
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
                self._act_on(replace(found, text=f"image {i + 1} of {len(images)}: {found.text}"))
            elif found != every:
                doubts.setdefault(found, []).append(i)
        for found, numbers in doubts.items():
            # A single image may be dark; the offset is seen in one.
            if found.warning is OffsetWarning or 2 * len(numbers) > len(judged):
                which = f"{len(numbers)} of {len(judged)} images (first number {numbers[0] + 1}): "
                self._act_on(found, which, len(numbers) / len(judged))

    def _act_on(self, found: Verdict, which: str = "", share: float = 1.0) -> None:
        """Raise an error or warn as a verdict requires, with the option that helps.

        Args:
            found: the verdict.
            which: of the images it is true, if not of all.
            share: how many of the images.
        """
        if found.kind == "right":
            return
        modality, fix = self.modality, ""
        if found.nodata is not None:
            value = format_value(found.nodata)
            fix = (
                f"; declare it: create_preprocess(model, nodata={value}) (embed: --nodata {value}; in a "
                f"GeoTIFF for any command: gdal_edit.py -a_nodata {value} FILE, or of a file with scale and "
                "offset tags the number that it stores; an array: fill or leave out)"
            )
        elif found.unit in known_units(self.spec):
            fix = (
                f"; pass create_preprocess(model, units={{'{modality}': '{found.unit}'}}) (--units "
                f"{modality}={found.unit}; in a recipe data.units.{modality}={found.unit}, or "
                f"data_options.units.{modality} of fine-tuning)"
            )
        if found.kind == "suspect":
            text = f"{found.text}{fix and f'; if so{fix[1:]}'}"
            some = which and "single images of a series: "
            warning = found.warning(f"{modality}: {which}{text}", f"{modality}: {some}{text}", share)
            warnings.warn(warning, stacklevel=6)
        else:
            raise ValueError(f"{modality}: {found.text}{fix}; check=False skips the checks")

    def _check_bytes(self, x: Tensor) -> None:
        """Check values that are stored in 8 bits."""
        low, high = float(x.min()), float(x.max())
        divided = 0 < high <= 2 and bool((x % 1 != 0).any())  # a cloud's reflectance exceeds 1
        if low >= 0 and high <= 255 and not divided:
            return
        modality, unit = self.modality, self.unit
        measured = "reflectance" in known_units(self.spec)
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

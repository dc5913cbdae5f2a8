"""From the user's unit and bands to those of the input contract."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rsbackbones.input_spec import InputSpec
from rsbackbones.preprocess.units import is_picture_contract, picture_dn
from rsbackbones.sensors import Sensor

# Lower bound for the logarithm: -100 dB is far below every clipping range.
_SMALLEST_POWER = 1e-10
# USGS, Landsat 8-9 Collection 2 Level 2 Science Product Guide: scale and offset of surface reflectance.
_LANDSAT_C2_SCALE, _LANDSAT_C2_OFFSET = 0.0000275, -0.2
_LANDSAT_C2_KELVIN_SCALE, _LANDSAT_C2_KELVIN_OFFSET = 0.00341802, 149.0
# Keeps the normalized difference of two zeros finite, as in SSL4Eco's code.
_SMALLEST_SUM = 1e-5
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


def dn_factors(bands: Sequence[str], unit: str, sensor: Sensor) -> list[tuple[float, float]]:
    """Return by band the scale and offset that make dn of values in a unit, of thermal bands kelvin.

    An index is dn in all units.

    Raises:
        KeyError: the unit is none of reflectances.
    """
    each = [sensor.band(band) for band in bands]
    return [_DN_OF_THERMAL[unit] if b.is_thermal else (1.0, 0.0) if b.index else _DN_OF[unit] for b in each]


def to_contract_unit(x: Tensor, bands: tuple[str, ...], unit: str, spec: InputSpec, sensor: Sensor) -> Tensor:
    """Convert the user's ``bands`` [..., C, H, W] to the bands and the unit of the contract."""
    if unit == spec.unit or spec.unit is None:
        return _with_indices(x, bands, spec, sensor)
    if unit == "linear":
        return _with_indices(10 * x.clamp(min=_SMALLEST_POWER).log10(), bands, spec, sensor)
    if unit == "db_x100":
        return _with_indices(x / 100, bands, spec, sensor)
    if unit in _DN_OF or not is_picture_contract(spec):
        if unit in _DN_OF:
            factors = dn_factors(bands, unit, sensor)
        else:  # a picture, whose other bands are those of dn
            picture = (picture_dn(unit) / 255, 0.0)
            plain = [sensor.band(band).is_thermal or sensor.band(band).index for band in bands]
            factors = [(1.0, 0.0) if same else picture for same in plain]
        to_dn = torch.tensor(factors, device=x.device)  # [C, 2]
        x = x * to_dn[:, :1, None] + to_dn[:, 1:, None]
        return _stored(_with_indices(x, bands, spec, sensor), spec)
    return _with_indices(x, bands, spec, sensor)


def _with_indices(x: Tensor, bands: tuple[str, ...], spec: InputSpec, sensor: Sensor) -> Tensor:
    """Return the model's bands [..., C, H, W]; an index that was not given is computed, as dn or dB."""
    if spec.bands == bands:
        return x
    place = {band: i for i, band in enumerate(bands)}
    columns = []
    for band in spec.bands:
        if band in place:
            columns.append(x[..., place[band], :, :])
        else:
            one, other = (x[..., place[name], :, :] for name in sensor.band(band).index)
            if sensor.kind == "radar":
                columns.append(one - other)
                continue
            index = (one - other) / (one + other + _SMALLEST_SUM)
            columns.append((index.clamp(min=0) * 10000).floor())
    return torch.stack(columns, dim=-3)


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

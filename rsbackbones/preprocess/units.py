"""The units that raw values may have, by the unit of the input contract."""

from collections.abc import Mapping

from rsbackbones.input_spec import RGB8, InputSpec
from rsbackbones.sensors import Sensor

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


def picture_note(spec: InputSpec, unit: str) -> str | None:
    """Return how 8-bit pictures become the input of weights, where ``unit`` is theirs."""
    if unit.partition(":")[0] != RGB8:
        return None
    if is_picture_contract(spec):
        return "8-bit pictures, as the weights were trained on"
    dn = picture_dn(unit)
    return (
        f"8-bit pictures (unit {unit}): 255 is taken as a reflectance of {dn / 10000:g} ({dn:g} dn); for "
        f"pictures made otherwise name their own, units {RGB8}:DN"
    )


def is_picture_contract(spec: InputSpec) -> bool:
    """Whether the network saw pictures, or 8-bit values that nobody states the reflectance of."""
    return spec.normalize == "imagenet" or (spec.unit in ("uint8", "tci_dn") and not spec.stored_range)


def picture_dn(unit: str) -> float:
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


def known_units(spec: InputSpec) -> Mapping[str, str]:
    """Return the units that values may have for a contract that states its own."""
    if spec.unit is None:
        return {}
    known = UNITS.get(spec.unit, {spec.unit: "", RGB8: _PICTURE})
    if spec.normalize == "imagenet":  # of radar, too
        known = {**known, RGB8: "8-bit pictures"}
    if spec.unit in ("uint8", "tci_dn") and not spec.stored_range:
        return {name: text for name, text in known.items() if name in (spec.unit, RGB8)}
    return known


def choose_unit(modality: str, spec: InputSpec, sensor: Sensor, asked: str | None) -> str:
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
        known = known_units(spec)
    unit = spec.unit if asked is None else asked
    assert unit is not None
    if unit.partition(":")[0] == RGB8 != unit and RGB8 in known and not is_picture_contract(spec):
        picture_dn(unit)
    elif unit not in known:
        raise ValueError(f"{modality}: unit must be one of {', '.join(known)}, got {unit!r}")
    return unit

"""Read a sensor of your own from a JSON file, for the commands.

    {"name": "enmap", "bands": [{"name": "B001", "wavelength": 418.2, "width": 6.5, "gsd": 30}, ...]}

The fields are those of ``Sensor`` and ``Band``: wavelengths and widths in nm, ``gsd`` in m. ``title``,
``kind`` (``optical`` or ``radar``) and the ``aliases`` of a band are optional.
"""

from pathlib import Path
from typing import Any

from rsbackbones.files.bounds import read_json
from rsbackbones.sensors import Band, Sensor, register_sensor

# Fields and the types of their values.
_BAND_FIELDS = {
    "name": "string",
    "wavelength": "number",
    "width": "number",
    "gsd": "number",
    "aliases": "list",
}
_SENSOR_FIELDS = {"name": "string", "title": "string", "kind": "string", "bands": "list"}
_TYPES: dict[str, Any] = {"string": str, "number": (int, float), "list": list}


def register_sensor_file(path: Path) -> Sensor:
    """Read a sensor, register it in this process, and return it.

    Raises:
        ValueError: the file cannot be read; a field is missing, unknown or of another type; or
            :func:`rsbackbones.register_sensor` refuses the sensor.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the sensor in {path}: {error}") from error
    fields = _check_fields(content, _SENSOR_FIELDS, ("name", "bands"), f"{path}")
    bands = []
    for i, held in enumerate(fields["bands"]):
        of = _check_fields(held, _BAND_FIELDS, ("name", "wavelength", "width", "gsd"), f"{path}: bands[{i}]")
        aliases = of.get("aliases", [])
        if not all(isinstance(alias, str) for alias in aliases):
            raise ValueError(f"{path}: bands[{i}]: aliases must be names, got {aliases}")
        bands.append(Band(**{**of, "aliases": tuple(aliases)}))
    defaults = {"title": fields["name"], "kind": "optical"}
    try:
        return register_sensor(Sensor(**{**defaults, **fields, "bands": tuple(bands)}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_fields(held: Any, known: dict[str, str], needed: tuple[str, ...], here: str) -> dict[str, Any]:
    """Return the fields of an object. Refuse unknown and missing fields, and values of another type."""
    if not isinstance(held, dict):
        raise ValueError(f"{here}: expected an object with the fields {', '.join(known)}, got {held!r:.60}")
    if wrong := [name for name in held if name not in known] + [name for name in needed if name not in held]:
        raise ValueError(
            f"{here}: unknown or missing fields: {', '.join(wrong)}; expected {', '.join(needed)}, and "
            f"perhaps {', '.join(name for name in known if name not in needed)}"
        )
    for name, value in held.items():
        if isinstance(value, bool) or not isinstance(value, _TYPES[known[name]]):
            raise ValueError(f"{here}: {name} must be a {known[name]}, got {value!r:.60}")
    return held

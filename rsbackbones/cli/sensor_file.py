"""Read a sensor of your own from a JSON file, for the commands.

    {"name": "enmap", "bands": [{"name": "B001", "wavelength": 418.2, "width": 6.5, "gsd": 30}, ...]}

The fields are those of ``Sensor`` and ``Band``: wavelengths and widths in nm, ``gsd`` in m. ``title``,
``kind`` (``optical`` or ``radar``) and the ``aliases`` of a band are optional.
"""

from pathlib import Path
from typing import Any

from rsbackbones.files.bounds import read_json
from rsbackbones.sensors import Band, Sensor, register_sensor
from rsbackbones.typed_fields import check_fields


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
    _check(Sensor, content, ("name", "bands"), f"{path}", bands=tuple[Any, ...])
    bands = []
    for i, fields in enumerate(content["bands"]):
        _check(Band, fields, ("name", "wavelength", "width", "gsd"), f"{path}: bands[{i}]")
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        bands.append(Band(**{**fields, **lists}))
    defaults = {"title": content["name"], "kind": "optical"}
    try:
        return register_sensor(Sensor(**{**defaults, **content, "bands": tuple(bands)}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check(kind: type, held: Any, needed: tuple[str, ...], here: str, **also: Any) -> None:
    check_fields(kind, held, here, also=also)
    if missing := [name for name in needed if name not in held]:
        raise ValueError(f"{here}: missing fields: {', '.join(missing)}")

"""Arrays as users have them, as tensors: numpy and its masked arrays, xarray, tensors; and masks.

What an array says of itself is used or refused, never dropped: masks, names of dimensions and bands, the
value without data. xarray is recognized without being imported.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Names of dimensions, in lower case, in the order of the result.
_DIMENSIONS = {
    "batch": {"batch", "sample", "samples", "patch", "patches", "n"},
    "time": {"time", "times", "t", "date", "dates"},
    "band": {"band", "bands", "channel", "channels", "c", "variable", "polarization", "polarisation"},
    "y": {"y", "lat", "latitude", "row", "rows", "height", "h", "northing"},
    "x": {"x", "lon", "longitude", "column", "columns", "col", "width", "w", "easting"},
}
_COMPLEX = (
    "complex values are single-look complex radar data (SLC): make intensities of them, abs(x) ** 2, and "
    "calibrate these to sigma or gamma nought; or use a GRD product"
)


def is_dataset(x: object) -> bool:
    """Return whether ``x`` is an ``xarray.Dataset`` (which is a mapping, too)."""
    return _is_xarray(x) and hasattr(x, "data_vars")


def to_tensor(
    values: Any, bands: Sequence[str], find_band: Callable[[str], str | None], what: str
) -> tuple[Tensor, Tensor | None]:
    """Return an array as a tensor [..., C, H, W] of its own type, and which pixels it has, [..., H, W].

    The values of a tensor or a numpy array are [..., C, H, W]; any byte order and strides will do. A masked
    array has a pixel if no band is masked. The dimensions of an xarray object are ordered by their names, its
    bands gathered by name where it states names (the variables of a Dataset are), and pixels that hold its
    ``_FillValue``, ``nodata`` or ``missing_value`` attribute are missing. Channels are otherwise taken to be
    in the order of ``bands``.

    Args:
        values: the array. It is not modified; the tensor may share its memory.
        bands: the names of the channels, in order.
        find_band: returns the sensor's own name of a band, or ``None`` if it knows none.
        what: the modality, for errors.

    Returns:
        The tensor and its mask, or ``None`` if all pixels are there. NaN is not looked for.

    Raises:
        ValueError: complex or other values that are no numbers, dimensions that are unknown, a missing band,
            or another number of channels.
    """
    missing: Any = None
    if values is None:
        raise ValueError(
            f"{what} is None: leave out a sensor that is not there; one that is missing at some dates has a "
            "mask, valid="
        )
    if _is_xarray(values):
        values, missing = _from_xarray(values, bands, find_band, what)
    if isinstance(values, Tensor):
        x = values
        if x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"{what}: {_COMPLEX if x.is_complex() else 'expected numbers, got dtype bool'}")
    else:
        import numpy as np

        if isinstance(values, np.ma.MaskedArray):
            missing = np.ma.getmaskarray(values)
        elif isinstance(values, (list, tuple)) and _holds_masks(values):
            raise ValueError(f"{what}: a list of masked arrays loses their masks; pass numpy.ma.stack(...)")
        x = torch.from_numpy(_native(np.ma.getdata(values), what))
    if x.ndim < 3 or x.shape[-3] != len(bands):
        last = x.ndim >= 3 and x.shape[-1] == len(bands)
        raise ValueError(
            f"{what}: expected [..., {len(bands)}, H, W] with the bands {', '.join(bands)}, got "
            f"{list(x.shape)}. "
            + (
                "The channels look to be last: pass numpy.moveaxis(x, -1, -3)"
                if last
                else "If your channels differ, pass their names: "
                f"create_preprocess(model, bands={{'{what}': (...)}})"
            )
        )
    if missing is None or not missing.any():
        return x, None
    return x, torch.from_numpy(~missing.any(axis=-3))


def stated_scale(values: Any) -> tuple[float, float]:
    """Return ``scale_factor`` and ``add_offset`` of an xarray object's attributes, (1, 0) if there are none.

    xarray moves those that it has applied to ``encoding``. Of several, the first that is not 1 or 0.
    """
    import numpy as np

    if not _is_xarray(values):
        return 1.0, 0.0
    found = {"scale_factor": 1.0, "add_offset": 0.0}
    for layer in values.data_vars.values() if is_dataset(values) else [values]:
        for key, without in (("scale_factor", 1.0), ("add_offset", 0.0)):
            numbers = np.ravel(layer.attrs.get(key, without)).astype(float)
            if found[key] == without and (numbers != without).any():
                found[key] = float(numbers[numbers != without][0])
    return found["scale_factor"], found["add_offset"]


def to_mask(valid: Any, what: str) -> Tensor:
    """Return a mask as booleans: of a tensor, array, list or DataArray of booleans, or of uint8 0 and 1.

    Raises:
        ValueError: other values; ``what`` names the mask.
    """
    import numpy as np

    if _is_xarray(valid):
        valid = _ordered(valid, what).values
    try:
        mask = valid if isinstance(valid, Tensor) else torch.from_numpy(np.array(valid))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be booleans, got {type(valid).__name__}") from error
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype != torch.uint8 or (mask > 1).any():
        raise ValueError(
            f"{what} must be booleans (or uint8 of 0 and 1), True where a pixel counts, got {mask.dtype} "
            f"{list(mask.shape)}; of a class map: ~numpy.isin(scl, (3, 8, 9, 10))"
        )
    return mask.bool()


def _native(array: Any, what: str) -> Any:
    """Return an array that torch can share: native byte order, positive strides, writable."""
    import numpy as np

    array = np.asarray(array)
    if array.dtype.kind == "c":
        raise ValueError(f"{what}: {_COMPLEX}")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{what}: expected an array of integers or floats, got dtype {array.dtype}")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    array = np.ascontiguousarray(array, dtype=np.float64 if wide else array.dtype.newbyteorder("="))
    return array if array.flags.writeable else array.copy()


# -- xarray -------------------------------------------------------------------------------------------


def _is_xarray(x: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "xarray" for kind in type(x).__mro__)


def _from_xarray(
    data: Any, bands: Sequence[str], find_band: Callable[[str], str | None], what: str
) -> tuple[Any, Any]:
    """Return the values [..., C, H, W] and where they are missing."""
    import numpy as np

    if is_dataset(data):
        held = {find_band(str(name)): name for name in data.data_vars}
        _check_held(held, list(data.data_vars), bands, what)
        layers = [_ordered(data[held[band]], what) for band in bands]
        if any(layer.dims != layers[0].dims or layer.shape != layers[0].shape for layer in layers):
            sizes = ", ".join(f"{b} {dict(layer.sizes)}" for b, layer in zip(bands, layers, strict=True))
            raise ValueError(f"{what}: the variables are not on one grid: {sizes}; resample them first")
        if "band" in _roles(layers[0], what):
            raise ValueError(
                f"{what}: the variables of a Dataset are taken as bands, and these have a dimension of bands "
                "too; pass one of them, or Dataset.to_array()"
            )
        each = [np.asarray(layer.values) for layer in layers]
        gaps = [_gaps(layer, x) for layer, x in zip(layers, each, strict=True)]
        return np.stack(each, axis=-3), np.stack(gaps, axis=-3)
    data = _ordered(data, what)
    roles = _roles(data, what)
    if "band" not in roles:
        data = data.expand_dims("band", axis=-3)
    elif names := _band_names(data, roles["band"], find_band, what):
        named = {find_band(name): i for i, name in enumerate(names)}
        _check_held(named, names, bands, what)
        data = data.isel({roles["band"]: [named[band] for band in bands]})
    values = np.asarray(data.values)
    return values, _gaps(data, values)


def _band_names(data: Any, band: Any, find_band: Callable[[str], str | None], what: str) -> list[str]:
    """Return the names that a DataArray states for its bands, none if it only numbers them.

    They are the coordinate of the bands, another one along them, or ``long_name``, as rasters are opened.
    """
    import numpy as np

    own = data.coords.get(band)
    others = [c for name, c in data.coords.items() if name != band and c.dims == (band,)]
    stated = [c.values.tolist() for c in (own, *others) if c is not None and c.dtype.kind in "UOTS"]
    long_name = data.attrs.get("long_name")
    if isinstance(long_name, (list, tuple)) and len(long_name) == data.sizes[band]:
        stated.append(list(long_name))
    texts = [[n.decode() if isinstance(n, bytes) else str(n) for n in names] for names in stated]
    known = next((names for names in texts if any(map(find_band, names))), None)
    if known is not None or (own is not None and own.dtype.kind in "UOTS"):
        return known or texts[0]
    numbers = None if own is None else np.asarray(own.values)
    if numbers is not None and not any(np.array_equal(numbers, np.arange(len(numbers)) + i) for i in (0, 1)):
        raise ValueError(
            f"{what}: the bands are called {numbers.tolist()}, which names none; rename them, such as to B04 "
            "or red, in their order"
        )
    return []


def _holds_masks(values: Any) -> bool:
    import numpy as np

    if isinstance(values, (list, tuple)):
        return any(map(_holds_masks, values))
    return isinstance(values, np.ma.MaskedArray)


def _check_held(held: Any, names: Sequence[Any], bands: Sequence[str], what: str) -> None:
    if lacking := [band for band in bands if band not in held]:
        raise ValueError(
            f"{what}: no band {', '.join(lacking)} among {', '.join(map(str, names))}; rename the bands, or "
            f"build the model for those you have: create_model(..., bands={{'{what}': (...)}})"
        )


def _roles(data: Any, what: str) -> dict[str, Any]:
    """Return the dimensions of a DataArray by what they are."""
    roles: dict[str, Any] = {}
    for name in data.dims:
        role = next((role for role, names in _DIMENSIONS.items() if str(name).lower() in names), None)
        if role is None or role in roles:
            problem = "is not known" if role is None else f"is a second one of {role}"
            raise ValueError(
                f"{what}: the dimension {name!r} of {tuple(data.dims)} {problem}; rename the dimensions to "
                f"{', '.join(_DIMENSIONS)}, or pass the values, x.transpose(...).values as [..., C, H, W]"
            )
        roles[role] = name
    if "y" not in roles or "x" not in roles:
        raise ValueError(f"{what}: expected the dimensions y and x among {tuple(data.dims)}")
    return roles


def _ordered(data: Any, what: str) -> Any:
    """Return a DataArray with its dimensions in the order of ``_DIMENSIONS``."""
    roles = _roles(data, what)
    return data.transpose(*(roles[role] for role in _DIMENSIONS if role in roles))


def _gaps(data: Any, values: Any) -> Any:
    """Return where values are one of those that stand for no data, if the attributes state them."""
    import numpy as np

    stated = [data.attrs[key] for key in ("_FillValue", "nodata", "missing_value") if key in data.attrs]
    gaps = np.zeros(values.shape, bool)
    for value in stated:
        gaps |= np.equal(values, value)
    return gaps

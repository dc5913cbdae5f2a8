"""The unit of a Sentinel-2 product's values, as ``MTD_MSIL1C.xml`` or ``MTD_MSIL2A.xml`` states it.

Reflectance is (value + offset) / quantification value. ESA's products state both, per band the offset since
processing baseline 04.00 ("Sentinel-2 Products Specification Document", ``BOA_ADD_OFFSET`` of L2A and
``RADIO_ADD_OFFSET`` of L1C).
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from rsbackbones.data.raster_path import RasterPath, local_file
from rsbackbones.data.s2_baseline import has_offset

_NAMES = ("MTD_MSIL2A.xml", "MTD_MSIL1C.xml")
# PRODUCT/GRANULE/TILE/IMG_DATA/R10m/file.jp2
_DEPTH = 5
# ESA's files take about 60 kB.
_MAX_BYTES = 4 * 2**20


def product_unit(path: RasterPath) -> str | None:
    """Return the unit of a raster that lies in the folder of a product, if the product's metadata state it.

    ``dn_baseline_0400``, or ``dn`` where there is no offset. Metadata that cannot be read are reported in a
    warning, and the unit is unknown.

    Raises:
        ValueError: an offset or quantification value that no unit has.
    """
    local = local_file(path)
    if local is None:
        return None
    # A product's folder keeps its files when it loses the suffix .SAFE.
    folders = list(local.absolute().parents)[:_DEPTH]
    file = next((p / name for p in folders for name in _NAMES if (p / name).is_file()), None)
    if file is None:
        return None
    try:
        stated = _read(file)
        offsets = _numbers(stated, "BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
        scales = _numbers(stated, "BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
    except (OSError, ValueError, ElementTree.ParseError) as error:
        warnings.warn(
            f"cannot read {file}, which states the unit of the product: {error}; name it: --units (units=)",
            stacklevel=4,
        )
        return None
    if not offsets and any(map(has_offset, stated.get("PROCESSING_BASELINE", ()))):
        offsets = {-1000.0}
    if scales == {10000.0} and offsets == {-1000.0}:
        return "dn_baseline_0400"
    if scales == {10000.0} and offsets <= {0.0}:
        return "dn"
    raise ValueError(
        f"{file} states the offsets {sorted(offsets)} and the quantification values {sorted(scales)}; "
        "expected -1000 or none, and 10000: bring the values to reflectances, and name them (--units, units=)"
    )


def _read(file: Path) -> dict[str, list[str]]:
    """Return the texts of a file's elements by their names, without namespaces."""
    with file.open("rb") as opened:
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    # Entities of a document type may be of any size once they are expanded; the products have none.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("it has a document type")
    stated: dict[str, list[str]] = {}
    for element in ElementTree.fromstring(content).iter():
        if element.text and element.text.strip():
            stated.setdefault(element.tag.rpartition("}")[2], []).append(element.text.strip())
    return stated


def _numbers(stated: Mapping[str, Sequence[str]], *names: str) -> set[float]:
    return {float(text) for name in names for text in stated.get(name, ())}

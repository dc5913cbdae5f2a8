"""Mean and standard deviation of the bands of a folder of series, measured once and kept beside it.

``statistics.json`` holds those of the training split, or of all locations where there are no splits;
:func:`write_series` removes it. Those of the training samples that a user lists, or of GeoTIFFs in other
units than DN and dB, are in ``statistics_DIGEST.json``. After GeoTIFFs change, remove them yourself::

    {"locations": 12, "digest": "...", "statistics": {"s2": {"B02": [812.5, 401.2], ...}, "s1": {...}}}
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.series_set import SET_FILE, STATISTICS_FILE
from rsbackbones.data.source import BadSample
from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.lock import exclusive
from rsbackbones.input_spec import InputSpec
from rsbackbones.preprocess.conversion import to_contract_unit
from rsbackbones.preprocess.units import choose_unit
from rsbackbones.sensors import get_sensor
from rsbackbones.typed_fields import find_misfit

# By sensor and band, (mean, standard deviation).
Statistics = dict[str, dict[str, tuple[float, float]]]
# Measuring reads every image of the set; other processes wait for it.
_PATIENCE_S = 24 * 3600


def dataset_statistics(
    root: str | Path,
    locations: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    keep: bool = True,
) -> Statistics:
    """Return the statistics of a folder of series, in DN and dB; they are measured where there are none.

    They include those of VV/VH, which models may take of radar that has VV and VH alone. Images with missing
    pixels do not count.

    Args:
        root: the folder of the set.
        locations: measure these, whatever the splits of the set; default: its training split, or all.
        units: by sensor the unit of the values, where it is not DN or dB, as for ``create_preprocess``: they
            are converted first.
        keep: write what is measured beside ``set.json``, where it is read the next time.

    Raises:
        ValueError: the folder holds no series, its ``statistics.json`` is damaged or is that of other
            locations, no location of the training split can be read, or a unit is unknown.
    """
    folder = Path(root).expanduser()
    if not (folder / SET_FILE).is_file():
        raise ValueError(
            f"{folder} is no folder of series ({SET_FILE}), and comes with no statistics: state them"
        )
    source, path = SeriesFolder(folder, units=units), folder / STATISTICS_FILE
    contracts = {sensor: _contract(sensor, bands) for sensor, bands in source.bands.items()}
    own = {s: choose_unit(s, spec, get_sensor(s), (units or {}).get(s)) for s, spec in contracts.items()}
    other = [f"{s} in {unit}" for s, unit in own.items() if unit != contracts[s].unit]
    names = sorted(source.set.splits.get("train", source.locations))
    listed = locations is not None and sorted(locations) != names
    names = sorted(locations) if locations is not None else names
    digest = _digest([*names, *other])
    if listed or other:
        path = path.with_stem(f"{path.stem}_{digest[:12]}")
    if not path.exists() and not keep:
        return _measure(source, names, contracts, own)
    if not path.exists():
        with exclusive(folder, patience=_PATIENCE_S):
            if not path.exists():
                measured = _measure(source, names, contracts, own)
                held = {"statistics": measured, "locations": len(names), "digest": digest}
                write_text(path, json.dumps(held, indent=1))
    try:
        held = read_json(path)
        if misfit := find_misfit(held["statistics"], dict[str, dict[str, tuple[float, float]]], "statistics"):
            raise ValueError(f"{misfit.path} must be a mean and a standard deviation")
        if held["digest"] != digest:
            raise ValueError(
                f"it was measured on {held['locations']} other locations than those of the training split: "
                "delete it, and it is measured again"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot use {path}: {error}") from error
    return {
        s: {band: (mean, std) for band, (mean, std) in of.items()} for s, of in held["statistics"].items()
    }


def _measure(
    source: SeriesFolder, names: Sequence[str], contracts: Mapping[str, InputSpec], units: Mapping[str, str]
) -> Statistics:
    # Sums of deviations from the first image's mean, which is near the mean of all.
    counts: dict[str, int] = {}
    origins, sums, squares = {}, {}, {}
    problem: BadSample | None = None
    for name in names:
        try:
            sample = source.read(source.locations.index(name))
        except BadSample as error:
            problem = error
            continue
        for sensor, images in sample.images.items():
            valid = sample.valid.get(sensor, np.ones(len(images), bool))
            for image in torch.from_numpy(images[valid].astype(np.float64)):
                converted = to_contract_unit(
                    image, source.bands[sensor], units[sensor], contracts[sensor], get_sensor(sensor)
                )
                pixels = converted.flatten(1).numpy()  # [C, N]
                if sensor not in counts:
                    counts[sensor], origins[sensor] = 0, pixels.mean(axis=1, keepdims=True)
                    sums[sensor] = squares[sensor] = np.zeros(len(pixels))
                deviations = pixels - origins[sensor]
                counts[sensor] += pixels.shape[1]
                sums[sensor] = sums[sensor] + deviations.sum(axis=1)
                squares[sensor] = squares[sensor] + np.square(deviations).sum(axis=1)
    if not counts:
        raise ValueError(f"{source.root}: no location can be used: {problem}")
    statistics: Statistics = {}
    for sensor, count in counts.items():
        means = sums[sensor] / count
        deviations = np.sqrt(np.maximum(squares[sensor] / count - means**2, 0))
        statistics[sensor] = {
            band: (float(mean), float(deviation))
            for band, mean, deviation in zip(
                contracts[sensor].bands,
                means + origins[sensor][:, 0],
                deviations,
                strict=True,
            )
        }
    return statistics


def _contract(sensor: str, bands: Sequence[str]) -> InputSpec:
    """Return DN or dB of the bands, and of a radar's ratios that a model may compute of them."""
    held = get_sensor(sensor)
    radar = held.kind == "radar"
    ratios = [
        band.name
        for band in held.derived
        if radar and band.index and band.name not in bands and {*band.index} <= {*bands}
    ]
    return InputSpec(
        bands=(*bands, *ratios), product="", unit="db" if radar else "dn", normalize="none", mean=(), std=()
    )


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()

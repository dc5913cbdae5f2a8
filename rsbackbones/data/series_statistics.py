"""Mean and standard deviation of the bands of a folder of series, measured once and kept beside it.

``statistics.json`` holds those of the training split, or of all locations where there are no splits;
:func:`write_series` removes it. Those of the
training samples that a user lists are in ``statistics_DIGEST.json``. After GeoTIFFs change, remove them
yourself::

    {"locations": 12, "digest": "...", "statistics": {"s2": {"B02": [812.5, 401.2], ...}, "s1": {...}}}
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.series_set import SET_FILE, STATISTICS_FILE
from rsbackbones.data.source import BadSample
from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.lock import exclusive
from rsbackbones.sensors import get_sensor
from rsbackbones.typed_fields import find_misfit

# By sensor and band, (mean, standard deviation).
Statistics = dict[str, dict[str, tuple[float, float]]]
# Measuring reads every image of the set; other processes wait for it.
_PATIENCE_S = 24 * 3600


def dataset_statistics(
    root: str | Path, locations: Sequence[str] | None = None, *, keep: bool = True
) -> Statistics:
    """Return the statistics of a folder of series, in DN and dB; they are measured where there are none.

    They include those of VV/VH, which models may take of radar that has VV and VH alone. Images with missing
    pixels do not count.

    Args:
        root: the folder of the set.
        locations: measure these, whatever the splits of the set; default: its training split, or all.
        keep: write what is measured beside ``set.json``, where it is read the next time.

    Raises:
        ValueError: the folder holds no series, its ``statistics.json`` is damaged or is that of other
            locations, or no location of the training split can be read.
    """
    folder = Path(root).expanduser()
    if not (folder / SET_FILE).is_file():
        raise ValueError(
            f"{folder} is no folder of series ({SET_FILE}), and comes with no statistics: state them"
        )
    source, path = SeriesFolder(folder), folder / STATISTICS_FILE
    names = sorted(source.set.splits.get("train", source.locations))
    if locations is not None and sorted(locations) != names:
        names = sorted(locations)
        path = path.with_stem(f"{path.stem}_{_digest(names)[:12]}")
    if not path.exists() and not keep:
        return _measure(source, names)
    if not path.exists():
        with exclusive(folder, patience=_PATIENCE_S):
            if not path.exists():
                measured = _measure(source, names)
                held = {"statistics": measured, "locations": len(names), "digest": _digest(names)}
                write_text(path, json.dumps(held, indent=1))
    try:
        held = read_json(path)
        if misfit := find_misfit(held["statistics"], dict[str, dict[str, tuple[float, float]]], "statistics"):
            raise ValueError(f"{misfit.path} must be a mean and a standard deviation")
        if held["digest"] != _digest(names):
            raise ValueError(
                f"it was measured on {held['locations']} other locations than those of the training split: "
                "delete it, and it is measured again"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot use {path}: {error}") from error
    return {
        s: {band: (mean, std) for band, (mean, std) in of.items()} for s, of in held["statistics"].items()
    }


def _measure(source: SeriesFolder, names: Sequence[str]) -> Statistics:
    # Sums of deviations from the first image's mean, which is near the mean of all.
    counts: dict[str, int] = {}
    origins, sums, squares = {}, {}, {}
    problem: BadSample | None = None
    ratios = {sensor: _ratios(sensor, bands) for sensor, bands in source.bands.items()}
    for name in names:
        try:
            sample = source.read(source.locations.index(name))
        except BadSample as error:
            problem = error
            continue
        for sensor, images in sample.images.items():
            valid = sample.valid.get(sensor, np.ones(len(images), bool))
            for image in images[valid].astype(np.float64):
                pixels = image.reshape(len(image), -1)  # [C, N]
                computed = [pixels[[a]] - pixels[[b]] for a, b in ratios[sensor].values()]
                pixels = np.concatenate([pixels, *computed])
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
                (*source.bands[sensor], *ratios[sensor]),
                means + origins[sensor][:, 0],
                deviations,
                strict=True,
            )
        }
    return statistics


def _ratios(sensor: str, bands: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the ratios, a - b in dB, that a model may take of a radar's bands, as the places of a and b."""
    held = get_sensor(sensor)
    return {
        band.name: (bands.index(band.index[0]), bands.index(band.index[1]))
        for band in held.derived
        if held.kind == "radar" and band.index and band.name not in bands and {*band.index} <= {*bands}
    }


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()

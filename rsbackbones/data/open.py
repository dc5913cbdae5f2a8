"""Opening training data by what a folder or file holds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.npz_archive import NpzArchive
from rsbackbones.data.pastis import PastisSource, is_pastis
from rsbackbones.data.picture_source import (
    FMOW_FILES,
    SEN12,
    SEN12_FILES,
    FMoWRGB,
    PictureFiles,
    is_picture,
    open_pictures,
)
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.series_set import SET_FILE
from rsbackbones.data.series_statistics import Statistics, dataset_statistics
from rsbackbones.data.shards import DATASET_FILE, PackedSource
from rsbackbones.data.simulated import SimulatedPlaces, SimulatedSource
from rsbackbones.data.source import Source
from rsbackbones.data.ssl4eo import SSL4EOFolders
from rsbackbones.data.ssl4eo_v11 import SSL4EOZarr
from rsbackbones.sensors import SENSORS

LAYOUTS = """\
  DIR/dataset.json                          packed by rsbackbones pack
  DIR/set.json                              series, rsbackbones.data.series_folder
  DIR/metadata.geojson, DIR/ANNOTATIONS     PASTIS-R or PASTIS, series of its training folds
  DIR/{s1,s2a,s2c}/<id>/<product>/*.tif     SSL4EO-S12 v1.0
  DIR/<split>/{S2L2A,S1GRD}/*.zarr.zip|tar  SSL4EO-S12 v1.1
  DIR/{s2,s1}/*.tif, or DIR/*.tif           GeoTIFFs, paired by name (or DIR/SENSOR/*.tif)
  DIR/train/<category>/<id>/*_rgb.jpg       fMoW-RGB
  DIR/ROIs<n>_<season>/{s1,s2}_<roi>/*.png  SEN1-2
  DIR/<class>/*.jpg|png|tif, or NAME.zip    8-bit pictures
  NAME.npz                                  arrays s2, s1 and their bands in s2_bands, s1_bands"""


def open_source(path: str | Path, *, named: Mapping[str, str] | None = None, **options: Any) -> Source:
    """Open the training data at ``path``; its content decides which reader opens it.

    Args:
        path: a folder, or a .npz or .zip file.
        named: units by sensor; 8-bit GeoTIFFs need one.
        options: those of the layout's class: ``product``, ``split``, ``offset``, ``bands``, ...

    Raises:
        ValueError: no known layout, or an option that it does not have.
    """
    path = Path(path).expanduser()
    opener = _find_opener(path)
    if named and opener in (GeoTiffSource, SeriesFolder):
        options = {"units": named, **options}
    try:
        return opener(path, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        name = str(error).split("'")[1]
        raise ValueError(f"{path} is read by {opener.__name__}, which has no option {name!r}") from error


def source_statistics(source: Source, *, keep: bool = True) -> Statistics | None:
    """Return by sensor and band the mean and deviation that training data come with, ``None`` without.

    They are in DN and dB. Those of series in our own layout are measured where there are none yet, in the
    ``units`` of the source (:mod:`rsbackbones.data.series_statistics`), and ``keep`` writes them beside
    ``set.json``.

    Raises:
        ValueError: they cannot be read or measured.
    """
    if isinstance(source, SeriesFolder):
        return dataset_statistics(source.root, units=source.units, keep=keep)
    return source.statistics() if isinstance(source, PastisSource | PackedSource) else None


def open_part(file: NpzFile | PictureFiles | SimulatedPlaces, root: Path) -> Source:
    """Open what a recipe names: a .npz file or pictures below ``root``, or simulated places.

    Raises:
        ValueError: there is no such file, or what it holds is not as stated.
    """
    if isinstance(file, SimulatedPlaces):
        return SimulatedSource(file)
    if isinstance(file, PictureFiles):
        return open_pictures(root / file.path, exclude=file.exclude)
    return NpzSource(replace(file, path=str(root / file.path)))


def _find_opener(path: Path) -> Callable[..., Source]:
    if path.is_file() and path.suffix == ".npz":
        return _open_npz
    if path.is_file() and path.suffix == ".zip":
        return open_pictures
    if path.is_dir():
        if (path / DATASET_FILE).is_file():
            return PackedSource
        if (path / SET_FILE).is_file():
            return SeriesFolder
        if is_pastis(path):
            return PastisSource
        if any((path / product).is_dir() for product in ("s2a", "s2c")):
            return SSL4EOFolders
        if any(path.glob("*/S2L2A")) or any(path.glob("*/S2L1C")) or any(path.glob("*/S1GRD")):
            return SSL4EOZarr
        folders = [path, *(path / sensor for sensor in SENSORS)]
        if any(f.suffix.lower() in (".tif", ".tiff") for d in folders if d.is_dir() for f in d.iterdir()):
            return GeoTiffSource
        if any(path.glob(FMOW_FILES)):
            return FMoWRGB
        if any(path.glob(SEN12_FILES)):
            return SEN12
        if any(is_picture(file.name) for file in path.glob("*/**/*")):
            return open_pictures
    what = "holds none of the known layouts" if path.exists() else "does not exist"
    raise ValueError(f"{path} {what}:\n{LAYOUTS}")


def _open_npz(path: Path, bands: dict[str, tuple[str, ...]] | None = None, **options: Any) -> NpzSource:
    """Open arrays named after their sensors; ``bands`` where the file does not name them."""
    archive = NpzArchive(path)
    sensors = [sensor for sensor in SENSORS if sensor in archive.facts]
    stated = [sensor for sensor in SENSORS if f"{sensor}_bands" in archive.facts]
    named = {sensor: tuple(map(str, archive.read(f"{sensor}_bands"))) for sensor in stated}
    named |= {sensor: tuple(names) for sensor, names in (bands or {}).items()}
    if not sensors or (lacking := [sensor for sensor in sensors if sensor not in named]):
        what = f"no bands for {', '.join(lacking)}" if sensors else "no array named after a sensor"
        raise ValueError(
            f"{path} has {what}; name the bands (bands={{'s2': (...)}}; rsbackbones pack: --bands "
            "s2=B02,B03), or describe the file: NpzSource(NpzFile(path=..., images=...))"
        )
    return NpzSource(NpzFile(path=str(path), images={s: {s: named[s]} for s in sensors}, **options))

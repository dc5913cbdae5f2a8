"""Which raster files are one patch: those of one place, and of one product where several cover it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rsbackbones.data.band_names import product_of_file
from rsbackbones.data.class_masks import ClassMasks, masked_names
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath, UnreadableRaster, raster_name
from rsbackbones.data.rasters import find_bands, open_raster, two_grids
from rsbackbones.data.resample import describe_resampling, finest_grid
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.models.backbone import Backbone


class PatchFile(NamedTuple):
    """A file of a patch: the names of its channels from the user, and its bands of the model by modality."""

    path: RasterPath
    names: Sequence[str] | None
    bands: Mapping[str, frozenset[str]]
    grid: Grid


class Patch(NamedTuple):
    """The files that are read together; ``resampling`` says which are brought onto the finest grid."""

    files: Sequence[PatchFile]
    resampling: str

    @property
    def name(self) -> RasterPath:
        """The first of the files."""
        return self.files[0].path


def group_files(
    model: Backbone,
    paths: Sequence[RasterPath],
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    *,
    resample: str | None,
    left_out: dict[RasterPath, str] | None,
    mask: ClassMasks | None = None,
) -> list[Patch]:
    """Put the files of one patch together, in the order of the first of each.

    Files that cover the same ground are one patch if they hold different bands. Of a model of one sensor, a
    file with all bands is a patch of its own, and other files that repeat bands are told apart by their names
    without the words for band and resolution.

    Args:
        model, paths, names, units, resample, mask: as for ``embed_patches``.
        left_out: takes by path why a file, or the patch that lacks it, cannot be used. ``None``: such a file
            is an error.

    Raises:
        ValueError: files that are not clear, lack a sensor, or are on several grids without ``resample``.
    """
    places: list[list[PatchFile]] = []
    near: dict[tuple[object, ...], list[int]] = {}
    for i, path in enumerate(paths):
        try:
            file = _inspect(model, path, names[i] if names else None, units, mask)
        except UnreadableRaster as error:
            if left_out is None:
                raise
            left_out[path] = f"unreadable: {error}"
            continue
        # Without georeference, files of one name but for the band belong together.
        keys = file.grid.places() if file.grid.placed else {(product_of_file(str(path)),)}
        for place in {place for key in keys for place in near.get(key, [])}:
            if places[place][0].grid.covers_same(file.grid):
                places[place].append(file)
                break
        else:
            for key in keys:
                near.setdefault(key, []).append(len(places))
            places.append([file])
    patches = []
    for files in (group for place in places for group in _split(model, place)):
        try:
            patches.append(_check(model, files, resample))
        except ValueError as error:
            if not left_out:  # where files are left out, patches may lack them
                raise
            left_out[files[0].path] = str(error)
    return patches


def _inspect(
    model: Backbone,
    path: RasterPath,
    names: Sequence[str] | None,
    units: Mapping[str, str] | None,
    mask: ClassMasks | None,
) -> PatchFile:
    found = find_bands(path, sensors_of(model), masked_names(names, mask), units=units)[0]
    bands = {m: frozenset(held) & {*model.bands[m]} for m, held in found.items()}
    with open_raster(path) as raster:
        return PatchFile(path, names, {m: held for m, held in bands.items() if held}, Grid.of(raster))


def _split(model: Backbone, files: Sequence[PatchFile]) -> list[list[PatchFile]]:
    """Return the patches of a place: it may have been seen at several dates."""
    used = [file for file in files if file.bands] or files[:1]
    if not _twice(used):
        return [list(used)]
    if len(model.modalities) == 1:
        (modality,) = model.modalities
        groups: dict[object, list[PatchFile]] = {}
        for i, file in enumerate(used):
            whole = file.bands[modality] == {*model.bands[modality]}
            groups.setdefault(i if whole else product_of_file(str(file.path)), []).append(file)
        if not any(_twice(group) for group in groups.values()):
            return list(groups.values())
    raise ValueError(
        f"several rasters of {', '.join(_twice(used))} lie on the grid of {files[0].path}: "
        f"{', '.join(raster_name(file.path) for file in files)}; embed one date at a time"
    )


def _twice(files: Sequence[PatchFile]) -> list[str]:
    """Return the modalities of which a band is in several files."""
    held = [(m, band) for file in files for m, bands in file.bands.items() for band in bands]
    return list(dict.fromkeys(m for m, band in held if held.count((m, band)) > 1))


def _check(model: Backbone, files: Sequence[PatchFile], resample: str | None) -> Patch:
    held = {m for file in files for m in file.bands}
    if held and (lacking := [m for m in model.modalities if m not in held]):
        raise ValueError(
            f"{files[0].path} has no raster of {', '.join(lacking)} on its grid; add one, or embed "
            f"the other sensor alone: --modalities {next(m for m in model.modalities if m in held)}. "
            "(Rasters without georeference cannot be paired)"
        )
    finest = finest_grid([file.grid for file in files])
    coarse = {file.path: file.grid for file in files if not finest.same(file.grid)}
    if coarse and resample is None:
        first = next(file for file in files if finest.same(file.grid))
        raise ValueError(two_grids({first.path: finest, **coarse}))
    return Patch(files, describe_resampling(resample, finest, coarse))

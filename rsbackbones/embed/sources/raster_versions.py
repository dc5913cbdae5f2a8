"""The versions of the rasters of a job: a file that changes while it runs stops it."""

from collections.abc import Mapping, Sequence

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_path import (
    RasterPath,
    UnreadableRaster,
    raster_name,
    web_address,
    without_query,
)


def versions_of(path: RasterPath) -> list[str]:
    """Return the versions of the files behind a raster; "unknown" of a server that tells none."""
    return [fact.partition(" unknown ")[0] + (" unknown" if " unknown " in fact else "")
            for fact in InputFiles([path]).facts]  # fmt: skip


def check_versions(paths: Sequence[RasterPath], versions: Mapping[str, list[str]]) -> None:
    """Refuse rasters that are not those of the job.

    Raises:
        UnreadableRaster: a web server does not give one any more.
        ValueError: one changed.
    """
    changed = []
    for path in paths:
        if (now := versions_of(path)) == versions[str(path)]:
            continue
        if web_address(path) is not None and any(fact.endswith(" unknown") for fact in now):
            raise UnreadableRaster(f"cannot read {without_query(str(path))}: the server does not give it now")
        changed.append(raster_name(path))
    if changed:
        raise ValueError(
            f"the input changed since the job was planned: {', '.join(changed[:5])}; plan it again, for "
            "another output"
        )

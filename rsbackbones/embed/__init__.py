"""Features of scenes and patches: a georeferenced map, one embedding per patch file, or a store of shards.

:func:`embed_scene` and :func:`embed_patches` need the extra ``geo`` (rasterio, pyarrow, tqdm),
:func:`embed_series` the extra ``train``. :func:`plan`, :func:`run`, :func:`status` and :func:`open` are for
large areas and several processes, and need the extra ``scale``.
"""

from rsbackbones.embed.driver import JobError
from rsbackbones.embed.job import Job
from rsbackbones.embed.patches import MAX_PATCH_SIDE, embed_patches
from rsbackbones.embed.plan import plan
from rsbackbones.embed.preview import principal_colors
from rsbackbones.embed.run import run
from rsbackbones.embed.scene import embed_scene
from rsbackbones.embed.series import embed_series
from rsbackbones.embed.status import Status, status
from rsbackbones.embed.store import open_store as open
from rsbackbones.embed.zones import ZonedJob

__all__ = [
    "MAX_PATCH_SIDE",
    "Job",
    "JobError",
    "Status",
    "ZonedJob",
    "embed_patches",
    "embed_scene",
    "embed_series",
    "open",
    "plan",
    "principal_colors",
    "run",
    "status",
]

"""Features of GeoTIFFs: a georeferenced feature map of a scene, or one embedding per patch file.

Needs the extra ``geo`` (rasterio, pyarrow, tqdm).
"""

from rsbackbones.embed.patches import MAX_PATCH_SIDE, embed_patches
from rsbackbones.embed.preview import principal_colors
from rsbackbones.embed.scene import embed_scene

__all__ = [
    "MAX_PATCH_SIDE",
    "embed_patches",
    "embed_scene",
    "principal_colors",
]

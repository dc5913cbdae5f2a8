"""Features of the patches of large images, by overlapping tiles.

Source: SeaMo, sections 4.2.3 and 4.2.4: SegMunich and OSCD in tiles of 128 pixels that overlap by half; how
tiles are merged is left open there. Here the feature of a patch is the mean over the tiles that cover it:
for a linear probe, the mean of their logits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsbackbones.data.tiles import Tiling


@dataclass(frozen=True)
class PatchTiles:
    """Tiles of whole patches. ``patch``, ``tile`` and ``overlap`` are sides in pixels.

    Raises:
        ValueError: sides that are no multiple of the patch, or as :class:`Tiling`.
    """

    patch: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if self.tile % self.patch or self.overlap % self.patch:
            raise ValueError(
                f"tiles of {self.tile} pixels that overlap by {self.overlap} do not meet patch by patch: "
                f"both must be multiples of {self.patch}, the side of a patch (--tile, --overlap)"
            )
        Tiling(1, 1, self.tile, self.overlap)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the patches, (h, w), that cover an image."""
        return -(-height // self.patch), -(-width // self.patch)

    def whole(self, image: Tensor) -> Tensor:
        """Return [..., H, W] padded to whole patches by repeating the last pixels."""
        for dim, patches in zip((-2, -1), self.grid(image.shape[-2], image.shape[-1]), strict=True):
            places = torch.arange(patches * self.patch, device=image.device)
            image = image.index_select(dim, places.clamp(max=image.shape[dim] - 1))
        return image

    def encoder(
        self, features: Callable[[dict[str, Tensor]], dict[str, Tensor]], batch_size: int
    ) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """Return a function from one image of any size, by sensor [1, C, H, W], to [1, h * w, D] by stream.

        Args:
            features: tiles [b, C, tile, tile] by sensor -> features of their patches [b, n, D] by stream.
            batch_size: tiles at a time.
        """

        def of_image(images: dict[str, Tensor]) -> dict[str, Tensor]:
            whole = {m: self.whole(image[0]) for m, image in images.items()}
            height, width = next(iter(whole.values())).shape[-2:]
            tiling = Tiling(height, width, self.tile, self.overlap)
            found: dict[str, list[Tensor]] = {}
            for start in range(0, len(tiling.corners), batch_size):
                corners = tiling.corners[start : start + batch_size]
                of_tiles = features({m: tiling.cut(image, corners) for m, image in whole.items()})
                for stream, of_patches in of_tiles.items():
                    found.setdefault(stream, []).append(of_patches.float())
            side, grid = self.tile // self.patch, self.grid(height, width)
            patches = Tiling(*grid, side, self.overlap // self.patch)
            return {
                stream: patches.merge(x.mT.unflatten(-1, (side, side)) for x in parts).flatten(1).mT[None]
                for stream, parts in found.items()
            }

        return of_image

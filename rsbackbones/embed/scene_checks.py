"""Whether the values of a scene can be right, and whether its features say anything of it."""

from collections.abc import Iterable

import numpy as np

from rsbackbones.data.rasters import Array
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.preview import ROUNDING
from rsbackbones.preprocess import Preprocess

# The values of a large scene are checked on this many samples along each side, of this many pixels.
_SAMPLES, _SAMPLE_SIDE = 8, 64


def check_scene(scene: Scene, preprocess: Preprocess) -> bool:
    """Check the values of a whole scene at once, as :func:`check_values`.

    Of a large scene samples at full resolution are read: overviews may be averages, or out of date.
    """
    height, width = scene.grid.height, scene.grid.width
    whole = height * width <= (_SAMPLES * _SAMPLE_SIDE) ** 2
    sides = (height, width) if whole else (_SAMPLE_SIDE,) * 2
    corners = [
        np.unique(np.linspace(0, max(n - side, 0), 1 if whole else _SAMPLES).astype(int)).tolist()
        for n, side in zip((height, width), sides, strict=True)
    ]
    samples = (
        scene.read((row, column, min(sides[0], height - row), min(sides[1], width - column)))
        for row in corners[0]
        for column in corners[1]
    )
    return check_values(samples, preprocess, whole=whole, name=scene.name)


def check_values(samples: Iterable[Pixels], preprocess: Preprocess, *, whole: bool, name: str) -> bool:
    """Check the values of samples of a scene together, as a single window may be too uniform.

    Pixels that do not count by a mask are not checked.

    Args:
        samples: of the scene.
        preprocess: checks and converts them.
        whole: the samples are all that there is: without data they are refused.
        name: of the scene.

    Returns:
        Whether there were values to check.
    """
    found: dict[str, list[Array]] = {}
    has_data = False
    for arrays, valid, counts in samples:
        has_data |= bool(valid.any())
        for counted in counts.values():
            valid = valid & counted
        for m, x in arrays.items():
            found.setdefault(m, []).append(x[:, valid])
    values = {m: np.concatenate(parts, axis=1) for m, parts in found.items()}
    if not all(x.shape[1] for x in values.values()):
        if whole and has_data:
            raise ValueError(_none_counts(name))
        if whole:
            raise ValueError(_no_data(name))
        return False  # the windows are checked one by one
    made = preprocess({m: x[:, None] for m, x in values.items()})
    if all(float(x.max()) == float(x.min()) for x in made.values()) and any(
        np.ptp(x, axis=1).any() for x in values.values()
    ):
        raise ValueError(
            f"{name}: the values differ, and what the model gets of them is the same everywhere, as "
            "normalization clips them: they are in another unit, likely (--units, units=), or hold no scene"
        )
    return True


def refuse_constant(features: Array, scene: Scene, *, masked: bool) -> None:
    """Refuse a map that is the same everywhere although the scene is not."""
    rows = features.reshape(-1, features.shape[-1])
    rows = rows[:: max(1, len(rows) // 20_000)]
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) < 2:
        if not np.isfinite(features[..., 0]).any():
            raise ValueError(f"{_no_data(scene.name)}{', and counts by the mask' if masked else ''}")
        return
    if np.ptp(rows, axis=0).max() > ROUNDING * np.abs(rows).max():
        return
    height, width = scene.grid.height, scene.grid.width
    side = min(height, width, _SAMPLES * _SAMPLE_SIDE)
    arrays, valid, counts = scene.read(((height - side) // 2, (width - side) // 2, side, side))
    for counted in counts.values():
        valid = valid & counted
    if any(np.ptp(x[:, valid], axis=1).any() for x in arrays.values() if valid.any()):
        raise ValueError(
            f"{scene.name}: the features are the same everywhere, and the values are not: the weights do "
            "not fit these values, or the values are in another unit (--units, units=)"
        )


def _no_data(name: str) -> str:
    return f"{name}: no pixel has data in all bands that the model takes"


def _none_counts(name: str) -> str:
    return f"{name}: no pixel with data counts by the mask: are its classes right?"

"""The result of a search as one HTML page without other files: a heat map, ranked chips, the provenance."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array, RasterStack
from rsbackbones.embed.preview import encode_png, principal_colors
from rsbackbones.embed.search.search import Hits, Searched
from rsbackbones.files.atomic import write_text

Picture = npt.NDArray[np.uint8]
# The longest side of the map, and the side of a chip, in pixels; a chip shows so many cells.
_MAP, _CHIP, _CELLS = 900, 128, 9
_MOST_CHIPS = 60
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 24px; color: #1b1f24; background: #fff;
max-width: 1200px }
h1 { font-size: 20px } h2 { font-size: 16px; margin-top: 28px }
.map { position: relative; display: inline-block; line-height: 0 }
.map img { image-rendering: pixelated } .map img + img { position: absolute; left: 0; top: 0 }
.map svg { position: absolute; left: 0; top: 0 }
.chips { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; width: 128px } figure img { width: 128px; height: 128px; image-rendering: pixelated }
figcaption { font-size: 12px; color: #57606a } pre { background: #f6f8fa; padding: 12px; overflow-x: auto;
font-size: 12px } label { margin-right: 16px }
"""


def write_page(path: Path, searched: Searched, hits: Hits, *, scene: Path | None = None) -> None:
    """Write the page.

    Args:
        path: the file.
        searched: the store that was searched.
        hits: the result.
        scene: a raster with red, green and blue bands of Sentinel-2 to show; default: the principal
            components of the features.

    Raises:
        ValueError: the result has no map: of a table, or by an index; or the scene lacks the bands.
    """
    if hits.similarities is None:
        raise ValueError("a page shows the map of a store (.zarr) searched without an index")
    base = _scene_picture(scene, searched) if scene else _feature_picture(searched)
    write_text(path, _page(base, hits))


def _page(base: Picture, hits: Hits) -> str:
    assert hits.similarities is not None
    rows, columns = hits.similarities.shape
    factor = base.shape[1] / rows
    scale = _MAP / max(rows, columns)
    width, height = round(columns * scale), round(rows * scale)
    marks = "".join(
        f'<circle cx="{(c + 0.5) * scale:.1f}" cy="{(r + 0.5) * scale:.1f}" r="6" fill="none" stroke="#fff" '
        f'stroke-width="2"><title>{i + 1}: {s:.3f}</title></circle>'
        for i, (r, c, s) in enumerate(zip(hits.rows, hits.columns, hits.similarity, strict=True))
    )
    chips = "".join(
        f'<figure><img src="{_data(_chip(base, r, c, factor))}" alt="hit {i + 1}"><figcaption>{i + 1}: '
        f"{s:.3f}<br>{lon:.5f}, {lat:.5f}</figcaption></figure>"
        for i, (r, c, s, lon, lat) in enumerate(
            zip(hits.rows, hits.columns, hits.similarity, hits.lon, hits.lat, strict=True)
        )
        if i < _MOST_CHIPS
    )
    low, high = _range(hits.similarities)
    size = f'width="{width}" height="{height}"'
    facts = html.escape(json.dumps(_short(hits.facts), indent=1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Similarity</title><style>{_STYLE}'
        f"</style></head><body><h1>{len(hits.rows)} most similar cells of "
        f"{html.escape(Path(hits.facts['searched']).name)}</h1>"
        f'<p><label>Heat map <input type="range" min="0" max="100" value="60" '
        "oninput=\"document.getElementById('heat').style.opacity=this.value/100\"></label>"
        f"similarity from {low:.2f} (dark) to {high:.2f} (bright); circles are the hits</p>"
        f'<div class="map"><img {size} src="{_data(base)}" alt="scene">'
        f'<img id="heat" style="opacity:0.6" {size} src="{_data(_heat(hits.similarities))}" alt="similarity">'
        f"<svg {size}>{marks}</svg></div>"
        f'<h2>Hits, with longitude and latitude</h2><div class="chips">{chips}</div>'
        f"<h2>Provenance</h2><pre>{facts}</pre></body></html>\n"
    )


def _feature_picture(searched: Searched) -> Picture:
    rows, columns = searched.shape
    step = max(1, -(-max(rows, columns) // 512))
    features = searched.thinned(step)
    return principal_colors(features).repeat(step, axis=1).repeat(step, axis=2)[:, :rows, :columns]


def _scene_picture(scene: Path, searched: Searched) -> Picture:
    """Return red, green and blue of a raster on the extent of the map, [4, h, w]."""
    rows, columns = searched.shape
    bands = ("B04", "B03", "B02")
    with RasterStack([scene], ("s2",), wanted={"s2": bands}, units={"s2": "rgb8"}) as stack:
        if set(stack.bands.get("s2", ())) != set(bands):
            raise ValueError(f"{scene} lacks some of the bands {', '.join(bands)}, to be shown")
        factor = max(1, min(8, 2048 // max(rows, columns)))
        cell = stack.width // columns
        window = (0, 0, min(rows * cell, stack.height), min(columns * cell, stack.width))
        arrays, valid = stack.read(window, (rows * factor, columns * factor))
        order = [stack.bands["s2"].index(band) for band in bands]
    picture = arrays["s2"][order]
    seen = picture[:, valid]
    low, high = np.percentile(seen, (1, 99), axis=1)[:, :, None, None] if seen.size else (0, 1)
    color = np.clip((picture - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
    return np.concatenate((color, valid[None] * 255.0)).astype(np.uint8)


def _heat(similarities: Array) -> Picture:
    """Return similarities as colors from dark violet to yellow; transparent without data."""
    low, high = _range(similarities)
    t = np.clip((np.nan_to_num(similarities, nan=low) - low) / max(high - low, 1e-6), 0, 1)
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)
    color = [np.interp(t, np.linspace(0, 1, len(stops)), stops[:, i]) for i in range(3)]
    return np.stack([*color, np.isfinite(similarities) * 255.0]).astype(np.uint8)


def _range(similarities: Array) -> tuple[float, float]:
    seen = similarities[np.isfinite(similarities)]
    low, high = np.percentile(seen, (2, 99.8)) if seen.size else (0.0, 1.0)
    return float(low), float(high)


def _chip(base: Picture, row: int, column: int, factor: float) -> Picture:
    half = _CELLS / 2
    rows, columns = (
        np.clip(((n + 0.5 - half + np.arange(_CHIP) * _CELLS / _CHIP) * factor).astype(int), 0, size - 1)
        for n, size in ((row, base.shape[1]), (column, base.shape[2]))
    )
    return base[:, rows[:, None], columns]


def _data(image: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(np.ascontiguousarray(image))).decode()


def _short(facts: Any) -> Any:
    """Return facts without their long lists of numbers."""
    if isinstance(facts, Mapping):
        return {k: _short(v) for k, v in facts.items()}
    if isinstance(facts, (list, tuple)):
        if len(facts) > 16 and all(isinstance(v, (int, float)) for v in facts):
            return f"{len(facts)} numbers"
        return [_short(v) for v in facts]
    return facts

"""The result of a search as one HTML page without other files: heat maps, ranked chips, the provenance."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.rasters import Array
from rsbackbones.embed.counted import counted
from rsbackbones.embed.preview import encode_png
from rsbackbones.embed.search.pictures import Picture, pictures
from rsbackbones.embed.search.search import Hits, Searched
from rsbackbones.files.atomic import write_text

# The longest side of a map on the page, of one and of several; of the picture of its heat, in pixels.
_MAP, _SMALL_MAP, _HEAT = 900, 540, 1024
_MOST_CHIPS, _MOST_MAPS = 60, 16
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 24px; color: #1b1f24; background: #fff;
max-width: 1200px }
h1 { font-size: 20px } h2 { font-size: 16px; margin-top: 28px } h3 { font-size: 14px; margin: 0 0 4px }
.maps { display: flex; flex-wrap: wrap; gap: 24px }
.map { position: relative; display: inline-block; line-height: 0 }
.map img { image-rendering: pixelated } .map img + img { position: absolute; left: 0; top: 0 }
.map svg { position: absolute; left: 0; top: 0 } .heat { opacity: var(--heat, 0.6) }
.chips { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; width: 128px } figure img { width: 128px; height: 128px; image-rendering: pixelated }
figcaption { font-size: 12px; color: #57606a } pre { background: #f6f8fa; padding: 12px; overflow-x: auto;
font-size: 12px } label { margin-right: 16px }
"""


def write_page(path: Path, searched: Searched, hits: Hits, *, scene: Path | None = None) -> None:
    """Write the page. Of many maps it shows those with the best hits.

    Args:
        path: the file.
        searched: the store that was searched.
        hits: the result.
        scene: the raster that was embedded, with red, green and blue bands of Sentinel-2, to show; default:
            the principal components of the features.

    Raises:
        ValueError: the result has no map: of a table, or by an index; or the scene lacks the bands, or is not
            under the only map.
    """
    if hits.similarities is None:
        raise ValueError("a page shows the map of a store (.zarr) searched without an index")
    shown = list(dict.fromkeys([*hits.layers.tolist(), *range(len(searched.layers))]))[:_MOST_MAPS]
    with pictures(scene, [searched.layers[i] for i in sorted(shown)]) as made:
        write_text(path, _page(searched, hits, sorted(shown), made))


def _page(searched: Searched, hits: Hits, shown: list[int], made: Any) -> str:
    assert hits.similarities is not None
    scale = _range([hits.similarities[i] for i in shown])
    maps = "".join(_map(searched, hits, i, made.whole(searched.layers[i]), scale) for i in shown)
    count, left = len(hits.rows), len(searched.layers) - len(shown)
    title = html.escape(Path(hits.facts["searched"]).name)
    best = f"The {count} most similar cells" if count > 1 else "The most similar cell"
    more = f" The {len(shown)} maps with the best hits of {len(searched.layers)} are shown." if left else ""
    if len({layer.group for layer in searched.layers}) > 1:
        more = " Where zones share ground, the cells of one are compared." + more
    first = f", the first {_MOST_CHIPS} of {count}" if count > _MOST_CHIPS else ""
    facts = html.escape(json.dumps(_short(hits.facts), indent=1))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Similarity: {title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{best} of {title}</h1>"
        '<p><label>Heat map <input type="range" min="0" max="100" value="60" '
        "oninput=\"document.body.style.setProperty('--heat', this.value/100)\"></label>"
        f"similarity from {scale[0]:.2f} (dark) to {scale[1]:.2f} (bright), and what is beyond in the same "
        f"colors; circles are the hits.{more}</p>"
        f'<div class="maps">{maps}</div>'
        f"<h2>Hits, each in the middle of its picture{first}</h2>"
        f'<div class="chips">{_chips(searched, hits, made)}</div>'
        f"<h2>Provenance</h2><pre>{facts}</pre></body></html>\n"
    )


def _map(searched: Searched, hits: Hits, i: int, base: Picture, scale: tuple[float, float]) -> str:
    """Return the heat map of one layer over its picture, with its hits."""
    assert hits.similarities is not None
    layer, similarity = searched.layers[i], hits.similarities[i]
    side = (_MAP if len(searched.layers) == 1 else _SMALL_MAP) / max(layer.shape)
    size = f'width="{round(layer.shape[1] * side)}" height="{round(layer.shape[0] * side)}"'
    here = np.flatnonzero(hits.layers == i)
    marks = "".join(
        f'<circle cx="{(hits.columns[n] + 0.5) * side:.1f}" cy="{(hits.rows[n] + 0.5) * side:.1f}" r="6" '
        f'fill="none" stroke="#fff" stroke-width="2"><title>{n + 1}: {hits.similarity[n]:.3f}</title>'
        "</circle>"
        for n in here
    )
    heading = f"{layer.name}: {counted(len(here), 'hit')}" if layer.name else ""
    return (
        f"<div>{f'<h3>{html.escape(heading)}</h3>' if heading else ''}"
        f'<div class="map"><img {size} src="{_data(base)}" alt="scene">'
        f'<img class="heat" {size} src="{_data(heat_picture(similarity, scale))}" alt="similarity">'
        f"<svg {size}>{marks}</svg></div></div>"
    )


def _chips(searched: Searched, hits: Hits, made: Any) -> str:
    found = []
    for i, (of, row, column) in enumerate(zip(hits.layers, hits.rows, hits.columns, strict=True)):
        if i == _MOST_CHIPS:
            break
        layer = searched.layers[of]
        name = f"<br>{html.escape(layer.name)}" if layer.name else ""
        found.append(
            f'<figure><img src="{_data(made.chip(layer, int(row), int(column)))}" alt="hit {i + 1}">'
            f"<figcaption>{i + 1}: {hits.similarity[i]:.3f}<br>{hits.lon[i]:.5f}, {hits.lat[i]:.5f}{name}"
            "</figcaption></figure>"
        )
    return "".join(found)


def heat_picture(similarities: Array, scale: tuple[float, float]) -> Picture:
    """Return similarities as colors from dark violet to yellow; transparent without data. Of a large map a
    pixel is the best of its cells.
    """
    step = -(-max(similarities.shape) // _HEAT)
    if step > 1:
        rows, columns = (-(-n // step) for n in similarities.shape)
        padded = np.full((rows * step, columns * step), np.nan, np.float32)
        padded[: similarities.shape[0], : similarities.shape[1]] = similarities
        similarities = np.fmax.reduce(padded.reshape(rows, step, columns, step), axis=(1, 3))
    low, high = scale
    t = np.clip((np.nan_to_num(similarities, nan=low) - low) / max(high - low, 1e-6), 0, 1)
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)
    color = [np.interp(t, np.linspace(0, 1, len(stops)), stops[:, i]) for i in range(3)]
    return np.stack([*color, np.isfinite(similarities) * 255.0]).astype(np.uint8)


def _range(similarities: list[Array]) -> tuple[float, float]:
    seen = np.concatenate([one[np.isfinite(one)] for one in similarities])
    low, high = np.percentile(seen, (2, 99.8)) if seen.size else (0.0, 1.0)
    return float(low), float(high)


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

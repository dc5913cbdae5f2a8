"""SeaMo's TM block, encoder, pretraining loss and crops, written plainly from the paper.

Li et al., arXiv 2412.19237: Algorithm 1, figure 14 b, sections 3.1 and 3.2. One sample, season, head and
token at a time. State dicts are those of our modules. What the paper leaves open is as our docstrings say.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.croma_plain import layer_norm, linear
from tests.reference.croma_pretraining_plain import block, cut, depth, feed_forward, kept_patches, position

State = Mapping[str, Tensor]


# -- the TM block -----------------------------------------------------------------------------------------


def cross_attention(queries: Tensor, context: Tensor, s: State, name: str, heads: int) -> Tensor:
    """[Nq, D] asks, [Nk, D] answers: [Nq, D], of normalized tokens."""
    q = linear(layer_norm(queries, s, f"{name}.norm_query"), s, f"{name}.cross.q")
    context = layer_norm(context, s, f"{name}.norm_context")
    k, v = linear(context, s, f"{name}.cross.k"), linear(context, s, f"{name}.cross.v")
    width = q.shape[1] // heads
    rows = []
    for i in range(len(q)):
        parts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = [(q[i, part] * k[j, part]).sum() / math.sqrt(width) for j in range(len(k))]
            powers = [torch.exp(score) for score in scores]
            parts.append(sum(power / sum(powers) * v[j, part] for j, power in enumerate(powers)))
        rows.append(torch.cat(parts))
    return linear(torch.stack(rows), s, f"{name}.cross.proj")


def season(
    own: Tensor,
    other: Tensor,
    previous: Tensor | None,
    s: State,
    name: str,
    heads: int,
    form: tuple[str, str],
) -> Tensor:
    """H of one sensor at one season, [N, D]; ``previous`` is ``None`` at the first."""
    if form == ("fuse", "algorithm"):
        query = other
        if previous is not None:
            pairs = [torch.cat((other[i], previous[i])) for i in range(len(other))]
            query = torch.stack([linear(pair, s, f"{name}.fuse") for pair in pairs])
        x = query + cross_attention(query, own, s, f"{name}.attend", heads)
    elif form == ("decouple", "algorithm"):
        x = other + cross_attention(other, own, s, f"{name}.attend", heads)
        if previous is not None:
            x = x + cross_attention(previous, own, s, f"{name}.attend_previous", heads)
    elif form == ("fuse", "text"):
        context = other if previous is None else torch.cat((other, previous))
        x = own + cross_attention(own, context, s, f"{name}.attend", heads)
    else:
        assert form == ("decouple", "text")
        x = own + cross_attention(own, other, s, f"{name}.attend", heads)
        if previous is not None:
            x = x + cross_attention(own, previous, s, f"{name}.attend_previous", heads)
    x = x + feed_forward(layer_norm(x, s, f"{name}.norm_mlp"), s, f"{name}.mlp")
    return layer_norm(x, s, f"{name}.norm")


# By sensor, the tokens [N, D] of a season, or ``None`` where it is missing.
Series = Sequence[Mapping[str, Tensor | None]]


def temporal_multimodal(
    series: Series, s: State, heads: int, *, fusion: str = "fuse", query: str = "algorithm"
) -> list[dict[str, Tensor | None]]:
    """H of all sensors and seasons of one sample, ``None`` where the sensor is missing."""
    out: list[dict[str, Tensor | None]] = []
    for t, tokens in enumerate(series):
        now: dict[str, Tensor | None] = {}
        for m, own in tokens.items():
            if own is None:
                now[m] = None
                continue
            others = [x for name, x in tokens.items() if name != m and x is not None]
            before = [x for x in (series[u][m] for u in range(t)) if x is not None]
            now[m] = season(
                own, others[0] if others else own, before[-1] if before else None, s, f"sensors.{m}", heads,
                (fusion, query),
            )  # fmt: skip
        out.append(now)
    return out


# -- encoder and decoder ----------------------------------------------------------------------------------


def encode(
    images: Mapping[str, Tensor],
    kept: Mapping[str, Sequence[int]],
    channels: Mapping[str, Sequence[int]],
    s: State,
    heads: int,
) -> dict[str, Tensor]:
    """The sensors' images [C, H, W] of one date, put one after the other: by sensor [K, D]."""
    sequence = []
    for m, image in images.items():
        columns = image.shape[-1] // 8
        weight, bias = s[f"tokenizers.{m}.proj.weight"], s[f"tokenizers.{m}.proj.bias"]
        which = [c * 64 + i for c in channels[m] for i in range(64)]
        for n in kept[m]:
            row, column = divmod(n, columns)
            place = torch.tensor(position(row, column, len(bias)), dtype=weight.dtype)
            sequence.append(weight[:, which] @ cut(image, row, column) + bias + place)
    x = torch.stack(sequence)[None]
    table = torch.zeros(heads, len(sequence), len(sequence), dtype=x.dtype)
    for i in range(depth(s, "blocks.")):
        x = block(x, s, f"blocks.{i}", table)
    x = layer_norm(x, s, "norm")[0]
    counts = [len(kept[m]) for m in images]
    return dict(zip(images, x.split(counts), strict=True))


def decode(tokens: Tensor, places: Sequence[int], grid: tuple[int, int], s: State, heads: int) -> Tensor:
    """[K, D], of which the first lies at ``places[0]``, to all pixels of all patches, [N, bands * 64]."""
    small = linear(tokens, s, "embed")
    sequence = []
    for n in range(grid[0] * grid[1]):
        token = small[places.index(n)] if n in places else s["mask_token"][0, 0]
        where = position(*divmod(n, grid[1]), small.shape[-1])
        sequence.append(token + torch.tensor(where, dtype=token.dtype))
    x = torch.stack(sequence)[None]
    table = torch.zeros(heads, len(sequence), len(sequence), dtype=x.dtype)
    for i in range(depth(s, "blocks.")):
        x = block(x, s, f"blocks.{i}", table)
    return linear(layer_norm(x, s, "norm"), s, "output")[0]


# -- the loss ---------------------------------------------------------------------------------------------


def within(s: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in s.items() if name.startswith(prefix)}


def losses(
    s: State,
    images: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    *,
    ratio: float,
    channels: Mapping[str, Sequence[int]],
    heads: int,
    decoder_heads: int,
    siamese: bool,
    tm: bool,
    normalized: bool = True,
    valid: Mapping[str, Tensor] | None = None,
    fusion: str = "fuse",
    query: str = "algorithm",
    at_own_places: bool = False,
) -> dict[str, Tensor]:
    """By sensor the loss, summed over the seasons; the mean over the samples.

    Args:
        s: the state of the objective.
        images: by sensor [B, T, C, H, W].
        noise: by sensor [B, T, N]: the patches of least noise are kept.
        ratio: the part that is masked.
        channels: by sensor the bands of the model that the images hold.
        siamese: the encoder sees one sensor at a time. ``tm``: the TM block follows it.
        valid: by sensor [B, T], False where an image is missing.
        at_own_places: a control, wrong on purpose: tokens go back to the places of their own sensor.
    """
    backbone = within(s, "backbone.")
    first = next(iter(images.values()))
    samples, seasons = first.shape[:2]
    grid = (first.shape[-2] // 8, first.shape[-1] // 8)
    totals = {m: torch.zeros((), dtype=first.dtype) for m in images}
    for b in range(samples):
        there = [
            {m for m in images if m not in (valid or {}) or bool(valid[m][b, t])} for t in range(seasons)
        ]
        kept = [{m: kept_patches(noise[m][b, t], ratio) for m in images} for t in range(seasons)]
        series: list[dict[str, Tensor | None]] = []
        for t in range(seasons):
            present = [m for m in images if m in there[t]]
            tokens: dict[str, Tensor | None] = dict.fromkeys(images)
            for group in [[m] for m in present] if siamese else [present] if present else []:
                tokens |= encode({m: images[m][b, t] for m in group}, kept[t], channels, backbone, heads)
            series.append(tokens)
        after = series
        if tm:
            after = temporal_multimodal(
                series, within(backbone, "temporal."), heads, fusion=fusion, query=query
            )
        for t in range(seasons):
            for m, x in after[t].items():
                if x is None:
                    continue
                # The tokens lie where those lay that asked.
                asked = [o for o in there[t] if o != m] if tm and query == "algorithm" else []
                places = kept[t][asked[0] if asked and not at_own_places else m]
                pixels = decode(x, places, grid, within(s, f"decoders.{m}."), decoder_heads)
                which = [c * 64 + i for c in channels[m] for i in range(64)]
                errors = []
                for n in range(len(pixels)):
                    if n in kept[t][m]:
                        continue
                    target = cut(images[m][b, t], *divmod(n, grid[1]))
                    if normalized:
                        target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
                    errors.append(((pixels[n][which] - target) ** 2).mean())
                totals[m] = totals[m] + sum(errors) / len(errors)
    return {m: total / samples for m, total in totals.items()}


# -- crops ------------------------------------------------------------------------------------------------


def pixels_of(view: object) -> set[tuple[int, int]]:
    """All pixels of a crop."""
    top, left, side = view.top, view.left, view.side
    return {(row, column) for row in range(top, top + side) for column in range(left, left + side)}


def squares_fit(count: int, side: int, height: int, width: int) -> bool:
    """Whether so many squares that share no pixel can lie in an image: every place of each is tried."""
    places = [(r, c) for r in range(height - side + 1) for c in range(width - side + 1)]

    def place(left: int, start: int, taken: list[tuple[int, int]]) -> bool:
        if not left:
            return True
        for i in range(start, len(places)):
            row, column = places[i]
            free = all(abs(row - r) >= side or abs(column - c) >= side for r, c in taken)
            if free and place(left - 1, i + 1, [*taken, places[i]]):
                return True
        return False

    return place(count, 0, [])

"""AuxMAE's and MixMAE's losses, written plainly from the paper: one sample, patch and pixel at a time.

Linial et al., sections 3.2 and 3.3, figures 2 and 3, equation 1. State dicts are those of our modules. What
the paper leaves open is as our docstrings say.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.reference.croma_plain import layer_norm
from tests.reference.croma_pretraining_plain import block, depth, kept_patches, position
from tests.reference.seamo_plain import State, decode, encode, within


def pixels(image: Tensor, number: int, p: int) -> list[float | Tensor]:
    """The pixels of a patch in the order (band, row, column), [C, H, W] cut by rows."""
    row, column = divmod(number, image.shape[-1] // p)
    return [
        image[c, row * p + i, column * p + j]
        for c in range(image.shape[0])
        for i in range(p)
        for j in range(p)
    ]


def patch_error(predicted: Tensor, image: Tensor, number: int, p: int, normalized: bool) -> Tensor:
    """The mean square error of one patch; ``predicted`` [C * p * p]."""
    target = torch.stack([torch.as_tensor(x) for x in pixels(image, number, p)])
    if normalized:
        mean = sum(target) / len(target)
        variance = sum((x - mean) ** 2 for x in target) / (len(target) - 1)
        target = torch.stack([(x - mean) / torch.sqrt(variance + 1e-6) for x in target])
    total = sum((predicted[i] - target[i]) ** 2 for i in range(len(target)))
    return torch.as_tensor(total) / len(target)


def auxmae_loss(
    s: State, images: Mapping[str, Tensor], noise: Tensor, *, source: str, target: str, ratio: float,
    scale: int, heads: int, decoder_heads: int, normalized: bool,
) -> Tensor:  # fmt: skip
    """The loss of one task on images [B, C, H, W]."""
    backbone, decoder = within(s, "backbone."), within(s, f"decoders.{source}_{target}.")
    errors = []
    for b, image in enumerate(images[source]):
        grid = (image.shape[-2] // 8, image.shape[-1] // 8)
        every = list(range(grid[0] * grid[1]))
        kept = kept_patches(noise[b], ratio) if ratio else every
        bands = {source: list(range(len(image)))}
        tokens = encode({source: image}, {source: kept}, bands, backbone, heads)[source]
        predicted = decode(tokens, kept, grid, decoder, decoder_heads)
        counted = [n for n in every if n not in kept] if ratio and source == target else every
        errors += [patch_error(predicted[n], images[target][b], n, 8 * scale, normalized) for n in counted]
    return torch.stack(errors).mean()


def mixmae_losses(
    s: State, images: Mapping[str, Tensor], noise: Tensor, *, share: float, heads: int, decoder_heads: int,
    normalized: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """The loss of each sensor, ``s2`` and ``s1``, on images [B, C, H, W]."""
    backbone = within(s, "backbone.")
    errors: dict[str, list[Tensor]] = {"s2": [], "s1": []}
    for b in range(len(noise)):
        grid = (images["s2"].shape[-2] // 8, images["s2"].shape[-1] // 8)
        count = math.floor(len(noise[b]) * share)
        optical = set(sorted(range(len(noise[b])), key=lambda i, row=noise[b]: float(row[i]))[:count])
        sequence = []
        for n in range(grid[0] * grid[1]):
            m = "s2" if n in optical else "s1"
            weight, bias = backbone[f"tokenizers.{m}.proj.weight"], backbone[f"tokenizers.{m}.proj.bias"]
            place = torch.tensor(position(*divmod(n, grid[1]), len(bias)), dtype=weight.dtype)
            sequence.append(weight @ torch.stack(pixels(images[m][b], n, 8)) + bias + place)
        x = torch.stack(sequence)[None]
        table = torch.zeros(heads, len(sequence), len(sequence), dtype=x.dtype)
        for i in range(depth(backbone, "blocks.")):
            x = block(x, backbone, f"blocks.{i}", table)
        tokens = layer_norm(x, backbone, "norm")[0]
        for m in errors:
            predicted = decode(
                tokens, list(range(len(tokens))), grid, within(s, f"decoders.{m}."), decoder_heads
            )
            errors[m] += [
                patch_error(predicted[n], images[m][b], n, 8, normalized)
                for n in range(len(tokens))
                if (n in optical) == (m == "s1")
            ]
    return {m: torch.stack(of).mean() for m, of in errors.items()}

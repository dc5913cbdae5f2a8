"""S4's pretraining loss, slow and obvious: float64, no masks, every similarity in a loop.

Parameters are taken by name from a state dict of the objective. Series are complete, [B, T, C, H, W] with T a
multiple of 4.
"""

import torch
import torch.nn.functional as F


def contrast(z_s2, z_s1, temperature=0.5):
    """Equation 2: of every position in every sample, against all positions of the other map."""
    losses = []
    for one, other in zip(z_s2, z_s1, strict=True):  # [D, T, h, w]
        vectors = [list(z.flatten(1).T) for z in (one, other)]
        directions = []
        for anchors, keys in (vectors, vectors[::-1]):
            of_anchors = []
            for i, anchor in enumerate(anchors):
                similar = torch.stack([F.cosine_similarity(anchor, key, dim=0) for key in keys]) / temperature
                of_anchors.append(-torch.log_softmax(similar, dim=0)[i])
            directions.append(torch.stack(of_anchors).mean())
        losses.append((directions[0] + directions[1]) / 2)
    return torch.stack(losses).mean()


def unit(p, x, name, convolution=None):
    """Convolution, BatchNorm with the statistics of the batch, leaky ReLU."""
    if convolution is None:
        x = F.conv3d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], padding=1)
    else:
        x = convolution(x)
    mean = x.mean(dim=(0, 2, 3, 4), keepdim=True)
    var = x.var(dim=(0, 2, 3, 4), unbiased=False, keepdim=True)
    weight, bias = (p[f"{name}.norm.{which}"].view(-1, 1, 1, 1) for which in ("weight", "bias"))
    return F.leaky_relu((x - mean) / torch.sqrt(var + 1e-5) * weight + bias, 0.01)


def up(p, x, name):
    """Transposed convolution that doubles all sides."""
    return F.conv_transpose3d(
        x, p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1, output_padding=1
    )


def encode(p, series, sensor):
    """Return the three levels of a series."""
    stem = series.transpose(1, 2)
    for name in (f"backbone.stems.{sensor}.first", f"backbone.stems.{sensor}.second"):
        stem = unit(p, stem, name)
    second = F.max_pool3d(stem, 2)
    for name in ("backbone.second.first", "backbone.second.second"):
        second = unit(p, second, name)
    return stem, second, unit(p, F.max_pool3d(second, 2), "backbone.bottleneck")


def project(p, x):
    """Two 1 x 1 x 1 convolutions, each with BatchNorm and leaky ReLU."""
    for i in range(2):
        weight, bias = p[f"projection.convs.{i}.weight"], p[f"projection.convs.{i}.bias"]
        norm = {f"g.norm.{which}": p[f"projection.norms.{i}.{which}"] for which in ("weight", "bias")}
        x = unit(norm, x, "g", lambda maps, w=weight, b=bias: F.conv3d(maps, w, b))
    return x


def reconstruct(p, levels, sensor):
    """Return the predicted series of the other sensor."""
    stem, second, bottleneck = levels
    name = f"backbone.decoders.{sensor}"
    x = up(p, unit(p, bottleneck, f"{name}.bottleneck"), f"{name}.up_second")
    x = torch.cat((x, second), dim=1)
    x = unit(p, unit(p, x, f"{name}.second.first"), f"{name}.second.second")
    x = unit(p, x, f"{name}.up_first", lambda maps: up(p, maps, f"{name}.up_first.conv"))
    x = torch.cat((x, stem), dim=1)
    x = unit(p, unit(p, x, f"{name}.first.first"), f"{name}.first.second")
    return F.conv3d(x, p["reconstruction.weight"], p["reconstruction.bias"], padding=1).transpose(1, 2)


def losses(p, s2, s1, weight=0.01):
    """Return L_c, L_r and their sum, for inference on s2."""
    levels = {"s2": encode(p, s2, "s2"), "s1": encode(p, s1, "s1")}
    contrastive = contrast(project(p, levels["s2"][2]), project(p, levels["s1"][2]))
    reconstruction = (reconstruct(p, levels["s2"], "s2") - s1).abs().mean()
    return contrastive, reconstruction, contrastive + weight * reconstruction

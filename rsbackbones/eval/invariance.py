"""How little the representation of an image changes when the image is flipped or turned.

Source: Fuller et al., CROMA, NeurIPS 2023, appendix A.2, table 11: the cosine similarity between the
representations of images and of the same images after a transformation, over 5,000 images.

A high similarity means little where all images have similar representations. The mean similarity between
*different* images is therefore returned too, unlike in the paper.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.batches import frozen_eval, input_batches
from rsbackbones.eval.diversity import mean_pairwise_cosine
from rsbackbones.models.backbone import unwrap_model

# In the order of table 11, of images [..., H, W]; turns are counter-clockwise.
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "flip_h": lambda x: x.flip(-1),
    "flip_v": lambda x: x.flip(-2),
    "turn_90": lambda x: x.rot90(1, (-2, -1)),
    "turn_180": lambda x: x.rot90(2, (-2, -1)),
    "turn_270": lambda x: x.rot90(3, (-2, -1)),
}
OTHER_IMAGE = "other_image"


def invariance(
    model: nn.Module, data: LabelledDataset, *, split: str = "test", batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """Return for every stream the mean cosine similarity by transformation, and by ``other_image``.

    Args:
        model: from ``create_model``.
        data: labelled or not; images of one size, two or more.
        split: whose images.
        batch_size: images at a time.

    Raises:
        ValueError: no such split, fewer than two images, or images that the model cannot serve.
    """
    found: dict[str, dict[str, list[Tensor]]] = {}
    backbone = unwrap_model(model)
    with frozen_eval(model):
        for images in input_batches(model, data, split, batch_size=batch_size):
            # In float64, on the CPU: not every device has it.
            streams = backbone.forward_streams(images)
            original = {s: f.pooled[s].cpu().double() for s, f in streams.items()}
            for stream, pooled in original.items():
                found.setdefault(stream, {}).setdefault(OTHER_IMAGE, []).append(pooled)
            for name, transform in TRANSFORMS.items():
                moved = backbone.forward_streams({m: transform(x) for m, x in images.items()})
                for stream, features in moved.items():
                    pooled = features.pooled[stream].cpu().double()
                    similarity = F.cosine_similarity(original[stream], pooled, dim=-1)
                    found[stream].setdefault(name, []).append(similarity)
    return {
        stream: {name: float(torch.cat(by_name[name]).mean()) for name in TRANSFORMS}
        | {OTHER_IMAGE: float(mean_pairwise_cosine(torch.cat(by_name[OTHER_IMAGE])))}
        for stream, by_name in found.items()
    }

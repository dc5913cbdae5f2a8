"""Segmentation with a decoder of segmentation_models_pytorch on an encoder of this package.

A U-Net wants a pyramid of maps, hence the name with `_pyramid` (see rsbackbones.integrations.timm); smp.DPT
takes the name without it. The scenes are simulated and the training is short: it shows the way, not what can
be reached.
"""

import argparse

import segmentation_models_pytorch as smp
import torch

import rsbackbones as rsb
import rsbackbones.integrations.timm  # registers the names with timm
from rsbackbones.data.simulator import CLASSES, simulate_scene

SIDE = 64

parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
parser.add_argument("--steps", type=int, default=40)
steps = parser.parse_args().steps

torch.manual_seed(0)
net = smp.Unet(
    "tu-rsb_croma_s2_vit_tiny_pyramid",
    encoder_weights=True,
    in_channels=4,
    classes=len(CLASSES),
    decoder_channels=(128, 64, 32, 16, 16),
)
backbone = net.encoder.model.model.backbone


def tiles(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized images [B, 4, 64, 64] and the land cover of their pixels, [B, 64, 64]."""
    scenes = [simulate_scene(SIDE, SIDE, seed=seed) for seed in seeds]
    preprocess = rsb.create_preprocess(backbone, bands={"s2": scenes[0].s2_bands})
    images = torch.cat([preprocess(scene.s2[None]) for scene in scenes])
    return images, torch.stack([torch.from_numpy(scene.land_cover).long() for scene in scenes])


def mean_iou(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean intersection over union of the classes that occur."""
    net.eval()
    with torch.inference_mode():
        found = net(images).argmax(1)
    stats = smp.metrics.get_stats(found, truth, mode="multiclass", num_classes=len(CLASSES))
    hit, false, missed, _ = (counts.sum(0) for counts in stats)
    occurs = hit + missed > 0
    return (hit / (hit + false + missed))[occurs].mean().item()


train, unseen = tiles(range(16)), tiles(range(16, 24))
before = mean_iou(*unseen)
encoder = list(net.encoder.parameters())
decoder = [*net.decoder.parameters(), *net.segmentation_head.parameters()]
optimizer = torch.optim.AdamW([{"params": encoder, "lr": 1e-4}, {"params": decoder, "lr": 2e-3}])
net.train()
for _ in range(steps):
    batch = torch.randperm(len(train[0]))[:8]
    loss = torch.nn.functional.cross_entropy(net(train[0][batch]), train[1][batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"mean IoU on unseen scenes: {before:.3f} before, {mean_iou(*unseen):.3f} after {steps} steps")

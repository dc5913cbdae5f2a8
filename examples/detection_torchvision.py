"""torchvision's Faster R-CNN with a feature pyramid on an encoder of this package, such as FoMu-SSL's.

Any model of several strides serves; --checkpoint takes exported weights. The images are squares on noise and
the training is five steps: it shows the way, not what can be reached.
"""

import argparse

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import rsbackbones as rsb

CHANNELS = 64  # 256 in papers
SIDE = 128


class Pyramid(nn.Module):
    """The last four maps of an encoder, merged top-down, and a fifth of half their smallest size."""

    out_channels = CHANNELS  # asked for by Faster R-CNN

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        channels = encoder.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS, extra_blocks=LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] to maps [B, CHANNELS, h, w] by level."""
        return self.fpn({str(i): level for i, level in enumerate(self.encoder(x))})


def detector(model: str, checkpoint: str | None, num_classes: int) -> FasterRCNN:
    """Return a detector; class 0 is the background."""
    encoder = rsb.create_model(model, checkpoint=checkpoint, features_only=True)
    contract = encoder.backbone.inputs["rgb"]  # Faster R-CNN itself normalizes pictures of 0 to 1
    return FasterRCNN(
        Pyramid(encoder), num_classes, min_size=SIDE, max_size=SIDE,
        image_mean=contract.mean, image_std=contract.std,
    )  # fmt: skip


def squares(count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return pictures [3, 128, 128] of 0 to 1, each with a bright square, and where it is."""
    images, targets = [], []
    for _ in range(count):
        image, side = torch.rand(3, SIDE, SIDE) * 0.5, int(torch.randint(24, 64, ()))
        top, left = torch.randint(SIDE - side, (2,)).tolist()
        image[:, top : top + side, left : left + side] = 1.0
        images.append(image)
        box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.ones(1, dtype=torch.int64)})
    return images, targets


def main() -> None:
    """Train five steps and print the losses."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--model", default="fomu_resnet50")
    parser.add_argument("--checkpoint", help="exported weights; without them the encoder is random")
    given = parser.parse_args()
    torch.manual_seed(0)
    net = detector(given.model, given.checkpoint, num_classes=2).train()
    net.backbone.encoder.eval()  # two images are too few for statistics of a batch
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    for step in range(5):
        loss = sum(net(*squares(2)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()

"""The second loss of dense recipes, on the last map but one."""

import pytest
import torch
import torch.nn.functional as F

import rsbackbones as rsb
from rsbackbones.heads import dense_model
from rsbackbones.train.finetune.objective import Finetuning
from rsbackbones.train.finetune.samples import LabelledBatch

pytest.importorskip("segmentation_models_pytorch")


def test_the_loss_is_the_sum_of_both_and_reaches_the_backbone():
    torch.manual_seed(0)
    model = dense_model(rsb.create_model("fomu_resnet_tiny"), "upernet", num_classes=3, width=8)
    both = Finetuning(model, "pixels", auxiliary=0.4)
    both.eval()  # statistics and dropout apart
    target = torch.randint(-1, 3, (2, 64, 64))
    images = {"rgb": torch.randn(2, 3, 64, 64)}
    batch = LabelledBatch(images=images, bands={"rgb": model.backbone.bands["rgb"]}, noise={}, target=target)
    losses = both(batch)
    first = F.cross_entropy(model(images), target, ignore_index=-1)
    third_stage = model.maps(images)[2]
    assert third_stage.shape[-1] == 4  # at 16 pixels
    logits = F.interpolate(both.auxiliary_head(third_stage), (64, 64), mode="bilinear")
    second = F.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(losses["auxiliary"], second)
    torch.testing.assert_close(losses["loss"], first + 0.4 * second)
    (0.4 * second).backward()
    of_second = [p.grad.clone() for p in both.auxiliary_head.parameters()]
    both.zero_grad()
    losses["loss"].backward()
    for p, grad in zip(both.auxiliary_head.parameters(), of_second, strict=True):
        torch.testing.assert_close(p.grad, grad)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert not any("auxiliary" in name for name in model.state_dict())  # what is saved

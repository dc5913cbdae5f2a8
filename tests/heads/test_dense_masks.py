"""Dense models with pixel masks: NaN at the output only, finite losses and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsbackbones.heads import dense_model
from tests.models.examples import batch, small
from tests.models.test_pixel_masks import masks, plain_cells


@pytest.mark.parametrize("name", ["croma_vit_b", "toy_cnn"])
@pytest.mark.parametrize("head", ["linear", "vit_lite", "upernet"])
def test_masked_cells_are_nan_at_the_output_and_nowhere_else(name, head):
    options = {"vit_lite": {"width": 32, "depth": 1}, "upernet": {"width": 16}, "linear": {}}[head]
    net = dense_model(small(name, modalities=("s2",)), head, num_classes=3, **options).eval()
    x, valid = batch(net.backbone), masks(net.backbone)
    broken = {m: image.masked_fill(~valid[m][:, None], float("nan")) for m, image in x.items()}
    out = net(broken, valid=valid)
    assert torch.equal(net(x, valid={m: torch.ones_like(v) for m, v in valid.items()}), net(x))
    stride = min(net.backbone.stages("s2")[i].stride for i in net.indices)
    for b in range(2):
        hidden = np.kron(plain_cells(valid["s2"][b], stride) < 0.5, np.ones((stride, stride), bool))
        assert np.array_equal(out[b].isnan().any(dim=0), hidden[:64, :96])
        assert np.array_equal(out[b].isnan().all(dim=0), hidden[:64, :96])
    assert out.isnan().any()
    assert out[1].isfinite().all()
    net.train()
    target = torch.randint(0, 3, (2, 64, 96)).masked_fill(~valid["s2"], -1)
    for logits in (net.logits(broken, valid=valid), net(broken, valid=valid)):
        kept = target.masked_fill(logits.isnan().any(dim=1), -1)
        net.zero_grad()
        loss = F.cross_entropy(logits.nan_to_num(), kept, ignore_index=-1)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_change_counts_pixels_that_are_valid_at_both_dates():
    net = dense_model(small("croma_vit_b", modalities=("s2",)), "linear", num_classes=2, task="change").eval()
    x, valid = batch(net.backbone, times=2), masks(net.backbone, times=2)
    out = net(x, valid=valid)
    share = plain_cells(valid["s2"][0].all(dim=0), 8)
    assert np.array_equal(out[0].isnan().all(dim=0), np.kron(share < 0.5, np.ones((8, 8), bool)))
    assert out[1].isfinite().all()
    assert net.logits(x, valid=valid).isfinite().all()
    with pytest.raises(ValueError, match=r"pixel masks are \[B, 2, H, W\]"):
        net(x, valid={"s2": torch.ones(2, 2, dtype=torch.bool)})

"""UPerNet over a pyramid, and the pyramid that a ViT gets."""

import pytest
import segmentation_models_pytorch as smp
import torch

from rsbackbones.heads import UPerNet
from rsbackbones.heads.pyramid import Pyramid


def maps(*shapes, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


def test_a_resnet_pyramid_gives_what_the_package_gives():
    """The same ResNet and the same decoder, put together by segmentation_models_pytorch itself."""
    torch.manual_seed(0)
    theirs = smp.UPerNet(
        "resnet18", encoder_weights=None, in_channels=4, classes=3, decoder_channels=16
    ).eval()
    channels = theirs.encoder.out_channels[2:]
    ours = UPerNet(channels, [4, 8, 16, 32], 3, width=16).eval()
    assert ours.reduction == 4
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.classify.load_state_dict(theirs.segmentation_head[0].state_dict())
    with torch.no_grad():
        features = theirs.encoder(maps((4, 64, 96))[0])
        expected = theirs.segmentation_head[0](theirs.decoder(list(features)))
        assert torch.equal(ours(features[2:]), expected)
    assert expected.shape == (2, 3, 16, 24)


@pytest.mark.parametrize("grid", [(4, 6), (15, 15), (1, 3)])
def test_one_scale_becomes_four(grid):
    torch.manual_seed(0)
    levels = Pyramid([8] * 4)(maps(*[(8, *grid)] * 4))
    h, w = grid
    assert [tuple(x.shape[2:]) for x in levels] == [
        (4 * h, 4 * w), (2 * h, 2 * w), (h, w), (-(-h // 2), -(-w // 2))
    ]  # fmt: skip
    head = UPerNet([8] * 4, [16] * 4, 5, width=16).eval()
    assert head.reduction == 4
    assert head(maps(*[(8, *grid)] * 4)).shape == (2, 5, 4 * h, 4 * w)


def test_levels_are_finer_versions_of_their_own_map():
    """No level mixes distant pixels: doubling and pooling act where the map does."""
    pyramid = Pyramid([8] * 4)
    before = maps(*[(8, 4, 4)] * 4)
    after = [x.clone() for x in before]
    for x in after:
        x[..., 1, 2] += 1
    for a, b, scale in zip(pyramid(before), pyramid(after), (4, 2, 1, 0.5), strict=True):
        changed = (a != b).any(1).any(0).nonzero()
        low, high = changed.min(0).values, changed.max(0).values
        corner = torch.tensor([1, 2])
        assert torch.equal(low, (corner * scale).long())
        assert (high < ((corner + 1) * scale).ceil()).all()


def test_a_batch_of_one_cannot_be_trained_on():
    head = UPerNet([8] * 4, [16] * 4, 5, width=16)
    with pytest.raises(ValueError, match="use batches of 2 or more"):
        head(maps(*[(8, 4, 4)] * 4, batch=1))
    head.eval()(maps(*[(8, 4, 4)] * 4, batch=1))
    head.train()(maps(*[(8, 4, 4)] * 4, batch=2))


@pytest.mark.parametrize(("reductions", "message"), [
    ([8, 4, 16, 32], "requires equal or increasing strides"),
    ([8, 8, 16, 32], "requires equal or increasing strides"),
    ([8, 8, 8], "maps of 4 depths, got 3"),
    ([8], "maps of 4 depths, got 1"),
])  # fmt: skip
def test_maps_that_are_no_pyramid_are_refused(reductions, message):
    with pytest.raises(ValueError, match=message):
        UPerNet([8] * len(reductions), reductions, 5)

"""The encoders of FoMu-SSL: five levels, pictures of 8 bits, no weights."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.zoo.registry import find_architecture

ROWS = {
    "fomu_resnet50": (23_508_032, [64, 256, 512, 1024, 2048]),
    "fomu_lite0": (3_371_008, [16, 24, 40, 112, 1280]),
    "fomu_resnet10t": (4_922_488, [64, 64, 128, 256, 512]),
    "fomu_resnet_tiny": (372_688, [32, 32, 48, 192, 96]),
}


@pytest.mark.parametrize("name", ROWS)
def test_levels_have_the_channels_and_strides_of_the_networks(name):
    params, channels = ROWS[name]
    with torch.device("meta"):
        model = find_architecture(name).family.build(find_architecture(name).config)
    assert model.bands == {"rgb": ("B04", "B03", "B02")}
    assert sum(p.numel() for p in model.parameters()) == params
    assert [(s.channels, s.stride) for s in model.stages("rgb")] == list(
        zip(channels, (2, 4, 8, 16, 32), strict=True)
    )
    assert model.stage_indices(None, "rgb") == (1, 2, 3, 4)
    if name != "fomu_resnet10t":  # which is bundled
        with pytest.raises(rsb.WeightsNotFound, match=r"published no weights|nobody has trained weights"):
            rsb.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", ["fomu_resnet_tiny", "fomu_lite0"])
def test_pictures_and_digital_numbers_become_the_same_input(name):
    model = rsb.create_model(name)
    raw = np.random.default_rng(0).integers(0, 3500, (1, 3, 32, 33)).astype(np.uint16)
    with pytest.raises(ValueError, match=r"digital numbers have units=\{'rgb': 'dn'\}"):
        rsb.create_preprocess(model)(raw)
    picture = np.clip(raw.astype(int) * 255 // 2750, 0, 255).astype(np.uint8)
    found = rsb.create_preprocess(model, units={"rgb": "dn"})(raw)
    assert torch.equal(found, rsb.create_preprocess(model)(picture))
    numbers = ([0.5] * 3, [0.5] * 3)
    if name != "fomu_lite0":
        numbers = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    mean, std = (torch.tensor(each)[:, None, None] for each in numbers)
    torch.testing.assert_close(found, (torch.from_numpy(picture) / 255 - mean) / std)


def test_images_of_less_than_32_pixels_are_refused():
    with pytest.raises(ValueError, match="31 x 40 pixels are too few, this model needs at least 32 x 32"):
        rsb.create_model("fomu_resnet_tiny")(torch.rand(1, 3, 31, 40))

"""A model for the bands that you have: by name on one sensor, by wavelength between two."""

import torch

import rsbackbones as rsb

# Three bands of Sentinel-2, in the channel order of your tensors.
model = rsb.create_model(
    "croma_vit_tiny", pretrained=True, modalities=("s2",), bands={"s2": ("B04", "B03", "B02")}, num_classes=5
)
print(model.adaptation)
x = rsb.create_preprocess(model)(torch.randint(0, 4000, (2, 3, 64, 64)))
print("logits", tuple(model(x).shape))

# Four bands of Landsat-8, in the numbers of Collection 2, for the same weights of Sentinel-2.
model = rsb.create_model(
    "croma_vit_tiny",
    pretrained=True,
    modalities=("s2",),
    sensors={"s2": "landsat_oli"},
    bands={"s2": ("B2", "B3", "B4", "B5")},
)
print(model.adaptation)
x = rsb.create_preprocess(model, units={"s2": "landsat_c2"})(torch.randint(7300, 20000, (2, 4, 64, 64)))
print("embedding", tuple(model(x).shape))

"""A model for the bands that you have: weights are matched by band name, and say what was changed."""

import torch

import rsbackbones as rsb

model = rsb.create_model(
    "croma_vit_tiny",
    pretrained=True,
    modalities=("s2",),
    bands={"s2": ("B04", "B03", "B02")},  # the channel order of your tensors
    num_classes=5,
)

print(model.adaptation)
x = rsb.create_preprocess(model)(torch.randint(0, 4000, (2, 3, 64, 64)))
print("logits", tuple(model(x).shape))

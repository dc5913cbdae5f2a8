"""A model for the bands that you have: weights are matched by band name, and say what was changed."""

import tempfile
from pathlib import Path

import torch

import rsbackbones as rsb

with tempfile.TemporaryDirectory() as folder:
    # Stands for downloaded weights, so that it runs anywhere: a saved model with all twelve bands.
    weights = rsb.save_model(rsb.create_model("croma_vit_tiny"), Path(folder) / "weights.safetensors")
    model = rsb.create_model(
        "croma_vit_tiny",
        checkpoint=weights,  # or pretrained=True
        modalities=("s2",),
        bands={"s2": ("B08", "B04", "B03", "B02")},  # the channel order of your tensors
        num_classes=5,
    )

print(model.adaptation)
x = rsb.create_preprocess(model)(torch.randint(0, 4000, (2, 4, 64, 64)))
print("logits", tuple(model(x).shape))

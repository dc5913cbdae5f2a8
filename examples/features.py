"""Features of a Sentinel-1/2 pair: raw arrays in, embeddings and maps out.

The small model's weights come with the package; with network take rsb.create_model("croma_vit_b",
pretrained=True).
"""

import torch

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene

model = rsb.create_model("croma_vit_tiny", pretrained=True)
scene = simulate_scene(120, 120)  # arrays as rasterio reads them: uint16 DN [12, H, W], float32 dB [2, H, W]
preprocess = rsb.create_preprocess(model, bands={"s2": scene.s2_bands})  # gathers the model's bands by name

x = preprocess({"s2": scene.s2[None], "s1": scene.s1[None]})
with torch.inference_mode():
    features = model.forward_features(x)

print(preprocess)
for stream, pooled in features.pooled.items():
    print(f"{stream}: embedding {tuple(pooled.shape)}, map {tuple(features.maps(stream).shape)}")

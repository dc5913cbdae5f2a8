"""A linear probe: frozen features, logistic regression, the land cover of every 80 m patch.

The scenes are simulated; with data of yours change `samples`. Needs scikit-learn.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene

model = rsb.create_model("croma_vit_tiny", pretrained=True)
side, patch = 128, model.patch_size


def samples(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens [N, D] of a scene, and the most frequent class of each patch, [N]."""
    scene = simulate_scene(side, side, seed=seed)
    preprocess = rsb.create_preprocess(model, bands={"s2": scene.s2_bands})
    with torch.inference_mode():
        features = model.forward_features(preprocess({"s2": scene.s2[None], "s1": scene.s1[None]}))
    cover = scene.land_cover.reshape(side // patch, patch, side // patch, patch).swapaxes(1, 2)
    classes = [np.bincount(pixels).argmax() for pixels in cover.reshape(-1, patch * patch)]
    return features.tokens["joint"][0].numpy(), np.array(classes)


x, y = (np.concatenate(parts) for parts in zip(*map(samples, range(6)), strict=True))
unseen, truth = (np.concatenate(parts) for parts in zip(*map(samples, range(6, 8)), strict=True))
probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x, y)
print(f"right on unseen scenes: {probe.score(unseen, truth):.1%}, always the most frequent class: ", end="")
print(f"{np.mean(truth == np.bincount(y).argmax()):.1%}")

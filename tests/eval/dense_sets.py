"""Small labelled sets of label maps, made by hand, for the tests of dense prediction."""

import numpy as np

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.simulator import S2_BANDS, simulate_scene


def pixel_set(images, labels, classes=("a", "b"), *, task="pixels", bands=None, units=None, **changes):
    """A set of given images (a dictionary by modality each) and label maps, all of them in ``test``."""
    bands = bands or {"s2": S2_BANDS}
    return LabelledDataset(
        **{
            "name": "by hand",
            "task": task,
            "classes": tuple(classes),
            "bands": bands,
            "units": units or {},
            "ids": tuple(f"place {i}" for i in range(len(images))),
            "splits": {"test": np.arange(len(images))},
            "labels": None,
            "read": lambda i: {**images[i], "label": labels[i]},
            "digest": "by hand",
            **changes,
        }
    )


def simulated(sizes, *, classes=3, seed=0):
    """Sentinel-2 scenes of the simulator and label maps of a few classes, some pixels ignored."""
    images, labels = [], []
    for i, size in enumerate(sizes):
        height, width = size
        scene = simulate_scene(max(16, height), max(16, width), seed=seed + i)  # it draws no smaller ones
        label = scene.land_cover[:height, :width].astype(np.int64) % (classes + 1) - 1
        images.append({"s2": scene.s2[:, :height, :width]})
        labels.append(label)
    return pixel_set(images, labels, [f"class {k}" for k in range(classes)])

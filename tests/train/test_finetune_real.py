"""Fine-tuning the bundled weights on real labelled sets."""

import numpy as np

from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.finetune import RECIPES, finetune

SMALL = {
    "model": "croma_vit_tiny",
    "optim.base_lr": 0.08,
    "optim.warmup_epochs": 1,
    "precision": "fp32",
    "workers": 0,
}


def test_classes_of_eurosat(real_data, tmp_path):
    """A linear layer on frozen weights is far better than chance after a few epochs."""
    mapping = {"s2": "images", "s2_bands": "bands", "label": "labels", "id": "names"}
    recipe = apply_overrides(
        RECIPES["croma_eurosat"],
        SMALL | {
            "data": str(real_data / "eurosat_ms_200.npz"), "data_options": {"mapping": mapping},
            "output": str(tmp_path / "run"), "views.size": None, "views.mixup": 0, "views.cutmix": 0,
            "freeze": True, "epochs": 8, "batch_size": 16,
        },
    )  # fmt: skip
    result = finetune(recipe)
    assert result["weights"]["id"] == "croma_vit_tiny.samples"
    assert result["data"]["samples"] == {"train": 128, "val": 32, "test": 40}
    assert result["value"] > 0.3  # of 10 classes, as many of each
    assert any("s2: not used: B01" in note for note in result["notes"])


def test_water_of_sen1floods11(real_data, tmp_path):
    """UPerNet on tiles of radar images, merged; no data is no label."""
    folder = real_data / "sen1floods11"
    mapping = {
        "files": "*.npz", "s1": {"s1": ["VV", "VH"]}, "label": "label", "classes": ["dry", "water"],
        "ignore": [-1],
        "split": {"train": ["USA_905409"], "test": ["Nigeria_812045"]},
    }  # fmt: skip
    recipe = apply_overrides(
        RECIPES["seamo_segmunich"],
        SMALL | {
            "data": str(folder / "USA_905409.npz"), "data_options": {"mapping": mapping}, "select": "paper",
            "views.tile": 256, "views.overlap": 0, "head_options": {"width": 16},
            "output": str(tmp_path / "run"), "epochs": 4, "batch_size": 2, "metric": "pixel_accuracy",
            "modalities": ["s1"],
        },
    )  # fmt: skip
    result = finetune(recipe)
    assert result["metrics"].keys() >= {"miou", "pixel_accuracy", "iou_water", "f1_dry"}
    label = np.load(folder / "Nigeria_812045.npz")["label"]
    most = max((label == 0).sum(), (label == 1).sum()) / (label >= 0).sum()
    assert result["value"] > most - 0.1

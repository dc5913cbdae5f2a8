"""A classifier is used at the size that it was scored at: its preprocessing resizes to it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rsbackbones as rsb
from rsbackbones.train.finetune import finetune, load_finetuned
from tests.train.finetune_setup import labelled, small_recipe


def test_a_fine_tuned_classifier_resizes_to_the_size_that_it_was_scored_at(tmp_path):
    data = labelled("classes", count=32)  # of 16 x 16 pixels
    changes = {"views__size": 32, "epochs": 2, "views__mixup": 0.0, "views__cutmix": 0.0}
    result = finetune(small_recipe(tmp_path / "run", **changes), data)
    best = tmp_path / "run" / "best"
    images = np.stack([data.read(int(i))["s2"] for i in data.splits["test"]])
    labels = data.labels[data.splits["test"]]
    file = best / "model.safetensors"
    for model in (
        load_finetuned(best),
        rsb.create_model("croma_vit_tiny", checkpoint=file, num_classes=None),
    ):
        preprocess = rsb.create_preprocess(model)
        assert "resized to 32 x 32" in repr(preprocess)
        inputs = preprocess({"s2": images})["s2"]
        model.input_size = None
        plain = rsb.create_preprocess(model)({"s2": images})["s2"]
        assert plain.shape[-2:] == (16, 16)
        expected = F.interpolate(plain, size=(32, 32), mode="bilinear", antialias=True)
        torch.testing.assert_close(inputs, expected)
        with torch.inference_mode():
            found = model({"s2": inputs}).argmax(1).numpy()
        assert (found == labels).mean() == pytest.approx(result["value"])

    # Folders of earlier versions state it beside the file only.
    about = json.loads((best / "about.json").read_text())
    assert about["size"] == 32
    assert rsb.create_model("croma_vit_tiny", checkpoint=file).input_size is None  # no head


def test_what_keeps_the_size_and_what_does_not(tmp_path):
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"], num_classes=3)
    assert model.input_size is None
    model.input_size = (64, 48)
    file = rsb.save_model(model, tmp_path / "a.safetensors")

    def loaded(**options):
        return rsb.create_model("croma_vit_tiny", checkpoint=file, **options).input_size

    assert loaded(num_classes=None) == loaded(num_classes=3) == (64, 48)
    assert loaded() is None  # features of images as they are
    assert loaded(num_classes=7) is None  # a new head
    assert loaded(num_classes=None, image_size=120) is None  # the user's own size
    series = torch.rand(2, 3, 12, 40, 40) * 3000
    assert rsb.create_preprocess(model)(series).shape == (2, 3, 12, 64, 48)

"""PASTIS-R as training data without labels: which patches, their images and dates, and their statistics."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.open import open_source, source_statistics
from rsbackbones.data.source import BadSample, EmptyImage
from rsbackbones.train.export import export
from rsbackbones.train.initialize import read_run
from rsbackbones.train.pretraining import pretrain
from tests.data.labelled.pastis_folder import MEANS, features_of, write_metadata, write_pastis
from tests.train.s4_setup import small_recipe


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_pastis(tmp_path_factory.mktemp("pastis"))


def test_the_training_folds_train(published):
    source = open_source(published)
    assert [source.describe(i) for i in range(len(source))] == ["100", "101", "102"]
    assert "3 of 5 patches, those of the folds 1, 2, 3 (split train)" in source.notes
    assert [len(open_source(published, split=split)) for split in ("val", "test", "all")] == [1, 1, 5]
    with pytest.raises(ValueError, match="split must be one of train, val, test, all, got 'fold 1'"):
        open_source(published, split="fold 1")


@pytest.mark.parametrize("orbit", ["ascending", "both"])
def test_images_are_those_of_the_files(published, orbit):
    source = open_source(published, orbit=orbit)
    stored = np.concatenate(
        [np.load(published / f"DATA_{k}/{k}_101.npy") for k in ("S1A", "S1D")[: 1 + (orbit == "both")]]
    )
    times = source.times(1, ["s1", "s2"])
    assert len(times["s1"]) == len(stored)
    assert len(times["s2"]) == 4
    for i in (0, len(stored) - 1):
        sample = source.read_images(1, {"s1": i})
        np.testing.assert_array_equal(sample.images["s1"], stored[i])
        assert sample.dates["s1"].tolist() == [times["s1"][i].astype("datetime64[D]").astype(int)]
    optical = source.read_images(1, {"s2": 2}).images["s2"]
    np.testing.assert_array_equal(optical, np.load(published / "DATA_S2/S2_101.npy")[2])
    whole, order = source.read(1), np.argsort(times["s1"], kind="stable")
    np.testing.assert_array_equal(whole.images["s1"], stored[order])
    assert (np.diff(whole.dates["s1"]) > 0).all()


def test_statistics_are_the_mean_over_the_training_folds(published):
    found = source_statistics(open_source(published))
    np.testing.assert_allclose([mean for mean, _ in found["s2"].values()], MEANS["S2"] + 2)
    both = source_statistics(open_source(published, orbit="both"))["s1"]["VV"]
    assert both[0] == pytest.approx((MEANS["S1A"][0] + MEANS["S1D"][0]) / 2 + 2)


def test_unusable_patches_and_images_are_bad_samples(tmp_path):
    folder = write_pastis(tmp_path)
    features = features_of(folder)
    features[0]["properties"]["dates-S2"] = {"0": 20190101}
    write_metadata(folder, features)
    images = np.load(folder / "DATA_S2/S2_101.npy")
    images[1, :, 0, 0] = -10000
    np.save(folder / "DATA_S2/S2_101.npy", images)
    source = open_source(folder, nodata=-10000)
    with pytest.raises(BadSample, match="100: S2: 1 dates and 3 images"):
        source.times(0, ["s2"])
    with pytest.raises(EmptyImage, match="s2 holds -10000"):
        source.read_images(1, {"s2": 1})
    assert source.read(1).valid["s2"].tolist() == [True, False, True, True]


def test_pretraining_on_the_folder(published, tmp_path):
    changes = {"steps": 1, "batch_size": 2, "data__size": 8, "data__crop": [8, 8], "ema": 0.5}
    pretrain(small_recipe(published, tmp_path / "run", **changes))
    assert (tmp_path / "run/reconstruction.png").stat().st_size > 0
    recipe, record, objective, _ = read_run(tmp_path / "run")
    assert recipe.data.statistics["s1"]["VH"][0] == pytest.approx(MEANS["S1A"][1] + 2)
    mean = dict(zip(objective.backbone.bands["s2"], objective.backbone.inputs["s2"].mean, strict=True))
    assert mean["B02"] == pytest.approx(MEANS["S2"][0] + 2)
    assert any("folds 1, 2, 3" in note for source in record["sources"] for note in source["notes"])
    # The average of the weights, and of the running statistics, is what is exported.
    export(tmp_path / "run", tmp_path / "weights", tag="t")
    file = tmp_path / "weights/s4_unet3d_tiny.t.safetensors"
    exported = rsb.create_model("s4_unet3d_tiny", checkpoint=file).state_dict()
    for name, x in objective.backbone.state_dict().items():
        assert torch.equal(exported[name], x), name
    moved = exported["second.first.norm.statistics.s1.running_var"]
    assert not torch.equal(moved, torch.ones_like(moved))

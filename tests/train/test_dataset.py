"""Samples: normalized as for inference, the same in every batch, and replaced where they are bad."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.source import BadSample
from rsbackbones.train.dataset import DataStream, TrainingSet, Views
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.pretraining import PretrainRun, pretrain
from tests.train.training import BANDS, SIDE, curve, small_recipe, write_data

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def keys(count, source=0, epoch=0):
    return [(epoch, source, i) for i in range(count)]


def draw(generator, modalities, grid):
    return {"noise": torch.rand(grid[0] * grid[1], generator=generator)}


def set_of(folder, images, views, *, preprocess=None, seed=0):
    """A set of one file that holds ``images``."""
    np.savez(folder / "images.npz", **images)
    bands = {m: BANDS[m] for m in images}
    source = NpzSource(NpzFile(path=str(folder / "images.npz"), images={m: {m: b} for m, b in bands.items()}))
    model = rsb.create_model("croma_vit_tiny", modalities=tuple(images))
    preprocess = preprocess or rsb.create_preprocess(model, bands=bands)
    use = DataStream(source=source, preprocess=preprocess, views=views)
    return TrainingSet([use], stride=8, sample_noise=draw, seed=seed), model


def test_pixels_are_normalized_as_for_inference(data, tmp_path):
    held = np.load(data / "paired.npz")
    images = {"s2": held["s2"][:4], "s1": held["s1"][:4]}
    views = Views(crop=(32, 32), size=32, flips=False, rot90=False)
    dataset, model = set_of(tmp_path, images, views)
    expected = rsb.create_preprocess(model, bands=BANDS)(images)
    batch = dataset.__getitems__(keys(4))
    for m in ("s2", "s1"):
        assert torch.equal(batch.images[m], expected[m])
        assert batch.bands[m] == BANDS[m]
    # What a run makes is this, too.
    run = PretrainRun(
        small_recipe(data, data__mixup=0, data__crop=(32, 32), data__flips=False, data__rot90=False), ALONE
    )
    assert torch.equal(run.dataset.__getitems__(keys(4)).images["s2"], expected["s2"])


def test_both_sensors_show_the_same_place(tmp_path):
    """Pixel values are coordinates: after cut, resize, turn and mixup both sensors agree on them."""
    rows, columns = np.mgrid[0:40, 0:48].astype(np.float32)
    place = np.arange(6, dtype=np.float32)[:, None, None]
    field = rows + 100 * columns + 0.01 * place
    images = {m: np.broadcast_to(field[:, None], (6, len(BANDS[m]), 40, 48)).copy() for m in ("s2", "s1")}
    views = Views(crop=(16, 40), size=16, mixup=0.3)

    class Plain:
        """Leaves values as they are."""

        def __init__(self):
            self.specs = {m: rsb.create_model("croma_vit_tiny").inputs[m] for m in ("s2", "s1")}

        def __call__(self, given):
            return {m: torch.from_numpy(np.ascontiguousarray(x)) for m, x in given.items()}

    dataset, _ = set_of(tmp_path, images, views, preprocess=Plain())
    batch = dataset.__getitems__(keys(6))
    assert torch.equal(batch.images["s2"][:, :2], batch.images["s1"])
    assert len({float(x[0, 0, 0]) for x in batch.images["s2"]}) == 6


def test_a_sample_does_not_depend_on_its_batch(data):
    dataset = PretrainRun(small_recipe(data), ALONE).dataset
    whole = dataset.__getitems__(keys(8))
    for part in (keys(8)[3:5], keys(8)[::-1], keys(8)[6:]):
        batch = dataset.__getitems__(part)
        for i, key in enumerate(part):
            for m in ("s2", "s1"):
                assert torch.equal(batch.images[m][i], whole.images[m][key[2]])
            for name, value in batch.noise.items():
                assert torch.equal(value[i], whole.noise[name][key[2]])
            assert batch.names[i] == whole.names[key[2]]
    torch.manual_seed(5)  # nor on the global generators
    np.random.seed(5)
    assert torch.equal(dataset.__getitems__(keys(8)).images["s2"], whole.images["s2"])


def test_every_epoch_and_seed_sees_other_views(data):
    runs = [PretrainRun(small_recipe(data, seed=seed), ALONE).dataset for seed in (0, 1)]
    seen = [d.__getitems__(keys(1, epoch=e)) for d in runs for e in (0, 1)]
    assert len({float(b.images["s2"].double().sum()) for b in seen}) == 4
    assert len({float(next(iter(b.noise.values())).double().sum()) for b in seen}) == 4
    assert len({b.names for b in seen}) == 1


def test_mixup_mixes_two_places(tmp_path):
    values = np.array([300, 900, 1500], dtype=np.uint16)
    images = {"s2": np.broadcast_to(values[:, None, None, None], (3, 12, 16, 16)).copy()}
    views = Views(crop=(8, 16), size=8, mixup=0.3)
    dataset, _ = set_of(tmp_path, images, views)
    plain, _ = set_of(tmp_path, images, replace(views, mixup=0.0))
    pure = {float(v): None for v in plain.__getitems__(keys(3)).images["s2"][:, 0, 0, 0]}
    assert len(pure) == 3
    mixed = dataset.__getitems__([(e, 0, 0) for e in range(60)]).images["s2"][:, 0, 0, 0]
    assert min(pure) - 1e-6 <= mixed.min() < mixed.max() <= max(pure) + 1e-6
    assert len(set(mixed.tolist())) > 20
    for image in dataset.__getitems__(keys(3)).images["s2"]:
        assert image.std(dim=(1, 2)).max() < 1e-5  # both places are constant


def bad_images(count, bad):
    images = np.full((count, 2, 16, 16), -10.0, dtype=np.float32)
    images += np.arange(count, dtype=np.float32)[:, None, None, None] / 10
    images[list(bad)] = np.nan
    return {"s1": images}


def test_bad_samples_are_replaced_by_the_next_and_named(tmp_path):
    views = Views(crop=(16, 16), size=16, flips=False, rot90=False)
    dataset, _ = set_of(tmp_path, bad_images(6, (1, 2, 5)), views)
    batch = dataset.__getitems__(keys(6))
    shown = batch.images["s1"][:, 0, 0, 0]
    assert shown.isfinite().all()
    assert shown[1] == shown[2] == shown[3]
    assert shown[5] == shown[0]  # the next of the last is the first
    assert [name for name, _ in batch.skipped] == [f"images: images.npz[{i}]" for i in (1, 2, 5)]
    assert all("without data" in why for _, why in batch.skipped)
    assert batch.names[1] == batch.names[3] == "images: images.npz[3]"


def test_too_many_bad_samples_in_a_row_are_an_error(tmp_path):
    views = Views(crop=(16, 16), size=16)
    dataset, _ = set_of(tmp_path, bad_images(80, range(10, 75)), views)
    assert dataset.__getitems__([(0, 0, 12)]).names == ("images: images.npz[75]",)
    with pytest.raises(BadSample, match=r"64 samples in a row.*images\.npz\[73\]"):
        dataset.__getitems__([(0, 0, 10)])
    small, _ = set_of(tmp_path, bad_images(3, range(3)), views)
    with pytest.raises(BadSample, match="3 samples in a row"):
        small.__getitems__([(0, 0, 0)])


def test_images_smaller_than_the_crop_are_bad(tmp_path):
    dataset, _ = set_of(tmp_path, bad_images(2, ()), Views(crop=(17, 20), size=16))
    with pytest.raises(BadSample, match="16 pixels are less than the smallest crop, 17"):
        dataset.__getitems__(keys(1))


def test_loader_workers_change_nothing(data, tmp_path):
    for workers in (0, 2):
        pretrain(small_recipe(data, tmp_path / str(workers), data__workers=workers, epochs=1))
    assert curve(tmp_path / "0") == curve(tmp_path / "2")


# -- views --------------------------------------------------------------------------------------------------


def two_views(data, **options):
    """A set of two views of every sample, and one of one, of the same sources."""
    run = PretrainRun(small_recipe(data, **options), ALONE)
    one = run.dataset
    two = TrainingSet(
        one.streams, stride=8, sample_noise=one.sample_noise, views=("query", "key"), seed=one.seed
    )
    return two, one


def test_views_are_drawn_each_for_itself(data):
    two, one = two_views(data, data__mixup=0)
    batch, single = two.__getitems__(keys(8)), one.__getitems__(keys(8))
    assert batch.images == {}
    assert set(batch.views) == {"query", "key"}
    assert len(batch) == 8
    for m in ("s2", "s1"):
        # The first is what a sample is without views; the second is another crop of the same place.
        assert torch.equal(batch.views["query"][m], single.images[m])
        assert batch.views["key"][m].shape == single.images[m].shape
        assert not any(torch.equal(*pair) for pair in zip(*(v[m] for v in batch.views.values()), strict=True))
    assert {n: x.sum() for n, x in batch.noise.items()} == {n: x.sum() for n, x in single.noise.items()}
    assert (batch.names, batch.bands) == (single.names, single.bands)
    whole = two_views(data, data__mixup=0, data__crop=(SIDE, SIDE), data__flips=False, data__rot90=False)[0]
    views = whole.__getitems__(keys(8)).views
    assert torch.equal(views["query"]["s2"], views["key"]["s2"])  # nothing is left that could differ


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_views_do_not_depend_on_the_batch(data, mixup):
    two, _ = two_views(data, data__mixup=mixup)
    whole = two.__getitems__(keys(8))
    for part in (keys(8)[3:5], keys(8)[::-1]):
        batch = two.__getitems__(part)
        for i, key in enumerate(part):
            for view in ("query", "key"):
                assert torch.equal(batch.views[view]["s2"][i], whole.views[view]["s2"][key[2]])
    assert not torch.equal(whole.views["query"]["s2"], whole.views["key"]["s2"])
    moved = whole.to(torch.device("meta"))
    assert moved.views["key"]["s2"].is_meta
    assert moved.noise["s2_noise"].is_meta
    assert set(whole.content()["views"]) == {"query", "key"}

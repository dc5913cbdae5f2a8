"""Series in training: dates and masks from the data to the model, of unequal length, in any batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.series import DatedImages, model_arguments, read_series, stack_dated
from rsbackbones.data.source import Sample
from rsbackbones.eval.dense import predict, predict_tiled
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.transform import dated_transform
from rsbackbones.train.dataset import DataStream, TrainingSet, Views
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.finetune import finetune, load_finetuned
from rsbackbones.train.finetune.run import FinetuneRun, build_model
from rsbackbones.train.pretraining import PretrainRun, pretrain
from tests.forked import spawn
from tests.models.examples import small
from tests.train.series_runs import (
    SIDE,
    SeasonObjective,
    curves,
    labelled_series,
    series_recipe,
    series_tuning,
    work,
    write_series,
)
from tests.train.training import BANDS

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("series"))


# -- the batch ------------------------------------------------------------------------------------------


def batch_of(shape=(2, 3, 4, 8, 6), **changes):
    return Batch(images={"s2": torch.zeros(shape)}, bands={"s2": ("B02",) * shape[-3]}, noise={}, **changes)


@pytest.mark.parametrize("mask", [(2, 3), (2, 8, 6), (2, 3, 8, 6)])
def test_a_batch_takes_masks_of_images_and_of_pixels(mask):
    batch = batch_of(valid={"s2": torch.ones(mask, dtype=torch.bool)}, dates={"s2": torch.ones(2, 3).long()})
    moved = batch.to(torch.device("meta"))
    assert moved.dates["s2"].is_meta
    assert moved.valid["s2"].is_meta
    assert batch.content()["dates"] is batch.dates


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"valid": {"s2": torch.ones(2, 4, dtype=torch.bool)}}, r"booleans.*\[B, T\] or.*\[2, 4\]"),
        ({"valid": {"s2": torch.ones(2, 3)}}, r"booleans.*float32"),
        ({"valid": {"s1": torch.ones(2, 3, dtype=torch.bool)}}, r"valid\['s1'\].*s2 \[2, 3, 4, 8, 6\]"),
        ({"dates": {"s2": torch.zeros(2, 3)}}, "whole days since 1970-01-01"),
        ({"dates": {"s2": torch.zeros(3, 2).long()}}, r"\[B, T\].*\[3, 2\]"),
        ({"shape": (2, 4, 8, 6), "dates": {"s2": torch.zeros(2, 1).long()}}, "of a series"),
        ({"shape": (2, 4, 8, 6), "valid": {"s2": torch.ones(2, 4, dtype=torch.bool)}}, r"\[B, H, W\] of"),
    ],
)
def test_dates_and_masks_of_another_shape_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        batch_of(**changes)


# -- samples of pretraining -----------------------------------------------------------------------------


class Varied:
    """A source of places with 2 to 5 dates; a place's images hold its number and that of the date."""

    name, bands, frames, block, notes = "varied", {"s2": BANDS["s2"]}, 5, 1, ()

    def __len__(self):
        return 6

    def describe(self, place):
        return str(place)

    def read(self, place, frame=None):
        times = 2 + place % 4
        images = np.full((times, 12, SIDE, SIDE), 0, np.float32)
        images += (500 + 100 * place + 10 * np.arange(times, dtype=np.float32))[:, None, None, None]
        valid = np.ones(times, bool)
        if place == 3:
            images[1], valid[1] = np.nan, False
        return Sample(
            images={"s2": images}, dates={"s2": 18000 + 100 * place + np.arange(times)}, valid={"s2": valid}
        )


def varied(**views):
    model = small("toy_series")
    views = Views(**({"crop": (16, SIDE), "size": 16} | views))
    preprocess = rsb.create_preprocess(model, check=False)
    stream = DataStream(source=Varied(), preprocess=preprocess, views=views, seasons="all")
    return TrainingSet([stream], stride=2, sample_noise=lambda *_: {}, seed=0), model.eval()


def keys(places):
    return [(0, 0, place) for place in places]


def arguments(batch):
    return model_arguments(batch.dates, batch.valid, tuple(batch.images))


def test_series_of_unequal_length_are_padded_and_masked():
    dataset, _ = varied()
    batch = dataset.__getitems__(keys([0, 1, 3]))
    assert batch.images["s2"].shape == (3, 5, 12, 16, 16)
    expected = torch.arange(5) < torch.tensor([2, 3, 5])[:, None]
    expected[2, 1] = False
    assert torch.equal(batch.valid["s2"], expected)
    assert not batch.images["s2"][~expected].any()
    assert batch.images["s2"].isfinite().all()
    for row, (place, times) in enumerate([(0, 2), (1, 3), (3, 5)]):
        days = 18000 + 100 * place + torch.arange(times)
        assert torch.equal(batch.dates["s2"][row, :times], days)
    whole = dataset.__getitems__(keys([2]))
    assert whole.valid == {}
    assert whole.images["s2"].shape[1] == 4


def test_a_series_gives_the_same_alone_and_beside_any_neighbors():
    dataset, model = varied()
    places = [0, 1, 2, 3, 4, 5]
    with torch.no_grad():
        together = {}
        for order in (places, places[::-1], [4, 1, 3]):
            batch = dataset.__getitems__(keys(order))
            together.update(zip(order, model(batch.images, **arguments(batch)), strict=True))
            for place, embedding in zip(order, model(batch.images, **arguments(batch)), strict=True):
                alone = dataset.__getitems__(keys([place]))
                assert alone.images["s2"].shape[1] == 2 + place % 4
                (expected,) = model(alone.images, **arguments(alone))
                torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=0)
    assert len({float(x.sum()) for x in together.values()}) == 6


def test_every_image_of_a_series_has_the_same_crop():
    """Pixel values are coordinates; only a number per date is added."""

    class Field(Varied):
        def read(self, place, frame=None):
            rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
            field = 500 + 10 * rows + columns
            images = np.stack([np.broadcast_to(field + 5 * t, (12, SIDE, SIDE)) for t in range(3)])
            return Sample(images={"s2": images})

    class Plain:
        """Leaves values as they are."""

        def __init__(self):
            self.specs = {"s2": small("toy_series").inputs["s2"]}

        def __call__(self, given):
            return {m: torch.from_numpy(np.ascontiguousarray(x)) for m, x in given.items()}

    views = Views(crop=(16, 24), size=16)
    stream = DataStream(source=Field(), preprocess=Plain(), views=views, seasons="all")
    batch = TrainingSet([stream], stride=2, sample_noise=lambda *_: {}, seed=0).__getitems__(keys([0, 1]))
    first, second, third = batch.images["s2"].unbind(1)
    torch.testing.assert_close(second - first, third - second, atol=1e-3, rtol=0)
    torch.testing.assert_close(second - first, torch.full_like(first, 5), atol=1e-3, rtol=0)
    assert batch.dates == {}
    assert not torch.equal(batch.images["s2"][0], batch.images["s2"][1])


def test_series_of_all_dates_are_not_mixed_nor_cropped_apart():
    for views in ({"mixup": 0.3}, {"region": "partial"}):
        with pytest.raises(ValueError, match=r"data\.region=same data\.mixup=0"):
            varied(**views)


@pytest.mark.parametrize("length", ["all", 4, 2, 1])
def test_dates_of_a_file_reach_the_batch(folder, length):
    run = PretrainRun(series_recipe(folder, objective=SeasonObjective(length=length)), ALONE)
    with np.load(folder / "series.npz") as held:
        days = held["dates"].astype("datetime64[D]").astype(np.int64)
        present = held["s2"].any(axis=(2, 3, 4))
    batch = run.dataset.__getitems__([(0, 0, place) for place in range(6)])
    times = 4 if length == "all" else length
    assert batch.dates["s2"].shape == (6, times)
    for place, row in enumerate(batch.dates["s2"].tolist()):
        where = [days[place].tolist().index(day) for day in row]
        assert where == sorted(where)
        mask = batch.valid["s2"][place].tolist() if batch.valid else [True] * times
        assert mask == present[place][where].tolist()
    if length in ("all", 4):
        assert not present[:6].all()
        assert batch.valid


def test_dates_of_single_images_and_of_mixtures_are_not_in_the_batch(folder):
    single = PretrainRun(series_recipe(folder, objective=SeasonObjective(length=None)), ALONE)
    assert single.dataset.__getitems__([(0, 0, 0)]).dates == {}
    recipe = series_recipe(folder, objective=SeasonObjective(length=4))
    mixed = PretrainRun(replace(recipe, data=replace(recipe.data, mixup=0.3)), ALONE)
    assert mixed.dataset.__getitems__([(0, 0, 0)]).dates == {}


def test_a_run_over_series_trains_and_says_what_it_saw(folder, tmp_path):
    import json

    out = tmp_path / "run"
    assert pretrain(series_recipe(folder, output=out, epochs=10)).status == "finished"
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert json.loads((out / "recipe.json").read_text())["sources"][0]["seasons"] == "all"


def test_two_processes_train_as_one(tmp_path):
    write_series(tmp_path)
    spawn(work, args=(2, str(tmp_path)), nprocs=2)
    two = torch.load(tmp_path / "results.pt", weights_only=True)
    one = curves(Path(tmp_path), ALONE)
    assert two.keys() == one.keys()
    for name, curve in one.items():
        np.testing.assert_allclose(two[name], curve, rtol=2e-5, atol=1e-6, err_msg=name)
        assert len({loss for loss, _ in curve}) == len(curve)


# -- fine-tuning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_what_shows_in_dates_alone_is_learned_from_them(task, tmp_path):
    scores = {}
    for dates in (True, False):
        data = labelled_series(task, count=32, dates=dates)
        recipe = series_tuning(tmp_path / str(dates), task, epochs=8, optim__base_lr=1.0)
        scores[dates] = finetune(recipe, data)["value"]
    assert scores[True] > 0.95
    assert scores[False] < 0.8


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_neighbors_in_a_batch_change_nothing(task, tmp_path):
    data = labelled_series(task)
    run = FinetuneRun(series_tuning(tmp_path / "run", task, views__label_smoothing=0), ALONE, data)
    model = run.objective.model.eval()
    order = list(range(12))
    outputs = {}
    with torch.no_grad():
        for places in (order, order[::-1], *([place] for place in order)):
            batch = run.dataset.__getitems__([(0, 0, place) for place in places])
            assert batch.images["s2"].isfinite().all()
            found = model(batch.images, **arguments(batch))
            for place, output in zip(places, found, strict=True):
                outputs.setdefault(place, []).append(output)
    for each in outputs.values():
        for other in each[1:]:
            torch.testing.assert_close(other, each[0], atol=1e-5, rtol=0)
    assert len({float(each[0].sum()) for each in outputs.values()}) == 12


def test_a_label_map_turns_with_all_images_of_its_series():
    data = labelled_series("pixels")
    plain, maps = data.read, np.zeros((SIDE, SIDE), np.int64)
    maps[:8, :4] = 1

    def read(index):
        sample = plain(index)
        sample["s2"][:, :, maps == 1] += 2000
        return {**sample, "label": maps.copy()}

    recipe = series_tuning(task="pixels")
    data = replace(data, read=read)
    samples = FinetuneRun(recipe, ALONE, data).dataset
    batch = samples.__getitems__([(epoch, 0, 1) for epoch in range(12)])
    for image, label in zip(batch.images["s2"], batch.target, strict=True):
        for date in image:
            assert date[0][label == 1].min() > date[0][label == 0].max()
    assert len({tuple(label.nonzero()[0].tolist()) for label in batch.target}) > 2


def test_tiles_of_a_series_have_its_dates(tmp_path):
    """Of one tile the probabilities are those of the whole image; and a run over tiles learns from dates."""
    data = labelled_series("pixels")
    model = build_model(series_tuning(task="pixels"), data).eval()
    sample = dated_transform(model, data)(data.read(0))
    batch = stack_dated([sample])
    series = {"dates": sample.dates, "valid": sample.valid}
    with torch.no_grad():
        whole = model(batch.images, **arguments(batch))[0].softmax(0)
        tiled = predict_tiled(model, sample.images, tile=SIDE, overlap=0, **series)
        torch.testing.assert_close(tiled, whole)
        undated = predict_tiled(model, sample.images, tile=SIDE, overlap=0)
        assert not torch.allclose(undated, whole, atol=1e-4)
    options = {"views__tile": 16, "views__overlap": 0, "epochs": 6, "optim__base_lr": 1.0}
    assert finetune(series_tuning(tmp_path / "run", "pixels", **options), data)["value"] > 0.95
    best = load_finetuned(tmp_path / "run" / "best")
    counts = predict(best, data, "test", batch_size=4)
    assert np.array_equal(predict(best, data, "test", batch_size=1), counts)
    assert np.array_equal(predict(best, data, "test", tile=SIDE, overlap=0), counts)


def test_a_saved_model_takes_dates(tmp_path):
    data = labelled_series("pixels")
    finetune(series_tuning(tmp_path / "run", "pixels", epochs=2), data)
    model = load_finetuned(tmp_path / "run" / "best")
    sample = dated_transform(model, data)(data.read(0))
    batch = stack_dated([sample])
    with torch.no_grad():
        found = model(batch.images, **arguments(batch))
        assert found.shape == (1, 2, SIDE, SIDE)
        assert found.isfinite().all()
        assert not torch.allclose(model(batch.images, valid=batch.valid), found, atol=1e-5)


def test_what_does_not_go_with_series_is_said(tmp_path):
    data = labelled_series()
    with pytest.raises(TrainingError, match=r"series of different dates cannot be mixed: views\.mixup=0"):
        finetune(series_tuning(tmp_path / "a", views__mixup=0.2), data)
    single = series_tuning(tmp_path / "b", model="croma_vit_tiny", overrides={
        "dim": 32, "depth": 2, "num_heads": 4, "bands": {"s2": list(data.bands["s2"]), "s1": ["VV", "VH"]},
    })  # fmt: skip
    with pytest.raises(ValueError, match="series holds series, and croma_vit_tiny encodes single images"):
        finetune(single, data)
    with pytest.raises(ValueError, match=r"change is between two images: \[2, C, H, W\]"):
        dated_transform(small("toy_series", modalities=("s2",)), replace(data, task="change"))
    model = small("toy_series", bands={"s2": data.bands["s2"]})
    for refused in (lambda: encode(model, data), lambda: statistics_features(data)):
        with pytest.raises(ValueError, match="features of frozen models are computed from single images"):
            refused()


# -- reading and stacking -------------------------------------------------------------------------------


def sample_of(**changes):
    images = np.full((3, 2, 4, 4), 5.0, np.float32)
    return {"s2": images, "dates": {"s2": np.array([10, 20, 30])}} | changes


def test_missing_images_of_a_sample():
    broken = sample_of()["s2"].copy()
    broken[1, 0, 0, 0] = np.nan
    stack, days, valid = read_series(sample_of(s2=broken, valid={"s2": np.array([True, True, False])}), "s2")
    assert valid.tolist() == [True, False, False]
    assert days.tolist() == [10, 20, 30]
    assert not stack[1:].any()
    times = np.array(["1970-01-11", "NaT", "1970-01-31"], "datetime64[D]")
    _, days, _ = read_series(sample_of(s2=broken, dates={"s2": times}), "s2")
    assert days.tolist() == [10, 0, 30]
    assert read_series({"s2": broken}, "s2")[1] is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dates": {"s2": np.array([10, np.nan, 30])}}, "image 1 has no date and others have"),
        ({"dates": {"s2": np.array([10, 20])}}, "one date for each of 3 images"),
        ({"dates": {"s2": np.array([10, 20.5, 30])}}, "whole days"),
        ({"dates": {"s2": np.array(["a", "b", "c"])}}, "datetime64 or whole days"),
        ({"valid": {"s2": np.ones(3)}}, r"booleans \[T\]"),
        ({"valid": {"s2": np.zeros(3, bool)}}, "no usable image at any of 3 dates"),
        ({"s2": np.ones((2, 4, 4))}, r"a series is \[T, C, H, W\]"),
    ],
)
def test_a_sample_that_cannot_be_read_as_a_series(changes, match):
    with pytest.raises(ValueError, match=match):
        read_series(sample_of(**changes), "s2")


def test_samples_that_cannot_be_one_batch():
    def images(*shape, **more):
        return DatedImages(images={"s2": torch.zeros(shape)}, **more)

    dated = images(3, 2, 4, 4, dates={"s2": torch.arange(3)})
    with pytest.raises(ValueError, match="must all have the dates of the same modalities, got s2; none"):
        stack_dated([dated, images(3, 2, 4, 4)])
    with pytest.raises(ValueError, match="images of one size"):
        stack_dated([images(3, 2, 4, 4), images(3, 2, 4, 8)])
    with pytest.raises(ValueError, match="images of one size"):
        stack_dated([images(2, 4, 4), images(3, 2, 4, 4)])
    uneven = [
        DatedImages(images={"s2": torch.zeros(a, 2, 4, 4), "s1": torch.zeros(b, 2, 4, 4)})
        for a, b in ((3, 2), (2, 3))
    ]
    with pytest.raises(ValueError, match="same timesteps in all modalities"):
        stack_dated(uneven)


def test_a_timestep_has_the_date_of_an_image_that_is_there():
    dates = {"s2": torch.tensor([[0, 20, 0]]), "s1": torch.tensor([[12, 22, 0]])}
    valid = {"s2": torch.tensor([[False, True, False]]), "s1": torch.tensor([[True, True, False]])}
    # A missing Sentinel-2 image has no date; the model still sees Sentinel-1 on day 12.
    found = model_arguments(dates, valid, ("s2", "s1"))["dates"]
    assert found[:, :2].tolist() == [[12, 20]]
    assert model_arguments(dates, valid, ("s1", "s2"))["dates"][:, :2].tolist() == [[12, 22]]
    assert model_arguments(dates, {}, ("s2", "s1"))["dates"] is dates["s2"]
    assert "dates" not in model_arguments({}, valid, ("s2", "s1"))

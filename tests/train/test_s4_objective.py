"""S4's pretraining: its steps by hand, what trains what, and that runs are what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsbackbones.data.pack import pack
from rsbackbones.data.series_folder import SeriesFolder, write_series
from rsbackbones.train import TrainingError, pretrain
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.initialize import build_objective, with_statistics
from rsbackbones.train.objectives.s4 import S4Objective, photometric_view
from rsbackbones.train.objectives.space_time import space_time_contrast
from rsbackbones.train.pretraining import stages_of
from tests.reference import s4_plain
from tests.train.ranks import steps_of
from tests.train.s4_setup import BANDS, SIDE, small_recipe, write_set
from tests.train.training import contents, curve

pytestmark = pytest.mark.usefixtures("without_pictures")
ALONE = DistributedContext(0, 1, torch.device("cpu"))
MODELS = ["s4_unet3d_tiny", "s4_unet2d"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("s4") / "set")


def run_of(folder, **changes):
    return stages_of(small_recipe(folder, **changes))[-1].build(ALONE)


def gradients(run):
    """The parameters by whether a step gives them a gradient."""
    batches = run.batches(0, 1)
    parts, _ = run.forward_backward([next(batches)])
    batches.close()
    named = dict(run.objective.named_parameters())
    return {n for n, p in named.items() if p.grad is not None and p.grad.any()}, set(named), parts


def test_five_steps_by_hand(tmp_path):
    """Adam at 1e-3 on the plain losses, in float64."""
    rng = np.random.default_rng(3)
    for i in range(4):
        write_series(
            tmp_path, f"p{i}", bands=BANDS, dates={m: np.arange(4) for m in BANDS},
            images={m: rng.normal(-12, 4, (4, len(names), 8, 8)).astype(np.float32) if m == "s1" else
                    rng.integers(500, 3000, (4, len(names), 8, 8)) for m, names in BANDS.items()},
        )  # fmt: skip
    run = run_of(tmp_path, data__size=8, data__crop=[8, 8], batch_size=2)
    plain = {n: x.detach().double().requires_grad_() for n, x in run.objective.named_parameters()}
    adam = torch.optim.Adam(plain.values(), lr=1e-3)
    batches = run.batches(0, 5)
    for step in range(5):
        batch = next(batches)
        parts, norm = run.forward_backward([batch])
        run.update([batch], run.step(step), norm)
        assert not batch.valid
        expected = s4_plain.losses(plain, *(batch.images[m].double() for m in ("s2", "s1")))
        adam.zero_grad()
        expected[2].backward()
        adam.step()
        found = [parts[name].item() for name in ("contrastive", "reconstruction", "loss")]
        assert found == pytest.approx([x.item() for x in expected], abs=2e-4)
    batches.close()


@pytest.mark.parametrize("recipe", MODELS)
def test_gradients_reach_every_parameter(folder, recipe):
    reached, every, parts = gradients(run_of(folder, recipe=recipe))
    biases = {n for n in every if n.endswith((".conv.bias", "convs.0.bias", "convs.1.bias"))}
    assert every - reached <= biases  # which a BatchNorm takes away
    assert {n.split(".")[2] for n in reached if n.startswith("backbone.stems")} == {"s2", "s1"}
    assert parts["loss"].item() == pytest.approx(
        (parts["contrastive"] + 0.01 * parts["reconstruction"]).item()
    )


@pytest.mark.parametrize("anchor", ["s2", "s1"])
def test_either_loss_alone_trains_its_own_part(folder, anchor):
    other = {"s2": "s1", "s1": "s2"}[anchor]
    common = {"overrides__inference_modality": anchor}
    run = run_of(folder, objective__losses="reconstruction", **common)
    reached, _, parts = gradients(run)
    assert not any(n.startswith((f"backbone.stems.{other}", "projection")) for n in reached)
    assert {f"backbone.stems.{anchor}.first.conv.weight", "reconstruction.weight"} < reached
    assert parts["loss"] == parts["reconstruction"]
    assert run.objective.usage_note() == f"The stem of {other} was not trained: it is random."
    run = run_of(folder, objective__losses="contrastive", **common)
    reached, _, parts = gradients(run)
    assert not any(n.startswith(("backbone.decoders", "reconstruction")) for n in reached)
    assert {f"backbone.stems.{m}.first.conv.weight" for m in ("s2", "s1")} < reached
    assert "reconstruction" not in parts


def test_two_views_of_one_sensor(folder):
    run = run_of(folder, objective__losses="contrastive", objective__single="s1")
    assert run.objective.backbone.modalities == ("s1",)
    reached, _, parts = gradients(run)
    assert "backbone.stems.s1.first.conv.weight" in reached
    assert 0 < parts["contrastive"].item() < np.log(6 * 16)
    with pytest.raises(ValueError, match=r"objective.losses=contrastive as well"):
        small_recipe(folder, objective__single="s1")


def test_views_keep_the_places_of_pixels():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 8, 8).repeat_interleave(2, -1)
    views = [photometric_view(x, seed) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.allclose(views[0], views[2], atol=0.1)
    for view in views:
        for band in range(2):
            assert torch.corrcoef(torch.stack((view[:, band].flatten(), x[:, band].flatten())))[0, 1] > 0.98


def test_sampled_negatives_approximate_the_loss(folder):
    torch.manual_seed(0)
    z = [torch.randn(2, 8, 2, 4, 4, requires_grad=True) for _ in range(2)]
    many = space_time_contrast(*z, sampled=(1000, (1, 2)), chunk=7)
    rows = [torch.nn.functional.normalize(x.flatten(2), dim=1) for x in z]
    similar = torch.einsum("bdi,bdj->bij", *rows).exp().square()  # exp(s / 0.5)
    own = similar.diagonal(dim1=1, dim2=2)
    # The sum over n negatives is n / (P - 1) times that over all P - 1, nearly.
    expected = [((own + 1000 / 31 * (similar.sum(dim) - own)) / own).log().mean() for dim in (1, 2)]
    assert many.item() == pytest.approx(torch.stack(expected).mean().item(), abs=0.02)
    few = [space_time_contrast(*z, sampled=(5, (1, 2)), chunk=chunk) for chunk in (None, 3)]
    torch.testing.assert_close(*few)
    few[0].backward()
    assert all(x.grad.isfinite().all() for x in z)
    parts = gradients(run_of(folder, objective__sampled=5))[2]
    assert "contrastive_approximate" in parts
    assert "contrastive" not in parts


def test_missing_images_have_no_part_in_the_losses(folder):
    run = run_of(folder)
    batch = next(iter(run.batches(0, 1)))
    assert batch.valid
    losses = [run.objective(b)["loss"].item() for b in (batch, _garbage(batch))]
    assert losses[0] == losses[1]


def _garbage(batch):
    images = {m: x.masked_fill(~batch.valid[m][..., None, None, None], 7.0) if m in batch.valid else x
              for m, x in batch.images.items()}  # fmt: skip
    return replace(batch, images=images)


def test_bfloat16_losses_are_float32(folder):
    run = run_of(folder, precision="bf16")
    batch = next(iter(run.batches(0, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        parts = run.objective(batch)
    assert {x.dtype for x in parts.values()} == {torch.float32}


def test_passes_differ_from_one_batch(folder):
    """Two passes of two series have other statistics of BatchNorm than one of four: losses differ by 1 %."""
    one, two = (steps_of(small_recipe(folder, accumulate=n), ALONE, 1)[0][0][0] for n in (1, 2))
    assert 1e-4 < abs(one - two) / one < 0.1


def test_stop_and_resume_is_the_unbroken_run(folder, tmp_path):
    pretrain(small_recipe(folder, tmp_path / "unbroken"))
    for steps in (2, 5):
        pretrain(small_recipe(folder, tmp_path / "cut", max_steps=steps))
    assert curve(tmp_path / "cut") == curve(tmp_path / "unbroken")
    held = contents(tmp_path / "cut", 5)
    assert {n.rsplit(".", 1)[-1] for n in held if ".statistics." in n} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    for name, value in contents(tmp_path / "unbroken", 5).items():
        assert torch.equal(held[name], value), name
    saved = json.loads((tmp_path / "cut/recipe.json").read_text())
    assert set(saved["recipe"]["data"]["statistics"]["s2"]) == {"B02", "B03", "B04"}
    assert any("aligned by the nearest in time" in note for note in saved["sources"][0]["notes"])


def test_statistics_of_the_data_are_the_models(folder):
    model = build_objective(with_statistics(small_recipe(folder))).backbone
    held = json.loads((folder / "statistics.json").read_text())["statistics"]
    for m, spec in model.inputs.items():
        assert spec.normalize == "standard"
        assert dict(zip(spec.bands, zip(spec.mean, spec.std, strict=True), strict=True)) == {
            band: tuple(held[m][band]) for band in model.bands[m]
        }


def test_the_radar_ratio_is_computed(folder):
    statistics = {"s1": {"VV": [-14, 4], "VH": [-14, 4], "VV/VH": [0, 4]}}
    bands = {"s2": ["B02", "B03", "B04"], "s1": ["VV", "VH", "VV/VH"]}
    run = run_of(folder, overrides__bands=bands, data__statistics=statistics)
    batch = next(iter(run.batches(0, 1)))
    vv, vh, ratio = batch.images["s1"].unbind(dim=2)
    torch.testing.assert_close(ratio, vv - vh, atol=1e-5, rtol=0)
    assert run.objective(batch)["loss"].isfinite()


def test_statistics_come_with_packed_data(folder, tmp_path):
    pack(SeriesFolder(folder), tmp_path / "packed", progress=False)
    packed, own = (with_statistics(small_recipe(f)).data.statistics for f in (tmp_path / "packed", folder))
    assert packed == own != {}
    with pytest.raises(TrainingError, match=r"In a recipe: data.statistics="):
        with_statistics(small_recipe(tmp_path / "none"))
    with pytest.raises(TrainingError, match=r"statistics of DN and dB.*leave one of them out"):
        with_statistics(small_recipe(tmp_path / "packed", data__units={"s2": "reflectance"}))


def test_statistics_of_the_data_in_their_units(folder, tmp_path):
    """Reflectances give the batches that DN give."""
    source = SeriesFolder(folder)
    for place, name in enumerate(source.locations):
        sample = source.read(place)
        images = {"s2": sample.images["s2"] / np.float32(10000), "s1": sample.images["s1"]}
        for m, there in sample.valid.items():
            images[m][~there] = np.nan
        write_series(tmp_path / "set", name, images=images, dates=sample.dates, bands=BANDS)
    runs = run_of(folder), run_of(tmp_path / "set", data__units={"s2": "reflectance"})
    one, other = (next(iter(run.batches(0, 1))) for run in runs)
    for m, x in one.images.items():
        torch.testing.assert_close(other.images[m], x, rtol=1e-4, atol=1e-4)


def test_bands_that_the_data_lack_are_named(folder):
    run = run_of(folder, overrides__bands={"s2": ["B02", "B05"], "s1": ["VV", "VH"]}, data__statistics={})
    batch = next(iter(run.batches(0, 1)))
    with pytest.raises(ValueError, match=r"overrides.bands.s2 with those of the data"):
        run.objective(batch)


def test_the_ratio_of_radar_bands_is_computed(folder):
    run = run_of(folder, overrides__bands={"s2": ["B02", "B03"], "s1": ["VV", "VH", "VV/VH"]})
    batch = next(iter(run.batches(0, 1)))
    assert batch.bands["s1"] == ("VV", "VH", "VV/VH")
    spec = run.objective.backbone.inputs["s1"]
    mean, std = (torch.tensor(x)[:, None, None] for x in (spec.mean, spec.std))
    vv, vh, ratio = (batch.images["s1"] * std + mean).unbind(2)
    seen = batch.valid["s1"]
    torch.testing.assert_close(ratio[seen], (vv - vh)[seen], rtol=0, atol=1e-4)


def test_images_of_six_pixels_are_padded(tmp_path):
    folder = write_set(tmp_path / "set", count=4, side=6)
    six = {"data__size": 6, "data__crop": [6, 6]}
    with pytest.raises(ValueError, match=r"multiple of 4, got 6: data.size=8, .* or objective.pad=true"):
        run_of(folder, **six)
    with pytest.raises(ValueError, match=r"6 pixels are less than the smallest crop, 16: data.crop=6,6"):
        run_of(folder)
    run = run_of(folder, **six, objective__pad=True)
    batch, objective, loss = next(iter(run.batches(0, 1))), run.objective, 0
    sizes = []
    for norm in objective.projection.norms:
        norm.register_forward_pre_hook(lambda _, given: sizes.append(given[3]))
    parts = objective(batch)
    assert sizes == [(2, 2)] * 4
    assert batch.images["s1"].shape[-2:] == (6, 6)
    wide = {m: F.pad(x, (0, 2, 0, 2, 0, 0), mode="replicate") for m, x in batch.images.items()}
    levels = objective.backbone.encode_levels("s2", wide["s2"], batch.valid.get("s2"), (6, 6))
    predicted = objective._predict(levels)[:, : wide["s1"].shape[1], :, :6, :6]
    seen = torch.ones(wide["s1"].shape[:2], dtype=torch.bool)
    for mask in batch.valid.values():
        seen &= mask
    for one, image, there in zip(predicted, batch.images["s1"], seen, strict=True):
        loss += (one[there] - image[there]).abs().mean() / len(predicted)
    torch.testing.assert_close(parts["reconstruction"], loss.detach())
    assert (
        objective.reconstruct(batch)["s1"].image.shape == objective.reconstruct(batch)["s1"].predicted.shape
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__sampled": 4, "objective__negatives": "batch"}, "objective.sampled draws"),
        ({"data__root": None}, "data.root"),
        ({"overrides__modalities": ["s2"]}, "this objective trains a model of s2 and s1"),
    ],
)
def test_options_that_do_not_fit(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        run_of(folder, **changes)


def test_other_methods_refuse_series_of_their_own_lengths(folder):
    changes = {"data.root": str(folder), "data.size": SIDE, "data.crop": [SIDE, SIDE]}
    with pytest.raises(TrainingError, match=r"series of their own lengths, .*objective.method=s4"):
        stages_of(_croma(changes))[-1].build(ALONE)


def _croma(changes):
    from rsbackbones.train.engine.config_io import apply_overrides
    from rsbackbones.train.recipes import RECIPES

    return apply_overrides(RECIPES["croma_vit_tiny"], {"data.parts": [], **changes})


def test_the_objective_trains_only_what_it_knows():
    with pytest.raises(ValueError, match="trains an s4 network"):
        S4Objective().build(build_objective(_croma({})).backbone)

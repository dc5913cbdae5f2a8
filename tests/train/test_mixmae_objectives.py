"""The losses of AuxMAE and MixMAE, against recorded numbers, plain versions, and by their properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.train.objectives.auxmae import AuxmaeObjective, Task, target_loss
from rsbackbones.train.objectives.masking import random_mask
from rsbackbones.train.objectives.mixmae import MixmaeObjective, choose, mix, mixed_loss
from tests.conftest import RECORDED
from tests.reference import mixmae_plain
from tests.train.croma_setup import TINY_DECODER, gradients
from tests.train.mixmae_setup import AUX, BANDS, FOUR, build, make_batch, mixmae, plain_task

OPTICAL = {"bands": {"s2": FOUR}}


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED / "mixmae.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].ndim}, {
            name: file[name].item() for name in file.files if not file[name].ndim
        }


# -- recorded numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["", "_norm"])
def test_the_loss_of_reconstruction_is_the_recorded_one(recorded, norm):
    x, n = recorded
    mask = random_mask(x["noise"], n["mask_ratio"])
    assert torch.equal(mask.kept, x["kept"])
    assert torch.equal(mask.masked, x["unseen"])
    predicted = x["pred_s2"].clone().requires_grad_()
    loss = target_loss(predicted, x["s2"], n["patch"], unseen=mask.masked, normalized=bool(norm))
    assert loss.item() == pytest.approx(n[f"mae_loss{norm}"], abs=1e-12)
    loss.backward()
    torch.testing.assert_close(predicted.grad, x[f"mae_grad{norm}"], rtol=0, atol=1e-12)


def test_the_losses_of_other_targets_are_the_recorded_ones(recorded):
    x, n = recorded
    p = n["patch"]
    found = {
        "aux_loss": target_loss(x["pred_s1"], x["s1"], p),
        "aux_loss_norm": target_loss(x["pred_s1"], x["s1"], p, normalized=True),
        "aux_loss_fine_x2": target_loss(x["pred_fine_x2"], x["fine_x2"], 2 * p),
        "aux_loss_fine_x3": target_loss(x["pred_fine_x3"], x["fine_x3"], 3 * p),
    }
    for name, loss in found.items():
        assert loss.item() == pytest.approx(n[name], abs=1e-12), name
    with pytest.raises(ValueError, match="patch_size is that of the target"):
        target_loss(x["pred_fine_x2"], x["fine_x2"], p)


@pytest.mark.parametrize("norm", ["", "_norm"])
def test_the_mixture_and_its_loss_are_the_recorded_ones(recorded, norm):
    x, n = recorded
    from_s2 = choose(x["mix_noise"], n["share"])
    assert torch.equal(from_s2, x["from_s2"])
    assert torch.equal(mix(x["emb_s2"], x["emb_s1"], from_s2), x["mixed"])
    predicted = {m: x[f"pred_{m}"].clone().requires_grad_() for m in ("s2", "s1")}
    losses = mixed_loss(
        predicted, {m: x[m] for m in predicted}, from_s2, n["patch"], s1_weight=n["weight"],
        normalized=bool(norm),
    )  # fmt: skip
    assert losses["loss"].item() == pytest.approx(n[f"mix_loss{norm}"], abs=1e-12)
    losses["loss"].backward()
    for m, tensor in predicted.items():
        part = losses[f"reconstruction_{m}"]
        assert part.item() == pytest.approx(n[f"mix_loss_{m}{norm}"], abs=1e-12)
        torch.testing.assert_close(tensor.grad, x[f"mix_grad_{m}{norm}"], rtol=0, atol=1e-12)


# -- plain versions (our positions are computed in float32) --------------------------------------------

TASKS = (
    Task(),
    AUX,
    Task(target="rgb", mask_ratio=0.0, scale=2),
    Task(source="s1", target="rgb", mask_ratio=0.5),
)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_is_the_plain_version(task, normalized):
    options = AuxmaeObjective(tasks=TASKS, normalized_targets=normalized, **TINY_DECODER)
    bands = {"s2": FOUR, "s1": BANDS["s1"]}
    objective = build(options, modalities=("s2", "s1"), bands=bands, position_grid=(2, 3))
    needed = {task.source: bands[task.source], task.target: {**bands, "rgb": ("R", "G", "B")}[task.target]}
    batch = make_batch(options, task.name, bands=needed, scales={task.target: task.scale}, grid=(2, 3))
    out = objective(batch)
    assert set(out) == {"loss", task.name}
    expected = mixmae_plain.auxmae_loss(
        objective.state_dict(), batch.images, batch.noise["noise"], heads=4, decoder_heads=2,
        normalized=normalized, **plain_task(task),
    )  # fmt: skip
    assert out["loss"].item() == pytest.approx(expected.item(), abs=1e-7)
    assert out[task.name].item() == out["loss"].item()


@pytest.mark.parametrize("normalized", [False, True])
def test_mixing_is_the_plain_version(normalized):
    options = {"normalized_targets": normalized, "s1_weight": 0.3, "share": 0.4}
    objective = mixmae(model={"position_grid": (2, 3)}, **options)
    batch = make_batch(objective.options, grid=(2, 3))
    out = objective(batch)
    expected = mixmae_plain.mixmae_losses(
        objective.state_dict(), batch.images, batch.noise["mix_noise"], share=0.4, heads=4, decoder_heads=2,
        normalized=normalized,
    )  # fmt: skip
    assert set(out) == {"loss", "reconstruction_s2", "reconstruction_s1"}
    for m, loss in expected.items():
        assert out[f"reconstruction_{m}"].item() == pytest.approx(loss.item(), abs=1e-7)
    total = 0.3 * expected["s1"] + 0.7 * expected["s2"]
    assert out["loss"].item() == pytest.approx(total.item(), abs=1e-7)


# -- properties ---------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_the_visible_patches_of_both_sensors_partition_the_grid(patches, share, seed):
    noise = torch.rand(3, patches, generator=torch.Generator().manual_seed(seed))
    count = int(patches * share)
    if not 0 < count < patches:
        with pytest.raises(ValueError, match="share="):
            choose(noise, share)
        return
    from_s2 = choose(noise, share)
    assert (from_s2.sum(dim=1) == count).all()
    assert (noise.masked_fill(~from_s2, -1).amax(1) <= noise.masked_fill(from_s2, 2).amin(1)).all()


def test_what_lies_under_the_other_sensor_changes_no_prediction():
    objective = mixmae()
    batch = make_batch(objective.options)
    from_s2 = choose(batch.noise["mix_noise"], 0.5)
    hidden = from_s2.view(2, 1, 3, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before, _ = objective._predict(batch)
    batch.images["s1"][hidden.expand_as(batch.images["s1"])] += 1  # S1 where the encoder gets S2
    after, _ = objective._predict(batch)
    assert all(torch.equal(after[m], before[m]) for m in before)
    assert objective(batch)["reconstruction_s1"] > 0.5  # it is the target there
    batch.images["s1"] += 1
    assert not torch.equal(objective._predict(batch)[0]["s2"], before["s2"])


def test_both_tasks_reach_every_parameter_of_the_encoder_and_only_their_own_decoder():
    options = AuxmaeObjective(**TINY_DECODER)
    objective = build(options, **OPTICAL)
    assert options.task_names == ("s2_s2", "s2_s1") == tuple(objective.decoders)
    encoder = {n for n, _ in objective.named_parameters() if n.startswith("backbone.")}
    for task in options.task_names:
        _, grads = gradients(objective, make_batch(options, task))
        own = {n for n, _ in objective.named_parameters() if n.startswith(f"decoders.{task}.")}
        assert grads.keys() == encoder | own
        assert all(grad.any() for grad in grads.values()), task
    mixed = mixmae()
    _, grads = gradients(mixed, make_batch(mixed.options))
    assert grads.keys() == dict(mixed.named_parameters()).keys()
    assert all(grad.any() for grad in grads.values())
    assert not any("mask_token" in name for name in grads)


def test_the_image_that_was_masked_is_not_seen_by_the_encoder():
    options = AuxmaeObjective(tasks=(Task(),), **TINY_DECODER)
    objective = build(options, **OPTICAL)
    batch = make_batch(options, "s2_s2", bands={"s2": FOUR})
    mask = random_mask(batch.noise["noise"], 0.75)
    masked = mask.masked.view(2, 1, 3, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before, _ = objective._predict(batch, Task())
    batch.images["s2"][masked.expand_as(batch.images["s2"])] = 0
    assert torch.equal(objective._predict(batch, Task())[0], before)


def test_a_source_with_some_bands_trains_those():
    """TerraMesh lacks B10, BigEarthNet all but four bands."""
    objective = build()
    options = objective.options
    whole = make_batch(options, "s2_s2", bands={"s2": BANDS["s2"]})
    some = make_batch(options, "s2_s2", bands={"s2": ("B08", "B02")})
    for batch, count in ((whole, 13), (some, 2)):
        assert objective._predict(batch, Task())[0].shape == (2, 12, 64 * count)
        assert objective(batch)["loss"].isfinite()


def test_the_decoders_have_the_size_that_the_paper_states():
    counts = {}
    with torch.device("meta"):
        objective = AuxmaeObjective().build(rsb.create_model("auxmae_vit_b"))
    for name, decoder in objective.decoders.items():
        counts[name] = sum(p.numel() for p in decoder.parameters()) / 1e6
    assert counts == {"s2_s2": pytest.approx(21.0, abs=0.06), "s2_s1": pytest.approx(19.6, abs=0.06)}


def test_what_pictures_show():
    options = AuxmaeObjective(**TINY_DECODER)
    objective = build(options, **OPTICAL)
    batch = make_batch(options, "s2_s2")
    (image, seen, filled), masked = (
        objective.reconstruct(batch)["s2"],
        random_mask(batch.noise["noise"], 0.75).masked,
    )
    assert torch.equal(image, batch.images["s2"])
    assert seen.isnan().any(1).flatten(1).sum(1).tolist() == (masked.sum(1) * 64).tolist()
    assert torch.equal(filled[~seen.isnan()], image[~seen.isnan()])
    _, seen, _ = objective.reconstruct(make_batch(options, "s2_s1"))["s1"]
    assert seen.isnan().all()
    pictures = mixmae().reconstruct(make_batch(MixmaeObjective()))
    assert (pictures["s2"][1].isnan()[:, 0] ^ pictures["s1"][1].isnan()[:, 0]).all()
    assert "mixtures" in mixmae().usage_note()


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AuxmaeObjective(tasks=()), "tasks is empty"),
        (lambda: AuxmaeObjective(tasks=(Task(), Task(mask_ratio=0.5))), "s2_s2 more than once"),
        (lambda: Task(mask_ratio=1.0), "mask_ratio"),
        (lambda: Task(mask_ratio=-0.1), "mask_ratio"),
        (lambda: Task(target="s1", scale=0), "scale"),
        (lambda: Task(scale=2), "scale=2"),
        (lambda: AuxmaeObjective(order="shuffled"), "order"),
        (lambda: AuxmaeObjective(decoder_dim=30), "decoder_dim"),
        (lambda: MixmaeObjective(share=0.0), "share"),
        (lambda: MixmaeObjective(share=1.0), "share"),
        (lambda: MixmaeObjective(s1_weight=1.1), "s1_weight"),
        (lambda: build(AuxmaeObjective(tasks=(Task(source="s1"),))), "encode s1, and the backbone takes s2"),
        (
            lambda: build(AuxmaeObjective(tasks=(Task(target="superdove"),))),
            "superdove has no statistics: state them, data.statistics.superdove=",
        ),
        (lambda: build(model="croma_vit_tiny"), "got Croma"),
        (lambda: build(MixmaeObjective()), "mixes s2 and s1, and the backbone takes s2"),
        (lambda: build(MixmaeObjective(), model="seamo_vit_tiny"), "got Seamo"),
    ],
)
def test_options_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_that_cannot_be():
    options = AuxmaeObjective(tasks=(Task(), Task(target="s1", mask_ratio=0.0, scale=2)), **TINY_DECODER)
    objective = build(options, **OPTICAL)

    def refused(message, task, **changes):
        with pytest.raises(ValueError, match=message):
            objective(make_batch(options, task, **changes))

    refused(r"the task of the batch is 's1_s2'; those of the objective are s2_s2, s2_s1", "s1_s2")
    refused("needs images of s1, which the batch lacks; it has s2", "s2_s1", bands={"s2": FOUR})
    refused("needs images of s2", "s2_s2", bands={"s1": BANDS["s1"]})
    refused(r"scale=2: .* target s1 must be \[2, 2, 48, 64\], got \[2, 2, 24, 32\]", "s2_s1")
    refused("the batch has band B05", "s2_s2", bands={"s2": ("B05", "B02")})
    mixed = mixmae()
    with pytest.raises(ValueError, match="lacks s1: images of one sensor cannot be mixed"):
        mixed(make_batch(mixed.options, bands={"s2": FOUR}))
    with pytest.raises(ValueError, match=r"share=0\.01 of 12 patches leaves no patch of s2"):
        mixmae(share=0.01)(make_batch(mixed.options))

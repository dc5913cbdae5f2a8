"""CROMA's objective: against a plain version, and what must hold of masks, bands, options and parts."""

import copy
import dataclasses
import math

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.infonce import InfoNCE
from rsbackbones.train.objectives.masking import random_mask
from tests.reference import croma_pretraining_plain
from tests.train.croma_setup import BANDS, SMALL, build, draw, gradients, make_batch

FOUR = ("B08", "B02", "B04", "B03")


# -- against the plain version --------------------------------------------------------------------

PLAIN_CASES = {
    "independent": ({}, (4, 4), BANDS),
    "shared": ({"masking": "shared"}, (4, 4), BANDS),
    "unequal ratios": ({"mask_ratio_s2": 0.5, "mask_ratio_s1": 0.75}, (4, 4), BANDS),
    "rectangle": ({}, (2, 6), BANDS),
    "four bands": ({}, (4, 4), {"s2": FOUR, "s1": ("VH", "VV")}),
    "s2 only": ({}, (4, 4), {"s2": BANDS["s2"]}),
    "s1 only, one band": ({}, (3, 5), {"s1": ("VH",)}),
    "no X-ALiBi": ({}, (4, 4), BANDS),
    "weights": ({"contrast_weight": 0.5, "reconstruction_weight": 3}, (4, 4), BANDS),
}


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_equals_the_plain_version_in_losses_and_all_gradients(case):
    changes, grid, bands = PLAIN_CASES[case]
    objective = build(**changes, model={"cross_alibi": case != "no X-ALiBi"})
    options = objective.options
    batch = make_batch(options, grid=grid, bands=bands)
    out, ours = gradients(objective, batch)

    state = {n: t.detach().clone().requires_grad_() for n, t in objective.state_dict().items()}
    contrast, reconstruction = croma_pretraining_plain.losses(
        state,
        batch.images,
        {m: batch.noise[options.noise_name(m)] for m in bands},
        {m: options.mask_ratio(m) for m in bands},
        {m: [BANDS[m].index(name) for name in names] for m, names in bands.items()},
        {m: len(names) for m, names in BANDS.items()},
        heads=SMALL["num_heads"],
        decoder_heads=options.decoder_heads,
        cross_alibi=objective.backbone.config.cross_alibi,
    )
    loss = options.reconstruction_weight * reconstruction
    if contrast is not None:
        loss = loss + options.contrast_weight * contrast
        assert out["contrast"].item() == pytest.approx(contrast.item(), abs=1e-7)
    assert out["reconstruction"].item() == pytest.approx(reconstruction.item(), abs=1e-7)
    assert out["loss"].item() == pytest.approx(loss.item(), abs=1e-7)
    loss.backward()
    for name, tensor in state.items():
        # Our biases and positions are computed in float32.
        if tensor.grad is None:
            assert name not in ours, name
        else:
            torch.testing.assert_close(ours[name], tensor.grad, atol=1e-6, rtol=1e-6, msg=name)


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.75, 0.9])
def test_masks_keep_the_patches_of_least_noise_and_restore_puts_them_back(ratio):
    noise = torch.rand(3, 225, generator=torch.Generator().manual_seed(0))
    mask = random_mask(noise, ratio)
    count = int(225 * (1 - ratio))
    assert mask.kept.shape == (3, count)
    assert (mask.masked.sum(1) == 225 - count).all()
    assert not mask.masked.gather(1, mask.kept).any()
    assert (noise.gather(1, mask.kept).amax(1) < noise.masked_fill(~mask.masked, 1).amin(1)).all()
    for b in range(3):
        shown = torch.full((225,), -1)
        shown[:count] = mask.kept[b]
        back = shown[mask.restore[b]]
        assert torch.equal(back, torch.arange(225).masked_fill(mask.masked[b], -1))


def test_a_mask_that_keeps_nothing_is_refused():
    options = CromaObjective()
    objective = build()
    with pytest.raises(ValueError, match="keeps none of 2 patches"):
        objective(make_batch(options, grid=(1, 2)))


@pytest.mark.parametrize("positions", ["alibi", "sincos", "peg"])
def test_all_patches_kept_in_order_are_the_features(positions):
    objective = build(model={"positions": positions})
    batch = make_batch(objective.options)
    features = objective.backbone.forward_features(batch.images)
    every = torch.arange(24).expand(3, -1)
    tokens = objective.backbone.encode_tokens(batch.images, kept={"s2": every, "s1": every})
    assert set(tokens) == {"s2", "s1", "joint"}
    for stream in tokens:
        torch.testing.assert_close(tokens[stream], features.tokens[stream], atol=1e-12, rtol=0)


@pytest.mark.parametrize("positions", ["alibi", "sincos", "peg"])
def test_tokens_follow_the_order_of_the_kept_patches(positions):
    backbone = build(model={"positions": positions}).backbone
    images = make_batch(CromaObjective()).images
    generator = torch.Generator().manual_seed(0)
    kept = {m: torch.stack([torch.randperm(24, generator=generator)[:7] for _ in range(3)]) for m in images}
    order = {m: torch.randperm(7, generator=generator) for m in images}
    tokens = backbone.encode_tokens(images, kept=kept)
    turned = backbone.encode_tokens(images, kept={m: kept[m][:, order[m]] for m in images})
    for stream, m in (("s2", "s2"), ("s1", "s1"), ("joint", "s1")):
        torch.testing.assert_close(turned[stream], tokens[stream][:, order[m]], atol=1e-12, rtol=0)


@pytest.mark.parametrize("positions", ["alibi", "sincos", "peg"])
def test_encoders_do_not_see_masked_pixels(positions):
    objective = build(model={"positions": positions})
    batch = make_batch(objective.options)
    masks = objective._masks(batch)
    changed = {}
    for m, image in batch.images.items():
        hidden = masks[m].masked.unflatten(1, (4, 6)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        changed[m] = torch.where(hidden[:, None], torch.rand_like(image), image)
    before, after = objective(batch), objective(dataclasses.replace(batch, images=changed))
    assert torch.equal(before["contrast"], after["contrast"])
    assert not torch.isclose(before["reconstruction"], after["reconstruction"])


def test_shared_masks_are_the_same_for_both_sensors_and_independent_ones_are_not():
    for masking, same in (("shared", True), ("independent", False)):
        objective = build(masking=masking)
        masks = objective._masks(make_batch(objective.options))
        assert torch.equal(masks["s2"].kept, masks["s1"].kept) is same


# -- bands and sensors ----------------------------------------------------------------------------


def of_bands(weight, modality, bands):
    """The columns of a tokenizer's weight [D, C * 64] that belong to some bands."""
    columns = [BANDS[modality].index(band) * 64 + i for band in bands for i in range(64)]
    return weight[:, columns]


def test_a_subset_of_bands_equals_a_model_whose_weights_were_gathered():
    bands = {"s2": FOUR, "s1": ("VH", "VV")}
    objective = build()
    gathered = build(model={"bands": bands})
    state = objective.state_dict()
    for m, mine in bands.items():
        name = f"backbone.encoders.{m}.tokenizer.proj.weight"
        state[name] = of_bands(state[name], m, mine)
    every = [(m, b) for m in ("s2", "s1") for b in BANDS[m]]
    rows = [every.index((m, b)) * 64 + i for m in ("s2", "s1") for b in bands[m] for i in range(64)]
    for name in ("decoder.output.weight", "decoder.output.bias"):
        state[name] = state[name][rows]
    gathered.load_state_dict(state)
    batch = make_batch(objective.options, bands=bands)
    out, grads = gradients(objective, batch)
    expected, expected_grads = gradients(gathered, batch)
    for name in expected:
        torch.testing.assert_close(out[name], expected[name], atol=1e-12, rtol=0)
    for name, grad in expected_grads.items():
        ours = grads[name]
        if name.startswith("decoder.output"):
            assert not ours[[i for i in range(len(ours)) if i not in set(rows)]].any()
            ours = ours[rows]
        elif "tokenizer.proj.weight" in name:
            m = name.split(".")[2]
            ours = of_bands(ours, m, bands[m])
        torch.testing.assert_close(ours, grad, atol=1e-12, rtol=0)


def test_bands_are_met_by_name_and_aliases_are_understood():
    objective = build()
    batch = make_batch(objective.options)
    order = list(range(11, -1, -1))
    turned = dataclasses.replace(
        batch,
        images={**batch.images, "s2": batch.images["s2"][:, order]},
        bands={**batch.bands, "s2": tuple(BANDS["s2"][i].lower() for i in order)},
    )
    a, b = objective(batch), objective(turned)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-12, rtol=0)


@pytest.mark.parametrize("modality", ["s2", "s1"])
def test_one_sensor_alone_is_reconstructed_without_contrast(modality):
    objective = build()
    batch = make_batch(objective.options, bands={modality: BANDS[modality]})
    out, grads = gradients(objective, batch)
    assert set(out) == {"loss", "reconstruction", f"reconstruction_{modality}"}
    assert out["loss"] == out["reconstruction"]
    parts = {".".join(name.split(".")[:3]) for name in grads}
    assert {p for p in parts if p.startswith(("backbone", "contrast"))} == {f"backbone.encoders.{modality}"}


@pytest.mark.parametrize("modality", ["s2", "s1"])
def test_a_backbone_of_one_sensor_equals_one_of_two_on_that_sensor(modality):
    objective = build(contrast="none")
    single = build(contrast="none", model={"modalities": (modality,)})
    state = objective.state_dict()
    rows = slice(0, 12 * 64) if modality == "s2" else slice(12 * 64, 14 * 64)
    for name in ("decoder.output.weight", "decoder.output.bias"):
        state[name] = state[name][rows]
    single.load_state_dict({n: state[n] for n in single.state_dict()})
    batch = make_batch(objective.options, bands={modality: BANDS[modality]})
    torch.testing.assert_close(single(batch)["loss"], objective(batch)["loss"], atol=1e-12, rtol=0)


# -- parts and options ----------------------------------------------------------------------------

OPTIONS = {
    "default": {},
    "mask ratios": {"mask_ratio_s2": 0.5, "mask_ratio_s1": 0.9},
    "shared": {"masking": "shared"},
    "joint self-bias": {"joint_self_bias": "published"},
    "gather": {"gather": "published"},
    "vicreg": {"contrast": "vicreg"},
    "no contrast": {"contrast": "none"},
    "contrast weight 0": {"contrast_weight": 0},
    "contrast weight": {"contrast_weight": 2.0},
    "reconstruction weight": {"reconstruction_weight": 2.0},
    "contrast only": {"reconstruction_weight": 0},
    "target s1": {"reconstruction_target": "s1"},
    "target s2": {"reconstruction_target": "s2"},
    "pixels as they are": {"normalized_targets": False},
    "deeper decoder": {"decoder_depth": 2},
    "wider decoder": {"decoder_dim": 32},
    "more heads": {"decoder_heads": 4},
    "hard negatives": {"hard_negatives": 5},
    "local mse": {"local": "mse", "masking": "shared"},
    "local infonce": {"local": "infonce", "masking": "shared"},
    "local only": {"local": "infonce", "masking": "shared", "contrast": "none", "reconstruction_weight": 0},
}
MODELS = {
    "sincos": {"positions": "sincos"},
    "peg": {"positions": "peg"},
    "no X-ALiBi": {"cross_alibi": False},
}


def digest(case):
    changes, model = OPTIONS.get(case, {}), MODELS.get(case)
    objective = build(model=model, **changes)
    out, grads = gradients(objective, make_batch(objective.options))
    return objective, out, grads


@pytest.mark.parametrize("case", [*OPTIONS, *MODELS])
def test_every_parameter_of_every_option_is_trained_or_frozen_and_the_option_matters(case):
    objective, out, grads = digest(case)
    trained = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert set(grads) == trained
    dead = [n for n, g in grads.items() if not g.isfinite().all() or not g.abs().sum() > 0]
    assert not dead
    assert out["loss"].shape == ()
    assert out["loss"].requires_grad
    assert not any(x.requires_grad or x.shape for name, x in out.items() if name != "loss")
    if case != "default":
        _, base, base_grads = digest("default")
        same_loss = torch.isclose(out["loss"], base["loss"], rtol=1e-9)
        same_grads = set(grads) == set(base_grads) and all(
            g.shape == base_grads[n].shape and torch.allclose(g, base_grads[n], rtol=1e-9)
            for n, g in grads.items()
        )
        assert not (same_loss and same_grads)


def test_parts_add_up_and_what_is_off_is_not_built():
    base = set(dict(build().named_modules()))
    for case, absent in (
        ("contrast only", ("decoder",)),
        ("no contrast", ("contrast",)),
        ("contrast weight 0", ("contrast",)),
        ("vicreg", ("contrast",)),
    ):
        objective = build(**OPTIONS[case])
        left = set(dict(objective.named_modules()))
        assert {n.split(".")[0] for n in base - left} == set(absent), case
    assert "local" not in base

    both = {"masking": "shared", "local": "infonce", "contrast_weight": 0.5, "reconstruction_weight": 3.0}
    objective = build(**both)
    out = objective(make_batch(objective.options))
    assert set(out) == {
        "loss", "contrast", "temperature", "local", "local_temperature", "reconstruction",
        "reconstruction_s2", "reconstruction_s1",
    }  # fmt: skip
    total = 0.5 * out["contrast"] + out["local"] + 3 * out["reconstruction"]
    torch.testing.assert_close(out["loss"], total)
    torch.testing.assert_close(out["reconstruction"], out["reconstruction_s2"] + out["reconstruction_s1"])
    assert out["temperature"].item() == pytest.approx(0.07)


def test_contrast_alone_leaves_the_joint_encoder_out():
    objective = build(reconstruction_weight=0)
    objective.backbone.joint.forward = None  # not called
    objective(make_batch(objective.options))
    assert not any(p.requires_grad for p in objective.backbone.joint.parameters())


def test_reconstruction_alone_leaves_the_embeddings_out():
    objective = build(contrast="none")
    for embedding in objective.backbone.embeddings.values():
        embedding.forward = None
    objective(make_batch(objective.options))
    assert not any(p.requires_grad for p in objective.backbone.embeddings.parameters())


def test_published_gather_gives_the_same_loss_and_no_gradient_of_keys():
    ours, theirs = build(), build(gather="published")
    batch = make_batch(ours.options)
    (a, grads), (b, other) = gradients(ours, batch), gradients(theirs, batch)
    assert torch.equal(a["loss"], b["loss"])
    name = "contrast.projections.s2.weight"
    assert not torch.allclose(grads[name], other[name])
    # The temperature meets queries and keys alike.
    torch.testing.assert_close(grads["contrast.logit_scale"], other["contrast.logit_scale"])


def test_the_batch_alone_decides():
    objective = build(hard_negatives=4)
    batch = make_batch(objective.options)
    torch.manual_seed(1)
    first = objective(batch)
    torch.manual_seed(2)
    again = objective(batch)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = dataclasses.replace(batch, noise=draw(objective.options, 3, (4, 6), seed=9))
    assert not torch.equal(first["loss"], objective(other)["loss"])


def test_draws_are_what_the_options_need():
    def shapes(modalities=("s2", "s1"), **changes):
        draws = CromaObjective(**changes).sample_noise(torch.Generator().manual_seed(0), modalities, (4, 6))
        assert all(((x >= 0) & (x < 1)).all() for x in draws.values())
        return {name: tuple(x.shape) for name, x in draws.items()}

    assert shapes() == {"s2_noise": (24,), "s1_noise": (24,)}
    assert shapes(("s1",)) == {"s1_noise": (24,)}
    assert shapes(masking="shared") == {"noise": (24,)}
    hard = shapes(hard_negatives=7)
    assert {n: s for n, s in hard.items() if "hard" in n} == {
        f"{m}_hard_{what}": (7,) for m in ("s2", "s1") for what in ("picks", "mixes")
    }
    assert not [n for n in shapes(("s2",), hard_negatives=7) if "hard" in n]
    a, b = (
        CromaObjective().sample_noise(torch.Generator().manual_seed(0), order, (4, 6))
        for order in (("s2", "s1"), ("s1", "s2"))
    )
    assert all(torch.equal(a[n], b[n]) for n in a)


# -- reconstruction -------------------------------------------------------------------------------


def test_pictures_show_what_was_seen_and_undo_the_normalization():
    objective = build()
    batch = make_batch(objective.options, bands={"s2": FOUR, "s1": ("VV", "VH")})
    masks = objective._masks(batch)
    pictures = objective.reconstruct(batch)
    assert set(pictures) == {"s2", "s1"}
    for m, (image, seen, prediction) in pictures.items():
        hidden = masks[m].masked.unflatten(1, (4, 6)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        hidden = hidden[:, None].expand_as(image)
        assert torch.equal(image, batch.images[m])
        assert seen[hidden].isnan().all()
        assert torch.equal(seen[~hidden], image[~hidden])
        assert torch.equal(prediction[~hidden], image[~hidden])
        assert prediction.isfinite().all()
        assert not torch.isclose(prediction[hidden], image[hidden]).all()
    assert not build(reconstruction_weight=0).reconstruct(batch)
    assert set(build(reconstruction_target="s1").reconstruct(batch)) == {"s1"}


def test_a_perfect_prediction_is_the_image():
    objective = build()
    batch = make_batch(objective.options)
    target, scale = objective._target(batch)
    perfect = torch.cat([scale.normalize(target[m]) for m in ("s2", "s1")], dim=-1)
    objective.decoder.forward = lambda *_: perfect
    for image, _, prediction in objective.reconstruct(batch).values():
        torch.testing.assert_close(prediction, image, atol=1e-12, rtol=0)
    assert objective(batch)["reconstruction"].item() == 0


def test_targets_have_mean_0_and_variance_1_over_all_bands_of_a_patch():
    objective = build()
    target, scale = objective._target(make_batch(objective.options))
    both = torch.cat([scale.normalize(x) for x in target.values()], dim=-1)
    assert both.shape == (3, 24, 14 * 64)
    torch.testing.assert_close(both.mean(-1), torch.zeros(3, 24).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(both.var(-1), torch.ones(3, 24).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(scale.undo(scale.normalize(target["s1"])), target["s1"])


# -- state, precision -----------------------------------------------------------------------------


def test_no_parameter_is_a_scalar_and_blocks_are_in_lists():
    objective = build(local="infonce", masking="shared")
    assert all(p.ndim for p in objective.parameters())
    assert objective.contrast.logit_scale.shape == (1,)
    assert InfoNCE(8).logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    lists = [n for n, m in objective.named_modules() if n.endswith("blocks")]
    assert set(lists) == {
        "backbone.encoders.s2.blocks", "backbone.encoders.s1.blocks", "backbone.joint.blocks",
        "decoder.blocks",
    }  # fmt: skip


def test_copies_and_state_dicts_are_the_same_objective():
    objective = build(hard_negatives=2, local="infonce", masking="shared")
    batch = make_batch(objective.options)
    expected = objective(batch)
    other = build(seed=5, hard_negatives=2, local="infonce", masking="shared")
    assert not torch.equal(other(batch)["loss"], expected["loss"])
    other.load_state_dict(objective.state_dict())
    for same in (other, copy.deepcopy(objective)):
        assert all(torch.equal(same(batch)[name], x) for name, x in expected.items())


@pytest.mark.parametrize(
    "case", ["default", "vicreg", "local infonce", "local mse", "hard negatives", "peg", "sincos"]
)
def test_autocast_stays_close_and_losses_are_in_float32(case):
    objective = build(dtype=torch.float32, model=MODELS.get(case), **OPTIONS.get(case, {}))
    batch = make_batch(objective.options, dtype=torch.float32)
    expected = objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = objective(batch)
        pictures = objective.reconstruct(batch)
    assert all(x.dtype == torch.float32 for x in out.values())
    assert all(p.dtype == torch.float32 for picture in pictures.values() for p in picture)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.requires_grad)
    for name in expected:
        torch.testing.assert_close(out[name], expected[name], rtol=0.05, atol=0.05)


def test_defaults_leave_the_backbone_as_it_was():
    torch.manual_seed(0)
    backbone = rsb.create_model("croma_vit_tiny", overrides=SMALL)
    names = list(backbone.state_dict())
    objective = CromaObjective().build(backbone)
    assert list(backbone.state_dict()) == names
    assert objective.backbone is backbone
    assert all(p.requires_grad for p in backbone.parameters())


# -- errors ---------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"mask_ratio_s2": 1.0}, "less than 1"),
    ({"mask_ratio_s1": -0.1}, r"mask_ratio_s1\s+Input should be greater than or equal to 0"),
    ({"mask_ratio_s1": "half"}, r"mask_ratio_s1\s+Input should be a valid number"),
    ({"mask_ratio_s1": 0.0}, "needs masked patches"),
    ({"masking": "both"}, r"masking\s+Input should be 'independent' or 'shared'"),
    ({"masking": "shared", "mask_ratio_s2": 0.5}, "ratios must be equal"),
    ({"joint_self_bias": "published", "mask_ratio_s2": 0.5}, "must be equal"),
    ({"contrast": "clip"}, r"contrast\s+Input should be 'infonce'"),
    ({"gather": "some"}, r"gather\s+Input should be 'all'"),
    ({"gather": "published", "contrast": "vicreg"}, "keys of InfoNCE"),
    ({"local": "mse"}, "masking must be 'shared'"),
    ({"local": "infonce"}, "masking must be 'shared'"),
    ({"contrast_weight": -1.0}, r"contrast_weight\s+Input should be greater than or equal to 0"),
    ({"reconstruction_weight": math.inf}, r"reconstruction_weight\s+Input should be a finite number"),
    ({"reconstruction_weight": math.nan}, r"reconstruction_weight\s+Input should be a finite number"),
    ({"contrast_weight": 0, "reconstruction_weight": 0}, "nothing to train"),
    ({"reconstruction_target": "joint"}, r"reconstruction_target\s+Input should be 'both', 's1' or 's2'"),
    ({"normalized_targets": 2}, r"normalized_targets\s+Input should be a valid boolean"),
    ({"decoder_dim": 0}, r"decoder_dim\s+Input should be greater than or equal to 1"),
    ({"decoder_dim": 18}, "multiple of 4"),
    ({"decoder_dim": 16, "decoder_heads": 3}, "multiple of 4 and of decoder_heads"),
    ({"decoder_depth": "deep"}, r"decoder_depth\s+Input should be a valid integer"),
    ({"hard_negatives": -1}, r"hard_negatives\s+Input should be greater than or equal to 0"),
    ({"hard_negatives": 4, "contrast": "vicreg"}, "hard_negatives above 0 need contrast='infonce'"),
    ({"hard_negatives": 1.5}, r"hard_negatives\s+Input should be a valid integer"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS, ids=[str(c) for c, _ in BAD_OPTIONS])
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CromaObjective(**changes)


BAD_BUILDS = [
    ({}, {"modalities": ("s2",)}, "compare two sensors"),
    (
        {"contrast": "none", "reconstruction_target": "s1"},
        {"modalities": ("s2",)},
        "the backbone has s2 only",
    ),
    ({"joint_self_bias": "published"}, {"positions": "peg"}, "positions are 'peg'"),
]


@pytest.mark.parametrize(("options", "model", "message"), BAD_BUILDS)
def test_backbones_that_the_options_do_not_fit_are_refused(options, model, message):
    with pytest.raises(ValueError, match=message):
        build(model=model, **options)


def test_a_head_is_refused():
    backbone = rsb.create_model("croma_vit_tiny", overrides=SMALL, num_classes=3)
    with pytest.raises(ValueError, match="num_classes=0"):
        CromaObjective().build(backbone)


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="trains a CROMA model"):
        CromaObjective().build(torch.nn.Linear(2, 2))


def _replaced(batch, **changes):
    return dataclasses.replace(batch, **changes)


BAD_BATCHES = [
    ({}, {}, lambda b: _replaced(b, images={**b.images, "s3": b.images["s2"]}), "the batch has s3"),
    ({}, {}, lambda b: _replaced(b, bands={**b.bands, "s2": BANDS["s2"][:11]}), r"expected \[B, 11, H, W\]"),
    ({}, {}, lambda b: _replaced(b, bands={"s1": b.bands["s1"]}), "no band is named"),
    ({}, {"bands": {"s2": FOUR, "s1": ("VV", "VH")}}, lambda b: b, "which the backbone lacks"),
    ({}, {}, lambda b: _replaced(b, images={m: x[..., :20, :] for m, x in b.images.items()}), "patch size 8"),
    ({}, {}, lambda b: _replaced(b, images={**b.images, "s1": b.images["s1"][:2]}), "equally many"),
    ({}, {}, lambda b: _replaced(b, noise={}), "has no 's2_noise'"),
    ({}, {}, lambda b: _replaced(b, noise={k: v[:, 1:] for k, v in b.noise.items()}),
     r"\[B, N\] = \[3, 24\]"),
    ({"hard_negatives": 2}, {},
     lambda b: _replaced(b, noise={k: v for k, v in b.noise.items() if "noise" in k}),
     "has no 's2_hard_picks'"),
    ({"reconstruction_target": "s1"}, {}, lambda b: _replaced(b, images={"s2": b.images["s2"]}),
     "the batch has only s2"),
    ({"reconstruction_weight": 0}, {}, lambda b: _replaced(b, images={"s1": b.images["s1"]}),
     "nothing is trained"),
    ({}, {}, lambda b: _replaced(b, images={}), "one sensor or more"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "model", "spoil", "message"), BAD_BATCHES, ids=[c[3] for c in BAD_BATCHES]
)
def test_bad_batches_are_refused(options, model, spoil, message):
    objective = build(model=model, **options)
    batch = spoil(make_batch(objective.options))
    assert isinstance(batch, Batch)
    with pytest.raises(ValueError, match=message):
        objective(batch)

"""SeaMo's objective: against a plain version, and what must hold of masks, seasons, bands and options."""

import dataclasses

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.seamo import SeamoObjective
from tests.reference import seamo_plain
from tests.train.croma_setup import BANDS, SMALL, TINY_DECODER, gradients
from tests.train.seamo_setup import STRATEGIES, build, make_batch

FOUR = ("B08", "B02", "B04", "B03")
TM = "multimodal_temporal_tm"
# Two samples of three seasons: gaps of one sensor, and of both at once.
GAPS = {
    "s2": torch.tensor([[False, True, True], [True, False, False]]),
    "s1": torch.tensor([[True, True, False], [True, True, False]]),
}


def plainly(objective, batch, **control):
    """The plain losses of a batch, and the leaves that they were computed from."""
    options, config = objective.options, objective.backbone.config
    state = {n: t.detach().clone().requires_grad_() for n, t in objective.state_dict().items()}
    independent = options.masking == "independent"
    parts = seamo_plain.losses(
        state,
        batch.images,
        {m: batch.noise[f"{m}_noise" if independent else "noise"] for m in batch.images},
        ratio=options.mask_ratio,
        channels={m: [BANDS[m].index(name) for name in names] for m, names in batch.bands.items()},
        heads=SMALL["num_heads"],
        decoder_heads=options.decoder_heads,
        siamese="siamese" in options.strategy,
        tm=STRATEGIES[options.strategy][2],
        normalized=options.normalized_targets,
        valid=batch.valid,
        fusion=config.fusion,
        query=config.query,
        **control,
    )
    return parts, state


CASES = {
    **{f"{s}, shared": ({"strategy": s}, {}) for s in STRATEGIES},
    **{f"{s}, independent": ({"strategy": s, "masking": "independent"}, {}) for s in STRATEGIES},
    **{
        f"{s}, {masking}, with gaps": ({"strategy": s, "masking": masking}, {"valid": GAPS})
        for s in ("siamese_temporal", "multimodal_temporal", TM)
        for masking in ("shared", "independent")
    },
    "unimodal_temporal, with gaps": (
        {"strategy": "unimodal_temporal"}, {"valid": {"s2": GAPS["s2"]}},
    ),
    "gaps of one sensor": ({"masking": "independent"}, {"valid": {"s1": GAPS["s1"]}}),
    **{
        f"{fusion}, {query}, independent, with gaps": (
            {"masking": "independent", "model": {"fusion": fusion, "query": query}}, {"valid": GAPS},
        )
        for fusion, query in (("fuse", "text"), ("decouple", "algorithm"), ("decouple", "text"))
    },
    "two seasons, half masked": ({"length": 2, "mask_ratio": 0.5}, {}),
    "nine tenths masked": ({"length": 2, "mask_ratio": 0.9}, {}),
    "targets as they are": ({"normalized_targets": False}, {}),
    "two decoder blocks, a wide decoder": ({"decoder_depth": 2, "decoder_dim": 24, "decoder_heads": 3}, {}),
    "rectangle": ({"model": {"position_grid": (2, 6)}}, {"grid": (2, 6)}),
    "four bands": ({}, {"bands": {"s2": FOUR, "s1": ("VH", "VV")}}),
    "one band, only radar": ({}, {"bands": {"s1": ("VH",)}}),
    "radar alone": ({"strategy": "unimodal_temporal", "model": {"modalities": ("s1",)}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_version_in_losses_and_all_gradients(case):
    objective = build(**CASES[case][0])
    batch = make_batch(objective, **CASES[case][1])
    assert next(iter(batch.images.values())).shape[1] == (
        objective.options.length if STRATEGIES[objective.options.strategy][1] else 1
    )
    out, ours = gradients(objective, batch)
    parts, state = plainly(objective, batch)
    assert set(out) == {"loss", *(f"reconstruction_{m}" for m in batch.images)}
    for m, expected in parts.items():
        assert out[f"reconstruction_{m}"].item() == pytest.approx(expected.item(), abs=1e-6)
    loss = sum(parts.values())
    assert out["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    loss.backward()
    for name, tensor in state.items():
        # Our positions are computed in float32.
        if tensor.grad is None:
            assert name not in ours or not ours[name].any(), name
        else:
            torch.testing.assert_close(ours[name], tensor.grad, atol=2e-6, rtol=1e-5, msg=name)


def test_tokens_of_the_block_go_back_to_the_places_that_asked():
    """With masks of their own the other sensor's; the text's queries are the sensor's own."""
    for changes, matters in (
        ({"masking": "independent"}, True),
        ({"masking": "shared"}, False),
        ({"masking": "independent", "model": {"query": "text"}}, False),
        ({"masking": "independent", "strategy": "multimodal_temporal"}, False),
    ):
        objective = build(**changes)
        batch = make_batch(objective, valid={"s2": torch.tensor([[True, True, True], [True, False, True]])})
        loss = objective(batch)["loss"].item()
        own = sum(plainly(objective, batch, at_own_places=True)[0].values()).item()
        assert (abs(loss - own) > 1e-3) is matters


# -- masks --------------------------------------------------------------------------------------------------


def hidden(objective, batch):
    """By sensor which patches are masked, [B, T, N]; read off the pictures."""
    h, w = (side // 8 for side in next(iter(batch.images.values())).shape[-2:])
    seasons, masks = objective.options.seasons, {}
    for m, (shown, seen, filled) in objective.reconstruct(batch).items():
        whole = batch.images[m]
        side_by_side = torch.cat(list(whole.unbind(1)), dim=-1)
        assert torch.equal(shown, side_by_side.float())
        assert torch.equal(seen.nan_to_num(-1), side_by_side.float().where(~seen.isnan(), -1))
        assert torch.equal(filled.where(~seen.isnan(), -1), seen.nan_to_num(-1))
        assert filled.isfinite().all()
        assert not torch.equal(filled, shown)
        patches = seen.isnan().unflatten(-1, (seasons, w, 8)).unflatten(2, (h, 8))  # [B, C, h, 8, T, w, 8]
        assert torch.equal(patches.all(dim=(1, 3, 6)), patches.any(dim=(1, 3, 6)))
        masks[m] = patches.any(dim=(1, 3, 6)).movedim(2, 1).flatten(2)
    return masks


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_line_up_across_sensors_and_differ_between_seasons_and_samples(strategy, ratio):
    for masking in ("shared", "independent"):
        objective = build(strategy, masking=masking, mask_ratio=ratio, length=4)
        masks = hidden(objective, make_batch(objective, count=3, grid=(6, 8)))
        sensors, temporal, _ = STRATEGIES[strategy]
        assert set(masks) == set(sensors)
        for mask in masks.values():
            assert mask.shape == (3, 4 if temporal else 1, 48)
            assert (mask.sum(dim=-1) == 48 - int(48 * (1 - ratio))).all()
            assert len({tuple(row) for row in mask.flatten(0, 1).tolist()}) == mask[..., 0].numel()
        if len(sensors) == 2:
            same = (masks["s2"] == masks["s1"]).all(dim=-1)
            assert bool(same.all()) is (masking == "shared")
            assert bool(same.any()) is (masking == "shared")


def test_noise_decides_the_masks_alone():
    objective = build(masking="independent")
    batch = make_batch(objective)
    assert {name: x.shape for name, x in batch.noise.items()} == {
        "s2_noise": (2, 3, 16), "s1_noise": (2, 3, 16),
    }  # fmt: skip
    least = batch.noise["s1_noise"].argsort(dim=-1)[..., :4]
    expected = torch.ones(2, 3, 16, dtype=torch.bool).scatter(2, least, False)
    assert torch.equal(hidden(objective, batch)["s1"], expected)
    assert list(SeamoObjective().sample_noise(torch.Generator(), ("s2", "s1"), (4, 4))) == ["noise"]
    alone = SeamoObjective(masking="independent").sample_noise(torch.Generator(), ("s1",), (2, 8))
    assert {name: x.shape for name, x in alone.items()} == {"s1_noise": (4, 16)}


# -- seasons, sensors and strategies ------------------------------------------------------------------------


def season_of(batch, t):
    """One season of a batch, as a batch of single dates."""
    return Batch(
        images={m: x[:, t : t + 1] for m, x in batch.images.items()},
        bands=batch.bands,
        noise={name: x[:, t : t + 1] for name, x in batch.noise.items()},
        valid={m: x[:, t : t + 1] for m, x in batch.valid.items()},
    )


@pytest.mark.parametrize("name", ["unimodal", "multimodal", "siamese"])
def test_without_the_block_the_loss_is_the_sum_of_the_seasons(name):
    several, one = build(f"{name}_temporal"), build(name)
    one.load_state_dict(several.state_dict())
    valid = {m: GAPS[m] for m in STRATEGIES[name][0]}
    for gaps in ({}, valid):
        batch = make_batch(several, valid=gaps)
        each = [one(season_of(batch, t))["loss"].item() for t in range(3)]
        assert several(batch)["loss"].item() == pytest.approx(sum(each), abs=1e-10)


def test_the_siamese_encoder_sees_each_sensor_as_an_encoder_of_that_sensor():
    both = build("siamese")
    batch = make_batch(both)
    out = both(batch)
    for m in ("s2", "s1"):
        alone = build("unimodal", model={"modalities": (m,)})
        alone.load_state_dict({n: t for n, t in both.state_dict().items() if n in alone.state_dict()})
        of_one = dataclasses.replace(batch, images={m: batch.images[m]}, bands={m: batch.bands[m]})
        assert alone(of_one)["loss"].item() == pytest.approx(out[f"reconstruction_{m}"].item(), abs=1e-10)
    mixed = build("multimodal")
    mixed.load_state_dict(both.state_dict())
    assert abs(mixed(batch)["loss"].item() - out["loss"].item()) > 1e-4


def test_seasons_see_each_other_through_the_block_only():
    for strategy in ("multimodal_temporal", TM):
        objective = build(strategy)
        batch = make_batch(objective)
        before = objective.reconstruct(batch)["s2"][2]
        other = {m: x.clone() for m, x in batch.images.items()}
        other["s2"][:, 1] = 1 - other["s2"][:, 1]
        after = objective.reconstruct(dataclasses.replace(batch, images=other))["s2"][2]
        changed = [
            bool((a != b).any()) for a, b in zip(before.split(32, -1), after.split(32, -1), strict=True)
        ]
        assert changed == [False, True, strategy == TM]


@pytest.mark.parametrize("strategy", ["multimodal_temporal", "siamese_temporal", TM])
def test_what_is_in_a_missing_image_counts_for_nothing(strategy):
    objective = build(strategy)
    batch = make_batch(objective, valid=GAPS)
    out, ours = gradients(objective, batch)
    filled = {m: x.clone() for m, x in batch.images.items()}
    for m, present in GAPS.items():
        filled[m][~present] = 3.0 + torch.rand(12 if m == "s2" else 2, 32, 32, dtype=torch.float64)
    again, theirs = gradients(objective, dataclasses.replace(batch, images=filled))
    assert again["loss"].item() == pytest.approx(out["loss"].item(), abs=1e-10)
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, atol=1e-10, rtol=0, msg=name)
    assert abs(objective(dataclasses.replace(batch, valid={}))["loss"].item() - out["loss"].item()) > 0.1


def test_a_batch_of_nothing_but_gaps_has_a_loss_of_zero():
    objective = build()
    none = torch.zeros(2, 3, dtype=torch.bool)
    out, ours = gradients(objective, make_batch(objective, valid={"s2": none, "s1": none}))
    assert out["loss"].item() == 0
    assert all(gradient.isfinite().all() for gradient in ours.values())


@pytest.mark.parametrize(
    ("strategy", "form"),
    [(strategy, ("fuse", "algorithm")) for strategy in STRATEGIES]
    + [(TM, ("fuse", "text")), (TM, ("decouple", "algorithm")), (TM, ("decouple", "text"))],
)
def test_gradients_reach_every_parameter(strategy, form):
    objective = build(strategy, model={"fusion": form[0], "query": form[1]})
    _, found = gradients(objective, make_batch(objective))
    assert set(found) == {name for name, _ in objective.named_parameters()}
    # A key's bias adds the same to all scores of a query.
    idle = [n for n, g in found.items() if not g.abs().max() > 1e-9 and not n.endswith("cross.k.bias")]
    assert not idle
    temporal = {n for n in found if ".temporal." in n}
    assert bool(temporal) is (strategy == TM)
    assert {n.split(".")[1] for n in found if n.startswith("decoders.")} == set(STRATEGIES[strategy][0])


def test_bands_that_a_batch_lacks_get_no_gradient_and_the_others_do():
    objective = build()
    batch = make_batch(objective, bands={"s2": FOUR, "s1": BANDS["s1"]})
    _, found = gradients(objective, batch)
    for name, dim in (("backbone.tokenizers.s2.proj.weight", 1), ("decoders.s2.output.weight", 0)):
        of_band = found[name].movedim(dim, 0).unflatten(0, (12, 64)).flatten(1).abs().amax(dim=1)
        assert {BANDS["s2"][i] for i in of_band.nonzero().flatten().tolist()} == set(FOUR)


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": "bimodal"},
            r"strategy\s+Input should be 'unimodal', 'multimodal'.*input_value='bimodal'",
        ),
        ({"mask_ratio": 1.0}, r"mask_ratio\s+Input should be less than 1 .*input_value=1\.0"),
        ({"mask_ratio": 0}, r"mask_ratio\s+Input should be greater than 0 .*input_value=0"),
        ({"mask_ratio": float("nan")}, r"mask_ratio\s+Input should be a finite number"),
        ({"mask_ratio": "half"}, r"mask_ratio\s+Input should be a valid number"),
        ({"masking": "none"}, r"masking\s+Input should be 'shared' or 'independent'"),
        ({"length": 0}, r"length\s+Input should be greater than or equal to 1 .*input_value=0"),
        ({"length": 5}, r"length\s+Input should be less than or equal to 4 .*input_value=5"),
        ({"length": 2.5}, r"length\s+Input should be a valid integer"),
        ({"normalized_targets": 2}, r"normalized_targets\s+Input should be a valid boolean"),
        ({"decoder_dim": 0}, r"decoder_dim\s+Input should be greater than or equal to 1"),
        ({"decoder_depth": 0}, r"decoder_depth\s+Input should be greater than or equal to 1"),
        (
            {"decoder_dim": 24, "decoder_heads": 16},
            "decoder_dim must be a multiple of 4 and of decoder_heads",
        ),
        ({"method": "croma"}, r"method\s+Input should be 'seamo'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SeamoObjective(**options)


def test_the_length_is_that_of_temporal_strategies_only():
    for strategy, (_, temporal, tm) in STRATEGIES.items():
        for length in (2, 3, 4):
            options = SeamoObjective(strategy=strategy, length=length)
            assert options.seasons == (length if temporal else 1)
            assert options.overrides == {"temporal": tm}
        alone = SeamoObjective(strategy=strategy, length=1)  # table 14: without temporal data or TM block
        assert (alone.seasons, alone.overrides) == (1, {"temporal": False})


def model(**changes):
    return rsb.create_model("seamo_vit_tiny", overrides={**SMALL, **changes})


@pytest.mark.parametrize(
    ("strategy", "backbone", "message"),
    [
        ("unimodal", lambda: model(), "trains one sensor, and the backbone has s2, s1; overrides.modal"),
        ("multimodal", lambda: model(modalities=["s1"]), "trains two sensors, and the backbone has s1; le"),
        (TM, lambda: model(), "needs a backbone with temporal=True, got False"),
        ("multimodal", lambda: model(temporal=True), "needs a backbone with temporal=False, got True"),
        (
            "multimodal",
            lambda: rsb.create_model("seamo_vit_tiny", num_classes=3, overrides=SMALL),
            "head of 3 classes",
        ),
        (
            "multimodal",
            lambda: rsb.create_model("croma_vit_tiny", overrides=SMALL),
            "SeaMo's objective trains a SeaMo model, got Croma",
        ),
    ],
)  # fmt: skip
def test_backbones_that_do_not_go_with_the_strategy_are_refused(strategy, backbone, message):
    with pytest.raises(ValueError, match=message):
        SeamoObjective(strategy=strategy, **TINY_DECODER).build(backbone())


def without(batch, **changes):
    return dataclasses.replace(batch, **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: season_of(b, 0), r"takes samples of 3 seasons.*got images of \[\[2, 1, 12, 32, 32\]"),
        (lambda b: without(b, images={m: x[:, 0] for m, x in b.images.items()}), "takes samples of 3 sea"),
        (lambda b: without(b, noise={}), r"batch.noise has no 'noise' \(it has none\)"),
        (lambda b: without(b, noise={"noise": b.noise["noise"][..., :9]}), r"\[B, T, N\] = \[2, 3, 16\]"),
        (lambda b: without(b, noise={"noise": b.noise["noise"][:, 0]}), r"\[B, T, N\] = \[2, 3, 16\]"),
        (lambda b: without(b, images={}), "one sensor or more"),
        (lambda b: without(b, images={**b.images, "s3": b.images["s1"]}), "the batch has s3"),
        (
            lambda b: without(b, images={**b.images, "s1": b.images["s1"][:, :2]}),
            "equally many images of one size",
        ),
        (lambda b: without(b, bands={**b.bands, "s1": ("VV",)}), r"s1: expected \[B, 1, H, W\].*a series"),
        (
            lambda b: without(b, images={m: x[..., :30, :30] for m, x in b.images.items()}),
            "multiples of the patch size 8",
        ),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_served_are_refused(spoil, message):
    objective = build()
    with pytest.raises(ValueError, match=message):
        objective(spoil(make_batch(objective)))


def test_a_mask_that_keeps_nothing_is_refused():
    objective = build(mask_ratio=0.9)
    with pytest.raises(ValueError, match="keeps none of 6 patches"):
        objective(make_batch(objective, grid=(2, 3)))

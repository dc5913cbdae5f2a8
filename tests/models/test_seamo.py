"""SeaMo: against plain versions of its encoder and its TM block, and what a user may rely on."""

import re

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

import rsbackbones as rsb
from rsbackbones.layers.sincos import interpolate_positions, interpolated_from
from rsbackbones.layers.temporal_multimodal import TemporalMultimodal
from tests.conftest import close
from tests.reference import seamo_plain
from tests.reference.croma_pretraining_plain import position

SMALL = {"dim": 48, "depth": 2, "num_heads": 3}
FORMS = [(fusion, query) for fusion in ("fuse", "decouple") for query in ("algorithm", "text")]
ALL_13 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


def seamo(seed=0, *, temporal=False, **changes):
    """A small model for 64 pixels: a grid of 8 x 8 patches."""
    torch.manual_seed(seed)
    return rsb.create_model("seamo_vit_tiny", overrides={**SMALL, "temporal": temporal, **changes})


def pictures(height=32, width=48, *, times=None, count=2, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    lead = (count,) if times is None else (count, times)
    return {
        m: torch.rand(*lead, c, height, width, generator=generator).to(dtype)
        for m, c in (("s2", 12), ("s1", 2))
    }


# -- the TM block -----------------------------------------------------------------------------------------


def tm_block(fusion, query, sensors=("s2", "s1"), dim=12, heads=3):
    """A block in float64 of which every parameter matters, its norms' too."""
    torch.manual_seed(5)
    block = TemporalMultimodal(sensors, dim, heads, mlp_ratio=4.0, fusion=fusion, query=query).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return block


def tokens_of(seasons=4, sensors=("s2", "s1"), count=3, patches=5, dim=12):
    generator = torch.Generator().manual_seed(2)
    return {
        m: torch.randn(count, seasons, patches, dim, generator=generator, dtype=torch.float64)
        for m in sensors
    }


# Three samples of four seasons: gaps of one sensor, of both, at the first, at the last, and a whole sensor.
PRESENT = {
    "s2": torch.tensor([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.bool),
    "s1": torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1]], dtype=torch.bool),
}


@pytest.mark.parametrize("given", ["all", "some", "one sensor has gaps"])
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_the_block_is_the_plain_one(form, given):
    block, tokens = tm_block(*form), tokens_of()
    present = {"all": {}, "some": PRESENT, "one sensor has gaps": {"s2": PRESENT["s2"]}}[given]
    found = block(tokens, present)
    compared = 0
    for b in range(3):
        series = [
            {m: x[b, t] if m not in present or present[m][b, t] else None for m, x in tokens.items()}
            for t in range(4)
        ]
        expected = seamo_plain.temporal_multimodal(
            series, block.state_dict(), 3, fusion=form[0], query=form[1]
        )
        for t in range(4):
            for m, x in expected[t].items():
                assert found[m][b, t].isfinite().all()
                if x is not None:
                    torch.testing.assert_close(found[m][b, t], x, atol=1e-12, rtol=0)
                    compared += 1
    assert compared == {"all": 24, "some": 13, "one sensor has gaps": 17}[given]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_one_sensor_alone_stands_in_for_the_other(form):
    block, tokens = tm_block(*form, sensors=("s1",)), tokens_of(sensors=("s1",))
    present = {"s1": PRESENT["s1"]}
    found = block(tokens, present)["s1"]
    for b in range(3):
        series = [{"s1": tokens["s1"][b, t] if present["s1"][b, t] else None} for t in range(4)]
        plain = seamo_plain.temporal_multimodal(series, block.state_dict(), 3, fusion=form[0], query=form[1])
        for t in range(4):
            if present["s1"][b, t]:
                torch.testing.assert_close(found[b, t], plain[t]["s1"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_season_changes_itself_and_the_next_one_and_no_other(form):
    block, tokens = tm_block(*form), tokens_of()
    before = block(tokens, {})
    for changed in ("s2", "s1"):
        for t in range(4):
            other = {m: x.clone() for m, x in tokens.items()}
            other[changed][:, t] += 1 + torch.rand(12, dtype=torch.float64)
            after = block(other, {})
            for m in tokens:
                differs = (after[m] - before[m]).abs().amax(dim=(0, 3)) > 1e-9  # [T, N]
                # The other sensor sees it at its own date, the sensor itself also at the next.
                expected = {t, t + 1} if m == changed else {t}
                for u in range(4):
                    assert bool(differs[u].all()) is (u in expected)
                    assert bool(differs[u].any()) is (u in expected)


def test_f_learns_and_the_first_season_does_without():
    block, tokens = tm_block("fuse", "algorithm"), tokens_of()
    out = block(tokens, {})
    sum((h**2 * torch.arange(12.0)).sum() for h in out.values()).backward()
    for m in ("s2", "s1"):
        fuse = block.sensors[m].fuse
        assert fuse.weight.shape == (12, 24)
        assert (fuse.weight.grad.abs().sum(dim=0) > 0).all()  # both halves: other sensor, season before
        assert (fuse.bias.grad != 0).all()
    block.zero_grad()
    first = block({m: x[:, :1] for m, x in tokens.items()}, {})
    sum(h.square().sum() for h in first.values()).backward()
    assert all(part.fuse.weight.grad is None for part in block.sensors.values())
    with torch.no_grad():
        for part in block.sensors.values():
            part.fuse.weight.add_(torch.randn_like(part.fuse.weight))
    again = block(tokens, {})
    for m in tokens:
        torch.testing.assert_close(again[m][:, :1], first[m], atol=1e-12, rtol=0)
        assert ((again[m][:, 1:] - out[m][:, 1:]).abs().amax(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_every_parameter_of_the_block_gets_a_gradient(form):
    block = tm_block(*form)
    out = block(tokens_of(), PRESENT)
    sum((h[PRESENT[m]] ** 3).sum() for m, h in out.items()).backward()
    # A key's bias adds the same to all scores of a query.
    idle = {n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert {re.sub(r"^sensors\.\w+\.", "", n) for n in idle} <= {
        "attend.cross.k.bias", "attend_previous.cross.k.bias"
    }  # fmt: skip
    names = {n.split(".")[2] for n, _ in block.named_parameters()}
    assert ("fuse" in names) is (form == ("fuse", "algorithm"))
    assert ("attend_previous" in names) is (form[0] == "decouple")


# -- the encoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensors", [("s2", "s1"), ("s2",), ("s1",)])
@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
def test_the_encoder_is_the_plain_one(sensors, grid):
    """Both sensors in one sequence, or one alone."""
    model = seamo(position_grid=grid).double()
    images = {
        m: x for m, x in pictures(8 * grid[0], 8 * grid[1], dtype=torch.float64).items() if m in sensors
    }
    features = model.forward_features(images)
    assert set(features.tokens) == {*sensors, *(["joint"] if len(sensors) == 2 else [])}
    every = list(range(grid[0] * grid[1]))
    for b in range(2):
        plain = seamo_plain.encode(
            {m: x[b] for m, x in images.items()}, dict.fromkeys(sensors, every),
            {"s2": range(12), "s1": range(2)}, model.state_dict(), SMALL["num_heads"],
        )  # fmt: skip
        for m in sensors:
            # Positions are computed in float32.
            torch.testing.assert_close(features.tokens[m][b], plain[m], atol=1e-6, rtol=0)
            torch.testing.assert_close(features.pooled[m][b], plain[m].mean(0), atol=1e-6, rtol=0)
        if len(sensors) == 2:
            joint = (plain["s2"] + plain["s1"]) / 2
            torch.testing.assert_close(features.tokens["joint"][b], joint, atol=1e-6, rtol=0)
            torch.testing.assert_close(features.pooled["joint"][b], joint.mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "bands",
    [None, (*ALL_13[1:8], *ALL_13[11:]), ("B02", "B03", "B04", "B08"), ALL_13],
    ids=["12", "9", "4", "13"],
)
@torch.inference_mode()
def test_shapes_of_vit_b(bands):
    given = {} if bands is None else {"bands": {"s2": bands}}
    with torch.device("meta"):
        shapes_of_vit_b(rsb.create_model("seamo_vit_b", overrides={"depth": 1}, **given), bands)


def shapes_of_vit_b(model, bands):
    for height, width in ((128, 128), (96, 96), (224, 224), (96, 160)):
        images = {
            "s2": torch.rand(1, 12 if bands is None else len(bands), height, width),
            "s1": torch.rand(1, 2, height, width),
        }
        count = height * width // 64
        for sensors in (("s2", "s1"), ("s2",), *([("s1",)] if bands is None else [])):
            features = model.forward_features({m: images[m] for m in sensors})
            streams = {*sensors, *(["joint"] if len(sensors) == 2 else [])}
            assert set(features.tokens) == set(features.pooled) == streams
            assert all(x.shape == (1, count, 768) for x in features.tokens.values())
            assert all(x.shape == (1, 768) for x in features.pooled.values())
            assert features.grid == (height // 8, width // 8)
        assert model(images).shape == (1, 768)


def test_widths_depths_and_parameters():
    with torch.device("meta"):
        base, large = rsb.create_model("seamo_vit_b"), rsb.create_model("seamo_vit_l")
    assert (base.num_features, base.config.depth, base.config.num_heads) == (768, 12, 12)
    assert (large.num_features, large.config.depth, large.config.num_heads) == (1024, 24, 16)
    assert base.patch_size == 8
    for model in (base, large):
        d = model.num_features
        block = 12 * d * d + (3 * d + d + 4 * d + d) + 4 * d
        tokenizers = (12 * 64 + 1) * d + (2 * 64 + 1) * d
        expected = model.config.depth * block + 2 * d + tokenizers
        assert sum(p.numel() for p in model.parameters()) == expected
    large_patch = rsb.create_model("seamo_vit_b", overrides={"patch_size": 16, "depth": 1})
    assert large_patch.forward_features({"s1": torch.rand(1, 2, 128, 128)}).grid == (8, 8)


# -- positions --------------------------------------------------------------------------------------------


def table_of(grid, dim):
    """[1, N, D] of a grid, one place at a time."""
    rows, columns = grid
    return torch.tensor([[position(r, c, dim) for r in range(rows) for c in range(columns)]])


def added(model, height, width):
    """What a model adds to the tokens of an image of this size: seen through blocks that do nothing."""
    grid = (height // 8, width // 8)
    image = torch.zeros(1, 2, height, width)
    held = {}
    handle = model.blocks[0].register_forward_pre_hook(lambda _, x: held.update(x=x[0]))
    with torch.no_grad():
        model.forward_features({"s1": image})
    handle.remove()
    assert held["x"].shape == (1, grid[0] * grid[1], model.num_features)
    return held["x"] - model.tokenizers["s1"].proj.bias


def interpolated(table, grid, wanted):
    maps = table[0].view(*grid, -1).permute(2, 0, 1)[None]
    maps = F.interpolate(maps, wanted, mode="bicubic", align_corners=False)
    return maps[0].flatten(1).T[None]


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (96, 160), (24, 8)])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_positions_of_the_trained_grid_are_interpolated(positions, size):
    model = seamo(positions=positions).eval()
    table = model.positions.table.detach() if positions == "learned" else table_of((8, 8), 48)
    assert table.shape == (1, 64, 48)
    found, grid = added(model, *size), (size[0] // 8, size[1] // 8)
    expected = interpolated(table, (8, 8), grid)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    theirs = resample_abs_pos_embed(table, list(grid), [8, 8], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(found, theirs, atol=1e-6, rtol=0)
    if size == (64, 64):
        torch.testing.assert_close(found, table, atol=1e-6, rtol=0)
    elif positions == "sincos":  # and not computed for the places that there are
        assert (found - table_of(grid, 48)).abs().max() > 0.1


def test_positions_may_be_computed_again_instead():
    model = seamo().eval()
    assert interpolated_from(model) == (8, 8)
    interpolate_positions(model, None)
    torch.testing.assert_close(added(model, 96, 160), table_of((12, 20), 48), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no sine-cosine positions"):
        interpolate_positions(seamo(positions="learned"), None)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_the_trained_grid_survives_another_image_size_and_a_file(tmp_path, positions):
    model = seamo(positions=positions).eval()
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    images = pictures(96, 96)
    expected = model(images)
    for _ in range(2):  # the second time from a file of a model that was loaded for 224
        again = rsb.create_model("seamo_vit_tiny", checkpoint=file, image_size=224)
        assert again.config.image_size == 224
        assert again.config.position_grid == again.config.grid == (8, 8)
        assert close(again(images), expected)
        file = rsb.save_model(again, tmp_path / "again.safetensors")
    assert close(rsb.create_model("seamo_vit_tiny", checkpoint=file, image_size=(96, 160))(images), expected)
    # Random models are trained on the size that their configuration says.
    for changes, grid in (({"image_size": 96}, (12, 12)), ({"image_size": [96, 160]}, (12, 20))):
        assert seamo(**changes).config.grid == grid
    assert not close(seamo(positions=positions, image_size=96).eval()(images), expected)


def test_a_learned_table_is_trained():
    model = seamo(positions="learned").train()
    assert dict(model.named_parameters())["positions.table"].shape == (1, 64, 48)
    model(pictures(32, 32)).square().sum().backward()
    assert (model.positions.table.grad.abs().sum(dim=-1) > 0).all()
    assert not [name for name in seamo().state_dict() if "position" in name]


# -- series -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])  # masked attention goes another way without
def test_where_a_sensor_is_missing_a_frame_is_that_of_the_other_alone(grad):
    model, x = seamo(), pictures(times=3)
    valid = {
        "s2": torch.tensor([[True, False, True], [True, True, False]]),
        "s1": torch.tensor([[True, True, False], [True, False, False]]),
    }
    broken = {m: v.masked_fill(~valid[m][..., None, None, None], float("nan")) for m, v in x.items()}
    with torch.set_grad_enabled(grad):
        features = model.forward_features(broken, valid=valid)
    for b in range(2):
        for t in range(3):
            there = [m for m in x if valid[m][b, t]]
            for m in ("s2", "s1"):
                if m not in there:
                    assert features.tokens[m][b, t].isnan().all()
            if not there:
                continue
            frame = model.forward_features({m: x[m][b : b + 1, t] for m in there})
            for stream in frame.tokens:
                assert close(features.tokens[stream][b, t], frame.tokens[stream][0])
                assert close(features.pooled[stream][b, t], frame.pooled[stream][0])
            assert bool(features.tokens["joint"][b, t].isnan().all()) is (len(there) < 2)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_dates_see_each_other_as_in_the_plain_block(form):
    fusion, query = form
    model = seamo(temporal=True, fusion=fusion, query=query)
    x = pictures(16, 24, times=4, count=3)
    features = model.forward_features(x, valid=PRESENT, temporal=True)
    with torch.no_grad():
        without_grad = model.forward_features(x, valid=PRESENT, temporal=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model.forward_features(x, valid=PRESENT, temporal=True)
    for stream, tokens in features.tokens.items():
        torch.testing.assert_close(without_grad.tokens[stream], tokens, atol=1e-5, rtol=0, equal_nan=True)
        torch.testing.assert_close(
            autocast.tokens[stream].float(), tokens, atol=0.15, rtol=0.05, equal_nan=True
        )  # fmt: skip
    single = model.forward_features(x, valid=PRESENT).tokens
    state = seamo_plain.within(model.state_dict(), "temporal.")
    for b in range(3):
        series = [{m: single[m][b, t] if PRESENT[m][b, t] else None for m in ("s2", "s1")} for t in range(4)]
        plain = seamo_plain.temporal_multimodal(series, state, 3, fusion=fusion, query=query)
        for t in range(4):
            for m, h in plain[t].items():
                if h is None:
                    assert features.tokens[m][b, t].isnan().all()
                    continue
                torch.testing.assert_close(features.tokens[m][b, t], h, atol=1e-5, rtol=0)
                torch.testing.assert_close(features.pooled[m][b, t], h.mean(0), atol=1e-5, rtol=0)
            if all(h is not None for h in plain[t].values()):
                joint = (plain[t]["s2"] + plain[t]["s1"]) / 2
                torch.testing.assert_close(features.tokens["joint"][b, t], joint, atol=1e-5, rtol=0)
                torch.testing.assert_close(features.pooled["joint"][b, t], joint.mean(0), atol=1e-5, rtol=0)


def test_a_missing_season_is_as_if_it_were_not_there():
    model, x = seamo(temporal=True), pictures(16, 16, times=4)
    valid = torch.tensor([[True, False, True, True]]).expand(2, 4)
    broken = {m: v.masked_fill(~valid[..., None, None, None], float("nan")) for m, v in x.items()}
    features = model.forward_features(broken, valid={"s2": valid, "s1": valid}, temporal=True)
    three = model.forward_features({m: v[:, [0, 2, 3]] for m, v in x.items()}, temporal=True)
    for stream in ("s2", "s1", "joint"):
        torch.testing.assert_close(
            features.tokens[stream][:, [0, 2, 3]], three.tokens[stream], atol=1e-5, rtol=0
        )
        assert features.tokens[stream][:, 1].isnan().all()
    # Nor does what it holds reach a gradient.
    features.pooled["joint"][:, [0, 2, 3]].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("gaps", [False, True])
def test_dates_in_any_order_give_the_features_of_their_order_in_time(gaps):
    model, x = seamo(temporal=True), pictures(16, 16, times=4, count=3)
    valid = PRESENT if gaps else {}
    days = torch.tensor([[10, 40, 70, 100], [1, 2, 3, 4], [-50, 0, 19000, 19001]])
    expected = model.forward_features(x, valid=valid, temporal=True)
    same = model.forward_features(x, valid=valid, dates=days, temporal=True)
    orders = torch.tensor([[2, 0, 3, 1], [3, 2, 1, 0], [1, 3, 0, 2]])  # each sample its own
    rows = torch.arange(3)[:, None]
    mixed = model.forward_features(
        {m: v[rows, orders] for m, v in x.items()},
        valid={m: v[rows, orders] for m, v in valid.items()}, dates=days[rows, orders], temporal=True,
    )  # fmt: skip
    as_it_stands = model.forward_features(
        {m: v[rows, orders] for m, v in x.items()},
        valid={m: v[rows, orders] for m, v in valid.items()}, temporal=True,
    )  # fmt: skip
    for stream, tokens in expected.tokens.items():
        for found in (same.tokens[stream][rows, orders], mixed.tokens[stream]):
            torch.testing.assert_close(found, tokens[rows, orders], atol=1e-5, rtol=0, equal_nan=True)
        assert not torch.allclose(as_it_stands.tokens[stream], tokens[rows, orders], equal_nan=True)


def test_equal_dates_are_refused_unless_one_of_them_is_missing_in_all_sensors():
    model, x = seamo(temporal=True), pictures(16, 16, times=3)
    days = torch.tensor([[1, 2, 3], [7, 5, 7]])
    message = r"dates\[1\] has day 7 twice.*remove one of the two, or leave out dates="
    with pytest.raises(ValueError, match=message):
        model(x, dates=days, temporal=True)
    model(x, dates=days)  # nobody asks for their order
    gap = torch.tensor([[True, True, True], [True, True, False]])
    # Radar is there on both days: the season is, and it cannot be ordered.
    for valid in ({"s2": gap}, {"s2": gap, "s1": torch.ones_like(gap)}, {"s1": gap}):
        with pytest.raises(ValueError, match=message):
            model(x, dates=days, valid=valid, temporal=True)
    features = model.forward_features(x, dates=days, valid={"s2": gap, "s1": gap}, temporal=True)
    two = {m: v[1:, [1, 0]] for m, v in x.items()}
    expected = model.forward_features(two, temporal=True)
    torch.testing.assert_close(
        features.tokens["joint"][1:, [1, 0]], expected.tokens["joint"], atol=1e-5, rtol=0
    )
    alone = model.forward_features({"s1": x["s1"]}, dates=days, valid={"s1": gap}, temporal=True)
    assert alone.tokens["s1"][gap].isfinite().all()


def test_temporal_features_that_cannot_be_had_say_how():
    with pytest.raises(
        ValueError, match=r"has none: `python -m .*export RUN --full.*overrides=\{'temporal': True\} builds"
    ):
        seamo().forward_features(pictures(times=2), temporal=True)
    with pytest.raises(ValueError, match=r"temporal=True fuses the dates of a series.*got \[2, 12,"):
        seamo(temporal=True)(pictures(), temporal=True)
    croma = rsb.create_model("croma_vit_tiny")
    with pytest.raises(ValueError, match=r"requires a model that fuses encoded dates.*SeaMo does, with"):
        croma(pictures(times=2), temporal=True)


def test_only_trained_weights_keep_the_grid_that_they_were_trained_on(tmp_path):
    by_argument = rsb.create_model("seamo_vit_tiny", patch_size=16, image_size=128)
    by_override = rsb.create_model("seamo_vit_tiny", overrides={"patch_size": 16, "image_size": 128})
    assert by_argument.config.grid == by_override.config.grid == (8, 8)
    file = rsb.save_model(seamo(), tmp_path / "model.safetensors")  # 64 pixels, patch 8
    assert rsb.create_model("seamo_vit_tiny", checkpoint=file, image_size=128).config.grid == (8, 8)
    assert rsb.create_model("seamo_vit_tiny", image_size=128).config.grid == (16, 16)


def test_a_size_among_the_overrides_is_the_size_that_the_user_means_not_what_the_weights_are_of(tmp_path):
    model = seamo().eval()  # 64 pixels, patch 8
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    both = {"checkpoint": file, "image_size": 128}
    for options in (
        {"checkpoint": file, "overrides": {"image_size": 128}},
        both | {"overrides": {"image_size": 128}},
    ):
        again = rsb.create_model("seamo_vit_tiny", **options)
        assert (again.config.grid, again.config.image_size) == ((8, 8), 128)
        for side in (64, 96):
            assert torch.equal(again(pictures(side, side)), model(pictures(side, side)))
    with pytest.raises(ValueError, match=r"image_size=128 and overrides=\{'image_size': 96\} differ"):
        rsb.create_model("seamo_vit_tiny", **both, overrides={"image_size": 96})
    # A file that says nothing of itself: what the overrides say is what it holds.
    torch.save(seamo(positions="learned", image_size=96).state_dict(), tmp_path / "bare.pt")
    said = {**SMALL, "positions": "learned", "image_size": 96}
    bare = rsb.create_model("seamo_vit_tiny", checkpoint=tmp_path / "bare.pt", image_size=128, overrides=said)
    assert (bare.config.grid, bare.config.image_size) == ((12, 12), 128)


def test_the_block_is_built_on_demand_and_used_on_demand():
    with_block, without = seamo(temporal=True), seamo()
    assert {n.split(".")[0] for n in set(with_block.state_dict()) - set(without.state_dict())} == {"temporal"}
    without.load_state_dict(with_block.state_dict(), strict=False)
    x = pictures(times=3)
    assert close(with_block(x), without(x))
    assert not close(with_block(x, temporal=True), with_block(x))
    classifier = rsb.create_model("seamo_vit_tiny", num_classes=5, overrides={**SMALL, "temporal": True})
    pooled = classifier.forward_features(x, temporal=True).pooled["joint"]
    assert close(classifier(x, temporal=True), classifier.head(pooled))


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_temporal_features_survive_a_file(tmp_path, form):
    model = seamo(temporal=True, fusion=form[0], query=form[1], positions="learned")
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    again = rsb.create_model("seamo_vit_tiny", checkpoint=file, image_size=96)
    assert (again.config.fusion, again.config.query, again.config.temporal) == (*form, True)
    x, dates = pictures(16, 24, times=3), torch.tensor([[3, 1, 2], [1, 2, 3]])
    expected = model.forward_features(x, dates=dates, temporal=True)
    found = again.forward_features(x, dates=dates, temporal=True)
    for stream, tokens in expected.tokens.items():
        assert close(found.tokens[stream], tokens)
    with pytest.raises(rsb.WeightsError, match="overrides cannot contradict"):
        rsb.create_model("seamo_vit_tiny", checkpoint=file, overrides={"temporal": False})
    radar = rsb.create_model("seamo_vit_tiny", checkpoint=file, modalities=["s1"])
    assert close(
        radar.forward_features(x["s1"], temporal=True).tokens["s1"],
        model.forward_features({"s1": x["s1"]}, temporal=True).tokens["s1"],
    )


# -- other bands, other configurations ----------------------------------------------------------------------


def test_new_tokenizers_over_pretrained_blocks(own_sensors, tmp_path):
    """What the paper does for other sets of bands: all that is not the tokenizer stays."""
    model = seamo()
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    other = rsb.hyperspectral("between", (625, 900, 1050, 1240, 1750), 10)  # none in a band of Sentinel-2
    loaded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded.append(
            rsb.create_model(
                "seamo_vit_tiny", checkpoint=file, sensors={"s2": other}, missing_bands="reinit"
            )
        )  # fmt: skip
    with pytest.raises(ValueError, match="missing_bands"):
        rsb.create_model("seamo_vit_tiny", checkpoint=file, sensors={"s2": other})
    before, first, second = model.state_dict(), *(m.state_dict() for m in loaded)
    differing = {n for n in before if before[n].shape != first[n].shape or not before[n].equal(first[n])}
    assert differing == {"tokenizers.s2.proj.weight"}
    assert first["tokenizers.s2.proj.weight"].shape == (48, 5 * 64)
    assert not torch.equal(first["tokenizers.s2.proj.weight"], second["tokenizers.s2.proj.weight"])
    assert [match.rule for match in loaded[0].adaptation.bands[0].matches] == ["reinit"] * 5
    x = torch.rand(2, 5, 32, 48)
    assert loaded[0]({"s2": x, "s1": pictures()["s1"]}).shape == (2, 48)
    radar = {"s1": pictures()["s1"]}
    assert close(loaded[0].forward_features(radar).tokens["s1"], model.forward_features(radar).tokens["s1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions must be one of sincos, learned, got 'alibi'"),
        ({"fusion": "add"}, "fusion must be one of fuse, decouple, got 'add'"),
        ({"query": "key"}, "query must be one of algorithm, text, got 'key'"),
        ({"temporal": 1}, "temporal must be true or false, got 1"),
        ({"position_grid": (8,)}, "position_grid must be"),
        ({"position_grid": (8, 0)}, "position_grid must be"),
        ({"position_grid": 8}, "position_grid must be"),
        ({"dim": 6, "num_heads": 2}, "multiple of 4"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be a number"),
        ({"mlp_ratio": 0}, "hidden layer of at least 1"),
        (
            {"modalities": ["rgb"], "bands": {"rgb": ("B04", "B03", "B02")}},
            "modalities are s2, s1, got rgb",
        ),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rsb.create_model("seamo_vit_tiny", overrides={**SMALL, **changes})

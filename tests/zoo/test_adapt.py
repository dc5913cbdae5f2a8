"""Bands, patches and position tables: against plain versions, timm, and what must hold of any rule."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.input_spec import SSL4EO_S12, InputSpec
from rsbackbones.layers.position_table import resize_position_table
from rsbackbones.layers.tokenizer import ConvTokenizer, LinearTokenizer
from rsbackbones.sensors import S2, SENSORS, Band, Sensor, get_sensor
from rsbackbones.zoo.adapt import (
    MISSING_RULES,
    SCALE_RULES,
    adapt_input_spec,
    adapt_kernel,
    match_bands,
    resize_kernel,
)
from rsbackbones.zoo.factory import plan_adaptation
from tests.reference.bands_plain import adapt_plain

ALL = tuple(band.name for band in S2.bands)
TWELVE = SSL4EO_S12["s2"].bands
FOUR = ("B02", "B03", "B04", "B08")
ENMAP = np.concatenate([np.linspace(418, 993, 91), np.linspace(902, 2445, 133)])  # 224, overlapping

subsets = st.lists(st.sampled_from(ALL), min_size=1, unique=True)
# ``reinit_all`` is not about bands that are missing; it has a test of its own.
rules = st.sampled_from([rule for rule in MISSING_RULES if rule not in ("error", "reinit_all")])
scales = st.sampled_from(SCALE_RULES)


@pytest.fixture
def saved(tiny, tmp_path):
    return rsb.save_model(tiny, tmp_path / "tiny.safetensors")


def kernels(mine, theirs, seed=0, dim=3, patch=2):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(dim, theirs, patch, patch, generator=generator, dtype=torch.float64),
        torch.randn(dim, mine, patch, patch, generator=generator, dtype=torch.float64),
    )


def token(kernel, patch):
    """The token of one patch [C, p, p], without bias."""
    return torch.einsum("dcij,cij->d", kernel, patch)


def triples(sensor, names):
    return [(b.name, b.wavelength, b.width) for b in map(get_sensor(sensor).band, names)]


# -- tokenizers -----------------------------------------------------------------------------------


@given(
    bands=st.integers(1, 5),
    dim=st.integers(1, 4),
    patch=st.integers(1, 4),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
@settings(max_examples=40)
def test_all_tokenizers_give_the_same_tokens_from_one_kernel(bands, dim, patch, grid, data):
    kernel, _ = kernels(1, bands, dim=dim, patch=patch)
    images = torch.randn(2, bands, grid[0] * patch, grid[1] * patch, dtype=torch.float64)
    channels = data.draw(st.lists(st.integers(0, bands - 1), min_size=1, unique=True))
    kept = torch.tensor(
        [data.draw(st.lists(st.integers(0, grid[0] * grid[1] - 1), min_size=2, max_size=2))] * 2
    )
    expected = torch.empty(2, grid[0] * grid[1], dim, dtype=torch.float64)
    for i in range(grid[0]):
        for j in range(grid[1]):
            window = images[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            for b in range(2):
                expected[b, i * grid[1] + j] = token(kernel, window[b])
    some = images.clone()
    some[:, [c for c in range(bands) if c not in channels]] = 0
    for tokenizer in (
        LinearTokenizer(bands, dim, patch),
        LinearTokenizer(bands, dim, patch, "band_last"),
        ConvTokenizer(bands, dim, patch),
    ):
        tokenizer.double()
        weight = tokenizer.from_kernel(kernel)
        assert torch.equal(tokenizer.to_kernel(weight), kernel)
        with torch.no_grad():
            tokenizer.proj.weight.copy_(weight)
            tokenizer.proj.bias.zero_()
        torch.testing.assert_close(tokenizer(images), expected, atol=1e-12, rtol=0)
        picked = torch.stack([expected[b][kept[b]] for b in range(2)])
        torch.testing.assert_close(tokenizer(images, kept=kept), picked, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            tokenizer(images[:, channels], channels=channels), tokenizer(some), atol=1e-12, rtol=0
        )


# -- which weights a band gets --------------------------------------------------------------------


@given(mine=subsets, theirs=subsets, missing=rules, scale=scales, seed=st.integers(0, 99))
@settings(max_examples=150)
def test_every_rule_is_its_plain_version(mine, theirs, missing, scale, seed):
    sensors = {
        "same": ("s2", mine),
        "other": ("hls_s30", mine),
        "landsat": ("landsat_oli", ("B4", "B5", "B7")),
    }
    for sensor, names in sensors.values():
        kernel, fresh = kernels(len(names), len(theirs), seed)
        expected = adapt_plain(
            kernel, fresh, triples(sensor, names), triples("s2", theirs), same_sensor=sensor == "s2",
            missing=missing, scale=scale,
        )  # fmt: skip
        if expected is None:
            with pytest.raises(ValueError, match="too far from every pretrained band"):
                match_bands("s2", names, theirs, sensor=sensor, missing_bands=missing, kernel_scale=scale)
        else:
            table = match_bands("s2", names, theirs, sensor=sensor, missing_bands=missing, kernel_scale=scale)
            torch.testing.assert_close(adapt_kernel(kernel, table, fresh), expected, atol=1e-12, rtol=0)


@given(theirs=st.permutations(TWELVE), mine=subsets)
@settings(max_examples=60)
def test_gathering_reordering_and_dropping_is_a_loop_over_names(theirs, mine):
    mine = [band for band in mine if band in theirs] or ["B04"]
    kernel, fresh = kernels(len(mine), 12)
    got = adapt_kernel(kernel, match_bands("s2", mine, theirs, kernel_scale="none"), fresh)
    for i, band in enumerate(mine):
        assert torch.equal(got[:, i], kernel[:, theirs.index(band)])


@given(mine=subsets, missing=rules, scale=scales, data=st.data())
@settings(max_examples=60)
def test_bands_and_input_permuted_together_give_the_same_token(mine, missing, scale, data):
    turned = data.draw(st.permutations(range(len(mine))))
    kernel, fresh = kernels(len(mine), 12)
    patch = torch.randn(len(mine), 2, 2, dtype=torch.float64)
    a = match_bands("s2", mine, TWELVE, missing_bands=missing, kernel_scale=scale)
    b = match_bands("s2", [mine[i] for i in turned], TWELVE, missing_bands=missing, kernel_scale=scale)
    torch.testing.assert_close(
        token(adapt_kernel(kernel, a, fresh), patch),
        token(adapt_kernel(kernel, b, fresh[:, turned]), patch[turned]),
    )


def sources(table):
    return {match.band: match.source for match in table.matches}


def test_sensors_meet_by_wavelength_and_never_by_name():
    mine = ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
    table = match_bands("s2", mine, TWELVE, sensor="landsat_oli")
    assert sources(table) == {
        "B1": "B01", "B2": "B02", "B3": "B03", "B4": "B04", "B5": "B8A", "B6": "B11", "B7": "B12"
    }  # fmt: skip
    assert {match.rule for match in table.matches} == {"by wavelength"}
    assert table.dropped_bands == ("B05", "B06", "B07", "B08", "B09")
    assert sources(match_bands("s2", ["B5"], FOUR, sensor="landsat_oli")) == {"B5": "B08"}
    same = match_bands("s2", ALL, ALL, sensor="hls_s30")
    assert sources(same) == dict(zip(ALL, ALL, strict=True))
    planet = match_bands("s2", ["red", "rededge", "nir", "blue", "green"], TWELVE, sensor="superdove")
    assert list(sources(planet).values()) == ["B04", "B05", "B8A", "B02", "B03"]
    assert sources(match_bands("s2", ["r", "g", "b"], TWELVE, sensor="rgb")) == {
        b: b for b in ("B04", "B03", "B02")
    }
    # Weights of Landsat serve Sentinel-2 as well.
    back = match_bands("s2", ["B8A", "B11"], mine, weights_sensor="landsat_oli")
    assert sources(back) == {"B8A": "B5", "B11": "B6"}
    with pytest.raises(ValueError, match=r"no band \(of s2\) close in wavelength to B8, B9; they have B01"):
        match_bands("s2", ["B8", "B2", "B9"], TWELVE, sensor="landsat_oli")


def test_what_is_absurdly_far_is_refused():
    for rule, message in (("nearest", r"B10 at 10895.0 nm is too far.*B12 at 2202.4 nm"), ("error", "B10")):
        with pytest.raises(ValueError, match=message):
            match_bands("s2", ["B10"], TWELVE, sensor="hls_l30", missing_bands=rule)
    assert sources(match_bands("s2", ["B12"], FOUR, missing_bands="nearest")) == {
        "B12": "B08"
    }  # 2.6 times as long
    with pytest.raises(ValueError, match="s2 is optical, but the weights are for s1, which is radar"):
        match_bands("s2", ["B04"], ["VV"], weights_sensor="s1")


def test_radar_bands_meet_by_wavelength_and_polarization(own_sensors):
    bands = tuple(Band(name=name, wavelength=55.5e6, width=1e6, gsd=5) for name in ("HH", "VH"))
    rsb.register_sensor(Sensor(name="other_c_band", title="", kind="radar", bands=bands))
    both = ["VV", "VH"]
    assert sources(match_bands("s1", ["VH"], both, sensor="other_c_band")) == {"VH": "VH"}
    with pytest.raises(ValueError, match="HH"):
        match_bands("s1", ["HH"], both, sensor="other_c_band")
    assert sources(match_bands("s1", ["VH"], ["VV"], missing_bands="nearest")) == {"VH": "VV"}
    long = tuple(Band(name=name, wavelength=236e6, width=8e6, gsd=10) for name in both)
    rsb.register_sensor(Sensor(name="l_band", title="", kind="radar", bands=long))
    with pytest.raises(ValueError, match=r"VV at 23.60 cm is too far .*5.55 cm"):
        match_bands("s1", both, both, sensor="l_band", missing_bands="nearest")


# -- which scale ----------------------------------------------------------------------------------


@given(mine=subsets, missing=st.sampled_from(["nearest", "mean"]), scale=scales)
@settings(max_examples=60)
def test_where_all_bands_weigh_alike_a_flat_image_keeps_its_token(mine, missing, scale):
    """Under ``count``; the others keep what they state of it: the root, and the share of the bands."""
    one = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    patch = torch.randn(1, 2, 2, dtype=torch.float64)
    table = match_bands("s2", mine, TWELVE, missing_bands=missing, kernel_scale=scale)
    kernel = adapt_kernel(one.expand(3, 12, 2, 2), table, torch.zeros(3, len(mine), 2, 2))
    used = {(match.source, match.rule == "mean") for match in table.matches}
    share = {"count": 1, "sqrt": (len(used) / 12) ** 0.5, "none": len(used) / 12}[scale]
    torch.testing.assert_close(
        token(kernel, patch.expand(len(mine), 2, 2)),
        token(one.expand(3, 12, 2, 2), patch.expand(12, 2, 2)) * share,
    )


@pytest.mark.parametrize("scale", SCALE_RULES)
def test_224_narrow_bands_are_worth_the_twelve_that_they_share(own_sensors, scale):
    rsb.register_sensor(rsb.hyperspectral("enmap", ENMAP, 30))
    mine = [band.name for band in get_sensor("enmap").bands]
    assert (len(mine), mine[0], mine[-1]) == (224, "B001", "B224")
    table = match_bands("s2", mine, TWELVE, sensor="enmap", missing_bands="nearest", kernel_scale=scale)
    assert not table.dropped_bands
    kernel, fresh = kernels(224, 12)
    patch = torch.randn(1, 2, 2, dtype=torch.float64)
    flat = token(adapt_kernel(kernel, table, fresh), patch.expand(224, 2, 2))
    torch.testing.assert_close(flat, token(kernel, patch.expand(12, 2, 2)))


def test_zero_and_new_bands_take_nothing_from_the_others():
    for missing, factor in (("zero", 0), ("reinit", 1)):
        table = match_bands("s2", ["B04", "B10"], TWELVE, missing_bands=missing)
        alone = match_bands("s2", ["B04"], TWELVE)
        assert table.matches[0] == alone.matches[0]
        assert table.matches[1].factor == factor
    only = match_bands("s2", ["B10"], TWELVE, missing_bands="reinit")
    kernel, fresh = kernels(1, 12)
    assert torch.equal(adapt_kernel(kernel, only, fresh), fresh)


def test_kernels_of_other_bands_are_refused():
    kernel, fresh = kernels(2, 12)
    table = match_bands("s2", ["B04", "B03"], TWELVE)
    for a, b in ((kernel[:, :11], fresh), (kernel, fresh[:, :1]), (kernel.flatten(1), fresh)):
        with pytest.raises(ValueError, match=r"s2: expected a pretrained kernel \[D, 12, \.\.\.\]"):
            adapt_kernel(a, table, b)


# -- models ---------------------------------------------------------------------------------------


def test_a_model_of_landsat_is_the_model_of_sentinel_2_with_renamed_bands(tiny, saved):
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, modalities=["s2"], sensors={"s2": "landsat_oli"},
        bands={"s2": ("SR_B4", "nir", "B7")}, kernel_scale="none",
    )  # fmt: skip
    assert model.bands == {"s2": ("B4", "B5", "B7")}
    assert model.config.sensors == {"s2": "landsat_oli"}
    x = torch.rand(1, 3, 16, 16)
    whole = torch.zeros(1, 12, 16, 16)
    whole[:, [tiny.bands["s2"].index(b) for b in ("B04", "B8A", "B12")]] = x
    torch.testing.assert_close(model(x), tiny({"s2": whole}), atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match=r"this model takes 3: B4, B5, B7.*9 channels look like all of B1, B2"
    ) as e:
        model(torch.rand(1, 9, 16, 16))
    assert "x[:, [3, 4, 6]]" in str(e.value)


def test_the_input_contract_follows_the_bands(saved):
    spec = SSL4EO_S12["s2"]
    known = {b: (m, s) for b, m, s in zip(spec.bands, spec.mean, spec.std, strict=True)}
    common = {"modalities": ["s2"], "sensors": {"s2": "landsat_oli"}, "bands": {"s2": ["B5", "B9", "B2"]}}
    for checkpoint in (saved, None):
        model = rsb.create_model("croma_vit_tiny", checkpoint=checkpoint, **common, missing_bands="nearest")
        contract = model.inputs["s2"]
        assert contract.bands == model.bands["s2"] == ("B5", "B9", "B2")
        for i, source in enumerate(("B8A", "B11", "B02")):
            assert (contract.mean[i], contract.std[i]) == known[source]
        model = rsb.create_model("croma_vit_tiny", checkpoint=checkpoint, **common, missing_bands="mean")
        assert model.inputs["s2"].mean[1] == pytest.approx(np.mean(spec.mean))
        assert model.inputs["s2"].std[1] == pytest.approx(np.mean(spec.std))
        model = rsb.create_model("croma_vit_tiny", checkpoint=checkpoint, **common, missing_bands="reinit")
        with pytest.raises(ValueError, match=r"no statistics for B9.*statistics=\{'s2': \{'B9'"):
            rsb.create_preprocess(model)
        rsb.create_preprocess(model, statistics={"s2": {"cirrus": (20.0, 50.0)}})
    none = adapt_input_spec(spec, match_bands("s2", ["B10"], TWELVE, missing_bands="reinit"))
    assert (none.bands, none.mean, none.std) == ((), (), ())


def test_landsat_numbers_become_reflectances(saved):
    bands = ("B2", "B5", "B7")
    model = rsb.create_model(
        "croma_vit_tiny",
        checkpoint=saved,
        modalities=["s2"],
        sensors={"s2": "landsat_oli"},
        bands={"s2": bands},
    )
    reflectance = np.random.default_rng(0).uniform(0.02, 0.5, (1, 3, 8, 8))
    direct = rsb.create_preprocess(model, units={"s2": "reflectance"}, eight_bit=False)(reflectance)
    numbers = ((reflectance + 0.2) / 0.0000275).round().astype(np.uint16)
    every = np.zeros((1, 9, 8, 8), np.uint16) + 9000  # all of a scene's bands, in another order
    every[:, [8, 3, 0]] = numbers
    order = ("B7", "B1", "B9", "B5", "B4", "B3", "B6", "B8", "B2")
    preprocess = rsb.create_preprocess(
        model, bands={"s2": order}, units={"s2": "landsat_c2"}, eight_bit=False
    )
    torch.testing.assert_close(preprocess(every), direct, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="look like digital numbers"):
        preprocess(np.full((1, 9, 8, 8), 3000, np.uint16))


@pytest.mark.parametrize("missing", ["nearest", "mean", "zero", "reinit"])
def test_adapted_models_are_saved_and_read_back(saved, tmp_path, missing):
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, sensors={"s2": "landsat_oli"}, bands={"s2": ("B9", "B4", "B8")},
        missing_bands=missing,
    )  # fmt: skip
    again = rsb.create_model("croma_vit_tiny", checkpoint=rsb.save_model(model, tmp_path / "m.safetensors"))
    assert not again.adaptation
    assert again.config == model.config
    assert again.inputs == model.inputs
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_only_a_band_of_zeros_needs_no_statistics(saved, tmp_path):
    common = {"modalities": ["s2"], "bands": {"s2": ("B04", "B10")}}

    def built(**how):
        return rsb.create_model("croma_vit_tiny", **(common | how))

    def asks(model):
        with pytest.raises(ValueError, match="no statistics for B10"):
            rsb.create_preprocess(model)
        return True

    model = built(checkpoint=saved, missing_bands="zero")
    preprocess = rsb.create_preprocess(model, eight_bit=False)
    raw = torch.tensor([500.0, 510.0])[:, None, None].repeat(2, 1, 8, 8)
    raw[1, 1] = 9000  # the band that nothing looks at
    assert torch.equal(*model(preprocess(raw)))
    given = rsb.create_preprocess(model, statistics={"s2": {"B10": (20.0, 50.0)}}, eight_bit=False)
    assert torch.equal(model(given(raw)), model(preprocess(raw)))
    again = rsb.save_model(model, tmp_path / "zero.safetensors")
    read = built(checkpoint=again)
    assert read.inputs["s2"] == model.inputs["s2"]
    assert torch.equal(read(rsb.create_preprocess(read, eight_bit=False)(raw)), model(preprocess(raw)))
    # From there on: what has other weights than zeros, or is a mean of others, is as it was.
    assert asks(built(checkpoint=again, missing_bands="reinit_all"))
    mean = built(checkpoint=again, bands={"s2": ("B04", "B10", "B11")}, missing_bands="mean")
    assert mean.inputs["s2"].mean == (SSL4EO_S12["s2"].mean[3],) * 2
    assert mean.inputs["s2"].unused_bands == ("B10",)
    assert asks(built(checkpoint=saved, missing_bands="reinit"))
    # Random weights under the rule are zeros as well.
    assert asks(built())
    random = built(missing_bands="zero")
    assert torch.equal(*random(rsb.create_preprocess(random, eight_bit=False)(raw)))
    seen = raw.flip(0) * torch.tensor([2.0, 1.0])[:, None, None]
    other = random(rsb.create_preprocess(random, eight_bit=False)(seen))
    assert not torch.allclose(other, random(rsb.create_preprocess(random, eight_bit=False)(raw)))


def test_no_statistics_at_all_is_saved_and_read_back_too(saved, tmp_path):
    common = {"checkpoint": saved, "modalities": ["s2"], "bands": {"s2": ["B10"]}, "missing_bands": "reinit"}
    path = rsb.save_model(rsb.create_model("croma_vit_tiny", **common), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no statistics for B10"):
        rsb.create_preprocess(rsb.create_model("croma_vit_tiny", checkpoint=path))


def test_a_sensor_of_ones_own_is_registered_by_its_use_and_before_loading(own_sensors, saved, tmp_path):
    sensor = rsb.hyperspectral("enmap", ENMAP, 30)
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, modalities=["s2"], sensors={"s2": sensor}, missing_bands="nearest"
    )
    assert model(torch.rand(1, 224, 16, 16)).shape == (1, 96)
    assert rsb.create_preprocess(model)(torch.randint(0, 4000, (1, 224, 8, 8))).shape == (1, 224, 8, 8)
    assert len(str(model.adaptation).splitlines()) > 224
    path = rsb.save_model(model, tmp_path / "enmap.safetensors")
    del SENSORS["enmap"]
    with pytest.raises(rsb.WeightsMismatchError, match=r"'enmap', an unknown sensor; register it before"):
        rsb.create_model("croma_vit_tiny", checkpoint=path)
    rsb.register_sensor(sensor)
    again = rsb.create_model("croma_vit_tiny", checkpoint=path)
    x = torch.rand(1, 224, 16, 16)
    assert torch.equal(again(x), model(x))


def test_weights_of_another_sensor_serve_sentinel_2(tmp_path):
    """Trained on Landsat (random here), used on Sentinel-2: contract and weights go the other way."""
    bands = ("B2", "B3", "B4", "B5")
    landsat = rsb.create_model(
        "croma_vit_tiny",
        overrides={"sensors": {"s2": "landsat_oli"}, "bands": {"s2": bands, "s1": ("VV", "VH")}},
    )
    spec = SSL4EO_S12["s2"]
    assert landsat.inputs["s2"].bands == bands
    assert landsat.inputs["s2"].mean[3] == spec.mean[spec.bands.index("B8A")]
    path = rsb.save_model(landsat, tmp_path / "landsat.safetensors")
    model = rsb.create_model(
        "croma_vit_tiny",
        checkpoint=path,
        modalities=["s2"],
        sensors={"s2": "s2"},
        bands={"s2": ("B8A", "B04")},
    )
    weight = landsat.encoders["s2"].tokenizer.proj.weight.detach().unflatten(1, (4, -1))
    ours = model.encoders["s2"].tokenizer.proj.weight.detach().unflatten(1, (2, -1))
    torch.testing.assert_close(ours, weight[:, [3, 2]] * model.adaptation.bands[0].matches[0].factor)
    assert model.inputs["s2"].bands == ("B8A", "B04")
    plain = rsb.create_model("croma_vit_tiny", checkpoint=path)
    assert plain.config.sensors["s2"] == "landsat_oli"


def test_the_adaptation_is_a_table_with_a_row_per_band(saved):
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, bands={"s2": ("B10", "B11", "B02"), "s1": ("VH",)},
        missing_bands="nearest", kernel_scale="none", num_classes=3,
    )  # fmt: skip
    s2, s1 = model.adaptation.bands
    assert [(r.band, r.source, r.rule, r.factor) for r in s2.matches] == [
        ("B10", "B11", "nearest", 0.5), ("B11", "B11", "by name", 0.5), ("B02", "B02", "by name", 1)
    ]  # fmt: skip
    assert (s1.modality, s1.dropped_bands) == ("s1", ("VV",))
    text = str(model.adaptation)
    for line in (
        r"band +at +weights from +at +rule +factor",
        r"B10 +1373.5 nm +B11 +1613.7 nm +nearest +0.5",
        r"VH +5.55 cm +VH +5.55 cm +by name +1",
        r"dropped pretrained bands: B01, B03",
        r"head +new +3 classes",
    ):
        assert re.search(line, text), (line, text)


# -- before anything is loaded --------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"bands": {"s2": ("B08", "B02")}},
        {"bands": {"s2": ("B08", "B10"), "s1": ("VH",)}, "missing_bands": "nearest", "kernel_scale": "sqrt"},
        {"sensors": {"s2": "superdove"}, "missing_bands": "mean"},
        {"bands": {"s1": ("VV", "VH")}},
    ],
)
def test_the_plan_is_what_loading_does(arguments):
    model = rsb.create_model("croma_vit_tiny.samples", pretrained=True, **arguments)
    assert plan_adaptation("croma_vit_tiny.samples", **arguments).bands == model.adaptation.bands


def test_rsbackbones_bands_prints_the_table_without_loading(capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr("rsbackbones.zoo.weights.fetch", refuse)
    assert main(["bands", "croma_vit_b", "--bands", "B2,B3,B4,B8", "--bands", "s1=VV"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"B08 +832.8 nm +B08 +832.8 nm +by name +\S+\n +dropped pretrained bands: B01, B05", out)
    assert re.search(r"VV +5.55 cm +VV", out)
    assert (
        main(
            [
                "bands",
                "croma_vit_b",
                "--sensors",
                "s2=landsat_oli",
                "--missing-bands",
                "nearest",
                "--kernel-scale",
                "none",
            ]
        )
        == 0
    )
    assert re.search(r"B8 +589.5 nm +B03 +559.8 nm +nearest +0.5", capsys.readouterr().out)
    assert main(["bands", "croma_vit_b", "--bands", ",".join(TWELVE)]) == 0
    assert "nothing changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass your bands"),
        (["--bands", "B10"], "no band B10"),
        (["--bands", "s3=B10"], "bands has s3"),
        (["--sensors", "landsat_oli"], "'--sensors': expected MODALITY=SENSOR, got 'landsat_oli'"),
        (
            ["--bands", "B02", "--missing-bands", "guess"],
            "'--missing-bands': 'guess' is not one of 'error', 'nearest'",
        ),
        (
            ["--bands", "B02", "--kernel-scale", "guess"],
            "'--kernel-scale': 'guess' is not one of 'count', 'sqrt', 'none'",
        ),
    ],
)
def test_rsbackbones_bands_names_what_is_wrong(capsys, arguments, message):
    assert main(["bands", "croma_vit_b", *arguments]) == 2
    assert message in capsys.readouterr().err


# -- patches --------------------------------------------------------------------------------------


@given(old=st.integers(1, 6), more=st.integers(0, 6), bands=st.integers(1, 3))
@settings(max_examples=40)
def test_a_patch_made_larger_keeps_its_token(old, more, bands):
    kernel, _ = kernels(1, bands, patch=old)
    patch = torch.randn(bands, old, old, dtype=torch.float64)
    larger = F.interpolate(patch[None], (old + more,) * 2, mode="bilinear")[0]
    torch.testing.assert_close(
        token(resize_kernel(kernel, old + more), larger), token(kernel, patch), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8), (8, 12), (7, 5), (8, 8)])
def test_kernels_are_resized_as_timm_does(old, new):
    kernel = torch.randn(4, 3, old, old)
    theirs = resample_patch_embed(kernel, [new, new], interpolation="bilinear", antialias=True)
    torch.testing.assert_close(resize_kernel(kernel, new), theirs, atol=1e-4, rtol=1e-4)


def test_kernels_over_dates_are_resized_date_by_date():
    kernel = torch.randn(4, 3, 2, 8, 8)
    resized = resize_kernel(kernel, 12)
    assert resized.shape == (4, 3, 2, 12, 12)
    for date in range(2):
        expected = resize_kernel(kernel[:, :, date], 12)
        torch.testing.assert_close(resized[:, :, date], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3, 8, 4), (4, 3, 2, 4, 8), (4, 192, 8)])
def test_kernels_that_are_not_square_are_not_resized(shape):
    with pytest.raises(ValueError, match=r"only square kernels.*leave out patch_size="):
        resize_kernel(torch.zeros(shape), 16)


def test_a_model_of_larger_patches_has_the_tokens_of_patches_made_larger(saved, tiny, tmp_path):
    model = rsb.create_model("croma_vit_tiny", checkpoint=saved, patch_size=16, image_size=128)
    assert (model.patch_size, model.config.image_size) == (16, 128)
    assert [(s.part, s.detail[:14]) for s in model.adaptation.steps] == [
        (f"{m} stem", "8 to 16 pixels") for m in ("s2", "s1")
    ]
    x = {"s2": torch.rand(1, 12, 24, 16), "s1": torch.rand(1, 2, 24, 16)}
    larger = {}
    for m, image in x.items():
        patches = image.unflatten(2, (3, 8)).unflatten(4, (2, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        patches = F.interpolate(patches, (16, 16), mode="bilinear")
        larger[m] = patches.view(1, 3, 2, -1, 16, 16).permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 48, 32)
    torch.testing.assert_close(model(larger), tiny(x), atol=1e-4, rtol=0)
    again = rsb.create_model("croma_vit_tiny", checkpoint=rsb.save_model(model, tmp_path / "p.safetensors"))
    assert again.patch_size == 16
    assert not again.adaptation


def test_reinit_all_is_a_new_tokenizer_over_trained_blocks_and_keeps_the_statistics(saved, tiny):
    """SeaMo, section 4.5.6."""
    torch.manual_seed(1)
    model = rsb.create_model("croma_vit_tiny", checkpoint=saved, missing_bands="reinit_all")
    before, after = tiny.state_dict(), model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"encoders.{m}.tokenizer.proj.weight" for m in ("s2", "s1")}
    assert model.inputs == tiny.inputs
    few = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, bands={"s2": ("B04", "B10")}, missing_bands="reinit_all"
    )
    radar = "encoders.s1.tokenizer.proj.weight"
    assert torch.equal(few.state_dict()[radar], before[radar])  # nothing was asked of it
    (table,) = few.adaptation.bands
    assert [(match.band, match.rule, match.factor) for match in table.matches] == [
        ("B04", "reinit", 1),
        ("B10", "reinit", 1),
    ]
    assert table.dropped_bands == tiny.bands["s2"]
    assert few.inputs["s2"].bands == ("B04",)
    bound = (2 * 64) ** -0.5  # torch's, for the bands that there are
    weight = few.encoders["s2"].tokenizer.proj.weight
    assert 0.9 * bound < weight.abs().max() <= bound


def test_patches_and_bands_change_together(saved, tiny):
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, modalities=["s2"], bands={"s2": ("B04", "B02")}, patch_size=4,
    )  # fmt: skip
    kernel = tiny.encoders["s2"].tokenizer.proj.weight.detach().view(96, 12, 8, 8)
    expected = resize_kernel(kernel[:, [3, 1]] * model.adaptation.bands[0].matches[0].factor, 4)
    got = model.encoders["s2"].tokenizer.proj.weight.detach().view(96, 2, 4, 4)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


# -- position tables ------------------------------------------------------------------------------

sides = st.integers(1, 9)


@given(old=st.tuples(sides, sides), new=st.tuples(sides, sides), prefix=st.integers(0, 3))
@settings(max_examples=60)
def test_position_tables(old, new, prefix):
    table = torch.randn(1, prefix + old[0] * old[1], 5, generator=torch.Generator().manual_seed(0))
    resized = resize_position_table(table, old, new, prefix=prefix)
    assert resized.shape == (1, prefix + new[0] * new[1], 5)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    assert resize_position_table(table, old, old, prefix=prefix) is table
    theirs = resample_abs_pos_embed(
        table, list(new), list(old), num_prefix_tokens=prefix, interpolation="bicubic", antialias=False
    )
    if new[0] * new[1] != old[0] * old[1] or new[0] == new[1]:  # else timm may take the table as it is
        torch.testing.assert_close(resized, theirs, atol=1e-5, rtol=0)
    flat = torch.full_like(table, 0.25)
    torch.testing.assert_close(
        resize_position_table(flat, old, new, prefix=prefix),
        torch.full_like(resized, 0.25),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_position_tables_keep_their_type_and_are_resized_in_float32(dtype):
    table = torch.randn(1, 12, 4).to(dtype)
    resized = resize_position_table(table, (3, 4), (5, 7))
    assert resized.dtype == dtype
    expected = resize_position_table(table.float(), (3, 4), (5, 7))
    assert torch.equal(resized, expected.to(dtype))


@pytest.mark.parametrize(
    ("shape", "old", "new", "prefix", "message"),
    [
        ((1, 17, 4), (4, 4), (5, 5), 0, r"1, 0 \+ 4 \* 4, D.*got \[1, 17, 4\]"),
        ((1, 16, 4), (4, 4), (5, 5), 1, "1 prefix tokens"),
        ((2, 16, 4), (4, 4), (5, 5), 0, r"got \[2, 16, 4\]"),
        ((16, 4), (4, 4), (5, 5), 0, r"got \[16, 4\]"),
        ((1, 16, 4), (4, 4), (0, 5), 0, "at least one row"),
    ],
)
def test_wrong_position_tables_are_refused(shape, old, new, prefix, message):
    with pytest.raises(ValueError, match=message):
        resize_position_table(torch.zeros(shape), old, new, prefix=prefix)


def test_contracts_without_bands_are_read():
    fields = {"bands": [], "product": "", "unit": "dn", "normalize": "clip_2sd", "mean": [], "std": []}
    assert InputSpec.from_mapping("s2", fields).bands == ()


def test_a_saved_model_refuses_another_sensor_of_the_same_name(saved, tmp_path):
    def drone(*wavelengths):
        return rsb.hyperspectral("a_drone", wavelengths, 1, width=30)

    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=saved, modalities=("s2",), sensors={"s2": drone(490, 560, 665, 842)}
    )
    path = rsb.save_model(model, tmp_path / "drone.safetensors")
    for other, found in (((665, 560, 490, 842), "it is at 665 nm"), ((490, 560, 665), "it is missing")):
        SENSORS.pop("a_drone")
        rsb.register_sensor(drone(*other))
        with pytest.raises(rsb.WeightsMismatchError, match=found):
            rsb.create_model("croma_vit_tiny", checkpoint=path)
    SENSORS.pop("a_drone")
    rsb.register_sensor(drone(491, 560, 665, 842))  # the same band, measured again
    rsb.create_model("croma_vit_tiny", checkpoint=path)
    SENSORS.pop("a_drone")


def test_crossed_polarizations_stand_in_for_crossed_ones():
    names = ("HH", "HV", "VH", "VV")
    bands = tuple(
        Band(name=n, wavelength=get_sensor("s1").band("VV").wavelength, width=1e6, gsd=10) for n in names
    )
    rsb.register_sensor(Sensor(name="quad_pol", title="", kind="radar", bands=bands))
    table = match_bands("s1", names, ("VV", "VH"), sensor="quad_pol", missing_bands="nearest")
    assert [match.source for match in table.matches] == ["VV", "VH", "VH", "VV"]


def test_only_new_bands_draw_random_numbers(saved):
    for missing, draws in (("nearest", False), ("reinit", True)):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        rsb.create_model(
            "croma_vit_tiny", checkpoint=saved, modalities=("s2",), bands={"s2": ("B02", "B10")},
            missing_bands=missing,
        )  # fmt: skip
        assert torch.equal(before, torch.get_rng_state()) is not draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bands": ["B02"]}, "bands must be a mapping by modality"),
        ({"sensors": "landsat_oli"}, "sensors must be a mapping by modality"),
        ({"bands": {"s2": (1, 2)}}, r"names such as 'B01', got \[1, 2\]"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rsb.create_model("croma_vit_tiny", **arguments)

"""The tokenizer by wavelength: any bands in any order from one file, and its distillation."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.layers.wavelength_tokenizer import VIRTUAL_BANDS, WavelengthTokenizer, fourier_features
from rsbackbones.sensors import S2
from rsbackbones.train.command import call_command
from rsbackbones.train.distill_tokenizer import (
    agreeing,
    command,
    distill_tokenizer,
    draw,
    interpolate,
    read_images,
)
from rsbackbones.zoo.saving import save_in_format
from tests.conftest import close

OWN = ("B02", "B03", "B04", "B08")
optical = st.lists(st.tuples(st.floats(350, 2600), st.floats(1, 1000)), min_size=1, max_size=9)
BY_WAVELENGTH = {"tokenizer": "wavelength"}


def tokenizer_for(bands, seed=0, dim=6, patch=2):
    torch.manual_seed(seed)
    return WavelengthTokenizer([b[0] for b in bands], [b[1] for b in bands], dim, patch)


def random_model(**options):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", overrides=BY_WAVELENGTH, **options)


# -- the layer ------------------------------------------------------------------------------------


@given(bands=optical, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_tokens_are_those_of_the_plain_sums(bands, seed):
    """Kernel of a band = sum over virtual bands of its share times the virtual kernel, written out."""
    tokenizer = tokenizer_for(bands, seed).double()
    images = torch.rand(2, len(bands), 4, 6, dtype=torch.float64)
    first, last = tokenizer.scores[0], tokenizer.scores[2]
    scores = []
    for wavelength, width in bands:
        u = math.log(wavelength / 350) / math.log(2600 / 350)
        v = math.log(width) / math.log(1000)
        angles = [math.pi * k * u for k in range(1, 33)] + [math.pi * k * v for k in range(1, 5)]
        row = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        scores.append(last.weight @ torch.nn.functional.gelu(first.weight @ row + first.bias) + last.bias)
    virtual_kernels = tokenizer.proj.weight.view(6, VIRTUAL_BANDS, 2, 2)
    expected = tokenizer.proj.bias.expand(2, 6, 6).clone()
    for c in range(len(bands)):
        kernel = torch.zeros(6, 2, 2, dtype=torch.float64)
        for r in range(VIRTUAL_BANDS):
            share = scores[c][r].exp() / sum(s[r].exp() for s in scores)
            kernel += share * virtual_kernels[:, r]
        for i in range(2):
            for j in range(3):
                window = images[:, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                expected[:, 3 * i + j] += torch.einsum("dij,bij->bd", kernel, window)
    torch.testing.assert_close(tokenizer(images), expected, atol=1e-4, rtol=0)  # features are float32


@given(bands=optical, data=st.data())
@settings(max_examples=25)
def test_the_order_of_the_bands_does_not_matter(bands, data):
    order = data.draw(st.permutations(range(len(bands))))
    images = torch.rand(1, len(bands), 4, 4)
    shuffled = tokenizer_for([bands[i] for i in order])
    torch.testing.assert_close(shuffled(images[:, order]), tokenizer_for(bands)(images), atol=1e-5, rtol=0)


@given(bands=optical, others=optical)
@settings(max_examples=25)
def test_an_image_that_is_the_same_in_all_bands_has_the_same_tokens_whichever_are_given(bands, others):
    plane = torch.rand(1, 1, 4, 4)
    one, other = (
        tokenizer_for(b)(plane.expand(-1, len(b), -1, -1)) for b in (bands, others * 20)
    )  # fmt: skip
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_kept_patches_and_channels_are_those_of_the_whole():
    bands = [(490.0, 66.0), (560.0, 36.0), (665.0, 31.0), (833.0, 106.0)]
    tokenizer, images = tokenizer_for(bands), torch.rand(2, 4, 8, 6)
    kept = torch.tensor([[0, 5], [11, 3]])
    picked = torch.take_along_dim(tokenizer(images), kept[..., None], 1)
    assert close(tokenizer(images, kept=kept), picked)
    some = tokenizer_for([bands[3], bands[1]])
    assert close(tokenizer(images[:, [3, 1]], channels=[3, 1]), some(images[:, [3, 1]]))
    tokenizer.take_bands([833.0, 560.0], [106.0, 36.0])
    assert close(tokenizer(images[:, [3, 1]]), some(images[:, [3, 1]]))


@pytest.mark.parametrize(
    ("wavelengths", "widths", "named"),
    [
        ([0.665], [0.031], "nanometers"),
        ([5.5e7], [1e6], "radar"),
        ([10895], [590], "got one at 10895"),
        ([float("nan")], [10], "got one at nan"),
        ([665], [0], "width of a band must be positive"),
        ([665, 833], [31], "2 wavelengths and 1 widths"),
        ([], [], "0 wavelengths"),
    ],
)
def test_what_is_no_optical_band_is_refused(wavelengths, widths, named):
    with pytest.raises(ValueError, match=named):
        fourier_features(wavelengths, widths)


# -- in a model -----------------------------------------------------------------------------------


def test_a_saved_model_loads_for_any_bands_of_any_optical_sensor(tmp_path):
    model = random_model(bands={"s2": OWN})
    path = rsb.save_model(model, tmp_path / "any.safetensors")
    load = lambda **options: rsb.create_model("croma_vit_tiny", checkpoint=path, **options)  # noqa: E731
    same, images = load(), {"s2": torch.rand(1, 4, 16, 16), "s1": torch.rand(1, 2, 16, 16)}
    assert not same.adaptation
    assert close(same(images), model(images))
    assert set(model.encoders["s2"].state_dict()) == set(random_model().encoders["s2"].state_dict())
    turned = load(bands={"s2": OWN[::-1]})
    assert torch.allclose(turned({**images, "s2": images["s2"].flip(1)}), model(images), atol=1e-5)

    hyper = rsb.hyperspectral("many", np.linspace(420, 2450, 224), gsd=30)
    try:
        for sensor, count in (("superdove", 8), ("rgb", 3), (hyper, 224)):
            other = load(sensors={"s2": sensor}, modalities=("s2",))
            assert other(torch.rand(1, count, 16, 16)).isfinite().all()
            again = rsb.save_model(other, tmp_path / "again.safetensors")
            reloaded = rsb.create_model("croma_vit_tiny", checkpoint=again)
            x = torch.rand(1, count, 16, 16)
            assert close(reloaded(x), other(x))
            for key, tensor in reloaded.state_dict().items():
                assert torch.equal(tensor, model.state_dict()[key])
    finally:
        rsb.SENSORS.pop("many", None)


def test_adaptation_and_contract_say_what_is_made_and_what_is_known(tmp_path):
    path = rsb.save_model(random_model(bands={"s2": OWN}), tmp_path / "any.safetensors")
    mine = {"modalities": ("s2",), "bands": {"s2": ("B04", "B05", "B11")}, "checkpoint": path}
    model = rsb.create_model("croma_vit_tiny", **mine)
    (table,) = model.adaptation.bands
    assert [(r.band, r.source, r.rule, r.factor) for r in table.matches] == [
        ("B04", "B04", "generated", 1.0), ("B05", None, "generated", 1.0), ("B11", None, "extrapolated", 1.0),
    ]  # fmt: skip
    assert "statistics from" in str(table)
    assert "dropped" not in str(table)
    assert model.inputs["s2"].bands == ("B04",)
    with pytest.raises(ValueError, match="B05, B11"):
        rsb.create_preprocess(model)
    near = rsb.create_model("croma_vit_tiny", **mine, missing_bands="nearest")
    x = torch.rand(1, 3, 16, 16)
    assert close(near(x), model(x))
    assert near.inputs["s2"].bands == ("B04", "B05", "B11")
    with pytest.raises(ValueError, match="missing_bands='zero' does not apply"):
        rsb.create_model("croma_vit_tiny", **mine, missing_bands="zero")
    with pytest.raises(ValueError, match="got one at 10895"):
        rsb.create_model("croma_vit_tiny", checkpoint=path, sensors={"s2": "hls_l30"}, modalities=("s2",))


def test_radar_stays_linear_and_other_words_are_refused():
    model = random_model()
    assert not isinstance(model.encoders["s1"].tokenizer, WavelengthTokenizer)
    assert isinstance(model.encoders["s2"].tokenizer, WavelengthTokenizer)
    with pytest.raises(ValueError, match="tokenizer must be one of linear, wavelength, got 'dofa'"):
        rsb.create_model("croma_vit_tiny", overrides={"tokenizer": "dofa"})


def test_patches_are_resized_as_those_of_a_linear_tokenizer(tmp_path):
    path = rsb.save_model(random_model(bands={"s2": OWN}), tmp_path / "any.safetensors")
    options = {"modalities": ("s2",), "checkpoint": path}
    model = rsb.create_model("croma_vit_tiny", **options)
    larger = rsb.create_model("croma_vit_tiny", **options, patch_size=16, image_size=32)
    patch = torch.rand(3, 4, 8, 8)
    twice = torch.nn.functional.interpolate(patch, size=(16, 16), mode="bilinear")
    one, other = (m.encoders["s2"].tokenizer(x) for m, x in ((model, patch), (larger, twice)))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_foreign_layouts_cannot_say_it(tmp_path):
    with pytest.raises(ValueError, match="tokenizer='wavelength'"):
        save_in_format(random_model(), tmp_path / "x.pt", "croma_official")


def test_a_model_is_exported_with_free_sizes():
    model = random_model(modalities=("s2",))
    program = rsb.export_program(model, method="forward_features").module()
    for size in ((1, 12, 16, 24), (3, 12, 40, 32)):
        x = torch.rand(size)
        found = program({"s2": x})["maps_s2"]
        assert torch.allclose(found, model.forward_features(x).maps("s2"), atol=1e-5)


def test_seamo_takes_it_too(tmp_path):
    """Its authors name it as future work (section 5): other bands by one file, MAE's initialization else."""
    few = {"modalities": ("s2",), "bands": {"s2": OWN}}
    torch.manual_seed(0)
    model = rsb.create_model("seamo_vit_tiny", overrides=BY_WAVELENGTH, bands={"s2": OWN})
    assert isinstance(model.tokenizers["s2"], WavelengthTokenizer)
    assert not isinstance(model.tokenizers["s1"], WavelengthTokenizer)
    for tokenizer in model.tokenizers.values():
        bound = (6 / sum(tokenizer.proj.weight.shape)) ** 0.5
        assert 0.95 * bound < tokenizer.proj.weight.abs().max() <= bound
    assert model.tokenizers["s2"].scores[2].weight.std() > 0.3  # its own: shares begin apart
    path = rsb.save_model(model, tmp_path / "any.safetensors")
    turned = rsb.create_model("seamo_vit_tiny", checkpoint=path, **few | {"bands": {"s2": OWN[::-1]}})
    same = rsb.create_model("seamo_vit_tiny", checkpoint=path, **few)
    x = torch.rand(1, 4, 16, 16)
    torch.testing.assert_close(turned(x.flip(1)), same(x), atol=1e-5, rtol=0)
    for sensor, count in (("superdove", 8), ("rgb", 3)):
        other = rsb.create_model(
            "seamo_vit_tiny", checkpoint=path, modalities=("s2",), sensors={"s2": sensor}
        )
        plane = torch.rand(1, 1, 16, 16)
        flat, own = other(plane.expand(-1, count, -1, -1)), same(plane.expand(-1, 4, -1, -1))
        torch.testing.assert_close(flat, own, atol=1e-5, rtol=0)


# -- distillation ---------------------------------------------------------------------------------


def test_the_agreeing_kernel_is_exact_and_nearest():
    generator = torch.Generator().manual_seed(0)
    virtual, kernel = (torch.randn(3, n, 2, 2, generator=generator, dtype=torch.float64) for n in (16, 5))
    mixing = torch.rand(16, 5, generator=generator, dtype=torch.float64)
    found = agreeing(virtual, kernel, mixing, 1e-12)
    torch.testing.assert_close(torch.einsum("drij,rc->dcij", found, mixing), kernel)
    # Nearest: what was added lies in the span of the mixing weights, so no shorter addition agrees.
    added = (found - virtual).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mixing @ torch.linalg.lstsq(mixing, added).solution, added)


def test_made_up_sensors_see_what_lies_between_the_bands():
    bands = [S2.band(name) for name in ("B08", "B02", "B04")]  # 832.8, 492.4, 664.6
    drawn = interpolate(bands, [664.6, (664.6 + 832.8) / 2, 492.4, 900.0], [1e-9] * 4)
    expected = [[0, 0, 1], [0.5, 0, 0.5], [0, 1, 0], [1, 0, 0]]
    torch.testing.assert_close(drawn.spectra, torch.tensor(expected), atol=1e-6, rtol=0)
    # Of a wide band, 5 points: 584.6, 624.6, 664.6, 704.6, 744.6.
    wide = interpolate(bands, [664.6], [200.0]).spectra[0]
    blue, infrared = (80 + 40) / (664.6 - 492.4) / 5, (40 + 80) / (832.8 - 664.6) / 5
    torch.testing.assert_close(wide, torch.tensor([infrared, blue, 1 - blue - infrared]))


def test_what_is_drawn_is_bands_and_what_they_see():
    bands, generator = [S2.band(name) for name in OWN], np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        drawn = draw(bands, generator)
        counts.add(len(drawn.wavelengths))
        assert drawn.spectra.shape == (len(drawn.widths), 4)
        torch.testing.assert_close(drawn.spectra.sum(1), torch.ones(len(drawn.widths)))
        assert fourier_features(drawn.wavelengths, drawn.widths).isfinite().all()
    assert min(counts) == 1
    assert max(counts) > 20


@pytest.fixture(scope="module")
def bundled():
    return rsb.create_model("croma_vit_tiny", pretrained=True)


@pytest.fixture(scope="module")
def simulated(bundled):
    return read_images(bundled, None)


@pytest.fixture(scope="module")
def student(bundled, simulated):
    """Distilled from every other image."""
    return distill_tokenizer(bundled, simulated[::2], steps=150)


def error(model, full, images, bands):
    """The error of a model's tokens from some bands, over the deviation of those that all bands give."""
    index = [full.bands["s2"].index(band) for band in bands]
    channels = index if model.bands == full.bands else None
    with torch.no_grad():
        right = full.encoders["s2"].tokenizer(images)
        found = model.encoders["s2"].tokenizer(images[:, index], channels=channels)
    return float((found - right).norm() / (right - right.mean((0, 1))).norm())


def test_distillation_keeps_the_tokens_of_all_bands_and_mends_those_of_fewer(bundled, simulated, student):
    held, after = simulated[1::2], student
    before = distill_tokenizer(bundled, simulated[::2], steps=0)
    noise = torch.rand(2, 4, 16, 16)
    for one in (before, after):
        for images in (held, noise):
            assert error(one, bundled, images, OWN) < 1e-4
    for bands in (("B02", "B04", "B08"), ("B04", "B08")):
        assert error(after, bundled, held, bands) < 0.6 * error(before, bundled, held, bands)
    radar = torch.rand(1, 2, 16, 16)
    one, other = (m.forward_features({"s1": radar}).tokens["s1"] for m in (bundled, after))
    assert close(one, other)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_errs_as_half_precision_does(simulated, student, dtype, most):
    tokenizer = copy.deepcopy(student.encoders["s2"].tokenizer)
    x = simulated[:4]
    with torch.no_grad():
        exact = tokenizer(x)
        with torch.autocast("cpu", dtype=dtype):
            autocast = tokenizer(x)
        half = tokenizer.to(dtype)(x.to(dtype))
    for found in (autocast, half):
        assert found.dtype == dtype
        assert (found - exact).norm() < most * (exact - exact.mean((0, 1))).norm()


def test_distillation_is_reproducible(bundled, simulated):
    one, other = (distill_tokenizer(bundled, simulated, steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


def distill(*arguments):
    return call_command(command, [str(a) for a in arguments], "rsbackbones.train.distill_tokenizer")


def test_the_command_writes_a_checkpoint_for_any_bands(bundled, tmp_path, capsys):
    path = tmp_path / "any.safetensors"
    assert distill("croma_vit_tiny", "--steps", "2", "--output", path) == 0
    assert "B02, B03, B04, B08" in capsys.readouterr().out
    model = rsb.create_model("croma_vit_tiny", checkpoint=path)
    x = {"s2": torch.rand(1, 4, 16, 16), "s1": torch.rand(1, 2, 16, 16)}
    assert torch.allclose(model(x), bundled(x), atol=1e-3)
    assert model.inputs["s2"] == bundled.inputs["s2"]
    assert distill("croma_vit_tiny", "--checkpoint", path, "--output", path) == 2
    assert "expected an optical sensor with a linear tokenizer" in capsys.readouterr().err
    dove = rsb.create_model(
        "croma_vit_tiny", checkpoint=path, modalities=("s2",), sensors={"s2": "superdove"}
    )
    assert dove(torch.rand(1, 8, 16, 16)).isfinite().all()


def test_seamo_is_distilled_by_the_same_command(tmp_path, capsys):
    path, file = tmp_path / "any.safetensors", tmp_path / "images.npz"
    before = rsb.create_model("seamo_vit_tiny", True)
    images = np.random.default_rng(0).integers(100, 4000, (4, len(before.bands["s2"]), 64, 64), np.uint16)
    np.savez(file, images=images, bands=np.array(before.bands["s2"]))
    assert distill("seamo_vit_tiny", "--steps", "2", "--images", file, "--output", path) == 0
    assert "from any bands" in capsys.readouterr().out
    after = rsb.create_model("seamo_vit_tiny", checkpoint=path)
    x = {"s2": torch.rand(1, len(before.bands["s2"]), 64, 64), "s1": torch.rand(1, 2, 64, 64)}
    torch.testing.assert_close(after(x), before(x), atol=1e-3, rtol=0)
    dove = rsb.create_model(
        "seamo_vit_tiny", checkpoint=path, modalities=("s2",), sensors={"s2": "superdove"}
    )
    assert dove(torch.rand(1, 8, 64, 64)).isfinite().all()


def test_images_that_cannot_be_read_are_named(tmp_path, capsys):
    np.savez(tmp_path / "nameless.npz", images=np.ones((1, 4, 8, 8)))
    for name, said in (("nosuch.npz", "cannot read"), ("nameless.npz", "has no array 'bands'")):
        arguments = ["--images", tmp_path / name, "--output", tmp_path / "x.safetensors"]
        assert distill("croma_vit_tiny", *arguments) == 2
        error = capsys.readouterr().err
        assert name in error
        assert said in error


def test_what_cannot_be_distilled_is_refused(bundled, simulated):
    with pytest.raises(ValueError, match="s1: expected an optical sensor"):
        distill_tokenizer(bundled, simulated[:, :2], modality="s1")
    with pytest.raises(ValueError, match="no modality 'rgb'; the model has s2, s1"):
        distill_tokenizer(bundled, simulated, modality="rgb")
    with pytest.raises(ValueError, match=r"expected normalized images \[B, 4, H, W\] of B02, B03, B04, B08"):
        distill_tokenizer(bundled, simulated[:, :3])


def test_on_real_images_fewer_bands_come_nearer_than_kernels_adapted_by_name(bundled, real_data):
    x = read_images(bundled, real_data / "s2l2a_unlabelled_1200.npz")[:120]
    student = distill_tokenizer(bundled, x[:100], steps=200)
    for bands in (("B02", "B04", "B08"), ("B04", "B08"), ("B04", "B03", "B02")):
        named = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",), bands={"s2": bands})
        assert error(student, bundled, x[100:], bands) < 0.7 * error(named, bundled, x[100:], bands)

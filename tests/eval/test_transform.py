"""Raw samples of a set reach the model by the names of their bands."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.simulator import S1_BANDS, S2_BANDS, simulate_scene
from rsbackbones.eval.transform import make_transform
from rsbackbones.input_spec import RGB8
from tests.eval.dense_sets import pixel_set


def model(**changes):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", overrides={"depth": 2, "dim": 32, "num_heads": 4}, **changes)


def set_of(bands, units=None):
    return pixel_set([], [], bands=bands, units=units)


def test_measured_values_are_what_create_preprocess_makes_of_them():
    scene = simulate_scene(32, 48, seed=1)
    both = model()
    data = set_of({"s2": S2_BANDS[::-1], "s1": S1_BANDS}, {"s2": "reflectance"})
    raw = {"s2": scene.s2[::-1] / 10000, "s1": scene.s1, "label": scene.land_cover}
    made = make_transform(both, data)(raw)
    expected = rsb.create_preprocess(both)({"s2": scene.s2, "s1": scene.s1})
    assert list(made) == ["s2", "s1"]
    assert all(x.dtype == torch.float32 for x in made.values())
    # Reflectances times 10000 may fall on the other side of a step of 1/255.
    assert (made["s2"] - expected["s2"]).abs().max() <= 1 / 255 + 1e-6
    assert (made["s2"] != expected["s2"]).float().mean() < 1e-3
    assert torch.equal(made["s1"], expected["s1"])
    bare = make_transform(model(modalities=("s2",)), set_of({"s2": S2_BANDS, "s1": S1_BANDS}))
    assert list(bare({"s2": scene.s2, "s1": scene.s1})) == ["s2"]
    # Stacked, and of two dates.
    dates = np.stack([scene.s2, scene.s2[:, ::-1]])
    assert torch.equal(bare({"s2": dates[None]})["s2"][0, 0], expected["s2"])


def test_pictures_become_reflectance_and_are_gathered_by_name():
    pictures = model(modalities=("s2",), bands={"s2": ("B02", "B03", "B04")})
    raw = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16)).astype(np.uint8)
    data = set_of({"s2": ("B04", "B08", "B03", "B02")}, {"s2": RGB8})
    made = make_transform(pictures, data)({"s2": raw})["s2"]
    measured = rsb.create_preprocess(pictures, check=False)
    wanted = measured(raw[:, [3, 2, 0]].astype(np.float32) / 255 * 2750)
    assert (made - wanted).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(make_transform(pictures, data)({"s2": torch.from_numpy(raw)})["s2"], made)


def test_a_set_that_lacks_what_the_model_takes_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"by hand has no images of s1.*modalities=\('s2',\)"):
        make_transform(model(), set_of({"s2": S2_BANDS}))
    with pytest.raises(ValueError, match=r"no images of s2, .*it has s1: choose a model"):
        make_transform(model(modalities=("s2",)), set_of({"s1": S1_BANDS}))
    with pytest.raises(
        ValueError, match=r"your bands lack B12, which the model takes.*create_model\(..., bands="
    ):
        make_transform(model(modalities=("s2",)), set_of({"s2": S2_BANDS[:-1]}))
    rgb = set_of({"s2": ("B04", "B03", "B02")}, {"s2": RGB8})
    with pytest.raises(ValueError, match=r"your bands lack B01, .*bands=\{'s2': \('B04', 'B03', 'B02'\)\}"):
        make_transform(model(modalities=("s2",)), rgb)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (256, "0 to 255"), (-1, "0 to 255")])
def test_values_that_no_picture_has_are_refused(value, message):
    inputs = make_transform(
        model(modalities=("s2",), bands={"s2": ("red", "green", "blue")}),
        set_of({"s2": ("red", "green", "blue")}, {"s2": RGB8}),
    )
    raw = np.full((3, 16, 16), 9.0)
    raw[1, 2, 3] = value
    with pytest.raises(ValueError, match=message):
        inputs({"s2": raw})
    with pytest.raises(ValueError, match=r"expected \[..., 3, H, W\] with .*, got \[4, 16, 16\]"):
        inputs({"s2": np.zeros((4, 16, 16), np.uint8)})


def test_measured_values_are_checked_and_all_sensors_are_needed():
    inputs = make_transform(model(), set_of({"s2": S2_BANDS, "s1": S1_BANDS}))
    scene = simulate_scene(16, 16)
    with pytest.raises(ValueError, match="a sample has no images of s1"):
        inputs({"s2": scene.s2})
    radar = scene.s1.copy()
    radar[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity .*VH: 1"):
        inputs({"s2": scene.s2, "s1": radar})

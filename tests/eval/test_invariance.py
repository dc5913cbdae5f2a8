"""Representations under flips and turns: 2D-ALiBi knows distances only, the others know directions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.data.simulator import S1_BANDS, S2_BANDS, simulate_scene
from rsbackbones.eval.invariance import OTHER_IMAGE, TRANSFORMS, invariance
from rsbackbones.input_spec import RGB8
from tests.eval.dense_sets import pixel_set

RGB = ("B04", "B03", "B02")
SMALL = {"depth": 2, "dim": 32, "num_heads": 4}


def model(positions="alibi", **changes):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", overrides={**SMALL, "positions": positions}, **changes)


def pictures(values):
    """Images [N, 3, h, w] of one value per patch: a patch looks the same however it is turned."""
    images = [{"s2": np.kron(v, np.ones((1, 8, 8))).astype(np.uint8)} for v in values]
    labels = [np.zeros(x["s2"].shape[-2:], np.int64) for x in images]
    return pixel_set(images, labels, bands={"s2": RGB}, units={"s2": RGB8})


def test_the_transformations_are_what_they_are_called():
    x = torch.tensor([[1, 2], [3, 4]])
    assert {name: f(x).flatten().tolist() for name, f in TRANSFORMS.items()} == {
        "flip_h": [2, 1, 4, 3],
        "flip_v": [3, 4, 1, 2],
        "turn_90": [2, 4, 1, 3],
        "turn_180": [4, 3, 2, 1],
        "turn_270": [3, 1, 4, 2],
    }


@given(seed=st.integers(0, 2**31), height=st.integers(1, 5), width=st.integers(1, 5))
@settings(max_examples=15)
def test_alibi_is_invariant_where_patches_are(seed, height, width):
    values = np.random.default_rng(seed).integers(0, 256, (2, 3, height, width))
    alibi = model(modalities=("s2",), bands={"s2": RGB})
    found = invariance(alibi, pictures(values))["s2"]
    assert all(found[name] == pytest.approx(1, abs=1e-5) for name in TRANSFORMS)


@pytest.mark.parametrize("positions", ["sincos", "peg"])
def test_other_positions_are_not(positions):
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6))
    other = model(positions, modalities=("s2",), bands={"s2": RGB})
    if positions == "peg":  # its kernel is small when it is new
        torch.nn.init.normal_(other.encoders["s2"].peg.conv.weight)
    found = invariance(other, pictures(values))["s2"]
    # Random weights barely look at positions; those of ALiBi give 1 to 1e-13 here.
    assert all(found[name] < 1 - 1e-6 for name in TRANSFORMS)


def test_alibi_is_not_invariant_where_patches_are_not():
    """So the property above is of positions, not of a measure that always says 1."""
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    labels = [np.zeros((32, 32), np.int64)] * 2
    data = pixel_set([{"s2": v} for v in values], labels, bands={"s2": RGB}, units={"s2": RGB8})
    found = invariance(model(modalities=("s2",), bands={"s2": RGB}), data)["s2"]
    assert all(found[name] < 1 - 1e-6 for name in TRANSFORMS)


def test_every_stream_by_hand():
    scenes = [simulate_scene(16, 24, seed=seed) for seed in range(3)]
    data = pixel_set(
        [{"s2": s.s2, "s1": s.s1} for s in scenes],
        [s.land_cover for s in scenes],
        bands={"s2": S2_BANDS, "s1": S1_BANDS},
    )
    both = model()
    found = invariance(both.train(), data, batch_size=2)
    assert both.training
    preprocess = rsb.create_preprocess(both.eval())
    assert list(found) == ["s2", "s1", "joint"]
    images = preprocess({"s2": np.stack([s.s2 for s in scenes]), "s1": np.stack([s.s1 for s in scenes])})
    with torch.no_grad():
        original = both.forward_features(images).pooled
        turned = both.forward_features({m: x.rot90(1, (-2, -1)) for m, x in images.items()}).pooled
    for stream, by_name in found.items():
        a, b = original[stream], turned[stream]
        similarities = [float(u @ v / (u.norm() * v.norm())) for u, v in zip(a, b, strict=True)]
        assert by_name["turn_90"] == pytest.approx(np.mean(similarities), abs=1e-5)
        others = [float(a[i] @ a[j] / (a[i].norm() * a[j].norm())) for i, j in [(0, 1), (0, 2), (1, 2)]]
        assert by_name[OTHER_IMAGE] == pytest.approx(np.mean(others), abs=1e-5)


def test_bad_sets_are_refused():
    rgb = model(modalities=("s2",), bands={"s2": RGB})
    data = pictures(np.zeros((2, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"by hand: no images in split 'val' \(it has test\)"):
        invariance(rgb, data, split="val")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        invariance(rgb, data, batch_size=0)
    with pytest.raises(ValueError, match="needs at least two"):
        invariance(rgb, pictures(np.zeros((1, 3, 2, 2))))
    mixed = [{"s2": np.zeros((3, side, side), np.uint8)} for side in (16, 24)]
    data = pixel_set(mixed, [None, None], bands={"s2": RGB}, units={"s2": RGB8})
    with pytest.raises(ValueError, match=r"place 1: s2 has 24 x 24 pixels, others .* 16 x 16; one size"):
        invariance(rgb, data)
    data = pixel_set([{"s2": np.full((3, 16, 16), np.nan)}], [None], bands={"s2": RGB}, units={"s2": RGB8})
    with pytest.raises(ValueError, match=r"by hand: place 0: .*NaN"):
        invariance(rgb, data)


def test_real_images(real_data):
    with np.load(real_data / "eurosat_ms_200.npz") as file:
        images, bands = file["images"][::10], [str(b) for b in file["bands"]]
    data = pixel_set([{"s2": x} for x in images], [None] * len(images), bands={"s2": bands})
    trained = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    found = invariance(trained, data)["s2"]
    assert all(found[OTHER_IMAGE] < found[name] < 1 for name in TRANSFORMS)

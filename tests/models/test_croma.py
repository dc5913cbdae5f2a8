"""CROMA against a plain version of it, and the properties of its positions."""

import pytest
import torch

import rsbackbones as rsb
from tests.conftest import close
from tests.reference import croma_plain


@pytest.fixture
def with_plain_state(tmp_path):
    """A random model of 3 heads (no power of two) in float64, and its weights in the released layout."""
    torch.manual_seed(3)
    model = rsb.create_model("croma_vit_tiny", overrides={"num_heads": 3, "dim": 48})
    from rsbackbones.zoo.saving import save_in_format

    path = save_in_format(model, tmp_path / "plain.pt", "croma_official")
    state = torch.load(path, weights_only=True)
    state = {part: {k: v.double() for k, v in tensors.items()} for part, tensors in state.items()}
    return model.double(), state


@pytest.mark.parametrize("size", [(8, 8), (24, 24), (16, 40), (48, 8)])
def test_equals_the_plain_version_on_squares_and_rectangles(with_plain_state, size):
    model, state = with_plain_state
    images = {
        "s2": torch.rand(2, 12, *size, dtype=torch.float64),
        "s1": torch.rand(2, 2, *size, dtype=torch.float64),
    }
    features = model.forward_features(images)
    tokens, pooled = croma_plain.croma(images, state, heads=3)
    assert set(features.tokens) == {"s2", "s1", "joint"}
    for stream in tokens:
        # Our biases are computed in float32.
        torch.testing.assert_close(features.tokens[stream], tokens[stream], atol=1e-6, rtol=0)
        torch.testing.assert_close(features.pooled[stream], pooled[stream], atol=1e-6, rtol=0)


def constant_patches(channels, rows, columns, seed):
    """An image whose patches are each of one color."""
    values = torch.rand(1, channels, rows, columns, generator=torch.Generator().manual_seed(seed))
    return values.double().repeat_interleave(8, -2).repeat_interleave(8, -1)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (6, 2)])
@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.rot90(1, (-2, -1)),
        lambda x: x.rot90(2, (-2, -1)),
        lambda x: x.flip(-1),
        lambda x: x.flip(-2),
    ],
    ids=["rot90", "rot180", "flip_columns", "flip_rows"],
)
def test_turning_an_image_of_constant_patches_turns_the_maps(tiny, grid, move):
    tiny = tiny.double()
    images = {"s2": constant_patches(12, *grid, 0), "s1": constant_patches(2, *grid, 1)}
    before = tiny.forward_features(images)
    after = tiny.forward_features({m: move(x) for m, x in images.items()})
    for stream in ("s2", "s1", "joint"):
        torch.testing.assert_close(after.maps(stream), move(before.maps(stream)), atol=1e-12, rtol=0)
        torch.testing.assert_close(after.pooled[stream], before.pooled[stream], atol=1e-12, rtol=0)


def test_positions_matter(tiny):
    """Without the bias a shuffle of the patches would only shuffle the tokens."""
    image = constant_patches(12, 4, 4, 0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    patches = image.unfold(-2, 8, 8).unfold(-2, 8, 8).flatten(2, 3)[:, :, order]
    shuffled = patches.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(image.shape)
    tiny = tiny.double()
    tokens, moved = (tiny.forward_features({"s2": x}).tokens["s2"] for x in (image, shuffled))
    assert (moved - tokens[:, order]).abs().max() > 1e-3


def test_the_joint_stream_queries_with_radar_and_reads_optical(tiny, images):
    """Joint tokens change with either sensor; each sensor's own stream only with itself."""
    base = tiny.forward_features(images)
    other_optical = tiny.forward_features({**images, "s2": images["s2"].flip(0)})
    other_radar = tiny.forward_features({**images, "s1": images["s1"].flip(0)})
    assert close(base.tokens["s1"], other_optical.tokens["s1"])
    assert close(base.tokens["s2"], other_radar.tokens["s2"])
    assert not torch.allclose(base.tokens["joint"], other_optical.tokens["joint"])
    assert not torch.allclose(base.tokens["joint"], other_radar.tokens["joint"])


def test_depths_widths_and_parameters_of_the_paper():
    with torch.device("meta"):
        base, large = rsb.create_model("croma_vit_b"), rsb.create_model("croma_vit_l")
    assert base.stream_depths == {"s2": 12, "s1": 6, "joint": 6}
    assert large.stream_depths == {"s2": 24, "s1": 12, "joint": 12}
    assert (base.num_features, large.num_features) == (768, 1024)
    # By hand for base: 12 + 6 blocks of 12 d^2 + 12 d - 3 d (no qkv bias) weights and biases ...
    d = 768
    block = 12 * d * d + (d + 4 * d + d) + 4 * d
    cross_block = block + 4 * d * d + d + 2 * d
    embedding = 8 * d * d + 5 * d + 2 * d
    tokenizers = (12 * 64 + 1) * d + (2 * 64 + 1) * d
    total = 18 * block + 6 * cross_block + 3 * 2 * d + 2 * embedding + tokenizers
    assert sum(p.numel() for p in base.parameters()) == total


def test_no_table_of_positions_is_in_the_state_dict(tiny):
    assert not [
        name for name in tiny.state_dict() if "bias_table" in name or "alibi" in name or "pos" in name
    ]
    assert set(dict(tiny.named_parameters())) == set(tiny.state_dict())


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_must_be_even(depth):
    with pytest.raises(ValueError, match="even"):
        rsb.create_model("croma_vit_tiny", overrides={"depth": depth})


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        rsb.create_model("croma_vit_tiny", overrides={"num_heads": 5})

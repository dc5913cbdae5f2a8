"""The position encodings other than ALiBi: sine-cosine and PEG, alone and in CROMA."""

import math

import pytest
import torch
import torch.nn.functional as F

import rsbackbones as rsb
from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.peg import PositionEncodingGenerator
from rsbackbones.layers.sincos import sincos_embedding
from tests.conftest import close

SMALL = {"dim": 48, "depth": 2, "num_heads": 4}


def test_the_first_half_of_sincos_is_the_column_and_the_second_the_row():
    table = sincos_embedding(grid_positions(3, 5), 16).unflatten(0, (3, 5))
    assert torch.equal(table[0, :, :8], table[2, :, :8])
    assert torch.equal(table[:, 1, 8:], table[:, 4, 8:])
    for i in range(4):
        angle = 3 / 10000 ** (i / 4)
        assert table[1, 3, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[1, 3, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)
        angle = 1 / 10000 ** (i / 4)
        assert table[1, 3, 8 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[1, 3, 12 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("dim", [0, 2, 6, 18])
def test_sincos_needs_a_multiple_of_4(dim):
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_embedding(grid_positions(2, 2), dim)


def test_peg_convolves_kept_tokens_with_zeros_in_the_places_of_masked_ones():
    torch.manual_seed(0)
    peg = PositionEncodingGenerator(4)
    kept = torch.tensor([[7, 0, 6], [11, 2, 3]])
    x = torch.randn(2, 3, 4)
    out = peg(x, (3, 4), kept)
    for b in range(2):
        canvas = torch.zeros(4, 3, 4)
        for token, place in zip(x[b], kept[b].tolist(), strict=True):
            canvas[:, place // 4, place % 4] = token
        maps = F.conv2d(canvas[None], peg.conv.weight, peg.conv.bias, padding=1, groups=4)[0]
        for i, place in enumerate(kept[b].tolist()):
            assert close(out[b, i], x[b, i] + maps[:, place // 4, place % 4])


@pytest.mark.parametrize("changes", [{"positions": "sincos"}, {"positions": "peg"}, {"cross_alibi": False}])
def test_croma_with_other_positions_serves_any_grid_and_is_read_back(changes, tmp_path):
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", overrides={**SMALL, **changes})
    default = rsb.create_model("croma_vit_tiny", overrides=SMALL)
    default.load_state_dict(model.state_dict(), strict=False)
    written = rsb.save_model(model, tmp_path / "model.safetensors")
    again = rsb.create_model("croma_vit_tiny", checkpoint=written)
    assert again.config == model.config
    for height, width in ((32, 32), (8, 40)):
        images = {"s2": torch.rand(2, 12, height, width), "s1": torch.rand(2, 2, height, width)}
        joint = model(images)
        assert close(again(images), joint)
        assert not close(default(images), joint)
        tokens, plain = model.forward_features(images).tokens, default.forward_features(images).tokens
        assert close(tokens["s2"], plain["s2"]) is ("cross_alibi" in changes)


@pytest.mark.parametrize("positions", ["sincos", "peg"])
def test_where_croma_has_its_positions(positions):
    """Sine-cosine after the tokenizer, PEG after the first block of every encoder; no bias anywhere."""
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", overrides={**SMALL, "depth": 4, "positions": positions})
    images = {"s2": torch.rand(2, 12, 16, 24), "s1": torch.rand(2, 2, 16, 24)}
    tokens = {}
    for m, image in images.items():
        encoder = model.encoders[m]
        x = encoder.tokenizer(image)
        if positions == "sincos":
            x = x + sincos_embedding(grid_positions(2, 3), 48)
        for i, block in enumerate(encoder.blocks):
            x = block(x)
            x = encoder.peg(x, (2, 3)) if positions == "peg" and i == 0 else x
        tokens[m] = encoder.norm(x)
    x = tokens["s1"]
    for i, block in enumerate(model.joint.blocks):
        x = block(x, tokens["s2"])
        x = model.joint.peg(x, (2, 3)) if positions == "peg" and i == 0 else x
    tokens["joint"] = model.joint.norm(x)
    ours = model.forward_features(images).tokens
    assert all(close(ours[stream], tokens[stream]) for stream in tokens)


def test_sincos_and_peg_tell_places_apart():
    """Without positions a permutation of patches would permute the tokens."""
    for positions in ("sincos", "peg"):
        torch.manual_seed(0)
        model = rsb.create_model("croma_vit_tiny", overrides={**SMALL, "positions": positions})
        image = torch.rand(1, 12, 8, 32)
        turned = torch.cat(image.split(8, dim=-1)[::-1], dim=-1)
        a, b = (model.forward_features({"s2": x}).tokens["s2"] for x in (image, turned))
        assert not torch.allclose(a, b.flip(1), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "rope"}, "positions must be one of alibi, sincos, peg"),
        ({"positions": "sincos", "dim": 6, "num_heads": 2}, "multiple of 4"),
        ({"cross_alibi": 1}, "true or false"),
    ],
)
def test_bad_positions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rsb.create_model("croma_vit_tiny", overrides={**SMALL, **changes})


def test_the_default_has_alibi_and_the_names_that_it_had():
    model = rsb.create_model("croma_vit_tiny", overrides=SMALL)
    assert (model.config.positions, model.config.cross_alibi) == ("alibi", True)
    assert not [name for name in model.state_dict() if "peg" in name]

"""Heads over time: S4's last convolution against recorded logits, and dates of single images in a U-Net."""

import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import rsbackbones as rsb
from rsbackbones.heads import dense_model
from rsbackbones.layers.temporal_pooling import ConvLSTM, LightTemporalAttention, ValidMean
from rsbackbones.models import s4
from tests.conftest import RECORDED
from tests.models.examples import small

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4"
K = 3


def unet(**fields):
    torch.manual_seed(0)
    return s4.build(s4.S4Config(**{"modalities": ("s2",), **s4.SMALL, **fields}))


def series(lengths=(5, 3), bands=10, side=16, seed=0):
    """Series of these lengths, alone and padded with NaN to 8 dates, with gaps beside their last date."""
    generator = torch.Generator().manual_seed(seed)
    alone = [torch.rand(1, n, bands, side, side, generator=generator) for n in lengths]
    padded = torch.full((len(lengths), 8, bands, side, side), float("nan"))
    valid = torch.zeros(len(lengths), 8, dtype=torch.bool)
    for i, x in enumerate(alone):
        padded[i, : x.shape[1]] = x[0]
        valid[i, : x.shape[1]] = True
    return alone, padded, valid


# -- the last convolution of a 3-D U-Net ---------------------------------------------------------------


@pytest.mark.parametrize("case", ["", "odd_", "one_"])
def test_logits_are_the_recorded_ones(case):
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is not there")
    recorded = {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "s4_unet3d.npz").items()}
    stored = torch.load(FOLDER / "s4_unet3d.pt", weights_only=True)
    body = unet()
    names = s4.CHECKPOINT_FORMATS["unet3d_pastis"].to_native(stored)
    body.load_state_dict({native: stored[name] for name, native in names.items()})
    net = dense_model(body, "unet3d", num_classes=len(stored["final.bias"])).eval()
    net.head.final.load_state_dict({name: stored[f"final.{name}"] for name in ("weight", "bias")})
    valid = {} if not case else {"valid": {"s2": recorded[f"{case}valid"]}}
    with torch.inference_mode():
        logits = net(recorded[f"{case}images"], **valid)
    torch.testing.assert_close(logits, recorded[f"{case}out_logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, 8])
def test_a_series_gives_the_same_alone_and_in_a_padded_batch(length):
    net = dense_model(unet(), "unet3d", num_classes=K).eval()
    alone, padded, valid = series((length, 8))
    with torch.inference_mode():
        expected = net(alone[0])
        assert expected.shape == (1, K, 16, 16)
        for extra in (0, 8):
            longer = torch.cat((padded, padded.new_full((2, extra, 10, 16, 16), float("nan"))), dim=1)
            mask = torch.cat((valid, valid.new_zeros(2, extra)), dim=1)
            torch.testing.assert_close(net(longer, valid={"s2": mask})[:1], expected)
        if length == 1:
            torch.testing.assert_close(net(alone[0][:, 0]), expected)


def test_only_the_last_convolution_is_new_and_all_is_trained():
    body = unet()
    net = dense_model(body, "unet3d", num_classes=K).train()
    assert {name for name, _ in net.head.named_parameters()} == {"final.weight", "final.bias"}
    _, padded, valid = series()
    net.logits(padded, valid={"s2": valid}).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in net.parameters() if p is not body.head)
    assert all(p.grad.isfinite().all() for p in net.parameters())
    valid[1] = False
    hidden = net.eval()(padded, valid={"s2": valid})
    assert hidden[1].isnan().all()
    assert hidden[0].isfinite().all()
    assert net.logits(padded, valid={"s2": valid}).isfinite().all()


def test_backbones_that_the_head_is_not_for():
    without = unet(modalities=("s1",), inference_modality="s2", bands={"s1": ("VV", "VH")})
    for body in (without, unet(over_time=False), small("croma_vit_tiny")):
        with pytest.raises(
            ValueError, match=r"unet3d needs a network of series with a decoder.*inference_modality"
        ):
            dense_model(body, "unet3d", num_classes=K)
    with pytest.raises(ValueError, match="leave out indices"):
        dense_model(unet(), "unet3d", num_classes=K, indices=(2,))
    with pytest.raises(ValueError, match="temporal is for backbones of single images"):
        dense_model(unet(), "temporal", num_classes=K)
    with pytest.raises(ValueError, match="temporal must be one of convlstm, ltae, mean, got 'gru'"):
        dense_model(unet(over_time=False), "temporal", num_classes=K, temporal="gru")
    with pytest.raises(ValueError, match="change is between two images"):
        dense_model(unet(), "unet3d", num_classes=K, task="change")
    with pytest.raises(ValueError, match="temporal applies to temporal, got mean for linear"):
        dense_model(unet(), "linear", num_classes=K, temporal="mean")


# -- dates of single images ----------------------------------------------------------------------------


def bodies():
    torch.manual_seed(0)
    resnet = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3), in_chans=10)
    croma = rsb.create_model(
        "croma_vit_tiny", overrides={"dim": 16, "depth": 2, "num_heads": 2}, modalities=("s2",),
        bands={"s2": s4.S4Config().bands["s2"]},
    )  # fmt: skip
    return {"timm": resnet, "croma": croma, "unet2d": unet(over_time=False)}


@pytest.mark.parametrize("temporal", ["convlstm", "ltae", "mean"])
@pytest.mark.parametrize("name", ["timm", "croma", "unet2d"])
def test_single_image_backbones_see_series(name, temporal):
    net = dense_model(bodies()[name], "temporal", num_classes=K, temporal=temporal, width=8)
    assert net.consumes == "series"
    side = 32 if name == "timm" else 16
    alone, padded, valid = series(side=side)
    days = torch.arange(8).expand(2, -1) * 30 + 17800
    net.train().logits(padded, dates=days, valid={"x" if name == "timm" else "s2": valid}).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    net.eval()
    mask = {"x" if name == "timm" else "s2": valid}
    with torch.inference_mode():
        found = net(padded, dates=days, valid=mask)
        assert found.shape == (2, K, side, side)
        for i, x in enumerate(alone):
            torch.testing.assert_close(
                net(x, dates=days[i : i + 1, : x.shape[1]])[0], found[i], atol=1e-5, rtol=1e-4
            )
        if temporal == "ltae":
            assert not torch.allclose(net(padded, dates=3 * days, valid=mask), found, atol=1e-4)
        # A gap is as if the date had never been.
        gap = valid.clone()
        gap[:, 1] = False
        keep = [0, 2, 3, 4]
        torch.testing.assert_close(
            net(padded, dates=days, valid=dict.fromkeys(mask, gap))[0],
            net(alone[0][:, keep], dates=days[:1, keep])[0], atol=1e-5, rtol=1e-4,
        )  # fmt: skip
        assert net(alone[0][:, 0]).shape == (1, K, side, side)


def test_missing_images_are_no_part_of_batch_statistics():
    net = dense_model(bodies()["timm"], "temporal", num_classes=K, temporal="mean", width=8).train()
    alone, padded, valid = series((4, 4), side=32)
    before = {n: b.clone() for n, b in net.named_buffers()}
    net.logits(padded, valid={"x": valid})
    padded_statistics = {n: b.clone() for n, b in net.named_buffers() if "running" in n}
    net.load_state_dict(net.state_dict() | before)
    net.logits(torch.cat(alone))
    for name, buffer in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, padded_statistics[name])


def test_a_conv_lstm_is_torchgeos():
    models = pytest.importorskip("torchgeo.models")
    torch.manual_seed(0)
    theirs = models.ConvLSTM(3, 4, 3, 1)
    ours = ConvLSTM(3, 4)
    # Theirs splits the gates into input, forget, output and new, as ours does.
    ours.conv.load_state_dict(theirs.cell_list[0].conv.state_dict())
    x = torch.randn(2, 5, 3, 6, 6)
    with torch.no_grad():
        _, [(state, _)] = theirs(x)
        torch.testing.assert_close(ours(x, torch.ones(2, 5, dtype=torch.bool)), state)
        short = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
        _, [(state, _)] = theirs(x[1:, :2])
        torch.testing.assert_close(ours(x, short)[1:], state)


def test_attention_is_the_written_out_sum():
    torch.manual_seed(0)
    layer = LightTemporalAttention(6, 4)
    x, days = torch.randn(1, 3, 6, 1, 2), torch.tensor([[0, 40, 300]])
    valid = torch.tensor([[True, False, True]])
    with torch.no_grad():
        found = layer(x, valid, days)[0, :, 0, 1]
        tokens = []
        for t in (0, 2):
            waves = [f(days[0, t] / 1000 ** (2 * i / 4)) for i in range(2) for f in (torch.sin, torch.cos)]
            tokens.append(layer.embed(layer.norm(x[0, t, :, 0, 1])) + torch.stack(waves))
        mixed = torch.zeros(4)
        for head in range(4):
            keys = [layer.key(token)[8 * head : 8 * head + 8] for token in tokens]
            scores = torch.stack([key @ layer.query[head] / 8**0.5 for key in keys]).softmax(0)
            mixed[head] = sum(s * token[head] for s, token in zip(scores, tokens, strict=True))
        torch.testing.assert_close(found, layer.mlp(mixed))


def test_the_mean_is_over_valid_dates():
    layer = ValidMean(2, 2)
    nn.init.eye_(layer.project.weight[:, :, 0, 0].data)
    nn.init.zeros_(layer.project.bias)
    x = torch.tensor([1.0, 5.0, 3.0])[None, :, None, None, None].expand(1, 3, 2, 1, 1)
    assert layer(x, torch.tensor([[True, False, True]])).flatten().tolist() == [2.0, 2.0]

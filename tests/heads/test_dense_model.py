"""Heads on a backbone: shapes, gradients, what is frozen, and that each learns."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene
from rsbackbones.heads import ViTLite, dense_model
from tests.models.examples import small

SMALL = {"upernet": {"width": 16}, "linear": {}, "vit_lite": {"width": 16, "depth": 2}}
HEADS = tuple(SMALL)  # those of single images; of series: test_series_heads.py
K = 3


def backbone(seed=0, **changes):
    torch.manual_seed(seed)
    overrides = {"depth": 4, "dim": 32, "num_heads": 4}
    return rsb.create_model("croma_vit_tiny", overrides=overrides, **changes)


def model(head, *, seed=0, body=None, **changes):
    body = backbone(seed) if body is None else body
    return dense_model(body, head, **{"num_classes": K, **SMALL[head], **changes})


def images(*size, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        m: torch.rand(*([batch] if isinstance(batch, int) else batch), c, *size, generator=generator)
        for m, c in (("s2", 12), ("s1", 2))
    }


@pytest.mark.parametrize("stream", ["joint", "s2", "s1"])
@pytest.mark.parametrize("head", HEADS)
def test_every_pixel_gets_logits_on_any_rectangle(head, stream):
    net = model(head, stream=stream)
    needed = {m: x for m, x in images(32, 48).items() if m in net.backbone.stream_inputs[stream]}
    assert net(needed).shape == (2, K, 32, 48)
    # Streams of the others do not matter.
    assert torch.equal(net(images(32, 48)), net(needed))
    assert net(images(8, 24, batch=1)).shape == (1, K, 8, 24)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("head", HEADS)
def test_super_resolution_gives_finer_logits(head, scale):
    net = model(head, scale=scale)
    assert net(images(16, 24)).shape == (2, K, 16 * scale, 24 * scale)


def test_vit_lite_learns_its_scale_and_the_others_interpolate():
    """Of a scale s the finest features lie at a quarter of a patch, divided by s."""
    assert [model("vit_lite", scale=s).head.reduction for s in (1, 2, 4)] == [2, 1, 0.5]
    x = images(16, 24)
    plain, fine = (model("linear", scale=s) for s in (1, 4))
    fine.load_state_dict(plain.state_dict())
    coarse = plain.head(plain.maps(x))
    expected = F.interpolate(coarse, scale_factor=32, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fine(x), expected)


def test_the_linear_head_is_a_linear_layer_on_interpolated_tokens():
    """Interpolating tokens or logits is one thing, as both are linear; also where images are padded."""
    net = model("linear", body=backbone(pad=True))
    x = images(30, 44)
    tokens = net.backbone.forward_features(x).maps("joint", pixels=True)  # [B, D, H, W]
    weight, bias = net.head.classify.weight[:, :, 0, 0], net.head.classify.bias
    expected = torch.einsum("kd,bdhw->bkhw", weight, tokens) + bias[:, None, None]
    assert expected.shape == (2, K, 30, 44)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("head", ["upernet", "vit_lite"])
def test_padded_images_get_logits_of_their_own_size(head):
    net = model(head, body=backbone(pad=True))
    x = images(30, 44)
    # By hand: repeat the last pixels, predict, crop.
    padded = {m: F.pad(image, (0, 4, 0, 2), mode="replicate") for m, image in x.items()}
    torch.testing.assert_close(net(x), net(padded)[..., :30, :44])


@pytest.mark.parametrize("stream", ["joint", "s2", "s1"])
@pytest.mark.parametrize("head", HEADS)
def test_what_is_trained_is_what_the_logits_depend_on(head, stream):
    """No parameter waits for a gradient in vain, and none that matters is left out."""
    net = model(head, stream=stream)
    x = images(16, 24)
    net.train()(x).square().sum().backward()
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {name for name, p in net.named_parameters() if p.grad is not None} == names
    assert any("tokenizer" in name for name in names)
    net.eval()
    expected = net(x)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name not in names:
                parameter.add_(1)
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("head", HEADS)
def test_a_frozen_backbone_stays_as_it_is(head):
    net = model(head, freeze=True).train()
    assert net.head.training
    assert not net.backbone.training
    assert not any(module.training for module in net.backbone.modules())
    before = {name: x.clone() for name, x in net.backbone.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.1)
    net(images(16, 24)).square().mean().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.head.parameters())
    optimizer.step()
    assert all(torch.equal(x, before[name]) for name, x in net.backbone.state_dict().items())
    assert not net.train(False).head.training
    assert model(head).train().backbone.training


@pytest.mark.parametrize("task", ["pixels", "change"])
@pytest.mark.parametrize("head", HEADS)
def test_the_state_dict_is_the_whole_model(head, task):
    first, second = (model(head, task=task, seed=seed) for seed in (0, 1))
    x = images(16, 24, batch=(2, 2) if task == "change" else 2)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(x), second(x))


def test_a_stream_of_fewer_blocks_than_levels_gives_some_twice():
    assert model("upernet", stream="s2").indices == (0, 1, 2, 3)
    assert model("upernet", stream="s1").indices == (0, 0, 1, 1)
    assert model("linear", stream="s1").indices == (1,)
    deep = rsb.create_model("croma_vit_tiny", overrides={"depth": 12, "dim": 16})
    assert model("upernet", body=deep, stream="s2").indices == (2, 5, 8, 11)


def test_feature_maps_are_taken_as_they_are():
    maps = backbone(modalities=("s2",), features_only=True, out_indices=(0, 1, 1, 3))
    net = model("upernet", body=maps)
    assert (net.stream, net.indices) == ("s2", (0, 1, 1, 3))
    torch.manual_seed(5)
    same = dense_model(maps.backbone, "upernet", num_classes=K, indices=(0, 1, 1, 3), width=16)
    same.load_state_dict(net.state_dict())
    x = {"s2": images(16, 24)["s2"]}
    assert torch.equal(net(x), same(x))


@pytest.mark.parametrize("task", ["pixels", "change"])
def test_a_resnet_of_timm_gives_its_own_pyramid(task):
    torch.manual_seed(0)
    body = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4), in_chans=4)
    net = dense_model(body, "upernet", num_classes=K, task=task, width=16)
    assert net.head.pyramid is None
    assert net.training
    x = torch.rand(2, 2, 4, 64, 96) if task == "change" else torch.rand(2, 4, 64, 96)
    logits = net(x)
    assert logits.shape == (2, K, 64, 96)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_compiling_finds_one_program():
    net = model("upernet", stream="s2")
    x = images(16, 24)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled({"s2": x["s2"]}), net(x))


# -- change ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_change_is_the_head_on_the_difference_of_two_dates(head):
    net = model(head, task="change", num_classes=2)
    x = images(16, 24, batch=(3, 2))
    earlier, later = ({m: image[:, i] for m, image in x.items()} for i in range(2))
    out = net(x)
    assert out.shape == (3, 2, 16, 24)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(3, 16, 24))
    torch.testing.assert_close(net(earlier, later), out)
    # Date by date, through the backbone itself.
    norm = head != "upernet"
    of = [
        net.backbone.forward_intermediates(d, net.indices, stream="joint", norm=norm)
        for d in (earlier, later)
    ]
    logits = net.head([b - a for a, b in zip(*of, strict=True)])
    logits = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out, logits.log_softmax(1), atol=1e-5, rtol=1e-4)
    # The order of the dates matters: forest to town is not town to forest.
    assert not torch.allclose(net(later, earlier), out)


def test_log_probabilities_serve_both_losses():
    out = model("linear", task="change", num_classes=2)(images(16, 24, batch=(3, 2)))
    label = torch.randint(0, 2, (3, 16, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.nll_loss(out, label), F.cross_entropy(out, label))


# -- ViT-Lite ------------------------------------------------------------------------------------------


def test_vit_lite_has_the_papers_size():
    """As AuxMAE's decoder: tokens of 768 to 13 bands of 16 x 16 pixels, about 21M parameters."""
    decoder = nn.Sequential(ViTLite(768), nn.Linear(512, 13 * 16 * 16))
    assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(21, abs=0.1)


def test_vit_lite_sees_all_patches_and_where_they_are():
    torch.manual_seed(0)
    net = ViTLite(8, width=16, depth=2)
    x = torch.randn(1, 8, 4, 5, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[..., 0, 0] += 1
    assert ((net(x) - net(other)).abs().amax(1) > 0).all()
    # Without positions, turning the patches over would turn the result over.
    assert not torch.allclose(net(x.flip(2)), net(x).flip(2), atol=1e-3)


# -- learning ------------------------------------------------------------------------------------------


def scenes(scale=1):
    """Two simulated scenes of 32 px and three classes of their pixels: water, forest, other."""
    made = [simulate_scene(32 * scale, 32 * scale, seed=seed) for seed in (4, 5)]
    covers = torch.stack([torch.from_numpy(s.land_cover).long() for s in made])
    labels = torch.where(covers == 0, 0, torch.where(covers <= 2, 1, 2))
    raw = torch.stack([torch.from_numpy(s.s2.astype("float32")) for s in made])
    return F.avg_pool2d(raw, scale), labels


def train(net, x, labels, loss, steps, until=0, lr=3e-3):
    """Train for so many steps at most, until the loss is below a number; return the losses."""
    net.train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        value = loss(net(x), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        if losses[-1] < until:
            break
    return losses


@pytest.mark.parametrize(("head", "scale"), [("upernet", 1), ("linear", 1), ("vit_lite", 1), ("vit_lite", 4)])
def test_every_head_learns_a_scene_by_heart(head, scale):
    raw, labels = scenes(scale)
    assert labels.unique().tolist() == [0, 1, 2]
    if head == "linear":  # it knows no more than one class per patch
        labels = labels[:, 4::8, 4::8].repeat_interleave(8, 1).repeat_interleave(8, 2)
    body = backbone(modalities=("s2",))
    x = {"s2": rsb.create_preprocess(body)({"s2": raw})["s2"]}
    net = dense_model(body, head, num_classes=3, scale=scale, **{k: 2 * v for k, v in SMALL[head].items()})
    counts = labels.flatten().bincount() / labels.numel()
    always_the_same = -(counts * counts.log()).sum().item()  # what knowing the frequencies alone gives
    bound = 0.5 * always_the_same
    losses = train(net, x, labels, F.cross_entropy, 60 if head == "upernet" else 150, until=bound)
    assert losses[-1] < 0.5 * min(always_the_same, losses[0]), (losses[0], losses[-1], always_the_same)


def test_change_is_learned_by_heart():
    raw, _ = scenes()
    later = raw.clone()
    label = torch.zeros(2, 32, 32, dtype=torch.long)
    later[:, :, 8:16, 16:32] = later[:, :, 8:16, 16:32].flip(1)
    label[:, 8:16, 16:32] = 1
    body = backbone(modalities=("s2",))
    x = {"s2": rsb.create_preprocess(body)({"s2": torch.stack([raw, later], 1)})["s2"]}
    net = model("upernet", body=body, task="change", num_classes=2)
    losses = train(net, x, label, F.nll_loss, 40)
    share = 1 / 8
    assert losses[-1] < 0.3 * -(share * math.log(share) + (1 - share) * math.log(1 - share))
    found = net.eval()(x).argmax(1)
    assert ((found == 1) & (label == 1)).sum() / ((found == 1) | (label == 1)).sum() > 0.8


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"head": "fcn"}, "head must be one of upernet, linear, vit_lite, .*got 'fcn'"),
    ({"task": "series"}, "task must be 'pixels' or 'change', got 'series'"),
    ({"num_classes": 1}, "num_classes must be at least 2 .*got 1"),
    ({"scale": 0}, "scale must be 1 or more, got 0"),
    ({"head": "vit_lite", "scale": 3}, "scale must be a power of two, got 3"),
    ({"head": "linear", "width": 8}, "got 8 for linear"),
    ({"width": 0}, "positive, got 0"),
    ({"depth": 2}, "depth applies to vit_lite, got 2 for upernet; leave it out"),
    ({"head": "vit_lite", "width": 18}, "multiple of 4 and its depth at least 1, got 18"),
    ({"head": "vit_lite", "depth": 0}, "got 512 and 0"),
    ({"stream": "thermal"}, "stream 'thermal' is not available"),
    ({"stream": "s1", "indices": (0, 0, 1, 2)}, "stream 's1' has 2 stages"),
    ({"indices": (0, 1)}, "maps of 4 depths, got 2"),
    ({"head": "linear", "indices": (0, 1)}, "takes the map of one stage, got 2"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dense_model(backbone(), **{"head": "upernet", "num_classes": K, **changes})


def test_other_bodies_are_refused():
    with pytest.raises(ValueError, match=r"expected a model from create_model, .* got Linear"):
        dense_model(nn.Linear(2, 2), "linear", num_classes=2)
    maps = backbone(features_only=True)
    with pytest.raises(ValueError, match="leave them out here"):
        dense_model(maps, "upernet", num_classes=2, stream="s2")


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="30 x 44 pixels are not a multiple of 8, as this model needs"):
        model("linear")(images(30, 44))
    with pytest.raises(ValueError, match="stream 'joint' is not available for s2"):
        model("linear", stream="joint")({"s2": images(16, 16)["s2"]})
    change = model("linear", task="change")
    with pytest.raises(ValueError, match=r"two dates must be \[B, 2, C, H, W\].*got \[2, 12, 16, 16\]"):
        change(images(16, 16))
    with pytest.raises(ValueError, match=r"\[B, 2, C, H, W\].*got \[2, 3, 12, 16, 16\]"):
        change(images(16, 16, batch=(2, 3)))
    with pytest.raises(ValueError, match="must have one shape"):
        change(images(16, 16), images(16, 24))
    with pytest.raises(ValueError, match="have the same modalities, got s2, s1 and s2"):
        change(images(16, 16), {"s2": images(16, 16)["s2"]})
    with pytest.raises(ValueError, match="the later one is not"):
        change(images(16, 16)["s2"], images(16, 16))


# -- series ---------------------------------------------------------------------------------------------


def test_a_series_for_a_backbone_of_single_images_is_refused():
    net, series = model("linear"), images(32, 48, batch=(2, 3))
    match = r"croma_vit_tiny encodes single images, .*x\.flatten\(0, 1\)"
    with pytest.raises(ValueError, match=match):
        net(series)
    with pytest.raises(ValueError, match="dates must be"):
        net(images(32, 48), dates=torch.zeros(2, 3).long())
    resnet = timm.create_model("resnet18", features_only=True, out_indices=(1, 2), pretrained=False)
    other = dense_model(resnet, "upernet", num_classes=K, width=16).eval()
    with pytest.raises(ValueError, match="encodes single images"):
        other(torch.rand(2, 3, 3, 32, 32))
    with pytest.raises(ValueError, match="takes single images: leave them out"):
        other(torch.rand(2, 3, 32, 32), dates=torch.zeros(2, 3).long())


@pytest.mark.parametrize("head", HEADS)
def test_dates_and_missing_images_of_a_series_reach_the_maps(head):
    net = model(head, body=small("toy_series")).eval()
    x = {"s2": torch.rand(2, 3, 12, 32, 32, generator=torch.Generator().manual_seed(0))}
    dates, valid = torch.tensor([[0, 90, 180]] * 2), torch.tensor([[True, False, True], [True, True, False]])
    with torch.no_grad():
        found = net(x, dates=dates, valid={"s2": valid})
        assert not torch.allclose(net(x, valid={"s2": valid}), found, atol=1e-4)
        broken = {"s2": x["s2"].masked_fill(~valid[..., None, None, None], float("nan"))}
        assert torch.equal(net(broken, dates=dates, valid={"s2": valid}), found)
        # The last image of the second series is missing: as if it were not there.
        alone = net({"s2": x["s2"][1:, :2]}, dates=dates[1:, :2])
        torch.testing.assert_close(found[1:], alone, atol=1e-5, rtol=0)


def test_parameters_of_dates_are_trained():
    net = model("linear", body=small("toy_series"))
    assert all(p.requires_grad for name, p in net.named_parameters() if "season" in name)
    x = {"s2": torch.rand(2, 3, 12, 32, 32)}
    net(x, dates=torch.tensor([[0, 90, 180]] * 2)).square().sum().backward()
    assert net.backbone.season.weight.grad.abs().sum() > 0


def test_change_of_two_series_is_refused():
    net = model("linear", body=small("toy_series"), task="change")
    one, series = ({"s2": torch.rand(2, *lead, 12, 32, 32)} for lead in ((), (3,)))
    assert net(one, one).shape == (2, K, 32, 32)
    with pytest.raises(ValueError, match=r"change between two series, .*pass one image for each date"):
        net(series, series)
    with pytest.raises(ValueError, match="leave out dates and valid"):
        net(one, one, dates=torch.zeros(2, 2).long())

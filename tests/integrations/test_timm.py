"""The encoders under timm's names do what timm, segmentation_models_pytorch and torchgeo ask of a ViT."""

import re
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

import rsbackbones as rsb
from rsbackbones.integrations import timm as timm_bridge
from tests import forked
from tests.conftest import close

TINY = "rsb_croma_s2_vit_tiny"


@pytest.fixture
def x():
    return torch.rand(2, 12, 32, 48, generator=torch.Generator().manual_seed(0))


def tiny(name=TINY, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options)


# -- names --------------------------------------------------------------------------------------------


def test_every_architecture_and_sensor_has_a_name():
    found = set(timm.list_models("rsb_*"))
    expected = {
        timm_bridge.timm_name(architecture, modality) + suffix
        for architecture in timm_bridge.architectures().values()
        for modality in {
            *architecture.config.modalities,
            *(m for entry in rsb.list_weights(architecture.name) for m in entry.inputs),
        }
        for suffix in ("", "_pyramid")
    }
    assert found == expected
    assert "rsb_resnet_landsat_oli_resnet18" in found
    assert {"rsb_croma_s2_vit_b", "rsb_croma_s1_vit_l", "rsb_croma_s2_vit_tiny_pyramid"} <= found


def test_timm_knows_which_names_have_weights():
    pretrained = timm.list_pretrained("rsb_*")
    assert f"{TINY}.samples" in pretrained
    assert not [name for name in pretrained if name.startswith("rsb_croma_s2_vit_s")]
    assert timm.is_model_pretrained("rsb_croma_s1_vit_b")
    assert not timm.is_model_pretrained("rsb_croma_s1_vit_s")


def test_nothing_is_registered_without_the_import():
    code = "import timm, rsbackbones; print(timm.list_models('rsb_*'))"
    result = forked.run([sys.executable, "-c", code])
    assert result.stdout.strip() == "[]", result.stderr


# -- the methods of a ViT -----------------------------------------------------------------------------


def test_it_computes_what_the_backbone_computes(x):
    model = tiny(num_classes=3)
    features = model.backbone.forward_features({"s2": x})
    tokens = model.forward_features(x)
    assert close(tokens, features.tokens["s2"])
    assert close(model.forward_head(tokens, pre_logits=True), features.pooled["s2"])
    assert close(model(x), model.backbone({"s2": x}))
    assert model(x).shape == (2, 3)


def test_pretrained_weights_are_the_verified_ones():
    model = timm.create_model(TINY, pretrained=True)
    assert model.backbone.weights_entry.id == "croma_vit_tiny.samples"
    own = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    x = torch.rand(1, 4, 24, 24)
    assert close(model(x), own(x))
    assert close(timm.create_model(f"{TINY}.samples", pretrained=True)(x), own(x))
    cfg = model.pretrained_cfg
    assert (cfg["tag"], cfg["input_size"], cfg["license"]) == ("samples", (4, 64, 64), "CC-BY-SA-4.0")
    assert cfg["mean"] == (0.0,) * 4


def test_the_transforms_of_timm_leave_the_values_alone():
    config = timm.data.resolve_model_data_config(tiny())
    assert (config["input_size"][0], config["mean"], config["std"]) == (12, (0.0,) * 12, (1.0,) * 12)


def test_the_head_comes_and_goes(x):
    model = tiny()
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, 96)
    model.to(torch.float64)
    model.reset_classifier(7)
    assert model(x.double()).shape == (2, 7)
    assert model.num_classes == model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, 96)


@pytest.mark.parametrize(("pool", "shape"), [("embedding", (2, 96)), ("avg", (2, 96)), ("", (2, 24, 96))])
def test_pooling(x, pool, shape):
    model = tiny(global_pool=pool)
    assert model(x).shape == shape
    if pool != "embedding":
        tokens = model.forward_features(x)
        assert close(model(x), tokens if pool == "" else tokens.mean(1))
    model.reset_classifier(5, global_pool=pool)
    assert model(x).shape == (*shape[:-1], 5)


@pytest.mark.parametrize("indices", [None, 2, (0, 2), [-1]])
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_are_the_outputs_of_the_blocks(x, indices, norm):
    model = tiny()
    outputs = []
    blocks = model.backbone.encoders["s2"].blocks
    hooks = [block.register_forward_hook(lambda *a: outputs.append(a[2])) for block in blocks]
    tokens = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    final, found = model.forward_intermediates(x, indices, norm=norm, output_fmt="NLC")
    assert close(final, tokens)
    wanted = {None: range(4), 2: (2, 3)}.get(indices if not isinstance(indices, list) else 0, indices)
    wanted = (0, 2) if indices == (0, 2) else wanted
    expected = [outputs[i] for i in wanted]
    if norm:
        expected = [model.backbone.final_norm("s2")(each) for each in expected]
    assert len(found) == len(expected)
    assert all(close(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    maps = model.forward_intermediates(x, indices, norm=norm, intermediates_only=True)
    assert all(close(m, e.transpose(1, 2).unflatten(2, (4, 6))) for m, e in zip(maps, expected, strict=True))


def test_layer_decay_tells_depths_apart():
    """The optimizer factory of timm gives the tokenizer the smallest rate and the head the largest."""
    model = tiny(num_classes=2)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: scale[id(p)] for name, p in model.named_parameters()}
    first = named["backbone.encoders.s2.tokenizer.proj.weight"]
    blocks = [named[f"backbone.encoders.s2.blocks.{i}.attn.qkv.weight"] for i in range(4)]
    assert [first, *blocks, named["backbone.head.weight"]] == sorted({first, *blocks, 1.0})


# -- features_only ------------------------------------------------------------------------------------


def test_features_only_is_timms_own_wrapper(x):
    model = tiny(features_only=True, out_indices=(0, -1))
    assert type(model).__name__ == "FeatureGetterNet"
    assert model.feature_info.channels() == [96, 96]
    assert model.feature_info.reduction() == [8, 8]
    own = tiny().backbone.forward_intermediates({"s2": x}, (0, 3))
    assert all(close(a, b) for a, b in zip(model(x), own, strict=True))
    assert len(tiny(features_only=True)(x)) == 4
    assert len(tiny(features_only=True, out_indices=2)(x)) == 2


def test_the_pyramid_keeps_means_and_sizes(x):
    """Each level is the map of its block: as it is at the patch's own scale, averaged above."""
    model = tiny(f"{TINY}_pyramid", features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (4, 6), (2, 3), (1, 2)]
    plain = tiny(features_only=True, out_indices=(0, 1, 2, 3))(x)
    assert close(maps[1], plain[1])
    assert close(maps[2], plain[2].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    assert close(maps[3][..., 0, 0], plain[3][..., :, :4].mean((-1, -2)))  # 32 pixels each,
    assert close(maps[3][..., 0, 1], plain[3][..., :, 4:].mean((-1, -2)))  # or what there is
    some = tiny(f"{TINY}_pyramid", features_only=True, out_indices=(1, 3))
    assert some.feature_info.reduction() == [8, 32]
    assert close(some(x)[1], maps[3])


def test_the_pyramid_of_a_padded_image_is_that_of_the_padded_one_cropped(x):
    small, whole = x[..., :20, :12], F.pad(x[..., :20, :12], (0, 4, 0, 4), mode="replicate")
    maps = tiny(f"{TINY}_pyramid", features_only=True, pad=True)(small)
    expected = tiny(f"{TINY}_pyramid", features_only=True)(whole)
    assert [tuple(m.shape[2:]) for m in maps] == [(5, 3), (3, 2), (2, 1), (1, 1)]
    for got, of_whole in zip(maps, expected, strict=True):
        assert close(got, of_whole[..., : got.shape[2], : got.shape[3]])


def test_images_are_preprocessed_for_what_timm_made():
    raw = torch.randint(0, 4000, (1, 12, 16, 16), dtype=torch.int32)
    own = rsb.create_model("croma_vit_tiny", modalities=("s2",))
    assert torch.equal(rsb.create_preprocess(tiny())(raw), rsb.create_preprocess(own)(raw))


# -- channels -----------------------------------------------------------------------------------------


def test_bands_are_gathered_by_name():
    bands = ("B08", "B04", "B03")
    model = timm.create_model(TINY, pretrained=True, in_chans=3, bands=bands)
    own = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",), bands={"s2": bands})
    x = torch.rand(1, 3, 16, 16)
    assert close(model(x), own(x))
    assert model.pretrained_cfg["input_size"][0] == 3
    filled = timm.create_model(TINY, pretrained=True, bands=("B01", "B02"), missing_bands="nearest")
    assert filled.backbone.bands["s2"] == ("B01", "B02")


def test_channels_of_another_sensor_meet_the_weights_by_wavelength():
    options = {"bands": ("B2", "B5", "B6"), "missing_bands": "nearest", "kernel_scale": "none"}
    model = timm.create_model(TINY, pretrained=True, in_chans=3, sensor="landsat_oli", **options)
    bands = {"s2": options.pop("bands")}
    own = rsb.create_model(
        "croma_vit_tiny", True, modalities=("s2",), sensors={"s2": "landsat_oli"}, bands=bands, **options
    )
    x = torch.rand(1, 3, 24, 24)
    assert close(model(x), own(x))
    assert timm.create_model(TINY, in_chans=8, sensor="superdove").backbone.bands == {
        "s2": ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir")
    }
    with pytest.raises(ValueError, match="takes 8 channels of s2: coastal_blue"):
        timm.create_model(TINY, in_chans=12, sensor="superdove")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"in_chans": 3}, "pass their names in order, bands="),
        ({"in_chans": 12, "pretrained": True}, "takes 4 channels of s2: B02, B03, B04, B08"),
        ({"in_chans": 3, "bands": ("B02", "B03")}, "in_chans is 3, but bands has 2"),
        ({"bands": ("B01",), "pretrained": True}, "no band B01"),
        ({"bands": ("B99",)}, "no band 'B99'"),
        ({"drop_path_rate": 0.1}, "do not support drop_path_rate"),
        ({"drop_rate": 0.1, "qkv_bias": True}, "do not support drop_rate, qkv_bias"),
        ({"output_stride": 16, "features_only": True}, "output_stride"),
        ({"global_pool": "token"}, "global_pool must be one of"),
        ({"img_size": 60}, "multiple of the patch"),
        ({"out_indices": (1,)}, "features_only=True"),
        ({"out_indices": (4,), "features_only": True}, "indices go from"),
        ({"num_classes": 3, "features_only": True}, "no head"),
        ({"pretrained_cfg_overlay": {"url": "https://example.org"}}, "pretrained_cfg_overlay"),
        ({"pretrained_cfg": {"architecture": "vit"}}, "must be a tag (a string)"),
        ({"cache_dir": "elsewhere"}, "cache_dir"),
    ],
)
def test_what_is_not_served_is_said(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        timm.create_model(TINY, **options)


def test_names_without_weights_and_pyramids_without_maps():
    with pytest.raises(rsb.WeightsNotFound, match="nobody has trained"):
        timm.create_model("rsb_croma_s1_vit_s", pretrained=True)
    with pytest.raises(ValueError, match="leave out _pyramid"):
        timm.create_model(f"{TINY}_pyramid")
    with pytest.raises(ValueError, match="indices go from"):
        timm.create_model(f"{TINY}_pyramid", features_only=True, out_indices=(4,))


def test_switched_off_options_are_taken():
    assert tiny(drop_rate=0.0, drop_path_rate=0, dynamic_img_size=False, scriptable=False, img_size=64)


@pytest.mark.parametrize("shape", [(12, 16, 16), (1, 2, 12, 16, 16)])
def test_only_batches_of_images(shape):
    with pytest.raises(ValueError, match=r"\[B, C, H, W\]"):
        tiny()(torch.rand(shape))


def test_a_file_of_ones_own(tmp_path, x):
    mine = tiny(num_classes=0)
    with torch.no_grad():
        mine.backbone.encoders["s2"].norm.weight.mul_(2)
    path = rsb.save_model(mine, tmp_path / "mine.safetensors")
    again = timm.create_model(TINY, pretrained=True, in_chans=12, pretrained_cfg_overlay={"file": str(path)})
    assert close(again(x), mine(x))
    with pytest.raises(ValueError, match="takes 12 channels"):
        timm.create_model(TINY, pretrained=True, in_chans=4, pretrained_cfg_overlay={"file": str(path)})


# -- where people use it ------------------------------------------------------------------------------


def train_step(net, x, classes):
    net.train()
    target = torch.randint(classes, (x.shape[0], *x.shape[2:]))
    loss = nn.functional.cross_entropy(net(x), target)
    loss.backward()
    gradients = [p.grad for p in net.encoder.parameters() if p.grad is not None]
    assert loss.isfinite()
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


PYRAMID_DECODERS = ("Unet", "UnetPlusPlus", "FPN", "Linknet", "MAnet", "UPerNet", "Segformer", "PSPNet")


@pytest.mark.parametrize("decoder", PYRAMID_DECODERS)
def test_decoders_of_smp_take_the_pyramid(decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    net = getattr(smp, decoder)(f"tu-{TINY}_pyramid", encoder_weights=True, in_channels=4, classes=3)
    x = torch.rand(2, 4, 64, 96)
    assert net.eval()(x).shape == (2, 3, 64, 96)
    train_step(net, x, 3)


def test_the_decoder_of_smp_for_vits_takes_the_plain_name():
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    bands = ("B04", "B03", "B02")
    options = {"bands": bands, "decoder_readout": "ignore"}
    net = smp.DPT(f"tu-{TINY}.samples", encoder_weights=True, in_channels=3, classes=3, **options)
    x = torch.rand(2, 3, 64, 96)
    assert net.eval()(x).shape == (2, 3, 64, 96)
    train_step(net, x, 3)


def test_what_smp_cannot_have_is_said():
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ValueError, match="bands="):
        smp.Unet(f"tu-{TINY}_pyramid", encoder_weights=True, in_channels=3)
    for decoder in (smp.DeepLabV3Plus, smp.PAN):  # they dilate convolutions, and there are none
        with pytest.raises(ValueError, match="output_stride"):
            decoder(f"tu-{TINY}_pyramid", encoder_weights=True, in_channels=4)


def test_the_trainers_of_torchgeo(tmp_path):
    trainers = pytest.importorskip("torchgeo.trainers", reason="torchgeo is not installed")
    task = trainers.ClassificationTask(model=TINY, weights=True, in_channels=4, num_classes=3)
    batch = {"image": torch.rand(2, 4, 64, 64), "label": torch.tensor([0, 2])}
    assert task(batch["image"]).shape == (2, 3)
    task.training_step(batch, 0).backward()
    task = trainers.SemanticSegmentationTask(
        model="unet", backbone=f"tu-{TINY}_pyramid", weights=True, in_channels=4, num_classes=3
    )
    batch = {"image": torch.rand(2, 4, 64, 64), "mask": torch.randint(3, (2, 64, 64))}
    task.training_step(batch, 0).backward()

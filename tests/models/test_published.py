"""Networks of one sensor equal timm's, with random weights, norms and running statistics."""

import pytest
import timm
import torch

import rsbackbones as rsb
from rsbackbones.models.efficientnet import EfficientNet
from rsbackbones.models.plain_vit import PlainViT
from rsbackbones.zoo.registry import find_architecture

TIMM = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet152": "resnet152",
    "fomu_resnet50": "resnet50",
    "fomu_resnet10t": "resnet10t",
    "fomu_resnet_tiny": "test_resnet",
    "fomu_lite0": "tf_efficientnet_lite0",
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "vit_l16": "vit_large_patch16_224",
    "vit_h14": "vit_huge_patch14_224",
    "vit_s14": "vit_small_patch14_dinov2",
    "vit_b14": "vit_base_patch14_dinov2",
}
VITS = [name for name in TIMM if name.startswith("vit")]
# Of the large ones a few blocks, of the published width: the small ones of both families are tried whole.
SHORT = {
    "resnet152": {"layers": (1, 2, 2, 1)},
    "fomu_resnet50": {"layers": (1, 1, 1, 1)},
    **{name: {"depth": 2} for name in ("vit_b16", "vit_l16", "vit_h14", "vit_b14")},
}
FOUR = ("B08", "B02", "B03", "B04")


FORMATS = {"resnet": "torchvision", "efficientnet": "timm_efficientnet", "plain_vit": "timm_vit"}


def family_of(name):
    return find_architecture(name).family.__name__.rpartition(".")[2]


def channels_of(name):
    (bands,) = (find_architecture(name).config.bands[m] for m in find_architecture(name).config.modalities)
    return len(bands)


def theirs(name, channels=None, **arguments):
    """Timm's network with random weights that leave no parameter or statistic at its trivial value."""
    torch.manual_seed(0)
    if name.startswith("vit"):
        arguments = {"img_size": 224, "dynamic_img_size": True, **arguments}
    network = timm.create_model(
        TIMM[name], in_chans=channels or channels_of(name), num_classes=0, **arguments
    ).eval()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif key.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.1)
            elif key.endswith("gamma"):
                tensor.uniform_(0.2, 1)
            elif tensor.ndim == 1:  # of norms
                tensor.uniform_(0.5, 1.5)
            elif key in ("cls_token", "pos_embed"):
                tensor.normal_()
    return network


def written(network, folder):
    """A file in the published form; what some files carry beside the encoder is in it."""
    path = folder / "model.pth"
    extra = {"head.weight": torch.zeros(5, 3), "optimizer": {"lr": 0.1, "state": {"0": torch.zeros(2)}}}
    if isinstance(network, timm.models.EfficientNet):
        extra = {"classifier.weight": torch.zeros(5, 3)}
    torch.save(network.state_dict() | extra, path)
    return path


def compare(network, model, x, tolerance=1e-5):
    """Pooled, tokens and every stage."""
    with torch.no_grad():
        features = model.forward_features(x)
        stages = model.stages(model.default_stream)
        maps = model.forward_intermediates(x, range(len(stages)))
        final = network.forward_features(x)
        pooled = network(x)
        vit = isinstance(model, PlainViT)
        expected = network.forward_intermediates(x, len(stages), intermediates_only=True)
        if isinstance(model, EfficientNet):  # in timm the last is before the head convolution
            expected[-1] = final

    def near(a, b):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))

    near(features.pooled[model.default_stream], pooled)
    near(features.tokens[model.default_stream], final[:, 1:] if vit else final.flatten(2).transpose(1, 2))
    assert len(maps) == len(expected)
    for a, b in zip(maps, expected, strict=True):
        near(a, b)


@pytest.mark.parametrize("name", TIMM)
def test_features_are_timms(name, tmp_path):
    short = SHORT.get(name, {})
    network = theirs(name, **short)
    model = rsb.create_model(name, checkpoint=written(network, tmp_path), overrides=short)
    assert {step.action for step in model.adaptation.steps} == {"assumed", "not part of the model"}
    # One is that of the position table, the other is not.
    sizes = [(121, 200)] if model.size_multiple == 1 else [(112, 224)] if short else [(224, 224), (112, 224)]
    for height, width in sizes:
        generator = torch.Generator().manual_seed(1)
        compare(network, model, torch.rand(1, channels_of(name), height, width, generator=generator))


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_embedding_is_the_class_token_or_the_mean_after_the_norm(pool, tmp_path):
    network = theirs("vit_s16", depth=2)
    file = written(network, tmp_path)
    model = rsb.create_model("vit_s16", checkpoint=file, overrides={"pool": pool, "depth": 2})
    x = torch.rand(2, 12, 64, 96)
    with torch.no_grad():
        tokens = network.forward_features(x)
        expected = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    if pool == "cls":
        with pytest.raises(ValueError, match="class token, which is not in the map"):
            model.pool("s2", model.forward_features(x).maps())


@pytest.mark.parametrize("name", ["resnet18", "fomu_resnet_tiny", "fomu_lite0", "vit_s16"])
def test_files_go_both_ways(name, tmp_path):
    network = theirs(name)
    model = rsb.create_model(name, checkpoint=written(network, tmp_path))
    file = rsb.save_in_format(model, tmp_path / "again.pth", FORMATS[family_of(name)])
    state = torch.load(file, weights_only=True)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_computed_positions_are_in_no_foreign_file(tmp_path):
    model = rsb.create_model(
        "vit_s16", overrides={**find_architecture("vit_s16").small, "positions": "sincos"}
    )
    assert "positions.table" not in model.state_dict()
    with pytest.raises(ValueError, match="cannot store positions='sincos'"):
        rsb.save_in_format(model, tmp_path / "model.pth", "timm_vit")


@pytest.mark.parametrize("name", ["resnet18", "vit_s16"])
def test_tensors_of_another_name_are_refused(name, tmp_path):
    state = theirs(name).state_dict()
    for extra in ("conv9.weight", "backbone.layer1.weight"):
        torch.save(state | {extra: torch.zeros(1)}, tmp_path / "model.pth")
        with pytest.raises(rsb.WeightsMismatchError, match=f"not in the model: {extra}"):
            rsb.create_model(name, checkpoint=tmp_path / "model.pth")
    torch.save(state | {"epoch": 3}, tmp_path / "model.pth")
    with pytest.raises(rsb.WeightsMismatchError, match=r"no tensors among its weights: epoch \(int\)"):
        rsb.create_model(name, checkpoint=tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["resnet18", "vit_s16"])
def test_bands_by_name_are_timms_network_with_the_others_zeroed_or_permuted(name, tmp_path):
    network = theirs(name)
    file = written(network, tmp_path)
    bands = find_architecture(name).config.bands["s2"]
    four = rsb.create_model(name, checkpoint=file, bands={"s2": FOUR}, kernel_scale="none")
    x = torch.rand(1, 12, 64, 96)
    where = [bands.index(band) for band in FOUR]
    zeroed = torch.zeros_like(x)
    zeroed[:, where] = x[:, where]
    reversed_model = rsb.create_model(name, checkpoint=file, bands={"s2": bands[::-1]})
    with torch.no_grad():
        torch.testing.assert_close(four(x[:, where]), network(zeroed), rtol=0, atol=1e-5)
        torch.testing.assert_close(reversed_model(x.flip(1)), network(x), rtol=0, atol=1e-5)


def test_tokens_and_positions_are_not_decayed_as_in_timm():
    model = rsb.create_model("vit_s14", overrides={"depth": 1})
    theirs = timm.create_model("vit_small_patch14_dinov2", depth=1)
    exempt = theirs.no_weight_decay() & {name for name, _ in theirs.named_parameters()}
    assert exempt == {"cls_token", "pos_embed"}
    assert model.no_weight_decay() == {"class_token", "positions.table"}


def test_sincos_positions_are_those_of_mae():
    """The formula of MAE's code, patch by patch; the class token has none."""
    model = rsb.create_model(
        "vit_s16", overrides={**find_architecture("vit_s16").small, "positions": "sincos"}
    )
    x = torch.zeros(1, 64, 48)
    found = model._with_positions(x, (8, 8), None)[0]
    assert torch.equal(found[0], model.class_token[0, 0])
    for row in range(8):
        for column in range(8):
            half = [
                f(place / 10000 ** (i / 12)) for place in (column, row) for f in (torch.sin, torch.cos)
                for place in [torch.tensor(float(place))] for i in range(12)
            ]  # fmt: skip
            torch.testing.assert_close(found[1 + 8 * row + column], torch.stack(half), atol=1e-6, rtol=0)


def test_kept_patches_keep_their_positions():
    model = rsb.create_model("vit_s16", overrides=dict(find_architecture("vit_s16").small))
    tokens = torch.rand(2, 24, 48)
    kept = torch.tensor([[3, 0], [23, 7]])
    whole = model._with_positions(tokens, (4, 6), None)
    some = model._with_positions(torch.take_along_dim(tokens, kept[..., None], 1), (4, 6), kept)
    assert torch.equal(some[:, :1], whole[:, :1])
    assert torch.equal(some[:, 1:], torch.take_along_dim(whole[:, 1:], kept[..., None], 1))


def test_another_image_size_keeps_the_table_and_another_patch_size_its_grid(tmp_path):
    network = theirs("vit_s16", depth=2)
    file = written(network, tmp_path)
    smaller = rsb.create_model("vit_s16", checkpoint=file, overrides={"depth": 2}, image_size=112)
    assert smaller.positions.table.shape == (1, 197, 384)
    x = torch.rand(1, 12, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), network(x), rtol=0, atol=1e-5)
    finer = rsb.create_model(
        "vit_s16", checkpoint=file, overrides={"depth": 2}, patch_size=32, image_size=448
    )  # fmt: skip
    # A patch that is twice as large has the token of the one that it enlarges.
    large = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
    assert finer.tokenizer(large).shape == (1, 49, 384)
    patch = torch.rand(1, 12, 16, 16)
    enlarged = torch.nn.functional.interpolate(patch, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = network.patch_embed.proj(patch).flatten(2).transpose(1, 2)
        torch.testing.assert_close(finer.tokenizer(enlarged), expected, atol=1e-4, rtol=0)


def test_a_wavelength_tokenizer_takes_any_optical_bands():
    changes = {**find_architecture("vit_s16").small, "tokenizer": "wavelength"}
    model = rsb.create_model("vit_s16", overrides=changes, bands={"s2": FOUR})
    assert model(torch.rand(1, 4, 32, 32)).shape == (1, 48)


def test_a_network_of_one_sensor_says_so():
    with pytest.raises(ValueError, match="this network has one modality, got s2, s1"):
        rsb.create_model("resnet18", modalities=("s2", "s1"))
    landsat = rsb.create_model("resnet18", modalities=("landsat_tm",), overrides={"layers": (1, 1, 1, 1)})
    assert landsat.bands == {"landsat_tm": ("B1", "B2", "B3", "B4", "B5", "B6", "B7")}


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("resnet18", "block", "dense", "block must be one of basic, bottleneck"),
        ("resnet18", "block", ("basic", "basic"), "block must be one of basic, bottleneck, or four"),
        ("resnet18", "layers", (2, 2, 2), "four positive whole numbers"),
        ("resnet18", "channels", (64, 128, 256, 0), "channels must be four positive whole numbers"),
        ("resnet18", "stem_type", "shallow", "stem_type must be one of '', 'deep', 'deep_tiered'"),
        ("fomu_lite0", "layers", (1, 2, 2), "layers must be 7 positive whole numbers"),
        ("fomu_lite0", "head_channels", 0, "head_channels must be a positive whole number"),
        ("vit_s16", "pool", "max", "pool must be one of cls, mean"),
        ("vit_s16", "positions", "alibi", "positions must be one of learned, sincos"),
        ("vit_s16", "layer_scale", 0, "layer_scale must be a positive number"),
        ("vit_s16", "position_grid", (0, 4), "position_grid must be"),
    ],
)
def test_bad_fields_are_refused(name, field, value, words):
    with pytest.raises(ValueError, match=words):
        rsb.create_model(name, overrides={field: value})

"""create_model: names, configuration, checkpoints, heads; and save_model back."""

import dataclasses
import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import rsbackbones as rsb
from rsbackbones.zoo.saving import save_in_format
from tests.conftest import close


@pytest.fixture
def saved(tiny, tmp_path):
    return rsb.save_model(tiny, tmp_path / "tiny.safetensors")


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_lists():
    assert rsb.list_models("croma*") == ["croma_vit_b", "croma_vit_l", "croma_vit_s", "croma_vit_tiny"]
    assert rsb.list_models("seamo*") == ["seamo_vit_b", "seamo_vit_l", "seamo_vit_tiny"]
    assert rsb.list_models("*_b") == ["auxmae_vit_b", "croma_vit_b", "mixmae_vit_b", "seamo_vit_b"]
    assert rsb.list_models("nothing*") == []
    pretrained = rsb.list_models(pretrained=True)
    assert "croma_vit_b.ssl4eo_s12" in pretrained
    assert "croma_vit_l.ssl4eo_s12" in rsb.list_models("croma_vit_l", pretrained=True)
    assert {e.id for e in rsb.list_weights()} >= set(pretrained)
    assert all(e.source.reason for e in rsb.list_weights() if e.availability == "unreleased")


def test_unknown_names_say_what_is_close():
    with pytest.raises(ValueError, match="did you mean croma_vit_b"):
        rsb.create_model("croma_vitb")


def test_pretrained_without_weights_says_so_and_lists_what_exists():
    with pytest.raises(rsb.WeightsNotFound, match=r"nobody has trained.*croma_vit_b\.ssl4eo_s12"):
        rsb.create_model("croma_vit_s", pretrained=True)
    with pytest.raises(rsb.WeightsNotFound, match="no weights are known"):
        rsb.create_model("croma_vit_b.other", pretrained=True)


def test_of_many_weights_the_near_ones_are_listed():
    with pytest.raises(rsb.WeightsNotFound, match=r"exist for: resnet50\.ssl4eo_s12_moco_s2, ") as error:
        rsb.create_model("resnet50.ssl4eo_s12_moko_s2", pretrained=True)
    assert "resnet18." not in str(error.value)
    assert "`rsbackbones list` names all " in str(error.value)
    assert len(str(error.value)) < 600


def test_a_tag_without_pretrained_is_no_silent_random_model():
    with pytest.raises(ValueError, match="pretrained=True"):
        rsb.create_model("croma_vit_b.ssl4eo_s12")


def test_a_saved_model_is_read_back_bit_for_bit(tiny, saved, images):
    again = rsb.create_model("croma_vit_tiny", checkpoint=saved)
    assert same_weights(tiny, again)
    assert close(tiny(images), again(images))
    assert not again.adaptation
    assert "nothing changed" in str(again.adaptation)
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_saving_over_a_file_leaves_no_other_files(tiny, saved):
    rsb.save_model(tiny, saved)
    assert [p.name for p in saved.parent.iterdir()] == ["tiny.safetensors"]
    with pytest.raises(ValueError, match=r"\.safetensors"):
        rsb.save_model(tiny, saved.with_suffix(".pt"))


def test_the_file_brings_its_configuration(tmp_path):
    model = rsb.create_model(
        "croma_vit_tiny", overrides={"dim": 32, "depth": 2}, modalities=["s2"], num_classes=4
    )
    path = rsb.save_model(model, tmp_path / "small.safetensors")
    again = rsb.create_model("croma_vit_tiny", checkpoint=path, num_classes=None)
    assert same_weights(model, again)
    assert again.modalities == ("s2",)
    assert again.num_classes == 4
    with pytest.raises(ValueError, match="unknown modality 's1'"):
        rsb.create_model("croma_vit_tiny", checkpoint=path, modalities=["s1"])
    with pytest.raises(rsb.WeightsMismatchError, match="holds croma_vit_tiny, not croma_vit_s"):
        rsb.create_model("croma_vit_s", checkpoint=path)


@pytest.mark.parametrize("wanted", [("s2",), ("s1",), ("s1", "s2")])
def test_modalities_load_only_what_is_needed(tiny, saved, images, wanted):
    model = rsb.create_model("croma_vit_tiny", checkpoint=saved, modalities=wanted)
    assert model.modalities == wanted
    full, part = tiny.forward_features(images), model.forward_features({m: images[m] for m in wanted})
    for stream in part.tokens:
        assert close(part.tokens[stream], full.tokens[stream])
    if len(wanted) == 1:
        assert not [n for n in model.state_dict() if n.startswith("joint.")]
        assert "dropped" in str(model.adaptation)


def test_heads_are_new_kept_or_left_out(tmp_path, tiny, saved, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an encoder gets its first head
        classifier = rsb.create_model("croma_vit_tiny", checkpoint=saved, num_classes=5)
    assert [c.action for c in classifier.adaptation.steps] == ["new"]
    assert classifier(images).shape == (2, 5)
    path = rsb.save_model(classifier, tmp_path / "classifier.safetensors")
    for classes in (5, None):
        again = rsb.create_model("croma_vit_tiny", checkpoint=path, num_classes=classes)
        assert close(again(images), classifier(images))
    encoder = rsb.create_model("croma_vit_tiny", checkpoint=path)
    assert close(encoder(images), tiny(images))
    assert str(encoder.adaptation.steps[0].detail) == "5 classes"
    with pytest.warns(UserWarning, match=r"trained head of 5 classes; num_classes=9 .*=None keeps it"):
        other = rsb.create_model("croma_vit_tiny", checkpoint=path, num_classes=9)
    assert other(images).shape == (2, 9)
    assert close(other.forward_features(images).pooled["joint"], tiny(images))


def test_bands_are_gathered_by_name(saved, tiny):
    """Reordered and dropped bands: without a scale rule the full model with the missing bands at zero."""
    mine = ("B8A", "B02", "B11")
    model = rsb.create_model(
        "croma_vit_tiny",
        checkpoint=saved,
        modalities=["s2"],
        bands={"s2": ("b8a", "blue", "B11")},
        kernel_scale="none",
    )
    assert model.bands == {"s2": mine}
    x = torch.rand(1, 3, 16, 16)
    whole = torch.zeros(1, 12, 16, 16)
    for i, band in enumerate(mine):
        whole[:, tiny.bands["s2"].index(band)] = x[:, i]
    torch.testing.assert_close(model(x), tiny({"s2": whole}), atol=1e-5, rtol=0)
    assert "dropped" in str(model.adaptation)
    assert "B01" in str(model.adaptation)


def test_bands_that_the_weights_lack(saved):
    arguments = {
        "checkpoint": saved,
        "modalities": ["s2"],
        "bands": {"s2": ("B04", "B10")},
        "kernel_scale": "none",
    }
    with pytest.raises(ValueError, match=r"no band B10.*missing_bands='nearest'"):
        rsb.create_model("croma_vit_tiny", **arguments)
    weight = rsb.create_model("croma_vit_tiny", checkpoint=saved).encoders["s2"].tokenizer.proj.weight
    bands = rsb.create_model("croma_vit_tiny").bands["s2"]
    old = weight.detach().view(96, 12, 64)
    for rule, expected in (
        ("nearest", old[:, bands.index("B11")]),
        ("mean", old.mean(1)),
        ("zero", torch.zeros(96, 64)),
    ):
        model = rsb.create_model("croma_vit_tiny", **arguments, missing_bands=rule)
        got = model.encoders["s2"].tokenizer.proj.weight.detach().view(96, 2, 64)
        assert torch.equal(got[:, 0], old[:, bands.index("B04")])
        assert torch.equal(got[:, 1], expected)
        assert [match.rule for match in model.adaptation.bands[0].matches] == ["by name", rule]
        assert rule in str(model.adaptation)
    torch.manual_seed(0)
    new = (
        rsb.create_model("croma_vit_tiny", **arguments, missing_bands="reinit")
        .encoders["s2"]
        .tokenizer.proj.weight
    )
    column = new.detach().view(96, 2, 64)[:, 1]
    assert 0 < column.abs().max() <= 1 / (2 * 64) ** 0.5  # the bound of torch's initialization
    assert not [i for i in range(12) if torch.equal(column, old[:, i])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": ["s3"]}, "unknown modality 's3'"),
        ({"modalities": "s2"}, "modalities must be"),
        ({"modalities": []}, "modalities must be"),
        ({"modalities": ["s2", "s2"]}, "modalities must be"),
        ({"bands": {"s3": ["B02"]}}, "bands has s3"),
        ({"bands": {"s2": ["B99"]}}, "no band 'B99'"),
        ({"bands": {"s2": ["B02", "blue"]}}, "named more than once"),
        ({"bands": {"s2": []}}, "no band is named"),
        ({"bands": {"s2": "B02"}}, "sequence of names"),
        ({"missing_bands": "guess"}, "missing_bands must be one of"),
        ({"kernel_scale": "guess"}, "kernel_scale must be one of"),
        ({"sensors": {"s3": "landsat_oli"}}, "sensors has s3"),
        ({"sensors": {"s2": "spot_6"}}, "unknown sensor 'spot_6'.*register_sensor"),
        ({"sensors": {"s2": "s1"}}, "s2 is optical and s1 is radar"),
        ({"sensors": {"s2": "landsat_oli"}, "bands": {"s2": ["B8A"]}}, "'landsat_oli' has no band 'B8A'"),
        ({"patch_size": 16}, "multiple of the patch size 16"),
        ({"patch_size": 0}, "patch_size must be a positive"),
        ({"image_size": 100}, "multiple of the patch size 8"),
        ({"image_size": (96, 100)}, "multiple of the patch size 8"),
        ({"image_size": (96, 96, 96)}, "image_size must be a number of pixels"),
        ({"image_size": 0}, "image_size must be a number of pixels"),
        ({"num_classes": -1}, "num_classes"),
        ({"overrides": {"dept": 4}}, "no configuration field dept"),
        ({"overrides": {"modalities": ("s3",)}}, "unknown sensor 's3'"),
        ({"overrides": {"modalities": ("rgb",), "bands": {"rgb": ("B04",)}}}, "CROMA's modalities"),
        ({"overrides": {"dim": "32"}}, "dim must be a positive whole number"),
        ({"overrides": {"mlp_ratio": "4"}}, "mlp_ratio must be a number"),
        ({"features_only": True, "num_classes": 3}, "has no head"),
        ({"stream": "s2"}, "features_only=True"),
        ({"out_indices": [1]}, "features_only=True"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rsb.create_model("croma_vit_tiny", **arguments)


def test_image_size_is_kept_and_sizes_are_free(images):
    model = rsb.create_model("croma_vit_tiny", image_size=(96, 160))
    assert model.config.image_size == (96, 160)
    assert model(images).shape == (2, 96)


def test_missing_checkpoint_files():
    with pytest.raises(rsb.WeightsNotFound, match="no checkpoint file"):
        rsb.create_model("croma_vit_tiny", checkpoint="nowhere.safetensors")
    with pytest.raises(ValueError, match="the tag names weights"):
        rsb.create_model("croma_vit_b.ssl4eo_s12", checkpoint="nowhere.safetensors")


def test_half_precision_is_cast_up_where_the_file_or_all_weights_have_it(tiny, tmp_path, images):
    path = rsb.save_model(tiny, tmp_path / "half.safetensors", dtype=torch.float16)
    assert path.stat().st_size < 0.6 * sum(t.numel() * 4 for t in tiny.state_dict().values())
    model = rsb.create_model("croma_vit_tiny", checkpoint=path)
    assert model(images).dtype == torch.float32
    torch.testing.assert_close(model(images), tiny(images), atol=5e-3, rtol=0)
    silent = tmp_path / "silent.safetensors"
    state = tiny.state_dict()
    save_file({n: t.half() for n, t in state.items()}, silent)
    again = rsb.create_model("croma_vit_tiny", checkpoint=silent)  # all in one type: cast, and reported
    assert torch.equal(again(images), model(images))
    assert [s.detail for s in again.adaptation.steps if s.action == "cast"] == [
        f"float16 to float32 ({len(state)} tensors)"
    ]
    save_file({n: t.half() if n.startswith("embeddings.s1") else t for n, t in state.items()}, silent)
    with pytest.raises(rsb.WeightsMismatchError, match=r"wrong dtype.*embeddings\.s1"):
        rsb.create_model("croma_vit_tiny", checkpoint=silent)


def test_a_damaged_description_is_refused(tiny, tmp_path):
    path = tmp_path / "x.safetensors"
    for text in ("{", "[]", json.dumps({"architecture": "croma_vit_tiny"})):
        save_file(dict(tiny.state_dict()), path, {"rsbackbones": text})
        with pytest.raises(rsb.CorruptCheckpointError, match="metadata is damaged"):
            rsb.create_model("croma_vit_tiny", checkpoint=path)


def test_overrides_cannot_contradict_what_weights_say_of_themselves(saved, tiny, tmp_path):
    """Not even where every shape would fit: other heads or relabelled bands give other features."""
    bands = {"s2": tuple(reversed(tiny.bands["s2"])), "s1": ("VV", "VH")}
    for overrides in ({"depth": 2}, {"dim": 48}, {"num_heads": 8}, {"bands": bands}, {"modalities": ("s2",)}):
        with pytest.raises(rsb.WeightsMismatchError, match=f"{next(iter(overrides))} "):
            rsb.create_model("croma_vit_tiny", checkpoint=saved, overrides=overrides)
    rsb.create_model("croma_vit_tiny", checkpoint=saved, overrides={"num_heads": 4, "image_size": 96})
    foreign = save_in_format(tiny, tmp_path / "foreign.pt", "croma_official")
    model = rsb.create_model("croma_vit_tiny", checkpoint=foreign, overrides={"num_heads": 8})
    assert "assumed" in str(model.adaptation)
    assert "8 heads" in str(model.adaptation)


def test_the_input_contract_comes_with_a_saved_model(tiny, tmp_path):
    spec = tiny.inputs["s2"]
    own = dataclasses.replace(spec, mean=tuple(m + 500 for m in spec.mean), eight_bit=False)
    tiny.inputs = {**tiny.inputs, "s2": own}
    again = rsb.create_model("croma_vit_tiny", checkpoint=rsb.save_model(tiny, tmp_path / "m.safetensors"))
    assert again.inputs == tiny.inputs
    x = {"s2": torch.randint(0, 4000, (1, 12, 8, 8))}
    expected = rsb.create_preprocess(tiny)(x)["s2"]
    assert torch.equal(rsb.create_preprocess(again)(x)["s2"], expected)
    assert not torch.equal(rsb.create_preprocess(rsb.create_model("croma_vit_tiny"))(x)["s2"], expected)


def test_wrapped_models_are_saved_as_themselves(tiny, tmp_path, images):
    maps = rsb.create_model("croma_vit_tiny", features_only=True)
    for wrapped, inner in (
        (torch.compile(tiny), tiny),
        (torch.nn.DataParallel(tiny), tiny),
        (maps, maps.backbone),
    ):
        path = rsb.save_model(wrapped, tmp_path / "w.safetensors")
        assert same_weights(rsb.create_model("croma_vit_tiny", checkpoint=path), inner)
    with pytest.raises(ValueError, match="a model from create_model, got Linear"):
        rsb.save_model(torch.nn.Linear(1, 1), tmp_path / "w.safetensors")


def test_a_plain_state_dict_shows_whether_it_has_a_head(tmp_path, images):
    model = rsb.create_model("croma_vit_tiny", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "sd.pt")
    again = rsb.create_model("croma_vit_tiny", checkpoint=tmp_path / "sd.pt", num_classes=3)
    assert same_weights(again, model)
    assert close(again(images), model(images))


@pytest.mark.parametrize("layout", ["croma_official", "croma_pretrain"])
@pytest.mark.parametrize("flat", [False, True])
def test_foreign_layouts_round_trip(tiny, tmp_path, layout, flat):
    path = save_in_format(tiny, tmp_path / "foreign.pt", layout, flat=flat)
    assert same_weights(tiny, rsb.create_model("croma_vit_tiny", checkpoint=path))
    content = torch.load(path, weights_only=True)
    nested = any(isinstance(v, dict) for v in content.values())
    assert nested == (layout == "croma_official" and not flat)


def test_a_flat_foreign_file_may_be_safetensors(tiny, tmp_path):
    flat = torch.load(save_in_format(tiny, tmp_path / "f.pt", "croma_official", flat=True), weights_only=True)
    save_file(flat, tmp_path / "f.safetensors")
    assert same_weights(tiny, rsb.create_model("croma_vit_tiny", checkpoint=tmp_path / "f.safetensors"))


def test_names_of_the_released_files(tiny, tmp_path):
    """The names of the reference checkpoints, which are the authors'."""
    from tests.conftest import RECORDED

    small = rsb.create_model("croma_vit_b", overrides={"dim": 32, "depth": 2})
    for layout, name in (
        ("croma_official", "croma_official_d32.pt"),
        ("croma_pretrain", "croma_pretrain_d32.pt"),
    ):
        theirs = torch.load(RECORDED / name, weights_only=True)
        ours = torch.load(save_in_format(small, tmp_path / "x.pt", layout), weights_only=True)
        if layout == "croma_official":
            assert {k: set(v) for k, v in theirs.items()} == {k: set(v) for k, v in ours.items()}
        else:
            rest = {k for k in theirs if k.startswith(("decoder.", "global_contrast_loss."))}
            assert set(theirs) - rest == set(ours)
    model = rsb.create_model(
        "croma_vit_b", checkpoint=RECORDED / "croma_pretrain_d32.pt", overrides={"dim": 32, "depth": 2}
    )
    assert "decoder, global_contrast_loss" in str(model.adaptation)
    stored = torch.load(RECORDED / "croma_pretrain_d32.pt", weights_only=True)
    qkv = "radar_encoder.transformer.layers.0.0.create_qkv.weight"
    assert torch.equal(model.state_dict()["encoders.s1.blocks.0.attn.qkv.weight"], stored[qkv])


def test_a_head_has_no_place_in_a_foreign_layout(tmp_path):
    model = rsb.create_model("croma_vit_tiny", num_classes=3)
    with pytest.raises(ValueError, match=r"cannot store head\.bias, head\.weight"):
        save_in_format(model, tmp_path / "x.pt", "croma_official")


@pytest.mark.parametrize("overrides", [{"positions": "sincos"}, {"positions": "peg"}, {"cross_alibi": False}])
def test_a_foreign_layout_does_not_lose_the_position_encoding(tmp_path, overrides):
    model = rsb.create_model("croma_vit_tiny", overrides=overrides)
    with pytest.raises(ValueError, match=rf"cannot store {next(iter(overrides))}="):
        save_in_format(model, tmp_path / "x.pt", "croma_official")
    assert not list(tmp_path.iterdir())
    again = rsb.create_model("croma_vit_tiny", checkpoint=rsb.save_model(model, tmp_path / "x.safetensors"))
    assert again.config == model.config


def test_a_stored_attention_table_is_checked_and_dropped(tiny, tmp_path):
    from rsbackbones.layers.alibi import alibi_bias, grid_positions

    flat = torch.load(save_in_format(tiny, tmp_path / "f.pt", "croma_official", flat=True), weights_only=True)
    table = alibi_bias(grid_positions(4, 4), grid_positions(4, 4), 4)[None]
    torch.save({**flat, "attn_bias": table}, tmp_path / "right.pt")
    assert same_weights(tiny, rsb.create_model("croma_vit_tiny", checkpoint=tmp_path / "right.pt"))
    torch.save({**flat, "attn_bias": table * 2}, tmp_path / "wrong.pt")
    with pytest.raises(rsb.WeightsMismatchError, match="not the 2D-ALiBi of 4 heads"):
        rsb.create_model("croma_vit_tiny", checkpoint=tmp_path / "wrong.pt")


def test_safetensors_metadata_describes_the_file(saved):
    with safe_open(saved, framework="pt") as file:
        described = json.loads(file.metadata()["rsbackbones"])
    assert described["architecture"] == "croma_vit_tiny"
    assert described["config"]["bands"]["s1"] == ["VV", "VH"]
    assert described["dtype"] == "float32"


def test_loading_does_not_touch_the_global_generator(saved):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    rsb.create_model("croma_vit_tiny", checkpoint=saved)
    assert torch.equal(torch.rand(1), expected)

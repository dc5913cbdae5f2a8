"""What is built on a backbone, over every architecture: heads, timm, export, scenes, evaluation."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from rasterio.transform import from_origin

import rsbackbones as rsb
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.embed import embed_patches, embed_scene
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.heads import dense_model
from rsbackbones.integrations.timm import register_encoders, timm_name
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.zoo.registry import find_architecture
from tests.conftest import close
from tests.data.test_rasters import write_tif
from tests.embed.test_embed import optical, radar, read_map
from tests.models.examples import ALL, ONE_BY_ONE, SERIES, VITS, batch, cells, dated, small, times_of
from tests.models.toy_cnn import ToyCNN

register_encoders()


@pytest.fixture(params=ALL)
def model(request):
    return small(request.param)


# -- heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "upernet", "vit_lite"])
def test_every_head_gives_every_pixel_logits_and_trains(model, head):
    if head == "upernet":
        pytest.importorskip("segmentation_models_pytorch")
    options = {"linear": {}, "upernet": {"width": 16}, "vit_lite": {"width": 32, "depth": 1}}[head]
    dense = dense_model(model, head, num_classes=3, **options).train()
    x = batch(model, 40, 72, times=times_of(model))
    logits = dense(x, **dated(model, times_of(model)))
    assert logits.shape == (2, 3, 40, 72)
    logits.square().mean().backward()
    assert [p for p in dense.head.parameters() if p.grad is not None]
    missed = [n for n, p in dense.named_parameters() if p.requires_grad and p.grad is None]
    assert missed == []
    stem = model.get_parameter(model.stem(model.modalities[0]).weight)
    assert stem.grad.abs().sum() > 0


def test_a_linear_head_is_a_linear_layer_on_the_final_map(model):
    dense = dense_model(model, "linear", num_classes=2).eval()
    x = batch(model)
    weight, bias = dense.head.classify.weight, dense.head.classify.bias
    small_logits = torch.nn.functional.conv2d(model.forward_features(x).maps(), weight, bias)
    h, w = small_logits.shape[-2:]
    fine = torch.nn.functional.interpolate(
        small_logits, (h * model.stride, w * model.stride), mode="bilinear"
    )[..., :64, :96]
    torch.testing.assert_close(dense(x), fine, atol=1e-5, rtol=0)


def test_change_detection_takes_two_dates(model):
    dense = dense_model(model, "linear", num_classes=2, task="change")
    first, second = batch(model), batch(model, seed=1)
    both = {m: torch.stack([first[m], second[m]], dim=1) for m in first}
    assert torch.equal(dense(both), dense(first, second))
    same = dense(first, copy.deepcopy(first))
    assert torch.allclose(same, same.mean(dim=(0, -1, -2), keepdim=True).expand_as(same), atol=1e-5)


# -- timm ---------------------------------------------------------------------------------------------


def timm_model(model, **arguments):
    architecture = find_architecture(model.architecture)
    name = timm_name(architecture, model.modalities[0])
    torch.manual_seed(0)
    encoder = timm.create_model(name, **arguments)
    return encoder


def test_timm_names_give_the_features_of_the_backbone(model):
    encoder = timm_model(model, num_classes=3)
    backbone = encoder.backbone
    x = torch.rand(2, encoder.in_chans, 64, 96)
    features = backbone.forward_features(x)
    (stream,) = features.pooled
    expected = features.tokens[stream] if isinstance(backbone, ViTBackbone) else features.maps(stream)
    prefix = encoder.num_prefix_tokens  # a class token, where there is one
    assert close(encoder.forward_features(x)[:, prefix:], expected)
    assert close(encoder(x), backbone.head(features.pooled[stream]))
    assert close(encoder.forward_head(encoder.forward_features(x), pre_logits=True), features.pooled[stream])
    final, maps = encoder.forward_intermediates(x)
    stages = backbone.encoder_stages(stream)
    assert close(final[:, prefix:], expected)
    for stage, info, each in zip(stages, encoder.feature_info, maps, strict=True):
        assert (info["num_chs"], info["reduction"], info["module"]) == stage
        assert each.shape == (2, stage.channels, cells(64, stage.stride), cells(96, stage.stride))
    for pool in ("avg", ""):
        encoder.set_pool(pool)
        tokens = features.tokens[stream]
        expected = backbone.head(tokens.mean(1) if pool else tokens)
        found = encoder(x)
        found = found if found.ndim < 4 else found.flatten(2).transpose(1, 2)
        assert close(found, expected)


def test_timms_features_only_states_the_true_channels_and_reductions(model):
    encoder = timm_model(model, features_only=True)
    x = torch.rand(2, encoder.model.in_chans, 64, 96)
    for channels, reduction, each in zip(
        encoder.feature_info.channels(), encoder.feature_info.reduction(), encoder(x), strict=True
    ):
        assert each.shape == (2, channels, cells(64, reduction), cells(96, reduction))


def test_timms_features_only_of_falling_strides_is_refused(monkeypatch):
    stages = ToyCNN.stages
    monkeypatch.setattr(ToyCNN, "stages", lambda self, stream: stages(self, stream)[::-1])
    name = timm_name(find_architecture("toy_cnn"), "s2")
    with pytest.raises(ValueError, match=r"strides that never fall, and toy_cnn has \[32, 16, 8, 4\]"):
        timm.create_model(name, features_only=True)
    assert timm.create_model(name).feature_info[0]["reduction"] == 32


def test_timms_layer_decay_lowers_the_rate_towards_the_stem(model):
    optim = pytest.importorskip("timm.optim")
    if not hasattr(optim, "param_groups_layer_decay"):
        pytest.skip("this timm has no layer decay")
    param_groups_layer_decay = optim.param_groups_layer_decay
    encoder = timm_model(model, num_classes=2)
    groups = param_groups_layer_decay(encoder, 0.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    depths = encoder.backbone.parameter_depths()
    depths |= {name: len(depths) for name in depths if name.startswith("head.")}  # a layer of its own
    layers = sorted(set(depths.values()))
    for name, parameter in encoder.backbone.named_parameters():
        assert scale[id(parameter)] == 0.5 ** (len(layers) - 1 - layers.index(depths[name])), name


def test_a_pyramid_of_four_stages_or_an_error_with_a_text(model):
    architecture = find_architecture(model.architecture)
    name = timm_name(architecture, model.modalities[0]) + "_pyramid"
    with torch.device("meta"):
        full = architecture.family.build(architecture.config)
    if len(full.encoder_stages(model.modalities[0])) < 4:
        with pytest.raises(ValueError, match="a pyramid needs 4 stages"):
            timm.create_model(name, features_only=True)
        return
    pyramid = timm.create_model(name, features_only=True)
    x = torch.rand(1, pyramid.model.in_chans, 64, 96)
    for channels, reduction, each in zip(
        pyramid.feature_info.channels(), (4, 8, 16, 32), pyramid(x), strict=True
    ):
        assert each.shape == (1, channels, 64 // reduction, 96 // reduction)


# -- export -------------------------------------------------------------------------------------------
# Of ViTs tests/integrations/test_export.py has more.


# What is traced is mostly the network: one kind of output for every family, all of them for the small ones.
EXPORTED = [(name, "forward_features") for name in sorted(set(ALL) - set(VITS))]
EXPORTED += [(name, kind) for name in ("toy_cnn", "toy_series") for kind in ("forward", "maps")]


@pytest.mark.parametrize(("name", "kind"), EXPORTED)
def test_programs_of_torch_export_serve_other_batches_and_sizes(name, kind):
    model = small(name, modalities=small(name).modalities[:1])
    options = {"modalities": model.modalities, "features_only": True}
    given = small(name, **options) if kind == "maps" else model
    method = "forward" if kind == "maps" else kind
    program = rsb.export_program(given, method=method).module()
    times = model.date_stride + 1 if model.consumes == "series" else None
    for height, width in ((72, 96), (96, 72)):
        x = batch(model, height, width, times=times)
        x = {m: torch.cat([v, v, v]) for m, v in x.items()}
        with torch.no_grad():
            found = program(x)
            features = model.forward_features(x)
        if kind == "forward":
            expected = {"embedding": features.pooled[features.default_stream]}
        elif kind == "maps":
            expected = {f"maps_{i}": m for i, m in zip(given.indices, given(x), strict=True)}
        else:
            expected = {f"maps_{s}": x for s, x in features.feature_maps.items()}
            expected |= {f"pooled_{s}": p for s, p in features.pooled.items()}
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "pad"), [("resnet18", False), ("toy_cnn", True), ("toy_series", True)])
def test_onnx_files_give_the_same(name, pad, tmp_path):
    model = small(name, pad=pad)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = rsb.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    times = 4 if model.consumes == "series" else None
    x = batch(model, *((93, 75) if pad else (96, 72)), times=times)
    (found,) = session.run(None, {m: v.numpy() for m, v in x.items()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-4, rtol=0)


# -- scenes and patches -------------------------------------------------------------------------------


def rasters(model, folder: Path, height, width):
    """A raster for each sensor of a model, and what is in it, [C, H, W]."""
    raw = {}
    for m, bands in model.bands.items():
        raw[m] = radar(height, width) if m == "s1" else optical(height, width, bands=len(bands))
        if m == "rgb":
            raw[m] = (raw[m] % 256).astype(np.uint8)
    place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5e6, 10, 10)}
    files = [write_tif(folder / f"{m}.tif", raw[m], model.bands[m], **place) for m in model.modalities]
    return files, raw


def options(model):
    """Of the commands over rasters: an 8-bit file is a picture once its user says so."""
    return {"progress": False, "units": {"rgb": "rgb8"} if "rgb" in model.modalities else None}


def features_of(model, raw):
    images = rsb.create_preprocess(model)({m: x[None] for m, x in raw.items()})
    with torch.inference_mode():
        return model.forward_features(images)


@pytest.mark.parametrize("model", ONE_BY_ONE, indirect=True)
@pytest.mark.parametrize("pad", [False, True])
def test_a_scene_of_one_window_has_the_map_of_the_whole_scene(model, tmp_path, pad):
    model.pad = pad
    unit = np.lcm(model.size_multiple, model.stride)
    files, raw = rasters(model, tmp_path, 101, 107)
    out = embed_scene(
        model, files, tmp_path / "map.tif", window=int(-(-107 // unit) * unit), **options(model)
    )
    found = read_map(out)
    sides = [cells(n, model.stride) if pad else n // unit * unit // model.stride for n in (101, 107)]
    assert found.shape == (*sides, model.num_features)
    if pad:  # the model is given whole cells
        raw = {
            m: np.pad(x, ((0, 0), (0, -101 % unit), (0, -107 % unit)), mode="edge") for m, x in raw.items()
        }
    else:
        raw = {m: x[:, : 101 // unit * unit, : 107 // unit * unit] for m, x in raw.items()}
    expected = features_of(model, raw).maps()[0, :, : sides[0], : sides[1]].permute(1, 2, 0)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("model", ONE_BY_ONE, indirect=True)
def test_a_scene_of_several_windows_is_covered_and_georeferenced(model, tmp_path):
    import rasterio

    files, _ = rasters(model, tmp_path, 160, 224)
    out = embed_scene(model, files, tmp_path / "map.tif", window=64, overlap=32, **options(model))
    with rasterio.open(out) as raster:
        assert (raster.height, raster.width) == (160 // model.stride, 224 // model.stride)
        assert raster.transform.a == 10 * model.stride
        assert np.isfinite(raster.read()).all()
    assert (tmp_path / "map.png").exists()


@pytest.mark.parametrize("model", ONE_BY_ONE, indirect=True)
def test_patches_get_one_embedding_each(model, tmp_path):
    files, raw = rasters(model, tmp_path, 64, 96)
    embed_patches(model, files, tmp_path / "rows.npz", **options(model))
    rows = np.load(tmp_path / "rows.npz")
    features = features_of(model, raw)
    for stream in model.stream_inputs:
        alone = features_of(model, {m: raw[m] for m in model.stream_inputs[stream]})
        assert rows[stream].shape == features.pooled[stream].shape
        np.testing.assert_allclose(rows[stream][0], alone.pooled[stream][0], atol=2e-5)


@pytest.mark.parametrize("name", SERIES)
def test_models_of_series_take_no_single_image(name, tmp_path):
    model = small(name)
    files, _ = rasters(model, tmp_path, 64, 96)
    for embed, output in ((embed_scene, "map.tif"), (embed_patches, "rows.npz")):
        with pytest.raises(ValueError, match=r"encodes series of dates.*--composite none.*embed_series"):
            embed(model, files, tmp_path / output, **options(model))
    assert sorted(tmp_path.iterdir()) == sorted(files)


# -- evaluation ---------------------------------------------------------------------------------------


def labelled(model, size=64, count=8, maps=False):
    rng = np.random.default_rng(0)
    raw = {"s2": (100, 4000, np.uint16), "s1": (-30, 0, np.float32), "rgb": (0, 256, np.uint8)}
    samples = [
        {
            m: rng.uniform(*raw[m][:2], (len(model.bands[m]), size, size)).astype(raw[m][2])
            for m in model.bands
        }
        for _ in range(count)
    ]
    if maps:
        for sample in samples:
            sample["label"] = rng.integers(0, 3, (size, size))
    return LabelledDataset(
        name="made", task="pixels" if maps else "classes", classes=("a", "b", "c"), bands=dict(model.bands),
        units={m: {"s2": "dn", "s1": "db", "rgb": "uint8"}[m] for m in model.bands},
        ids=tuple(map(str, range(count))), labels=None if maps else np.arange(count) % 3,
        splits={"train": np.arange(count - 3), "test": np.arange(count - 3, count)},
        read=lambda i: dict(samples[i]), digest=f"made {size} {maps}",
    )  # fmt: skip


def test_frozen_features_are_those_of_the_model(model, tmp_path):
    data = labelled(model)
    encoded = encode(model, data, batch_size=3, cache=tmp_path)
    for i in (0, 7):
        raw = {m: data.read(i)[m] for m in model.bands}
        for stream, needed in model.stream_inputs.items():
            alone = features_of(model, {m: raw[m] for m in needed})
            np.testing.assert_allclose(encoded.stream(stream).features[i], alone.pooled[stream][0], atol=2e-5)
    again = encode(model, data, cache=tmp_path)
    assert again.key == encoded.key
    with torch.no_grad():
        next(model.buffers() if list(model.buffers()) else model.parameters()).add_(1)
    assert encode(model, data).key != encoded.key


def test_patches_of_label_maps_are_the_cells_of_the_map(model):
    data = labelled(model, maps=True)
    encoded = encode(model, data, level="patch")
    stream = model.modalities[0]
    n = cells(64, model.stride) ** 2
    assert encoded.stream(stream).features.shape == (8 * n, model.num_features)
    assert encoded.pixels.sum() == 8 * 64 * 64
    beside = statistics_features(data, level="patch", patch_size=model.stride)
    assert np.array_equal(beside.labels, encoded.labels)
    tiled = encode(model, data, level="patch", tile=32, overlap=0)
    raw = {m: data.read(7)[m][:, 32:, :32] for m in model.stream_inputs[stream]}
    corner = features_of(model, raw).maps(stream)[0].permute(1, 2, 0)
    side = 64 // model.stride
    found = tiled.stream(stream).features[7 * n :].reshape(side, side, -1)[side // 2 :, : side // 2]
    np.testing.assert_allclose(found, corner.numpy(), atol=2e-5)

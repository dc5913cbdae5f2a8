"""What every model of the zoo must do, over all of list_models()."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from tests.conftest import close

ALL = rsb.list_models()
# The same code at another size: width and depth small enough for a test.
SMALL = {"dim": 48, "depth": 2, "num_heads": 4}


@pytest.fixture(params=ALL)
def model(request):
    torch.manual_seed(0)
    return rsb.create_model(request.param, overrides=SMALL)


def batch(model, height=32, width=48, *, times=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lead = (2,) if times is None else (2, times)
    return {
        m: torch.rand(*lead, len(bands), height, width, generator=generator)
        for m, bands in model.bands.items()
    }


def test_models_are_built_in_eval_mode_without_weights(model):
    assert not model.training
    assert model.weights_entry is None
    assert model.adaptation is None


def test_features_have_the_shapes_of_the_design(model):
    features = model.forward_features(batch(model))
    assert set(features.tokens) == set(features.pooled) == set(model.stream_depths)
    assert features.grid == (4, 6)
    for stream in features.tokens:
        assert features.tokens[stream].shape == (2, 24, 48)
        assert features.pooled[stream].shape == (2, 48)
        maps = features.maps(stream)
        assert maps.shape == (2, 48, 4, 6)
        # Row-major: the token of row 2, column 5.
        assert close(maps[:, :, 2, 5], features.tokens[stream][:, 2 * 6 + 5])


def test_call_gives_the_pooled_default_stream(model):
    x = batch(model)
    features = model.forward_features(x)
    assert close(model(x), features.pooled[features.default_stream])


def test_sizes_may_differ_from_call_to_call(model):
    for height, width in ((32, 48), (8, 8), (40, 16)):
        assert model.forward_features(batch(model, height, width)).grid == (height // 8, width // 8)


def test_a_missing_sensor_leaves_out_the_streams_it_feeds(model):
    x = batch(model)
    for modality in model.modalities:
        alone = model.forward_features({modality: x[modality]})
        assert set(alone.tokens) == {modality}
        together = model.forward_features(x).tokens[modality]
        others = {m: v if m == modality else v.flip(0) for m, v in x.items()}
        with_others = model.forward_features(others).tokens[modality]
        if model.cross_modal:  # every token has seen the other sensor
            for a, b in ((alone.tokens[modality], together), (with_others, together)):
                assert (a - b).abs().amax(dim=-1).min() > 1e-3
        else:
            assert close(alone.tokens[modality], together)
            assert close(with_others, together)


def test_one_modality_takes_a_bare_tensor_and_has_only_its_parameters(model):
    for modality in model.modalities:
        single = rsb.create_model(model.architecture, modalities=[modality], overrides=SMALL)
        x = batch(single)[modality]
        assert close(single(x), single({modality: x}))
        assert set(single.state_dict()) < set(model.state_dict())


def test_intermediates_end_in_the_features(model):
    x = batch(model)
    features = model.forward_features(x)
    for stream, depth in model.stream_depths.items():
        maps = model.forward_intermediates(x, stream=stream)
        assert len(maps) == min(4, depth)
        (last,) = model.forward_intermediates(x, indices=[-1], stream=stream, norm=True)
        assert close(last, features.maps(stream))
        first, again = model.forward_intermediates(x, indices=(0, 0), stream=stream)
        assert close(first, again)
        assert not torch.allclose(first, last)
        assert len(model.forward_intermediates(x, indices=2 if depth > 1 else 1, stream=stream)) == min(
            2, depth
        )


def test_intermediates_without_norm_are_normalised_by_the_final_norm(model):
    x = batch(model)
    raw = {s: model.forward_intermediates(x, indices=[-1], stream=s)[0] for s in model.stream_depths}
    tokens = model.forward_features(x).tokens
    for stream in model.stream_depths:
        # A mean is that of normalised parts, and without norm that of the parts as they are.
        parts = model.mean_streams.get(stream, (stream,))
        normed = [model.final_norm(part)(raw[part].flatten(2).transpose(1, 2)) for part in parts]
        assert close(sum(normed) / len(parts), tokens[stream])
        assert close(sum(raw[part] for part in parts) / len(parts), raw[stream])


def test_means_of_streams_are_means_at_every_depth_and_when_pooled(model):
    x = batch(model)
    features = model.forward_features(x)
    for stream, parts in model.mean_streams.items():
        assert close(features.pooled[stream], sum(features.pooled[part] for part in parts) / len(parts))
        for norm in (False, True):
            mean, *of_parts = (
                model.forward_intermediates(x, indices=[0], stream=s, norm=norm)[0] for s in (stream, *parts)
            )
            assert close(mean, sum(of_parts) / len(parts))


def test_features_only_gives_maps_and_feature_info(model):
    maps_model = rsb.create_model(model.architecture, features_only=True, overrides=SMALL, stream="s2")
    x = batch(model)
    maps = maps_model(x)
    info = maps_model.feature_info
    assert len(maps) == len(info) == 2
    assert info.channels() == [m.shape[1] for m in maps] == [48, 48]
    assert info.reduction() == [x["s2"].shape[-1] // m.shape[-1] for m in maps] == [8, 8]
    assert info[1]["module"] == info.module_name()[1] == "s2.blocks.1"
    assert info.get_dicts()[0]["num_chs"] == 48
    expected = maps_model.backbone.forward_intermediates(x, stream="s2")
    assert all(close(a, b) for a, b in zip(maps, expected, strict=True))
    default = rsb.create_model(model.architecture, features_only=True, overrides=SMALL, out_indices=[-1])
    assert default.stream == default.backbone.forward_features(x).default_stream
    assert default(x)[0].shape == (2, 48, 4, 6)
    with pytest.raises(ValueError, match="blocks, so indices go from"):
        rsb.create_model(model.architecture, features_only=True, overrides=SMALL, out_indices=[7])


def test_a_series_is_its_frames(model):
    x = batch(model, times=3)
    features = model.forward_features(x, dates=torch.arange(6).view(2, 3))
    assert model(x).shape == (2, 3, 48)
    for stream in features.tokens:
        assert features.tokens[stream].shape == (2, 3, 24, 48)
        assert features.maps(stream).shape == (2, 3, 48, 4, 6)
        frame = model.forward_features({m: v[:, 1] for m, v in x.items()})
        torch.testing.assert_close(features.tokens[stream][:, 1], frame.tokens[stream], atol=1e-5, rtol=0)
    (maps,) = model.forward_intermediates(x, indices=[-1], stream="s2", norm=True)
    torch.testing.assert_close(maps, features.maps("s2"), atol=1e-6, rtol=0)


def test_missing_frames_are_nan_and_touch_nothing_else(model):
    x = batch(model, times=3)
    whole = model.forward_features(x)
    valid = torch.tensor([[True, False, True], [True, True, True]])
    broken = {**x, "s2": x["s2"].clone()}
    broken["s2"][0, 1] = float("nan")
    features = model.forward_features(broken, valid={"s2": valid})
    for stream in features.tokens:
        needs_s2 = "s2" in model.stream_inputs[stream]
        mask = valid if needs_s2 else torch.ones_like(valid)
        assert features.tokens[stream][~mask].isnan().all()
        assert features.pooled[stream][~mask].isnan().all()
        expected = whole.tokens[stream].clone()
        if model.cross_modal and not needs_s2:  # without its partner a frame is that of the sensor alone
            alone = {m: x[m][~valid] for m in model.stream_inputs[stream]}
            expected[~valid] = model.forward_features(alone).tokens[stream]
        torch.testing.assert_close(features.tokens[stream][mask], expected[mask], atol=1e-5, rtol=0)
        if needs_s2:
            assert torch.equal(features.valid[stream], valid)
    # The gradient of what is there is finite, whatever the missing frame holds.
    model.zero_grad()
    features = model.forward_features(broken, valid={"s2": valid})
    features.pooled["s2"][valid].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_head_gives_logits_and_can_be_replaced(model):
    classifier = rsb.create_model(model.architecture, num_classes=7, overrides=SMALL)
    x = batch(classifier)
    assert classifier(x).shape == (2, 7)
    assert classifier(batch(classifier, times=2)).shape == (2, 2, 7)
    assert classifier.get_classifier().out_features == 7
    classifier.reset_classifier(0)
    features = classifier.forward_features(x)
    assert close(classifier(x), features.pooled[features.default_stream])


def test_a_head_serves_its_stream_only_and_missing_frames_do_not_reach_it(model):
    classifier = rsb.create_model(model.architecture, num_classes=3, overrides=SMALL)
    x = batch(classifier, times=3)
    if len(classifier.modalities) > 1:
        with pytest.raises(ValueError, match="the head is of stream"):
            classifier({"s2": x["s2"]})
    valid = torch.tensor([[True, False, True], [True, True, True]])
    x["s2"][0, 1] = float("nan")
    logits = classifier(x, valid={"s2": valid})
    assert logits[~valid].isnan().all()
    logits[valid].square().sum().backward()
    assert classifier.head.weight.grad.isfinite().all()
    assert classifier.head.weight.grad.abs().sum() > 0


def test_gradients_reach_every_parameter(model):
    classifier = rsb.create_model(model.architecture, num_classes=3, overrides=SMALL).train()
    x = batch(classifier)
    features = classifier.forward_features(x)
    loss = classifier(x).square().sum() + sum(p.square().sum() for p in features.pooled.values())
    loss.backward()
    assert not [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_inputs_are_not_changed(model):
    x = batch(model)
    copies = {m: v.clone() for m, v in x.items()}
    model(x)
    assert all(torch.equal(x[m], copies[m]) for m in x)


def test_autocast_and_half_precision_stay_close(model):
    x = batch(model)
    expected = model.forward_features(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model.forward_features(x)
    half = model.to(torch.bfloat16).forward_features({m: v.bfloat16() for m, v in x.items()})
    for stream in expected.pooled:
        for got in (autocast, half):
            torch.testing.assert_close(
                got.tokens[stream].float(), expected.tokens[stream], atol=0.15, rtol=0.05
            )


@pytest.mark.parametrize("size", [(1, 1), (31, 48), (33, 41), (32, 48)])
def test_padding_repeats_the_edge_and_pixel_maps_are_cropped_to_the_image(model, size):
    x = {m: image[..., : size[0], : size[1]] for m, image in batch(model, height=48, width=56).items()}
    rows, columns = (-(-side // 8) * 8 for side in size)
    by_hand = {
        m: torch.from_numpy(
            np.pad(v.numpy(), [(0, 0)] * 2 + [(0, rows - size[0]), (0, columns - size[1])], "edge")
        )
        for m, v in x.items()
    }
    expected = model.forward_features(by_hand)
    model.pad = True
    features = model.forward_features(x)
    assert features.grid == (rows // 8, columns // 8)
    for stream, tokens in expected.tokens.items():
        assert torch.equal(features.tokens[stream], tokens)
        assert features.maps(stream).shape == (2, model.num_features, *features.grid)
        fine = expected.maps(stream, pixels=True)
        assert fine.shape[-2:] == (rows, columns)
        assert torch.equal(features.maps(stream, pixels=True), fine[..., : size[0], : size[1]])
        assert torch.equal(
            model.forward_intermediates(x, [-1], stream=stream)[0],
            model.forward_intermediates(by_hand, [-1], stream=stream)[0],
        )
    series = {m: v[:, None].expand(-1, 3, -1, -1, -1) for m, v in x.items()}
    of_series = model.forward_features(series)
    for stream in features.tokens:
        assert torch.allclose(of_series.tokens[stream][:, 1], features.tokens[stream], atol=1e-5)
        assert of_series.maps(stream, pixels=True).shape[-2:] == size


def test_a_model_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        models = [
            rsb.create_model("croma_vit_tiny", modalities=("s2",)),
            rsb.create_model("croma_vit_tiny.samples", pretrained=True, modalities=("s2",)),
        ]
    for model in models:
        model(torch.rand(1, len(model.bands["s2"]), 16, 16)).sum().backward()
        assert all(p.grad is not None for p in model.encoders.parameters())


def test_padding_is_asked_for_and_leaves_whole_patches_alone():
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), pad=True, features_only=True)
    assert [m.shape[-2:] for m in model(torch.rand(1, 12, 20, 24))] == [(3, 3)] * 4
    x = torch.rand(1, 12, 16, 24)
    assert model.backbone._padded(x) is x
    with pytest.raises(ValueError, match="pad=True"):
        rsb.create_model("croma_vit_tiny", modalities=("s2",))(torch.rand(1, 12, 20, 24))


BAD_INPUTS = [
    (lambda x: {}, "no sensor"),
    (lambda x: {"s3": x["s2"]}, "'s3'"),
    (lambda x: x["s2"], "name the sensor"),
    (lambda x: {"s2": x["s2"][0]}, r"x\[None\]"),
    (lambda x: {"s2": x["s2"][:, :4]}, "got 4 channels, this model takes 12"),
    (
        lambda x: {"s2": torch.rand(2, 13, 32, 48)},
        r"drop B10 \(x\[:, \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12\]\]\)",
    ),
    (lambda x: {"s2": x["s2"][..., :47]}, "not a multiple of the patch size 8"),
    (lambda x: {"s2": x["s2"][..., :0]}, "not a multiple of the patch size 8"),
    (lambda x: {"s2": x["s2"][..., :7, :7]}, "enlarge them"),
    (lambda x: {"s2": x["s2"].numpy()}, "create_preprocess"),
    (lambda x: x["s2"].numpy(), "create_preprocess"),
    (lambda x: {**x, "s1": x["s1"][:1]}, "agree on batch"),
    (lambda x: {**x, "s1": x["s1"][..., :32]}, "agree on batch"),
    (lambda x: {**x, "s1": x["s1"][:, None]}, "agree on batch"),
    (lambda x: {"s2": (x["s2"] * 255).to(torch.uint8)}, "create_preprocess"),
    (lambda x: {"s2": x["s2"].double()}, r"got torch.float64.*x\.to\(torch.float32\)"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUTS, ids=[m[:24] for _, m in BAD_INPUTS])
def test_bad_inputs_are_refused_with_the_fix(model, spoil, message):
    bad = spoil(batch(model))
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=message):
            call(bad)


def test_bad_series_arguments_are_refused(model):
    series, single = batch(model, times=3), batch(model)
    ok = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="dates must be"):
        model(series, dates=torch.arange(3))
    with pytest.raises(ValueError, match="whole days"):
        model(series, dates=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="dates must be"):
        model(single, dates=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="valid"):
        model(series, valid={"s2": ok.float()})
    with pytest.raises(ValueError, match="valid"):
        model(series, valid={"s2": ok[:, :2]})
    with pytest.raises(ValueError, match="valid"):
        model({"s2": series["s2"]}, valid={"s1": ok})


def test_bad_streams_and_indices_are_refused(model):
    x = batch(model)
    with pytest.raises(ValueError, match="no such stream"):
        model.forward_intermediates(x, stream="s3")
    with pytest.raises(ValueError, match="2 blocks"):
        model.forward_intermediates(x, indices=[2], stream="s2")
    with pytest.raises(ValueError, match="at least one"):
        model.forward_intermediates(x, indices=[], stream="s2")
    with pytest.raises(ValueError, match="no stream"):
        model.forward_features(x).maps("s3")
    if "joint" in model.stream_depths:
        with pytest.raises(ValueError, match="it needs s2 and s1"):
            model.forward_intermediates({"s2": x["s2"]}, stream="joint")

"""What every network of the zoo must do: a small one of every family, ViTs, a CNN, a network over series."""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.models.croma import Croma
from rsbackbones.models.encoding import _padded
from rsbackbones.models.features import evenly_spaced
from rsbackbones.models.unused import called_units
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.parallel import parallelize
from rsbackbones.train.finetune.objective import Finetuning
from rsbackbones.zoo.registry import find_architecture
from tests import forked
from tests.conftest import close
from tests.models.examples import ALL, ONE_BY_ONE, SERIES, VITS, batch, cells, dated, small, times_of
from tests.models.toy_cnn import ToyCNN


@pytest.fixture(params=ALL)
def model(request):
    return small(request.param)


def test_a_cnn_and_a_network_over_series_are_among_the_models():
    assert {"toy_cnn", "toy_series"} <= set(ALL) <= set(rsb.list_models())
    assert SERIES
    assert len(VITS) < len(ONE_BY_ONE)


def test_models_are_built_in_eval_mode_without_weights(model):
    assert not model.training
    assert model.weights_entry is None
    assert model.adaptation is None


def test_features_have_the_shapes_of_the_design(model):
    x = batch(model)
    features = model.forward_features(x)
    d, grid = model.num_features, (cells(64, model.stride), cells(96, model.stride))
    assert set(features.tokens) == set(features.pooled) == set(model.stream_inputs)
    assert (features.grid, features.stride, features.size) == (grid, model.stride, (64, 96))
    for stream in features.tokens:
        assert features.tokens[stream].shape == (2, grid[0] * grid[1], d)
        assert features.pooled[stream].shape == (2, d)
        maps = features.maps(stream)
        assert maps.shape == (2, d, *grid)
        # Row-major: the token of row 1, column 2.
        assert torch.equal(maps[:, :, 1, 2], features.tokens[stream][:, grid[1] + 2])
        assert features.maps(stream, pixels=True).shape == (2, d, 64, 96)


@pytest.mark.parametrize("name", rsb.list_models())
def test_every_architecture_states_what_it_builds(name):
    """On the meta device, in full size."""
    with torch.device("meta"):
        architecture = find_architecture(name)
        full = architecture.family.build(architecture.config)
    assert full.modalities == architecture.config.modalities
    assert full.parameter_depths().keys() == {n for n, _ in full.named_parameters()}
    for stream in full.stream_inputs:
        assert full.final(stream).channels == full.num_features
        assert full.final(stream).stride == full.stride


def test_call_gives_the_pooled_default_stream(model):
    x = batch(model)
    features = model.forward_features(x)
    assert model.default_stream == features.default_stream
    assert close(model(x), features.pooled[features.default_stream])


def test_the_embedding_is_what_pool_makes_of_the_map(model):
    features = model.forward_features(batch(model))
    for stream, pooled in features.pooled.items():
        if getattr(model.config, "pool", None) == "cls":
            with pytest.raises(ValueError, match="is its class token"):
                model.pool(stream, features.maps(stream))
            continue
        assert close(model.pool(stream, features.maps(stream)), pooled)


def test_sizes_may_differ_from_call_to_call(model):
    unit = model.size_multiple
    for height, width in ((64, 96), (32, 32), (40, 32 + 3 * unit)):
        grid = model.forward_features(batch(model, height, width)).grid
        assert grid == (cells(height, model.stride), cells(width, model.stride))


def test_a_network_of_convolutions_takes_any_size():
    model = small("toy_cnn")
    for height, width in ((50, 50), (33, 65), (64, 47)):
        maps = model.forward_intermediates(batch(model, height, width))
        assert [m.shape[-2:] for m in maps] == [
            (cells(height, s.stride), cells(width, s.stride)) for s in model.stages("s2")
        ]


def test_every_stage_has_the_channels_and_the_stride_that_it_states(model):
    """Also the module that it names: its output has as many channels or features."""
    x = batch(model)
    for stream in model.stream_inputs:
        stages = model.stages(stream)
        seen = {}
        hooks = [
            model.get_submodule(s.module).register_forward_hook(
                lambda _, __, out, name=s.module, seen=seen: seen.update(
                    {name: (out if isinstance(out, torch.Tensor) else out[0]).shape}
                )
            )
            for s in stages
        ]
        maps = model.forward_intermediates(x, range(len(stages)), stream=stream)
        for hook in hooks:
            hook.remove()
        for stage, each in zip(stages, maps, strict=True):
            assert each.shape == (2, stage.channels, cells(64, stage.stride), cells(96, stage.stride))
            assert stage.channels in seen[stage.module]


def test_a_missing_sensor_leaves_out_the_streams_it_feeds(model):
    x = batch(model)
    for modality in model.modalities:
        alone = model.forward_features({modality: x[modality]})
        assert set(alone.tokens) == {modality}
        together = model.forward_features(x).tokens[modality]
        if len(model.modalities) == 1:
            continue
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
        single = small(model.architecture, modalities=[modality])
        x = batch(single)[modality]
        assert close(single(x), single({modality: x}))
        # A part of its own, such as the decoder of another default, has its name.
        names = {n for n in single.state_dict() if f"s.{modality}." not in n or n in model.state_dict()}
        assert names < set(model.state_dict()) or len(model.modalities) == 1
        others = [m for m in model.modalities if m != modality]
        assert not [n for n in single.state_dict() if any(f".{m}." in n for m in others)]


def test_intermediates_end_in_the_features(model):
    x = batch(model)
    features = model.forward_features(x)
    for stream in model.stream_inputs:
        strides = [stage.stride for stage in model.stages(stream)][: model.final_stage(stream) + 1]
        depth = len(strides)
        maps = model.forward_intermediates(x, stream=stream)
        assert len(maps) == min(4, depth)
        is_pyramid = depth > 1 and strides[0] < strides[-1]
        four = range(depth)[-4:] if is_pyramid else evenly_spaced(depth)
        chosen = model.forward_intermediates(x, indices=four, stream=stream)
        assert all(torch.equal(a, b) for a, b in zip(maps, chosen, strict=True))
        norm = model.has_final_norm
        (last,) = model.forward_intermediates(x, indices=[depth - 1], stream=stream, norm=norm)
        assert close(last, features.maps(stream))
        first, again = model.forward_intermediates(x, indices=(0, 0), stream=stream)
        assert close(first, again)
        assert depth == 1 or first.shape != last.shape or not torch.allclose(first, last)
        assert len(model.forward_intermediates(x, indices=min(2, depth), stream=stream)) == min(2, depth)


def test_a_norm_that_a_model_does_not_have_is_refused():
    for name in sorted(set(ALL) - set(VITS)):
        model = small(name)
        with pytest.raises(ValueError, match="no final norm"):
            model.forward_intermediates(batch(model), norm=True)


def test_features_only_gives_maps_and_their_true_feature_info(model):
    stream = model.modalities[0]
    maps_model = small(model.architecture, features_only=True, stream=stream)
    x = batch(model)
    maps = maps_model(x)
    info = maps_model.feature_info
    stages = [model.stages(stream)[i] for i in maps_model.indices]
    assert len(maps) == len(info) == len(stages)
    assert info.channels() == [m.shape[1] for m in maps] == [s.channels for s in stages]
    for stride, m in zip(info.reduction(), maps, strict=True):
        assert m.shape[-2:] == (cells(64, stride), cells(96, stride))
    assert [info[i]["module"] for i in range(len(info))] == info.module_name() == [s.module for s in stages]
    assert info.get_dicts()[0]["num_chs"] == stages[0].channels
    expected = maps_model.backbone.forward_intermediates(x, stream=stream)
    assert all(close(a, b) for a, b in zip(maps, expected, strict=True))
    default = small(
        model.architecture, features_only=True, out_indices=[model.final_stage(model.default_stream)]
    )
    assert default.stream == model.default_stream
    assert default(x)[0].shape == (2, model.num_features, cells(64, model.stride), cells(96, model.stride))
    with pytest.raises(ValueError, match="stages, so indices go from"):
        small(model.architecture, features_only=True, out_indices=[7])


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_series_of_a_model_of_single_images_is_its_images(name):
    model = small(name)
    x = batch(model, 32, 48, times=3)
    features = model.forward_features(x, dates=torch.arange(6).view(2, 3))
    assert model(x).shape == (2, 3, model.num_features)
    for stream in features.tokens:
        assert features.maps(stream).shape == (2, 3, model.num_features, *features.grid)
        image = model.forward_features({m: v[:, 1] for m, v in x.items()})
        torch.testing.assert_close(features.tokens[stream][:, 1], image.tokens[stream], atol=1e-5, rtol=0)
    stream = model.modalities[0]
    (maps,) = model.forward_intermediates(x, indices=[-1], stream=stream, norm=model.has_final_norm)
    torch.testing.assert_close(maps, features.maps(stream), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_missing_images_are_nan_and_touch_nothing_else(name):
    model = small(name)
    x = batch(model, 32, 48, times=3)
    whole = model.forward_features(x)
    m = model.modalities[0]
    valid = torch.tensor([[True, False, True], [True, True, True]])
    broken = {**x, m: x[m].clone()}
    broken[m][0, 1] = float("nan")
    features = model.forward_features(broken, valid={m: valid})
    for stream in features.tokens:
        needs_it = m in model.stream_inputs[stream]
        mask = valid if needs_it else torch.ones_like(valid)
        assert features.tokens[stream][~mask].isnan().all()
        assert features.pooled[stream][~mask].isnan().all()
        expected = whole.tokens[stream].clone()
        if model.cross_modal and not needs_it:  # without its partner an image is that of the sensor alone
            alone = {k: x[k][~valid] for k in model.stream_inputs[stream]}
            expected[~valid] = model.forward_features(alone).tokens[stream]
        torch.testing.assert_close(features.tokens[stream][mask], expected[mask], atol=1e-5, rtol=0)
        if needs_it:
            assert torch.equal(features.valid[stream], valid)
    # The gradient of what is there is finite, whatever the missing image holds.
    model.zero_grad()
    features = model.forward_features(broken, valid={m: valid})
    features.pooled[m][valid].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SERIES)
def test_a_model_that_consumes_series_gives_one_map_for_all_dates(name):
    model = small(name)
    x = batch(model, times=3)
    features = model.forward_features(x, dates=torch.tensor([[0, 90, 180], [10, 20, 30]]))
    for stream in features.pooled:
        assert features.maps(stream).shape == (2, model.num_features, *features.grid)
        assert features.pooled[stream].shape == (2, model.num_features)
        assert features.series[stream].shape[0] == 2
        assert features.series[stream].shape[1] == cells(3, model.date_stride)
    # All dates matter, in their order and at their days.
    for other in ({m: v.flip(1) for m, v in x.items()}, {m: v[:, :2] for m, v in x.items()}):
        assert not torch.allclose(model(x), model(other), rtol=1e-3, atol=1e-6)
    if name == "toy_series":
        assert not torch.allclose(model(x, dates=torch.tensor([[0, 90, 180]] * 2)), model(x), atol=1e-4)
    # A single image is a series of one date.
    single = {m: v[:, 0] for m, v in x.items()}
    assert torch.equal(model(single), model({m: v[:, None] for m, v in single.items()}))
    # Its dates see each other anyway.
    again = model.forward_features(x, temporal=True)
    for stream, maps in model.forward_features(x).feature_maps.items():
        assert torch.equal(again.feature_maps[stream], maps)
    with pytest.raises(ValueError, match="fuses the dates of a series"):
        model.forward_features(single, temporal=True)


@pytest.mark.parametrize("name", SERIES)
def test_a_model_that_consumes_series_masks_missing_dates(name):
    m = small(name).modalities[0]
    model = small(name, modalities=(m,))
    x = batch(model, times=3)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    broken = {m: x[m].clone()}
    broken[m][~valid] = float("nan")
    other = {m: broken[m].nan_to_num(1e6)}
    features = model.forward_features(broken, valid={m: valid})
    assert torch.equal(features.valid[m], torch.tensor([True, False]))
    assert features.maps(m)[0].isfinite().all()
    assert features.maps(m)[1].isnan().all()
    assert features.pooled[m][1].isnan().all()
    there = valid if model.date_stride == 1 else valid.any(dim=1, keepdim=True)
    assert torch.equal(features.series[m].isnan().all(dim=(-1, -2)), ~there)
    # What a missing date holds does not matter, and that it is missing does.
    again = model.forward_features(other, valid={m: valid})
    assert torch.equal(features.maps(m)[0], again.maps(m)[0])
    assert not torch.allclose(features.maps(m)[0], model.forward_features(x).maps(m)[0], atol=1e-4)
    classifier = small(name, modalities=(m,), num_classes=3)
    logits = classifier(broken, valid={m: valid}, **dated(model, 3))
    assert logits[1].isnan().all()
    logits[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in classifier.parameters() if p.grad is not None)


def test_a_head_gives_logits_and_can_be_replaced(model):
    classifier = small(model.architecture, num_classes=7)
    x = batch(classifier)
    assert classifier(x).shape == (2, 7)
    lead = (2,) if model.consumes == "series" else (2, 2)
    assert classifier(batch(classifier, times=2)).shape == (*lead, 7)
    assert classifier.get_classifier().out_features == 7
    classifier.double().reset_classifier(4)
    doubles = {m: v.double() for m, v in x.items()}
    assert classifier(doubles).shape == (2, 4)
    assert classifier(doubles).dtype == torch.float64
    classifier.float()
    classifier.reset_classifier(0)
    features = classifier.forward_features(x)
    assert close(classifier(x), features.pooled[features.default_stream])


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_head_serves_its_stream_only_and_missing_images_do_not_reach_it(name):
    classifier = small(name, num_classes=3)
    x = batch(classifier, 32, 48, times=3)
    m = classifier.modalities[0]
    if len(classifier.modalities) > 1:
        with pytest.raises(ValueError, match="the head belongs to stream"):
            classifier({m: x[m]})
    valid = torch.tensor([[True, False, True], [True, True, True]])
    x[m][0, 1] = float("nan")
    logits = classifier(x, valid={m: valid})
    assert logits[~valid].isnan().all()
    logits[valid].square().sum().backward()
    assert classifier.head.weight.grad.isfinite().all()
    assert classifier.head.weight.grad.abs().sum() > 0


def test_gradients_reach_every_parameter(model):
    classifier = small(model.architecture, num_classes=3).train()
    x, series = batch(classifier, times=times_of(model)), dated(model, times_of(model))
    features = classifier.forward_features(x, **series)
    loss = classifier(x, **series).square().sum() + sum(p.square().sum() for p in features.pooled.values())
    for stream in classifier.stream_inputs:  # stages after the final map
        rest = range(classifier.final_stage(stream) + 1, len(classifier.stages(stream)))
        if len(rest):
            maps = classifier.forward_intermediates(x, rest, stream=stream, **series)
            loss = loss + sum(each.square().sum() for each in maps)
    loss.backward()
    assert not [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_inputs_are_not_changed(model):
    x = batch(model)
    copies = {m: v.clone() for m, v in x.items()}
    model(x)
    assert all(torch.equal(x[m], copies[m]) for m in x)


def test_autocast_and_half_precision_stay_close(model):
    # Four dates: on CPUs with AMX, torch 2.15's Conv3d in bfloat16 reads beyond a single frame.
    x = batch(model, times=4 if model.consumes == "series" else None)
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
def test_padding_repeats_the_edge_and_maps_cover_the_image(model, size):
    size = tuple(max(side, model.min_size) for side in size)
    x = {m: image[..., : size[0], : size[1]] for m, image in batch(model, height=48, width=56).items()}
    unit = model.size_multiple
    rows, columns = (cells(side, unit) * unit for side in size)
    by_hand = {
        m: torch.from_numpy(
            np.pad(v.numpy(), [(0, 0)] * 2 + [(0, rows - size[0]), (0, columns - size[1])], "edge")
        )
        for m, v in x.items()
    }
    expected = model.forward_features(by_hand)
    h, w = (cells(side, model.stride) for side in size)
    model.pad = True
    features = model.forward_features(x)
    assert features.grid == (h, w)
    for stream in expected.tokens:
        assert torch.equal(features.maps(stream), expected.maps(stream)[..., :h, :w])
        assert close(features.pooled[stream], expected.pooled[stream])
        assert features.maps(stream, pixels=True).shape[-2:] == size
        last = model.final_stage(stream)
        assert torch.equal(
            model.forward_intermediates(x, [last], stream=stream)[0],
            model.forward_intermediates(by_hand, [last], stream=stream)[0][..., :h, :w],
        )
    # Pixels: the interpolated map of the cells, cropped.
    stream = model.default_stream
    fine = nn.functional.interpolate(
        features.maps(stream), size=(h * model.stride, w * model.stride), mode="bilinear"
    )
    assert close(features.maps(stream, pixels=True), fine[..., : size[0], : size[1]])
    series = {m: v[:, None].expand(-1, 3, -1, -1, -1) for m, v in x.items()}
    of_series = model.forward_features(series)
    assert of_series.maps(stream, pixels=True).shape[-2:] == size
    if model.consumes == "image":
        for stream in features.tokens:
            assert torch.allclose(of_series.tokens[stream][:, 1], features.tokens[stream], atol=1e-5)


def test_layer_groups_hold_every_parameter_once_the_stem_first_and_the_head_last(model):
    classifier = small(model.architecture, num_classes=2)
    depths = classifier.parameter_depths()
    last = len(classifier.layer_groups()) - 1
    assert set(depths) == {name for name, _ in classifier.named_parameters()}
    assert depths["head.weight"] == last
    stems = [depths[classifier.stem(m).weight] for m in classifier.modalities]
    assert min(stems) == 0
    # Blocks of a stream lie in the order in which they are computed.
    for stream in classifier.stream_inputs:
        of_stages = [
            {d for n, d in depths.items() if n.startswith(stage.module + ".")}
            for stage in classifier.stages(stream)
        ]
        of_stages = [found for found in of_stages if found]  # an activation has no parameters
        flat = [max(depth) for depth in of_stages]
        assert flat == sorted(flat)
        assert flat[0] > 0


def test_layer_groups_that_forget_or_repeat_a_layer_are_refused(model, monkeypatch):
    groups = model.layer_groups()
    monkeypatch.setattr(model, "layer_groups", lambda: groups[1:])
    with pytest.raises(ValueError, match="omits"):
        model.parameter_depths()
    monkeypatch.setattr(model, "layer_groups", lambda: [*groups, groups[0]])
    with pytest.raises(ValueError, match="twice"):
        model.parameter_depths()
    monkeypatch.setattr(model, "layer_groups", lambda: [*groups, [nn.Linear(2, 2)]])
    with pytest.raises(ValueError, match="layer_groups lists a Linear that is not part of the model"):
        model.parameter_depths()


def test_units_hold_the_stages_and_no_module_twice(model):
    units = model.units()
    assert len({id(unit) for unit in units}) == len(units)
    for stream in model.stream_inputs:
        encoder = model.stages(stream)[: model.final_stage(stream) + 1]
        stages = [model.get_submodule(stage.module) for stage in encoder]
        trained = [stage for stage in stages if list(stage.parameters())]
        assert all(any(stage is unit for unit in units) for stage in trained)
        assert stages[-1] in trained
    inside = {id(m) for unit in units for m in unit.modules() if m is not unit}
    assert not [unit for unit in units if id(unit) in inside]


def test_encoding_calls_every_unit(model):
    """What replaces a unit's forward (activation checkpointing, FSDP) would have no effect otherwise."""
    modes = [(m.eval() if i % 3 else m.train()).training for i, m in enumerate(model.modules())]
    before = {n: x.clone() for n, x in model.state_dict().items()}
    assert called_units(model) == model.units()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    assert not any(unit._forward_pre_hooks for unit in model.units())


class PartsOnly(ToyCNN):
    """A network that calls the parts of its last stage and not the stage."""

    def encode(self, inputs, wanted):
        last = self.layers[-1]
        self.layers[-1] = nn.Identity()
        self.layers[-1].forward = lambda x: last.forward(x)
        try:
            return super().encode(inputs, wanted)
        finally:
            self.layers[-1] = last


def test_units_that_are_never_called_are_refused():
    model = PartsOnly(find_architecture("toy_cnn").config).train()
    assert model(batch(model)).shape == (2, 256)
    with pytest.raises(ValueError, match=r"PartsOnly.encode does not call layers.3, which.*no effect"):
        model.set_grad_checkpointing()
    tuned = Finetuning(model, "classes").train()
    cpu, options = torch.device("cpu"), {"name": "run", "batch_size": 2}
    for asked in ("activation_checkpointing", "compile"):
        with pytest.raises(ValueError, match=r"does not call layers\.3"):
            parallelize(tuned, RunOptions(**options, **{asked: True}), cpu, unused=False)
    assert all(module.training for module in tuned.modules())
    assert parallelize(tuned, RunOptions(**options), cpu, unused=False) is tuned


def test_missing_images_are_not_trained_on_with_batch_norm():
    model = small("toy_cnn").train()
    x, valid = batch(model, 32, 32, times=2), {"s2": torch.tensor([[True, False], [True, True]])}
    with pytest.raises(ValueError, match="statistics of BatchNorm"):
        model(x, valid=valid)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(x, valid=valid).shape[:2] == (2, 2)


def test_stems_are_the_kernels_that_meet_the_bands(model):
    """Another image in one band changes nothing where the kernel has zeros for it, and something else."""
    for m, bands in model.bands.items():
        stem = model.stem(m)
        weight = model.get_parameter(stem.weight)
        kernel = stem.to_kernel(weight)
        assert kernel.shape[1] == len(bands)
        assert kernel.ndim == (5 if model.consumes == "series" else 4)
        assert torch.equal(stem.from_kernel(kernel), weight)
        x = batch(model)
        other = {**x, m: x[m].clone()}
        other[m][:, 1] = 1 - other[m][:, 1]
        assert not torch.allclose(
            model.forward_features(x).tokens[m], model.forward_features(other).tokens[m], atol=1e-5
        )
        with torch.no_grad():
            kernel = kernel.clone()
            kernel[:, 1] = 0
            weight.copy_(stem.from_kernel(kernel))
        assert torch.equal(model.forward_features(x).tokens[m], model.forward_features(other).tokens[m])


def test_a_model_made_in_inference_mode_can_be_trained(model):
    with torch.inference_mode():
        made = small(model.architecture)
    made(batch(made)).sum().backward()
    stem = made.get_parameter(made.stem(made.modalities[0]).weight)
    assert stem.grad is not None


BAD_INPUTS = [
    (lambda x, m: {}, "no modality"),
    (lambda x, m: {"s3": x[m]}, "'s3'"),
    (lambda x, m: {m: x[m][0]}, r"x\[None\]"),
    (lambda x, m: {m: x[m][:, 1:]}, r"got (11|9|2) channels, this model takes (12|10|3)"),
    (lambda x, m: {m: x[m].numpy()}, "create_preprocess"),
    (lambda x, m: x[m].numpy(), "create_preprocess"),
    (lambda x, m: {m: (x[m] * 255).to(torch.uint8)}, "create_preprocess"),
    (lambda x, m: {m: x[m].double()}, r"got torch.float64.*x\.to\(torch.float32\)"),
    (lambda x, m: {m: x[m][..., :0]}, "64 x 0 pixels are too few, this model needs at least"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUTS, ids=[m[:24] for _, m in BAD_INPUTS])
def test_bad_inputs_are_refused_with_the_fix(model, spoil, message):
    m = model.modalities[0]
    if "B10" in model.bands[m]:
        model = small(model.architecture, bands={m: [band for band in model.bands[m] if band != "B10"]})
    bad = spoil(batch(model), model.modalities[0])
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=message):
            call(bad)


def test_all_bands_of_a_sensor_are_refused_with_those_to_drop():
    with pytest.raises(ValueError, match=r"drop B10 \(x\[:, \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12\]\]\)"):
        small("toy_cnn")(torch.rand(2, 13, 64, 96))


def test_sides_that_a_model_cannot_serve_are_refused_with_the_fix(model):
    m = model.modalities[0]
    x = {m: batch(model)[m][..., :47]}
    if model.size_multiple == 1:
        assert model(x).shape[0] == 2
        return
    with pytest.raises(ValueError, match=f"not a multiple of {model.size_multiple}.*pad=True"):
        model(x)
    with pytest.raises(ValueError, match="enlarge them"):
        model({m: x[m][..., :3, :3]})


@pytest.mark.parametrize("pad", [False, True])
def test_images_smaller_than_the_minimum_size_are_refused(pad):
    model = small("toy_cnn", pad=pad)
    x = batch(model, 32, 40)
    assert model(x).shape == (2, model.num_features)
    for smaller in (x["s2"][..., :31], x["s2"][..., :31, :]):
        with pytest.raises(
            ValueError, match="pixels are too few, this model needs at least 32 x 32; use larger"
        ):
            model(smaller)
    model.min_size = 100
    assert min(model.example_inputs().images["s2"].shape[-2:]) >= 100


def test_sensors_that_do_not_agree_are_refused(model):
    if len(model.modalities) == 1:
        pytest.skip(f"{model.architecture} takes one sensor")
    x = batch(model)
    with pytest.raises(ValueError, match="pass a mapping by modality"):
        model(x["s2"])
    for spoil in (lambda v: v[:1], lambda v: v[..., :32], lambda v: v[:, None]):
        with pytest.raises(ValueError, match="agree on batch"):
            model({**x, "s1": spoil(x["s1"])})


def test_bad_series_arguments_are_refused(model):
    series, single = batch(model, 32, 48, times=3), batch(model, 32, 48)
    m = model.modalities[0]
    ok = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="dates must be"):
        model(series, dates=torch.arange(3))
    with pytest.raises(ValueError, match="whole days"):
        model(series, dates=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="dates must be"):
        model(single, dates=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="valid"):
        model(series, valid={m: ok.float()})
    with pytest.raises(ValueError, match="valid"):
        model(series, valid={m: ok[:, :2]})
    with pytest.raises(ValueError, match="valid"):
        model({m: series[m]}, valid={"s3": ok})
    with pytest.raises(ValueError, match="temporal"):
        model(single, temporal=True)


def test_bad_streams_and_indices_are_refused(model):
    x = batch(model)
    m = model.modalities[0]
    depth = len(model.stages(m))
    with pytest.raises(ValueError, match="no such stream"):
        model.forward_intermediates(x, stream="s3")
    with pytest.raises(ValueError, match=f"{depth} stages"):
        model.forward_intermediates(x, indices=[depth], stream=m)
    with pytest.raises(ValueError, match="at least one"):
        model.forward_intermediates(x, indices=[], stream=m)
    with pytest.raises(ValueError, match="no stream"):
        model.forward_features(x).maps("s3")
    for stream, needed in model.stream_inputs.items():
        if len(needed) > 1:
            with pytest.raises(ValueError, match="it requires s2 and s1"):
                model.forward_intermediates({m: x[m]}, stream=stream)


def test_options_of_vits_are_refused_by_others():
    with pytest.raises(ValueError, match="no patches"):
        rsb.create_model("toy_cnn", patch_size=16)


def test_padding_is_asked_for_and_leaves_whole_patches_alone():
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), pad=True, features_only=True)
    assert [m.shape[-2:] for m in model(torch.rand(1, 12, 20, 24))] == [(3, 3)] * 4
    x = torch.rand(1, 12, 16, 24)
    assert _padded(model.backbone, x) is x
    with pytest.raises(ValueError, match="pad=True"):
        rsb.create_model("croma_vit_tiny", modalities=("s2",))(torch.rand(1, 12, 20, 24))


def test_drop_path_rises_from_nothing_in_the_first_block_to_the_rate_in_the_last(model):
    blocks = {
        s: [m for stage in model.stages(s) for m in model.get_submodule(stage.module).modules()]
        for s in model.stream_inputs
    }
    if not any(isinstance(getattr(m, "drop_path", None), float) for ms in blocks.values() for m in ms):
        with pytest.raises(ValueError, match="no residual blocks with drop path"):
            model.set_drop_path(0.2)
        model.set_drop_path(0)
        return
    model.set_drop_path(0.2)
    for stream, modules in blocks.items():
        rates = [m.drop_path for m in modules if hasattr(m, "drop_path")]
        expected = [0.2 * i / max(1, len(rates) - 1) for i in range(len(rates))]
        assert rates == pytest.approx(expected), stream
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        model.set_drop_path(1)


def test_a_network_without_weights_is_built_for_any_sensor_that_its_family_knows():
    radar = small("toy_cnn", modalities=("s1",))
    assert radar.bands == {"s1": ("VV", "VH")}
    assert radar(torch.rand(2, 2, 32, 32)).shape == (2, radar.num_features)
    with pytest.raises(ValueError, match="unknown modality 's3'"):
        small("toy_cnn", modalities=("s3",))


def test_lists_of_a_configuration_are_taken_for_tuples():
    """At any depth: a configuration that comes from JSON is the one that was saved."""
    config = find_architecture("seamo_vit_tiny").config
    changes = {"image_size": [64, 96], "position_grid": [4, 4], "modalities": ["s2"]}
    changed = dataclasses.replace(config, **changes)
    assert (changed.image_size, changed.position_grid, changed.modalities) == ((64, 96), (4, 4), ("s2",))


FAMILY = """
from tests.models.toy_cnn import INPUTS, ToyCNN as build, ToyCNNConfig
CONFIGS = {"my_net": ToyCNNConfig(width=4)}
"""


OWN_FAMILY = """
import pytest, timm, rsbackbones as rsb
from rsbackbones.integrations import timm as _  # before the family
with pytest.raises(ValueError, match="register_family"):
    rsb.create_model("my_net")
rsb.register_family("mine")
rsb.register_family("mine")  # a second time is nothing new
assert rsb.create_model("my_net").num_features == 32
assert "rsb_mine_s2_my_net" in timm.list_models("rsb_mine*")
with pytest.raises(ValueError, match="it has no INPUTS, build"):
    rsb.register_family("broken")
with pytest.raises(ValueError, match="letters, digits, _ and -, got 'my.net'; rename"):
    rsb.register_family("dotted")
with pytest.raises(ValueError, match="INPUTS has no input contract for 's2'"):
    rsb.register_family("without_inputs")
assert rsb.list_models("my*") == ["my_net"]
with pytest.raises(ValueError, match="architecture names my_net are in use; rename yours"):
    rsb.register_family("again")
"""


def test_a_family_of_ones_own_module_enters_by_name(tmp_path):
    """By a call; under timm's names too, also once those are loaded."""
    modules = {
        "mine": FAMILY,
        "again": FAMILY,
        "broken": "CONFIGS = {}",
        "dotted": FAMILY.replace("my_net", "my.net"),
        "without_inputs": FAMILY + "INPUTS = {}",
    }
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code)
    root = str(Path(rsb.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    done = forked.run([sys.executable, "-c", OWN_FAMILY], env=environment)
    assert done.returncode == 0, done.stderr


def test_commands_know_a_family_of_ones_own_by_a_plugin(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(FAMILY)
    (tmp_path / "plugin.py").write_text("import rsbackbones\nrsbackbones.register_family('mine')\n")
    root = str(Path(rsb.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(tmp_path)])}
    command = [sys.executable, "-m", "rsbackbones", "list"]
    done = forked.run(command, env={**environment, "RSBACKBONES_PLUGINS": " plugin"})
    assert done.returncode == 0, done.stderr
    assert "my_net" in done.stdout
    monkeypatch.setenv("RSBACKBONES_PLUGINS", "absent")
    assert main(["list"]) == 2
    message = capsys.readouterr().err
    assert "RSBACKBONES_PLUGINS names absent" in message
    assert "No module named 'absent'" in message


class Floored(ToyCNN):
    """A network whose last map is a cell short, as pooling that rounds down makes it."""

    def encode(self, inputs, wanted):
        streams = super().encode(inputs, wanted)
        return {s: dataclasses.replace(e, features=e.features[..., :-1, :]) for s, e in streams.items()}


class TwoSensors(ToyCNN):
    """Both sensors together or nothing; ``fused`` is the only stream."""

    def __init__(self, config):
        super().__init__(dataclasses.replace(config, modalities=("s2",)))
        self.modalities, self.bands = ("s2", "s1"), {"s2": ("B02",), "s1": ("VV",)}
        self.config = dataclasses.replace(config, modalities=("s2", "s1"), bands=self.bands)
        self.stream_inputs, self.default_stream = {"fused": ("s2", "s1")}, "fused"


def test_a_map_of_another_size_than_its_stage_states_is_refused():
    model = Floored(find_architecture("toy_cnn").config).eval()
    with pytest.raises(ValueError, match=r"gave a map \[256, 1, 3\] for layers.3.*states \[256, 2, 3\]"):
        model.forward_features(batch(model, 64, 96))


def test_sensors_that_feed_no_stream_are_refused():
    model = TwoSensors(find_architecture("toy_cnn").config)
    for call in (model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=r"s2 alone feed no stream.*'fused' needs s2 and s1"):
            call({"s2": torch.rand(1, 1, 32, 32)})


def test_streams_whose_final_maps_differ_are_refused(monkeypatch):
    stages = Croma.stages
    coarser = lambda self, s: tuple(x._replace(stride=16) if s == "s1" else x for x in stages(self, s))  # noqa: E731
    monkeypatch.setattr(Croma, "stages", coarser)
    with pytest.raises(ValueError, match="must have the same channels and stride"):
        small("croma_vit_tiny")


def test_sensors_that_share_a_weight_are_refused(monkeypatch, tmp_path):
    """Early fusion by one kernel over the bands of both; a sum of two convolutions is the same."""
    file = rsb.save_model(small("croma_vit_tiny"), tmp_path / "model.safetensors")
    stem = Croma.stem
    monkeypatch.setattr(Croma, "stem", lambda self, modality: stem(self, "s2"))
    for given in ({}, {"checkpoint": file}):
        with pytest.raises(
            ValueError, match=r"stems of s2 and s1 have one weight, .*\. For early fusion add"
        ):
            small("croma_vit_tiny", **given)
    assert small("croma_vit_tiny", modalities=("s2",)).modalities == ("s2",)


def test_drop_path_leaves_alone_blocks_that_have_none():
    model = small("toy_cnn")
    for layer in model.layers[:3]:
        layer.drop_path = None  # as timm's blocks without it
    model.set_drop_path(0.2)
    assert [layer.drop_path for layer in model.layers] == [None, None, None, 0.0]


def test_layer_decay_finds_the_parameters_of_a_network_that_calls_its_body_backbone():
    class Wrapped(ToyCNN):
        def __init__(self, config, **arguments):
            super().__init__(config, **arguments)
            self.backbone = nn.ModuleDict({"conv": self.conv, "norm": self.norm, "layers": self.layers})
            del self.conv, self.norm, self.layers

        conv = property(lambda self: self.backbone["conv"])
        norm = property(lambda self: self.backbone["norm"])
        layers = property(lambda self: self.backbone["layers"])

    model = Wrapped(find_architecture("toy_cnn").config, num_classes=2)
    layer = Finetuning(model, "classes").group_matcher()
    found = {name: layer(name)[0] for name, _ in Finetuning(model, "classes").named_parameters()}
    assert found["model.backbone.conv.weight"] == 0
    assert found["model.backbone.layers.1.conv1.weight"] == 2
    assert found["model.head.weight"] == 5

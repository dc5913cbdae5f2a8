"""Pixel masks: masked values change nothing, cells and embeddings are those of a slow plain version."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from tests.models.examples import ALL, ONE_BY_ONE, SERIES, batch, cells, dated, small, times_of

HEIGHT, WIDTH = 64, 96


def masks(model, *, times=None, seed=0, height=HEIGHT, width=WIDTH):
    """Ragged masks of every sensor: an ellipse of clouds, and single pixels. The second image is clear.

    The clouds of a series stay where they are: its cells only do not count where no date has them.
    """
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    found = {}
    for m in model.modalities:
        lead = (2,) if times is None else (2, times)
        mask = random.random((*lead, height, width)) < 0.9
        for sample in mask:
            y, x = random.integers(0, height), random.integers(0, width)
            sample &= ((rows - y) / 25) ** 2 + ((columns - x) / 40) ** 2 > 1
        mask[1] = True
        found[m] = torch.from_numpy(mask)
    return found


def plain_cells(mask, stride):
    """The share of valid pixels of every cell, by loops: [H, W] to [h, w]."""
    mask = np.asarray(mask)
    share = np.empty([cells(side, stride) for side in mask.shape])
    for i, j in np.ndindex(*share.shape):
        share[i, j] = mask[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean()
    return share


def of_stream(model, valid, stream):
    """The pixels that count in a stream: valid in all of its sensors, of a series at any date."""
    each = [valid[m].numpy() for m in model.stream_inputs[stream] if m in valid]
    if model.consumes == "series":
        each = [mask.any(axis=1) for mask in each]
    return np.logical_and.reduce(each)


@pytest.mark.parametrize("name", ALL)
def test_values_of_masked_pixels_change_nothing_and_a_mask_that_hides_nothing_neither(name):
    model = small(name)
    times = times_of(model)
    x, valid = batch(model, HEIGHT, WIDTH, times=times), masks(model, times=times)
    features = model.forward_features(x, valid=valid, **dated(model, times))
    for value in (float("nan"), float("inf"), -1e30):
        broken = {m: image.masked_fill(~valid[m].unsqueeze(-3), value) for m, image in x.items()}
        again = model.forward_features(broken, valid=valid, **dated(model, times))
        for stream in model.stream_inputs:
            torch.testing.assert_close(
                again.tokens[stream], features.tokens[stream], rtol=0, atol=0, equal_nan=True
            )
            torch.testing.assert_close(
                again.pooled[stream], features.pooled[stream], rtol=0, atol=0, equal_nan=True
            )
    clear = {m: torch.ones_like(mask) for m, mask in valid.items()}
    plain = model.forward_features(x, **dated(model, times))
    same = model.forward_features(x, valid=clear, **dated(model, times))
    for stream in model.stream_inputs:
        assert torch.equal(same.tokens[stream], plain.tokens[stream])
        assert torch.equal(same.pooled[stream], plain.pooled[stream])
        assert (same.valid_share[stream] == 1).all()
        assert same.valid[stream].all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("pad", [False, True])
def test_cells_are_those_of_the_plain_version_and_the_embedding_is_over_them(name, pad):
    model = small(name, pad=pad)
    times, height, width = times_of(model), HEIGHT - 6 * pad, WIDTH - 7 * pad
    x = batch(model, height, width, times=times)
    valid = masks(model, times=times, height=height, width=width)
    features = model.forward_features(x, valid=valid, **dated(model, times))
    for stream in model.stream_inputs:
        pixels = of_stream(model, valid, stream)
        for b in range(2):
            share = plain_cells(pixels[b], model.stride)
            np.testing.assert_allclose(features.valid_share[stream][b], share, atol=1e-6)
            hidden = features.maps(stream)[b].isnan()
            assert np.array_equal(hidden.all(dim=0), share < 0.5)
            assert np.array_equal(hidden.any(dim=0), share < 0.5)
    assert features.maps().isnan().any()  # else nothing was tested
    stages = range(len(model.stages(model.default_stream)))
    given = model.forward_intermediates(x, stages, valid=valid, **dated(model, times))
    for stage, maps in zip(model.stages(model.default_stream), given, strict=True):
        share = plain_cells(of_stream(model, valid, model.default_stream)[0], stage.stride)
        assert np.array_equal(maps[0].isnan().all(dim=0), share < 0.5)
    if model.pools_map and (not pad or model.stride == model.size_multiple):
        for stream in model.stream_inputs:
            for b in range(2):
                seen = features.tokens[stream][b]
                seen = seen[~seen.isnan().any(dim=-1)]
                # Of an image with these cells alone: the mean is what the model's own pooling starts from.
                expected = model.pool(stream, seen.T[None, :, :, None])
                torch.testing.assert_close(features.pooled[stream][b], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_images_without_a_valid_cell_have_no_embedding_and_others_do_not_see_them(name):
    model = small(name, num_classes=3)
    times = times_of(model)
    x, valid = batch(model, HEIGHT, WIDTH, times=times), masks(model, times=times)
    for mask in valid.values():
        mask[0] = False
        mask[0, ..., ::8, ::8] = True  # single pixels, too few for a cell
    logits = model(x, valid=valid, **dated(model, times))
    features = model.forward_features(x, valid=valid, **dated(model, times))
    for stream in model.stream_inputs:
        assert features.valid[stream].tolist() == [False, True]
        assert features.pooled[stream][0].isnan().all()
        assert features.maps(stream)[0].isnan().all()
        assert features.pooled[stream][1].isfinite().all()
    assert logits[0].isnan().all()
    model.zero_grad()
    logits[1].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_images_of_a_batch_do_not_depend_on_each_others_masks(name):
    model = small(name)
    times = times_of(model)
    x, valid = batch(model, HEIGHT, WIDTH, times=times), masks(model, times=times)
    features = model.forward_features(x, valid=valid, **dated(model, times))
    days = {key: value.flip(0) for key, value in dated(model, times).items()}
    turned = model.forward_features(
        {m: image.flip(0) for m, image in x.items()}, valid={m: v.flip(0) for m, v in valid.items()}, **days
    )
    for stream in model.stream_inputs:
        torch.testing.assert_close(
            turned.pooled[stream].flip(0), features.pooled[stream], rtol=1e-4, atol=1e-5, equal_nan=True
        )
        torch.testing.assert_close(
            turned.maps(stream).flip(0), features.maps(stream), rtol=1e-4, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite(name):
    model = small(name)
    times = times_of(model)
    valid = masks(model, times=times)
    x = {
        m: image.masked_fill(~valid[m].unsqueeze(-3), float("nan")).requires_grad_()
        for m, image in batch(model, HEIGHT, WIDTH, times=times).items()
    }
    features = model.forward_features(x, valid=valid, **dated(model, times))
    loss = sum(f.square().nansum() for f in (*features.feature_maps.values(), *features.pooled.values()))
    loss.backward()
    for m, image in x.items():
        assert image.grad.isfinite().all()
        assert (image.grad.movedim(-3, 0)[:, ~valid[m]] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_the_dates_of_a_series_are_as_single_images(name):
    model = small(name)
    x, valid = batch(model, 64, 64, times=2), masks(model, times=2, height=64, width=64)
    features = model.forward_features(x, valid=valid)
    for t in range(2):
        alone = model.forward_features(
            {m: i[:, t] for m, i in x.items()}, valid={m: v[:, t] for m, v in valid.items()}
        )
        for stream in model.stream_inputs:
            torch.testing.assert_close(
                features.maps(stream)[:, t], alone.maps(stream), rtol=1e-4, atol=1e-5, equal_nan=True
            )
            torch.testing.assert_close(
                features.pooled[stream][:, t], alone.pooled[stream], rtol=1e-4, atol=1e-5, equal_nan=True
            )


@pytest.mark.parametrize("name", ALL)
def test_a_date_without_a_valid_pixel_is_a_missing_image(name):
    model = small(name)
    x = batch(model, 64, 64, times=3)
    there = torch.tensor([[True, False, True], [True, True, True]])
    pixels = there[..., None, None].expand(2, 3, 64, 64)
    by_image = model.forward_features(x, valid=dict.fromkeys(x, there), **dated(model, 3))
    by_pixel = model.forward_features(x, valid=dict.fromkeys(x, pixels), **dated(model, 3))
    for stream in model.stream_inputs:
        for a, b in (
            (by_image.maps(stream), by_pixel.maps(stream)),
            (by_image.pooled[stream], by_pixel.pooled[stream]),
            (by_image.valid[stream], by_pixel.valid[stream]),
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        if stream in by_image.series:
            torch.testing.assert_close(
                by_image.series[stream], by_pixel.series[stream], rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("name", SERIES)
def test_a_pixel_of_a_series_counts_if_any_date_has_it(name):
    m = small(name).modalities[0]
    model = small(name, modalities=(m,))
    valid = torch.zeros(2, 3, 32, 32, dtype=torch.bool)
    valid[:, 0, :16], valid[:, 1, 16:, :16] = True, True
    features = model.forward_features(batch(model, 32, 32, times=3), valid={m: valid}, **dated(model, 3))
    hidden = features.maps().isnan().all(dim=1)
    half = hidden.shape[-1] // 2
    assert hidden[:, half:, half:].all()
    assert not hidden[:, :half].any()
    assert not hidden[:, :, :half].any()


def test_other_sensors_are_as_without_the_mask_where_they_are_encoded_alone():
    model = small("croma_vit_b")
    x, valid = batch(model), masks(model)
    features, plain = model.forward_features(x, valid={"s2": valid["s2"]}), model.forward_features(x)
    assert torch.equal(features.tokens["s1"], plain.tokens["s1"])
    assert "s1" not in features.valid_share
    hidden = features.maps("s2").isnan().any(dim=1)
    assert torch.equal(features.maps("joint").isnan().any(dim=1), hidden)


def test_the_dates_that_seamo_fuses_may_have_masks():
    model = small("seamo_vit_b" if "seamo_vit_b" in ALL else "seamo_vit_l", modalities=("s2",))
    model = rsb.create_model(
        model.architecture, overrides={"dim": 48, "depth": 2, "num_heads": 4, "temporal": True}
    )
    x, valid = batch(model, 32, 32, times=2), masks(model, times=2, height=32, width=32)
    features = model.forward_features(x, valid=valid, temporal=True)
    broken = {m: image.masked_fill(~valid[m].unsqueeze(2), float("nan")) for m, image in x.items()}
    again = model.forward_features(broken, valid=valid, temporal=True)
    torch.testing.assert_close(again.maps(), features.maps(), rtol=0, atol=0, equal_nan=True)
    share = plain_cells((valid["s2"] & valid["s1"])[0, 1], 8)
    assert np.array_equal(features.maps()[0, 1].isnan().all(dim=0), share < 0.5)


@pytest.mark.parametrize(
    ("normalize", "expected"), [("clip_2sd", 0.5), ("standard", 0.0), ("imagenet", 0.0), ("scale", None)]
)
def test_masked_pixels_are_the_mean_of_their_band_to_the_network(normalize, expected):
    from dataclasses import replace

    model = small(
        "vit_b16" if "vit_b16" in ALL else "vit_b14", modalities=("s2",), bands={"s2": ("B02", "B03")}
    )
    model.inputs = {"s2": replace(model.inputs["s2"], normalize=normalize)}
    x, valid = batch(model)["s2"], masks(model)["s2"]
    filled = x.clone()
    for b, c in np.ndindex(2, 2):
        mean = x[b, c][valid[b]].mean() if expected is None else expected
        filled[b, c][~valid[b]] = mean
    got, want = model.forward_features(x, valid={"s2": valid}), model.forward_features(filled)
    torch.testing.assert_close(got.pooled["s2"], want.pooled["s2"])  # the class token has seen them
    seen = ~got.tokens["s2"].isnan()
    torch.testing.assert_close(got.tokens["s2"][seen], want.tokens["s2"][seen])


FORMS = {
    "numpy": lambda mask: mask.numpy(),
    "uint8": lambda mask: mask.numpy().astype(np.uint8),
    "torch.uint8": lambda mask: mask.to(torch.uint8),
    "list": lambda mask: mask.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_masks(form):
    model = small("croma_vit_b", modalities=("s2",))
    x, valid = batch(model)["s2"], masks(model)["s2"]
    expected = model(x, valid={"s2": valid})
    assert torch.equal(model(x, valid={"s2": FORMS[form](valid)}), expected)
    assert torch.equal(model(x, valid=FORMS[form](valid)), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 64, 96)), "booleans"),
        (np.full((2, 64, 96), 4, np.uint8), r"isin\(scl"),
        (np.ones((2, 8, 12), bool), r"\[B, H, W\] = \[2, 64, 96\]"),
        (np.ones((64, 96), bool), r"\[B, H, W\]"),
        (np.ones(2, bool), r"\[B, H, W\]"),
        ("cloudy", "must be booleans"),
    ],
)
def test_other_masks_are_refused(mask, message):
    model = small("croma_vit_b", modalities=("s2",))
    with pytest.raises(ValueError, match=message):
        model(batch(model)["s2"], valid={"s2": mask})

"""What only ViTs have: norms at the end of streams, streams that are means of others, kept patches."""

import pytest
import torch

from tests.conftest import close
from tests.models.examples import VITS, batch, small


@pytest.fixture(params=VITS)
def model(request):
    return small(request.param)


def test_intermediates_without_norm_are_normalized_by_the_final_norm(model):
    x = batch(model)
    raw = {s: model.forward_intermediates(x, indices=[-1], stream=s)[0] for s in model.stream_inputs}
    tokens = model.forward_features(x).tokens
    for stream in model.stream_inputs:
        # A mean is that of normalized parts, and without norm that of the parts as they are.
        parts = model.averaged_streams.get(stream, (stream,))
        normed = [model.final_norm(part)(raw[part].flatten(2).transpose(1, 2)) for part in parts]
        assert close(sum(normed) / len(parts), tokens[stream])
        assert close(sum(raw[part] for part in parts) / len(parts), raw[stream])


def test_means_of_streams_are_means_at_every_depth_and_when_pooled(model):
    x = batch(model)
    features = model.forward_features(x)
    for stream, parts in model.averaged_streams.items():
        assert close(features.pooled[stream], sum(features.pooled[part] for part in parts) / len(parts))
        for norm in (False, True):
            mean, *of_parts = (
                model.forward_intermediates(x, indices=[0], stream=s, norm=norm)[0] for s in (stream, *parts)
            )
            assert close(mean, sum(of_parts) / len(parts))


def test_stages_are_blocks(model):
    for stream, depth in model.stream_depths.items():
        stages = model.stages(stream)
        assert len(stages) == depth
        assert {(s.channels, s.stride) for s in stages} == {(model.num_features, model.patch_size)}
        assert [s.module for s in stages] == [f"{model.stream_blocks[stream]}.{i}" for i in range(depth)]


def test_kept_patches_are_encoded_in_their_order(model):
    """All patches in another order: the same tokens in that order, as attention does not know the order."""
    x = batch(model, 32, 32)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    kept = dict.fromkeys(x, order)
    with torch.no_grad():
        whole, permuted = model.encode_tokens(x), model.encode_tokens(x, kept=kept)
    for stream, tokens in permuted.items():
        first = model.num_prefix_tokens
        assert first == 0 or torch.allclose(tokens[:, :first], whole[stream][:, :first], atol=1e-5)
        tokens = tokens[:, first:]
        expected = torch.take_along_dim(whole[stream][:, first:], order[..., None], dim=1)
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)

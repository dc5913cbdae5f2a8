"""Attention under an ALiBi bias that is never made as a whole: equal to the dense one, in linear memory."""

import json
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import rsbackbones as rsb
from rsbackbones.layers import alibi, blockwise_attention
from rsbackbones.layers.alibi import AlibiBias, alibi_bias, bias_between, grid_positions
from rsbackbones.layers.attention import SelfAttention
from rsbackbones.layers.flex import attend_with_flex
from rsbackbones.layers.tracing import SINCE_2_7
from tests import forked

needs_torch_2_7 = pytest.mark.skipif(not SINCE_2_7, reason="needs torch 2.7")


def dense(q: Tensor, k: Tensor, v: Tensor, bias: AlibiBias) -> Tensor:
    """The same from the whole table, written out."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    table = alibi_bias(bias.queries, bias.keys, bias.num_heads)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + table.to(q.dtype)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def some_attention(grid: tuple[int, int], kept: tuple[int, int] | None, heads: int, seed: int):
    """Queries, keys, values and a bias: of a whole grid, or of other patches of it in every image."""
    draw = torch.Generator().manual_seed(seed)
    positions = grid_positions(*grid)
    queries = keys = positions
    if kept is not None:
        queries, keys = (
            positions[torch.rand(2, len(positions), generator=draw).argsort(1)[:, :count]] for count in kept
        )
    q, k, v = (
        torch.randn(2, count, heads, 8, generator=draw)
        for count in (queries.shape[-2], keys.shape[-2], keys.shape[-2])
    )
    return q, k, v, AlibiBias(queries, keys, heads)


@st.composite
def attentions(draw):
    grid = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    count = grid[0] * grid[1]
    kept = draw(st.none() | st.tuples(st.integers(1, count), st.integers(1, count)))
    return some_attention(grid, kept, draw(st.integers(1, 6)), draw(st.integers(0, 2**16)))


@given(attentions(), st.integers(1, 20_000), st.integers(1, 128), st.booleans())
@settings(max_examples=80)
def test_blocks_equal_the_dense_table_forward_and_backward(attention, scores, rows, as_table):
    *inputs, bias = attention
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    table = alibi_bias(bias.queries, bias.keys, bias.num_heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise_attention, "_SCORES", scores)  # from one query of one head up to all at once
        patch.setattr(blockwise_attention, "_ROWS", rows)
        out = blockwise_attention.blockwise_attention(*ours, table if as_table else bias)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        (out * weights).sum().backward()
    expected = dense(*theirs, bias)
    (expected * weights).sum().backward()
    assert torch.allclose(out, expected, atol=1e-5, rtol=0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5, rtol=1e-5)


@needs_torch_2_7
@pytest.mark.parametrize("kept", [None, (7, 12)])
def test_flex_attention_scores_as_the_dense_table(kept):
    *inputs, bias = some_attention((4, 6), kept, 3, 0)
    out = attend_with_flex(*inputs, bias)
    assert torch.allclose(out, dense(*inputs, bias), atol=1e-5, rtol=0)


def test_blocks_in_bfloat16_are_as_exact_as_the_formula_step_by_step():
    *inputs, bias = some_attention((9, 9), None, 4, 1)
    exact, low = dense(*inputs, bias), [x.bfloat16() for x in inputs]
    of_steps = (dense(*low, bias).float() - exact).abs()
    of_blocks = (blockwise_attention.blockwise_attention(*low, bias).float() - exact).abs()
    assert of_blocks.mean() <= 1.1 * of_steps.mean()
    assert of_blocks.max() < 0.02


@needs_torch_2_7  # which counts the kernel of CPUs
def test_its_floating_point_operations_are_counted_as_those_of_the_kernel():
    q, k, v, _ = (
        x.requires_grad_() if isinstance(x, Tensor) else x for x in some_attention((4, 5), (9, 14), 3, 3)
    )
    counts = []
    for attend in (
        lambda: blockwise_attention.blockwise_attention(q, k, v, None),
        lambda: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))),
    ):
        with FlopCounterMode(display=False) as forward:
            out = attend()
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learned_bias_gets_its_gradient(dtype):
    layer = SelfAttention(16, 2, qkv_bias=True).to(dtype)
    bias = torch.zeros(2, 5, 5, dtype=dtype, requires_grad=True)
    layer(torch.randn(1, 5, 16, dtype=dtype), bias).square().sum().backward()
    assert bias.grad.abs().sum() > 0


def test_blocks_without_a_bias_are_plain_attention():
    q, k, v, _ = some_attention((4, 5), (9, 14), 3, 3)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.allclose(blockwise_attention.blockwise_attention(q, k, v, None), expected, atol=1e-6)


def test_the_operator_is_registered_as_pytorch_wants_it():
    *inputs, bias = some_attention((3, 4), (5, 7), 2, 2)
    inputs = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(
        torch.ops.rsbackbones.blockwise_attention.default, (*inputs, None, bias.queries, bias.keys)
    )


@pytest.mark.parametrize("modalities", [("s2",), ("s2", "s1")])
def test_a_model_gives_the_same_with_and_without_tables(modalities, monkeypatch):
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=modalities)
    x = {m: torch.randn(2, len(model.bands[m]), 40, 72) for m in modalities}
    with torch.no_grad():
        expected = model.forward_features(x)
        monkeypatch.setattr(alibi, "LARGEST_TABLE", {"cpu": 0})
        features = model.forward_features(x)
    for stream, tokens in expected.tokens.items():
        assert torch.allclose(features.tokens[stream], tokens, atol=1e-5, rtol=0)


def test_small_tables_of_whole_grids_are_kept_and_large_ones_never_made(monkeypatch):
    monkeypatch.setattr(alibi, "_TABLES", {})
    grid = grid_positions(5, 6)
    with torch.inference_mode():
        first = bias_between(grid, grid, 2, torch.float32, grid=(5, 6))
    assert bias_between(grid, grid, 2, torch.float32, grid=(5, 6)) is first
    assert not first.is_inference()  # else a later training step could not use it
    assert bias_between(grid, grid, 2, torch.bfloat16, grid=(5, 6)).dtype == torch.bfloat16
    assert bias_between(grid[:7], grid, 2, torch.float32) is not first
    for side in range(1, 9):
        bias_between(grid_positions(side, 1), grid_positions(side, 1), 2, torch.float32, grid=(side, 1))
    assert len(alibi._TABLES) <= 4
    large = grid_positions(128, 128)
    assert isinstance(bias_between(large, large, 16, torch.float32, grid=(128, 128)), AlibiBias)


_PEAKS = """
import json, re, sys
from pathlib import Path
import torch
import rsbackbones as rsb

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
training = sys.argv[1] == "training"
model = rsb.create_model(
    "croma_vit_tiny", modalities=("s2",), overrides={"dim": 32, "depth": 2, "num_heads": 4}
)
model.forward_features(torch.randn(1, 12, 8, 8)).pooled["s2"].sum().backward()
found = []
for side in map(int, sys.argv[2:]):  # what is set up once falls to the first ones
    x = torch.randn(1, 12, side, side)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    with torch.set_grad_enabled(training):
        loss = model(x).sum()
    if training:
        loss.backward()
    found.append(peak() - before)
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("mode", "sides", "limit"),
    # MB; the table of 4 heads alone is 4,096 for 16,384 patches, and 256 for 4,096.
    [("inference", (128, 256, 512, 1024), 250), ("training", (128, 256, 512), 100)],
)
def test_memory_grows_with_the_number_of_patches_and_not_with_its_square(mode, sides, limit):
    done = forked.run([sys.executable, "-c", _PEAKS, mode, *sides])
    _, *found = json.loads(done.stdout)
    # Four times the patches: at most four times the memory where it is linear, sixteen times where it is not.
    assert all(larger < 4 * max(smaller, 16) for smaller, larger in pairwise(found)), found
    assert found[-1] < limit

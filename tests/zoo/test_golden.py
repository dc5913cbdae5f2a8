"""Golden activations notice a change of features and nothing else."""

import copy

import torch

import rsbackbones as rsb
from rsbackbones.zoo.golden import compare_golden, compute_golden, golden_input


def test_the_input_is_arithmetic_and_textured(tiny):
    images = golden_input(tiny, (24, 40))
    assert images["s2"].shape == (1, 12, 24, 40)
    # Row 9, column 10 of the fourth band, by hand: 9 * 7 + 10 * 13 + 3 * 29 + 1 * 1 * 31 = 311 -> 55.
    assert images["s2"][0, 3, 9, 10] == torch.tensor(55 / 255.0)
    assert images["s2"].unique().numel() > 200


def test_the_same_model_holds_and_any_other_does_not(tiny):
    golden = compute_golden(tiny, (16, 24))
    assert compare_golden(tiny, golden) == []
    single = rsb.create_model("croma_vit_tiny", modalities=["s1"])
    single.load_state_dict({k: v for k, v in tiny.state_dict().items() if k in single.state_dict()})
    assert compare_golden(single, golden) == []
    changed = copy.deepcopy(tiny)
    with torch.no_grad():
        changed.encoders["s1"].blocks[0].mlp.fc1.weight.mul_(1.01)
    problems = compare_golden(changed, golden)
    assert problems
    assert all(p.startswith(("s1", "joint")) for p in problems)
    with torch.no_grad():
        changed.encoders["s1"].norm.weight.fill_(float("nan"))
    assert any("nan" in p for p in compare_golden(changed, golden))


def test_swapped_bands_are_noticed(tiny):
    """The classic mistake: the right tensors over channels in another order."""
    golden = compute_golden(tiny, (16, 16))
    weight = tiny.encoders["s2"].tokenizer.proj.weight
    with torch.no_grad():
        weight.copy_(weight.view(96, 12, 64)[:, [2, 1, 0, *range(3, 12)]].flatten(1))
    assert any(p.startswith("s2") for p in compare_golden(tiny, golden))

"""Fine-tuning and what training puts around a network, over a small model of every family."""

import numpy as np
import pytest
import torch
from torch import nn

import rsbackbones as rsb
from rsbackbones.layers.activation_checkpointing import checkpoint_activations
from rsbackbones.models.unused import freeze_unused
from rsbackbones.train.finetune import finetune, load_finetuned
from rsbackbones.zoo.registry import find_architecture
from tests.models.examples import ALL, KINDS, batch, dated, small, times_of
from tests.train.finetune_setup import BANDS, DENSE, labelled, small_recipe

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(params=ALL)
def model(request):
    return small(request.param)


def tuned(name, out, task="classes", **changes):
    """Fine-tune a small model of random weights; of four bands, as the set has."""
    overrides = {**find_architecture(name).small, "bands": {"s2": list(BANDS), "s1": ["VV", "VH"]}}
    recipe = small_recipe(
        out, model=name, overrides=overrides, drop_path=0, modalities=["s2"],
        **(DENSE if task != "classes" else {}), **changes,
    )  # fmt: skip
    return finetune(recipe, labelled(task, side=32)), recipe


@pytest.mark.parametrize(
    ("name", "task"), [*((name, "classes") for name in ALL), *((name, "pixels") for name in KINDS)]
)
def test_fine_tuning_with_layer_decay_trains_all_layers_and_saves_what_it_scored(name, task, tmp_path):
    result, _ = tuned(name, tmp_path / "run", task, optim__layer_decay=0.75, epochs=2)
    assert result["status"] == "finished"
    best = load_finetuned(tmp_path / "run" / "best")
    before = small(name, modalities=("s2",), bands={"s2": BANDS}).state_dict()
    backbone = getattr(best, "backbone", best)
    changed = [n for n, t in backbone.named_parameters() if n in before and not torch.equal(t, before[n])]
    depths = backbone.parameter_depths()
    assert {depths[n] for n in changed} >= set(depths.values()) - {max(depths.values())}
    # Read back in another process it is the model that was scored: buffers too.
    images = {"s2": torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))}
    again = load_finetuned(tmp_path / "run" / "best")
    assert torch.equal(again(images), best(images))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked > 0


def test_a_frozen_network_keeps_its_buffers(tmp_path):
    tuned("toy_cnn", tmp_path / "run", epochs=2, freeze=True)
    best = load_finetuned(tmp_path / "run" / "best")
    assert not any(t.any() for n, t in best.state_dict().items() if n.endswith("num_batches_tracked"))


def test_activation_checkpointing_changes_no_gradient_and_no_statistic(model):
    """Blocks are computed twice; BatchNorm sees the batch once."""
    plain, again = small(model.architecture, num_classes=2), small(model.architecture, num_classes=2)
    x = batch(plain, times=2 if plain.consumes == "series" else None)
    computed = []
    for each in (plain, again):
        each.train()
        if each is again:
            each.set_grad_checkpointing()
        # A unit without parts is counted by its inputs: what is replaced is its forward.
        # A leaf: the recomputation ends before the outputs of the modules around it.
        parts = [m for m in each.units()[0].modules() if m is not each.units()[0]]
        inside = next((m for m in parts if not any(m.children())), None)
        count = []
        hook = (inside or each.units()[0]).register_forward_hook(lambda *_, count=count: count.append(1))
        each(x).square().sum().backward()
        hook.remove()
        computed.append(len(count))
    assert computed[1] > computed[0] or inside is None
    for (name, a), (_, b) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name
    for (name, a), (_, b) in zip(plain.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    again.set_grad_checkpointing(False)
    if inside is not None:
        count.clear()
        hook = inside.register_forward_hook(lambda *_: count.append(1))
        again(x).sum().backward()
        hook.remove()
        assert len(count) == computed[0]


def test_activation_checkpointing_without_units_is_refused():
    with pytest.raises(ValueError, match="lists none in units"):
        checkpoint_activations([])


def test_unused_parameters_are_frozen_and_no_others(model):
    """Against a backward pass: exactly those that get no gradient from the output, given all it takes."""
    classifier = small(model.architecture, num_classes=2)
    buffers = {name: b.clone() for name, b in classifier.named_buffers()}
    freeze_unused(classifier, lambda images, **series: [classifier(images, **series)])
    other = small(model.architecture, num_classes=2)
    other(batch(other, times=times_of(other)), **dated(other, times_of(other))).sum().backward()
    for (name, p), (_, q) in zip(classifier.named_parameters(), other.named_parameters(), strict=True):
        assert p.requires_grad == (q.grad is not None), name
    assert all(torch.equal(b, buffers[name]) for name, b in classifier.named_buffers())
    assert not classifier.training


def test_drop_path_drops_whole_branches_in_training_only():
    model = small("toy_cnn")
    x = batch(model)
    with torch.no_grad():
        before = model(x)
        model.set_drop_path(0.9)
        assert torch.equal(model(x), before)
        model.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(x), model(x))


def test_what_a_network_cannot_do_is_said(tmp_path):
    recipe = small_recipe(
        tmp_path / "run", model="toy_series", modalities=["s2"], drop_path=0.1,
        overrides={**find_architecture("toy_series").small, "bands": {"s2": list(BANDS)}},
    )  # fmt: skip
    with pytest.raises(ValueError, match="no residual blocks with drop path"):
        finetune(recipe, labelled(side=32))


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_commands_take_every_kind(name, tmp_path, capsys):
    """``rsbackbones eval`` and ``embed``, as a user calls them."""
    from rsbackbones.cli import main
    from tests.models.test_uses import rasters
    from tests.train.finetune_setup import saved

    model = small(name)
    data = labelled(side=32, sensors=model.modalities)
    file = saved(data, tmp_path / "small.npz")
    arguments = ["--no-pretrained", "--model", model.architecture]
    main(
        [
            "eval",
            "knn,linear",
            *arguments,
            "--data",
            str(file),
            "--output",
            str(tmp_path / "out"),
            "--baselines",
        ]
    )
    table = capsys.readouterr().out
    assert "knn" in table
    files = [str(file) for file in rasters(model, tmp_path, 64, 64)[0]]
    units = ["--units", "rgb=rgb8"] if "rgb" in model.modalities else []
    embed = ["embed", *files, *arguments, *units, "--output", str(tmp_path / "rows.npz")]
    if model.consumes == "series":
        assert main(embed) == 2
        assert "encodes series of dates" in capsys.readouterr().err
        return
    main(embed)
    rows = np.load(tmp_path / "rows.npz")
    assert rows[model.default_stream].shape[0] == 1
    assert rsb.list_models(model.architecture) == [model.architecture]

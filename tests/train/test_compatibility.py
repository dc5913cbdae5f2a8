"""Weights that a run begins with: what they mean must be what they meant, which their shapes do not show."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rsbackbones.train import compatibility
from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.export import export
from rsbackbones.train.initialize import build_objective, initialize_weights
from rsbackbones.train.objectives.registry import registered_objectives
from rsbackbones.train.pretraining import pretrain
from tests.train.seamo_runs import two_phases, write_series
from tests.train.training import PAIRED, small_recipe, write_data

FEW = {"s2": ["B02", "B08"], "s1": ["VV", "VH"]}


@pytest.fixture(scope="module")
def seamo_begin(tmp_path_factory):
    """An objective as ``export --full`` writes it, and recipes that begin with it."""
    folder = tmp_path_factory.mktemp("seamo")
    data = write_series(folder / "data")

    def recipe(out=None, **changes):
        changes = {"stages": [], "overrides__bands": FEW} | changes
        return two_phases(data, out, **changes)

    pretrain(recipe(folder / "run", max_steps=1))
    export(folder / "run", folder / "weights", full=True)
    return recipe, folder / "weights" / "objective.safetensors"


@pytest.fixture(scope="module")
def croma_begin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("croma")
    data = write_data(folder / "data")

    def recipe(out=None, **changes):
        return small_recipe(data, out, **({"overrides__bands": FEW} | changes))

    pretrain(recipe(folder / "run", max_steps=1))
    export(folder / "run", folder / "weights", full=True)
    return recipe, folder / "weights" / "objective.safetensors"


def begin(recipe, file, **changes):
    changed = recipe(init_from=str(file), seed=5, **changes)
    objective = build_objective(changed)
    initialize_weights(objective, changed)
    return objective


def refused(recipe, file, changes, message):
    changed = recipe(init_from=str(file), **changes)
    objective = build_objective(changed)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    # Nothing but the meaning is wrong: names and shapes are those of the file.
    assert {n: t.shape for n, t in load_file(file).items()} == {n: t.shape for n, t in before.items()}
    with pytest.raises(TrainingError, match=message):
        initialize_weights(objective, changed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides__bands": {"s2": ["B08", "B02"], "s1": ["VV", "VH"]}}, r"differ in bands .*'B08', 'B02'"),
        ({"overrides__bands": {"s2": ["B03", "B04"], "s1": ["VV", "VH"]}}, "differ in bands"),
        ({"overrides__sensors": {"s2": "landsat_oli"},
          "overrides__bands": {"s2": ["B2", "B5"], "s1": ["VV", "VH"]}}, "differ in .*sensors"),
        ({"overrides__query": "text", "overrides__fusion": "decouple"}, "differ in query"),
        ({"overrides__num_heads": 2}, r"differ in num_heads \(4, 2\): use the options that the file"),
        ({"objective__decoder_heads": 2}, r"differ in decoder_heads \(4, 2\)"),
        ({"data__size": 16}, r"has the grid \[4, 4\], that of this recipe \[2, 2\]: set overrides.position"),
    ],
)  # fmt: skip
def test_what_shapes_do_not_show_of_seamo_is_refused(seamo_begin, tmp_path, changes, message):
    recipe, file = seamo_begin
    if "overrides__query" in changes:  # of equal shapes in the form without f alone
        pretrain(recipe(tmp_path / "run", max_steps=1, overrides__fusion="decouple"))
        export(tmp_path / "run", tmp_path / "weights", full=True)
        file = tmp_path / "weights" / "objective.safetensors"
    refused(recipe, file, changes, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides__bands": {"s2": ["B02", "B08"], "s1": ["VH", "VV"]}}, "differ in bands"),
        ({"overrides__num_heads": 2}, "differ in num_heads"),
        ({"overrides__cross_alibi": False}, "differ in cross_alibi"),
        ({"objective__decoder_heads": 2}, "differ in decoder_heads"),
    ],
)
def test_what_shapes_do_not_show_of_croma_is_refused(croma_begin, changes, message):
    refused(*croma_begin, changes, message)


def test_a_decoder_of_one_sensor_is_not_that_of_another(croma_begin, tmp_path):
    recipe, _ = croma_begin
    pairs = [to_json(PAIRED)]  # the other source has no radar
    pretrain(recipe(tmp_path / "run", max_steps=1, objective__reconstruction_target="s1", data__parts=pairs))
    export(tmp_path / "run", tmp_path / "weights", full=True)
    file = tmp_path / "weights" / "objective.safetensors"
    refused(recipe, file, {"objective__reconstruction_target": "s2"}, r"reconstruction_target \(s1, s2\)")


def test_how_it_is_trained_may_be_another(seamo_begin, croma_begin):
    """Other masks, targets and losses train the same parameters on; so do sizes of the same grid."""
    for (recipe, file), changes in (
        (seamo_begin, {"objective__mask_ratio": 0.25, "objective__masking": "independent"}),
        (seamo_begin, {"objective__normalized_targets": False, "objective__length": 3}),
        (seamo_begin, {"data__size": 16, "overrides__position_grid": [4, 4]}),
        (croma_begin, {"objective__mask_ratio_s2": 0.25, "data__size": 16}),
        (croma_begin, {"objective__contrast_weight": 2.0, "objective__joint_self_bias": "published"}),
    ):
        begun = begin(recipe, file, **changes).state_dict()
        assert all(torch.equal(begun[name], tensor) for name, tensor in load_file(file).items())


def test_the_form_of_a_block_that_there_is_not_says_nothing(seamo_begin, tmp_path):
    recipe, _ = seamo_begin
    plain = {"objective__strategy": "multimodal"}
    pretrain(recipe(tmp_path / "run", max_steps=1, **plain))
    export(tmp_path / "run", tmp_path / "weights", full=True)
    begin(recipe, tmp_path / "weights" / "objective.safetensors", **plain, overrides__query="text")


def test_a_file_that_does_not_say_what_it_means_is_refused(seamo_begin, tmp_path):
    recipe, file = seamo_begin
    bare = tmp_path / "objective.safetensors"
    for metadata, message in (
        (None, "does not state the options of its parameters .* export the run again"),
        ({compatibility.OBJECTIVE_KEY: '{"config": {}'}, "damaged .* export the run again"),
        ({compatibility.OBJECTIVE_KEY: '{"config": 3, "objective": {}, "grid": null}'}, "damaged"),
        ({compatibility.OBJECTIVE_KEY: "[]"}, "damaged"),
    ):
        save_file(load_file(file), bare, metadata)
        with pytest.raises(TrainingError, match=message):
            begin(recipe, bare)


def test_the_file_says_bands_heads_and_grid_to_who_reads_it(seamo_begin):
    with safe_open(seamo_begin[1], "pt") as file:
        said = json.loads(file.metadata()[compatibility.OBJECTIVE_KEY])
    assert said["config"]["bands"] == FEW
    assert (said["config"]["num_heads"], said["objective"]["decoder_heads"], said["grid"]) == (4, 4, [4, 4])


@pytest.mark.parametrize("kind", registered_objectives())
def test_what_may_differ_is_an_option_and_no_size(kind):
    """All options but these say what is asked of the parameters, not what they are."""
    fixed = {"method", "decoder_dim", "decoder_depth", "decoder_heads", "reconstruction_target", "tasks"}
    fixed |= {"queue", "dim"}  # of FoMu-SSL
    fixed |= {"single"}  # of S4: the sensor whose network is built
    known = {f.name for f in dataclasses.fields(kind)}
    assert set(kind.stage_options) == known - fixed

"""A run folder from somebody else: reading its checkpoints executes no code and opens no other files."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_saver import save

from rsbackbones.train.engine.checkpoint import first_line
from rsbackbones.train.engine.checkpoint_reader import load_checkpoint
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.export import export
from rsbackbones.train.initialize import read_run
from rsbackbones.train.pretraining import pretrain
from tests.train.training import small_recipe, write_data

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = small_recipe(write_data(folder / "data"), folder / "run", max_steps=2)
    pretrain(recipe)
    return recipe


def with_metadata(run, out, change):
    """Copy a run, change the bytes of its newest ``.metadata``, and state the hash of the new ones."""
    shutil.copytree(run.output, out)
    checkpoint = max((out / "checkpoints").glob("step_*"))
    content = change((checkpoint / ".metadata").read_bytes())
    (checkpoint / ".metadata").write_bytes(content)
    complete = json.loads((checkpoint / "complete.json").read_text())
    complete["files"][".metadata"] = (len(content), hashlib.sha256(content).hexdigest())
    (checkpoint / "complete.json").write_text(json.dumps(complete))
    return out


def test_metadata_that_executes_code(run, tmp_path, marker):
    evil = pickle.dumps(Touch(marker))
    pickle.loads(evil)  # the control
    assert marker.exists()
    marker.unlink()
    out = with_metadata(run, tmp_path / "run", lambda _: evil)
    with pytest.raises(TrainingError, match=r"posix\.system"):
        export(out, tmp_path / "weights")
    with pytest.raises(TrainingError, match=r"posix\.system"):
        pretrain(small_recipe(run.data.root, out, max_steps=4))
    assert not marker.exists()


def escaping(content):
    metadata = pickle.loads(content)
    for place in metadata.storage_data.values():
        place.relative_path = "../../../elsewhere.distcp"
    return pickle.dumps(metadata)


def test_metadata_that_names_other_files(run, tmp_path):
    out = with_metadata(run, tmp_path / "run", escaping)
    with pytest.raises(TrainingError, match=r"elsewhere\.distcp.*not in its folder"):
        read_run(out)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1}), pickle.dumps(None)])
def test_metadata_that_is_something_else(run, tmp_path, content):
    with pytest.raises(TrainingError, match="does not hold what"):
        read_run(with_metadata(run, tmp_path / "run", lambda _: content))


def test_numbers_that_execute_code(tmp_path, marker):
    save({"weight": torch.ones(2), "lr": Touch(marker)}, checkpoint_id=tmp_path / "evil")
    with pytest.raises(CheckpointException) as caught:
        load_checkpoint({"weight": torch.zeros(2), "lr": 0.0}, tmp_path / "evil")
    assert not marker.exists()
    said = first_line(caught.value)
    assert "system" in said
    assert "weights_only" not in said  # no advice to load it all the same


def test_own_checkpoints_are_read_as_before(tmp_path):
    """Everything that an optimizer keeps beside tensors, against torch's own reader."""
    stored = {
        "weight": torch.randn(3, 4), "half": torch.ones(2, dtype=torch.bfloat16), "step": torch.tensor(3),
        "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "fused": None, "amsgrad": False, "name": "a"}],
    }  # fmt: skip
    save(stored, checkpoint_id=tmp_path / "own")
    empty = {
        "weight": torch.zeros(3, 4), "half": torch.zeros(2, dtype=torch.bfloat16), "step": torch.tensor(0),
        "groups": [{"lr": 0.0, "betas": (0.0, 0.0), "fused": 1, "amsgrad": True, "name": ""}],
    }  # fmt: skip
    load_checkpoint(empty, tmp_path / "own")
    assert empty["groups"] == stored["groups"]
    assert all(torch.equal(empty[name], stored[name]) for name in ("weight", "half", "step"))
    names = set(FileSystemReader(tmp_path / "own").read_metadata().state_dict_metadata)
    assert {"weight", "half", "step"} < names


@pytest.mark.parametrize("field", ["recipe", "sources", "environment"])
def test_a_recipe_file_without_a_field(run, tmp_path, field):
    shutil.copytree(run.output, tmp_path / "run")
    file = tmp_path / "run" / "recipe.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != field}))
    with pytest.raises(TrainingError, match=field):
        export(tmp_path / "run", tmp_path / "weights")


@pytest.mark.filterwarnings("ignore:.*its values are nested too deeply")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("recipe.json", "nested too deeply"),
        ("checkpoints/step_000000002/complete.json", "no whole checkpoint|all checkpoints .* are damaged"),
    ],
)
def test_json_that_is_nested_without_end(run, tmp_path, name, said):
    out = shutil.copytree(run.output, tmp_path / "run")
    assert (out / name).is_file()
    (out / name).write_text("[" * 100_000)
    with pytest.raises(TrainingError, match=said):
        read_run(out)
    with pytest.raises(TrainingError, match=said):
        pretrain(small_recipe(run.data.root, out, max_steps=4))

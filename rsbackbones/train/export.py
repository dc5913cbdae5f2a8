"""``python -m rsbackbones.train.export RUN --output DIR``: export a run as weights for ``create_model``.

The folder has ``ARCHITECTURE.TAG.safetensors`` (the encoder, for ``create_model(checkpoint=...)``) and
``manifest.json``, a manifest of one entry with provenance, input contract, hash and golden activations:
with ``RSBACKBONES_MANIFEST=DIR/manifest.json``, ``create_model("ARCHITECTURE.TAG", pretrained=True)`` finds
it.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from rsbackbones.files.atomic import write_text
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.models.config import as_json
from rsbackbones.preprocess import preprocess_for
from rsbackbones.train.command import run_command
from rsbackbones.train.compatibility import OBJECTIVE_KEY, objective_signature
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.run_dir import stage_folder
from rsbackbones.train.initialize import read_run
from rsbackbones.train.recipe import Recipe
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.golden import compute_golden
from rsbackbones.zoo.manifest import SCHEMA_VERSION, read_manifest
from rsbackbones.zoo.saving import save_model, write_safetensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export(
    run: str | Path, output: str | Path, *, tag: str = "", dtype: str = "float32", full: bool = False
) -> Path:
    """Write the encoder of a run, and with ``full`` the whole objective, to the folder ``output``.

    Args:
        run: the output folder of a run.
        output: the folder to make; it must not exist, or be empty.
        tag: of the weights' id ``architecture.tag``; default the name of the run's folder.
        dtype: ``float32``, or a half-precision type to store; reading casts up.
        full: keep all: in the encoder's file what only pretraining needs (SeaMo's temporal-multimodal block),
            and ``objective.safetensors`` with decoders and projections, as ``init_from=`` of a recipe.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: no usable run, tag or folder.
    """
    run, output = Path(run).expanduser(), Path(output).expanduser()
    recipe, record, objective, step = read_run(run)
    model = (objective.backbone if full else objective.export_backbone()).eval()
    tag = tag or re.sub(r"[^a-z0-9]+", "_", run.resolve().name.lower()).strip("_")
    if not re.fullmatch(r"[a-z0-9_]+", tag):
        raise TrainingError(f"a tag is lower-case letters, digits and underscores, got {tag!r}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise TrainingError(f"{output} exists and is not an empty folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        file = save_model(model, part / f"{recipe.model}.{tag}.safetensors", dtype=DTYPES[dtype])
        if full:
            said = {OBJECTIVE_KEY: json.dumps(objective_signature(objective))}
            write_safetensors(objective.state_dict(), part / "objective.safetensors", torch.float32, said)
        # What a user will get: through the file, and so through its precision.
        model = create_model(recipe.model, checkpoint=file)
        # The contract of the model's own bands: in a manifest it says which bands the weights have.
        specs = preprocess_for(model.inputs, model.bands, sensors=model.config.sensors).specs
        size = model.config.image_size
        entry = {
            "id": f"{recipe.model}.{tag}",
            "default": True,
            "architecture": recipe.model,
            "config": _config_changes(recipe, as_json(model.config)),
            "source": {"kind": "bundled", "path": file.name},
            "format": "rsbackbones",
            "dtype": dtype,
            "sha256": sha256_of(file),
            "bytes": file.stat().st_size,
            "inputs": {m: {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()}
                       for m, spec in specs.items()},
            "image_size": size if isinstance(size, int) else 0,
            "params": sum(p.numel() for p in model.parameters()),
            "license": "not stated",
            "provenance": f"{_provenance(run, recipe, record, step)} {objective.usage_note()}".rstrip(),
            "citation": None,
            "metrics": {},
            "golden": compute_golden(model, (size, size) if isinstance(size, int) else size),
        }  # fmt: skip
        manifest = {"schema_version": SCHEMA_VERSION, "weights": [entry]}
        write_text(part / "manifest.json", json.dumps(manifest, indent=1))
        read_manifest(part / "manifest.json")
        shutil.copyfile(run / "recipe.json", part / "recipe.json")
        part.chmod(0o755)
        part.rename(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return output / "manifest.json"


def _config_changes(recipe: Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which the trained model is not its architecture as it is by default."""
    default = as_json(create_model(recipe.model).config)
    return {name: value for name, value in config.items() if value != default[name] and name != "bands"}


def _provenance(run: Path, recipe: Recipe, record: Mapping[str, Any], step: int) -> str:
    environment = record["environment"]
    told = (
        f"Trained with rsbackbones.train, recipe {recipe.name} (recipe.json beside the weights), commit "
        f"{environment['commit']}, torch {environment['torch']}, seed {recipe.seed}: "
    )
    stages = recipe.resolve_stages()
    for i in range(len(stages) - 1):
        folder = stage_folder(run, i, len(stages))
        if folder.is_dir():
            before, of_before, _, steps = read_run(folder)
            told += f"stage {i + 1}, {_seen(before, of_before, steps)} Then "
    return told + (f"stage {len(stages)}, " if len(stages) > 1 else "") + _seen(stages[-1], record, step)


def _seen(recipe: Recipe, record: Mapping[str, Any], step: int) -> str:
    sources = "; ".join(
        f"{s['name']} ({s['places']} places"
        + (f" x {s['frames']} dates" if s["frames"] > 1 else "")
        + (", the first of each" if s["frames"] > 1 and s.get("seasons") == 1 else "")
        + (f", {s['seasons']} in a series" if s.get("seasons", 1) != 1 else "")
        + (f", task {s['task']}" if s.get("task") else "")
        + "".join(f", {note}" for note in s["notes"])
        + ")"
        for s in record["sources"]
    )
    seen = step * recipe.batch_size
    return f"{step} steps of {recipe.batch_size}, {seen} samples seen. Data: {sources}."


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to make."
)
@click.option(
    "--tag",
    default="",
    show_default="the name of the run's folder",
    help="The tag of the weights' id, ARCHITECTURE.TAG.",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", help="The type to store.")
@click.option(
    "--full",
    is_flag=True,
    help="Also keep the parts that only pretraining needs, for init_from= of a recipe.",
)
def command(run: Path, output: Path, tag: str, dtype: str, full: bool) -> int:
    """Export the encoder of a run as weights for create_model.

    RUN is the output folder of a run. OUTPUT gets ARCHITECTURE.TAG.safetensors and manifest.json, with
    provenance, input contract, hash and golden activations.
    """
    print(export(run, output, tag=tag, dtype=dtype, full=full))
    return 0


if __name__ == "__main__":
    run_command(command, "rsbackbones.train.export")

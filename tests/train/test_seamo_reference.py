"""SeaMo's loss and gradients against numbers of independent code, written from the paper in float64.

The folder is the one that RSB_REFERENCE names, by default tests/recorded, which has three of its 23 cases.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.seamo import SeamoObjective
from tests.conftest import RECORDED

FILE = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "seamo" / "seamo.npz"
if not FILE.exists():
    pytest.skip(f"{FILE} is not there", allow_module_level=True)
REFERENCE = np.load(FILE)
CASES = {case["name"]: case for case in json.loads(str(REFERENCE["cases"]))}


def build(case):
    overrides = dict(case["overrides"])
    overrides["bands"] = {m: overrides["bands"][m] for m in overrides["modalities"]}
    options = dict(case["options"])
    options["normalized_targets"] = options.pop("normalised_targets")  # the option's name then
    objective = SeamoObjective(**options).build(rsb.create_model("seamo_vit_tiny", overrides=overrides))
    prefix = case["state"] + "/"
    state = {
        name.removeprefix(prefix): torch.from_numpy(REFERENCE[name])
        for name in REFERENCE.files
        if name.startswith(prefix)
    }
    objective.load_state_dict(state, strict=True)
    return objective.double().train()


def arrays(case, kind):
    prefix = f"{case['name']}/{kind}/"
    return {
        name.removeprefix(prefix): torch.from_numpy(REFERENCE[name])
        for name in REFERENCE.files
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("name", CASES)
def test_losses_predictions_and_all_gradients(name):
    case = CASES[name]
    objective = build(case)
    images = {m: x.double() for m, x in arrays(case, "images").items()}
    batch = Batch(
        images=images,
        bands={m: tuple(case["bands"][m]) for m in case["sensors"]},
        noise=arrays(case, "draws"),
        valid=arrays(case, "valid"),
    )
    parts = objective(batch)
    expected = dict(
        zip(
            ("loss", *(f"reconstruction_{m}" for m in case["sensors"])),
            REFERENCE[f"{name}/loss"],
            strict=True,
        )
    )
    # Positions are computed in float32.
    assert {part: value.item() for part, value in parts.items()} == pytest.approx(expected, abs=2e-6)
    parts["loss"].backward()
    parameters = dict(objective.named_parameters())
    norms, probes = [], []
    for key in case["keys"]:
        grad = parameters[key].grad
        flat = torch.zeros(parameters[key].numel()).double() if grad is None else grad.flatten()
        norms.append(flat.norm().item())
        probes.append((flat * torch.sin(1.7 * torch.arange(len(flat)).double() + 0.3)).sum().item())
    assert set(case["keys"]) == set(parameters)
    np.testing.assert_allclose(norms, REFERENCE[f"{name}/grad_norm"], atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(probes, REFERENCE[f"{name}/grad_probe"], atol=2e-6, rtol=1e-5)

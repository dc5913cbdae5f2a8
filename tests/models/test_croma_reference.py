"""Features of the authors' public code, recorded in files: ours must be the same.

The folder is the one that RSB_REFERENCE names, by default tests/recorded. Every checkpoint of the released
layout in it is checked against the .npz of the same name, whatever its width, depth and sizes.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from tests.conftest import RECORDED

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED))
STREAMS = ("s1", "s2", "joint")


def released_checkpoints():
    """Checkpoints of the released layout, nested or flat, that have recorded features beside them."""
    found = []
    for path in sorted(FOLDER.glob("*.pt")):
        recorded = path.with_suffix(".npz")
        if recorded.exists() and any("_tokens_" in key for key in np.load(recorded)):
            found.append(path)
    return found


def overrides(path):
    """Width and depth as the checkpoint's tensors say."""
    content = torch.load(path, weights_only=True)
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": tensor for name, tensor in value.items()}
        else:
            flat[key] = value
    prefix = "s2_encoder.transformer.layers."
    blocks = {int(name.removeprefix(prefix).split(".")[0]) for name in flat if name.startswith(prefix)}
    return {"dim": flat["s2_encoder.linear_input.weight"].shape[0], "depth": len(blocks)}


def sizes(path):
    return sorted({key.rsplit("_", 1)[1] for key in np.load(path.with_suffix(".npz")) if "_uint8_" in key})


CASES = [(path, size) for path in released_checkpoints() for size in sizes(path)]


def test_croma_reference_files_are_there():
    assert CASES, f"no croma checkpoint with recorded features in {FOLDER}"


@pytest.mark.parametrize(("path", "size"), CASES, ids=[f"{p.stem}-{s}" for p, s in CASES])
def test_croma_reference_features(path, size):
    recorded = np.load(path.with_suffix(".npz"))
    model = rsb.create_model("croma_vit_b", checkpoint=path, overrides=overrides(path))
    images = {m: torch.from_numpy(recorded[f"{m}_uint8_{size}"]).float() / 255 for m in ("s1", "s2")}
    with torch.inference_mode():
        features = model.forward_features(images)
    for stream in STREAMS:
        for kind, ours in (("tokens", features.tokens), ("pooled", features.pooled)):
            theirs = torch.from_numpy(recorded[f"{stream}_{kind}_{size}"])
            torch.testing.assert_close(ours[stream], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", released_checkpoints(), ids=lambda p: p.stem)
@pytest.mark.parametrize("modality", ["s1", "s2"])
def test_croma_reference_holds_with_one_sensor_built(path, modality):
    size = sizes(path)[0]
    recorded = np.load(path.with_suffix(".npz"))
    model = rsb.create_model(
        "croma_vit_b", checkpoint=path, overrides=overrides(path), modalities=(modality,)
    )
    assert not [
        n for n in model.state_dict() if n.startswith("joint") or f".{'s1s2'.replace(modality, '')}." in n
    ]
    with torch.inference_mode():
        pooled = model(torch.from_numpy(recorded[f"{modality}_uint8_{size}"]).float() / 255)
    theirs = torch.from_numpy(recorded[f"{modality}_pooled_{size}"])
    torch.testing.assert_close(pooled, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("path", released_checkpoints(), ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_croma_reference_survives_our_export(path, dtype, tmp_path):
    """Exported by us and read back: the same features; half precision says so and stays close."""
    size = sizes(path)[0]
    recorded = np.load(path.with_suffix(".npz"))
    model = rsb.create_model("croma_vit_b", checkpoint=path, overrides=overrides(path))
    written = rsb.save_model(model, tmp_path / "ours.safetensors", dtype=dtype)
    again = rsb.create_model("croma_vit_b", checkpoint=written)
    assert {t.dtype for t in again.state_dict().values()} == {torch.float32}
    images = {m: torch.from_numpy(recorded[f"{m}_uint8_{size}"]).float() / 255 for m in ("s1", "s2")}
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        features = again.forward_features(images)
    for stream in STREAMS:
        theirs = torch.from_numpy(recorded[f"{stream}_tokens_{size}"])
        torch.testing.assert_close(features.tokens[stream], theirs, atol=tolerance, rtol=0)

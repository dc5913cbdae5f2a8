"""A tokenizer by wavelength, distilled, against kernels adapted by name and `nearest`: tokens and embeddings.

    [RSB_DATA=...] python -m benchmarks.wavelength_tokenizer [--checkpoint WEIGHTS] [--output JSON]

Images: 1,000 Sentinel-2 L2A patches to learn from and 200 others to measure on, of RSB_DATA; without it,
simulated scenes. *Error* is the root mean square difference from the tokens that the model's own bands give,
over their deviation: 1 is what the mean token of all patches would score. *Cosine* is that of the embedding.
*Moved* and *same* (RSB_DATA only): accuracy in percent on EuroSAT MS (L1C, 10 classes) of the five nearest
among the embeddings (standardized, cosine) of the 199 other images, which are made from the model's own bands
(moved), or from the bands given as well (same).
Values are normalized as the model's input contract says; where that knows no statistics for a band, they are
those of SSL4EO-S12, for all alike.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene
from rsbackbones.files.markdown import markdown_table
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.train.distill_tokenizer import distill_tokenizer

# By bands and by rule: error, cosine, ...
Results = dict[str, dict[str, dict[str, float]]]
NAME = "croma_vit_tiny"
TWELVE = SSL4EO_S12["s2"].bands
SETS = {
    "own bands": None,
    "four": ("B02", "B03", "B04", "B08"),
    "without green": ("B02", "B04", "B08"),
    "red, near infrared": ("B04", "B08"),
    "red, green, blue": ("B04", "B03", "B02"),
    "near infrared": ("B08",),
    "nine": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12"),
    "visible, red edges": ("B02", "B03", "B05", "B06", "B07", "B8A"),
    "all twelve": TWELVE,
}


def read() -> tuple[np.ndarray, np.ndarray]:
    """Return images to learn from and images to measure on, [B, 12, H, W], in digital numbers."""
    if "RSB_DATA" in os.environ:
        images = np.load(Path(os.environ["RSB_DATA"]) / "s2l2a_unlabelled_1200.npz")["images"]
        return images[:1000], images[1000:]
    scenes = [simulate_scene(128, 128, seed=i, day_of_year=12 * i + 8).s2 for i in range(30)]
    return np.stack(scenes[::2]), np.stack(scenes[1::2])


def normalized(model: rsb.Backbone, images: np.ndarray) -> torch.Tensor:
    """Return the images of a model's bands as its input contract says."""
    published = SSL4EO_S12["s2"]
    known = dict(zip(TWELVE, zip(published.mean, published.std, strict=True), strict=True))
    own = {band: known[band] for band in model.bands["s2"] if band not in model.inputs["s2"].bands}
    return rsb.create_preprocess(model, bands={"s2": TWELVE}, statistics={"s2": own})({"s2": images})["s2"]


@torch.inference_mode()
def compare(model: ViTBackbone, full: ViTBackbone, images: np.ndarray) -> dict[str, float]:
    """Return the error of a model's tokens and the cosine of its embedding, to those of all bands."""
    x, y = normalized(model, images), normalized(full, images)
    tokens, right = (m.get_submodule(m.tokenizer_name("s2"))(z) for m, z in ((model, x), (full, y)))
    spread = (right - right.mean((0, 1))).square().mean()
    cosine = torch.nn.functional.cosine_similarity(model(x), full(y)).mean()
    return {"error": float(((tokens - right).square().mean() / spread).sqrt()), "cosine": float(cosine)}


@torch.inference_mode()
def neighbors(model: rsb.Backbone, full: rsb.Backbone) -> dict[str, float]:
    """Return the share of EuroSAT images that their neighbors classify rightly."""
    held = np.load(Path(os.environ["RSB_DATA"]) / "eurosat_ms_200.npz")
    known = [list(held["bands"]).index(band) for band in TWELVE]
    labels = torch.from_numpy(np.unique(held["labels"], return_inverse=True)[1])
    given, whole = (m(normalized(m, held["images"][:, known])) for m in (model, full))

    def share(queries: torch.Tensor, others: torch.Tensor) -> float:
        mean, std = others.mean(0), others.std(0)
        a, b = (torch.nn.functional.normalize((x - mean) / std) for x in (queries, others))
        nearest = (a @ b.T).fill_diagonal_(-2).topk(5).indices
        return float((labels[nearest].mode(1).values == labels).float().mean())

    return {"moved": 100 * share(given, whole), "same": 100 * share(given, given)}


def vit(**options: Any) -> ViTBackbone:
    """Return the model of :data:`NAME`."""
    model = rsb.create_model(NAME, **options)
    assert isinstance(model, ViTBackbone)
    return model


def run(checkpoint: Path | None) -> Results:
    """Measure everything."""
    learn, measure = read()
    weights = {"pretrained": True} if checkpoint is None else {"checkpoint": checkpoint}
    full = vit(**weights, modalities=("s2",))
    student = distill_tokenizer(full, normalized(full, learn))
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = rsb.save_model(student, Path(folder) / "any.safetensors")
        for title, chosen in SETS.items():
            bands = {"s2": chosen or full.bands["s2"]}
            fixed = {**weights, "modalities": ("s2",), "bands": bands, "missing_bands": "nearest"}
            models = {
                "by wavelength": vit(checkpoint=path, bands=bands),
                **{f"`{s}`": vit(**fixed, kernel_scale=s) for s in ("count", "none")},
            }
            results[title] = {rule: compare(model, full, measure) for rule, model in models.items()}
            if "RSB_DATA" in os.environ:
                for rule, model in models.items():
                    results[title][rule] |= neighbors(model, full)
            print(title, results[title], flush=True)
    return results


def table(results: Results) -> str:
    """Return the results as a Markdown table."""
    rules = list(next(iter(results.values())))
    columns = [(rule, kind) for kind in results["own bands"][rules[0]] for rule in rules]
    digits = {"error": 2, "cosine": 3, "moved": 0, "same": 0}
    rows = [
        [title, *(f"{found[rule][kind]:.{digits[kind]}f}" for rule, kind in columns)]
        for title, found in results.items()
    ]
    header = ["bands given", *(f"{kind}, {rule}" for rule, kind in columns)]
    return markdown_table(header, rows, "l" + "r" * len(columns))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="weights with a linear tokenizer; default the bundled"
    )
    parser.add_argument("--output", type=Path, help="NAME.json")
    options = parser.parse_args()
    results = run(options.checkpoint)
    print(table(results))
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

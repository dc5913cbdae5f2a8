"""Every bundled model and two baselines on labelled real images: docs/results.md and the cards' numbers.

    RSB_DATA=... python -m benchmarks.results --output runs/results # measure, write benchmarks/results.json
    RSB_DATA=... python -m benchmarks.results --output runs/results --only croma_vit_tiny.samples # one model
    RSB_DATA=... python -m benchmarks.results --output runs/results --sets 'EuroSAT*' # these sets alone
    python -m benchmarks.results # write page and manifest from the JSON

Data: EuroSAT MS, 200 images of 64 px (L1C; the bands that weights have); EuroSAT RGB, 5,000 pictures of 64
px; BigEarthNet, 80 pairs of 120 px whose pixels have one of six coarse CORINE classes; Sen1Floods11, four
chips of 512 px, radar and water. None has a split of its own: ours, 80 / 20, with every seed another. Models
of pictures are tested on the held-out ones of EuroSAT RGB instead (benchmarks/heldout.py). On the
three larger sets the MLP probe is left out, and on label maps the sparse one: 27 learning rates with 2,048
hidden units take an hour on two cores.
"""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks import fomu
from benchmarks.heldout import open_held_out
from benchmarks.page import mean_and_deviation
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.feature_source import FeatureSource, describe, model_for
from rsbackbones.eval.report import best_on_test_note, notes_as_markdown, table
from rsbackbones.eval.run import evaluate
from rsbackbones.files.atomic import write_text
from rsbackbones.zoo.registry import list_weights

ROOT = Path(__file__).parents[1]
RECORD, PAGE, MANIFEST = (
    ROOT / "benchmarks" / "results.json", ROOT / "docs" / "results.md", ROOT / "weights_manifest.json",
)  # fmt: skip
SEEDS = (0, 1, 2)
# CORINE level 3 -> coarse class; 231 is left out: here it stands for pastures and for places without a label.
COARSE = {
    "artificial": list(range(111, 143)),
    "arable": list(range(211, 214)),
    "other agriculture": [*range(221, 231), *range(241, 245)],
    "forest": list(range(311, 314)),
    "shrub, open, wetland": [*range(321, 336), *range(411, 424)],
    "water": list(range(511, 524)),
}


@dataclass(frozen=True)
class LabelledFile:
    """A set to evaluate on.

    Attributes:
        file: below the folder of the data.
        mapping: what its arrays are.
        protocols: what is run.
        pretrained_on: by the name that a provenance gives them, which of its samples that is.
    """

    file: str
    mapping: dict[str, Any] | None
    protocols: tuple[str, ...]
    pretrained_on: Mapping[str, str] = field(default_factory=dict)

    def open(self, folder: Path, seed: int) -> LabelledDataset:
        """Open it; where it has no split of its own, with that of ``seed``."""
        return open_labelled(folder / self.file, mapping=self.mapping, seed=seed)


@dataclass(frozen=True)
class HeldOutPictures:
    """Pictures as models of pictures take them, split by the list of held-out ones, whatever the seed."""

    name: str
    protocols: tuple[str, ...]
    pretrained_on: Mapping[str, str] = field(default_factory=dict)

    def open(self, folder: Path, seed: int) -> LabelledDataset:
        """Open it."""
        return open_held_out(folder, self.name, sensors={"rgb": "rgb"})


_OTHERS = "the training pictures, and on none that tests"
SETS: dict[str, LabelledFile | HeldOutPictures] = {
    "EuroSAT MS": LabelledFile(
        "eurosat_ms_200.npz",
        {"s2": "images", "s2_bands": "bands", "label": "labels"},
        ("knn", "kmeans", "linear", "mlp", "sparse", "logistic"),
    ),
    "EuroSAT RGB": LabelledFile(
        "eurosat_rgb_5000.zip", None, ("knn", "kmeans", "linear", "sparse", "logistic")
    ),
    "BigEarthNet pairs": LabelledFile(
        "bigearthnet_v2_pairs_80.npz",
        {"s2_bands": ["B02", "B03", "B04", "B08"], "s1_bands": ["VV", "VH"], "label": "clc",
         "classes": COARSE, "task": "pixels"},
        ("knn", "kmeans", "linear", "logistic"),
        {"bigearthnet_v2_pairs_80": "all its images, those of the test splits too"},
    ),
    "Sen1Floods11": LabelledFile(
        "sen1floods11/Mekong_333434.npz",
        {"name": "sen1floods11", "files": "*.npz", "s1_bands": ["VV", "VH"],
         "classes": {"land": [0], "water": [1]}},
        ("knn", "kmeans", "linear", "logistic"),
        {"Spain_7370579": "one of its four chips, Spain_7370579, on which seed 2 tests"},
    ),
    "EuroSAT RGB, held out": HeldOutPictures(
        "eurosat_rgb", ("knn", "linear", "logistic"), {"eurosat_rgb_5000": _OTHERS}
    ),
}  # fmt: skip
ABSENT = """
Not here: OSCD, whose protocol in the papers is fine-tuning ([finetuning.md](finetuning.md) has the four
cities at hand); BigEarthNet v1 (17 patches at hand, six of them pretrained on) and TerraMesh (four tiles,
all pretrained on), too few for a split; series of dates with one map or one label, which no protocol here
takes ([evaluation.md](evaluation.md)); and DFC2020, MARIDA, PASTIS, fMoW and the others of the papers,
which were not at hand.

AuxMAE takes no radar, and so has no row on Sen1Floods11. MixMAE was measured on EuroSAT MS alone and AuxMAE
not on EuroSAT RGB, for want of time; [benchmarks/mixmae.md](../benchmarks/mixmae.md) has more of both.

`s4_unet3d_tiny.samples` is of series, and was measured as a model of single images on EuroSAT MS alone;
[benchmarks/s4.md](../benchmarks/s4.md) has its fine-tuning on series.

EuroSAT RGB was measured with value / 255 as the models' input. Since then 8-bit pictures are reflectance,
255 as the digital number 2,750 ([bands.md](bands.md)); it was not measured again.
""".strip().splitlines()

THEIRS = """
## The paper's table 2: AuxMAE and MixMAE

These are the numbers of Linial et al. ("Enhancing Remote Sensing Representations Through Mixed-Modality
Masked Autoencoding", ViT-B, 40 million pairs), not ours. The data and the weights are not public.

| scenario | model | BigEarthNet (mAP) | Sen1Floods11 (IoU of water) | UrbanSRSeg8 (mean IoU) |
| --- | --- | ---: | ---: | ---: |
| fine-tuned | baseline (Sentinel-2 MAE) | 91.05 | 84.66 | 50.71 |
| fine-tuned | AuxMAE | 91.23 | 85.26 | 50.21 |
| fine-tuned | MixMAE | 91.56 | 85.29 | 51.23 |
| frozen | baseline (Sentinel-2 MAE) | 76.05 | 82.28 | 44.80 |
| frozen | AuxMAE | 78.99 | 83.38 | 47.44 |
| frozen | MixMAE | 79.11 | 80.5 | 47.36 |

Slips of the paper:

- Table 1 exchanges the test counts of BigEarthNet and UrbanSRSeg8 (2,432 and 103,728). The text has them
  right.
- Table 1 gives BigEarthNet 13 bands; as an L2A product it has no B10.
- "Better results in all downstream tasks" (section 3.3) is false for frozen MixMAE on Sen1Floods11: 80.5
  against the baseline's 82.28.
- Section 4.3 says that MixMAE was tested in the fine-tuning scenario; the table has frozen MixMAE too.
- "Linear probing" names the head of BigEarthNet in both scenarios, also where the encoder is fine-tuned.

## The paper's tables 1, A2 and A3: FoMu-SSL

These are the numbers of Seo, Jung and Kim ("FoMu-SSL: Foundation Model-Guided Multi-Sensor Self-Supervised
Learning for Remote Sensing", ResNet-50), not ours. The weights were not published.

| pretraining | Potsdam (mIoU) | Vaihingen (mIoU) | DOTA (mAP) | UC Merced (top-1) | EuroSAT (top-1) |
| --- | ---: | ---: | ---: | ---: | ---: |
| ImageNet, supervised | 85.72 | 73.39 | 75.47 | 90.06 | 99.87 |
| fMoW, MoCo-v2 (table A2's baseline) | 83.47 | 70.92 | 68.65 | - | - |
| fMoW, MoCo-v2 from ImageNet ("IN init.") | 86.82 | 71.83 | 73.29 | 95.42 | 99.94 |
| the same, guided on RGB by MIRO | 83.60 | 71.34 | 64.98 | - | - |
| the same, guided on RGB by MSE | 85.16 | 71.21 | 70.88 | - | - |
| the same, guided on RGB by the cosine | 87.04 | 72.40 | 74.11 | 96.43 | 98.09 |
| fMoW + SEN1-2, on RGB and radar by MIRO | 83.18 | 71.14 | 63.63 | - | - |
| fMoW + SEN1-2, on RGB and radar by MSE | 82.98 | 70.32 | 64.03 | - | - |
| fMoW + SEN1-2, on RGB and radar by the cosine | 87.36 | 73.55 | 74.33 | 96.96 | 99.99 |
| fMoW + SEN2, on RGB by the cosine (table A4) | 86.92 | 73.25 | 73.35 | - | - |

| Potsdam (mIoU) by share of the training set | 1 % | 10 % | 20 % | 50 % | 100 % |
| --- | ---: | ---: | ---: | ---: | ---: |
| MoCo-v2 | 47.08 | 72.97 | 75.67 | 79.49 | 83.47 |
| MoCo-v2 + RGB | 54.71 | 77.02 | 79.46 | 82.26 | 87.04 |
| MoCo-v2 + RGB + radar | 59.48 | 80.91 | 83.39 | 85.64 | 87.36 |

Slips of the paper:

- Table A2's baseline on Potsdam, 83.47, is not table 1's MoCo-v2 from ImageNet, 86.82. The gain of 3.57 that
  section F.1 gives to the guidance is mostly that of the initialization; beside the same initialization it is
  0.22.
- Section F.1 credits MIRO with a gain of 2.23 on DOTA; that is the row of MSE. MIRO loses 3.67.
- Guidance on RGB alone is worse than none on EuroSAT, 98.09 against 99.94; section 3.4 does not mention it.
- A linear layer on a frozen ImageNet ResNet-50 reaches 99.87 % on EuroSAT in table 1. That is not to be
  expected: fine-tuned networks are at 98 to 99 %.
- "Outperforms the baseline trained with 100 %" (section F.3) holds at 50 % of the labels, 85.64 against
  83.47. At 20 % it does not, 83.39. That baseline is the lower one, of table A2.
- The weight decay for Potsdam is 5e-4, and CMID's configuration, which the paper says it follows, has 1e-4.
- The learning rate for DOTA is 0.03, and CMID's configuration has 0.005 ([finetuning.md](finetuning.md)).
- fMoW has 363,568 training images in section D.1; table A1 counts 523,842.
- Table A1 gives EuroSAT pixels of 0.1 m, Potsdam 0.5 m and Vaihingen 0.9 m; they are 10 m, 0.05 m and 0.09 m.
""".strip().splitlines()


def measure(folder: Path, out: Path, only: str, sets: str) -> dict[str, Any]:
    """Evaluate the bundled models of a pattern on the sets of a pattern."""
    record: dict[str, Any] = {}
    for entry in (e for e in list_weights(only) if e.availability == "bundled"):
        for name, held in ((n, h) for n, h in SETS.items() if fnmatch(n, sets)):
            open_set = cache(partial(held.open, folder))
            data = open_set(SEEDS[0])
            if not set(entry.inputs) & set(data.bands):
                continue  # no sensor that the model takes
            model = model_for(data, entry.id)
            alike: dict[str, Any] = {
                "modalities": model.modalities,
                "bands": model.bands,
                "pretrained": False,
            }
            here = out / entry.id / name.replace(" ", "_")
            how: dict[str, Any] = {
                "level": "image" if data.labels is not None else "patch",
                "cache": here / "cache",
            }
            sources = [
                FeatureSource.pretrained(entry.id, model, how),
                FeatureSource.random_init(partial(model_for, data, entry.architecture, **alike), how),
                FeatureSource.band_statistics(model, how),
            ]
            here.mkdir(parents=True, exist_ok=True)
            found = evaluate(held.protocols, sources, open_set, here, seeds=SEEDS)
            kept = ("source", "stream", "protocol", "seed", "metrics", "intervals")
            rows = []
            for row in found["rows"]:
                best = {k: v for k, v in row["details"].items() if k == "best_on_test"}
                rows.append({key: row[key] for key in kept} | {"details": best})
            facts = {s.name: dict(s.facts) for s in sources}
            record.setdefault(entry.id, {})[name] = found | {
                "rows": rows, "sources": facts, "notes": describe(data, model),
            }  # fmt: skip
    return record


def values(found: dict[str, Any], source: str, stream: str, protocol: str) -> list[float]:
    """Return the set's metric in percent, one for each seed."""
    metric = "f1_macro" if protocol == "sparse" else found["metric"]
    return [
        100 * row["metrics"][metric] for row in found["rows"]
        if (row["source"], row["stream"], row["protocol"]) == (source, stream, protocol)
    ]  # fmt: skip


def verdict(weights: str, found: dict[str, Any]) -> str:
    """Say whether a model beats the statistics of its bands, under every seed, by logistic regression."""
    known = found["rows"]
    baseline = next(r["source"] for r in known if r["stream"] == "bands")
    theirs = values(found, baseline, "bands", "logistic")
    stream = whole(weights, found)
    ours = values(found, weights, stream, "logistic")
    # Seeds are paired: the same split for both. All must agree.
    better = all(a > b for a, b in zip(ours, theirs, strict=True))
    says = "beats" if better else "does not beat"
    return (
        f"{says} means and deviations per band: logistic regression {mean_and_deviation(ours)} ({stream}) "
        f"against {mean_and_deviation(theirs)}"
    )


def whole(weights: str, found: dict[str, Any]) -> str:
    """Return the stream that all sensors feed: the last of the model's own."""
    streams = [str(row["stream"]) for row in found["rows"] if row["source"] == weights]
    return [stream for stream in streams if "+" not in stream][-1]


def pretraining(weights: str, name: str) -> str | None:
    """Say which images of a set a model was pretrained on, by the provenance of its weights."""
    provenance = next(e.provenance for e in list_weights() if e.id == weights)
    which = [said for source, said in SETS[name].pretrained_on.items() if source in provenance]
    return f"pretrained, without labels, on {' and '.join(which)}" if which else None


def page(record: dict[str, Any]) -> str:
    """Return docs/results.md."""
    lines = [
        "# Results",
        "",
        "Frozen features of the bundled models on labelled real images, beside two baselines: random",
        "initialization of the same architecture, and means and standard deviations of the same bands with",
        "logistic regression. Percent, mean and standard deviation over three seeds: of the split (80 / 20,",
        "unless the set is of held-out pictures),",
        "the probes, and the random weights; in brackets 95 % bootstrap intervals over the test samples,",
        "their ends averaged; a single test image has none. [evaluation.md](evaluation.md) says what the",
        "protocols are. Generated by `python -m benchmarks.results` from `benchmarks/results.json`.",
        "",
        *ABSENT,
    ]
    for weights, sets in record.items():
        lines += ["", f"## {weights}"]
        if weights == f"{fomu.BUNDLED}.samples":
            lines += ["", *fomu.section(json.loads(fomu.RECORD.read_text(encoding="utf-8")))]
        for name, found in sets.items():
            made = found["environment"]
            samples = ", ".join(f"{many} {split}" for split, many in found["data"]["samples"].items())
            lines += ["", f"### {name} ({samples}; {len(found['data']['classes'])} classes)", ""]
            lines += [f"{weights} {verdict(weights, found)}.", ""]
            seen = pretraining(weights, name)
            lines += [f"It was {seen}." if seen else "It was pretrained on none of these images.", ""]
            lines += [
                f"Measured on {made['machine']}, Python {made['python']}, torch {made['torch']}, "
                f"scikit-learn {made['scikit-learn']}, rsbackbones {made['rsbackbones']} ({made['commit']}), "
                f"seeds {', '.join(map(str, found['seeds']))}.",
                "",
                table(found["rows"], found["metric"]),
            ]
            lines += best_on_test_note(found["rows"])
            lines += notes_as_markdown(found["notes"])
    return "\n".join([*lines, "", *THEIRS]) + "\n"


def card_metrics(weights: str, sets: dict[str, Any]) -> dict[str, str]:
    """Return what the manifest says of a model."""
    said: dict[str, str] = {}
    for name, found in sets.items():
        said[name] = f"{weights} {verdict(weights, found)} ({found['metric']}, three seeds)"
        if seen := pretraining(weights, name):
            said[name] += f"; {seen}"
        for protocol in ("knn", "linear"):
            stream = whole(weights, found)
            ours, random = (
                values(found, who, stream, protocol) for who in (weights, "random initialization")
            )
            said[f"{name}, {protocol}"] = (
                f"{mean_and_deviation(ours)} ({stream}); random initialization {mean_and_deviation(random)}"
            )
    return said | {"of what": "frozen features, percent; docs/results.md has all"}


def main() -> None:
    """Measure if a folder is named, then write page and manifest."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="measure, and keep what is done so far there")
    parser.add_argument(
        "--only", default="*", help="measure these weights, by a pattern; keep what is known of others"
    )
    parser.add_argument("--sets", default="*", help="measure on these sets, by a pattern; likewise")
    options = parser.parse_args()
    if options.output:
        known = json.loads(RECORD.read_text(encoding="utf-8"))
        bundled = [e.id for e in list_weights() if e.availability == "bundled"]
        new = measure(Path(os.environ["RSB_DATA"]), options.output, options.only, options.sets)
        measured = {weights: known.get(weights, {}) | new.get(weights, {}) for weights in bundled}
        record = {w: {name: sets[name] for name in SETS if name in sets} for w, sets in measured.items()}
        write_text(RECORD, json.dumps(record, indent=1) + "\n")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    write_text(PAGE, page(record))
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    for entry in manifest["weights"]:
        if entry["id"] in record:
            entry["metrics"] = card_metrics(entry["id"], record[entry["id"]])
    write_text(MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

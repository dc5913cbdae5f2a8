"""Frozen features of a small model against random initialisation and per-band statistics, on real labels.

    RSB_DATA=... python benchmarks/frozen_features.py WEIGHTS.safetensors [MORE ...] [--output NAME]

EuroSAT MS (200 images, 10 classes; the bands that the weights know, L1C): the embedding of an image, which is
what ``model(x)`` gives, and the mean of its tokens.
BigEarthNet (80 pairs of Sentinel-1 and four Sentinel-2 bands): one token per patch of 8 x 8 pixels that one
of six coarse CORINE classes fills to at least three quarters; images are held out whole. The pairs are part
of what the bundled model was trained on, without their labels. Half of the patches are of one class, hence
balanced accuracy.

kNN (k = 5, cosine) and a linear probe (logistic regression, C chosen on a part of the training set), on
standardised features, five folds, three seeds: of the folds, of the random initialisation, and of training
where three weights files are given.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rsbackbones as rsb

SEEDS = (0, 1, 2)
FOUR_BANDS = ("B02", "B03", "B04", "B08")
# CORINE level 3 -> coarse class; 231 is left out: here it stands for pastures and for places without a label.
COARSE = {
    "artificial": range(111, 143),
    "arable": range(211, 214),
    "other agriculture": (*range(221, 231), *range(241, 245)),
    "forest": range(311, 314),
    "shrub, open, wetland": (*range(321, 336), *range(411, 424)),
    "water": range(511, 524),
}


def load(weights: Path | None, seed: int, **options):
    """Return the model of a weights file, or a randomly initialised one."""
    if weights is not None:
        return rsb.create_model("croma_vit_tiny", checkpoint=weights, **options)
    torch.manual_seed(seed)
    return rsb.create_model("croma_vit_tiny", **options)


def eurosat(folder: Path, bands: tuple[str, ...], pooled: bool):
    """What turns a model (or None: statistics) into features, labels, groups."""
    held = np.load(folder / "eurosat_ms_200.npz")
    images, names = held["images"], tuple(str(b) for b in held["bands"])

    def features(make):
        if make is None:
            mine = images[:, [names.index(band) for band in bands]].astype(np.float32)
            flat = mine.reshape(*mine.shape[:2], -1)
            return np.concatenate([flat.mean(-1), flat.std(-1)], axis=1)
        model = make(modalities=("s2",), bands={"s2": bands})
        x = rsb.create_preprocess(model, bands={"s2": names})(images)
        with torch.inference_mode():
            features = model.forward_features(x)
        return (features.pooled["s2"] if pooled else features.tokens["s2"].mean(1)).numpy()

    return features, held["labels"], None


def bigearthnet(folder: Path):
    """As :func:`eurosat`, for the joint tokens of the pairs."""
    held = np.load(folder / "bigearthnet_v2_pairs_80.npz")
    s2, s1, codes = held["s2"], held["s1"].astype(np.float32), held["clc"]
    classes = np.full(codes.shape, -1)
    for number, members in enumerate(COARSE.values()):
        classes[np.isin(codes, list(members))] = number
    patches = classes.reshape(len(codes), 15, 8, 15, 8).transpose(0, 1, 3, 2, 4).reshape(-1, 64)
    counts = np.stack([(patches == number).sum(1) for number in range(len(COARSE))], axis=1)
    chosen = counts.max(1) >= 48
    groups = np.repeat(np.arange(len(codes)), 225)

    def features(make):
        if make is None:
            both = np.concatenate([s2.astype(np.float32), s1], axis=1)
            cells = both.reshape(len(both), 6, 15, 8, 15, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 6, 64)
            return np.concatenate([cells.mean(-1), cells.std(-1)], axis=1)[chosen]
        model = make(bands={"s2": FOUR_BANDS})
        x = rsb.create_preprocess(model)({"s2": s2, "s1": s1})
        with torch.inference_mode():
            tokens = torch.cat([
                model.forward_features({m: v[i : i + 16] for m, v in x.items()}).tokens["joint"]
                for i in range(0, len(s2), 16)
            ])  # fmt: skip
        return tokens.flatten(0, 1).numpy()[chosen]

    return features, counts.argmax(1)[chosen], groups[chosen]


def score(x, y, groups, seed: int) -> dict[str, float]:
    """Return the balanced accuracies of five folds together."""
    if groups is None:
        folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y)
    else:
        folds = GroupKFold(5, shuffle=True, random_state=seed).split(x, y, groups)
    predicted = {"kNN": np.empty_like(y), "linear": np.empty_like(y)}
    for train, test in folds:
        classifiers = {
            "kNN": KNeighborsClassifier(5, metric="cosine"),
            "linear": LogisticRegressionCV(
                Cs=np.logspace(-3, 3, 7),
                cv=3,
                max_iter=1000,
                class_weight="balanced",
                l1_ratios=(0,),
                use_legacy_attributes=False,
            ),
        }
        # Patches are many and alike: a few thousand train the probe as well.
        chosen = np.random.default_rng(seed).permutation(train)[:3000]
        for name, classifier in classifiers.items():
            pipeline = make_pipeline(StandardScaler(), classifier).fit(x[chosen], y[chosen])
            predicted[name][test] = pipeline.predict(x[test])
    return {name: float(balanced_accuracy_score(y, guesses)) for name, guesses in predicted.items()}


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="NAME.md, and NAME.json beside it")
    options = parser.parse_args()
    folder = Path(os.environ["RSB_DATA"])
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    bands = load(options.weights[0], 0).bands["s2"]
    datasets = {
        "EuroSAT, embedding": lambda: eurosat(folder, bands, pooled=True),
        "EuroSAT, mean token": lambda: eurosat(folder, bands, pooled=False),
        "BigEarthNet, tokens": lambda: bigearthnet(folder),
    }
    for dataset, prepare in datasets.items():
        features, labels, groups = prepare()
        chance = 1 / len(np.unique(labels))
        results[dataset] = {"chance": {"kNN": [chance], "linear": [chance]}}
        rows = {"per-band mean and deviation": [None] * 3, "random initialisation": [], "trained": []}
        for seed in SEEDS:
            rows["random initialisation"].append(lambda seed=seed, **o: load(None, seed, **o))
            weights = options.weights[seed % len(options.weights)]
            rows["trained"].append(lambda w=weights, **o: load(w, 0, **o))
        for name, makers in rows.items():
            scores = [
                score(features(make), labels, groups, seed) for seed, make in zip(SEEDS, makers, strict=True)
            ]
            results[dataset][name] = {key: [s[key] for s in scores] for key in ("kNN", "linear")}
    lines = ["| features | " + " | ".join(f"{d}, {k}" for d in results for k in ("kNN", "linear")) + " |",
             "|---|" + "---:|" * 2 * len(results)]  # fmt: skip
    for name in next(iter(results.values())):
        cells = []
        for dataset in results:
            for key in ("kNN", "linear"):
                values = 100 * np.array(results[dataset][name][key])
                spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.1f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if options.output:
        options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        options.output.with_suffix(".json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

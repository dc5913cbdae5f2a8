"""A folder in the published layout of PASTIS-R, with few and small series."""

import json
from pathlib import Path

import numpy as np

MEANS = {
    "S2": np.linspace(1000, 3000, 10),
    "S1A": np.array([-11.0, -17.0, 6.0]),
    "S1D": np.array([-12.0, -18.0, 6.0]),
}


def write_pastis(root: Path, *, side: int = 8, per_fold: int = 1, texts: bool = True, seed: int = 0) -> Path:
    """Write ``PASTIS-R`` with patches 100, 101, ... of folds 1, 2, ..., and return its path.

    The crop shows: pixels of class k are brighter by 300 k in the last bands, from 0 (background) to 2; the
    first row is void. Series have 3 to 5 optical images, and as many radar images and two more.
    ``texts``: dates are JSON texts, as geopandas writes them.
    """
    rng = np.random.default_rng(seed)
    folder = root / "PASTIS-R"
    for name in ("DATA_S2", "DATA_S1A", "DATA_S1D", "ANNOTATIONS"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    features = []
    for number in range(5 * per_fold):
        patch = 100 + number
        label = rng.integers(0, 3, (side // 4, side // 4)).repeat(4, axis=0).repeat(4, axis=1)
        times = 3 + number % 3
        dates = {}
        for kind, count in (("S2", times), ("S1A", times + 2), ("S1D", times + 2)):
            bright = label * (300.0 if kind == "S2" else 3.0)
            noise = rng.normal(0, 50 if kind == "S2" else 1, (count, len(MEANS[kind]), side, side))
            images = MEANS[kind][:, None, None] + bright + noise
            np.save(folder / f"DATA_{kind}" / f"{kind}_{patch}.npy",
                    images.astype(np.int16 if kind == "S2" else np.float32))  # fmt: skip
            start = np.datetime64("2018-09-17" if kind != "S1D" else "2018-09-20")
            days = [str(start + 30 * i).replace("-", "") for i in range(count)]
            # The order of an object's keys is not that of the images.
            dates[f"dates-{kind}"] = {str(i): int(days[i]) for i in sorted(range(count), key=str)}
        target = np.stack([label, np.zeros_like(label), np.zeros_like(label)]).astype(np.uint8)
        target[0, 0] = 19
        np.save(folder / "ANNOTATIONS" / f"TARGET_{patch}.npy", target)
        features.append({
            "type": "Feature", "id": str(patch),
            "properties": {"ID_PATCH": patch, "Fold": 1 + number % 5,
                           **{k: json.dumps(v) if texts else v for k, v in dates.items()}},
            "geometry": {"type": "Point", "coordinates": [2.0, 47.0]},
        })  # fmt: skip
    write_metadata(folder, features)
    for kind, mean in MEANS.items():
        folds = {
            f"Fold_{fold}": {"mean": (mean + fold).tolist(), "std": (np.abs(mean) / 10 + fold).tolist()}
            for fold in range(1, 6)
        }
        (folder / f"NORM_{kind}_patch.json").write_text(json.dumps(folds))
    return folder


def write_metadata(folder, features):
    """Write ``metadata.geojson``."""
    (folder / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def features_of(folder):
    """Return the patches of ``metadata.geojson``."""
    return json.loads((folder / "metadata.geojson").read_text())["features"]

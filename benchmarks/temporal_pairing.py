"""How SeaMo's temporal-multimodal block pairs tokens: at the same location, or in the order of a mask.

    python -m rsbackbones.train recipe=seamo_vit_tiny data.root=$RSB_DATA output=RUN
    python -m rsbackbones.train.export RUN --full --output EXPORT --tag pairing
    RSB_DATA=... python -m benchmarks.temporal_pairing    # the bundled encoder, a block of random weights
    RSB_DATA=... python -m benchmarks.temporal_pairing EXPORT/seamo_vit_tiny.pairing.safetensors

The block fuses the tokens of the other sensor with those of the previous date, by index. Features pair those
of one location. Training pairs the visible tokens in the order in which two masks keep them, so that the two
have almost always different locations: here the tokens of the previous date are permuted. Measured are two
real series of Belgium: how far features move, and how well a logistic regression tells the land cover of
patches from features averaged over the dates. Folds are the quadrants of a tile, so that neighbors are not
told apart.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import rsbackbones as rsb
from rsbackbones.files.markdown import markdown_table

PATCH, DRAWS = 8, 5
BANDS = {"s2": ("B02", "B03", "B04", "B08"), "s1": ("VV", "VH")}


def belgian_tile(data: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return monthly composites that both sensors have, [1, T, C, 96, 96], and the cropland of patches."""
    with np.load(data / "worldcereal" / "belgium_101_12months.npz") as held:
        bands = held["s2_bands"].tolist()
        s2 = held["s2"][:, [bands.index(b) for b in BANDS["s2"]], :96, :96].astype(np.float32)
        s1 = held["s1"][..., :96, :96].astype(np.float32)
        cover = held["worldcereal_cropland"][:96, :96] > 0
    there = ((s2 > 0) & (s2 < 65535)).all((1, 2, 3)) & (s1 < 65534).all((1, 2, 3))
    series = {"s2": s2[there][None], "s1": (20 * np.log10(s1[there]) - 83)[None]}
    return series, cover.reshape(12, PATCH, 12, PATCH).mean((1, 3)) > 0.5


def flemish_patch(data: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Return clear dates, each with the nearest of Sentinel-1, and the land cover of patches."""
    with np.load(data / "worldcereal" / "patch_0000280849BAC91C.npz") as held:
        clear = (np.isin(held["scl"], (4, 5, 6)).mean((1, 2)) > 0.9) & (held["s2_10m"] < 65535).all((1, 2, 3))
        days = {m: held[f"{m}_dates"].astype("M8[D]").astype(int) for m in ("s2", "s1")}
        near = np.abs(days["s2"][clear, None] - days["s1"]).argmin(1)
        s1 = held["s1"][near].astype(np.float32).repeat(2, -1).repeat(2, -2)
        series = {"s2": held["s2_10m"][clear].astype(np.float32)[None], "s1": s1[None]}
        cover = held["LC"].reshape(8, PATCH, 8, PATCH).swapaxes(1, 2).reshape(8, 8, -1)
    return series, np.array([[np.bincount(cell).argmax() for cell in row] for row in cover])


def features(model: Any, series: dict[str, Any], *, temporal: bool, seed: int | None = None) -> Tensor:
    """Return features of patches [T, h, w, D] of the joint stream; a seed permutes the previous date."""
    draw = torch.Generator().manual_seed(seed or 0)

    def permute(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        own, other, previous, has_previous = args
        if previous is None:
            return None
        return own, other, previous[:, torch.randperm(previous.shape[1], generator=draw)], has_previous

    inputs = rsb.create_preprocess(model, bands=BANDS)(series)
    with torch.inference_mode(), ExitStack() as hooks:
        if seed is not None:
            for block in model.temporal.sensors.values():
                hooks.callback(block.register_forward_pre_hook(permute).remove)
        found = model.forward_features(inputs, temporal=temporal)
    maps: Tensor = found.maps("joint")[0]
    return maps.movedim(1, -1)


def accuracy(x: Tensor, labels: np.ndarray) -> float:
    """Return the share of patches whose land cover is found, by cross-validation over quadrants."""
    rows = x.mean(0).flatten(0, 1).numpy()
    height, width = labels.shape
    fold = ((np.arange(height) * 2 // height)[:, None] * 2 + np.arange(width) * 2 // width).ravel()
    truth, right = labels.ravel(), 0
    for k in range(4):
        train = fold != k
        if len(np.unique(truth[train])) < 2:
            right += int((truth[~train] == truth[train][0]).sum())
            continue
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        right += int((fitted.fit(rows[train], truth[train]).predict(rows[~train]) == truth[~train]).sum())
    return right / truth.size


def model_of(file: str | None) -> Any:
    """Return a model with the block: of a file, or the bundled encoder and a block of random weights."""
    if file is not None:
        return rsb.create_model("seamo_vit_tiny", checkpoint=file).eval()
    torch.manual_seed(0)
    bundled = rsb.create_model("seamo_vit_tiny", pretrained=True)
    model = rsb.create_model("seamo_vit_tiny", overrides={"temporal": True}, bands=BANDS)
    model.load_state_dict(model.state_dict() | bundled.state_dict())
    model.inputs = bundled.inputs
    return model.eval()


def main(file: str | None, data: Path) -> str:
    """Return the table of both series."""
    model = model_of(file)
    rows = []
    for name, (series, labels) in {"tile": belgian_tile(data), "patch": flemish_patch(data)}.items():
        same = features(model, series, temporal=True)
        permuted = [features(model, series, temporal=True, seed=seed) for seed in range(DRAWS)]
        moved = [float((x[1:] - same[1:]).norm() / same[1:].norm()) for x in permuted]
        scores = [100 * accuracy(x, labels) for x in permuted]
        counts = np.unique(labels, return_counts=True)[1]
        rows.append(
            [
                f"{name}, {len(same)} dates, {labels.size} patches",
                f"{100 * counts.max() / labels.size:.1f}",
                f"{100 * accuracy(features(model, series, temporal=False), labels):.1f}",
                f"{100 * accuracy(same, labels):.1f}",
                f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}",
                f"{100 * np.mean(moved):.1f} %",
            ]
        )
    head = ["series", "majority", "without the block", "same location", "permuted", "features move by"]
    return markdown_table(head, rows, "lrrrrr")


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else None, Path(os.environ["RSB_DATA"])))

"""The scores that the publishers of weights state, measured again on a machine that has the data.

    python -m benchmarks.published_scores --data FOLDER --output runs/scores [--only 'resnet50*'] [--epochs N]

FOLDER has data sets as torchgeo keeps them, each in a folder of its name: ``FOLDER/EuroSAT``. The weights
must be downloaded before (``make lock-weights``). A score whose data is not there, or whose protocol this
package does not have, is listed with the reason. Runs resume; ``scores.json`` is written after every score.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from rsbackbones.data.labelled import open_labelled
from rsbackbones.device import choose_device, has_bfloat16
from rsbackbones.eval.feature_source import FeatureSource, model_for
from rsbackbones.eval.run import evaluate
from rsbackbones.files.atomic import write_text
from rsbackbones.train.engine.config import SaveOptions
from rsbackbones.train.finetune import finetune
from rsbackbones.train.finetune.recipe import FinetuneOptim, FinetuneRecipe, Views
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.registry import list_weights

STATED = "published by torchgeo: "  # in the metrics of a manifest entry
# SSL4EO-S12's scripts (transfer_classification/scripts/benchmark): all weights are trained, batch 4 x 64.
_SGD = FinetuneOptim(name="sgd", base_lr=0.1, momentum=0.9, weight_decay=0.0)
_VIEWS = Views(size=224, rot90=False, mixup=0, cutmix=0, label_smoothing=0)


@dataclass(frozen=True)
class Protocol:
    """How a published score is measured here.

    Attributes:
        weights: a pattern of ids.
        score: the publisher's name of it, which is also torchgeo's name of the data set.
        metric: of ``rsbackbones.eval.metrics``.
        optim: of fine-tuning; ``None``: a linear probe on frozen features.
        differs: what is not as the publisher did it.
    """

    weights: str
    score: str
    metric: str
    optim: FinetuneOptim | None
    differs: str


PROTOCOLS = (
    Protocol(
        "*.seco_seco_s2_rgb", "EuroSAT", "top1", None,
        "SeCo's probe has Adam at 1e-3 for 100 epochs; here the validation split chooses one of 27 rates",
    ),
    Protocol(
        "*.ssl4eo_s12_*_s2", "EuroSAT", "top1", _SGD,
        "the authors crop at random, split 80 / 20, and cut the rate of ResNets in steps; here images are "
        "resized, splits are torchgeo's, and the schedule is the cosine of their ViTs",
    ),
    Protocol(
        "*.ssl4eo_s12_*_s2", "BigEarthNet", "map_micro", _SGD,
        "the authors crop at random, and score the epoch that is best on what they report",
    ),
    Protocol(
        "*.seco_seco_s2_rgb", "BigEarthNet", "map_micro", FinetuneOptim(base_lr=1e-5, scaled=False),
        "SeCo fine-tunes with Adam at 1e-5 and cuts the rate in steps; here AdamW with a cosine",
    ),
)  # fmt: skip
NO_PROTOCOL = {
    "OSCD": "SeCo trains a U-Net of its own on the frozen encoder",
    "So2Sat": "no reader of this package opens it",
    "NLCD (Acc)": "no reader of this package opens SSL4EO-L's benchmark",
    "NLCD (mIoU)": "no reader of this package opens SSL4EO-L's benchmark",
    "CDL (Acc)": "no reader of this package opens SSL4EO-L's benchmark",
    "CDL (mIoU)": "no reader of this package opens SSL4EO-L's benchmark",
}


def stated_scores(only: Sequence[str]) -> Iterator[tuple[WeightsEntry, str, float]]:
    """Yield weights of some patterns, the name of a score, and its published value in percent."""
    for entry in (e for e in list_weights() if any(fnmatch(e.id, pattern) for pattern in only)):
        for name, value in (entry.metrics or {}).items():
            if name.startswith(STATED):
                yield entry, name.removeprefix(STATED), float(value)


def protocol_for(weights: str, score: str) -> Protocol | None:
    """Return how a score is measured here; ``None`` where it is in :data:`NO_PROTOCOL`."""
    if score in NO_PROTOCOL:
        return None
    return next(p for p in PROTOCOLS if p.score == score and fnmatch(weights, p.weights))


def measure(entry: WeightsEntry, protocol: Protocol, root: Path, output: Path, epochs: int) -> float:
    """Return the score on the test split, in percent."""
    open_set = cache(partial(_open, protocol.score, root))
    data = open_set(0)
    if protocol.optim is None:
        model = model_for(data, entry.id)
        source = FeatureSource.pretrained(entry.id, model, {"level": "image", "cache": output / "cache"})
        output.mkdir(parents=True, exist_ok=True)
        rows = evaluate(["linear"], [source], open_set, output, device=choose_device())["rows"]
        (row,) = (r for r in rows if r["protocol"] == "linear")
        return 100 * float(row["metrics"][protocol.metric])
    found = finetune(
        FinetuneRecipe(
            name=f"published_{protocol.score.lower()}", model=entry.id, modalities=("s2",), views=_VIEWS,
            optim=protocol.optim, epochs=epochs, batch_size=min(256, len(data.splits["train"])),
            metric=protocol.metric, save=SaveOptions(every=5000, keep=1), output=output,
            precision="bf16" if has_bfloat16(choose_device()) else "fp32",
        ),
        data,
    )  # fmt: skip
    return 100 * float(found["metrics"][protocol.metric])


def _open(name: str, root: Path, seed: int) -> Any:
    return open_labelled(f"torchgeo:{name}", root=root, seed=seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what can be measured, and print a line for every published score."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", default=["*"], nargs="+", metavar="PATTERN", help="weights; default all")
    parser.add_argument(
        "--epochs", type=int, default=100, help="of fine-tuning; default 100, the publishers'"
    )
    options = parser.parse_args(arguments)
    record: list[dict[str, Any]] = []
    for entry, score, published in stated_scores(options.only):
        protocol = protocol_for(entry.id, score)
        row: dict[str, Any] = {"weights": entry.id, "score": score, "published": published}
        root = options.data / score
        if protocol is None:
            row["not_measured"] = NO_PROTOCOL[score]
        elif not root.is_dir():
            row["not_measured"] = f"{root} is not there"
        else:
            output = options.output / entry.id / score
            row["measured"] = measure(entry, protocol, root, output, options.epochs)
            row |= {"metric": protocol.metric, "differs": protocol.differs, "epochs": options.epochs}
            row["frozen"] = protocol.optim is None
        record.append(row)
        said = f"{row['measured']:.1f}" if "measured" in row else row["not_measured"]
        print(f"{entry.id}, {score}: published {published}, {said}")
        options.output.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "scores": record}
        write_text(options.output / "scores.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

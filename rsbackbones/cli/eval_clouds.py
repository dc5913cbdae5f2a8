"""The command ``eval clouds``: two fine-tuned models by the cloudy share of a series."""

import json
import sys
from pathlib import Path

import click

from rsbackbones.cli.options import FILE, CommaList, Command, option, run_options


@click.command("eval clouds", cls=Command)
@option("--run", required=True, type=FILE, metavar="DIR", section="Models",
        help="the folder of a fine-tuning run")  # fmt: skip
@option("--against", required=True, type=FILE, metavar="DIR", section="Models",
        help="the folder of the run to compare with")  # fmt: skip
@option("--data", metavar="PATH", section="Data", show_default="the data of --run",
        help="labelled optical series, as for finetune")  # fmt: skip
@option("--split", type=click.Choice(["train", "val", "test"]), default="test", section="Data",
        help="whose series")  # fmt: skip
@option("--masks", type=FILE, metavar="DIR", section="Clouds", show_default="those of the data",
        help="a folder of ID.npy [T, H, W], not 0 where there are clouds")  # fmt: skip
@option("--mask-classes", type=CommaList(click.INT), metavar="NUMBER,...", section="Clouds",
        help="the cloudy values of --masks: 3,8,9,10 for Sentinel-2's scene classification "
        "(SCL)")  # fmt: skip
@option("--s2cloudless", is_flag=True, section="Clouds", help="compute masks by s2cloudless")
@option("--edges", type=CommaList(click.FLOAT), metavar="SHARE,...", section="Clouds",
        show_default="0,0.05,0.1,0.15,0.2,0.25,1",
        help="edges of the bins of cloudy shares, such as 0,0.1,1")  # fmt: skip
@option("--output", type=FILE, metavar="DIR", section="Output",
        help="also write clouds.md, clouds.json and clouds.png")  # fmt: skip
@run_options(batch_size=4)
def eval_clouds(
    run: Path,
    against: Path,
    data: str | None,
    split: str,
    masks: Path | None,
    mask_classes: list[int] | None,
    s2cloudless: bool,
    edges: list[float] | None,
    output: Path | None,
    batch_size: int,
    device: str,
    progress: bool,
) -> int:
    """Compare two fine-tuned models by the cloudy share of the series.

    Series are grouped by their share of cloudy pixels, over all dates. The table has the mean IoU of both
    models in every group, and by how much --run is better.
    """
    from rsbackbones.data.image_warnings import ImageWarnings, warning_notes
    from rsbackbones.device import choose_device
    from rsbackbones.eval import clouds
    from rsbackbones.eval.dense import predict
    from rsbackbones.files.atomic import write_text
    from rsbackbones.models.backbone import unwrap_model
    from rsbackbones.train.finetune.saved import BEST, about_finetuned, load_finetuned
    from rsbackbones.train.finetune.tune import open_data, recipe_of

    if mask_classes and masks is None:
        raise ValueError("--mask-classes are the cloudy values of --masks DIR; name the folder")
    if masks is not None and s2cloudless:
        raise ValueError("--masks and --s2cloudless exclude each other")
    place = choose_device(device)
    first, second = (about_finetuned(folder / BEST) for folder in (run, against))
    if first["classes"] != second["classes"]:
        raise ValueError(
            f"the models have other classes: {', '.join(first['classes'])}; {', '.join(second['classes'])}"
        )
    models = [load_finetuned(folder / BEST) for folder in (run, against)]
    labelled = open_data(recipe_of(run), data)
    labelled = labelled.complete([m for model in models for m in unwrap_model(model).modalities])
    mask: clouds.CloudMask = clouds.own_mask
    if masks is not None:
        mask = clouds.StoredMasks(masks, tuple(mask_classes or ()))
    elif s2cloudless:
        mask = clouds.s2cloudless_mask(labelled)
    shares = clouds.cloud_shares(labelled, split, mask)
    warned = ImageWarnings()
    counts = [
        predict(model.to(place), labelled, split, batch_size=batch_size, progress=progress, warned=warned)
        for model in models
    ]
    scored = labelled.splits[split].tolist()
    warned.warn(labelled.name, scored)
    notes = warning_notes(warned.counts(scored), len(scored))
    edges = edges or list(clouds.EDGES)
    bins = clouds.bin_by_clouds(shares, counts[0], counts[1], edges)
    names = (run.name, against.name if against.name != run.name else str(against))
    table = clouds.cloud_table(bins, names)
    text = "\n".join([table, *(f"\n{note}" for note in notes)])
    print(text)
    if outside := int(((shares < edges[0]) | (shares > edges[-1])).sum()):
        print(f"{outside} of {len(shares)} series are outside of the edges", file=sys.stderr)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        rows = [
            {"low": b.low, "high": b.high, "series": b.series, "miou": _number(b.miou),
             "against": _number(b.against), "difference": _number(b.difference)}
            for b in bins
        ]  # fmt: skip
        found = {
            "run": str(run), "against": str(against), "data": labelled.name, "split": split, "bins": rows,
            "notes": notes,
            "shares": dict(zip((labelled.ids[i] for i in labelled.splits[split]), shares, strict=True)),
        }  # fmt: skip
        write_text(output / "clouds.json", json.dumps(found, indent=1))
        write_text(output / "clouds.md", text + "\n")
        clouds.draw_clouds(bins, names, output / "clouds.png")
    return 0


def _number(value: float) -> float | None:
    return None if value != value else value

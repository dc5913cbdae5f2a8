"""What many GPUs would make of a recipe, on paper: ``python -m rsbackbones.bench.scaling > docs/scaling.md``.

FLOPs, parameters and the bytes of collectives are measured on this machine once and recorded in a JSON file
(``--measured``); the page is a function of that file. Speeds of GPUs and links are assumptions, and stated.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rsbackbones.bench.collectives import (
    Payload,
    contrast_payload,
    count_parameters,
    ddp_payload,
    fsdp_payload,
    measure_payloads,
)
from rsbackbones.bench.flops import Flops, croma_flops
from rsbackbones.bench.machine import machine
from rsbackbones.files.atomic import write_text
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes import RECIPES
from rsbackbones.zoo.factory import create_model

MEASURED = Path("benchmarks/scaling.json")
NAMES = ("croma_vit_b", "croma_vit_l")
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
SAMPLES = 1_000_000  # of SSL4EO-S12, as the paper counts them: 250,000 places at four dates
_ROWS = 2  # samples with which FLOPs are counted; they do not depend on it but for the logits


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs and links, assumed: NVIDIA A100 80 GB in nodes of eight, 400 Gb/s of InfiniBand per node.

    Attributes:
        flop_per_s: of matrix products in bfloat16 that a step sustains: 40 % of the data sheet's 312e12.
        fp32_flop_per_s: of InfoNCE's logits, which are float32: 60 % of 19.5e12.
        memory: bytes/s of the GPU's memory, for the optimizer.
        node: GPUs per node.
        nvlink, network: bytes/s between GPUs of a node; of a node to others, in each direction, shared.
        latency: seconds of a collective, per doubling of processes.
        bucket: bytes of DDP's buckets; the last one cannot overlap with the backward pass.
    """

    flop_per_s: float = 0.4 * 312e12
    fp32_flop_per_s: float = 0.6 * 19.5e12
    memory: float = 2.0e12
    node: int = 8
    nvlink: float = 450e9
    network: float = 50e9
    latency: float = 10e-6
    bucket: int = 25 * 2**20

    def bandwidth(self, world: int) -> float:
        """Return the bytes/s of a ring's slowest link: a ring crosses between two nodes once each way."""
        return self.nvlink if world <= self.node else self.network

    def seconds(self, payload: Payload, world: int) -> float:
        """Return how long collectives take by rings: a payload goes round once, of an all-reduce twice."""
        share = (world - 1) / world
        volume = share * (2 * payload.all_reduce + payload.all_gather + payload.reduce_scatter)
        return volume / self.bandwidth(world) + payload.calls * self.latency * math.log2(world)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A model's step: FLOPs of a sample, parameters (all, in blocks), blocks, width of InfoNCE's rows."""

    flops: Flops
    parameters: int
    in_blocks: int
    blocks: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of the parts of a step on each of ``world`` GPUs, and samples/s of all of them."""

    world: int
    batch_size: int
    model: float
    logits: float
    contrast: float
    reduce: float
    optimizer: float
    ddp_in_turn: float
    ddp: float
    fsdp: float
    efficiency: float

    @property
    def rows(self) -> int:
        """Samples per GPU."""
        return self.batch_size // self.world


def predict(work: Work, cluster: Cluster, world: int, batch_size: int) -> Prediction:
    """Predict a step; ``ddp_in_turn`` is without overlap of the backward pass with the reduction.

    Raises:
        ValueError: the GPUs do not divide the batch.
    """
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be divided among {world} GPUs; see divisible()")
    rows = batch_size / world
    forward = rows * work.flops.forward / cluster.flop_per_s
    backward = rows * work.flops.backward / cluster.flop_per_s
    logits = rows * batch_size * work.flops.logits / cluster.fp32_flop_per_s
    contrast = cluster.seconds(contrast_payload(work.dim, batch_size), world)
    gradients = ddp_payload(work.parameters, cluster.bucket)
    reduce = cluster.seconds(gradients, world)
    tail = cluster.seconds(Payload(all_reduce=min(cluster.bucket, gradients.all_reduce), calls=1), world)
    # AdamW reads parameter, gradient and two moments, and writes all but the gradient: 7 floats.
    optimizer = 28 * work.parameters / cluster.memory
    alone = forward + backward + logits
    in_turn = alone + contrast + reduce + optimizer
    overlapped = forward + logits + contrast + max(backward + tail, reduce) + optimizer
    whole = fsdp_payload(work.parameters, work.in_blocks, work.blocks)
    for_forward = Payload(all_gather=4 * work.parameters, calls=work.blocks + 1)
    for_backward = whole - for_forward
    sharded = (
        max(forward, cluster.seconds(for_forward, world))
        + logits + contrast
        + max(backward, cluster.seconds(for_backward, world))
        + optimizer / world
    )  # fmt: skip
    return Prediction(
        world=world, batch_size=batch_size, model=forward + backward, logits=logits, contrast=contrast,
        reduce=reduce, optimizer=optimizer, ddp_in_turn=batch_size / in_turn, ddp=batch_size / overlapped,
        fsdp=batch_size / sharded, efficiency=(forward + backward) / overlapped,
    )  # fmt: skip


def divisible(batch_size: int, world: int) -> int:
    """Return the batch nearest to ``batch_size`` that ``world`` GPUs divide."""
    return max(1, round(batch_size / world)) * world


# -- measured ---------------------------------------------------------------------------------------------


def measure() -> dict[str, Any]:
    """Measure what the page needs of this machine: FLOPs, parameters, bytes of collectives."""
    models = {name: measure_model(RECIPES[name]) for name in NAMES}
    small = apply_overrides(RECIPES["croma_vit_tiny"], {"data.parts": []})
    payloads = {kind: asdict(payload) for kind, payload in measure_payloads(small, rows=4).items()}
    total, inside, blocks = count_parameters(_build(small))
    held = {"parameters": total, "in_blocks": inside, "blocks": blocks}
    return {
        "machine": machine() | {"load_before": None},
        "models": models,
        "collectives": {"recipe": small.name, "processes": 2, "rows": 4, **held, "payloads": payloads},
    }


def measure_model(recipe: Recipe) -> dict[str, Any]:
    """Count the parameters and the FLOPs of one sample, without InfoNCE's logits, with torch's counter."""
    objective = _build(recipe)
    bands, side = objective.backbone.bands, recipe.data.size
    patches = (side // objective.backbone.stride) ** 2
    batch = Batch(
        images={m: torch.rand(_ROWS, len(names), side, side) for m, names in bands.items()},
        bands=dict(bands),
        noise={f"{m}_noise": torch.rand(_ROWS, patches) for m in bands},
    )
    with FlopCounterMode(display=False) as counter:
        loss = objective(batch)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    logits = _work_of(recipe, {"parameters": 0, "in_blocks": 0, "blocks": 0}).flops.logits * _ROWS
    total, inside, blocks = count_parameters(objective)
    return {
        "parameters": total, "in_blocks": inside, "blocks": blocks,
        "forward_flops": forward / _ROWS - logits / 3,
        "backward_flops": (counter.get_total_flops() - forward) / _ROWS - logits * 2 / 3,
    }  # fmt: skip


def _build(recipe: Recipe) -> Any:
    torch.manual_seed(0)
    backbone = create_model(recipe.model, image_size=recipe.data.size, overrides=recipe.overrides)
    return recipe.objective.build(backbone.train())


def _work_of(recipe: Recipe, measured: dict[str, Any]) -> Work:
    """Return a recipe's step; FLOPs are those of the formula, which the page compares with the measured."""
    config, options = _config(recipe), recipe.objective
    assert isinstance(options, CromaObjective)
    return Work(
        flops=croma_flops(config, options, recipe.data.size),
        parameters=measured["parameters"], in_blocks=measured["in_blocks"], blocks=measured["blocks"],
        dim=config.dim,
    )  # fmt: skip


def _config(recipe: Recipe) -> Any:
    from rsbackbones.zoo.loading import replace_config
    from rsbackbones.zoo.registry import find_architecture

    return replace_config(find_architecture(recipe.model).config, recipe.overrides, recipe.model)


# -- the page ---------------------------------------------------------------------------------------------


def page(measured: dict[str, Any], cluster: Cluster | None = None) -> str:
    """Return the page for what was measured."""
    cluster = cluster or Cluster()
    lines = [_INTRODUCTION.format(**asdict(cluster), tflops=cluster.flop_per_s / 1e12,
             fp32=cluster.fp32_flop_per_s / 1e12, gb=cluster.memory / 1e9, nv=cluster.nvlink / 1e9,
             net=cluster.network / 1e9, us=cluster.latency * 1e6)]  # fmt: skip
    lines += _measured_lines(measured)
    for name in NAMES:
        recipe, work = RECIPES[name], _work_of(RECIPES[name], measured["models"][name])
        size = recipe.batch_size
        lines += ["", f"## {name}", "", *_traffic_lines(work, size)]
        fitting = [world for world in GPUS if not size % world]
        note = (
            f"Of these numbers of GPUs {', '.join(map(str, fitting))} divide {size:,} samples; elsewhere the "
            "nearest batch that is divided stands in, and the engine refuses the recipe's."
        )  # fmt: skip
        strong = [predict(work, cluster, world, divisible(size, world)) for world in GPUS]
        lines += ["", f"Strong scaling: the recipe's global batch. {note}", "", *_table(strong, recipe)]
        weak = [predict(work, cluster, world, size // GPUS[0] * world) for world in GPUS]
        lines += [
            "",
            f"Weak scaling: {size // GPUS[0]} samples per GPU. The global batch, and with it the objective "
            "(the negatives) and the learning rate, change from row to row.",
            "",
            *_table(weak, recipe),
        ]  # fmt: skip
    return "\n".join(lines) + "\n\n" + _LIMITS


def _measured_lines(measured: dict[str, Any]) -> list[str]:
    on, counted = measured["machine"], measured["collectives"]
    lines = [
        "## Measured",
        "",
        f"On a CPU ({on['cpu']}, torch {on['torch']}); FLOPs and bytes do not depend on the machine. FLOPs "
        "are of a sample, without InfoNCE's logits.",
        "",
        "| | parameters, M | in blocks, M | GFLOP forward | GFLOP backward | by the formula |",
        "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name in NAMES:
        m = measured["models"][name]
        flops = _work_of(RECIPES[name], m).flops
        lines.append(
            f"| {name} | {m['parameters'] / 1e6:.1f} | {m['in_blocks'] / 1e6:.1f} | "
            f"{m['forward_flops'] / 1e9:.2f} | {m['backward_flops'] / 1e9:.2f} | "
            f"{flops.forward / 1e9:.2f}, {flops.backward / 1e9:.2f} |"
        )
    recipe = RECIPES[counted["recipe"]]
    dim, batch = _config(recipe).dim, counted["rows"] * counted["processes"]
    expected = {
        "ddp": ddp_payload(counted["parameters"]),
        "fsdp": fsdp_payload(counted["parameters"], counted["in_blocks"], counted["blocks"]),
    }
    lines += [
        "",
        f"Bytes through the collectives of one step of {recipe.name} in {counted['processes']} processes "
        f"(gloo), a global batch of {batch}, counted (and by the formula). FSDP's differ by the padding of "
        "the two parameters whose first dimension is 1.",
        "",
        "| | all-reduce | all-gather | reduce-scatter |",
        "|---|---:|---:|---:|",
    ]  # fmt: skip
    for parallel, payload in expected.items():
        formula = asdict(payload + contrast_payload(dim, batch))
        held = counted["payloads"][parallel]
        cells = [f"{held[k]:,} ({formula[k]:,})" for k in ("all_reduce", "all_gather", "reduce_scatter")]
        lines.append(f"| {parallel} | " + " | ".join(cells) + " |")
    return lines


def _traffic_lines(work: Work, batch_size: int) -> list[str]:
    ddp = ddp_payload(work.parameters)
    fsdp = fsdp_payload(work.parameters, work.in_blocks, work.blocks)
    contrast = contrast_payload(work.dim, batch_size)
    mb = 1e6
    return [
        f"Payload of a step: DDP reduces {ddp.all_reduce / mb:,.0f} MB of gradients; FSDP gathers "
        f"{fsdp.all_gather / mb:,.0f} MB and scatters {fsdp.reduce_scatter / mb:,.0f} MB; InfoNCE gathers "
        f"{contrast.all_gather / mb:.1f} MB and reduces as much at {batch_size:,} samples.",
    ]


def _table(predictions: list[Prediction], recipe: Recipe) -> list[str]:
    lines = [
        "| GPUs | batch | per GPU | model, ms | logits, ms | InfoNCE's links, ms | gradients, ms "
        "| optimizer, ms | DDP in turn, samples/s | DDP, samples/s | FSDP, samples/s | DDP's efficiency "
        "| hours |",
        "|---:|" + "---:|" * 12,
    ]  # fmt: skip
    for p in predictions:
        hours = recipe.epochs * SAMPLES / p.ddp / 3600
        milliseconds = [p.model, p.logits, p.contrast, p.reduce, p.optimizer]
        cells = [f"{n:,}" for n in (p.world, p.batch_size, p.rows)]
        cells += [f"{1e3 * seconds:.1f}" for seconds in milliseconds]
        cells += [f"{speed:,.0f}" for speed in (p.ddp_in_turn, p.ddp, p.fsdp)]
        cells += [f"{p.efficiency:.0%}", f"{hours:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


_INTRODUCTION = """\
# What many GPUs would make of it

Generated by `python -m rsbackbones.bench.scaling > docs/scaling.md`. **Nothing on this page was run on
GPUs.** FLOPs, parameters and the bytes of collectives are counted, speeds are assumed, the rest is
arithmetic.

## Formulas

W processes, one GPU each; B samples in the global batch, so B/W rows on each; P parameters, of which P' are
in blocks; D the width of InfoNCE's rows.

- Model: rows x FLOPs of a sample / sustained FLOP/s, forward and backward (`rsbackbones/bench/flops.py`).
- Logits of InfoNCE: 12 B D FLOPs per row, in float32. They grow with the global batch, as nothing else does.
- InfoNCE's links: two tensors [B, D] in float32 are all-gathered in the forward pass (8 B D bytes), and their
  gradients all-reduced in the backward pass (8 B D bytes). The step waits for both.
- Gradients, DDP: 4 P bytes are all-reduced (float32, as the engine keeps them under autocast), in buckets of
  25 MiB. "In turn": after the backward pass. Otherwise beside it, but for the last bucket.
- FSDP: 4 (P + P') bytes are all-gathered (blocks for forward and for backward, the rest once), 4 P bytes
  reduce-scattered, all beside computation.
- n bytes take 2 (W-1)/W x n / bandwidth in an all-reduce and half of that in an all-gather or reduce-scatter
  (rings), and a latency x log2(W) per collective (trees).
- Optimizer: 28 bytes of memory traffic per parameter; with FSDP its W-th part.
- The flags of a step (32 bytes by gloo on the CPU) and the norm of the gradients are left out.
- DDP's efficiency: the model's time / the step's. Hours: the recipe's epochs of 1,000,000 samples with DDP.

## Assumed

NVIDIA A100 80 GB, as the paper's (appendix A.3.2). Sustained {tflops:.0f} TFLOP/s in bfloat16 (40 % of the
data sheet's 312) and {fp32:.1f} in float32 (60 % of 19.5); memory {gb:,.0f} GB/s. {node} GPUs per node with
{nv:.0f} GB/s between them; {net:.0f} GB/s (400 Gb/s) from a node to the others, shared by its GPUs: a ring
leaves and enters a node once. {us:.0f} microseconds of latency.
"""

_LIMITS = """\
## Limits

- The sustained rate is a guess and the largest uncertainty: all times of the model scale with it. It is taken
  as constant, and is not: few rows per GPU (strong scaling beyond some hundred GPUs) keep a GPU less busy.
- LayerNorm, softmax, GELU, masking, gathering and the bias are not matrix products and take time of their
  own; on a CPU, `rsbackbones bench train` says how much.
- Links are taken as free of other traffic, rings as perfect, and InfoNCE's collectives as not delayed by
  DDP's, with which they share a communicator.
- Reading is not modeled: at s samples/s the shards must be read, decoded, cut and resized at that rate, by
  CPUs that every node has to have.
- Memory is not modeled: whether the rows fit. In weak scaling the logits alone are 8 B B/W bytes per GPU.
- Whether a batch beyond the recipe's trains as well is no question of speed, and not answered here.
"""


def main(arguments: list[str] | None = None) -> None:
    """Print the page; measure first where the file does not exist."""
    parser = argparse.ArgumentParser(prog="rsbackbones.bench.scaling", description=main.__doc__)
    parser.add_argument("--measured", type=Path, default=MEASURED, metavar="FILE.json")
    sys.stdout.write(scaling(parser.parse_args(arguments).measured))


def scaling(file: Path) -> str:
    """Return the page for the measurements in ``file``; measure and write them where it does not exist."""
    if not file.exists():
        if not file.parent.is_dir():
            raise ValueError(
                f"there is no folder {file.parent} to write {file.name} to; name one that exists"
            )
        write_text(file, json.dumps(measure(), indent=1) + "\n")
    return page(json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
